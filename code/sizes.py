"""Infer the sizes of a model, as constants of config.py, from the names and shapes of its weights."""

import re

from torch import Tensor

import config
from patches import VOCABULARY

_SHAPES = {  # end of an entry's name -> its shape: (constant, factor) for each dimension
    "patch_embedding.weight": (("M3_HIDDEN_SIZE", 1), ("PATCH_SIZE", VOCABULARY)),
    "base.embeddings.position_embeddings.weight": (("PATCH_LENGTH", 1), ("M3_HIDDEN_SIZE", 1)),
    "base.transformer.wpe.weight": (("PATCH_SIZE", 1), ("M3_HIDDEN_SIZE", 1)),
    "music_proj.weight": (("CLAMP2_HIDDEN_SIZE", 1), ("M3_HIDDEN_SIZE", 1)),
}
_LAYERS = {r"base\.encoder\.layer\.(\d+)\.": "PATCH_NUM_LAYERS", r"base\.transformer\.h\.(\d+)\.": "TOKEN_NUM_LAYERS"}


def of(weights: dict[str, Tensor]) -> dict[str, int]:
    """Return {constant: value}."""
    found: dict[str, int] = {}
    for name, value in weights.items():
        for end, constants in _SHAPES.items():
            if name.endswith(end) and value.ndim == 2:
                found |= {c: length // times for (c, times), length in zip(constants, value.shape, strict=True)}
    for pattern, constant in _LAYERS.items():
        if layers := [int(match[1]) for name in weights if (match := re.search(pattern, name))]:
            found[constant] = max(layers) + 1
    return found


def misfits(own: dict[str, Tensor], weights: dict[str, Tensor]) -> list[str]:
    """List the constants that differ between a model and weights; none if they have no entry in common."""
    shared = own.keys() & weights.keys()
    if not shared:
        return []
    wanted, found = of(own), of(weights)
    names = [name for name in wanted if found.get(name, wanted[name]) != wanted[name]]
    differing = [f"{name} = {wanted[name]}, these weights have {found[name]}" for name in names]
    if any(name.startswith("text_model.") and own[name].shape != weights[name].shape for name in shared):
        differing.append(f"TEXT_MODEL_NAME = {config.TEXT_MODEL_NAME!r}, these weights have another text model")
    return differing
