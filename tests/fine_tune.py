"""What fine-tuning gains: the weights of a quick start play the published ones, Bach's other chorales one's own music.

Not a test; by hand, after `bash code/quickstart.sh --seed N`, five minutes of CPU time:

    python tests/fine_tune.py .quickstart/seedN

The quick start knows 1,041 fiddle tunes and 40 chorales. Of the other chorales, 100 are held out and 44 are for
evaluation, none of which shares its melody with any other; the rest are trained on: by fine-tuning, with each tower
frozen and with none, and from scratch. Prints the MRR as a line of JSON for each.
"""

import importlib.util
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "code"), str(ROOT / "process_data")]

import files
import quickstart_data as data

TEST, VALIDATION = 100, 44
TUNING = {"CLAMP2_NUM_EPOCH": 20, "CLAMP2_LEARNING_RATE": 3e-4, "CLAMP2_BATCH_SIZE": 32}
SCRATCH = TUNING | {"CLAMP2_NUM_EPOCH": 30, "CLAMP2_LEARNING_RATE": 1e-3, "CLAMP2_LOAD_M3": False}
VARIANTS = {
    "before": {},
    "both towers": TUNING,
    "text frozen": TUNING | {"CLAMP2_FREEZE": "text"},
    "music frozen": TUNING | {"CLAMP2_FREEZE": "music"},
    "from scratch": SCRATCH,
}
MEASURED = {"text to ABC": "abc", "text to MIDI": "mtf", "tunes, text to ABC": "tunes/abc"}


def prepare(run: Path, mine: Path) -> None:
    """Scores, MIDI and records of the chorales that the quick start leaves, and texts of those held out."""
    pieces = {}
    package = Path(importlib.util.find_spec("music21").origin).parent
    for path in sorted(package.glob("corpus/bach/bwv*.mxl")):
        try:
            pieces[path] = data.read_piece(path)
        except files.InputError as error:  # two have parts of several voices
            print(f"{path.name}: {error}", file=sys.stderr)
    known = {path.name for path in (run / "chorales").iterdir()}
    alone = {id(piece) for piece in data.without_twin([piece for piece, _, _ in pieces.values()])}
    own = [found for path, found in pieces.items() if path.name not in known]
    random.Random(run.name).shuffle(own)
    own.sort(key=lambda found: id(found[0]) not in alone)
    for number, (piece, path, midi) in enumerate(own):
        part = "test" if number < TEST else "validation" if number < TEST + VALIDATION else "train"
        name = f"{part}/{piece.name}"
        data.write(mine / f"scores/{name}.mxl", path.read_bytes())
        (mine / "midi" / part).mkdir(parents=True, exist_ok=True)
        midi.save(mine / f"midi/{name}.mid")
        record = data.record_of(piece, [f"interleaved/{name}.abc", f"mtf/{name}.mtf"])
        data.write(mine / f"records/{name}.json", json.dumps(record))
        if part == "test":
            data.write(mine / f"held_out/text/{piece.name}.txt", record["summary_en"][0])
    python("process_data/batch_xml2abc.py", mine / "scores", mine / "abc")
    python("process_data/batch_interleaved_abc.py", mine / "abc", mine / "interleaved")
    python("process_data/batch_midi2mtf.py", mine / "midi", mine / "mtf")
    shutil.copytree(mine / "interleaved/test", mine / "held_out/abc")
    shutil.copytree(mine / "mtf/test", mine / "held_out/mtf")
    shutil.copytree(run / "held_out", mine / "held_out/tunes", ignore=shutil.ignore_patterns("mtf"))
    for part in ("validation", "train"):
        python("process_data/merge_jsonl.py", mine / "records" / part, mine / f"{part}.jsonl")


def python(script: str, *words: Path | str, config: Path | None = None) -> None:
    environment = {"CLAMP2_CONFIG": str(config or ""), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    command = [sys.executable, str(ROOT / script), *map(str, words)]
    subprocess.run(command, env=os.environ | environment, stdout=subprocess.DEVNULL, check=True)


def train(run: Path, mine: Path, variant: str, changes: dict) -> tuple[Path, str]:
    """The config of a variant, and the log of its training, if it has one."""
    name = variant.replace(" ", "_")
    weights, config, log = mine / f"weights_{name}.pth", mine / f"{name}.py", mine / f"logs_{name}.txt"
    settings = {"TRAIN_JSONL": str(mine / "train.jsonl"), "EVAL_JSONL": str(mine / "validation.jsonl")}
    settings |= {"CLAMP2_WEIGHTS_PATH": str(weights)} | changes
    lines = "".join(f"{constant} = {value!r}\n" for constant, value in settings.items())
    config.write_text((run / "config.py").read_text() + lines)
    if not weights.exists():
        if changes is not SCRATCH:
            shutil.copy(run / "weights_clamp2.pth", weights)
        if changes:
            python("code/train_clamp2.py", config=config)
    return config, log.read_text() if changes else ""


def main(run: Path) -> None:
    mine = run / "mine"
    if not (mine / "train.jsonl").exists():
        prepare(run, mine)
    for variant, changes in VARIANTS.items():
        config, log = train(run, mine, variant, changes)
        features = mine / f"features_{config.stem}"
        python("code/extract_clamp2.py", mine / "held_out", features, "--normalize", config=config)
        found: dict = {"run": run.name, "variant": variant}
        for asked, music in MEASURED.items():
            answer = mine / "answer.json"
            python(
                "code/semantic_search.py",
                "metrics",
                (features / music).with_name("text"),
                features / music,
                "--json",
                answer,
                config=config,
            )
            answered = json.loads(answer.read_text())
            found[asked] = [round(answered[of]["MRR"], 4) for of in ("measured", "by_chance")]
        found |= dict(re.findall(r"(Best Eval Epoch|Min Eval Loss) : (\S+)", log))
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
