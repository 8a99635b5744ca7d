"""Readers of lead sheets and tunes: WikiMT, WikiMT-X and IrishMAN."""

import argparse
import unicodedata
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import PurePosixPath

from dataset_files import Dataset, Entry, LeftOut, Made, Source, one_task
from dataset_tables import Row, json_rows

WIKIMT_FIELDS = ("description", "title", "artist", "genre")
WIKIMT_X_FIELDS = ("description", "background", "analysis", "scene")
HOW_TO_ADD = "no music: put ARTIST - TITLE.mxl beside wikimusictext.jsonl"


def wikimt(source: Source, args: argparse.Namespace) -> Made:
    """Read lead sheets with title, artist, genre and description; music from the JSON file, or MusicXML beside it."""
    scores = defaultdict(list)
    for pattern in ("*.mxl", "*.musicxml", "*.xml"):
        for member in source.find(pattern):
            scores[_letters(PurePosixPath(member).stem)].append(member)
    table = source.one("wikimusictext.jsonl", "wikimusictext.json")
    for number, row in enumerate(json_rows(source, table, ("title", "artist", "genre", "description")), start=1):
        yield row.where, partial(_wikimt_entry, row, number, scores, args.field)


def _wikimt_entry(row: Row, number: int, scores: dict[str, list[str]], fields: list[str]) -> Entry:
    title, artist, genre = row.text("title"), row.text("artist"), row.text("genre")
    music: dict[str, str | bytes] = {}
    if row.values.get("music"):
        music[".abc"] = "\n".join(line.rstrip("\r\n") for line in _lines(row, "music")).encode()
    elif scores:
        fitting = scores.get(_letters(f"{artist} - {title}"), [])
        if len(fitting) != 1:
            raise LeftOut(f"{'two scores' if fitting else 'no score'} of its name", f"{artist} - {title}.mxl")
        music[PurePosixPath(fitting[0]).suffix.lower()] = fitting[0]
    entry = Entry(f"{number:04d}", music, text=_joined(row, fields), labels=one_task(genre))
    entry.warnings = [] if music else [HOW_TO_ADD]
    entry.record = {"title": title, "genres": [genre], "description": row.text("description"), "tags": [artist]}
    return entry


def wikimt_x(source: Source, args: argparse.Namespace) -> Made:
    """Read lead sheets in ABC, each with four texts; `--field` names the query."""
    table = source.one("wikimt-x-public.jsonl")
    required = ("title", "artists", "genre", *WIKIMT_X_FIELDS, "leadsheet")
    for number, row in enumerate(json_rows(source, table, required), start=1):
        yield row.where, partial(_wikimt_x_entry, row, number, args.field)


def _wikimt_x_entry(row: Row, number: int, fields: list[str]) -> Entry:
    entry = Entry(f"{number:04d}", {".abc": _abc(row, "leadsheet")}, labels=one_task(row.text("genre")))
    entry.text = _joined(row, fields)
    texts = [text for field in WIKIMT_X_FIELDS if (text := row.text(field))]
    entry.record = {"title": row.text("title"), "genres": [row.text("genre")], "description": texts}
    entry.record["tags"] = row.texts("artists")
    return entry


def irishman(source: Source, args: argparse.Namespace) -> Made:
    """Read tunes in ABC without titles, for the training of M3: no records."""
    for split in ("train", "validation"):
        table = source.one(f"{split}.json")
        for number, row in enumerate(json_rows(source, table, ("control code", "abc notation"))):
            yield row.where, partial(_irishman_entry, row, number, split)


def _irishman_entry(row: Row, number: int, split: str) -> Entry:
    name = f"{number // 1000:03d}/{number:06d}"  # a thousand files in a folder
    return Entry(name, {".abc": _abc(row, "abc notation")}, split=split)


def _abc(row: Row, column: str) -> bytes:
    if not (text := row.text(column)):
        raise LeftOut(f"`{column}` is empty")
    return f"{text}\n".encode("utf-8", "replace")


def _lines(row: Row, column: str) -> list[str]:
    value = row.values[column]
    return [str(line) for line in value] if isinstance(value, list) else [row.text(column)]


def _joined(row: Row, fields: list[str]) -> str:
    return "\n".join(text for field in fields if (text := row.text(field)))


def _letters(name: str) -> str:
    """Reduce a name to its letters and digits, in lower case: the others may be replaced in a file's name."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", name).casefold()))


def _field_argument(fields: tuple[str, ...]) -> Callable[[argparse.ArgumentParser], None]:
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        about = f"the query of a piece, joined by line breaks if several: {', '.join(fields)} (default: {fields[0]})"
        parser.add_argument("--field", metavar="FIELD", nargs="+", choices=fields, default=fields[:1], help=about)

    return add_arguments


DATASETS = {
    "wikimt": Dataset(
        """1,010 lead sheets with title, artist, genre (one of 8) and description, for retrieval and a probe.

Get wikimusictext.jsonl (1 MB) from https://huggingface.co/datasets/sander-wood/wikimusictext into a folder, SOURCE.
Licence: MIT or CC BY-NC 4.0, by its revision.
It has no music. Put the MusicXML files into the same folder, named `ARTIST - TITLE.mxl`; case and signs other than
letters and digits may differ. Or use an older wikimusictext.json, which holds the music as ABC. Without either, only
texts and labels are written.
Which rows and fields CLaMP 2 was evaluated with is not published: --field is a choice, and results may differ.

examples:
  python process_data/prepare_dataset.py wikimt WikiMT data/wikimt
  python process_data/prepare_dataset.py wikimt WikiMT data/wikimt --field title artist genre description""",
        wikimt,
        add_arguments=_field_argument(WIKIMT_FIELDS),
    ),
    "wikimt-x": Dataset(
        """1,000 lead sheets in ABC with genre, background, analysis, description and scene, for retrieval and a probe.

Get wikimt-x-public.jsonl from https://huggingface.co/datasets/sander-wood/wikimt-x into a folder, SOURCE.
Licence: CC BY-NC 4.0.
Which of the texts was the query in published evaluations is not known: --field is a choice, and results may differ.

examples:
  python process_data/prepare_dataset.py wikimt-x WikiMT-X data/wikimt-x --field background""",
        wikimt_x,
        add_arguments=_field_argument(WIKIMT_X_FIELDS),
    ),
    "irishman": Dataset(
        """216,284 Irish tunes in ABC (2,162 of them for validation), monophonic and without titles: to train M3.

Get train.json and validation.json from https://huggingface.co/datasets/sander-wood/irishman into a folder, SOURCE.
Licence: MIT. There are no records for CLaMP 2, which needs a title or a summary.

examples:
  python process_data/prepare_dataset.py irishman IrishMAN data/irishman""",
        irishman,
        splits=("train", "validation"),
    ),
}
