"""Write summaries of music without a language model: from captions, or from what metadata and music say.

examples:
  python process_data/offline_summaries.py data/records data/summaries data
  python process_data/offline_summaries.py data/records data/summaries data --captions     descriptions are captions
  python process_data/merge_jsonl.py data/summaries data/train.jsonl

IN holds records, one .json file each; OUT gets each of them with `summary_en` and `summary_nen` where it had none: in
English, and in German, French, Spanish, Italian or Chinese, drawn by the record's name, as is the wording. MUSIC is the
folder that the records' `filepaths` are relative to: the one of the JSONL file to come.

The facts are key, meter, tempo (quarter notes a minute), number of bars, instruments and range, as the music has them
(interleaved ABC, MTF), or else the record (`key`, `meter` or `time_signature`, `tempo`, `instruments`, a tag that is a
key or a meter); and the record's `genres`, `ensembles` and `composer`. A fact that is unknown, or changes within the
piece, is left out, and so is what may be wrong:
* MIDI's defaults, which many programs write when they know nothing: C major, and 4/4 if the tempo is 120;
* a major key on whose tonic the music does not end: many programs write a minor key as the major one of its signature;
* the number of bars if the meter changes, and all instruments if one of them is not known.
`summaries` in a record says which of its summaries are a "caption" and which are a "template".

The same command resumes a run, and works again on records that have changed; --overwrite, if music or options have.

errors.jsonl in OUT names each record of which nothing can be said, warnings.jsonl each with music that cannot be read.
Exit status: 0; 1 if a record failed; 2 for wrong use.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import bar_lengths
import batch
import languages
import merge_jsonl
import templates
from shared import InputError, files, notation, records

DRUMS = "9"  # the MIDI channel whose notes have no pitch
LONGEST, MOST = 60, 8  # characters of a name, names in a list: what is longer is no name, or says little
TEMPOS = range(10, 500)
_NOTE = r"[A-Ga-g][,']*"
_MODES = {mode[:3]: mode for mode in templates.MODES} | {"": "major", "m": "minor", "ion": "major", "aeo": "minor"}
_NOBODY = ("anonymous", "anon", "composer", "trad", "traditional", "unknown")  # "Composer" is MuseScore's placeholder
_CLEF = r"\S*=|treble|bass|alto|tenor|perc"  # behind a key of ABC, or in its place
_METERS = {"C": "4/4", "C|": "2/2"}


# --- facts ------------------------------------------------------------------------------------------------------------
def key_of(text: str) -> str | None:
    """Read a key of ABC, MIDI or metadata, `Gm`, `Ddor` or `E-flat major`, as `G minor`; None if it is no key."""
    text = re.sub(r"(?<=^[A-G])[ -]?(sharp|♯)", "#", re.sub(r"(?<=^[A-G])[ -]?(flat|♭)", "b", text.strip()))
    found = re.match(rf"([A-G][#b]?)\s*(?!{_CLEF})([A-Za-z]*)", text)
    mode = _MODES.get(found[2].lower()[:3]) if found else None
    return f"{found[1]} {mode}" if found and mode else None


def meter_of(text: str) -> str | None:
    """Read a meter, `C|` or `6/8`; None if it has no two numbers."""
    text = _METERS.get(text.strip(), text.strip())
    return text if re.fullmatch(r"[1-9]\d?/[1-9]\d?", text) else None


def tempo_of(text: str) -> int | None:
    """Read a tempo, `3/8=60` (ABC's) or a number of quarter notes, as quarter notes a minute."""
    text = re.sub(r'"[^"]*"', "", text).strip()  # ABC's words, such as "Allegro"
    found = re.fullmatch(r"(?:(\d{1,2})/([1-9]\d?)\s*=\s*)?(\d{1,4}(?:\.\d{1,20})?)(?: ?BPM)?", text)
    tempo = round(Fraction(found[3]) * 4 * Fraction(int(found[1] or 1), int(found[2] or 4))) if found else 0
    return tempo if tempo in TEMPOS else None


def _only(values: Iterable) -> object | None:
    """The value that all share; False if they differ, None if there is none."""
    different = set(values)
    return different.pop() if len(different) == 1 else False if different else None


def of_abc(text: str) -> dict:
    """The facts of interleaved ABC: None if unknown, False if they change."""
    fields: dict[str, list[str]] = {letter: [] for letter in "KLMQ"}
    for letter, value in re.findall(r"(?:^|\[)([KLMQ]):[^\S\n]*([^\]%\n]*)", text, re.MULTILINE):
        fields[letter].append(value)
    key = _only(key_of(value) for value in fields["K"] if not re.match(_CLEF, value))
    lines = [line.split("[V:") for line in text.split("\n") if line.startswith("[V:")]
    is_written = notation.is_interleaved(text) and len(set(fields["M"])) == len(fields["L"]) == 1
    return {
        "key": _unless_doubtful(key, str(key)[0] == _final_letter(lines[-1] if lines else [])),
        "meter": _only(map(meter_of, fields["M"])),
        "tempo": _only(tempo_of(value) if "=" in value else None for value in fields["Q"]),  # "120" is outdated
        "bars": _count_bars([line[1] for line in lines], fields["M"][0], fields["L"][0]) if is_written else None,
        "instruments": _instruments(re.findall(r'^V:.*?\bnm="([^"]*)"', text, re.MULTILINE)),
    }


def _unless_doubtful(key: object, is_tonic_last: bool) -> object | None:
    """A key; None if it is major and not the tonic ends the music: a signature without a mode is read as major, too."""
    return None if str(key).endswith("major") and not is_tonic_last else key


def _final_letter(voices: list[str]) -> str:
    """The letter of the lowest of the last notes of all voices in a bar of ABC; "" if there is none."""
    ends: list[str] = []
    for voice in voices:
        sounds = re.sub(r'^[^\]]*\]|"[^"]*"|![^!]*!|\[[A-Za-z]:[^\]]*\]|\{[^}]*\}|\[\d|\|\]', "", voice)
        notes = re.findall(rf"\[[^\]]*\]|{_NOTE}", sounds)
        ends += re.findall(_NOTE, notes[-1]) if notes else []
    return min(ends, key=_height, default="")[:1].upper()


def _height(note: str) -> int:
    octave = note[0].islower() + note.count("'") - note.count(",")
    return 7 * octave + "CDEFGAB".index(note[0].upper())


def _count_bars(bars: list[str], meter: str, unit: str) -> int | None:
    """The number of bars of a voice: a pickup is none, and one that a repeat divides is one. None with a cadenza."""
    length, is_compound = bar_lengths.read_meter(meter)
    whole = bar_lengths.read_unit(unit)
    if not (length and whole):
        return None
    lengths = [bar_lengths.bar_length(bar, whole, is_compound) / float(length) for bar in bars]
    return int(sum(lengths) + 1e-3) or None if max(lengths) < 1.001 else None


def _instruments(parts: list[str]) -> list[str] | None:
    """The words for the names of all parts; None if one is not known, or there is none."""
    names = [re.sub(r"\\n|[\W\d_]|\b[IV]+\b", " ", part).casefold().strip() for part in parts]
    singing = {"alto", "bass", "basso"} if {"soprano", "tenor", "tenore", "canto"} & set(names) else ()
    words = ["voices" if name in singing else templates.instrument(name) for name in names]
    return words if words and all(words) else None


def of_mtf(text: str) -> dict:
    """The facts of MTF, but for MIDI's defaults: None if unknown, False if they change."""
    key = _only(key_of(value) for value in re.findall(r"^key_signature (\S+) ", text, re.MULTILINE))
    meters = {"/".join(meter) for meter in re.findall(r"^time_signature (\d+) (\d+) ", text, re.MULTILINE)}
    tempos = {round(60e6 / int(tempo)) for tempo in re.findall(r"^set_tempo ([1-9]\d{0,7}) ", text, re.MULTILINE)}
    is_default = meters <= {"4/4"} and tempos <= {120}
    programs: dict[str, str] = {}  # of the channels, up to here
    parts: dict[tuple[str, str], None] = {}  # (channel, program) of notes
    pitches = set()
    messages = r"^(program_change|note_on) \d+ (\d{1,2}) (\d{1,3})(?:$| [1-9])"
    for message, channel, value in re.findall(messages, text, re.MULTILINE):
        if message == "program_change":
            programs[channel] = value
            continue
        parts[channel, programs.get(channel, "")] = None
        if channel != DRUMS:
            pitches.add(int(value))
    names = ["drums" if channel == DRUMS else _of_program(program) for channel, program in parts]
    return {
        "key": None if key == "C major" else _unless_doubtful(key, _tonic(str(key)) == _final_pitch(text)),
        "meter": None if is_default else _only(map(meter_of, meters)),
        "tempo": None if is_default else _only(tempo_of(str(tempo)) for tempo in tempos),
        "instruments": names if all(names) else None,
        "range": (min(pitches), max(pitches)) if pitches else None,
    }


def _of_program(number: str) -> str:
    return templates.PROGRAMS[int(number)] if number and int(number) < len(templates.PROGRAMS) else ""


def _tonic(key: str) -> int:
    """The pitch class of a key's first note."""
    return ("C D EF G A B".find(key[0]) + key.count("#") - key[:2].count("b")) % 12


def _final_pitch(text: str) -> int | None:
    """The pitch class of the lowest note that sounds with the last one of MTF."""
    note = rf"^note_on \d+ (?!{DRUMS} )\d+ \d+ [1-9]"
    last = re.match(rf"(?s).*(?={note})", text, re.MULTILINE)
    ended = re.findall(rf"^note_o(?:n|ff) \d+ (?!{DRUMS} )\d+ (\d+) ", text[last.end() :], re.MULTILINE) if last else []
    return min(map(int, ended)) % 12 if ended else None


def of_music(paths: list[str], folder: Path) -> tuple[dict, list[str]]:
    """The facts of the files of a record, the first that has one, and why files are not read, one line each."""
    facts: dict = {}
    warnings = []
    for path in paths:
        try:
            if not path.lower().endswith(records.MUSIC):
                raise InputError(f"{path}: neither .abc nor .mtf; convert it first")
            read = of_mtf if path.lower().endswith(".mtf") else of_abc
            read_facts = read(files.read_utf8(folder / path)).items()
            facts = {name: fact for name, fact in read_facts if fact is not None} | facts
        except InputError as error:
            warnings.append(str(error))
    return facts, warnings


def of_metadata(record: dict) -> dict:
    """The facts that a record says itself; key and meter may be tags, such as `Bb major` and `6/8 time`."""
    facts: dict = {field: _names(record[field]) for field in ("composer", "genres", "ensembles", "instruments")}
    facts["composer"] = [name for name in facts["composer"] if name.casefold() not in _NOBODY]
    tags = "\n".join(_texts(record["tags"]))
    key = record.get("key") or _only(re.findall(rf"^[A-G][#b]? (?:{'|'.join(templates.MODES)})$", tags, re.MULTILINE))
    meter = record.get("meter") or record.get("time_signature")
    meter = meter or _only(re.findall(r"^(\d+/\d+)(?: time)?$", tags, re.MULTILINE))
    facts |= {"key": key_of(str(key)), "meter": meter_of(str(meter)), "tempo": tempo_of(str(record.get("tempo")))}
    return _known(facts)


def _texts(value: str | list | None) -> list[str]:
    """The texts in a field of metadata, each on one line."""
    texts = value if isinstance(value, list) else [value]
    return [" ".join(text.split()) for text in texts if isinstance(text, str) and not records.is_blank(text)]


def _names(value: str | list | None) -> list[str]:
    names = [text.rstrip(" .,;") for text in _texts(value)]
    return [name for name in dict.fromkeys(names) if 0 < len(name) <= LONGEST][:MOST]


def _known(facts: dict) -> dict:
    return {name: fact for name, fact in facts.items() if fact}


# --- records ----------------------------------------------------------------------------------------------------------
def summarize(record: dict, name: str, facts: dict, caption: str) -> dict:
    """Fill in the summaries that a record lacks; `name` draws the language and the wording."""
    style = languages.draw(templates.STYLES, 1, name)
    language = languages.draw(templates.LANGUAGES[1:], 0, name)
    english = caption or templates.summary(facts, "English", style)
    other = templates.summary(facts, language, style)
    summaries = {"summary_en": english, "summary_nen": other and {"language": language, "summary": other}}
    made = {field: text for field, text in summaries.items() if text and records.is_blank(record[field])}
    marks = {field: "caption" if caption and field == "summary_en" else "template" for field in made}
    return record | made | ({"summaries": marks} if made else {})


def convert(path: Path, args: argparse.Namespace) -> batch.Converted:
    try:
        record = merge_jsonl.read(path)
    except records.Unfit as error:
        raise InputError(str(error)) from None
    facts, warnings = of_music(records.checked_paths(record["filepaths"]), args.music)
    caption = " ".join(_texts(record["description"])) if args.captions else ""
    if caption and (fault := languages.misfit(caption, "English")):
        caption, warnings = "", [f"the description is no English caption: {fault}", *warnings]
    name = path.relative_to(args.input).as_posix() if args.input.is_dir() else path.name
    record = summarize(record, name, _known(of_metadata(record) | facts), caption)
    if records.is_blank(record["summary_en"]) and records.is_blank(record["summary_nen"]):
        raise InputError("; ".join(["nothing is known of it that a summary could say", *warnings]))
    text = json.dumps(record, ensure_ascii=False, indent=2) + "\n"
    return batch.Converted([text.encode("utf-8", "backslashreplace")], warnings)


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text}: no such folder")
    return Path(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("music", metavar="MUSIC", type=_folder, help="folder that `filepaths` are relative to")
    add("--captions", action="store_true", help="take a record's `description` as its English summary")


def main(argv: list[str] | None = None) -> int:
    return batch.main(
        convert,
        doc=__doc__,
        suffixes=(".json",),
        target=".json",
        several=False,
        add_arguments=add_arguments,
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
