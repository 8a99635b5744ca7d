"""The epoch loop that both trainers share: precision, optimizer, checkpoints, evaluation, stopping.

A run is a function of its settings, its seed and its data alone: what happens to a piece in an epoch (augmentation)
is drawn from (seed, epoch, piece), and dropout from (seed, epoch, step, rank). So the number of loader workers
changes nothing, and no random state has to be saved for a run to continue exactly.
"""

import math
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm
from transformers import get_constant_schedule_with_warmup

import config
from checkpoints import load_checkpoint, load_weights, save_checkpoint
from cpu import release_freed_memory
from files import InputError
from loading import Loader, PieceDataset, close_loader, make_loader
from packing import Tensors
from processes import OnItsWay, Processes, precision
from run_log import RunLog, choose_logger, commit
from run_state import Settings, differences, keep, load_start, restore_optimizer

RELEASE_EVERY = 50  # steps on a CPU, after which memory that was freed is given back: it takes part of the next one
INTERRUPTED = 130  # exit status of a run that was told to stop, saved and can continue


class Stopped(Exception):
    """Some process was told to stop."""


@dataclass
class Step:
    """The loss of a step on this process, as a sum and the number of things it is summed over."""

    total: Tensor
    weight: Tensor


@dataclass
class _Report:
    """A step, whose numbers are read a step later, when they are there, so that the GPU never waits."""

    numbers: OnItsWay  # over all ranks: of the loss, of its weight, of those told to stop; and the gradient's norm
    step: int  # of the epoch
    step_of_run: int
    names: list[str]  # of this rank's pieces
    seconds: float  # since the step before
    learning_rate: float


