"""Merges metadata records, one .json file each, into the JSONL file that train_clamp2.py reads.

examples:
  python merge_jsonl.py data/summaries data/train.jsonl

A record needs a title or a summary, and in `filepaths` at least one .abc or .mtf file, as a path relative to the folder
of the JSONL file (here data/) that does not leave it. Records without are left out, and so are single files that are
missing; OUT.left_out.jsonl beside the JSONL file names each with its reason. Fields keep their values, but for those
that say nothing ("None", blank text), which become null.
Exit status: 0; 1 if a record was left out; 2 for wrong use, or if no record is fit for training.
"""

import argparse
import functools
import json
import os
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "code"))
import files
import records
from records import FIELDS, METADATA, is_blank

MUSIC = (".abc", ".mtf")


class Unfit(ValueError):
    """A record that cannot be used. `kind` is the same for all records with the same fault; str() says more."""

    def __init__(self, kind: str, detail: str = ""):
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind


def parse(data: bytes) -> dict:
    """A record from its JSON text, fields in the order of the format, those it lacks as null, others behind them.

    Raises Unfit if it is no JSON object, or a field of metadata holds something else than text.
    """
    try:
        record = records.parse(data)
    except files.InputError as error:
        raise Unfit("not a record", str(error)) from None
    for field in METADATA:
        value = record.get(field)
        for item in value if isinstance(value, list) else [value]:
            if item is not None and not isinstance(item, str):
                found = f"{type(item).__name__} {json.dumps(item)[:40]}"
                raise Unfit(f"`{field}` is neither text nor a list of texts", f"it holds {found}")
    return {field: record.get(field) for field in FIELDS} | record


def for_training(record: dict, folder: Path) -> tuple[dict, list[str]]:
    """A record as training reads it, and what had to be left out of it, one line each.

    Args:
        record: from `parse`.
        folder: of the JSONL file; `filepaths` are relative to it.

    Raises Unfit if the record cannot be used at all.
    """
    texts = {field: _without_blanks(record[field]) for field in METADATA}
    english, others = _without_blanks(record["summary_en"]), _without_blanks(record["summary_nen"])
    if not all(isinstance(text, str) for text in _listed(english)):
        raise Unfit("`summary_en` is neither text nor a list of texts")
    if not all(isinstance(other, dict) and isinstance(other.get("summary"), str | None) for other in _listed(others)):
        raise Unfit('`summary_nen` is neither {"language": ..., "summary": ...} nor a list of such')
    fit = [other for other in _listed(others) if not is_blank(other.get("summary"))]
    others = fit if isinstance(others, list) and fit else fit[0] if fit else None
    if texts["title"] is None and english is None and others is None:
        raise Unfit("neither a title nor a summary")

    paths = _without_blanks(record["filepaths"])
    if not isinstance(paths, list):
        raise Unfit("`filepaths` is not a list of paths", json.dumps(record["filepaths"])[:80])
    problems = {str(path): _problem(path, folder) for path in paths}
    kept = [path for path in paths if not problems[str(path)]]
    left_out = [f"{path}: {problem}" for path, problem in problems.items() if problem]
    if not kept:
        raise Unfit("none of its `filepaths` can be used", "; ".join(left_out) or "there is none")
    return record | texts | {"summary_en": english, "summary_nen": others, "filepaths": kept}, left_out


def _listed(value: object) -> list:
    return value if isinstance(value, list) else [] if value is None else [value]


def _without_blanks(value: object) -> object:
    if isinstance(value, list):
        return [item for item in value if not is_blank(item)] or None
    return None if is_blank(value) else value


