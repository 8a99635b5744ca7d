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
piece, is left out; so are MIDI's defaults, which many programs write when they know nothing: C major, and 4/4 if the
tempo is 120.
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

import batch
import languages
import merge_jsonl
import templates
from shared import InputError, files, notation, records

DRUMS = "9"  # the MIDI channel whose notes have no pitch
LONGEST, MOST = 60, 8  # characters of a name, names in a list: what is longer is no name, or says little
TEMPOS = range(10, 500)
_MODES = {mode[:3]: mode for mode in templates.MODES} | {"": "major", "m": "minor", "ion": "major", "aeo": "minor"}
_METERS = {"C": "4/4", "C|": "2/2"}


# --- facts ------------------------------------------------------------------------------------------------------------
def key_of(text: str) -> str | None:
    """Read a key of ABC, MIDI or metadata, `Gm`, `Ddor` or `E-flat major`, as `G minor`; None if it is no key."""
    text = re.sub(r"(?<=^[A-G])[ -]?(sharp|♯)", "#", re.sub(r"(?<=^[A-G])[ -]?(flat|♭)", "b", text.strip()))
    found = re.match(r"([A-G][#b]?)\s*(?!\S*=|treble|bass|alto|tenor|perc)([A-Za-z]*)", text)  # a clef is no mode
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
    """The value that all share; None if they differ, or there is none."""
    different = set(values) - {None}
    return different.pop() if len(different) == 1 else None


def of_abc(text: str) -> dict:
    """The facts of interleaved ABC."""
    fields: dict[str, list[str]] = {"K": [], "M": [], "Q": []}
    for letter, value in re.findall(r"(?:^|\[)([KMQ]):[^\S\n]*([^\]%\n]*)", text, re.MULTILINE):
        fields[letter].append(value)
    names = re.findall(r'^V:.*?\bnm="([^"]*)"', text, re.MULTILINE)
    if {"soprano", "alto", "tenor"} & {name.lower() for name in names}:  # then a bass is a voice
        names = [name for name in names if name.lower() != "bass"]
    return {
        "key": _only(map(key_of, fields["K"])),
        "meter": _only(map(meter_of, fields["M"])),
        "tempo": _only(map(tempo_of, fields["Q"])),
        "bars": sum(line.startswith("[V:") for line in text.split("\n")) if notation.is_interleaved(text) else None,
        "instruments": [name for name in map(templates.instrument, names) if name],
    }


def of_mtf(text: str) -> dict:
    """The facts of MTF, but for MIDI's defaults."""
    keys = re.findall(r"^key_signature (\S+) ", text, re.MULTILINE)
    meters = {"/".join(meter) for meter in re.findall(r"^time_signature (\d+) (\d+) ", text, re.MULTILINE)}
    tempos = {round(60e6 / int(tempo)) for tempo in re.findall(r"^set_tempo ([1-9]\d{0,7}) ", text, re.MULTILINE)}
    is_default = meters <= {"4/4"} and tempos <= {120}
    notes = set(re.findall(r"^note_on \d+ (\d{1,2}) (\d{1,3}) [1-9]", text, re.MULTILINE))
    channels = {channel for channel, _ in notes}
    changes = dict.fromkeys(re.findall(r"^program_change \d+ (\d{1,2}) (\d{1,3})$", text, re.MULTILINE))
    programs = [int(program) for channel, program in changes if channel in channels - {DRUMS}]
    names = [templates.PROGRAMS[program] for program in programs if program < len(templates.PROGRAMS)]
    pitches = [int(pitch) for channel, pitch in notes if channel != DRUMS]
    return {
        "key": None if set(keys) == {"C"} else _only(map(key_of, keys)),
        "meter": None if is_default else _only(map(meter_of, meters)),
        "tempo": None if is_default else _only(tempo_of(str(tempo)) for tempo in tempos),
        "instruments": [*filter(None, names), *["drums"] * (DRUMS in channels)],
        "range": (min(pitches), max(pitches)) if pitches else None,
    }


def of_music(paths: list[str], folder: Path) -> tuple[dict, list[str]]:
    """The facts of the files of a record, the first that has one, and why files are not read, one line each."""
    facts: dict = {}
    warnings = []
    for path in paths:
        try:
            if not path.lower().endswith(records.MUSIC):
                raise InputError(f"{path}: neither .abc nor .mtf; convert it first")
            read = of_mtf if path.lower().endswith(".mtf") else of_abc
            facts = _known(read(files.read_utf8(folder / path))) | facts
        except InputError as error:
            warnings.append(str(error))
    return facts, warnings


def of_metadata(record: dict) -> dict:
    """The facts that a record says itself; key and meter may be tags, such as `Bb major` and `6/8 time`."""
    facts: dict = {field: _names(record[field]) for field in ("composer", "genres", "ensembles", "instruments")}
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
    record = summarize(record, name, of_metadata(record) | facts, caption)
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
