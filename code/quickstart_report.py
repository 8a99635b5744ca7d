"""Results of the quick start: a table with each number beside chance or the largest class, hits, pictures.

python code/quickstart_report.py FOLDER     print them, and write results.json to the folder of the run
"""

import argparse
import json
import sys
from pathlib import Path

import command_line
import features
import files

ASKED = {"dance": "rhythm", "meter": "meter", "key": "key"}
NAMES = {"text": "text", "abc": "ABC", "mtf": "MIDI"}
RETRIEVALS = (("text", "abc"), ("text", "mtf"), ("abc", "mtf"))
PICTURES = ("loss_m3.png", "loss_clamp2.png", "map.png", "similarity.png", "probe.png", "hits.html")


def read(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def zero_shot(folder: Path, asked: str, kind: str) -> dict[str, float]:
    """Read the accuracy of classification by words, of "dance", "meter" or "key" and of "abc" or "mtf".

    Pieces of a class that is too rare in training are left out: nothing can be learnt about its name.
    """
    answers = read(folder / f"classes_{kind}.json")["questions"][asked]
    return answers["scores"] | {"classes": len(answers["classes"])}


def results(folder: Path) -> dict:
    """All numbers of a run."""
    retrievals = {
        f"{NAMES[query]} to {NAMES[reference]}": read(folder / f"{query}_to_{reference}.json")
        for query, reference in RETRIEVALS
    }
    return {
        "zero-shot": {
            f"{ASKED[asked]}, {NAMES[kind]}": zero_shot(folder, asked, kind)
            for asked in ASKED
            for kind in ("abc", "mtf")
        },
        "retrieval": {
            name: {part: found[part] for part in ("measured", "by_chance")} for name, found in retrievals.items()
        },
        "probe": read(folder / "probe.json")["test"],
    }


def table(found: dict) -> str:
    """The numbers in lines of text."""
    lines = [f"{'on pieces held out of all training':38}{'measured':>9}  beside"]
    for name, shot in found["zero-shot"].items():
        beside = f"{shot['majority']:.3f}  largest of {shot['classes']} classes, {shot['pieces']} pieces"
        lines.append(f"{'zero-shot ' + name:38}{shot['accuracy']:9.3f}  {beside}")
    probe = found["probe"]
    beside = f"{probe['majority']:.3f}  largest class; macro-F1 {probe['macro_f1']:.3f}"
    lines.append(f"{'linear probe rhythm, M3, ABC':38}{probe['accuracy']:9.3f}  {beside}")
    for name, ranked in found["retrieval"].items():
        for measure in ("MRR", "Hit@1", "Hit@10"):
            value, chance = ranked["measured"][measure], ranked["by_chance"][measure]
            times = f", {value / chance:.1f} times that" if measure == "MRR" else ""
            lines.append(f"{name + ' ' + measure:38}{value:9.3f}  {chance:.4f} by chance{times}")
    return "\n".join(lines)


def hits(folder: Path, path: Path) -> str:
    """The first hits of a search, with the facts about each."""
    pieces = {piece["name"]: piece for piece in read(folder / "test.json")}
    search = read(path)
    lines = [f"“{search['query']}”"]
    for hit in search["hits"][:3]:
        piece = pieces[features.without_suffix(hit["name"])]
        facts = f"{piece['title']}: {piece['dance']}, {piece['key']}, {piece['meter']}"
        lines.append(f"  {hit['rank']}  {hit['score']:.3f}  {hit['name']:38} {facts}")
    return "\n".join(lines)


def show(args: argparse.Namespace) -> int:
    """Print the results of a run, and write its numbers to results.json."""
    found = results(args.folder)
    print(f"\n{table(found)}\n")
    for path in sorted(args.folder.glob("hits_*.json")):
        print(hits(args.folder, path))
    print("\npictures, and a page with the first query's hits engraved:")
    print("\n".join(f"  {args.folder / name}" for name in PICTURES))
    features.write_json(args.folder / "results.json", found)
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = command_line.summarized(__doc__)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="the folder of the run")
    parser.set_defaults(run=show)
    return files.run_command(parser, argv)


if __name__ == "__main__":
    sys.exit(main())
