"""What features were made with, so that those of different models are not compared, which may be of one width.

An extraction notes it in OUT.extraction.json, beside its folder of features; a packed folder holds it in
extraction.json; a probe in its model file. Features from elsewhere know nothing: for them, it is {}.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

import config
import published
from files import InputError, printable

FACTS = ("sha256", "form", "precision", "KEEP_UNIT_LENGTH")  # in which features agree that can be compared
SIDECAR = OLD_SIDECAR = ".extraction.json"  # beside a folder of features; in the first versions, in it
_OLD = {"precision": "float32", "KEEP_UNIT_LENGTH": False}  # what the first versions had no choice in


def beside(target: Path, suffix: str) -> Path:
    """Returns the path of a sidecar: beside the output folder, under its name plus `suffix`."""
    target = target.resolve()
    if not target.name:
        raise InputError(f"{target}: name an output folder below it; beside it stands what its features were made with")
    return target.with_name(target.name + suffix)


def facts(weights: Path, sha256: str, pooled: bool, keep_unit_length: bool) -> dict:
    """What features are made with now."""
    made_with: dict = {
        "weights": weights.name,
        "sha256": sha256,
        "form": "--normalize" if pooled else "temporal",
        "precision": config.EXTRACT_PRECISION,
        "KEEP_UNIT_LENGTH": keep_unit_length,
    }
    return made_with | published.origin(weights, sha256)


def read(path: Path) -> dict:
    """A sidecar, or the same in a packed folder. Raises InputError if it is damaged."""
    try:
        made_with = json.loads(path.read_text())
    except ValueError:
        made_with = None
    if not isinstance(made_with, dict) or "weights" not in made_with:
        raise InputError(f"{path}: damaged; it notes what the features beside it were made with: remove both")
    return made_with


def of_target(target: Path) -> dict:
    """What the features of an extraction's output folder were made with; {} if it is none."""
    if not target.resolve().name:
        return {}
    sidecar, older = beside(target, SIDECAR), target / OLD_SIDECAR
    if sidecar.is_file():
        return read(sidecar)
    return _OLD | read(older) if older.is_file() else {}


def of_files(root: Path, paths: Iterable[Path]) -> dict[str, dict]:
    """What the feature files below `root` were made with, by the folders of which that is known, or by `root`.

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
    """The facts in which features differ."""
    return [fact for fact in FACTS if a.get(fact) != b.get(fact)]


def show(made_with: dict, names: list[str]) -> str:
    """Some facts, for a message."""
    weights = made_with["weights"]
    return ", ".join(
        f"{weights} ({made_with[n][:12]}...)" if n == "sha256" else f"{n} {made_with.get(n)}" for n in names
    )


def agreed(known: dict[str, dict]) -> dict:
    """The facts in which all features agree; {} if some know nothing, which is reported.

    Args:
        known: what those of each place were made with.
    Raises InputError if they were not made alike.
    """
    first = next((place for place in known if known[place]), None)
    for place, made_with in known.items():
        if first and made_with and (names := differing(known[first], made_with)):
            raise InputError(
                f"{first} has features of {show(known[first], names)}; {place} of {show(made_with, names)}: only"
                " features of one model, made alike, can be used together; extract one of them again"
            )
    unknown = [place for place, made_with in known.items() if not made_with]
    if len(known) > 1 and unknown:
        print(
            printable(f"no note of what these features were made with; used as they are: {', '.join(unknown)}"),
            file=sys.stderr,
        )
    return known[first] if first and not unknown else {}
