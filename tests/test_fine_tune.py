"""Fine-tuning from the published weights as code/README.md prints it, with a hub on loopback that holds the kit's."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import published
from checkpoints import load_checkpoint
from helpers import KIT, KIT_SIZES, run, run_script
from hub import serving
from readme_examples import blocks, workspace

QUICK = "CLAMP2_NUM_EPOCH = 2\nCLAMP2_LEARNING_RATE = 1e-2\nWARMUP_STEPS = 0\n"  # on top of the page's settings
WEIGHTS = KIT / "weights_clamp2_kit.pth"


@pytest.fixture
def clone(tmp_path):
    """A fresh clone whose config.py has the kit's sizes, with the kit's pieces in mine/, three of them held out."""
    root, mine = workspace(tmp_path), tmp_path / "mine"
    text = (root / "code/config.py").read_text(encoding="utf-8")
    sizes = KIT_SIZES | {"TEXT_MODEL_NAME": "../tests/kit/tiny-xlmr", "CLAMP2_WEIGHTS_PATH": published.CLAMP2}
    for name, value in sizes.items():
        text, count = re.subn(rf"^{name} = .*", f"{name} = {value!r}", text, count=1, flags=re.MULTILINE)
        assert count == 1
    (root / "code/config.py").write_text(text, encoding="utf-8")
    for name in ("interleaved", "mtf", "texts", "music"):
        (mine / name).mkdir(parents=True)
    lines = (KIT / "pieces.jsonl").read_text(encoding="utf-8").splitlines()
    for number, record in enumerate(map(json.loads, lines)):
        [path] = map(Path, record["filepaths"])
        shutil.copy(KIT / path, mine / ("music" if number < 3 else path.parent))
        if number < 3:
            (mine / f"texts/{path.stem}.txt").write_text(record["summary_en"])
    (mine / "train.jsonl").write_text("\n".join(lines[3:] * 7), encoding="utf-8")  # more than a batch
    return root


def test_the_page_from_the_published_weights_to_ones_own(clone):
    """Its four commands as printed: the last measures other weights than the first, and the published ones stay."""
    settings, page = (block for block in blocks("code/README.md") if "../mine" in block.text)
    name = settings.text.splitlines()[0].removeprefix("# ")
    (clone / "code" / name).write_text(settings.text + QUICK)
    before, copy, train, after = (command for command, _ in page.commands())
    cwd, home = clone / "code", {"HOME": str(clone)}
    with serving({f"sander-wood/clamp2/{published.CLAMP2}": WEIGHTS.read_bytes()}) as hub:
        done = [run(*before.split()[1:], cwd=cwd, **hub.environment(clone / "home"), **home)]
    subprocess.run(copy, shell=True, cwd=cwd, check=True)
    for command in (train, after):
        setting, python, *words = command.split()
        assert (setting, python) == (f"CLAMP2_CONFIG={name}", "python")
        done.append(run_script(*words, cwd=cwd, CLAMP2_CONFIG=name, **home))
    assert [one.returncode for one in done] == [0, 0, 0], [one.stderr for one in done]
    downloads, begins, measured = done[0].stdout, done[1].stdout, done[2].stdout
    assert f"{published.CLAMP2}: sander-wood/clamp2, revision " in downloads
    assert re.search("starts from +/.*/weights_mine.pth\n", begins)
    asked = "3 queries, each with one partner among 3 pieces\n"
    assert measured.startswith(asked) and asked in downloads
    assert (cwd / published.CLAMP2).read_bytes() == WEIGHTS.read_bytes()
    start, end = (load_checkpoint(cwd / path)["model"] for path in (published.CLAMP2, "weights_mine.pth"))
    changed = {name.partition("_")[0] for name, value in start.items() if not torch.equal(value, end[name])}
    assert changed == {"text", "music"}
