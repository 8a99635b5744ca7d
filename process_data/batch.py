"""The frame of every conversion script: a folder of files in, the mirrored folder out, worker processes in between.

A script gives `main` a function that converts one file; everything else (walking, naming, workers, time and memory
limits, progress, logs, resuming, sharding, exit status) is here. A file that cannot be converted, hangs, or kills its
process costs that file alone, and is named with its reason in `errors.jsonl` in the output folder.
"""

import argparse
import contextlib
import itertools
import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import pebble
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "code"))  # where every script finds `files`
import files

TIMEOUT = 60  # seconds a file may take, unless --timeout says otherwise
MEMORY = 4 * 2**30  # bytes of address space a worker may use: a hostile file must not take the machine down
FILES_PER_WORKER = 2000  # then a fresh process takes over, so that what a converter leaks stays small
RESTARTS = 5  # of a pool that broke without one result in between; more means that workers cannot even start


class Refused(Exception):
    """Raised by a converter: this input cannot be converted. str() is the reason, in one line."""


@dataclass
class Converted:
    """What a converter makes of one file."""

    outputs: list[bytes]  # one -> name.abc; several -> name.1.abc, name.2.abc, ...
    warnings: list[str] = field(default_factory=list)  # what was repaired, padded or left out, one line each


Convert = Callable[[Path, argparse.Namespace], Converted]


@dataclass
class Job:
    """One input file and the place of its outputs."""

    name: str  # below the input folder, as the logs name it
    source: Path
    output: Path  # of a converter that gives one output
    stem: Path  # of the numbered outputs of one that gives several

    def numbered(self, number: int) -> Path:
        return self.stem.with_name(f"{self.stem.name}.{number}{self.output.suffix}")

    def is_finished(self) -> bool:
        return self.output.exists() or self.numbered(1).exists()

    def write(self, outputs: list[bytes]) -> None:
        """Writes all outputs; `name.1` comes last, so that its presence means that all are there."""
        several = len(outputs) > 1
        for number in range(len(outputs), 0, -1):
            with files.atomic_write(self.numbered(number) if several else self.output) as file:
                file.write(outputs[number - 1])
        self._remove_numbered(len(outputs) + 1 if several else 1)  # left by an earlier run that found more
        if several:
            self.output.unlink(missing_ok=True)

    def remove_outputs(self) -> None:
        self.output.unlink(missing_ok=True)
        self._remove_numbered(1)

    def _remove_numbered(self, first: int) -> None:
        if first == 1:
            self.numbered(1).unlink(missing_ok=True)
        last = max(first, 2)
        while self.numbered(last).exists():
            last += 1
        for number in range(last - 1, max(first, 2) - 1, -1):
            self.numbered(number).unlink(missing_ok=True)


