"""Cut music text into patches for M3 (paper, section 3.2): bars of interleaved ABC, runs of messages of MTF.

Symbols: T patches of a piece, P characters of a patch (PATCH_SIZE).
"""

import math
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from unidecode import unidecode_expect_nonascii

import config
from files import InputError, read_utf8
from notation import is_interleaved, is_mtf

if TYPE_CHECKING:
    from torch import Tensor

PAD, BOS, EOS, MASK = range(4)  # the special ids; every other id is an ASCII code
VOCABULARY = 128

_LINE = re.compile(r".*\n|.+")  # only at a newline, where str.splitlines cuts at form feeds and separators too
_BARLINE = re.compile(r"(\|:|::|:\||\[\||\|\||\|\]|\|)")  # the longest first
_LONG_BARLINE = re.compile(r"(\|[:|\]]|:[:|]|\[\|)")  # of two characters
_BAR_END = chr(PAD)  # marks where bars end; music text has no PAD
_FIELD = re.compile(r"[A-Za-z]:|%%")  # begins a line of its own patch: `K:G`, `%%score 1 2`
_NOTE = re.compile(r"[A-Ga-gxzXZ]")  # a note or a rest
_VOICE_NAME = re.compile(r'(?<!\s)\s+s?nm="[^"]*"')  # from the first space on: a million spaces take no time
# A newline is searched for several times as fast as the start of a line, so these patterns begin with it.
_UNIT_LENGTH = re.compile(r"\nL:1/8(?=\n)")
_VOICE = re.compile(r"\nV:.*")
_PROGRAM = re.compile(r"(\nprogram_change \S+ \S+) \S+$", re.MULTILINE)
_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
_SPECIAL_IDS = dict.fromkeys(range(4))


def read_music(path: Path) -> str:
    """Read an interleaved ABC (.abc) or MTF (.mtf) file. Raises InputError, for a file without a note too."""
    if path.suffix.lower() not in (".abc", ".mtf"):
        raise InputError(f"{path}: neither an .abc nor an .mtf file; process_data/ makes them from MusicXML and MIDI")
    text = read_utf8(path)
    try:
        return checked_music(text, path.suffix)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def checked_music(text: str, suffix: str) -> str:
    """Return the text of an interleaved ABC or MTF file. Raises InputError for another text, or one without a note."""
    if not text.strip():
        raise InputError("the file is empty")
    if is_mtf(text) != (suffix.lower() == ".mtf"):
        raise InputError(f"begins {text[:20]!r}, which is not what {suffix} files begin with")
    body = (line for line in text.split("\n") if not line.startswith("%") and not _FIELD.match(line))
    if not ("\nnote_on " in text if is_mtf(text) else any(map(_NOTE.search, body))):
        raise InputError("there is no note in it")
    if not (is_mtf(text) or is_interleaved(text)):
        raise InputError(
            "not interleaved ABC; `python process_data/batch_interleaved_abc.py IN OUT` converts standard ABC"
        )
    return text


def remove_unit_length(text: str) -> str:
    """Remove the header lines `L:1/8`; see KEEP_UNIT_LENGTH in config.py."""
    return _UNIT_LENGTH.sub("", "\n" + text)[1:]


def remove_instrument_info(text: str) -> str:
    """Remove the names of voices (ABC), or set the programs of channels to 0 (MTF)."""
    if is_mtf(text):
        return _PROGRAM.sub(r"\1 0", text)
    return _VOICE.sub(lambda line: _VOICE_NAME.sub("", line[0]), "\n" + text)[1:]


def random_segment(length: int, limit: int, rng: random.Random) -> slice:
    """Choose `limit` of `length` patches or tokens: the first, the last or a random segment, equally likely."""
    last = max(0, length - limit)
    start = rng.choice((0, last, rng.randint(0, last)))
    return slice(start, start + limit)


class M3Patchilizer:
    """Converts music text to patches, each BOS, ASCII codes and EOS, cut to `patch_size` or padded with PAD."""

    pad_token_id, bos_token_id, eos_token_id, mask_token_id = PAD, BOS, EOS, MASK
    delimiters: ClassVar[list[str]] = ["|:", "::", ":|", "[|", "||", "|]", "|"]  # barlines, the longest first
    regexPattern = _BARLINE.pattern

    def __init__(self, patch_size: int = config.PATCH_SIZE, patch_length: int = config.PATCH_LENGTH):
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
        """Encode as the published method does: `encode_array` as lists; `patch_size` only limits how MTF is joined."""
        return self.encode_array(item, add_special_patches, truncate, random_truncate, join_size=patch_size).tolist()

    def encode_array(
        self,
        text: str,
        add_special_patches: bool = False,
        truncate: bool = False,
        random_truncate: bool = False,
        rng: random.Random | None = None,
        join_size: int | None = None,
    ) -> np.ndarray:
        """Convert interleaved ABC or MTF, transliterated to ASCII, to patches, uint8 [T, P].

        Args:
            add_special_patches: put a patch of BOS before and one of EOS after.
            truncate: keep the first `patch_length` patches or, with `random_truncate`, a `random_segment`.
            rng: default: Python's `random`.
            join_size: up to which size messages of MTF are joined to a patch; default: P.
        """
        size = self.patch_size
        if not text.isascii():
            text = _NOT_ASCII.sub(lambda run: unidecode_expect_nonascii(run[0]), text)
        text = text.translate(_SPECIAL_IDS)
        parts = _split_mtf(text, join_size or size) if is_mtf(text) else _split_abc(text)
        if add_special_patches:
            parts = [chr(BOS) * size, *parts, chr(EOS) * size]
        limit = self.patch_length
        if truncate and len(parts) > limit:
            kept = random_segment(len(parts), limit, rng or random) if random_truncate else slice(limit)  # type: ignore[arg-type]
            parts = parts[kept]
        return _patches(parts, size)

    def decode(self, patches: np.ndarray | Sequence[Sequence[int]]) -> str:
        """Convert patches [T, P] to text: the inverse of `encode`, but for what the size of a patch cuts off."""
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
        """Cut a line of ABC after each barline."""
        return _split_bars(_mark_bar_ends(body))

    def bar2patch(self, bar: str, patch_size: int | None = None) -> list[int]:
        """Convert the text of a patch to ids [P]."""
        (patch,) = _patches([bar.encode("ascii", "ignore").decode()], patch_size or self.patch_size)
        return patch.tolist()

    def patch2bar(self, patch: Sequence[int]) -> str:
        """Convert the ids of a patch to text."""
        return "".join(map(chr, patch)).translate(_SPECIAL_IDS)


