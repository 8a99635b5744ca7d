"""Convert MusicXML to standard ABC and back with abctoolkit's xml2abc and abc2xml; what they print are warnings."""

import contextlib
import io
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import ClassVar
from xml.etree import ElementTree

from abctoolkit import abc2xml, xml2abc

import abc_text
import interleaving
import mending
import musicxml
from abc_line import plain
from shared import InputError, notation
from simplified import simplified

_TEXT_LINE = re.compile(r"^[TCZw]:.*%.*$", re.MULTILINE)  # there, a percent sign begins a comment


def musicxml_to_abc(data: bytes, name: str) -> tuple[str, list[str]]:
    """Convert MusicXML to standard ABC, as xml2abc version 143 writes it: (ABC, warnings). Not thread-safe.

    Args:
        data: the file's bytes, compressed (.mxl) or not, in any encoding.
        name: the file's name, for messages.

    Raises InputError if it is no MusicXML, unsafe, without a note, or unreadable for xml2abc.
    """
    xml, warnings = musicxml.read(data)
    abc, more = score_to_abc(xml, name)
    return abc, warnings + more


def score_to_abc(xml: str, name: str) -> tuple[str, list[str]]:
    """Convert the text of `musicxml.read`, as `musicxml_to_abc` does."""
    xml, warnings = mending.join_lines(xml)
    score = ElementTree.fromstring(xml)
    warnings += mending.mend(score)
    try:
        abc, printed = _xml2abc(score, name)
    except Exception as error:  # an old script on odd input may raise anything
        raise InputError(f"xml2abc cannot read it: {type(error).__name__}: {error}") from error
    if not abc:
        raise InputError("no part of it has a note")
    return abc, warnings + _shortened(printed[:-1])  # the last one: "... written with N voices"


def _xml2abc(score: ElementTree.Element, name: str) -> tuple[str, list[str]]:
    """Run xml2abc: (the tune or "", printed lines). All is set up anew for each file, since it keeps its state."""
    # The command line `xml2abc -d 8 -x`: unit length 1/8, no line breaks; all else as it is by default.
    options = SimpleNamespace(**dict.fromkeys("umcnbvjtsi"), v1=None, stm=None, ped=True, p=[], o="", d=8, x=True)
    options.m = options.c = options.n = options.b = options.v = 0
    out = xml2abc.ABCoutput(name, "", 0, options)
    out.outfile = io.StringIO()
    xml2abc.abcOut = out  # where its functions look for it
    xml2abc.E = SimpleNamespace(Element=ElementTree.Element, parse=lambda score: score)  # it is parsed already
    parser = _Parser(options)
    parser.msc = _Music(options)
    with _printed_lines() as printed:
        parser.parse(score)
    return _TEXT_LINE.sub(lambda line: re.sub(r"(?<!\\)%", r"\%", line[0]), out.outfile.getvalue()), printed


class _Parser(xml2abc.Parser):
    """Begins each part without the key of the part before, and without what that left open, such as slurs."""

    header_alts: ClassVar[dict[str, int]] = {}  # the accidentals of the key in the header, which holds for all parts

    def doAttr(self, e):
        key = xml2abc.abcOut.key
        super().doAttr(e)
        if xml2abc.abcOut.key != key:
            self.header_alts = self.msralts

    def locStaffMap(self, part, measures):
        super().locStaffMap(part, measures)
        self.slurBuf, self.dirStk, self.repeat_str = {}, {}, {}
        self.ingrace = 0
        self.msralts = self.header_alts
        if self.pedVce not in self.msc.vnums:
            self.pedVce = None

    def findVoice(self, i, es):
        """Find a voice of this part, though no note of the staff may be in the voices that are written on it."""
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


_BEHIND_CLEF = ("staff-details", "transpose", "for-part", "directive", "measure-style")
_INCLUDE = re.compile(r"^[^\S\n]*(%%|I:)abc-include.*$", re.MULTILINE)
_NO_TUPLET = re.compile(r"\(0+:\d*(:\d*)?|\(\d+:0+(?!\d)(:\d*)?")  # xml2abc writes (0:0:5 where it loses count
_LIKE_FIELD = re.compile(r"^(?=[A-Ga-gxzXZ]:[|:])", re.MULTILINE)  # G:| is a note, which abc2xml would take for a field
_NO_MUSIC = re.compile(r"^[mrs]:.*\n?", re.MULTILINE)  # abc2xml would read such fields as notes
# Characters that XML cannot hold, and those that end a line for Python, but not in ABC.
_NO_TEXT = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]|[\x85\u2028\u2029]")


def abc_to_musicxml(text: str) -> bytes:
    """Convert a tune as `tune_to_musicxml` does, without the warnings."""
    return tune_to_musicxml(text)[0]


def tunes_to_musicxml(text: str) -> tuple[list[bytes], list[str]]:
    """Convert the tunes of an ABC file: (MusicXML in UTF-8 of each, warnings). Raises InputError with the tune."""
    header, *tunes = abc_text.split_file(text)  # the header is of the whole file
    scores, warnings = [], []
    for number, tune in enumerate(tunes or [""], 1):
        place = f"tune {number}: " if len(tunes) > 1 else ""
        try:
            score, more = tune_to_musicxml(header + tune)
        except InputError as error:
            raise InputError(f"{place}{error}") from error
        scores.append(score)
        warnings += [place + warning for warning in more]
    return scores, warnings


