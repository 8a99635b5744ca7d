"""Classify music without training: a piece belongs to the class whose sentences are most similar to it.

examples:
  python classify.py music/ --classes classes.json
  python classify.py music/ --classes classes.json --template "a {} for the fiddle" --csv answers.csv
  python classify.py features/abc --classes classes.json --labels dances.csv --confusion confusion.png
  python classify.py features/abc --classes classes.json --labels dances.csv meters.csv --json scores.json
  python classify.py music/ --classes classes.json --download      # downloads the published weights

classes.json holds a question, or several:
  ["jig", "reel"]
  {"jig": ["A jig.", "Une gigue.", "吉格舞曲"], "reel": "A reel."}
  {"rhythm": {"jig": "A jig.", "reel": "A reel."}, "meter": {"6/8": "In 6/8 time.", "2/4": "In 2/4 time."}}

A class is one or more sentences, in any language; it is the mean of their features, each of length 1. MUSIC is a folder
of music or of features, or one file, as for semantic_search.py. Of each piece: the label, its probability (softmax of
the cosines over the temperature) and the margin (by how much its cosine exceeds that of the second class). With labels,
a CSV of two columns for each question (file, label): accuracy, macro-F1 and the confusion matrix, of the pieces whose
label is a class. Exit status: 0; 1 if a file was left out, or if the answers are in doubt because classes or pieces can
hardly be told apart; 2 if nothing could be done.
"""

import argparse
import csv
import itertools
import json
import re
import sys
from collections import Counter
from pathlib import Path

import command_line

if __name__ == "__main__":
    command_line.begin()  # before the imports below, which take a while

import numpy as np

import cache
import config
import features
import files
import labels
import published
import retrieval
import semantic_search
from features import Features
from files import InputError

TEMPERATURE = 0.07  # of 1 to 0.02, gives the quick start's true classes (nearly) the highest likelihood
# Answers are in doubt if
SAME = 1 - 1e-5  # the cosine of two classes is this or more
ROUNDING = 1e-4  # the cosines of each piece differ by no more, which may be the rounding of half precision
ALIKE = 0.999  # the mean cosine of the pieces to their mean is this or more
NEARLY_ALL, FEW = 0.9, 10  # this share of the pieces is of one class, if there are that many pieces
Question = dict[str, list[str]]  # the sentences of each class


def read_questions(path: Path, template: str) -> dict[str, Question]:
    """Read the questions of a JSON file by name, with each sentence put in place of `{}` in the template.

    A single question has the name of the file. Raises InputError.
    """

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if repeated := [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]:
            raise InputError(f"{path}: {repeated[0]!r} is there twice")
        return dict(pairs)

    try:
        content = json.loads(files.read_utf8(path), object_pairs_hook=unique)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    is_several = isinstance(content, dict) and any(isinstance(value, dict) for value in content.values())
    questions = content if is_several else {path.stem: content}
    for name in questions if is_several else ():
        if not re.fullmatch(r"[\w .-]+", name):  # it may be part of a file name
            raise InputError(f"{path}: {name!r}: the name of a question is of letters, digits, spaces and . _ -")
    return {name: _read_classes(f"{path}, {name}", classes, template) for name, classes in questions.items()}


def _read_classes(where: str, classes: object, template: str) -> Question:
    """Read a question: {class: a sentence or several}, or a list of classes whose names are the sentences."""
    if isinstance(classes, list) and all(isinstance(name, str) for name in classes):
        classes = {name: name for name in classes}
    if not isinstance(classes, dict):
        raise InputError(f'{where}: a question is written {{"jig": ["A jig.", "Une gigue."], "reel": "A reel."}}')
    if len(classes) < 2:
        raise InputError(f"{where}: a question needs two classes, and has {len(classes)}")
    question: Question = {}
    for name, sentences in classes.items():
        if isinstance(sentences, str):
            sentences = [sentences]
        if not isinstance(sentences, list) or not sentences or not all(map(_is_sentence, sentences)):
            raise InputError(f"{where}: {name!r} needs a sentence, or a list of sentences")
        question[name] = [template.replace("{}", sentence) for sentence in sentences]
    return question