def main(
    convert: Convert,
    *,
    doc: str,
    suffixes: Iterable[str],
    target: str | Callable[[argparse.Namespace], str],
    add_arguments: Callable[[argparse.ArgumentParser], None] | None = None,
    argv: list[str] | None = None,
) -> int:
    """Converts every file that INPUT_DIR holds; the whole of a conversion script but its converter.

    Args:
        convert: (path, args) -> Converted, or raises `Refused`; a function of a module, called in worker processes.
        doc: the script's docstring: its first paragraph, and the rest (examples), of `--help`.
        suffixes: of the input files, such as (".mid", ".midi"); upper and lower case are the same.
        target: suffix of the output files, or a function that tells it from the arguments.
        add_arguments: adds the script's own arguments to the parser.
        argv: the command line, sys.argv by default.

    Returns:
        The exit status: 0, 1 if a file failed, 128 + signal if interrupted. Wrong use raises SystemExit(2).
    """
    parser = _parser(doc)
    if add_arguments:
        add_arguments(parser)
    args = parser.parse_args(argv)
    try:
        jobs, others = _jobs(args, tuple(suffixes), target(args) if callable(target) else target)
        args.output.mkdir(parents=True, exist_ok=True)
        files.remove_leftovers(args.output)
    except (OSError, ValueError) as error:
        parser.error(str(error))

    log = _Log(args.output, args.shard, jobs)
    interrupted = 0
    with tqdm(total=len(jobs), unit="file", mininterval=0.5 if sys.stderr.isatty() else 30) as progress:
        try:
            with _signals_raise():
                for job, error, warnings in _results(convert, args, _unfinished(args, jobs, log, progress)):
                    log.add(job, error, warnings)
                    progress.set_postfix(log.counts(), refresh=False)
                    progress.update()
        except _Interrupted as signal_:
            interrupted = signal_.args[0]
        progress.set_postfix(log.counts())
    files.remove_leftovers(args.output)
    log.finish()
    if interrupted:
        print(f"Stopped by signal {interrupted}; the same command goes on from here.", file=sys.stderr)
    for path, entries in ((log.errors_path, log.errors), (log.warnings_path, log.warnings)):
        if entries:
            print(f"{path} names {len(entries)} file(s).", file=sys.stderr)
    print(
        f"{log.done} done, {log.skipped} skipped (finished before), {len(log.errors)} failed, "
        f"{log.warned} with warnings, {others} other files ignored"
    )
    return 128 + interrupted if interrupted else int(bool(log.errors))


def _parser(doc: str) -> argparse.ArgumentParser:
    description, _, epilog = doc.strip().partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "input", metavar="INPUT_DIR", type=Path, help="folder (its whole tree is converted) or one file"
    )
    parser.add_argument(
        "output", metavar="OUTPUT_DIR", type=Path, help="folder that gets the mirrored tree and the logs"
    )
    cores = len(os.sched_getaffinity(0))
    parser.add_argument(
        "--workers", metavar="N", type=_positive(int), default=cores, help="processes (default: %(default)s)"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="convert again what is finished already; a file that fails then has no output",
    )
    parser.add_argument(
        "--shard",
        metavar="I/N",
        type=_shard,
        default=(1, 1),
        help="do only the I-th of N parts (1/N ... N/N), for job arrays; all parts share INPUT_DIR and OUTPUT_DIR",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_positive(float),
        default=TIMEOUT,
        help="a file that takes longer fails (default: %(default)s)",
    )
    return parser


def _positive(kind: type) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not positive")
        return value

    parse.__name__ = kind.__name__  # argparse names the type by it: "invalid int value"
    return parse


def _shard(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"{text} is not I/N with 1 <= I <= N")
    return int(part), int(parts)


def _jobs(args: argparse.Namespace, suffixes: tuple[str, ...], target: str) -> tuple[list[Job], int]:
    """This shard's jobs, sorted, and how many other files the input holds. Raises ValueError for unusable places."""
    inputs, others = files.list_files(args.input, suffixes)
    if not inputs:
        raise ValueError(f"{args.input}: no {' or '.join(suffixes)} file there ({len(others)} other files)")
    if args.output.exists() and not args.output.is_dir():
        raise ValueError(f"{args.output} is a file; OUTPUT_DIR must be a folder")
    names = files.output_names(inputs, target)
    stems = _numbered_stems(names, target)
    _refuse_overlap(args.input, args.output, names.values())
    folder = args.input if args.input.is_dir() else args.input.parent
    part, parts = args.shard
    return [
        Job(path.as_posix(), folder / path, args.output / names[path], args.output / stems[path])
        for path in inputs[part - 1 :: parts]
    ], len(others)


