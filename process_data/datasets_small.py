"""Readers of the small sets of MIDI files, most with labels: EMOPIA, VGMIDI, Pianist8, ASAP, MAESTRO, POP909."""

import argparse
import hashlib
import posixpath
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import partial
from pathlib import Path, PurePosixPath

from dataset_files import Dataset, Entry, LeftOut, Made, Source, one_task
from dataset_tables import Row, csv_rows
from shared import InputError

CLIP = re.compile(r"(Q[1-4])_(.{11})_(\d+)")  # of EMOPIA: quadrant, song, number
FEELINGS = {"Q1": ("high", "high"), "Q2": ("low", "high"), "Q3": ("low", "low"), "Q4": ("high", "low")}
EMOPIA_FILES = {"train": "train.csv", "validation": "val.csv", "test": "test.csv"}
PIANIST8_FOLDERS = {"train": "train", "valid": "validation", "test": "test"}
SPLITS = ("train", "validation", "test")
TEST_SHARE = 0.2  # of the songs of each class, in a set without an official split


def emopia(source: Source, args: argparse.Namespace) -> Made:
    """Read clips of pop piano music, labelled by quadrant; split by song, or as the files in --official say."""
    members = list(source.find("*.mid"))
    if not members:
        raise InputError(f"{source.location}: no .mid file in it")
    clips = [CLIP.fullmatch(PurePosixPath(member).stem) for member in members]
    if args.official:
        splits = _emopia_splits(args.official)
    else:
        held_out = held_out_groups((clip[2], clip[1]) for clip in clips if clip)
        splits = {clip[0]: "test" if clip[2] in held_out else "train" for clip in clips if clip}
    for member, clip in zip(members, clips, strict=True):
        yield member, partial(_emopia_entry, member, clip, splits)


def _emopia_entry(member: str, clip: re.Match | None, splits: dict[str, str]) -> Entry:
    if clip is None:
        raise LeftOut("its name is not Q<1-4>_<11 characters>_<number>.mid", member)
    if clip[0] not in splits:
        raise LeftOut("in none of the files of the official split", clip[0])
    entry = Entry(clip[0], {".mid": member}, {"instruments": ["piano"]}, split=splits[clip[0]])
    entry.labels = _emotion(clip[1])
    return entry


def _emopia_splits(folder: str) -> dict[str, str]:
    """Read the split of each clip from train.csv, val.csv and test.csv."""
    splits: dict[str, str] = {}
    source = Source(Path(folder), Path(folder))
    for split, file in EMOPIA_FILES.items():
        for row in csv_rows(source, source.one(file), ("fname", "label")):
            name, label = row.text("fname"), row.text("label")
            if not (clip := CLIP.fullmatch(name)) or clip[1] != label:
                raise InputError(f"{row.where}: `fname` {name!r} with `label` {label!r}: not a clip of this quadrant")
            if splits.setdefault(name, split) != split:
                raise InputError(f"{row.where}: `fname` {name!r} is in {splits[name]} and in {split}")
    return splits


def vgmidi(source: Source, args: argparse.Namespace) -> Made:
    """Read phrases of video game music, labelled by valence and arousal; split by piece."""
    table = source.one("vgmidi_labelled.csv")
    rows = list(csv_rows(source, table, ("id", "series", "game", "piece", "midi", "valence", "arousal")))
    groups = ((str(row.values.get("id")), f"{row.values.get('valence')} {row.values.get('arousal')}") for row in rows)
    held_out = held_out_groups(groups)
    for row in rows:
        yield row.where, partial(_vgmidi_entry, row, source, posixpath.dirname(table), held_out)


def _vgmidi_entry(row: Row, source: Source, folder: str, held_out: set[str]) -> Entry:
    member = posixpath.join(folder, row.text("midi"))
    names = {"1": "high", "-1": "low"}
    feeling = tuple(_choice(row, column, names) for column in ("valence", "arousal"))
    [quadrant] = [quadrant for quadrant, known in FEELINGS.items() if known == feeling]
    entry = Entry(PurePosixPath(member).stem, {".mid": member}, labels=_emotion(quadrant))
    entry.split = "test" if row.text("id") in held_out else "train"
    tags = list(dict.fromkeys(filter(None, [row.text("game"), row.text("series")])))
    entry.record = {"title": row.text("piece"), "genres": ["video game music"], "tags": tags}
    return entry


def pianist8(source: Source, args: argparse.Namespace) -> Made:
    """Read piano pieces in a folder for each composer, perhaps in folders train, valid and test."""
    members = list(source.find("*.mid"))
    if len({PurePosixPath(member).parent.name for member in members}) < 2:
        raise InputError(f"{source.location}: no two folders with .mid files; the folders are the composers")
    for member in members:
        yield member, partial(_pianist8_entry, member)


