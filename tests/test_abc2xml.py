"""ABC, standard or interleaved -> MusicXML: what abc2xml itself writes, one tune after another, from safe input only."""

import contextlib
import json
import re
from argparse import Namespace
from fractions import Fraction
from pathlib import Path
from xml.etree import ElementTree

import pytest

import batch_abc2xml
import music_notes
import notation
from files import InputError
from helpers import KIT, ROOT, run
from xml_abc import abc_to_musicxml

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
SCRIPT = ROOT / "process_data" / "batch_abc2xml.py"
TUNE = "X:1\nT:Tune\nL:1/8\nM:4/4\nK:D\nF2 A2 d4|]\n"


def convert(path: Path):
    return batch_abc2xml.convert(path, Namespace())


def undated(xml: bytes | str) -> str:
    text = xml.decode() if isinstance(xml, bytes) else xml
    return re.sub("<encoding-date>.*?</encoding-date>", "", text).strip()


def test_notes_by_hand():
    score = music_notes.read(abc_to_musicxml(TUNE))
    assert score == [[[{(0, 1, "F#4"): 1, (1, 1, "A4"): 1, (2, 2, "D5"): 1}]]]


@pytest.mark.parametrize(
    ("music", "names"),
    [
        ("^C4-|^C C C2|C4|", ["C#4", "C#4", "C#4", "C#4", "C4"]),  # the sign on the tied note holds for its bar
        ("^C4-|C C C2|", ["C#4", "C#4", "C4", "C4"]),  # without a sign, for the tied note alone
        ("^C4-|=C4|", ["C#4", "C4"]),  # no tie, then
        ("E4-&^C4|E4&^C4|", ["C#4", "C#4", "E4", "E4"]),
        ("C4-&E4|z4&^C4|", ["C#4", "C4", "E4"]),  # the tie is of another overlay
    ],
)
def test_accidentals_and_ties(music, names):
    bars = [voice for bar in music_notes.read(abc_to_musicxml(f"X:1\nL:1/4\nK:C\n{music}\n"))[0] for voice in bar]
    assert sorted(name for voice in bars for *_, name in voice.elements()) == sorted(names)


def test_abc2xml_writes_the_same(tmp_path):
    """As a command of its own; it meets the tunes of the kit in one process, ours in another order."""
    tunes = sorted((KIT / "abc").glob("*.abc"))
    done = run("-m", "abctoolkit.abc2xml", "-o", tmp_path, *tunes)
    assert done.returncode == 0, done.stderr
    for path in tunes[::-1]:
        theirs = (tmp_path / f"{path.stem}.xml").read_text(encoding="utf-8")
        assert undated(abc_to_musicxml(path.read_text())) == undated(theirs)


@pytest.mark.parametrize("name", ["duo", "octet", "piano", "quartet", "solo_jig", "solo_reel", "tiny"])
def test_interleaved_is_the_same_music(name):
    standard = (KIT / "abc" / f"{name}.abc").read_text()
    interleaved = (KIT / "interleaved" / f"{name}.abc").read_text()
    assert notation.is_interleaved(interleaved) and not notation.is_interleaved(standard)
    before, after = (music_notes.read(abc_to_musicxml(text)) for text in (standard, interleaved))
    assert music_notes.count(before) > 50 or name == "tiny"
    assert music_notes.share(before, after) == 1


def test_a_line_that_begins_with_a_note_and_a_colon_is_no_field():
    bars = ["G2", "A2", "B2", "c2", "d2", "G"]
    text = "L:1/4\nM:2/4\nK:C\nV:1 treble\n" + "".join(f"[V:1]{bar}|\n" for bar in bars[:-1]) + "[V:1]G:|\n"
    assert music_notes.count(music_notes.read(abc_to_musicxml(text))) == len(bars)
    standard = "X:1\nL:1/4\nM:2/4\nK:C\nG2|A2|\nB::\nc:|AB|\nd:|\n"
    assert music_notes.count(music_notes.read(abc_to_musicxml(standard))) == 7


def test_inline_voices_of_standard_abc_are_not_interleaved():
    text = "X:1\nL:1/4\nM:4/4\nK:C\n[V:1] C D E F|\n[V:2] G,4|\n[V:1] G A B c|\n[V:2] C,4|\n"
    assert not notation.is_interleaved(text)
    assert [len(staff) for staff in music_notes.read(abc_to_musicxml(text))] == [2, 2]


def test_nothing_of_one_tune_reaches_the_next():
    alone = undated(abc_to_musicxml(TUNE))
    odd = "X:1\nT:Other\nC:Someone\nN:note\nO:here\n%%pagewidth 50cm\nM:3/8\nL:1/16\nK:Ebm\nU:h=!fermata!\nI:abc-charset x\n"
    for before in (odd + "(3ABc (d-|dh{c}d) |1 c:|2 B- |", odd + "A ]]]] |", odd, "", "w:la\n"):
        with contextlib.suppress(InputError):
            abc_to_musicxml(before)
        assert undated(abc_to_musicxml(TUNE)) == alone


