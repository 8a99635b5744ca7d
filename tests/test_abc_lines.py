"""What is text, what is a mark and what is a barline in a line of ABC, on both ways: interleaved, and to MusicXML."""

from argparse import Namespace
from pathlib import Path
from xml.etree import ElementTree

import pytest

import batch_abc2xml
import music_notes
from abc_line import plain, reads_as_music, shown, tidy
from interleaving import deinterleave, interleave
from scores import note, score
from xml_abc import abc_to_musicxml, musicxml_to_abc

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
HEADER = "X:1\nM:4/4\nL:1/4\nK:C\n"
SIGNS = [
    "50% slower", "%", "%%x", "a[V:2]b", "[V:2]", "Z4", "X12", "]", "[", "{", "}", "a {b", "$", "!f", "!f!", "+x+", "&&", "(& x", "&",
    "x:y", "(0:2", "(3:2:2", "w:la", "a>)", "a ) b", "<b>", "\u00e9 \U0001d11e", "K:D", "[K:D]", "'", "C/E", "*",
]  # fmt: skip


def bars(body: str, header: str = HEADER) -> tuple[list[str], list[str]]:
    """(body lines, warnings) of interleaved ABC, which must come back from the way to standard ABC."""
    ((text, warnings),) = interleave(header + body)
    assert interleave(text)[0][0] == interleave(deinterleave(text)[0])[0][0] == text
    return [line.removeprefix("[V:1]") for line in text.splitlines() if line.startswith("[V:")], warnings


