"""The two trainers, through their real launchers, on the golden kit."""

import importlib.util
import json
import math
import os
import re
import shutil
import signal

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

import processes
import train_clamp2
import train_m3
import training
import utils
from helpers import (
    CODE,
    KIT,
    KIT_MODEL,
    KIT_SIZES,
    ROOT,
    free_port,
    m3_configs,
    run,
    run_ranks,
    run_script,
    write_config,
)

LAUNCH = ("-m", "torch.distributed.launch", "--nproc_per_node=2", "--use_env", f"--master_port={free_port()}")
TORCHRUN = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0")
SMALL = {**KIT_SIZES, "WARMUP_STEPS": 4, "EVAL_SPLIT": 0.2}


def m3_config(folder, **changes):
    constants = {
        **SMALL,
        "TRAIN_FOLDERS": [str(KIT / "interleaved"), str(KIT / "mtf")],
        "M3_BATCH_SIZE": 4,
        "M3_NUM_EPOCH": 3,
        "M3_LEARNING_RATE": 1e-3,
        "M3_WEIGHTS_PATH": str(folder / "weights_m3.pth"),
    }
    return write_config(folder / "m3.py", **(constants | changes))


def records():
    """A training record for each piece of the kit."""
    for path in sorted([*(KIT / "interleaved").iterdir(), *(KIT / "mtf").iterdir()]):
        yield {
            "title": path.stem,
            "composer": None,
            "genres": ["Folk", "Dance"],
            "description": f"A piece named {path.stem}.\nIt is short.",
            "summary_en": f"The piece {path.stem} as {path.suffix}.",
            "summary_nen": {"language": "French", "summary": f"La pièce {path.stem}."},
            "filepaths": [f"{path.parent.name}/{path.name}"],
        }


def write_jsonl(folder, lines):
    for kind in ("interleaved", "mtf"):
        if not (folder / kind).exists():
            (folder / kind).symlink_to(KIT / kind)
    path = folder / "pieces.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def clamp2_config(folder, lines=None, **changes):
    constants = {
        **SMALL,
        "TRAIN_JSONL": str(write_jsonl(folder, lines if lines is not None else records())),
        "TEXT_MODEL_NAME": str(KIT / "tiny-xlmr"),
        "CLAMP2_BATCH_SIZE": 4,
        "CLAMP2_NUM_EPOCH": 3,
        "CLAMP2_LEARNING_RATE": 1e-3,
        "M3_WEIGHTS_PATH": KIT_MODEL["M3_WEIGHTS_PATH"],
        "CLAMP2_WEIGHTS_PATH": str(folder / "weights_clamp2.pth"),
    }
    return write_config(folder / "clamp2.py", **(constants | changes))


CONFIGS = {"m3": m3_config, "clamp2": clamp2_config}


def epochs(folder, kind):
    """The JSON lines of the log."""
    lines = (folder / f"logs_{kind}.txt").read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def state(folder, kind):
    return torch.load(folder / f"latest_weights_{kind}.pth", weights_only=True)


