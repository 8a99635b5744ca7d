"""The music of the quick start: what music21's corpus holds, what is known of each piece, its MIDI, its twins.

Ryan's Mammoth Collection (Boston, 1883) has 1,059 fiddle tunes in ABC: title, dance, key and meter are given. A few of
Bach's chorales (MusicXML, four voices) are there so that music in several voices is.
"""

import importlib.util
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from xml.etree.ElementTree import Element, fromstring

import mido

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "process_data"))
import files
import musicxml

DANCES = ("reel", "hornpipe", "jig", "slip jig", "strathspey", "clog", "highland fling")
OTHER_NAMES = {"slipjig": "slip jig", "fling": "highland fling"}
TICKS = 48  # of a quarter note
VELOCITY, VIOLIN, CHOIR = 90, 40, 52  # the latter two are MIDI programs
INCIPIT = 4  # first notes of a piece that are told in words
NGRAM, SAME = 8, 0.25  # tunes that share this part of their runs of eight intervals are one tune in two versions

LINE = "FCGDAEB"  # steps in the order of fifths
SEMITONES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
# The tonic of a mode stands so many fifths above that of the major scale with the same signature.
MODES = {"major": 0, "minor": 3, "dorian": 2, "phrygian": 4, "lydian": -1, "mixolydian": 1, "locrian": 5}

Note = tuple[int, int, int]  # onset and length in ticks, MIDI pitch


@dataclass
class Piece:
    """What is known of a piece of music."""

    name: str  # of its files, without extension
    title: str
    dance: str  # one of DANCES, "chorale", or "" where the collection does not tell
    key: str  # "G major"
    meter: str  # "6/8"
    bars: int
    lowest: int  # MIDI pitches
    highest: int
    incipit: list[str]  # letters of the first notes of the first part
    intervals: list[int]  # of that part, in semitones: the same in every key


