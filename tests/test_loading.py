"""Which pieces make a batch, what is done to a piece in training and in evaluation, and the evaluation losses."""

import json
import re
import shutil
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

import config
import linear_probe
import train_clamp2
import train_m3
import training
import utils
from checkpoints import load_checkpoint
from files import InputError
from helpers import KIT, m3_configs
from loading import Batches, PieceDataset, make_loader
from packing import Tensors
from patches import M3Patchilizer, read_music, remove_unit_length
from processes import Processes, precision
from run_state import Progress
from small_runs import collate


def batches(count, size, world_size, train=True, epoch=1):
    """The batches of each rank, as lists of indices."""
    samplers = [Batches(count, size, Processes(rank, rank, world_size), 0, train) for rank in range(world_size)]
    for sampler in samplers:
        sampler.epoch = epoch
    ranks = [[[index for _, index in batch] for batch in sampler] for sampler in samplers]
    assert [len(rank) for rank in ranks] == [len(sampler) for sampler in samplers]
    return ranks


# --- batches --------------------------------------------------------------------------------------------------------
def test_processes_share_out_the_batches_of_one():
    (one,) = batches(50, 12, 1)
    for world_size, size in ((2, 6), (3, 4)):
        ranks = batches(50, size, world_size)
        assert [list(chain(*parts)) for parts in zip(*ranks, strict=True)] == one
    pieces = list(chain(*one))
    assert len(one) == 4 and len(set(pieces)) == len(pieces) == 48
    assert batches(50, 12, 1) == [one]
    assert batches(50, 12, 1, epoch=2) != [one]


def test_the_pieces_that_wait_differ_from_epoch_to_epoch():
    seen = Counter(index for epoch in range(30) for batch in batches(50, 12, 1, epoch=epoch)[0] for index in batch)
    assert len(seen) == 50 and min(seen.values()) >= 25


def test_a_run_that_continues_takes_the_batches_that_are_left():
    sampler = Batches(50, 12, Processes(0, 0, 1), 0, True)
    whole = list(sampler)
    sampler.first_step = 3
    assert list(sampler) == whole[3:]


@pytest.mark.parametrize(("count", "world_size"), [(10, 1), (10, 3), (2, 3), (12, 2)])
def test_evaluation_uses_every_piece_once(count, world_size):
    ranks = batches(count, 4, world_size, train=False)
    assert sorted(index for rank in ranks for batch in rank for index in batch) == list(range(count))


def test_as_many_pieces_as_a_batch_make_one():
    assert [[sorted(batch) for batch in rank] for rank in batches(4, 4, 1)] == [[[0, 1, 2, 3]]]
    first, second = batches(9, 4, 2)
    assert len(first) == len(second) == 1 and len({*first[0], *second[0]}) == 8


def test_fewer_pieces_than_a_batch():
    with pytest.raises(InputError, match=r"7 piece\(s\) for training are fewer than one batch of 8 \(4 for each of 2"):
        Batches(7, 4, Processes(0, 0, 2), 0, True)


def test_a_bad_piece_is_replaced():
    class Half(PieceDataset):
        def __len__(self):
            return 10

        def load(self, index, rng):
            if index % 2:
                raise InputError(f"piece {index} is bad")
            return {"name": index}

    dataset = Half(True, 0)
    for epoch in range(20):
        sample = dataset[epoch, 3]
        assert sample["name"] % 2 == 0 and sample["problems"][0] == "piece 3 is bad"
    assert len({dataset[epoch, 3]["name"] for epoch in range(20)}) > 2
    assert dataset[0, 4] == {"name": 4, "problems": []}
    dataset.load = lambda index, rng: Half.load(dataset, 1, rng)
    dataset.train = False
    tried = "100 pieces in a row could not be used for evaluation, 1 different one(s)"
    assert dataset[0, 4]["fatal"].startswith(f"{tried}; the last: piece 1 is bad")


