"""Interleaving: golden values, every rule of its own, a second implementation on made-up scores, damage, speed."""

import contextlib
import gzip
import json
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abc_text import read_abc, split_tunes
from abc_voices import merged, normal
from bar_lengths import bar_length, read_meter, rest
from files import InputError
from helpers import KIT, ROOT, SHARED, assert_time_is_linear, count_calls, run_script
from interleaving import deinterleave, interleave

GOLDEN = SHARED / "golden"
DATA = SHARED / "data"
SCRIPT = ROOT / "process_data" / "batch_interleaved_abc.py"
HEADER = "X:1\nT:a title\nM:4/4\nL:1/8\nK:C\n"
EXPLAINED = {
    # `|]:` is none of the barlines that patches are cut at: it becomes |:, as all that starts a repeat.
    "sq8806881.abc": ("|]:", "|:"),
    # Grace notes over a barline, {Bc | B}, are two groups, or the way back would find an open brace in both bars.
    "sq8796660.abc": ("{Bc)|", "{Bc)}|"),
}


def bars(body: str, header: str = HEADER) -> list[str]:
    """The body lines of the one tune."""
    return lines(body, header)[1]


def lines(body: str, header: str = HEADER) -> tuple[list[str], list[str], list[str]]:
    """(header lines, body lines, warnings)."""
    ((text, warnings),) = interleave(header + body)
    assert interleave(text)[0][0] == text, "not stable"
    assert interleave(deinterleave(text)[0])[0][0] == text, "not the same after the way back"
    written = text.splitlines()
    assert text.endswith("\n")
    first = next(number for number, line in enumerate(written) if line.startswith("[V:"))
    return written[:first], written[first:], warnings


# Golden values


@pytest.mark.parametrize("path", sorted((KIT / "abc").glob("*.abc")), ids=lambda path: path.name)
def test_kit(path):
    ((text, warnings),) = interleave(path.read_text())
    expected = (KIT / "interleaved" / path.name).read_text()
    assert text.rstrip("\n") == expected.rstrip("\n") and not warnings
    assert interleave(deinterleave(text)[0])[0][0] == text


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the rest of the golden values is not here")
def test_golden():
    paths = sorted((GOLDEN / "abc").glob("*.abc"))
    assert len(paths) == 68
    different = set()
    for path in paths:
        ((text, _),) = interleave(read_abc(path.read_bytes()))
        expected = (GOLDEN / "interleaved" / path.name).read_text()
        if text.rstrip("\n") != expected.rstrip("\n"):
            different.add(path.name)
            expected = expected.replace(*EXPLAINED[path.name]).replace("[V:1](B} f6", "[V:1]{(B} f6")
            assert text.rstrip("\n") == expected.rstrip("\n")
        assert interleave(deinterleave(text)[0])[0][0] == text, path
    assert different == set(EXPLAINED)


@pytest.mark.skipif(not DATA.is_dir(), reason="the real tunes are not here")
def test_real_tunes_all_convert():
    texts = [read_abc(path.read_bytes()) for path in sorted(DATA.rglob("*.abc"))]
    with gzip.open(DATA / "folk" / "tunes.jsonl.gz", "rt") as file:
        texts += [json.loads(line)["abc"] for line in file]
    assert len(texts) == 956 + 2439
    for text in texts:
        for tune, _ in interleave(text):
            assert interleave(deinterleave(tune)[0])[0][0] == tune


# The header


def test_header_keeps_what_sounds_in_its_order():
    header = (
        "%abc-2.1\nX:1\nT:title\nC:composer\nZ:me\nW:words\nR:reel\n%%score (1 2)\n%%MIDI program 1\nI:linebreak $\n"
        'L:1/8 % unit\nQ:1/4=60\nM:3/4\n%%stretchlast 1\nK:G\nV:1 treble nm="50% full"\nV:2 bass \nK:none\n'
    )
    found, music, _ = lines("V:1\nA6|\nV:2\nB6|\n", header)
    assert found == [
        "R:reel",
        "%%score (1 2)",
        "L:1/8",
        "Q:1/4=60",
        "M:3/4",
        "%%stretchlast 1",
        "K:G",
        'V:1 treble nm="50% full"',
        "V:2 bass ",
        "K:none",
    ]
    assert music == ["[V:1]A6|[V:2]B6|"]


