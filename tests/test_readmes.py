"""The READMEs: every example runs as it is printed and prints what it shows; every file is in a table; links lead somewhere."""

import functools
import os
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest

import readme_examples
from helpers import ROOT, run_script
from readme_examples import READMES, agrees, blocks, run_all

TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in READMES}
CONVERSIONS = "process_data/README.md"


@pytest.mark.parametrize("readme", READMES)
def test_examples_run_as_printed(readme, tmp_path):
    for block, command, shown, status, printed in run_all(readme, tmp_path):
        if block.language == "console":
            assert agrees(shown.splitlines(), printed.splitlines()), f"$ {command}\n{shown}--- printed:\n{printed}"
        else:
            assert status == 0, f"{command}\n{printed}"
    if readme == CONVERSIONS:
        forms = {
            "X:1\n": "standard/twinkle.abc",
            "%%score": "data/abc/twinkle.abc",
            "ticks_per_": "data/mtf/twinkle.mtf",
        }
        for start, made in forms.items():
            [shown] = [block.text for block in blocks(readme) if block.text.startswith(start)]
            assert (tmp_path / "example" / made).read_text().strip().startswith(shown.strip()), made


def test_what_is_not_run_is_marked():
    """A block of commands has its language, or it would not be run; what cannot be run here is counted."""
    found = [(readme, block) for readme in READMES for block in blocks(readme)]
    assert Counter((readme, block.why_not) for readme, block in found if block.why_not) == {
        ("README.md", "hub"): 1,  # search with the published weights
        ("code/README.md", "hub"): 1,  # fine-tuning, which test_fine_tune runs
        ("code/README.md", "endless"): 1,  # demo.py, which test_demo starts
        ("README.md", "minutes"): 2,  # the quick start, all tests
        (CONVERSIONS, "cluster"): 1,
        (CONVERSIONS, "download"): 1,
        (CONVERSIONS, "hours"): 4,  # test_public_data runs them on small files
        ("tests/README.md", "minutes"): 5,
    }
    assert {block.language for _, block in found} == {"bash", "console", "python", "json", "yaml", "bibtex", ""}
    for readme, block in found:
        if block.language == "" and readme != "README.md":
            assert not re.search(r"^(\$|python|bash|torchrun|accelerate) ", block.text, re.MULTILINE), block.text
    assert sum(text.count("<!-- not run") for text in TEXTS.values()) == sum(bool(block.why_not) for _, block in found)


def test_scripts_and_options_of_what_is_not_run_exist():
    marked = [block for readme in READMES for block in blocks(readme) if block.why_not]
    commands = [command for block in marked for command, _ in block.commands()]
    commands += [found for text in TEXTS.values() for found in re.findall(r"`((?:python|torchrun) [^`\n]*)`", text)]
    seen = set()
    for command in commands:
        words = shlex.split(command, comments=True)
        for script in (word for word in words if re.fullmatch(r"[\w/]+\.(py|sh)", word)):
            path = ROOT / ("" if "/" in script else "code") / script
            after = words[words.index(script) + 1 :]
            options = {word for word in after if word.startswith("--")}
            assert path.is_file() and options <= known_options(path, tuple(after[:1])), command
            seen |= {(path.name, option) for option in options}
    assert {
        ("evaluate.py", "--prompts"),
        ("benchmark.py", "--gpu"),
        ("extract_clamp2.py", "--normalize"),
    } <= seen


@functools.cache
def known_options(script: Path, command: tuple[str, ...]) -> set[str]:
    """The options that a script's help lists; of a tool of the tests, which may lack a package, those in its source."""
    if script.parent.name == "tests":
        return set(re.findall(r'"(--\w+)"', script.read_text(encoding="utf-8")))
    commands = command if script.stem in ("semantic_search", "linear_probe", "plot", "prepare_dataset") else ()
    return set(re.findall(r"--\w+", run_script(script, *commands, "--help").stdout))


def is_script(path: Path) -> bool:
    return path.suffix == ".sh" or 'if __name__ == "__main__"' in path.read_text(encoding="utf-8")


def test_every_file_is_in_the_table_and_scripts_are_bold():
    rows = re.findall(
        r"^\| (\*\*)?`((?:code|process_data)/[\w.]+)`(\*\*)? \| \S.* \|$", TEXTS["README.md"], re.MULTILINE
    )
    named = [path for _, path, _ in rows]
    there = [
        path.relative_to(ROOT).as_posix()
        for folder in ("code", "process_data")
        for path in (ROOT / folder).iterdir()
        if path.suffix in (".py", ".sh", ".html", ".js")
    ]
    assert sorted(named) == sorted(there)
    for bold, path, _ in rows:
        assert bool(bold) == is_script(ROOT / path), path


def test_names_that_maintenance_points_to_exist():
    names = re.findall(r"((?:`\w+`[, and]*)+) in\s+`([\w.]+)`", TEXTS["README.md"])
    pairs = [(name, file) for some, file in names for name in re.findall(r"`(\w+)`", some)]
    assert len(pairs) >= 6
    for name, file in pairs:
        assert re.search(rf"^(def |class )?{name}\b", (ROOT / "code" / file).read_text(), re.MULTILINE), (name, file)


def test_links_lead_somewhere():
    for readme, text in TEXTS.items():
        links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", text)
        for target, heading in links:
            path = ROOT / os.path.dirname(readme) / target if target else ROOT / readme
            assert path.exists(), f"{readme}: {target}"
            if heading:
                titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
                assert heading in [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles], (
                    heading
                )
    assert len(TEXTS["README.md"].splitlines()) <= 350


def test_what_is_compared_can_differ():
    """`...` is any number of lines; else text is the same, numbers nearly, and seconds whatever they are."""
    shown = ["a 0.500", "...", "epoch 1: 0.25, 3.0 s"]
    assert agrees(shown, ["a 0.501", "epoch 1: 0.25, 9.9 s"])
    assert agrees(shown, ["a 0.501", "x", "y", "epoch 1: 0.25, 9.9 s"])
    assert not agrees(shown, ["a 0.510", "epoch 1: 0.25, 9.9 s"])
    assert not agrees(shown, ["b 0.500", "epoch 1: 0.25, 9.9 s"])
    assert not agrees(shown, ["a 0.500", "epoch 1: 0.25, 9.9 s", "more"])
    assert not agrees(shown, ["a 0.500", "epoch 2: 0.25, 9.9 s"])


def test_every_script_of_process_data_is_listed_and_has_an_example():
    scripts = {path.name for path in (ROOT / "process_data").glob("*.py") if is_script(path)}
    text = TEXTS[CONVERSIONS]
    assert scripts == set(re.findall(r"^\| `(\w+\.py)`", text, re.MULTILINE))
    assert scripts == set(re.findall(r"^\$ python process_data/(\w+\.py)", text, re.MULTILINE))
    assert readme_examples.SERVER in text
