"""Pieces and their batches: held-out data, datasets that replace bad pieces, the order of an epoch, loaders."""

import hashlib
import math
import os
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from torch.utils.data import DataLoader, Dataset

import config
from files import InputError, core_count
from packing import Tensors
from processes import Processes
from utils import split_data

T = TypeVar("T")

TRIES = 100  # pieces tried in place of a bad one, before the data as a whole is called bad
MOST_WORKERS = 16  # that NUM_WORKERS = -1 chooses; each takes memory


def require_set(name: str, value: str) -> None:
    """Raise InputError if a constant of config.py still is its placeholder, or is empty."""
    if not value or value.startswith("<"):
        raise InputError(f"{name} is not set (it is {value!r}); set it in {config.source()}")


def hold_out(pieces: Sequence[T], least: int, instead: str) -> tuple[list[T], list[T]]:
    """Split the training data into (training, evaluation). Raises InputError if fewer than `least` are held out.

    instead: the constant that names separate evaluation data.
    """
    count, share = len(pieces), config.EVAL_SPLIT
    if count <= least:
        raise InputError(
            f"{count} piece(s) cannot be split into training and evaluation data, which takes {least + 1}; add more, or"
            f" set {instead} in {config.source()}"
        )
    train, evaluation = split_data(pieces, share) if share else (list(pieces), [])
    if len(evaluation) < least:
        raise InputError(
            f"EVAL_SPLIT = {share} holds out {len(evaluation)} of {count} pieces, and evaluation takes {least}; raise"
            f" it to {math.ceil(100 * least / count) / 100}, or set {instead}, in {config.source()}"
        )
    return train, evaluation


def digest(*parts: bytes) -> str:
    """Return a short digest of some bytes, in this order."""
    found = hashlib.sha256()
    for part in parts:
        found.update(b"%d " % len(part) + part)
    return found.hexdigest()[:16]


class Paths:
    """Paths in one block of memory, which forked workers share."""

    def __init__(self, paths: list[str]):
        encoded = [os.fsencode(path) for path in paths]
        self.ends = np.cumsum([len(path) for path in encoded], dtype=np.int64)
        self.block = b"".join(encoded)
        # relative to the folder of all, which may be moved; of one file, its name
        common = len(os.path.commonpath([*encoded, os.path.dirname(encoded[0])])) if encoded else 0
        self.digest = digest(*(path[common:] for path in encoded))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> Path:
        start = int(self.ends[index - 1]) if index else 0
        return Path(os.fsdecode(self.block[start : int(self.ends[index])]))


class PieceDataset(Dataset):
    """Pieces under the keys (epoch, index). All randomness of a piece is drawn from (seed, epoch, index).

    A bad piece is named in `problems` and replaced by another one, so that all ranks keep equal batches.
    """

    batch_constant = "the batch size"  # the constant of config.py that sets it

    def __init__(self, train: bool, seed: int):
        self.train, self.seed = train, seed

    def __len__(self) -> int:
        raise NotImplementedError

    def digest(self) -> str:
        """Return a digest of the pieces in their order."""
        raise NotImplementedError

    def load(self, index: int, rng: random.Random) -> dict:
        """Load a piece, with its `name`, and `problems` of parts it can do without. Raises InputError if it is bad."""
        raise NotImplementedError

    def __getitem__(self, key: tuple[int, int]) -> dict:
        epoch, index = key
        rng = random.Random(f"{self.seed} {epoch} {index}")
        problems: list[str] = []
        for _ in range(TRIES):
            try:
                sample = self.load(index, rng)
                return sample | {"problems": problems + sample.get("problems", [])}
            except InputError as error:
                problems.append(str(error))
            index = rng.randrange(len(self))
        kind, count = ("training" if self.train else "evaluation"), len(set(problems))
        tried = f"{TRIES} pieces in a row could not be used for {kind}, {count} different one(s)"
        return {"fatal": f"{tried}; the last: {problems[-1]}"}


class Batches:
    """The batch sampler of one rank: the keys (epoch, index) of the pieces of each batch.

    In training, an epoch is one permutation for all ranks, cut into global batches, of which each rank has its share;
    the last pieces, fewer than a global batch, are left out. In evaluation every piece is used.
    """

    def __init__(self, count: int, batch_size: int, processes: Processes, seed: int, train: bool, constant: str = ""):
        self.count, self.batch_size, self.processes, self.seed, self.train = count, batch_size, processes, seed, train
        self.epoch, self.first_step = 0, 0  # of a run that continues, the step of this epoch to begin with
        self.global_size = batch_size * processes.world_size
        if train and count < self.global_size:
            raise InputError(
                f"{count} piece(s) for training are fewer than one batch of {self.global_size}"
                f" ({batch_size} for each of {processes.world_size} process(es)); lower {constant} ({batch_size}) in"
                f" {config.source()}"
            )

    def __len__(self) -> int:
        if self.train:
            return self.count // self.global_size
        return math.ceil(len(range(self.processes.rank, self.count, self.processes.world_size)) / self.batch_size)

    @property
    def on_every_rank(self) -> int:
        """The number of batches of an evaluation that every rank has. Some have one more."""
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


class Loader(DataLoader):
    dataset: PieceDataset
    batch_sampler: Batches  # type: ignore[assignment]


def worker_count() -> int:
    """Return the number of workers of this rank: NUM_WORKERS, or its share of the cores less one for itself."""
    if config.NUM_WORKERS >= 0:
        return config.NUM_WORKERS
    share = core_count() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return min(max(share - 1, 1), MOST_WORKERS)


def make_loader(
    dataset: PieceDataset, batch_size: int, processes: Processes, collate: Callable[[list[dict]], Tensors]
) -> Loader:
    """Return a loader of this rank's batches, read ahead by worker processes."""
    batches = Batches(len(dataset), batch_size, processes, dataset.seed, dataset.train, dataset.batch_constant)
    workers = min(worker_count(), len(batches))
    return Loader(
        dataset,
        batch_sampler=batches,
        collate_fn=partial(_collate, collate),
        num_workers=workers,
        persistent_workers=workers > 0 and dataset.train,  # an evaluation starts its own
        prefetch_factor=2 if workers else None,  # in shared memory, up to 12 MB a batch of CLaMP 2
        pin_memory=processes.device.type == "cuda",
        worker_init_fn=ignore_interrupts,
    )


def _collate(collate: Callable[[list[dict]], Tensors], samples: list[dict]) -> dict:
    for sample in samples:
        if "fatal" in sample:
            return sample
    return {
        "batch": collate(samples).joined(),
        "names": [sample["name"] for sample in samples],
        "problems": [problem for sample in samples for problem in sample["problems"]],
    }


def ignore_interrupts(_: int) -> None:
    """Ignore Ctrl-C and a cluster's SIGTERM, which may reach every process: the parent decides when workers end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def close_loader(loader: DataLoader) -> None:
    """End the workers of a loader, which ignore the SIGTERM that the interpreter would send them at its exit."""
    if loader._iterator is not None and loader.num_workers:
        loader._iterator._shutdown_workers()  # type: ignore[attr-defined]
        loader._iterator = None