def test_voices_that_the_header_does_not_know():
    assert lines("A8|")[0][-2:] == ["K:C", "V:1 treble"]
    assert lines("V:S clef=treble\nA8|\nV:B clef=bass\nA,8|")[0][-2:] == ["V:S clef=treble", "V:B clef=bass"]
    assert lines("[V:S]A8|[V:B]A,8|")[0][-2:] == ["V:S", "V:B"]
    assert lines("[V: S ]A8|[V: B]A,8|")[1] == ["[V:S]A8|[V:B]A,8|"]


def test_printed_text_and_continued_fields_are_no_music():
    body = "A8|\n%%begintext\nBad|eggs|\n%%endtext\nB8|\n"
    assert bars(body, "X:1\nH:long\nBad old|history|\nW:a\n+:Bad|\nK:C\n") == ["[V:1]A8|", "[V:1]B8|"]


# Bars and barlines


@pytest.mark.parametrize(
    ("music", "expected"),
    [
        ("|: A8 | B8 :|", "|:A8|;B8:|"),
        ("A8 |1 B8 :|2 c8 |]", "A8|1;B8:|2;c8|]"),
        ("A8 | [1 B8 :| [2 c8 |]", "A8|1;B8:|2;c8|]"),
        ("A8 |[1,3 B8 :|\n[2 c8 |]", "A8|1,3;B8:|2;c8|]"),
        ("A8 |\\\n1 B8 :|2 c8 |]", "A8|1;B8:|2;c8|]"),
        ("A8 :| |: B8 |", "A8::;B8|"),
        ("A8 :|\n|: B8 |", "A8::;B8|"),
        ("A8 :|: B8 :||: c8 |", "A8::;B8::;c8|"),
        ("A8 | | B8 || | c8 | |]", "A8|;B8||;c8|]"),
        ("A8 ||: B8 :|]", "A8|:;B8:|"),
        ("[|A8 | B8", "[|A8|;B8|"),
        ("[K:D] |: A8 | B8 |", "[K:D]|:A8|;B8|"),
        ("A8 | [K:D] |: B8 |", "A8|:;[K:D] B8|"),
        ("A8 |\nK:D\nM:3/4\nB6 |", "A8|;[K:D][M:3/4]B6|"),
        ("A8 | B8 | !D.C.! |]", "A8|;B8 !D.C.!|]"),
        ("A8 | B8 |] !fine!", "A8|;B8 !fine!|]"),
        ("A4 A2\nB2 | c8 |", "A4 A2 B2|;c8|"),
        ("A4 A2\\\nB2 | c8 |", "A4 A2B2|;c8|"),
        ("A4$ A4 |$ B8 |", "A4 A4|;B8|"),
        ("A8:|\nG:|\n", "A8:|;G:|"),
    ],
)
def test_barlines(music, expected):
    assert bars(music) == ["[V:1]" + bar for bar in expected.split(";")], music


def test_what_is_quoted_or_bracketed_is_no_barline():
    music = '"a\\"b"A4 "^x|y"B4 | {d|e}f8 | [I:x|y][c"_p|q"e]8 | "^a%b"A8 % a | "^c|d" |\n'
    _, found, warnings = lines(music)
    assert found == ['[V:1]"ab"A4 B4|', "[V:1]{d|e}f8|", "[V:1][ce]8|", '[V:1]"^a%b"A8|']
    said = "left out, since a patch would end in it: "
    assert warnings == [said + '"^x|y"', said + "[I:x|y]", said + '"_p|q"']


def test_lyrics_and_other_fields_of_the_body_go():
    assert bars("A8|\nw:Bad|eggs\nT:Part|B|\nr:remark|\n%%text|A|\n% A|B\nB8|\nW:end|A|") == ["[V:1]A8|", "[V:1]B8|"]


def test_signs_without_partner_are_left_out_and_said():
    _, music, warnings = lines('A"4 B4 | [c4 d4 | e4] f4! | g8 |')  # ! breaks the line
    assert music == ["[V:1]A4 B4|", "[V:1]c4 d4|", "[V:1]e4 f4|", "[V:1]g8|"]
    assert warnings == [
        "quotation mark without a partner left out before '4 B4 | [c4 d4 | e4] '",
        "2 quotation marks, brackets or the like without a partner left out",
    ]


def test_grace_notes_that_xml2abc_writes_over_the_end_of_a_line():
    """At the end of a system or of the piece it writes the barline into them, and the next line begins with their rest."""
    ((text, warnings),) = interleave("X:1\nL:1/4\nM:2/4\nK:C\nc d{ef | %1\ng} a b | c2{d | %3\n")
    assert text.splitlines()[-3:] == ["[V:1]c d{ef}|", "[V:1]{g} a b|", "[V:1]c2{d}|"] and not warnings


