"""How pieces become batches: datasets whose bad pieces are replaced, the order of an epoch, loaders.

What happens to a piece in an epoch (augmentation) is drawn from (seed, epoch, piece) alone, so that neither the
number of loader workers nor the number of processes changes it.
"""

import hashlib
import math
import os
import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

import config
from files import InputError
from packing import Tensors
from processes import Processes

TRIES = 100  # pieces tried in place of a bad one, before the data as a whole is called bad
MOST_WORKERS = 16  # that NUM_WORKERS = -1 chooses; each takes memory


def digest(*parts: bytes) -> str:
    """A short digest of some bytes, in this order."""
    found = hashlib.sha256()
    for part in parts:
        found.update(b"%d " % len(part) + part)
    return found.hexdigest()[:16]


class Paths:
    """Paths in one block of memory, which forked workers share, no longer than they are together."""

    def __init__(self, paths: list[str]):
        encoded = [os.fsencode(path) for path in paths]
        self.ends = np.cumsum([len(path) for path in encoded], dtype=np.int64)
        self.block = b"".join(encoded)
        # of one file, its name counts
        common = len(os.path.commonpath([*encoded, os.path.dirname(encoded[0])])) if encoded else 0
        self.digest = digest(*(path[common:] for path in encoded))  # the same wherever their folder is

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> Path:
        start = int(self.ends[index - 1]) if index else 0
        return Path(os.fsdecode(self.block[start : int(self.ends[index])]))


class PieceDataset(Dataset):
    """Pieces under the keys (epoch, index). A bad piece is named in `problems` and another one stands in for it,
    so that all ranks keep equal batches."""

    batch_constant = "the batch size"  # the constant of config.py that sets it

    def __init__(self, train: bool, seed: int):
        self.train = train
        self.seed = seed

    def __len__(self) -> int:
        raise NotImplementedError

    def digest(self) -> str:
        """Of which pieces there are, in their order."""
        raise NotImplementedError

    def load(self, index: int, rng: random.Random) -> dict:
        """One piece, with its `name`; what is random about it comes from `rng`. `problems`, if there, names
        what is wrong with parts of it that it can do without. Raises InputError if the piece is bad."""
        raise NotImplementedError

    def __getitem__(self, key: tuple[int, int]) -> dict:
        epoch, index = key
        rng = random.Random(f"{self.seed} {epoch} {index}")
        problems: list[str] = []
        for _ in range(TRIES):
            try:
                sample = self.load(index, rng)
                return {**sample, "problems": problems + sample.get("problems", [])}
            except InputError as error:
                problems.append(str(error))
            index = rng.randrange(len(self))
        return {"fatal": f"{TRIES} pieces in a row could not be used; the last: {problems[-1]}"}


class Batches:
    """Which pieces make the batches of an epoch, as keys (epoch, index) for one rank; a batch sampler of DataLoader.

    In training, the order of an epoch is one permutation for all ranks: a global batch is a run of it, and a rank has
    its share of each. The last pieces, fewer than a global batch, wait for another epoch. In evaluation every piece
    is used.
    """

    def __init__(self, count: int, batch_size: int, processes: Processes, seed: int, train: bool, constant: str = ""):
        self.count, self.batch_size, self.processes, self.seed, self.train = count, batch_size, processes, seed, train
        self.epoch = 0
        self.first_step = 0  # steps of this epoch that a run which continues has already done
        self.global_size = batch_size * processes.world_size
        if train and count < self.global_size:
            raise InputError(
                f"{count} pieces for training are fewer than one batch of {self.global_size}"
                f" ({batch_size} for each of {processes.world_size} process(es)); lower {constant} ({batch_size}) in"
                f" {config.source()}"
            )

    def __len__(self) -> int:
        if self.train:
            return self.count // self.global_size
        return math.ceil(len(range(self.processes.rank, self.count, self.processes.world_size)) / self.batch_size)

    @property
    def on_every_rank(self) -> int:
        """How many batches of an evaluation every rank has. Some have one more."""
        return math.ceil(self.count // self.processes.world_size / self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rank, size = self.processes.rank, self.batch_size
        if self.train:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.count)
            for step in range(self.first_step, len(self)):
                start = step * self.global_size + rank * size
                yield [(self.epoch, int(index)) for index in order[start : start + size]]
        else:
            own = range(rank, self.count, self.processes.world_size)
            for start in range(0, len(own), size):
                yield [(0, index) for index in own[start : start + size]]


def worker_count() -> int:
    """The reading processes of this rank: NUM_WORKERS, or its share of the cores less the one it runs on itself."""
    if config.NUM_WORKERS >= 0:
        return config.NUM_WORKERS
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return min(max(share - 1, 1), MOST_WORKERS)


def make_loader(
    dataset: PieceDataset, batch_size: int, processes: Processes, collate: Callable[[list[dict]], Tensors]
) -> DataLoader:
    """Batches of a dataset for this rank, read ahead by worker processes."""
    batches = Batches(len(dataset), batch_size, processes, dataset.seed, dataset.train, dataset.batch_constant)
    workers = min(worker_count(), len(batches))
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=_Collate(collate),
        num_workers=workers,
        persistent_workers=workers > 0 and dataset.train,  # those of the evaluation come when they are needed
        prefetch_factor=2 if workers else None,  # what waits is shared memory, up to 12 MB a batch of CLaMP 2
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=ignore_interrupts,
    )


def ignore_interrupts(_: int) -> None:
    """Ctrl-C and a cluster's SIGTERM may reach every process; their parent decides when workers end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def close_loader(loader: DataLoader) -> None:
    """Ends a loader's workers, gently: they ignore the SIGTERM that the interpreter would send them at its exit."""
    if loader._iterator is not None and loader.num_workers:
        loader._iterator._shutdown_workers()  # type: ignore[attr-defined]
        loader._iterator = None


@dataclass
class _Collate:
    collate: Callable[[list[dict]], Tensors]

    def __call__(self, samples: list[dict]) -> dict:
        for sample in samples:
            if "fatal" in sample:
                return sample
        return {
            "batch": self.collate(samples).joined(),
            "names": [sample["name"] for sample in samples],
            "problems": [problem for sample in samples for problem in sample["problems"]],
        }
