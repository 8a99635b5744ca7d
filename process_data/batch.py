"""The frame of every conversion script: a folder of files in, the mirrored folder out, worker processes in between.

A script gives `main` a function that converts one file; everything else (listing, naming, workers, limits, progress,
logs, resuming, sharding, exit status) is here. A file that cannot be converted, hangs, or kills its process costs that
file alone, and is named with its reason in `errors.jsonl` in the output folder.
"""

import argparse
import contextlib
import functools
import importlib
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import jobs
import workers
from shared import InputError, files


@dataclass
class Converted:
    """The result of one file."""

    outputs: list[bytes]  # one -> name.abc; several -> name.1.abc, name.2.abc, ...
    warnings: list[str] = field(default_factory=list)  # what was repaired, padded or left out, one line each


Convert = Callable[[Path, argparse.Namespace], Converted]


def main(
    convert: Convert,
    *,
    doc: str,
    suffixes: Iterable[str],
    target: str,
    several: bool = True,
    add_arguments: Callable[[argparse.ArgumentParser], None] | None = None,
    argv: list[str] | None = None,
) -> int:
    """Convert every file in INPUT_DIR: the whole of a conversion script but its converter.

    Args:
        convert: (path, args) -> Converted, or raises InputError; runs in worker processes.
        doc: the script's docstring: its first paragraph and the rest (examples) are shown by `--help`.
        suffixes: of the input files, such as (".mid", ".midi"), in upper or lower case.
        target: suffix of the output files.
        several: whether a file may have several outputs. If not, `a.1.mtf` is never taken for one of `a.mid`.
        add_arguments: adds the script's own arguments to the parser.
        argv: the command line, sys.argv by default.

    Returns:
        The exit status: 0, 1 if a file failed, 128 + signal if interrupted. Wrong use raises SystemExit(2).
    """
    parser = _parser(doc)
    if add_arguments:
        add_arguments(parser)
    args = parser.parse_args(argv)
    report, interrupted, problem = None, 0, ""
    try:
        with _signals_raise():
            try:
                todo = jobs.Jobs(args.input, args.output, tuple(suffixes), target, args.shard, several)
                args.output.mkdir(parents=True, exist_ok=True)
                files.remove_leftovers(args.output)
                todo.begin()
                report = _Report(todo, args.shard)
            except (OSError, ValueError) as error:
                parser.error(files.printable(error))
            _convert_all(_importable(convert), args, todo, report)
    except OSError as error:  # such as a full disk
        problem = f"{error.filename}: {error.strerror}"
    except _Interrupted as caught:
        interrupted = caught.args[0]
        print(f"Stopped by signal {interrupted}; the same command goes on from here.", file=sys.stderr)
    if report is None:
        return 128 + interrupted
    if report.failed or interrupted or problem:
        files.remove_leftovers(args.output)
    try:
        if not problem:
            report.finish(args.remove_orphans and not interrupted)
    except OSError as error:
        problem = f"{error.filename}: {error.strerror}"
    if problem:
        return files.print_error(f"{problem}; the same command goes on from here")
    return 128 + interrupted if interrupted else int(report.failed > 0)


class _Report:
    """Counts, and the logs of what failed (`errors.jsonl`) and of what had to be repaired (`warnings.jsonl`)."""

    def __init__(self, todo: jobs.Jobs, shard: tuple[int, int]):
        self.done = self.skipped = self.failed = self.warned = 0
        self.jobs = todo
        self.errors = jobs.Log("errors", "error", todo, shard)
        self.warnings = jobs.Log("warnings", "warnings", todo, shard)

    def skip(self, job: jobs.Job) -> None:
        self.skipped += 1
        self.errors.discard(job.name)

    def add(self, job: jobs.Job, outcome: list[str] | workers.Failed) -> None:
        """Count a job and log its warnings, or its error."""
        self.errors.discard(job.name)
        self.warnings.discard(job.name)
        if isinstance(outcome, workers.Failed):
            job.remove_outputs()  # of an earlier run, or of a process that died between writing and reporting
            self.failed += 1
            self.jobs.sources.drop(job.name, [])
            self.errors.add(job.name, outcome.reason)
            return
        self.done += 1
        self.jobs.sources.add(job.name, job.source, job.outputs())
        if outcome:
            self.warned += 1
            self.warnings.add(job.name, outcome)

    def finish(self, remove_orphans: bool) -> None:
        orphans = self.jobs.sources.finish(remove_orphans)
        jobs.finish_logs(self.errors, self.warnings, "file(s)")
        print(
            f"{self.done} done, {self.skipped} skipped (finished before), {self.failed} failed, "
            f"{self.warned} with warnings, {self.jobs.other_files} other files ignored{orphans}"
        )


