"""The processes of a training or an extraction: how they wait for each other, fail and end; and their precision."""

import contextlib
import functools
import gc
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

import command_line
import config
from command_line import NO_MORE, has_launcher
from cpu import keep_freed_memory
from files import InputError, print_any_name, printable

T = TypeVar("T")

GRACE = 1.0  # seconds from a failure to the exit, at which the launcher kills the others: they print their reasons
LONGEST_SILENCE = 2 * 3600.0  # seconds of waiting without a finished file or an arriving process until it is an error


class OtherProcessError(Exception):
    """Another process has failed, and has printed why."""


@dataclass
class Processes:
    """This process among those of the job, from the environment variables of torch.distributed's launchers."""

    rank: int = field(default_factory=lambda: int(os.environ.get("RANK", 0)))
    local_rank: int = field(default_factory=lambda: int(os.environ.get("LOCAL_RANK", 0)))
    world_size: int = field(default_factory=lambda: int(os.environ.get("WORLD_SIZE", 1)))
    _meetings: int = field(default=0, init=False)  # how often all processes have waited for each other

    @property
    def device(self) -> torch.device:
        """This process's accelerator (CUDA, MPS, XPU); without one, or with ACCELERATE_USE_CPU=1, the CPU."""
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        if accelerator is None or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
            return torch.device("cpu")
        return torch.device(accelerator.type, self.local_rank)

    @property
    def device_name(self) -> str:
        name = getattr(torch.get_device_module(self.device), "get_device_name", None)
        return name(self.device) if name else self.device.type.upper()

    @functools.cached_property
    def store(self) -> dist.Store | None:
        """The launcher's key-value store, which works before the process group exists; without a launcher, rank 0's.

        None for a single process, and without a launcher until the process group exists.
        """
        if self.world_size == 1 or not (_launcher_has_store() or dist.is_initialized()):
            return None
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(*address, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=10))
        return dist.PrefixStore(f"failures and meetings {_attempt()}", store)

    def start(self, join: "Callable[[torch.device], object]") -> None:
        """Join the other processes, if there are any. Raises InputError if there are fewer GPUs than processes."""
        if self.device.type != "cpu" and self.world_size > 1:
            wanted, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.accelerator.device_count()
            if wanted > gpus:
                raise InputError(f"{wanted} processes need as many GPUs, and there are {gpus}; lower --nproc_per_node")
            torch.accelerator.set_device_index(self.local_rank)
        if self.world_size > 1:
            if _launcher_has_store():
                self.wait_for_all()  # `join` would wait for a process that has failed
            join(self.device)
            self.store  # noqa: B018 (connects)

    def print(self, text: str) -> None:
        """Print on rank 0, above its progress bar. Escapes control characters but line breaks."""
        if self.rank == 0:
            tqdm.write("\n".join(map(printable, text.split("\n"))), file=sys.stdout)
            sys.stdout.flush()

    def finish(self, status: int) -> None:
        """Explain on rank 0 a status other than 0. The others wait: a launcher ends all when the first one exits."""
        meanings = {1: "the files named above failed, all others are done", 130: "stopped and saved, see above"}
        if self.rank == 0:
            print(f"{meanings[status]}. {NO_MORE}", file=sys.stderr, flush=True)
        self.wait_for_all()

    def report(self, error: BaseException) -> int:
        """Print why this process ends, once for all processes with the same reason. Returns the exit status.

        A user error takes one line, any other a traceback, or one line after another process's failure, of which it
        counts as a consequence (a lost connection, for example).
        """
        if isinstance(error, InputError):
            status, reason = 2, printable(error)
        elif isinstance(error, OSError) and error.filename:
            status, reason = 2, printable(f"{error.filename}: {error.strerror}")
        elif isinstance(error, (OtherProcessError, KeyboardInterrupt)):
            status, reason = 130 if isinstance(error, KeyboardInterrupt) else 2, ""
        elif isinstance(error, SystemExit):  # its reason is printed
            status, reason = error.code if isinstance(error.code, int) else 1, ""
        elif self._count("failures", 0, if_lost=1):
            first_line = str(error).partition("\n")[0]
            status, reason = 1, f"another process has failed, and so has this one: {type(error).__name__}: {first_line}"
        else:
            status, reason = 1, "".join(traceback.format_exception(error)).rstrip()
        if reason and self._count(ascii(reason), 1, if_lost=1) == 1:
            place = f" (rank {self.rank} on {socket.gethostname()})" if self.world_size > 1 else ""
            print(f"error{place}: {reason}", file=sys.stderr, flush=True)
        is_first = self._count("failures", 1, if_lost=2) == 1
        if self.world_size > 1:
            time.sleep(GRACE)
        if is_first and has_launcher():
            interrupted = "interrupted; the same command continues there. " * isinstance(error, KeyboardInterrupt)
            print(f"{interrupted}{NO_MORE}", file=sys.stderr, flush=True)
        return status

    def _count(self, key: str, more: int, if_lost: int) -> int:
        """Add to a count in the store and return it. Without a store it was 0 before."""
        try:
            return more if self.store is None else self.store.add(key, more)
        except dist.DistError:  # the process that serves it has ended
            return if_lost

    def show_progress(self) -> None:
        """Report progress, so that processes that wait for this one keep waiting."""
        self._count("progress", 1, if_lost=0)

    def wait_for_all(self) -> None:
        """Wait until all processes are here, for as long as one of them makes progress.

        Raises OtherProcessError if one has failed, where a collective operation of NCCL would wait on.
        """
        store = self.store
        if store is None:
            return
        self._meetings += 1
        meeting = f"meeting {self._meetings}"
        store.set(f"{meeting} {self.rank}", "")
        arrived, pause, signs, since = store.add(meeting, 1), 0.001, -1, time.monotonic()
        while arrived < self.world_size:
            if store.add("failures", 0):
                raise OtherProcessError
            before, signs = signs, arrived + store.add("progress", 0)
            if signs != before:
                since = time.monotonic()
            elif time.monotonic() - since > LONGEST_SILENCE:
                missing = [str(r) for r in range(self.world_size) if not store.check([f"{meeting} {r}"])]
                raise InputError(
                    f"waited {LONGEST_SILENCE / 3600:g} hours for rank {', '.join(missing)}, which did nothing; look"
                    " for what is wrong on its machine, and start again"
                )
            time.sleep(pause)
            pause = min(1.5 * pause, 0.05)  # short: the last one to arrive may end soon, and the store with it
            arrived = store.add(meeting, 0)

    def broadcast(self, value: Any) -> Any:
        """Return the value of rank 0."""
        values = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(values, device=self.device)
        return values[0]

    def gather(self, value: Any) -> list:
        """Return the values of all ranks."""
        values = [value]
        if self.world_size > 1:
            values = [None] * self.world_size
            dist.all_gather_object(values, value)
        return values

    def require_same(self, what: str, value: Any) -> None:
        """Raise InputError on all ranks if they differ in `value`, and so would wait for each other later."""
        self.wait_for_all()
        values = self.gather(value)
        if any(other != values[0] for other in values):
            raise InputError(f"the processes differ in {what}: {values}; every machine needs the same files")

    def together(self, action: Callable[[], T]) -> T:
        """Run an action on every process and wait until all have done so. Raises InputError in place of OSError."""
        try:
            result = action()
        except OSError as error:
            raise InputError(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from None
        self.wait_for_all()
        return result

    def sum(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over all ranks, in place, without gradients."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor


def _launcher_has_store() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _attempt() -> str:
    """Return the number of restarts by torchrun (--max-restarts), whose store keeps earlier keys.

    0 on several nodes, whose numbers may differ; there, TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 makes a new store.
    """
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if os.environ.get("GROUP_WORLD_SIZE") == "1" else "0"


def join_group(device: torch.device) -> None:
    """Make the process group of torch.distributed's launchers."""
    backend = dist.get_default_backend_for_device(device.type)  # nccl, xccl, or gloo
    if _attempt() == "0":
        dist.init_process_group(backend)
        return
    store, rank, world_size = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"restart {_attempt()}", store)  # apart from the addresses before the restart
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)


