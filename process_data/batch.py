"""The frame of every conversion script: a folder of files in, the mirrored folder out, worker processes in between.

A script gives `main` a function that converts one file; everything else (walking, naming, workers, time and memory
limits, progress, logs, resuming, sharding, exit status) is here. A file that cannot be converted, hangs, or kills its
process costs that file alone, and is named with its reason in `errors.jsonl` in the output folder.
"""

import argparse
import contextlib
import itertools
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import forkserver, get_context
from pathlib import Path

import pebble
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "code"))  # where every script finds `files`
import files
import jobs

TIMEOUT = 60  # seconds of CPU time a file may take, unless --timeout says otherwise
WAITING = 10  # times as many seconds may pass: the machine may be busy, or the disk slow
MEMORY = 4 * 2**30  # bytes of address space a worker may use: a hostile file must not take the machine down
TOO_LONG = {-signal.SIGPROF: (1, " of CPU time"), -signal.SIGALRM: (WAITING, "")}  # by a worker's exit status
FILES_PER_WORKER = 2000  # then a fresh process takes over, so that what a converter leaks stays small
RESTARTS = 5  # of a pool that broke without one result in between; more means that workers cannot even start
LATE = 15  # seconds after its time limit, at which a worker ends itself, when a file's worker counts as lost


class Refused(Exception):
    """Raised by a converter: this input cannot be converted. str() is the reason, in one line."""


@dataclass
class Converted:
    """What a converter makes of one file."""

    outputs: list[bytes]  # one -> name.abc; several -> name.1.abc, name.2.abc, ...
    warnings: list[str] = field(default_factory=list)  # what was repaired, padded or left out, one line each


Convert = Callable[[Path, argparse.Namespace], Converted]


def main(
    convert: Convert,
    *,
    doc: str,
    suffixes: Iterable[str],
    target: str | Callable[[argparse.Namespace], str],
    several: bool = True,
    add_arguments: Callable[[argparse.ArgumentParser], None] | None = None,
    argv: list[str] | None = None,
) -> int:
    """Converts every file that INPUT_DIR holds: the whole of a conversion script but its converter.

    Args:
        convert: (path, args) -> Converted, or raises `Refused`; a function of a module, called in worker processes.
        doc: the script's docstring: its first paragraph, and the rest (examples), of `--help`.
        suffixes: of the input files, such as (".mid", ".midi"); upper and lower case are the same.
        target: suffix of the output files, or a function that tells it from the arguments.
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
    suffix = target(args) if callable(target) else target
    report, interrupted, problem = None, 0, ""
    try:
        with _signals_raise():
            try:
                batch = jobs.Batch(args.input, args.output, tuple(suffixes), suffix, args.shard, several)
                args.output.mkdir(parents=True, exist_ok=True)
                files.remove_leftovers(args.output)
                batch.begin()
                report = _Report(batch, args.shard)
            except (OSError, ValueError) as error:
                parser.error(files.printable(error))
            args.workers = min(args.workers, len(batch) or 1)
            _run(convert, args, batch, report)
    except OSError as error:  # a full disk, say
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
        return files.tell_mistake(f"{problem}; the same command goes on from here")
    return 128 + interrupted if interrupted else int(report.failed > 0)


class _Report:
    """Counts, and the logs of what failed (`errors.jsonl`) and of what had to be repaired (`warnings.jsonl`)."""

    def __init__(self, batch: jobs.Batch, shard: tuple[int, int]):
        self.done = self.skipped = self.failed = self.warned = 0
        self.batch = batch
        self.errors = jobs.Log("errors", "error", batch, shard)
        self.warnings = jobs.Log("warnings", "warnings", batch, shard)

    def skip(self, job: jobs.Job) -> None:
        self.skipped += 1
        self.errors.discard(job.name)

    def add(self, job: jobs.Job, error: str | None, warnings: list[str]) -> None:
        self.errors.discard(job.name)
        self.warnings.discard(job.name)
        if error:
            self.failed += 1
            self.batch.sources.drop(job.name, [])
            self.errors.add(job.name, error)
            return
        self.done += 1
        self.batch.sources.add(job.name, job.source, job.outputs())
        if warnings:
            self.warned += 1
            self.warnings.add(job.name, warnings)

    def finish(self, remove_orphans: bool) -> None:
        orphans = self.batch.sources.finish(remove_orphans)
        for log in (self.errors, self.warnings):
            log.finish()
            if len(log):
                print(f"{files.printable(log.path)} names {len(log)} file(s).", file=sys.stderr)
        print(
            f"{self.done} done, {self.skipped} skipped (finished before), {self.failed} failed, "
            f"{self.warned} with warnings, {self.batch.other_files} other files ignored{orphans}"
        )


def _run(convert: Convert, args: argparse.Namespace, batch: jobs.Batch, report: _Report) -> None:
    """All of the batch that is not finished yet, with a progress bar."""
    interval = 0.5 if sys.stderr.isatty() else 30  # seconds; in a file, each refresh is a line to scroll past
    with tqdm(total=len(batch), unit="file", mininterval=interval) as progress:

        def unfinished() -> Iterator[jobs.Job]:
            for job in batch:
                if args.overwrite or not batch.is_finished(job):
                    several = [job.numbered(1)] if job.stem else []
                    batch.sources.making([(job.name, job.source, [job.output, *several])])
                    yield job
                else:
                    report.skip(job)
                    progress.update()

        for job, error, warnings in results(convert, args, unfinished()):
            report.add(job, error, warnings)
            counts = {"done": report.done, "skipped": report.skipped, "failed": report.failed}
            progress.set_postfix(counts, refresh=False)
            progress.update()


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
        "--overwrite", action="store_true", help="convert again what is finished; a file that fails then has no output"
    )
    parser.add_argument(
        "--remove_orphans", action="store_true", help="remove outputs whose input is gone; else they are named"
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
        help=f"a file that takes more CPU time, or {WAITING} times as long in all, fails (default: %(default)s)",
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


def results(
    convert: Convert, args: argparse.Namespace, todo: Iterator[jobs.Job]
) -> Iterator[tuple[jobs.Job, str | None, list[str]]]:
    """Runs the jobs in worker processes; yields each with its error (None: done) and warnings, in no fixed order.

    When a worker dies, the pool may take the file that it had just finished for the one that killed it. So the files
    that are named then have another turn at the end, each with a worker of its own.

    args: `workers` (how many), `timeout` (seconds of CPU time for a job) and whatever `convert` reads there.
    """
    late = args.timeout * WAITING + LATE
    pool: pebble.ProcessPool | None = None
    pending: dict[Future, jobs.Job] = {}
    suspects: list[jobs.Job] = []
    breaks = 0
    try:
        while True:
            pool = pool or _new_pool(args.workers)
            broken: list[jobs.Job] = []
            for job in itertools.islice(todo, 4 * args.workers - len(pending)):  # never more: the list may be long
                try:
                    future: Future = pool.schedule(_run_job, (convert, args, job), timeout=late)
                except RuntimeError:  # pebble: the pool broke since we last looked
                    broken.append(job)
                    break
                pending[future] = job
            if not pending and not broken:
                break
            finished, _ = wait(pending, timeout=late + LATE, return_when=FIRST_COMPLETED)
            for result in finished:
                job = pending.pop(result)
                warnings: list[str] = []
                try:
                    error, warnings = result.result()
                except TimeoutError:
                    suspects.append(job)
                    continue
                except pebble.ProcessExpired as expired:
                    if expired.exitcode not in TOO_LONG:
                        suspects.append(job)
                        continue
                    error = _death(expired.exitcode, args)
                except BrokenProcessPool:
                    broken.append(job)
                    continue
                breaks = 0
                yield _settled(job, error, warnings)
            if broken or not finished:  # a worker died when it had no job, or with a lock: start the pool anew
                breaks += 1
                if breaks > RESTARTS:
                    raise RuntimeError(f"the worker processes broke down {breaks} times without one result")
                todo = itertools.chain(broken, pending.values(), todo)
                _close_pool(pool)
                pool, pending = None, {}
    finally:
        _close_pool(pool)
    for job in suspects:
        yield _settled(job, *_run_alone(convert, args, job))


def _settled(job: jobs.Job, error: str | None, warnings: list[str]) -> tuple[jobs.Job, str | None, list[str]]:
    if error:
        job.remove_outputs()  # of an earlier run, or of a process that died between writing and reporting
    return job, error, warnings


def _run_alone(convert: Convert, args: argparse.Namespace, job: jobs.Job) -> tuple[str | None, list[str]]:
    """One file in a worker of its own, whose death is the file's."""
    for _ in range(RESTARTS):
        pool = _new_pool(1)
        try:
            return pool.schedule(_run_job, (convert, args, job), timeout=args.timeout * WAITING + LATE).result()
        except pebble.ProcessExpired as expired:
            return _death(expired.exitcode, args), []
        except (BrokenProcessPool, TimeoutError):  # it died before the pool had seen what it was doing
            continue
        finally:
            _close_pool(pool)
    return "the converter process died", []


