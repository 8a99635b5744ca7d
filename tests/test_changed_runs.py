"""A run that is continued under other settings, on other data, or beside weights that it did not make."""

import contextlib
import os
import signal

import pytest
import torch

import config
import files
import run_log
import train_clamp2
import train_m3
import training
from files import InputError
from helpers import KIT
from loading import Batches, Paths, make_loader
from processes import Processes
from records import Jsonl
from small_runs import OneOfTwo, Pieces, a_run, collate, finish, given, go, latest, linear, records
from test_resume import ORDER, RATE, STEPS, WARMUP, WEIGHTS, save_by_hand


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(config, "NUM_WORKERS", 0)
    monkeypatch.setattr(config, "WARMUP_STEPS", WARMUP)


def steps(count):
    return given(*[([1.0, 1.0], 2.0, 1.0)] * count)


def log_of(folder):
    return (folder / "logs.txt").read_text()


# --- what the order of an epoch depends on ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "train", "deterministic", "expected"),
    [
        ({"batch_size": 3}, 6, False, "batch size 2 -> 3, steps 3 -> 2"),
        ({}, 7, False, "pieces 6 pieces -> 7 pieces"),
        ({}, 6, True, "seed 12345 -> 0"),
    ],
)
def test_another_order_begins_the_epoch_anew(tmp_path, changes, train, deterministic, expected):
    """All pieces of the epoch are read, whatever was done of it before; weights and optimizer go on."""
    save_by_hand(tmp_path)
    run, seen = a_run(tmp_path, num_epoch=3, deterministic=deterministic, **changes), []
    step = given(*[([1.0, 1.0], 2.0, 1.0)] * 3, watch=lambda run, batch: seen.extend(batch.rows.tolist()))
    assert run.model.weight.tolist() == [WEIGHTS] and finish(run, step, [0.7], train=train) == 0
    assert len(seen) == len(set(seen)) == 6
    assert f"{expected}: the epoch in progress begins anew\n" in log_of(tmp_path)
    (record,) = records(tmp_path / "logs.txt")
    assert record["train_loss"] == 2.0  # without the 10 / 4 of the saved step
    assert latest(tmp_path)["lr_sched"]["last_epoch"] == STEPS + 6 // run.settings.batch_size


def test_the_same_order_goes_on_and_reports_no_change(tmp_path):
    save_by_hand(tmp_path)
    assert finish(a_run(tmp_path, num_epoch=3, learning_rate=RATE, deterministic=False), steps(2), [0.7]) == 0
    assert "\n  changed " not in log_of(tmp_path)


def test_a_state_of_before_that_does_not_say_its_order(tmp_path):
    """Its epoch begins anew, and its best weights are evaluated again."""
    save_by_hand(tmp_path)
    state = latest(tmp_path)
    del state["order"], state["evaluation"]
    torch.save(state | {"world_size": 1}, tmp_path / "latest_weights.pth")
    torch.save({"model": {"weight": torch.tensor([[8.0, 9.0]])}}, tmp_path / "weights.pth")
    assert finish(a_run(tmp_path, num_epoch=3, deterministic=False), steps(3), [0.3, 0.7]) == 0
    assert "batch size unknown -> 2, processes unknown -> 1" in log_of(tmp_path)
    assert latest(tmp_path)["min_eval_loss"] == 0.3 and latest(tmp_path)["order"] == ORDER


def test_only_the_evaluation_is_left(tmp_path):
    """Of an epoch whose steps are done, whatever the batch size is now."""
    save_by_hand(tmp_path, step=3)
    assert finish(a_run(tmp_path, num_epoch=3, batch_size=3, deterministic=False), steps(0), [0.7]) == 0
    (record,) = records(tmp_path / "logs.txt")
    assert (record["epoch"], record["train_loss"]) == (3, 10 / 4)


def test_digests_of_pieces(tmp_path):
    """The same in another folder; others for other names, another order or other lines."""
    digests = {
        name: train_m3.M3Dataset(list(paths), True, 0).digest()
        for name, paths in {
            "here": ("/a/x/1.abc", "/a/y/2.abc"),
            "there": ("/elsewhere/b/x/1.abc", "/elsewhere/b/y/2.abc"),
            "order": ("/a/y/2.abc", "/a/x/1.abc"),
            "name": ("/a/x/1.abc", "/a/y/3.abc"),
            "more": ("/a/x/1.abc", "/a/y/2.abc", "/a/y/3.abc"),
            "one": ("/a/x/1.abc",),
            "one there": ("/elsewhere/1.abc",),
            "another one": ("/a/x/2.abc",),
        }.items()
    }
    assert digests["here"] == digests["there"] and digests["one"] == digests["one there"]
    assert len(set(digests.values())) == 6
    assert Paths([]).digest

    def of(text, lines):
        (tmp_path / "x.jsonl").write_text(text)
        return train_clamp2.CLaMP2Dataset(Jsonl(tmp_path / "x.jsonl"), lines, None, True, 0).digest()

    text = '{"a": 1}\n{"b": 22}\n{"c": 3}\n'
    assert of(text, [0, 1]) == of(text, [0, 1])
    assert (
        len({of(text, [0, 1]), of(text, [1, 0]), of(text, [0, 2]), of('{"b": 22}\n{"a": 1}\n{"c": 3}\n', [0, 1])}) == 4
    )


