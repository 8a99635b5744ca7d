"""Each construct of the ABC standard 2.1 at random legal places of real tunes: no note is lost, none invented.

A tune is converted as it is and with one construct put into it, to interleaved ABC and to MusicXML, directly and by way
of interleaved ABC. `CLAMP2_ALL=1` in the environment tries each construct on 20 tunes, 600 in all.
"""

import os
import random
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import music21
import pytest

import interleaving
from second_opinion import xml_notes
from xml_abc import abc_to_musicxml

TUNES = 20 if "CLAMP2_ALL" in os.environ else 1  # for each construct
NOTE = r"(?<![<>_^=])(?:__?|\^\^?|=)?[A-Ga-g][,']*\d*/*\d*(?![\d/,']|\s*[<>])"
PLACES = {  # in the body of a tune, or before it
    "header": r"\A",
    "line": r"(?<=\n)(?=.)",
    "line end": r"(?=\n.)",
    "note": NOTE,
    "gap": rf"(?<=[A-Ga-g\d]) ?(?={NOTE})",
    "bar": r"(?<=[\w ])\|(?=[ A-Ga-gz])",
}


@dataclass
class Construct:
    place: str
    text: str  # N: the note that it takes the place of
    adds: str = ""  # names of notes, octave and all, less those that N brings
    is_exact: bool = True  # without added notes, onset, length and pitch of all others stay

    @property
    def added(self) -> Counter:
        return Counter(re.findall(r"[A-Ga-g][,']*", self.adds))


def each(place: str, *texts: str, **more) -> list[Construct]:
    return [Construct(place, text, **more) for text in texts]


LINES = ["N:note | CDEF|", "R:reel", "r:remark | CDEF|", "T:Part | B", "W:words | to CDEF|", "w:la la | la CDEF", "H:long|",
         "G:group | A", "D:disc", "B:book ABc|", "C:composer", "F:http://x|y", "A:area", "O:origin", "S:source", "Z:transcriber"]  # fmt: skip
DIRECTIVES = ["%", "% CDEF|GABc|", "%%text CDEF|", "%%center CDEF|", "%%newpage", "%%vskip 2", "%%sep 3 4 5", "%%setbarnb 7",
              "%%MIDI program 40", "%%MIDI gchord fzcz", "%%begintext\nCDEF|\n\nGABc|\n%%endtext", "%%beginps\nA B C|\n%%endps",
              "%%staves 1", "%%score 1", "I:setbarnb 5", "I:papersize A4", "%%stretchlast", "%%abc-version 2.1", "%%repbra 0"]  # fmt: skip
INLINE = ["[r:remark CDEF]", "[r:re | mark]", "[N:note ABC]", "[R:reel]", "[P:B]", "[Q:1/4=100]", '[Q:"Allegro" 1/4=120]',
          "[I:setbarnb 3]", "[U:T=!trill!]", "[V:1]"]  # fmt: skip
DECORATIONS = [".", "~", "H", "L", "M", "O", "P", "S", "T", "u", "v"]
SYMBOLS = ["trill", "trill(", "trill)", "lowermordent", "uppermordent", "mordent", "pralltriller", "roll", "turn",
           "turnx", "invertedturn", "invertedturnx", "arpeggio", ">", "accent", "emphasis", "fermata", "invertedfermata",
           "tenuto", "0", "1", "2", "3", "4", "5", "+", "plus", "snap", "slide", "wedge", "upbow", "downbow", "open",
           "thumb", "breath", "pppp", "ppp", "pp", "p", "mp", "mf", "f", "ff", "fff", "ffff", "sfz", "crescendo(",
           "crescendo)", "<(", "<)", "diminuendo(", "diminuendo)", ">(", ">)", "segno", "coda", "D.S.", "D.C.", "dacoda",
           "dacapo", "fine", "shortphrase", "mediumphrase", "longphrase"]  # fmt: skip
TEXTS = ['"Am7"', '"C/E"', '"(G)"', '"F#m7b5"', '"Bb(b9)"', '"^CDEF | GABc"', '"_Z4"', '"<(" ', '">)"', '"@1,-2 abc"', '"^[V:2] %"',
         '"^50% slower"', r'"^\"quoted\""', '"^caf\u00e9 \\u00e9 \\\'e &eacute;"', '"Am""^up"', '"^!f!"', '"^{g}"', '"^a\\nb"', '"C;D"']  # fmt: skip
BARS = ["||", "|]", "[|", "|:", ":|", "::", ":|:", ":||:", "|[|", "[|]", ".|", "|||", ":|]", "[|:", "| |", "|::", "::|", "|1 ",
        "| [1 ", ":|2 ", "|1,3 ", "|1-3 ", "|[1,2-4 ", ":|\\\n", "|$", "|!\n", "|\\ % comment\n"]  # fmt: skip

