"""Read and tokenize texts; load the text model."""

# Search caches features: if an edit here changes them, raise FEATURE_VERSION in cache.py.

from pathlib import Path

import numpy as np
import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

import config
import published
from files import InputError, read_utf8
from packing import first_position


def read_text(path: Path) -> list[str]:
    """Read the distinct lines of a text file. Raises InputError if it is not UTF-8, or blank."""
    lines = text_lines(read_utf8(path))
    if not lines:
        raise InputError(f"{path}: the file is empty")
    return lines


def text_lines(text: str) -> list[str]:
    """List the distinct non-blank lines of a text, in order."""
    return list(dict.fromkeys(line for line in text.split("\n") if line.strip()))


def join_lines(lines: list[str], tokenizer: PreTrainedTokenizerBase) -> str:
    """Join lines by the tokenizer's separator."""
    return (tokenizer.sep_token or "\n").join(lines)


def tokenize(text: str, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Return all token ids of a text, the special ones included: int64 [T]."""
    return np.array(tokenizer(text, verbose=False)["input_ids"], np.int64)


def load_tokenizer() -> PreTrainedTokenizerBase:
    return _load(transformers.AutoTokenizer)


def load_text_config() -> PreTrainedConfig:
    """Load the text model's configuration, for a model whose weights are those of a CLaMP 2 checkpoint."""
    return _check_positions(_load(transformers.AutoConfig))


def load_text_model(name: str = "") -> PreTrainedModel:
    """Load a pre-trained text model, in float32. Raises InputError if a weight other than the pooler's is missing."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # every process would report the pooler
    model, info = _load(transformers.AutoModel, name, dtype=torch.float32, output_loading_info=True)
    logging.set_verbosity(verbosity)
    if missing := sorted(name for name in info["missing_keys"] if not name.startswith("pooler.")):
        raise InputError(
            f"TEXT_MODEL_NAME = {name or config.TEXT_MODEL_NAME!r}: {len(missing)} weights of the text model are not in"
            f" its checkpoint (the first: {missing[0]})"
        )
    _check_positions(model.config)
    return model


def _check_positions(text_config: PreTrainedConfig) -> PreTrainedConfig:
    """Raise InputError if the text model has too few positions for MAX_TEXT_LENGTH tokens."""
    if count := getattr(text_config, "max_position_embeddings", None):
        positions = count - first_position(text_config)
        if positions < config.MAX_TEXT_LENGTH:
            raise InputError(
                f"MAX_TEXT_LENGTH = {config.MAX_TEXT_LENGTH}, but the text model has {positions} positions for tokens"
                f" (TEXT_MODEL_NAME = {config.TEXT_MODEL_NAME!r}); set it in {config.source()}"
            )
    return text_config


def _load(loader, name: str = "", **options):
    name = name or config.TEXT_MODEL_NAME
    folder = config.text_model() if name == config.TEXT_MODEL_NAME else name
    logging.disable_progress_bar()  # every process would draw one
    try:
        if not Path(folder).is_dir() and try_to_load_from_cache(folder, "config.json") is None:
            _require_hub(folder)
        return loader.from_pretrained(folder, **options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"TEXT_MODEL_NAME = {name!r} cannot be loaded ({reason}); it is a name on the hub, or the folder of a"
            f" transformers model, set in {config.source()}"
        ) from None


def _require_hub(name: str) -> None:
    """Raise InputError if the hub cannot be reached: transformers would retry for half a minute."""
    try:
        published.metadata(name, "config.json")
    except InputError as error:
        if not isinstance(error.__cause__, HfHubHTTPError):  # which transformers explains
            raise
