"""The state of a training run from one start to the next: settings, progress, optimizer, and weights it replaces."""

import math
import os
import random
import shutil
import time
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from torch import nn

import config
from checkpoints import load_checkpoint, load_weights
from files import InputError, atomic_write, remove_leftovers
from processes import Processes


@dataclass
class Settings:
    """The constants that each of the two trainings has of its own: M3_NUM_EPOCH is `num_epoch` of "m3"."""

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
        """The settings of config.py; `evaluation` names the constants that the evaluation loss depends on."""
        own = {entry.name: getattr(config, f"{name}_{entry.name}".upper()) for entry in fields(cls)[1:-1]}
        own |= {path: config.resolve(own[path]) for path in ("weights_path", "logs_path")}
        return cls(name, **own, evaluation={constant: getattr(config, constant) for constant in evaluation})

    def constant(self, field: str) -> str:
        return f"{self.name}_{field}".upper()

    @property
    def latest_path(self) -> Path:
        """The complete state of the run, beside its weights."""
        return self.weights_path.with_name("latest_" + self.weights_path.name)

    def pace(self) -> dict:
        """The settings that must be the same on all processes for them to take the same steps and save together."""
        steps = {"epochs": self.num_epoch, "learning rate": self.learning_rate}
        return steps | {"SAVE_EVERY_STEPS": config.SAVE_EVERY_STEPS}

    @property
    def checkpoint(self) -> Path | None:
        """The file that the run continues from, where LOAD_CKPT allows it: `latest_...`, or else the weights file."""
        there = [path for path in (self.latest_path, self.weights_path) if self.load_ckpt and path.exists()]
        return there[0] if there else None


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
    bad_pieces: list[str] = field(default_factory=list)  # that were reported, with their problems

    def begin_epoch(self, epoch: int) -> None:
        self.epoch, self.step, self.total, self.weight = epoch, 0, 0.0, 0.0


_PROGRESS = [entry.name for entry in fields(Progress)]
STATE = {"optimizer", "lr_sched", "scaler", *_PROGRESS}  # what every `latest_...` holds beside the model


def load_start(settings: Settings, job: Processes, model: nn.Module) -> tuple[dict | None, Progress, str]:
    """Loads the weights that the run starts from into the model, if there is a checkpoint.

    Returns the complete state of a run to continue, or None; its progress; and where it starts, in words.
    """
    if settings.weights_path.suffix.lower() == ".safetensors":
        raise InputError(f"{settings.weights_path}: a training writes a .pth file; name one in {config.source()}")
    if job.rank == 0:
        remove_leftovers(settings.weights_path.parent, below=False)
    job.require_same("the checkpoint they find", str(settings.checkpoint))
    if settings.checkpoint == settings.latest_path:
        return _load_state(settings, model)
    progress = Progress(seed=0 if settings.deterministic else job.broadcast(random.getrandbits(31)))
    if not settings.checkpoint:
        return None, progress, "new weights"
    checkpoint = load_checkpoint(settings.weights_path)
    if checkpoint["has_audio"]:
        raise InputError(
            f"{settings.weights_path}: weights of CLaMP 3, which a training would replace by some without the audio"
            " tower; to start from them, make a new .pth file of them with convert_checkpoint.py, by way of a folder"
        )
    load_weights(model, checkpoint["model"], settings.weights_path)
    return None, progress, str(settings.weights_path)


def _load_state(settings: Settings, model: nn.Module) -> tuple[dict, Progress, str]:
    path = settings.latest_path
    state = load_checkpoint(path)
    load_weights(model, state["model"], path)
    if lacking := STATE - state.keys():
        raise InputError(
            f"{path}: not the complete state of a run ({', '.join(sorted(lacking))} is not in it); to start from its"
            f" weights, rename it to {settings.weights_path.name}"
        )
    progress = Progress(**{name: state[name] for name in _PROGRESS})
    if settings.deterministic:
        progress.seed = 0
    return state, progress, f"{path}, epoch {progress.epoch}, step {progress.step}"


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: dict) -> None:
    """Restores the moments of the optimizer. Its options, such as the learning rate, stay those of this run."""
    own = optimizer.state_dict()["param_groups"]
    groups = [mine | {"params": theirs["params"]} for mine, theirs in zip(own, saved["param_groups"], strict=True)]
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})


def differences(before: dict, now: dict) -> str:
    """Lists the entries that differ, as `name before -> now`."""
    return ", ".join(
        f"{name} {before.get(name, 'unknown')} -> {value}"
        for name, value in now.items()
        if name not in before or before[name] != value
    )


def keep(path: Path) -> Path | None:
    """Gives a file a second name, with the time of its last change, so that it is not lost when it is replaced.

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
