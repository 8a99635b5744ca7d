"""The search of the quick start with the published weights: they come from the hub, once."""

from pathlib import Path

import published
from quickstart_steps import ROOT


def constants_of_config(folder: Path) -> dict[str, str]:
    """Fetches the weights; the constants for CLAMP2_CONFIG. The text model's tokenizer is fetched when it is used."""
    weights = ROOT / "code" / published.CLAMP2
    published.provide(weights, download=True)
    return {"CLAMP2_WEIGHTS_PATH": str(weights), "FEATURE_CACHE": str(folder / "cache")}
