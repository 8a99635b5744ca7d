"""Readers of the large public sets with texts: PDMX (scores) and MidiCaps (MIDI files with captions)."""

import argparse
import functools
import posixpath

import general_midi
from dataset_files import Dataset, Entry, Filtered, LeftOut, Made, Source
from dataset_tables import Row, csv_rows, json_rows
from shared import InputError, records

PDMX_FORMS = ("mxl", "mid")
PDMX_SUBSETS = ("all", "all_valid", "no_license_conflict", "deduplicated", "rated", "rated_deduplicated")
PDMX_REASONS = {"subset:no_license_conflict": "licence conflict", "subset:deduplicated": "duplicate"}
PDMX_TEXTS = ("genres", "groups", "tags", "song_name", "title", "artist_name", "composer_name", "tracks")
PDMX_ABOUT = """\
254,077 scores of MuseScore's users as MusicXML and MIDI, with titles, composers, genres and tags.

Get PDMX.csv, mxl.tar.gz (1.9 GB), mid.tar.gz (0.2 GB) and metadata.tar.gz (0.16 GB) from https://zenodo.org, record
15571083, into one folder, SOURCE, and expand them there.
Licence: the compilation is CC BY 4.0, the scores are public domain or CC0 by the word of who uploaded them; where the
files disagree (some 31,000), --subset no_license_conflict leaves them out. Copyrighted songs occur even so.
Several filters may be given: a score must be in each of the subsets. Genres, tags, titles and descriptions come from
the metadata files; where these lack, from the CSV, whose genres and tags are lower-cased Latin letters only. Names, ids
and addresses of users are not copied.

examples:
  python process_data/prepare_dataset.py pdmx PDMX data/pdmx --subset no_license_conflict all_valid --deduplicated
  python process_data/prepare_dataset.py pdmx PDMX data/pdmx --only mid --rated"""

MIDICAPS_COLUMNS = ("location", "caption", "genre", "mood", "key", "time_signature", "tempo", "tempo_word")
MIDICAPS_ABOUT = """\
168,385 MIDI files of the Lakh MIDI Dataset with captions that a language model wrote.

Get train.json (0.4 GB) and midicaps.tar.gz (1.6 GB) from https://huggingface.co/datasets/amaai-lab/MidiCaps into one
folder, SOURCE, and expand the archive there. Licence: CC BY-SA 4.0.
The caption becomes the text of retrieval and the description; genres, mood, key, meter and tempo, which programs
estimated, become genres and tags. The tempo is that of a file's first tempo event only. There are no titles: for
training, the records need summaries first.

examples:
  python process_data/prepare_dataset.py midicaps MidiCaps data/midicaps --split test"""


# --- PDMX -------------------------------------------------------------------------------------------------------------


def add_pdmx_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    about = f"of the set's columns subset:NAME: {', '.join(PDMX_SUBSETS)}"
    add("--subset", metavar="NAME", nargs="+", choices=PDMX_SUBSETS, default=[], help=about)
    add("--deduplicated", action="store_true", help="one arrangement of each song: --subset deduplicated")
    add("--rated", action="store_true", help="only scores that users have rated: --subset rated")
    add("--only", choices=PDMX_FORMS, help="only the MusicXML or only the MIDI files (default: both)")


def pdmx(source: Source, args: argparse.Namespace) -> Made:
    forms = [args.only] if args.only else list(PDMX_FORMS)
    named = [*args.subset, *["deduplicated"] * args.deduplicated, *["rated"] * args.rated]
    subsets = [f"subset:{name}" for name in dict.fromkeys(named)]
    table = source.one("PDMX.csv")
    source.need("metadata.tar.gz", *(f"{form}.tar.gz" for form in forms))
    for row in csv_rows(source, table, [*forms, "metadata", *PDMX_TEXTS, *subsets], null="NA"):
        yield row.where, functools.partial(_score, source, posixpath.dirname(table), row, forms, subsets)


