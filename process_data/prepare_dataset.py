"""A public data set -> records, music, texts and labels in the forms that the other scripts take.

examples:
  python process_data/prepare_dataset.py pdmx --help       # what it is, how to get it, its licence and size
  python process_data/prepare_dataset.py pdmx PDMX data/pdmx --subset no_license_conflict --deduplicated
  python process_data/prepare_dataset.py midicaps MidiCaps data/midicaps --split test
  python process_data/prepare_dataset.py pdmx PDMX data/pdmx --shard 3/16     # the third of 16 jobs

OUT gets, with the same names in each folder, and below train/, validation/ and test/ if the set has such splits:
  scores/ midi/ abc/  the music: links to the files of SOURCE, or files if it is in an archive or a table
  records/            one .json for each piece, for merge_jsonl.py
  texts/              one .txt for each piece, the query that should find it
  labels.csv          file and class, for linear_probe.py; labels_TASK.csv if there are several tasks
  prepared.jsonl      the rows left out, each with its reason, and warnings
The same command again does what is missing. What to run next is printed.
Exit status: 0; 1 if a row was left out for another reason than an option, or a member of an archive was refused; 2 for
wrong use, or if no row was kept.
"""

import argparse
import contextlib
import csv
import itertools
import json
import os
import re
import shlex
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import IO

import batch
import datasets_abc
import datasets_large
import datasets_midi
import datasets_small
import jobs
import midi_reader
import musicxml
from dataset_files import Entry, Filtered, LeftOut, Source, damage_reported, is_safe
from shared import InputError, files, records

DATASETS = datasets_large.DATASETS | datasets_midi.DATASETS | datasets_abc.DATASETS | datasets_small.DATASETS
FORMS = dict.fromkeys(midi_reader.SUFFIXES, "midi") | dict.fromkeys(musicxml.SUFFIXES, "scores") | {".abc": "abc"}
CONVERTED = {"midi": "mtf/{}.mtf", "scores": "interleaved/{}.abc", "abc": "interleaved/{}.abc"}
SIGNS = {"midi": b"MThd", "abc": b"K:", ".mxl": b"PK"}  # each is in the first bytes of such a file
OTHER_CONTENTS = "its name is taken by other contents, of another row or of an earlier SOURCE (then choose a new OUT)"
HEAD = 4096  # bytes of a file that are searched for these
LFS = b"version https://git-lfs"
WORD = re.compile("[!-~]+")  # of ASCII: other scripts may have no spaces
# A page, a mail address, or an account, such as youtu.be/x, a@b.org and "@name"
ADDRESS = re.compile(
    r"://|www\.|\w\.(?:com|net|org)\b|\w\.[a-z]{2}/|[^@\s]@[^@\s]+\.|(?<![\w@])@\w\S", re.ASCII | re.IGNORECASE
)


# --- one entry --------------------------------------------------------------------------------------------------------


def write_entry(entry: Entry, source: Source, out: Path) -> set[str]:
    """Write the outputs of an entry that are not there yet; the record comes last. Returns the forms of its music.

    Adds a warning to the entry for each form that cannot be used. Raises LeftOut if none can, OSError.
    """
    if not is_safe(entry.stem):
        raise LeftOut("its name cannot be that of a file", repr(entry.stem)[:80])
    problems, forms = [], set()
    for suffix, music in entry.music.items():
        try:
            forms.add(_write_music(entry.stem, suffix.lower(), music, source, out))
        except LeftOut as problem:
            problems.append(problem)
    if not forms and (problems or not entry.text):
        raise problems[0] if problems else LeftOut("no music")
    entry.warnings += map(str, problems)
    if entry.text:
        _write(out / "texts" / f"{entry.stem}.txt", _clean(entry.text).encode("utf-8", "replace"))
    if entry.record and forms:
        paths = list(dict.fromkeys(CONVERTED[form].format(entry.stem) for form in sorted(forms)))
        record = {name: _clean_value(entry.record.get(name)) for name in records.METADATA} | {"filepaths": paths}
        text = json.dumps(record, ensure_ascii=False, indent=1) + "\n"
        _write(out / "records" / f"{entry.stem}.json", text.encode("utf-8", "replace"))
    return forms


def _write_music(stem: str, suffix: str, music: str | bytes, source: Source, out: Path) -> str:
    form = FORMS.get(suffix)
    if not form:
        raise LeftOut("not music", f"{stem}{suffix}: the suffix of no known type")
    target = out / form / f"{stem}{suffix}"
    path = source.path(music) if isinstance(music, str) else None
    if path:
        with source.stream(str(music)) as file:
            _require_music(file.read(HEAD), form, suffix, str(music))
        _link(path.resolve(), target)
        return form
    content = source.read(music) if isinstance(music, str) else music
    _require_music(content[:HEAD], form, suffix, music if isinstance(music, str) else target.name)
    _write(target, content)
    return form


