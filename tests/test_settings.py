"""Every constant of config.py does what its comment says: for each a test that fails where it is ignored."""

import json
import math
import os
import random
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

import cache
import clamp2
import config
import embedding
import extraction
import train_clamp2
import train_m3
import training
import utils
from helpers import KIT, KIT_MODEL, KIT_SIZES, ROOT, m3_configs, run_script, write_config
from loading import close_loader, make_loader, worker_count
from patches import BOS, MASK, M3Patchilizer, corrupt_patches, remove_instrument_info, remove_unit_length
from pieces import Piece
from processes import Processes
from records import choose_text
from small_runs import AdamW, Pieces, a_run, collate, finish, given, linear, records, wandb_that_listens

MUSIC = sorted((KIT / "interleaved").glob("solo_*.abc")) + [
    KIT / "interleaved" / f"{n}.abc" for n in ("duo", "piano", "quartet")
]
COVERED: set[str] = set()


def shows(*constants):
    """Marks a test as that of these constants."""
    COVERED.update(constants)
    return lambda test: test


def test_every_constant_has_a_test():
    assert {name for name in vars(config) if name.isupper() and not name.startswith("_")} == COVERED


# --- what modules take over when they are imported ------------------------------------------------------------------
IMPORTED = {
    "PATCH_SIZE": 32,
    "PATCH_LENGTH": 20,
    "PATCH_NUM_LAYERS": 3,
    "TOKEN_NUM_LAYERS": 2,
    "M3_HIDDEN_SIZE": 128,
    "M3_MASK_RATIO": 0.3,
    "CLAMP2_HIDDEN_SIZE": 24,
    "TEXT_MODEL_NAME": str(KIT / "tiny-xlmr"),
    "MAX_TEXT_LENGTH": 7,
    "LOGIT_SCALE": 3,
    "EVAL_SPLIT": 0.4,
}


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    """What tests/settings_script.py prints with other values of those constants."""
    path = write_config(tmp_path_factory.mktemp("settings") / "config.py", **IMPORTED)
    result = run_script(ROOT / "tests" / "settings_script.py", config=path)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@shows("PATCH_SIZE")
def test_patch_size(facts):
    assert facts["patches"][1] == facts["patches of a piece"][1] == facts["patches of a pair"][1] == 32
    assert facts["m3"]["decoder.base.transformer.wpe.weight"][0] == 32
    for name in ("encoder.patch_embedding.weight", "music_model.patch_embedding.weight"):
        assert facts["m3" if name.startswith("encoder") else "clamp2"][name] == [128, 32 * 128]


@shows("PATCH_LENGTH")
def test_patch_length(facts):
    assert facts["patches"][0] == facts["patches of a piece"][0] == facts["patches of a pair"][0] == 20
    assert facts["m3"]["encoder.base.embeddings.position_embeddings.weight"][0] == 20
    assert facts["clamp2"]["music_model.base.embeddings.position_embeddings.weight"][0] == 20
    assert facts["segments of music"] == [20, 20, 20]


def layers(names, prefix):
    return {name.removeprefix(prefix).partition(".")[0] for name in names if name.startswith(prefix)}


@shows("PATCH_NUM_LAYERS", "TOKEN_NUM_LAYERS")
def test_numbers_of_layers(facts):
    assert len(layers(facts["m3"], "encoder.base.encoder.layer.")) == 3
    assert len(layers(facts["clamp2"], "music_model.base.encoder.layer.")) == 3
    assert len(layers(facts["m3"], "decoder.base.transformer.h.")) == 2


@shows("M3_HIDDEN_SIZE", "CLAMP2_HIDDEN_SIZE", "TEXT_MODEL_NAME")
def test_hidden_sizes(facts):
    """Of M3's two halves, of the space that text and music share, and that of the text model."""
    text = load_file(KIT / "tiny-xlmr" / "model.safetensors")["embeddings.word_embeddings.weight"]
    assert facts["m3"]["decoder.base.transformer.wte.weight"][1] == 128
    assert facts["m3"]["encoder.base.encoder.layer.0.output.dense.weight"] == [128, 4 * 128]
    assert facts["clamp2"]["music_proj.weight"] == [24, 128]
    assert facts["clamp2"]["text_proj.weight"] == [24, text.shape[1]]
    assert facts["clamp2"]["text_model.embeddings.word_embeddings.weight"] == list(text.shape)