def _patches(parts: list[str], size: int) -> np.ndarray:
    """Convert ASCII texts of patches to ids, uint8 [T, P]."""
    bos, eos = chr(BOS), chr(EOS)
    rows = np.array([f"{bos}{part}{eos}" for part in parts], f"S{size}")  # cut, or padded with 0
    return rows.view(np.uint8).reshape(-1, size)


def _split_mtf(text: str, patch_size: int) -> list[str]:
    """Join consecutive lines of one message type, named once, while they fit into a patch."""
    room = patch_size - 4  # BOS, a tab, the newline and EOS
    parts: list[str] = []
    kind, joined = None, ""
    for line in filter(None, text.split("\n")):
        new_kind, _, values = line.partition(" ")
        if new_kind == kind and len(joined) + len(values) <= room:
            joined += "\t" + values
        else:
            parts.append(joined + "\n")
            kind, joined = new_kind, line
    parts.append(joined + ("\n" if text.endswith("\n") else ""))
    return parts[1:]  # the first is that before the first line


def _split_abc(text: str) -> list[str]:
    parts: list[str] = []
    for line in _LINE.findall(_mark_bar_ends(text)):
        if _FIELD.match(line):
            parts.append(line.replace(_BAR_END, ""))
        elif not line.startswith("%"):
            parts += _split_bars(line)
    return parts


def _mark_bar_ends(text: str) -> str:
    """Put a mark after each barline. Long ones are rare, and replacing one character is fast."""
    parts = _LONG_BARLINE.split(text)  # text, long barline, text, ..., text
    parts[0::2] = [part.replace("|", "|" + _BAR_END) for part in parts[0::2]]
    parts[1::2] = [barline + _BAR_END for barline in parts[1::2]]
    return "".join(parts)


def _split_bars(marked_line: str) -> list[str]:
    """Cut a line after each barline. Text after the last one is kept if it holds a note or a rest."""
    bars = marked_line.split(_BAR_END)
    if bars[0] in M3Patchilizer.delimiters:  # a barline that opens the line belongs to the first bar
        bars[:2] = [bars[0] + bars[1]]
    rest = bars.pop()
    if _NOTE.search(rest) or (not bars and _BARLINE.search(rest)):
        bars.append(rest)
    elif bars and rest.endswith("\n"):
        bars[-1] += "\n"
    return bars


def mask_patches(
    target_patches: "Sequence[Sequence[int]] | np.ndarray | Tensor", patchilizer: M3Patchilizer, mode: str = "train"
) -> "tuple[Tensor, Tensor]":
    """Corrupt ids [T, P] as the published function does, in mode "train" or "eval", by Python's `random`.

    Returns the corrupted ids, int64 [T, P], and which patches were selected, float [T].
    """
    import torch

    patches = np.asarray(target_patches, np.uint8)
    rng = np.random.default_rng(random.getrandbits(64))
    corrupted, selected = corrupt_patches(patches, rng, mode == "train")
    return torch.from_numpy(corrupted.astype(np.int64)), torch.from_numpy(selected.astype(np.float32))


def corrupt_patches(
    patches: np.ndarray, rng: np.random.Generator, train: bool = True, mask_ratio: float = config.M3_MASK_RATIO
) -> tuple[np.ndarray, np.ndarray]:
    """Corrupt a piece, uint8 [T, P], for M3 to restore (paper, section 3.2). One draw for the piece decides how.

    Returns the corrupted patches, and which were selected, bool [T]: ceil(mask_ratio * T), left as they are unless
    `train`.
    """
    count = math.ceil(mask_ratio * len(patches))
    selected = np.zeros(len(patches), bool)
    selected[rng.permutation(len(patches))[:count]] = True
    corrupted = patches.copy()
    draw = rng.random() if train else 1.0
    if draw < config.M3_MASKED_SHARE:
        corrupted[selected] = MASK
    elif draw < config.M3_MASKED_SHARE + config.M3_SHUFFLED_SHARE:
        rows = corrupted[selected]
        ends = rows == EOS
        stops = np.where(ends.sum(1) == 1, ends.argmax(1), rows.shape[1])
        for row, stop in zip(rows, stops.tolist(), strict=True):
            rng.shuffle(row[1:stop])
        corrupted[selected] = rows
    return corrupted, selected
