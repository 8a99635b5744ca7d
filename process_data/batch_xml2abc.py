"""MusicXML (.xml, .musicxml, .mxl) -> standard ABC, the very text that `xml2abc -d 8 -x` writes.

One voice after another, unit length 1/8, no line breaks of the score. `batch_interleaved_abc.py` is the next step.
OUTPUT_DIR/warnings.jsonl says what xml2abc had to say of which file.

examples:
  python process_data/batch_xml2abc.py scores/ abc/
  python process_data/batch_xml2abc.py song.mxl abc/ --overwrite
  python process_data/batch_xml2abc.py scores/ abc/ --shard 3/16     # the third of 16 jobs that share the work
"""

import argparse
import io
import sys
from pathlib import Path
from types import SimpleNamespace

from abctoolkit import xml2abc

import batch
import captured
import mending
import musicxml


def musicxml_to_abc(data: bytes, name: str) -> tuple[str, list[str]]:
    """MusicXML -> standard ABC as xml2abc version 143 writes it, and its warnings. Not for several threads.

    Args:
        data: the file's bytes, compressed (.mxl) or not, in any encoding.
        name: the file's name, for messages.

    Raises:
        batch.Refused: no MusicXML, unsafe, without a note, or too odd for xml2abc; says which.
    """
    xml, warnings = musicxml.read(data)
    xml, joined = mending.join_lines(xml)
    warnings += joined
    try:
        abc, printed = _xml2abc(xml, name)
    except Exception as error:
        xml, mended = mending.mend(xml)
        if not mended:
            raise _too_odd(error) from error
        warnings += mended
        try:
            abc, printed = _xml2abc(xml, name)
        except Exception as error:
            raise _too_odd(error) from error
    if not abc:
        raise batch.Refused("no part of it has a note")
    return abc, warnings + captured.shortened(printed[:-1])  # the last one: "... written with N voices"


def _too_odd(error: Exception) -> batch.Refused:
    """An old script on odd input may raise anything."""
    return batch.Refused(f"xml2abc cannot read it: {type(error).__name__}: {error}")


def _xml2abc(xml: str, name: str) -> tuple[str, list[str]]:
    """(the tune or "", the lines that were printed); made new for each file, since xml2abc keeps everything."""
    # The command line `xml2abc -d 8 -x`: unit length 1/8, no line breaks; all else as it is by default.
    options = SimpleNamespace(**dict.fromkeys("umcnbvjtsi"), v1=None, stm=None, ped=True, p=[], o="", d=8, x=True)
    options.m = options.c = options.n = options.b = options.v = 0
    out = xml2abc.ABCoutput(name, "", 0, options)
    out.outfile = io.StringIO()
    xml2abc.abcOut = out  # where its functions look for it
    parser = xml2abc.Parser(options)
    parser.msc = _Music(options)
    with captured.printed_lines() as printed:
        parser.parse(io.StringIO(xml))
    return out.outfile.getvalue(), printed


class _Music(xml2abc.Music):
    """Undoes abctoolkit's one change to xml2abc: a note without stem is `s`, defined in the header, as M3 knows it."""

    def appendNote(self, voice, note, text):
        super().appendNote(voice, _abbreviated(note), text)

    def addChord(self, note, text):
        super().addChord(_abbreviated(note), text)


def _abbreviated(note: xml2abc.Note) -> xml2abc.Note:
    if "!stemless!" in note.before:
        note.before = ["s" if mark == "!stemless!" else mark for mark in note.before]
        xml2abc.abcOut.stemless = 1  # then it writes U:s=!stemless!
    return note


def convert(path: Path, args: argparse.Namespace) -> batch.Converted:
    abc, warnings = musicxml_to_abc(path.read_bytes(), path.name)
    return batch.Converted([abc.encode()], warnings)


def main(argv: list[str] | None = None) -> int:
    return batch.main(
        convert, doc=__doc__, suffixes=(".xml", ".musicxml", ".mxl"), target=".abc", several=False, argv=argv
    )


if __name__ == "__main__":
    sys.exit(main())
