"""The common part of both extractors: share out files, read ahead, embed, write whole or not at all, resume.

A feature file is float32, [1, T, H], or [1, CLAMP2_HIDDEN_SIZE] with --normalize. OUT mirrors the folders of IN and
holds features only, since programs load every name in it. Beside it stand OUT.extraction.json (what the features were
made with), OUT.sources.jsonl (what each was made from, see `sources`) and OUT.errors.jsonl (the files that failed).
"""

import errno
import json
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from accelerate import PartialState
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

import config
import processes
import provenance
import published
from embedding import embed
from files import SHOWN, InputError, atomic_write, counted, list_files, printable, remove_leftovers, sha256
from loading import Paths, close_loader, ignore_interrupts, worker_count
from patches import M3Patchilizer, read_music, remove_unit_length
from processes import Processes, precision
from provenance import beside, show
from sources import Sources

READ_TOGETHER = 16  # files that a worker hands over at a time
WRITERS = 4  # threads, which wait for the disk
CONVERSIONS = (  # music that an extraction does not read, and the scripts that convert it
    ("MIDI", (".mid", ".midi", ".kar", ".rmi"), ["batch_midi2mtf"]),
    ("MusicXML", (".xml", ".musicxml", ".mxl"), ["batch_xml2abc", "batch_interleaved_abc"]),
)


def read_patches(keep_unit_length: bool, path: Path) -> np.ndarray:
    """Read a music file as patches with the special ones, uint8 [T, P]. Raises InputError for one without music.

    keep_unit_length: with its header line `L:1/8`, if the model wants it so (`model.keep_unit_length`).
    """
    return encode_music(read_music(path), keep_unit_length)


def encode_music(text: str, keep_unit_length: bool) -> np.ndarray:
    """Encode music text as patches with the special ones, uint8 [T, P]."""
    text = text if keep_unit_length else remove_unit_length(text)
    return M3Patchilizer().encode_array(text, add_special_patches=True)


def run(main: Callable[[Processes], int]) -> int:
    """Run an extractor's main function in processes that accelerate joins; see `processes.run`."""
    # without `cpu`, accelerate takes processes without a GPU for single ones
    return processes.run(main, lambda device: PartialState(cpu=device.type == "cpu"))


def to_convert(others: list[Path]) -> str:
    """Returns, for a message, the commands that convert files which neither extraction nor training reads."""
    hints = []
    for kind, suffixes, scripts in CONVERSIONS:
        if count := sum(path.suffix.lower() in suffixes for path in others):
            commands = " and then ".join(f"`python process_data/{script}.py IN OUT`" for script in scripts)
            hints.append(f"; {count} {kind} file(s): convert with {commands}")
    return "".join(hints)


def no_file(suffixes: tuple[str, ...]) -> str:
    """Begin the message that a folder holds no file of these types."""
    return f"there is no {', '.join(suffixes[:-1])} or {suffixes[-1]} file"


def find_weights(job: Processes, constant: str, download: bool) -> Path:
    """Return the path of the weights in config.py; if asked, download the published ones, once a machine."""
    path = config.resolve(constant)
    job.together(lambda: published.provide(path, download) if job.local_rank == 0 else None)
    return path


def extract(
    job: Processes,
    source: Path,
    target: Path,
    suffixes: tuple[str, ...],
    weights_path: Path,
    load_model: Callable[[], nn.Module],
    read: Callable[[bool, Path], np.ndarray],
    pooled: bool,
    keep_unit_length: bool,
    remove_orphans: bool = False,
) -> int:
    """Write the features of all files of `source` below `target`. Every process takes its share of the files.

    Args:
        read: (the model's `keep_unit_length`, file) -> patches or token ids. Raises InputError for a bad file, which
            has no feature then.
        keep_unit_length: whether CLaMP 2 reads `L:1/8`, for the sidecar; a model of CLaMP 3 does not.
    Returns:
        the exit status: 0, or 1 if a file failed.
    """
    files, others = job.together(lambda: list_files(source, suffixes))
    if not files:
        raise InputError(f"{source}: {no_file(suffixes)} in it{to_convert(others)}")
    base = source.parent if source.is_file() else source

    def open_record(part: tuple[int, int] = (1, 1)) -> tuple[Sources, dict[Path, Path]]:
        """Open the record of what features are made from, and name the features of all files."""
        record = Sources(beside(target, ".sources.jsonl"), source, target, part)
        return record, record.names(files, ".npy")

    def prepare() -> None:
        prepare_target(target, weights_path, pooled, keep_unit_length)
        open_record()[0].tidy()

    job.together(prepare if job.rank == 0 else lambda: None)
    record, names = job.together(lambda: open_record((job.rank + 1, job.world_size)))  # every process writes its part
    share = files[job.rank :: job.world_size]
    todo = job.together(lambda: find_todo(record, base, target, share, names))
    failures: dict[str, str] = {}  # file: reason

    def settle(file: Path, problem: str) -> None:
        """Count a file as done, or as failed if there is a problem."""
        if problem:
            failures[file.as_posix()] = problem
            record.drop(file.as_posix(), [target / names[file]])
        job.show_progress()
        bar.update()

    def contents() -> Iterator[tuple[Path, np.ndarray]]:
        for file, content in zip(todo, reader, strict=True):
            if isinstance(content, str):
                settle(file, content)
            else:
                yield file, content

    def save(file: Path, feature: np.ndarray) -> tuple[Path, str]:
        """Write a feature. Returns (file, what is wrong with its name); raises OSError for what concerns all files."""
        path = target / names[file]
        try:
            with atomic_write(path) as output:
                np.save(output, feature[None])
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            return file, f"{base / file}: the name of its feature file, {path.name}, is too long"
        record.add(file.as_posix(), base / file, [path])
        return file, ""

    model = job.together(lambda: load_model() if todo else None)
    dtype = precision(job.device, config.EXTRACT_PRECISION)
    kind = str(dtype).removeprefix("torch.")
    job.print(
        printable(f"{counted(len(files), 'files')}, {job.world_size} x {job.device_name}, {kind}, {weights_path}")
    )
    if model is not None:
        with (
            tqdm(total=len(todo), desc="extraction", unit="file", disable=job.rank != 0) as bar,
            closing(read_ahead(base, todo, partial(read, bool(model.keep_unit_length)))) as reader,
            ThreadPoolExecutor(WRITERS) as writers,
        ):
            writing: deque[Future[tuple[Path, str]]] = deque()
            for file, feature in embed(model, contents(), pooled, config.EXTRACT_BATCH_TOKENS, dtype):
                writing.append(writers.submit(save, file, feature))
                while len(writing) > 4 * WRITERS or (writing and writing[0].done()):
                    settle(*writing.popleft().result())
            for written in writing:
                settle(*written.result())
    job.wait_for_all()
    done, skipped = job.gather(len(todo) - len(failures)), job.gather(len(share) - len(todo))
    all_failures = sorted(chain.from_iterable(part.items() for part in job.gather(failures)))
    if job.rank == 0:
        report(target, all_failures)
        orphans = open_record()[0].finish(remove_orphans)  # with what the others have added
        counts = f"{sum(done)} done, {sum(skipped)} skipped (they were there), {len(all_failures)} failed{orphans}"
        print(
            counts
            + (f"; {counted(len(others), 'files of other types')} left alone{to_convert(others)}" if others else "")
        )
    return 1 if all_failures else 0


