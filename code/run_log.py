"""What a training tells: its settings, its losses and its bad pieces, on the terminal, in the log file and to wandb."""

import datetime
import json
import subprocess
import time
from pathlib import Path

import config
from processes import Processes


class RunLog:
    """The log of one run. Only rank 0 tells anything.

    Args:
        name: "m3" or "clamp2".
        run_name: what the run is called at wandb.
    """

    def __init__(self, job: Processes, name: str, path: Path, wandb_log: bool, run_name: str):
        self.job, self.name, self.path, self.wandb_log, self.run_name = job, name, path, wandb_log, run_name
        self._wandb = None

    def begin(self, facts: dict) -> None:
        """One block: the constants of config.py, and `facts`."""
        others = ("_", "WANDB_KEY", "CLAMP2_" if self.name == "m3" else "M3_")
        constants = {k: v for k, v in vars(config).items() if k.isupper() and not k.startswith(others)}
        width = max(map(len, [*constants, *facts]))
        lines = [f"{self.name}, {datetime.datetime.now():%Y-%m-%d %H:%M:%S}"]
        lines += [f"  {name:{width}} {value}" for name, value in [*constants.items(), *facts.items()]]
        self.job.say("\n".join(lines))
        self.write("\n".join(lines) + "\n\n")
        if self.wandb_log and self.job.rank == 0:
            import wandb  # only where it is asked for

            if not config.WANDB_KEY.startswith("<"):
                wandb.login(key=config.WANDB_KEY)
            self._wandb = wandb.init(project=self.name, name=self.run_name, config=constants)

    def epoch(self, record: dict) -> None:
        """The published lines of an epoch, then the same and more as one JSON line."""
        self.write(
            f"Epoch {record['epoch']}\ntrain_loss: {record['train_loss']}\neval_loss: {record['eval_loss']}\n"
            f"time: {time.asctime()}\n{json.dumps(record)}\n\n"
        )
        self.job.say(
            f"epoch {record['epoch']}: train_loss {record['train_loss']:.4f}, eval_loss {record['eval_loss']:.4f},"
            f" {record['seconds']} s" + (f", {record['bad_pieces']} bad pieces" if record["bad_pieces"] else "")
        )
        if self._wandb:
            self._wandb.log(record, step=record["epoch"])

    def bad_piece(self, problem: str) -> None:
        self.job.say(f"bad piece, another one in its place: {problem}")
        self.write(f"bad piece: {problem}\n")

    def write(self, text: str) -> None:
        """Adds to the log file. A file name that is no UTF-8 is escaped."""
        if self.job.rank == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)


def commit() -> str:
    """The git commit of this code, or "unknown"."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
