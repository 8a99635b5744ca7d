"""Features of files, remembered by what is in them and by what they were made with. Imports no torch until it has to.

FEATURE_CACHE holds a folder for each model, named after everything that features depend on: the weights' content, the
text model, the sizes, and the code that reads music. In it is one small file for each content that was read, named
after that content's SHA-256. So a changed file, or other weights, are just not there. A file is a checksum, a line of
JSON and the features; one that is damaged counts as not there.
"""

import functools
import gc
import hashlib
import itertools
import json
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
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

_SIZES = ("PATCH_SIZE", "PATCH_LENGTH", "PATCH_NUM_LAYERS", "M3_HIDDEN_SIZE", "CLAMP2_HIDDEN_SIZE", "MAX_TEXT_LENGTH")
_CODE = ["pieces", "patches", "texts", "embedding", "extraction", "checkpoints", "packing", "utils", "clamp2", "cache"]
_PACKAGES = ("abctoolkit", "unidecode")  # part of the conversions
_HASH_BYTES = 32


@dataclass
class Entry:
    """What is known of the n pieces that a file holds."""

    vectors: np.ndarray  # [n, H] float32; zero where there is an error
    titles: list[str]
    errors: list[str]  # why there is no feature of a piece, or ""
    warnings: list[str]  # what was repaired, padded or left out, or ""


class FeatureCache:
    """The remembered features of one model. Raises InputError if its weights are not there."""

    def __init__(self) -> None:
        self.root = config.resolve(config.FEATURE_CACHE)
        self.writable = True
        self.weights = config.resolve(config.CLAMP2_WEIGHTS_PATH)
        self.identity = self._identity()
        self.sha256 = self._weights_digest()
        self.folder = self.root / self._model_digest()

    def get(self, key: str) -> Entry | None:
        """What is remembered of a content, or None."""
        try:
            content = (self.folder / key).read_bytes()
        except OSError:
            return None
        checksum, body = content[:_HASH_BYTES], content[_HASH_BYTES:]
        if hashlib.sha256(body).digest() != checksum:
            return None
        header, _, data = body.partition(b"\n")
        known = json.loads(header)
        vectors = np.frombuffer(data, "<f4").reshape(len(known["titles"]), -1)
        return Entry(vectors, **known)

    def put(self, key: str, entry: Entry) -> None:
        known = {"titles": entry.titles, "errors": entry.errors, "warnings": entry.warnings}
        header = json.dumps(known).encode()
        body = header + b"\n" + entry.vectors.astype("<f4").tobytes()
        self._write(self.folder / key, hashlib.sha256(body).digest() + body)

    def _write(self, path: Path, content: bytes) -> None:
        """Without a cache, search is slower, and that is all: said once."""
        if not self.writable:
            return
        try:
            with files.atomic_write(path) as file:
                file.write(content)
        except OSError as error:
            self.writable = False
            print(files.printable(f"features are not remembered: {path}: {error.strerror or error}"), file=sys.stderr)

    def _model_digest(self) -> str:
        """A name for everything that a feature depends on, beside the file that it is of."""
        code, process_data = Path(__file__).parent, Path(__file__).parent.parent / "process_data"
        sources = [*(code / f"{name}.py" for name in _CODE), *sorted(process_data.glob("*.py"))]
        facts = [
            self.sha256,
            _text_model_digest(config.text_model()),
            [getattr(config, name) for name in _SIZES],
            config.EXTRACT_PRECISION,
            config.KEEP_UNIT_LENGTH,
            [version(package) for package in _PACKAGES],
            [[source.name, _digest(source)] for source in sources],
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]

    def _identity(self) -> list:
        """What changes when the weights do, without reading them."""
        published.provide(self.weights)
        status = self.weights.stat()
        return [
            str(self.weights.resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
        ]  # fmt: skip

    def _weights_digest(self) -> str:
        """SHA-256 of the weights. Of two gigabytes that takes seconds: remembered as long as the file is the same."""
        remembered = self.root / "weights" / hashlib.sha256(json.dumps(self.identity).encode()).hexdigest()[:32]
        try:
            digest = remembered.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError):
            digest = ""
        if len(digest) != 2 * _HASH_BYTES:
            digest = _digest(self.weights)
            self._write(remembered, digest.encode())
        return digest

    @functools.cached_property
    def model(self) -> "CLaMP2Model":
        """The model that the features are of. Raises InputError if, during a training, it no longer is."""
        import clamp2

        model = clamp2.load_clamp2()
        if self._identity() != self.identity:
            raise InputError(f"{self.weights}: changed while they were read; start again")
        return model


