"""Checkpoint files. The published form: `model`, `optimizer`, `lr_sched`, `epoch`, `best_epoch`, `min_eval_loss`."""

import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

from files import InputError, atomic_write


def load_checkpoint(path: Path) -> dict:
    """A checkpoint file, on the CPU. Only tensors and plain values are read from it: a file cannot run code.

    Raises InputError if it cannot be read or is not a checkpoint.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: there are no such weights") from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # torch's words advise to load it all the same
            reason = "it is damaged, or holds more than tensors and plain values, which could run code"
        raise InputError(f"{path}: not a checkpoint that can be loaded safely ({reason})") from None
    if not (isinstance(checkpoint, dict) and isinstance(checkpoint.get("model"), dict)):
        raise InputError(f"{path}: not a checkpoint; it has no entry `model`")
    return checkpoint


def load_weights(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Loads a state dict strictly. Raises InputError that names what does not fit."""
    own = model.state_dict()
    missing = [name for name in own if name not in weights]
    unexpected = [name for name in weights if name not in own]
    wrong = [name for name in own if name in weights and own[name].shape != weights[name].shape]
    if wrong:
        name = wrong[0]
        raise InputError(
            f"{path}: {name} is {list(weights[name].shape)}, but the sizes in config.py make it {list(own[name].shape)}"
            f" ({len(wrong)} entries differ); set the sizes these weights were trained with"
        )
    if missing or unexpected:
        raise InputError(
            f"{path}: these weights are of another model: {len(missing)} entries are missing{_first(missing)},"
            f" {len(unexpected)} are unknown{_first(unexpected)}"
        )
    model.load_state_dict(weights)


def _first(names: list[str]) -> str:
    return f" (the first: {names[0]})" if names else ""


def save_checkpoint(path: Path, checkpoint: dict) -> None:
    """Writes a checkpoint whole or not at all: the previous one survives a failure. Raises InputError, OSError."""
    try:
        with atomic_write(path) as file:
            torch.save(checkpoint, file)
    except RuntimeError as error:  # torch's own, in place of the OSError of a full disk
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path}: cannot be written ({reason}); is the disk full? What was there is kept") from None
