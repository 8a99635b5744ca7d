"""The jobs of a conversion or of a summary: their inputs, their output files, and the logs beside those."""

import argparse
import contextlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from shared import files, sources


@dataclass
class Job:
    """One input file and the place of its outputs."""

    name: str  # below the input folder, as the logs name it
    source: Path
    output: Path  # of a converter that gives one output
    stem: Path | None  # of the numbered outputs, if the converter may give several

    def numbered(self, number: int) -> Path:
        assert self.stem, "a converter declared with several=False gave several outputs"
        return self.stem.with_name(f"{self.stem.name}.{number}{self.output.suffix}")

    def outputs(self) -> list[Path]:
        """List the outputs that are there, complete."""
        # Unlike Path.exists, this takes a name that is too long for any file: the error comes when it is written.
        if os.path.exists(self.output):
            return [self.output]
        if self.stem is None:
            return []
        return list(itertools.takewhile(os.path.exists, map(self.numbered, itertools.count(1))))

    def may_have(self, outputs: list[Path]) -> bool:
        """Whether these are names that the outputs may have."""
        names = [self.numbered(number) for number in range(1, len(outputs) + 1)] if self.stem else []
        return outputs in ([self.output], names)

    def write(self, outputs: list[bytes]) -> None:
        """Write all outputs; `name.1` comes last, so that its presence means that all are there."""
        if len(outputs) == 1:
            self._write(self.output, outputs[0])
            self._remove_numbered()
            return
        paths = [self.numbered(number) for number in range(1, len(outputs) + 1)]
        self.remove_outputs()
        for path, content in reversed(list(zip(paths, outputs, strict=True))):
            self._write(path, content)

    def remove_outputs(self) -> None:
        files.remove(self.output)
        self._remove_numbered()

    @staticmethod
    def _write(path: Path, content: bytes) -> None:
        with files.atomic_write(path) as file:
            file.write(content)

    def _remove_numbered(self) -> None:
        """Remove the outputs of an earlier start that found several things in the file; `name.1` goes first."""
        if self.stem is None:
            return
        files.remove(self.numbered(1))
        for path in reversed(list(itertools.takewhile(os.path.exists, map(self.numbered, itertools.count(2))))):
            path.unlink()


class Jobs:
    """The jobs of one start, or of one shard of it, in the order of their paths; made as they are asked for.

    Raises ValueError if there is no input or `output` is no place for the results, OSError if a folder cannot be read.
    """

    def __init__(
        self, source: Path, output: Path, suffixes: Iterable[str], target: str, shard: tuple[int, int], several: bool
    ):
        inputs, others = files.list_files(source, suffixes)
        if not inputs:
            raise ValueError(f"{source}: no {' or '.join(suffixes)} file there ({len(others)} other files)")
        if output.exists() and not output.is_dir():
            raise ValueError(f"{output} is a file; OUTPUT_DIR must be a folder")
        # Over the whole input, not the shard's part of it, so that all shards name alike.
        self.sources = sources.Sources(output / f".sources{target}.jsonl", source, output, shard)
        self.names = self.sources.names(inputs, target)
        self.stems = _numbered_stems(self.names, target) if several else {}
        self.suffix, self.is_shard = target, shard[1] > 1
        _refuse_overlap(source, output, self.names.values())
        self.inputs = inputs[shard[0] - 1 :: shard[1]]
        self.other_files = len(others)
        self.is_folder = source.is_dir()
        self.folder = source if self.is_folder else source.parent
        self.output = output

    def __len__(self) -> int:
        return len(self.inputs)

    def __iter__(self) -> Iterator[Job]:
        for path in self.inputs:
            stem = self.output / self.stems[path] if self.stems else None
            yield Job(path.as_posix(), self.folder / path, self.output / self.names[path], stem)

    def begin(self) -> None:
        """Put the record of the sources of outputs in order."""
        self.sources.tidy()
        if self.is_shard:  # the others write at the same time
            stems = self.stems.values()
            self.sources.coming = {stem.with_name(f"{stem.name}.1{self.suffix}").as_posix() for stem in stems}

    def is_finished(self, job: Job) -> bool:
        made = self.sources.finished(job.name, job.source) or self.sources.adopt(
            job.name, job.source, job.output, job.outputs()
        )
        return bool(made) and job.may_have([self.output / name for name in made])


