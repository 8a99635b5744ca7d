"""The processes of a training job, and the precision they compute in."""

import contextlib
import gc
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from cpu import keep_freed_memory
from files import InputError, print_any_name, tell_mistake

T = TypeVar("T")


class OneProcessError(InputError):
    """An InputError that the other processes have not met: the process that raises it tells it itself."""


@dataclass
class Processes:
    """This process among those of the job, as torch.distributed.launch and torchrun tell it in the environment."""

    rank: int = field(default_factory=lambda: int(os.environ.get("RANK", 0)))
    local_rank: int = field(default_factory=lambda: int(os.environ.get("LOCAL_RANK", 0)))
    world_size: int = field(default_factory=lambda: int(os.environ.get("WORLD_SIZE", 1)))

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", self.local_rank) if torch.cuda.is_available() else torch.device("cpu")

    def start(self, join: "Callable[[torch.device], object]") -> None:
        """Joins the other processes, if there are others; `join` makes the process group."""
        if self.device.type == "cuda":
            wanted, there = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
            if wanted > there:
                raise InputError(f"{wanted} processes need as many GPUs, and there are {there}; lower --nproc_per_node")
            torch.cuda.set_device(self.device)
        if self.world_size > 1:
            join(self.device)

    @staticmethod
    def stop() -> None:
        if dist.is_initialized():
            dist.destroy_process_group()

    def say(self, text: str) -> None:
        """Prints on rank 0, above its progress bar."""
        if self.rank == 0:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def broadcast(self, value: Any) -> Any:
        """The value of rank 0."""
        values = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(values, device=self.device)
        return values[0]

    def gather(self, value: Any) -> list:
        """The values of all ranks."""
        values = [value]
        if self.world_size > 1:
            values = [None] * self.world_size
            dist.all_gather_object(values, value)
        return values

    def require_same(self, what: str, value: Any) -> None:
        """Raises InputError, on all ranks, if they differ in `value`: going on, they would wait for each other."""
        values = self.gather(value)
        if any(other != values[0] for other in values):
            raise InputError(f"the processes differ in {what}: {values}; every machine needs the same files")

    def together(self, action: Callable[[], T]) -> T:
        """Does something on every process. Raises InputError on all of them if it fails on one: none waits in vain."""
        problem, result = None, None
        try:
            result = action()
        except InputError as error:
            problem = str(error)
        except OSError as error:
            problem = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        problems = [problem for problem in self.gather(problem) if problem]
        if problems:
            raise InputError(problems[0])
        return result  # type: ignore[return-value]

    def sum(self, tensor: Tensor) -> Tensor:
        """Adds up a tensor over all ranks, in place. Not for anything that is back-propagated."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor


def join_group(device: torch.device) -> None:
    """As torch.distributed.launch and torchrun mean it."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if restarts == "0" or os.environ.get("GROUP_WORLD_SIZE") != "1":
        dist.init_process_group(backend)
        return
    # torchrun keeps its store over a restart (--max-restarts), and in it the addresses of the processes that ended.
    # On several nodes, whose counts of restarts may differ, TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 makes a new store.
    store, rank, world_size = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"restart {restarts}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)


def run(main: Callable[[Processes], int], join: Callable[[torch.device], object] = join_group) -> int:
    """Runs the main function of a trainer or an extractor between the start and the end of the process group.

    A user's mistake is told in one line, by rank 0 or the one process that met it, with exit status 2.
    """
    print_any_name()
    gc.freeze()  # what was imported stays: it need not be looked through for garbage, nor copied by workers
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the loader's workers are the parallelism
    processes = Processes()
    try:
        if processes.device.type == "cpu":
            keep_freed_memory()
        processes.start(join)
        status = main(processes)
    except InputError as error:
        status = tell_mistake(error, 0 if isinstance(error, OneProcessError) else processes.rank)
    except OSError as error:
        if not error.filename:
            raise
        status = tell_mistake(f"{error.filename}: {error.strerror}")
    except KeyboardInterrupt:
        status = 130
    finally:
        processes.stop()
    if processes.world_size > 1:
        # All is written. In Python's own end, a thread of the process group that still holds an object of Python has
        # aborted a process now and then ("terminate called without an active exception"), and so failed the job.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def precision(device: torch.device, wanted: str) -> torch.dtype:
    """The type that `wanted` ("auto", "float32", "bfloat16", "float16") means on `device`."""
    if wanted == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    types = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if wanted not in types or (wanted == "float16" and device.type == "cpu"):
        raise InputError(
            f"the precision {wanted!r} in config.py is not one of auto, float32, bfloat16, float16 (GPU only)"
        )
    return types[wanted]


class OnItsWay:
    """A copy of a tensor on its way to the host, which need not wait for it until it is read."""

    def __init__(self, tensor: Tensor):
        self._copy = tensor.detach().to("cpu", non_blocking=True)
        self._there = torch.cuda.current_stream(tensor.device).record_event() if tensor.is_cuda else None

    def read(self) -> Tensor:
        if self._there:
            self._there.synchronize()
        return self._copy


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """Mixed precision; nothing at all for float32."""
    return contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)
