"""Runs the commands of the quick start: prints each as a person could paste it, and does not repeat what is done."""

import json
import os
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import files

T = TypeVar("T")
ROOT = Path(__file__).resolve().parent.parent


class Steps:
    """The steps of a run in `folder`; `steps.json` there says which are done, and what they took.

    Args:
        environment: what the scripts are started with. With another one, the same command is another step.
    """

    def __init__(self, folder: Path, environment: dict[str, str]):
        self.folder, self.environment = folder, environment
        self.log = folder / "steps.json"
        self.done: dict[str, dict] = json.loads(self.log.read_text()) if self.log.exists() else {}
        self.export = "export " + " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())
        print(f"\n{self.export}")

    def python(self, *words: str | Path, statuses: tuple[int, ...] = (0,)) -> None:
        """Runs `python WORDS` from the top folder of the repository; ends the program if it fails.

        Args:
            statuses: the exit statuses that are no failure.
        """
        shown = shlex.join(["python", *(self.short(word) for word in words)])
        step = f"{self.export}; {shown}"
        if step in self.done:
            print(f"\n$ {shown}\n(done before)")
            return
        print(f"\n$ {shown}", flush=True)
        began, used = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, *map(self.short, words)]
        status = subprocess.run(command, cwd=ROOT, env=os.environ | self.environment, check=False).returncode
        if status not in statuses:
            raise files.InputError(f"this command ended with status {status}; the same quick start goes on there")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.note(step, began, after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime)

    def once(self, step: str, function: Callable[[], T]) -> T | None:
        """Runs a step that is no script, unless it is done."""
        if step in self.done:
            print(f"\n{step} (done before)")
            return None
        print(f"\n{step}", flush=True)
        began, used = time.monotonic(), time.process_time()
        result = function()
        self.note(step, began, time.process_time() - used)
        return result

    def note(self, step: str, began: float, cpu: float) -> None:
        """Remembers that a step is done. `cpu`: in seconds, without the conversions' workers, which are not ours."""
        self.done[step] = {"seconds": round(time.monotonic() - began, 1), "cpu_seconds": round(cpu, 1)}
        with files.atomic_write(self.log, "w", encoding="utf-8") as file:
            json.dump(self.done, file, indent=1, ensure_ascii=False)

    @staticmethod
    def short(word: str | Path) -> str:
        """A path below the top folder as relative to it."""
        path = Path(word)
        return str(path.relative_to(ROOT)) if path.is_absolute() and path.is_relative_to(ROOT) else str(word)