def test_barline_that_xml2abc_writes_into_grace_notes():
    header = HEADER + "V:1\nV:2\n"
    music = bars("V:1\nA8{Bc | B}d8 | e8 |]\nV:2\nc8 | d8 | e8 |]", header)
    assert music == ["[V:1]A8{Bc}|[V:2]c8|", "[V:1]{B}d8|[V:2]d8|", "[V:1]e8|][V:2]e8|]"]


# Voices


def test_voices_in_turns():
    header = HEADER.replace("K:C\n", "V:1\nV:2\nK:C\n")
    expected = ["[V:2]c8|[V:1]A8|", "[V:2]d8|[V:1]B8|", "[V:2]e8|][V:1]f8|]"]
    systems = "V:2\nc8|d8|\nV:1\nA8|B8|\nV:2\ne8|]\nV:1\nf8|]\n"
    inline = "[V:2]c8|[V:1]A8|\n[V:2]d8|e8|]\n[V:1]B8|f8|]\n"
    assert bars(systems, header) == bars(inline, header) == expected


def test_music_before_any_voice_line_is_of_the_first_voice():
    header = HEADER.replace("K:C\n", "V:1\nV:2\nK:C\n")
    assert bars("A8|\nV:2\nB8|\n", header) == ["[V:1]A8|[V:2]B8|"]
    assert bars("V:a\nV:b\nA8|\nV:a\nB8|\n") == ["[V:b]A8|[V:a]B8|"]  # behind K:, V: changes the voice


@pytest.mark.parametrize(
    ("meter", "unit", "expected"),
    [("4/4", "1/8", "z8"), ("C", "1/4", "z4"), ("C|", "1/8", "z8"), ("3/4", "1/8", "z6"), ("6/8", "1/4", "z3"),
     ("9/16", "1/8", "z9/2"), ("2+3/8", "1/8", "z5"), ("1/8", "1/8", "z"), ("none", "1/8", "z8")],
)  # fmt: skip
def test_multiple_rests(meter, unit, expected):
    header = f"X:1\nM:{meter}\nL:{unit}\nK:C\nV:1\nV:2\n"
    found = bars("V:1\nA|B|c|d|e|\nV:2\n!p!Z2|X2|Z|]", header)
    second = [line.partition("[V:2]")[2] for line in found]
    invisible = expected.replace("z", "x") + "|"
    assert second == [f"!p!{expected}|", expected + "|", invisible, invisible, expected + "|]"]


def test_multiple_rest_after_a_change_of_meter():
    header = HEADER + "V:1\nV:2\n"
    _, music, warnings = lines("V:1\nA8|[M:3/4]B6|c6|[M:4/4]d8|\nV:2\nz8|\nM:3/4\nZ2|[M:4/4]Z|", header)
    assert not warnings
    assert [line.partition("[V:2]")[2] for line in music] == ["z8|", "[M:3/4]z6|", "z6|", "[M:4/4]z8|"]


def test_short_voices_are_filled_up_and_said():
    header = HEADER + "V:1\nV:2\nV:3\n"
    _, music, warnings = lines("V:1\nA8|B6|c3/2d/|e8|]\nV:2\n[L:1/4]A4|\n", header)
    assert music == ["[V:1]A8|[V:2][L:1/4]A4|", "[V:1]B6|[V:2]z3|", "[V:1]c3/2d/|[V:2]z|", "[V:1]e8|][V:2]z4|]"]
    assert warnings == ["voice 3 has no music", "voice 2 has 1 bars, others 4: filled up with rests at its end"]


def test_voices_of_unequal_length_are_said():
    header = HEADER + "V:1\nV:2\n"
    assert lines("V:1\nA8|(3ABc A>B [Ac]2 {g}z2|\nV:2\nA4 A4|c8|", header)[2] == []
    warning = lines("V:1\nA8|B8|c8|\nV:2\nA4|c8|c7|", header)[2]
    assert warning == ["voices of unequal length in 2 bars: 1, 3"]


