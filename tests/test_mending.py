"""Each rule that mends MusicXML, alone, on scores of a few elements: what it takes away, and what it leaves."""

from xml.etree import ElementTree

import pytest

from mending import join_lines, mend

LISTED = '<part-list><score-part id="P1"><part-name /></score-part></part-list>'


def mended_score(text: str) -> tuple[str, list[str]]:
    root = ElementTree.fromstring(text)
    done = mend(root)
    return ElementTree.tostring(root, encoding="unicode"), done


def mended(content: str) -> tuple[str, list[str]]:
    """A measure of one part, mended, and what was done."""
    start, end = f'<score-partwise>{LISTED}<part id="P1"><measure>', "</measure></part></score-partwise>"
    text, done = mended_score(start + content + end)
    assert text.startswith(start) and text.endswith(end)
    assert mended_score(text) == (text, [])  # and then nothing is left to mend
    return text.removeprefix(start).removesuffix(end), done


def direction(content: str, extra: str = "") -> str:
    return f"<direction><direction-type>{content}</direction-type>{extra}</direction>"


def note(extra: str = "") -> str:
    return f"<note><pitch><step>C</step><octave>4</octave></pitch>{extra}</note>"


@pytest.mark.parametrize(
    ("tag", "known", "unknown"),
    [
        ("wedge", ("crescendo", "diminuendo", "stop"), ("continue", "")),
        ("octave-shift", ("up", "down", "stop"), ("continue", "x")),
        ("pedal", ("start", "stop"), ("change", "continue", "sostenuto", "discontinue", "resume")),
    ],
)
def test_spans(tag, known, unknown):
    for kind in known:
        content = note() + direction(f'<{tag} type="{kind}" />')
        assert mended(content) == (content, [])
    for kind in unknown:
        content = note() + direction(
            f'<words>x</words><{tag} type="{kind}" /><{tag} type="{kind}" /><{tag} type="stop" />'
        )
        kept = note() + direction(f'<words>x</words><{tag} type="stop" />')
        assert mended(content) == (kept, [f"2 × {tag} of type {kind!r} left out"])
    assert mended(note() + direction(f"<{tag} />"))[1] == [f"1 × {tag} of type '' left out"]
    for other in ("dashes", "bracket"):
        content = note() + direction(f'<{other} type="continue" />')
        assert mended(content) == (content, [])


@pytest.mark.parametrize(
    "sign", ["double-flat", "flat-flat", "flat", "natural", "sharp", "sharp-sharp", "double-sharp"]
)
def test_accidentals_that_abc_has(sign):
    content = note(f"<accidental>{sign}</accidental>")
    assert mended(content) == (content, [])


@pytest.mark.parametrize("sign", ["quarter-flat", "three-quarters-sharp", "natural-sharp", "sharp-up", "sori", "koron"])
def test_accidentals_that_abc_has_not(sign):
    said = f"1 × accidental {sign!r} left out, the pitch rounded to semitones"
    assert mended(note(f"<accidental>{sign}</accidental><stem>up</stem>")) == (note("<stem>up</stem>"), [said])


def test_metronome_marks():
    good = direction("<metronome><beat-unit>half</beat-unit><per-minute>60</per-minute></metronome>")
    for bad in (
        "<beat-unit>half</beat-unit><beat-unit>quarter</beat-unit>",
        "<beat-unit>half</beat-unit><per-minute />",
    ):
        content = note() + good + direction(f"<words>x</words><metronome>{bad}</metronome>")
        kept = note() + good + direction("<words>x</words>")
        assert mended(content) == (kept, ["1 × metronome mark without beats per minute left out"])
    assert mended(note() + good) == (note() + good, [])


@pytest.mark.parametrize(("beats", "total"), [("3+2", "5"), ("2+2+3", "7"), (" 3 + 3+2 ", "8"), ("10+2", "12")])
def test_beats_that_are_added(beats, total):
    time = "<time><beats>{}</beats><beat-type>8</beat-type></time>"
    assert mended(note() + time.format(beats)) == (
        note() + time.format(total),
        [f"1 × {beats} beats written as {total}"],
    )
    for plain in ("4", " 3 "):
        assert mended(note() + time.format(plain)) == (note() + time.format(plain), [])
    for odd in ("3+", "+2+", "3-2", "senza", "", "0"):
        left, done = mended(note() + time.format(odd))
        assert left == note() + "<time />" and done == [f"1 × time signature '{odd} 8' left out"]


