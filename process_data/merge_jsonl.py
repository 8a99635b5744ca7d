"""Merge metadata records, one .json file each, into the JSONL file that train_clamp2.py reads.

examples:
  python merge_jsonl.py data/summaries data/train.jsonl
  python merge_jsonl.py data/pdmx/train.jsonl data/midicaps/train.jsonl data/train.jsonl      two sets become one

A record needs a title or a summary, and in `filepaths` at least one .abc or .mtf file, as a path relative to the folder
of the JSONL file (here data/) that does not leave it. Paths of a JSONL file that is merged are relative to its own
folder, and are rewritten. Records without are left out, and so are single files that are missing; OUT.left_out.jsonl
beside the JSONL file names each with its reason. Fields keep their values, but for those that do not apply ("None",
blank text), which become null.
Exit status: 0; 1 if a record was left out; 2 for wrong use, or if no record is fit for training.
"""

import functools
import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import jobs
from shared import InputError, files, records

Found = tuple[str, Callable[[], dict]]  # the name of a record in the report, and what returns it or raises Unfit


def merge(found: Iterable[Found], target: Path) -> int:
    """Write the records that are fit for training to `target`, and the report beside it; print the counts.

    Args:
        found: the records.
        target: the JSONL file.

    Returns the exit status: 1 if a record was left out. Raises InputError if none is fit (then `target` stays as
    it was), OSError if a file cannot be written.
    """
    kept, report = 0, []
    kinds: Counter[str] = Counter()
    files.remove_leftovers(target.parent, below=False)
    with files.atomic_write(target) as merged:
        for name, read in jobs.progress("record", found):
            try:
                record, left_out = records.for_training(read(), target.parent)
                merged.write(_line(record))
            except records.Unfit as error:
                kinds[error.kind] += 1
                report.append({"file": name, "error": str(error)})
                continue
            kept += 1
            if left_out:
                report.append({"file": name, "warnings": left_out})
        _write_report(report, target)
        if not kept:
            raise InputError(
                f"{target} is not written: none of {len(report)} records is fit for training ; "
                f"{_most_common(kinds, report)}; {_report_path(target)} names all"
                if report
                else f"{target} is not written: there is no record to merge"
            )
    for kind, count in kinds.most_common():
        print(f"  left out: {count} (for the reason: {files.printable(kind)})")
    partly = len(report) - kinds.total()
    counts = f"{kept} records written ({partly} with unusable files removed), {kinds.total()} left out"
    print(f"{files.printable(target)}: {counts}")
    if report:
        print(f"{files.printable(_report_path(target))} names {len(report)} record(s).", file=sys.stderr)
    return int(kinds.total() > 0)


def _most_common(kinds: Counter[str], report: list[dict]) -> str:
    """Describe the most frequent reason why records are left out, with its first example."""
    [(kind, count)] = kinds.most_common(1)
    example = next(entry for entry in report if entry["error"].startswith(kind))
    return f"the most frequent reason ({count} times), as in {example['file']}: {example['error']}"


def check_target(target: Path) -> None:
    """Raise InputError if `target` is no place for a JSONL file."""
    if target.suffix != ".jsonl" or target.is_dir():
        raise InputError(f"{target}: the merged file must be named something.jsonl")


def read(path: Path) -> dict:
    """Read the record of a .json file. Raises Unfit."""
    try:
        files.require_piece(path)
        return records.parse_metadata(path.read_bytes())
    except InputError as error:
        raise records.Unfit("no record", f"{path}: {error}") from None
    except OSError as error:
        raise records.Unfit("no record", f"{path}: {error.strerror}") from None


def _of_jsonl(source: Path, folder: str) -> Iterator[Found]:
    """List the records of a JSONL file in `folder`, as seen from that of the new one."""
    with open(source, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"{source}, line {number}", functools.partial(_moved, line, folder)


def _moved(line: bytes, folder: str) -> dict:
    """Read a record of a JSONL file, its paths with their folder in front. Raises Unfit."""
    record = records.parse_metadata(line)
    if isinstance(paths := record["filepaths"], list):
        record["filepaths"] = [
            path
            if not isinstance(path, str) or records.is_blank(path) or records.leaves_folder(path)
            else os.path.normpath(os.path.join(folder, path))
            for path in paths
        ]
    return record


def _line(record: dict) -> bytes:
    try:
        return (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
    except ValueError as error:  # NaN, infinity, or half of a surrogate pair
        raise records.Unfit("holds a value that JSON in UTF-8 cannot", str(error)) from None


def _report_path(target: Path) -> Path:
    return target.with_name(f"{target.stem}.left_out.jsonl")


def _write_report(entries: list[dict], target: Path) -> None:
    if not entries:
        _report_path(target).unlink(missing_ok=True)
        return
    with files.atomic_write(_report_path(target)) as report:
        for entry in entries:  # half a surrogate pair, as a file name that is not UTF-8 has, is written \udcff
            report.write((json.dumps(entry, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))


def main(argv: list[str] | None = None) -> int:
    parser = jobs.parser(__doc__)
    about = "a folder, whose whole tree of .json files is merged, or a .jsonl file"
    parser.add_argument("sources", metavar="IN", nargs="+", type=Path, help=about)
    parser.add_argument("target", metavar="OUT.jsonl", type=Path, help="the JSONL file, in the folder of the music")
    args = parser.parse_args(argv)
    others = 0
    found: list[Iterable[Found]] = []
    try:
        check_target(args.target)
        for source in args.sources:
            if source.suffix == ".jsonl" and source.is_file():
                found.append(_of_jsonl(source, os.path.relpath(source.parent, args.target.parent)))
                continue
            paths, ignored = files.list_files(source, (".json",))
            folder = source if source.is_dir() else source.parent
            shown = folder if len(args.sources) > 1 else Path()
            found.append([((shown / path).as_posix(), functools.partial(read, folder / path)) for path in paths])
            others += len(ignored)
        status = merge(found[0] if len(found) == 1 else itertools.chain(*found), args.target)
    except (OSError, InputError) as error:
        parser.error(files.printable(error))
    except KeyboardInterrupt:
        print("Stopped; nothing is written.", file=sys.stderr)
        return 130
    if others:
        print(f"{others} other files ignored")
    return status


if __name__ == "__main__":
    sys.exit(main())