def _score(source: Source, folder: str, row: Row, forms: list[str], subsets: list[str]) -> Entry:
    """Make the entry of a row of PDMX; its paths are relative to the folder of the CSV file."""
    for subset in subsets:
        if not row.flag(subset):
            raise Filtered(PDMX_REASONS.get(subset, f"not in {subset}"))
    paths = {f".{form}": posixpath.normpath(path) for form in forms if (path := row.text(form))}
    if not paths:
        raise LeftOut(f"no file in {' and '.join(forms)}")
    music: dict[str, str | bytes] = {suffix: posixpath.join(folder, path) for suffix, path in paths.items()}
    path = next(iter(paths.values()))  # mxl/1/11/Qm.mxl
    name = posixpath.splitext(path.partition("/")[2] or path)[0]
    warnings = [f"`{form}` is empty" for form in forms if f".{form}" not in music]
    try:
        data = _metadata(source, posixpath.join(folder, row.text("metadata")))
    except LeftOut as error:
        data = {}
        warnings.append(f"genres, tags and texts are the CSV's: metadata: {error}")
    return Entry(name, music, _score_record(row, data), warnings=warnings)


def _metadata(source: Source, member: str) -> dict:
    """Read "data" of a metadata file, of which the table's columns are an excerpt. Raises LeftOut."""
    try:
        data = records.parse(source.read(member)).get("data")
    except InputError as error:
        raise LeftOut("not a record", f"{member}: {error}") from None
    if not isinstance(data, dict):
        raise LeftOut("it has no object `data`", member)
    return data


def _score_record(row: Row, data: dict) -> dict:
    score = data["score"] if isinstance(data.get("score"), dict) else {}

    def either(field: str) -> str:
        return _text(score, field) or row.text(field)

    programs = dict.fromkeys(number for number in row.text("tracks").split("-") if number.isdecimal())
    sounds = [general_midi.NAMES[int(number)] for number in programs if int(number) < 128]
    tags = _names(score, "tags") or _names(data, "tags") or _words(row, "tags")
    return {
        "title": either("title") or either("song_name"),
        "composer": either("composer_name") or either("artist_name"),
        "genres": _names(data, "genres") or _names(score, "genres") or _words(row, "genres"),
        "description": _text(score, "description"),
        "tags": list(dict.fromkeys([*tags, *_words(row, "groups")])),
        "ensembles": _names(score, "instrumentations"),
        "instruments": _names(score, "instruments") or sounds,
    }


def _text(values: dict, key: str) -> str:
    value = values.get(key)
    return value.strip() if isinstance(value, str) else ""


def _names(values: dict, key: str) -> list[str]:
    """List the names in a list of texts or of {"name": ...}, each once."""
    listed = values.get(key)
    items = listed if isinstance(listed, list) else []
    found = (item if isinstance(item, str) else _text(item, "name") if isinstance(item, dict) else "" for item in items)
    return list(dict.fromkeys(name.strip() for name in found if name.strip()))


def _words(row: Row, column: str) -> list[str]:
    return [word for word in row.text(column).split("-") if word]


# --- MidiCaps ---------------------------------------------------------------------------------------------------------


def midicaps(source: Source, args: argparse.Namespace) -> Made:
    table = source.one("train.json")
    source.need("midicaps.tar.gz")
    required = [*MIDICAPS_COLUMNS, "instrument_summary", "test_set"]
    for row in json_rows(source, table, required):
        yield row.where, functools.partial(_captioned, posixpath.dirname(table), row)


def _captioned(folder: str, row: Row) -> Entry:
    location, caption, tempo = row.text("location"), row.text("caption"), row.number("tempo")
    if not location:
        raise LeftOut("`location` is empty")
    beats = f"{tempo:.0f} beats per minute at the beginning" if tempo else ""
    tags = [*row.texts("mood"), row.text("key"), row.text("time_signature"), row.text("tempo_word"), beats]
    record = {
        "genres": row.texts("genre"),
        "description": caption,
        "tags": [tag for tag in tags if tag],
        "instruments": list(dict.fromkeys(row.texts("instrument_summary"))),
    }
    name, suffix = posixpath.splitext(posixpath.normpath(location))
    split = "test" if row.flag("test_set") else "train"
    return Entry(name, {suffix: posixpath.join(folder, location)}, record, text=caption, split=split)


DATASETS = {
    "pdmx": Dataset(PDMX_ABOUT, pdmx, add_arguments=add_pdmx_arguments),
    "midicaps": Dataset(MIDICAPS_ABOUT, midicaps, splits=("train", "test")),
}
