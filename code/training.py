"""What the two trainers share: processes, data loading, precision, the epoch loop, checkpoints and logs.

A run is a function of its settings, its seed and its data alone: what happens to a piece in an epoch (augmentation)
is drawn from (seed, epoch, piece), and dropout from (seed, epoch, step, rank). So the number of loader workers
changes nothing, and no random state has to be saved for a run to continue exactly.
"""

import math
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import get_constant_schedule_with_warmup

import config
from checkpoints import load_checkpoint, load_weights, save_checkpoint
from cpu import release_freed_memory
from files import InputError
from loading import Batches, PieceDataset, close_loader, make_loader
from packing import Tensors
from processes import OnItsWay, Processes, precision
from run_log import RunLog, choose_logger, commit
from run_state import Settings, differences, keep, load_start, restore_optimizer
from utils import split_data

T = TypeVar("T")

RELEASE_EVERY = 50  # steps on a CPU, after which memory that was freed is given back: it takes part of the next one
INTERRUPTED = 130  # exit status of a run that was told to stop, saved and can continue


class Stopped(Exception):
    """Some process was told to stop."""


@dataclass
class Step:
    """What a step tells: the loss, as a sum and the number of things it is summed over, of this process."""

    total: Tensor
    weight: Tensor


@dataclass
class _Report:
    """What a step reports. Its numbers are read a step later, when they are there, so that the GPU never waits."""

    numbers: OnItsWay  # over all ranks: of the loss, of its weight, of those told to stop; and the gradient's norm
    step: int  # of the epoch
    step_of_run: int
    names: list[str]  # of this rank's pieces
    seconds: float  # since the step before
    learning_rate: float


