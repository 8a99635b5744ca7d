"""Which source each output of a folder was made from: what is finished, how outputs are named, what has no source.

One rule for the extractors and for the conversion scripts. An output belongs to one source, known by its path in the
input folder and by size and time of change (equal, not newer); where only the time differs, as in a copied folder, by
its content. If the source differs, the output is made anew.

The record is a file of JSON lines, one for each source: [run, source, folder, size, time, digest, name], and
the outputs where they are not the one of that name. A line is added before its outputs are written, with a size of -1,
and another one after it: after a kill at any moment, an output is made anew or recognised, and never taken for that of
another source or of another time. Several processes write a file each, which the next start puts together. An output
without a line was made by an earlier version, and accepted if it is not older than its source.

Shared by `code/` and `process_data/`; imports nothing but the standard library and `files`.
"""

import contextlib
import errno
import glob
import hashlib
import json
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import files

UNKNOWN = -1  # as the size of a source: its outputs are being made, or were when the process was killed

NOBODY = ""  # the source of outputs that have lost theirs


@dataclass(frozen=True, slots=True)
class Made:
    """What the outputs of one source were made from."""

    folder: str  # the input folder, absolute
    size: int
    mtime: int  # nanoseconds
    digest: str  # of the content, or "" if it is not known
    name: str  # of the output in the output folder, which numbered outputs may stand for
    outputs: tuple[str, ...]