def corpus_files(tunes: int, chorales: int) -> list[Path]:
    """Files of music21's corpus, evenly spaced: so many tunes and chorales, or all there are. Raises InputError."""
    package = importlib.util.find_spec("music21")
    if package is None or package.origin is None:
        raise files.InputError("the package music21 is not installed: pip install -r requirements.txt")
    corpus = Path(package.origin).parent / "corpus"
    found = []
    for pattern, count in (("ryansMammoth/*.abc", tunes), ("bach/bwv*.mxl", chorales)):
        paths = sorted(corpus.glob(pattern))
        found += [paths[index * len(paths) // min(count, len(paths))] for index in range(min(count, len(paths)))]
    return found


def clean_abc(text: str) -> str:
    """A tune without fingerings and other words, bowings and grace notes: they are not in the MIDI, or say nothing."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if not re.match(r"[A-Za-z]:|%", line):
            line = re.sub(r'"[^"]*"|\{[^}]*\}', "", line)
            lines[number] = re.sub(r"(?<![A-Za-z!])[uv](?=[.~(]*[\^_=]?[A-Ga-g(\[])", "", line)
    return "\n".join(lines) + "\n"


def read_score(path: Path) -> Element:
    """The MusicXML of a file, compressed or not."""
    return fromstring(musicxml.read(path.read_bytes())[0])


def read_piece(source: Path, path: Path) -> Piece:
    """The facts about a piece of the corpus.

    Args:
        source: the file in the corpus; the header of a tune (ABC) tells title and dance.
        path: its MusicXML.
    """
    score = read_score(path)
    if source.suffix == ".abc":
        header = dict(re.findall(r"^([TR]):[ \t]*(.*?)[ \t]*$", read_abc(source), re.MULTILINE)[::-1])
        title, dance = header.get("T", source.stem).removeprefix("T:"), dance_name(header.get("R", ""), meter_of(score))
    else:
        title, dance = f"Chorale {source.stem.upper()}", "chorale"
    return describe(score, source.stem.replace(".", "_"), tidy_title(title), dance)


def describe(score: Element, name: str, title: str, dance: str) -> Piece:
    """The facts about a score."""
    parts = [notes_of(part) for part in score.iter("part")]
    pitches = [pitch for notes in parts for _, _, pitch in notes]
    melody = highest_voice(parts[0])
    fifths, mode = int(score.findtext(".//key/fifths", "0")), score.findtext(".//key/mode", "major")
    return Piece(
        name=name,
        title=title,
        dance=dance,
        key=f"{step_name(fifths + 1 + MODES[mode])} {mode}",
        meter=meter_of(score),
        bars=len(score.findall("part[1]/measure")),
        lowest=min(pitches),
        highest=max(pitches),
        incipit=["CCDDEFFGGAAB"[pitch % 12] for pitch in melody[:INCIPIT]],
        intervals=[after - before for before, after in pairwise(melody)],
    )


def meter_of(score: Element) -> str:
    return f"{score.findtext('.//time/beats')}/{score.findtext('.//time/beat-type')}"


def read_abc(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def dance_name(field: str, meter: str) -> str:
    """The dance that an `R:` line tells; a jig in 9/8 is a slip jig. "" for what has no class of its own."""
    name = OTHER_NAMES.get(field.lower(), field.lower())
    if name == "jig" and meter == "9/8":
        name = "slip jig"
    return name if name in DANCES else ""


def tidy_title(title: str) -> str:
    """`ACROBAT'S -- HORNPIPE.` -> `Acrobat's Hornpipe`"""
    words = re.sub(r"\s+-+\s+", " ", title.strip(" .")).split()
    return " ".join(word.capitalize() if word.isupper() and len(word) > 1 else word for word in words)


def step_name(place: int) -> str:
    """A place in the line of fifths, F being 0 -> `F#`"""
    alter = place // 7
    return LINE[place % 7] + ("#" * alter if alter > 0 else "b" * -alter)


def notes_of(part: Element) -> list[Note]:
    """The notes of a part of MusicXML as written: repeats once, tied notes joined, without grace notes."""
    notes: list[Note] = []
    tied: dict[int, int] = {}  # pitch -> the note that a tie leads on from
    divisions, start = 1, 0.0  # times in ticks, rounded when they are noted down
    for measure in part.findall("measure"):
        now = end = chord = start
        for element in measure:
            if element.tag == "attributes":
                divisions = int(element.findtext("divisions", str(divisions)))
            if element.tag not in ("note", "backup", "forward"):
                continue
            length = float(element.findtext("duration", "0")) * TICKS / divisions
            if element.tag == "backup":
                now -= length
                continue
            if element.find("chord") is None:
                chord, now = now, now + length
            end = max(end, now)
            pitch = element.find("pitch")
            if pitch is None or not length:
                continue
            ties = {tie.get("type") for tie in element.findall("tie")}
            number = midi_pitch(pitch)
            if "stop" in ties and number in tied:
                onset = notes[tied[number]][0]
                notes[tied[number]] = (onset, round(chord + length) - onset, number)
            else:
                tied[number] = len(notes)
                notes.append((round(chord), round(chord + length) - round(chord), number))
            if "start" not in ties:
                tied.pop(number, None)
        start = end
    return notes


def midi_pitch(pitch: Element) -> int:
    octave, alter = int(pitch.findtext("octave", "4")), int(float(pitch.findtext("alter", "0")))
    return 12 * (octave + 1) + SEMITONES[pitch.findtext("step", "C")] + alter


def highest_voice(notes: list[Note]) -> list[int]:
    """The highest pitch at each onset."""
    highest: dict[int, int] = {}
    for onset, _, pitch in notes:
        highest[onset] = max(pitch, highest.get(onset, 0))
    return [highest[onset] for onset in sorted(highest)]


def midi_file(score: Element, meter: str, program: int) -> mido.MidiFile:
    """A score as MIDI: a track for meter, key and tempo, and one for each part, on a channel of its own."""
    fifths, mode = int(score.findtext(".//key/fifths", "0")), score.findtext(".//key/mode", "major")
    # MIDI knows two modes; the others take that of the same signature whose third is theirs
    is_minor = mode in ("minor", "dorian", "phrygian", "locrian")
    numerator, denominator = map(int, meter.split("/"))
    head = mido.MidiTrack(
        [
            mido.MetaMessage("time_signature", numerator=numerator, denominator=denominator),
            mido.MetaMessage("key_signature", key=step_name(fifths + (4 if is_minor else 1)) + "m" * is_minor),
            mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(120)),
        ]
    )
    midi = mido.MidiFile(type=1, ticks_per_beat=TICKS, tracks=[head])
    for channel, part in enumerate(score.iter("part")):
        events = []
        for onset, length, pitch in notes_of(part):
            events += [(onset, VELOCITY, pitch), (onset + length, 0, pitch)]
        track = mido.MidiTrack([mido.Message("program_change", channel=channel, program=program)])
        now = 0
        for tick, velocity, pitch in sorted(events):  # at one time, notes end before others begin
            track.append(mido.Message("note_on", channel=channel, note=pitch, velocity=velocity, time=tick - now))
            now = tick
        midi.tracks.append(track)
    return midi


def families(pieces: Iterable[Piece]) -> list[list[Piece]]:
    """The pieces in groups: versions of one tune, told by title or by intervals, are together."""
    pieces = list(pieces)
    parent = list(range(len(pieces)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = index = parent[parent[index]]
        return index

    runs = [
        {tuple(p.intervals[start : start + NGRAM]) for start in range(len(p.intervals) - NGRAM + 1)} for p in pieces
    ]
    users: dict[tuple[int, ...], list[int]] = defaultdict(list)
    titles: dict[str, int] = {}
    for index, piece in enumerate(pieces):
        for run in runs[index]:
            users[run].append(index)
        bare = re.sub(r"\W|\b(the|" + "|".join(DANCES) + r")\b", "", piece.title.lower())
        parent[root(index)] = root(titles.setdefault(bare or piece.title, index))
    shared = Counter((a, b) for having in users.values() for a in having for b in having if a < b)
    for (a, b), count in shared.items():
        if count >= SAME * min(len(runs[a]), len(runs[b])):
            parent[root(a)] = root(b)
    groups: dict[int, list[Piece]] = defaultdict(list)
    for index, piece in enumerate(pieces):
        groups[root(index)].append(piece)
    return list(groups.values())
