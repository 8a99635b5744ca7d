"""Load and save checkpoints in the published form: a dictionary of `model`, `optimizer`, `lr_sched`, `epoch`,
`best_epoch` and `min_eval_loss`."""

import pickle
import re
import sys
import zipfile
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

import config
import sizes
from files import InputError, atomic_write, printable

M = TypeVar("M", bound=nn.Module)

AUDIO_LEFT_OUT = "these weights are of CLaMP 3: its audio tower is left out"
_WRAPPERS = re.compile(r"^(?:module\.)+|(?<![^.])_orig_mod\.|(?<=_orig_mod\.)module\.")
_POSITION_IDS = "embeddings.position_ids"  # a buffer that older versions of transformers save


def load_checkpoint(path: Path) -> dict:
    """Read a checkpoint to the CPU: a .pth file in the published form, or weights alone, .pth or .safetensors.

    `model` has the names of this project's models, without wrappers' prefixes; CLaMP 3's text and symbolic towers are
    CLaMP 2's (`is_clamp3`; `has_audio` if it has an audio tower, which is left out). Only tensors and plain values are
    read, so that a file cannot run code. Tensors are mapped into memory: read when they are used, never written back;
    the file may be replaced or deleted meanwhile. Raises InputError.
    """
    try:
        if path.suffix.lower() == ".safetensors":
            checkpoint: dict = {"model": load_file(path)}
        else:
            mappable = zipfile.is_zipfile(path)  # files from before PyTorch 1.6 are not
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mappable)
    except FileNotFoundError:
        raise InputError(f"{path}: there are no such weights") from None
    except (
        OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, pickle.UnpicklingError, SafetensorError
    ) as error:  # fmt: skip
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # torch's own message suggests to load it unsafely
            reason = "it is damaged, or holds more than tensors and plain values, which could run code"
        raise InputError(f"{path}: not a checkpoint that can be loaded safely ({reason})") from None
    if isinstance(checkpoint, dict) and checkpoint and all(isinstance(value, Tensor) for value in checkpoint.values()):
        checkpoint = {"model": checkpoint}
    if not (isinstance(checkpoint, dict) and isinstance(weights := checkpoint.get("model"), dict)):
        raise InputError(f"{path}: not a checkpoint; it has no entry `model`")
    for name, value in weights.items():
        if not (isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided):
            raise InputError(f"{path}: its entry {name!r} is not a tensor (or not a dense one)")
    plain = {_WRAPPERS.sub("", name): value for name, value in weights.items() if not name.endswith(_POSITION_IDS)}
    of_clamp3 = any(name.startswith("symbolic_") for name in plain)
    checkpoint["has_audio"] = any(name.startswith("audio_") for name in plain)
    checkpoint["is_clamp3"] = of_clamp3 or checkpoint.get("is_clamp3") is True
    if of_clamp3:
        plain = {name: value for name, value in plain.items() if not name.startswith("audio_")}
        plain = {re.sub("^symbolic_", "music_", name): value for name, value in plain.items()}
    checkpoint["model"] = plain
    return checkpoint


def load(model: M, path: Path, prefix: str = "", check_values: bool = True) -> M:
    """Load the part of a checkpoint whose names begin with `prefix` into a model, strictly. Returns the model."""
    checkpoint = load_checkpoint(path)
    load_weights(model, checkpoint["model"], path, prefix, check_values)
    if checkpoint["is_clamp3"]:
        model.is_clamp3 = True  # type: ignore[assignment]
    if checkpoint["has_audio"]:
        print(printable(f"{path}: {AUDIO_LEFT_OUT}"), file=sys.stderr)
    return model


def load_weights(
    model: nn.Module, weights: dict[str, Tensor], path: Path, prefix: str = "", check_values: bool = True
) -> None:
    """Load the entries of a state dict whose names begin with `prefix`, strictly, and in the model's types.

    A parameter without memory (`utils.empty`) takes the entry itself, others copy it. A BERT's pooler, which is not
    used, and an entry tied to another one may be missing. Raises InputError that names what does not fit or, with
    `check_values`, is not finite; without, the values are not read yet.
    """
    weights = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    own = model.state_dict(keep_vars=True)
    present = {id(own[name]) for name in own if name in weights}
    missing = [
        name for name, value in own.items()
        if name not in weights and "pooler." not in name and id(value) not in present
    ]  # fmt: skip
    unexpected = [name for name in weights if name not in own]
    wrong = [name for name in own if name in weights and own[name].shape != weights[name].shape]
    if misfits := sizes.misfits(own, weights):
        raise InputError(
            f"{path}: does not fit {config.source()}: {'; '.join(misfits)}; set there what these weights were trained"
            " with or, for a new model, another path of weights"
        )
    if wrong:
        name = wrong[0]
        raise InputError(
            f"{path}: {name} is {list(weights[name].shape)}, but is {list(own[name].shape)} in the model of"
            f" {config.source()} ({len(wrong)} entries differ)"
        )
    if missing or unexpected:
        raise InputError(
            f"{path}: these weights are of another model: {len(missing)} entries are missing{_first(missing)},"
            f" {len(unexpected)} are unknown{_first(unexpected)}"
        )
    for name, value in weights.items():
        if not value.is_floating_point():
            raise InputError(f"{path}: {prefix}{name} is of {value.dtype}; weights are floating-point numbers")
    if check_values:
        require_finite(weights, path, prefix)
    _fill(own, weights)


def require_finite(weights: dict[str, Tensor], path: Path | str, prefix: str = "") -> None:
    """Raise InputError for an entry with a NaN or an infinity."""
    for name, value in weights.items():
        if value.numel() and not torch.stack(value.aminmax()).float().isfinite().all():  # a NaN is both
            raise InputError(f"{path}: {prefix}{name} has a NaN or an infinity in it; these weights are of no use")


@torch.no_grad()
def _fill(own: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
    """Copy a state dict into a model's parameters and buffers, which stay the same objects."""
    empty = {id(target) for target in own.values() if target.is_meta}
    taken = set()
    for name, target in own.items():
        value = weights.get(name)
        if value is None and target.is_meta and "pooler." in name:
            value = torch.zeros(target.shape)
        if value is None:
            continue
        if id(target) not in empty:
            target.copy_(value)
            continue
        value = value.to(target.dtype).contiguous()
        if value.data_ptr() in taken:  # entries of the file may be one tensor; parameters must not be
            value = value.clone()
        taken.add(value.data_ptr())
        torch.utils.swap_tensors(target, nn.Parameter(value, target.requires_grad))


def _first(names: list[str]) -> str:
    return f" (the first: {names[0]})" if names else ""


def save_checkpoint(path: Path, checkpoint: dict) -> None:
    """Write a checkpoint whole, or leave the previous one as it is. Raises InputError, OSError."""
    try:
        with atomic_write(path) as file:
            torch.save(checkpoint, file)
    except RuntimeError as error:  # torch's, in place of the OSError of a full disk
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path}: cannot be written ({reason}); is the disk full? What was there is kept") from None
