"""What a user can set, and how mistakes in it are told."""

import math
import subprocess
import sys

import pytest

import config
from helpers import CODE, KIT, ROOT, run, run_script

SHOW = f"""import sys

sys.path.insert(0, {str(CODE)!r})
import config

print(*(getattr(config, name) for name in sys.argv[1:]), sep="\\n")
"""


@pytest.fixture
def show(tmp_path):
    """Prints constants, in a process of its own that reads config.py anew."""
    (tmp_path / "show.py").write_text(SHOW)
    return lambda names, path=None: run_script(tmp_path / "show.py", *names.split(), config=path)


def test_published_names_and_values(show):
    values = {
        "EVAL_SPLIT": 0.01, "PATCH_SIZE": 64, "PATCH_LENGTH": 512, "PATCH_NUM_LAYERS": 12, "TOKEN_NUM_LAYERS": 3,
        "M3_HIDDEN_SIZE": 768, "M3_NUM_EPOCH": 100, "M3_LEARNING_RATE": 1e-4, "M3_BATCH_SIZE": 16, "M3_MASK_RATIO": 0.45,
        "CLAMP2_HIDDEN_SIZE": 768, "TEXT_MODEL_NAME": "FacebookAI/xlm-roberta-base", "CLAMP2_NUM_EPOCH": 100,
        "CLAMP2_LEARNING_RATE": 5e-5, "CLAMP2_BATCH_SIZE": 128, "LOGIT_SCALE": 1, "MAX_TEXT_LENGTH": 128,
        "M3_WANDB_LOG": False, "CLAMP2_WANDB_LOG": False,
        "M3_WEIGHTS_PATH": "weights_m3_p_size_64_p_length_512_t_layers_3_p_layers_12_h_size_768_lr_0.0001_batch_16_mask_0.45.pth",
        "CLAMP2_WEIGHTS_PATH": "weights_clamp2_h_size_768_lr_5e-05_batch_128_scale_1_t_length_128"
        "_t_model_FacebookAI_xlm-roberta-base_t_dropout_True_m3_True.pth",
        "M3_LOGS_PATH": "logs_m3_p_size_64_p_length_512_t_layers_3_p_layers_12_h_size_768_lr_0.0001_batch_16_mask_0.45.txt",
    }  # fmt: skip
    assert show(" ".join(values)).stdout.splitlines() == [str(value) for value in values.values()]
    others = (
        "WANDB_KEY TRAIN_FOLDERS EVAL_FOLDERS TRAIN_JSONL EVAL_JSONL M3_DETERMINISTIC M3_LOAD_CKPT TEXT_DROPOUT"
        " CLAMP2_DETERMINISTIC CLAMP2_LOAD_M3 CLAMP2_LOAD_CKPT CLAMP2_LOGS_PATH"
    )
    assert len(show(others).stdout.splitlines()) == len(others.split())


def test_overrides(show, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        f'"""Mine."""\nM3_BATCH_SIZE: int = 8\nM3_LEARNING_RATE = 1\nTEXT_MODEL_NAME = "{KIT / "tiny-xlmr"}"\n'
    )
    printed = show("M3_BATCH_SIZE M3_LEARNING_RATE M3_WEIGHTS_PATH CLAMP2_WEIGHTS_PATH", path).stdout.splitlines()
    assert printed[:2] == ["8", "1.0"]
    assert "_lr_1.0_batch_8_" in printed[2] and "_t_model_tiny-xlmr_" in printed[3]


def test_a_derived_name_can_be_set(show, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text('M3_WEIGHTS_PATH = "/w/weights_mine.pth"\n')
    assert show("M3_WEIGHTS_PATH M3_LOGS_PATH", path).stdout.splitlines() == ["/w/weights_mine.pth", "/w/logs_mine.txt"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("M3_BATCH = 8\n", "line 1: config.py has no M3_BATCH; did you mean M3_BATCH_SIZE"),
        ("\nM3_BATCH_SIZE = '8'\n", "line 2: M3_BATCH_SIZE = '8' is of type str, not int"),
        ("M3_DETERMINISTIC = 1\n", "line 1: M3_DETERMINISTIC = 1 is of type int, not bool"),
        ("M3_BATCH_SIZE = True\n", "M3_BATCH_SIZE = True is of type bool, not int"),
        ("M3_BATCH_SIZE = 4 * 2\n", "the value of M3_BATCH_SIZE is not a plain number"),
        ("import os\n", "line 1: only assignments"),
        ("M3_BATCH_SIZE += 1\n", "line 1: only assignments"),
        ("M3_BATCH_SIZE: int\n", "line 1: only assignments"),
        ("M3_BATCH_SIZE = 0\n", "M3_BATCH_SIZE = 0 is not a positive number"),
        ("EXTRACT_BATCH_TOKENS = 0\n", "EXTRACT_BATCH_TOKENS = 0 is not a positive number, or -1"),
        ("NUM_WORKERS = -2\n", "NUM_WORKERS = -2 is not a number of processes, or -1"),
        ("M3_HIDDEN_SIZE = 100\n", "M3_HIDDEN_SIZE = 100 is not a positive multiple of 64"),
        ("M3_MASK_RATIO = 45.0\n", "M3_MASK_RATIO = 45.0 is not a share above 0"),
        ("EVAL_SPLIT = 1\n", "EVAL_SPLIT = 1.0 is not a share from 0"),
        ("LOGGER = 'stdout'\n", "LOGGER = 'stdout' is not one of none, tensorboard, wandb"),
        ("M3_BATCH_SIZE = = 3\n", "line 1: not Python"),
        ("_RANGES = []\n", "config.py has no _RANGES"),
        ("source = 'x'\n", "config.py has no source"),
    ],
)
def test_mistakes_are_told_in_one_line(show, tmp_path, text, problem):
    path = tmp_path / "mine.py"
    path.write_text(text)
    result = show("M3_BATCH_SIZE", path)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {path}") and problem in result.stderr and result.stderr.count("\n") == 1


