"""MusicXML (.xml, .musicxml, .mxl) -> standard ABC, the very text that `xml2abc -d 8 -x` writes.

One voice after another, unit length 1/8, no line breaks of the score. `batch_interleaved_abc.py` is the next step.
OUTPUT_DIR/warnings.jsonl names the files that xml2abc printed something about.

examples:
  python process_data/batch_xml2abc.py scores/ abc/
  python process_data/batch_xml2abc.py song.mxl abc/ --overwrite
  python process_data/batch_xml2abc.py scores/ abc/ --shard 3/16     # the third of 16 jobs that share the work
"""

import argparse
import sys
from pathlib import Path

import batch
import musicxml
import xml_abc


def convert(path: Path, args: argparse.Namespace) -> batch.Converted:
    abc, warnings = xml_abc.musicxml_to_abc(path.read_bytes(), path.name)
    return batch.Converted([abc.encode()], warnings)


def main(argv: list[str] | None = None) -> int:
    return batch.main(convert, doc=__doc__, suffixes=musicxml.SUFFIXES, target=".abc", several=False, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