@functools.cache
def _cache() -> FeatureCache:
    return FeatureCache()


def made_with() -> dict:
    """What the features were made with, as `extract_clamp2.py --normalize` notes it."""
    return provenance.facts(_cache().weights, _cache().sha256, True, config.KEEP_UNIT_LENGTH)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _text_model_digest(name: str) -> list:
    """Of a text model in a folder, its tokenizer and sizes (its weights are part of CLaMP 2's); else its name."""
    if not os.path.isdir(name):
        return [name]
    inputs = [path for path in Path(name).iterdir() if path.suffix in (".json", ".txt", ".model")]
    return [[path.name, _digest(path)] for path in sorted(inputs)]


# --- from sources to entries ------------------------------------------------------------------------------------------


def features_of(sources: Iterable[Path | str]) -> Iterator[tuple[Path | str, Entry]]:
    """What is known of each source, in any order: a file (Path) or a sentence (str). What is not remembered is made."""
    cache = _cache()
    missing: list[Path | str] = []
    for source in sources:
        try:
            content = _content(source)
        except InputError as error:
            yield source, _failed(str(error))
            continue
        except OSError as error:
            yield source, _failed(error.strerror or str(error))
            continue
        entry = cache.get(pieces.digest(content, _kind(source)))
        if entry is None:
            missing.append(source)
        else:
            yield source, entry
    if missing:
        files.remove_leftovers(cache.folder)
        yield from tqdm(_make(missing, cache), "features", len(missing), unit="file", delay=1, disable=None)


def _content(source: Path | str) -> bytes:
    if isinstance(source, str):
        return source.encode("utf-8", "surrogateescape")
    files.require_piece(source)
    return source.read_bytes()


def _kind(source: Path | str) -> str:
    return ".txt" if isinstance(source, str) else pieces.kind(source)


def _failed(error: str) -> Entry:
    return Entry(np.zeros((1, config.CLAMP2_HIDDEN_SIZE), np.float32), [""], [error], [""])


@dataclass
class _Open:
    """A source whose pieces are with the model."""

    source: Path | str
    key: str
    pieces: list[Piece]
    vectors: list[np.ndarray] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return len(self.vectors) == sum(piece.ok for piece in self.pieces)

    def entry(self) -> Entry:
        matrix = np.zeros((len(self.pieces), config.CLAMP2_HIDDEN_SIZE), np.float32)
        matrix[[piece.ok for piece in self.pieces]] = self.vectors or 0
        known = [[getattr(piece, name) for piece in self.pieces] for name in ("title", "error", "warning")]
        return Entry(matrix, *known)


def _make(sources: list[Path | str], cache: FeatureCache) -> Iterator[tuple[Path | str, Entry]]:
    """Reads the sources, which starts first and goes on beside the model; remembers the features."""
    waiting: deque[_Open] = deque()

    def read() -> Iterator[Piece]:
        for source, key, found in _read(sources):
            waiting.append(_Open(source, key, found))
            yield from (piece for piece in found if piece.ok)

    def finished() -> Iterator[tuple[Path | str, Entry]]:
        while waiting and waiting[0].complete:
            done = waiting.popleft()
            if done.key:
                cache.put(done.key, done.entry())
            yield done.source, done.entry()

    found = read()
    first = next(found, None)
    if first is not None:
        gc.disable()
        import clamp2  # and torch and transformers, which takes seconds

        gc.freeze()  # all that was imported stays: to look through it for garbage, again and again, takes seconds more
        gc.enable()
        for vector in clamp2.embed_pieces(cache.model, itertools.chain([first], found)):
            next(item for item in waiting if not item.complete).vectors.append(vector)
            yield from finished()
    yield from finished()


def _read(sources: list[Path | str]) -> Iterator[tuple[Path | str, str, list[Piece]]]:
    for sentence in sources:
        if isinstance(sentence, str):
            content = sentence.encode("utf-8", "surrogateescape")
            yield sentence, pieces.digest(content, ".txt"), pieces.read(content, ".txt")
    paths = [source for source in sources if isinstance(source, Path)]
    if paths:
        yield from pieces.read_files(sorted(paths, key=lambda path: pieces.kind(path) == ".txt"))  # batches of one kind