def _require_music(head: bytes, form: str, suffix: str, name: str) -> None:
    """Raise LeftOut if a file is surely not of its type. The conversions look closer."""
    if head.startswith(LFS):
        raise LeftOut("only a pointer of Git LFS, whose file was not downloaded (git lfs pull)", name)
    if not head.strip(b" \t\r\n\0"):
        raise LeftOut("its file is empty", name)
    sign = SIGNS.get(suffix) or SIGNS.get(form, b"<")
    if sign not in head:
        raise LeftOut(f"not music: no {sign.decode()} where a {suffix} file has it", name)


def _write(path: Path, content: bytes) -> None:
    """Write a file. One that is there must be the same: from an earlier run, not of another entry."""
    if os.path.lexists(path):
        if path.read_bytes() != content:
            raise LeftOut(OTHER_CONTENTS, str(path))
        return
    with files.atomic_write(path) as file:
        file.write(content)


def _link(path: Path, target: Path) -> None:
    """Make a symbolic link; a hard link where the system has none; a copy where these cannot be either."""
    if os.path.lexists(target):
        if not target.exists() or not (target.samefile(path) or target.read_bytes() == path.read_bytes()):
            raise LeftOut(OTHER_CONTENTS, str(target))
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    for link in (os.symlink, os.link):
        with contextlib.suppress(OSError, NotImplementedError):
            link(path, target)
            return
    with open(path, "rb") as content, files.atomic_write(target) as file:
        shutil.copyfileobj(content, file)


def _clean_value(value: object) -> object:
    if isinstance(value, list):
        return [text for item in value if (text := _clean(item))] or None
    return _clean(value) or None if isinstance(value, str) else None


def _clean(text: str) -> str:
    """Remove the addresses of pages, mail and accounts, which free text may hold."""
    return WORD.sub(lambda word: "" if ADDRESS.search(word[0]) else word[0], text).strip()


# --- all entries ------------------------------------------------------------------------------------------------------


class _Run:
    """The rows of one start: their outputs, the report and the counts."""

    def __init__(self, args: argparse.Namespace, source: Source, stack: contextlib.ExitStack):
        self.args, self.source, self.out, self.stack = args, source, args.out, stack
        part, parts = args.shard
        self.end = f".{part}-of-{parts}" if parts > 1 else ""
        self.report_path = self.out / f"prepared{self.end}.jsonl"
        self.report = stack.enter_context(files.atomic_write(self.report_path))
        self.labels: dict[str, IO] = {}
        self.rows = self.kept = self.warned = 0
        self.reasons: Counter[str] = Counter()  # faults of the data
        self.filtered: Counter[str] = Counter()  # what options left out
        self.written: Counter[str] = Counter()  # pieces by form of music, and by split
        self.has: set[str] = set()

    def add(self, where: str, make) -> None:
        """Prepare a row, or report why it is left out."""
        self.rows += 1
        try:
            entry = make()
            if self.args.split and entry.split != self.args.split:
                raise Filtered("in another split")
            forms = write_entry(entry, self.source, self.out)
        except LeftOut as error:
            (self.filtered if isinstance(error, Filtered) else self.reasons)[error.kind] += 1
            self._log({"row": where, "error": str(error)})
            return
        self.kept += 1
        self.written.update([*forms, *filter(None, [entry.split])])
        self.has |= {"records"} if entry.record else set()
        self.has |= {"texts"} if entry.text else set()
        self.has |= {"captions"} if entry.text and entry.text == entry.record.get("description") else set()
        for task, label in entry.labels.items():
            if task not in self.labels:
                path = self.out / f"labels{_end(task)}{self.end}.csv"
                options = {"encoding": "utf-8", "errors": "replace", "newline": ""}
                self.labels[task] = self.stack.enter_context(files.atomic_write(path, "w", **options))
            csv.writer(self.labels[task], lineterminator="\n").writerow([entry.name, label])
        if entry.warnings:
            self.warned += 1
            self._log({"row": where, "warnings": entry.warnings})

    def _log(self, line: dict) -> None:
        self.report.write((json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))

    def summarize(self) -> int:
        """Print the counts and the next commands. Returns the exit status."""
        for kind, count in (self.filtered + self.reasons).most_common():
            print(files.printable(f"  left out: {count} (for the reason: {kind})"))
        written = ", ".join(f"{count} {name}" for name, count in sorted(self.written.items()))
        left_out = self.filtered.total() + self.reasons.total()
        counts = f"{self.rows} rows, {self.kept} kept ({written or 'nothing'}; {self.warned} with warnings)"
        print(files.printable(f"{self.out}: {counts}, {left_out} left out"))
        if left_out or self.warned:
            print(f"{files.printable(self.report_path)} names {left_out + self.warned} row(s).", file=sys.stderr)
        files.name_all("member(s) of archives were not unpacked", self.source.refused)
        if not self.kept:
            return 0 if self.end else files.print_error(f"{self.source.location}: none of {self.rows} rows is kept")
        if self.written.keys() & CONVERTED.keys():
            print("Next:", *next_commands(self), sep="\n  ")
        return int(bool(self.reasons or self.source.refused))


def _end(task: str) -> str:
    return "" if task == "label" else f"_{task}"


