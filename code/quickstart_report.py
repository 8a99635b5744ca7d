"""What the quick start found: a table, each number beside what chance or the largest class gives; hits; pictures."""

import json
from collections import Counter
from pathlib import Path

import numpy as np

import features
import retrieval

ASKED = {"dance": "rhythm", "meter": "meter", "key": "key"}
RETRIEVALS = (("text", "abc"), ("text", "mtf"), ("abc", "mtf"))
NAMES = {"text": "text", "abc": "ABC", "mtf": "MIDI"}
PICTURES = ("loss_m3.png", "loss_clamp2.png", "map.png", "similarity.png", "probe.png", "hits.html")


def read(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def zero_shot(folder: Path, asked: str, kind: str) -> dict[str, float]:
    """How often the nearest class is that of a held-out piece, beside the share of the largest class.

    The mean of its prompts' features, each of length 1, stands for a class ("prompt ensembling", Radford et al. 2021).

    Args:
        asked: "dance", "meter" or "key"; pieces without it are left out.
        kind: "abc" or "mtf".
    """
    known = {piece["name"]: piece[asked] for piece in read(folder / "test.json")}
    prompts = features.load(folder / "features" / "prompts" / asked)
    labels = np.array([label_of(name) for name in prompts.names])
    classes = sorted(set(labels))
    of_classes = np.stack([retrieval.unit(prompts.matrix[labels == label]).mean(0) for label in classes])  # [C, H]
    music = features.load(folder / "features" / kind)
    _, nearest = retrieval.top_k(music.matrix, of_classes, 1)
    pairs = [
        (classes[row], known[features.without_suffix(name)])
        for row, name in zip(nearest[:, 0], music.names, strict=True)
    ]
    pairs = [(guess, truth) for guess, truth in pairs if truth in classes]
    largest = Counter(truth for _, truth in pairs).most_common(1)[0][1]
    return {
        "accuracy": sum(guess == truth for guess, truth in pairs) / len(pairs),
        "majority": largest / len(pairs),
        "pieces": len(pairs),
        "classes": len({truth for _, truth in pairs}),
    }


def folder_of(label: str) -> str:
    """The folder of a class's prompts: `6/8` -> `6_8`."""
    return label.replace("/", "_")


def label_of(name: str) -> str:
    """`6_8/0.npy` -> `6/8`"""
    return name.split("/")[0].replace("_", "/")


def results(folder: Path) -> dict:
    """All numbers of a run."""
    found: dict = {
        "zero-shot": {
            f"{ASKED[asked]}, {NAMES[kind]}": zero_shot(folder, asked, kind)
            for asked in ASKED
            for kind in ("abc", "mtf")
        },
        "retrieval": {},
        "probe": read(folder / "probe.json")["test"],
    }
    for query, reference in RETRIEVALS:
        told = read(folder / f"{query}_to_{reference}.json")
        found["retrieval"][f"{NAMES[query]} to {NAMES[reference]}"] = {
            "measured": told["measured"],
            "by_chance": told["by_chance"],
        }
    return found


def table(found: dict) -> str:
    """The numbers in lines of text."""
    lines = [f"{'on pieces held out of all training':38}{'measured':>9}  beside"]
    for name, told in found["zero-shot"].items():
        beside = f"{told['majority']:.3f}  most frequent of {told['classes']} classes, {told['pieces']} pieces"
        lines.append(f"zero-shot {name:28}{told['accuracy']:9.3f}  {beside}")
    probe = found["probe"]
    lines.append(
        f"{'linear probe rhythm, M3, ABC':38}{probe['accuracy']:9.3f}  {probe['majority']:.3f}  most frequent"
        f" class; macro-F1 {probe['macro_f1']:.3f}"
    )
    for name, told in found["retrieval"].items():
        for measure in ("MRR", "Hit@1", "Hit@10"):
            value, chance = told["measured"][measure], told["by_chance"][measure]
            times = f", {value / chance:.1f} times that" if measure == "MRR" else ""
            lines.append(f"{name + ' ' + measure:38}{value:9.3f}  {chance:.4f} by chance{times}")
    return "\n".join(lines)


def hits(folder: Path, number: int) -> str:
    """The first hits of a query, with what is known of each."""
    pieces = {piece["name"]: piece for piece in read(folder / "test.json")}
    told = read(folder / f"hits_{number}.json")
    lines = [f"“{told['query']}”"]
    for hit in told["hits"][:3]:
        piece = pieces[features.without_suffix(hit["name"])]
        what = f"{piece['title']}: {piece['dance'] or 'dance'}, {piece['key']}, {piece['meter']}"
        lines.append(f"  {hit['rank']}  {hit['score']:.3f}  {hit['name']:38} {what}")
    return "\n".join(lines)


def show(folder: Path, queries: int, shown_as: str) -> dict:
    """Prints everything; returns the numbers."""
    found = results(folder)
    print(f"\n{table(found)}\n")
    for number in range(queries):
        print(hits(folder, number))
    print("\npictures, and a page with the first query's hits engraved:")
    print("\n".join(f"  {shown_as}/{name}" for name in PICTURES))
    return found
