"""Music text as patches, what M3 reads (paper, section 3.2): bars of interleaved ABC, runs of messages of MTF.

Symbols: T patches of a piece, P characters of a patch (PATCH_SIZE).
"""

import math
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from unidecode import unidecode

from config import M3_MASK_RATIO, PATCH_LENGTH, PATCH_SIZE
from files import InputError, read_utf8

if TYPE_CHECKING:
    from torch import Tensor

PAD, BOS, EOS, MASK = range(4)  # the special ids; every other id is an ASCII code
VOCABULARY = 128

MTF_START = "ticks_per_beat "  # the first line of a text in MIDI Text Format begins so
_LINE = re.compile(r".*\n|.+")  # only at a newline, where str.splitlines cuts at form feeds and separators too
_BARLINE = re.compile(r"(\|:|::|:\||\[\||\|\||\|\]|\|)")  # the longest first
_FIELD = re.compile(r"[A-Za-z]:|%%")  # begins a line of its own patch: `K:G`, `%%score 1 2`
_NOTE = re.compile(r"[A-Ga-gxzXZ]")  # a note or a rest
_VOICE_NAME = re.compile(r'(?<!\s)\s+s?nm="[^"]*"')  # from the first space on: a million spaces take no time
_SPECIAL_IDS = dict.fromkeys(range(4))


def read_music(path: Path) -> str:
    """The text of an interleaved ABC (.abc) or MTF (.mtf) file.

    Raises InputError if the file is of another type, cannot be read, is not UTF-8, is empty, or holds no note.
    """
    if path.suffix.lower() not in (".abc", ".mtf"):
        raise InputError(f"{path}: neither an .abc nor an .mtf file; process_data/ makes them from MusicXML and MIDI")
    text = read_utf8(path)
    try:
        return checked_music(text, path.suffix)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def checked_music(text: str, suffix: str) -> str:
    """The text of an interleaved ABC or MTF file. Raises InputError if there is no music in it."""
    if not text.strip():
        raise InputError("the file is empty")
    if is_mtf(text) != (suffix.lower() == ".mtf"):
        raise InputError(f"begins {text[:20]!r}, which is not what {suffix} files begin with")
    has_music = "\nnote_on " in text if is_mtf(text) else any(_NOTE.search(line) for line in _body_lines(text))
    if not has_music:
        raise InputError("there is no note in it")
    return text


def remove_unit_length(text: str) -> str:
    """Removes the header lines `L:1/8`, which say the same in every file of the published pipeline.

    Both published trainers and `extract_m3.py` do so; `extract_clamp2.py` does not (see KEEP_UNIT_LENGTH in config.py).
    """
    return re.sub(r"^L:1/8\n", "", text, flags=re.MULTILINE)


def _body_lines(text: str) -> list[str]:
    return [line for line in text.split("\n") if not line.startswith("%") and not _FIELD.match(line)]


def remove_instrument_info(text: str) -> str:
    """Takes the instruments out of a piece: the names of voices (ABC), the programs of channels (MTF, all become 0)."""
    if is_mtf(text):
        return re.sub(r"^(program_change \S+ \S+) \S+$", r"\1 0", text, flags=re.MULTILINE)
    return re.sub(r"^V:.*$", lambda line: _VOICE_NAME.sub("", line[0]), text, flags=re.MULTILINE)


def random_segment(length: int, limit: int, rng: random.Random) -> slice:
    """Which `limit` of `length` patches or tokens a training keeps: the first, the last, or those from a random place,
    equally likely."""
    last = max(0, length - limit)
    start = rng.choice((0, last, rng.randint(0, last)))
    return slice(start, start + limit)


class M3Patchilizer:
    """Cuts music text into patches: bars of ABC, runs of like messages of MTF (paper, section 3.2).

    A patch is BOS, the ASCII codes of its characters and EOS, cut to `patch_size` and filled up with PAD.
    """

    pad_token_id, bos_token_id, eos_token_id, mask_token_id = PAD, BOS, EOS, MASK
    delimiters: ClassVar[list[str]] = ["|:", "::", ":|", "[|", "||", "|]", "|"]  # barlines, the longest first
    regexPattern = _BARLINE.pattern

    def __init__(self, patch_size: int = PATCH_SIZE, patch_length: int = PATCH_LENGTH):
        self.patch_size = patch_size
        self.patch_length = patch_length

    def encode(
        self,
        item: str,
        patch_size: int | None = None,
        add_special_patches: bool = False,
        truncate: bool = False,
        random_truncate: bool = False,
    ) -> list[list[int]]:
        """The published call: `encode_array` as lists.

        As there, `patch_size` limits how many messages of MTF are joined, and the patches stay PATCH_SIZE wide.
        """
        join_size = patch_size or self.patch_size
        return self.encode_array(item, add_special_patches, truncate, random_truncate, join_size=join_size).tolist()

    def encode_array(
        self,
        text: str,
        add_special_patches: bool = False,
        truncate: bool = False,
        random_truncate: bool = False,
        rng: random.Random | None = None,
        join_size: int | None = None,
    ) -> np.ndarray:
        """Text -> patches, uint8 [T, P].

        Args:
            text: interleaved ABC, or MTF, which is known by its first line. It is transliterated to ASCII first.
            add_special_patches: put a patch of BOS before and one of EOS after.
            truncate: keep `patch_length` patches, the first ones.
            random_truncate: of those that `truncate` keeps, the first, the last, or those from a random place, equally
                likely.
            rng: where the randomness comes from; default: Python's own.
            join_size: the size of a patch up to which messages of MTF are joined; default: P.
        """
        size = self.patch_size
        text = unidecode(text).translate(_SPECIAL_IDS)
        parts = _split_mtf(text, join_size or size) if is_mtf(text) else _split_abc(text)
        rows = [self._row(part) for part in parts]
        if add_special_patches:
            rows = [bytes([BOS]) * size, *rows, bytes([BOS]) + bytes([EOS]) * (size - 1)]
        limit = self.patch_length
        if truncate and len(rows) > limit:
            kept = random_segment(len(rows), limit, rng or random) if random_truncate else slice(limit)  # type: ignore[arg-type]
            rows = rows[kept]
        return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, size)

    def decode(self, patches: np.ndarray | Sequence[Sequence[int]]) -> str:
        """Patches [T, P] -> text. Inverts `encode` up to what the size of a patch cuts off."""
        parts = [self.patch2bar(row) for row in np.asarray(patches).tolist()]
        text = "".join(parts)
        if not is_mtf(text):
            return text
        lines = []
        for part in filter(None, parts):
            kind, space, groups = part.rstrip("\n").partition(" ")
            lines += [kind + space + group for group in groups.split("\t")]
        return "\n".join(lines) + ("\n" if text.endswith("\n") else "")

    def split_bars(self, body: str) -> list[str]:
        """A line of ABC, cut after each barline."""
        return _split_bars(body)

    def bar2patch(self, bar: str, patch_size: int | None = None) -> list[int]:
        """The text of a patch -> its ids [P]."""
        return list(M3Patchilizer(patch_size or self.patch_size)._row(bar))

    def patch2bar(self, patch: Sequence[int]) -> str:
        """The ids of a patch -> its text."""
        return "".join(map(chr, patch)).translate(_SPECIAL_IDS)

    def _row(self, part: str) -> bytes:
        size = self.patch_size
        return (b"\x01" + part.encode("ascii", "ignore") + b"\x02")[:size].ljust(size, b"\x00")


