"""A conversion script for the tests of the batch runner: the input says what its converter does.

Each conversion appends the file's name to the file that CALLS names, if set.

examples: see test_batch.py
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "process_data"))
import batch
import jobs
from files import InputError


def convert(path: Path, args: argparse.Namespace) -> batch.Converted:
    if "CALLS" in os.environ:
        with open(os.environ["CALLS"], "a") as calls:
            calls.write(path.name + "\n")
    order, _, text = path.read_text().partition(" ")
    if order == "signal":
        os.kill(os.getpid(), int(text))
    elif order == "exit":
        os._exit(int(text))
    elif order == "sys.exit":
        sys.exit(text)
    elif order == "sleep":
        time.sleep(float(text))
    elif order == "work":
        work(float(text))
    elif order == "busy":  # a machine so busy that this process has no turn for a while
        subprocess.Popen(f"sleep 0.1; kill -STOP {os.getpid()}; sleep {text}; kill -CONT {os.getpid()}", shell=True)
        start = time.monotonic()
        work(0.3)
        return batch.Converted([str(time.monotonic() - start).encode()])
    elif order == "memory":
        bytearray(8 * 2**30)
    elif order == "refuse":
        raise InputError(text)
    elif order == "raise":
        raise ValueError(text)
    elif order == "nothing":
        return batch.Converted([])
    elif order == "several":
        return batch.Converted([part.encode() for part in text.split()])
    elif order == "warn":
        return batch.Converted([text.encode()], [text, "again"])
    elif order == "print":
        print("NOISE")
        print("NOISE", file=sys.stderr)
        os.write(1, b"NOISE\n")
        os.write(2, b"NOISE\n")
        subprocess.run("echo NOISE; echo NOISE >&2", shell=True, check=True)
        for stream in (0, sys.stdin.fileno()):  # nothing of what the script was given, whatever else is wrong with it
            assert os.path.samestat(os.fstat(stream), os.stat(os.devnull))
    elif order == "die_once":  # as of a kill from outside
        path.write_text("text")
        os.kill(os.getpid(), signal.SIGKILL)
    elif order == "die_later":  # when the worker has no job
        subprocess.Popen(f"sleep {text}; kill -9 {os.getpid()}", shell=True)
    elif order == "pid":
        return batch.Converted([str(os.getpid()).encode()])
    elif order == "hash":
        return batch.Converted([repr(list({"do", "re", "mi", "fa", "sol"})).encode()])
    return batch.Converted([f"{order} {text}".encode()])


def work(seconds: float) -> None:
    """Takes that much CPU time."""
    start = time.process_time()
    while time.process_time() - start < seconds:
        pass


def main(argv: list[str] | None = None) -> int:
    several = "ONE" not in os.environ
    return batch.main(convert, doc=__doc__, suffixes=(".txt", ".text"), target=".out", several=several, argv=argv)


def draw(path: Path) -> str:
    """In place of `pictures.draw`."""
    return convert(path, argparse.Namespace()).outputs[0].decode()


def read(path: Path) -> tuple:
    """In place of `pieces._read_file`."""
    from pieces import Piece

    return "a digest", [Piece(draw(path))]


def process_id(_: object) -> int:
    return os.getpid()


def write(path: Path) -> list[str]:
    """What a worker does for a conversion: the output is beside the input."""
    job = jobs.Job(path.name, path, path.with_suffix(".out"), None)
    return batch._write_converted(convert, argparse.Namespace(), job)


if __name__ == "__main__":
    sys.exit(main())
