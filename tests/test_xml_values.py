"""What xml2abc reads as numbers, or keeps from one part to the next: one odd value costs a score nothing but itself."""

import pytest

from files import InputError
from scores import note, score
from xml_abc import abc_to_musicxml, musicxml_to_abc

NOTES = note("C4") + note("E4") + note("G4", 4)


def converted(*measures: str, **changes: str) -> tuple[str, list[str]]:
    """A score of these measures, with texts of it changed -> (ABC from its meter on, warnings)."""
    data = score(*(measures or (NOTES,)))
    for old, new in changes.values():
        assert old in data
        data = data.replace(old, new)
    abc, warnings = musicxml_to_abc(data.encode(), "x.xml")
    return abc[abc.index("L:1/8") :], warnings


PLAIN = converted()[0]


def sung(number: str, text: str = "la") -> str:
    return f'<lyric number="{number}"><text>{text}</text></lyric>'


def metronome(per_minute: str) -> str:
    beat = f"<beat-unit>quarter</beat-unit><per-minute>{per_minute}</per-minute>"
    return f"<direction><direction-type><metronome>{beat}</metronome></direction-type></direction>"


@pytest.mark.parametrize(
    ("written", "tempo"),
    [("ca. 76", "76"), ("c. 108", "108"), ("76", "76"), ("66.5", "66"), ("ca 80-84", "80"), ("1.2.3", "1")],
)
def test_tempos(written, tempo):
    abc, warnings = converted(metronome(written) + NOTES)
    assert abc == PLAIN.replace("M:4/4", f"Q:1/4={tempo}\nM:4/4")
    assert bool(warnings) == (written in ("ca. 76", "c. 108", "1.2.3"))


@pytest.mark.parametrize("written", ["...", ".", "inf."])
def test_without_a_tempo(written):
    abc, warnings = converted(metronome(written) + NOTES)
    assert abc == PLAIN and any(repr(written) in warning for warning in warnings)


ODD = ["", "x", "one", "1.5", "nan", "1e400", "9" * 5000]


@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize(
    "place",
    [
        "<note><staff>{}</staff>",
        "<direction><staff>{}</staff></direction><note>",
        "<attributes><key><fifths>{}</fifths></key></attributes><note>",
        "<attributes><key><fifths>0</fifths><mode>{}</mode></key></attributes><note>",
        "<attributes><time><beats>{}</beats><beat-type>4</beat-type></time></attributes><note>",
        "<attributes><time><beats>4</beats><beat-type>{}</beat-type></time></attributes><note>",
        "<attributes><transpose><chromatic>{}</chromatic></transpose></attributes><note>",
        "<attributes><transpose><octave-change>{}</octave-change></transpose></attributes><note>",
        '<attributes><clef number="{}"><sign>G</sign><line>2</line></clef></attributes><note>',
        "<attributes><clef><sign>G</sign><line>2</line><clef-octave-change>{}</clef-octave-change></clef></attributes><note>",
        '<attributes><measure-style number="{}"><measure-repeat type="start">1</measure-repeat></measure-style>'
        "</attributes><note>",
        '<attributes><measure-style><measure-repeat type="stop">{}</measure-repeat></measure-style></attributes><note>',
        '<direction><sound tempo="{}"/></direction><note>',
        '<direction><direction-type><words default-y="{}">dolce</words></direction-type></direction><note>',
        "<note><time-modification><actual-notes>{}</actual-notes><normal-notes>1</normal-notes></time-modification>",
        "<note><time-modification><actual-notes>1</actual-notes><normal-notes>{}</normal-notes></time-modification>",
        '<note><notations><ornaments><tremolo type="single">{}</tremolo></ornaments></notations>',
        "<note><voice>{}</voice>",
        '<note><lyric number="{}"><text>la</text></lyric>',
        "<backup><duration>0</duration></backup><backup><x>{}</x></backup><note>",
    ],
)
def test_odd_numbers(place, value):
    """Whatever stands where a number should, all notes are there."""
    abc, _ = converted(note("C4", 8), NOTES.replace("<note>", place.format(value), 1))
    music = "".join(line for line in abc.splitlines() if line.endswith("%2")).replace(",", "")
    assert [music.count(letter) for letter in ("C8", "C2", "E2", "G4")] == [1, 1, 1, 1], abc


