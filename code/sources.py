"""Record which source each output of a folder was made from, for the extractors and the conversion scripts.

A source is identified by its path in the input folder, its size and its modification time (equal, not newer). Where
only the time differs, as in a copied folder, its content decides. The output of a changed source is made again.

The record is a file of JSON lines, one for each source: [run, source, folder, size, time, digest, name], then the
outputs if they are not that one name. A line of size -1 is added before outputs are written, and another line after
it, so that a kill at any moment never leaves an output that passes for another source's, or for an older state's.
Several processes write a file each, which the next start merges. An output without a line, from a program that kept no
record, is accepted if it is not older than its source.

Shared by `code/` and `process_data/`; imports only the standard library and `files`.
"""

import contextlib
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

UNKNOWN = -1  # size of a source whose outputs are being made, or were when the process was killed
NOBODY = ""  # source of outputs that have lost theirs


@dataclass(frozen=True, slots=True)
class Made:
    """A source in the state from which its outputs were made."""

    folder: str  # the input folder, absolute
    size: int
    mtime: int  # nanoseconds
    digest: str  # of the content, or "" if unknown
    name: str  # of the output, or of the one that numbered outputs replace
    outputs: tuple[str, ...]


class Sources:
    """The record of an output folder, by the paths of the sources in the input folder.

    Args:
        path: the record, NAME.jsonl. A part of a run writes NAME.1-of-3.jsonl, and reads all.
        source: the input folder, or one file of it.
        target: the output folder.
        part: (which, of how many) of the processes or shards that write.
    """

    def __init__(self, path: Path, source: Path, target: Path, part: tuple[int, int] = (1, 1)):
        self.target, self.is_folder = target, source.is_dir()
        self.folder = str((source if self.is_folder else source.parent).resolve())
        self.whole = path
        self.path = path if part[1] == 1 else path.with_name(f"{path.stem}.{part[0]}-of-{part[1]}.jsonl")
        self.made: dict[str, Made] = {}  # by source
        self.owner: dict[str, str] = {}  # the source of each output
        self.seen: dict[str, tuple[int, int]] = {}  # size and time of sources being read
        self.lock = threading.Lock()
        self.inputs: set[str] = set()
        self.named: set[str] = set()  # the outputs of inputs that have one each
        self.coming: set[str] = set()  # NAME.1.abc where NAME.1.abc, NAME.2.abc, ... may be being written
        self.parts = sorted(path.parent.glob(glob.escape(path.stem) + ".[0-9]*-of-*.jsonl"))
        self.run, self.changed = 1, False
        lines = [line for path in (self.whole, *self.parts) for line in _lines(path)]
        for run, name, made in sorted(
            lines, key=lambda line: line[0]
        ):  # of several parts, the latest run's line counts
            self._own(name, made)
            self.run = run + 1
        if not any(os.path.exists(self.target / output) for output in self.owner):  # a folder that was emptied
            self.made, self.owner = {}, {}
        for name, made in list(self.made.items()):
            if made.size == UNKNOWN and len(made.outputs) > 1:
                self._own(name, replace(made, outputs=(*made.outputs, *self._killed_in(made.outputs))))

    def _killed_in(self, outputs: tuple[str, ...]) -> Iterator[str]:
        """Find numbered outputs that a kill left without a line, such as NAME.3.abc beside NAME.1.abc."""
        for output in outputs:
            path = Path(output)
            if path.stem.endswith(".1"):
                stem = path.stem.removesuffix("1")
                for other in (self.target / path.parent).glob(f"{glob.escape(stem)}[0-9]*{path.suffix}"):
                    name = path.with_name(other.name).as_posix()
                    if other.stem.removeprefix(stem).isdecimal() and name not in self.owner:
                        yield name

    def _own(self, source: str, made: Made) -> None:
        """Assign the outputs to this source alone."""
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
        self.made[source] = made
        if not made.outputs:
            del self.made[source]

    def names(self, inputs: list[Path], suffix: str) -> dict[Path, Path]:
        """Name the outputs of all inputs. A source keeps the name it had; a new one that shares it gets the longer."""
        self.inputs, self.suffix = {path.as_posix() for path in inputs}, suffix
        names = files.output_names(inputs, suffix)
        kept: set[Path] = set()
        used: set[str] = set()
        for path in inputs:
            made = self.made.get(path.as_posix())
            if made and made.name not in used:
                other = made.name.removesuffix(suffix)  # the input whose longer name this is, if there is one
                if other not in self.inputs or other == path.as_posix():
                    kept.add(path)
                    used.add(made.name)
                    if made.name != names[path].as_posix():
                        names[path] = Path(made.name)

        def is_taken(name: Path) -> bool:
            owner = self.owner.get(name.as_posix())
            return owner is not None and owner not in self.inputs and self._is_there(owner)

        names = files.lengthen(names, suffix, kept, is_taken)
        self.named = {name.as_posix() for name in names.values()}
        return names

    def finished(self, name: str, source: Path) -> tuple[str, ...]:
        """Return the outputs of a source if they exist and the source has not changed, else ()."""
        made = self.made.get(name)
        if not made or not all(os.path.exists(self.target / output) for output in made.outputs):
            return ()
        try:
            size, mtime = _state(source)
            if size != made.size or (mtime != made.mtime and (not made.digest or _digest(source) != made.digest)):
                return ()
        except OSError:  # reported when it is read
            return ()
        if (mtime, self.folder) != (made.mtime, made.folder):  # a copy
            self._add({name: replace(made, folder=self.folder, mtime=mtime)})
        return made.outputs

    def adopt(self, name: str, source: Path, output: Path, there: list[Path]) -> tuple[str, ...]:
        """Record and return unrecorded outputs that exist, if they are not older than their source.

        The source is not read, so that its digest stays unknown.

        Args:
            output: the output that the source may have.
            there: the outputs that it has.
        """
        outputs = self._relative(there)
        if name in self.made or not outputs or any(map(self.owner.get, outputs)):
            return ()
        try:
            size, mtime = _state(source)
            if any(os.stat(path).st_mtime_ns < mtime for path in there):
                return ()
        except OSError:  # no such file, or its name is too long
            return ()
        self._add({name: Made(self.folder, size, mtime, "", self._relative([output])[0], outputs)})
        return outputs

    def making(self, todo: Iterable[tuple[str, Path, list[Path]]]) -> None:
        """Record that outputs are about to be made. Until `add`, their content counts as unknown.

        Args:
            todo: (name, source, outputs); outputs: the one that it may have, and the first one if it may have several.
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
        """Record outputs that are written, and remove those the source had under other names. Thread-safe.

        A source that has changed meanwhile counts as unfinished at the next start.
        """
        new = self._relative(outputs)
        entries = self._remove_old(name, new)
        before, digest = self.seen.pop(name), ""
        with contextlib.suppress(OSError):
            found = _digest(source)
            digest = found if _state(source) == before else ""
        self._add({name: Made(self.folder, *before, digest, self.made[name].name, new)} | entries)

    def drop(self, name: str, outputs: list[Path]) -> None:
        """Remove the outputs that an earlier state of a failed source had. Keeps their name."""
        del self.seen[name]
        for output in outputs:
            files.remove(output)
        entries = self._remove_old(name, self._relative(outputs))
        self._add({name: replace(self.made[name], size=UNKNOWN, outputs=(self.made[name].name,))} | entries)

    def lost(self) -> list[str]:
        """List outputs whose source is gone."""
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
        """List files that look like outputs, but are not recorded."""
        if not self.is_folder or Path(self.folder).is_relative_to(self.target.resolve()):
            return []
        there = (path.as_posix() for path in files.list_files(self.target, [self.suffix])[0])
        return [name for name in there if name not in self.owner and not self._is_wanted(name)]

    def finish(self, remove: bool) -> str:
        """Report outputs without a source, remove those whose source is gone if asked, and merge the record.

        Returns a note for the counts: "" or "; 2 outputs without a source".
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
        """Whether an output is that of an input, or may be one being written."""
        if output in self.named:
            return True
        stem, _, number = output.removesuffix(self.suffix).rpartition(".")
        return number.isdecimal() and f"{stem}.1{self.suffix}" in self.coming

    def _is_there(self, name: str) -> bool:
        return name != NOBODY and os.path.lexists(os.path.join(self.made[name].folder, name))

    def _relative(self, outputs: list[Path]) -> tuple[str, ...]:
        return tuple(output.relative_to(self.target).as_posix() for output in outputs)

    def _remove_old(self, name: str, new: tuple[str, ...]) -> dict[str, Made]:
        """Remove outputs that a source has under other names. Returns an entry for those that may be another's now."""
        if self.path == self.whole:  # else another shard may be writing them
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
        # Each begins with a line break, since a full disk may have left a part of a line.
        lines = b"".join(b"\n" + _line(self.run, source, made) for source, made in entries.items())
        with self.lock:
            try:
                with open(self.path, "ab") as file:
                    file.write(lines)
            except OSError as error:
                error.filename = str(self.path)
                raise
            for source, made in entries.items():
                self._own(source, made)
            self.changed = True

    def tidy(self) -> None:
        """Merge all parts and lines into the record, unless this is a part itself."""
        if self.path == self.whole and (self.changed or self.parts or self.run > 1):
            with files.atomic_write(self.path) as file:
                file.writelines(_line(0, source, made) + b"\n" for source, made in sorted(self.made.items()))
            self.changed = False
            for part in self.parts:
                part.unlink(missing_ok=True)
            self.parts = []


def _line(run: int, source: str, made: Made) -> bytes:
    others = () if made.outputs in ((made.name,), ()) else made.outputs
    # ASCII, in which a file name that is not UTF-8 survives
    return json.dumps([run, source, made.folder, made.size, made.mtime, made.digest, made.name, *others]).encode()


def _lines(path: Path) -> Iterator[tuple[int, str, Made]]:
    """Yield (run, source, made). Skips what a kill or a full disk left of a line."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        for line in file:
            with contextlib.suppress(ValueError, TypeError):
                run, source, folder, size, mtime, digest, name, *others = json.loads(line)
                outputs = tuple(others or ([name] if name else []))
                yield run, source, Made(sys.intern(folder), size, mtime, digest, name, outputs)


def _state(path: Path) -> tuple[int, int]:
    """Return size and modification time."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
