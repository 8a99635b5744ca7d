"""The state of a training run from one start to the next: settings, progress, and the weights that it replaces."""

import math
import os
import random
import shutil
import time
from dataclasses import dataclass, field, fields
from pathlib import Path

from torch import nn

import config
from checkpoints import load_checkpoint, load_weights
from files import InputError, atomic_write, remove_leftovers
from processes import Processes


@dataclass
class Settings:
    """The constants that each of the two trainings has for itself: M3_NUM_EPOCH is `num_epoch` of "m3"."""

    name: str  # "m3" or "clamp2"
    num_epoch: int
    learning_rate: float
    batch_size: int  # per process
    deterministic: bool
    load_ckpt: bool
    wandb_log: bool
    weights_path: Path
    logs_path: Path
    evaluation: dict = field(default_factory=dict)  # constants that the evaluation loss depends on

    @classmethod
    def read(cls, name: str, *evaluation: str) -> "Settings":
        """Read the settings from config.py; `evaluation` names the constants that the evaluation loss depends on."""
        own = {entry.name: getattr(config, f"{name}_{entry.name}".upper()) for entry in fields(cls)[1:-1]}
        own |= {path: config.resolve(own[path]) for path in ("weights_path", "logs_path")}
        return cls(name, **own, evaluation={constant: getattr(config, constant) for constant in evaluation})

    def constant(self, field: str) -> str:
        return f"{self.name}_{field}".upper()

    @property
    def latest_path(self) -> Path:
        """The complete state of the run, beside its weights."""
        return self.weights_path.with_name("latest_" + self.weights_path.name)

    @property
    def checkpoint(self) -> Path | None:
        """The file that the run continues from, where LOAD_CKPT allows it: `latest_...`, or else the weights file."""
        paths = [self.latest_path, self.weights_path] if self.load_ckpt else []
        return next((path for path in paths if path.exists()), None)


@dataclass
class Progress:
    """The progress of a run."""

    seed: int = 0
    epoch: int = 1  # the one in progress
    step: int = 0  # how many of its steps are done; all of them: its evaluation is left
    total: float = 0.0  # of the loss, over the epoch in progress and all ranks
    weight: float = 0.0  # by which `total` is divided
    best_epoch: int = 0
    min_eval_loss: float = math.inf
    bad_pieces: list[str] = field(default_factory=list)  # those reported, with their problems

    def begin_epoch(self, epoch: int) -> None:
        self.epoch, self.step, self.total, self.weight = epoch, 0, 0.0, 0.0


_PROGRESS = [entry.name for entry in fields(Progress)]
STATE = {"optimizer", "lr_sched", "scaler", *_PROGRESS}  # what every `latest_...` holds beside the model


def load_start(settings: Settings, processes: Processes, model: nn.Module) -> tuple[dict | None, Progress, str]:
    """Load the weights that the run starts from into the model, if there is a checkpoint.

    Returns the complete state of a run to continue, or None; its progress; and where it starts, in words.
    """
    path, latest = settings.weights_path, settings.latest_path
    if path.suffix.lower() == ".safetensors":
        raise InputError(f"{path}: a training writes a .pth file; name one in {config.source()}")
    if processes.rank == 0:
        remove_leftovers(path.parent, below=False)
    found = settings.checkpoint
    processes.require_same("the checkpoint they find", str(found))
    if found == latest:
        state = load_checkpoint(latest)
        load_weights(model, state["model"], latest)
        if lacking := STATE - state.keys():
            raise InputError(
                f"{latest}: not the complete state of a run ({', '.join(sorted(lacking))} is not in it); to start from"
                f" its weights, rename it to {path.name}"
            )
        progress = Progress(**{name: state[name] for name in _PROGRESS})
        if settings.deterministic:
            progress.seed = 0
        return state, progress, f"{latest}, epoch {progress.epoch}, step {progress.step}"
    progress = Progress(seed=0 if settings.deterministic else processes.broadcast(random.getrandbits(31)))
    if not found:
        return None, progress, "new weights"
    checkpoint = load_checkpoint(path)
    if checkpoint["has_audio"]:
        raise InputError(
            f"{path}: weights of CLaMP 3, which a training would replace by some without the audio tower; to start from"
            " them, make a new .pth file of them with convert_checkpoint.py, by way of a folder"
        )
    load_weights(model, checkpoint["model"], path)
    return None, progress, str(path)


def differences(before: dict, now: dict) -> str:
    """List the entries that differ, as `name before -> now`."""
    return ", ".join(
        f"{name} {before.get(name, 'unknown')} -> {value}"
        for name, value in now.items()
        if name not in before or before[name] != value
    )


def keep(path: Path) -> Path | None:
    """Give a file a second name, with the time of its last change, so that it is not lost when it is replaced.

    Returns that name, or None if there is no file, or if it is a symbolic link.
    """
    if path.is_symlink() or not path.exists():
        return None
    changed = time.strftime("%Y%m%d-%H%M%S", time.localtime(path.stat().st_mtime))
    kept = path.with_name(f"kept_{changed}_{path.name}")
    if not kept.exists():
        try:
            os.link(path, kept)
        except OSError:  # a file system without hard links
            with open(path, "rb") as file, atomic_write(kept) as copy:
                shutil.copyfileobj(file, copy)
    return kept