def test_odd_numbers_of_the_part_list():
    for value in ODD:
        fields = "".join(f"<{tag}>{value}</{tag}>" for tag in ("midi-channel", "midi-program", "volume", "pan"))
        instrument = f"</part-name><midi-instrument>{fields}<midi-unpitched>{value}</midi-unpitched></midi-instrument>"
        assert converted(names=("</part-name>", instrument))[0] == PLAIN


def test_what_was_odd_is_named():
    _, warnings = converted(note("C4", extra="<staff>upper</staff>") * 2 + note("G4", 4))
    assert warnings == ["2 × staff 'upper' left out"]
    _, warnings = converted(note("C4", extra="<staff>1 (right)</staff>") + note("G4", 6))
    assert warnings == ["1 × staff '1 (right)' read as 1"]


def test_verses_with_names():
    """Each in a line of its own, none in the place of another."""
    verses = sung("1", "one") + sung("chorus", "two") + sung("1a", "three") + sung("", "four")
    abc, warnings = converted(note("C4", 8, extra=verses))
    assert abc.endswith(" C8 | %1\nw: one|\nw: two|\nw: three|\nw: four|\n\n")
    assert warnings == [
        f"1 × lyric number {name!r} numbered {number}" for name, number in zip(("chorus", "1a", ""), "234", strict=True)
    ]
    for name in ("chorus", "", "1a", "-1", "1000000000"):
        assert converted(note("C4", 8, extra=sung(name)))[0].endswith("\nw: la|\n\n")
    assert converted(note("C4", 8, extra=sung("part1verse2")))[0].endswith("\nw: la|\n\n")


def test_two_lyrics_of_one_number():
    abc, warnings = converted(note("C4", 8, extra=sung("1", "one") + sung("1", "two")))
    assert abc.endswith("\nw: one|\nw: two|\n\n") and warnings == ["1 × second lyric '1' of a note numbered 2"]
    assert converted(note("C4", 8, extra=sung("1", "one") + sung("2", "two")))[0] == abc


def test_voices_with_names_stay_apart():
    def voice(name: str) -> str:
        return f"<voice>{name}</voice>"

    def both(first: str, second: str) -> str:
        back = "<backup><duration>8</duration></backup>"
        return note("C5", 8, extra=voice(first)) + back + note("E4", 8, extra=voice(second))

    plain = converted(both("1", "2"))[0]
    assert plain.count("8 | %1") == 2
    for first, second in (("1", "1a"), ("1", ""), ("1", "alto"), ("soprano", "alto")):
        assert converted(both(first, second))[0] == plain


@pytest.mark.parametrize(
    ("step", "alter", "written"),
    [("C4", 3, "^D"), ("C4", 4, "E"), ("G4", -3, "_F"), ("B4", 3, "d"), ("C4", -3, "A,"), ("E4", 3, "G")],
)
def test_three_sharps_or_flats_are_written_as_another_note(step, alter, written):
    abc, warnings = converted(note(step, 8, alter=str(alter)))
    semitones = dict(zip("CDEFGAB", (0, 2, 4, 5, 7, 9, 11), strict=True))
    name = written.strip("^_,")
    octave = name.islower() - written.count(",")
    sounding = semitones[name.upper()] + 12 * octave + written.count("^") - written.count("_")
    assert sounding == semitones[step[0]] + alter  # the expected note is the same key
    assert f" {written}8 |" in abc and any(f"alter '{alter}' written" in line for line in warnings)