def assert_same(ours, theirs, where=""):
    """The same values in the same nesting, tensors bit for bit."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours:
            assert_same(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), where
    else:
        assert ours == theirs, where


def evaluated_again(folder, kind):
    """The loss of the saved weights on the pieces that were held out, one by one (M3) or pair by pair (CLaMP 2)."""
    weights = torch.load(folder / f"weights_{kind}.pth", weights_only=True)["model"]
    if kind == "m3":
        files = sorted((KIT / "interleaved").iterdir()) + sorted((KIT / "mtf").iterdir())
        model = utils.M3Model(*m3_configs())
        model.load_state_dict(weights)
        dataset = train_m3.M3Dataset([str(path) for path in utils.split_data(files, 0.2)[1]], False, 0)
        outputs = [model.eval().restore(train_m3.collate([dataset[0, i]])) for i in range(len(dataset))]
        return sum(float(out.loss * out.characters) for out in outputs) / sum(int(out.characters) for out in outputs)
    tokenizer = AutoTokenizer.from_pretrained(KIT / "tiny-xlmr")
    model = utils.CLaMP2Model.from_configs(AutoConfig.from_pretrained(KIT / "tiny-xlmr"), m3_configs()[0], 48)
    model.load_state_dict(weights)
    lines = utils.split_data(range(14), 0.2)[1]
    dataset = train_clamp2.CLaMP2Dataset(train_clamp2.Jsonl(folder / "pieces.jsonl"), lines, tokenizer, False, 0)
    make = train_clamp2.PairFeatures(model.eval())
    features = [make(train_clamp2.Pairs([dataset[0, i]])) for i in range(len(dataset))]
    text, music = (torch.cat(side) for side in zip(*features, strict=True))
    own, rows, columns = (text * music).sum(1), (text @ music.t()).logsumexp(1), (music @ text.t()).logsumexp(1)
    return float((rows + columns - 2 * own).mean() / 2)


def assert_losses(folder, kind):
    """The best evaluation loss of the log is what its weights give; new weights of M3 lose as if they guessed."""
    told = epochs(folder, kind)
    with torch.no_grad():
        assert min(record["eval_loss"] for record in told) == pytest.approx(evaluated_again(folder, kind), rel=1e-4)
    if kind == "m3":  # one of 128 characters, in steps at low rates
        assert abs(told[0]["train_loss"] - math.log(128)) < 0.15


@pytest.fixture(scope="module", params=["m3", "clamp2"])
def undisturbed(request, tmp_path_factory):
    """(kind, folder, printed) of a whole run in one process."""
    folder = tmp_path_factory.mktemp(f"undisturbed_{request.param}")
    config = CONFIGS[request.param](folder)
    result = run("-W", "error::DeprecationWarning", CODE / f"train_{request.param}.py", config=config)
    assert result.returncode == 0, result.stderr
    return request.param, folder, result


def test_a_run(undisturbed):
    kind, folder, result = undisturbed
    told = epochs(folder, kind)
    assert [record["epoch"] for record in told] == [1, 2, 3]
    assert_losses(folder, kind)
    log = (folder / f"logs_{kind}.txt").read_text()
    published = f"Epoch 1\ntrain_loss: {told[0]['train_loss']}\neval_loss: {told[0]['eval_loss']}\ntime: "
    assert published in log
    for fact in (
        r"commit +\S+",
        "device +1 x",
        "precision +float32",
        r"parameters +\d+",
        "12 for training, 2 for eval",
        "4 x 1 = 4",
    ):
        assert re.search(fact, result.stdout), fact
    assert "Warning" not in result.stderr and "warning" not in result.stderr
    checkpoint = torch.load(folder / f"weights_{kind}.pth", weights_only=True)
    assert set(checkpoint) == {"model", "optimizer", "lr_sched", "epoch", "best_epoch", "min_eval_loss"}
    best = min(told, key=lambda record: record["eval_loss"])
    assert (checkpoint["epoch"], checkpoint["min_eval_loss"]) == (best["epoch"], best["eval_loss"])
    golden = torch.load(KIT / f"weights_{kind}_kit.pth", weights_only=True)
    assert {k: v.shape for k, v in checkpoint["model"].items()} == {k: v.shape for k, v in golden["model"].items()}


def test_stopped_after_an_epoch_and_continued(undisturbed, tmp_path):
    """Bit for bit the same end, with another number of loader workers too."""
    kind, folder, _ = undisturbed
    num_epoch = f"{kind.upper()}_NUM_EPOCH"
    for changes in ({num_epoch: 1, "NUM_WORKERS": 0}, {num_epoch: 3}):
        result = run_script(CODE / f"train_{kind}.py", config=CONFIGS[kind](tmp_path, **changes))
        assert result.returncode == 0, result.stderr
    assert f"latest_weights_{kind}.pth, epoch 2, step 0" in result.stdout
    assert_same(state(tmp_path, kind), state(folder, kind))


SIGNAL_IN_STEP = """
import itertools, os, runpy, signal, sys
from torch.optim.optimizer import register_optimizer_step_post_hook

code, script, number, last = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
steps = itertools.count(1)


def stop(*_):
    if next(steps) == last:
        os.kill(os.getpid(), number)


