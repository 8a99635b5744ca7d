"""The notes of what the conversions make, against the notes of the source, read by programs of other hands.

A fixed sample in every run; `CLAMP2_ALL=1 python -m pytest -s tests/test_second_opinion.py` takes every piece of
../shared/data, and prints how many agree.
"""

import gzip
import io
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import mido
import music21
import pytest

import interleaving
import mtf
import music_notes
import musicxml
from abc_text import read_abc, split_file
from files import InputError
from helpers import KIT, SHARED
from scores import note, score
from second_opinion import XmlNote, abc_notes, mido_notes, mtf_notes, symusic_notes, tied, xml_notes
from xml_abc import abc_to_musicxml, musicxml_to_abc, tune_to_musicxml

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
DATA = SHARED / "data"
CORPUS = Path(music21.__file__).parent / "corpus"
XML, MIDI, ABC = (".mxl", ".xml", ".musicxml"), (".mid",), (".abc",)
# Of each collection, the pieces of every run. 60 with ../shared, 60 without.
COLLECTIONS = {
    "chorales": (XML, 5), "openewld": (XML, 5), "lieder": (XML, 5), "misc_musicxml": (XML, 0), "asap": (XML, 1),
    "quartets": (XML, 0), "musicxml_testsuite": (XML, 12), "folk": ((".gz",), 8), "nottingham": (ABC, 6),
    "openhymnal": (ABC, 4), "josquin": (ABC, 1), "pop909": (MIDI, 3), "nottingham MIDI": (MIDI, 8), "asap MIDI": (MIDI, 2),
}  # fmt: skip
SEVERAL_VOICES = ("openhymnal", "josquin")
OWN = {"kit/abc": 4, "kit/midi": 5, "oneills1850": 35, "airdsAirs": 16}  # of the package music21, the last two

AGREE = "agree"
SAME: dict[str, Callable[[XmlNote], tuple]] = {  # the more notes have to be the same, the earlier
    AGREE: lambda n: (n.bar, n.onset, n.length, n.step, n.alter, n.octave, n.is_grace),
    "accidentals": lambda n: (n.bar, n.onset, n.length, n.step, n.octave, n.is_grace),
    "rounded times": lambda n: (n.bar, round(n.onset * 8), round(n.length * 8), n.step, n.octave, n.is_grace),
    "times within a bar": lambda n: (n.bar, n.step, n.octave),
}
NOTES, TIMES = "other notes", ("rounded times", "times within a bar")
# A word about times or notes that are not those of the source.
WARNINGS = re.compile(
    "longer than metre|incorrect duration|too small|overlap|unequal length|illegal duration|without a partner"
)
READERS, EMPTY_LINE, LOST_TICKS = "readers differ", "empty line", "ticks left out"
# Constructs that the conversions change without a word; each with the piece that has it.
SILENT = {
    "lc5988117.mxl": "a tremolo between two notes, and a tuplet behind it",
    "sq7358708.mxl": "pitches under a percussion clef",
    "12ab-Clefs-Percussion-NonTrad.xml": "pitches under a percussion clef",
    "0811-0899.abc#1": "chords in the old form, +E3A3+, which no other reader takes for chords",
}


def outcome_of_xml(data: bytes) -> tuple[str, list[str]]:
    """By MusicXML -> ABC -> interleaved ABC -> MusicXML: what has changed, and the warnings of all three."""
    abc, warnings = musicxml_to_abc(data, "x.xml")
    ((text, more),) = interleaving.interleave(abc)
    back, last = tune_to_musicxml(text)
    before, after = xml_notes(musicxml.read(data)[0]), xml_notes(back)
    for what, facts in SAME.items():
        if Counter(map(facts, before)) == Counter(map(facts, after)):
            return what, warnings + more + last
    return NOTES, warnings + more + last


def outcome_of_abc(tune: str) -> tuple[str, list[str]]:
    """By ABC -> interleaved ABC -> MusicXML; where that is not the same, as the reader of ABC reads both."""
    ((text, warnings),) = interleaving.interleave(tune)
    if any(warning.startswith("music goes on behind an empty line") for warning in warnings):
        return EMPTY_LINE, warnings  # where a tune ends, for all other readers
    expected = abc_notes(tune)
    if expected == tied(xml_notes(abc_to_musicxml(text))):
        return AGREE, warnings
    return READERS if expected == abc_notes("X:1\n" + text) else NOTES, warnings


def outcome_of_midi(data: bytes) -> tuple[str, list[str]]:
    expected, lost = mido_notes(data)
    text, warnings = mtf.midi_to_mtf(data)
    if symusic_notes(data) != expected or mtf_notes(mtf.midi_to_mtf(data, "carry_delta")[0]) != expected:
        return NOTES, warnings
    return AGREE if mtf_notes(text) == expected else LOST_TICKS if lost else NOTES, warnings


def outcome(suffix: str, data: bytes) -> tuple[str, list[str]]:
    try:
        if suffix in XML:
            return outcome_of_xml(data)
        return outcome_of_midi(data) if suffix in MIDI else outcome_of_abc(read_abc(data))
    except InputError as refused:
        return "refused", [str(refused)]


