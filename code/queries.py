"""Questions to a search: sentences, texts and pieces of music, and their features."""

import os
import sys
from pathlib import Path

import cache
import features
import files
import pieces
import provenance
from features import INPUT_SUFFIXES, Features
from files import InputError


def read_query(query: str) -> Features:
    """Read and embed a sentence or a file; its feature is named as a heading. Raises InputError."""
    [read] = read_queries([query])
    if isinstance(read, InputError):
        raise read
    return read


def read_queries(queries: list[str]) -> list[Features | InputError]:
    """Read and embed sentences and files; an InputError stands for one that cannot be used."""
    found = [or_error(_find_query, query) for query in queries]
    sources = dict.fromkeys(place[0] for place in found if isinstance(place, tuple))
    entries = dict(cache.features_of(sources)) if sources else {}  # features alone need no weights
    return [
        or_error(_embedded_query, query, *place, entries) if isinstance(place, tuple) else place
        for query, place in zip(queries, found, strict=True)
    ]


def shown_file(query: str) -> Path | None:
    """Return the file of music or text that a query is, `#N` of a tune included."""
    path, _ = pieces.locate(query)
    return Path(query) if os.path.isfile(path) and path.suffix.lower() in INPUT_SUFFIXES else None


def or_error(function, *arguments):
    """Call a function; return the InputError that it raises, if it does."""
    try:
        return function(*arguments)
    except InputError as error:
        return error


def _find_query(query: str) -> Features | tuple[cache.Source, int | None]:
    """Read a query of features; of others, return the file or sentence to embed, and the number of its tune."""
    path, number = pieces.locate(query)
    suffix = path.suffix.lower()
    if suffix == ".npy":
        array = features.read(path)
        if array.ndim != 2:
            raise InputError(f"{path}: temporal features {list(array.shape)}; extract the query with --normalize")
        return Features([path.name], array, made_with=provenance.of_files(path, [path]))
    known = f"a query is a sentence, or a file of type .npy {' '.join(INPUT_SUFFIXES)}"
    if os.path.isdir(query):
        raise InputError(f"{query}: a folder; {known}")
    is_file = os.path.isfile(path)
    if is_file and suffix not in INPUT_SUFFIXES:
        raise InputError(f"{path}: of unknown type; {known}")
    if not is_file and pieces.looks_like_file(query):
        raise InputError(f"{path}: no such file; {known}")
    if not query.strip():
        raise InputError(f"the query is empty; {known}")
    return path if is_file else query, number


def _embedded_query(query: str, source: cache.Source, number: int | None, entries: dict) -> Features:
    entry = entries[source]
    row = pieces.row(Path(source), number, len(entry.errors))
    if entry.errors[row]:
        raise InputError(f"{query}: {entry.errors[row]}")
    if entry.warnings[row]:
        print(files.printable(f"{query}: {entry.warnings[row]}"), file=sys.stderr)
    matrix = entry.vectors[row : row + 1]
    if isinstance(source, str):
        return Features([f"“{query}”"], matrix, made_with={"the query": cache.made_with()})
    return Features([entry.titles[row] or Path(query).name], matrix, made_with={query: cache.made_with()})


def read_lines(name: str) -> list[str]:
    """Read the lines of a file, or of standard input (`-`). Raises InputError, OSError."""
    if os.path.isdir(name):
        raise InputError(f"{name}: a folder; the file of queries comes first, then the folder that is searched")
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: not UTF-8, from byte {error.start} on; save it as UTF-8") from error
    lines = [line.removesuffix("\r") for line in lines[: -1 if lines[-1] == "" else None]]
    if not lines:
        raise InputError(f"{name}: empty; it holds a query on each line")
    return lines
