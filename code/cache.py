"""A cache of features, by the content of files and by what features are made with. Imports torch only when needed.

FEATURE_CACHE holds a folder for each model, named after all that features depend on: the content of the weights, the
text model, the sizes and FEATURE_VERSION. In it is one file for each content that was read, named after its SHA-256: a
checksum, a line of JSON and the features. A changed file, other weights and a damaged entry are cache misses.
"""

import contextlib
import functools
import gc
import hashlib
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

import config
import files
import pieces
import provenance
import published
from files import InputError
from pieces import Piece

if TYPE_CHECKING:
    from utils import CLaMP2Model

FEATURE_VERSION = 1  # raise it when reading or embedding changes, so that all entries are made again
_SIZES = ("PATCH_SIZE", "PATCH_LENGTH", "PATCH_NUM_LAYERS", "M3_HIDDEN_SIZE", "CLAMP2_HIDDEN_SIZE", "MAX_TEXT_LENGTH")
_PACKAGES = ("abctoolkit", "unidecode")  # part of the conversions
Source = Path | str  # a file or a sentence


@dataclass
class Entry:
    """The n pieces that a file holds, and their features."""

    vectors: np.ndarray  # [n, H] float32; zero where there is an error
    titles: list[str]
    errors: list[str]  # why there is no feature of a piece, or ""
    warnings: list[str]  # what was repaired, padded or left out, or ""

    @classmethod
    def of(cls, found: list[Piece]) -> "Entry":
        """Make the entry of pieces that are not embedded yet."""
        known = [[getattr(piece, name) for piece in found] for name in ("title", "error", "warning")]
        return cls(np.zeros((len(found), config.CLAMP2_HIDDEN_SIZE), np.float32), *known)


class FeatureCache:
    """The cached features of one model. Raises InputError if its weights are not there."""

    def __init__(self) -> None:
        self.root = config.resolve(config.FEATURE_CACHE)
        self.writable = True
        self.weights = config.resolve(config.CLAMP2_WEIGHTS_PATH)
        self.identity = self._identity()
        self.sha256 = self._weights_digest()
        self.folder = self.root / self._model_digest()

    def get(self, digest: str) -> Entry | None:
        """Return the entry of a content, or None on a cache miss."""
        with contextlib.suppress(OSError, ValueError):
            checksum, body = (self.folder / digest).read_bytes().split(b"\n", 1)
            if hashlib.sha256(body).hexdigest().encode() == checksum:
                header, vectors = body.split(b"\n", 1)
                known = json.loads(header)
                return Entry(np.frombuffer(vectors, "<f4").reshape(len(known["titles"]), -1), **known)
        return None

    def put(self, digest: str, entry: Entry) -> None:
        header = json.dumps({"titles": entry.titles, "errors": entry.errors, "warnings": entry.warnings})
        body = header.encode() + b"\n" + entry.vectors.astype("<f4").tobytes()
        self._write(self.folder / digest, hashlib.sha256(body).hexdigest().encode() + b"\n" + body)

    def _write(self, path: Path, content: bytes) -> None:
        """Write a file of the cache. If that fails, search is slower, which is reported once."""
        if not self.writable:
            return
        try:
            with files.atomic_write(path) as file:
                file.write(content)
        except OSError as error:
            self.writable = False
            print(files.printable(f"features are not remembered: {path}: {error.strerror or error}"), file=sys.stderr)

    def _model_digest(self) -> str:
        """Return a digest of all that a feature depends on, except the file."""
        facts = [
            FEATURE_VERSION,
            self.sha256,
            _text_model_digest(config.text_model()),
            [getattr(config, name) for name in _SIZES],
            config.EXTRACT_PRECISION,
            config.KEEP_UNIT_LENGTH,
            [version(package) for package in _PACKAGES],
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]

    def _identity(self) -> list:
        """Return facts of the weights file that change with its content. Raises InputError if it is not there."""
        published.provide(self.weights)
        status = self.weights.stat()
        facts = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        return [str(self.weights.resolve()), *facts]

    def _weights_digest(self) -> str:
        """Return the SHA-256 of the weights, which takes seconds and is cached as long as the file is the same."""
        remembered = self.root / "weights" / hashlib.sha256(json.dumps(self.identity).encode()).hexdigest()[:32]
        with contextlib.suppress(OSError, UnicodeDecodeError):
            digest = remembered.read_text(encoding="ascii")
            if len(digest) == 64:
                return digest
        digest = files.sha256(self.weights)
        self._write(remembered, digest.encode())
        return digest

    @functools.cached_property
    def model(self) -> "CLaMP2Model":
        """The model, loaded at its first use. Raises InputError if a training has replaced its weights meanwhile."""
        import clamp2

        model = clamp2.load_clamp2()
        if self._identity() != self.identity:
            raise InputError(f"{self.weights}: changed while they were read; start again")
        return model