def test_processes_with_other_pieces_of_the_same_number(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "DistributedDataParallel", lambda model, **_: model)
    run = a_run(tmp_path, job=OneOfTwo(answer=lambda value: str(value).replace("6 pieces", "6 others")), batch_size=1)
    with pytest.raises(InputError, match=r"differ in the pieces they find: .*\(6 pieces for.*\(6 others for training"):
        finish(run, steps(0), [])


# --- settings -------------------------------------------------------------------------------------------------------------
def test_a_changed_learning_rate_is_used_and_logged(tmp_path, monkeypatch):
    """The warm-up stays where it was: by hand, 7/16 and 8/16 of the new rate, and 9/10 after a change of its length."""
    save_by_hand(tmp_path)
    run, rates = a_run(tmp_path, num_epoch=3, learning_rate=0.4, deterministic=False), []

    def watch(run, batch):
        rates.append(run.optimizer.param_groups[0]["lr"])
        assert run.lr_sched.get_last_lr() == rates[-1:]

    finish(run, given(*[([1.0, 1.0], 2.0, 1.0)] * 2, watch=watch), [0.7])
    assert rates == pytest.approx([0.4 * 7 / 16, 0.4 * 8 / 16])
    assert "  changed " in log_of(tmp_path) and f"learning rate {RATE} -> 0.4\n" in log_of(tmp_path)
    monkeypatch.setattr(config, "WARMUP_STEPS", 10)
    rates.clear()
    run = a_run(tmp_path, num_epoch=4, learning_rate=0.4, deterministic=False)
    finish(run, given(*[([1.0, 1.0], 2.0, 1.0)] * 3, watch=watch), [0.7])
    assert rates == pytest.approx([0.4 * 9 / 10, 0.4, 0.4])
    assert log_of(tmp_path).count("learning rate 0.1 ->") == 1  # the second time, it is the same


def test_options_of_a_saved_optimizer_do_not_replace_those_of_the_run(tmp_path, monkeypatch):
    """A state that was saved without the fused form, under the scaler of float16: one step by hand, of Adam's moments."""
    monkeypatch.setattr(training, "precision", lambda device, wanted: torch.float16)
    save_by_hand(tmp_path)
    state = latest(tmp_path)
    state["optimizer"]["param_groups"][0] |= {"fused": None, "foreach": True, "weight_decay": 0.5}
    torch.save(state, tmp_path / "latest_weights.pth")
    run = a_run(tmp_path, num_epoch=3, deterministic=False)
    fresh = torch.optim.AdamW(linear([1.0, 1.0]).parameters(), fused=True).param_groups[0]
    ours = run.optimizer.param_groups[0]
    assert {name: ours[name] for name in fresh if name not in ("params", "lr")} == {
        name: value for name, value in fresh.items() if name not in ("params", "lr")
    }
    finish(run, given(([3.0, 4.0], 1.0, 1.0), ([3.0, 4.0], 1.0, 1.0)), [0.7])
    means = latest(tmp_path)["optimizer"]["state"][0]["exp_avg"][0].tolist()
    assert means == pytest.approx([0.81 * 0.03 + 0.19 * 3, 0.81 * -0.2 + 0.19 * 4], rel=1e-5)


@pytest.mark.parametrize(("evaluation", "count"), [({"M3_MASK_RATIO": 0.3}, 3), ({}, 4)])
def test_another_evaluation_evaluates_the_best_weights_again(tmp_path, evaluation, count):
    """With the weights of the file; then those of the state go on."""
    save_by_hand(tmp_path)
    torch.save({"model": {"weight": torch.tensor([[8.0, 9.0]])}}, tmp_path / "weights.pth")
    evaluated = []
    run = a_run(tmp_path, num_epoch=3, learning_rate=0.0, deterministic=False, evaluation=evaluation)
    watch = lambda run: evaluated.append(run.model.weight.tolist()[0])  # noqa: E731
    finish(run, steps(2), [0.9, 0.7], evaluation=count, watch=watch)
    assert evaluated == [[8.0, 9.0], WEIGHTS]
    assert latest(tmp_path)["min_eval_loss"] == 0.7 and latest(tmp_path)["best_epoch"] == 3  # 0.5 was of another one
    assert "the best weights are evaluated again\n" in log_of(tmp_path)
    assert latest(tmp_path)["evaluation"] == evaluation | {"pieces": f"{count} pieces"}