CONSTRUCTS = {
    "3.1 fields": each("line", *LINES),
    "3.1 fields of the header": each("header", *(line for line in LINES if line[0] != "w"), *DIRECTIVES, "P:AB", "Q:1/4=90", 'Q:"slow"', "U:T=!trill!", "m:~n=n", "K:none"),
    "3.1 fields of the body": each("line", "P:B", "Q:1/4=100", "U:W=!trill!", "I:linebreak $", "V:1", "m:~G3=G{A}G{F}G", "N:note\n+:CDEF|", "w:la\n+:CDEF|", "H:long\n+:history\n+:ABc|"),
    "3.1.6 meter": each("line", "M:none", "M:C|", "M:(2+3)/8", is_exact=False) + each("gap", "[M:3/4]", "[M:C|]", is_exact=False),
    "3.1.7 unit": each("line", "L:1/4", is_exact=False) + each("gap", "[L:1/16]", is_exact=False),
    "3.1.14 key": each("line", "K:Eb", "K:HP", "K:D exp _b ^f", "K:Gmix clef=bass", is_exact=False) + each("gap", "[K:D]", "[K:none]", "[K:Ddor]", "[K:clef=alto]", "[K:bass]", is_exact=False),
    "3.2 inline fields": each("gap", *INLINE) + each("bar", *(f"|{field}" for field in INLINE)),
    "4.1 pitch": each("note", "N c''' C,,, c,' C',", adds="c'''C,,,c,'C',"),
    "4.2 accidentals": each("note", "N ^C =C _C ^^C __C", adds="CCCCC"),
    "4.3 lengths": each("note", "N C3/2 D/ E// F///4 G16 A/8 B7/2", adds="CDEFGAB"),
    "4.4 broken rhythm": each("note", "N C>D E<F G>>A B<<<c", adds="CDEFGABc"),
    "4.5 rests": each("note", "N z", "N x4", "N z//", is_exact=False) + each("bar", "|Z|", "|Z4|", "|X2|", "|Z||", is_exact=False),
    "4.5 spacers": each("gap", " y ", " y20 ", "`", " y`"),
    "4.7 beams": each("note", "N C`D``E", adds="CDE"),
    "4.8 bars and 4.9 endings": each("bar", *BARS) + each("bar", '["1" C4:|["2-9" D4|]', "|1 C4:|2 D4|", "|[1 C4:|[2 D4|]", adds="CD"),
    "4.11 ties and slurs": each("note", "N-N", "N-|N", "(N N)", "((N) N)", ".(N N)", ".N-N", "(N (N) N)", "(N|N)", "N- N") + each("line end", "-", is_exact=False),
    "4.12 grace notes": each("note", "{g}N", adds="g") + each("note", "{/gf}N", adds="gf") + each("note", "{^g_a/2b}N", "({gab}N)", adds="gab") + each("note", "{[ce]g}N", adds="ceg") + each("note", "{}N"),
    "4.13 tuplets": each("note", "(3NNN", "(3:2N N N", "(3::2NN", "(2NN", "(5:4:5NNNNN", "(3:2:2N N2", "(4NNNN", "(6NNNNNN", "(7:8NNNNNNN", "(9NNNNNNNNN", "(3 NNN", "(3(NN)N", '(3"C"N"D"NN', "(3.N.NN"),
    "4.14 decorations": each("note", *(f"{mark}N" for mark in DECORATIONS), *(f"!{mark}!N" for mark in SYMBOLS), "+trill+N", "+f+N", ".~TN", "!f!!>!N", "!unknown!N") + each("note", "!D.C.!|N", is_exact=False),
    "4.15 symbol lines": each("line", "s:* !f! * \"^a\"", "s:!trill!**|*"),
    "4.16 user symbols": each("note", "WN", "hN"),
    "4.17 chords": each("note", "[NCE]", "[NCE]2", "!f![N2C2E4]/", "[N-CE-]", "[!1!NC!3!E]", '"C"[NCE]', adds="CE") + each("note", "[NN]", "[N]"),
    "4.18 chord symbols and 4.19 annotations": each("note", *(f"{text}N" for text in TEXTS)),
    "4.20 order": each("note", '{g}"Gm7"v.!f!N2', '"Gm7"{g}.vN', '!f!{g}"G"N', adds="g"),
    "6.1 line breaks": each("gap", "\n", "\\\n", "\\ \n", "\\ % comment\n", "\\\n% comment\n", "\\\nN:note\n", " $ ", "$\n", "!\n", " ! ", "\\\n%%text A\n", "\\\nw:la\n", "\\\nr:CDEF|\n") + each("line end", "% CDEF|", "\\", "$", "!", " % \"", "%", "  "),
    "7 voices": each("line", "[V:1]", "[V: 1]", "V:1 clef=treble") + each("line", "V:2\nCDEF|\nV:1", "[V:2]CDEF|\nV:1", "V:2 clef=bass nm=\"a|b\"\nC2D2E2F2|\n[V:1]", adds="CDEF", is_exact=False),
    "7.4 overlays": each("bar", "&C4E|", "& E2 C2 |", "&\\\nC4E|", "&C&E|", "&&C4|E4|"[1:], "|(&C4|E4&)|"[2:4] and "&C E|", adds="CE"),
    "8 text": each("header", 'T:a "b" \\"o %c', "T:&eacute;\\u00e9 ^CDEF|", "C:\\`a"),
    "9 macros": each("header", "m:~G2={A}G{F}G", "m:~n3=n{o}n{m}n"),
    "10 outdated": each("header", "E:9", "%%abc-2.0") + each("line", "E:9") + each("note", "+CEG+N", "+C2E2G2+N", adds="CEG"),
}  # fmt: skip