def is_mtf(text: str) -> bool:
    """Whether a text is MTF, by its first line."""
    return text.startswith(MTF_START)


def _split_mtf(text: str, patch_size: int) -> list[str]:
    """Joins consecutive lines of one message type, the type named once, while they fit into a patch."""
    room = patch_size - 2  # BOS and EOS
    parts: list[str] = []
    kind, joined = None, ""
    for line in text.split("\n"):
        if not line:
            continue
        new_kind, _, values = line.partition(" ")
        if new_kind == kind and len(joined) + len(values) + 2 <= room:  # a tab and the newline
            joined += "\t" + values
            continue
        if kind is not None:
            parts.append(joined + "\n")
        kind, joined = new_kind, line
    if kind is not None:
        parts.append(joined + ("\n" if text.endswith("\n") else ""))
    return parts


def _split_abc(text: str) -> list[str]:
    parts: list[str] = []
    for line in _LINE.findall(text):
        if _FIELD.match(line):
            parts.append(line)
        elif not line.startswith("%"):
            parts += _split_bars(line)
    return parts


def _split_bars(line: str) -> list[str]:
    """Cuts a line after each barline. Text after the last one is kept if a note or a rest is in it."""
    newline = "\n" if line.endswith("\n") else ""
    pieces = _BARLINE.split(line.removesuffix("\n"))  # text, barline, text, ..., text
    if len(pieces) > 1 and not pieces[0]:  # a barline that opens the line belongs to the first bar
        pieces[:3] = [pieces[1] + pieces[2]]
    bars = [text + barline for text, barline in zip(pieces[0::2], pieces[1::2], strict=False)]
    if _NOTE.search(pieces[-1]) or (not bars and _BARLINE.search(pieces[-1])):
        bars.append(pieces[-1])
    if bars:
        bars[-1] += newline
    return bars


def mask_patches(
    target_patches: "Sequence[Sequence[int]] | np.ndarray | Tensor", patchilizer: M3Patchilizer, mode: str = "train"
) -> "tuple[Tensor, Tensor]":
    """The published call of `corrupt_patches`: ids [T, P] -> the corrupted ids, int64 [T, P], and which patches were
    selected, float [T]. `mode` is "train" or "eval"; the randomness is that of Python's `random`."""
    import torch

    patches = np.asarray(target_patches, np.uint8)
    rng = np.random.default_rng(random.getrandbits(64))
    corrupted, selected = corrupt_patches(patches, rng, mode == "train")
    return torch.from_numpy(corrupted.astype(np.int64)), torch.from_numpy(selected.astype(np.float32))


def corrupt_patches(
    patches: np.ndarray, rng: np.random.Generator, train: bool = True, mask_ratio: float = M3_MASK_RATIO
) -> tuple[np.ndarray, np.ndarray]:
    """Corrupts a piece for M3 to restore (paper, section 3.2). One draw for the whole piece decides how.

    Args:
        patches: uint8 [T, P].
        train: if not, the selected patches are left as they are.
    Returns:
        the corrupted patches, uint8 [T, P], and which patches were selected, bool [T]: ceil(mask_ratio * T) of them.
    """
    count = math.ceil(mask_ratio * len(patches))
    selected = np.zeros(len(patches), bool)
    selected[rng.permutation(len(patches))[:count]] = True
    corrupted = patches.copy()
    draw = rng.random() if train else 1.0
    if draw < 0.8:
        corrupted[selected] = MASK
    elif draw < 0.9:
        for row in selected.nonzero()[0]:
            ends = (corrupted[row] == EOS).nonzero()[0]
            stop = ends[0] if len(ends) == 1 else len(corrupted[row])
            corrupted[row, 1:stop] = rng.permutation(corrupted[row, 1:stop])
    return corrupted, selected
