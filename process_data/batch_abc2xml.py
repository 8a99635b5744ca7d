"""ABC, standard or interleaved -> MusicXML, with abc2xml.

A file with several tunes gives name.1.musicxml, name.2.musicxml, ... OUTPUT_DIR/warnings.jsonl says what abc2xml had
to say of which file.

examples:
  python process_data/batch_abc2xml.py abc/ scores/
  python process_data/batch_abc2xml.py interleaved/song.abc scores/
"""

import argparse
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

from abctoolkit import abc2xml

import abc_text
import batch
import captured
import interleaving
from abc_line import plain
from simplified import simplified

_BEHIND_CLEF = ("staff-details", "transpose", "for-part", "directive", "measure-style")
_INCLUDE = re.compile(r"^[^\S\n]*(%%|I:)abc-include.*$", re.MULTILINE)
_NO_TUPLET = re.compile(r"\(0+:\d*(:\d*)?|\(\d+:0+(?!\d)(:\d*)?")  # xml2abc writes (0:0:5 where it loses count
_LIKE_FIELD = re.compile(r"^(?=[A-Ga-gxzXZ]:[|:])", re.MULTILINE)  # G:| is a note, which abc2xml would take for a field
_NO_MUSIC = re.compile(r"^[mrs]:.*\n?", re.MULTILINE)  # abc2xml would read such fields as notes
# What XML cannot hold, and what Python, but not ABC, takes for the end of a line.
_NO_TEXT = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]|[\x85\u2028\u2029]")


def abc_to_musicxml(text: str) -> bytes:
    """One tune of standard ABC, or an interleaved one -> MusicXML in UTF-8. Not for several threads.

    Raises:
        batch.Refused: abc2xml cannot read it; says where.
    """
    return _convert(text)[0]


def _convert(text: str) -> tuple[bytes, list[str]]:
    """(MusicXML of the first tune, warnings)."""
    warnings: list[str] = []
    if is_interleaved(text):
        text, warnings = interleaving.deinterleave(text)
    text = _NO_TEXT.sub(" ", text.replace("\r\n", "\n").replace("\r", "\n"))
    text, includes = _INCLUDE.subn("%", text)  # abc2xml would read any file that such a line names
    if not re.search(r"^[^\S\n]*[XK]:", text, re.MULTILINE):
        raise batch.Refused("no ABC: it has neither an X: nor a K: line")
    header, *tunes = abc_text.split_file(text)
    text, tidied = abc_text.tidy(tunes[0] if tunes else header)
    warnings += tidied
    header = header if tunes else ""
    no_music = _NO_MUSIC.findall(header) + _NO_MUSIC.findall(text)
    text, plainer = simplified(_LIKE_FIELD.sub("y", _NO_MUSIC.sub("", text)))
    text = _NO_MUSIC.sub("", header) + text
    text, no_tuplets = _NO_TUPLET.subn("", text)  # abc2xml would divide by it
    abc2xml.mxm = _MusicXml()  # it keeps everything of the tune before
    with captured.printed_lines() as printed:
        scores = abc2xml.getXmlDocs(text)
    # Not the arrows below a quoted line, and not that the tune's number has no place in MusicXML.
    printed = [line for line in printed if line.strip("-^") and not line.startswith("skipped header: (field X,")]
    if not scores:
        raise batch.Refused(f"abc2xml cannot read it: {plain('; '.join(reversed(printed)))[:300]}")
    if scores[0].find(".//note") is None:
        raise batch.Refused("; ".join(["no note in it", *warnings]))
    for element in scores[0].iter():
        element.text = element.text and plain(element.text)
    _halve_divisions(scores[0])
    _add_clefs(scores[0])
    warnings += plainer + captured.shortened([plain(line) for line in printed])
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
        """An accidental decides, and holds for the bar, on a tied note too; a tie of another overlay is none."""
        tie = self.ties.get((note, octave))
        if tie and (accidental or tie[2] != self.overlayVnum):
            del self.ties[note, octave]
        made = super().mkPitch(accidental, note, octave, level)
        if tie:
            self.ties[note, octave] = tie
        return made


def _halve_divisions(score: ElementTree.Element) -> None:
    """Back to abc2xml's own divisions, in scores that can be written in them."""
    times = [*score.iter("divisions"), *score.iter("duration")]
    if all(int(time.text or 0) % 2 == 0 for time in times):
        for time in times:
            time.text = str(int(time.text or 0) // 2)


def _add_clefs(score: ElementTree.Element) -> None:
    """A treble clef for each staff without a clef: that is what ABC means, but readers of MusicXML need one."""
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
    """Whether there is a clef of a staff before the notes of any of its voices, which abc2xml writes one by one."""
    is_start = True
    for item in measure:
        if is_start and any(clef.get("number", "1") == staff for clef in item.findall("clef")):
            return True
        is_start = item.tag == "backup" or (is_start and item.tag != "note")
    return False


def is_interleaved(text: str) -> bool:
    """Interleaved ABC has no X: line, and its body lines begin with a voice."""
    return re.search(r"^\[V:", text, re.MULTILINE) is not None and re.search(r"^X:", text, re.MULTILINE) is None


def convert(path: Path, args: argparse.Namespace) -> batch.Converted:
    text = interleaving.read_abc(path.read_bytes())
    header, *tunes = abc_text.split_file(text)  # the header is of the whole file
    converted = batch.Converted([])
    for number, tune in enumerate(tunes or [""], 1):
        place = f"tune {number}: " if len(tunes) > 1 else ""
        try:
            xml, warnings = _convert(header + tune)
        except batch.Refused as refused:
            raise batch.Refused(f"{place}{refused}") from refused
        converted.outputs.append(xml)
        converted.warnings += [place + warning for warning in warnings]
    return converted


def main(argv: list[str] | None = None) -> int:
    return batch.main(convert, doc=__doc__, suffixes=(".abc",), target=".musicxml", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