def test_a_batch_of_m3():
    """Patches of ids 1 to 4 with PAD behind; the first of each piece is selected, and of the second piece the third."""
    pieces = [np.array([[1, 20, 2, 0], [1, 2, 0, 0]]), np.array([[1, 30, 31, 32], [1, 2, 0, 0], [1, 40, 2, 0]])]
    chosen = [np.array([True, False]), np.array([True, False, True])]
    samples = [
        {"input": piece + 80, "selected": selected, "target": piece}
        for piece, selected in zip(pieces, chosen, strict=True)
    ]
    batch = train_m3.collate(samples)
    music, characters = batch.music, batch.characters
    assert music.tokens.tolist() == (np.concatenate(pieces) + 80).tolist()
    assert music.packing.positions.tolist() == [0, 1, 0, 1, 2] and music.packing.sequences.tolist() == [0, 0, 1, 1, 1]
    assert music.packing.offsets.tolist() == [0, 2, 5] and music.packing.lengths.tolist() == [2, 3]
    assert characters.inputs.tolist() == [1, 20, 1, 30, 31, 1, 40]
    assert characters.labels.tolist() == [20, 2, 30, 31, 32, 40, 2] and characters.count.item() == 7
    assert characters.packing.positions.tolist() == [0, 1, 0, 1, 2, 0, 1]
    assert characters.firsts.tolist() == [0, 2, 5] and characters.rows.tolist() == [0, 2, 4]


def test_a_batch_of_clamp2_in_parts(monkeypatch):
    samples = [
        {"text": np.array([0, 5, 2]), "music": np.full((1, 4), 7)},
        {"text": np.array([0, 2]), "music": np.full((2, 4), 8)},
        {"text": np.array([0, 6, 6, 2]), "music": np.full((1, 4), 9)},
    ]
    for size, expected in ((0, [[0, 1, 2]]), (2, [[0, 1], [2]]), (3, [[0, 1, 2]])):
        monkeypatch.setattr(config, "CLAMP2_MICRO_BATCH", size)
        parts = train_clamp2.PairBatch(samples).parts
        assert len(parts) == len(expected)
        for part, rows in zip(parts, expected, strict=True):
            for side, name in ((part.text, "text"), (part.music, "music")):
                assert side.packing.counts.tolist() == [len(samples[row][name]) for row in rows]
                assert side.tokens.tolist() == np.concatenate([samples[row][name] for row in rows]).tolist()


class Some(PieceDataset):
    """Six pieces; number 2 is bad."""

    def __len__(self):
        return 6

    def load(self, index, rng):
        if index == 2:
            raise InputError("piece 2 is bad")
        return {"name": str(index), "index": index}


@pytest.mark.parametrize("train", [True, False])
def test_a_loader_gives_the_batches_of_its_rank(train):
    job = Processes(0, 0, 2)
    orders = []
    for seed in (3, 4):
        loader = make_loader(Some(train, seed), 2, job, collate)
        sampler = Batches(6, 2, job, seed, train)
        loader.batch_sampler.epoch = sampler.epoch = 5
        found, expected = list(loader), list(sampler)
        assert len(found) == len(expected) and [len(batch["batch"].rows) for batch in found] == list(map(len, expected))
        for batch, keys in zip(found, expected, strict=True):
            bad = [index == 2 for _, index in keys]
            named = [name for name, is_bad in zip(batch["names"], bad, strict=True) if not is_bad]
            assert named == [str(index) for _, index in keys if index != 2]
            assert set(batch["problems"]) == ({"piece 2 is bad"} if any(bad) else set())
        orders.append(expected)
    assert (orders[0] == orders[1]) == (not train)


def test_one_piece_without_a_stand_in_is_the_end_of_its_batch():
    class Bad(Some):
        def __getitem__(self, key):
            return {"fatal": "nothing works"} if key[1] == 1 else super().__getitem__(key)

    first, *others = make_loader(Bad(False, 0), 2, Processes(0, 0, 1), lambda samples: Tensors())
    assert first == {"fatal": "nothing works"} and all("names" in batch for batch in others)


# --- the data of the two trainings ----------------------------------------------------------------------------------
class Loaders(Exception):
    """What a trainer would have trained on."""


@pytest.fixture
def loaders(monkeypatch):
    """main -> its loaders, in a run of seed 7 whose training is left out."""

    class Seven:
        def __init__(self, *_):
            self.progress = Progress(seed=7)

        def run(self, *arguments):
            raise Loaders(*arguments[:2])

    monkeypatch.setattr(training, "Training", Seven)
    monkeypatch.setattr(train_m3, "M3Model", lambda *_: None)
    monkeypatch.setattr(train_clamp2, "CLaMP2Model", lambda *_, **__: None)

    def start(main):
        with pytest.raises(Loaders) as stopped:
            main(Processes(0, 0, 1))
        return stopped.value.args

    return start