def _problem(path: object, folder: Path) -> str | None:
    """Why training cannot use a path of `filepaths`, or None."""
    if not isinstance(path, str):
        return "not a path"
    if os.path.isabs(path):
        return f"not relative to {folder}"
    if os.path.normpath(path).split(os.sep)[0] == "..":
        return f"leaves {folder}"
    if not path.lower().endswith(MUSIC):
        return "neither .abc nor .mtf; convert it first"
    try:
        status = os.stat(folder / path)
    except (OSError, ValueError):  # ValueError: a character that no path has
        return f"not in {folder}"
    if not stat.S_ISREG(status.st_mode):
        return "not a file"
    return None if status.st_size else "empty"


def merge(records: Iterable[tuple[str, Callable[[], dict]]], target: Path) -> int:
    """Writes the records that are fit for training to `target`, and the report beside it; prints the counts.

    Args:
        records: (name in the report, function that returns the record from `parse`, or raises Unfit) of each.
        target: the JSONL file.

    Returns the exit status: 1 if a record was left out. Raises files.InputError if none is fit (then `target` stays as
    it was), OSError if a file cannot be written.
    """
    kept, report = 0, []
    kinds: Counter[str] = Counter()
    files.remove_leftovers(target.parent, below=False)
    with files.atomic_write(target) as merged:
        for name, read in tqdm(records, unit="record", mininterval=0.5 if sys.stderr.isatty() else 30):
            try:
                record, left_out = for_training(read(), target.parent)
                merged.write(_line(record))
            except Unfit as error:
                kinds[error.kind] += 1
                report.append({"file": name, "error": str(error)})
                continue
            kept += 1
            if left_out:
                report.append({"file": name, "warnings": left_out})
        _write_report(report, target)
        if not kept:
            raise files.InputError(
                f"{target} is not written: none of {len(report)} records is fit for training; "
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
    """The most frequent reason why records are left out, with its first example."""
    [(kind, count)] = kinds.most_common(1)
    example = next(entry for entry in report if entry["error"].startswith(kind))
    return f"the most frequent reason ({count} times), as in {example['file']}: {example['error']}"


def check_target(target: Path) -> None:
    """Raises files.InputError if `target` is no place for a JSONL file."""
    if target.suffix != ".jsonl" or target.is_dir():
        raise files.InputError(f"{target}: the merged file must be named something.jsonl")


def read(path: Path) -> dict:
    """The record of a .json file. Raises Unfit."""
    try:
        files.require_piece(path)
        return parse(path.read_bytes())
    except files.InputError as error:
        raise Unfit("no record", f"{path}: {error}") from None
    except OSError as error:
        raise Unfit("no record", f"{path}: {error.strerror}") from None


def _line(record: dict) -> bytes:
    try:
        return (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
    except ValueError as error:  # NaN, infinity, or half of a surrogate pair
        raise Unfit("holds a value that JSON in UTF-8 cannot", str(error)) from None


def _report_path(target: Path) -> Path:
    return target.with_name(f"{target.stem}.left_out.jsonl")


def _write_report(entries: list[dict], target: Path) -> None:
    if not entries:
        _report_path(target).unlink(missing_ok=True)
        return
    with files.atomic_write(_report_path(target)) as report:
        for entry in entries:  # half a surrogate pair, as a file name that is no UTF-8 has, is written \udcff
            report.write((json.dumps(entry, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))


def main(argv: list[str] | None = None) -> int:
    description, _, epilog = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="its whole tree of .json files is merged")
    parser.add_argument("target", metavar="OUT.jsonl", type=Path, help="the JSONL file, in the folder of the music")
    args = parser.parse_args(argv)
    try:
        check_target(args.target)
        found, others = files.list_files(args.folder, (".json",))
        folder = args.folder if args.folder.is_dir() else args.folder.parent
        status = merge([(path.as_posix(), functools.partial(read, folder / path)) for path in found], args.target)
    except (OSError, files.InputError) as error:
        parser.error(files.printable(error))
    except KeyboardInterrupt:
        print("Stopped; nothing is written.", file=sys.stderr)
        return 130
    if others:
        print(f"{len(others)} other files in {files.printable(args.folder)} ignored")
    return status


if __name__ == "__main__":
    sys.exit(main())
