"""MusicXML -> ABC -> interleaved ABC -> MusicXML: the same notes, read with music21 before and after."""

import os

import music21.corpus
import pytest

import interleaving
import music_notes
import musicxml
from helpers import SHARED
from scores import note, score
from xml_abc import abc_to_musicxml, musicxml_to_abc

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::music21.musicxml.xmlObjects.MusicXMLWarning"
)
DATA = SHARED / "data"
FEWEST = 0.98  # of a piece's notes
# Real scores of the package music21: a chorale, a quartet movement, songs with piano, lead sheet, grace notes, tuplets.
CORPUS = [
    "bach/bwv66.6",
    "bach/bwv10.7",
    "mozart/k80/movement1",
    "schumann_robert/dichterliebe_no2",
    "leadSheet/fosterBrownHair",
]


def there_and_back(xml: bytes) -> bytes:
    abc, _ = musicxml_to_abc(xml, "x.xml")
    ((text, _),) = interleaving.interleave(abc)
    return abc_to_musicxml(text)


def share_kept(data: bytes) -> float:
    before = music_notes.read(musicxml.read(data)[0])
    return music_notes.share(before, music_notes.read(there_and_back(data)))


@pytest.mark.parametrize("name", CORPUS)
def test_scores_of_music21(name):
    assert share_kept(music21.corpus.getWork(name).read_bytes()) >= FEWEST


def real_scores() -> list:
    """30 scores, evenly over the sorted folders; only the quartets that are short enough to read in a minute."""
    folders = {"lieder": 14, "chorales": 6, "openewld": 6, "quartets": 4}
    chosen = []
    for folder, number in folders.items():
        paths = sorted(
            (DATA / folder / "mxl").glob("*.mxl"), key=lambda path: (folder == "quartets") * path.stat().st_size
        )
        chosen += paths[: number * 2 : 2] if folder == "quartets" else paths[:: len(paths) // number][:number]
    return chosen


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the shared data")
def test_real_scores():
    """98 % of the notes of 95 % of the pieces. Four small ones; `CLAMP2_ALL=1` in the environment takes 30."""
    paths = real_scores()
    assert len(paths) == 30
    if "CLAMP2_ALL" not in os.environ:
        paths = sorted(paths, key=lambda path: path.stat().st_size)[::4][:4]
    kept = {path.name: share_kept(path.read_bytes()) for path in paths}
    print("\n".join(f"{name} {share:.4f}" for name, share in kept.items()))
    bad = {name: share for name, share in kept.items() if share < FEWEST}
    assert len(bad) <= 0.05 * len(kept), bad


# The measure itself: what it must not overlook


def test_what_the_measure_counts_as_lost():
    def read(*measures: str) -> music_notes.Score:
        return music_notes.read(score(*measures))

    four = [note(pitch) for pitch in ("C4", "D4", "E4", "F4")]
    plain = read("".join(four), note("G4", 8))
    assert music_notes.count(plain) == 5 and music_notes.share(plain, plain) == 1
    for changed in (
        read("".join(four[:3]) + note("F5"), note("G4", 8)),  # pitch
        read("".join(four[:3]) + note("F4", alter="1"), note("G4", 8)),
        read("".join(four), note("G4", 6) + "<note><rest/><duration>2</duration></note>"),  # duration
        read("".join(four), "<note><rest/><duration>2</duration></note>" + note("G4", 8)),  # onset
        read("".join(four)),  # missing
    ):
        assert music_notes.share(plain, changed) == music_notes.share(changed, plain) == 4 / 5
    assert music_notes.share(plain, read("".join(four), note("G4", 8), note("G4", 8))) == 5 / 6  # too many
    assert music_notes.share(plain, read(note("A4", 8), "".join(four), note("G4", 8))) == 0  # a bar too late
    back = "<backup><duration>8</duration></backup>"
    rests = "<note><rest/><duration>4</duration><voice>2</voice></note>"
    first = note("C4", extra="<voice>1</voice>") + note("D4", extra="<voice>1</voice>")
    second = note("E4", extra="<voice>2</voice>") + note("F4", extra="<voice>2</voice>")
    forward = "<forward><duration>4</duration></forward>"
    two_voices = read(first + forward + back + rests + second, note("G4", 8))
    assert (
        music_notes.count(two_voices) == 5 and music_notes.share(plain, two_voices) == 3 / 5
    )  # half a bar in another voice
