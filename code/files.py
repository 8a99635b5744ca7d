"""Files, the same way everywhere: listing an input folder, naming outputs, writing whole or not at all.

Shared by `code/` and `process_data/`; imports nothing but the standard library.
"""

import argparse
import contextlib
import glob
import io
import os
import socket
import stat
import sys
import unicodedata
import uuid
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from typing import IO

MAX_BYTES = 128 * 2**20  # of an input file: a million messages of MIDI take 20 MB
SHOWN = 20  # of a long list, on the terminal
_TEMPORARY = f".tmp-{socket.gethostname()[:64]}-"  # then the process id, then something random


class InputError(ValueError):
    """Something the user can mend. The message is one line that names what was found, where, and what to do."""

    def _render_traceback_(self) -> list[str]:  # IPython, and so a notebook, prints this in place of a traceback
        return [f"{type(self).__name__}: {self}"]


def tell_mistake(problem: object) -> int:
    """Prints a user's mistake. Returns the exit status."""
    print(f"error: {printable(problem)}", file=sys.stderr)
    return 2


def printable(text: object) -> str:
    """A text in one line, with escapes for what would steer a terminal: a file may be called anything."""
    return "".join(
        c if c.isprintable() or unicodedata.category(c) == "Zs" else c.encode("unicode_escape").decode()
        for c in str(text)
    )


def name_all(what: str, names: list[str], limit: int = SHOWN, elsewhere: str = "") -> None:
    """Counts and names something on standard error; of many, the first. `elsewhere`: where all are named."""
    if names:
        print(f"{len(names)} {what}:", file=sys.stderr)
        for name in names[:limit]:
            print(f"  {printable(name)}", file=sys.stderr)
        if len(names) > limit:
            print(f"  ... and {len(names) - limit} more{elsewhere}", file=sys.stderr)


def print_any_name() -> None:
    """From here on, a text that is no UTF-8 is printed with escapes instead of ending the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def run_command(parser: argparse.ArgumentParser, argv: list[str] | None = None) -> int:
    """Runs the function that the chosen sub-command set as `run`. Returns the exit status; a mistake is one line."""
    args = parser.parse_args(argv)
    print_any_name()
    try:
        return args.run(args)
    except (InputError, OSError) as error:
        return tell_mistake(error)
    except KeyboardInterrupt:
        return 130


def read_utf8(path: Path) -> str:
    """A text file's content, without a byte order mark. Raises InputError."""
    try:
        require_piece(path)
        return path.read_text(encoding="utf-8-sig")
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None


def require_piece(path: Path) -> None:
    """Raises InputError for what no piece can be: a pipe or a device, whose reading may never end, or far too much.

    Raises OSError if there is no such file.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise InputError("not a regular file")
    if status.st_size > MAX_BYTES:
        raise InputError(f"over {MAX_BYTES // 2**20} MiB, which no piece has")


def list_files(root: Path, suffixes: Iterable[str]) -> tuple[list[Path], list[Path]]:
    """The files below `root`, relative to it and sorted: those that end in one of `suffixes`, and the others.

    Upper and lower case of a suffix are the same. Names that begin with a dot are left alone. Linked folders are
    entered, each real folder once, so that a loop of links ends. A `root` that is a file is a folder of that one file.
    Raises OSError if a folder cannot be read.
    """
    wanted = {suffix.lower() for suffix in suffixes}

    def raise_error(error: OSError) -> None:
        raise error

    if not root.exists():
        raise FileNotFoundError(f"{root}: no such file or folder")
    if root.is_file():
        found = [Path(root.name)]
    else:
        found, entered = [], set()
        for folder, subfolders, names in os.walk(root, followlinks=True, onerror=raise_error):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in entered:
                subfolders.clear()
                continue
            entered.add((status.st_dev, status.st_ino))
            here = Path(folder).relative_to(root)
            found += [here / name for name in names if not name.startswith(".")]
    found.sort(key=lambda path: path.parts)
    return (
        [path for path in found if path.suffix.lower() in wanted],
        [path for path in found if path.suffix.lower() not in wanted],
    )


def output_names(inputs: Iterable[Path], suffix: str) -> dict[Path, Path]:
    """Input -> output path: `a.abc` -> `a.npy`; two inputs that would meet keep their own suffix (`a.abc.npy`).

    It is a function of the whole list, so that every process and every shard of a run names alike.
    """
    return lengthen({path: path.with_name(path.stem + suffix) for path in inputs}, suffix)


def lengthen(
    names: dict[Path, Path],
    suffix: str,
    kept: Container[Path] = (),
    is_taken: Callable[[Path], bool] = lambda name: False,
) -> dict[Path, Path]:
    """Gives inputs whose outputs would meet, or whose output is taken, the longer name, except those in `kept`."""
    while True:
        uses = Counter(names.values())
        meeting = [p for p, name in names.items() if p not in kept and (uses[name] > 1 or is_taken(name))]
        longer = {path: path.with_name(path.name + suffix) for path in meeting}
        if all(names[path] == name for path, name in longer.items()):
            return names
        names |= longer


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "wb", **options) -> Iterator[IO]:
    """Opens a temporary file beside `path`; it becomes `path` if and only if the block ends without an exception.

    The bytes are on the disk before the name is, so a crash or a full disk leaves the previous `path` as it was.
    A pipe or a device, such as /dev/null, is written to: it must not be replaced.
    """
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        with open(path, mode, **options) as file:
            yield file
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{_TEMPORARY}{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        with open(temporary, mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is None:  # a full disk, say; numpy tells of it without an error number
            error.filename, error.strerror = str(path), error.strerror or str(error)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Removes a file if it is there."""
    if os.path.lexists(path):  # not so if the name is too long
        path.unlink(missing_ok=True)


def remove_leftovers(root: Path, below: bool = True) -> None:
    """Removes the temporary files in `root`, and below it, whose process, on this machine, was killed."""
    pattern = glob.escape(_TEMPORARY) + "*"
    for file in root.rglob(pattern) if below else root.glob(pattern):
        pid = file.name.removeprefix(_TEMPORARY).partition("-")[0]
        if pid.isdigit() and not _is_running(int(pid)):
            file.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    with contextlib.suppress(OSError):  # where there is no /proc, it counts as running
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"  # dead, its parent not told
    return True