def _new_pool(workers: int) -> pebble.ProcessPool:
    # Workers are forked from a small server process: a fork of this one, with its threads and long lists, could hang.
    # A fixed hash seed makes converters that iterate over sets give the same output in every process and run.
    os.environ.setdefault("PYTHONHASHSEED", "0")
    context = get_context("forkserver")
    context.set_forkserver_preload(["batch", "silence"])
    path = os.environ.get("PYTHONPATH")  # the one way to that server's search path before Python 3.13
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (os.path.dirname(os.path.abspath(__file__)), path)))
    try:
        forkserver.ensure_running()
    finally:
        if path is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = path
    return pebble.ProcessPool(workers, FILES_PER_WORKER, _start_worker, context=context)


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


def _run_job(convert: Convert, args: argparse.Namespace, job: jobs.Job) -> tuple[str | None, list[str]]:
    """One file, in a worker process: (error or None, warnings)."""
    _end_after(args.timeout)
    try:
        if os.path.lexists(job.source):  # `book.abc#2`, a tune of a file, is the converter's to find
            files.require_piece(job.source)
        converted = convert(job.source, args)
        if not converted.outputs:
            raise Refused("nothing in it to convert")
        job.write(converted.outputs)
    except (Refused, files.InputError) as error:
        return str(error), []
    except MemoryError:
        return f"needs more than {MEMORY / 2**30:g} GB of memory", []
    except BaseException as error:  # noqa: BLE001 - whatever a converter does, sys.exit() too, costs this file alone
        place = traceback.extract_tb(error.__traceback__)[-1]
        message = " ".join(str(error).split())[:500]
        return f"{type(error).__name__}: {message} ({Path(place.filename).name}, line {place.lineno})", []
    finally:
        _end_after(0)
    return None, [str(warning) for warning in converted.warnings]


def _end_after(seconds: float) -> None:
    """Has the kernel kill this process, even if the main one died, after so much CPU time or a long wait; 0: never."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, seconds * WAITING)


def _death(exitcode: int, args: argparse.Namespace) -> str:
    if exitcode in TOO_LONG:
        times, of_what = TOO_LONG[exitcode]
        return f"took over {args.timeout * times:g} s{of_what}"
    how = f"killed by signal {-exitcode}" if exitcode < 0 else f"exit status {exitcode}"
    return f"the converter process died ({how})"


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
