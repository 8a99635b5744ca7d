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
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

from abctoolkit import xml2abc

import batch
import captured
import mending
import musicxml

_TEXT_LINE = re.compile(r"^[TCZw]:.*%.*$", re.MULTILINE)  # there, a percent sign begins a comment


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
    score = ElementTree.fromstring(xml)
    warnings += joined + mending.mend(score)
    try:
        abc, printed = _xml2abc(score, name)
    except Exception as error:  # an old script on odd input may raise anything
        raise batch.Refused(f"xml2abc cannot read it: {type(error).__name__}: {error}") from error
    if not abc:
        raise batch.Refused("no part of it has a note")
    return abc, warnings + captured.shortened(printed[:-1])  # the last one: "... written with N voices"


def _xml2abc(score: ElementTree.Element, name: str) -> tuple[str, list[str]]:
    """(the tune or "", the lines that were printed); made new for each file, since xml2abc keeps everything."""
    # The command line `xml2abc -d 8 -x`: unit length 1/8, no line breaks; all else as it is by default.
    options = SimpleNamespace(**dict.fromkeys("umcnbvjtsi"), v1=None, stm=None, ped=True, p=[], o="", d=8, x=True)
    options.m = options.c = options.n = options.b = options.v = 0
    out = xml2abc.ABCoutput(name, "", 0, options)
    out.outfile = io.StringIO()
    xml2abc.abcOut = out  # where its functions look for it
    xml2abc.E = SimpleNamespace(Element=ElementTree.Element, parse=lambda score: score)  # it is parsed already
    parser = _Parser(options)
    parser.msc = _Music(options)
    with captured.printed_lines() as printed:
        parser.parse(score)
    return _TEXT_LINE.sub(lambda line: re.sub(r"(?<!\\)%", r"\%", line[0]), out.outfile.getvalue()), printed


class _Parser(xml2abc.Parser):
    """Takes nothing that is open at the end of a part into the next one."""

    def locStaffMap(self, part, measures):
        super().locStaffMap(part, measures)
        self.slurBuf, self.dirStk, self.repeat_str = {}, {}, {}
        self.ingrace = 0
        if self.pedVce not in self.msc.vnums:
            self.pedVce = None

    def findVoice(self, i, es):
        """A voice of this part, though no note of the staff may be in the voices that are written on it."""
        staff, *voices = super().findVoice(i, es)
        first = next(iter(self.msc.vnums))
        return staff, *(voice if voice in self.msc.vnums else first for voice in voices)

    def doNote(self, n):
        if n.find("unpitched") is not None:
            for staff in self.stfMap:
                self.curClef.setdefault(staff, "")  # a percussion staff without a clef
        super().doNote(n)


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
