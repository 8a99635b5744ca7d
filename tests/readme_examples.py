"""Runs the examples of a README as they are printed.

    python tests/readme_examples.py code/README.md       runs them and writes what they print into the file

A `bash` block holds commands; in a `console` block, a line after `$ ` is a command and the lines below it are what it
prints (`...` stands for lines that are left out). A `python` block is run too; one that begins with `# NAME.py` is a
file to be saved under that name. A block below `<!-- not run: WHY -->` is not run.

Scripts run in forked processes that have imported torch (zygote.py), and the ranks of a launcher without the launcher:
the real ones are started by other tests.
"""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import conftest  # noqa: F401 - puts code/ and process_data/ on the path
from helpers import ROOT, environment, run_ranks, run_script

READMES = ("README.md", "code/README.md", "process_data/README.md", "tests/README.md")
PLACEHOLDERS = {
    "<number_of_GPUs>": "2",
    "<input_dir>": "../tests/kit/mtf",
    "<output_dir> [--normalize]": "../example/pooled --normalize",
    "<output_dir>": "../example/temporal",
}
SERVER = "http://localhost:8000/v1"  # as printed
HOME = "/home/you/clamp2"  # stands for the folder of the repository in what is printed
_BLOCK = re.compile(r"^(?:<!-- not run: (\w+) -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LAUNCHER = re.compile(
    r"(?:torchrun|python -m torch\.distributed\.launch|accelerate launch)\b.*--(?:nproc_per_node|num_processes)[= ](\d+)"
    r"(?: --use_env)? (?=\S+\.py)|accelerate launch (?=\S+\.py)"
)
_PROGRESS = re.compile(r"\d+%\||\d+it \[|\d+(?:piece|record|file|row)\w* \[")
_NUMBER = re.compile(r"\d+\.\d+")


@dataclass
class Block:
    language: str
    text: str
    why_not: str  # it is run, or ""
    at: tuple[int, int]  # where the text stands in the README

    def commands(self) -> list[tuple[str, str]]:
        """Each command, and what is printed below it."""
        text = self.text.replace("\\\n", "")
        if self.language == "console":
            return [
                (command, re.sub(r"\n+", "\n", shown))
                for command, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.M)
            ]
        return [(line, "") for line in text.splitlines() if line.strip() and not line.startswith("#")]


def blocks(readme: str) -> list[Block]:
    text = (ROOT / readme).read_text(encoding="utf-8")
    return [Block(found[2], found[3], found[1] or "", found.span(3)) for found in _BLOCK.finditer(text)]


def workspace(folder: Path) -> Path:
    """What the examples need of a fresh clone."""
    for name in ("code", "process_data", "tests/kit", "tests/examples"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "weights_m3_p_*", "latest_*"))  # fmt: skip
    return folder


class Shell:
    """Runs one command after another, with what `cd` and `export` set."""

    def __init__(self, root: Path, folder: str, server: str):
        self.root, self.cwd, self.server = root, root / folder, server
        fonts = os.environ.get("MPLCONFIGDIR", str(Path.home() / ".cache" / "matplotlib"))
        self.variables = {"HOME": str(root), "MPLCONFIGDIR": fonts, "NO_PROXY": "127.0.0.1"}

    def run(self, command: str) -> tuple[int, str]:
        """Returns the exit status, and what the command prints, errors first."""
        for name, value in PLACEHOLDERS.items():
            command = command.replace(name, value)
        command = command.replace(SERVER, self.server)
        if command.startswith("export "):
            name, _, value = shlex.split(command, comments=True)[1].partition("=")
            self.variables[name] = value
            return 0, ""
        if launched := _LAUNCHER.match(command):
            words = shlex.split(command[launched.end() :], comments=True)
            done = run_ranks(int(launched[1] or 1), words[0], *words[1:], cwd=self.cwd, **self.variables)
        elif command.startswith("python "):
            _, *words = shlex.split(command, comments=True)
            done = [run_script(words[0], *words[1:], cwd=self.cwd, **self.variables)]
        else:
            env = environment(**self.variables)
            done = [subprocess.run(["bash", "-c", command], cwd=self.cwd, env=env, capture_output=True, text=True)]
        lines = "".join(text for one in done for text in (one.stderr, one.stdout)).replace("\r", "\n").splitlines()
        printed = "".join(line + "\n" for line in lines if line.strip() and not _PROGRESS.search(line))
        return done[0].returncode, printed.replace(str(self.root), HOME).replace(self.server, SERVER)

    def python(self, text: str) -> tuple[int, str]:
        """Runs a Python block, or saves it, if its first line names a file."""
        name = re.match(r"# (\S+\.py)$", text, re.MULTILINE)
        path = self.cwd / (name[1] if name else "example.py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return (0, "") if name else self.run(f"python {shlex.quote(path.name)}")


@contextlib.contextmanager
def shell(readme: str, folder: Path):
    """A shell in a fresh copy, with a stand-in for the chat server."""
    import chat_server

    server = chat_server.Server(lambda title, count, request: ANSWER)
    try:
        yield Shell(workspace(folder), "code" if readme == "code/README.md" else ".", server.url)
    finally:
        server.close()


ANSWER = {
    "sufficient": True,
    "summary_en": "The nursery rhyme Twinkle, Twinkle, Little Star, a children's song known all over the world. Its calm, even melody suits first lessons and bedtime.",
    "summary_nen": {"language": "French", "summary": "La comptine Twinkle, Twinkle, Little Star, une chanson enfantine connue dans le monde entier. Sa mélodie calme et régulière convient aux premières leçons et au coucher."},
}  # fmt: skip


def agrees(shown: list[str], printed: list[str]) -> bool:
    """Whether lines are as they are shown: `...` for any number of them, decimals to 0.005, seconds and dates whatever
    they are."""
    if not shown:
        return not printed
    if shown[0] == "...":
        return any(agrees(shown[1:], printed[start:]) for start in range(len(printed) + 1))
    return bool(printed) and _same(shown[0], printed[0]) and agrees(shown[1:], printed[1:])


def _same(shown: str, printed: str) -> bool:
    first, second = (re.sub(r"\d+\.\d+ s\b", "some s", line.rstrip()) for line in (shown, printed))
    if _NUMBER.split(first) != _NUMBER.split(second):
        return False
    pairs = zip(_NUMBER.findall(first), _NUMBER.findall(second), strict=True)
    return all(abs(float(one) - float(other)) < 0.005 for one, other in pairs)


def run_all(readme: str, folder: Path):
    """Runs the examples. Yields block, command, what is shown, exit status and what was printed."""
    with shell(readme, folder) as sh:
        for block in blocks(readme):
            if block.why_not:
                continue
            if block.language == "python":
                yield block, block.text, "", *sh.python(block.text)
            elif block.language in ("bash", "console"):
                for command, shown in block.commands():
                    yield block, command, shown, *sh.run(command)


def rewrite(readme: str, folder: Path) -> None:
    """Puts what the commands of console blocks print in the place of what is shown, where they differ."""
    text = (ROOT / readme).read_text(encoding="utf-8")
    for block, command, shown, status, printed in run_all(readme, folder):
        if block.language == "console" and not agrees(shown.splitlines(), printed.splitlines()):
            print(f"--- {command}\n{shown}+++ {status}\n{printed}")
            assert text.count(shown) == 1 or not shown
            last = command.split("\\\n")[-1][-40:] + "\n"
            text = text.replace(last + shown, last + printed, 1)
        elif status and block.language != "console":
            print(f"--- {command}\n{status}\n{printed}")
    (ROOT / readme).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    import tempfile

    for readme in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder:
            rewrite(readme, Path(folder))