def names_of(loader):
    return sorted(Path(loader.dataset[0, index]["name"]).name for index in range(len(loader.dataset)))


def check(train, evaluation, batch_size):
    assert (train.dataset.train, evaluation.dataset.train) == (True, False)
    assert (train.dataset.seed, evaluation.dataset.seed) == (7, 0)  # runs are evaluated alike, whatever their seed
    assert train.batch_sampler.batch_size == evaluation.batch_sampler.batch_size == batch_size


@pytest.mark.parametrize("evaluated", [True, False])
def test_what_m3_trains_on_and_is_evaluated_on(tmp_path, monkeypatch, loaders, evaluated):
    everything = {"a": ["1.abc", "2.mtf"], "b": ["3.MTF", "4.ABC"], "c": ["5.abc"], "d": ["6.mtf"]}
    for folder, names in everything.items():
        (tmp_path / folder / "below").mkdir(parents=True)
        for name in names:
            kind = "interleaved/tiny.abc" if name.lower().endswith("abc") else "mtf/plain.mtf"
            shutil.copy(KIT / kind, tmp_path / folder / "below" / name)
        (tmp_path / folder / "notes.txt").write_text("no music")
    folders = {folder: str(tmp_path / folder) for folder in everything}
    monkeypatch.setattr(config, "TRAIN_FOLDERS", [folders["a"], folders["b"]])
    monkeypatch.setattr(config, "EVAL_FOLDERS", [folders["c"], "", folders["d"]] if evaluated else [""])
    monkeypatch.setattr(config, "M3_BATCH_SIZE", 2)
    train, evaluation = loaders(train_m3.main)
    check(train, evaluation, 2)
    names = ["1.abc", "2.mtf", "3.MTF", "4.ABC"]
    if evaluated:
        assert names_of(train) == names and names_of(evaluation) == ["5.abc", "6.mtf"]
    else:
        assert len(train.dataset) == 3 and sorted(names_of(train) + names_of(evaluation)) == names


@pytest.mark.parametrize("evaluated", [True, False])
def test_what_clamp2_trains_on_and_is_evaluated_on(tmp_path, monkeypatch, loaders, evaluated):
    for name, numbers in {"train": range(8), "eval": (8, 9)}.items():
        for number in numbers:
            shutil.copy(KIT / "interleaved" / "tiny.abc", tmp_path / f"{number}.abc")
        records = [{"title": "x", "filepaths": [f"{number}.abc"]} for number in numbers]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    monkeypatch.setattr(config, "TRAIN_JSONL", str(tmp_path / "train.jsonl"))
    monkeypatch.setattr(config, "EVAL_JSONL", str(tmp_path / "eval.jsonl") if evaluated else "")
    monkeypatch.setattr(config, "TEXT_MODEL_NAME", str(KIT / "tiny-xlmr"))
    monkeypatch.setattr(config, "CLAMP2_BATCH_SIZE", 3)
    monkeypatch.setattr(config, "CLAMP2_LOAD_CKPT", False)
    monkeypatch.setattr(config, "EVAL_SPLIT", 0.25)
    train, evaluation = loaders(train_clamp2.main)
    check(train, evaluation, 3)
    names = [f"{number}.abc" for number in range(10)]
    if evaluated:
        assert names_of(train) == names[:8] and names_of(evaluation) == names[8:]
    else:
        assert len(train.dataset) == 6 and sorted(names_of(train) + names_of(evaluation)) == names[:8]
    [part] = next(iter(evaluation))["batch"].parts
    assert len(part.text.packing.counts) == 2


