"""What music and text files hold, as the text that the model reads. Imports no torch.

Files of all types are converted as the scripts of `process_data/` do, in worker processes with a time and a memory
limit: one that is hostile, or sends a converter into a loop, costs itself alone.
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from features import INPUT_SUFFIXES
from files import InputError
from patches import checked_music, is_interleaved

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "process_data"))
import batch
import jobs

MUSIC = (".abc", ".mtf", ".mid", ".xml")
_KINDS = {".midi": ".mid", ".kar": ".mid", ".rmi": ".mid", ".musicxml": ".xml", ".mxl": ".xml"}
_KNOWN = "|".join(map(re.escape, (*INPUT_SUFFIXES, ".npy")))
_FILE = re.compile(rf".*({_KNOWN})(#\S*)?|\S+(\.[a-z]\w{{0,7}}|#\d+)", re.IGNORECASE | re.DOTALL)
_TITLE = re.compile(r"^[^\S\n]*T:[^\S\n]*(\S.*)$", re.MULTILINE)
_NO_TITLE = "Title"  # what xml2abc calls a piece without one


@dataclass
class Piece:
    """One piece of music or one text: a file, or one tune of an ABC file."""

    text: str  # interleaved ABC or MTF as it is encoded, or words
    title: str = ""  # as the file has it
    error: str = ""  # why it cannot be used, if it cannot
    is_music: bool = True
    warning: str = ""  # what was repaired, padded or left out

    def __bool__(self) -> bool:
        return not self.error


def kind(path: Path) -> str:
    """ ".abc", ".mtf", ".mid", ".xml" or ".txt": how a file is read."""
    suffix = path.suffix.lower()
    return _KINDS.get(suffix, suffix)


def locate(name: str | Path) -> tuple[Path, int | None]:
    """A file, which may not be there, and which of its tunes is meant: `book.abc#2` is the second one of `book.abc`."""
    path = Path(name)
    file, _, number = str(name).rpartition("#")
    is_one = os.path.isfile(file) or Path(file).suffix.lower() in INPUT_SUFFIXES
    if not os.path.exists(path) and number.isdecimal() and is_one:  # these take any text, Path's do not
        return Path(file), int(number)
    return path, None


def looks_like_file(text: str) -> bool:
    """Whether a text, if there is no such file, is the name of one: `my bok.abc`, `bok.abc#12`, `bok#12`, `bok.pdf`."""
    return bool(_FILE.fullmatch(text))


def row(path: Path, number: int | None, count: int) -> int:
    """Which of the `count` pieces of a file is meant. Raises InputError if there is no such one, or no choice made."""
    if number is None and count > 1:
        raise InputError(f"{path}: holds {count} tunes; choose one: {path.name}#1 is the first")
    if number is not None and not 1 <= number <= count:
        raise InputError(f"{path}: holds {count} tunes, there is no number {number}")
    return 0 if number is None else number - 1


def names(file: str, count: int) -> list[str]:
    """What the pieces of a file are called."""
    return [file] if count == 1 else [f"{file}#{number}" for number in range(1, count + 1)]


def key(data: bytes, kind: str) -> str:
    """What names the content of a file, whatever the file is called."""
    return hashlib.sha256(data).hexdigest() + kind


def tunes(data: bytes, kind: str) -> list[Piece]:
    """The pieces of an ABC or MusicXML file as interleaved ABC. A tune that cannot be converted has an `error`.

    Raises batch.Refused if the whole file cannot be read.
    """
    import abc_text
    import batch_xml2abc

    if kind == ".xml":
        abc, warnings = batch_xml2abc.musicxml_to_abc(data, "the score")
        [piece] = _interleaved([abc])
        warning = "; ".join(filter(None, [*warnings, piece.warning]))
        return [replace(piece, title=_score_title(data) or piece.title, warning=warning)]
    text = abc_text.read_abc(data)
    if is_interleaved(text):
        return [Piece(text, _title(text))]
    return _interleaved(abc_text.split_tunes(text))


def _interleaved(tunes: list[str]) -> list[Piece]:
    """One by one: a bad tune costs itself alone."""
    import interleaving

    found = []
    for tune in tunes:
        try:
            [(interleaved, warnings)] = interleaving.interleave(tune)
            found.append(Piece(interleaved, _title(tune), warning="; ".join(warnings)))
        except batch.Refused as refused:
            found.append(Piece("", _title(tune), str(refused)))
    return found


def _score_title(data: bytes) -> str:
    """Work and movement of a MusicXML score, such as "8 Lieder, Op. 59 – Regenlied"."""
    import musicxml

    root = ElementTree.fromstring(musicxml.read(data)[0])
    titles = [_printable(root.findtext(path, "")) for path in ("work/work-title", "movement-title")]
    return " – ".join(dict.fromkeys(filter(None, titles)))


def _title(abc: str) -> str:
    title = _TITLE.search(abc)
    return _printable(title[1]) if title and title[1].strip() != _NO_TITLE else ""


def _printable(text: str) -> str:
    """In one line, without what would move the cursor of a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def read(data: bytes, kind: str) -> list[Piece]:
    """The pieces that the content of a file holds, one or more. A bad one has an `error`, a bad file is a bad piece."""
    try:
        if kind in (".abc", ".xml"):
            return [_checked(piece, ".abc") for piece in tunes(data, kind)]
        if kind == ".mid":
            text, warnings = mtf_of(data)
            return [_checked(Piece(text, warning="; ".join(warnings)), ".mtf")]
        text = data.decode("utf-8-sig")
        if kind == ".mtf":
            return [_checked(Piece(text), kind)]
        return [Piece(text, is_music=False) if text.strip() else Piece("", error="the file is empty")]
    except UnicodeDecodeError as error:
        return [Piece("", error=f"not UTF-8 (byte {error.start}); save it as UTF-8")]
    except batch.Refused as refused:
        return [Piece("", error=str(refused))]