register_optimizer_step_post_hook(stop)
sys.path.insert(0, code)
sys.argv = [f"{code}/{script}"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_with_signal(folder, kind, config, number, step):
    """A training that gets a signal in that step of all its steps."""
    (folder / "signal_in_step.py").write_text(SIGNAL_IN_STEP)
    words = (CODE, f"train_{kind}.py", int(number), step)
    return run_script(folder / "signal_in_step.py", *words, config=config)


@pytest.mark.parametrize("step", [1, 4])
def test_told_to_stop_inside_an_epoch_and_continued(tmp_path, undisturbed, step):
    """The signal comes in the first step of the first or second epoch, of three steps each."""
    kind, folder, _ = undisturbed
    config = CONFIGS[kind](tmp_path)
    result = run_with_signal(tmp_path, kind, config, signal.SIGTERM, step)
    assert result.returncode == 130, result.stderr
    # the loss of a step, and with it who was told to stop, is read one step late
    assert f"stopped in epoch {step // 3 + 1} after step 2" in result.stdout
    result = run_script(CODE / f"train_{kind}.py", config=config)
    assert result.returncode == 0, result.stderr
    assert_same(state(tmp_path, kind), state(folder, kind))
    assert [record["epoch"] for record in epochs(tmp_path, kind)] == [1, 2, 3]


@pytest.mark.parametrize("undisturbed", ["m3"], indirect=True)
def test_killed_inside_an_epoch_and_continued(tmp_path, undisturbed):
    """With SAVE_EVERY_STEPS, not even the epoch in progress is lost, nor what is in the loss so far."""
    _, folder, _ = undisturbed
    config = m3_config(tmp_path, SAVE_EVERY_STEPS=1)
    assert run_with_signal(tmp_path, "m3", config, signal.SIGKILL, 2).returncode == -signal.SIGKILL
    saved = state(tmp_path, "m3")
    assert (saved["epoch"], saved["step"]) == (1, 1)
    result = run_script(CODE / "train_m3.py", config=config)
    assert result.returncode == 0, result.stderr
    assert "latest_weights_m3.pth, epoch 1, step 1" in result.stdout
    assert_same(state(tmp_path, "m3"), state(folder, "m3"))


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    result = run_script(CODE / "train_m3.py", config=m3_config(tmp_path, M3_LEARNING_RATE=1e30))
    assert result.returncode == 2
    told = r"error: the loss is not finite \((nan|inf)\) in epoch \d, step \d; its pieces: .*/\w+\.(abc|mtf), .*"
    assert re.fullmatch(told, result.stderr.splitlines()[-1]), result.stderr


def test_a_run_of_one_step_an_epoch_can_be_stopped(tmp_path):
    config = m3_config(tmp_path, M3_BATCH_SIZE=12, M3_NUM_EPOCH=100_000)
    result = run_with_signal(tmp_path, "m3", config, signal.SIGINT, 2)
    # the loss of a step is read one step late, and each epoch has one step
    assert result.returncode == 130, result.stderr
    assert re.search(r"^stopped in epoch [23] after step 1, as asked", result.stdout, re.M), result.stdout


@pytest.mark.parametrize("undisturbed", ["clamp2"], indirect=True)
def test_what_is_in_the_weights_is_not_asked_for_again(undisturbed, tmp_path):
    """A run that continues needs neither M3's weights nor those of the text model."""
    _, folder, _ = undisturbed
    shutil.copy(folder / "latest_weights_clamp2.pth", tmp_path)
    shutil.copytree(KIT / "tiny-xlmr", tmp_path / "text", ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    config = clamp2_config(tmp_path, M3_WEIGHTS_PATH="/no/such.pth", TEXT_MODEL_NAME=str(tmp_path / "text"))
    result = run_script(CODE / "train_clamp2.py", config=config)
    assert result.returncode == 0, result.stderr


def test_losses_go_to_wandb_where_it_is_asked_for(tmp_path):
    (tmp_path / "wandb.py").write_text(
        "import json, sys\n"
        "def login(key): print('login', key)\n"
        "class Run:\n    def log(self, record, step): print('logged', step, json.dumps(record))\n    def finish(self): print('finished')\n"
        "def init(project, name, config):\n    print('init', project, name, json.dumps(config))\n    return Run()\n"
    )
    config = m3_config(tmp_path, M3_WANDB_LOG=True, M3_NUM_EPOCH=1, WANDB_KEY="secret")
    start = f"import runpy, sys\nsys.path.insert(0, {str(CODE)!r})\nrunpy.run_module('train_m3', run_name='__main__')\n"
    (tmp_path / "beside_wandb.py").write_text(start)
    result = run_script(tmp_path / "beside_wandb.py", config=config)
    assert result.returncode == 0, result.stderr
    assert "login secret\ninit m3 weights_m3 {" in result.stdout and 'logged 3 {"epoch": 1, ' in result.stdout
    assert result.stdout.count('logged 1 {"loss": ') == result.stdout.count("finished") == 1
    assert "secret" not in result.stdout.replace("login secret", "") + (tmp_path / "logs_m3.txt").read_text()


def test_curves_in_tensorboard_of_a_run_that_was_continued(undisturbed, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    kind, without, _ = undisturbed
    for count in (2, 3):
        config = CONFIGS[kind](tmp_path, LOGGER="tensorboard", **{f"{kind.upper()}_NUM_EPOCH": count})
        result = run_script(CODE / f"train_{kind}.py", config=config)
        assert result.returncode == 0 and f"--logdir {tmp_path}" in result.stdout, result.stderr
    told = EventAccumulator(str(tmp_path / f"logs_{kind}.tensorboard"))
    told.Reload()
    steps = 3
    curves = {name: {e.step: e.value for e in told.Scalars(name)} for name in told.Tags()["scalars"]}
    for name in ("loss", "gradient_norm", "pieces_per_second", "memory_gib"):
        assert list(curves[name]) == list(range(1, 3 * steps + 1)) and min(curves[name].values()) > 0, name
    assert max(curves["pieces_per_second"].values()) < 4 / 0.001  # every step, the last too, takes its time
    assert [curves["learning_rate"][step] for step in range(1, 6)] == pytest.approx([0, 2.5e-4, 5e-4, 7.5e-4, 1e-3])
    assert list(curves["train_loss"]) == list(curves["eval_loss"]) == [steps, 2 * steps, 3 * steps]
    for record in epochs(tmp_path, kind):
        assert curves["eval_loss"][record["epoch"] * steps] == pytest.approx(record["eval_loss"])
        if kind == "clamp2":  # all its batches are of one size
            losses = [curves["loss"][(record["epoch"] - 1) * steps + step] for step in range(1, steps + 1)]
            assert sum(losses) / steps == pytest.approx(record["train_loss"], rel=1e-5)
    # to be looked at changes nothing
    assert_same(state(tmp_path, kind)["model"], state(without, kind)["model"])


def test_the_gradient_norm_is_that_of_all_parameters(tmp_path):
    """Against what it is by hand: each row's three weights and its bias have the gradient 3, or 4."""
    job = processes.Processes(0, 0, 1)
    model = torch.nn.Linear(3, 2)
    settings = training.Settings("m3", 1, 1.0, 1, True, False, False, tmp_path / "w.pth", tmp_path / "l.txt")
    run = training.Training(settings, job, model)
    run.log.logger = "tensorboard"
    loss = (model(torch.ones(1, 3)) * torch.tensor([3.0, 4.0])).sum()
    loss.backward()
    norm = run._update(training.Step(loss, torch.ones(()))).read()[-1]
    assert float(norm) == pytest.approx((3 * 9 + 3 * 16 + 9 + 16) ** 0.5)


TOLERANCE = {"m3": 1e-3, "clamp2": 2e-2}  # five times what other dropout made of these losses in 1, 2 and 4 processes


def test_two_processes_through_the_launcher(tmp_path, undisturbed):
    """torch.distributed.launch, as in the user's document; torchrun starts those of test_reliability and test_cluster."""
    kind, folder, _ = undisturbed
    changes = {f"{kind.upper()}_NUM_EPOCH": 2, f"{kind.upper()}_BATCH_SIZE": 2, "LOGGER": "tensorboard"}
    result = run(*LAUNCH, CODE / f"train_{kind}.py", config=CONFIGS[kind](tmp_path, **changes))
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("2 x 2 = 4") == 1  # rank 0 alone prints
    assert len(list((tmp_path / f"logs_{kind}.tensorboard").iterdir())) == 1  # and plots
    told, of_one = epochs(tmp_path, kind), epochs(folder, kind)
    assert len(told) == 2
    for ours, theirs in zip(told, of_one[:2], strict=True):  # the same pieces in each step, under another dropout
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=TOLERANCE[kind])
        assert ours["eval_loss"] == pytest.approx(theirs["eval_loss"], rel=TOLERANCE[kind])
    assert_losses(tmp_path, kind)


def test_two_processes_compute_what_one_does(tmp_path):
    for count in (1, 2):
        ranks = run_ranks(count, ROOT / "tests" / "gradients.py", tmp_path / str(count))
        assert [(rank.returncode, rank.stderr) for rank in ranks] == [(0, "")] * count  # nothing is deprecated
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in "12")
    for name in ("m3", "clamp2_0", "clamp2_1"):
        assert abs(one[f"{name}_loss"] - two[f"{name}_loss"]) < 1e-5
        assert one[name].keys() == two[name].keys() and len(one[name]) > 30
        for entry in one[name]:
            torch.testing.assert_close(one[name][entry], two[name][entry], atol=1e-5, rtol=1e-4, msg=entry)
    for entry in one["clamp2_0"]:  # the gradient does not depend on the size of the micro-batch
        torch.testing.assert_close(one["clamp2_0"][entry], one["clamp2_1"][entry], atol=1e-6, rtol=1e-4, msg=entry)


# --- bad input ------------------------------------------------------------------------------------------------------
def test_bad_files_of_music_are_named_and_replaced(tmp_path):
    music = tmp_path / "music"
    shutil.copytree(KIT / "interleaved", music)
    (music / "empty.mtf").touch()
    (music / "silent.abc").write_text("X:1\nK:C\n")
    os.close(os.open(os.fsencode(music) + b"/\xff.mtf", os.O_CREAT))  # a name that is no UTF-8
    changes = {"TRAIN_FOLDERS": [str(music)], "EVAL_FOLDERS": [str(music)], "M3_NUM_EPOCH": 1}
    result = run_script(CODE / "train_m3.py", config=m3_config(tmp_path, **changes))
    assert result.returncode == 0, result.stderr
    for problem in ("empty.mtf: the file is empty", "silent.abc: there is no note", "\\udcff.mtf: the file is empty"):
        assert result.stdout.count(problem) == (tmp_path / "logs_m3.txt").read_text().count(problem) == 1, problem
    assert "bad pieces: 3" in result.stdout.splitlines()


def test_a_state_that_is_not_complete(tmp_path):
    shutil.copy(KIT / "weights_m3_kit.pth", tmp_path / "latest_weights_m3.pth")
    result = run_script(CODE / "train_m3.py", config=m3_config(tmp_path))
    assert result.returncode == 2
    assert re.fullmatch(r"error: .*latest_weights_m3\.pth: not the complete state of a run.*\n", result.stderr)


def test_bad_pieces_are_named_and_replaced(tmp_path):
    (tmp_path / "interleaved").symlink_to(KIT / "interleaved")
    (tmp_path / "mtf").symlink_to(KIT / "mtf")
    (tmp_path / "bad.abc").write_bytes(b"K:C\nT:\xff\nAB|\n")
    (tmp_path / "empty.mtf").touch()
    lines = [
        *records(),
        "{not json",
        {"title": "no paths"},
        {"title": "outside", "filepaths": ["../secret.abc"]},
        {"title": "gone", "filepaths": ["gone.abc"]},
        {"title": "binary", "filepaths": ["bad.abc"]},
        {"title": "empty", "filepaths": ["empty.mtf"]},
        {"filepaths": ["interleaved/duo.abc"]},
    ]
    config = clamp2_config(
        tmp_path, lines, CLAMP2_NUM_EPOCH=1, CLAMP2_BATCH_SIZE=4, EVAL_JSONL=str(tmp_path / "pieces.jsonl")
    )
    result = run_script(CODE / "train_clamp2.py", config=config)
    assert result.returncode == 0, result.stderr
    for problem in (
        "line 15: not JSON",
        "line 16: `filepaths` is not a list of paths",
        "line 17: the path '../secret.abc' leaves the folder",
        "gone.abc: No such file",
        "bad.abc: not UTF-8",
        "empty.mtf: the file is empty",
        "line 21: there is no text in it",
    ):
        assert result.stdout.count(problem) == 1, problem
    assert "bad pieces: 7" in result.stdout


@pytest.mark.parametrize(
    ("kind", "changes", "problem"),
    [
        ("m3", {"TRAIN_FOLDERS": ["/no/such/folder"]}, r"TRAIN_FOLDERS: /no/such/folder is not a folder; set it in .*m3\.py"),
        ("m3", {"TRAIN_FOLDERS": [str(KIT / "texts")]}, r"TRAIN_FOLDERS: there is no \.abc or \.mtf file in .*texts"),
        ("m3", {"TRAIN_FOLDERS": [str(KIT / "midi")]}, r"no \.abc or \.mtf file in .*midi; 5 MIDI file\(s\): convert with `python process_data/batch_midi2mtf"),
        ("m3", {"TRAIN_FOLDERS": ["<YOUR_TRAINING_DATA_FOLDER>"]}, r"TRAIN_FOLDERS is not set .*m3\.py"),
        ("m3", {"TRAIN_FOLDERS": []}, r"TRAIN_FOLDERS is empty; set it in .*m3\.py"),
        ("m3", {"M3_WEIGHTS_PATH": "/proc/no/weights.pth"}, r"/proc/no: No such file or directory"),
        ("m3", {"M3_BATCH_SIZE": 100}, r"12 piece\(s\) for training are fewer than one batch of 100 .*lower M3_BATCH_SIZE \(100\) in \S+\.py"),
        ("clamp2", {"TRAIN_JSONL": "/no/such.jsonl"}, r"TRAIN_JSONL: /no/such\.jsonl is not a file"),
        ("clamp2", {"TRAIN_JSONL": "<YOUR_TRAINING_DATA.jsonl>"}, r"TRAIN_JSONL is not set .*clamp2\.py"),
        ("clamp2", {"CLAMP2_BATCH_SIZE": 100}, r"12 piece\(s\) for training are fewer than one batch of 100 .*lower CLAMP2_BATCH_SIZE \(100\) in \S+\.py"),
        ("clamp2", {"TEXT_MODEL_NAME": "/no/such/model"}, r"TEXT_MODEL_NAME = '/no/such/model' cannot be loaded"),
        ("clamp2", {"M3_HIDDEN_SIZE": 128}, r"weights_m3_kit\.pth: does not fit \S+\.py: M3_HIDDEN_SIZE = 128, these weights have 64;"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_one_line(tmp_path, kind, changes, problem):
    result = run_script(CODE / f"train_{kind}.py", config=CONFIGS[kind](tmp_path, **changes))
    assert result.returncode == 2
    assert re.fullmatch(rf"error: .*{problem}.*\n", result.stderr), result.stderr


def test_a_file_of_two_folders_that_overlap_is_one_piece(tmp_path):
    (tmp_path / "all/abc").mkdir(parents=True)
    for name in ("all/abc/a.abc", "all/abc/b.abc", "all/c.mtf"):
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "all")
    folders = [str(tmp_path / name) for name in ("all/abc", "all", "link", "all/abc/../abc")]
    found = train_m3.find_files("TRAIN_FOLDERS", folders)
    assert found == [str(tmp_path / name) for name in ("all/abc/a.abc", "all/abc/b.abc", "all/c.mtf")]


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_wandb_is_asked_for_but_not_there(tmp_path):
    result = run_script(CODE / "train_m3.py", config=m3_config(tmp_path, M3_WANDB_LOG=True))
    assert result.returncode == 2
    assert re.fullmatch(r"error: M3_WANDB_LOG is True, but wandb is not installed.*\n", result.stderr)
    result = run_script(CODE / "train_m3.py", config=m3_config(tmp_path, LOGGER="wandb"))
    assert result.returncode == 2
    assert re.fullmatch(r"error: LOGGER is 'wandb', but wandb is not installed: `pip install wandb`.*\n", result.stderr)