def test_bars_empty_in_all_voices_go_at_both_ends():
    header = HEADER + "V:1\nV:2\n"
    music = bars("V:1\n|:z8|z8|A8|z8|B8|z8|z8:|\nV:2\n|:x8|z4 z4|z8|z8|z8|z8|x8:|", header)
    assert music == ["[V:1]|:A8|[V:2]|:z8|", "[V:1]z8|[V:2]z8|", "[V:1]B8:|[V:2]z8:|"]
    assert bars("z8|:A8:|z8|]") == ["[V:1]|:A8:|"]
    for marked in ('"Am"z8|', "[K:D]z8|"):
        assert len(bars(f"z8|{marked}A8|{marked}z8|")) == 3
    assert bars('"^slow"z8|A8|') == ["[V:1]A8|"]


# Files


def test_encodings():
    text = HEADER + '"^Präludium"A8|\n'
    for data in (text.encode(), text.encode("utf-8-sig"), text.encode("latin-1"), text.encode("utf-16")):
        assert read_abc(data) == text
        assert read_abc(data.replace(b"\n", b"\r\n")) == text or data[:2] == b"\xff\xfe"


def test_tunebook():
    book = (
        "%abc\nM:6/8\nL:1/8\nR:jig\n\nFree text | with BAD barlines |.\n\nX:1\nT:one\nK:D\nA6|\nB6|\n\nmore text: ABC.\n"
        "X:7\nT:two\nM:4/4\nK:G\nc8|\n\n[V:1]d8|\n\nX:9\nT:no music\nK:C\n\nX:10\nM:2/4\nK:C\nz4|\n"
    )
    assert len(split_tunes(book)) == 4
    (one, warnings), (two, more) = interleave(book)
    assert one == "M:6/8\nL:1/8\nK:D\nV:1 treble\n[V:1]A6|\n[V:1]B6|\n"
    assert warnings == ["text behind an empty line left out: 'more text: ABC.'"]
    assert two == "M:6/8\nL:1/8\nM:4/4\nK:G\nV:1 treble\n[V:1]c8|\n[V:1]d8|\n".replace("V:1 treble", "V:1")
    assert more == [
        "music goes on behind an empty line: '[V:1]d8|'",
        "tune 3 left out: no music behind its header",
        "tune 4 left out: no note in it",
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "no K: line"), ("X:1\nT:x\nA|B|", "no K: line"), (HEADER, "no music"), (HEADER + "z8|x8|", "no note"),
     (HEADER + "A|Z1234567|", "more bars"), (HEADER + "A|" + "Z99999|" * 11, "bars in one voice"),
     ("just | text | of | a | letter", "no K: line"), ("\0\1\2", "no K: line")],
)  # fmt: skip
def test_refused(text, reason):
    with pytest.raises(InputError, match=reason):
        interleave(text)


def test_script(tmp_path):
    folder, target, back = tmp_path / "abc", tmp_path / "interleaved", tmp_path / "back"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.abc").write_text(HEADER + "A8|B4")
    (folder / "book.abc").write_text(HEADER + "A8|\n\n" + HEADER + "V:1\nV:2\nV:1\nB8|c8|\nV:2\nB8|\n")
    (folder / "bad.abc").write_text("no music")
    result = run_script(SCRIPT, folder, target)
    assert result.returncode == 1 and "2 done, 0 skipped (finished before), 1 failed, 1 with warnings" in result.stdout
    assert (target / "sub" / "a.abc").read_text() == "M:4/4\nL:1/8\nK:C\nV:1 treble\n[V:1]A8|\n[V:1]B4|\n"
    assert sorted(path.name for path in target.glob("*.abc")) == ["book.1.abc", "book.2.abc"]
    assert "no K: line" in (target / "errors.jsonl").read_text()
    assert "tune 2: voice 2 has 1 bars" in (target / "warnings.jsonl").read_text()
    result = run_script(SCRIPT, target, back, "--reverse")
    assert result.returncode == 0, result.stderr
    assert (back / "sub" / "a.abc").read_text() == "X:1\nM:4/4\nL:1/8\nK:C\nV:1 treble\nV:1\nA8| B4|\n"


# A second implementation: a score of columns is written voice by voice and bar by bar without reading anything

NOTES = ["A2", "^c/", "[CEG]", "z2", "(3abc", "!mf!d", '"Am"e', "{g}f3/2", "x", "B>c", '"^dolce"G', "_B,,-", "(Ac)"]
SIGNS = ["|", "||", ":|", "|:", "::", "|1", ":|2", "|", "|", "|"]


