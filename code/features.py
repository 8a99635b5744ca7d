"""Features on disk: a folder tree of `.npy` files, or one packed matrix.

A feature file holds floats of shape [1, H] (pooled: one vector for the piece) or [1, T, H] (temporal: one vector for
each of T patches or tokens), as `extract_clamp2.py` and `extract_m3.py` write them. N is the number of pieces.
"""

import json
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

import files
import provenance
from files import InputError

INPUT_SUFFIXES = (".abc", ".mtf", ".txt", ".mid", ".midi", ".kar", ".rmi", ".xml", ".musicxml", ".mxl")
PACKED_MATRIX, PACKED_NAMES, PACKED_FACTS = "features.npy", "names.json", "extraction.json"


@dataclass
class Features:
    """One vector for each piece of a folder."""

    names: list[str]  # paths relative to the folder, with "/" between the parts
    matrix: np.ndarray  # [N, H] float32, memory-mapped if the folder is packed
    skipped: list[str] = field(default_factory=list)  # "path: reason" of every file that was left out
    titles: list[str] = field(default_factory=list)  # of the pieces, where music was read
    warnings: list[str] = field(default_factory=list)  # "path: what was repaired, padded or left out" of a piece
    made_with: dict[str, dict] = field(default_factory=dict)  # facts by folder; see `provenance`


def read(path: Path) -> np.ndarray:
    """Read a feature file as float32 in its own shape: [1, H] or [1, T, H]. Raises InputError."""
    try:
        # Mapped, because a damaged header is then checked against the size of the file before memory is taken.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, OverflowError, tokenize.TokenError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: not a readable .npy file ({reason})") from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path}: an archive of arrays (.npz), not a .npy file")
    if array.dtype.kind != "f":
        raise InputError(f"{path}: holds {array.dtype}, but features are float32")
    if array.ndim not in (2, 3) or array.shape[0] != 1 or 0 in array.shape:
        raise InputError(f"{path}: shape {array.shape}, but features are [1, H] or [1, T, H]")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and is named below
        array = np.array(array, dtype=np.float32)
    if not np.isfinite(array).all():
        raise InputError(f"{path}: {np.count_nonzero(~np.isfinite(array))} values are NaN or infinite")
    return array


def find(root: Path) -> list[Path]:
    """List the feature files below `root`, or `root` itself if it is one. Raises InputError if there is none."""
    found, others = files.list_files(root, [".npy"])
    if not found:
        beside = f"; it holds other files, such as {others[0]}: extract their features first" if others else ""
        raise InputError(f"{root}: no .npy file there{beside}")
    return [root] if root.is_file() else [root / path for path in found]


def made_with(roots: Iterable[Path]) -> dict[str, dict]:
    """Return what the feature files below several roots were made with; see `provenance`. Raises as `find` does."""
    return {place: known for root in roots for place, known in provenance.of_files(root, find(root)).items()}


def require_alike(first: Path | str, a: Features, second: Path | str, b: Features) -> None:
    """Raise InputError if features are known to be of different models or made in different ways."""
    if a.matrix.shape[1] != b.matrix.shape[1]:
        widths = f"{first} has width {a.matrix.shape[1]}, {second} {b.matrix.shape[1]}"
        raise InputError(f"{widths}: features of one model can be compared")
    provenance.agreed(a.made_with | b.made_with)


def relative_name(path: Path, root: Path) -> str:
    """Return the name of a feature file within the folder (or the single file) `root`."""
    return path.name if path == root else path.relative_to(root).as_posix()


def without_suffix(name: str) -> str:
    """Return the name that files made from one piece share: `a/b.npy`, `a/b.abc.npy` and `a/b.mid` are all `a/b`."""
    for suffixes in ((".npy",), INPUT_SUFFIXES):
        if name.lower().endswith(suffixes):
            name = name[: name.rindex(".")]
    return name


def is_packed(root: Path) -> bool:
    return (root / PACKED_MATRIX).is_file() and (root / PACKED_NAMES).is_file()


def load(root: Path, mean_over_time: bool = False) -> Features:
    """Read one vector per piece, from a folder of feature files, a packed folder or one feature file.

    A folder of files is read into memory (3 GB for a million of width 768); a packed one is mapped, and takes none.
    Temporal features are averaged over T with `mean_over_time`, and otherwise skipped, with every file that `read`
    refuses. Raises InputError if nothing is left or if two files differ in width, and OSError.
    """
    if is_packed(root):
        return _open_packed(root)
    paths = find(root)
    made_with = provenance.of_files(root, paths)
    names: list[str] = []
    skipped: list[str] = []
    matrix = np.empty((0, 0), np.float32)
    for name, vector in _read_vectors(root, paths, mean_over_time, skipped):
        if not names:
            matrix = np.empty((len(paths), vector.size), np.float32)
        matrix[len(names)] = vector
        names.append(name)
    return Features(names, matrix[: len(names)], skipped, made_with=made_with)