TOO_FEW = [  # training data, EVAL_SPLIT, evaluation data of its own; the error
    ("m3", 50, 0.01, 0, ""),
    ("m3", 2, 0.5, 0, ""),
    ("m3", 50, 0.0, 1, ""),
    ("m3", 50, 0.0, 0, "EVAL_SPLIT = 0.0 holds out 0 of 50 pieces, and evaluation takes 1; raise it to 0.02, or set EVAL_FOLDERS, in "),
    ("m3", 1, 0.5, 0, "1 piece(s) cannot be split into training and evaluation data, which takes 2; add more, or set EVAL_FOLDERS in "),
    ("clamp2", 38, 0.06, 0, ""),
    ("clamp2", 4, 0.5, 0, ""),
    ("clamp2", 38, 0.0, 2, ""),
    ("clamp2", 38, 0.05, 0, "EVAL_SPLIT = 0.05 holds out 1 of 38 pieces, and evaluation takes 2; raise it to 0.06, or set EVAL_JSONL, in "),
    ("clamp2", 38, 0.0, 0, "EVAL_SPLIT = 0.0 holds out 0 of 38 pieces, and evaluation takes 2; raise it to 0.06, or set EVAL_JSONL, in "),
    ("clamp2", 2, 0.5, 0, "2 piece(s) cannot be split into training and evaluation data, which takes 3; add more, or set EVAL_JSONL in "),
    ("clamp2", 38, 0.5, 1, "eval.jsonl has 1 pair, and evaluation takes 2"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "count", "share", "evaluation", "problem"), TOO_FEW)
def test_too_little_to_evaluate_on(tmp_path, monkeypatch, loaders, kind, count, share, evaluation, problem):
    """Of one pair alone the contrastive loss is 0, so that the weights of the first epoch would stay the best."""
    for name, pieces in {"train": count, "eval": evaluation}.items():
        (tmp_path / name).mkdir()
        for number in range(pieces):
            (tmp_path / name / f"{number}.abc").touch()
        (tmp_path / f"{name}.jsonl").write_text('{"title": "x", "filepaths": ["x.abc"]}\n' * pieces)
    constants = {"EVAL_SPLIT": share, "TEXT_MODEL_NAME": str(KIT / "tiny-xlmr"), "CLAMP2_LOAD_CKPT": False}
    constants |= {"TRAIN_FOLDERS": [str(tmp_path / "train")], "TRAIN_JSONL": str(tmp_path / "train.jsonl")}
    constants |= {"EVAL_FOLDERS": [str(tmp_path / "eval")] if evaluation else []}
    constants |= {"EVAL_JSONL": str(tmp_path / "eval.jsonl") if evaluation else ""}
    constants |= {"M3_BATCH_SIZE": 1, "CLAMP2_BATCH_SIZE": 2, "NUM_WORKERS": 0}
    for name, value in constants.items():
        monkeypatch.setattr(config, name, value)
    main = {"m3": train_m3, "clamp2": train_clamp2}[kind].main
    if problem:
        with pytest.raises(InputError, match=re.escape(problem)):
            main(Processes(0, 0, 1))
    else:
        assert len(loaders(main)[1].dataset) == (evaluation or {"m3": 1, "clamp2": 2}[kind])


def test_a_training_batch_of_one_pair(monkeypatch):
    """Nothing is learnt of it: its contrastive loss is 0. Two processes have two pairs."""
    monkeypatch.setattr(config, "CLAMP2_BATCH_SIZE", 1)
    with pytest.raises(
        InputError, match="CLAMP2_BATCH_SIZE = 1 leaves a pair no other to be compared with; raise it in "
    ):
        train_clamp2.main(Processes(0, 0, 1))
    with pytest.raises(InputError, match="TRAIN_JSONL is not set"):
        train_clamp2.main(Processes(0, 0, 2))


# --- what is done to a piece ----------------------------------------------------------------------------------------
def patches_of(text):
    return M3Patchilizer().encode_array(remove_unit_length(text), add_special_patches=True)


def test_m3_cuts_long_pieces_at_random_in_training_only():
    path = KIT / "interleaved" / "long_duo.abc"
    whole = patches_of(read_music(path))
    assert len(whole) > 600
    starts = set()
    for epoch in range(20):
        target = train_m3.M3Dataset([str(path)], True, 0)[epoch, 0]["target"]
        assert len(target) == 512
        starts.add(target.tobytes())
    assert len(starts) > 2
    evaluated = train_m3.M3Dataset([str(path)], False, 0)[0, 0]
    assert np.array_equal(evaluated["target"], whole[:512]) and np.array_equal(evaluated["input"], whole[:512])


