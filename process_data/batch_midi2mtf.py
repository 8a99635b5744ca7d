"""MIDI (.mid, .midi, .kar, .rmi) -> MTF, the MIDI text format that M3 reads.

Damaged files are repaired as far as they go; OUTPUT_DIR/warnings.jsonl names the repairs of each file, and the ticks
that it lost with the messages left out.

examples:
  python process_data/batch_midi2mtf.py midi/ mtf/
  python process_data/batch_midi2mtf.py song.mid mtf/ --all_messages
  python process_data/batch_midi2mtf.py midi/ mtf/ --shard 3/16     # the third of 16 jobs that share the work
"""

import argparse
import sys
from pathlib import Path

import batch
import midi_reader
import mtf
from shared import InputError


def convert(path: Path, args: argparse.Namespace) -> batch.Converted:
    text, warnings = mtf.midi_to_mtf(path.read_bytes(), args.messages)
    if "\nnote_on " not in text:  # every later stage refuses such a file
        raise InputError("; ".join(["no note in it", *warnings]))
    return batch.Converted([text.encode("ascii")], warnings)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(messages="m3_compatible")
    group = parser.add_mutually_exclusive_group()
    for mode, meaning in (
        ("m3_compatible", "leave out text and system exclusive messages and their times, as M3 was trained (default)"),
        ("all_messages", "leave out nothing"),
        ("carry_delta", "leave out the same as --m3_compatible, but add their times to the next message's"),
    ):
        group.add_argument(f"--{mode}", dest="messages", action="store_const", const=mode, help=meaning)


def main(argv: list[str] | None = None) -> int:
    return batch.main(
        convert,
        doc=__doc__,
        suffixes=midi_reader.SUFFIXES,
        target=".mtf",
        several=False,
        add_arguments=add_arguments,
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
