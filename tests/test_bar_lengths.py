"""Lengths of bars by the ABC standard 2.1, worked out by hand: meters, unit lengths, tuplets, broken rhythm, chords."""

from fractions import Fraction

import pytest

import abc_voices
from bar_lengths import bar_length, default_unit, read_meter, read_unit, rest
from interleaving import deinterleave, interleave


def interleaved(first: str, second: str, header: str = "M:4/4\nL:1/8\n") -> tuple[list[str], list[str]]:
    """(bars, warnings) of a tune of two voices."""
    ((text, warnings),) = interleave(f"X:1\n{header}K:C\nV:1\nV:2\nV:1\n{first}\nV:2\n{second}\n")
    assert interleave(text)[0][0] == interleave(deinterleave(text)[0])[0][0] == text
    return [line for line in text.splitlines() if line.startswith("[V:")], warnings


def second_voice(bars: list[str]) -> list[str]:
    return [bar.partition("[V:2]")[2] for bar in bars]


# Meters. Section 3.1.6 names three compound ones: 6/8, 9/8 and 12/8.


@pytest.mark.parametrize(
    ("field", "length", "is_compound"),
    [
        ("6/8", Fraction(6, 8), True),
        ("9/8", Fraction(9, 8), True),
        ("12/8", Fraction(12, 8), True),
        ("3/8", Fraction(3, 8), False),
        ("5/8", Fraction(5, 8), False),
        ("7/8", Fraction(7, 8), False),
        ("15/8", Fraction(15, 8), False),
        ("6/4", Fraction(6, 4), False),
        ("9/4", Fraction(9, 4), False),
        ("12/16", Fraction(12, 16), False),
        ("2/2", Fraction(1), False),
        ("(2+3+2)/8", Fraction(7, 8), False),
        ("2 + 3/8", Fraction(5, 8), False),
        (" 6 / 8 ", Fraction(6, 8), True),
        ("3+3/8", Fraction(6, 8), True),
        ("C", Fraction(1), False),
        ("C|", Fraction(1), False),  # 2/2
        ("c", Fraction(1), False),
        ("c|", Fraction(1), False),
        ("none", None, False),
        ("", None, False),
        ("9999/8", Fraction(9999, 8), False),
        ("10000/8", None, False),  # no music
        ("1+" * 13 + "1/8", Fraction(14, 8), False),  # 29 characters
        ("1+" * 14 + "1/8", None, False),  # 31
    ],
)
def test_meter(field, length, is_compound):
    assert read_meter(field) == (length, is_compound)


@pytest.mark.parametrize(
    ("field", "unit"),
    [("1/8", Fraction(1, 8)), (" 1/16 ", Fraction(1, 16)), ("1", Fraction(1)), ("3/4", Fraction(3, 4)),
     ("1/1024", Fraction(1, 1024)), ("1/10000", None), ("0/8", None), ("1/0", None), ("", None), ("1/8 x", None)],
)  # fmt: skip
def test_unit_length(field, unit):
    assert read_unit(field) == unit


@pytest.mark.parametrize(
    ("meter", "unit"),
    [("2/4", 16), ("5/8", 16), ("9/16", 16), ("11/16", 16), ("1/4", 16), ("3/4", 8), ("6/8", 8), ("12/16", 8),
     ("C", 8), ("C|", 8), ("9/8", 8), ("none", 8)],
)  # fmt: skip
def test_unit_length_without_l_field(meter, unit):
    """Section 3.1.7: a sixteenth if the meter as a decimal is below 0.75, else, and in free meter, an eighth."""
    assert default_unit(read_meter(meter)[0]) == Fraction(1, unit)
    length = read_meter(meter)[0] or 1
    in_units = length * unit
    whole_bar = "z" if in_units == 1 else f"z{in_units}"
    found = second_voice(interleaved("A|B|c|", "A|Z|d|", f"M:{meter}\n")[0])
    assert found == ["A|", f"{whole_bar}|", "d|"]


def test_the_last_meter_and_unit_of_the_header_count():
    """The header of the file comes first, then that of the tune."""
    found, _ = interleaved("A|B|c|", "A|Z|d|", "M:6/8\nL:1/4\nM:3/4\nL:1/16\n")
    assert second_voice(found)[1] == "z12|"
    assert second_voice(interleaved("A|B|c|", "A|Z|d|", "")[0])[1] == "z8|"  # neither: a whole note, in eighths
    assert second_voice(interleaved("A|B|c|", "A|Z|d|", "L:1/4\n")[0])[1] == "z4|"