def test_a_file_that_cannot_be_used_is_named_and_another_one_of_the_record_is_tried(tmp_path):
    for kind in ("interleaved", "mtf"):
        (tmp_path / kind).symlink_to(KIT / kind)
    (tmp_path / "empty.abc").touch()
    (tmp_path / "binary.mtf").write_bytes(b"\xff")
    good = "mtf/many_tracks.mtf"
    records = [
        {"title": "one bad", "filepaths": ["empty.abc", good]},
        {"title": "two bad", "filepaths": ["gone.mtf", "binary.mtf", good]},
        {"title": "all bad", "filepaths": ["empty.abc", "binary.mtf"]},
    ]
    path = tmp_path / "pieces.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    tokenizer = AutoTokenizer.from_pretrained(KIT / "tiny-xlmr")
    for train in (True, False):
        dataset = train_clamp2.CLaMP2Dataset(train_clamp2.Jsonl(path), [0, 1, 2], tokenizer, train, 0)
        seen: dict[int, set] = {0: set(), 1: set()}
        for epoch in range(40):
            for index in (0, 1):
                sample = dataset[epoch, index]
                assert sample["name"] == str(tmp_path / good)
                assert tokenizer.decode(sample["text"], skip_special_tokens=True) == records[index]["title"]
                seen[index] |= {problem.removeprefix(f"{path}, line {index + 1}: ") for problem in sample["problems"]}
        assert seen[0] == {f"{tmp_path}/empty.abc: the file is empty (another of its files is used)"}
        assert len(seen[1]) == 2 and any("gone.mtf: No such file" in problem for problem in seen[1])
        sample = dataset[0, 2]  # another record stands in
        assert sample["name"] == str(tmp_path / good)
        assert any("empty.abc: the file is empty" in p and "binary.mtf: not UTF-8" in p for p in sample["problems"])


def test_a_long_text_is_cut_to_its_head_its_tail_or_a_random_middle(tmp_path, monkeypatch):
    """Equally likely in training; to its head in evaluation. 40 tokens are cut to 10: 31 places."""
    (tmp_path / "mtf").symlink_to(KIT / "mtf")
    path = tmp_path / "pieces.jsonl"
    path.write_text(json.dumps({"summary_en": "la " * 38, "filepaths": ["mtf/plain.mtf"]}) + "\n")
    monkeypatch.setattr(config, "MAX_TEXT_LENGTH", 10)

    class Tokenizer:
        sep_token, sep_token_id, pad_token_id = "</s>", 2, 1

        def __call__(self, text, **_):
            return {"input_ids": [0, *range(10, 10 + len(text.split())), 2]}

    whole = [0, *range(10, 48), 2]
    dataset = train_clamp2.CLaMP2Dataset(train_clamp2.Jsonl(path), [0], Tokenizer(), True, 0)
    starts: Counter = Counter()
    for epoch in range(1200):
        ids = dataset[epoch, 0]["text"].tolist()
        start = whole.index(ids[0])
        assert ids == whole[start : start + 10]
        starts[start] += 1
    # head and tail: 1/3 each, and their share of the middle; 5 standard deviations of 1,200 draws are 83
    for end in (0, 30):
        assert abs(starts[end] - 1200 * (1 / 3 + 1 / 93)) < 83, starts
    assert sum(starts.values()) - starts[0] - starts[30] > 290  # of 387; a third of them if there were no third way
    assert len(starts) == 31  # each of the others is drawn 13 times on average
    evaluated = train_clamp2.CLaMP2Dataset(train_clamp2.Jsonl(path), [0], Tokenizer(), False, 0)
    assert evaluated[0, 0]["text"].tolist() == whole[:10]
    monkeypatch.setattr(config, "MAX_TEXT_LENGTH", 40)
    assert dataset[0, 0]["text"].tolist() == evaluated[0, 0]["text"].tolist() == whole


# --- evaluation -----------------------------------------------------------------------------------------------------
def a_run(model, batch_size=4, job=None, wrap=lambda model: model):
    settings = training.Settings("m3", 1, 1e-3, batch_size, True, False, False, Path("w"), Path("l"))
    run = training.Training(settings, Processes(0, 0, 1), model, wrap)
    run.processes = job or run.processes
    run.model.eval()
    return run


@pytest.fixture(autouse=True)
def no_workers(monkeypatch):
    monkeypatch.setattr(config, "NUM_WORKERS", 0)


