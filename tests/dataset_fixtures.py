"""Small files in the form of public data sets, and their readers run on them."""

import argparse
import io
import zipfile

import prepare_dataset
from dataset_files import LeftOut, Source

MIDI = b"MThd\0\0\0\6\0\0\0\1\1\xe0MTrk\0\0\0\x0d\0\x90\x3c\x50\x83\x60\x80\x3c\0\0\xff\x2f\0"  # one note
DATASETS = prepare_dataset.DATASETS


def write(folder, members):
    """Write files below a folder, {name: text or bytes}; returns the folder."""
    for name, content in members.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape"))
    return folder


def zipped(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def read(name, folder, *options):
    """Read a data set: {stem: entry}, and {where: reason} of what was left out."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--split")
    if DATASETS[name].add_arguments:
        DATASETS[name].add_arguments(parser)
    entries, left_out = {}, {}
    for where, make in DATASETS[name].read(Source(folder, folder / "unpacked"), parser.parse_args(options)):
        try:
            entry = make()
        except LeftOut as error:
            left_out[where] = str(error)
            continue
        assert entry.stem not in entries
        entries[entry.stem] = entry
    return entries, left_out
