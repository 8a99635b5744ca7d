"""Convert a checkpoint of M3 or CLaMP 2 into the form of the model hub, and back.

    python code/convert_checkpoint.py code/weights_m3_....pth m3-hub        -> model.safetensors, config.json, README.md
    python code/convert_checkpoint.py code/weights_clamp2_....pth clamp2-hub         the same, and the text's tokenizer
    python code/convert_checkpoint.py clamp2-hub weights.pth                -> a checkpoint for the scripts
    hf upload me/clamp2 clamp2-hub                                          the folder as a repository of the hub

The sizes and the text model are those of config.py. `M3Model.from_pretrained("m3-hub")` or
`CLaMP2Model.from_pretrained("clamp2-hub")` loads the folder, without the network. It holds weights, epochs and losses
exactly, but not the state of the optimizer.
"""

import argparse
import json
import math
import os
import shutil
import sys
import uuid
from pathlib import Path

import command_line

if __name__ == "__main__":
    command_line.begin(command_line.converter(__doc__))  # before the imports below, which take seconds

import torch
from safetensors import SafetensorError
from torch import Tensor

import files
from checkpoints import AUDIO_LEFT_OUT, load_checkpoint, load_weights, save_checkpoint
from files import InputError
from texts import load_tokenizer
from utils import CLaMP2Model, M3Model, decoder_config, empty, empty_clamp2, encoder_config

FACTS = ("epoch", "best_epoch", "min_eval_loss", "is_clamp3")  # of a checkpoint, beside its weights


def to_hub(path: Path, folder: Path) -> None:
    """Convert a checkpoint to a folder of the hub's form, whole or not at all. Raises InputError."""
    checkpoint = load_checkpoint(path)
    weights = checkpoint["model"]
    is_clamp2 = any(name.startswith("text_model.") for name in weights)
    model = empty_clamp2() if is_clamp2 else empty(M3Model, encoder_config(), decoder_config())
    load_weights(model, weights, path)
    require_equal(weights, model.state_dict(), path)
    facts = {name: checkpoint[name] for name in FACTS if checkpoint.get(name, False) is not False}
    if not math.isfinite(facts.get("min_eval_loss", 0)):  # never evaluated; JSON has no infinity
        facts["min_eval_loss"] = None
    temporary = folder.parent / f".{folder.name}-{uuid.uuid4().hex[:8]}"
    temporary.mkdir(parents=True)
    try:
        settings: dict = dict(model._hub_mixin_config or {})  # type: ignore[arg-type]
        card = {"made from": path.name, **facts}
        model.save_pretrained(temporary, config=settings | {"checkpoint": facts}, model_card_kwargs=card)
        if is_clamp2:
            load_tokenizer().save_pretrained(temporary)
        for file in temporary.iterdir():  # safetensors' files are for their owner alone
            file.chmod((temporary / "config.json").stat().st_mode)
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    names = ", ".join(sorted(os.listdir(folder)))
    print(files.printable(f"{folder}: {type(model).__name__}, {len(weights)} entries, {names}"))
    if checkpoint["has_audio"]:
        print(AUDIO_LEFT_OUT)


def from_hub(folder: Path, path: Path) -> None:
    """Convert a folder of the hub's form to a checkpoint. Raises InputError."""
    settings = folder / "config.json"
    if not settings.is_file() or not (folder / "model.safetensors").is_file():
        raise InputError(f"{folder}: not a folder that this script has made (config.json and model.safetensors)")
    try:
        known = json.loads(settings.read_text(encoding="utf-8"))
        model = (CLaMP2Model if "text_config" in known else M3Model).from_pretrained(folder)
    except (SafetensorError, RuntimeError, ValueError, TypeError) as error:
        raise InputError(f"{folder}: damaged, or of another model ({str(error).splitlines()[0]})") from error
    facts = {name: math.inf if value is None else value for name, value in known.get("checkpoint", {}).items()}
    save_checkpoint(path, {"model": model.state_dict(), **facts})
    print(files.printable(f"{path}: {type(model).__name__}, {len(model.state_dict())} entries"))


def require_equal(weights: dict[str, Tensor], loaded: dict[str, Tensor], path: Path) -> None:
    """Raise InputError unless the model holds every entry exactly as the file does."""
    for name, value in weights.items():
        if value.dtype != loaded[name].dtype or not torch.equal(value, loaded[name]):
            raise InputError(
                f"{path}: {name} is not kept exactly ({value.dtype}; the model holds {loaded[name].dtype}, and an entry"
                " that is another one's twin must equal it)"
            )


def convert(args: argparse.Namespace) -> int:
    if args.target.exists():
        raise InputError(f"{args.target}: is there already; name a new one")
    (from_hub if args.source.is_dir() else to_hub)(args.source, args.target)
    return 0


if __name__ == "__main__":
    sys.exit(files.run_command(command_line.converter(__doc__, convert)))