# Notes. Sections 4.3 (lengths), 4.4 (broken rhythm), 4.13 (tuplets), 4.17 (chords), 4.20 (grace notes), 7.4 (overlay).


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("A", 1), ("A3", 3), ("A/", Fraction(1, 2)), ("A/2", Fraction(1, 2)), ("A//", Fraction(1, 4)),
        ("A///", Fraction(1, 8)), ("A/4", Fraction(1, 4)), ("A3/2", Fraction(3, 2)), ("A7/4", Fraction(7, 4)),
        ("A3//", Fraction(3, 4)),
        ("^A,,3 _b''2 =c'/", Fraction(11, 2)), ("z4 x2 z", 7),
        ("A>B", 2), ("A2>B2 c", 5), ("A>>B c", 3), ("A<<B", 2), ("A>>>B c", 3), ("A<B c<d", 4),
        ("[CEG]", 1), ("[CEG]4", 4), ("[C2E2G2]3", 6), ("[C2E4]", 2), ("[C/E/]3", Fraction(3, 2)),
        ('["A2"C3E]', 3), ("[!f!C3E]2", 6), ("[^C,3E]", 3), ('"C4"A', 1), ("!D4!A", 1),
        ("{gab}A", 1), ("{/g2}A2", 2), ("(AB)", 2), ("(A2 B2)c", 5),
        ("[K:D]A", 1), ("[M:3/4]A2", 2), ("[r:Bad egg]A", 1), ("A[L:1/16]A2A2", 3), ("[L:1/4]A", 2), ("[L:none]A", 1),
        ("A4&B2", 4), ("A2&B4", 4), ("A2&B4&c", 4), ("A&B&c3", 3), ("A3&B&c", 3),
        ("", 0), ('"Am"', 0), ("[]", 0), ("y", 0),
    ],
)  # fmt: skip
def test_notes(text, units):
    assert bar_length(text, Fraction(1, 8)) == pytest.approx(float(Fraction(units) / 8))
    if "L:" not in text:
        assert bar_length(text, Fraction(1, 32)) == pytest.approx(float(Fraction(units) / 32))


def test_broken_rhythm_note_by_note():
    """`>`: the first is dotted, the second halved; `>>`: double dotted and quartered; `<` the other way around."""
    for signs, first, second in ((">", 3 / 2, 1 / 2), (">>", 7 / 4, 1 / 4), (">>>", 15 / 8, 1 / 8)):
        mirrored = signs.replace(">", "<")
        assert bar_length(f"A4{signs}B4&B", Fraction(1)) == pytest.approx(8)
        assert bar_length(f"A4{signs}", Fraction(1)) == pytest.approx(4 * first)
        assert bar_length(f"A4{mirrored}", Fraction(1)) == pytest.approx(4 * second)
        assert bar_length(f"A4{signs}B2 c", Fraction(1)) == pytest.approx(4 * first + 2 * second + 1)
        assert bar_length(f"A4{mirrored}B2 c", Fraction(1)) == pytest.approx(4 * second + 2 * first + 1)


# (p: time of how many of those p notes, in simple and in compound meters.
TUPLETS = {2: (3, 3), 3: (2, 2), 4: (3, 3), 5: (2, 3), 6: (2, 2), 7: (2, 3), 8: (3, 3), 9: (2, 3)}


@pytest.mark.parametrize("p", TUPLETS)
def test_tuplets(p):
    simple, compound = TUPLETS[p]
    notes = "ABcdefgab"[:p]
    for meter, units in (("4/4", simple), ("3/4", simple), ("none", simple), ("7/8", simple), ("9/4", simple),
                         ("6/8", compound), ("9/8", compound), ("12/8", compound)):  # fmt: skip
        for bar in (f"({p}{notes}", f"({p}{notes[:-1]}z", f"({p}" + "[CE]" * p):
            found = bar_length(bar + "G", Fraction(1, 8), read_meter(meter)[1])
            assert found == pytest.approx((units + 1) / 8), (meter, bar)  # the note behind it has its whole length


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("(3:2:3ABc", 2), ("(3:2ABc", 2), ("(3::ABc", 2), ("(3:ABc", 2),
        ("(3:2:2A2Bc", 2 + 1), ("(3::2A2Bc", 2 + 1), ("(3:2:4G4c4G2c2", 8), ("(3::4G4c4G2c2", 8), ("(3:4:3ABc", 4),
        ("(3:4ABcd", 4 + 1), ("(5:4:5ABcde", 4), ("(5:4:2A5B5c", 8 + 1), ("(10:8:10" + "A" * 10, 8),
        ("(3ABc(3def", 4), ("(3A{g}Bc", 2), ('(3"Am"A!f!Bc d', 3), ("(3A2B2c2 d", 5), ("(3A>Bc d", 3),
    ],
)  # fmt: skip
def test_tuplets_in_full(text, units):
    assert bar_length(text, Fraction(1, 8)) == pytest.approx(units / 8)