def _numbered_stems(names: dict[Path, Path], suffix: str) -> dict[Path, Path]:
    """Name for each input what `.1.abc`, `.2.abc`, ... are appended to, such that no two inputs share an output.

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
    """Raise ValueError if outputs would be taken for inputs, or written over them."""
    source, output = source.resolve(), output.resolve()
    if source.is_dir() and (output == source or source in output.parents):
        raise ValueError(f"OUTPUT_DIR {output} is inside INPUT_DIR {source}: choose a folder outside of it")
    if output in source.parents:
        place = source.relative_to(output).parts
        if any(name.parts[: len(place)] == place for name in names):
            raise ValueError(f"with OUTPUT_DIR {output}, files of the input {source} would be overwritten")


class Log:
    """One entry a file, such as {"file": ..., "error": ...}, in NAME.jsonl in the output folder (NAME.1-of-3.jsonl).

    It starts with the entries that earlier starts left of these jobs. Entries are appended as they come, so that a kill
    loses none; `finish` sorts the log, or removes it if it is empty. Without shards, it takes over the logs of shards.
    """

    def __init__(self, name: str, field: str, jobs: Jobs, shard: tuple[int, int] = (1, 1)):
        self.field = field
        whole = jobs.output / f"{name}.jsonl"
        of_shards = sorted(jobs.output.glob(f"{name}.*-of-*.jsonl"))
        self.path = whole if shard[1] == 1 else jobs.output / f"{name}.{shard[0]}-of-{shard[1]}.jsonl"
        earlier = dict(entry for path in (whole, *of_shards) for entry in self._read(path))
        if jobs.is_folder and earlier:  # of files that are no longer there, nothing is kept
            earlier = {job.name: earlier[job.name] for job in jobs if job.name in earlier}
        self.entries = earlier
        self.finish()
        if self.path == whole:
            for path in of_shards:
                path.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self.entries)

    def add(self, file: str, text: str | list[str]) -> None:
        self.entries[file] = text
        with open(self.path, "ab") as log:
            log.write(self._line(file, text))

    def discard(self, file: str) -> None:
        self.entries.pop(file, None)

    def finish(self) -> None:
        if self.entries:
            with files.atomic_write(self.path) as log:
                log.writelines(self._line(file, text) for file, text in sorted(self.entries.items()))
        else:
            self.path.unlink(missing_ok=True)

    def _line(self, file: str, text: str | list[str]) -> bytes:
        # A file name that is not UTF-8 has lone surrogates; `\udcff` is how JSON writes one.
        entry = json.dumps({"file": file, self.field: text}, ensure_ascii=False)
        return (entry + "\n").encode("utf-8", "backslashreplace")

    def _read(self, path: Path) -> Iterator[tuple[str, str | list[str]]]:
        with contextlib.suppress(FileNotFoundError):  # or another shard has just removed it
            for line in path.read_bytes().split(b"\n"):
                with contextlib.suppress(ValueError):  # the end, or the last line of a run that was killed
                    entry = json.loads(line)
                    yield entry["file"], entry[self.field]


def finish_logs(errors: Log, warnings: Log, of_what: str) -> None:
    """Put both logs in order, and name those that have entries."""
    for log in (errors, warnings):
        log.finish()
        if len(log):
            print(f"{files.printable(log.path)} names {len(log)} {of_what}.", file=sys.stderr)


def progress(unit: str, items: Iterable | None = None, total: int | None = None) -> tqdm:
    """Make a progress bar; in a file, where each refresh is a line to scroll past, it is refreshed less often."""
    return tqdm(items, total=total, unit=unit, mininterval=0.5 if sys.stderr.isatty() else 30)


def parser(doc: str) -> argparse.ArgumentParser:
    """Make a parser whose `--help` begins with the first paragraph of a script's docstring and ends with the rest."""
    description, _, epilog = doc.strip().partition("\n\n")
    layout = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=description, epilog=epilog, formatter_class=layout)


def positive(kind: type) -> Callable[[str], float]:
    """Make a type for argparse that reads a number above 0."""

    def parse(text: str) -> float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not positive")
        return value

    parse.__name__ = kind.__name__  # argparse names the type by it: "invalid int value"
    return parse
