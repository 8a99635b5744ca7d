"""The log of a training: settings, losses and bad pieces, on the terminal and in the log file; curves in TensorBoard or
wandb, which are imported only where LOGGER asks for them."""

import datetime
import importlib.util
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import config
from files import InputError, printable
from processes import Processes
from run_state import Settings


class RunLog:
    """The log of one run, which rank 0 writes. Raises InputError if the package that plots its curves is missing."""

    def __init__(self, processes: Processes, settings: Settings):
        self.processes, self.name, self.path = processes, settings.name, settings.logs_path
        self.run_name = settings.weights_path.stem  # in wandb
        self.logger = choose_logger(settings)
        self._plot: Callable[[dict, int], None] | None = None  # numbers by name, and the step they belong to
        self.close: Callable[[], None] = lambda: None  # writes what was plotted

    def begin(self, facts: dict, steps_done: int) -> None:
        """Log the constants of config.py and `facts`. A run that continues does so after `steps_done`."""
        others = ("_", "WANDB_KEY", "CLAMP2_" if self.name == "m3" else "M3_")
        constants = {k: v for k, v in vars(config).items() if k.isupper() and not k.startswith(others)}
        width = max(map(len, [*constants, *facts]))
        lines = [f"{self.name}, {datetime.datetime.now():%Y-%m-%d %H:%M:%S}"]
        lines += [printable(f"  {name:{width}} {value}") for name, value in [*constants.items(), *facts.items()]]
        self.processes.print("\n".join(lines))
        self.write("\n".join(lines) + "\n\n")
        if self.logger == "tensorboard" and self.processes.rank == 0:
            from torch.utils.tensorboard import SummaryWriter

            folder = self.path.with_suffix(".tensorboard")
            writer = SummaryWriter(str(folder), purge_step=steps_done + 1)  # later points are plotted again

            def plot(values: dict, step: int) -> None:
                for name, value in values.items():
                    writer.add_scalar(name, value, step)

            self._plot, self.close = plot, writer.close
            self.processes.print(printable(f"curves: tensorboard --logdir {folder}"))
        elif self.logger == "wandb" and self.processes.rank == 0:
            import wandb

            if not config.WANDB_KEY.startswith("<"):
                wandb.login(key=config.WANDB_KEY)
            run = wandb.init(project=self.name, name=self.run_name, config=constants)
            self._plot, self.close = lambda values, step: run.log(values, step=step), run.finish

    def step(self, step: int, pieces: int, seconds: float, values: dict) -> None:
        """Plot the values of a step, counted over all epochs, with the speed (pieces of all ranks) and the memory."""
        if not self._plot:
            return
        device = self.processes.device
        if hasattr(torch.get_device_module(device), "max_memory_allocated"):
            memory = torch.get_device_module(device).max_memory_allocated(device)
        else:  # the process's, in KiB, on a Mac in bytes
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        self._plot({**values, "pieces_per_second": pieces / seconds, "memory_gib": memory / 2**30}, step)

    def epoch(self, record: dict, step: int) -> None:
        """Log the published lines of an epoch, then the same and more as one JSON line, after `step` steps in all."""
        self.write(
            f"Epoch {record['epoch']}\ntrain_loss: {record['train_loss']}\neval_loss: {record['eval_loss']}\n"
            f"time: {time.asctime()}\n{json.dumps(record)}\n\n"
        )
        self.processes.print(
            f"epoch {record['epoch']}: train_loss {record['train_loss']:.4f}, eval_loss {record['eval_loss']:.4f},"
            f" {record['seconds']} s" + (f", {record['bad_pieces']} bad pieces" if record["bad_pieces"] else "")
        )
        if self._plot:
            self._plot({k: v for k, v in record.items() if k != "learning_rate"}, step)  # a curve of the steps

    def bad_piece(self, problem: str) -> None:
        self.processes.print(printable(f"bad piece or file, another one in its place: {problem}"))
        self.write(printable(f"bad piece: {problem}") + "\n")

    def write(self, text: str) -> None:
        """Append to the log file, whole or not at all; a file name that is not UTF-8 is escaped. Raises InputError."""
        if self.processes.rank != 0:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        data = text.encode("utf-8", "backslashreplace")
        with open(self.path, "ab", buffering=0) as file:
            end, reason = file.tell(), "no space is left for all of it"
            try:
                if file.write(data) == len(data):
                    return
            except OSError as error:
                reason = str(error.strerror)
            file.truncate(end)
        raise InputError(f"{self.path}: cannot be written ({reason}); is the disk full? What was there is kept")


def choose_logger(settings: Settings) -> str:
    """Return LOGGER, or "wandb" if M3_WANDB_LOG or CLAMP2_WANDB_LOG is True. Raises InputError if it is missing."""
    logger = "wandb" if settings.wandb_log else config.LOGGER
    if logger == "none" or importlib.util.find_spec(logger):
        return logger
    setting, off = f"LOGGER is {logger!r}", "'none'"
    if settings.wandb_log:
        setting, off = f"{settings.constant('wandb_log')} is True", "False"
    raise InputError(
        f"{setting}, but {logger} is not installed: `pip install {logger}`, or set it to {off} in {config.source()}"
    )


def commit() -> str:
    """Return the git commit of this code, or "unknown"."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
