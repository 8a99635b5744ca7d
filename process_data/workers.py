"""Call a function on many items in worker processes, so that a bad item costs itself alone.

A worker has one item at a time, and a pipe of its own to this process. If the pipe ends, the process has died, of its
item or of something else: the item is tried once more. The kernel enforces the limits of time and memory;
a warning names those that it does not have, such as of memory on a Mac.

Workers do not run the script of the main process, as those of multiprocessing do: it needs no `__main__` guard.
"""

import contextlib
import functools
import os
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

from shared import InputError, files

TIMEOUT = 60  # seconds of CPU time an item may take, by default
WAITING = 10  # times as many seconds may pass: the machine may be busy, or the disk slow
MEMORY = 4 * 2**30  # bytes of address space a worker may use: a hostile file must not take the machine down
ITEMS_PER_WORKER = 2000  # then a fresh process takes over, so that what a converter leaks stays small
_TOO_LONG = {-signal.SIGPROF: (1, " of CPU time"), -signal.SIGALRM: (WAITING, "")}  # by a worker's exit status
_END = object()

T = TypeVar("T")
V = TypeVar("V")


@dataclass
class Failed:
    """Stands in place of a value that could not be computed."""

    reason: str  # one line


def run(
    function: Callable[[T], V], items: Iterable[T], timeout: float = TIMEOUT, processes: int | None = None
) -> Iterator[tuple[T, V | Failed]]:
    """Yield (item, value of the function or `Failed`), in no fixed order; at most one item for each worker is ahead.

    Args:
        function: of a module, or a functools.partial of one. Whatever it raises, it has failed.
        timeout: seconds of CPU time that an item may take.
        processes: number of workers, by default one for each core.
    """
    todo, again = iter(items), list[T]()  # those whose first worker has died
    processes = processes or files.core_count()
    busy: dict[Any, _Worker] = {}
    idle: list[_Worker] = []
    done: list[tuple[T, V | Failed]] = []
    try:
        while True:
            while len(busy) < processes:
                is_second = bool(again)
                item = again.pop() if again else next(todo, _END)
                if item is _END:
                    break
                worker = idle.pop() if idle and not is_second else _Worker()
                worker.start(function, item, timeout, is_second)
                busy[worker.connection] = worker
            yield from done
            if not busy:
                return
            done = []
            for connection in wait(busy):
                worker = busy[connection]
                try:
                    answer = worker.connection.recv()
                except (EOFError, OSError):
                    del busy[connection]
                    status = worker.stop()
                    if not worker.has_started:
                        raise RuntimeError(f"worker processes cannot start: {_death(status)}") from None
                    if worker.is_second or status in _TOO_LONG:
                        done.append((worker.item, Failed(_death(status, timeout))))
                    else:
                        again.append(worker.item)
                    continue
                if not worker.has_started:
                    worker.has_started = True
                    for limit in answer:
                        _warn(limit)
                    continue
                del busy[connection]
                done.append((worker.item, *answer))
                if worker.count < ITEMS_PER_WORKER:
                    idle.append(worker)
                else:
                    worker.stop()
    finally:
        for worker in [*busy.values(), *idle]:
            worker.stop()


class _Worker:
    """A process that waits for items, and this end of its pipe."""

    def __init__(self) -> None:
        self.connection, other_end = Pipe()
        program = f"import sys; sys.path[:] = {sys.path!r}; import workers; workers._work({other_end.fileno()})"
        # A fixed hash seed: converters that iterate over sets give the same output in every process and run.
        environment = os.environ | {"PYTHONHASHSEED": os.environ.get("PYTHONHASHSEED", "0")}
        nowhere = subprocess.DEVNULL
        with other_end:
            self.process = subprocess.Popen(
                [sys.executable, "-c", program],
                stdin=nowhere,
                stdout=nowhere,
                stderr=nowhere,
                pass_fds=[other_end.fileno()],
                env=environment,
            )
        self.item: Any = None
        self.has_started = self.is_second = False
        self.count = 0

    def start(self, function: Callable, item: object, timeout: float, is_second: bool) -> None:
        self.item, self.is_second = item, is_second
        self.count += 1
        with contextlib.suppress(OSError):  # it has died meanwhile, as the answer will show
            self.connection.send((function, item, timeout))

    def stop(self) -> int:
        """Kill the process if it is still there. Returns its exit status."""
        self.connection.close()
        self.process.kill()
        return self.process.wait()


def _work(descriptor: int) -> None:
    """Answer one item after another, in a worker process. First, name the limits that this system cannot enforce."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process
    os.set_inheritable(descriptor, False)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    missing = [] if hasattr(signal, "setitimer") else ["time"]
    try:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (AttributeError, OSError, ValueError):  # a Mac refuses it
        missing.append("memory")
    connection = Connection(descriptor)
    connection.send(missing)
    with contextlib.suppress(EOFError, OSError):  # the main process has ended
        while True:
            _answer(connection.send, *connection.recv())


def _answer(send: Callable[[tuple], None], function: Callable, item: object, timeout: float) -> None:
    _end_after(timeout)
    try:
        send((function(item),))
        return
    except InputError as error:
        reason = str(error)
    except MemoryError:
        reason = f"needs more than {MEMORY / 2**30:g} GB of memory"
    except BaseException as error:  # noqa: BLE001 - whatever a function does, sys.exit() too, costs this item alone
        place = traceback.extract_tb(error.__traceback__)[-1]
        message = " ".join(str(error).split())[:500]
        reason = f"{type(error).__name__}: {message} ({Path(place.filename).name}, line {place.lineno})"
    finally:
        _end_after(0)
    send((Failed(reason),))


def _end_after(seconds: float) -> None:
    """Have the kernel kill this process after so much CPU time, or ten times as long in all; 0: never."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_REAL, seconds * WAITING)


@functools.cache
def _warn(limit: str) -> None:
    from tqdm import tqdm  # not in every worker

    tqdm.write(f"warning: this system cannot limit the {limit} that a file takes", file=sys.stderr)


def _death(status: int, timeout: float = 0) -> str:
    if status in _TOO_LONG:
        times, of_what = _TOO_LONG[status]
        return f"took over {timeout * times:g} s{of_what}"
    how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
    return f"the converter process died ({how})"
