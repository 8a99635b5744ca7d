"""The training loop of both trainers: precision, optimizer, checkpoints, evaluation, stopping.

A run depends on its settings, its seed and its data alone: the augmentation of a piece is drawn from (seed, epoch,
piece), dropout from (seed, epoch, step, rank). So the number of loader workers changes nothing, and no random state has
to be saved for a run to continue exactly.
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
from loading import Loader, close_loader
from processes import OnItsWay, Processes, precision, sum_dtype
from run_log import RunLog, commit
from run_state import Settings, differences, keep, load_start

RELEASE_EVERY = 50  # steps on a CPU, after which freed memory is returned to the system, at the cost of part of a step
INTERRUPTED = 130  # exit status of a run that was stopped by a signal, saved its state and can continue


class Stopped(Exception):
    """A process has received a signal to stop."""


@dataclass
class Step:
    """The loss of a step on this process, as a sum and the number of things it is summed over."""

    total: Tensor
    weight: Tensor


class Training:
    """A run of one of the two trainings.

    Args:
        wrap: a step runs `wrap(model)`; by default the model itself.
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
        self.log = RunLog(processes, settings)
        self.device = processes.device
        self.dtype, self.sum_dtype = precision(self.device, config.PRECISION), sum_dtype(self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.problems: set[str] = set()  # bad pieces that this rank has met and not reported yet
        self.changes: list[str] = []  # since the run that saved the state
        self.order: dict = {}  # what the pieces of each step depend on
        self.evaluation: dict = {}  # what the evaluation loss of a model depends on
        self._stop = False
        state, self.progress, self.started_from = load_start(settings, processes, model)
        self.continues, steps_done, rate = state is not None, 0, settings.learning_rate
        self.model.to(self.device)
        self.parallel = self.module = wrap(model)
        parameters = list(model.parameters())
        self.optimizer = torch.optim.AdamW([{"params": parameters, "initial_lr": rate}], rate, fused=True)
        if state:
            # of the optimizer, the moments: its options, such as the learning rate, are those of this run
            moments = {i: of for i, of in state["optimizer"]["state"].items() if parameters[i].requires_grad}
            self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})
            steps_done, before = state["lr_sched"]["last_epoch"], state["lr_sched"]["base_lrs"][0]
            if state["scaler"]:  # a run in another precision has none
                self.scaler.load_state_dict(state["scaler"])
            if rate != before:
                self.changes.append(f"learning rate {before} -> {rate}")
            self.order = {"seed": state["seed"]} | state.get("order", {})
            self.evaluation = state.get("evaluation", {})
        self.lr_sched = get_constant_schedule_with_warmup(self.optimizer, config.WARMUP_STEPS, steps_done - 1)
        self.lr_sched._step_count = steps_done + 1
        if processes.world_size > 1:
            ids = [processes.local_rank] if self.device.type != "cpu" else None
            self.parallel = DistributedDataParallel(self.module, device_ids=ids, gradient_as_bucket_view=True)
            self.parallel.broadcast_buffers = False  # all are constants; as an argument, deprecated by PyTorch 2.13
        if settings.deterministic:
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False

    def run(
        self,
        train_loader: Loader,
        eval_loader: Loader,
        step: Callable[["Training", Any], Step],
        evaluate: Callable[["Training", Loader], float],
    ) -> int:
        """Run all epochs that are left. Returns the exit status.

        Args:
            step: (training, batch) -> Step; back-propagates the loss of a batch.
            evaluate: (training, loader) -> the loss on the evaluation data, the same on every rank.
        """
        self.train_loader, self.eval_loader, self.step, self.evaluate = train_loader, eval_loader, step, evaluate
        self.steps = len(train_loader.batch_sampler)  # of an epoch
        progress, path = self.progress, self.settings.weights_path
        try:
            self._begin()
            while progress.epoch <= self.settings.num_epoch:
                self._run_epoch()
            summary = f"Best Eval Epoch : {progress.best_epoch}\nMin Eval Loss : {progress.min_eval_loss}\n"
            self.log.write(summary)
            missing = "" if path.exists() else f" (missing; the last epoch's are in {self.settings.latest_path.name})"
            self.processes.print(f"{summary}bad pieces: {len(progress.bad_pieces)}\nweights: {path}{missing}")
            return 0
        except Stopped:
            where = f"epoch {progress.epoch} after step {progress.step}"
            self.processes.print(f"stopped in {where}, as asked; the same command continues there")
            return INTERRUPTED
        finally:
            close_loader(train_loader)
            close_loader(eval_loader)
            self.log.close()

    def _begin(self) -> None:
        """Compare the run with its saved state, log its settings and evaluate weights that it starts from."""
        progress, settings, path = self.progress, self.settings, self.settings.weights_path
        evaluates_otherwise = self._compare()
        self.log.begin(self._facts(), (progress.epoch - 1) * self.steps + progress.step)
        if not self.continues and self.processes.rank == 0 and (kept := keep(path)):
            self.processes.print(f"{path.name} is kept as {kept.name}: the best weights of this run take its name")
        if progress.epoch > settings.num_epoch:
            self.processes.print(
                f"nothing is left to do: {progress.epoch - 1} epochs are done, and {settings.constant('num_epoch')} ="
                f" {settings.num_epoch}. To continue, raise it; to begin anew, name another"
                f" {settings.constant('weights_path')}; both in {config.source()}"
            )
        self._catch_signals()
        if evaluates_otherwise or self.started_from == str(path):
            self._evaluate_best()

    def _compare(self) -> bool:
        """Begin the epoch anew if its order is not that of the saved state. Returns whether the evaluation differs.

        Raises InputError if the processes differ, which would wait for each other, or drift apart.
        """
        settings, progress, order_before, evaluation_before = self.settings, self.progress, self.order, self.evaluation
        self.order = {
            "seed": progress.seed,
            "batch size": settings.batch_size,
            "processes": self.processes.world_size,
            "pieces": self.train_loader.dataset.digest(),
            "steps": self.steps,
        }
        self.evaluation = settings.evaluation | {"pieces": self.eval_loader.dataset.digest()}
        digests = f"{self.order['pieces']} for training, {self.evaluation['pieces']} for evaluation"
        self.processes.require_same("the pieces they find", f"{self._pieces()} ({digests})")
        facts = self.order | self.evaluation | {"evaluated": evaluation_before, "from": self.started_from}
        facts |= {"epochs": settings.num_epoch, "learning rate": settings.learning_rate}
        facts |= {"SAVE_EVERY_STEPS": config.SAVE_EVERY_STEPS}
        self.processes.require_same("their settings or in the saved state", str(facts))
        if not self.continues:
            return False
        if progress.step == order_before.get("steps"):
            progress.step = self.steps  # only the evaluation is left of this epoch
        elif progress.step and order_before != self.order:
            self.changes.append(f"{differences(order_before, self.order)}: the epoch in progress begins anew")
            progress.begin_epoch(progress.epoch)
        if changed := differences(evaluation_before, self.evaluation):
            self.changes.append(f"evaluation {changed}: the best weights are evaluated again")
        return bool(changed)

    def _facts(self) -> dict:
        """Return the facts that the log begins with, beside the constants of config.py."""
        settings, world_size, warmup = self.settings, self.processes.world_size, config.WARMUP_STEPS
        total = self.steps * settings.num_epoch
        facts = {
            "commit": commit(),
            "device": f"{world_size} x {self.processes.device_name}",
            "precision": str(self.dtype).removeprefix("torch."),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "pieces": self._pieces(),
            "batch": f"{settings.batch_size} x {world_size} = {settings.batch_size * world_size}",
            "steps": f"{self.steps} an epoch, {total} in all",
            "learning rate": f"{settings.learning_rate} after {warmup} warm-up steps",
            "workers": f"{self.train_loader.num_workers} per process",
            "seed": self.progress.seed,
            "starts from": self.started_from,
        }
        if self.changes:
            facts["changed"] = "; ".join(self.changes)
        if total <= warmup:
            facts["warning"] = (
                f"{total} steps end before a warm-up of {warmup}: the learning rate reaches only"
                f" {settings.learning_rate * (total - 1) / warmup:g}; lower WARMUP_STEPS, or raise"
                f" {settings.constant('num_epoch')}, in {config.source()}"
            )
        return facts

    def _pieces(self) -> str:
        return f"{len(self.train_loader.dataset)} for training, {len(self.eval_loader.dataset)} for evaluation"

    def _catch_signals(self) -> None:
        """Have SIGTERM (a cluster's preemption) and SIGINT (Ctrl-C) end the run after a step, with its state saved."""

        def stop(number: int, frame: Any) -> None:
            self._stop = True

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)

    def _run_epoch(self) -> None:
        progress, began = self.progress, time.monotonic()
        if progress.step < self.steps:
            is_finished = self._train_one_epoch()
            self.save_latest()
            if not is_finished:
                raise Stopped
        eval_loss = self._evaluate()
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
        self.log.epoch(record, progress.epoch * self.steps)
        progress.begin_epoch(progress.epoch + 1)
        self.save_latest()

    def _train_one_epoch(self) -> bool:
        """Run the steps of the epoch that are left. Returns False if a process received a signal to stop."""
        self.parallel.train()
        batches, progress, is_stopped = self.train_loader.batch_sampler, self.progress, False
        batches.epoch, batches.first_step = progress.epoch, progress.step
        bar = tqdm(
            total=self.steps,
            initial=progress.step,
            desc=f"epoch {progress.epoch}/{self.settings.num_epoch}",
            unit="step",
            disable=self.processes.rank != 0,
        )
        unread: list[tuple] = []  # steps whose numbers are read one step later, when they are there: no GPU waits
        clock = time.monotonic()
        with bar:
            for batch in self.train_loader:
                self._note_problems(batch)
                seed = f"{progress.seed} {progress.epoch} {progress.step} {self.processes.rank}"
                torch.manual_seed(random.Random(seed).getrandbits(63))
                loss, rate = self.step(self, batch["batch"].to(self.device)), self.lr_sched.get_last_lr()[0]
                numbers = self._update(loss)
                progress.step += 1
                if self.device.type == "cpu" and progress.step % RELEASE_EVERY == 0:
                    release_freed_memory()
                before, clock = clock, time.monotonic()
                unread.append((numbers, progress.step, batch["names"], clock - before, rate))
                is_time = config.SAVE_EVERY_STEPS and progress.step % config.SAVE_EVERY_STEPS == 0
                saves = is_time and progress.step < self.steps
                while len(unread) > (0 if saves else 1):
                    is_stopped |= self._account(*unread.pop(0))
                if is_stopped:
                    break
                if saves:
                    self.save_latest()
                bar.update()
                if progress.weight:
                    bar.set_postfix(loss=f"{progress.total / progress.weight:.4f}", refresh=False)
            for report in unread:
                is_stopped |= self._account(*report)
        return not is_stopped

    def _update(self, loss: Step) -> OnItsWay:
        """Update the weights. Returns, over all ranks, the loss, its weight and how many received a signal to stop;
        and, if it is clipped or logged, the norm of the gradient before clipping."""
        norms = []
        if config.MAX_GRAD_NORM or self.log.logger != "none":
            self.scaler.unscale_(self.optimizer)
            norm = nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
            norms.append(norm.to(self.sum_dtype)[None])
            if config.MAX_GRAD_NORM:
                nn.utils.clip_grads_with_norm_(self.model.parameters(), config.MAX_GRAD_NORM, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.lr_sched.step()
        self.optimizer.zero_grad(set_to_none=True)
        stop = loss.total.new_full((), self._stop)
        sums = torch.stack([number.detach().to(self.sum_dtype) for number in (loss.total, loss.weight, stop)])
        return OnItsWay(torch.cat([self.processes.sum(sums), *norms]))

    def _account(self, numbers: OnItsWay, step: int, names: list[str], seconds: float, rate: float) -> bool:
        """Add a step to the epoch's loss, and plot it. Returns whether a process received a signal to stop.

        Args:
            numbers: of `_update`.
            names: of this rank's pieces.
            seconds: since the step before.
            rate: the learning rate.
        """
        progress = self.progress
        total, weight, stop, *norm = numbers.read().tolist()
        if not math.isfinite(total):
            of_all = ", ".join(name for rank in self.processes.gather(names) for name in rank)
            raise InputError(
                f"the loss is not finite ({total}) in epoch {progress.epoch}, step {step}; its pieces: {of_all}"
            )
        values = {"loss": total / weight, "learning_rate": rate} | ({"gradient_norm": norm[0]} if norm else {})
        pieces = self.settings.batch_size * self.processes.world_size
        self.log.step((progress.epoch - 1) * self.steps + step, pieces, seconds, values)
        progress.total += total
        progress.weight += weight
        return stop > 0

    @torch.no_grad()
    def _evaluate(self) -> float:
        self.model.eval()
        loss = self.evaluate(self, self.eval_loader)
        if not math.isfinite(loss):
            raise InputError(f"the evaluation loss is not finite ({loss}) after epoch {self.progress.epoch}")
        return loss

    def _evaluate_best(self) -> None:
        """Evaluate the weights file, which only a lower loss replaces."""
        path, self.progress.min_eval_loss = self.settings.weights_path, math.inf
        if not self.processes.broadcast(path.exists()):
            return
        current = {name: value.cpu().clone() for name, value in self.model.state_dict().items()}
        load_weights(self.model, load_checkpoint(path)["model"], path)
        self.progress.min_eval_loss = self._evaluate()
        load_weights(self.model, current, self.settings.latest_path)
        self.processes.print(f"eval_loss of {path.name}: {self.progress.min_eval_loss:.6f}")

    def evaluation_batches(self, loader: Loader) -> Iterator[Any]:
        """Yield the batches of an evaluation, on the device. Raises Stopped, on all ranks together."""
        stops: OnItsWay | None = None  # how many processes received a signal to stop; read a batch later
        bar = tqdm(loader, desc="evaluation", unit="step", leave=False, disable=self.processes.rank != 0)
        for number, batch in enumerate(bar):
            self._note_problems(batch)
            if number < loader.batch_sampler.on_every_rank:
                if stops and stops.read():
                    raise Stopped
                stop = torch.full((), float(self._stop), dtype=self.sum_dtype, device=self.device)
                stops = OnItsWay(self.processes.sum(stop))
            yield batch["batch"].to(self.device)

    def _note_problems(self, batch: dict) -> None:
        if "fatal" in batch:
            raise InputError(batch["fatal"])
        self.problems.update(batch["problems"])

    def _report_bad_pieces(self) -> int:
        """Report the bad pieces that any rank has met since the last time. Returns the number of all so far."""
        known = self.progress.bad_pieces
        new = sorted(set().union(*self.processes.gather(sorted(self.problems))).difference(known))
        for problem in new:
            self.log.bad_piece(problem)
        self.progress.bad_pieces = sorted([*known, *new])
        self.problems.clear()
        return len(self.progress.bad_pieces)

    def published_state(self, epoch: int) -> dict:
        """Return a checkpoint in the published form."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lr_sched": self.lr_sched.state_dict(),
            "epoch": epoch,
            "best_epoch": self.progress.best_epoch,
            "min_eval_loss": self.progress.min_eval_loss,
        }

    def save_latest(self) -> None:
        """Save the complete state, from which the run continues exactly."""
        self._report_bad_pieces()
        if self.processes.rank == 0:
            state = self.published_state(self.progress.epoch) | vars(self.progress)
            state |= {"scaler": self.scaler.state_dict(), "order": self.order, "evaluation": self.evaluation}
            began = time.monotonic()
            save_checkpoint(self.settings.latest_path, state)
            if (seconds := time.monotonic() - began) >= 1:  # a cluster's time limit must leave room for it
                self.processes.print(f"saved {self.settings.latest_path.name} in {seconds:.1f} s")
        self.processes.wait_for_all()  # a launcher would kill rank 0 while it saves, 30 s after another one has ended
