"""Every hyperparameter and path of the two trainings and of extraction. Edit it to change a run.

To leave this file as it is, name another one in the environment: `CLAMP2_CONFIG=/path/to/my_run.py python train_m3.py`.
That file holds plain assignments (`M3_BATCH_SIZE = 8`) of names defined here, with values of the same type.

Relative paths, here and there, are relative to the folder of this file, so that a script runs from anywhere.
"""

import ast
import difflib
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from files import InputError, tell_mistake

# --- data -----------------------------------------------------------------------------------------------------------
EVAL_SPLIT = 0.01  # share of the training data held out for evaluation where no evaluation data is given
TRAIN_FOLDERS = ["<YOUR_TRAINING_DATA_FOLDER>"]  # M3: folders of .abc (interleaved) and .mtf files, subfolders included
EVAL_FOLDERS: list[str] = []  # M3: evaluation data; empty: EVAL_SPLIT of the training data
TRAIN_JSONL = "<YOUR_TRAINING_DATA.jsonl>"  # CLaMP 2: an object a line; its `filepaths` are relative to its folder
EVAL_JSONL = ""  # CLaMP 2: evaluation data; empty: EVAL_SPLIT of the training data
NUM_WORKERS = -1  # processes per rank that read and augment; 0: the rank itself; -1: as many as it has cores to spare,
# up to 16. Results do not depend on it

# --- M3 (paper, section 3.2) ----------------------------------------------------------------------------------------
PATCH_SIZE = 64  # characters in a patch
PATCH_LENGTH = 512  # patches in a segment
PATCH_NUM_LAYERS = 12  # layers of the patch encoder
TOKEN_NUM_LAYERS = 3  # layers of the token decoder
M3_HIDDEN_SIZE = 768  # of both; a multiple of 64, the size of an attention head
M3_NUM_EPOCH = 100
M3_LEARNING_RATE = 1e-4
M3_BATCH_SIZE = 16  # pieces per process (GPU) and step
M3_MASK_RATIO = 0.45  # share of a piece's patches that the decoder must restore
M3_DETERMINISTIC = True  # seed 0 and deterministic cuDNN; False: a seed drawn at the start, named in the log
M3_WANDB_LOG = False  # True: wandb, whatever LOGGER says
M3_LOAD_CKPT = True  # continue from latest_*, or else start from M3_WEIGHTS_PATH, where they exist

# --- CLaMP 2 (paper, section 3.3) -----------------------------------------------------------------------------------
CLAMP2_HIDDEN_SIZE = 768  # width of the space that text and music share
TEXT_MODEL_NAME = "FacebookAI/xlm-roberta-base"  # a name on the hub, or a folder that `from_pretrained` takes
CLAMP2_NUM_EPOCH = 100
CLAMP2_LEARNING_RATE = 5e-5
CLAMP2_BATCH_SIZE = 128  # pairs per process (GPU) and step; every pair of all processes is a negative of every other
CLAMP2_MICRO_BATCH = 0  # pairs per forward pass; the gradient is that of the whole batch. 0: the batch in one pass
LOGIT_SCALE = 1  # factor on the dot products of the contrastive loss
MAX_TEXT_LENGTH = 128  # tokens of a text
TEXT_DROPOUT = True  # train on random metadata lines and summaries; False: on the English summary
CLAMP2_DETERMINISTIC = True
CLAMP2_LOAD_M3 = True  # start the music encoder from M3_WEIGHTS_PATH, if they are there
CLAMP2_WANDB_LOG = False  # as M3_WANDB_LOG
CLAMP2_LOAD_CKPT = True  # continue from latest_*, or else start from CLAMP2_WEIGHTS_PATH, where they exist