@shows("M3_MASK_RATIO")
def test_mask_ratio(facts):
    assert facts["selected"] == 6  # 0.3 of 20


@shows("MAX_TEXT_LENGTH")
def test_max_text_length(facts):
    assert facts["tokens of a pair"] == 7
    assert facts["segments of text"] == [7] * 8  # 7 x 7 tokens, and the last seven


@shows("LOGIT_SCALE")
def test_logit_scale(facts):
    """Dot products of 1 and 0, three times as large: by hand, the loss is log(1 + exp(-3))."""
    assert facts["contrastive losses"] == pytest.approx([math.log1p(math.exp(-3))] * 2, rel=1e-5)


@shows("EVAL_SPLIT")
def test_eval_split(facts):
    assert facts["held out of ten"] == 4


def test_the_halves_of_m3_have_its_sizes(facts):
    """By themselves, as extraction makes the encoder."""
    m3 = {name.partition(".")[2]: shape for name, shape in facts["m3"].items()}
    assert facts["halves of m3"] == m3


# --- what a trainer makes of its constants --------------------------------------------------------------------------
def prepare(patch, folder, kind, **constants):
    """Sets constants for a tiny training of one kind on six short pieces, two of which are held out."""
    music = folder / "music"
    if not music.exists():
        music.mkdir(parents=True)
        for path in MUSIC:
            (music / path.name).symlink_to(path)
        lines = [{"title": f"The {path.stem}", "summary_en": "A piece.", "filepaths": [path.name]} for path in MUSIC]
        (music / "pieces.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    constants = {
        "NUM_WORKERS": 0,
        "EVAL_SPLIT": 0.34,
        "TRAIN_FOLDERS": [str(music)],
        "TRAIN_JSONL": str(music / "pieces.jsonl"),
        "TEXT_MODEL_NAME": str(KIT / "tiny-xlmr"),
        "M3_WEIGHTS_PATH": str(folder / "w_m3.pth"),
        "M3_LOGS_PATH": str(folder / "l_m3.txt"),
        "CLAMP2_WEIGHTS_PATH": str(folder / "w_clamp2.pth"),
        "CLAMP2_LOGS_PATH": str(folder / "l_clamp2.txt"),
        f"{kind.upper()}_BATCH_SIZE": 2,
        **KIT_SIZES,
    } | constants
    for name, value in constants.items():
        assert type(value) is type(getattr(config, name))
        patch.setattr(config, name, value)


TRAINERS = {"m3": train_m3, "clamp2": train_clamp2}


@pytest.fixture
def start(tmp_path):
    """Calls a trainer's main function up to the first step; gives the run and its two loaders."""
    patch = pytest.MonkeyPatch()

    def start(kind, **constants):
        patch.undo()
        prepare(patch, tmp_path, kind, **constants)
        started = []
        with pytest.MonkeyPatch.context() as only_start:
            only_start.setattr(training.Training, "run", lambda *arguments: started.append(arguments[:3]) or 0)
            assert TRAINERS[kind].main(Processes(0, 0, 1)) == 0
        return started[0]

    yield start
    patch.undo()


@pytest.fixture(scope="module", params=["m3", "clamp2"])
def trained(request, tmp_path_factory):
    """A whole training with other constants than the default ones, and what wandb heard of it."""
    kind, folder = request.param, tmp_path_factory.mktemp("trained")
    name = kind.upper()
    with pytest.MonkeyPatch.context() as patch:
        heard = wandb_that_listens(patch)
        constants = {f"{name}_NUM_EPOCH": 3, f"{name}_LEARNING_RATE": 0.004, f"{name}_WANDB_LOG": True}
        prepare(patch, folder, kind, WARMUP_STEPS=5, WANDB_KEY="a key", **constants)
        patch.setattr(training.signal, "signal", lambda *_: None)
        assert TRAINERS[kind].main(Processes(0, 0, 1)) == 0
    return types.SimpleNamespace(kind=kind, folder=folder, heard=heard, log=records(folder / f"l_{kind}.txt"))