def test_the_loss_of_m3_s_evaluation_is_the_mean_over_characters():
    torch.manual_seed(0)
    model = utils.M3Model(*m3_configs())
    torch.nn.init.normal_(model.decoder.base.lm_head.weight)  # so that the pieces differ
    files = sorted(str(path) for kind in ("interleaved", "mtf") for path in (KIT / kind).iterdir())
    dataset = train_m3.M3Dataset(files, False, 0)
    losses = []
    for size in (1, 4, 14):
        run = a_run(model, size, wrap=train_m3.Restoration)
        with torch.no_grad():
            losses.append(train_m3.evaluate(run, make_loader(dataset, size, run.processes, train_m3.collate)))
    assert max(losses) - min(losses) < 1e-4 * losses[0]
    sums = np.zeros(2)
    with torch.no_grad():
        for index in range(len(files)):
            output = model.restore(train_m3.collate([dataset[0, index]]))
            sums += [float(output.loss * output.characters), float(output.characters)]
    assert abs(sums[0] / sums[1] - losses[0]) < 1e-4 * losses[0]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_loss_of_clamp2_s_evaluation_is_that_of_all_pairs(world_size, monkeypatch):
    """Pairs of all ranks in their order, in groups whose size depends neither on the batch size nor on the ranks."""
    monkeypatch.setattr(train_clamp2, "EVALUATION_GROUP", 5)
    generator = torch.Generator().manual_seed(0)
    text, music = torch.randn(10, 8, generator=generator), torch.randn(10, 8, generator=generator)

    class Pairs(PieceDataset):
        def __len__(self):
            return 10

        def load(self, index, rng):
            return {"name": str(index), "index": index}

    class Model(torch.nn.Linear):
        def forward(self, batch):
            return text[batch.rows], music[batch.rows]

    batch_size = {1: 4, 2: 3, 3: 1}[world_size]
    others = [torch.stack((text[rank::world_size], music[rank::world_size])) for rank in range(world_size - 1)]
    job = Processes(world_size - 1, world_size - 1, world_size)
    monkeypatch.setattr(job, "gather", lambda own: [*others, own])
    monkeypatch.setattr(job, "sum", lambda tensor: tensor)
    run = a_run(Model(1, 1), batch_size, job)
    loss = train_clamp2.evaluate(run, make_loader(Pairs(False, 0), batch_size, job, collate))
    halves = [utils.ClipLoss(world_size=1)(text[half], music[half]) for half in (slice(0, 5), slice(5, 10))]
    assert abs(loss - float(sum(halves)) / 2) < 1e-6


def test_fewer_evaluation_pairs_than_processes(monkeypatch):
    """A rank without a pair has its part in the evaluation all the same."""
    rows = torch.randn(2, 2, 8, generator=torch.Generator().manual_seed(0))  # text and music of two pairs
    job = Processes(2, 2, 3)
    monkeypatch.setattr(job, "gather", lambda own: [rows[:, :1], rows[:, 1:], own])
    monkeypatch.setattr(job, "sum", lambda tensor: tensor)
    run = a_run(torch.nn.Linear(1, 1), 2, job)

    class Two(Numbers):
        def __len__(self):
            return 2

    loss = train_clamp2.evaluate(run, make_loader(Two(False, 0), 2, job, lambda samples: Tensors()))
    assert abs(loss - float(utils.ClipLoss()(*rows))) < 1e-6


def test_a_process_takes_the_gpu_of_its_number_on_its_machine(monkeypatch):
    """Of whatever kind PyTorch finds; ACCELERATE_USE_CPU is set by `accelerate launch --cpu`."""
    for kind in ("cuda", "mps", "xpu"):
        found = {True: torch.device(kind)}  # of accelerators that are there, and not only built for
        monkeypatch.setattr(
            torch.accelerator, "current_accelerator", lambda check_available, f=found: f[check_available]
        )
        monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
        assert Processes(9, 1, 16).device == torch.device(kind, 1)
        assert linear_probe.pick_device() == torch.device(kind, 0)
        monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
        assert Processes(9, 1, 16).device == torch.device("cpu")
        monkeypatch.setenv("ACCELERATE_USE_CPU", "False")
        assert Processes(0, 0, 1).device == torch.device(kind, 0)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    assert Processes(9, 1, 16).device == torch.device("cpu")


class Numbers(PieceDataset):
    def __len__(self):
        return 4

    def digest(self):
        return "four"

    def load(self, index, rng):
        return {"name": str(index)}


