"""What abc2xml reads as other music is simplified before: grace notes, tuplets within tuplets, macros; and clefs."""

import re
from argparse import Namespace
from fractions import Fraction
from xml.etree import ElementTree

import pytest

import batch_abc2xml
import batch_interleaved_abc
from interleaving import interleave
from simplified import simplified

HEADER = "X:1\nM:4/4\nL:1/4\nK:C\n"


def convert(text: str, tmp_path) -> tuple[ElementTree.Element, list[str]]:
    path = tmp_path / "x.abc"
    path.write_text(text)
    converted = batch_abc2xml.convert(path, Namespace())
    return ElementTree.fromstring(converted.outputs[0]), converted.warnings


def written(score: ElementTree.Element) -> str:
    """Each note with its length in quarter notes, as "C 1/2"; 0 is that of a grace note, - a rest."""
    divisions = int(score.findtext(".//divisions"))
    return " ".join(
        f"{note.findtext('pitch/step') or '-'}{Fraction(int(note.findtext('duration') or 0), divisions)}"
        for note in score.iter("note")
    )


def both(music: str, tmp_path, header: str = HEADER) -> tuple[str, list[str]]:
    """(`written` notes, warnings) of standard ABC; interleaved, it must be the same music."""
    ((interleaved, _),) = interleave(header + music)
    score, warnings = convert(header + music, tmp_path)
    assert written(convert(interleaved, tmp_path)[0]) == written(score)
    return written(score), warnings


@pytest.mark.parametrize(
    ("music", "notes", "rests"),
    [
        ("{xE}CDEF|", "E0 C1 D1 E1 F1", 1),
        ("{Ez2}CDEF|", "E0 C1 D1 E1 F1", 1),
        ("{x}CD{z/2}E{/Z}F|", "C1 D1 E1 F1", 3),
        ("{/xE}C{DxE/2z}DEF|", "E0 C1 D0 E0 D1 E1 F1", 3),
        ('{"^x z"E}CDEF|', "E0 C1 D1 E1 F1", 0),
        ('{D"^(3x"E}CDEF|', "D0 E0 C1 D1 E1 F1", 0),
        ("{!trill!E}CDEF|", "E0 C1 D1 E1 F1", 0),
        ("{(3DEF}CDEF|", "D0 E0 F0 C1 D1 E1 F1", 0),
        ("{D>E}CDEF|", "D0 E0 C1 D1 E1 F1", 0),
        ("{(DE)}C[K:C]DEF|", "D0 E0 C1 D1 E1 F1", 0),
        ("{[DF]E}CDEF|", "D0 F0 E0 C1 D1 E1 F1", 0),
    ],
)
def test_grace_notes_take_no_time(music, notes, rests, tmp_path):
    found, warnings = both(music, tmp_path)
    assert found == notes
    assert warnings == ([f"{rests} × rest in grace notes left out"] if rests else [])


def test_a_staff_change_within_grace_notes(tmp_path):
    """xml2abc writes it there; the notes before and behind it stay grace notes, each on its staff."""
    header = HEADER.replace("K:C\n", '%%score {1 2}\nK:C\nV:1 nm="P"\nV:2 bass\n')
    music = "V:1\nc4|d4|\nV:2\n{C,G,[I:staff -1]E}C[I:staff +1]D,E,F,|C,4|\n"
    found, _ = both(music, tmp_path, header)
    assert found == "C4 C0 G0 E0 C1 D1 E1 F1 D4 C4"
    ((interleaved, _),) = interleave(header + music)
    for text in (header + music, interleaved):
        staves = [note.findtext("staff") for note in convert(text, tmp_path)[0].iter("note")]
        assert staves == ["1", "2", "2", "1", "1", "2", "2", "2", "1", "2"]
    assert simplified("{/C[I:staff -1]E}C")[0] == "{/C}[I:staff -1]{/E}C"
    assert simplified("{[I:staff -1]E}C{x}")[0] == "[I:staff -1]{E}C"


