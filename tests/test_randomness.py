"""Where dropout is on, and on what the random numbers of a training depend: each thing alone, and nothing else."""

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

import config
import packing
import train_clamp2
import train_m3
import training
from files import InputError
from helpers import KIT, KIT_SIZES
from loading import Batches, PieceDataset, make_loader
from processes import Processes
from small_runs import tiny_model

FILES = [str(path) for kind in ("interleaved", "mtf") for path in sorted((KIT / kind).iterdir())]
ALONE = Processes(0, 0, 1)


@pytest.fixture(autouse=True)
def no_workers(monkeypatch):
    monkeypatch.setattr(config, "NUM_WORKERS", 0)


def set_global_states(seed):
    """Of all generators that a library shares."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def pairs(count):
    """Texts and short pieces of different lengths."""
    generator = torch.Generator().manual_seed(1)
    lengths = [12, 3, 7, 9, 5][:count]
    return [
        {
            "text": torch.randint(4, 300, (words,), generator=generator).numpy(),
            "music": torch.randint(4, 128, (bars, 64), generator=generator).numpy(),
        }
        for words, bars in zip(lengths, reversed(lengths), strict=True)
    ]


def m3_batch():
    dataset = train_m3.M3Dataset([str(KIT / "interleaved" / name) for name in ("tiny.abc", "solo_jig.abc")], True, 0)
    return train_m3.collate([dataset[1, index] for index in range(2)])


def outputs(kind, model):
    """What the model gives for a batch in the mode that it is in."""
    if kind == "m3":
        return [model.restore(m3_batch()).loss]
    return list(train_clamp2.PairFeatures(model)(train_clamp2.Pairs(pairs(2))))


# --- dropout --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["m3", "clamp2"])
def test_each_dropout_acts_in_training_and_none_in_evaluation(kind):
    """Each alone, that of the attention weights too. Of several hundred elements, at least one is dropped."""
    model = tiny_model(kind)
    for parameter in model.parameters():
        parameter.data *= 5  # so that what is dropped shows in the loss
    dropouts = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout)}
    assert {module.p for module in dropouts.values()} == {0.1}
    assert sum("attention.self" in name or "attn_dropout" in name for name in dropouts) == (3 if kind == "m3" else 4)
    with torch.no_grad():
        model.eval()
        expected = outputs(kind, model)
        assert all(map(torch.equal, outputs(kind, model), expected))
        model.train()
        for module in dropouts.values():
            module.p = 0.0
        assert all(map(torch.equal, outputs(kind, model), expected))
        for name, module in dropouts.items():
            module.p = 0.1
            first, second = outputs(kind, model), outputs(kind, model)
            assert not all(map(torch.equal, first, second)), name
            module.p = 0.0


@pytest.mark.parametrize("causal", [False, True])
def test_attention_weights_are_dropped_at_the_rate_asked_for(causal):
    """Queries of zero attend alike to all, and one-hot values show the weights."""
    lengths = torch.tensor([64, 40])
    batch = packing.Packing.of_lengths(lengths.tolist())
    count, heads = int(lengths.sum()), 16
    zeros = torch.zeros(1, heads, count, 64)
    values = torch.eye(64)[batch.positions].expand(1, heads, -1, -1)
    module = torch.nn.Module()
    module.is_causal = causal
    torch.manual_seed(0)
    weights, _ = packing.packed_attention(module, zeros, zeros, values, None, batch, dropout=0.25)
    seen = batch.positions + 1 if causal else lengths[batch.sequences]  # [N], tokens that a token attends to
    weights = weights[0] * seen[:, None, None]  # [N, A, T]: 1 / (1 - p), or 0 where it is dropped
    allowed = (torch.arange(64) < seen[:, None])[:, None].expand_as(weights)
    assert not weights[~allowed].any()
    kept = weights[allowed] > 0
    torch.testing.assert_close(weights[allowed][kept], torch.full((int(kept.sum()),), 1 / 0.75))
    assert abs(float(kept.float().mean()) - 0.75) < 5 * (0.25 * 0.75 / len(kept)) ** 0.5  # five standard deviations


def a_run(model, folder=Path("none"), num_epoch=1, batch_size=2, job=ALONE, deterministic=True, wrap=lambda it: it):
    paths = folder / "weights.pth", folder / "logs.txt"
    settings = training.Settings("m3", num_epoch, 1e-3, batch_size, deterministic, False, False, *paths)
    return training.Training(settings, job, model, wrap)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_micro_batches_with_dropout_give_the_gradient_of_the_whole_batch(size, monkeypatch):
    """Of the whole batch with the same dropout: its parts one after another, with a graph, from the same seed."""
    model = tiny_model("clamp2").train()
    samples = pairs(5)

    def gradients(loss_of, seed=3):
        model.zero_grad()
        torch.manual_seed(seed)
        loss = loss_of()
        return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    def by_hand():
        parts = [train_clamp2.Pairs(samples[start : start + size]) for start in range(0, 5, size)]
        text, music = map(torch.cat, zip(*map(train_clamp2.PairFeatures(model), parts), strict=True))
        scores = text @ music.T
        loss = -(scores.log_softmax(1).diag().mean() + scores.log_softmax(0).diag().mean()) / 2
        loss.backward()
        return loss

    def by_the_trainer():
        return train_clamp2.step(a_run(model, wrap=train_clamp2.PairFeatures), train_clamp2.PairBatch(samples)).total

    monkeypatch.setattr(config, "CLAMP2_MICRO_BATCH", size)
    loss, ours = gradients(by_the_trainer)
    expected_loss, expected = gradients(by_hand)
    assert loss == pytest.approx(expected_loss, rel=1e-5) and ours.keys() == expected.keys() and len(ours) > 50
    _, other_draw = gradients(by_hand, seed=4)
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        assert float((ours[name] - gradient).abs().max()) < 1e-4 * scale + 1e-7, name
        if "key.bias" not in name:  # its gradient is zero
            assert float((other_draw[name] - gradient).abs().max()) > 0.01 * scale, name


# --- steps ----------------------------------------------------------------------------------------------------------
class Pieces(PieceDataset):
    """Numbered pieces with a random number each. Every fifth is bad, and another one is drawn in its place."""

    def __len__(self):
        return 24

    def digest(self):
        return "24"

    def load(self, index, rng):
        if index % 5 == 0:
            raise InputError(f"{index} is bad")
        return {"name": f"{index} {rng.getrandbits(64)}"}


def loader_of(job, seed=0, batch_size=2, train=True):
    return make_loader(Pieces(train, seed), batch_size, job, lambda _: packing.Tensors())


def draws(folder, monkeypatch, *, seed=0, rank=0, world_size=1, batch_size=2, num_epoch=12, disturb=lambda: None):
    """What each step draws, under (epoch, step). All is real but the model and the other ranks.

    disturb: called before the run, in each step behind the draw, and in each evaluation.
    """
    job = Processes(rank, rank, world_size)
    for name, value in {"broadcast": lambda _: seed, "gather": lambda value: [value], "sum": lambda x: x}.items():
        monkeypatch.setattr(job, name, value)
    monkeypatch.setattr(training, "DistributedDataParallel", lambda model, **_: model)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    found = {}

    def step(run, batch):
        found[run.progress.epoch, run.progress.step] = tuple(torch.rand(2).tolist())
        disturb()
        loss = run.parallel(torch.ones(1, 1)).square().mean()
        loss.backward()
        return training.Step(loss, torch.ones_like(loss))

    def evaluate(run, loader):
        disturb()
        return 1.0

    disturb()
    run = a_run(torch.nn.Linear(1, 1), folder, num_epoch, batch_size, job, deterministic=False)
    assert run.run(*(loader_of(job, seed, batch_size, train) for train in (True, False)), step, evaluate) == 0
    return found


def test_what_a_step_draws_depends_on_seed_epoch_step_and_rank(tmp_path, monkeypatch):
    """All differ, (epoch 1, step 11) and (epoch 11, step 1) too."""
    found = {
        (seed, rank): draws(tmp_path, monkeypatch, seed=seed, rank=rank, world_size=2, batch_size=1)
        for seed in range(2)
        for rank in range(2)
    }
    assert all(len(steps) == 12 * 12 for steps in found.values())
    assert len(set(itertools.chain(*(steps.values() for steps in found.values())))) == 4 * 12 * 12


def test_what_a_step_draws_depends_on_nothing_else(tmp_path, monkeypatch):
    counter = itertools.count(1)
    expected = draws(tmp_path, monkeypatch, num_epoch=2)
    for changes in ({"disturb": lambda: set_global_states(next(counter))}, {"world_size": 2, "batch_size": 1}):
        assert draws(tmp_path, monkeypatch, num_epoch=2, **changes) == expected
    fewer = draws(tmp_path, monkeypatch, num_epoch=2, batch_size=3)
    assert len(fewer) == 16 and fewer.items() <= expected.items()
    monkeypatch.setattr(config, "NUM_WORKERS", 1)
    assert draws(tmp_path, monkeypatch, num_epoch=2) == expected


def test_the_seed_of_a_run(monkeypatch):
    """0, or the one that rank 0 draws."""

    def seed(rank, deterministic, of_rank_0=None):
        job = Processes(rank, rank, 2)
        monkeypatch.setattr(job, "gather", lambda value: [value])
        monkeypatch.setattr(job, "broadcast", lambda value: value if rank == 0 else of_rank_0)
        return a_run(torch.nn.Linear(1, 1), job=job, deterministic=deterministic).progress.seed

    monkeypatch.setattr(training, "DistributedDataParallel", lambda model, **_: model)
    assert seed(0, True) == seed(1, True, 77) == 0
    drawn = {seed(0, False) for _ in range(5)}
    assert len(drawn) == 5 and min(drawn) >= 0  # two are the same once in 2 ** 28 times
    assert seed(1, False, 77) == 77


@pytest.mark.parametrize("kind", ["m3", "clamp2"])
def test_new_weights_are_the_same_on_every_rank(kind, tmp_path, monkeypatch):
    class MadeError(Exception):
        """Carries the model that a trainer starts with."""

    def made(settings, job, model, *_):
        raise MadeError(model)

    monkeypatch.setattr(training, "Training", made)
    (tmp_path / "pieces.jsonl").write_text('{"filepaths": ["a.abc"]}\n' * 4)
    constants = {"TRAIN_FOLDERS": [str(KIT / "mtf")], "TRAIN_JSONL": str(tmp_path / "pieces.jsonl"), "EVAL_SPLIT": 0.5}
    constants |= KIT_SIZES | {"CLAMP2_LOAD_M3": False, "TEXT_MODEL_NAME": str(KIT / "tiny-xlmr")}
    constants |= {"M3_WEIGHTS_PATH": str(tmp_path / "m3.pth"), "CLAMP2_WEIGHTS_PATH": str(tmp_path / "clamp2.pth")}
    for name, value in constants.items():
        monkeypatch.setattr(config, name, value)
    models = []
    for rank in range(2):
        set_global_states(rank + 5)
        with pytest.raises(MadeError) as raised:
            {"m3": train_m3, "clamp2": train_clamp2}[kind].main(Processes(rank, rank, 2))
        models.append(raised.value.args[0].state_dict())
    assert all(torch.equal(models[0][name], value) for name, value in models[1].items())


# --- pieces ---------------------------------------------------------------------------------------------------------
def names_of(loader, epoch):
    loader.batch_sampler.epoch = epoch
    return [batch["names"] for batch in loader]


def test_what_is_drawn_for_a_piece_depends_on_seed_epoch_and_piece():
    """All differ, (epoch 1, piece 12) and (epoch 11, piece 2) too, and the pieces that stand in for bad ones."""
    drawn = [Pieces(True, s)[epoch, index]["name"] for s in range(12) for epoch in range(12) for index in range(24)]
    assert len({name.split()[1] for name in drawn}) == len(drawn) == 12 * 12 * 24


@pytest.mark.parametrize("train", [True, False])
def test_what_is_drawn_for_a_piece_does_not_depend_on_workers_ranks_and_global_states(train, monkeypatch):
    expected = [names_of(loader_of(ALONE, batch_size=6, train=train), epoch) for epoch in (1, 2)]
    assert (expected[0] != expected[1]) == train
    for workers in (0, 1, 2):
        monkeypatch.setattr(config, "NUM_WORKERS", workers)
        set_global_states(workers + 5)
        loader = loader_of(ALONE, batch_size=6, train=train)
        assert [names_of(loader, epoch) for epoch in (1, 2)] == expected
    monkeypatch.setattr(config, "NUM_WORKERS", 0)
    for world_size in (2, 3):
        jobs = [Processes(rank, rank, world_size) for rank in range(world_size)]
        ranks = [names_of(loader_of(job, batch_size=6 // world_size, train=train), 1) for job in jobs]
        together = itertools.chain(*itertools.chain(*ranks))
        assert sorted(together) == sorted(itertools.chain(*expected[0]))


def clamp2_dataset(folder, train, seed):
    """A record with a choice of everything, eight times."""
    for kind in ("interleaved", "mtf"):
        if not (folder / kind).exists():
            (folder / kind).symlink_to(KIT / kind)
    path = folder / "pieces.jsonl"
    path.write_text(
        '{"title": "A", "composer": "B", "genres": ["C", "D"], "summary_en": ["E", "F"], "summary_nen": {"summary":'
        ' "G"}, "filepaths": ["interleaved/long_duo.abc", "interleaved/quartet.abc", "mtf/long.mtf"]}\n' * 8
    )
    tokenizer = AutoTokenizer.from_pretrained(KIT / "tiny-xlmr")
    return train_clamp2.CLaMP2Dataset(train_clamp2.Jsonl(path), list(range(8)), tokenizer, train, seed)


def m3_dataset(folder, train, seed):
    return train_m3.M3Dataset(
        [str(KIT / "interleaved" / "long_duo.abc"), str(KIT / "mtf" / "long.mtf")] * 4, train, seed
    )


@pytest.mark.parametrize("dataset", [m3_dataset, clamp2_dataset])
def test_augmentation_depends_on_seed_epoch_and_piece_alone(dataset, tmp_path):
    """Eight samples of the same music, half of it longer than a segment. That all eight are the same as eight others
    by chance is less likely than 1e-6."""

    def samples(data, epoch=1, indices=range(8)):
        return [repr([np.asarray(value).tobytes() for value in data[epoch, index].values()]) for index in indices]

    expected = samples(dataset(tmp_path, True, 0))
    assert len(set(expected)) > 2  # on the piece
    assert samples(dataset(tmp_path, True, 0), epoch=2) != expected
    assert samples(dataset(tmp_path, True, 1)) != expected
    for state in (5, 6):
        set_global_states(state)
        data = dataset(tmp_path, True, 0)
        backwards = samples(data, indices=reversed(range(8)))
        assert samples(data) == backwards[::-1] == expected
    for state in (5, 6):
        set_global_states(state)
        evaluated = samples(dataset(tmp_path, False, 0))
        assert evaluated == samples(dataset(tmp_path, False, 0), indices=range(8))


def test_the_order_of_an_epoch_depends_on_seed_and_epoch_alone():
    def order(seed, epoch, batch_size=2):
        sampler = Batches(24, batch_size, ALONE, seed, True)
        sampler.epoch = epoch
        keys = list(itertools.chain(*sampler))
        assert list(itertools.chain(*sampler)) == keys and {key[0] for key in keys} == {epoch}
        return tuple(index for _, index in keys)

    orders = {(seed, epoch): order(seed, epoch) for seed in range(4) for epoch in range(4)}
    assert len(set(orders.values())) == 16
    for state in (5, 6):
        set_global_states(state)
        assert order(1, 2) == order(1, 2, batch_size=3) == orders[1, 2]