@functools.cache
def _cache() -> FeatureCache:
    return FeatureCache()


def model() -> "CLaMP2Model":
    """Return the model that makes the features, which is loaded once. Raises InputError."""
    return _cache().model


def made_with() -> dict:
    """Return the facts of the features, as `extract_clamp2.py --normalize` notes them; see `provenance`."""
    return provenance.facts(_cache().weights, _cache().sha256, True, config.KEEP_UNIT_LENGTH)


def _text_model_digest(name: str) -> list:
    """Return the digests of a text model's tokenizer and sizes (its weights are CLaMP 2's), or its name on the hub."""
    if not os.path.isdir(name):
        return [name]
    inputs = [path for path in Path(name).iterdir() if path.suffix in (".json", ".txt", ".model")]
    return [[path.name, files.sha256(path)] for path in sorted(inputs)]


def features_of(sources: Iterable[Source]) -> Iterator[tuple[Source, Entry]]:
    """Yield (source, its entry), in any order. On a cache miss, the source is read and embedded."""
    cache = _cache()
    missing: list[Source] = []
    for source in sources:
        try:
            entry = cache.get(pieces.digest(*_content(source)))
        except (InputError, OSError) as error:
            entry = Entry.of([Piece("", error=getattr(error, "strerror", None) or str(error))])
        if entry is None:
            missing.append(source)
        else:
            yield source, entry
    if missing:
        files.remove_leftovers(cache.folder)
        yield from tqdm(_make(missing, cache), "features", len(missing), unit="file", delay=1, disable=None)


def _content(source: Source) -> tuple[bytes, str]:
    """Return the content of a source and its kind. Raises InputError, OSError."""
    if isinstance(source, str):
        return source.encode("utf-8", "surrogateescape"), ".txt"
    files.require_piece(source)
    return source.read_bytes(), pieces.kind(source)


def _make(sources: list[Source], cache: FeatureCache) -> Iterator[tuple[Source, Entry]]:
    """Read the sources while the model runs, embed their pieces and cache the features."""
    unusable: list[tuple[Source, Entry]] = []

    def read() -> Iterator[tuple[tuple, Piece]]:
        for source, digest, found in _read(sources):
            entry = Entry.of(found)
            usable = [row for row, piece in enumerate(found) if piece.ok]
            for row in usable:
                yield (source, digest, entry, row, row == usable[-1]), found[row]
            if not usable:
                unusable.append((source, entry))
                if digest:
                    cache.put(digest, entry)

    to_embed = read()
    first = next(to_embed, None)
    if first is not None:
        gc.disable()  # while thousands of modules are imported: collecting took 2 of 6.4 s for a small folder
        import clamp2  # and torch and transformers

        gc.freeze()
        gc.enable()
        for embedded in clamp2.embed_pieces(cache.model, itertools.chain([first], to_embed)):
            (source, digest, entry, row, is_last), vector = embedded
            entry.vectors[row] = vector
            if is_last:
                cache.put(digest, entry)
                yield source, entry
    yield from unusable


def _read(sources: list[Source]) -> Iterator[tuple[Source, str, list[Piece]]]:
    """Yield (source, digest of its content, its pieces): music before texts, so that a batch is of one kind."""
    for sentence in sources:
        if isinstance(sentence, str):
            yield sentence, pieces.digest(*_content(sentence)), pieces.read(*_content(sentence))
    paths = [source for source in sources if isinstance(source, Path)]
    if paths:
        yield from pieces.read_files(sorted(paths, key=lambda path: pieces.kind(path) == ".txt"))