@pytest.mark.parametrize(
    ("music", "notes"),
    [
        # 4 notes in the time of 8/3, of which 3 in the time of 2
        ("(3:2:4(3CDEF G2|", "C4/9 D4/9 E4/9 F2/3 G2"),
        ("(3C(3:2:2DEF|", "C2/3 D4/9 E4/9 F1"),
        ("(3:2:5C(3DEFGA|", "C2/3 D4/9 E4/9 F4/9 G2/3 A1"),
        ("(3:2:5CD(3EFGA|", "C2/3 D2/3 E4/9 F4/9 G4/9 A1"),
        ("(3:2:6(3CDE(3FGAB|", "C4/9 D4/9 E4/9 F4/9 G4/9 A4/9 B1"),
        ("(3:2:4(3[CE]{A}DzF|", "C4/9 E4/9 A0 D4/9 -4/9 F2/3"),
        ("(3:2:5(2:3:2CD E(2:3FGA|", "C1 D1 E2/3 F1 G1 A1"),
        # No tuplet within a tuplet: these are as they were.
        ("(3CDE(3FGA|", "C2/3 D2/3 E2/3 F2/3 G2/3 A2/3"),
        ("(3CD|(3CDE|", "C2/3 D2/3 C2/3 D2/3 E2/3"),
        ("((3CDE)F|", "C2/3 D2/3 E2/3 F1"),
        ('"^(3:2:4"(3CDE"^(3"F|', "C2/3 D2/3 E2/3 F1"),
        ("{(3CD}(3CDE|", "C0 D0 C2/3 D2/3 E2/3"),
    ],
)
def test_tuplets_within_tuplets_have_both_ratios(music, notes, tmp_path):
    assert both(music, tmp_path) == (notes, [])


def test_the_time_of_a_tuplet_within_a_tuplet_is_by_the_meter():
    """5 notes are in the time of 2, but in 6/8 in that of 3."""
    assert simplified("M:4/4\n(3:2:6(5CDEFGA")[0] == "M:4/4\n(15:4:5CDEFG(3:2:1A"
    assert simplified("M:6/8\n(3:2:6(5CDEFGA")[0] == "M:6/8\n(5:2:5CDEFG(3:2:1A"
    assert simplified("M:4/4\n[M:6/8](3:2:6(5CDEFGA")[0] == "M:4/4\n[M:6/8](5:2:5CDEFG(3:2:1A"


@pytest.mark.parametrize("macro", ["m: ~G2 = {A}G{F}G", "m:n=(3o/n/m/", "m:~g3=g{a}g{f}g % roll"])
def test_macros_are_named_and_are_no_notes(macro, tmp_path):
    for text, said in (
        (HEADER.replace("K:C", f"{macro}\nK:C") + "~G2CD|EFGA|\n", macro),
        (f"{HEADER}{macro}\n~G2CD|EFGA|\n", macro),
        (f"{HEADER}~G2CD|\n{macro}\nEFGA|\n", macro),
        (f"{HEADER}~G2CD|[{macro}]EFGA|\n", f"[{macro}]"),
        (f"{macro}\n\n{HEADER}~G2CD|EFGA|\n", macro),
    ):
        ((interleaved, warnings),) = interleave(text)
        assert warnings == [f"macro left out: {said}"]
        assert interleaved.endswith("\n[V:1]~G2CD|\n[V:1]EFGA|\n") and "m:" not in interleaved
        score, warnings = convert(text, tmp_path)
        assert f"macro left out: {said}" in warnings and written(score) == "G2 C1 D1 E1 F1 G1 A1"


# Clefs