def test_lengths_beyond_all_music():
    top = 10**6
    assert bar_length(f"A{top - 1}", Fraction(1)) == top - 1
    assert bar_length(f"A{top}", Fraction(1)) == bar_length(f"A{top + 1}", Fraction(1)) == top
    assert bar_length(f"A{top + 1}/2", Fraction(1)) == top / 2
    assert bar_length("A" + "/" * 20, Fraction(1)) == bar_length("A" + "/" * 21, Fraction(1)) == 2.0**-20


@pytest.mark.parametrize(
    ("length", "unit", "text"),
    [(1, 8, "z8"), (Fraction(1, 8), 8, "z"), (Fraction(1, 16), 8, "z1/2"), (Fraction(3, 16), 8, "z3/2"),
     (Fraction(9, 16), 8, "z9/2"), (Fraction(1, 12), 8, "z2/3"), (Fraction(1, 2048), 8, "z1/256"), (2, 4, "z8")],
)  # fmt: skip
def test_rest(length, unit, text):
    assert rest(float(length), Fraction(1, unit)) == text
    assert rest(float(length), Fraction(1, unit), "x") == text.replace("z", "x")
    assert bar_length(text, Fraction(1, unit)) == pytest.approx(float(length))


# In tunes


@pytest.mark.parametrize(("meter", "five"), [("4/4", 2), ("9/4", 2), ("7/8", 2), ("6/8", 3), ("9/8", 3), ("12/8", 3)])
def test_a_quintuplet_is_as_long_as_its_meter_makes_it(meter, five):
    """Whether the meter stands in the header, in a line of its own, or in the bar."""
    at_first, later = f"M:{meter}\nL:1/8\n", "M:2/2\nL:1/8\n"
    if read_meter(meter)[1]:
        other = 2
    else:
        other, later = 3, "M:6/8\nL:1/8\n"
    for length, warnings in ((five, []), (other, ["voices of unequal length in 1 bars: 2"])):
        assert interleaved("A|(5ABcde f2|g|", f"A|c{length}d2|g|", at_first)[1] == warnings
        for change in (f"[M:{meter}]", f"\nM:{meter}\n"):
            first, second = f"A|{change}(5ABcde f2|g|", f"A|{change}c{length}d2|g|"
            assert interleaved(first, second, later)[1] == warnings
    # It holds on in the bars that follow, and for the rests that fill up a voice.
    found, _ = interleaved(f"A|[M:{meter}]A|(5ABcde f2|", "A|", later)
    assert second_voice(found)[2] == f"z{five + 2}|"
    found, _ = interleaved(f"A|[M:{meter}](5ABcde f2|", "A|", later)
    assert second_voice(found)[1] == f"z{five + 2}|"
    # The other way, it holds up to the change only.
    found, _ = interleaved(f"(5ABcde f2|[{later[:5]}](5ABcde f2|", "A5|", at_first)
    assert second_voice(found)[1] == f"z{other + 2}|"


def test_changes_of_unit_length():
    sixteenths = "[L:1/16]A16|B16|\nL:1/4\nc4|d4|"
    assert interleaved(sixteenths, "A8|B8|c8|d8|")[1] == []
    found, _ = interleaved("A8|B8|c8|d8|", "[L:1/16]A16|Z|\nL:1/4\nZ2|")
    assert second_voice(found) == ["[L:1/16]A16|", "z16|", "[L:1/4]z4|", "z4|"]
    found, _ = interleaved("[L:1/16]A16|B16|c16|", "A8|")  # filled up in the voice's own unit
    assert second_voice(found) == ["A8|", "z8|", "z8|"]
    found, _ = interleaved("A8|B8|c8|", "[L:1/2]A2|")
    assert second_voice(found) == ["[L:1/2]A2|", "z2|", "z2|"]
    assert interleaved("[L:1/4]|A4|", "A8|")[1] == []  # before the first barline
    assert interleaved("[L:x]A8|A8|", "A8|A8|", "L:1/4\nM:4/4\n")[1] == []  # one that says nothing changes nothing
    # A bar is as long as the unit at its start makes it.
    found, _ = interleaved("A8|B4[L:1/4]c2|d4|", "A8|")
    assert second_voice(found) == ["A8|", "z8|", "z8|"]