COUNT, FROM_0, NUMBER = [[0, -1], [1, 10**6]], [[-1], [0, 1]], [[0.0, -1e-4, math.inf], [1e-30, 1e30]]
SHARE = [[-0.1, 1.1], [0.0, 1.0]]
RANGES = {  # constant -> values that cannot be, values that can
    **dict.fromkeys(("PATCH_LENGTH", "PATCH_NUM_LAYERS", "TOKEN_NUM_LAYERS", "MAX_TEXT_LENGTH"), COUNT),
    **dict.fromkeys(("CLAMP2_HIDDEN_SIZE", "LOGIT_SCALE", "M3_BATCH_SIZE", "CLAMP2_BATCH_SIZE"), COUNT),
    **dict.fromkeys(("M3_NUM_EPOCH", "CLAMP2_NUM_EPOCH"), COUNT),
    **dict.fromkeys(("WARMUP_STEPS", "SAVE_EVERY_STEPS", "CLAMP2_MICRO_BATCH"), FROM_0),
    **dict.fromkeys(("M3_LEARNING_RATE", "CLAMP2_LEARNING_RATE"), NUMBER),
    "PATCH_SIZE": [[0, 1], [2, 64]],  # of one character, the decoder would have nothing to read
    "M3_HIDDEN_SIZE": [[0, -64, 63, 65], [64, 768]],
    "EXTRACT_BATCH_TOKENS": [[-2, 0], [-1, 1]],
    "NUM_WORKERS": [[-2], [-1, 0, 1]],
    "MAX_GRAD_NORM": [[-0.1, math.inf], [0.0, 0.1]],
    "M3_MASK_RATIO": [[0.0, -0.1, 1.1], [0.1, 1.0]],
    "EVAL_SPLIT": [[-0.1, 1.0], [0.0, 0.99]],
    **dict.fromkeys(("M3_MASKED_SHARE", "REMOVE_INSTRUMENTS"), SHARE),
    **dict.fromkeys(("METADATA_SHARE", "LINE_SHARE"), SHARE),
    "M3_SHUFFLED_SHARE": [[-0.1, 0.21], [0.0, 0.2]],  # 0.8 are masked
    "PRECISION": [["float64", ""], ["auto", "float32", "bfloat16", "float16"]],
    "EXTRACT_PRECISION": [["float64", ""], ["auto", "float32", "bfloat16", "float16"]],
    "CLAMP2_FREEZE": [["both", " ", "Text"], ["", "text", "music"]],
    "LOGGER": [["stdout", ""], ["none", "tensorboard", "wandb"]],
    "TRAIN_FOLDERS": [[["a", 1], [["a"]]], [[], ["a"]]],
    "EVAL_FOLDERS": [[["a", 1], [["a"]]], [[], ["a"]]],
    "TEXT_MODEL_NAME": [["", " "], ["a/b"]],
    "FEATURE_CACHE": [["", " "], ["~/.cache"]],
}
FREE = {"TRAIN_JSONL", "EVAL_JSONL", "WANDB_KEY"}  # read where they are used
FREE |= {f"{name}_{what}_PATH" for name in ("M3", "CLAMP2") for what in ("WEIGHTS", "LOGS")}


def test_every_constant_has_its_range(capsys):
    constants = {name: value for name, value in vars(config).items() if name.isupper() and not name.startswith("_")}
    assert {name for name, value in constants.items() if type(value) is not bool} == RANGES.keys() | FREE
    for name, (refused, accepted) in RANGES.items():
        for value in refused:
            with pytest.raises(SystemExit, match="2"):
                config._check(constants | {name: value})
            assert capsys.readouterr().err.startswith(f"error: {config.source()}: {name} = {value!r} is not ")
        for value in accepted:
            config._check(constants | {name: value})


def test_a_missing_file(show, tmp_path):
    result = show("M3_BATCH_SIZE", tmp_path / "none.py")
    assert result.returncode == 2 and "cannot be read: No such file" in result.stderr


def test_code_is_no_package():
    """`code` is a module of the standard library; the folder must not stand in its way."""
    assert not (CODE / "__init__.py").exists()
    found = subprocess.run(
        [sys.executable, "-c", "import code; print(code.InteractiveConsole)"],
        cwd=CODE.parent,
        capture_output=True,
        text=True,
    )
    assert "InteractiveConsole" in found.stdout


HELP = """import contextlib, io, runpy, sys

for slow in ("torch", "transformers", "accelerate", "sklearn"):
    sys.modules[slow] = None  # an import of it is an error
for script in sys.argv[1:]:
    sys.path[0], sys.argv = script.rpartition("/")[0], [script, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        runpy.run_path(script, run_name="__main__")
    print(script.rpartition("/")[2], "usage: " in printed.getvalue())
"""


def test_help_does_not_wait_for_torch(tmp_path):
    (tmp_path / "help.py").write_text(HELP)
    scripts = [path for folder in ("code", "process_data") for path in (ROOT / folder).glob("*.py")]
    scripts = [path for path in scripts if '\nif __name__ == "__main__":' in path.read_text()]
    result = run(tmp_path / "help.py", *scripts)
    assert result.stderr == "" and len(scripts) >= 16
    assert result.stdout.splitlines() == [f"{path.name} True" for path in scripts]