def run(main: Callable[[Processes], int], join: Callable[[torch.device], object] = join_group) -> int:
    """Run the main function of a trainer or an extractor between the start and the end of the process group.

    A user error prints one line, with exit status 2. A process that fails does not end the group, which would wait for
    the others, but exits, at which its launcher ends them.
    """
    print_any_name()
    gc.freeze()  # imported modules stay: the collector need not scan them, nor forked workers copy them
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the loader's workers run in parallel already
    command_line.imported()
    processes = Processes()
    try:
        if processes.device.type == "cpu":
            keep_freed_memory()
        processes.start(join)
        status = main(processes)
        if status and has_launcher():
            processes.finish(status)
        if dist.is_initialized():
            if not _launcher_has_store():
                dist.barrier()  # rank 0, whose end is that of the store, must not end while another one asks it
            dist.destroy_process_group()
    except BaseException as error:
        is_users = isinstance(error, (InputError, KeyboardInterrupt)) or (isinstance(error, OSError) and error.filename)
        if processes.world_size == 1 and not is_users:
            raise
        status = processes.report(error)
    if processes.world_size > 1:
        # At the interpreter's own exit, a thread of the process group that still holds a Python object has aborted a
        # process now and then ("terminate called without an active exception"), and so failed a finished job.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def precision(device: torch.device, wanted: str) -> torch.dtype:
    """Return the type for a constant ("auto", "float32", "bfloat16", "float16") on a device. Raises InputError."""
    on_gpu = device.type in ("cuda", "xpu")  # elsewhere, as on a Mac, mixed precision may be no faster
    has_bfloat16 = not on_gpu or torch.get_device_module(device).is_bf16_supported(including_emulation=False)
    if wanted == "auto":
        return torch.float32 if not on_gpu else torch.bfloat16 if has_bfloat16 else torch.float16
    types = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if wanted not in types or (wanted == "float16" and not on_gpu):
        raise InputError(
            f"the precision {wanted!r} is not one of auto, float32, bfloat16, float16 (on a GPU only); set it in"
            f" {config.source()}"
        )
    if wanted == "bfloat16" and not has_bfloat16:
        raise InputError("the precision 'bfloat16' in config.py: this GPU has none; set float16 or float32")
    return types[wanted]


def sum_dtype(device: torch.device) -> torch.dtype:
    """Return float64, in which losses are summed; on a Mac's GPU, which has none, float32."""
    return torch.float32 if device.type == "mps" else torch.float64


class OnItsWay:
    """A copy of a tensor to the host, for which the host waits only when it reads it; but at once where no CUDA is."""

    def __init__(self, tensor: Tensor):
        self._copy = tensor.detach().to("cpu", non_blocking=tensor.is_cuda)
        self._there = torch.cuda.current_stream(tensor.device).record_event() if tensor.is_cuda else None

    def read(self) -> Tensor:
        if self._there:
            self._there.synchronize()
        return self._copy


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """Return a context of mixed precision, or an empty one for float32."""
    return contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)