@pytest.mark.parametrize(("alter", "written"), [("0.5", "F8"), ("-0.5", "F8"), ("1.5", "^F8"), ("-1.5", "_F8")])
def test_microtones_are_rounded_with_a_word(alter, written):
    abc, warnings = converted(note("F4", 8, alter=alter))
    assert f" {written} |" in abc and warnings[0] == f"1 × alter {alter!r} left out, the pitch rounded to semitones"
    assert not any("alter" in line for line in converted(note("F4", 8, alter="1.0"))[1])


def test_a_tuplet_within_a_tuplet_on_a_note_that_is_in_none():
    third = "<time-modification><actual-notes>3</actual-notes><normal-notes>2</normal-notes></time-modification>"
    start, stop = ('<tuplet type="{}" number="{}"/>'.format(kind, "{}") for kind in ("start", "stop"))
    notations = "<notations>{}</notations>"
    before = note("C4", 1, extra=third + notations.format(start.format(1)))
    inner = note("D4", 2, extra=notations.format(start.format(2) + stop.format(2)))
    abc, warnings = converted(before + inner + note("G4", 5))
    assert abc.endswith(" (3:2:1C3/2 D2 G5 | %1\n\n")
    assert warnings == ["1 × tuplet on a note without time-modification left out"]


def test_the_tuplets_of_tremolos():
    """xml2abc knows no ratio of a tremolo between two notes, unless it is in a second <notations>, where it looks not."""
    ratio = "<time-modification><actual-notes>4</actual-notes><normal-notes>2</normal-notes></time-modification>"
    tuplet = '<tuplet type="start"/><tuplet type="stop"/>'
    tremolo = '<ornaments><tremolo type="start">2</tremolo></ornaments>'
    two = f"<notations>{tuplet}</notations><notations>{tremolo}</notations>"
    assert converted(note("C4", 4, extra=ratio + two) + note("G4", 4)) == (PLAIN.replace("C2 E2", "(4:2:1C8"), [])
    one = f"<notations>{tuplet}{tremolo}</notations>"
    abc, warnings = converted(note("C4", 4, extra=ratio + one) + note("G4", 4))
    assert abc == PLAIN.replace("C2 E2", "!//-!C4")
    assert warnings == ["1 × tuplet on a note with a tremolo left out"]


def test_meters_of_several_fractions():
    def meter(*pairs: tuple[str, int]) -> str:
        return "".join(f"<beats>{beats}</beats><beat-type>{unit}</beat-type>" for beats, unit in pairs)

    old = meter(("4", 4))
    for pairs, total in (
        ((("3", 4), ("2", 4)), "5/4"),
        ((("3", 8), ("2", 4)), "7/8"),
        ((("3+2", 8), ("3", 4)), "11/8"),
    ):
        abc, warnings = converted(meter=(old, meter(*pairs)))
        assert f"\nM:{total}\n" in abc and any(line.endswith(f"written as {total}") for line in warnings)


def test_decimal_durations_and_divisions_that_change():
    divisions = "<attributes><divisions>{}</divisions></attributes>"
    for music in (
        note("C4", 2.5) + note("E4", 1.5) + note("G4", 4),
        note("C4", 2.5) + note("E4", 1.5) + divisions.format(4) + note("G4", 8),
        divisions.format("0.5") + note("C4", "0.625") + note("E4", "0.375") + note("G4", "1.0"),
    ):
        assert converted(music)[0].endswith(" C5/2 E3/2 G4 | %1\n\n")
    music = note("C4", 4) + divisions.format(1) + note("E4", 2)
    assert converted(music)[0].endswith(" C4 E4 | %1\n\n")


def test_a_note_that_goes_back_in_time_is_read():
    """Some programs write an overlap so. The reader of it warns."""
    text, warnings = converted(note("C4", 4) + note("D4", -2) + note("E4", 2))
    assert all(name in text for name in "CDE") and any("overlap" in warning for warning in warnings), (text, warnings)


def test_without_divisions_the_score_is_refused():
    for text in ("", "<divisions/>"):
        with pytest.raises(InputError, match="part P1 has no <divisions>: the length of its notes is unknown"):
            converted(divisions=("<divisions>2</divisions>", text))
    for text in ("0", "-1", "two", "nan"):
        with pytest.raises(InputError, match=r"part P1, measure 1: divisions '.*' is no length"):
            converted(divisions=("<divisions>2<", f"<divisions>{text}<"))