def _convert_all(convert: Convert, args: argparse.Namespace, todo: jobs.Jobs, report: _Report) -> None:
    """Convert all files that are not finished yet, with a progress bar."""
    with jobs.progress("file", total=len(todo)) as progress:

        def unfinished() -> Iterator[jobs.Job]:
            for job in todo:
                if args.overwrite or not todo.is_finished(job):
                    several = [job.numbered(1)] if job.stem else []
                    todo.sources.making([(job.name, job.source, [job.output, *several])])
                    yield job
                else:
                    report.skip(job)
                    progress.update()

        processes = min(args.workers, len(todo) or 1)
        for job, outcome in workers.run(
            functools.partial(_write_converted, convert, args), unfinished(), args.timeout, processes
        ):
            report.add(job, outcome)
            counts = {"done": report.done, "skipped": report.skipped, "failed": report.failed}
            progress.set_postfix(counts, refresh=False)
            progress.update()


def _write_converted(convert: Convert, args: argparse.Namespace, job: jobs.Job) -> list[str]:
    """Convert one file and write its outputs, in a worker process. Returns the warnings."""
    files.require_piece(job.source)
    converted = convert(job.source, args)
    if not converted.outputs:
        raise InputError("nothing in it to convert")
    job.write(converted.outputs)
    return [str(warning) for warning in converted.warnings]


def _importable(convert: Convert) -> Convert:
    """Return the function as a worker can import it: not of `__main__`, but of the script's own name."""
    if convert.__module__ != "__main__":
        return convert
    return getattr(importlib.import_module(Path(sys.modules["__main__"].__file__ or "").stem), convert.__name__)


def _parser(doc: str) -> argparse.ArgumentParser:
    parser = jobs.parser(doc)
    add = parser.add_argument
    add("input", metavar="INPUT_DIR", type=Path, help="folder (its whole tree is converted) or one file")
    add("output", metavar="OUTPUT_DIR", type=Path, help="folder that gets the mirrored tree and the logs")
    cores = files.core_count()
    add("--workers", metavar="N", type=jobs.positive(int), default=cores, help="processes (default: %(default)s)")
    add("--overwrite", action="store_true", help="convert again what is finished; a file that fails then has no output")
    add("--remove_orphans", action="store_true", help="remove outputs whose input is gone; else they are named")
    add(
        "--shard",
        metavar="I/N",
        type=shard,
        default=(1, 1),
        help="do only the I-th of N parts (1/N ... N/N), for job arrays; all parts share INPUT_DIR and OUTPUT_DIR",
    )
    add(
        "--timeout",
        metavar="SECONDS",
        type=jobs.positive(float),
        default=workers.TIMEOUT,
        help=f"a file that takes more CPU time, or {workers.WAITING} times as long in all, fails"
        " (default: %(default)s)",
    )
    return parser


def shard(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"{text} is not I/N with 1 <= I <= N")
    return int(part), int(parts)


class _Interrupted(BaseException):
    """A signal asked the run to end; like KeyboardInterrupt, this is not an error."""


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM raise _Interrupted(signal number) within the block."""

    def stop(number, frame):
        raise _Interrupted(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