def test_several_tunes(tmp_path):
    path = tmp_path / "book.abc"
    path.write_text(
        f"%%titlefont x\nM:3/4\n\n{TUNE}\nsome words\n\n" + TUNE.replace("M:4/4\n", "").replace("X:1", "X:2")
    )
    first, second = convert(path).outputs
    assert undated(first) == undated(abc_to_musicxml(TUNE))
    beats = [ElementTree.fromstring(xml).findtext(".//time/beats") for xml in (first, second)]
    assert beats == ["4", "3"]  # the file's header holds for tunes that say nothing else
    path.write_text(f"{TUNE}\nX:2\nK:C\n")
    with pytest.raises(InputError, match="tune 2: no note in it"):
        convert(path)


@pytest.mark.parametrize("line", ["%%abc-include {}", "I:abc-include {}", "  %%abc-include {}"])
@pytest.mark.parametrize("place", ["", "X:1\n"])
def test_no_other_file_is_read(tmp_path, line, place):
    secret = tmp_path / "secret"
    secret.write_text("T:secret\n")
    path = tmp_path / "x.abc"
    path.write_text(TUNE.replace("X:1\n", place + line.format(secret) + "\n" + ("" if place else "X:1\n")))
    converted = convert(path)
    assert b"secret" not in converted.outputs[0] and b"Tune" in converted.outputs[0]
    assert "1 × abc-include left out: other files are not read" in converted.warnings


def test_any_text_gives_well_formed_xml():
    odd = "".join(map(chr, [*range(1, 9), 11, 12, *range(14, 32), 0x85, 0x2028, 0xFFFE, 0xD800])) + "<&>\"'é\U0001d11e"
    root = ElementTree.fromstring(abc_to_musicxml(TUNE.replace("Tune", f"Tune{odd}")))
    assert "<&>\"'é\U0001d11e" in root.findtext("work/work-title")
    windows = TUNE.replace("\n", "\r\n")
    assert undated(abc_to_musicxml(windows)) == undated(abc_to_musicxml(TUNE))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "neither an X: nor a K: line"),
        ("words, not music: nothing of ABC\n", "neither an X: nor a K: line"),
        ("X:1\nT:x\nK:C\n", "no note in it"),
        ("X:1\nK:C\n\nwords | in | bars\n", "no note in it; text behind an empty line left out: 'words | in | bars'"),
        ("X:1\nK:C\n[V:2\n", "abc2xml cannot read it: .*exception"),
    ],
)
def test_what_is_no_music_is_refused_with_the_reason(text, reason):
    with pytest.raises(InputError, match=reason) as refused:
        abc_to_musicxml(text)
    assert "\n" not in str(refused.value)


def test_what_abc2xml_prints_are_warnings(tmp_path, capsys):
    path = tmp_path / "x.abc"
    path.write_text(TUNE.replace("d4", "!nosuchsign!d4"))
    assert convert(path).warnings == ["unhandled note decorations: ['nosuchsign']"]
    path.write_text(TUNE)
    assert convert(path).warnings == []
    assert capsys.readouterr() == ("", "")


def test_short_notes_have_their_whole_length():
    """Eight 64ths, six in the time of four, are an eighth and a 16th; what follows them is on time."""
    ((bar,),) = music_notes.read(abc_to_musicxml("X:1\nL:1/64\nM:4/4\nK:C\n" + "c" * 8 + "d8 e48|]\n"))
    assert {time for voice in bar for time in voice if time[2] != "C5"} == {(0.5, 0.5, "D5"), (1, 3, "E5")}
    ((bar,),) = music_notes.read(abc_to_musicxml("X:1\nL:1/64\nM:4/4\nK:C\n(6cccccc d60|]\n"))
    assert [time for voice in bar for time in voice if time[2] == "D5"] == [(Fraction(1, 8), 3.75, "D5")]


@pytest.mark.parametrize("tuplet", ["(0:0:3", "(0:0", "(3:0:3", "(0:2"])
def test_tuplets_of_nothing_are_plain_notes(tmp_path, tuplet):
    path = tmp_path / "x.abc"
    path.write_text(TUNE.replace("F2", tuplet + "FGF").replace("A2", "(3ABA"))
    converted = convert(path)
    plain = abc_to_musicxml(TUNE.replace("F2", "FGF").replace("A2", "(3ABA"))
    assert undated(converted.outputs[0]) == undated(plain)
    assert converted.warnings == ["1 × tuplet of or in the time of 0 notes taken for plain notes"]


def test_the_script_on_a_folder(tmp_path):
    source, target = tmp_path / "in", tmp_path / "out"
    (source / "sub").mkdir(parents=True)
    (source / "a.abc").write_bytes(TUNE.replace("Tune", "Élise").encode("latin-1"))
    (source / "b.ABC").write_bytes(b"\xef\xbb\xbf" + TUNE.encode() + b"\n" + TUNE.encode())
    (source / "sub" / "c.abc").write_bytes((KIT / "interleaved" / "duo.abc").read_bytes())
    (source / "bad.abc").write_text("X:1\nK:C\n")
    done = run(SCRIPT, source, target, "--workers", "1")
    assert done.returncode == 1 and done.stdout.splitlines()[-1].startswith(
        "3 done, 0 skipped (finished before), 1 failed"
    )
    outputs = sorted(path.relative_to(target).as_posix() for path in target.rglob("*.musicxml"))
    assert outputs == ["a.musicxml", "b.1.musicxml", "b.2.musicxml", "sub/c.musicxml"]
    assert "Élise" in (target / "a.musicxml").read_text(encoding="utf-8")
    assert json.loads((target / "errors.jsonl").read_text()) == {"file": "bad.abc", "error": "no note in it"}