def xml(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(abc_to_musicxml(text))


def pitches(text: str) -> list[str]:
    """Of all notes, chord symbols and rests aside."""
    return [step.text for step in xml(text).iter("step")]


def warnings_of(folder: Path, text: str) -> list[str]:
    path = folder / "x.abc"
    path.write_text(text)
    return batch_abc2xml.convert(path, Namespace()).warnings


# Quoted text


@pytest.mark.parametrize("words", SIGNS)
def test_text_is_text_whatever_signs_it_holds(words):
    """In both directions, in standard and in interleaved ABC; and no note is lost or found in it."""
    for place in ("^", "_", "<", ">"):
        music = f'"{place}{words}"CDEF|GABc|\ncdef|"{place}{words}"gfed|]\n'
        written, warnings = bars(music)
        assert written == [f'"{place}{words}"CDEF|', "GABc|", "cdef|", f'"{place}{words}"gfed|]'] and not warnings
        for text in (HEADER + music, interleave(HEADER + music)[0][0]):
            assert "".join(pitches(text)) == "CDEFGABCCDEFGFED"
            assert [text.text for text in xml(text).iter("words")] == [words, words]


def test_escaped_signs_in_text():
    for written, read in (
        (r"50\% slow", "50% slow"), (r"a\"b\"", 'a"b"'), (r"a\nb", "a\nb"), (r"a \& b", "a & b"), (r"a\b", r"a\b"), (r"\\", "\\"),
    ):  # fmt: skip
        assert [text.text for text in xml(HEADER + f'"^{written}"CDEF|').iter("words")] == [read]
    assert xml(HEADER.replace("M:", "T:50\\% off % x\nM:") + "C|").findtext("work/work-title") == "50% off"


def test_quotation_marks_in_lyrics_are_a_part_of_them():
    notes = list(xml(HEADER + 'CDEF|GABc|\nw:"la| 5%" \\% so | % x\n').iter("note"))
    found = [
        (note.findtext("pitch/step"), note.findtext("lyric/text")) for note in notes if note.find("lyric") is not None
    ]
    assert found == [("C", '"la'), ("G", '5%"'), ("A", "%"), ("B", "so")]


def test_what_stands_in_a_private_plane_comes_back():
    for text in SIGNS:
        line, done = tidy(f'"^{text}"A')
        assert shown(line) == f'"^{text}"A' and plain(line) == f'"^{text}"A' and not done
        assert not set(line[2:-2]) & set('%[]{}|:\\&!$()ZX"')


@pytest.mark.parametrize(
    "name",
    ["Vox 100%", 'Vox "Lead"', "Vox [1]", "a]b[", "Vox\nhumana", '"', 'The "50%" [V:2]', "{x}", "a % b", "Z4", "C|"],
)
def test_names_of_parts(name):
    """From MusicXML and back, by way of both forms of ABC."""
    escaped = name.replace("\n", "&#10;")
    source = score(note("C4", 8), note("D4", 8)).replace("Flute", escaped)
    abc, _ = musicxml_to_abc(source.encode(), "x.xml")
    for text in (abc, interleave(abc)[0][0]):
        assert xml(text).findtext("part-list/score-part/part-name") == name
        assert pitches(text) == ["C", "D"]


def test_words_of_a_score_come_back():
    words = '6% "x" [7] | {b}\nZ4'
    direction = f"<direction><direction-type><words>{words}</words></direction-type></direction>".replace("\n", "&#10;")
    abc, _ = musicxml_to_abc(score(direction + note("C4", 8), note("D4", 8), note("E4", 8)).encode(), "x.xml")
    assert [element.text for element in xml(abc).iter("words")] == [words] and pitches(abc) == ["C", "D", "E"]
    written, warnings = bars(abc.partition("K:C\n")[2])
    assert len(written) == 3 and len(warnings) == 1 and "[7] |" in warnings[0]  # a patch would end in it


def test_text_in_which_a_patch_would_end_is_named():
    said = "left out, since a patch would end in it: "
    assert bars('"^a|b"CDEF|') == (["CDEF|"], [said + '"^a|b"'])
    assert bars('"_a::b"CD["^|x"EG]2|') == (["CD[EG]2|"], [said + '"_a::b"', said + '"^|x"'])
    assert pitches(HEADER + '"^a|b"CDEF|') == ["C", "D", "E", "F"]
    assert xml(HEADER + '"^a|b"CDEF|').findtext(".//words") == "a|b"


# Marks without a partner


@pytest.mark.parametrize(
    ("music", "notes", "first"),
    [
        ('"C CDEF|"F"FGAB|"G7"GABc|c4|]', "CDEFFGABGABCC", '"C" CDEF|'),
        ('"CDEF|"F"FGAB|"G7"GABc|c4|]', "CDEFFGABGABCC", "CDEF|"),
        ('"Am7CDEF|"F"FGAB|c4|]', "CDEFFGABC", '"Am7"CDEF|'),
        ('"Bb/D CDEF|"F"FGAB|c4|]', "CDEFFGABC", '"Bb/D" CDEF|'),
        ('"^slow CDEF|"F"FGAB|c4|]', "CDEFFGABC", '"^slow" CDEF|'),
        ('"^molto dolce CD EF|"F"FGAB|c4|]', "CDEFFGABC", '"^molto dolce" CD EF|'),
        ('CDEF"|"F"FGAB|c4|]', "CDEFFGABC", "CDEF|"),
        ('"F"CDEF|"F FGAB|c4|]', "CDEFFGABC", '"F"CDEF|'),
        ('CDEF|FGAB"', "CDEFFGAB", "CDEF|"),
    ],
)
def test_one_quotation_mark_too_few(tmp_path, music, notes, first):
    written, warnings = bars(music)
    assert written[0] == first and len(warnings) == 1 and "quotation mark without a partner" in warnings[0]
    assert "".join(pitches(HEADER + music)) == notes == "".join(pitches(interleave(HEADER + music)[0][0]))
    assert "quotation mark without a partner" in warnings_of(tmp_path, HEADER + music)[0]


def test_two_quotation_marks_too_few():
    written, warnings = bars('"C CDEF|"F FGAB|c4|]')
    assert written == ['"C" CDEF|', '"F" FGAB|', "c4|]"]
    assert warnings == [f'quotation mark without a partner put behind "{chord}' for chord in "CF"]


@pytest.mark.parametrize(
    ("music", "written"),
    [
        ("|:GABc dedB|egdB A2G2:|!GABd|egdB|!gage|dBAG|]",
         ["|:GABc dedB|", "egdB A2G2:|", "GABd|", "egdB|", "gage|", "dBAG|]"]),
        ("!GABc:|def!|c8|]", ["GABc:|", "def|", "c8|]"]),
        ("GABc!|!def|", ["GABc|", "def|"]),
        ("GA!Bc|d ef!|", ["GABc|", "d ef|"]),
        ("GA![Bc]d|e!f|", ["GA[Bc]d|", "ef|"]),
        ("!f!GA!trill!B!>(!c|d!1!e!D.C.!|", ["!f!GA!trill!B!>(!c|", "d!1!e!D.C.!|"]),
    ],
)  # fmt: skip
def test_exclamation_marks_that_break_lines(music, written):
    assert bars(music) == (written, [])
    assert pitches(HEADER + music) == pitches(HEADER + "".join(written)) != []
    assert len(list(xml(HEADER + music).iter("measure"))) == len(written)


# Barlines


def test_repeats_of_more_than_one_time():
    expected = ["|:CDEF:|", "GABc|", "c4|]"]
    for music in ("|::CDEF::|GABc|c4|]", "|:::CDEF:::|GABc|c4|]"):
        assert bars(music) == (expected, [])
        repeats = [repeat.get("direction") for repeat in xml(HEADER + music).iter("repeat")]
        assert repeats == ["forward", "backward"] and len(list(xml(HEADER + music).iter("measure"))) == 3
    assert bars("|:CDEF::|::GABc::|")[0] == bars("|:CDEF::GABc:|")[0] == ["|:CDEF::", "GABc:|"]


def test_an_invisible_barline_is_no_final_one():
    for sign in ("[|]", "[]"):
        assert bars(f"CDEF{sign}GABc|c4|]") == (["CDEF|", "GABc|", "c4|]"], [])
        assert [style.text for style in xml(f"{HEADER}CDEF{sign}GABc|c4|]").iter("bar-style")] == [
            "none",
            "light-heavy",
        ]


# Overlays


@pytest.mark.parametrize(
    ("music", "written"),
    [
        ("g2f2|e3e&&d4|c3c|c4|", ["g2f2&d4|", "e3e&c3c|", "c4|"]),
        ("|:g2f2|e3e&&d4|c3c:|c4|", ["|:g2f2&d4|", "e3e&c3c:|", "c4|"]),
        ("B4|g2f2|e3e&&\nd4|\nc3c|c4|", ["B4|", "g2f2&d4|", "e3e&c3c|", "c4|"]),
        ("g2f2|e3e&&|d4|c3c|c4|", ["g2f2&d4|", "e3e&c3c|", "c4|"]),
        ("c4|d4|e4&&&f4|g4|a4|b4|", ["c4&f4|", "d4&g4|", "e4&a4|", "b4|"]),
        ("(&c4|d4&e4|f4&)|b4|", ["c4&e4|", "d4&f4|", "b4|"]),
        ("b4|(&c4|d4&e4|f4&g4|a4&)|b4|]", ["b4|", "c4&e4&g4|", "d4&f4&a4|", "b4|]"]),
        ("A(&B3|c4&d3|e4&)|b4|", ["AB3&xd3|", "c4&e4|", "b4|"]),
        ("c4|d4&&e4|f4", ["c4&e4|", "d4&f4|"]),
        ('c4|d4&&"^&& x"e4|f4|', ['c4&"^&& x"e4|', "d4&f4|"]),
        ("c4&e4|d4|", ["c4&e4|", "d4|"]),
    ],
)
def test_overlays_of_several_bars(music, written):
    assert bars(music)[0] == written
    read = [music_notes.read(abc_to_musicxml(HEADER + text)) for text in (music, "".join(written))]
    assert read[0] == read[1]


def test_overlays_leave_the_other_voices_in_their_bars():
    header = "X:1\nM:4/4\nL:1/4\nK:C\nV:1\nV:2\n"
    for body in (
        "V:1\nC4|D4&&E4|F4|G4|\nV:2\nc4|d4|e4|\n",
        "V:1\nC4|D4&&\nV:2\nc4|d4|\nV:1\nE4|F4|G4|\nV:2\ne4|\n",
        "[V:1]C4|D4&&\n[V:2]c4|d4|\n[V:1]E4|F4|G4|\n[V:2]e4|\n",
    ):
        assert interleave(header + body) == [
            (header[4:] + "[V:1]C4&E4|[V:2]c4|\n[V:1]D4&F4|[V:2]d4|\n[V:1]G4|[V:2]e4|\n", [])
        ]


# Fields


def test_no_bar_is_cut_in_an_inline_field(tmp_path):
    said = "left out, since a patch would end in it: "
    for field in (
        "[r:see p. 3 | 4]",
        "[P:A|B]",
        "[N:a|b]",
        "[I:a::b]",
        '[Q:"a|b" 1/4=60]',
        "[r:50% | {x}]",
        '[r:6" | 7]',
    ):
        assert bars(f"CDEF|{field}GABc|c4|]") == (["CDEF|", "GABc|", "c4|]"], [said + field])
        assert "".join(pitches(f"{HEADER}CDEF|{field}GABc|c4|]")) == "CDEFGABCC"
        assert len(list(xml(f"{HEADER}CDEF|{field}GABc|c4|]").iter("measure"))) == 3
    text = f"{HEADER}CDEF|[r:see p. 3 | 4]GABc|"
    assert warnings_of(tmp_path, text) == ["unhandled field: r, content: see p. 3 | 4"]
    for field in ('Q:"a|b" 1/4=60', "P:A|B"):
        assert bars(f"CDEF|\n{field}\nGABc|c4|]") == (["CDEF|", "GABc|", "c4|]"], [f"{said}[{field}]"])
    assert bars('CDEF|[V:1 nm="a|b"]GABc|') == (["CDEF|", "GABc|"], [])
    for field in ("[r:see p. 3]", "[K:D]", "[M:3/4]", '[Q:"Allegro" 1/4=60]', "[P:A]"):
        assert bars(f"CDEF|{field}GAB|") == (["CDEF|", f"{field}GAB|"], [])
    assert bars("CDEF|[M:C|]GABc|") == bars("CDEF|\nM:C|\nGABc|") == (["CDEF|", "[M:2/2]GABc|"], [])


@pytest.mark.parametrize("field", ["s:!f! * !p! | *", "s:*", "s: a b c\n+:!f! d e"])
def test_lines_of_symbols_are_named(tmp_path, field):
    said = [f"line of symbols left out: {line}" for line in field.split("\n")]
    for text in (f"{HEADER}CDEF|\n{field}\nGABc|\n", f"{HEADER}{field}\nCDEF|GABc|\n"):
        assert interleave(text)[0][1] == said == warnings_of(tmp_path, text)
        assert "".join(pitches(text)) == "CDEFGABC"
        assert len(list(xml(text).iter("measure"))) == 2
    assert "".join(pitches(f"{HEADER}CDEF|\nr:a remark\nGABc|\n")) == "CDEFGABC"
    assert warnings_of(tmp_path, f"{HEADER}CDEF|\nm:~a2 = ab\nGABc|\n") == ["macro left out: m:~a2 = ab"]


# Blocks and empty lines, on the way to MusicXML


@pytest.mark.parametrize(
    ("body", "notes", "warnings"),
    [
        ("CDEF|GABc|]\n\nBars 1 | 2 are faded in the source\n", "CDEFGABC", ["text behind an empty line left out: 'Bars 1 | 2 are faded in the source'"]),
        ("\nCDEF GABc\n", "CDEFGABC", ["music goes on behind an empty line: 'CDEF GABc'"]),
        ("CDEF|\n\nGABc\ndcba|\n", "CDEFGABCDCBA", ["music goes on behind an empty line: 'GABc' and 1 more line"]),
        ("CDEF|\n\nA | B\nwords\n\nGABc|\n", "CDEFGABC", ["text behind an empty line left out: 'A | B' and 1 more line", "music goes on behind an empty line: 'GABc|'"]),
        ("CDEF|\n%%begintext\nVerse\n\nmore verse\n%%endtext\nGABc|]\n", "CDEFGABC", []),
        ("CDEF|\n%%beginps\nABC\n\nDEF|\n%%endps\nGABc|]\n", "CDEFGABC", []),
    ],
)  # fmt: skip
def test_both_scripts_agree_on_what_is_music(tmp_path, body, notes, warnings):
    ((text, said),) = interleave(HEADER + body)
    assert said == warnings == warnings_of(tmp_path, HEADER + body)
    assert "".join(pitches(HEADER + body)) == "".join(pitches(text)) == notes


def test_what_reads_as_music():
    for music in (
        "A",
        "|:A2 B/c//|1 d:|2 [eg]3/2-|]",
        "~A.BTc",
        "(3ABc (AB)",
        "{/g}A",
        "z4|x|Z2|y",
        "A>B c<<d",
        "A&B",
        ".(A .B.-B.|u(vAT(c))",
        "AH|",
    ):
        assert reads_as_music(music), music
    for words in ("Bar", "Bass", "A b r", "CDEF slowly", "T", "A;", "3rd", "A,b,c,h"):
        assert not reads_as_music(words), words
    assert reads_as_music("sA hB", "sh") and not reads_as_music("sA hB", "s")


@pytest.mark.parametrize("line", ["w:| la la", "s:| !f! | c", "r:| see | C", "N:| see | C", "W:: C | D"])
def test_a_field_may_begin_with_a_barline(line):
    assert bars(f"CDEF|GABc|\n{line}\n")[0] == ["CDEF|", "GABc|"]
    assert pitches(f"{HEADER}CDEF|GABc|\n{line}\n") == list("CDEFGABC")


def test_a_decoration_that_does_not_end():
    found = bars("!fermata C2D2|!f!CD!ppp(EF)|!trill!GABc|!segno|c4|!fine\n")
    lines = ["!fermata! C2D2|", "!f!CD!ppp!(EF)|", "!trill!GABc|", "!segno!c4!fine!|"]
    names = ("fermata", "ppp", "segno", "fine")
    assert found[1] == [f"exclamation mark without a partner put behind !{name}" for name in names]
    assert [line.replace(" !", "!") for line in found[0]] == lines
    assert bars("CDEF!\nGA!B!c!f|C4!\n")[0] == ["CDEF GA!B!cf|", "C4|"]  # the end of a line in old tunes