def _is_sentence(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value == value.encode("utf-8", "ignore").decode()


def embed(question: Question) -> np.ndarray:
    """Embed the classes of a question, [C, H]: each is the mean of its sentences. Raises InputError."""
    vectors = {}
    for sentence, entry in cache.features_of(list(dict.fromkeys(itertools.chain(*question.values())))):
        if entry.errors[0]:
            raise InputError(f"{sentence}: {entry.errors[0]}")
        vectors[sentence] = retrieval.unit(entry.vectors)[0]
    means = [np.mean([vectors[sentence] for sentence in sentences], axis=0) for sentences in question.values()]
    return retrieval.unit(np.stack(means))


def softmax(cosines: np.ndarray, temperature: float) -> np.ndarray:
    """Turn cosines [N, C] into probabilities [N, C], in float64."""
    weights = np.exp((cosines - cosines.max(axis=1, keepdims=True)).astype(np.float64) / temperature)
    return weights / weights.sum(axis=1, keepdims=True)


def answer(music: Features, asked: Features, temperature: float) -> dict:
    """Classify all pieces, by their cosines to the features of the classes."""
    classes = asked.names
    cosines, rows = retrieval.top_k(music.matrix, asked.matrix, len(classes))  # [N, C] each, best first
    answers = [
        {
            "name": name,
            "label": classes[row[0]],
            "probability": round(float(shares[0]), 6),
            "margin": round(float(cosine[0] - cosine[1]), 6),
            "probabilities": {classes[index]: round(float(share), 6) for index, share in zip(row, shares, strict=True)},
        }
        for name, row, cosine, shares in zip(music.names, rows, cosines, softmax(cosines, temperature), strict=True)
    ]
    found = np.bincount(rows[:, 0], minlength=len(classes)).tolist()
    counts = dict(zip(classes, found, strict=True))
    spread = float((cosines[:, 0] - cosines[:, -1]).max())
    return {"classes": classes, "counts": counts, "doubts": doubts(counts, asked.matrix, spread), "answers": answers}


def doubts(counts: dict[str, int], vectors: np.ndarray, spread: float) -> list[str]:
    """Name the signs that a question's answers mean nothing.

    Args:
        counts: the number of pieces of each class.
        vectors: the features of the classes, [C, H].
        spread: the largest difference between two cosines of one piece.
    """
    found = []
    classes, total = list(counts), sum(counts.values())
    same = np.argwhere(np.triu(vectors @ vectors.T >= SAME, 1))
    if len(same):
        first, second = (classes[index] for index in same[0])
        more = f", and those of {len(same) - 1} more pairs of classes" if len(same) > 1 else ""
        found.append(f"the features of {first!r} and {second!r}{more} are equal")
    if spread <= ROUNDING:
        found.append(f"the cosines of a piece to the classes differ by {spread:.1g} at most")
    largest = max(classes, key=counts.__getitem__)
    if total >= FEW and counts[largest] >= NEARLY_ALL * total:
        found.append(f"{counts[largest]} of {total} pieces are {largest!r}")
    return found


def doubts_of_music(matrix: np.ndarray) -> list[str]:
    """Name the sign of a collapsed music tower: the mean cosine of the pieces [N, H] to their mean is 1."""
    mean_cosine = float(np.linalg.norm(retrieval.unit(matrix).mean(axis=0)))
    if len(matrix) < 2 or mean_cosine < ALIKE:
        return []
    return [f"the features of all pieces are nearly equal: their mean cosine to their mean is {mean_cosine:.4f}"]


def score(result: dict, truth: list[str | None]) -> np.ndarray:
    """Compare answers with labels, where these are classes; returns the confusion matrix [C, C], true classes in rows.

    Macro-F1 is the mean over the classes that some piece has or is given. Raises InputError if no label is a class.
    """
    classes, answers = result["classes"], result["answers"]
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    for given, label in zip(answers, truth, strict=True):
        given["true"] = label
        if label in classes:
            confusion[classes.index(label), classes.index(given["label"])] += 1
    if not confusion.any():
        raise InputError(f"no piece has a label that is one of the classes: {', '.join(classes)}")
    result["scores"] = labels.scores(confusion) | {"pieces": int(confusion.sum())}
    result["confusion"] = confusion.tolist()
    return confusion


# --- the command ------------------------------------------------------------------------------------------------------


def show(name: str, result: dict) -> None:
    """Print the answers to a question, or how many of them are right, and name the pieces that no label is known of."""
    if "scores" not in result:
        for given in result["answers"]:
            line = f"{name}  {given['probability']:.4f}  {given['margin']:.4f}  {given['label']}  {given['name']}"
            print(files.printable(line))
        counts = ", ".join(f"{label} {count}" for label, count in result["counts"].items())
        print(files.printable(f"{name}: {counts}"))
        return
    form = "{pieces} pieces: accuracy {accuracy:.4f}, macro-F1 {macro_f1:.4f} (largest class: {majority:.4f})"
    print(files.printable(f"{name}: {form.format(**result['scores'])}"))
    without = [given["name"] for given in result["answers"] if given["true"] is None]
    features.report(f"have no label for {name}", without)
    others = [given for given in result["answers"] if given["true"] not in (None, *result["classes"])]
    features.report(f"have a label that is no class of {name}", [f"{one['name']}: {one['true']}" for one in others])


def write_csv(path: Path, results: dict[str, dict]) -> None:
    """Write a row for each question and piece."""
    columns = ["name", "question", "label", "probability", "margin"]
    with files.atomic_write(path, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        for question, result in results.items():
            writer.writerows(given | {"question": question} for given in result["answers"])


def classify(args: argparse.Namespace) -> int:
    questions = read_questions(args.classes, args.template)
    if args.confusion and not args.labels:
        raise InputError("--confusion compares the answers with labels: add --labels")
    if args.labels and len(args.labels) != len(questions):
        many = f"{files.counted(len(args.labels), 'files of labels')} for {files.counted(len(questions), 'questions')}"
        raise InputError(f"{many}: name one for each ({', '.join(questions)})")
    known = [labels.from_csv(path) for path in args.labels]
    if args.download:
        published.provide(config.resolve(config.CLAMP2_WEIGHTS_PATH), download=True)
    music = semantic_search.read_folder(args.music)
    results = {}
    for number, (name, question) in enumerate(questions.items()):
        classes = Features(list(question), embed(question), made_with={str(args.classes): cache.made_with()})
        if number == 0:
            features.require_alike(args.classes, classes, args.music, music)
        results[name] = answer(music, classes, args.temperature)
        if known:
            truth = labels.assign([(args.music, piece) for piece in music.names], known[number])
            if not any(truth):
                raise InputError(f"{args.labels[number]}: names no piece of {args.music}, such as {music.names[0]}")
            confusion = score(results[name], truth)
            if args.confusion:
                import plot

                end = f"_{name}" if len(questions) > 1 else ""
                plot.confusion(confusion, classes.names, args.confusion.with_stem(args.confusion.stem + end))
        show(name, results[name])
    if args.csv:
        write_csv(args.csv, results)
    in_doubt = doubts_of_music(music.matrix)
    in_doubt += [f"{name}: {doubt}" for name, result in results.items() for doubt in result["doubts"]]
    content = {"temperature": args.temperature, "doubts": in_doubt, "questions": results}
    status = semantic_search.finish(args, content, {str(args.music): music})
    why = "signs that the answers mean nothing (collapsed or wrong weights? sentences or pieces that are alike?)"
    files.name_all(why, in_doubt)
    return 1 if in_doubt else status


def template(text: str) -> str:
    if "{}" not in text:
        raise argparse.ArgumentTypeError(f"{text}: has no {{}}, where the sentences of a class are put")
    return text


def get_args_parser() -> argparse.ArgumentParser:
    parser = command_line.summarized(__doc__)
    parser.set_defaults(run=classify)
    parser.add_argument("music", metavar="MUSIC", type=Path, help="a folder of music or of features, or one file")
    parser.add_argument("--classes", type=Path, required=True, metavar="FILE", help="the questions, see below (.json)")
    parser.add_argument("--template", type=template, default="{}", metavar="TEXT", help="put each sentence in its {}")
    about = f"of the softmax; the lower, the surer (default: {TEMPERATURE})"
    parser.add_argument("--temperature", type=command_line.positive, default=TEMPERATURE, metavar="X", help=about)
    about = "file,label; one file for each question"
    parser.add_argument("--labels", type=Path, nargs="+", default=[], metavar="CSV", help=about)
    about = "draw the confusion matrix there (.png, .svg); of several questions, FILE_QUESTION"
    parser.add_argument("--confusion", type=command_line.picture, metavar="FILE", help=about)
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write a row for each question and piece there")
    about = "write answers, scores, doubts, and every name left out there"
    parser.add_argument("--json", type=Path, metavar="FILE", help=about)
    about = "download the published weights to CLAMP2_WEIGHTS_PATH if none are there"
    parser.add_argument("--download", action="store_true", help=about)
    return parser


def main(argv: list[str] | None = None) -> int:
    return files.run_command(get_args_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