def _pianist8_entry(member: str) -> Entry:
    path = PurePosixPath(member)
    composer = path.parent.name
    split = next((PIANIST8_FOLDERS[folder] for folder in path.parts if folder in PIANIST8_FOLDERS), "")
    record = {"composer": composer, "instruments": ["piano"]}
    return Entry(f"{composer}/{path.stem}", {".mid": member}, record, labels=one_task(composer), split=split)


def asap(source: Source, args: argparse.Namespace) -> Made:
    """Read scores of piano music, as MusicXML and MIDI; or their performances, with those of a score in one split."""
    table = source.one("metadata.csv")
    columns = ("composer", "title", "folder", "xml_score", "midi_score", "midi_performance")
    held_out: set[str] = set()
    if args.performances:
        rows = csv_rows(source, table, columns)
        held_out = held_out_groups((str(row.values.get("folder")), str(row.values.get("composer"))) for row in rows)
    seen = set()
    for row in csv_rows(source, table, columns):
        if args.performances or row.problem or row.values["folder"] not in seen:  # the others repeat the score
            seen.add(row.values.get("folder"))
            yield row.where, partial(_asap_entry, row, posixpath.dirname(table), args.performances, held_out)


def _asap_entry(row: Row, folder: str, performances: bool, held_out: set[str]) -> Entry:
    name, composer = row.text("folder"), row.text("composer")
    columns = ("midi_performance",) if performances else ("xml_score", "midi_score")
    paths = [PurePosixPath(folder, path) for column in columns if (path := row.text(column))]
    if not paths:
        raise LeftOut("it names no music", name)
    entry = Entry(name, {path.suffix: str(path) for path in paths}, labels=one_task(composer))
    if performances:
        entry.name = f"{name}/{paths[0].stem}"
        entry.split = "test" if name in held_out else "train"
    title = row.text("title").replace("_", " ")
    entry.record = {"title": title, "composer": composer, "instruments": ["piano"]}
    return entry


def maestro(source: Source, args: argparse.Namespace) -> Made:
    """Read performances of piano music with the official split."""
    table = source.one("maestro-v3.0.0.csv")
    for row in csv_rows(source, table, ("canonical_composer", "canonical_title", "split", "midi_filename")):
        yield row.where, partial(_maestro_entry, row, posixpath.dirname(table))


def _maestro_entry(row: Row, folder: str) -> Entry:
    path = PurePosixPath(row.text("midi_filename"))
    composers = re.split(r"\s+/\s+", row.text("canonical_composer"))  # the second one made the arrangement
    entry = Entry(str(path.with_suffix("")), {path.suffix: posixpath.join(folder, path)})
    entry.split = _choice(row, "split", {split: split for split in SPLITS})
    entry.labels = one_task(composers[0]) if len(composers) == 1 else {}
    entry.record = {"title": row.text("canonical_title"), "composer": composers, "instruments": ["piano"]}
    return entry


def pop909(source: Source, args: argparse.Namespace) -> Made:
    """Read piano arrangements of Chinese pop songs, one version of each."""
    try:
        import openpyxl
    except ImportError:
        raise InputError("index.xlsx is read by openpyxl; pip install openpyxl") from None
    table = source.one("index.xlsx")
    try:
        with source.stream(table) as file:
            header, *rows = openpyxl.load_workbook(file, read_only=True).worksheets[0].values
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise InputError(f"{table}: not an Excel file that can be read ({error})") from None
    if missing := {"song_id", "name", "artist"} - set(header):
        raise InputError(f"{table}, row 1: no column {', '.join(sorted(missing))}; there are: {header}")
    for number, cells in enumerate(rows, start=2):  # a row may end early
        row = Row(f"{table}, row {number}", dict(zip(header, cells, strict=False)))
        yield row.where, partial(_pop909_entry, row, posixpath.dirname(table))


def _pop909_entry(row: Row, folder: str) -> Entry:
    song = row.text("song_id").zfill(3)  # "001", or a number
    record = {"title": row.text("name"), "tags": row.texts("artist"), "genres": ["pop"], "instruments": ["piano"]}
    return Entry(song, {".mid": posixpath.join(folder, song, f"{song}.mid")}, record)


def held_out_groups(labelled: Iterable[tuple[str, str]]) -> set[str]:
    """Choose a fifth of the groups (songs) of each class for the test, the same ones wherever and whenever.

    Args:
        labelled: (group, class) of each piece. A group counts for its most frequent class.
    """
    classes: dict[str, Counter[str]] = defaultdict(Counter)
    for group, label in labelled:
        classes[group][label] += 1
    groups = defaultdict(list)
    for group, counts in classes.items():
        groups[min(counts, key=lambda label: (-counts[label], label))].append(group)
    held_out = set()
    for members in groups.values():
        members.sort(key=lambda group: hashlib.sha256(group.encode("utf-8", "backslashreplace")).digest())
        held_out.update(members[: round(TEST_SHARE * len(members))])
    return held_out