class Sources:
    """The record of an output folder, by the paths of the sources in the input folder.

    Args:
        path: the record, NAME.jsonl. A part of a run writes NAME.1-of-3.jsonl, and reads all.
        source: the input folder, or one file of it.
        target: the output folder.
        part: (which, of how many) processes or shards write.
    """

    def __init__(self, path: Path, source: Path, target: Path, part: tuple[int, int] = (1, 1)):
        self.target, self.is_folder = target, source.is_dir()
        self.folder = str((source if self.is_folder else source.parent).resolve())
        self.whole = path
        self.path = path if part[1] == 1 else path.with_name(f"{path.stem}.{part[0]}-of-{part[1]}.jsonl")
        self.made: dict[str, Made] = {}  # by source
        self.owner: dict[str, str] = {}  # the source of each output
        self.seen: dict[str, tuple[int, int]] = {}  # size and time of the sources that are being read
        self.lock = threading.Lock()
        self.inputs: set[str] = set()
        self.named: set[str] = set()  # the outputs that the inputs have, if they have one each
        self.coming: set[str] = set()  # NAME.1.abc where NAME.1.abc, NAME.2.abc, ... may be written at this moment
        self.parts = sorted(path.parent.glob(glob.escape(path.stem) + ".[0-9]*-of-*.jsonl"))
        self.run, self.changed = 1, False
        self._read()

    def _read(self) -> None:
        lines = [line for path in (self.whole, *self.parts) for line in _lines(path)]
        lines.sort(key=lambda line: line[0])  # of several parts, what a later run wrote counts
        for _, source, made in lines:
            self._own(source, made)
        self.run += max((run for run, _, _ in lines), default=0)
        if not any(os.path.exists(self.target / output) for output in self.owner):  # a folder that was emptied
            self.made, self.owner = {}, {}
        for source, made in list(self.made.items()):
            if made.size == UNKNOWN and len(made.outputs) > 1:
                self._own(source, replace(made, outputs=(*made.outputs, *self._killed_in(made.outputs))))

    def _killed_in(self, outputs: tuple[str, ...]) -> Iterator[str]:
        """What else there is of numbered outputs, of which a kill has left the last ones: NAME.3.abc of NAME.1.abc."""
        for output in outputs:
            path = Path(output)
            if path.stem.endswith(".1"):
                stem = path.stem.removesuffix("1")
                for other in (self.target / path.parent).glob(f"{glob.escape(stem)}[0-9]*{path.suffix}"):
                    name = path.with_name(other.name).as_posix()
                    if other.stem.removeprefix(stem).isdecimal() and name not in self.owner:
                        yield name

    def _own(self, source: str, made: Made) -> None:
        """From here on, the outputs are this source's and nobody else's."""
        for output in made.outputs:
            other = self.owner.get(output, source)
            if other != source:
                rest = tuple(o for o in self.made[other].outputs if o != output)
                self.made[other] = replace(self.made[other], size=UNKNOWN, outputs=rest)
                if not rest:
                    del self.made[other]
            self.owner[output] = source
        if before := self.made.get(source):
            for output in set(before.outputs).difference(made.outputs):
                self.owner.pop(output, None)
        if made.outputs:
            self.made[source] = made
        else:
            self.made.pop(source, None)

    def names(self, inputs: list[Path], suffix: str) -> dict[Path, Path]:
        """The outputs of all inputs: what a source had it keeps; a newcomer that meets it gets the longer name."""
        self.inputs, self.suffix = {path.as_posix() for path in inputs}, suffix
        names = files.output_names(inputs, suffix)
        kept: dict[Path, str] = {}
        used: set[str] = set()
        for path in inputs:
            made = self.made.get(path.as_posix())
            if made and made.name not in used:
                other = made.name.removesuffix(suffix)  # whose last resort this name is, if it is an input
                if other not in self.inputs or other == path.as_posix():
                    kept[path] = made.name
                    used.add(made.name)

        def is_taken(name: Path) -> bool:
            owner = self.owner.get(name.as_posix())
            return owner is not None and owner not in self.inputs and self._is_there(owner)

        moved = {path: Path(name) for path, name in kept.items() if name != names[path].as_posix()}
        if moved or any(path not in kept and is_taken(name) for path, name in names.items()):
            names = files.lengthen(names | moved, suffix, kept, is_taken)
        self.named = {name.as_posix() for name in names.values()}
        return names

    def finished(self, name: str, source: Path) -> tuple[str, ...]:
        """The outputs of a source, if they are there and made from what it holds now; else nothing."""
        made = self.made.get(name)
        if not made or not all(os.path.exists(self.target / output) for output in made.outputs):
            return ()
        try:
            size, mtime = _state(source)
            if size != made.size or (mtime != made.mtime and (not made.digest or _digest(source) != made.digest)):
                return ()
        except OSError:  # reading it will say so
            return ()
        if (mtime, self.folder) != (made.mtime, made.folder):  # a copy
            self._add({name: replace(made, folder=self.folder, mtime=mtime)})
        return made.outputs

    def adopt(self, name: str, source: Path, output: Path, there: list[Path]) -> tuple[str, ...]:
        """Takes over what an earlier version made, which kept no record, if it is not older than its source.

        No content is noted, so that nothing is read; if such folders are copied without their times, all is made anew.

        Args:
            output: the one that the source may have; there: those that it has.
        """
        outputs = self._relative(there)
        if name in self.made or not outputs or any(map(self.owner.get, outputs)):
            return ()
        try:
            size, mtime = _state(source)
            if any(os.stat(path).st_mtime_ns < mtime for path in there):
                return ()
        except OSError:  # nothing there, or a name that is too long
            return ()
        [called] = self._relative([output])
        self._add({name: Made(self.folder, size, mtime, "", called, outputs)})
        return outputs

    def making(self, todo: Iterable[tuple[str, Path, list[Path]]]) -> None:
        """To be called before outputs are made, with (name, source, outputs): until `add`, what they hold is unknown.

        outputs: the one that it may have, and the first one if it may have several.
        """
        claims = {}
        for name, source, outputs in todo:
            self.seen[name] = (UNKNOWN, 0)
            with contextlib.suppress(OSError):
                self.seen[name] = _state(source)
            first, *numbered = self._relative(outputs)
            self.coming.update(numbered)
            before = self.made[name].outputs if name in self.made else ()
            old = [output for output in before if output not in self.named]
            claims[name] = Made(self.folder, UNKNOWN, 0, "", first, tuple(dict.fromkeys((*old, first, *numbered))))
        if claims:
            self._add(claims)

    def add(self, name: str, source: Path, outputs: list[Path]) -> None:
        """Records outputs that are written. Those that the source had under other names go, if no other has them now.

        To be called from any thread. A source that was changed meanwhile counts as unfinished the next time.
        """
        new = self._relative(outputs)
        entries = self._remove_old(name, new)
        before, digest = self.seen.pop(name), ""
        with contextlib.suppress(OSError):
            found = _digest(source)
            digest = found if _state(source) == before else ""
        self._add({name: Made(self.folder, *before, digest, self.made[name].name, new)} | entries)

    def drop(self, name: str, outputs: list[Path]) -> None:
        """A source failed: its outputs, which were made of an earlier state of it, go. It keeps its name."""
        del self.seen[name]
        for output in outputs:
            files.remove(output)
        entries = self._remove_old(name, self._relative(outputs))
        self._add({name: replace(self.made[name], size=UNKNOWN, outputs=(self.made[name].name,))} | entries)

    def lost(self) -> list[str]:
        """The outputs whose source is gone from its folder."""
        if not self.is_folder:
            return []
        return sorted(
            output
            for name, made in self.made.items()
            if name not in self.inputs and not self._is_there(name)
            for output in made.outputs
            if not self._is_wanted(output) and os.path.lexists(self.target / output)
        )

    def strays(self) -> list[str]:
        """The files in the output folder that look like outputs, and of which the record knows nothing."""
        if not self.is_folder or Path(self.folder).is_relative_to(self.target.resolve()):
            return []
        there = (path.as_posix() for path in files.list_files(self.target, [self.suffix])[0])
        return [name for name in there if name not in self.owner and not self._is_wanted(name)]

    def finish(self, remove: bool) -> str:
        """Names what no source stands behind, removes it if asked, and puts the record in order.

        Returns what is to be added to the counts: "", or "; 2 outputs without a source".
        """
        lost, strays = self.lost(), self.strays()
        doing = "removed" if remove else "--remove_orphans removes them"
        files.name_all(f"outputs whose source is gone ({doing})", lost)
        files.name_all("files among the outputs that no run has recorded (left alone)", strays)
        for output in lost if remove else []:
            source = self.owner[output]
            files.remove(self.target / output)
            made = self.made[source]
            rest = tuple(o for o in made.outputs if o != output)
            self._add({source: replace(made, size=UNKNOWN, name=made.name if rest else "", outputs=rest)})
        self.tidy()
        count = len(strays) + (0 if remove else len(lost))
        return f"; {count} outputs without a source" if count else ""

    def _is_wanted(self, output: str) -> bool:
        """Whether an output is that of an input, or may be one that is just being written."""
        if output in self.named:
            return True
        stem, _, number = output.removesuffix(self.suffix).rpartition(".")
        return number.isdecimal() and f"{stem}.1{self.suffix}" in self.coming

    def _is_there(self, name: str) -> bool:
        return name != NOBODY and os.path.lexists(os.path.join(self.made[name].folder, name))

    def _relative(self, outputs: list[Path]) -> tuple[str, ...]:
        return tuple(output.relative_to(self.target).as_posix() for output in outputs)

    def _remove_old(self, name: str, new: tuple[str, ...]) -> dict[str, Made]:
        """Removes what a source has under other names; returns the entry of what may be another's by now."""
        if self.path == self.whole:  # else other shards may be writing theirs
            self.coming.difference_update(self.made[name].outputs)
        old = [output for output in self.made[name].outputs if output not in new]
        for output in old:
            if not self._is_wanted(output):
                files.remove(self.target / output)
        left = tuple(output for output in old if os.path.lexists(self.target / output))
        if not left:
            return {}
        others = self.made[NOBODY].outputs if NOBODY in self.made else ()
        return {NOBODY: Made(self.folder, UNKNOWN, 0, "", left[0], (*others, *left))}

    def _add(self, entries: dict[str, Made]) -> None:
        # After a line break, since a full disk may have left a part of a line.
        lines = b"".join(b"\n" + _line(self.run, source, made) for source, made in entries.items())
        with self.lock:
            try:
                with open(self.path, "ab", buffering=0) as file:
                    if file.write(lines) != len(lines):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                error.filename = str(self.path)
                raise
            for source, made in entries.items():
                self._own(source, made)
            self.changed = True

    def tidy(self) -> None:
        """Puts all parts and added lines together; a part of a run leaves the files of the others alone."""
        if self.path == self.whole and (self.changed or self.parts or self.run > 1):
            self._rewrite()

    def _rewrite(self) -> None:
        with files.atomic_write(self.path) as file:
            file.writelines(_line(0, source, made) + b"\n" for source, made in sorted(self.made.items()))
        self.changed = False
        if self.path == self.whole:
            for part in self.parts:
                part.unlink(missing_ok=True)
            self.parts = []


def _line(run: int, source: str, made: Made) -> bytes:
    others = () if made.outputs in ((made.name,), ()) else made.outputs
    # In ASCII: a file name that is no UTF-8 comes back as it was.
    return json.dumps([run, source, made.folder, made.size, made.mtime, made.digest, made.name, *others]).encode()


def _lines(path: Path) -> Iterator[tuple[int, str, Made]]:
    """(run, source, made); what a kill or a full disk left of a line is no line."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        for line in file:
            with contextlib.suppress(ValueError, TypeError):
                run, source, folder, size, mtime, digest, name, *others = json.loads(line)
                outputs = tuple(others or ([name] if name else []))
                yield run, source, Made(sys.intern(folder), size, mtime, digest, name, outputs)


def _state(path: Path) -> tuple[int, int]:
    """Size and time of change."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
