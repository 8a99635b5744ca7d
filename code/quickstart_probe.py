"""The large quick start: does what M3 and CLaMP 2 learn beat counting n-grams?

    python code/quickstart_probe.py untrained [--seed N]    M3 with new weights -> M3_WEIGHTS_PATH of config.py
    python code/quickstart_probe.py probe DATA RUN          one linear probe on n-grams and on each kind of features
    python code/quickstart_probe.py report RUN...           accuracies, of several seeds their mean and deviation

The probe is a multinomial logistic regression on one vector for each tune, trained on the part "train"; a fifth of its
groups of twins chooses the regularization. Temporal features are averaged over the patches.
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_matrix, hstack

import command_line
import features
import files
import labels
from quickstart_large import ASKED, LANGUAGES

if TYPE_CHECKING:
    from sklearn.model_selection import GridSearchCV

QUESTIONS = ("test region", "test genre", "test collection", "dva region", "boehme genre", "oneill genre")
STRENGTHS = (0.1, 1, 10, 100)  # C of scikit-learn: the higher, the less regularization
NGRAMS = {  # words of tunes.json whose n-grams are counted
    "n-grams of pitch": ("pitches", "intervals"),
    "n-grams of all": ("pitches", "intervals", "rhythm", "header"),
}
FEATURES = {"untrained M3": "untrained", "M3": "m3", "CLaMP 2": "clamp2"}
DEEPER = {f"{name}, linear_probe.py": FEATURES[name] for name in ("untrained M3", "M3")}
COLUMNS = ("largest class", *NGRAMS, *FEATURES, *DEEPER, *(f"words, {language}" for language in LANGUAGES))


def header(tune: dict) -> str:
    """What M3 reads in the header, as two words: a tune's meter and key."""
    return f"{tune['meter']} {tune['key'].replace(' ', '_')}"


def count_ngrams(tunes: list[dict], in_train: np.ndarray, fields: tuple[str, ...]) -> csr_matrix:
    """Count runs of one to three words of each field, weighted by tf-idf, [N, G], as training has them."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    columns = []
    for field in fields:
        texts = [header(tune) if field == "header" else tune[field] for tune in tunes]
        counter = TfidfVectorizer(token_pattern=r"\S+", ngram_range=(1, 3), min_df=3, sublinear_tf=True)
        counter.fit(text for text, train in zip(texts, in_train, strict=True) if train)
        columns.append(counter.transform(texts))
    return hstack(columns).tocsr()


def read_features(folder: Path, names: list[str], in_train: np.ndarray) -> csr_matrix:
    """Read the features of the tunes, [N, H], with mean 0 in training and vectors of about length 1."""
    from sklearn.preprocessing import StandardScaler

    found = features.load(folder, mean_over_time=True)
    row = {Path(features.without_suffix(name)).name: number for number, name in enumerate(found.names)}
    matrix = found.matrix[[row[name] for name in names]]
    scaler = StandardScaler().fit(matrix[in_train])
    return csr_matrix(scaler.transform(matrix) / np.sqrt(matrix.shape[1]))


def fit(matrix: csr_matrix, truth: np.ndarray, groups: np.ndarray) -> "GridSearchCV":
    """Train a probe, with the one of STRENGTHS that is best on a fifth of the groups when trained on the others."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, GroupShuffleSplit

    split = GroupShuffleSplit(1, test_size=0.2, random_state=0)
    search = GridSearchCV(LogisticRegression(max_iter=1000, tol=1e-3), {"C": STRENGTHS}, cv=split)
    return search.fit(matrix, truth, groups=groups)


def scores(truth: np.ndarray, predicted: np.ndarray) -> dict:
    """Accuracy, macro-F1 over the classes that are there or predicted, and the share of the largest class."""
    classes, codes = np.unique(np.concatenate([truth, predicted]), return_inverse=True)
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(confusion, (codes[: len(truth)], codes[len(truth) :]), 1)
    return labels.scores(confusion) | {"pieces": len(truth), "classes": len(np.unique(truth))}


