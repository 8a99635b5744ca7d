"""The whole system on real music, in some minutes on a CPU. `bash code/quickstart.sh` makes what it needs and runs it.

Tunes and chorales of music21's corpus are converted, described in six languages, and learnt from; pieces that no
training has seen are then searched and classified. Every step but the preparation is a script of this repository, and
its command is printed. All files are below `.quickstart/`; a second start goes on, or just shows the results.

examples:
  bash code/quickstart.sh
  bash code/quickstart.sh --seed 1        other pieces are held out, another text encoder is the start
  bash code/quickstart.sh --pretrained    only the search, with the published weights (from the hub)
"""

import argparse
import csv
import json
import random
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.etree.ElementTree import tostring

import quickstart_music as music
import quickstart_report as report
import quickstart_texts as texts
from files import InputError, printable
from quickstart_music import Piece
from quickstart_steps import ROOT, Steps

CODE, PROCESS = ROOT / "code", ROOT / "process_data"
PARTS = ("train", "validation", "test")
PROCESSES = 2  # of a training, one thread each
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",  # all on the CPU: models of this size do not need more
    "HF_HUB_OFFLINE": "1",
    "MALLOC_MMAP_MAX_": "0",  # glibc keeps freed memory instead of giving it back to the system at each step
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
}


@dataclass(frozen=True)
class Plan:
    """The size of a run."""

    tunes: int = 1059
    chorales: int = 40
    test: int = 300  # pieces that no training sees
    validation: int = 48  # pieces that tell each training which epoch was its best
    hidden: int = 128
    layers: int = 3  # of the patch encoder
    m3_epochs: int = 1
    clamp2_epochs: int = 75
    slow_epochs: int = 12  # of CLaMP 2, at a fifth of the rate


def split(pieces: list[Piece], plan: Plan, seed: int) -> dict[str, list[Piece]]:
    """{part: pieces}. A tune in several versions is for training alone, so that no other part has a twin there."""
    rng = random.Random(seed)
    groups = music.families(pieces)
    single = [group[0] for group in groups if len(group) == 1]
    rng.shuffle(single)
    if len(single) < plan.test + plan.validation + 1:
        raise InputError(f"{len(single)} different pieces are too few to hold out {plan.test + plan.validation}")
    test, validation = single[: plan.test], single[plan.test : plan.test + plan.validation]
    held_out = {piece.name for piece in test + validation}
    return {"train": [p for p in pieces if p.name not in held_out], "validation": validation, "test": test}


def collect(folder: Path, sources: list[Path]) -> None:
    """Copies tunes and chorales of the corpus."""
    for source in sources:
        if source.suffix == ".abc":
            write(folder / "tunes" / f"{stem(source)}.abc", music.clean_abc(music.read_abc(source)))
        else:
            (folder / "chorales").mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / "chorales" / f"{stem(source)}.mxl")


def stem(source: Path) -> str:
    return source.stem.replace(".", "_")


