"""The files that a public data set comes as, in a folder or an archive; and an entry, which a piece of it becomes.

A reader of a data set is a generator over its rows. It yields (where, make) for each: `where` names file and line, and
`make()` returns the Entry of the row or raises LeftOut with the reason. See datasets_large.py and datasets_small.py.
"""

import argparse
import contextlib
import itertools
import lzma
import os
import posixpath
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO

import jobs
from shared import InputError, files, records

LONGEST_NAME = 200  # bytes; with suffixes at most 255, as file systems have it
DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError)  # of a member of an archive
LeftOut = records.Unfit  # (kind, detail): why a row is left out; rows are counted by kind


class Filtered(LeftOut):
    """Why a row is left out by an option of the user: no fault of the data."""


@dataclass
class Entry:
    """A piece of a data set, as it is prepared. Outputs are named by `split`/`name`, in folders for each kind."""

    name: str  # relative, "/" between folders, unique in its split, no suffix; see `is_safe`
    music: dict[str, str | bytes]  # {".mid": a member of the source, or the contents}; several forms of one piece
    record: dict = field(default_factory=dict)  # fields of records.METADATA, for merge_jsonl.py; no users' data
    text: str = ""  # the query of this piece, for retrieval
    labels: dict[str, str] = field(default_factory=dict)  # {task: class}; {"label": ...} if there is one task
    split: str = ""  # "", "train", "validation" or "test"
    warnings: list[str] = field(default_factory=list)  # for the report, one line each

    @property
    def stem(self) -> str:
        return posixpath.join(self.split, self.name)


Made = Iterator[tuple[str, Callable[[], Entry]]]
Reader = Callable[["Source", argparse.Namespace], Made]


@dataclass(frozen=True)
class Dataset:
    """A public data set."""

    about: str  # the text of --help: contents, how to get it, licence, size
    read: Reader
    splits: tuple[str, ...] = ()  # of its entries: the choices of --split
    add_arguments: Callable[[argparse.ArgumentParser], None] | None = None


def one_task(label: str) -> dict[str, str]:
    """Return the labels of a piece, in a set with one task: none if it is blank."""
    return {"label": label} if label else {}


def is_safe(name: str) -> bool:
    """Whether a name can be that of outputs: relative, no part that is "..", hidden or too long, no odd characters."""
    parts = name.split("/")
    is_text = name.isprintable() and "\\" not in name
    return is_text and all(part and part[0] != "." and len(part.encode()) <= LONGEST_NAME for part in parts)


# --- where members are ------------------------------------------------------------------------------------------------


