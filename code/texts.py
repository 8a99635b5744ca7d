"""Text as tokens, what the text model reads, and the text model itself."""

from pathlib import Path

import numpy as np
import torch
import transformers.utils.logging
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import config
from files import InputError, read_utf8


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


def tokenize(text: str, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None) -> np.ndarray:
    """Token ids, int64 [T], with the special ones; cut to `max_length` if that is given."""
    ids = tokenizer(text, truncation=max_length is not None, max_length=max_length, verbose=False)["input_ids"]
    return np.array(ids, np.int64)


def load_tokenizer() -> PreTrainedTokenizerBase:
    return _load(AutoTokenizer)


def load_text_config() -> PreTrainedConfig:
    """All that CLaMP 2 needs of the text model to load weights of its own."""
    return _load(AutoConfig)


def load_text_model() -> PreTrainedModel:
    """The pre-trained text model, in float32 whatever its checkpoint is in.

    Raises InputError if a weight is not in its checkpoint, the unused pooler's apart.
    """
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()  # it would report the pooler, from every process
    model, info = _load(AutoModel, dtype=torch.float32, output_loading_info=True)
    transformers.utils.logging.set_verbosity(verbosity)
    if missing := sorted(name for name in info["missing_keys"] if not name.startswith("pooler.")):
        raise InputError(
            f"TEXT_MODEL_NAME = {config.TEXT_MODEL_NAME!r}: {len(missing)} weights of the text model are not in its"
            f" checkpoint (the first: {missing[0]})"
        )
    return model


def _load(loader, **options):
    name = config.text_model()
    transformers.utils.logging.disable_progress_bar()  # of every process, for what takes a moment
    try:
        return loader.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"TEXT_MODEL_NAME = {config.TEXT_MODEL_NAME!r} cannot be loaded ({reason}); give the folder of a"
            f" transformers model or a name on the hub; set it in {config.source()}"
        ) from None