def pieces(folder: Path, suffixes: tuple[str, ...]) -> Iterator[tuple[str, str, bytes]]:
    """(name, suffix, content); each tune of a file is one."""
    for path in sorted(path for path in folder.rglob("*") if path.suffix in suffixes):
        if path.suffix == ".gz":
            for line in gzip.decompress(path.read_bytes()).splitlines():
                tune = json.loads(line)
                yield tune["id"], ".abc", tune["abc"].encode()
        elif path.suffix == ".abc" and "tunebooks" not in path.parts:
            header, *tunes = split_file(read_abc(path.read_bytes()))
            for number, tune in enumerate(tunes, 1):
                yield f"{path.name}#{number}", path.suffix, (header + tune).encode()
        elif path.suffix != ".abc":
            yield path.name, path.suffix, path.read_bytes()


def some(items: list, number: int) -> list:
    """Of the smaller half, evenly."""
    items = sorted(items, key=lambda item: (len(item[2]), item[0]))[: len(items) // 2 or 1]
    return items[:: max(len(items) // number, 1)][:number] if number else []


def check(collection: str, chosen: list[tuple[str, str, bytes]]) -> Counter:
    outcomes: Counter = Counter()
    silent = set()
    for name, suffix, data in chosen:
        what, warnings = outcome(suffix, data)
        outcomes[what] += 1
        if what in (NOTES, *TIMES) and not any(map(WARNINGS.search, warnings)):
            silent.add(name)
            print(f"{collection} {name}: {what}")
    print(f"| {collection} | {outcomes.total()} | {outcomes.pop(AGREE, 0)} | {dict(outcomes)} |")
    known = {name for name, _, _ in chosen if name in SILENT}
    assert silent == known
    return outcomes


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the shared data")
@pytest.mark.parametrize("collection", COLLECTIONS)
def test_collections(collection):
    suffixes, number = COLLECTIONS[collection]
    if collection in SEVERAL_VOICES and not shutil.which("abc2midi"):
        pytest.skip("needs abc2midi of the package abcmidi: music21 reads one voice of ABC")
    found = list(pieces(DATA / collection.split()[0], suffixes))
    check(collection, found if "CLAMP2_ALL" in os.environ else some(found, number))


@pytest.mark.skipif(DATA.is_dir(), reason="the shared data are here")
@pytest.mark.parametrize("folder", OWN)
def test_own_pieces(folder):
    root = KIT.parent if folder.startswith("kit") else CORPUS
    found = list(pieces(root / folder, (*ABC, *MIDI)))
    check(folder, found if folder == "kit/midi" else some(found, OWN[folder]))


# The readers themselves: what they must not overlook


@pytest.mark.parametrize("name", ["bach/bwv66.6", "mozart/k80/movement1"])
def test_musicxml_is_read_as_music21_does(name):
    xml = musicxml.read(music21.corpus.getWork(name).read_bytes())[0]
    signs = {-2: "--", -1: "-", 0: "", 1: "#", 2: "##"}
    ours = Counter((n.bar, n.onset, n.length, f"{n.step}{signs[n.alter]}{n.octave}") for n in xml_notes(xml))
    theirs = Counter()
    for staff in music_notes.read(xml):
        for bar, voices in enumerate(staff):
            for voice in voices:
                theirs.update({(bar, *key): number for key, number in voice.items()})
    assert ours == theirs and ours.total() > 100


def test_a_tune_is_read_alike_in_abc_and_in_musicxml():
    abc = 'X:1\nM:4/4\nL:1/4\nK:D\n|:"G"C2-CE|{g}!f!c>d A,2:|\n'  # F and C are sharp
    expected = Counter({(0, 48, 61): 1, (48, 16, 64): 1, (64, 24, 73): 1, (88, 8, 74): 1, (96, 32, 57): 1})
    assert tied(xml_notes(abc_to_musicxml(abc))) == abc_notes(abc) == expected


def test_what_is_taken_for_a_change():
    four = [note(pitch) for pitch in ("C4", "D4", "E4", "F4")]
    before = xml_notes(score("".join(four), note("G4", 8)))

    def change(*measures: str) -> str:
        after = xml_notes(score(*measures))
        return next(
            (what for what, facts in SAME.items() if Counter(map(facts, before)) == Counter(map(facts, after))), NOTES
        )

    assert change("".join(four), note("G4", 8)) == AGREE
    assert change("".join(four[:3]) + note("F4", alter="1"), note("G4", 8)) == "accidentals"
    assert change("".join(four), note("G4", 6)) == "times within a bar"
    for changed in ((*four[:3], note("F5")), four[:3], (*four, note("A4"))):
        assert change("".join(changed), note("G4", 8)) == NOTES
    assert change("".join(four[:3]), note("F4") + note("G4", 8)) == NOTES  # in another bar


def test_ticks_before_lyrics_are_lost():
    file = mido.MidiFile(ticks_per_beat=480)
    file.tracks.append(mido.MidiTrack([mido.MetaMessage("lyrics", text="la", time=ticks) for ticks in (0, 480)]))
    file.tracks.append(mido.MidiTrack([mido.Message("note_on", note=60), mido.Message("note_off", note=60, time=480)]))
    data = io.BytesIO()
    file.save(file=data)
    assert outcome_of_midi(data.getvalue())[0] == LOST_TICKS
    del file.tracks[0][1]
    data = io.BytesIO()
    file.save(file=data)
    assert outcome_of_midi(data.getvalue())[0] == AGREE
