"""Judge generated music by comparing it with real music, and with the texts that it was made from.

examples:
  python evaluate.py generated/ --real real/
  python evaluate.py generated/ --real real/ --prompts prompts/ --json result.json   # waltz.abc: prompts/waltz.txt
  python evaluate.py generated/ --real real/ --prompts prompts/ --pairs best_worst.jsonl
  python evaluate.py features/generated --real features/real                         # of extract_clamp2.py --normalize

Folders hold music and texts, or features, as semantic_search.py takes them. The text of a piece has its path, but for
the extension and, of several pieces of one text, a number: `waltz.1.abc`, `waltz.2.abc` of `waltz.txt`. Reported:

  CLaMP 2 score    the mean cosine of the generated pieces to the mean feature of the real ones (as in NotaGen)
  cosine of means  of the mean features of both folders (as in CLaMP 3)
  FMD              Fréchet music distance of the Gaussians of both folders, by four estimates of the covariance; the
                   shrunk ones are steadier where there are fewer pieces than a feature has dimensions
  FMD-infinity     the first of them for infinitely many generated pieces: extrapolated from samples of 500 and more,
                   without replacement (the package frechet-music-distance samples with replacement, which leads back
                   to the FMD of the pieces at hand); its interval is that of the fitted line
  text cosine      of each piece to its own text, the mean
  text hits        the share of pieces whose own text is the nearest of all
  diversity        the mean distance (1 - cosine) between two generated pieces
  novelty          the mean distance of a generated piece to the nearest real one; a cosine from --copy on is named

In brackets, 95 % bootstrap intervals: generated pieces are drawn anew, the real ones stay. (Those of a Fréchet distance
and of the cosine of means are for as many pieces: they hold the bias of a finite sample.) --json FILE has the same, and
the values of each piece; its FMD (as of the package frechet-music-distance) is the squared distance to the real mean.
On arrays in memory, for reward functions (`embed_music` and `embed_texts` of clamp2.py make them):

  import evaluate
  rewards = evaluate.score(music, texts)  # [N, H] and [N, H], or one text [1, H] for all -> cosines [N]

Exit status: 0; 1 if a file was left out; 2 if nothing could be done.
"""

import argparse
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path

import command_line

if __name__ == "__main__":
    command_line.begin()  # before the imports below, which take a while

import numpy as np
from tqdm import tqdm

import config
import features
import files
import published
import retrieval
import semantic_search
from features import Features
from files import InputError
from intervals import measure, measure_biased

FRECHET_BOOTSTRAPS = 50  # a Fréchet distance takes some tenths of a second
MLE = "maximum likelihood"  # so called, though n - 1 is the denominator, as elsewhere
Gaussian = tuple[np.ndarray, np.ndarray]  # mean [H], root of the covariance [any, H]; see retrieval.py
Distance = Callable[[np.ndarray, np.ndarray], float]  # Fréchet distance of a Gaussian to that of the real pieces