def test_without_best_weights_any_is_the_best_of_another_evaluation(tmp_path):
    save_by_hand(tmp_path)
    finish(a_run(tmp_path, num_epoch=3, deterministic=False), steps(2), [0.7], evaluation=4)
    assert latest(tmp_path)["min_eval_loss"] == 0.7 and (tmp_path / "weights.pth").exists()


def test_constants_of_the_evaluation(tmp_path, monkeypatch):
    """Those that the trainers give: what changes the evaluation loss of the same model."""
    found = []

    def stop(settings, *_):
        found.append(settings.evaluation)
        raise InputError("seen")

    monkeypatch.setattr(training, "Training", stop)
    monkeypatch.setattr(train_m3, "M3Model", lambda *_: None)
    monkeypatch.setattr(train_clamp2, "CLaMP2Model", lambda *_, **__: None)
    (tmp_path / "x.jsonl").write_text("{}\n" * 4)
    values = {
        "TRAIN_FOLDERS": [str(KIT / "mtf")],
        "TRAIN_JSONL": str(tmp_path / "x.jsonl"),
        "EVAL_SPLIT": 0.5,
        "M3_MASK_RATIO": 0.3,
    }
    values |= {"TEXT_MODEL_NAME": str(KIT / "tiny-xlmr"), "LOGIT_SCALE": 3, "MAX_TEXT_LENGTH": 7}
    values |= {"M3_WEIGHTS_PATH": str(tmp_path / "m3.pth"), "CLAMP2_WEIGHTS_PATH": str(tmp_path / "clamp2.pth")}
    for name, value in values.items():
        monkeypatch.setattr(config, name, value)
    for trainer in (train_m3, train_clamp2):
        with pytest.raises(InputError, match="seen"):
            trainer.main(Processes(0, 0, 1))
    assert found == [{"M3_MASK_RATIO": 0.3}, {"LOGIT_SCALE": 3, "MAX_TEXT_LENGTH": 7}]


# --- a signal in an evaluation ----------------------------------------------------------------------------------------------
def test_told_to_stop_in_an_evaluation(tmp_path, capsys):
    """The steps of the epoch are saved before it; it is left after a batch, and done when the run continues."""

    def evaluate(run, loader):
        for number, _ in enumerate(run.evaluation_batches(loader)):
            left.append(number)
            if number == 1:
                assert latest(tmp_path)["step"] == 3
                os.kill(os.getpid(), signal.SIGTERM)
        return 0.5

    def start():
        run = a_run(tmp_path, num_epoch=1)
        loaders = [
            make_loader(Pieces(count, train), 2, run.processes, collate) for count, train in ((6, True), (20, False))
        ]
        return go(run, loaders, steps(3), evaluate)

    left = []
    assert start() == training.INTERRUPTED and left == [0, 1, 2]  # read a batch late
    assert "stopped in epoch 1 after step 3, as asked" in capsys.readouterr().out and not records(tmp_path / "logs.txt")
    run, read = a_run(tmp_path, num_epoch=1), []
    assert finish(run, given(watch=lambda *_: read.append(1)), [0.5]) == 0 and read == []
    (record,) = records(tmp_path / "logs.txt")
    assert (record["epoch"], record["train_loss"], latest(tmp_path)["epoch"]) == (1, 2.0, 2)


@pytest.mark.parametrize(("rank", "batches"), [(0, 3), (1, 2)])
@pytest.mark.parametrize("told", [False, True])
def test_an_evaluation_is_left_by_all_ranks_together(tmp_path, monkeypatch, rank, batches, told):
    """5 pieces are 3 batches of one rank and 2 of the other: each asks 2 times, and leaves after one batch if the other
    was told to stop in it."""
    monkeypatch.setattr(training, "DistributedDataParallel", lambda model, **_: model)
    asked, read = [], []

    class Rank(OneOfTwo):
        def sum(self, tensor):
            asked.append(tensor.item())
            return tensor.add_(float(told))

    job = Rank()
    run = a_run(tmp_path, job=job)
    job.rank = rank
    with pytest.raises(training.Stopped) if told else contextlib.nullcontext():
        for batch in run.evaluation_batches(make_loader(Pieces(5, False), 1, job, collate)):
            read.append(batch)
    assert (len(asked), len(read)) == ((1, 1) if told else (2, batches))


