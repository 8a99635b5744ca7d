"""Standard ABC -> interleaved ABC, which M3 reads; or back, with --reverse.

A file with several tunes gives name.1.abc, name.2.abc, ... OUTPUT_DIR/warnings.jsonl names the voices that were
filled up with rests, or have bars of unequal length.

examples:
  python process_data/batch_interleaved_abc.py abc/ interleaved/
  python process_data/batch_interleaved_abc.py tunebook.abc interleaved/
  python process_data/batch_interleaved_abc.py interleaved/ abc/ --reverse
"""

import argparse
import sys
from pathlib import Path

import batch
from abc_text import read_abc
from interleaving import deinterleave, interleave


def convert(path: Path, args: argparse.Namespace) -> batch.Converted:
    text = read_abc(path.read_bytes())
    if args.reverse:
        standard, warnings = deinterleave(text)
        return batch.Converted([standard.encode()], warnings)
    tunes = interleave(text)
    numbers = [f"tune {number}: " if len(tunes) > 1 else "" for number in range(1, len(tunes) + 1)]
    warnings = [number + warning for number, (_, more) in zip(numbers, tunes, strict=True) for warning in more]
    return batch.Converted([text.encode() for text, _ in tunes], warnings)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reverse", action="store_true", help="interleaved ABC -> standard ABC")


def main(argv: list[str] | None = None) -> int:
    return batch.main(convert, doc=__doc__, suffixes=(".abc",), target=".abc", add_arguments=add_arguments, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