def pack(root: Path, out: Path) -> Features:
    """Pack a folder of pooled feature files into `out`, as one [N, H] matrix and a JSON list of names.

    Takes the memory of one row. `out` counts as packed only when both files are complete. Raises as `load`.
    """
    if is_packed(root):
        raise InputError(f"{root}: packed already")
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    if out.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{out}: lies within {root}, and would be taken for one of its features; name another folder")
    paths = find(root)
    made_with = provenance.agreed(provenance.of_files(root, paths))
    names: list[str] = []
    skipped: list[str] = []
    header: dict = {"descr": "<f4", "fortran_order": False}  # numpy pads it, so that the number of rows can be changed
    with files.atomic_write(out / PACKED_MATRIX) as file:
        for name, vector in _read_vectors(root, paths, False, skipped):
            if not names:
                np.lib.format.write_array_header_1_0(file, header | {"shape": (len(paths), vector.size)})
            names.append(name)
            file.write(vector.astype("<f4").tobytes())
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, header | {"shape": (len(names), vector.size)})
        for name in (PACKED_NAMES, PACKED_FACTS):
            (out / name).unlink(missing_ok=True)  # never those of one matrix beside another
    if made_with:
        with files.atomic_write(out / PACKED_FACTS, "w") as file:
            json.dump(made_with, file)
    with files.atomic_write(out / PACKED_NAMES, "w", encoding="ascii") as file:
        json.dump(names, file, indent=0)
    return Features(names, np.load(out / PACKED_MATRIX, mmap_mode="r"), skipped)


def _open_packed(root: Path) -> Features:
    try:
        names = json.loads((root / PACKED_NAMES).read_text(encoding="utf-8"))
        matrix = np.load(root / PACKED_MATRIX, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, SyntaxError, tokenize.TokenError) as error:
        raise InputError(f"{root}: damaged ({str(error).splitlines()[0]}); pack it again") from error
    if matrix.ndim != 2 or matrix.dtype != np.float32 or len(names) != len(matrix) or not names:
        raise InputError(
            f"{root}: damaged: {len(names)} names, and a {matrix.dtype} matrix of shape {matrix.shape}; pack it again"
        )
    facts = root / PACKED_FACTS
    return Features(names, matrix, made_with={str(root): provenance.read(facts) if facts.is_file() else {}})


def _read_vectors(
    root: Path, paths: list[Path], mean_over_time: bool, skipped: list[str]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name and vector [H] of each usable file; append the others to `skipped`. Raises as `load` does."""
    first, width = "", 0
    for path in tqdm(paths, desc=f"reading {files.printable(root)}", unit="file", delay=2, disable=None):
        try:
            array = read(path)
            if array.ndim == 3 and not mean_over_time:
                raise InputError(
                    f"{path}: temporal features {list(array.shape)}; use those of extract_clamp2.py --normalize"
                )
            vector = array.reshape(-1, array.shape[-1]).mean(axis=0)
            if not vector.any():
                raise InputError(f"{path}: all zeros, which is similar to nothing")
        except InputError as error:
            skipped.append(str(error))
            continue
        first, width = first or path.name, width or vector.size
        if vector.size != width:
            raise InputError(f"{path}: width {vector.size}, but {first} has {width}; one folder, features of one model")
        yield relative_name(path, root), vector
    if not first:
        raise InputError(
            f"{root}: of its {files.counted(len(paths), 'files')} (.npy), none can be used; the first: {skipped[0]}"
        )


# --- for the command lines --------------------------------------------------------------------------------------------


def report(what: str, entries: list[str], limit: int = files.SHOWN) -> None:
    """Print the number of `entries` and the first `limit` of them on standard error."""
    files.name_all(what, entries, limit, " (--json FILE names them all)")


def write_json(path: Path, content: object) -> None:
    """Write `content`, whole or not at all. A file name that is not UTF-8 is escaped."""
    with files.atomic_write(path, "w", encoding="utf-8", errors="backslashreplace") as file:
        json.dump(content, file, ensure_ascii=False, indent=1)
        file.write("\n")