@shows("M3_NUM_EPOCH", "CLAMP2_NUM_EPOCH")
def test_number_of_epochs(trained):
    assert [record["epoch"] for record in trained.log] == [1, 2, 3]


@shows("M3_BATCH_SIZE", "CLAMP2_BATCH_SIZE")
def test_batch_size(trained):
    """Of four pieces: two steps an epoch."""
    assert [step for step, values in trained.heard.logged if "loss" in values] == [1, 2, 3, 4, 5, 6]


@shows("M3_LEARNING_RATE", "CLAMP2_LEARNING_RATE", "WARMUP_STEPS")
def test_learning_rate_and_warm_up(trained):
    rates = [values["learning_rate"] for _, values in trained.heard.logged if "loss" in values]
    assert rates == pytest.approx([0.004 * step / 5 for step in range(6)])
    assert trained.log[-1]["learning_rate"] == 0.004


@shows("M3_WEIGHTS_PATH", "M3_LOGS_PATH", "CLAMP2_WEIGHTS_PATH", "CLAMP2_LOGS_PATH")
def test_where_weights_and_log_go(trained):
    kind = trained.kind
    expected = {"music", f"w_{kind}.pth", f"latest_w_{kind}.pth", f"l_{kind}.txt"}
    assert {path.name for path in trained.folder.iterdir()} == expected


@shows("M3_WANDB_LOG", "CLAMP2_WANDB_LOG", "WANDB_KEY")
def test_wandb(trained, start, monkeypatch, tmp_path):
    assert trained.heard.keys == ["a key"] and trained.heard.runs[0]["project"] == trained.kind
    assert trained.heard.finished == 1
    run, *_ = start(trained.kind)
    assert run.log.logger == "none"
    heard = wandb_that_listens(monkeypatch)  # without a key, who has logged in before is known
    monkeypatch.setattr(config, "WANDB_KEY", "<YOUR_WANDB_KEY>")
    finish(a_run(tmp_path / "other", wandb_log=True), given(*[([1.0, 1.0], 1.0, 1.0)] * 3), [1.0])
    assert heard.keys == [] and len(heard.runs) == 1


@shows("LOGGER")
@pytest.mark.parametrize("logger", ["none", "tensorboard", "wandb"])
def test_logger(tmp_path, monkeypatch, logger):
    heard = wandb_that_listens(monkeypatch)
    monkeypatch.setattr(config, "LOGGER", logger)
    monkeypatch.setattr(config, "NUM_WORKERS", 0)
    finish(a_run(tmp_path), given(*[([1.0, 1.0], 1.0, 1.0)] * 3), [1.0])
    assert len(heard.runs) == (logger == "wandb")
    assert len(list(tmp_path.glob("logs.tensorboard/*"))) == (logger == "tensorboard")


def names(loader):
    """The files that a loader reads, sorted."""
    loader.batch_sampler.epoch = 1
    return sorted(Path(name).name for batch in loader for name in batch["names"])


