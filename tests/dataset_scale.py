"""How much time and memory prepare_dataset.py takes on sets of full size: made up, in the form of PDMX, MidiCaps and GigaMIDI.

Not a test; by hand, with a folder on a fast disk and, if wanted, other numbers of rows:

    python tests/dataset_scale.py /tmp/scale [254077 168385 2000000]

Of GigaMIDI, a sixteenth of the rows is written (`--shard 1/16`), and all are read.
Prints a table in Markdown. The stand-ins for music are of a few bytes; memory is the most of the process, imports included.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("code", "process_data", "tests")]
import test_prepare_dataset as forms

DESCRIPTION = "A description of some length, as people write them below their scores. " * 4


def pdmx(folder: Path, count: int) -> None:
    with open(folder / "PDMX.csv", "w") as table:
        table.write(",".join(forms.COLUMNS) + "\n")
        for number in range(count):
            name = f"{number % 50}/{number // 50 % 60}/Qm{number:044d}"  # some 85 files a folder
            for form, content in (("mxl", b"PK"), ("mid", b"MThd")):
                _write(folder / form / f"{name}.{form}", content)
            record = forms.metadata(description=DESCRIPTION, tags=["piano", "solo"], title=f"Title {number}")
            member = f"metadata/{number % 100}/{number}.json"
            _write(folder / member, record.encode())
            table.write(forms.pdmx_row(name, metadata=f"./{member}") + "\n")


def midicaps(folder: Path, count: int) -> None:
    with open(folder / "train.json", "w") as table:
        for number in range(count):
            line = json.loads(
                forms.caption(f"{number * 2654435761 % 2**32:08x}{number:024x}", test_set=number % 10 == 0)
            )
            line |= {"caption": DESCRIPTION, "all_chords": ["Bb"] * 120, "all_chords_timestamps": [1.5] * 120}
            table.write(json.dumps(line) + "\n")  # 2.5 KB, as the lines of the real file are on average
            _write(folder / line["location"], b"MThd")


def gigamidi(folder: Path, count: int) -> None:
    import pyarrow
    from pyarrow import parquet

    texts = {"title": "A", "artist": "B", "music_style_scraped": "Hard%20Rock,pop"}
    schema = pyarrow.schema(
        [
            ("md5", pyarrow.string()),
            ("music", pyarrow.binary()),
            ("music_styles_curated", pyarrow.list_(pyarrow.string())),
        ]
        + [(name, pyarrow.string()) for name in texts]
    )
    with parquet.ParquetWriter(folder / "train-00000-of-00001.parquet", schema) as table:
        for start in range(0, count, 10_000):
            rows = [
                {"md5": f"{number * 2654435761 % 2**32:08x}{number:024x}", "music": f"MThd{number:0500}".encode()}
                | texts
                for number in range(start, min(start + 10_000, count))
            ]
            table.write_table(pyarrow.Table.from_pylist(rows, schema))


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except FileNotFoundError:
        path.parent.mkdir(parents=True)
        path.write_bytes(content)


def measure(*argv: str) -> tuple[float, float, int]:
    """Run the command; returns seconds, CPU seconds and the most memory in MB."""
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, ROOT / "process_data/prepare_dataset.py", *argv], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, status
    return time.monotonic() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss // 1024


SETS = {
    "pdmx": (pdmx, 254_077, ()),
    "midicaps": (midicaps, 168_385, ()),
    "gigamidi": (gigamidi, 2_000_000, ("--shard", "1/16")),
}


def main() -> None:
    root, counts = Path(sys.argv[1]), [int(word) for word in sys.argv[2:]] or [full for _, full, _ in SETS.values()]
    print("| set | rows | run | s | CPU s | memory, MB |", "|---|---|---|---|---|---|", sep="\n")
    for (name, (make, _, options)), full in zip(SETS.items(), counts, strict=False):
        for count in filter(None, (full // 16, full)):
            folder = root / f"{name}{count}"
            folder.mkdir(parents=True)
            make(folder, count)
            for run in ("first", "second, nothing to do"):
                seconds, cpu, memory = measure(name, str(folder), str(root / f"{name}{count}_out"), *options)
                print(f"| {name} | {count:,} | {run} | {seconds:.0f} | {cpu:.0f} | {memory} |", flush=True)


if __name__ == "__main__":
    main()
