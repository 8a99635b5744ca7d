"""Every hyperparameter and path of the two trainings and of extraction. Edit it to change a run.

To leave this file as it is, name another one in the environment: `CLAMP2_CONFIG=/path/to/my_run.py python train_m3.py`.
That file holds plain assignments (`M3_BATCH_SIZE = 8`) of names defined here, with values of the same type.

Relative paths, here and there, are relative to the folder of this file, so that a script runs from anywhere.
"""

# --- data -----------------------------------------------------------------------------------------------------------
TRAIN_FOLDERS = ["<YOUR_TRAINING_DATA_FOLDER>"]  # M3: folders of .abc (interleaved) and .mtf files, subfolders included
EVAL_FOLDERS: list[str] = []  # M3: evaluation data; empty: EVAL_SPLIT of the training data
TRAIN_JSONL = "<YOUR_TRAINING_DATA.jsonl>"  # CLaMP 2: an object a line; its `filepaths` are relative to its folder
EVAL_JSONL = ""  # CLaMP 2: evaluation data; empty: EVAL_SPLIT of the training data
EVAL_SPLIT = 0.01  # share of the training data held out for evaluation where no evaluation data is given
NUM_WORKERS = -1  # processes per rank that read and augment; 0: the rank itself; -1: one a spare core, up to 16

# --- M3 (paper, section 3.2) ----------------------------------------------------------------------------------------
PATCH_SIZE = 64  # characters in a patch
PATCH_LENGTH = 512  # patches in a segment
PATCH_NUM_LAYERS = 12  # layers of the patch encoder
TOKEN_NUM_LAYERS = 3  # layers of the token decoder
M3_HIDDEN_SIZE = 768  # of both; a multiple of 64, the size of an attention head
M3_NUM_EPOCH = 100
M3_LEARNING_RATE = 1e-4
M3_BATCH_SIZE = 16  # pieces per process (GPU) and step
M3_MASK_RATIO = 0.45  # share of a piece's patches that are selected, for the decoder to restore
M3_MASKED_SHARE = 0.8  # share of the training pieces whose selected patches are masked
M3_SHUFFLED_SHARE = 0.1  # share whose selected patches have their characters shuffled; those of the rest are kept
M3_DETERMINISTIC = True  # seed 0 and deterministic cuDNN; False: a seed drawn at the start, named in the log
M3_WANDB_LOG = False  # True: wandb, whatever LOGGER is
M3_LOAD_CKPT = True  # continue from latest_*, or else start from M3_WEIGHTS_PATH, where they exist
M3_WEIGHTS_PATH = ""  # empty: named after the sizes above, as the published weights are
M3_LOGS_PATH = ""  # empty: beside the weights, with "logs" for "weights"

# --- CLaMP 2 (paper, section 3.3) -----------------------------------------------------------------------------------
CLAMP2_HIDDEN_SIZE = 768  # width of the space that text and music share
TEXT_MODEL_NAME = "FacebookAI/xlm-roberta-base"  # a name on the hub, or a folder that `from_pretrained` takes
CLAMP2_NUM_EPOCH = 100
CLAMP2_LEARNING_RATE = 5e-5
CLAMP2_BATCH_SIZE = 128  # pairs per process (GPU) and step; every pair of all processes is a negative of every other
CLAMP2_FREEZE = ""  # "text" or "music": this tower and its projection stay as they are, without dropout; cheaper, too
CLAMP2_MICRO_BATCH = 0  # pairs per forward pass; the gradient is that of the whole batch. 0: the batch in one pass
LOGIT_SCALE = 1  # factor on the dot products of the contrastive loss
MAX_TEXT_LENGTH = 128  # tokens of a text
TEXT_DROPOUT = True  # train on random metadata lines and summaries; False: on the English summary
METADATA_SHARE = 0.5  # with TEXT_DROPOUT: share of the texts that are metadata lines, not a summary
LINE_SHARE = 0.5  # with TEXT_DROPOUT: share of the metadata lines that are kept
REMOVE_INSTRUMENTS = 0.9  # share of the training pieces that lose the names or programs of their instruments
CLAMP2_DETERMINISTIC = True
CLAMP2_LOAD_M3 = True  # start the music encoder from M3_WEIGHTS_PATH, if they are there
CLAMP2_WANDB_LOG = False  # as M3_WANDB_LOG
CLAMP2_LOAD_CKPT = True  # continue from latest_*, or else start from CLAMP2_WEIGHTS_PATH, where they exist
CLAMP2_WEIGHTS_PATH = ""  # empty: named after the sizes above, as the published weights are
CLAMP2_LOGS_PATH = ""  # empty: beside the weights, with "logs" for "weights"

