"""ABC, standard or interleaved -> MusicXML, with abc2xml.

A file with several tunes gives name.1.musicxml, name.2.musicxml, ... OUTPUT_DIR/warnings.jsonl names the files that
abc2xml printed something about.

examples:
  python process_data/batch_abc2xml.py abc/ scores/
  python process_data/batch_abc2xml.py interleaved/song.abc scores/
"""

import argparse
import sys
from pathlib import Path

import abc_text
import batch
import xml_abc


def convert(path: Path, args: argparse.Namespace) -> batch.Converted:
    return batch.Converted(*xml_abc.tunes_to_musicxml(abc_text.read_abc(path.read_bytes())))


def main(argv: list[str] | None = None) -> int:
    return batch.main(convert, doc=__doc__, suffixes=(".abc",), target=".musicxml", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