@pytest.mark.parametrize(
    ("old", "new", "abc", "warnings"),
    [
        ("<octave>4<", "<octave>4.0<", " C2 E2 G4 |", []),
        ("<step>E</step><octave>4<", "<step>e</step><octave> 4 <", " C2 E2 G4 |", ["1 × step 'e' read as E"]),
        ("<step>E<", "<step>H<", " C2 z2 G4 |", ["1 × note of pitch 'H 4' left out"]),
        ("<step>E<", "<step>Z<", " C2 z2 G4 |", ["1 × note of pitch 'Z 4' left out"]),
        ("<step>E<", "<step><", " C2 z2 G4 |", ["1 × note of pitch '4' left out"]),
        ("<step>E</step><octave>4<", "<step>E</step><octave>x<", " C2 z2 G4 |", ["1 × note of pitch 'E x' left out"]),
        ("<step>E</step><octave>4</octave>", "<step>E</step>", " C2 z2 G4 |", ["1 × note of pitch 'E' left out"]),
    ],
)
def test_a_pitch_that_cannot_be_known_is_a_rest(old, new, abc, warnings):
    text, found = converted(pitch=(old, new))
    assert (text.split("%1")[0].splitlines()[-1].rstrip(), found) == (abc, warnings)


@pytest.mark.parametrize(
    ("steps", "abc"), [("CHG", " [CG]8 |"), ("HEG", " [EG]8 |"), ("HHG", " G8 |"), ("CHH", " C8 |")]
)
def test_a_pitch_that_cannot_be_known_is_missing_in_its_chord(steps, abc):
    first, *others = (note(f"{step}4", 8) for step in steps)
    text, warnings = converted(first + "".join(other.replace("<note>", "<note><chord/>") for other in others))
    assert text.split("%1")[0].splitlines()[-1].rstrip() == abc
    assert warnings == [f"{steps.count('H')} × note of pitch 'H 4' left out"]


@pytest.mark.parametrize("text", ["x|y", "1 2", "[1]", "1!", "", "1:2"])
def test_a_fingering_that_no_decoration_can_hold_is_left_out(text):
    fingering = "<notations><technical><fingering>{}</fingering></technical></notations></note>"
    found = converted(fingering=("</note>", fingering.format(text)))
    assert found == (PLAIN, [f"3 × fingering {text!r} left out"])
    assert "!p!C2" in converted(fingering=("</note>", fingering.format(" p ")))[0]


def test_a_default_namespace():
    abc, warnings = converted(root=("<score-partwise ", '<score-partwise xmlns="http://www.musicxml.org/ns" '))
    assert (abc, warnings) == (PLAIN, [])


def harmony(kind: str = "major", extra: str = "", text: str = "") -> str:
    root = "<root><root-step>C</root-step></root>"
    return f'<harmony>{root}<kind text="{text}">{kind}</kind>{extra}</harmony>'


def test_no_chord_is_no_chord_of_c():
    assert '"N.C." C2' in converted(harmony("none") + NOTES)[0] and '"C" C2' in converted(harmony() + NOTES)[0]
    assert '"tacet" C2' in converted(harmony("none", text="tacet") + NOTES)[0]
    abc, warnings = converted(harmony("a-b-c") + NOTES)
    assert '"Ca b c"' in abc and "in words" in warnings[0]
    bass = "<bass><bass-step>G</bass-step><bass-alter> 1 </bass-alter></bass>"
    assert '"C/G#" C2' in converted(harmony(extra=bass) + NOTES)[0]