def next_commands(run: _Run) -> list[str]:
    """List the commands that make training data, or test data, of what was written."""

    def at(name: str) -> str:
        return shlex.quote(str(run.out / name))

    commands = []
    tasks = run.labels if run.end else ()
    joined = [f"cat {at(f'labels{_end(task)}')}.*-of-*.csv > {at(f'labels{_end(task)}.csv')}" for task in tasks]
    if "scores" in run.written:
        commands.append(f"process_data/batch_xml2abc.py {at('scores')} {at('abc')}")
    if "scores" in run.written or "abc" in run.written:
        commands.append(f"process_data/batch_interleaved_abc.py {at('abc')} {at('interleaved')}")
    if "midi" in run.written:
        commands.append(f"process_data/batch_midi2mtf.py {at('midi')} {at('mtf')}")
    music = at("mtf" if "midi" in run.written else "interleaved")
    only_measures = "train" not in run.written and ("texts" in run.has or "test" in run.written)
    if "records" in run.has and not only_measures:
        part = "/train" if "train" in run.written else ""
        options = " --captions" if "captions" in run.has else ""
        folders = f"{at('records' + part)} {at('summaries')} {at('')}"
        commands.append(f"process_data/offline_summaries.py {folders}{options}")
        commands.append(f"process_data/merge_jsonl.py {at('summaries')} {at('train.jsonl')}")
    if "texts" in run.has:
        part = "/test" if "test" in run.written else ""
        commands.append(f"code/semantic_search.py metrics {at('texts' + part)} {music}{part}")
    if run.labels:
        commands.append(f"code/extract_m3.py {music} {at('features')}")
    for task in run.labels:
        labels = at(f"labels{_end(task)}.csv")
        model = at(f"probe{_end(task)}.pth")
        split = " --split" if {"train", "test"} <= run.written.keys() else ""
        commands.append(f"code/linear_probe.py train {at('features')} --labels {labels}{split} --model {model}")
    return joined + [f"python {command}" for command in commands]


# --- the command ------------------------------------------------------------------------------------------------------


def prepare(args: argparse.Namespace) -> int:
    dataset, (part, parts) = DATASETS[args.name], args.shard
    known, settings = _settings(args)
    args.out.mkdir(parents=True, exist_ok=True)
    files.remove_leftovers(args.out)
    source = Source(args.source, args.out / "source", args.extract)
    with contextlib.ExitStack() as stack, damage_reported(args.source):
        run = _Run(args, source, stack)
        rows = itertools.islice(dataset.read(source, args), part - 1, None, parts)
        for where, make in jobs.progress("row", rows):
            if not known.exists():  # not before it is clear that SOURCE is right
                with files.atomic_write(known) as file:
                    file.write(settings.encode())
            run.add(where, make)
    return run.summarize()


def _settings(args: argparse.Namespace) -> tuple[Path, str]:
    """Return the file in OUT that holds the options it is made with, and these options.

    Raises InputError if OUT was made of another source or with other filters, or lies in SOURCE.
    """
    source, out = args.source.resolve(), args.out.resolve()
    if source == out or source in out.parents or out in source.parents:
        raise InputError(f"SOURCE {source} and OUT {out} lie in each other: choose a folder outside")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; OUT must be a folder")
    apart = ("out", "shard", "extract", "run")
    settings = {key: value for key, value in vars(args).items() if key not in apart} | {"source": str(source)}
    known, text = out / ".prepared.json", json.dumps(settings)
    if known.exists() and (before := files.read_utf8(known)) != text:
        raise InputError(f"{args.out}: it was prepared with other options, {before}; choose another OUT")
    return known, text


def get_args_parser() -> argparse.ArgumentParser:
    parser = jobs.parser(__doc__)
    commands = parser.add_subparsers(dest="name", required=True, metavar="NAME", title="data sets (NAME)")
    layout = argparse.RawDescriptionHelpFormatter
    for name, dataset in DATASETS.items():
        about = dataset.about.strip()
        sub = commands.add_parser(name, help=about.splitlines()[0], description=about, formatter_class=layout)
        sub.set_defaults(run=prepare, split=None)
        add = sub.add_argument
        add("source", metavar="SOURCE", type=Path, help="the folder of the set as downloaded, or an archive")
        add("out", metavar="OUT", type=Path, help="a new folder, or that of an earlier start; not in SOURCE")
        add("--extract", action="store_true", help="unpack .tar.gz archives into OUT/source first (gigabytes)")
        if dataset.splits:
            add("--split", choices=dataset.splits, help="only the pieces of this split (default: all)")
        if dataset.add_arguments:
            dataset.add_arguments(sub)
        about = "do only the I-th of N parts of the rows (1/N ... N/N), for job arrays; all parts share OUT"
        add("--shard", metavar="I/N", type=batch.shard, default=(1, 1), help=about)
    return parser


def main(argv: list[str] | None = None) -> int:
    status = files.run_command(get_args_parser(), argv)
    if status == 130:
        print("Stopped; the same command goes on from here.", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