class Training:
    """A run of one of the two models. The trainer says how a step and an evaluation are done:

    step(training, batch) -> Step           back-propagates the loss of a batch
    evaluate(training, loader) -> float     the loss on the evaluation data, the same on every rank

    Args:
        wrap: what a step runs is `wrap(model)`; by default the model itself.
    Attributes: `model`; `module`, which is `wrap(model)`; and `parallel`, the same with gradients averaged over all
    processes.
    """

    def __init__(
        self,
        settings: Settings,
        processes: Processes,
        model: nn.Module,
        wrap: Callable[[Any], nn.Module] = lambda model: model,
    ):
        self.settings, self.processes = settings, processes
        logger = choose_logger(settings.name, settings.wandb_log)
        self.log = RunLog(processes, settings.name, settings.logs_path, logger, settings.weights_path.stem)
        self.device = processes.device
        self.dtype = precision(self.device, config.PRECISION)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.problems: set[str] = set()  # with pieces that this rank has met, and that were not named yet
        self.changes: list[str] = []  # since the run that saved the state
        self.order: dict = {}  # what the pieces of each step depend on
        self.evaluation: dict = {}  # what the evaluation loss of a model depends on
        self._stop = False
        self.model = model
        state, self.progress, self.started_from = load_start(settings, processes, model)
        self.model.to(self.device)
        # one optimizer for the whole run; the schedule and a resumed run's state hold on to it
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=settings.learning_rate, fused=True)
        self.lr_sched = get_constant_schedule_with_warmup(self.optimizer, config.WARMUP_STEPS)
        self.continues = state is not None
        if state:
            self._restore(state)
        self.parallel = self.module = wrap(model)
        if processes.world_size > 1:
            ids = [processes.local_rank] if self.device.type == "cuda" else None
            self.parallel = DistributedDataParallel(
                self.module, device_ids=ids, gradient_as_bucket_view=True, broadcast_buffers=False
            )
        if settings.deterministic:
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False

    def _restore(self, state: dict) -> None:
        """Restores what a saved state holds beside the weights, under the settings of this run."""
        restore_optimizer(self.optimizer, state["optimizer"])
        rate, steps = self.settings.learning_rate, state["lr_sched"]["last_epoch"]
        self.lr_sched = get_constant_schedule_with_warmup(self.optimizer, config.WARMUP_STEPS, steps - 1)
        self.lr_sched._step_count = steps + 1
        if state["scaler"]:  # a run in another precision has none
            self.scaler.load_state_dict(state["scaler"])
        if rate != state["lr_sched"]["base_lrs"][0]:
            self.changes.append(f"learning rate {state['lr_sched']['base_lrs'][0]} -> {rate}")
        self.order = {"seed": state["seed"]} | state.get("order", {})
        self.evaluation = state.get("evaluation", {})

    def _compare(self, train_loader: DataLoader, eval_loader: DataLoader) -> bool:
        """Begins the epoch anew if its order is another than in the saved state. Returns whether the evaluation is."""
        settings, progress, before, evaluated = self.settings, self.progress, self.order, self.evaluation
        self.order = {
            "seed": progress.seed,
            "batch size": settings.batch_size,
            "processes": self.processes.world_size,
            "pieces": train_loader.dataset.digest(),  # type: ignore[attr-defined]
            "steps": len(train_loader.batch_sampler),  # type: ignore[arg-type]
        }
        self.evaluation = settings.evaluation | {"pieces": eval_loader.dataset.digest()}  # type: ignore[attr-defined]
        digests = f"{self.order['pieces']} for training, {self.evaluation['pieces']} for evaluation"
        self.processes.require_same("the pieces they find", f"{_pieces(train_loader, eval_loader)} ({digests})")
        told = self.order | self.evaluation | settings.pace() | {"evaluated": evaluated, "from": self.started_from}
        self.processes.require_same("their settings or in the saved state", str(told))
        if not self.continues:
            return False
        if progress.step == before.get("steps"):
            progress.step = self.order["steps"]  # only the evaluation is left of this epoch
        elif progress.step and before != self.order:
            self.changes.append(f"{differences(before, self.order)}: the epoch in progress begins anew")
            progress.begin_epoch(progress.epoch)
        if evaluated == self.evaluation:
            return False
        self.changes.append(
            f"evaluation {differences(evaluated, self.evaluation)}: the best weights are evaluated again"
        )
        return True

    def published_state(self, epoch: int) -> dict:
        """A checkpoint in the published form."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lr_sched": self.lr_sched.state_dict(),
            "epoch": epoch,
            "best_epoch": self.progress.best_epoch,
            "min_eval_loss": self.progress.min_eval_loss,
        }

    def save_latest(self) -> None:
        """The complete state, from which the run continues exactly."""
        self._tell_bad_pieces()
        if self.processes.rank == 0:
            state = self.published_state(self.progress.epoch) | vars(self.progress)
            state |= {"scaler": self.scaler.state_dict(), "order": self.order, "evaluation": self.evaluation}
            began = time.monotonic()
            save_checkpoint(self.settings.latest_path, state)
            if (seconds := time.monotonic() - began) >= 1:  # what a cluster's time limit must leave room for
                self.processes.say(f"saved {self.settings.latest_path.name} in {seconds:.1f} s")
        self.processes.wait_for_all()  # a launcher would kill rank 0 while it saves, 30 s after another one has ended

    def run(self, train_loader: DataLoader, eval_loader: DataLoader, step: "StepFunction", evaluate: "Evaluate") -> int:
        """All epochs. Returns the exit status."""
        try:
            return self._run(train_loader, eval_loader, step, evaluate)
        except Stopped:
            where = f"epoch {self.progress.epoch} after step {self.progress.step}"
            self.processes.say(f"stopped in {where}, as asked; the same command continues there")
            return INTERRUPTED
        finally:
            close_loader(train_loader)
            close_loader(eval_loader)
            self.log.close()

    def _run(
        self, train_loader: DataLoader, eval_loader: DataLoader, step: "StepFunction", evaluate: "Evaluate"
    ) -> int:
        progress, path = self.progress, self.settings.weights_path
        is_evaluated_otherwise = self._compare(train_loader, eval_loader)
        steps = len(train_loader.batch_sampler)  # type: ignore[arg-type]
        self.log.begin(self._facts(train_loader, eval_loader), (progress.epoch - 1) * steps + progress.step)
        if not self.continues and self.processes.rank == 0 and (kept := keep(path)):
            self.processes.say(f"{path.name} is kept as {kept.name}, for the best weights of this run to take its name")
        if progress.epoch > self.settings.num_epoch:
            self.processes.say(self._nothing_left())
        self._catch_signals()
        if is_evaluated_otherwise or self.started_from == str(path):
            self._evaluate_best(evaluate, eval_loader)
        while progress.epoch <= self.settings.num_epoch:
            began = time.monotonic()
            if progress.step < steps:
                is_finished = self._train_one_epoch(train_loader, step)
                self.save_latest()
                if not is_finished:
                    raise Stopped
            eval_loss = self._evaluate(evaluate, eval_loader)
            record = {
                "epoch": progress.epoch,
                "train_loss": progress.total / progress.weight,
                "eval_loss": eval_loss,
                "learning_rate": self.lr_sched.get_last_lr()[0],
                "seconds": round(time.monotonic() - began, 1),
                "bad_pieces": self._tell_bad_pieces(),
            }
            if eval_loss < progress.min_eval_loss:
                progress.best_epoch, progress.min_eval_loss = progress.epoch, eval_loss
                if self.processes.rank == 0:
                    save_checkpoint(path, self.published_state(progress.epoch))
            self.log.epoch(record, progress.epoch * steps)
            progress.begin_epoch(progress.epoch + 1)
            self.save_latest()
        summary = f"Best Eval Epoch : {progress.best_epoch}\nMin Eval Loss : {progress.min_eval_loss}\n"
        self.log.write(summary)
        missing = "" if path.exists() else f" (missing; the last epoch's are in {self.settings.latest_path.name})"
        self.processes.say(f"{summary}bad pieces: {len(progress.bad_pieces)}\nweights: {path}{missing}")
        return 0

    def _nothing_left(self) -> str:
        name, epochs = self.settings.name.upper(), self.settings.num_epoch
        return (
            f"nothing is left to do: {self.progress.epoch - 1} epochs are done, and {name}_NUM_EPOCH = {epochs}. To"
            f" continue, raise it; to begin anew, name another {name}_WEIGHTS_PATH; both in {config.source()}"
        )

    def _train_one_epoch(self, loader: DataLoader, step: "StepFunction") -> bool:
        """Runs the steps of the epoch that are left. False: it was told to stop."""
        self.parallel.train()
        batches: Batches = loader.batch_sampler  # type: ignore[assignment]
        progress = self.progress
        batches.epoch, batches.first_step = progress.epoch, progress.step
        bar = tqdm(
            total=len(batches),
            initial=progress.step,
            desc=f"epoch {progress.epoch}/{self.settings.num_epoch}",
            unit="step",
            disable=self.processes.rank != 0,
        )
        behind: _Report | None = None
        clock = time.monotonic()
        with bar:
            for batch in loader:
                self._note_problems(batch)
                torch.manual_seed(self._step_seed())
                told = step(self, batch["batch"].to(self.device))
                rate, norm = self.lr_sched.get_last_lr()[0], self._update()
                progress.step += 1
                if self.device.type == "cpu" and progress.step % RELEASE_EVERY == 0:
                    release_freed_memory()
                now = time.monotonic()
                of_run = (progress.epoch - 1) * len(batches) + progress.step
                report = _Report(self._numbers(told, norm), progress.step, of_run, batch["names"], now - clock, rate)
                clock = now
                if behind and self._account(behind):
                    self._account(report)
                    return False
                behind = report
                bar.update()
                if progress.weight:
                    bar.set_postfix(loss=f"{progress.total / progress.weight:.4f}", refresh=False)
                is_time = config.SAVE_EVERY_STEPS and progress.step % config.SAVE_EVERY_STEPS == 0
                if is_time and progress.step < len(batches):
                    if self._account(behind):
                        return False
                    behind = None
                    self.save_latest()
        return not (behind and self._account(behind))

    def _numbers(self, told: Step, norm: Tensor | None) -> OnItsWay:
        """The numbers of a `_Report`."""
        stop = told.total.new_full((), self._stop)
        sums = torch.stack([number.detach().double() for number in (told.total, told.weight, stop)])
        self.processes.sum(sums)
        return OnItsWay(sums if norm is None else torch.cat([sums, norm.double()[None]]))

    def _account(self, report: _Report) -> bool:
        """Adds a step to the epoch's loss. True: some process was told to stop."""
        total, weight, stop, *norm = report.numbers.read().tolist()
        if not math.isfinite(total):
            pieces = ", ".join(name for names in self.processes.gather(report.names) for name in names)
            raise InputError(
                f"the loss is not finite ({total}) in epoch {self.progress.epoch}, step {report.step};"
                f" its pieces: {pieces}"
            )
        values = {"loss": total / weight, "learning_rate": report.learning_rate}
        if norm:
            values["gradient_norm"] = norm[0]
        pieces_of_all = self.settings.batch_size * self.processes.world_size
        self.log.step(report.step_of_run, pieces_of_all, report.seconds, values)
        self.progress.total += total
        self.progress.weight += weight
        return stop > 0

    def _update(self) -> Tensor | None:
        """A step of the optimizer. Returns the norm of the gradient before it is clipped, where that is asked for."""
        norm = None
        if config.MAX_GRAD_NORM or self.log.logger != "none":
            self.scaler.unscale_(self.optimizer)
            norm = nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
            if config.MAX_GRAD_NORM:
                nn.utils.clip_grads_with_norm_(self.model.parameters(), config.MAX_GRAD_NORM, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.lr_sched.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _step_seed(self) -> int:
        now = self.progress
        return random.Random(f"{now.seed} {now.epoch} {now.step} {self.processes.rank}").getrandbits(63)

    @torch.no_grad()
    def _evaluate(self, evaluate: "Evaluate", loader: DataLoader) -> float:
        self.model.eval()
        loss = evaluate(self, loader)
        if not math.isfinite(loss):
            raise InputError(f"the evaluation loss is not finite ({loss}) after epoch {self.progress.epoch}")
        return loss

    def _evaluate_best(self, evaluate: "Evaluate", loader: DataLoader) -> None:
        """Evaluates the weights file: this is the loss that replaces it if it is bettered."""
        path, self.progress.min_eval_loss = self.settings.weights_path, math.inf
        if not self.processes.broadcast(path.exists()):
            return
        current = {name: value.cpu().clone() for name, value in self.model.state_dict().items()}
        load_weights(self.model, load_checkpoint(path)["model"], path)
        self.progress.min_eval_loss = self._evaluate(evaluate, loader)
        load_weights(self.model, current, self.settings.latest_path)
        self.processes.say(f"eval_loss of {path.name}: {self.progress.min_eval_loss:.6f}")

    def evaluation_batches(self, loader: DataLoader) -> Iterator[Any]:
        """The batches of an evaluation, on the device, with a progress bar. Raises Stopped, on all ranks together."""
        batches: Batches = loader.batch_sampler  # type: ignore[assignment]
        told: OnItsWay | None = None  # how many processes were told to stop; read a batch later, as a `_Report` is
        bar = tqdm(loader, desc="evaluation", unit="step", leave=False, disable=self.processes.rank != 0)
        for number, batch in enumerate(bar):
            self._note_problems(batch)
            if number < batches.on_every_rank:
                if told and told.read():
                    raise Stopped
                stop = torch.full((), float(self._stop), dtype=torch.float64, device=self.device)
                told = OnItsWay(self.processes.sum(stop))
            yield batch["batch"].to(self.device)

    def _note_problems(self, batch: dict) -> None:
        if "fatal" in batch:
            raise InputError(batch["fatal"])
        self.problems.update(batch["problems"])

    def _catch_signals(self) -> None:
        """SIGTERM (a cluster's preemption) and SIGINT (Ctrl-C) end the run after a step, with its state saved."""

        def stop(number: int, frame: Any) -> None:
            self._stop = True

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)

    def _tell_bad_pieces(self) -> int:
        """Names the bad pieces that any rank met since the last time. Returns the number of all so far."""
        named = self.progress.bad_pieces
        new = sorted(set().union(*self.processes.gather(sorted(self.problems))).difference(named))
        for problem in new:
            self.log.bad_piece(problem)
        self.progress.bad_pieces = sorted([*named, *new])
        self.problems.clear()
        return len(self.progress.bad_pieces)

    def _facts(self, train_loader: DataLoader, eval_loader: DataLoader) -> dict:
        """What the log begins with, beside the constants of config.py."""
        settings, world_size, warmup = self.settings, self.processes.world_size, config.WARMUP_STEPS
        steps = len(train_loader.batch_sampler)  # type: ignore[arg-type]
        total = steps * settings.num_epoch
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        facts = {
            "commit": commit(),
            "device": f"{world_size} x {device}",
            "precision": str(self.dtype).removeprefix("torch."),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "pieces": _pieces(train_loader, eval_loader),
            "batch": f"{settings.batch_size} x {world_size} = {settings.batch_size * world_size}",
            "steps": f"{steps} an epoch, {total} in all",
            "learning rate": f"{settings.learning_rate} after {warmup} warm-up steps",
            "workers": f"{train_loader.num_workers} per process",
            "seed": self.progress.seed,
            "starts from": self.started_from,
        }
        if self.changes:
            facts["changed"] = "; ".join(self.changes)
        if 0 < total <= warmup:
            facts["warning"] = (
                f"{total} steps end before a warm-up of {warmup}: the learning rate gets to"
                f" {settings.learning_rate * (total - 1) / warmup:g} only; lower WARMUP_STEPS, or raise"
                f" {settings.name.upper()}_NUM_EPOCH, in {config.source()}"
            )
        return facts