@pytest.mark.parametrize(
    ("offset", "music"),
    [
        ("0", '"C" C2 E2 G4'),
        ("2", ' C2"C" E2 G4'),
        ("4", ' C2 E2"C" G4'),
        ("4.0", ' C2 E2"C" G4'),
        ("3", '"C" C2 E2 G4'),
        ("99", '"C" C2 E2 G4'),
        ("x", '"C" C2 E2 G4'),
    ],
)
def test_chord_symbols_with_an_offset(offset, music):
    abc, warnings = converted(harmony(extra=f"<offset>{offset}</offset>") + NOTES)
    assert music in abc
    assert bool(warnings) == (offset in ("3", "99", "x"))
    back = note("C4") + note("E4") + harmony(extra="<offset>-2</offset>") + note("G4", 4)
    assert ' C2"C" E2 G4' in converted(back)[0]


def test_a_chord_symbol_within_a_rest_is_on_its_beat():
    rest = "<note><rest/><duration>8</duration></note>"
    chords = harmony() + harmony("minor", extra="<offset>4</offset>") + harmony(extra="<offset>6</offset>")
    abc, warnings = converted(chords + rest, note("C4", 8))
    assert '"C" z4"Cm" z2"C" z2 | C8' in abc and warnings == []
    abc, warnings = converted(chords + note("C4", 8))
    assert '"C""Cm""C" C8' in abc and warnings == ["2 × offset of a chord symbol to within a note left out"]


# What xml2abc keeps between parts


def two_parts(first: str, second: str) -> tuple[list[str], list[str]]:
    """(The music of each voice, warnings)."""
    data = score(first).replace(
        "</part-list>", '<score-part id="P2"><part-name>Viola</part-name></score-part></part-list>'
    )
    attributes = "<attributes><divisions>2</divisions></attributes>"
    part = f'<part id="P2"><measure number="1">{attributes}{second}</measure></part></score-partwise>'
    abc, warnings = musicxml_to_abc(data.replace("</score-partwise>", part).encode(), "x.xml")
    return [line.split("|")[0].strip() for line in abc.splitlines() if line.endswith("%1")], warnings


def direction(sign: str) -> str:
    return f"<direction><direction-type>{sign}</direction-type></direction>"


@pytest.mark.parametrize("sign", ['<pedal type="{}"/>', '<wedge type="{}"/>', '<octave-shift type="{}"/>'])
def test_directions_in_parts_with_other_voices(sign):
    start = {"pedal": "start", "wedge": "crescendo", "octave": "up"}[sign[1:].partition(" ")[0].partition("-")[0]]
    begin, end = direction(sign.format(start)), direction(sign.format("stop"))
    seven = note("E4", 8, extra="<voice>7</voice>")
    for first, second in (
        (begin + seven + end, begin + note("C4", 8) + end),
        (begin + seven, note("C4", 8) + end),
        (seven + end, begin + note("C4", 8)),
    ):
        music, _ = two_parts(first, second)
        assert ["E8" in music[0], "C8" in music[1]] == [True, True]


def test_nothing_that_is_open_goes_on_in_the_next_part():
    slur = '<notations><slur type="{}" number="1"/></notations>'
    begins, ends = (note("C4", 4, extra=slur.format(kind)) for kind in ("start", "stop"))
    music, _ = two_parts(begins + note("E4", 4), begins + ends)
    assert music == ["C4 E4", "(C4 C4)"]
    assert two_parts(note("E4", 4) + ends, begins + ends)[0] == ["E4 C4", "(C4 C4)"]
    grace = "<note><grace/><pitch><step>D</step><octave>4</octave></pitch></note>"
    assert two_parts(note("C4", 8) + grace, grace + note("E4", 8))[0][1] == "{D} E8"
    assert two_parts(
        note("C4", 8) + direction('<wedge type="crescendo"/>'), NOTES + direction('<wedge type="stop"/>')
    ) == (
        ["C8!<(!", "C2 E2 G4"],
        [],
    )


