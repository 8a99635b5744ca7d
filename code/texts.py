"""Text as tokens, what the text model reads, and the text model itself."""

import contextlib
from pathlib import Path

import numpy as np
import torch
import transformers.utils.logging
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import config
import published
from files import InputError, read_utf8
from packing import first_position


def read_text(path: Path) -> list[str]:
    """The lines of a text file, each once, in their order. Raises InputError if it is not UTF-8, or has no text in
    it."""
    lines = text_lines(read_utf8(path))
    if not lines:
        raise InputError(f"{path}: the file is empty")
    return lines


def text_lines(text: str) -> list[str]:
    """The lines of a text that are not blank, each once, in their order."""
    return list(dict.fromkeys(line for line in text.split("\n") if line.strip()))


def join_lines(lines: list[str], tokenizer: PreTrainedTokenizerBase) -> str:
    """Lines -> one text, with the tokenizer's separator between them, as the published code has it."""
    return (tokenizer.sep_token or "\n").join(lines)


def tokenize(text: str, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Token ids, int64 [T], with the special ones, however many they are."""
    return np.array(tokenizer(text, verbose=False)["input_ids"], np.int64)


def load_tokenizer() -> PreTrainedTokenizerBase:
    return _load(AutoTokenizer)


def load_text_config() -> PreTrainedConfig:
    """All that CLaMP 2 needs of the text model to load weights of its own."""
    text_config = _load(AutoConfig)
    _check_positions(text_config)
    return text_config


def load_text_model(name: str = "") -> PreTrainedModel:
    """A pre-trained text model, by default that of config.py, in float32 whatever its checkpoint is in.

    Raises InputError if a weight is not in its checkpoint, the unused pooler's apart.
    """
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()  # it would report the pooler, from every process
    model, info = _load(AutoModel, name, dtype=torch.float32, output_loading_info=True)
    transformers.utils.logging.set_verbosity(verbosity)
    if missing := sorted(name for name in info["missing_keys"] if not name.startswith("pooler.")):
        raise InputError(
            f"TEXT_MODEL_NAME = {name or config.TEXT_MODEL_NAME!r}: {len(missing)} weights of the text model are not in"
            f" its checkpoint (the first: {missing[0]})"
        )
    _check_positions(model.config)
    return model


def _check_positions(text_config: PreTrainedConfig) -> None:
    """Raises InputError if the text model has too few positions for MAX_TEXT_LENGTH tokens."""
    if getattr(text_config, "max_position_embeddings", None) is None:
        return
    positions = text_config.max_position_embeddings - first_position(text_config)
    if positions < config.MAX_TEXT_LENGTH:
        raise InputError(
            f"MAX_TEXT_LENGTH = {config.MAX_TEXT_LENGTH}, but the text model has {positions} positions for tokens"
            f" (TEXT_MODEL_NAME = {config.TEXT_MODEL_NAME!r}); set it in {config.source()}"
        )


def _load(loader, name: str = "", **options):
    name = name or config.TEXT_MODEL_NAME
    folder = config.text_model() if name == config.TEXT_MODEL_NAME else name
    transformers.utils.logging.disable_progress_bar()  # of every process, for what takes a moment
    try:
        _require_hub(folder)
        return loader.from_pretrained(folder, **options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"TEXT_MODEL_NAME = {name!r} cannot be loaded ({reason}); it is a name on the hub, or the folder of a"
            f" transformers model, set in {config.source()}"
        ) from None


def _require_hub(name: str) -> None:
    """Raises InputError if a model of the hub is neither kept here nor in reach: transformers would try for half a
    minute."""
    if not Path(name).is_dir() and try_to_load_from_cache(name, "config.json") is None:
        with contextlib.suppress(HfHubHTTPError):  # it has answered
            published.metadata(name, "config.json")