# --- both -----------------------------------------------------------------------------------------------------------
WARMUP_STEPS = 1000  # the learning rate rises linearly over these, then stays
PRECISION = "auto"  # of training: "bfloat16" or "float16" on a GPU that has it (float16 with a scaler), else "float32"
MAX_GRAD_NORM = 0.0  # gradients are scaled down to this norm; 0: they are not, as in the published training
SAVE_EVERY_STEPS = 0  # save latest_* every so many steps too; 0: after every epoch only
EXTRACT_PRECISION = "float32"  # of extraction; "bfloat16" is several times faster, cosine to float32 above 0.999
EXTRACT_BATCH_TOKENS = -1  # patches or text tokens in a forward pass of extraction; -1: 4,096, on a GPU 32,768
KEEP_UNIT_LENGTH = True  # CLaMP 2's features: read the header line `L:1/8`, as the published extract_clamp2.py does,
# though neither training reads it. False, for weights trained here, leaves it out. M3 and CLaMP 3 never read it.
LOGGER = "none"  # where the curves of a training go beside its log: "tensorboard", "wandb" (pip install them) or "none"
WANDB_KEY = "<YOUR_WANDB_KEY>"  # not needed after `wandb login`, nor with WANDB_MODE=offline in the environment
FEATURE_CACHE = "~/.cache/clamp2"  # where search keeps the features of what it has read; may be removed at any time

# --- nothing to edit below ------------------------------------------------------------------------------------------
import ast
import difflib
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from files import InputError, print_error


def resolve(path: str) -> Path:
    """Resolve the path that a constant names, from the folder of this file."""
    return Path(__file__).resolve().parent / Path(path).expanduser()


def source() -> str:
    """Name the file in which the user sets constants: this one, or that of CLAMP2_CONFIG."""
    return os.environ.get("CLAMP2_CONFIG") or str(resolve("config.py"))


def text_model() -> str:
    """Return TEXT_MODEL_NAME for `from_pretrained`: the path of a folder, if there is one, or a hub name."""
    folder = resolve(TEXT_MODEL_NAME)
    return str(folder) if folder.is_dir() else TEXT_MODEL_NAME