@shows("TRAIN_FOLDERS", "EVAL_FOLDERS")
def test_folders(start, tmp_path):
    for number, path in enumerate(MUSIC):
        folder = tmp_path / ("a", "b/below", "c")[number // 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / path.name).symlink_to(path)
    folders = {"TRAIN_FOLDERS": [str(tmp_path / "a"), str(tmp_path / "b")], "EVAL_FOLDERS": [str(tmp_path / "c")]}
    _, train_loader, eval_loader = start("m3", **folders)
    assert names(train_loader) == sorted(path.name for path in MUSIC[:4]) and names(eval_loader) == sorted(
        path.name for path in MUSIC[4:]
    )
    _, train_loader, eval_loader = start("m3", **folders | {"EVAL_FOLDERS": []})  # one of the four is held out
    assert len(train_loader.dataset) == 3 and len(eval_loader.dataset) == 1
    assert {str(train_loader.dataset.files[i]) for i in range(3)} | {str(eval_loader.dataset.files[0])} == {
        str(path) for folder in ("a", "b/below") for path in (tmp_path / folder).iterdir()
    }


@shows("TRAIN_JSONL", "EVAL_JSONL")
def test_jsonl(start, tmp_path):
    lists = {"TRAIN_JSONL": MUSIC[:2], "EVAL_JSONL": MUSIC[2:5]}
    for name, paths in lists.items():
        lines = [{"title": path.stem, "filepaths": [f"music/{path.name}"]} for path in paths]
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, train_loader, eval_loader = start("clamp2", **{name: str(tmp_path / name) for name in lists})
    assert [names(loader) for loader in (train_loader, eval_loader)] == [
        sorted(path.name for path in paths) for paths in lists.values()
    ]
    _, train_loader, eval_loader = start("clamp2")  # two of the six are held out
    assert len(train_loader.dataset) == 4 and len(eval_loader.dataset) == 2


@shows("M3_DETERMINISTIC", "CLAMP2_DETERMINISTIC")
@pytest.mark.parametrize("kind", TRAINERS)
def test_deterministic(start, monkeypatch, kind):
    """Seed 0 and deterministic cuDNN, or a seed that is drawn at each start."""
    cudnn, before = torch.backends.cudnn, (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark)
    try:
        for value in (True, False):
            cudnn.deterministic, cudnn.benchmark = False, True
            seeds = []
            for _ in range(2):
                run, loader, _ = start(kind, **{f"{kind.upper()}_DETERMINISTIC": value})
                assert loader.dataset.seed == loader.batch_sampler.seed == run.progress.seed
                seeds.append(run.progress.seed)
            assert (seeds == [0, 0]) == value and len(set(seeds)) == (1 if value else 2)
            assert (cudnn.deterministic, cudnn.benchmark) == (value, not value)
    finally:
        cudnn.deterministic, cudnn.benchmark = before


@shows("M3_LOAD_CKPT", "CLAMP2_LOAD_CKPT")
@pytest.mark.parametrize("kind", TRAINERS)
def test_load_ckpt(start, tmp_path, kind):
    first, *_ = start(kind)
    weights = {name: value + 1 for name, value in first.model.state_dict().items()}
    torch.save({"model": weights}, tmp_path / f"w_{kind}.pth")
    for value in (True, False):
        run, *_ = start(kind, **{f"{kind.upper()}_LOAD_CKPT": value})
        own = run.model.state_dict()
        assert all(torch.equal(own[name], weights[name]) for name in weights) == value


@shows("CLAMP2_LOAD_M3", "M3_WEIGHTS_PATH")
def test_load_m3(start):
    m3 = torch.load(KIT / "weights_m3_kit.pth", weights_only=True)["model"]["encoder.patch_embedding.weight"]
    for value in (True, False):
        run, *_ = start("clamp2", M3_WEIGHTS_PATH=str(KIT / "weights_m3_kit.pth"), CLAMP2_LOAD_M3=value)
        assert torch.equal(run.model.music_model.patch_embedding.weight, m3) == value


@shows("TEXT_DROPOUT")
def test_text_dropout(start):
    """In 64 epochs, the title is met, with a chance of 1 - 2**-64; without text dropout there is the summary alone."""
    for value in (True, False):
        _, loader, _ = start("clamp2", TEXT_DROPOUT=value)
        texts = {loader.dataset[epoch, 0]["text"].tobytes() for epoch in range(64)}
        assert len(texts) == 1 + value


@shows("METADATA_SHARE", "LINE_SHARE")
def test_text_probabilities(monkeypatch):
    """In 64 draws; at the probability 1/2, the chance of either outcome is 2**-64 at most."""
    record, rng = {"tags": ["a", "b"], "summary_en": "s"}, random.Random(0)
    for metadata, line, expected in (
        (0.0, 0.5, {("s",)}),
        (1.0, 1.0, {("a", "b")}),
        (1.0, 0.5, {("a",), ("b",), ("a", "b")}),
    ):
        monkeypatch.setattr(config, "METADATA_SHARE", metadata)
        monkeypatch.setattr(config, "LINE_SHARE", line)
        assert {tuple(sorted(choose_text(record, rng))) for _ in range(64)} == expected


@shows("M3_MASKED_SHARE", "M3_SHUFFLED_SHARE")
def test_corruption_probabilities(monkeypatch):
    patches, rng = np.array([[BOS, *range(40, 103)]] * 2, np.uint8), np.random.default_rng(0)
    for mask, shuffle, expected in (
        (1.0, 0.0, {"mask"}),
        (0.0, 1.0, {"shuffle"}),
        (0.0, 0.0, {"as it was"}),
        (0.5, 0.5, {"mask", "shuffle"}),
    ):
        monkeypatch.setattr(config, "M3_MASKED_SHARE", mask)
        monkeypatch.setattr(config, "M3_SHUFFLED_SHARE", shuffle)
        kinds = set()
        for _ in range(64):
            corrupted, _ = corrupt_patches(patches, rng, mask_ratio=1.0)
            is_same = np.array_equal(corrupted, patches)
            kinds.add("as it was" if is_same else "mask" if (corrupted == MASK).all() else "shuffle")
        assert kinds == expected


@shows("REMOVE_INSTRUMENTS")
def test_remove_instruments(start):
    for value in (0.0, 1.0):
        _, loader, _ = start("clamp2", REMOVE_INSTRUMENTS=value, PATCH_LENGTH=512)
        for index in range(len(loader.dataset)):
            sample = loader.dataset[1, index]
            text = remove_unit_length(Path(sample["name"]).read_text())
            expected = remove_instrument_info(text) if value else text
            assert np.array_equal(sample["music"], M3Patchilizer().encode_array(expected, add_special_patches=True))
    assert 'nm="' in "".join(path.read_text() for path in MUSIC[:2])


@shows("CLAMP2_MICRO_BATCH")
@pytest.mark.parametrize(("value", "expected"), [(0, [5]), (2, [2, 2, 1] * 2)])
def test_micro_batch(tmp_path, monkeypatch, value, expected):
    """Five pairs go forward at once; or in parts, once for their features and once for their gradients."""
    monkeypatch.setattr(config, "CLAMP2_MICRO_BATCH", value)
    sizes = []

    class Model(torch.nn.Linear):
        def forward(self, pairs):
            sizes.append(len(pairs.text.packing.counts))
            rows = torch.ones(sizes[-1], 3)
            return super().forward(rows), super().forward(rows)

    samples = [{"text": np.ones(3, int), "music": np.ones((2, 64), np.uint8)}] * 5
    train_clamp2.step(a_run(tmp_path, Model(3, 2)), train_clamp2.PairBatch(samples))
    assert sizes == expected


@shows("CLAMP2_FREEZE")
@pytest.mark.parametrize("value", ["", "text", "music"])
def test_freeze(start, value):
    """A step changes each tower but this one; more in test_freeze.py."""
    run, train_loader, _ = start("clamp2", CLAMP2_FREEZE=value, WARMUP_STEPS=0)
    before = {name: parameter.detach().clone() for name, parameter in run.model.named_parameters()}
    run._update(train_clamp2.step(run, next(iter(train_loader))["batch"]))
    changed = {name.partition("_")[0] for name, p in run.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"text", "music"} - {value}


@shows("PRECISION")
@pytest.mark.parametrize("kind", TRAINERS)
def test_precision(start, kind):
    """Of every forward pass, in training and evaluation."""
    for value, expected in (("bfloat16", torch.bfloat16), ("float32", None)):
        run, train_loader, eval_loader = start(kind, PRECISION=value)
        met = []
        run.module.register_forward_pre_hook(lambda *_, met=met: met.append(autocast_type()))
        TRAINERS[kind].step(run, next(iter(train_loader))["batch"])
        with torch.no_grad():
            TRAINERS[kind].evaluate(run, eval_loader)
        assert met == [expected] * 2


def autocast_type():
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None


@shows("MAX_GRAD_NORM")
@pytest.mark.parametrize("value", [0.0, 2.0])
@pytest.mark.parametrize("logged", [False, True])
def test_max_grad_norm(tmp_path, monkeypatch, value, logged):
    """The gradients have the norms 5 and 1: the first is scaled down to 2, or not, whether the norm is logged or not.
    By hand, as AdamW is."""
    wandb_that_listens(monkeypatch)
    monkeypatch.setattr(config, "MAX_GRAD_NORM", value)
    monkeypatch.setattr(config, "WARMUP_STEPS", 0)
    monkeypatch.setattr(config, "NUM_WORKERS", 0)
    run = a_run(tmp_path, linear([1.0, -1.0]), learning_rate=0.1, wandb_log=logged)
    finish(run, given(([3.0, 4.0], 1.0, 1.0), ([-0.6, 0.8], 1.0, 1.0)), [1.0], train=4)
    expected = AdamW([1.0, -1.0])
    expected.step([1.2, 1.6] if value else [3.0, 4.0], 0.1)
    expected.step([-0.6, 0.8], 0.1)
    assert run.model.weight[0].tolist() == pytest.approx(expected.weights, rel=1e-5)


@shows("SAVE_EVERY_STEPS")
@pytest.mark.parametrize(("value", "steps"), [(0, [5, 0]), (2, [2, 4, 5, 0]), (5, [5, 0])])
def test_save_every_steps(tmp_path, monkeypatch, value, steps):
    """An epoch of five steps. What is saved in any case, once each: its end before its evaluation, and after it."""
    monkeypatch.setattr(config, "SAVE_EVERY_STEPS", value)
    monkeypatch.setattr(config, "NUM_WORKERS", 0)
    saved = []
    monkeypatch.setattr(training, "save_checkpoint", lambda path, state: saved.append(state.get("step")))
    finish(a_run(tmp_path), given(*[([1.0, 1.0], 1.0, 1.0)] * 5), [1.0], train=10)
    assert [step for step in saved if step is not None] == steps


# --- reading, extraction, search ------------------------------------------------------------------------------------
class Readers(Pieces):
    """Pieces whose names are the processes that read them."""

    def load(self, index, rng):
        return super().load(index, rng) | {"name": str(os.getpid())}


def give_cores(monkeypatch, count):
    """Cores 1, 2, ... of a machine that has more."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(1, count + 1)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2 * count)


@shows("NUM_WORKERS")
@pytest.mark.parametrize(("setting", "value"), [(0, 0), (2, 2), (-1, 2)])
def test_num_workers(tmp_path, monkeypatch, setting, value):
    """How many processes read, beside the training itself, which reads nothing then. In extraction too."""
    give_cores(monkeypatch, 3)
    monkeypatch.setattr(config, "NUM_WORKERS", setting)
    loader = make_loader(Readers(8, True), 1, Processes(0, 0, 1), collate)
    readers = {name for batch in loader for name in batch["names"]}
    close_loader(loader)
    assert len(readers) == max(1, value) and (str(os.getpid()) in readers) == (value == 0)
    files = [Path(str(number)) for number in range(8 * extraction.READ_TOGETHER)]
    readers = {int(pid) for pid in extraction.read_ahead(tmp_path, files, lambda path: np.array(os.getpid()))}
    assert len(readers) == max(1, value) and (os.getpid() in readers) == (value == 0)


@pytest.mark.parametrize(
    ("cores", "ranks", "workers"),
    [(1, 1, 1), (2, 1, 1), (8, 1, 7), (8, 2, 3), (9, 2, 3), (2, 8, 1), (17, 1, 16), (224, 8, 16)],
)
def test_workers_by_default(monkeypatch, cores, ranks, workers):
    """A rank's share of the cores of its machine, less its own; where a system does not bind processes, of all."""
    monkeypatch.setattr(config, "NUM_WORKERS", -1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    monkeypatch.setenv("WORLD_SIZE", str(4 * ranks))
    give_cores(monkeypatch, cores)
    assert worker_count() == workers
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert worker_count() == workers
    monkeypatch.setattr(config, "NUM_WORKERS", 40)
    assert worker_count() == 40


class Passes(torch.nn.Linear):
    """A model that notes of each forward pass how many tokens it has, and in what precision it is."""

    def __init__(self):
        super().__init__(1, 1)
        self.tokens, self.types, self.keep_unit_length = [], set(), True

    def features(self, batch, pooled):
        self.tokens.append(len(batch.tokens))
        self.types.add(autocast_type())
        features = torch.zeros(len(batch.tokens), 3)
        return batch.packing.mean(features) if pooled else features


def passes(tmp_path):
    """The forward passes of an extractor over five files of four tokens, and of the functions for other programs."""
    (tmp_path / "in").mkdir(exist_ok=True)
    for number in range(5):
        (tmp_path / "in" / f"{number}.txt").touch()
    (tmp_path / "w.pth").touch()
    model = Passes()
    job = Processes(0, 0, 1)
    out = tmp_path / str(len(list(tmp_path.iterdir())))
    arguments = (job, tmp_path / "in", out, (".txt",), tmp_path / "w.pth", lambda: model, lambda *_: np.ones(4, int))
    assert extraction.extract(*arguments, pooled=False, keep_unit_length=False) == 0
    found = [model]
    model = Passes()
    tune = "X:1\nL:1/8\nK:C\nA|\n"  # four patches, and two special ones; the line of the unit length is kept
    list(clamp2.embed_pieces(model, enumerate([Piece(tune, is_music=True)] * 5)))
    return [*found, model]


@shows("KEEP_UNIT_LENGTH")
@pytest.mark.parametrize("value", [True, False])
def test_keep_unit_length(monkeypatch, value):
    """Of what CLaMP 2 embeds; test_checkpoints.py compares features, CLaMP 3's too."""
    monkeypatch.setattr(config, "KEEP_UNIT_LENGTH", value)
    model = utils.CLaMP2Model.from_configs(AutoConfig.from_pretrained(KIT / "tiny-xlmr"), m3_configs()[0], 48)
    patches = clamp2.encode(Piece("L:1/8\nK:C\nA|\n", is_music=True), model.keep_unit_length)
    assert (M3Patchilizer().decode(patches) == "L:1/8\nK:C\nA|\n") == value and len(patches) == 4 + value


@shows("EXTRACT_BATCH_TOKENS")
def test_extract_batch_tokens(tmp_path):
    """A forward pass begins when there are as many, and is at most one piece larger."""
    with pytest.MonkeyPatch.context() as patch:
        assert [model.tokens for model in passes(tmp_path)] == [[20], [30]]
        patch.setattr(config, "EXTRACT_BATCH_TOKENS", 9)
        assert [model.tokens for model in passes(tmp_path)] == [[12, 8], [12, 12, 6]]
        patch.setattr(config, "EXTRACT_BATCH_TOKENS", -1)
        patch.setattr(embedding, "BATCH_TOKENS_CPU", 9)
        assert [model.tokens for model in passes(tmp_path)] == [[12, 8], [12, 12, 6]]


@shows("EXTRACT_PRECISION")
@pytest.mark.parametrize(("value", "expected"), [("float32", None), ("bfloat16", torch.bfloat16)])
def test_extract_precision(tmp_path, monkeypatch, value, expected):
    monkeypatch.setattr(config, "EXTRACT_PRECISION", value)
    assert [model.types for model in passes(tmp_path)] == [{expected}] * 2


@shows("FEATURE_CACHE")
def test_feature_cache(tmp_path, monkeypatch):
    for name, value in KIT_MODEL.items():
        monkeypatch.setattr(config, name, value)
    monkeypatch.setattr(config, "FEATURE_CACHE", str(tmp_path / "here"))
    cache.FeatureCache().put("key", cache.Entry(np.ones((1, 2), np.float32), ["A title"], [""], [""]))
    assert [path.parent.parent for path in tmp_path.rglob("key")] == [tmp_path / "here"]