@pytest.mark.parametrize(("count", "world_size", "size"), [(5, 2, 1), (10, 3, 2), (2, 3, 4), (720, 8, 7), (12, 2, 3)])
def test_batches_that_every_rank_has(count, world_size, size):
    """What they ask each other in is the same number for all, and the least."""
    ranks = [Batches(count, size, Processes(rank, rank, world_size), 0, False) for rank in range(world_size)]
    assert {ranks[0].on_every_rank} == {r.on_every_rank for r in ranks} == {min(len(list(r)) for r in ranks)}


# --- weights of another run --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("load_ckpt", [True, False])
@pytest.mark.parametrize("links", [True, False])
def test_weights_that_a_run_did_not_make_are_kept(tmp_path, monkeypatch, capsys, load_ckpt, links):
    """Such as a download. Once; what the run itself has written is replaced as ever."""
    weights = tmp_path / "weights.pth"
    torch.save({"model": {"weight": torch.tensor([[5.0, 6.0]])}}, weights)
    os.utime(weights, (1e9, 1e9))
    before = weights.read_bytes()
    if not links:

        def refuse(*_):
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(os, "link", refuse)
    losses = [0.8, 0.5] if load_ckpt else [0.5]
    assert finish(a_run(tmp_path, load_ckpt=load_ckpt), steps(3), losses) == 0
    assert finish(a_run(tmp_path, num_epoch=2), steps(3), [0.4]) == 0
    [kept] = tmp_path.glob("kept_*")
    assert kept.name.startswith("kept_20010909-") and kept.name.endswith("_weights.pth") and kept.read_bytes() == before
    assert f"weights.pth is kept as {kept.name}" in capsys.readouterr().out
    assert torch.load(weights, weights_only=True)["min_eval_loss"] == 0.4


def test_a_linked_file_is_replaced_without_a_copy(tmp_path):
    (tmp_path / "there").mkdir()
    torch.save({"model": {"weight": torch.tensor([[5.0, 6.0]])}}, tmp_path / "there" / "weights.pth")
    (tmp_path / "weights.pth").symlink_to(tmp_path / "there" / "weights.pth")
    finish(a_run(tmp_path), steps(3), [0.8, 0.5])
    assert not list(tmp_path.glob("kept_*")) and not (tmp_path / "weights.pth").is_symlink()
    assert "min_eval_loss" not in torch.load(tmp_path / "there" / "weights.pth", weights_only=True)


# --- full disks -----------------------------------------------------------------------------------------------------------------
class FullDisk:
    """A file on a disk that has room for some more bytes."""

    def __init__(self, file, room):
        self.file, self.room, self.tell, self.truncate = file, room, file.tell, file.truncate

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, data):
        if not self.room:
            raise OSError(28, "No space left on device")
        return self.file.write(data[: self.room])


@pytest.mark.parametrize("room", [0, 30])
def test_a_full_disk_under_the_log(tmp_path, monkeypatch, room):
    """While an epoch's lines are written: one line with the file's name, nothing half; continued, they come once."""
    run = a_run(tmp_path)
    epoch = run_log.RunLog.epoch

    def full(log, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr(run_log, "open", lambda *a, **o: FullDisk(open(*a, **o), room), raising=False)  # noqa: SIM115
            epoch(log, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(run_log.RunLog, "epoch", full)
        with pytest.raises(InputError, match=rf"^{tmp_path}/logs\.txt: cannot be written \(.*\); is the disk full\?"):
            finish(run, steps(3), [0.5])
    assert log_of(tmp_path).endswith("\n\n") and "Epoch 1" not in log_of(tmp_path)
    assert finish(a_run(tmp_path), steps(0), [0.5]) == 0
    assert [record["epoch"] for record in records(tmp_path / "logs.txt")] == [1] and log_of(tmp_path).count(
        "Epoch 1\n"
    ) == 1


def test_a_full_disk_under_the_best_weights(tmp_path, monkeypatch):
    """What was there is kept, and the same command writes the better ones."""
    torch.save({"model": {"weight": torch.tensor([[5.0, 6.0]])}}, tmp_path / "weights.pth")
    before, fsync = (tmp_path / "weights.pth").read_bytes(), os.fsync

    def full(number):
        if (tmp_path / "latest_weights.pth").exists():
            raise OSError(28, "No space left on device")
        fsync(number)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(OSError, match="No space left on device") as problem:
            finish(a_run(tmp_path), steps(3), [0.8, 0.5])
    assert problem.value.filename == str(tmp_path / "weights.pth")  # which makes it one line
    assert (tmp_path / "weights.pth").read_bytes() == before and not list(tmp_path.glob(".tmp-*"))
    assert finish(a_run(tmp_path), steps(0), [0.5]) == 0
    assert torch.load(tmp_path / "weights.pth", weights_only=True)["min_eval_loss"] == 0.5