def score(music: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Compute the cosine [N] of each piece [N, H] to its text [N, H], or to one vector [1, H]. Raises InputError."""
    music, texts = np.asarray(music, np.float64), np.asarray(texts, np.float64)
    if music.ndim != 2 or texts.ndim != 2:
        raise InputError(f"music of shape {music.shape} and texts of {texts.shape}: features are [N, H], also of one")
    if len(texts) not in (1, len(music)):
        raise InputError(f"{len(music)} pieces and {len(texts)} texts: each piece needs its own, or one is for all")
    return retrieval.cosines(music, texts if len(texts) > 1 else np.repeat(texts, len(music), axis=0))


def clamp2_scores(generated: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Compute the cosine [N] of each generated piece [N, H] to the mean feature of the real ones [M, H]."""
    return score(generated, real.mean(axis=0, dtype=np.float64, keepdims=True))


# --- Fréchet music distance -------------------------------------------------------------------------------------------


def gaussians(vectors: np.ndarray) -> dict[str, Gaussian]:
    """Estimate the mean and the covariance of features [N, H], by several methods."""
    from sklearn.covariance import OAS, LedoitWolf, ShrunkCovariance

    shrunk = {"Ledoit-Wolf": LedoitWolf, "OAS": OAS, "shrinkage 0.1": ShrunkCovariance}
    vectors = np.asarray(vectors, np.float64)
    fitted = {name: estimator(store_precision=False).fit(vectors) for name, estimator in shrunk.items()}
    return {MLE: retrieval.gaussian(vectors)} | {
        name: (model.location_, retrieval.root(model.covariance_)) for name, model in fitted.items()
    }


def distance_to(real: Gaussian) -> Distance:
    return functools.partial(retrieval.frechet_of_gaussians, *real)


def sample_gaussian(vectors: np.ndarray) -> Gaussian:
    """Compute `retrieval.gaussian` faster: the root of few vectors [N, H] is [N, H]."""
    if len(vectors) > 2 * vectors.shape[1]:
        return retrieval.gaussian(vectors)
    mean = vectors.mean(axis=0, dtype=np.float64)
    return mean, (vectors - mean) / np.sqrt(len(vectors) - 1)


def frechet_infinity(
    distance: Distance, generated: np.ndarray, rng: np.random.Generator, steps: int = 25, smallest: int = 500
) -> dict:
    """Extrapolate the Fréchet distance to infinitely many generated pieces (Chong and Forsyth, arXiv 1911.07023).

    It is about linear in 1/n over samples of n of the pieces [N, H], drawn without replacement, for n up to N. Returns
    the value at 1/n = 0 and its 95 % interval, the slope, the share of variance that the line explains, and its points.
    Raises InputError for too few pieces.
    """
    if len(generated) <= smallest:
        raise InputError(f"FMD-infinity needs more than {smallest} generated pieces; there are {len(generated)}")
    sizes = np.linspace(smallest, len(generated), steps).astype(int)
    samples = (
        generated[rng.choice(len(generated), size=n, replace=False)]
        for n in tqdm(sizes, "FMD-infinity", delay=2, disable=None)
    )
    distances = np.array([distance(*sample_gaussian(sample)) for sample in samples])
    (slope, value), covariance = np.polyfit(1 / sizes, distances, 1, cov=True)
    margin = 1.96 * np.sqrt(covariance[1, 1])
    low, value, high = np.maximum([value - margin, value, value + margin], 0)  # a line may lead below
    variance = np.var(distances)
    r2 = 1 - np.var(distances - slope / sizes) / variance if variance else 1.0
    points = [[int(n), float(d)] for n, d in zip(sizes, distances, strict=True)]
    line = {"slope": float(slope), "r2": float(r2), "points": points}
    return {"value": float(value), "interval": [float(low), float(high)]} | line


# --- bootstrap --------------------------------------------------------------------------------------------------------


def mean_of(values: np.ndarray) -> Callable[[np.ndarray], float]:
    return lambda counts: counts @ values / counts.sum()


def diversity(unit: np.ndarray, counts: np.ndarray) -> float:
    """Compute the mean distance (1 - cosine) of two different pieces, unit vectors [N, H], drawn `counts` [N] times."""
    total = counts @ unit
    same = counts @ counts  # pairs of a piece with itself, which do not count
    pairs = counts.sum() ** 2 - same
    return max(1 - (total @ total - same) / pairs, 0.0) if pairs else 0.0


def frechet_of_drawn(distance: Distance, generated: np.ndarray, counts: np.ndarray) -> float:
    """Compute the Fréchet distance of features [N, H] drawn `counts` [N] times."""
    return distance(*sample_gaussian(np.repeat(generated, counts, axis=0)))


# --- the command ------------------------------------------------------------------------------------------------------


def compare(generated: np.ndarray, real: np.ndarray, rng: np.random.Generator) -> tuple[dict, dict]:
    """Compare generated with real features, [N, H] and [M, H].

    Returns {measure: {"value", "interval", ...}}, and {name: values of the pieces, [N]}.
    """
    nearest, rows = (found[:, 0] for found in retrieval.top_k(generated, real, 1))
    nearest = np.minimum(nearest, 1)  # not by a rounding error more
    n, generated, mean_real = len(generated), generated.astype(np.float64), real.mean(axis=0, dtype=np.float64)
    unit, unit_mean = retrieval.unit(generated), retrieval.unit(mean_real[None])[0]
    scores = clamp2_scores(generated, real)

    def cosine_of_means(counts: np.ndarray) -> float:
        total = counts @ generated
        return total @ unit_mean / np.linalg.norm(total)

    result = {"CLaMP 2 score": measure(mean_of(scores), n, rng)}
    result["cosine of means"] = measure_biased(cosine_of_means, n, rng, -1, 1)
    of_real, of_generated = gaussians(real), gaussians(generated)
    for name, gaussian in of_real.items():
        distance = distance_to(gaussian)
        result[f"FMD, {name}"] = {"value": distance(*of_generated[name])}
        if name == MLE:
            redrawn = functools.partial(frechet_of_drawn, distance, generated)
            result[f"FMD, {name}"] = measure_biased(redrawn, n, rng, 0, np.inf, FRECHET_BOOTSTRAPS)
            try:
                result["FMD-infinity"] = frechet_infinity(distance, generated, rng)
            except InputError as error:
                print(error, file=sys.stderr)
    result["diversity"] = measure(lambda counts: diversity(unit, counts), n, rng)
    result["novelty"] = measure(mean_of(1 - nearest), n, rng)
    squared = np.sum((generated - mean_real) ** 2, axis=1)
    return result, {"score": scores, "fmd": squared, "nearest": rows, "nearest_cosine": nearest}


def find_texts(generated: list[str], prompts: list[str]) -> dict[int, int]:
    """Find the text of each piece by its path: row of the piece -> row of the text. Raises InputError."""
    by_name: dict[str, int] = {}
    for row, name in enumerate(prompts):
        if (other := by_name.setdefault(features.without_suffix(name), row)) != row:
            raise InputError(f"{prompts[other]} and {name} are texts of one name; keep one")
    found = {}
    for row, name in enumerate(generated):
        key = features.without_suffix(name)
        text = by_name.get(key, by_name.get(semantic_search.NUMBER.sub("", key)))
        if text is not None:
            found[row] = text
    if not found:
        raise InputError(f"no generated piece has the path of a text: {generated[0]} and {prompts[0]}, say")
    return found


def compare_texts(music: np.ndarray, texts: np.ndarray, own: np.ndarray, rng: np.random.Generator) -> tuple[dict, dict]:
    """Compare features of music [N, H] with those of texts [M, H], of which the rows `own` [N] are theirs.

    Of texts that are equal, all are the nearest, or none is. Returns as `compare` does.
    """
    n, cosines, best = len(music), score(music, texts[own]), retrieval.top_k(music, texts, 1)[0][:, 0]
    hits = cosines >= best - retrieval.TIE
    equal = retrieval.ranks(texts[own], texts, own)[0]  # how many texts equal the piece's, it included
    by_chance = {"by_chance": float(np.mean(equal)) / len(texts)}
    result = {"text cosine": measure(mean_of(cosines), n, rng), "text hits": measure(mean_of(hits), n, rng) | by_chance}
    return result, {"text_cosine": cosines, "text_hit": hits}


def best_and_worst(pieces: list[dict], by: str) -> list[dict]:
    """Pair the best with the worst tenth of the pieces of each text, at least one with one. Raises InputError."""
    of_text: dict[str, list[dict]] = {}
    for piece in pieces:
        of_text.setdefault(piece.get("text", ""), []).append(piece)
    pairs, without = [], []
    for text, group in of_text.items():
        group.sort(key=lambda piece: -piece[by])
        tenth = max(1, len(group) // 10)
        both = [(best, worst) for best, worst in zip(group[:tenth], group[::-1], strict=False) if best[by] > worst[by]]
        if not both:
            without.append(text)
        for best, worst in both:
            names = {"prompt": text, "chosen": best["name"], "rejected": worst["name"]}
            pairs.append(names | {"chosen_score": best[by], "rejected_score": worst[by]})
    if not pairs:
        raise InputError("no pairs: there are no two pieces, of one text, of different scores")
    features.report("texts without two pieces of different scores, which gave no pair", without)
    return pairs


def add_texts(result: dict, args: argparse.Namespace, generated: Features, rng: np.random.Generator) -> Features:
    """Add what `compare_texts` returns to a result, and the names of pieces and texts without a partner.

    Returns the features of the texts.
    """
    prompts = semantic_search.read_folder(args.prompts)
    features.require_alike(args.generated, generated, args.prompts, prompts)
    found = find_texts(generated.names, prompts.names)
    rows, own = np.array(list(found)), np.array(list(found.values()))
    measures, values = compare_texts(generated.matrix[rows], prompts.matrix, own, rng)
    result["measures"] |= measures
    values["text"] = np.array(prompts.names)[own]
    for number, row in enumerate(rows):
        result["pieces"][row] |= {key: array[number].item() for key, array in values.items()}
    unpaired = [name for row, name in enumerate(generated.names) if row not in found]
    unused = [name for row, name in enumerate(prompts.names) if row not in own]
    result["without_partner"] = {str(args.generated): unpaired, str(args.prompts): unused}
    for folder, names in result["without_partner"].items():
        features.report(f"of {folder} have no partner", names)
    return prompts


def evaluate(args: argparse.Namespace) -> int:
    if args.download:
        published.provide(config.resolve(config.CLAMP2_WEIGHTS_PATH), download=True)
    generated, real = semantic_search.read_folders(args.generated, args.real)
    for folder, of in ((args.generated, generated), (args.real, real)):
        if len(of.names) < 2:
            raise InputError(f"{folder}: has one piece that can be used, {of.names[0]}; distances need two")
    folders, rng = {str(args.generated): generated, str(args.real): real}, np.random.default_rng(0)
    measures, values = compare(np.asarray(generated.matrix), np.asarray(real.matrix), rng)
    values["nearest"] = np.array(real.names)[values["nearest"]]
    pieces: list[dict] = [
        {"name": name} | {key: array[row].item() for key, array in values.items()}
        for row, name in enumerate(generated.names)
    ]
    result: dict = {"measures": measures, "pieces": pieces}
    if args.prompts:
        folders[str(args.prompts)] = add_texts(result, args, generated, rng)
    result["copies"] = [piece for piece in pieces if piece["nearest_cosine"] >= args.copy - retrieval.TIE]
    show(result, len(real.names), args.copy)
    status = semantic_search.finish(args, result, folders)
    if args.pairs:
        by = "text_cosine" if args.prompts else "score"
        write_pairs(args.pairs, best_and_worst([piece for piece in pieces if by in piece], by))
    return status


def show(result: dict, real: int, copy: float) -> None:
    print(f"{len(result['pieces'])} generated and {real} real pieces")
    for name, known in result["measures"].items():
        line = f"{name:24}{known['value']:10.4f}"
        if "interval" in known:
            line += "  [{:.4f}, {:.4f}]".format(*known["interval"])
        print(line + (f"  by chance {known['by_chance']:.4f}" if "by_chance" in known else ""))
    print(f"{files.counted(len(result['copies']), 'copies')}, of a cosine to a real piece of {copy} or more")
    for piece in result["copies"]:
        print(files.printable(f"  {piece['nearest_cosine']:.4f}  {piece['name']}  {piece['nearest']}"))


def write_pairs(path: Path, pairs: list[dict]) -> None:
    with files.atomic_write(path, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs)
    print(files.printable(f"{files.counted(len(pairs), 'pairs')} -> {path}"))


def cosine(text: str) -> float:
    number = float(text)  # argparse reports a ValueError
    if not -1 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text}: not a cosine, from -1 to 1")
    return number


def get_args_parser() -> argparse.ArgumentParser:
    parser = command_line.documented(__doc__)
    parser.add_argument(
        "generated", metavar="GENERATED", type=Path, help="a folder of generated music, or its features"
    )
    parser.add_argument(
        "--real", metavar="REAL", type=Path, required=True, help="a folder of real music, or its features"
    )
    parser.add_argument(
        "--prompts", metavar="TEXTS", type=Path, help="a folder of the texts that the music was made from"
    )
    about = "write the best and the worst tenth as pairs for preference training there, a line of JSON each: by the"
    about += " CLaMP 2 score, or, with --prompts, for each text by the cosine to it"
    parser.add_argument("--pairs", metavar="FILE", type=Path, help=about)
    about = "from which cosine to a real piece on a generated one is a copy (default: 0.99)"
    parser.add_argument("--copy", metavar="COSINE", type=cosine, default=0.99, help=about)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the result there, with every name left out")
    about = "download the published weights to CLAMP2_WEIGHTS_PATH if none are there"
    parser.add_argument("--download", action="store_true", help=about)
    parser.set_defaults(run=evaluate)
    return parser


def main(argv: list[str] | None = None) -> int:
    return files.run_command(get_args_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
