"""CLaMP 2 in three calls, for notebooks and other programs (with `code/` on the path: `sys.path.append("code")`).

    from clamp2 import embed_music, embed_texts, load_clamp2

    model = load_clamp2(download=True)  # the weights of config.py, or the published ones
    music = embed_music(model, ["reel.abc", "waltz.mid", "quartet.mxl"])  # [3, H] float32; also takes text of ABC, MTF
    words = embed_texts(model, ["a fast Irish dance", "une valse triste"])  # [2, H]

    import retrieval
    scores, rows = retrieval.top_k(words, music, 3)  # cosines and row numbers of `music`, [2, 3] each

H is CLAMP2_HIDDEN_SIZE. The features are those of `extract_clamp2.py --normalize`.
"""

import functools
import os
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

import checkpoints
import config
import extraction
import pieces
import published
from embedding import Key, embed
from features import INPUT_SUFFIXES
from files import InputError, name_all
from pieces import Piece
from processes import Processes, precision
from texts import join_lines, load_tokenizer, text_lines, tokenize
from utils import CLaMP2Model, empty_clamp2

T = TypeVar("T")
_unchecked: WeakKeyDictionary[CLaMP2Model, dict[str, Path]] = WeakKeyDictionary()  # towers not used yet


def load_clamp2(weights: str | Path | None = None, download: bool = False) -> CLaMP2Model:
    """Load the model, with the sizes and the text model of config.py, on the GPU if there is one.

    Weights are read at their first use: those for music never, if only texts are embedded.

    Args:
        weights: a checkpoint; CLAMP2_WEIGHTS_PATH of config.py by default.
        download: download the published weights if the file does not exist.
    Raises InputError for weights that do not exist or are of another model.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    path = Path(weights) if weights else config.resolve(config.CLAMP2_WEIGHTS_PATH)
    published.provide(path, download, "load_clamp2(download=True)")
    model = checkpoints.load(empty_clamp2(), path, check_values=False).eval().to(Processes().device)
    _unchecked[model] = {"text_": path, "music_": path}
    return model


def embed_texts(model: CLaMP2Model, texts: Sequence[str]) -> np.ndarray:
    """Embed texts of any length, in any language: float32 [N, H]. Raises InputError for an empty one."""
    texts = _listed("text", texts, str)
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            raise InputError(f"text {number} of {len(texts)} is empty")
    return _stack(model, [Piece(text, is_music=False) for text in texts])


def embed_music(model: CLaMP2Model, music: Sequence[str | Path]) -> np.ndarray:
    """Embed files of ABC (standard or interleaved), MTF, MIDI or MusicXML, one piece each: float32 [N, H].

    `book.abc#2` is the second tune of a file. A string of several lines is ABC or MTF itself. Prints warnings about
    repairs. Raises InputError for a piece that cannot be used.
    """
    music = _listed("music", music, (str, Path))
    located = {number: pieces.locate(path) for number, path in enumerate(music) if "\n" not in str(path)}
    for path, _ in located.values():
        if pieces.kind(path) not in pieces.MUSIC:
            known = " ".join(suffix for suffix in INPUT_SUFFIXES if suffix != ".txt")
            raise InputError(f"{path}: not a music file; {known} are")
        if not os.path.isfile(path):
            raise InputError(f"{path}: no such file")
    files = list(dict.fromkeys(path for path, _ in located.values()))
    read = tqdm(pieces.read_files(files), "reading", len(files), unit="file", delay=2)
    found = {path: held for path, _, held in read}
    chosen, warned = [], []
    for number, item in enumerate(music):
        name: object = f"music text {number + 1}"
        if number in located:
            name, tune = located[number]
            piece = found[name][pieces.row(name, tune, len(found[name]))]
        else:
            piece = _parse(str(item))
        if not piece.ok:
            raise InputError(f"{name}: {piece.error}")
        if piece.warning:
            warned.append(f"{name}: {piece.warning}")
        chosen.append(piece)
    name_all("pieces of music read with warnings", warned, 3)
    return _stack(model, chosen)


def _listed(what: str, items: Iterable[T], kind: type | tuple[type, ...]) -> list[T]:
    """Return the items as a list. Raises InputError for a string or path in its place, and for an item's type."""
    if isinstance(items, str | Path):
        raise InputError(
            f"{what}: a list is needed, not a single {type(items).__name__}; write [{reprlib.repr(items)}]"
        )
    if not isinstance(items, Iterable):
        raise InputError(f"{what}: a list is needed, not {reprlib.repr(items)}")
    items = list(items)
    for number, item in enumerate(items, start=1):
        if not isinstance(item, kind):
            raise InputError(f"{what} {number} of {len(items)} is of type {type(item).__name__}: {reprlib.repr(item)}")
    return items


def _parse(text: str) -> Piece:
    """Read a text of one piece; of none or several, the piece has an `error`."""
    kind = ".mtf" if text.startswith("ticks_per_beat") else ".abc"
    found = pieces.read(text.encode("utf-8", "surrogateescape"), kind)
    return found[0] if len(found) == 1 else Piece("", error=f"holds {len(found)} tunes; pass them one by one")


def embed_pieces(model: CLaMP2Model, found: Iterable[tuple[Key, Piece]]) -> Iterator[tuple[Key, np.ndarray]]:
    """Embed pieces, each with a key: (key, float32 [H]), in their order.

    Raises InputError if the weights of a tower are not finite.
    """
    dtype = precision(next(model.parameters()).device, config.EXTRACT_PRECISION)

    def arrays() -> Iterator[tuple[Key, np.ndarray]]:
        for key, piece in found:
            _check_weights(model, "music_" if piece.is_music else "text_")
            yield key, encode(piece, model.keep_unit_length)

    return embed(model, arrays(), True, config.EXTRACT_BATCH_TOKENS, dtype)


def _check_weights(model: CLaMP2Model, tower: str) -> None:
    """Raise InputError at the first use of a tower, "text_" or "music_", if its weights are not finite."""
    towers = _unchecked.get(model, {})
    if tower in towers:
        weights = {name: value for name, value in model.state_dict().items() if name.startswith(tower)}
        checkpoints.require_finite(weights, towers[tower])
        del towers[tower]


def encode(piece: Piece, keep_unit_length: bool) -> np.ndarray:
    """Encode a piece as patches, uint8 [T, P], or token ids, int64 [T]."""
    if piece.is_music:
        return extraction.encode_music(piece.text, keep_unit_length)
    return tokenize(join_lines(text_lines(piece.text), _tokenizer()), _tokenizer())


@functools.cache
def _tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer()


def _stack(model: CLaMP2Model, found: list[Piece]) -> np.ndarray:
    embedded = tqdm(embed_pieces(model, enumerate(found)), "features", len(found), unit="piece", delay=2)
    rows = [vector for _, vector in embedded]
    return np.stack(rows) if rows else np.empty((0, config.CLAMP2_HIDDEN_SIZE), np.float32)
