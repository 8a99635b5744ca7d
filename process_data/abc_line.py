"""One line of ABC: its elements, its quoted text hidden, unpaired marks mended.

Quoted text may hold any sign of music: `"^50% slower"`, `"^Z4 | [V:2]"`. `tidy` replaces those signs by characters of a
private plane, so that every sign that is left is one of music; `shown` and `plain` bring them back.
"""

import re

FIELD = re.compile(r"([A-Za-z+]):(?!(?<=[A-Ga-gxzXZ]:)[|:])")  # but G:| is a note and a barline
DECORATION = r"![^!\s|[:]+!"
# One element of a line of music. What is quoted or bracketed is one element: a | inside is no barline. Each pattern
# excludes its own opening sign, so that a sign left open swallows nothing. An atom is the start of a slur or tuplet, a
# decoration, or grace notes.
ELEMENT = re.compile(
    rf"""
     (?P<plain>[^]["!+{{}}|:\\$%(]+)  # notes, rests, lengths, spaces, ...
    |(?P<quoted>"[^"]*")
    |(?P<atom>\((?:\d+:[\d:]*)?|{DECORATION}|\+[^+\s|]+\+|\{{(?:(?!\[V:)[^{{}}])*\}})
    |\[(?P<field>[A-Za-z]):(?P<value>[^][{{}}]*)\]
    |(?P<sign>(?:\[?\|\]?|:+\|\]?|::)(?:\|\]?|:)*)(?:\s*\[?(?P<volta>\d+(?:[,-]\d+)*))?
    |(?P<chord>\[(?![|\d])(?:"[^"]*"|{DECORATION}|[^]["!|{{}}])*\])
    |\[(?P<variant>\d+(?:[,-]\d+)*)
    |(?P<continued>\\\s*(?:%.*)?$)
    |(?P<comment>%.*)
    |(?P<stray>.)
    """,
    re.VERBOSE,
)

# Decorations of ABC, between exclamation marks.
_NAMES = (
    "trill|roll|turnx?|invertedturnx?|(?:lower|upper)?mordent|pralltriller|arpeggio|accent|emphasis|(?:inverted)?fermata"
    "|tenuto|wedge|open|thumb|snap|plus|slide|p{1,4}|m[pf]|sfz|upbow|downbow|segno|coda|fine|dacapo|dacoda|breath"
    "|(?:short|medium|long)phrase|staccato|marcato"
)
_PLANE = 0xF0000
_HIDDEN = {ord(sign): _PLANE + ord(sign) for sign in '%[]{}|:\\&!$"<>()ZX'}
_HIDDEN_IN_CHORDS = {sign: hidden for sign, hidden in _HIDDEN.items() if chr(sign) not in "()"}
_SHOWN = {hidden: sign for sign, hidden in _HIDDEN.items()}
_BACKSLASH, _QUOTE, _PERCENT = (chr(_PLANE + ord(sign)) for sign in '\\"%')
_ANNOTATION = ("^", "_", "<", ">", "@")  # begin an annotation: quoted text other than a chord symbol

# The marks that `tidy` looks at in a line of music.
_MARK = re.compile(
    rf"""
     \["(?P<ending>\d+(?:[,-]\d+)*)\.?"(?![^]|]*\])  # ["1", but not the chord ["1"CE]
    |(?P<quoted>"(?:\\.|[^"\\])*")
    |(?P<inline>\[[A-Za-z]:[^][]*\])
    |(?P<kept>%.*|{DECORATION})
    |(?P<open>")
    |!(?P<name>{_NAMES})(?![A-Za-z0-9])  # a decoration without its second mark
    |(?P<break>!)               # as in old tunes
    |\+(?P<chord>(?!f+\+)(?:(?:__?|\^\^?|=)?[A-Ga-g][,']*\d*/*\d*){{2,}})\+  # +CEG+, as in old tunes
    |(?P<repeats>:(?:(?<=\|:)|(?<!::)(?=:+\|)):+)  # |:: and ::| repeat more than once
    |(?P<invisible>\[\])
    """,
    re.VERBOSE,
)
_CHORD_KIND = r"(?:maj|min|dim|aug|sus[24]?|m|M|\+|6|7|9|11|13)"
_CHORD_NAME = re.compile(rf"[A-G](?:[#b]?{_CHORD_KIND}*(?:/[A-G][#b]?)?(?=\s)|\#?{_CHORD_KIND}+)")
_TO_MARK_OR_BAR = re.compile('[^"|]*')
# V:1 nm="Vox "Lead"" snm="V", as xml2abc writes it: the name ends before a blank, not at the first mark.
_NAME = re.compile(r'(?<==)"(.*?)"(?=\s+(?:[\w-]+=|treble|bass|alto|tenor|perc|none)|\s*(?:%.*)?$)')
_TEXT_FIELDS = "ABCDFGHNORSTWZrw"
_TEXT_OF_FIELD = re.compile(r'"([^"]*)"')
# A line of music whose text, grace notes and the like are left out: "|" stands for any barline, "C" for a chord.
_MUSIC = re.compile(r"(?:[~.HJLMOPR-Tuv]*(?:(?:(?:__?|\^\^?|=)?[A-Ga-g][,']*|[xyzXZ])\d*/*\d*|\(\d*|[|)-])|[\s<>&`])*")
_LEFT_OUT = {"sign": "|", "volta": "|", "variant": "|", "chord": "C"}