class Training:
    """A run of one of the two models. The trainer defines a step and an evaluation:

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
        self.settings, self.processes, self.model = settings, processes, model
        logger = choose_logger(settings.name, settings.wandb_log)
        self.log = RunLog(processes, settings.name, settings.logs_path, logger, settings.weights_path.stem)
        self.device = processes.device
        self.dtype = precision(self.device, config.PRECISION)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.problems: set[str] = set()  # with pieces that this rank has met and not reported yet
        self.changes: list[str] = []  # since the run that saved the state
        self.order: dict = {}  # what the pieces of each step depend on
        self.evaluation: dict = {}  # what the evaluation loss of a model depends on
        self._stop = False
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
        """Restores a saved state, but for the weights, under the settings of this run."""
        restore_optimizer(self.optimizer, state["optimizer"])
        rate, schedule = self.settings.learning_rate, state["lr_sched"]
        steps = schedule["last_epoch"]
        self.lr_sched = get_constant_schedule_with_warmup(self.optimizer, config.WARMUP_STEPS, steps - 1)
        self.lr_sched._step_count = steps + 1
        if state["scaler"]:  # a run in another precision has none
            self.scaler.load_state_dict(state["scaler"])
        if rate != schedule["base_lrs"][0]:
            self.changes.append(f"learning rate {schedule['base_lrs'][0]} -> {rate}")
        self.order = {"seed": state["seed"]} | state.get("order", {})
        self.evaluation = state.get("evaluation", {})

    def _compare(self, train_loader: Loader, eval_loader: Loader) -> bool:
        """Begins the epoch anew if its order is not that of the saved state. Returns whether the evaluation differs."""
        settings, progress, before, evaluated = self.settings, self.progress, self.order, self.evaluation
        self.order = {
            "seed": progress.seed,
            "batch size": settings.batch_size,
            "processes": self.processes.world_size,
            "pieces": train_loader.dataset.digest(),
            "steps": len(train_loader.batch_sampler),
        }
        self.evaluation = settings.evaluation | {"pieces": eval_loader.dataset.digest()}
        digests = f"{self.order['pieces']} for training, {self.evaluation['pieces']} for evaluation"
        self.processes.require_same("the pieces they find", f"{_pieces(train_loader, eval_loader)} ({digests})")
        facts = self.order | self.evaluation | settings.pace() | {"evaluated": evaluated, "from": self.started_from}
        self.processes.require_same("their settings or in the saved state", str(facts))
        if not self.continues:
            return False
        if progress.step == before.get("steps"):
            progress.step = self.order["steps"]  # only the evaluation is left of this epoch
        elif progress.step and before != self.order:
            self.changes.append(f"{differences(before, self.order)}: the epoch in progress begins anew")
            progress.begin_epoch(progress.epoch)
        if changed := differences(evaluated, self.evaluation):
            self.changes.append(f"evaluation {changed}: the best weights are evaluated again")
        return bool(changed)

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
        """Saves the complete state, from which the run continues exactly."""
        self._report_bad_pieces()
        if self.processes.rank == 0:
            state = self.published_state(self.progress.epoch) | vars(self.progress)
            state |= {"scaler": self.scaler.state_dict(), "order": self.order, "evaluation": self.evaluation}
            began = time.monotonic()
            save_checkpoint(self.settings.latest_path, state)
            if (seconds := time.monotonic() - began) >= 1:  # what a cluster's time limit must leave room for
                self.processes.say(f"saved {self.settings.latest_path.name} in {seconds:.1f} s")
        self.processes.wait_for_all()  # a launcher would kill rank 0 while it saves, 30 s after another one has ended

    def run(self, train_loader: Loader, eval_loader: Loader, step: "StepFunction", evaluate: "Evaluate") -> int:
        """Runs all epochs that are left. Returns the exit status."""
        try:
            self._begin(train_loader, eval_loader, evaluate)
            while self.progress.epoch <= self.settings.num_epoch:
                self._run_epoch(train_loader, eval_loader, step, evaluate)
            self._end()
            return 0
        except Stopped:
            where = f"epoch {self.progress.epoch} after step {self.progress.step}"
            self.processes.say(f"stopped in {where}, as asked; the same command continues there")
            return INTERRUPTED
        finally:
            close_loader(train_loader)
            close_loader(eval_loader)
            self.log.close()

    def _begin(self, train_loader: Loader, eval_loader: Loader, evaluate: "Evaluate") -> None:
        progress, settings, path = self.progress, self.settings, self.settings.weights_path
        is_evaluated_otherwise = self._compare(train_loader, eval_loader)
        steps_done = (progress.epoch - 1) * len(train_loader.batch_sampler) + progress.step
        self.log.begin(self._facts(train_loader, eval_loader), steps_done)
        if not self.continues and self.processes.rank == 0 and (kept := keep(path)):
            self.processes.say(f"{path.name} is kept as {kept.name}, for the best weights of this run to take its name")
        if progress.epoch > settings.num_epoch:
            self.processes.say(
                f"nothing is left to do: {progress.epoch - 1} epochs are done, and {settings.constant('num_epoch')} ="
                f" {settings.num_epoch}. To continue, raise it; to begin anew, name another"
                f" {settings.constant('weights_path')}; both in {config.source()}"
            )
        self._catch_signals()
        if is_evaluated_otherwise or self.started_from == str(path):
            self._evaluate_best(evaluate, eval_loader)

    def _run_epoch(self, train_loader: Loader, eval_loader: Loader, step: "StepFunction", evaluate: "Evaluate") -> None:
        progress, steps, began = self.progress, len(train_loader.batch_sampler), time.monotonic()
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
            "bad_pieces": self._report_bad_pieces(),
        }
        if eval_loss < progress.min_eval_loss:
            progress.best_epoch, progress.min_eval_loss = progress.epoch, eval_loss
            if self.processes.rank == 0:
                save_checkpoint(self.settings.weights_path, self.published_state(progress.epoch))
        self.log.epoch(record, progress.epoch * steps)
        progress.begin_epoch(progress.epoch + 1)
        self.save_latest()

    def _end(self) -> None:
        progress, path = self.progress, self.settings.weights_path
        summary = f"Best Eval Epoch : {progress.best_epoch}\nMin Eval Loss : {progress.min_eval_loss}\n"
        self.log.write(summary)
        missing = "" if path.exists() else f" (missing; the last epoch's are in {self.settings.latest_path.name})"
        self.processes.say(f"{summary}bad pieces: {len(progress.bad_pieces)}\nweights: {path}{missing}")

    def _train_one_epoch(self, loader: Loader, step: "StepFunction") -> bool:
        """Runs the steps of the epoch that are left. False: some process was told to stop."""
        self.parallel.train()
        batches, progress, is_stopped = loader.batch_sampler, self.progress, False
        batches.epoch, batches.first_step = progress.epoch, progress.step
        bar = tqdm(
            total=len(batches),
            initial=progress.step,
            desc=f"epoch {progress.epoch}/{self.settings.num_epoch}",
            unit="step",
            disable=self.processes.rank != 0,
        )
        unread: list[_Report] = []
        clock = time.monotonic()
        with bar:
            for batch in loader:
                self._note_problems(batch)
                torch.manual_seed(self._step_seed())
                loss = step(self, batch["batch"].to(self.device))
                rate, norm = self.lr_sched.get_last_lr()[0], self._update()
                progress.step += 1
                if self.device.type == "cpu" and progress.step % RELEASE_EVERY == 0:
                    release_freed_memory()
                before, clock = clock, time.monotonic()
                of_run = (progress.epoch - 1) * len(batches) + progress.step
                numbers = self._numbers(loss, norm)
                unread.append(_Report(numbers, progress.step, of_run, batch["names"], clock - before, rate))
                is_time = config.SAVE_EVERY_STEPS and progress.step % config.SAVE_EVERY_STEPS == 0
                saves = is_time and progress.step < len(batches)
                while len(unread) > (0 if saves else 1):
                    is_stopped |= self._account(unread.pop(0))
                if is_stopped:
                    break
                if saves:
                    self.save_latest()
                bar.update()
                if progress.weight:
                    bar.set_postfix(loss=f"{progress.total / progress.weight:.4f}", refresh=False)
            for report in unread:
                is_stopped |= self._account(report)
        return not is_stopped

    def _numbers(self, loss: Step, norm: Tensor | None) -> OnItsWay:
        """The numbers of a `_Report`."""
        stop = loss.total.new_full((), self._stop)
        sums = torch.stack([number.detach().double() for number in (loss.total, loss.weight, stop)])
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
        """Steps the optimizer. Returns the norm of the gradient before clipping, if it is clipped or logged."""
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
    def _evaluate(self, evaluate: "Evaluate", loader: Loader) -> float:
        self.model.eval()
        loss = evaluate(self, loader)
        if not math.isfinite(loss):
            raise InputError(f"the evaluation loss is not finite ({loss}) after epoch {self.progress.epoch}")
        return loss

    def _evaluate_best(self, evaluate: "Evaluate", loader: Loader) -> None:
        """Evaluates the weights file, which only a lower loss replaces."""
        path, self.progress.min_eval_loss = self.settings.weights_path, math.inf
        if not self.processes.broadcast(path.exists()):
            return
        current = {name: value.cpu().clone() for name, value in self.model.state_dict().items()}
        load_weights(self.model, load_checkpoint(path)["model"], path)
        self.progress.min_eval_loss = self._evaluate(evaluate, loader)
        load_weights(self.model, current, self.settings.latest_path)
        self.processes.say(f"eval_loss of {path.name}: {self.progress.min_eval_loss:.6f}")

    def evaluation_batches(self, loader: Loader) -> Iterator[Any]:
        """The batches of an evaluation, on the device, with a progress bar. Raises Stopped, on all ranks together."""
        stops: OnItsWay | None = None  # the number of processes told to stop; read a batch later, as a `_Report` is
        bar = tqdm(loader, desc="evaluation", unit="step", leave=False, disable=self.processes.rank != 0)
        for number, batch in enumerate(bar):
            self._note_problems(batch)
            if number < loader.batch_sampler.on_every_rank:
                if stops and stops.read():
                    raise Stopped
                stop = torch.full((), float(self._stop), dtype=torch.float64, device=self.device)
                stops = OnItsWay(self.processes.sum(stop))
            yield batch["batch"].to(self.device)

    def _note_problems(self, batch: dict) -> None:
        if "fatal" in batch:
            raise InputError(batch["fatal"])
        self.problems.update(batch["problems"])

    def _catch_signals(self) -> None:
        """Has SIGTERM (a cluster's preemption) and SIGINT (Ctrl-C) end the run after a step, with its state saved."""

        def stop(number: int, frame: Any) -> None:
            self._stop = True

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)

    def _report_bad_pieces(self) -> int:
        """Reports the bad pieces that any rank met since the last time. Returns the number of all so far."""
        known = self.progress.bad_pieces
        new = sorted(set().union(*self.processes.gather(sorted(self.problems))).difference(known))
        for problem in new:
            self.log.bad_piece(problem)
        self.progress.bad_pieces = sorted([*known, *new])
        self.problems.clear()
        return len(self.progress.bad_pieces)

    def _facts(self, train_loader: Loader, eval_loader: Loader) -> dict:
        """The facts that the log begins with, beside the constants of config.py."""
        settings, world_size, warmup = self.settings, self.processes.world_size, config.WARMUP_STEPS
        steps = len(train_loader.batch_sampler)
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
        if total <= warmup:
            facts["warning"] = (
                f"{total} steps end before a warm-up of {warmup}: the learning rate gets to"
                f" {settings.learning_rate * (total - 1) / warmup:g} only; lower WARMUP_STEPS, or raise"
                f" {settings.constant('num_epoch')}, in {config.source()}"
            )
        return facts


def _pieces(train_loader: Loader, eval_loader: Loader) -> str:
    return f"{len(train_loader.dataset)} for training, {len(eval_loader.dataset)} for evaluation"


StepFunction = Callable[[Training, Any], Step]
Evaluate = Callable[[Training, Loader], float]


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
    train_loader, eval_loader = (make_loader(dataset, settings.batch_size, job, collate) for dataset in datasets)
    return run.run(train_loader, eval_loader, step, evaluate)
