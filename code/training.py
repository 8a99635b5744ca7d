"""What the two trainers share: processes, data loading, precision, the epoch loop, checkpoints and logs.

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
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import get_constant_schedule_with_warmup

import config
from checkpoints import load_checkpoint, load_weights, save_checkpoint
from files import InputError, remove_leftovers
from loading import Batches, close_loader
from processes import OnItsWay, Processes, precision
from run_log import RunLog, choose_logger, commit

STATE = {"optimizer", "lr_sched", "scaler", "epoch", "step", "seed", "world_size", "best_epoch", "min_eval_loss"}
STATE |= {"total", "weight", "bad_pieces"}  # what `latest_...` holds beside the model
INTERRUPTED = 130  # exit status of a run that was told to stop, saved and can continue


@dataclass
class Settings:
    """What differs between the two trainings, out of config.py."""

    name: str  # "m3" or "clamp2"
    num_epoch: int
    learning_rate: float
    batch_size: int  # per process
    deterministic: bool
    load_ckpt: bool
    wandb_log: bool
    weights_path: Path
    logs_path: Path

    @property
    def latest_path(self) -> Path:
        """The complete state of the run, beside its weights."""
        return self.weights_path.with_name("latest_" + self.weights_path.name)

    @property
    def checkpoint(self) -> Path | None:
        """What the run goes on from, where LOAD_CKPT allows it: `latest_...`, or else the weights file."""
        there = [path for path in (self.latest_path, self.weights_path) if self.load_ckpt and path.exists()]
        return there[0] if there else None


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
        self.epoch, self.step, self.seed = 1, 0, 0  # the epoch in progress, and its steps that are done
        self.best_epoch, self.min_eval_loss = 0, math.inf
        self.total, self.weight = 0.0, 0.0  # of the loss, over the epoch in progress and all ranks
        self.bad_pieces: set[str] = set()  # that were named, with what is wrong with them
        self.problems: set[str] = set()  # met by this rank since
        self.started_from = "new weights"
        self._stop = False
        self.model = model
        state = self._load()
        self.model.to(self.device)
        # one optimizer for the whole run; the schedule and a resumed run's state hold on to it
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=settings.learning_rate, fused=True)
        self.lr_sched = get_constant_schedule_with_warmup(self.optimizer, config.WARMUP_STEPS)
        if state:
            self.optimizer.load_state_dict(state["optimizer"])
            self.lr_sched.load_state_dict(state["lr_sched"])
            if state["scaler"]:  # a run in another precision has none
                self.scaler.load_state_dict(state["scaler"])
        self.parallel = self.module = wrap(model)
        if processes.world_size > 1:
            ids = [processes.local_rank] if self.device.type == "cuda" else None
            self.parallel = DistributedDataParallel(
                self.module, device_ids=ids, gradient_as_bucket_view=True, broadcast_buffers=False
            )
        if settings.deterministic:
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False

    def _load(self) -> dict | None:
        """Loads the weights of the checkpoint, if there is one. Returns the complete state of a run to continue."""
        settings = self.settings
        if settings.weights_path.suffix.lower() == ".safetensors":
            raise InputError(f"{settings.weights_path}: a training writes a .pth file; name one in {config.source()}")
        if self.processes.rank == 0:
            remove_leftovers(settings.weights_path.parent, below=False)
        self.processes.require_same("the checkpoint they find", str(settings.checkpoint))
        if settings.checkpoint == settings.latest_path:
            state = load_checkpoint(settings.latest_path)
            load_weights(self.model, state["model"], settings.latest_path)
            if lacking := STATE - state.keys():
                raise InputError(
                    f"{settings.latest_path}: not the complete state of a run ({', '.join(sorted(lacking))} is not in"
                    f" it); to start from its weights, rename it to {settings.weights_path.name}"
                )
            self.epoch, self.step, self.seed = state["epoch"], state["step"], state["seed"]
            self.best_epoch, self.min_eval_loss = state["best_epoch"], state["min_eval_loss"]
            self.total, self.weight = state["total"], state["weight"]
            self.bad_pieces = set(state["bad_pieces"])
            self.started_from = f"{settings.latest_path}, epoch {self.epoch}, step {self.step}"
            if state["world_size"] != self.processes.world_size:
                self.started_from += (
                    f" (that run had {state['world_size']} processes, this one has {self.processes.world_size}:"
                    " the pieces of the epoch in progress are dealt out anew, from its first step)"
                )
                self.step, self.total, self.weight = 0, 0.0, 0.0
            return state
        self.seed = 0 if settings.deterministic else self.processes.broadcast(random.getrandbits(31))
        if settings.checkpoint:
            checkpoint = load_checkpoint(settings.weights_path)
            if checkpoint["has_audio"]:
                raise InputError(
                    f"{settings.weights_path}: weights of CLaMP 3, which a training would replace by some without the"
                    " audio tower; to start from them, make a new .pth file of them with convert_checkpoint.py, by way"
                    " of a folder"
                )
            load_weights(self.model, checkpoint["model"], settings.weights_path)
            self.started_from = str(settings.weights_path)
        return None

    def published_state(self, epoch: int) -> dict:
        """A checkpoint in the published form."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lr_sched": self.lr_sched.state_dict(),
            "epoch": epoch,
            "best_epoch": self.best_epoch,
            "min_eval_loss": self.min_eval_loss,
        }

    def save_latest(self) -> None:
        """The complete state, from which the run continues exactly."""
        self._tell_bad_pieces()
        if self.processes.rank == 0:
            state = self.published_state(self.epoch) | {
                "step": self.step,
                "scaler": self.scaler.state_dict(),
                "seed": self.seed,
                "world_size": self.processes.world_size,
                "total": self.total,
                "weight": self.weight,
                "bad_pieces": sorted(self.bad_pieces),
            }
            began = time.monotonic()
            save_checkpoint(self.settings.latest_path, state)
            self.processes.say(f"saved {self.settings.latest_path.name} in {time.monotonic() - began:.1f} s")
        self.processes.wait_for_all()  # a launcher would kill rank 0 while it saves, 30 s after another one has ended

    def run(
        self,
        train_loader: DataLoader,
        eval_loader: DataLoader,
        step: "Callable[[Training, Any], Step]",
        evaluate: "Callable[[Training, DataLoader], float]",
    ) -> int:
        """All epochs. Returns the exit status."""
        try:
            return self._run(train_loader, eval_loader, step, evaluate)
        finally:
            close_loader(train_loader)
            close_loader(eval_loader)
            self.log.close()

    def _run(
        self,
        train_loader: DataLoader,
        eval_loader: DataLoader,
        step: "Callable[[Training, Any], Step]",
        evaluate: "Callable[[Training, DataLoader], float]",
    ) -> int:
        facts = self._facts(train_loader, eval_loader)
        self.processes.require_same("the pieces they find", facts["pieces"])
        steps = len(train_loader.batch_sampler)  # type: ignore[arg-type]
        self.log.begin(facts, (self.epoch - 1) * steps + self.step)
        self._catch_signals()
        if self.epoch == 1 and self.step == 0 and self.started_from == str(self.settings.weights_path):
            self.min_eval_loss = self._evaluate(
                evaluate, eval_loader
            )  # what the file must be bettered by to be replaced
            self.processes.say(f"eval_loss of these weights: {self.min_eval_loss:.6f}")
        while self.epoch <= self.settings.num_epoch:
            began = time.monotonic()
            if not self._train_one_epoch(train_loader, step):
                self.save_latest()
                self.processes.say(
                    f"stopped in epoch {self.epoch} after step {self.step}, as asked; the same command continues there"
                )
                return INTERRUPTED
            eval_loss = self._evaluate(evaluate, eval_loader)
            record = {
                "epoch": self.epoch,
                "train_loss": self.total / self.weight,
                "eval_loss": eval_loss,
                "learning_rate": self.lr_sched.get_last_lr()[0],
                "seconds": round(time.monotonic() - began, 1),
                "bad_pieces": self._tell_bad_pieces(),
            }
            if eval_loss < self.min_eval_loss:
                self.best_epoch, self.min_eval_loss = self.epoch, eval_loss
                if self.processes.rank == 0:
                    save_checkpoint(self.settings.weights_path, self.published_state(self.epoch))
            self.log.epoch(record, self.epoch * steps)
            self.epoch, self.step, self.total, self.weight = self.epoch + 1, 0, 0.0, 0.0
            self.save_latest()
        summary = f"Best Eval Epoch : {self.best_epoch}\nMin Eval Loss : {self.min_eval_loss}\n"
        self.log.write(summary)
        self.processes.say(f"{summary}bad pieces: {len(self.bad_pieces)}\nweights: {self.settings.weights_path}")
        return 0

    def _train_one_epoch(self, loader: DataLoader, step: "Callable[[Training, Any], Step]") -> bool:
        """Runs the steps of the epoch that are left. False: it was told to stop."""
        self.parallel.train()
        batches: Batches = loader.batch_sampler  # type: ignore[assignment]
        batches.epoch, batches.first_step = self.epoch, self.step
        bar = tqdm(
            total=len(batches),
            initial=self.step,
            desc=f"epoch {self.epoch}/{self.settings.num_epoch}",
            unit="step",
            disable=self.processes.rank != 0,
        )
        behind: _Report | None = None
        clock = time.monotonic()
        with bar:
            for batch in loader:
                if "fatal" in batch:
                    raise InputError(batch["fatal"])
                self.problems.update(batch["problems"])
                torch.manual_seed(self._step_seed())
                told = step(self, batch["batch"].to(self.device))
                rate, norm = self.lr_sched.get_last_lr()[0], self._update()
                self.step += 1
                now = time.monotonic()
                of_run = (self.epoch - 1) * len(batches) + self.step
                report = _Report(self._numbers(told, norm), self.step, of_run, batch["names"], now - clock, rate)
                clock = now
                if behind and self._account(behind):
                    self._account(report)
                    return False
                behind = report
                bar.update()
                if self.weight:
                    bar.set_postfix(loss=f"{self.total / self.weight:.4f}", refresh=False)
                if config.SAVE_EVERY_STEPS and self.step % config.SAVE_EVERY_STEPS == 0 and self.step < len(batches):
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
                f"the loss is not finite ({total}) in epoch {self.epoch}, step {report.step}; its pieces: {pieces}"
            )
        values = {"loss": total / weight, "learning_rate": report.learning_rate}
        if norm:
            values["gradient_norm"] = norm[0]
        pieces_of_all = self.settings.batch_size * self.processes.world_size
        self.log.step(report.step_of_run, pieces_of_all, report.seconds, values)
        self.total += total
        self.weight += weight
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
        return random.Random(f"{self.seed} {self.epoch} {self.step} {self.processes.rank}").getrandbits(63)

    @torch.no_grad()
    def _evaluate(self, evaluate: "Callable[[Training, DataLoader], float]", loader: DataLoader) -> float:
        self.model.eval()
        loss = evaluate(self, loader)
        if not math.isfinite(loss):
            raise InputError(f"the evaluation loss is not finite ({loss}) after epoch {self.epoch}")
        return loss

    def evaluation_batches(self, loader: DataLoader) -> Iterator[Any]:
        """The batches of an evaluation, on the device, with a progress bar."""
        for batch in tqdm(loader, desc="evaluation", unit="step", leave=False, disable=self.processes.rank != 0):
            if "fatal" in batch:
                raise InputError(batch["fatal"])
            self.problems.update(batch["problems"])
            yield batch["batch"].to(self.device)

    def _catch_signals(self) -> None:
        """SIGTERM (a cluster's preemption) and SIGINT (Ctrl-C) end the run after a step, with its state saved."""

        def stop(number: int, frame: Any) -> None:
            self._stop = True

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)

    def _tell_bad_pieces(self) -> int:
        """Names the bad pieces that any rank met since the last time. Returns the number of all so far."""
        new = set().union(*self.processes.gather(sorted(self.problems))) - self.bad_pieces
        for problem in sorted(new):
            self.log.bad_piece(problem)
        self.bad_pieces |= new
        self.problems.clear()
        return len(self.bad_pieces)

    def _facts(self, train_loader: DataLoader, eval_loader: DataLoader) -> dict:
        """What the log begins with, beside the constants of config.py."""
        settings, world_size = self.settings, self.processes.world_size
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        train_count, eval_count = len(train_loader.dataset), len(eval_loader.dataset)  # type: ignore[arg-type]
        return {
            "commit": commit(),
            "device": f"{world_size} x {device}",
            "precision": str(self.dtype).removeprefix("torch."),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "pieces": f"{train_count} for training, {eval_count} for evaluation",
            "batch": f"{settings.batch_size} x {world_size} = {settings.batch_size * world_size}",
            "learning rate": f"{settings.learning_rate} after {config.WARMUP_STEPS} warm-up steps",
            "workers": f"{train_loader.num_workers} per process",
            "seed": self.seed,
            "starts from": self.started_from,
        }


def require_set(name: str, value: str) -> None:
    """Raises InputError if a constant of config.py still is its placeholder, or is empty."""
    if not value or value.startswith("<"):
        raise InputError(f"{name} is not set (it is {value!r}); set it in {config.source()}")
