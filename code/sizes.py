"""Reads the sizes of a model, as constants of config.py, off the names and shapes of its weights."""

import re

from torch import Tensor

import config
from patches import VOCABULARY

_SHAPES = {  # what the name of an entry ends in -> the constants its shape is made of, and how often
    "patch_embedding.weight": (("M3_HIDDEN_SIZE", 1), ("PATCH_SIZE", VOCABULARY)),
    "base.embeddings.position_embeddings.weight": (("PATCH_LENGTH", 1), ("M3_HIDDEN_SIZE", 1)),
    "base.transformer.wpe.weight": (("PATCH_SIZE", 1), ("M3_HIDDEN_SIZE", 1)),
    "music_proj.weight": (("CLAMP2_HIDDEN_SIZE", 1), ("M3_HIDDEN_SIZE", 1)),
}
_LAYERS = {r"base\.encoder\.layer\.(\d+)\.": "PATCH_NUM_LAYERS", r"base\.transformer\.h\.(\d+)\.": "TOKEN_NUM_LAYERS"}


def of(weights: dict[str, Tensor]) -> dict[str, int]:
    """Returns {constant: value}."""
    found = {}
    for end, constants in _SHAPES.items():
        for value in [value for name, value in weights.items() if name.endswith(end) and value.ndim == 2]:
            for (constant, times), length in zip(constants, value.shape, strict=True):
                found[constant] = length // times
    for pattern, constant in _LAYERS.items():
        if layers := [int(match[1]) for name in weights if (match := re.search(pattern, name))]:
            found[constant] = max(layers) + 1
    return found


def misfits(own: dict[str, Tensor], weights: dict[str, Tensor]) -> list[str]:
    """Lists the constants whose values differ between a model and weights; none if they have no entry in common."""
    shared = own.keys() & weights.keys()
    if not shared:
        return []
    wanted, there = of(own), of(weights)
    differing = [
        f"{name} = {wanted[name]}, these weights have {there[name]}"
        for name in wanted
        if name in there and there[name] != wanted[name]
    ]
    if any(name.startswith("text_model.") and own[name].shape != weights[name].shape for name in shared):
        differing.append(f"TEXT_MODEL_NAME = {config.TEXT_MODEL_NAME!r}, these weights have another text model")
    return differing