@st.composite
def scores(draw):
    number, length = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    signs = [draw(st.sampled_from(SIGNS)) for _ in range(length - 1)] + ["|]"]
    bar = st.lists(st.sampled_from(NOTES), min_size=1, max_size=6)
    # The first and last bar have a note, or they might be empty in all voices.
    voices = [[[*draw(bar), "A"] if index in (0, length - 1) else draw(bar) for index in range(length)]
              for _ in range(number)]  # fmt: skip
    return signs, voices, draw(st.integers(1, 5)), draw(st.sampled_from(["", "|:", "[|"]))


@settings(max_examples=150, deadline=None)
@given(scores())
def test_any_score(score):
    signs, voices, a_line, opening = score
    names = [f"v{number}" for number in range(len(voices))]
    header = ["M:4/4", "L:1/8", "K:G", *(f"V:{name} treble" for name in names)]
    expected = list(header)
    for index, sign in enumerate(signs):
        start = opening if index == 0 else ""
        expected.append("".join(f"[V:{name}]{start}{' '.join(voice[index])}{sign}" for name, voice in zip(names, voices, strict=True)))  # fmt: skip
    standard = ["X:1", "T:t", *header]
    for name, voice in zip(names, voices, strict=True):
        standard.append(f"V:{name}")
        written = [f" {' '.join(bar)} {sign}" for bar, sign in zip(voice, signs, strict=True)]
        written[0] = opening + written[0]
        for start in range(0, len(written), a_line):
            standard += ["".join(written[start : start + a_line]) + f" %{start}", "w: la|la"]
    ((text, _),) = interleave("\n".join(standard))
    assert text == "\n".join(expected) + "\n"
    assert interleave(deinterleave(text)[0])[0][0] == text


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.text(st.sampled_from('ABcz234 |:[]"!{}(\\%\nVXKM1/+&Z$~')))
def test_any_damage(text):
    """Whatever comes, it is refused or read; and what was written is read as it is."""
    try:
        ((written, _),) = interleave("K:C\n" + text.replace("X:", ""))
    except InputError:
        return
    assert interleave(written)[0][0] == written
    assert interleave(deinterleave(written)[0])[0][0] == written


# Barlines and lengths


@pytest.mark.parametrize("sign", ["|:", "::", ":|", "[|", "||", "|]", "|"])
def test_barlines_of_patches_stay(sign):
    assert normal(sign) == merged(sign, sign) == merged("|", sign) == merged(sign, "|") == sign


@pytest.mark.parametrize(
    ("text", "eighths"),
    [("A2 B2 c4", 8), ("A/B/ c// d3/4", 2), ("[CE]2 [C2E2]3/", 5), ("(3abc (3:2:2a2b", 2 + 2), ("A>B c<<d", 4),
     ("{gab}A4 !f!z4", 8), ('"A7"A4 "^B"z', 5), ("A2[L:1/4]A2", 6), ("A2&B4", 4), ("(5ABcde", 2), ("(2AB", 3), ("y Tc", 1)],
)  # fmt: skip
def test_bar_length(text, eighths):
    assert bar_length(text, Fraction(1, 8)) * 8 == pytest.approx(eighths)


def test_meters():
    assert read_meter("12/8") == (Fraction(3, 2), True) and read_meter("(2+2+3)/8") == (Fraction(7, 8), False)
    assert read_meter("none") == (None, False) and read_meter("0/0") == (None, False)
    assert rest(0.75, Fraction(1, 8)) == "z6" and rest(1 / 3, Fraction(1, 8), "x") == "x8/3"


def test_work_grows_with_length_alone():
    part = '!mf!c2 "Am"[Ag]2 (3abc d>e | ' * 5 + "\n"

    def calls(repeats: int) -> int:
        return count_calls(interleave, HEADER + "V:1\nV:2\n" + "V:1\n" + part * repeats + "V:2\n" + part * repeats)

    assert calls(200) < 4.1 * calls(50)


# fmt: off
DAMAGES = ["[", '"', "{", "!", "[V:", "(3:", "%%begintext\n", '["', "|", "\\", "::::", "[K:", "{A", "A}", "{ |", "!a!1",
           "1\n", " ", "A ", "| ", "{A|\n", "$", '"|', "(", "A&&B|", '"^a ']
# fmt: on


@pytest.mark.parametrize("damage", DAMAGES)
def test_time_grows_with_damage_alone(damage):
    for before, behind in (("", ""), ("{A", '"'), ("{", "|A|"), ("A", '}"'), ("{A", "B | c}")):

        def work(size, before=before, behind=behind):
            with contextlib.suppress(InputError):
                interleave(HEADER + "A|" + before + damage * (size // len(damage)) + behind + "\nB|")

        assert_time_is_linear(work, 2000)
