"""List input folders, name outputs, write files whole or not at all, and report user errors.

Shared by `code/` and `process_data/`; imports only the standard library and `command_line`.
"""

import argparse
import contextlib
import errno
import glob
import hashlib
import io
import os
import re
import socket
import stat
import sys
import unicodedata
import uuid
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from typing import IO

import command_line

MAX_BYTES = 128 * 2**20  # of an input file: a million messages of MIDI take 20 MB
SHOWN = 20  # of a long list, on the terminal
_TEMPORARY = f".tmp-{socket.gethostname()[:64]}-"  # then the process id, then something random


class InputError(ValueError):
    """A user error. The message is one line: where, what was found, and what to do."""

    def _render_traceback_(self) -> list[str]:  # IPython prints this in place of a traceback
        return [f"{type(self).__name__}: {self}"]


def print_error(problem: object) -> int:
    """Print a user error on one line. Returns the exit status."""
    if isinstance(problem, OSError) and problem.filename and problem.strerror:
        problem = f"{problem.filename}: {problem.strerror}"
    print(f"error: {printable(problem)}", file=sys.stderr)
    return 2


def printable(text: object) -> str:
    """Escape line breaks and control characters, which a file name may hold."""
    return "".join(
        c if c.isprintable() or unicodedata.category(c) == "Zs" else c.encode("unicode_escape").decode()
        for c in str(text)
    )


def counted(number: int, what: str) -> str:
    """Count things that are named in the plural: `2 files left out`, `1 copy`."""
    if number == 1:
        what = re.sub(r"^(\w+?)(ie)?s\b", lambda plural: plural[1] + ("y" if plural[2] else ""), what)
    return f"{number} {what}"


def name_all(what: str, names: list[str], limit: int = SHOWN, elsewhere: str = "") -> None:
    """Print how many of `what`, in the plural, and up to `limit` names on standard error.

    `elsewhere`: where all are listed.
    """
    if names:
        print(f"{counted(len(names), what)}:", file=sys.stderr)
        for name in names[:limit]:
            print(f"  {printable(name)}", file=sys.stderr)
        if len(names) > limit:
            print(f"  ... and {len(names) - limit} more{elsewhere}", file=sys.stderr)


def print_any_name() -> None:
    """Let the standard streams escape what is not UTF-8, such as a file name, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def run_command(parser: argparse.ArgumentParser, argv: list[str] | None = None) -> int:
    """Run the sub-command that was chosen. Returns the exit status; a user error prints one line."""
    args = parser.parse_args(argv)
    print_any_name()
    try:
        command_line.imported()
        status = args.run(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # `| head` has read enough; the rest of the output, flushed at exit, goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13  # as a shell reports the signal SIGPIPE
    except (InputError, OSError) as error:
        return print_error(error)
    except KeyboardInterrupt:
        return 130


def read_utf8(path: Path) -> str:
    """Read a text file, without its byte order mark. Raises InputError."""
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
    """Raise InputError for a pipe or a device, which may never end, and for a file that is far too large."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise InputError("not a regular file")
    if status.st_size > MAX_BYTES:
        raise InputError(f"over {MAX_BYTES // 2**20} MiB, which no piece has")


def core_count() -> int:
    """Count the cores that this process may use; all, on a system that binds no process to some, such as macOS."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_files(root: Path, suffixes: Iterable[str]) -> tuple[list[Path], list[Path]]:
    """List the files below `root`, relative to it and sorted: those that end in one of `suffixes`, and the others.

    Ignores the case of suffixes, and skips names that begin with a dot. Follows links to folders, but enters each real
    folder once, so that a loop ends. A file counts as a folder that holds it. Raises OSError.
    """

    def raise_error(error: OSError) -> None:
        raise error

    if not root.exists():
        raise FileNotFoundError(f"{root}: no such file or folder")
    paths, entered = [Path(root.name)] if root.is_file() else [], set()
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=raise_error) if not paths else ():
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        status = os.stat(folder)
        if (identity := (status.st_dev, status.st_ino)) in entered:
            subfolders.clear()
            continue
        entered.add(identity)
        here = Path(folder).relative_to(root)
        paths += [here / name for name in names if not name.startswith(".")]
    wanted = {suffix.lower() for suffix in suffixes}
    found: tuple[list[Path], list[Path]] = [], []
    for path in sorted(paths, key=lambda path: path.parts):
        found[path.suffix.lower() not in wanted].append(path)
    return found


def output_names(inputs: Iterable[Path], suffix: str) -> dict[Path, Path]:
    """Name the output of each input: `a.npy` for `a.abc`, or `a.abc.npy` where two inputs would share a name.

    Depends on the whole list only, so that all processes and shards agree.
    """
    return lengthen({path: path.with_name(path.stem + suffix) for path in inputs}, suffix)


def lengthen(
    names: dict[Path, Path],
    suffix: str,
    kept: Container[Path] = (),
    is_taken: Callable[[Path], bool] = lambda name: False,
) -> dict[Path, Path]:
    """Give the longer name to inputs that share an output, or whose output is taken, except those in `kept`."""
    while True:
        uses = Counter(map(_kept_as, names.values()))
        meeting = [p for p, name in names.items() if p not in kept and (uses[_kept_as(name)] > 1 or is_taken(name))]
        longer = {path: path.with_name(path.name + suffix) for path in meeting}
        if all(names[path] == name for path, name in longer.items()):
            return names
        names |= longer


def _kept_as(name: Path) -> str:
    """Return what is equal for two names of one file: on a Mac and on Windows, `A.npy` is `a.npy`."""
    if sys.platform in ("darwin", "win32"):
        return unicodedata.normalize("NFC", str(name)).casefold()
    return str(name)


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "wb", **options) -> Iterator[IO]:
    """Open a temporary file beside `path`, which replaces `path` if the block ends without an exception.

    It is flushed to the disk first, so that a crash or a full disk leaves the previous file as it was. A pipe or a
    device, such as /dev/null, is written to directly.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "a folder, where a file is to be written", str(path))
    if path.exists() and not path.is_file():
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
        if error.filename is None:  # a full disk, for one, which numpy reports without an error number
            error.filename, error.strerror = str(path), error.strerror or str(error)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Remove a file if it exists."""
    if os.path.lexists(path):  # False if the name is too long, where `unlink` raises
        path.unlink(missing_ok=True)


def remove_leftovers(root: Path, below: bool = True) -> None:
    """Remove temporary files in `root`, and below it, of processes of this machine that have ended."""
    pattern = glob.escape(_TEMPORARY) + "*"
    for file in root.rglob(pattern) if below else root.glob(pattern):
        pid = file.name.removeprefix(_TEMPORARY).partition("-")[0]
        if pid.isdigit() and not _is_running(int(pid)):
            file.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    """Whether a process runs. A zombie does not: in a container, process 1 may never collect a killed worker.

    Where there is no /proc, as on a Mac, a zombie counts as running, and what it left stays.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True