def probe(data: Path, run: Path) -> int:
    """Write probes.json, {question: {column: scores}}, after each column, so that an interrupted run goes on."""
    parts = {name: part for part, names in read(run / "parts.json").items() if part != "unused" for name in names}
    tunes = [tune for tune in read(data / "tunes.json") if tune["name"] in parts]
    names, part = [tune["name"] for tune in tunes], np.array([parts[tune["name"]] for tune in tunes])
    groups = np.array([tune["group"] for tune in tunes])
    target = run / "probes.json"
    found = read(target) if target.exists() else {question: {} for question in QUESTIONS}
    for column in (*NGRAMS, *FEATURES):
        if column in found[QUESTIONS[-1]]:
            continue
        if column in NGRAMS:
            matrix = count_ngrams(tunes, part == "train", NGRAMS[column])
        else:
            matrix = read_features(run / "features" / FEATURES[column], names, part == "train")
        for asked in ASKED:
            known = labels.from_csv(run / f"labels/{asked}.csv")
            truth = np.array([known.get(name, "") for name in names])
            rows = {where: np.flatnonzero((part == where) & (truth != "")) for where in set(part)}
            model = fit(matrix[rows["train"]], truth[rows["train"]], groups[rows["train"]])
            for question in QUESTIONS:
                where, of = question.split()
                if of == asked:
                    measured = scores(truth[rows[where]], model.predict(matrix[rows[where]]))
                    found[question][column] = measured
                    print(f"{column}, {question}: {measured['accuracy']:.4f}")
        features.write_json(target, found)
    return 0


def read(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def results(run: Path) -> dict[str, dict]:
    """{question: {column: scores}} of a run."""
    found = read(run / "probes.json")
    for question, by_column in found.items():
        where, asked = question.split()
        for column, kind in DEEPER.items():
            by_column[column] = read(run / f"probe_{kind}/{where}_{asked}.json")["test"]
        for language in LANGUAGES:
            answers = read(run / f"words/{where}_{asked}_{language}.json")
            by_column[f"words, {language}"] = answers["questions"][f"{asked}_{language}"]["scores"]
        by_column["largest class"] = {"accuracy": by_column["M3"]["majority"]}
    return found


def untrained(seed: int) -> int:
    import torch

    import config
    from utils import M3Model, decoder_config, encoder_config

    torch.manual_seed(seed)
    with files.atomic_write(config.resolve(config.M3_WEIGHTS_PATH)) as file:
        torch.save({"model": M3Model(encoder_config(), decoder_config()).state_dict()}, file)
    return 0


def report(runs: list[Path]) -> int:
    """Print a table of the runs that are finished: a row for each column of `results`, a column for each question."""
    found = []
    for run in runs:
        try:
            found.append(results(run))
        except (FileNotFoundError, KeyError):  # a question has no answer yet
            print(f"{run}: not finished, left out", file=sys.stderr)
        else:
            features.write_json(run / "results.json", found[-1])
    if not found:
        raise files.InputError("no run is finished")
    print(f"accuracy, {len(found)} seed(s)".ljust(32) + "".join(question.rjust(18) for question in QUESTIONS))
    for column in COLUMNS:
        cells = []
        for question in QUESTIONS:
            values = [of_run[question][column]["accuracy"] for of_run in found]
            spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.3f}{spread}".rjust(18))
        print(column.ljust(32) + "".join(cells))
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = command_line.summarized(__doc__)
    commands = parser.add_subparsers(required=True, metavar="{untrained,probe,report}")
    sub = commands.add_parser("untrained")
    sub.add_argument("--seed", type=int, default=0, metavar="N")
    sub.set_defaults(run=lambda args: untrained(args.seed))
    sub = commands.add_parser("probe")
    sub.add_argument("data", metavar="DATA", type=Path)
    sub.add_argument("folder", metavar="RUN", type=Path)
    sub.set_defaults(run=lambda args: probe(args.data, args.folder))
    sub = commands.add_parser("report")
    sub.add_argument("folders", metavar="RUN", type=Path, nargs="+")
    sub.set_defaults(run=lambda args: report(args.folders))
    return files.run_command(parser, argv)


if __name__ == "__main__":
    sys.exit(main())