def train(folder, eval_losses):
    """A run in which the evaluations give these losses. Returns the weights file."""
    settings = training.Settings("m3", 3, 1e-3, 2, True, True, False, folder / "weights.pth", folder / "logs.txt")
    run = training.Training(settings, Processes(0, 0, 1), torch.nn.Linear(1, 1))
    run._catch_signals = lambda: None

    def step(run, batch):
        loss = run.parallel(torch.ones(2, 1)).square().mean()
        loss.backward()
        return training.Step(loss, torch.ones_like(loss))

    losses = iter(eval_losses)
    loaders = [make_loader(Numbers(train, 0), 2, run.processes, lambda samples: Tensors()) for train in (True, False)]
    assert run.run(*loaders, step, lambda run, loader: next(losses)) == 0
    return torch.load(folder / "weights.pth", weights_only=True)


def test_the_weights_with_the_lowest_loss_are_kept(tmp_path):
    best = train(tmp_path, [3.0, 1.0, 2.0])
    assert (best["epoch"], best["best_epoch"], best["min_eval_loss"]) == (2, 2, 1.0)
    latest = torch.load(tmp_path / "latest_weights.pth", weights_only=True)
    assert (latest["epoch"], latest["best_epoch"], latest["min_eval_loss"]) == (4, 2, 1.0)
    assert not torch.equal(best["model"]["weight"], latest["model"]["weight"])
    assert "Best Eval Epoch : 2\nMin Eval Loss : 1.0\n" in (tmp_path / "logs.txt").read_text()
    # a run that starts from a weights file evaluates it first, and replaces it only by something better
    (tmp_path / "latest_weights.pth").unlink()
    kept = train(tmp_path, [0.5, 0.9, 0.8, 0.7])
    assert torch.equal(kept["model"]["weight"], best["model"]["weight"])
    (tmp_path / "latest_weights.pth").unlink()
    assert train(tmp_path, [0.5, 0.9, 0.8, 0.4])["min_eval_loss"] == 0.4


# --- where CLaMP 2 starts, precision --------------------------------------------------------------------------------
@pytest.mark.parametrize("load_m3", [True, False])
def test_clamp2_starts_from_m3_and_the_text_model(tmp_path, monkeypatch, load_m3):
    folder = tmp_path / "text"
    shutil.copytree(KIT / "tiny-xlmr", folder)
    text = {name: value + 1 for name, value in load_file(folder / "model.safetensors").items()}  # no seed gives these
    save_file(text, folder / "model.safetensors", {"format": "pt"})
    monkeypatch.setattr(config, "M3_WEIGHTS_PATH", str(KIT / "weights_m3_kit.pth"))
    model = utils.CLaMP2Model(m3_configs()[0], text_model_name=str(folder), hidden_size=48, load_m3=load_m3)
    m3 = load_checkpoint(KIT / "weights_m3_kit.pth")["model"]
    ours = model.music_model.state_dict()
    assert all(torch.equal(value, m3[f"encoder.{name}"]) for name, value in ours.items()) == load_m3
    shared = text.keys() & model.text_model.state_dict().keys()
    assert len(shared) > 30
    assert all(torch.equal(text[name], model.text_model.state_dict()[name]) for name in shared)


def test_clamp2_says_that_there_are_no_weights_of_m3(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(config, "M3_WEIGHTS_PATH", str(tmp_path / "none.pth"))
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(utils.CLaMP2Model(m3_configs()[0], text_model_name=str(KIT / "tiny-xlmr"), hidden_size=48))
    assert capsys.readouterr().out.count(f"CLAMP2_LOAD_M3 is True, but {tmp_path}/none.pth does not exist") == 2
    first, second = (model.music_model.state_dict() for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)  # as on every rank


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_precision(monkeypatch, kind):
    cpu, mac, gpu = torch.device("cpu"), torch.device("mps"), torch.device(kind)
    for has_bf16, auto in ((True, torch.bfloat16), (False, torch.float16)):
        module = getattr(torch, kind)
        monkeypatch.setattr(module, "is_bf16_supported", lambda including_emulation, has=has_bf16: has)
        assert precision(gpu, "auto") == auto
    assert precision(cpu, "auto") == precision(mac, "auto") == precision(gpu, "float32") == torch.float32
    assert precision(gpu, "float16") == torch.float16
    assert precision(cpu, "bfloat16") == precision(mac, "bfloat16") == torch.bfloat16
    for device, wanted in ((cpu, "float16"), (mac, "float16"), (gpu, "bf16")):
        with pytest.raises(InputError, match=f"the precision '{wanted}' is not one of .*config"):
            precision(device, wanted)
