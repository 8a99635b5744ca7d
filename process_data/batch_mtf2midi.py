"""MTF, the MIDI text format -> MIDI files of one track, which `batch_midi2mtf.py` turns into the same MTF again.

examples:
  python process_data/batch_mtf2midi.py mtf/ midi/
  python process_data/batch_mtf2midi.py song.mtf midi/
"""

import argparse
import sys
from pathlib import Path

import batch
import mtf
from shared import InputError


def convert(path: Path, args: argparse.Namespace) -> batch.Converted:
    try:
        return batch.Converted([mtf.mtf_to_midi(path.read_bytes().decode("ascii"))])
    except UnicodeDecodeError as error:
        raise InputError(f"not MTF, which is ASCII: byte 0x{error.object[error.start]:02x}") from error


def main(argv: list[str] | None = None) -> int:
    return batch.main(convert, doc=__doc__, suffixes=(".mtf",), target=".mid", several=False, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
