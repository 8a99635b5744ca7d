"""ABC as it is found, by the ABC standard 2.1 and the rules that the docstrings give, each on its own."""

import re

import pytest

import abc_line
import abc_voices
import interleaving
from abc_line import shown
from abc_text import read_abc, split_header, split_tunes, tidy, voice_id, without_comment
from abc_voices import merged, normal
from files import InputError
from interleaving import deinterleave, interleave


def read(text: str) -> tuple[list[str], list[str], list[str]]:
    """(header lines, body lines, warnings) of the one tune."""
    ((written, warnings),) = interleave(text)
    assert interleave(written)[0][0] == interleave(deinterleave(written)[0])[0][0] == written
    lines = written.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("[V:"))
    return lines[:first], lines[first:], warnings


def music(body: str, header: str = "L:1/8\nM:4/4\nK:C\n") -> list[str]:
    return [line.removeprefix("[V:1]") for line in read(f"X:1\n{header}{body}")[1]]


# Bytes


def test_every_encoding_and_line_end():
    text = "X:1\nT:Fjällvinden\nK:C\nA|\n"
    for encoding in ("utf-8", "utf-8-sig", "latin-1", "utf-16"):
        assert read_abc(text.encode(encoding)) == text
    for mark, encoding in ((b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")):
        assert read_abc(mark + text.encode(encoding)) == text
        assert read_abc(mark + text.replace("\n", "\r\n").encode(encoding)) == text
        assert "\ufffd" in read_abc(mark + text.encode(encoding) + b"\0\xd8"[:1])  # half a character at the end
    for end in ("\r\n", "\r"):
        assert read_abc(text.replace("\n", end).encode()) == text
    assert read_abc(b"A\r\n\rB\n\rC") == "A\n\nB\n\nC"
    assert read_abc(bytes(range(0xA1, 0x100))) == "".join(map(chr, range(0xA1, 0x100)))


# Tunes of a file


@pytest.mark.parametrize("letter", "ILMQUm")
def test_fields_of_the_file_that_change_the_music_reach_every_tune(letter):
    book = f"%abc-2.1\n{letter}:value\nB:a book\nR:reel\nfree text\n\nX:1\nK:C\nA|\n\nX:2\nK:D\nB|\n"
    assert split_tunes(book) == [f"{letter}:value\nX:1\nK:C\nA|", f"{letter}:value\nX:2\nK:D\nB|"]


def test_other_text_of_the_file_reaches_none():
    head = "".join(f"{letter}:value\n" for letter in "ABCDFGHNORSTVWZ") + "Q\nML:1/8\n%%text\n"
    assert split_tunes(f"{head}\nX:1\nK:C\nA|\n") == ["X:1\nK:C\nA|"]


def test_where_a_tune_begins():
    assert split_tunes("K:C\nA|\n") == ["K:C\nA|\n"]  # without X: all is one tune
    assert split_tunes("  X:1\nK:C\nA|\nX:2\nK:C\nB|") == ["X:1\nK:C\nA|", "X:2\nK:C\nB|"]
    assert split_tunes("X:1\nK:C\nA|\n%%begintext\nX:2\n%%endtext\nB|") == ["X:1\nK:C\nA|\nB|"]


TUNE = "X:1\nM:4/4\nL:1/4\nK:C\n"


@pytest.mark.parametrize(
    "behind",
    ["GABc|", "GABc", "GABc\ndcba|", "M:3/4\nGAB|\n% end", "w:la\n\nV:1\n\nc|", "G:|", "c", "z4|", '"Am"A2 !f!c>d|]',
     "|:(3ABc {g}[CE]2-|[CE]4:|", "~A.BTc uD", "[K:D] A|1 B :|2 c |", "A $ B \\\nc|", "c'4&C,4|", "^A_B=c __d/2 e//|",
     "K:D % a key\nA|", "CDEF|\n\nGABc|", "W:words\nC4|", "(CD).E-E|", "`A`B|", "+trill+A|"],
)  # fmt: skip
def test_music_behind_an_empty_line(behind):
    for empty in ("\n", "\n \t\n", "\n\n\n"):
        text, warnings = tidy(f"{TUNE}CDEF|{empty}\n{behind}\n")
        assert text == f"{TUNE}CDEF|\n" + re.sub("\n+", "\n", behind)
        assert warnings[0].startswith("music goes on behind an empty line: ")
        assert warnings[0].count(repr(behind.split("\n")[0][:60])) == 1 or behind.startswith("w:")


@pytest.mark.parametrize(
    "behind",
    ["Bars 1 | 2 are faded in the source", "| Bar | Bass |", "A | B | C\nwords", "words\nA | B | C", "free text", "Bass",
     "A | B | C |\nas in | the | book", "1 | 2 | 3", "| 1 |", "---", "***", "dolce", "c a f e s", "(see A)", "A, b, c; r",
     "[1] A | B", "“A”", "é|", "A|B # C|", "N:by ear\nfree | text", "U", "CDEF| slowly"],
)  # fmt: skip
def test_text_behind_an_empty_line(behind):
    text, warnings = tidy(f"{TUNE}CDEF|GABc|]\n\n{behind}\n")
    assert text == f"{TUNE}CDEF|GABc|]"
    first, *more = behind.split("\n")
    said = f"text behind an empty line left out: {first!r}" + (
        f" and {len(more)} more line{'s' * (len(more) > 1)}" if more else ""
    )
    assert warnings == [said]


def test_blocks_of_text_and_of_music_alternate():
    assert tidy("X:1\nK:C\nA|\n\nfree text\n\nM:3/4\n\nB|\n\nc|\n\nT:another book\nM:4/4\n") == (
        "X:1\nK:C\nA|\nM:3/4\nB|\nc|",  # fields without music behind them are of the text
        [
            "text behind an empty line left out: 'free text'",
            "music goes on behind an empty line: 'B|' and 1 more line",
        ],
    )
    assert tidy("X:1\nK:C\nA|\n\nH:in | 1850\n") == ("X:1\nK:C\nA|", [])
    assert tidy("X:1\nU:s=!f!\nK:C\nA|\n\nsB|")[0].endswith("A|\nsB|")
    assert not tidy("X:1\nK:C\nA|\n\nsB|")[0].endswith("sB|")


def test_text_between_tunes_is_no_music_and_music_needs_no_barline():
    tune = "X:1\nM:4/4\nL:1/4\nK:C\nCDEF|GABc|]\n\nBars 1 | 2 are faded in the source\n"
    _, bars, warnings = read(tune)
    assert bars == ["[V:1]CDEF|", "[V:1]GABc|]"]
    assert warnings == ["text behind an empty line left out: 'Bars 1 | 2 are faded in the source'"]
    _, bars, warnings = read("X:1\nK:C\n\nCDEF GABc\n")
    assert bars == ["[V:1]CDEF GABc|"] and warnings == ["music goes on behind an empty line: 'CDEF GABc'"]
    _, bars, warnings = read("X:1\nK:C\nCDEF|\n\nGABc\ndcba|\n")
    assert bars == ["[V:1]CDEF|", "[V:1]GABc dcba|"]
    assert warnings == ["music goes on behind an empty line: 'GABc' and 1 more line"]
    with pytest.raises(InputError, match="no music behind its header; text behind an empty line left out: 'Bars 1'"):
        interleave("X:1\nK:C\n\nBars 1\n")


def test_what_is_refused_in_a_file_is_named_beside_what_is_read():
    good, mute, empty = "X:1\nK:C\nA|\n\n", "X:2\nK:C\nz|\n\n", "X:3\nK:C\n\n"
    first, second = interleave(mute + good + empty + good + mute)
    assert first[1] == ["tune 3 left out: no music behind its header", "tune 1 left out: no note in it"]
    assert second[1] == ["tune 5 left out: no note in it"]
    ((_, warnings),) = interleave(mute + good)
    assert warnings == ["tune 1 left out: no note in it"]
    for count in (1, 2, 5, 6, 7):
        with pytest.raises(InputError) as refused:
            interleave(mute * count)
        each = [f"tune {number} left out: no note in it" for number in range(1, min(count, 5) + 1)]
        said = "no note in it" if count == 1 else "; ".join(each)
        assert str(refused.value) == said + (f"; and {count - 5} more" if count > 5 else "")


# The header


@pytest.mark.parametrize("dropped", ["X:2", "T:x", "C:x", "W:x", "w:x", "Z:x", "%%MIDI x", "I:linebreak $", "% x"])
def test_what_does_not_sound_is_left_out_of_the_header(dropped):
    assert split_header(f"M:4/4\n{dropped}\nK:C\nA|") == (["M:4/4", "K:C"], ["A|"])
    if ":" in dropped:
        assert split_header(f"M:4/4\n{dropped}\n+:more of it\nK:C\nA|")[0] == ["M:4/4", "K:C"]


@pytest.mark.parametrize("letter", "ABDFGHLMNOPQRSUVmr")
def test_every_other_field_stays_in_the_header(letter):
    kept = [f"{letter}:1/4", "+:more of it", "I:propagate-accidentals octave", "%%score (1 2)", "%%MIDI", "K:C"]
    kept.remove("%%MIDI")
    assert split_header("\n".join(["X:1", *kept, "A|"])) == (kept, ["A|"])


def test_comments_and_long_fields_of_the_header():
    assert split_header("M:4/4 % four\nold long field\n\nK:C % C\n%%text 5 % of it\nA|% x") == (
        ["M:4/4", "K:C", "%%text 5 % of it"],
        ["A|% x"],
    )
    for line, kept in (
        ('V:1 nm="50% full" % x', 'V:1 nm="50% full"'),
        (r"N:50 \% full % x", r"N:50 \% full"),
        ("K:C", "K:C"),
        ("K:C%", "K:C"),
        ("K:C  ", "K:C  "),
        ('V:1 treble nm="Vox "50%" [1]" snm="V"', 'V:1 treble nm="Vox "50%" [1]" snm="V"'),  # as xml2abc writes it
        ('V:1 nm="Vox" bass snm="50%" % x', 'V:1 nm="Vox" bass snm="50%"'),
        ('V:1 nm="a "b"" % x', 'V:1 nm="a "b""'),
    ):
        assert shown(without_comment(abc_line.tidy(line)[0])) == kept


def test_where_the_header_ends():
    assert split_header("M:4/4\nA|\nK:C\nB|\nK:D") == (["M:4/4", "K:C"], ["B|", "K:D"])
    # A voice of the header is defined once; where it comes again, its music begins.
    assert split_header("V:1 a\nV:2 b\nK:C\nV:1\nA|") == (["V:1 a", "V:2 b", "K:C"], ["V:1", "A|"])
    assert split_header("K:C\nV:1 a\nV:2 b\nV:1\nA|") == (["K:C", "V:1 a", "V:2 b"], ["V:1", "A|"])
    assert split_header("V:1 a\nV:1 b\nK:C\nA|") == (["V:1 a", "V:1 b", "K:C"], ["A|"])
    assert split_header("K:C\nV:1\nG:|") == (["K:C", "V:1"], ["G:|"])
    assert split_header("K:C\nV:1\nG::") == (["K:C", "V:1"], ["G::"])
    assert split_header("M:4/4\nA|") == (["M:4/4"], [])


def test_blocks_of_text_and_postscript():
    def body(text):
        return split_header(split_tunes(text)[0])

    for kind in ("text", "ps", "svg"):
        block = f"%%begin{kind} obeylines\nA|\n\nK:F\nX:2\n\nmore|\n%%end{kind}\n"
        assert body(f"M:4/4\n{block}K:C\nB|\n{block}c|") == (["M:4/4", "K:C"], ["B|", "c|"])
    # One that never ends is none, and so is one whose end came before.
    assert body("M:4/4\n%%begintext\nK:C\nB|")[1] == ["B|"]
    assert body("%%endtext\nM:4/4\n%%begintext\nK:C\nB|")[1] == ["B|"]
    assert body("%%begintext\nA|\n%%endps\nB|\n%%endtext\nK:C\nc|")[1] == ["c|"]
    twice = "K:C\nA|\n%%begintext\nb\n%%endtext\nc|\n%%begintext\nd\n%%endtext\ne|"
    assert body(twice)[1] == ["A|", "c|", "e|"]
    # One that is left open takes no tune with it.
    book = "X:1\nK:C\nA|\n%%begintext\nX:2\nK:C\nB|\n%%begintext\nx\n%%endtext\n"
    assert [body(tune)[1] for tune in split_tunes(book)] == [["A|", "%%begintext"], ["B|"]]
    assert read("X:1\nK:C\nCDEF|\n%%begintext\nVerse\n\nmore verse\n%%endtext\nGABc|]\n")[1:] == (
        ["[V:1]CDEF|", "[V:1]GABc|]"],
        [],
    )


def test_ids_of_voices():
    for value, name in (("1", "1"), (" T1 treble", "T1"), ("A[b]", "A"), ("", "1"), ("  ", "1")):
        assert voice_id(value) == name, value
    assert abc_line.FIELD.match("+:x") and not abc_line.FIELD.match("1:x")


# The body


@pytest.mark.parametrize("letter", "IKLMPQU")
def test_fields_that_change_the_music_become_inline_fields(letter):
    assert music(f"A8|\n{letter}:1/4 % x\nB|c8|") == ["A8|", f"[{letter}:1/4]B|", "c8|"]
    assert music(f"A8|\n{letter}:[1]{{/4}}\nB|c8|") == ["A8|", f"[{letter}:1/4]B|", "c8|"]  # no bracket in brackets
    assert music(f"A8|[{letter}:1/4]B|c8|") == ["A8|", f"[{letter}:1/4]B|", "c8|"]


@pytest.mark.parametrize("letter", "ABCDFGHNORSTWZrsw")
def test_other_fields_between_lines_go(letter):
    assert music(f"A8|\n{letter}:1/4|x\nB8|") == ["A8|", "B8|"]


def test_a_voice_is_continued_by_its_id():
    header = "L:1/8\nM:4/4\nV:1 first\nV:2 second\nK:C\n"
    found, bars, warnings = read(f"X:1\n{header}V:1 again\nA8|\nV:2\nB8|\nV:\nc8|\n[V:1]d8|\n")
    assert found == header.splitlines() and bars == ["[V:1]A8|[V:2]B8|", "[V:1]d8|[V:2]c8|"] and not warnings
    found, bars, _ = read("X:1\nK:C\nV:a one\nA8|\nV:b two\nB8|\nV:a three\nc8|\nV:b\nd8|")
    assert found == ["K:C", "V:a one", "V:b two"] and len(bars) == 2


def test_a_voice_without_a_bar_has_no_music():
    header, bars, warnings = read("X:1\nK:C\nV:1\nV:2\nV:1\n[K:D] !f! |\nV:2\nA8|\n")
    assert header == ["K:C", "V:1", "V:2"] and bars == ["[V:2]A8|"] and warnings == ["voice 1 has no music"]


def test_lines_that_are_continued():
    assert music("A4\\\nB4|") == music("A4\\ % x\nB4|") == music("A4\\\n% x\n%%y\nB4|") == ["A4B4|"]
    assert music("A4\nB4|") == music("A4% x\nB4|") == ["A4 B4|"]


def test_which_voice_the_first_music_is_of():
    for header, name in (
        ("V:1\nV:2\nK:C\n", "1"),
        ("K:C\nV:1\nV:2\n", "2"),
        ("V:1\nK:C\nV:2\nV:3\n", "3"),
        ("K:C\n", "1"),
        ("V:7\nK:C\n", "7"),
    ):
        assert read(f"X:1\n{header}A8|")[1] == [f"[V:{name}]A8|"]


def test_the_first_definition_of_a_voice_counts():
    header, _, _ = read("X:1\nK:C\nV:1 treble\nA8|\nV:2 bass\nB8|\nV:2 alto\nc8|\n")
    assert header == ["K:C", "V:1 treble", "V:2 bass"]
    assert read("X:1\nV:2\nV:1\nK:C\nV:1\nA|\nV:3 x\nB|")[0] == ["V:2", "V:1", "K:C", "V:3 x"]
    assert read("X:1\nV:2\nK:C\nV:2\nA|\nV:3\nz|")[2] == []
    assert read("X:1\nK:C\nA|\nV:3 x\n")[2] == ["voice 3 has no music"]


def test_what_counts_as_music_of_a_bar():
    """A bar without notes or rests is no bar, unless it has a chord symbol; annotations and decorations are none."""
    assert music("A8|!f!|B8|") == ["A8|", "!f!B8|"]
    for content in ("z8", "x8", '"Am"', '"Am"z8', "[CE]8", "g8", "B,8"):
        assert music(f"A8|{content}|B8|") == ["A8|", f"{content}|", "B8|"]
    for empty in ("", " ", "!f!", '"^text"', '"_text"', '"<text"', '">text"', '"@1,2 text"', "{g}", "y", "+trill+"):
        assert len(music(f"A8|{empty}|B8|")) == 2, empty
    for no_note in ("z8", "x8", '"Am"', "!f!", "[K:D]"):
        with pytest.raises(InputError, match="no note in it"):
            interleave(f"X:1\nK:C\n{no_note}|\n")
    for note in ("A", "g", "[C]", "^c'"):
        assert interleave(f"X:1\nK:C\n{note}|\n")


def test_endings():
    assert music("A8|1 B8:|2 c8|]") == ["A8|1", "B8:|2", "c8|]"]
    assert music("A8|[1,2 B8:|[3-5 c8|]") == ["A8|1,2", "B8:|3-5", "c8|]"]
    assert music("A8|\n[3-5 B8|") == ["A8|3-5", "B8|"] and music("A8| 3-5 B8|") == ["A8|3-5", "B8|"]
    assert music("A8|1-3,5 B8|") == ["A8|1-3,5", "B8|"]
    assert music("A8|\\\n1,3 B8|") == ["A8|1,3", "B8|"]
    assert music("A8|1 [2 B8|") == ["A8|1", "[2 B8|"]  # a second number does not replace the first
    assert music("|:A8|") == ["|:A8|"] and music("|:[1A8|]") == ["|:1A8|]"]
    assert music("c8|A4[1B4|") == ["c8|", "A4[1B4|"] and music("|:\n[1A8|]") == ["|:1A8|]"]
    assert music("A4[1B4|c8|") == ["A4[1B4|", "c8|"]
    assert music("A8||1 | B8|") == ["A8||1", "B8|"] and music("A8|1 |2 B8|") == ["A8|2", "B8|"]
    assert music("A8 |  [1 B8|") == ["A8|1", "B8|"]


def test_what_stands_before_the_first_barline():
    assert music("[K:D][M:3/4]|:A6|B6:|") == ["[K:D][M:3/4]|:A6|", "B6:|"]
    assert music("[K:D]|[M:3/4]|:A6|") == ["[K:D][M:3/4]|:A6|"]
    assert music("|[K:D]A8|z8|") == ["|[K:D]A8|"]
    assert music("[K:D]|z8|A8|") == ["[K:D]|A8|"]  # the change of key is no reason to keep the rest
    assert music("|: | A8|") == music("|: || A8|") == ["|:A8|"] and music("[| | A8|") == ["[|A8|"]
    assert music("||:A8|") == ["|:A8|"] and music("[|:A8|") == ["|:A8|"] and music("|| |: A8|") == ["|:A8|"]
    assert music('[K:D]|A8|"Am"z8|')[0] == "[K:D]|A8|"


def test_what_stands_behind_the_last_barline():
    assert music('A8|"Am"') == ["A8|", '"Am"|'] and music("A8|!fine!") == ["A8 !fine!|"]
    assert music("A8|z8|[K:D]") == ["A8|", "z8 [K:D]|"] and music("A8|z8|!f!") == ["A8|"]


def test_elements_that_hold_barlines_or_braces():
    assert music('A4 "^x::y"B4|c8|') == music('A4 "x::y"B4|c8|') == ["A4 B4|", "c8|"]
    assert music('A4 "x:y"B4|c8|') == ['A4 "x:y"B4|', "c8|"]
    assert music("A4 +trill+B4|") == ["A4 +trill+B4|"] and music("A4 +f|g+B4|") == ["A4 f|", "gB4|"]
    assert music("A4 (3:2:3BcdB4|") == ["A4 (3:2:3BcdB4|"] and music("(3::A4(3:2BcdB4|") == ["(3::A4(3:2BcdB4|"]
    _, bars, warnings = read("X:1\nK:C\nA4 $B4|] c]|\n")
    assert bars == ["[V:1]A4 B4|]", "[V:1]c|"] and len(warnings) == 1
    assert read("X:1\nK:C\nA4 $ $B4|")[2] == []
    _, bars, warnings = read("X:1\nK:C\nA4{[V:2]g}B4|\n")  # a brace left open swallows no voice
    assert bars == ["[V:1]A4|[V:2]gB4|"] and warnings[0].startswith("2 quotation marks, brackets or the like without")


def test_escaped_quotation_marks():
    assert music('"a\\"b"A8|') == ['"ab"A8|']


# Barlines


@pytest.mark.parametrize(
    ("written", "sign"),
    [
        ("|", "|"), ("||", "||"), ("[|", "[|"), ("|]", "|]"), ("|:", "|:"), (":|", ":|"), ("::", "::"),
        (":||:", "::"), (":|:", "::"), (":|]:", "::"),  (":||", ":|"), ("||:", "|:"), ("[|:", "|:"),
        ("|]:", "|:"), (":|]", ":|"), ("|||", "||"), ("[||]", "|]"), ("[|]", "|"), ("|||:", "|:"), (":|||", ":|"),
    ],
)  # fmt: skip
def test_any_barline(written, sign):
    assert normal(written) == sign


@pytest.mark.parametrize(
    ("left", "right", "sign"),
    [
        ("|", "||", "||"), ("||", "[|", "[|"), ("[|", "||", "[|"), ("[|", "|]", "|]"), ("|]", "[|", "|]"), ("|]", "||", "|]"),
        ("||", "|", "||"), (":|", "|:", "::"), (":|", "|]", ":|"), ("|]", ":|", ":|"), ("||", "|:", "|:"), ("|:", "||", "|:"),
        ("|:", ":|", "::"), ("::", "|", "::"), ("|", "::", "::"), (":|", ":|", ":|"), ("|:", "|]", "|:"),
    ],
)  # fmt: skip
def test_two_barlines_in_one(left, right, sign):
    assert merged(left, right) == sign


# Empty bars at both ends, voices that end early


@pytest.mark.parametrize("sign", ["|:", "::", "|", "||", ":|", "[|"])
def test_repeats_at_the_cut_ends(sign):
    repeats = sign in ("|:", "::")
    assert music(f"z8{sign}A8|B8|") == [("|:" if repeats else "") + "A8|", "B8|"]
    assert music(f"z8{sign}z8|A8|") == ["A8|"]
    assert music(f"z8|z8{sign}A8|") == [("|:" if repeats else "") + "A8|"]
    end = {"|:": "|:", "::": "::", "|": "|", "||": "||", ":|": ":|", "[|": "[|"}[sign]
    assert music(f"A8|z8{sign}") == [f"A8{end}"] and music(f"A8|z8{sign}z8|") == ["A8|"]
    assert music(f"A8:|z8{sign}") == ["A8" + ("::" if repeats else ":|")]


def test_a_bar_is_cut_only_if_it_is_empty_in_all_voices():
    head = "X:1\nL:1/8\nM:4/4\nK:C\nV:1\nV:2\n"
    assert read(f"{head}V:1\nz8|A8|z8|\nV:2\nA8|z8|z8|")[1] == ["[V:1]z8|[V:2]A8|", "[V:1]A8|[V:2]z8|"]
    for mark in ('"Am"', "[K:D]"):
        assert len(read(f"{head}V:1\nz8|A8|\nV:2\n{mark}z8|z8|")[1]) == 2
    for nothing in ('"^x"', "!f!"):
        assert len(read(f"{head}V:1\nz8|A8|\nV:2\n{nothing}z8|z8|")[1]) == 1


def test_a_filled_up_voice_has_the_barlines_of_the_others():
    head = "X:1\nL:1/8\nM:4/4\nK:C\nV:1\nV:2\n"
    bars = read(f"{head}V:1\nA8|\nV:2\n|:A8|1 B8:|2 c8||d8|]")[1]
    assert [bar.partition("[V:2]")[0] for bar in bars] == ["[V:1]A8|", "[V:1]z8:|2", "[V:1]z8||", "[V:1]z8|]"]


def test_equal_bars_are_compared_after_the_cut():
    """Numbers of bars in warnings are those of the text that is written."""
    head = "X:1\nL:1/8\nM:4/4\nK:C\nV:1\nV:2\n"
    _, bars, warnings = read(f"{head}V:1\nz8|A8|B8|\nV:2\nz8|A8|B7|")
    assert len(bars) == 2 and warnings == ["voices of unequal length in 1 bars: 2"]


# The way back


def test_standard_abc_has_five_bars_a_line():
    bars = [f"{note}8|" for note in "ABcdefgabcd"]
    text = "L:1/8\nM:4/4\nK:C\nV:1 treble\n" + "".join(f"[V:1]{bar}\n" for bar in bars)
    lines = deinterleave(text)[0].splitlines()
    assert lines == ["X:1", "L:1/8", "M:4/4", "K:C", "V:1 treble", "V:1",
                     " ".join(bars[:5]), " ".join(bars[5:10]), bars[10]]  # fmt: skip


def test_a_line_that_would_be_a_field_begins_with_its_voice():
    for bar in ("G:|", "a:|", "C::"):
        assert f"V:1\n[V:1]{bar}" in deinterleave(f"K:C\nV:1 treble\n[V:1]{bar}\n[V:1]A|\n")[0]
    for bar in ("G8:|", "|:G|", "[K:D]G:|"):
        assert f"V:1\n{bar}" in deinterleave(f"K:C\nV:1 treble\n[V:1]{bar}\n[V:1]A|\n")[0]


# Limits


def test_most_bars_of_a_voice(monkeypatch):
    monkeypatch.setattr(abc_voices, "MAX_BARS", 6)
    for body in ("A|B|c|d|e|f|", "A|Z4|f|", "A|B|Z3|f|", "A|B|Z|Z2|f|", "A|Z5|"):
        assert interleave(f"X:1\nK:C\n{body}\n"), body
        for more in ("Z", "g"):
            with pytest.raises(InputError, match="over 6 bars in one voice: no piece of music"):
                interleave(f"X:1\nK:C\n{body}{more}|\n")
    with pytest.raises(InputError, match="over 6 bars"):
        interleave("X:1\nK:C\nA|Z6|\n")


def test_most_bars_of_all_voices(monkeypatch):
    monkeypatch.setattr(interleaving, "MAX_BARS", 6)
    for voices, bars in ((1, 6), (2, 3), (3, 2), (6, 1)):
        for more in (0, 1):
            text = "X:1\nK:C\n" + "".join(f"V:{voice}\n{'A|' * bars}\n" for voice in range(voices)) + "B|" * more
            if more:
                with pytest.raises(InputError, match=f"{voices} voices of {bars + 1} bars: no piece of music"):
                    interleave(text)
            else:
                assert len(interleave(text)[0][0].splitlines()) == 1 + voices + bars


def test_digits_of_a_rest():
    assert len(interleave("X:1\nK:C\nA|Z00003|B|\n")[0][0].splitlines()) == 2 + 5
    with pytest.raises(InputError, match="Z000003 is a rest of more bars than any piece has"):
        interleave("X:1\nK:C\nA|Z000003|B|\n")
    with pytest.raises(InputError, match=r"^Z1234567890123456789 is a rest"):  # the message is cut
        interleave("X:1\nK:C\nA|Z" + "1234567890" * 3 + "|B|\n")


@pytest.mark.parametrize(
    ("begin", "end"), [("I:beginps", "I:endps"), ("%% begintext", " %%  endtext"), ("I: begintext", "%%endtext")]
)
def test_blocks_of_text_however_they_are_marked(begin, end):
    assert tidy(split_tunes(f"{TUNE}CDEF|\n{begin}\nA | B\n\nC|\n{end}\nGABc|]\n")[0]) == (f"{TUNE}CDEF|\nGABc|]", [])
