"""Readers of the large sets of MIDI files, GigaMIDI and Aria-MIDI."""

import argparse
import re
from functools import partial
from pathlib import PurePosixPath
from sys import intern
from urllib.parse import unquote

from dataset_files import Dataset, Entry, LeftOut, Made, Source
from dataset_tables import Row, json_members, parquet_rows
from shared import InputError

GIGAMIDI_COLUMNS = ("md5", "music", "title", "artist", "music_styles_curated", "music_style_scraped")
GIGAMIDI_SPLITS = ("train", "validation", "test")
ARIA_FIELDS = ("composer", "genre", "form", "music_period", "performer")


def gigamidi(source: Source, args: argparse.Namespace) -> Made:
    """Read MIDI files in parquet shards, with title, artist and styles."""
    shards = list(source.find("*.parquet"))
    if not shards:
        raise InputError(f"{source.location}: no .parquet file in it")
    for shard in shards:
        split = next(reversed(re.findall("|".join(GIGAMIDI_SPLITS), shard)), "")  # train-00000-of-00010.parquet
        if args.split in (None, split):
            for row in parquet_rows(source, shard, GIGAMIDI_COLUMNS):
                yield row.where, partial(_gigamidi_entry, row, split)


def _gigamidi_entry(row: Row, split: str) -> Entry:
    md5, music = row.text("md5"), row.get("music")
    if not re.fullmatch("[0-9a-f]{32}", md5):
        raise LeftOut("`md5` is not 32 hexadecimal digits", repr(md5)[:80])
    if not isinstance(music, bytes):
        raise LeftOut("`music` is not bytes", f"{type(music).__name__}")
    curated = row.texts("music_styles_curated")
    scraped = [unquote(style).strip() for style in row.text("music_style_scraped").split(",")]
    entry = Entry(f"{md5[:2]}/{md5}", {".mid": music}, split=split)
    entry.labels = {"label": curated[0]} if len(curated) == 1 else {}
    styles = list(dict.fromkeys(filter(None, [*curated, *scraped])))
    entry.record = {"title": row.text("title"), "genres": styles, "tags": row.texts("artist")}
    return entry


def aria_midi(source: Source, args: argparse.Namespace) -> Made:
    """Read transcriptions of piano recordings, of which a program found composer, genre, form and performer."""
    source.need("*")
    table = source.one("metadata.json")
    found = {}
    for key, row in json_members(source, table):
        found[int(key) if key.isdecimal() else key] = _aria_metadata(row)
    for member in source.find("data/*.mid"):
        yield member, partial(_aria_entry, member, found)


def _aria_metadata(row: Row) -> tuple | None:
    """Keep what the records need, each text once in memory; None if the metadata are not an object of texts."""
    values = row.values.get("metadata")
    if not isinstance(values, dict):
        return None
    metadata = Row(row.where, {field: values.get(field) for field in ARIA_FIELDS})
    try:
        return tuple(tuple(map(intern, metadata.texts(field))) for field in ARIA_FIELDS)
    except LeftOut:
        return None


def _aria_entry(member: str, found: dict) -> Entry:
    path = PurePosixPath(member)
    name = re.fullmatch(r"(\d+)_\d+", path.stem)
    if name is None:
        raise LeftOut("its name is not <id>_<segment>.mid", member)
    number = int(name[1])  # 000042 in names is 42 in the metadata
    if number not in found:
        raise LeftOut("not in metadata.json", name[1])
    if found[number] is None:
        raise LeftOut("its `metadata` in metadata.json are not an object of texts", name[1])
    composer, genre, form, period, performer = map(list, found[number])
    record = {"composer": composer, "genres": genre, "tags": [*form, *period, *performer], "instruments": ["piano"]}
    return Entry(f"{path.parent.name}/{path.stem}", {".mid": member}, record)


DATASETS = {
    "gigamidi": Dataset(
        """Over 2 million MIDI files with, where they are known, titles, artists and styles.

Get the parquet files of one version from https://huggingface.co/datasets/Metacreation/GigaMIDI, whose conditions are to
be accepted there, into a folder, SOURCE. Licence: for research, not for commercial use.
They are read with pyarrow (pip install pyarrow). The music is written into OUT, as a file for each row.

examples:
  python process_data/prepare_dataset.py gigamidi GigaMIDI/v2.0.0 data/gigamidi --split validation
  python process_data/prepare_dataset.py gigamidi GigaMIDI/v2.0.0 data/gigamidi --shard 3/16""",
        gigamidi,
        splits=GIGAMIDI_SPLITS,
    ),
    "aria-midi": Dataset(
        """1,186,253 MIDI files (or 820,944, 371,053, 32,522: its subsets), transcribed from recordings of solo piano.

Get an archive, such as aria-midi-v1-deduped-ext.tar.gz (2 GB), from https://huggingface.co/datasets/loubb/aria-midi,
and expand it; SOURCE is the folder with metadata.json and data/. Licence: CC BY-NC-SA 4.0.
Composer, genre, form and performer were found by a program and may be wrong. There are no titles: for training, the
records need summaries first.

examples:
  python process_data/prepare_dataset.py aria-midi aria-midi-v1-deduped-ext data/aria-midi""",
        aria_midi,
    ),
}
