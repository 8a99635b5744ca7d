"""The facts that features were made with, noted beside them: features of different models may have one width.

An extraction notes them in OUT.extraction.json, beside its folder of features; a packed folder holds them in
extraction.json; a probe in its model file. Of features from elsewhere none are known: {}.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

import config
import published
from files import InputError, printable

FACTS = ("sha256", "form", "precision", "KEEP_UNIT_LENGTH")  # must agree for features to be compared
SIDECAR = OLD_SIDECAR = ".extraction.json"  # beside a folder of features; in the first versions, in it
_OLD = {"precision": "float32", "KEEP_UNIT_LENGTH": False}  # not noted by the first versions, which had no choice


def beside(target: Path, suffix: str) -> Path:
    """Return the path of a sidecar: beside the output folder, under its name plus `suffix`."""
    target = target.resolve()
    if not target.name:
        raise InputError(f"{target}: name an output folder below it; beside it stands what its features were made with")
    return target.with_name(target.name + suffix)


def facts(weights: Path, sha256: str, pooled: bool, keep_unit_length: bool) -> dict:
    """Return the facts of features that are made now."""
    return {
        "weights": weights.name,
        "sha256": sha256,
        "form": "--normalize" if pooled else "temporal",
        "precision": config.EXTRACT_PRECISION,
        "KEEP_UNIT_LENGTH": keep_unit_length,
        **published.origin(weights, sha256),
    }


def read(path: Path) -> dict:
    """Read a sidecar, or its copy in a packed folder. Raises InputError if it is damaged."""
    try:
        made_with = json.loads(path.read_text())
    except ValueError:
        made_with = None
    if not isinstance(made_with, dict) or "weights" not in made_with:
        raise InputError(f"{path}: damaged; it notes what the features beside it were made with: remove both")
    return made_with


def of_target(target: Path) -> dict:
    """Read the facts of an extraction's output folder; {} if it is none."""
    if not target.resolve().name:
        return {}
    sidecar, older = beside(target, SIDECAR), target / OLD_SIDECAR
    if sidecar.is_file():
        return read(sidecar)
    return _OLD | read(older) if older.is_file() else {}


def of_files(root: Path, paths: Iterable[Path]) -> dict[str, dict]:
    """Read the facts of the feature files below `root`, by the output folders that they are in, else by `root`.

    `root` may lie in the output folder of an extraction, or hold several of them.
    """
    found: dict[str, dict] = {}
    top = root.resolve()
    for folder in sorted({path.parent for path in paths}):
        place = folder.resolve()
        while not (made_with := of_target(place)) and place != place.parent:
            place = place.parent
        is_below = bool(made_with) and place != top and place.is_relative_to(top)
        found.setdefault(str(root / place.relative_to(top) if is_below else root), made_with)
    return found


def differing(a: dict, b: dict) -> list[str]:
    return [fact for fact in FACTS if a.get(fact) != b.get(fact)]


def show(made_with: dict, names: list[str]) -> str:
    """Return some facts as text, for a message."""
    digest = f"{made_with['weights']} ({made_with['sha256'][:12]}...)"
    return ", ".join(digest if name == "sha256" else f"{name} {made_with.get(name)}" for name in names)


def agreed(known: dict[str, dict]) -> dict:
    """Return the facts in which all features agree; {} if those of some are unknown, which is reported.

    Args:
        known: the facts of the features of each place.
    Raises InputError if they were not made alike.
    """
    noted = {place: made_with for place, made_with in known.items() if made_with}
    first = next(iter(noted), "")
    for place, made_with in noted.items():
        if names := differing(noted[first], made_with):
            raise InputError(
                f"{first} has features of {show(noted[first], names)}; {place} of {show(made_with, names)}: only"
                " features of one model, made alike, can be used together; extract one of them again"
            )
    if noted and len(noted) == len(known):
        return noted[first]
    if len(known) > 1:
        places = ", ".join(place for place in known if place not in noted)
        print(printable(f"no note of what these features were made with; used as they are: {places}"), file=sys.stderr)
    return {}