@pytest.mark.parametrize("item", ["direction", "harmony", "sound"])
def test_staves_without_notes(item):
    """What stands on one is moved to the first that has notes, and left out if none has."""
    notes = note("<staff>3</staff>") + note("<staff>2</staff>")
    for staff in ("2", "3"):
        content = notes + f"<{item}><staff>{staff}</staff></{item}>"
        assert mended(content) == (content, [])
    moved = (notes + f"<{item}><x /><staff>2</staff></{item}>", [f"1 × {item} on a staff without notes moved"])
    assert mended(notes + f"<{item}><staff>4</staff><x /></{item}>") == moved
    assert mended(notes + f"<{item}><x /></{item}>") == moved  # that is on the first staff
    assert mended(note() + f"<{item}><x /></{item}>") == (note() + f"<{item}><x /></{item}>", [])
    assert mended(f"<barline /><{item}><x /></{item}>") == (
        "<barline />",
        [f"1 × {item} on a staff without notes left out"],
    )
    assert mended("<barline><staff>9</staff></barline>") == ("<barline><staff>9</staff></barline>", [])


@pytest.mark.parametrize("item", ["clef", "measure-style"])
def test_clefs_of_staves_without_notes(item):
    """The first attributes may have them; xml2abc stops at those that follow."""
    attributes = f'<attributes><{item} number="2"><sign>G</sign></{item}></attributes>'
    assert mended(attributes + note()) == (attributes + note(), [])
    kept = attributes + note() + "<attributes />"
    assert mended(attributes + note() + attributes) == (kept, [f"1 × {item} on a staff without notes left out"])
    two = attributes + note("<staff>2</staff>") + attributes
    assert mended(two) == (two, [])


def test_parts_with_an_entry_of_another_id():
    """xml2abc takes the entries in their order."""
    text = f'<score-partwise>{LISTED}<part id="X"><measure><note /></measure></part></score-partwise>'
    assert mended_score(text) == (text, [])


def test_parts_without_an_entry():
    part = '<part id="{}"><measure><note /></measure></part>'
    said = "1 × part that is missing in the part list added there"
    entry = '<score-part id="{}"><part-name /></score-part>'
    one, two = part.format("P1"), part.format("P2")
    for text, listed, done in (
        (f"<score-partwise>{LISTED}{one}</score-partwise>", entry.format("P1"), []),
        (f"<score-partwise>{LISTED}{one}{two}</score-partwise>", entry.format("P1") + entry.format("P2"), [said]),
        (f"<score-partwise>{one}</score-partwise>", entry.format("P1"), [said]),
        (
            f"<score-partwise>{one}{two}</score-partwise>",
            entry.format("P1") + entry.format("P2"),
            [said.replace("1", "2")],
        ),
    ):
        parts = one + two if two in text else one
        assert mended_score(text) == (f"<score-partwise><part-list>{listed}</part-list>{parts}</score-partwise>", done)


BREAKS = [
    "\n",
    "\r",
    "\r\n",
    "\x85",
    "\u2028",
    "\u2029",
    "&#10;",
    "&#13;",
    "&#x0A;",
    "&#xD;",
    "&#xa;",
    "&#013;\n",
    " \n ",
]


@pytest.mark.parametrize("mark", BREAKS)
def test_line_breaks_in_lyrics(mark):
    said = ["1 × line break in the lyrics taken for a space"]
    assert join_lines(f"<text>ge{mark}be</text>") == ("<text>ge be</text>", said)
    assert join_lines(f'<text font="x">{mark}ge{mark}be{mark}</text>') == ('<text font="x">ge be</text>', said)
    twice = f"<text>ge{mark}</text><text>a</text><text>{mark}be{mark}x</text>"
    assert join_lines(twice) == (
        "<text>ge</text><text>a</text><text>be x</text>",
        ["2 × line break in the lyrics taken for a space"],
    )


def test_what_is_no_line_break_in_lyrics():
    for same in (
        "<text> ge be </text>",
        "<words>ge\nbe</words>",
        "<text>&#100;&#x0B;</text>",
        "<text></text>\n<text>a</text>",
    ):
        assert join_lines(same) == (same, [])
    # Every end of line of the file is \n from here on.
    for end in ("\r", "\r\n", "&#13;", "&#xD;", "&#13;\n", "&#x0d;&#x0A;"):
        assert join_lines(f"<words>ge{end}be</words>") == ("<words>ge\nbe</words>", [])
