"""Put measured results beside the published figures of CLaMP 2, with intervals and numbers of test pieces.

examples:
  python paper_results.py results/
  python paper_results.py results/ --json table.json

RESULTS is a folder of what `semantic_search.py metrics --json` and `linear_probe.py train --json` wrote, named
DATASET-TASK-MODEL.json: wikimt-text_to_music-clamp2.json. Those that a published figure is known of are listed without
any result too.

The published figures are a transcription of tables in arXiv 2502.10362. Which rows and which texts they are of, and how
the MIDI files of WikiMT-X were made, is not known: equal figures are not expected. The numbers of test pieces of the
published probes are those of which the accuracies are fractions: 33/41 = 0.8049, say, 41 being a fifth of VGMIDI's 204
rows, rounded up. Their 95 % intervals (Clopper-Pearson) are for that many pieces, and leave out that the best epoch was
chosen on them.
Exit status: 0; 1 if a file was left out; 2 if nothing could be done.
"""

import argparse
import json
import sys
from pathlib import Path

import command_line

if __name__ == "__main__":
    command_line.begin()  # before the imports below, which take a while

import features
import files
from files import InputError

PAIRS = 1010  # of WikiMT and of MidiCaps
# dataset-task: how many test pieces (0: not known), and the figures of each model
RETRIEVAL: dict[str, tuple[int, dict[str, float]]] = {
    "wikimt-text_to_music": (PAIRS, {"clamp": 0.2561, "clamp2": 0.3438, "clamp3_c2": 0.4498, "clamp3_saas": 0.3555}),
    "midicaps-text_to_music": (PAIRS, {"clamp": 0.1236, "clamp2": 0.2695, "clamp3_c2": 0.2826, "clamp3_saas": 0.1798}),
    "wikimtx-sheet_to_midi": (0, {"clamp2": 0.5138}),
    "wikimtx-midi_to_sheet": (0, {"clamp2": 0.4480}),
}
PROBES: dict[str, tuple[int, dict[str, tuple[float, float]]]] = {  # macro-F1, accuracy
    "wikimt-probe": (202, {"clamp2": (0.3990, 0.4653)}),
    "vgmidi-probe": (41, {"clamp2": (0.7449, 0.8049)}),
    "pianist8-probe": (83, {"clamp2": (0.8927, 0.8916), "m3": (0.9199, 0.9157)}),
}


def published() -> dict[tuple[str, str], dict]:
    """Return the published value, interval (of an accuracy) and number of pieces, by result and measure."""
    from scipy.stats import binomtest

    found: dict[tuple[str, str], dict] = {}
    for task, (n, mrr) in RETRIEVAL.items():
        found |= {(f"{task}-{model}", "MRR"): {"value": value, "pieces": n} for model, value in mrr.items()}
    for task, (n, scores) in PROBES.items():
        for model, (macro_f1, accuracy) in scores.items():
            bounds = binomtest(round(accuracy * n), n).proportion_ci()
            interval = [float(bounds.low), float(bounds.high)]
            found[f"{task}-{model}", "macro_f1"] = {"value": macro_f1, "pieces": n}
            found[f"{task}-{model}", "accuracy"] = {"value": accuracy, "pieces": n, "interval": interval}
    return found


def read(path: Path) -> tuple[dict[str, dict], str]:
    """Read a result: the value, interval and number of pieces of each measure, and the protocol. Raises InputError."""
    try:
        result = json.loads(files.read_utf8(path))
        if "measured" in result:
            values, pieces, protocol = result["measured"], result["queries"], result["protocol"]
        else:
            values, pieces, protocol = result["test"], result["pieces"], result["protocol"]["split"]
        intervals = result["intervals"]
        measures = {
            name: {"value": float(values[name]), "interval": [float(low), float(high)], "pieces": int(pieces)}
            for name, (low, high) in intervals.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        wanted = "semantic_search.py metrics or linear_probe.py train"
        raise InputError(f"{path}: not a result of {wanted} ({type(error).__name__}: {error})") from error
    return measures, str(protocol)


def table(results: dict[str, tuple[dict[str, dict], str]]) -> list[dict]:
    """Join the measures of results with the published ones: a row for each that is known of either."""
    known = published()
    ours = {(name, measure): found for name, (measures, _) in results.items() for measure, found in measures.items()}
    rows = []
    for name, measure in sorted(ours.keys() | known.keys()):
        row: dict = {"result": name, "measure": measure}
        row |= {"measured": ours.get((name, measure)), "published": known.get((name, measure))}
        rows.append(row | {"protocol": results[name][1] if name in results else None})
    return rows


def show(measure: str, value: dict | None) -> str:
    if not value:
        return f"{'-':>6}{'':30}"
    digits = 1 if measure == "median rank" else 4
    interval = "[{:.{d}f}, {:.{d}f}]".format(*value["interval"], d=digits) if "interval" in value else ""
    pieces = f"of {value['pieces'] or '?'}"
    return f"{value['value']:7.{digits}f}{interval:>20}{pieces:>9}"


def compare(args: argparse.Namespace) -> int:
    found, _ = files.list_files(args.results, [".json"])
    results, left_out = {}, []
    for path in found:
        try:
            results[path.with_suffix("").as_posix()] = read(args.results / path)
        except InputError as error:
            left_out.append(str(error))
    if not results:
        first = left_out[0] if left_out else "there is no .json file in it"
        raise InputError(f"{args.results}: no result that can be used; the first: {first}")
    rows = table(results)
    print(f"{'':47}{'measured':36}  published")
    for row in rows:
        measured, known = (show(row["measure"], row[which]) for which in ("measured", "published"))
        line = f"{row['result']:35}{row['measure']:11} {measured}  {known}"
        print(files.printable(line.rstrip()))
    for name, (_, protocol) in sorted(results.items()):
        print(files.printable(f"{name}: {protocol}"))
    compared = {row["result"] for row in rows if row["measured"] and row["published"]}
    files.name_all("results of which no published figure is known", sorted(results.keys() - compared))
    features.report("left out", left_out)
    if args.json:
        features.write_json(args.json, {"rows": rows, "left_out": left_out})
    return 1 if left_out else 0


def get_args_parser() -> argparse.ArgumentParser:
    parser = command_line.summarized(__doc__)
    parser.add_argument("results", metavar="RESULTS", type=Path, help="a folder of DATASET-TASK-MODEL.json")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the table there, not into RESULTS")
    parser.set_defaults(run=compare)
    return parser


def main(argv: list[str] | None = None) -> int:
    return files.run_command(get_args_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