# --- both -----------------------------------------------------------------------------------------------------------
WARMUP_STEPS = 1000  # the learning rate rises linearly over these, then stays
PRECISION = "auto"  # of training: "bfloat16" or "float16" on a GPU that has it (float16 with a scaler), else "float32"
MAX_GRAD_NORM = 0.0  # gradients are scaled down to this norm; 0: they are not, as in the published training
SAVE_EVERY_STEPS = 0  # save latest_* every so many steps too; 0: after every epoch only
EXTRACT_PRECISION = "float32"  # of extraction; "bfloat16" is several times faster, cosine to float32 above 0.999
KEEP_UNIT_LENGTH = True  # CLaMP 2's features: read the header line `L:1/8`, as the published extract_clamp2.py does,
# though neither training reads it. False, for weights trained here, leaves it out. M3 and CLaMP 3 never read it.
EXTRACT_BATCH_TOKENS = -1  # patches or text tokens in a forward pass of extraction; -1: 4,096, on a GPU 32,768
LOGGER = (
    "none"  # where a training's curves go beside its log: "tensorboard" or "wandb" (each a pip install), or nowhere
)
WANDB_KEY = "<YOUR_WANDB_KEY>"  # not needed after `wandb login`, nor with WANDB_MODE=offline in the environment
FEATURE_CACHE = "~/.cache/clamp2"  # where search keeps the features of what it has read; may be removed at any time

_FOLDER = Path(__file__).resolve().parent
_DERIVED = ("M3_WEIGHTS_PATH", "M3_LOGS_PATH", "CLAMP2_WEIGHTS_PATH", "CLAMP2_LOGS_PATH")


def _stop(where: object, problem: str) -> NoReturn:
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        from processes import Processes  # which imports torch

        sys.exit(Processes().report(InputError(f"{where}: {problem}")))
    sys.exit(tell_mistake(f"{where}: {problem}"))