def clefs(score: ElementTree.Element) -> list[list[str]]:
    """Of each part, the clefs of its first measure: staff, sign and line."""
    return [
        [
            f"{clef.get('number', '')}{clef.findtext('sign')}{clef.findtext('line')}"
            for clef in part.find("measure").iter("clef")
        ]
        for part in score.iter("part")
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("K:C\nCDEF|\n", [["G2"]]),
        ("K:C bass\nCDEF|\n", [["F4"]]),
        ("K:C\nV:1\nCDEF|\nV:2 clef=alto\nCDEF|\n", [["G2"], ["C3"]]),
        ("K:C\nCDEF|[K:bass]CDEF|\n", [["G2"]]),
        ("K:C\nCD[K:bass]EF|\n", [["G2", "F4"]]),
        ('%%score {1 2}\nK:C\nV:1 nm="P"\nV:2\nV:1\nCDEF|\nV:2\nC4|\n', [["1G2", "2G2"]]),
        ('%%score {1 2}\nK:C\nV:1 nm="P"\nV:2 bass\nV:1\n[I:staff +1]C[I:staff -1]DEF|\nV:2\nC4|\n', [["1G2", "2F4"]]),
        ('%%score {1 2}\nK:C\nV:1 bass nm="P"\nV:2\nV:1\nCDEF|\nV:2\nC4|\n', [["1F4", "2G2"]]),
        ("%%score (1 2)\nK:C\nV:1\nV:2\nV:1\nCDEF|\nV:2\nC4|\n", [["G2"]]),
        ("K:C octave=-1\nCDEF|\n", [["G2"]]),
        ("K:C\nV:1 transpose=-2\nCDEF|\n", [["G2"]]),
    ],
)
def test_every_staff_has_a_clef(text, expected, tmp_path):
    """No clef means treble in ABC; a reader of MusicXML without one draws none."""
    text = f"X:1\nM:4/4\nL:1/4\n{text}"
    for abc in (text, interleave(text)[0][0]):
        score, _ = convert(abc, tmp_path)
        assert clefs(score) == expected
        # In the order of the schema, or readers reject it.
        order = ["divisions", "key", "time", "staves", "clef", "staff-details", "transpose", "measure-style"]
        for attributes in score.iter("attributes"):
            places = [order.index(element.tag) for element in attributes if element.tag in order]
            assert places == sorted(places)


def test_other_clefs_stay_alone(tmp_path):
    for voice, sign in (("perc", "percussion"), ("tab strings=E2,A2", "TAB")):
        score, _ = convert(f"{HEADER}V:1 {voice}\nCDEF|\n", tmp_path)
        assert [clef.findtext("sign") for clef in score.iter("clef")] == [sign]


@pytest.mark.parametrize(
    ("key", "octave"),
    [
        ("Am clef=treble-8", 3),
        ("Am treble-8", 3),
        ("C treble+8", 5),
        ("C octave=-1", 3),
        ("C octave=2", 6),
        ("C clef=bass octave=-2", 2),
        ("C bass", 4),
        ("C", 4),
        ("none", 4),
        ("D exp ^f =c", 4),
    ],
)
def test_the_clef_and_octave_of_the_key_hold(key, octave, tmp_path):
    """Of the only voice, which has no definition of its own."""
    text = HEADER.replace("K:C", f"K:{key}") + "CDEF|\n"
    ((interleaved, _),) = interleave(text)
    plain = re.search(r"clef|octave|bass|treble", key) is not None
    assert interleaved.splitlines()[-2:] == ["V:1" if plain else "V:1 treble", "[V:1]CDEF|"]
    for abc in (text, interleaved):
        score, _ = convert(abc, tmp_path)
        assert [element.text for element in score.iter("octave")] == [str(octave)] * 4
    assert clefs(convert(interleaved, tmp_path)[0]) == clefs(convert(text, tmp_path)[0])


def test_what_the_way_back_leaves_out_is_named(tmp_path):
    text = "M:4/4\nL:1/4\nK:C\nV:1 treble\nV:2 bass\n[V:1]CDEF]|\n\nsome words\n"
    expected = [
        "text behind an empty line left out: 'some words'",
        "voice 2 has no music",
        "1 quotation marks, brackets or the like without a partner left out",
    ]
    assert convert(text, tmp_path)[1][:3] == expected
    assert batch_interleaved_abc.convert(tmp_path / "x.abc", Namespace(reverse=True)).warnings == expected


@pytest.mark.parametrize(
    ("music", "notes"),
    [
        ('["x"CE]4|[C"_y[z"E"^a"]4|', "C4 E4 C4 E4"),
        ('C>["x"EG](3["x"CE]DE|', "C3/2 E1/2 G1/2 C2/3 E2/3 D2/3 E2/3"),
        ('{["x"CE]}([!1!C"y"E]D)["C"]E|', "C0 E0 C1 E1 D1 E1"),
        ('C|[1"x"D:|[2 "y"E|]', "C1 D1 E1"),
    ],
)
def test_text_within_a_chord(music, notes, tmp_path):
    assert both(music, tmp_path) == (notes, [])