def test_upbeats_are_bars_of_their_own():
    bars, warnings = interleaved("A2|B8|c6|]", "z2|d8|e6|]")
    assert bars == ["[V:1]A2|[V:2]z2|", "[V:1]B8|[V:2]d8|", "[V:1]c6|][V:2]e6|]"] and warnings == []
    bars, warnings = interleaved("A2|B8|c6|]", "A2|")  # filled up as long as the bars of the others are
    assert second_voice(bars) == ["A2|", "z8|", "z6|]"]


def test_rests_in_place_of_bars_without_notes():
    """A bar with a chord symbol alone has no length; then the meter of the voice that is filled up counts."""
    found, _ = interleaved('A8|B8|"Am"|c8|', "A8|[M:3/4]B6|")
    assert second_voice(found) == ["A8|", "[M:3/4]B6|", "z6|", "z8|"]
    found, _ = interleaved('A8|"Am"|c8|', "A8|", "M:none\nL:1/8\n")
    assert second_voice(found) == ["A8|", "z8|", "z8|"]


def test_differences_of_length_that_are_reported():
    """Less than a thousandth of a whole note is a matter of rounding: three sevenths are not exact."""
    assert interleaved("(7:3:7ABcdefg A5|", "(3ABc d6|")[1] == []
    assert interleaved("A7 B/64|c8|", "A7|c8|")[1] == ["voices of unequal length in 1 bars: 1"]
    assert interleaved("A7 B/256|c8|", "A7|c8|")[1] == []
    wrong = "|".join(["A7"] * 5)
    listed = "1, 2, 3, 4, 5"
    right = "|".join(["A8"] * 6)
    assert interleaved(f"{right}|", f"{wrong}|A8|")[1] == [f"voices of unequal length in 5 bars: {listed}"]
    assert interleaved(f"{right}|", f"{wrong}|A7|")[1] == [f"voices of unequal length in 6 bars: {listed}, ..."]


def test_every_rest_of_a_bar_has_the_meter_of_its_place():
    found, warnings = interleaved("A8|[M:6/8]B6|c6|[M:2/4]d4|e4|", "Z|[M:6/8]Z2|[M:2/4]X|Z|")
    assert second_voice(found) == ["z8|", "[M:6/8]z6|", "z6|", "[M:2/4]x4|", "z4|"] and warnings == []
    assert second_voice(interleaved("A|B|c|d|", "A|Z2B|d|")[0]) == ["A|", "z8B|", "z8|", "d|"]


@pytest.mark.parametrize(("written", "bars"), [("Z", 1), ("Z1", 1), ("Z0", 1), ("Z2", 2), ("X3", 3), ("Z01", 1)])
def test_number_of_bars_of_a_rest(written, bars):
    letter = written[0].lower()
    ((text, _),) = interleave(f"X:1\nL:1/8\nM:2/4\nK:C\nA4|{written}|B4|\n")
    assert text.splitlines()[4:] == ["[V:1]A4|", *[f"[V:1]{letter}4|"] * bars, "[V:1]B4|"]


def test_is_compound_of_a_bar_is_that_at_its_start():
    voice = abc_voices.Voice(Fraction(1, 8), Fraction(6, 8), True)
    voice.add_plain("(5ABcde")
    voice.end_bar("|")
    voice.add_field("M", "2/4")
    voice.add_field("L", "1/4")
    voice.add_plain("A2")
    voice.end_bar("|")
    voice.add_plain("A2")
    voice.end_bar("|")
    assert [(bar.unit, bar.is_compound) for bar in voice.bars] == [
        (Fraction(1, 8), True), (Fraction(1, 8), True), (Fraction(1, 4), False)
    ]  # fmt: skip
    assert [bar.length() for bar in voice.bars] == [pytest.approx(3 / 8), 0.5, 0.5]