def _apply_overrides(names: dict, file: Path) -> None:
    """Sets the names that `file` assigns. A user's mistake ends the program with one line that names it."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except OSError as error:
        _stop(file, f"CLAMP2_CONFIG names a file that cannot be read: {error.strerror}")
    except SyntaxError as error:
        _stop(f"{file}, line {error.lineno or 0}", f"not Python: {error.msg}")
    except ValueError as error:  # bytes that are not UTF-8, or a NUL
        _stop(file, f"not a text file: {error}")
    known = [name for name in names if name.isupper() and not name.startswith("_")]
    for node in tree.body:
        where = f"{file}, line {node.lineno}"
        match node:
            case ast.Expr(ast.Constant()):  # a docstring
                continue
            case ast.Assign([ast.Name(name)], expression) | ast.AnnAssign(ast.Name(name), _, ast.expr() as expression):
                pass
            case _:
                _stop(where, "only assignments such as `M3_BATCH_SIZE = 8` can stand here")
        if name not in known and name not in _DERIVED:
            close = difflib.get_close_matches(name, [*known, *_DERIVED], 3)
            _stop(where, f"config.py has no {name}" + (f"; did you mean {' or '.join(close)}?" if close else ""))
        try:
            value = ast.literal_eval(expression)
        except (ValueError, TypeError):
            _stop(where, f"the value of {name} is not a plain number, string, list or True/False")
        wanted = type(names.get(name, ""))
        if wanted is float and type(value) is int:
            value = float(value)
        if type(value) is not wanted:
            _stop(where, f"{name} = {value!r} is of type {type(value).__name__}, not {wanted.__name__}")
        names[name] = value


_PRECISIONS, _LOGGERS = ("auto", "float32", "bfloat16", "float16"), ("none", "tensorboard", "wandb")
_RANGES: list[tuple[str, Callable[[Any], bool], str]] = [  # constants, whether a value can be, what it must be
    ("PATCH_SIZE", lambda n: n > 1, "a number from 2"),
    ("PATCH_LENGTH PATCH_NUM_LAYERS TOKEN_NUM_LAYERS", lambda n: n > 0, "a positive number"),
    ("M3_BATCH_SIZE CLAMP2_BATCH_SIZE M3_NUM_EPOCH CLAMP2_NUM_EPOCH", lambda n: n > 0, "a positive number"),
    ("CLAMP2_HIDDEN_SIZE MAX_TEXT_LENGTH LOGIT_SCALE", lambda n: n > 0, "a positive number"),
    ("CLAMP2_MICRO_BATCH WARMUP_STEPS SAVE_EVERY_STEPS", lambda n: n >= 0, "0 or a positive number"),
    ("EXTRACT_BATCH_TOKENS", lambda n: n > 0 or n == -1, "a positive number, or -1, which chooses one"),
    ("NUM_WORKERS", lambda n: n >= -1, "a number of processes, or -1, which chooses one"),
    ("M3_HIDDEN_SIZE", lambda n: n > 0 and n % 64 == 0, "a positive multiple of 64, the size of an attention head"),
    ("M3_LEARNING_RATE CLAMP2_LEARNING_RATE", lambda x: 0 < x < math.inf, "a number above 0"),
    ("MAX_GRAD_NORM", lambda x: 0 <= x < math.inf, "a number from 0"),
    ("M3_MASK_RATIO", lambda x: 0 < x <= 1, "a share above 0 and up to 1"),
    ("EVAL_SPLIT", lambda x: 0 <= x < 1, "a share from 0 to below 1"),
    ("PRECISION EXTRACT_PRECISION", lambda text: text in _PRECISIONS, f"one of {', '.join(_PRECISIONS)}"),
    ("LOGGER", lambda text: text in _LOGGERS, f"one of {', '.join(_LOGGERS)}"),
    ("TRAIN_FOLDERS EVAL_FOLDERS", lambda names: all(type(name) is str for name in names), "a list of folders' paths"),
    ("TEXT_MODEL_NAME FEATURE_CACHE", lambda text: text.strip(), "a name"),
]  # fmt: skip


def _check_values(names: dict) -> None:
    """Ends the program, with one line, if a constant cannot have the value it has."""
    for constants, can_be, wanted in _RANGES:
        for name in constants.split():
            if not can_be(names[name]):
                _stop(source(), f"{name} = {names[name]!r} is not {wanted}")


if os.environ.get("CLAMP2_CONFIG"):
    _apply_overrides(globals(), Path(os.environ["CLAMP2_CONFIG"]).expanduser())


def resolve(path: str) -> Path:
    """The path that a constant names: relative ones are relative to the folder of config.py."""
    return _FOLDER / Path(path).expanduser()


def source() -> str:
    """Where a user sets a constant: this file, or the one that CLAMP2_CONFIG names."""
    return os.environ.get("CLAMP2_CONFIG") or str(_FOLDER / "config.py")


_check_values(globals())


def text_model() -> str:
    """TEXT_MODEL_NAME as `from_pretrained` takes it: the path of a folder, where there is one, or a hub name."""
    folder = resolve(TEXT_MODEL_NAME)
    return str(folder) if folder.is_dir() else TEXT_MODEL_NAME


# The names of weight files are part of the published format. A text model in a folder gives the folder's name only.
_text_name = resolve(TEXT_MODEL_NAME).name if resolve(TEXT_MODEL_NAME).is_dir() else TEXT_MODEL_NAME.replace("/", "_")
M3_WEIGHTS_PATH = globals().get("M3_WEIGHTS_PATH") or (
    f"weights_m3_p_size_{PATCH_SIZE}_p_length_{PATCH_LENGTH}_t_layers_{TOKEN_NUM_LAYERS}_p_layers_{PATCH_NUM_LAYERS}"
    f"_h_size_{M3_HIDDEN_SIZE}_lr_{M3_LEARNING_RATE}_batch_{M3_BATCH_SIZE}_mask_{M3_MASK_RATIO}.pth"
)
CLAMP2_WEIGHTS_PATH = globals().get("CLAMP2_WEIGHTS_PATH") or (
    f"weights_clamp2_h_size_{CLAMP2_HIDDEN_SIZE}_lr_{CLAMP2_LEARNING_RATE}_batch_{CLAMP2_BATCH_SIZE}"
    f"_scale_{LOGIT_SCALE}_t_length_{MAX_TEXT_LENGTH}_t_model_{_text_name}"
    f"_t_dropout_{TEXT_DROPOUT}_m3_{CLAMP2_LOAD_M3}.pth"
)


def _logs_path(weights_path: str) -> str:
    path = Path(weights_path)
    return str(path.with_name(path.name.replace("weights", "logs")).with_suffix(".txt"))


M3_LOGS_PATH = globals().get("M3_LOGS_PATH") or _logs_path(M3_WEIGHTS_PATH)
CLAMP2_LOGS_PATH = globals().get("CLAMP2_LOGS_PATH") or _logs_path(CLAMP2_WEIGHTS_PATH)
