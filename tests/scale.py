"""How much time and memory many pieces take: listing, index, shards, extraction with a model that does nothing, packing.

Not a test; by hand, with the number of pieces and a folder on a fast disk:

    python tests/scale.py 100000 /tmp/scale

Prints a table in Markdown. Each row runs in a process of its own; memory is the most that it had beyond what it imports.
"""

import json
import multiprocessing
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
for folder in ("code", "process_data", "tests"):
    sys.path.insert(0, str(ROOT / folder))

ABC = "L:1/8\nM:4/4\nK:C\nV:1 treble\n[V:1]CDEF GABc|\n"


def make(count: int, folder: Path) -> None:
    """`count` tiny pieces, 1,000 a folder, and a JSONL file of as many records."""
    with open(folder / "pieces.jsonl", "w") as jsonl:
        for number in range(count):
            path = folder / "music" / f"{number // 1000:05d}" / f"a_piece_of_music_{number:07d}.abc"
            if number % 1000 == 0:
                path.parent.mkdir(parents=True)
            path.write_text(ABC)
            record = {"title": f"Piece {number}", "filepaths": [str(path.relative_to(folder))]}
            jsonl.write(json.dumps(record) + "\n")


def listing(folder: Path) -> object:
    from files import list_files

    return list_files(folder / "music", (".abc", ".mtf"))


def conversion(folder: Path) -> object:
    import jobs

    batch = jobs.Jobs(folder / "music", folder / "converted", (".abc",), ".abc", (1, 16), True)
    return batch, sum(batch.is_finished(job) for job in batch)


def training(folder: Path) -> object:
    import train_m3
    from loading import Batches
    from processes import Processes
    from utils import split_data

    train_files, _ = split_data(train_m3.find_files("TRAIN_FOLDERS", [str(folder / "music")]))
    dataset = train_m3.M3Dataset(train_files, True, 0)
    return dataset, next(iter(Batches(len(dataset), 16, Processes(0, 0, 8), 0, True)))


def index(folder: Path) -> object:
    from train_clamp2 import Jsonl
    from utils import split_data

    records = Jsonl(folder / "pieces.jsonl")
    return records, split_data(range(len(records))), records[len(records) - 1]


def extraction_of(run: str) -> Callable[[Path], object]:
    """All but the model, as one of 8 processes; `run` is only the name of the row."""

    def extract(folder: Path) -> object:
        import torch

        import extraction
        from processes import Processes

        class Nothing(torch.nn.Linear):
            def features(self, batch, pooled):
                return torch.ones(len(batch.packing.counts), 64)

        job = Processes(0, 0, 8)
        job.gather = lambda value: [value]  # type: ignore[method-assign]
        weights = folder / "weights.pth"
        weights.touch()
        source, target = folder / "music", folder / "features"
        read = extraction.read_patches
        return extraction.extract(job, source, target, (".abc",), weights, lambda: Nothing(1, 1), read, True)

    extract.__name__ = run
    return extract


def packing(folder: Path) -> object:
    import features

    for path in (folder / "music").glob("*/*.abc"):  # what the other processes would have written
        target = folder / "features" / path.relative_to(folder / "music").with_suffix(".npy")
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            np.save(target, np.ones((1, 64), np.float32))
    began = time.monotonic()
    features.pack(folder / "features", folder / "packed")
    return time.monotonic() - began


def measure(step: Callable[[Path], object], folder: Path, answer) -> None:
    import extraction  # noqa: F401  (torch and transformers, not to be counted)
    import train_clamp2  # noqa: F401
    import train_m3  # noqa: F401

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    result = step(folder)
    seconds = result if isinstance(result, float) else time.monotonic() - began
    answer.put((seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))


def main() -> None:
    count, folder = int(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir()
    make(count, folder)
    context = multiprocessing.get_context("fork")
    rows = {
        "list a folder": listing,
        "a conversion's jobs, one shard of 16": conversion,
        "M3's data, one process of 8": training,
        "CLaMP 2's JSONL index": index,
        "extraction without a model, one process of 8": extraction_of("first"),
        "the same again, all done": extraction_of("again"),
        "pack the features": packing,
    }
    print(f"| {count:,} pieces | seconds | MB |\n|---|---|---|")
    for name, step in rows.items():
        answer = context.Queue()
        process = context.Process(target=measure, args=(step, folder, answer))
        process.start()
        seconds, megabytes = answer.get()
        process.join()
        print(f"| {name} | {seconds:.1f} | {megabytes:.0f} |", flush=True)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