def read_ahead(
    base: Path, files: list[Path], read: Callable[[Path], np.ndarray]
) -> Generator[np.ndarray | str, None, None]:
    """Yield the contents of files in their order; for a bad one, why. Worker processes read where there are many."""
    workers = min(worker_count(), len(files) // (2 * READ_TOGETHER))
    loader: DataLoader = DataLoader(
        Paths([str(base / file) for file in files]),  # type: ignore[arg-type]
        batch_size=READ_TOGETHER,
        collate_fn=partial(_read_each, read),
        num_workers=workers,
        persistent_workers=workers > 0,  # else `close_loader` has nothing to close
        prefetch_factor=4 if workers else None,
        worker_init_fn=ignore_interrupts,
    )
    try:
        yield from chain.from_iterable(loader)
    finally:
        close_loader(loader)


def _read_each(read: Callable[[Path], np.ndarray], paths: list[Path]) -> list[np.ndarray | str]:
    contents: list[np.ndarray | str] = []
    for path in paths:
        try:
            contents.append(read(path))
        except InputError as error:
            contents.append(str(error))
    return contents


def find_todo(record: Sources, base: Path, target: Path, share: list[Path], names: dict[Path, Path]) -> list[Path]:
    """Return the files whose features are to be made, and record them as begun."""

    def is_finished(file: Path) -> bool:
        source, feature = base / file, target / names[file]
        made = record.finished(file.as_posix(), source) or record.adopt(file.as_posix(), source, feature, [feature])
        return made == (names[file].as_posix(),)

    todo = [file for file in share if not is_finished(file)]
    record.making((file.as_posix(), base / file, [target / names[file]]) for file in todo)
    return todo


def prepare_target(target: Path, weights_path: Path, pooled: bool, keep_unit_length: bool = False) -> None:
    """Make the folder for features, and note beside it what they are made with.

    Raises InputError if it holds features that were made with other weights or in another form, or if nothing can be
    written beside it.
    """
    made_with = provenance.facts(weights_path, sha256(weights_path), pooled, keep_unit_length)
    sidecar, older = beside(target, provenance.SIDECAR), target / provenance.OLD_SIDECAR
    before = provenance.of_target(target) if next(target.rglob("*.npy"), None) else {}
    if before and (differing := provenance.differing(before, made_with)):
        raise InputError(
            f"{target}: holds features of {show(before, differing)}, and not of {show(made_with, differing)}, as is"
            f" asked for now; name another output folder, or remove it and {sidecar}"
        )
    target.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target)
    remove_leftovers(sidecar.parent, below=False)
    if older.exists():
        older.unlink()
        (target / "errors.jsonl").unlink(missing_ok=True)
    try:
        with atomic_write(sidecar, "w") as file:
            json.dump(made_with, file)
    except OSError as error:
        raise InputError(
            f"{sidecar}: {error.strerror}; beside the folder of features stands what they were made with, so name an"
            f" output folder whose parent can be written, such as {target / 'features'}"
        ) from None


def report(target: Path, failures: list[tuple[str, str]]) -> None:
    """Print the first of the files that failed, as (file, reason), and list all beside the output folder."""
    path = beside(target, ".errors.jsonl")
    if not failures:
        path.unlink(missing_ok=True)
        return
    with atomic_write(path, "w", encoding="utf-8", errors="backslashreplace") as output:
        for file, reason in failures:
            output.write(json.dumps({"file": file, "error": reason}, ensure_ascii=False) + "\n")
    for _, reason in failures[:SHOWN]:
        print(f"failed: {printable(reason)}", file=sys.stderr)
    if len(failures) > SHOWN:
        print(f"... and {len(failures) - SHOWN} more, all in {printable(path)}", file=sys.stderr)