class Source:
    """The files of a data set by name ("members"), in a folder, in .zip archives, or unpacked from .tar.gz.

    A .zip in the folder, or in a folder of it, counts as if it were expanded there, into a folder of its own name if
    its members are not all in one already.
    """

    def __init__(self, path: Path, unpacked: Path, extract: bool = False):
        """Raise InputError if `path` is neither a folder nor an archive; OSError if it cannot be read.

        Args:
            path: a folder or an archive.
            unpacked: the folder that .tar.gz archives are unpacked into, with `extract`.
        """
        self.location, self.unpacked, self.extract = path, unpacked, extract
        self.refused: list[str] = []  # members of archives that are not unpacked: links, and what leads out
        os.stat(path)
        is_zip, is_tar = path.suffix.lower() == ".zip", _is_tar(path.name)
        if not (path.is_dir() or is_zip or is_tar):
            raise InputError(f"{path}: neither a folder nor an archive (.zip, .tar.gz, .tar); name the folder it is in")
        self.tars = [path] if is_tar else []
        zips = [path] if is_zip else []
        if path.is_dir():
            self.tars = sorted(entry for entry in path.iterdir() if _is_tar(entry.name))
            zips = sorted(itertools.chain(path.glob("*.[zZ][iI][pP]"), path.glob("*/*.[zZ][iI][pP]")))
        self.folders = [path, unpacked] if path.is_dir() else [unpacked]
        if is_tar:
            self.need("*")
        self.zipped: dict[str, tuple[zipfile.ZipFile, zipfile.ZipInfo]] = {}
        for archive in zips:
            self._index(archive, posixpath.dirname(archive.relative_to(path).as_posix()) if path.is_dir() else None)

    def _index(self, path: Path, folder: str | None) -> None:
        """List the members of a .zip, as they are in `folder`; None: the archive is the whole source."""
        how = f"zip -s 0 {path.name} --out whole.zip (or: 7z x {path.name}), then move {path.stem}.z* away"
        split = InputError(f"{path}: the last part of a split archive; join the parts first: {how}")
        if path.with_suffix(".z01").exists():
            raise split
        try:
            archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, EOFError) as error:
            raise InputError(f"{path}: not a .zip that can be read ({error}); is the download complete?") from None
        infos = [info for info in archive.infolist() if not info.is_dir()]
        if any(info.volume for info in infos):
            raise split
        if folder is not None and not all(info.filename.startswith(f"{path.stem}/") for info in infos):
            folder = posixpath.join(folder, path.stem)
        for info in infos:
            member = posixpath.join(folder or "", info.filename)
            if records.leaves_folder(member):
                self.refused.append(_refusal(path, info.filename))
            else:
                self.zipped.setdefault(posixpath.normpath(member), (archive, info))

    def path(self, member: str) -> Path | None:
        """Return the real file of a member, if it is one."""
        if "\0" in member or records.leaves_folder(member):
            return None
        paths = (folder / member for folder in self.folders)
        return next((path for path in paths if os.path.isfile(path)), None)

    def stream(self, member: str) -> IO[bytes]:
        """Open a member. Raises LeftOut if it is not there; OSError."""
        if path := self.path(member):
            try:
                return open(path, "rb")
            except OSError as error:
                raise LeftOut("its file cannot be read", f"{member}: {error.strerror}") from None
        if found := self.zipped.get(posixpath.normpath(member)):
            try:
                return found[0].open(found[1])
            except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:  # encrypted, or an odd method
                raise LeftOut("a member of the archive cannot be read", f"{member}: {error}") from None
        raise LeftOut("its file is missing", member)

    def read(self, member: str) -> bytes:
        """Read a member of the size of a piece. Raises LeftOut."""
        try:
            with self.stream(member) as file:
                content = file.read(files.MAX_BYTES + 1)
        except (*DAMAGE, OSError) as error:
            raise LeftOut("a member of the archive cannot be read", f"{member}: {error}") from None
        if len(content) > files.MAX_BYTES:
            raise LeftOut(f"over {files.MAX_BYTES // 2**20} MiB, which no piece has", member)
        return content

    def find(self, pattern: str) -> Iterator[str]:
        """Find the members whose path, or its end, matches a pattern such as "midis/*.mid"; "*" also matches "/".

        Upper and lower case are the same. Sorted in each folder, a folder's files before its subfolders; then those in
        archives. Skips hidden files.
        """
        patterns = (pattern.lower(), f"*/{pattern.lower()}")
        for folder in self.folders:
            for where, subfolders, names in os.walk(folder, followlinks=True):
                subfolders[:] = sorted(name for name in subfolders if _is_shown(name))
                inside = Path(where).relative_to(folder).as_posix()
                for name in sorted(filter(_is_shown, names)):
                    member = posixpath.normpath(posixpath.join(inside, name))
                    if any(fnmatchcase(member.lower(), pattern) for pattern in patterns):
                        yield member
        for member in sorted(self.zipped):
            shown = all(map(_is_shown, member.split("/")))
            if shown and any(fnmatchcase(member.lower(), pattern) for pattern in patterns) and not self.path(member):
                yield member

    def one(self, *patterns: str) -> str:
        """Find the first member that matches one of the patterns, the first pattern first. Raises InputError."""
        for pattern in patterns:
            if member := next(self.find(pattern), None):
                return member
        closed = ", ".join(path.name for path in self.tars if not self.is_unpacked(path))
        hint = f"; {closed} is not expanded: add --extract, or expand it there with tar -xf" if closed else ""
        raise InputError(f"{self.location}: no {' or '.join(patterns)} in it{hint}")

    def need(self, *patterns: str) -> None:
        """Have the .tar.gz archives whose names match unpacked, if there are any.

        Raises InputError if one is not, and the user has not asked for it: a second copy of gigabytes.
        """
        for tar in self.tars:
            if not any(fnmatchcase(tar.name, pattern) for pattern in patterns) or self.is_unpacked(tar):
                continue
            if not self.extract:
                where = f"expand it there (tar -xf {tar.name}), or add --extract, which does so into {self.unpacked}"
                raise InputError(f"{tar}: not expanded ({tar.stat().st_size / 1e9:.1f} GB packed); {where}")
            self._unpack(tar)

    def is_unpacked(self, tar: Path) -> bool:
        """Whether an archive is unpacked, or its first file is in the source's folder."""
        if self._mark(tar).exists():
            return True
        with damage_reported(tar):
            first = next(_tar_files(tar), None)
        return first is not None and self.location.is_dir() and os.path.isfile(self.location / first[0])

    def _mark(self, tar: Path) -> Path:
        return self.unpacked / f".{tar.name}.unpacked"

    def _unpack(self, tar: Path) -> None:
        """Unpack the files of an archive, in one pass. Those that are there already stay."""
        with damage_reported(tar):
            for name, size, content in jobs.progress("file unpacked", _tar_files(tar, self.refused)):
                target = self.unpacked / name
                if not (os.path.isfile(target) and target.stat().st_size == size):
                    with files.atomic_write(target) as file:
                        shutil.copyfileobj(content, file)
        self.unpacked.mkdir(parents=True, exist_ok=True)
        self._mark(tar).touch()


def _is_shown(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def _is_tar(name: str) -> bool:
    return name.lower().endswith((".tar.gz", ".tgz", ".tar"))


@contextlib.contextmanager
def damage_reported(path: Path) -> Iterator[None]:
    """Report a damaged archive, or a table that cannot be read, as an InputError."""
    try:
        yield
    except LeftOut as error:
        raise InputError(f"{path}: {error}") from None
    except (tarfile.TarError, *DAMAGE) as error:
        raise InputError(f"{path}: not an archive that can be read ({error}); is the download complete?") from None


def _tar_files(tar: Path, refused: list[str] | None = None) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Yield (name, size, contents) of the files of an archive, in its order, in constant memory."""
    with tarfile.open(tar, "r|*") as archive:
        for info in archive:
            archive.members = []  # type: ignore[attr-defined]  # else it keeps all that it has passed
            name = posixpath.normpath(info.name)
            content = archive.extractfile(info) if info.isreg() else None
            if content and not records.leaves_folder(name) and "\\" not in name:
                yield name, info.size, content
            elif not info.isdir() and refused is not None:
                refused.append(_refusal(tar, info.name))


def _refusal(archive: Path, member: str) -> str:
    return f"{archive.name}: {member} is no file inside of the archive's folder"