def tune_to_musicxml(text: str) -> tuple[bytes, list[str]]:
    """Convert the first tune of standard ABC, or an interleaved one: (MusicXML in UTF-8, warnings). Not thread-safe.

    Raises InputError with the place where abc2xml stops.
    """
    warnings: list[str] = []
    if notation.is_interleaved(text):
        text, warnings = interleaving.deinterleave(text)
    text = _NO_TEXT.sub(" ", text.replace("\r\n", "\n").replace("\r", "\n"))
    text, includes = _INCLUDE.subn("%", text)  # abc2xml would read any file that such a line names
    if not re.search(r"^[^\S\n]*[XK]:", text, re.MULTILINE):
        raise InputError("no ABC: it has neither an X: nor a K: line")
    header, *tunes = abc_text.split_file(text)
    text, tidied = abc_text.tidy(tunes[0] if tunes else header)
    warnings += tidied
    header = header if tunes else ""
    no_music = _NO_MUSIC.findall(header) + _NO_MUSIC.findall(text)
    text, plainer = simplified(_LIKE_FIELD.sub("y", _NO_MUSIC.sub("", text)))
    text = _NO_MUSIC.sub("", header) + text
    text, no_tuplets = _NO_TUPLET.subn("", text)  # abc2xml would divide by it
    abc2xml.mxm = _MusicXml()  # it keeps everything of the tune before
    with _printed_lines() as printed:
        scores = abc2xml.getXmlDocs(text)
    # Not the arrows below a quoted line, and not that the tune's number has no place in MusicXML.
    printed = [line for line in printed if line.strip("-^") and not line.startswith("skipped header: (field X,")]
    if not scores:
        raise InputError(f"abc2xml cannot read it: {plain('; '.join(reversed(printed)))[:300]}")
    if scores[0].find(".//note") is None:
        raise InputError("; ".join(["no note in it", *warnings]))
    for element in scores[0].iter():
        element.text = element.text and plain(element.text)
    _halve_divisions(scores[0])
    _add_clefs(scores[0])
    warnings += plainer + _shortened([plain(line) for line in printed])
    left_out = ((line, "macro" if line.startswith("m:") else "field") for line in no_music if not line.startswith("r:"))
    warnings += [f"{what} left out: {plain(line.strip())}" for line, what in left_out]
    if includes:
        warnings.append(f"{includes} × abc-include left out: other files are not read")
    if no_tuplets:
        warnings.append(f"{no_tuplets} × tuplet of or in the time of 0 notes taken for plain notes")
    return abc2xml.fixDoctype(scores[0]).encode(), warnings


class _MusicXml(abc2xml.MusicXml):
    """Counts time in divisions half as long as abc2xml's own, of which a 64th note has 157.5: its notes would drift."""

    def reset(self, *options):
        super().reset(*options)
        self.divisions *= 2

    def mkPitch(self, accidental, note, octave, level):
        """Let an accidental hold for the bar, on a tied note too; a tie of another overlay is none."""
        tie = self.ties.get((note, octave))
        if tie and (accidental or tie[2] != self.overlayVnum):
            del self.ties[note, octave]
        made = super().mkPitch(accidental, note, octave, level)
        if tie:
            self.ties[note, octave] = tie
        return made


def _halve_divisions(score: ElementTree.Element) -> None:
    """Return to abc2xml's own divisions, in scores that can be written in them."""
    times = [*score.iter("divisions"), *score.iter("duration")]
    if all(int(time.text or 0) % 2 == 0 for time in times):
        for time in times:
            time.text = str(int(time.text or 0) // 2)


def _add_clefs(score: ElementTree.Element) -> None:
    """Add a treble clef to each staff without a clef: that is what ABC means, but readers of MusicXML need one."""
    for part in score.iter("part"):
        attributes = part.find("measure/attributes")
        if attributes is None:
            continue
        staves = int(attributes.findtext("staves") or 1)
        place = next(
            (index for index, element in enumerate(attributes) if element.tag in _BEHIND_CLEF), len(attributes)
        )
        for staff in range(staves, 0, -1):
            if not _has_clef(part[0], str(staff)):
                clef = ElementTree.Element("clef", {"number": str(staff)} if staves > 1 else {})
                ElementTree.SubElement(clef, "sign").text = "G"
                ElementTree.SubElement(clef, "line").text = "2"
                attributes.insert(place, clef)


def _has_clef(measure: ElementTree.Element, staff: str) -> bool:
    """Whether a staff has a clef before the notes of one of its voices, which abc2xml writes one by one."""
    is_start = True
    for item in measure:
        if is_start and any(clef.get("number", "1") == staff for clef in item.findall("clef")):
            return True
        is_start = item.tag == "backup" or (is_start and item.tag != "note")
    return False


MAX_LINES = 50  # of one file: a score of 700 bars may have 700 overlapping notes


@contextlib.contextmanager
def _printed_lines() -> Iterator[list[str]]:
    """Collect what the block prints to stdout and stderr, one line each, in a list that is filled when it ends.

    Process-wide, as sys.stderr is: not thread-safe.
    """
    lines: list[str] = []
    sink = io.StringIO()
    try:
        with contextlib.redirect_stderr(sink), contextlib.redirect_stdout(sink):
            yield lines
    finally:
        lines += [line.removeprefix("-- ").strip() for line in sink.getvalue().splitlines() if line.strip()]


def _shortened(lines: list[str]) -> list[str]:
    """Keep each line once, in order; those over MAX_LINES are counted."""
    lines = list(dict.fromkeys(lines))
    more = len(lines) - MAX_LINES
    return lines if more <= 0 else [*lines[:MAX_LINES], f"... and {more} more"]