def _emotion(quadrant: str) -> dict[str, str]:
    valence, arousal = FEELINGS[quadrant]
    return {"quadrant": quadrant, "valence": valence, "arousal": arousal}


def _choice(row: Row, column: str, names: dict[str, str]) -> str:
    if (value := row.text(column)) not in names:
        raise LeftOut(f"`{column}` is not {' or '.join(names)}", repr(value)[:80])
    return names[value]


def _official_argument(parser: argparse.ArgumentParser) -> None:
    about = "folder of the authors' train.csv, val.csv and test.csv; without it, a fifth of the songs is the test"
    parser.add_argument("--official", metavar="FOLDER", help=about)


def _performances_argument(parser: argparse.ArgumentParser) -> None:
    about = "the performances instead of the scores; a fifth of the scores, with all their performances, is the test"
    parser.add_argument("--performances", action="store_true", help=about)


DATASETS = {
    "emopia": Dataset(
        """1,078 clips of 387 pop piano songs with four emotions, for a probe: quadrant, valence or arousal.

Get EMOPIA_2.2.zip from https://zenodo.org/records/5257995; SOURCE is the archive, or the folder it expands to.
Licence: for research; its pages disagree on which.
A clip is named Q<1-4>_<song>_<number>.mid. A fifth of the songs, with all their clips, is the test; the authors' own
split, also by song, is in dataset/split of https://github.com/seungheondoh/EMOPIA_cls.

examples:
  python process_data/prepare_dataset.py emopia EMOPIA_2.2.zip data/emopia
  python process_data/prepare_dataset.py emopia EMOPIA_2.2.zip data/emopia --official EMOPIA_cls/dataset/split""",
        emopia,
        splits=SPLITS,
        add_arguments=_official_argument,
    ),
    "vgmidi": Dataset(
        """204 phrases of 200 pieces of video game music, for a probe: valence, arousal, or both (quadrant).

Get it with: git clone https://github.com/lucasnfe/vgmidi. SOURCE is that folder; the archive labelled/phrases.zip in it
is read as it is. Licence: none is given. A fifth of the pieces, with all their phrases, is the test.

examples:
  python process_data/prepare_dataset.py vgmidi vgmidi data/vgmidi""",
        vgmidi,
        splits=("train", "test"),
    ),
    "pianist8": Dataset(
        """411 piano pieces by 8 composers, transcribed from audio, for a probe: composer.

Get the archive from https://zenodo.org/records/5089279, which names the licence; SOURCE is the archive, or a folder.
The folder that a piece is in is its composer. Folders train, valid and test, which some copies have, are the split.

examples:
  python process_data/prepare_dataset.py pianist8 Pianist8.zip data/pianist8""",
        pianist8,
        splits=SPLITS,
    ),
    "asap": Dataset(
        """235 scores of piano music by 16 composers, as MusicXML and MIDI, and 1,067 performances of them.

Get it with: git clone https://github.com/fosfrancesco/asap-dataset. SOURCE is that folder. Licence: CC BY-NC-SA 4.0.
Each score is one piece in two forms. With --performances, each performance is one, and a fifth of the scores, with all
their performances, is the test.

examples:
  python process_data/prepare_dataset.py asap asap-dataset data/asap
  python process_data/prepare_dataset.py asap asap-dataset data/performances --performances""",
        asap,
        splits=("train", "test"),
        add_arguments=_performances_argument,
    ),
    "maestro": Dataset(
        """1,276 performances of classical piano music with composers, titles and an official split.

Get maestro-v3.0.0-midi.zip (60 MB) from https://magenta.tensorflow.org/datasets/maestro; SOURCE is the archive, or the
folder it expands to. Licence: CC BY-NC-SA 4.0. Arrangements, which have two composers, have no label.

examples:
  python process_data/prepare_dataset.py maestro maestro-v3.0.0-midi.zip data/maestro""",
        maestro,
        splits=SPLITS,
    ),
    "pop909": Dataset(
        """909 Chinese pop songs arranged for piano, with titles and singers.

Get it with: git clone https://github.com/music-x-lab/POP909-Dataset. SOURCE is that folder. Licence: MIT. Its table is
read with openpyxl (pip install openpyxl). Of the versions of a song, which are nearly alike, only the first is taken.

examples:
  python process_data/prepare_dataset.py pop909 POP909-Dataset data/pop909""",
        pop909,
    ),
}