def _numbered_stems(names: dict[Path, Path], suffix: str) -> dict[Path, Path]:
    """Input -> what `.1.abc`, `.2.abc`, ... are appended to, such that no number meets another input's output.

    `a.abc` -> `a`; but, with an input `a.1.abc` beside it, `a.abc` (so: `a.abc.1.abc`).
    """
    stems = {path: name.with_name(name.name.removesuffix(suffix)) for path, name in names.items()}
    used = set(stems.values())
    taken = {stem.with_suffix("") for stem in used if stem.suffix[1:].isdecimal()}
    for path in [path for path, stem in stems.items() if stem in taken]:
        stem = stems[path]
        while stem in taken or stem in used:
            stem = stem.with_name(stem.name + suffix)
        used.add(stem)
        stems[path] = stem
    return stems


def _refuse_overlap(source: Path, output: Path, names: Iterable[Path]) -> None:
    """Raises ValueError if outputs would be taken for inputs, or written over them."""
    source, output = source.resolve(), output.resolve()
    if source.is_dir() and (output == source or source in output.parents):
        raise ValueError(f"OUTPUT_DIR {output} is inside INPUT_DIR {source}: choose a folder outside of it")
    if output in source.parents:
        place = source.relative_to(output).parts
        if any(name.parts[: len(place)] == place for name in names):
            raise ValueError(f"with OUTPUT_DIR {output}, files of the input {source} would be overwritten")


def _unfinished(args: argparse.Namespace, jobs: list[Job], log: "_Log", progress: tqdm) -> Iterator[Job]:
    for job in jobs:
        if not args.overwrite and job.is_finished():
            log.skipped += 1
            progress.update()
        else:
            yield job


def _results(
    convert: Convert, args: argparse.Namespace, jobs: Iterator[Job]
) -> Iterator[tuple[Job, str | None, list[str]]]:
    """Runs the jobs in worker processes; yields each with its error (None: done) and warnings, in no fixed order."""
    pool, pending, breaks = None, {}, 0
    try:
        while True:
            pool = pool or _new_pool(args.workers)
            broken: list[Job] = []
            for job in itertools.islice(jobs, 4 * args.workers - len(pending)):  # never more: the list may be long
                try:
                    future = pool.schedule(_run_job, (convert, args, job), timeout=args.timeout)
                except RuntimeError:  # pebble: the pool broke since we last looked
                    broken.append(job)
                    break
                pending[future] = job
            if not pending and not broken:
                return
            finished, _ = wait(pending, timeout=args.timeout + 30, return_when=FIRST_COMPLETED)
            for future in finished:
                job, warnings = pending.pop(future), []
                try:
                    error, warnings = future.result()
                except TimeoutError:
                    error = f"took over {args.timeout:g} s"
                except pebble.ProcessExpired as expired:
                    error = f"the converter process died ({_death(expired.exitcode)})"
                except BrokenProcessPool:
                    broken.append(job)
                    continue
                if error:
                    job.remove_outputs()  # of an earlier run, or of a process that died between writing and reporting
                breaks = 0
                yield job, error, warnings
            if broken or not finished:  # a worker died when it had no job, or with a lock: start the pool anew
                breaks += 1
                if breaks > RESTARTS:
                    raise RuntimeError(f"the worker processes broke down {breaks} times without one result")
                jobs = itertools.chain(broken, pending.values(), jobs)
                pool, pending = _close_pool(pool), {}
    finally:
        _close_pool(pool)


def _new_pool(workers: int) -> pebble.ProcessPool:
    # Workers are forked from a small server process: a fork of this one, with its threads and long lists, could hang.
    # A fixed hash seed makes converters that iterate over sets give the same output in every process and run.
    os.environ.setdefault("PYTHONHASHSEED", "0")
    return pebble.ProcessPool(workers, FILES_PER_WORKER, _start_worker, context=get_context("forkserver"))


def _close_pool(pool: pebble.ProcessPool | None) -> None:
    if pool:
        pool.stop()
        pool.join()