def _stop(problem: str) -> NoReturn:
    """End the program with a one-line error, from one process."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        from processes import Processes  # which imports torch

        sys.exit(Processes().report(InputError(problem)))
    sys.exit(print_error(problem))


def _override(names: dict, file: Path) -> None:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except OSError as error:
        _stop(f"{file}: CLAMP2_CONFIG names a file that cannot be read: {error.strerror}")
    except SyntaxError as error:
        _stop(f"{file}, line {error.lineno or 0}: not Python: {error.msg}")
    except ValueError as error:  # bytes that are not UTF-8, or a NUL
        _stop(f"{file}: not a text file: {error}")
    for node in tree.body:
        where = f"{file}, line {node.lineno}"
        match node:
            case ast.Expr(ast.Constant()):  # a docstring
                continue
            case ast.Assign([ast.Name(name)], expression) | ast.AnnAssign(ast.Name(name), _, ast.expr() as expression):
                pass
            case _:
                _stop(f"{where}: only assignments such as `M3_BATCH_SIZE = 8` are allowed")
        if not name.isupper() or name.startswith("_") or name not in names:
            close = difflib.get_close_matches(name, filter(str.isupper, names), 3)
            _stop(f"{where}: config.py has no {name}" + (f"; did you mean {' or '.join(close)}?" if close else ""))
        try:
            value = ast.literal_eval(expression)
        except (ValueError, TypeError):
            _stop(f"{where}: the value of {name} is not a plain number, string, list or True/False")
        wanted = type(names[name])
        if wanted is float and type(value) is int:
            value = float(value)
        if type(value) is not wanted:
            _stop(f"{where}: {name} = {value!r} is of type {type(value).__name__}, not {wanted.__name__}")
        names[name] = value


_TOWERS = ("text", "music")
_PRECISIONS, _LOGGERS = ("auto", "float32", "bfloat16", "float16"), ("none", "tensorboard", "wandb")
_RANGES: list[tuple[str, Callable[[Any], bool], str]] = [  # constants, whether a value is allowed, in words
    ("PATCH_SIZE", lambda n: n > 1, "a number from 2"),
    ("PATCH_LENGTH PATCH_NUM_LAYERS TOKEN_NUM_LAYERS CLAMP2_HIDDEN_SIZE M3_BATCH_SIZE CLAMP2_BATCH_SIZE M3_NUM_EPOCH"
     " CLAMP2_NUM_EPOCH M3_LEARNING_RATE CLAMP2_LEARNING_RATE MAX_TEXT_LENGTH LOGIT_SCALE",
     lambda x: 0 < x < math.inf, "a positive number"),
    ("CLAMP2_MICRO_BATCH WARMUP_STEPS SAVE_EVERY_STEPS MAX_GRAD_NORM",
     lambda x: 0 <= x < math.inf, "0 or a positive number"),
    ("EXTRACT_BATCH_TOKENS", lambda n: n > 0 or n == -1, "a positive number, or -1, which chooses one"),
    ("NUM_WORKERS", lambda n: n >= -1, "a number of processes, or -1, which chooses one"),
    ("M3_HIDDEN_SIZE", lambda n: n > 0 and n % 64 == 0, "a positive multiple of 64, the size of an attention head"),
    ("M3_MASK_RATIO", lambda x: 0 < x <= 1, "a share above 0 and up to 1"),
    ("EVAL_SPLIT", lambda x: 0 <= x < 1, "a share from 0 to below 1"),
    ("M3_MASKED_SHARE METADATA_SHARE LINE_SHARE REMOVE_INSTRUMENTS",
     lambda x: 0 <= x <= 1, "a share from 0 to 1"),
    ("M3_SHUFFLED_SHARE", lambda x: x >= 0 and x + M3_MASKED_SHARE <= 1,
     "a share from 0 to 1 - M3_MASKED_SHARE"),
    ("CLAMP2_FREEZE", lambda text: text in ("", *_TOWERS), f"\"\" or one of {', '.join(_TOWERS)}"),
    ("PRECISION EXTRACT_PRECISION", lambda text: text in _PRECISIONS, f"one of {', '.join(_PRECISIONS)}"),
    ("LOGGER", lambda text: text in _LOGGERS, f"one of {', '.join(_LOGGERS)}"),
    ("TRAIN_FOLDERS EVAL_FOLDERS", lambda names: all(type(name) is str for name in names), "a list of folders' paths"),
    ("TEXT_MODEL_NAME FEATURE_CACHE", lambda text: text.strip(), "a name"),
]  # fmt: skip


def _check(names: dict) -> None:
    """End the program if a constant is out of its range."""
    for constants, is_allowed, wanted in _RANGES:
        for name in constants.split():
            if not is_allowed(names[name]):
                _stop(f"{source()}: {name} = {names[name]!r} is not {wanted}")


if os.environ.get("CLAMP2_CONFIG"):
    _override(globals(), Path(source()).expanduser())
_check(globals())

# The names of weight files are part of the published format. A text model in a folder gives the folder's name only.
_text_name = Path(text_model()).name if resolve(TEXT_MODEL_NAME).is_dir() else TEXT_MODEL_NAME.replace("/", "_")
M3_WEIGHTS_PATH = M3_WEIGHTS_PATH or (
    f"weights_m3_p_size_{PATCH_SIZE}_p_length_{PATCH_LENGTH}_t_layers_{TOKEN_NUM_LAYERS}_p_layers_{PATCH_NUM_LAYERS}"
    f"_h_size_{M3_HIDDEN_SIZE}_lr_{M3_LEARNING_RATE}_batch_{M3_BATCH_SIZE}_mask_{M3_MASK_RATIO}.pth"
)
CLAMP2_WEIGHTS_PATH = CLAMP2_WEIGHTS_PATH or (
    f"weights_clamp2_h_size_{CLAMP2_HIDDEN_SIZE}_lr_{CLAMP2_LEARNING_RATE}_batch_{CLAMP2_BATCH_SIZE}"
    f"_scale_{LOGIT_SCALE}_t_length_{MAX_TEXT_LENGTH}_t_model_{_text_name}"
    f"_t_dropout_{TEXT_DROPOUT}_m3_{CLAMP2_LOAD_M3}.pth"
)


def _logs_path(weights_path: str) -> str:
    path = Path(weights_path)
    return str(path.with_name(path.name.replace("weights", "logs")).with_suffix(".txt"))


M3_LOGS_PATH = M3_LOGS_PATH or _logs_path(M3_WEIGHTS_PATH)
CLAMP2_LOGS_PATH = CLAMP2_LOGS_PATH or _logs_path(CLAMP2_WEIGHTS_PATH)