def reads_as_music(line: str, user_symbols: str = "") -> bool:
    """Whether a line, tidied, is music from end to end; `user_symbols` are letters that U: fields define."""
    return _MUSIC.fullmatch(_reduced(line, user_symbols)) is not None


def has_notes(line: str) -> bool:
    """Whether a line that reads as music has a note or a rest."""
    return re.search("[A-Ga-gxzXZ]", _reduced(line, "")) is not None


def _reduced(line: str, user_symbols: str) -> str:
    reduced = []
    for element in ELEMENT.finditer(line):
        kind = element.lastgroup or ""
        is_kept = kind == "plain" or element[0] == "(" or (kind == "stray" and element[0] != "$")
        reduced.append(element[0] if is_kept else _LEFT_OUT.get(kind, ""))
    return re.sub(f"[{re.escape(user_symbols)}]", "", "".join(reduced)) if user_symbols else "".join(reduced)


def tidy(line: str) -> tuple[str, list[str]]:
    """Rewrite a line in plain ABC. Returns it, and what was mended.

    Text is hidden, unpaired quotation marks are closed or left out, ! that breaks a line is $, [] is [|],
    +CEG+ is [CEG], ["1" is [1.
    """
    if line.startswith("%"):
        return line, []
    if field := FIELD.match(line):
        if field[1] in _TEXT_FIELDS:
            return re.sub(r"\\%", _BACKSLASH + _PERCENT, _TEXT_OF_FIELD.sub(_without_comment_sign, line)), []
        pattern = _NAME if line.startswith("V:") and _NAME.search(line) else _TEXT_OF_FIELD
        return pattern.sub(lambda text: f'"{_hide(text[1])}"', line), []
    return _tidy_music(line)


def _tidy_music(line: str) -> tuple[str, list[str]]:
    if "::" not in line and not set(line).intersection('"![+'):  # most lines
        return line, []
    done: list[str] = []
    mended: list[str] = []
    is_odd = line.replace('\\"', "").count('"') % 2 == 1
    position = 0
    while mark := _MARK.search(line, position):
        done.append(line[position : mark.start()])
        kind, text, position = mark.lastgroup, mark[0], mark.end()
        # A chord symbol holds no barline; nor does any text where a mark is missing.
        if kind == "quoted" and "|" in text and (is_odd or not text[1:].startswith(_ANNOTATION)):
            kind = "open"
        if kind == "open":
            words = _text_left_open(line, mark.start() + 1)
            position = mark.start() + 1 + len(words)
            done.append(f'"{_hide(words)}"' if words else "")
            what = f'put behind "{words}' if words else f"left out before {line[position : position + 20]!r}"
            mended.append(f"quotation mark without a partner {what}")
        elif kind == "quoted":
            done.append(f'"{_hide(text[1:-1])}"')
        elif kind == "inline" and text[1] == "m":
            mended.append(f"macro left out: {text}")
        elif kind == "inline":
            done.append(f"[{text[1:3]}{_hidden_value(text[1], text[3:-1])}]")
        elif kind == "name":
            mended.append(f"exclamation mark without a partner put behind !{mark['name']}")
            done.append(f"{text}!")
        elif kind == "ending":
            done.append(f"[{mark['ending']}")
        elif kind == "chord":
            done.append(f"[{mark['chord']}]")
        else:
            done.append({"break": "$", "repeats": ":", "invisible": "[|]"}.get(kind or "", text))
    return "".join(done) + line[position:], mended


def _text_left_open(line: str, start: int) -> str:
    """Return the text behind an unpaired quotation mark; "" if it may be music."""
    chord = _CHORD_NAME.match(line, start)
    if chord:
        return chord[0]
    if not line.startswith(_ANNOTATION, start):
        return ""
    segment = _TO_MARK_OR_BAR.match(line, start)
    words = re.split(r"(\s+)", segment[0] if segment else "")
    while len(words) > 1 and reads_as_music(words[-1]):
        words.pop()
    return "".join(words).rstrip()


def _without_comment_sign(text: re.Match) -> str:
    return text[0].replace("%", _PERCENT)


def _hidden_value(letter: str, value: str) -> str:
    """Hide the quoted text of a field that musicians need, or the whole value of one for readers."""
    return _hide(value) if letter in _TEXT_FIELDS else _TEXT_OF_FIELD.sub(lambda text: f'"{_hide(text[1])}"', value)


def _hide(text: str) -> str:
    """Hide the signs of music in a text; but the parts of a chord symbol, as in C7(b9), stay."""
    first = text[:1] if text.startswith(("<", ">")) else ""
    hidden = _HIDDEN if text.startswith(_ANNOTATION) else _HIDDEN_IN_CHORDS
    return first + text[len(first) :].translate(hidden)


def has_barline(text: str) -> bool:
    """Whether hidden text has a barline, which would end a patch of M3."""
    text = text.translate(_SHOWN)
    return "|" in text or "::" in text


def shown(text: str) -> str:
    """Bring back the hidden text of tidied ABC, without quotation marks in it."""
    return text.replace(_BACKSLASH + _QUOTE, "").translate(_SHOWN)


def plain(text: str) -> str:
    r"""Convert hidden text to what a person reads: `\n` is a line break, `\%` a percent sign."""
    text = text.replace(_BACKSLASH + "n", "\n")
    return re.sub(f"{_BACKSLASH}(?=[{''.join(map(chr, _SHOWN))}])", "", text).translate(_SHOWN)
