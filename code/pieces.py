"""Read music and text files of all types, as the text that the model is given. Imports no torch.

Files are converted as the scripts of `process_data/` do, in worker processes with limits of time and memory: one that
is hostile, or sends a converter into a loop, costs itself alone.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

import files
from conversions import abc_text, interleaving, midi_to_mtf, musicxml, workers, xml_abc
from features import INPUT_SUFFIXES
from files import InputError
from notation import is_interleaved
from patches import checked_music

MUSIC = (".abc", ".mtf", ".mid", ".xml")
_KINDS = {".midi": ".mid", ".kar": ".mid", ".rmi": ".mid", ".musicxml": ".xml", ".mxl": ".xml"}
_KNOWN = "|".join(map(re.escape, (*INPUT_SUFFIXES, ".npy")))
_FILE = re.compile(rf".*({_KNOWN})(#\S*)?|\S+(\.[a-z]\w{{0,7}}|#\d+)", re.IGNORECASE | re.DOTALL)
_TITLE = re.compile(r"^[^\S\n]*T:[^\S\n]*(\S.*)$", re.MULTILINE)
_NO_TITLE = "Title"  # of xml2abc, for a piece without one


@dataclass
class Piece:
    """One piece of music or one text: a file, or one tune of an ABC file."""

    text: str  # interleaved ABC or MTF as it is encoded, or words
    title: str = ""  # as the file has it
    error: str = ""  # why it cannot be used, if it cannot
    is_music: bool = True
    warning: str = ""  # what was repaired, padded or left out

    @property
    def ok(self) -> bool:
        return not self.error


def kind(path: Path) -> str:
    """Return how a file is read: ".abc", ".mtf", ".mid", ".xml" or ".txt"."""
    suffix = path.suffix.lower()
    return _KINDS.get(suffix, suffix)


def locate(name: str | Path) -> tuple[Path, int | None]:
    """Return a file, which may not exist, and the number of its tune: `book.abc#2` is the second one of `book.abc`."""
    path = Path(name)
    file, _, number = str(name).rpartition("#")
    is_one = os.path.isfile(file) or Path(file).suffix.lower() in INPUT_SUFFIXES
    if not os.path.exists(path) and number.isdecimal() and is_one:  # os.path takes any text; Path raises an error
        return Path(file), int(number)
    return path, None


def looks_like_file(text: str) -> bool:
    """Whether a text, if there is no such file, is the name of one: `my bok.abc`, `bok.abc#12`, `bok#12`, `bok.pdf`."""
    return bool(_FILE.fullmatch(text))


def row(path: Path, number: int | None, count: int) -> int:
    """Return the row of a tune among the `count` of a file. Raises InputError if it has none, or none was chosen."""
    if number is None and count > 1:
        raise InputError(f"{path}: holds {count} tunes; choose one: {path.name}#1 is the first")
    if number is not None and not 1 <= number <= count:
        raise InputError(f"{path}: holds {count} tunes, there is no number {number}")
    return 0 if number is None else number - 1


def names(file: str, count: int) -> list[str]:
    """Return the names of the `count` pieces of a file."""
    return [file] if count == 1 else [f"{file}#{number}" for number in range(1, count + 1)]


def digest(data: bytes, kind: str) -> str:
    """Return a name for the content of a file, whatever the name of the file."""
    return hashlib.sha256(data).hexdigest() + kind


def tunes(data: bytes, kind: str) -> list[Piece]:
    """Convert an ABC or MusicXML file to interleaved ABC. A tune that cannot be converted has an `error`.

    Raises InputError if the whole file cannot be read.
    """
    if kind == ".xml":
        xml, warnings = musicxml.read(data)
        abc, more = xml_abc.score_to_abc(xml, "the score")
        piece = _interleaved(abc)
        warning = "; ".join(filter(None, [*warnings, *more, piece.warning]))
        return [replace(piece, title=score_title(xml) or piece.title, warning=warning)]
    text = abc_text.read_abc(data)
    return [Piece(text, _title(text))] if is_interleaved(text) else list(map(_interleaved, abc_text.split_tunes(text)))


def _interleaved(tune: str) -> Piece:
    try:
        [(interleaved, warnings)] = interleaving.interleave(tune)
        return Piece(interleaved, _title(tune), warning="; ".join(warnings))
    except InputError as error:
        return Piece("", _title(tune), str(error))


def score_title(xml: str) -> str:
    """Return work and movement of a MusicXML score, such as "8 Lieder, Op. 59 – Regenlied"."""
    root = ElementTree.fromstring(xml)
    titles = [_one_line(root.findtext(path, "")) for path in ("work/work-title", "movement-title")]
    return " – ".join(dict.fromkeys(filter(None, titles)))


def _title(abc: str) -> str:
    title = _TITLE.search(abc)
    return _one_line(title[1]) if title and title[1].strip() != _NO_TITLE else ""


def _one_line(text: str) -> str:
    """Put a text on one line, without what would move the cursor of a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def read(data: bytes, kind: str) -> list[Piece]:
    """Read the pieces of a file, one or more. A bad one has an `error`; a bad file is one bad piece."""
    try:
        if kind in (".abc", ".xml"):
            return [_checked(piece, ".abc") for piece in tunes(data, kind)]
        if kind == ".mid":
            text, warnings = midi_to_mtf(data)
            return [_checked(Piece(text, warning="; ".join(warnings)), ".mtf")]
        text = data.decode("utf-8-sig")
        if kind == ".mtf":
            return [_checked(Piece(text), kind)]
        return [Piece(text, is_music=False) if text.strip() else Piece("", error="the file is empty")]
    except UnicodeDecodeError as error:
        return [Piece("", error=f"not UTF-8 (byte {error.start}); save it as UTF-8")]
    except InputError as error:
        return [Piece("", error=str(error))]


def _checked(piece: Piece, suffix: str) -> Piece:
    if not piece.ok:
        return piece
    try:
        return replace(piece, text=checked_music(piece.text, suffix))
    except InputError as error:
        return Piece("", piece.title, str(error))


# --- in worker processes ----------------------------------------------------------------------------------------------


def read_files(paths: Iterable[Path], timeout: float = workers.TIMEOUT) -> Iterator[tuple[Path, str, list[Piece]]]:
    """Yield (path, digest of its content, its pieces) of each file, as they get ready.

    The digest is empty if the content may not be at fault: after a time limit, or a crash of the converter.
    """
    for path, found in workers.run(_read_file, paths, timeout):
        yield path, *(("", [Piece("", error=found.reason)]) if isinstance(found, workers.Failed) else found)


def _read_file(path: Path) -> tuple[str, list[Piece]]:
    files.require_piece(path)
    data = path.read_bytes()
    return digest(data, kind(path)), read(data, kind(path))