def _start_worker() -> None:
    """Limits the process's memory, and sends whatever it or its children print nowhere."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nowhere, descriptor)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _run_job(convert: Convert, args: argparse.Namespace, job: Job) -> tuple[str | None, list[str]]:
    """One file, in a worker process: (error or None, warnings)."""
    try:
        converted = convert(job.source, args)
        if not converted.outputs:
            raise Refused("nothing in it to convert")
        job.write(converted.outputs)
    except Refused as error:
        return str(error), []
    except MemoryError:
        return f"needs more than {MEMORY / 2**30:g} GB of memory", []
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a converter stumbles over costs this file alone
        place = traceback.extract_tb(error.__traceback__)[-1]
        message = " ".join(str(error).split())[:500]
        return f"{type(error).__name__}: {message} ({Path(place.filename).name}, line {place.lineno})", []
    return None, converted.warnings


def _death(exitcode: int) -> str:
    return f"killed by signal {-exitcode}" if exitcode < 0 else f"exit status {exitcode}"


class _Interrupted(BaseException):
    """A signal asked the run to end; like KeyboardInterrupt, no error."""


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """Within the block, Ctrl-C and SIGTERM raise _Interrupted(signal number)."""

    def stop(number, frame):
        raise _Interrupted(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Log:
    """Counts, and `errors.jsonl` and `warnings.jsonl` in the output folder (`errors.1-of-3.jsonl` of a shard).

    One JSON object a file: {"file": ..., "error": ...} or {"file": ..., "warnings": [...]}; sorted, and absent when
    there is nothing to say. Warnings are also kept while the run lasts, and of files finished in earlier runs.
    """

    def __init__(self, folder: Path, shard: tuple[int, int], jobs: list[Job]):
        self.done = self.skipped = self.warned = 0
        self.errors: dict[str, str] = {}
        part, parts = shard
        end = ".jsonl" if parts == 1 else f".{part}-of-{parts}.jsonl"
        self.errors_path, self.warnings_path = folder / f"errors{end}", folder / f"warnings{end}"
        own = {job.name for job in jobs}
        before = {}
        for path in sorted(folder.glob("warnings*.jsonl")):
            before |= {name: warnings for name, warnings in _read_warnings(path) if name in own}
        self.warnings: dict[str, list[str]] = before
        # What an earlier run that was split differently says of failures is out of date: all of them are tried again.
        self.outdated = [
            path
            for path in folder.glob("errors*.jsonl")
            if path != self.errors_path and (parts == 1 or not path.name.endswith(f"-of-{parts}.jsonl"))
        ]
        if parts == 1:
            self.outdated += folder.glob("warnings.*.jsonl")

    def add(self, job: Job, error: str | None, warnings: list[str]) -> None:
        self.warnings.pop(job.name, None)
        if error:
            self.errors[job.name] = error
            return
        self.done += 1
        if warnings:
            self.warned += 1
            self.warnings[job.name] = warnings
            with open(self.warnings_path, "ab") as file:  # so that a killed run's warnings are kept
                file.write(_line(file=job.name, warnings=warnings))

    def counts(self) -> dict[str, int]:
        return {"done": self.done, "skipped": self.skipped, "failed": len(self.errors)}

    def finish(self) -> None:
        self._write(self.errors_path, [_line(file=name, error=error) for name, error in sorted(self.errors.items())])
        self._write(self.warnings_path, [_line(file=name, warnings=w) for name, w in sorted(self.warnings.items())])
        for path in self.outdated:
            path.unlink(missing_ok=True)

    @staticmethod
    def _write(path: Path, lines: list[bytes]) -> None:
        if not lines:
            path.unlink(missing_ok=True)
            return
        with files.atomic_write(path) as file:
            file.writelines(lines)


def _line(**entry) -> bytes:
    # A file name that is no UTF-8 has lone surrogates; `\udcff` is how JSON writes one.
    return (json.dumps(entry, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def _read_warnings(path: Path) -> Iterator[tuple[str, list[str]]]:
    for line in path.read_text("utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # the last line of a run that was killed
            continue
        yield entry["file"], entry["warnings"]
