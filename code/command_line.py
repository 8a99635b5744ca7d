"""Argument parsers of scripts whose imports take seconds: they parse first, so that `--help` comes at once."""

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

M3_SUFFIXES = (".abc", ".mtf")  # of the extractors' input
CLAMP2_SUFFIXES = (*M3_SUFFIXES, ".txt")
Run = Callable[[argparse.Namespace], int]
PROBE = {"seed": 0, "batch_size": 32, "learning_rate": 1e-3, "epochs": 100, "patience": 10}
PUBLISHED_PROBE = {"seed": 42, "batch_size": 1, "learning_rate": 1e-5, "epochs": 1000, "patience": 1000}
NO_MORE = "What the launcher prints below means no more"  # 35 lines, and exit status 1, for any status but 0


def has_launcher() -> bool:
    """Whether torchrun or `accelerate launch` started this process, and prints a traceback if it fails."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" or "ACCELERATE_MIXED_PRECISION" in os.environ


def begin(parser: argparse.ArgumentParser | None = None) -> None:
    """Check the arguments, and let Ctrl-C end the program in one line while its modules are imported."""
    if parser:
        parser.parse_args()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a program under nohup ignores it
        signal.signal(signal.SIGINT, _end)


def imported() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: object) -> None:
    if os.environ.get("RANK", "0") == "0":
        note = f". {NO_MORE}" if has_launcher() else ""
        print(f"interrupted before anything was begun{note}", file=sys.stderr, flush=True)
    os._exit(130)  # an exception might be caught by the module that is being imported


def documented(doc: str) -> argparse.ArgumentParser:
    """Make a parser without arguments yet, whose `--help` shows a docstring as it is laid out."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def summarized(doc: str) -> argparse.ArgumentParser:
    """Make a parser whose `--help` shows the first line of a docstring before the options, and the rest behind them."""
    summary, _, rest = doc.partition("\n\n")
    layout = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=summary, epilog=rest, formatter_class=layout)


def extractor(doc: str, suffixes: tuple[str, ...]) -> argparse.ArgumentParser:
    parser = documented(doc)
    parser.add_argument("input_dir", type=Path, help=f"a folder of {', '.join(suffixes)} files, or one such file")
    parser.add_argument("output_dir", type=Path, help="where the features go; a second start continues there")
    parser.add_argument("--remove_orphans", action="store_true", help="remove features whose file is gone")
    parser.add_argument("--download", action="store_true", help="download the published weights if none are there")
    if ".txt" in suffixes:
        about = "one vector per file, in the space of text and music, for search; compare by cosine, its norm is not 1;"
        about += " without it, one per patch or token: for classification"
        parser.add_argument("--normalize", action="store_true", help=about)
    return parser


def converter(doc: str, convert: Run | None = None) -> argparse.ArgumentParser:
    parser = documented(doc)
    parser.add_argument("source", metavar="WEIGHTS.pth|FOLDER", type=Path, help="a checkpoint, or a folder made of one")
    parser.add_argument("target", metavar="FOLDER|WEIGHTS.pth", type=Path, help="a new folder or checkpoint file")
    parser.set_defaults(run=convert)
    return parser


def probe(doc: str, train: Run | None = None, predict: Run | None = None) -> argparse.ArgumentParser:
    parser = documented(doc)
    commands = parser.add_subparsers(required=True, metavar="{train,predict}")

    def setting(sub: argparse.ArgumentParser, name: str, kind: Callable, metavar: str, about: str) -> None:
        """Add an option that `train --published` has another default of: None stands for either."""
        about += f" (default: {PROBE[name]:g}, published: {PUBLISHED_PROBE[name]:g})"
        sub.add_argument(f"--{name}", type=kind, metavar=metavar, help=about)

    def command(name: str, run: Run | None, about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about)
        sub.set_defaults(run=run)
        if name == "predict":
            sub.add_argument("model", metavar="MODEL", type=Path, help="a file that `train --model` wrote")
        sub.add_argument("features", metavar="FEATURES", type=Path, nargs="+", help="folders of .npy feature files")
        sub.add_argument("--labels", metavar="CSV", type=Path, help="file,label; default: names up to the first _")
        sub.add_argument("--json", metavar="FILE", type=Path, help="write scores, predictions and files left out")
        sub.add_argument("--confusion", metavar="FILE", type=picture, help="draw the confusion matrix (.png, .svg)")
        about = "files whose names agree in its first group, the segments of a song, say, count as one piece"
        sub.add_argument("--groups", metavar="REGEX", type=pattern, help=about)
        setting(sub, "batch_size", at_least(1), "N", "files a step")
        return sub

    sub = command("train", train, "train and test a probe")
    sub.add_argument("--model", metavar="FILE", type=Path, help="save the model and its labels there")
    splits = sub.add_mutually_exclusive_group()
    splits.add_argument("--folds", type=at_least(2), default=0, metavar="K", help="test by K-fold cross-validation")
    about = "split by the subfolders of FEATURES: train, test and, if it is there, validation"
    splits.add_argument("--split", action="store_true", help=about)
    about = "the published script's protocol, which is no clean test: the best epoch is chosen on the test set"
    splits.add_argument("--published", action="store_true", help=about)
    sub.add_argument("--balanced", action="store_true", help="weight the loss so that every class counts the same")
    sub.add_argument("--hidden_size", type=at_least(1), metavar="N", help="default: the width of the features")
    setting(sub, "learning_rate", positive, "X", "of AdamW")
    setting(sub, "epochs", at_least(1), "N", "at most")
    setting(sub, "patience", at_least(1), "N", "stop N epochs after the best")
    setting(sub, "seed", at_least(0), "N", "of the splits and the model")
    sub = command("predict", predict, "predict the label of each feature file")
    sub.add_argument("--evaluate", action="store_true", help="compare with the labels of the files instead of listing")
    return parser


def at_least(smallest: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdigit() or int(text) < smallest:
            raise argparse.ArgumentTypeError(f"{text}: not a number from {smallest}")
        return int(text)

    return number


def positive(text: str) -> float:
    number = float(text)  # argparse reports a ValueError
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: not a positive number")
    return number


def pattern(text: str) -> re.Pattern:
    try:
        compiled = re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text}: not a regular expression ({error})") from error
    if not compiled.groups:
        raise argparse.ArgumentTypeError(f"{text}: has no group, such as (.*), for the name of the song")
    return compiled


def picture(text: str) -> Path:
    if Path(text).suffix.lower() not in (".png", ".svg"):
        raise argparse.ArgumentTypeError(f"{text}: a picture ends in .png or .svg")
    return Path(text)