def test_a_part_without_a_key_has_that_of_the_header():
    """K:D holds for it in ABC, whatever the key of the part before has become; the F is natural."""
    key = "<attributes><key><fifths>{}</fifths></key></attributes>"
    first = score(note("F4", 8, alter="1"), key.format(0) + note("G4", 8)).replace("<fifths>0", "<fifths>2", 1)
    data = first.replace("</part-list>", '<score-part id="P2"><part-name/></score-part></part-list>')
    attributes = "<attributes><divisions>2</divisions></attributes>"
    part = f'<part id="P2"><measure>{attributes}{note("F4", 8)}</measure></part></score-partwise>'
    abc, _ = musicxml_to_abc(data.replace("</score-partwise>", part).encode(), "x.xml")
    assert "\nK:D\n" in abc and " F8 |[K:C] G8 | %2\nV:2\n =F8 | %1\n" in abc


def test_a_chord_without_a_first_note():
    chord = note("E4", 8).replace("<note>", "<note><chord/>")
    music, warnings = two_parts(note("C4", 8), chord)
    assert music == ["C8", "E8"] and "chord without a first note" in warnings[0]
    assert converted(chord)[0].endswith(" E8 | %1\n\n")


def test_unpitched_notes_without_a_clef():
    clef = "<clef><sign>G</sign><line>2</line></clef>"
    drum = "<note><unpitched><display-step>E</display-step><display-octave>4</display-octave></unpitched>{}</note>"
    abc, _ = converted(drum.format("<duration>8</duration>"), clef=(clef, ""))
    assert abc.endswith(" E8 | %1\n\n")


def test_directions_where_no_voice_is_the_first():
    """The staff 1 has a few notes of a voice that is mostly on the other; no voice is called 1."""
    up = note("C4", 2, extra="<voice>5</voice><staff>1</staff>")
    low = note("E4", 2, extra="<voice>5</voice><staff>2</staff>")
    abc, _ = converted(up + low * 3 + direction("<words>dolce</words>"))
    assert '"^dolce"' in abc


# Text


def test_percent_signs_begin_no_comment():
    data = score(note("C4", 8, extra=sung("1", "100%")), title="50% off %").replace(
        "</work>",
        "</work>"
        '<identification><creator type="composer">A%B</creator><creator type="lyricist">% C</creator></identification>',
    )
    abc, _ = musicxml_to_abc(data.encode(), "x.xml")
    assert abc.startswith("X:1\nT:50\\% off \\%\nC:A\\%B\nZ:\\% C\n") and abc.endswith(" C8 | %1\nw: 100\\%|\n\n")
    again = abc_to_musicxml(abc).decode()
    assert ">50% off %<" in again and ">100%<" in again


@pytest.mark.parametrize(
    ("duration", "extra", "abc"),
    [
        ("", "<type>half</type>", "C4 E2 |"),
        ("<duration/>", "<type>quarter</type><dot/>", "C3 E2 |"),
        ("<duration>0</duration>", "<type>half</type>", "C4 E2 |"),
        ("<duration>x</duration>", "<type>16th</type>", "C/ E2 |"),
        ("<duration>2,0</duration>", "<type>quarter</type>", "C2 E2 |"),
    ],
)
def test_a_note_without_a_duration_has_that_of_its_type(duration, extra, abc):
    odd = note("C4", 2, extra).replace("<duration>2</duration>", duration)
    text, (warning, *_) = converted(odd + note("E4"))
    assert text.split("%1")[0].splitlines()[-1].strip() == abc
    assert warning.startswith("1 × duration ") and "type" in warning


def test_a_note_without_a_duration_and_without_a_type():
    odd = note("C4").replace("<duration>2</duration>", "")
    text, warnings = converted(odd + note("E4"))
    assert " C E2 |" in text and warnings == ["1 × note of duration '' written as an eighth note"]
    with pytest.raises(InputError, match="duration 'x' is no length"):
        converted(odd.replace("<stem>", "<duration>x</duration><stem>"))
    grace = note("D4").replace("<note>", "<note><grace/>").replace("<duration>2</duration>", "")
    chord = note("G4").replace("<note>", "<note><chord/>").replace("<duration>2</duration>", "")
    assert converted(grace + note("E4") + chord)[1] == []