def mtf_of(data: bytes, messages: str = "m3_compatible") -> tuple[str, list[str]]:
    """MTF of a MIDI file, and warnings. Raises batch.Refused."""
    import mtf

    try:
        return mtf.midi_to_mtf(data, messages)
    except ValueError as error:
        raise batch.Refused(str(error)) from error


def _checked(piece: Piece, suffix: str) -> Piece:
    if not piece:
        return piece
    try:
        return replace(piece, text=checked_music(piece.text, suffix))
    except InputError as error:
        return Piece("", piece.title, str(error))


# --- in worker processes ----------------------------------------------------------------------------------------------


def convert(path: Path, args: argparse.Namespace) -> batch.Converted:
    """A file's pieces and the key of the content that they were read from, as JSON."""
    data = path.read_bytes()
    found = [asdict(piece) for piece in read(data, kind(path))]
    return batch.Converted([json.dumps([key(data, kind(path)), found]).encode()])


def read_files(paths: Iterable[Path]) -> Iterator[tuple[Path, str, list[Piece]]]:
    """(path, key of its content, its pieces) of each file, as they get ready.

    The key is empty if it is not the content's fault, or may not be: a time limit, a converter that crashed.
    """
    for path, content, error in in_workers(convert, paths):
        if error:
            yield path, "", [Piece("", error=error)]
        else:
            name, found = json.loads(content)
            yield path, name, [Piece(**piece) for piece in found]


def in_workers(
    function: batch.Convert, paths: Iterable[Path], timeout: float = batch.TIMEOUT
) -> Iterator[tuple[Path, bytes, str]]:
    """Runs a converter (of a module) in worker processes: (path, what it made, or else why it failed), in any order."""
    args = argparse.Namespace(workers=len(os.sched_getaffinity(0)), timeout=timeout)
    with tempfile.TemporaryDirectory(prefix="clamp2-") as folder, _main_left_alone():
        todo = (jobs.Job(str(path), path, Path(folder, f"{number}.out"), None) for number, path in enumerate(paths))
        for job, error, _ in batch.results(function, args, todo):
            content = b"" if error else job.output.read_bytes()
            job.output.unlink(missing_ok=True)
            yield job.source, content, " ".join((error or "").split())


@contextlib.contextmanager
def _main_left_alone() -> Iterator[None]:
    """Within the block, new worker processes do not run the program's script again, as multiprocessing has them do.

    They need none of it, and a script that calls `embed_music` might have no `if __name__ == "__main__"` around that.
    """
    main = sys.modules["__main__"]
    hidden: dict[str, Any] = {name: vars(main).pop(name) for name in ("__file__", "__spec__") if name in vars(main)}
    main.__spec__ = None
    try:
        yield
    finally:
        vars(main).update(hidden)