@cache
def tunes() -> list[tuple[str, str]]:
    """(header, body) of tunes of notes, rests, barlines and broken rhythm alone, and of some lines, in a fixed order."""
    found = []
    for path in sorted((Path(music21.__file__).parent / "corpus" / "essenFolksong").glob("*.abc")):
        for tune in re.split(r"^X:", path.read_text(encoding="latin-1"), flags=re.MULTILINE)[1:]:
            header, key, body = re.split(r"^(K:.*\n)", tune, maxsplit=1, flags=re.MULTILINE)
            fields = "".join(re.findall(r"^[ML]:.*\n", header, re.MULTILINE))
            body = body.strip() + "\n"
            if re.fullmatch(r"[A-Ga-gzx\d^_=,'/ |:>\n]{60,130}", body) and "\n\n" not in body and body.count("\n") > 2:
                found.append((f"X:1\n{fields}{key}", body))
    random.Random(1).shuffle(found)
    return found


def mutated(construct: Construct, header: str, body: str, chance: random.Random) -> tuple[str, Counter]:
    """The tune with the construct at a place that chance chooses, and the notes that it then has more."""
    if construct.place == "header":
        lines = header.splitlines(keepends=True)
        return "".join([*lines[:-1], construct.text + "\n", lines[-1], body]), Counter()
    place = chance.choice(list(re.finditer(PLACES[construct.place], body)))
    note = place[0] if construct.place == "note" else ""
    new = construct.text.replace("N", note) if note else construct.text + "\n" * (construct.place == "line")
    added = Counter({names(note).popitem()[0]: construct.text.count("N") - 1}) if note else Counter()
    return header + body[: place.start()] + new + body[place.end() :], added + construct.added


def names(text: str) -> Counter:
    """The notes of ABC, with their octaves, however they are marked."""
    text = re.sub(r"^(?:%|[A-Za-z]:(?![|:])).*", "", text, flags=re.MULTILINE)
    return Counter(re.findall(r"[A-Ga-g][,']*", re.sub(r'"[^"]*"|\[[A-Za-z]:[^]]*\]|![^!\s|]+!|\+[a-z]+\+', "", text)))


def sounds(xml: bytes, exact: bool) -> Counter:
    notes = xml_notes(xml)
    return Counter((n.bar, n.onset, n.length, n.key, n.is_grace) if exact else (n.step, n.octave) for n in notes)


def of_names(counter: Counter) -> Counter:
    """The same as (step, octave)."""
    found = Counter()
    for name, number in counter.items():
        octave = 4 + name[0].islower() + name.count("'") - name.count(",")
        found[name[0].upper(), octave] += number
    return found


@cache
def before(header: str, body: str) -> Counter:
    return sounds(abc_to_musicxml(header + body), True)


def faults(construct: Construct, header: str, body: str, chance: random.Random) -> list[str]:
    """What the conversions make of the construct, where that is wrong; behind the tune."""
    tune, added = mutated(construct, header, body, chance)
    expected = names(body) + added
    ((written, _),) = interleaving.interleave(tune)
    found = []
    if names(written) != expected:
        found.append(f"interleaved: less {expected - names(written)}, more {names(written) - expected}")
    for way, text in ("directly", tune), ("by interleaved ABC", written):
        xml = abc_to_musicxml(text)
        after = sounds(xml, False)
        if after != of_names(expected):
            found.append(f"{way}: less {of_names(expected) - after}, more {after - of_names(expected)}")
        elif construct.is_exact and not added and sounds(xml, True) != before(header, body):
            found.append(f"{way}: notes in other places or of other lengths")
    return [tune, written, *found] if found else []


@pytest.mark.parametrize("section", CONSTRUCTS)
def test_no_note_is_lost_or_invented(section):
    number = list(CONSTRUCTS).index(section)
    for construct in CONSTRUCTS[section]:
        for tune in tunes()[number :: len(CONSTRUCTS)][:TUNES]:
            assert not faults(construct, *tune, random.Random(construct.text)), construct
