"""The log of a training: settings, losses and bad pieces, on the terminal and in the log file; curves in TensorBoard or
wandb, which are imported only where they are asked for."""

import datetime
import importlib.util
import json
import resource
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

import config
from files import InputError, printable
from processes import Processes


class RunLog:
    """The log of one run, which rank 0 writes.

    Args:
        name: "m3" or "clamp2".
        logger: "none", "tensorboard" or "wandb".
        run_name: the name of the run in wandb.
    """

    def __init__(self, job: Processes, name: str, path: Path, logger: str, run_name: str):
        self.job, self.name, self.path, self.logger, self.run_name = job, name, path, logger, run_name
        self._plot: Callable[[dict, int], None] | None = None  # numbers by name, and the step they belong to
        self.close: Callable[[], None] = lambda: None  # writes what was plotted

    def begin(self, facts: dict, steps_done: int) -> None:
        """Logs the constants of config.py and `facts`. A run that continues does so after `steps_done`."""
        others = ("_", "WANDB_KEY", "CLAMP2_" if self.name == "m3" else "M3_")
        constants = {k: v for k, v in vars(config).items() if k.isupper() and not k.startswith(others)}
        width = max(map(len, [*constants, *facts]))
        lines = [f"{self.name}, {datetime.datetime.now():%Y-%m-%d %H:%M:%S}"]
        lines += [printable(f"  {name:{width}} {value}") for name, value in [*constants.items(), *facts.items()]]
        self.job.say("\n".join(lines))
        self.write("\n".join(lines) + "\n\n")
        if self.logger == "tensorboard" and self.job.rank == 0:
            self._begin_tensorboard(steps_done)
        elif self.logger == "wandb" and self.job.rank == 0:
            self._begin_wandb(constants)

    def _begin_tensorboard(self, steps_done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = self.path.with_suffix(".tensorboard")
        writer = SummaryWriter(str(folder), purge_step=steps_done + 1)  # later points are plotted again

        def plot(values: dict, step: int) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)

        self._plot, self.close = plot, writer.close
        self.job.say(printable(f"curves: tensorboard --logdir {folder}"))

    def _begin_wandb(self, constants: dict) -> None:
        import wandb

        if not config.WANDB_KEY.startswith("<"):
            wandb.login(key=config.WANDB_KEY)
        run = wandb.init(project=self.name, name=self.run_name, config=constants)
        self._plot, self.close = lambda values, step: run.log(values, step=step), run.finish

    def step(self, step: int, pieces: int, seconds: float, values: dict) -> None:
        """Plots a step, counted over all epochs, its `pieces` on all ranks a second, and the memory."""
        if not self._plot:
            return
        if torch.cuda.is_available():
            memory = torch.cuda.max_memory_allocated()
        else:
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self._plot({**values, "pieces_per_second": pieces / seconds, "memory_gib": memory / 2**30}, step)

    def epoch(self, record: dict, step: int) -> None:
        """Logs the published lines of an epoch, then the same and more as one JSON line, after `step` steps in all."""
        self.write(
            f"Epoch {record['epoch']}\ntrain_loss: {record['train_loss']}\neval_loss: {record['eval_loss']}\n"
            f"time: {time.asctime()}\n{json.dumps(record)}\n\n"
        )
        self.job.say(
            f"epoch {record['epoch']}: train_loss {record['train_loss']:.4f}, eval_loss {record['eval_loss']:.4f},"
            f" {record['seconds']} s" + (f", {record['bad_pieces']} bad pieces" if record["bad_pieces"] else "")
        )
        if self._plot:
            self._plot({k: v for k, v in record.items() if k != "learning_rate"}, step)  # a curve of the steps

    def bad_piece(self, problem: str) -> None:
        self.job.say(printable(f"bad piece or file, another one in its place: {problem}"))
        self.write(printable(f"bad piece: {problem}") + "\n")

    def write(self, text: str) -> None:
        """Appends to the log file, whole or not at all; a file name that is not UTF-8 is escaped. Raises InputError."""
        if self.job.rank == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            data = text.encode("utf-8", "backslashreplace")
            with open(self.path, "ab", buffering=0) as file:
                end, reason = file.tell(), "no space is left for all of it"
                try:
                    written = file.write(data)
                except OSError as error:
                    written, reason = 0, str(error.strerror)
                if written < len(data):
                    file.truncate(end)
                    raise InputError(
                        f"{self.path}: cannot be written ({reason}); is the disk full? What was there is kept"
                    )


def choose_logger(name: str, wandb_log: bool) -> str:
    """Returns LOGGER, or "wandb" if NAME_WANDB_LOG is True. Raises InputError if the package for it is missing."""
    logger = "wandb" if wandb_log else config.LOGGER
    if logger == "none" or importlib.util.find_spec(logger):
        return logger
    setting, off = (f"{name.upper()}_WANDB_LOG is True", "False") if wandb_log else (f"LOGGER is {logger!r}", "'none'")
    raise InputError(
        f"{setting}, but {logger} is not installed: `pip install {logger}`, or set it to {off} in {config.source()}"
    )


def commit() -> str:
    """Returns the git commit of this code, or "unknown"."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