def prepare(folder: Path, sources: list[Path], plan: Plan, seed: int) -> None:
    """MusicXML of the pieces -> the same in three parts, MIDI, records, texts, labels."""
    paths = [score_path(folder, source) for source in sources]
    with ProcessPoolExecutor(PROCESSES) as pool:
        pieces = list(pool.map(music.read_piece, sources, paths, chunksize=32))
        parts = split(pieces, plan, seed)
        path_of = {piece.name: path for piece, path in zip(pieces, paths, strict=True)}
        jobs = [(folder, part, piece, path_of[piece.name]) for part in PARTS for piece in parts[part]]
        records = list(pool.map(write_piece, jobs, chunksize=16))
    told = [text for record in records[: len(parts["train"])] for text in texts.of_record(record)]
    labels = [(piece.name, piece.dance) for piece in pieces if piece.dance in music.DANCES]
    for piece in parts["test"]:
        write(folder / "held_out" / "text" / f"{piece.name}.txt", texts.summary(piece, "English"))
    for asked, classes in texts.prompts(pieces).items():
        for label, sentences in classes.items():
            for number, sentence in enumerate(sentences):
                write(folder / "held_out" / "prompts" / asked / report.folder_of(label) / f"{number}.txt", sentence)
    write(folder / "test.json", json.dumps([asdict(piece) for piece in parts["test"]]))
    with open(folder / "dances.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(labels)

    from quickstart_model import make_text_model  # imports torch, which the worker processes need not have

    make_text_model(told, folder / "text-model", seed)
    print(", ".join(f"{len(members)} pieces for {part}" for part, members in parts.items()))


def score_path(folder: Path, source: Path) -> Path:
    """The MusicXML of a file of the corpus."""
    if source.suffix == ".mxl":
        return folder / "chorales" / f"{stem(source)}.mxl"
    return folder / "tunes_xml" / f"{stem(source)}.musicxml"


def write_piece(job: tuple[Path, str, Piece, Path]) -> dict:
    """Writes the MusicXML, the MIDI and the record of a piece. Returns the record.

    Args:
        job: the folder of the run, the part, the piece, its MusicXML.
    """
    folder, part, piece, path = job
    score = music.read_score(path)
    name = f"{part}/{piece.name}"
    write(folder / "scores" / f"{name}.musicxml", tostring(score, encoding="unicode"))
    midi = folder / "midi" / f"{name}.mid"
    midi.parent.mkdir(parents=True, exist_ok=True)
    music.midi_file(score, piece.meter, music.CHOIR if piece.dance == "chorale" else music.VIOLIN).save(midi)
    record = texts.record(piece, [f"interleaved/{name}.abc", f"mtf/{name}.mtf"], random.Random(name))
    write(folder / "records" / f"{name}.json", json.dumps(record, ensure_ascii=False, indent=1))
    return record


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_config(path: Path, constants: dict) -> Path:
    """A file for CLAMP2_CONFIG."""
    write(path, "".join(f"{name} = {value!r}\n" for name, value in constants.items()))
    return path


def constants_of(folder: Path, plan: Plan) -> dict:
    """What this run has other than config.py."""
    return {
        "TRAIN_FOLDERS": [str(folder / kind / "train") for kind in ("interleaved", "mtf")],
        "EVAL_FOLDERS": [str(folder / kind / "validation") for kind in ("interleaved", "mtf")],
        "TRAIN_JSONL": str(folder / "train.jsonl"),
        "EVAL_JSONL": str(folder / "validation.jsonl"),
        "NUM_WORKERS": 0,  # two processes train already
        "PATCH_LENGTH": 128,
        "PATCH_NUM_LAYERS": plan.layers,
        "TOKEN_NUM_LAYERS": 1,
        "M3_HIDDEN_SIZE": plan.hidden,
        "M3_NUM_EPOCH": plan.m3_epochs,
        "M3_LEARNING_RATE": 1e-4,
        "M3_BATCH_SIZE": 16 // PROCESSES,
        "M3_MASK_RATIO": 0.15,  # the decoder is what takes the time
        "CLAMP2_HIDDEN_SIZE": plan.hidden,
        "TEXT_MODEL_NAME": str(folder / "text-model"),
        "CLAMP2_NUM_EPOCH": plan.clamp2_epochs,
        "CLAMP2_LEARNING_RATE": 1e-3,
        "CLAMP2_BATCH_SIZE": 64 // PROCESSES,
        "WARMUP_STEPS": 20,
        "MAX_GRAD_NORM": 1.0,
        "KEEP_UNIT_LENGTH": False,  # these weights are trained without that line
        "M3_WEIGHTS_PATH": str(folder / "weights_m3.pth"),
        "CLAMP2_WEIGHTS_PATH": str(folder / "weights_clamp2.pth"),
        "FEATURE_CACHE": str(folder / "cache"),
    }


def convert(steps: Steps, plan: Plan, seed: int) -> None:
    """Corpus -> interleaved ABC, MTF and JSONL, in three parts."""
    folder = steps.folder
    sources = music.corpus_files(plan.tunes, plan.chorales)
    steps.once("collect the music", lambda: collect(folder, sources))
    steps.python(PROCESS / "batch_abc2xml.py", folder / "tunes", folder / "tunes_xml")
    steps.once("describe and divide it", lambda: prepare(folder, sources, plan, seed))
    steps.python(PROCESS / "batch_xml2abc.py", folder / "scores", folder / "abc")
    steps.python(PROCESS / "batch_interleaved_abc.py", folder / "abc", folder / "interleaved")
    steps.python(PROCESS / "batch_midi2mtf.py", folder / "midi", folder / "mtf")
    for part in PARTS[:2]:
        steps.python(PROCESS / "merge_jsonl.py", folder / "records" / part, folder / f"{part}.jsonl")


def train(steps: Steps, plan: Plan) -> Steps:
    """M3, then CLaMP 2, and CLaMP 2 again from its best weights at a lower rate. Returns the steps that go on there."""
    launch = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={PROCESSES}")
    steps.python(*launch, CODE / "train_m3.py")
    steps.python(*launch, CODE / "train_clamp2.py")
    constants = constants_of(steps.folder, plan)
    weights = steps.folder / "weights_clamp2_slow.pth"
    rate = constants["CLAMP2_LEARNING_RATE"] / 5
    constants |= {
        "CLAMP2_WEIGHTS_PATH": str(weights),
        "CLAMP2_LEARNING_RATE": rate,
        "CLAMP2_NUM_EPOCH": plan.slow_epochs,
    }
    slow = Steps(steps.folder, environment(write_config(steps.folder / "config_slow.py", constants)))
    slow.once("start from the best weights", lambda: shutil.copy(steps.folder / "weights_clamp2.pth", weights))
    slow.python(*launch, CODE / "train_clamp2.py")
    return slow


def environment(config: Path) -> dict[str, str]:
    """What the scripts are started with."""
    return {"CLAMP2_CONFIG": Steps.short(config), **ENVIRONMENT}


def measure(steps: Steps) -> None:
    """Features of the held-out pieces, and everything that is told of them."""
    folder = steps.folder
    held_out, features = folder / "held_out", folder / "features"
    steps.once("gather what is held out", lambda: gather(folder))
    steps.python(CODE / "extract_clamp2.py", held_out, features, "--normalize")
    for query, reference in (("text", "abc"), ("text", "mtf"), ("abc", "mtf")):
        steps.python(
            CODE / "semantic_search.py", "metrics", features / query, features / reference,
            "--json", folder / f"{query}_to_{reference}.json",
        )  # fmt: skip
    labels = ("--labels", folder / "dances.csv")
    steps.python(CODE / "extract_m3.py", folder / "interleaved", folder / "features_m3")
    # Pieces without a label are left out, which is status 1.
    steps.python(
        CODE / "linear_probe.py", "train", folder / "features_m3" / "train", *labels, "--model", folder / "probe.pth",
        statuses=(0, 1),
    )  # fmt: skip
    steps.python(
        CODE / "linear_probe.py", "predict", folder / "probe.pth", folder / "features_m3" / "test", *labels,
        "--evaluate", "--json", folder / "probe.json", "--confusion", folder / "probe.png", statuses=(0, 1),
    )  # fmt: skip
    for name in ("m3", "clamp2"):
        steps.python(CODE / "plot.py", "loss", folder / f"logs_{name}.txt", folder / f"loss_{name}.png")
    steps.python(CODE / "plot.py", "map", features / "abc", folder / "map.png", *labels, statuses=(0, 1))
    steps.python(
        CODE / "plot.py", "similarity", features / "abc", folder / "similarity.png", *labels,
        "--other", features / "mtf", statuses=(0, 1),
    )  # fmt: skip


def gather(folder: Path) -> None:
    """What is held out, in one folder for extraction."""
    for kind, source in (("abc", "interleaved"), ("mtf", "mtf")):
        shutil.copytree(folder / source / "test", folder / "held_out" / kind, dirs_exist_ok=True)


def search(steps: Steps) -> None:
    """Asks five questions in three languages of a folder of MIDI, ABC and MusicXML."""
    folder, library = steps.folder, steps.folder / "library"
    steps.python(PROCESS / "batch_mtf2midi.py", folder / "mtf" / "test", folder / "again")
    steps.python(PROCESS / "batch_interleaved_abc.py", folder / "interleaved" / "test", folder / "again", "--reverse")
    steps.once("put together a library of three file types", lambda: mix(folder, library))
    ask(steps, library)


def ask(steps: Steps, library: Path) -> None:
    for number, query in enumerate(texts.QUERIES):
        shown = ("--top_k", "3") if number else ("--top_k", "12", "--html", steps.folder / "hits.html")
        steps.python(
            CODE / "semantic_search.py", "search", query, library,
            "--json", steps.folder / f"hits_{number}.json", *shown,
        )  # fmt: skip


def mix(folder: Path, library: Path) -> None:
    """Each held-out piece in one of three forms."""
    for number, score in enumerate(sorted((folder / "scores" / "test").iterdir())):
        forms = (score, folder / "again" / f"{score.stem}.mid", folder / "again" / f"{score.stem}.abc")
        library.mkdir(exist_ok=True)
        shutil.copy(forms[number % 3], library)


def main(argv: list[str] | None = None, plan: Plan | None = None, top: Path = ROOT / ".quickstart") -> int:
    summary, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="what is held out, and first weights of text")
    parser.add_argument("--pretrained", action="store_true", help="search with the published weights")
    args = parser.parse_args(argv)
    began = time.monotonic()
    try:
        if args.pretrained:
            pretrained(top / "pretrained")
        else:
            whole(top / f"seed{args.seed}", plan or Plan(), args.seed)
    except (InputError, OSError) as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on there", file=sys.stderr)
        return 130
    print(f"\n{time.monotonic() - began:.0f} s in all")
    return 0


def whole(folder: Path, plan: Plan, seed: int) -> None:
    """All steps."""
    folder.mkdir(parents=True, exist_ok=True)
    steps = Steps(folder, environment(write_config(folder / "config.py", constants_of(folder, plan))))
    convert(steps, plan, seed)
    steps = train(steps, plan)
    measure(steps)
    search(steps)
    found = report.show(folder, len(texts.QUERIES), steps.short(folder))
    write(folder / "results.json", json.dumps(found, indent=1))


def pretrained(folder: Path) -> None:
    """Asks the published weights about some pieces of the corpus."""
    from quickstart_pretrained import constants_of_config

    folder.mkdir(parents=True, exist_ok=True)
    config = write_config(folder / "config.py", constants_of_config(folder))
    steps = Steps(folder, {"CLAMP2_CONFIG": Steps.short(config)})
    steps.once("collect the music", lambda: collect(folder / "library", music.corpus_files(200, 20)))
    ask(steps, folder / "library")
    print(f"\na page with the first query's hits engraved: {printable(steps.short(folder / 'hits.html'))}")


if __name__ == "__main__":
    sys.exit(main())