def _pieces(train_loader: DataLoader, eval_loader: DataLoader) -> str:
    train_count, eval_count = len(train_loader.dataset), len(eval_loader.dataset)  # type: ignore[arg-type]
    return f"{train_count} for training, {eval_count} for evaluation"


StepFunction = Callable[[Training, Any], Step]
Evaluate = Callable[[Training, DataLoader], float]


def train(
    job: Processes,
    settings: Settings,
    make_model: Callable[[bool], nn.Module],
    wrap: Callable[[Any], nn.Module],
    make_dataset: Callable[[bool, int], PieceDataset],
    collate: Callable[[list[dict]], Tensors],
    step: StepFunction,
    evaluate: Evaluate,
) -> int:
    """Runs or continues a training. Returns the exit status.

    Args:
        make_model: (whether a checkpoint is loaded into it) -> the model.
        make_dataset: (whether it is for training, seed) -> the pieces.
    """
    torch.manual_seed(0)  # every rank starts from the same weights
    run = Training(settings, job, make_model(settings.checkpoint is not None), wrap)
    datasets = make_dataset(True, run.progress.seed), make_dataset(False, 0)
    loaders = [make_loader(dataset, settings.batch_size, job, collate) for dataset in datasets]
    return run.run(*loaders, step, evaluate)


def require_set(name: str, value: str) -> None:
    """Raises InputError if a constant of config.py still is its placeholder, or is empty."""
    if not value or value.startswith("<"):
        raise InputError(f"{name} is not set (it is {value!r}); set it in {config.source()}")


def hold_out(pieces: Sequence[T], least: int, instead: str) -> tuple[list[T], list[T]]:
    """Splits the training data into (training, evaluation). Raises InputError if fewer than `least` are held out.

    instead: the constant that names separate evaluation data.
    """
    count, share = len(pieces), config.EVAL_SPLIT
    if count <= least:
        problem = (
            f"{count} piece(s) cannot be split into training and evaluation data, which takes {least + 1}; add more"
        )
        raise InputError(f"{problem}, or set {instead} in {config.source()}")
    train, evaluation = split_data(pieces, share) if share else (list(pieces), [])
    if len(evaluation) < least:
        problem = f"EVAL_SPLIT = {share} holds out {len(evaluation)} of {count} pieces, and evaluation takes {least}"
        enough = math.ceil(100 * least / count) / 100
        raise InputError(f"{problem}; raise it to {enough}, or set {instead}, in {config.source()}")
    return train, evaluation
