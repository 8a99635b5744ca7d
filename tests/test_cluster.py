"""What the docstrings give for clusters: the scripts for SLURM, as they stand there, with stand-ins for its commands, and
several machines as several launchers on this one."""

import ast
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import (
    CODE,
    KIT,
    KIT_MODEL,
    KIT_SIZES,
    ROOT,
    environment,
    free_port,
    run_ranks,
    run_script,
    write_config,
)

SCONTROL = '#!/bin/bash\n[ "$*" = "show hostnames nodes[1-2]" ] && echo localhost && echo other\n'
# starts its command once a machine, and hands it the signals that it gets, as srun does
SRUN = """#!/bin/bash
for _ in $(seq "$SLURM_NNODES"); do "$@" & started="$started $!"; done
trap 'kill -TERM $started' TERM
status=0
for process in $started; do until wait "$process"; s=$?; ! kill -0 "$process" 2>/dev/null; do :; done; [ $s = 0 ] || status=$s; done
exit $status
"""


@pytest.fixture
def cluster(tmp_path):
    """The environment of a job on two machines, but for CLAMP2_CONFIG."""
    for name, script in (("scontrol", SCONTROL), ("srun", SRUN)):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(script)
        (tmp_path / "bin" / name).chmod(0o755)
    path = os.pathsep.join([str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    return {"SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "nodes[1-2]", "SLURM_JOB_ID": "17", "PATH": path}


def slurm_script(name, folder, **changes):
    """The script for SLURM in a docstring of code/, with `changes` for what this machine has less of."""
    doc = ast.get_docstring(ast.parse((CODE / name).read_text()), clean=False)
    [script] = re.findall(r"^    #!/bin/bash\n(?:    .*\n)+", doc, re.MULTILINE)
    for old, new in changes.items():
        assert old in script
        script = script.replace(old, new)
    path = folder / "job.sh"
    path.write_text(re.sub(r"^    ", "", script, flags=re.MULTILINE))
    return path


def test_training_on_two_machines_ends_saved_at_a_signal_and_continues(cluster, tmp_path):
    script = slurm_script("train_m3.py", tmp_path, **{"node=8": "node=1", "29500": str(free_port())})
    constants = {
        **KIT_SIZES,
        "EVAL_SPLIT": 0.2,
        "TRAIN_FOLDERS": [str(KIT / "interleaved"), str(KIT / "mtf")],
        "M3_BATCH_SIZE": 2,
        "M3_WEIGHTS_PATH": str(tmp_path / "weights_m3.pth"),
    }
    latest = tmp_path / "latest_weights_m3.pth"
    config = write_config(tmp_path / "long.py", **constants, M3_NUM_EPOCH=100_000)
    with open(tmp_path / "printed", "w+") as printed:
        job = subprocess.Popen(["bash", script], cwd=ROOT, env=environment(config, **cluster), stdout=printed, stderr=printed, start_new_session=True)  # fmt: skip
        try:
            deadline = time.monotonic() + 120
            while not latest.exists() and job.poll() is None and time.monotonic() < deadline:
                time.sleep(0.2)
            [srun] = subprocess.check_output(["pgrep", "-f", "-P", str(job.pid), "srun"], text=True).split()
            os.kill(int(srun), signal.SIGTERM)
            job.wait(timeout=300)
        finally:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)
        told = (tmp_path / "printed").read_text()
    assert "2 x CPU" in told and "2 x 2 = 4" in told, told
    [(epoch, step)] = re.findall(r"stopped in epoch (\d+) after step (\d+), as asked; the same command continues", told)
    state = torch.load(latest, weights_only=True)
    assert (state["epoch"], state["step"], state["world_size"]) == (int(epoch), int(step), 2)

    config = write_config(tmp_path / "short.py", **constants, M3_NUM_EPOCH=int(epoch) + 1)
    result, other = run_ranks(2, CODE / "train_m3.py", config=config)
    assert result.returncode == other.returncode == 0, result.stderr + other.stderr
    assert f"{latest}, epoch {epoch}, step {step}" in result.stdout and f"epoch {int(epoch) + 1}: train_loss" in result.stdout  # fmt: skip


def test_an_array_of_tasks_mirrors_the_folders(cluster, tmp_path):
    (tmp_path / "scores").mkdir()
    for folder in ("interleaved", "mtf"):
        (tmp_path / "scores" / folder).symlink_to(KIT / folder)
    config = write_config(tmp_path / "kit.py", **KIT_MODEL)
    script = slurm_script("extract_m3.py", tmp_path)
    python = tmp_path / "bin" / "python"  # writes down its words, with which the script is run below
    python.write_text('#!/bin/bash\nprintf "%s\\n" "$@" > "$WORDS"\n')
    python.chmod(0o755)
    for task in range(2):
        words = tmp_path / f"words{task}"
        env = environment(SLURM_ARRAY_TASK_ID=str(task), WORDS=str(words)) | cluster
        subprocess.run(["bash", script], cwd=tmp_path, env=env, check=True, timeout=300)
        name, *arguments = words.read_text().splitlines()
        assert name == "code/extract_m3.py"
        result = run_script(ROOT / name, *arguments, config=config, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    written = {path.relative_to(tmp_path / "features") for path in (tmp_path / "features").rglob("*.npy")}
    music = [path.relative_to(KIT) for folder in ("interleaved", "mtf") for path in (KIT / folder).iterdir()]
    assert written == {path.with_suffix(".npy") for path in music}
    golden = np.load(KIT / "values.npz")
    known = [path for path in music if f"m3/{path.name}" in golden]
    assert {path.parent.name for path in known} == {"interleaved", "mtf"}
    for path in known:
        feature = np.load(tmp_path / "features" / path.with_suffix(".npy"))[0]
        np.testing.assert_allclose(feature, golden[f"m3/{path.name}"], atol=1e-4)


def test_extraction_on_two_machines(cluster, tmp_path):
    doc = ast.get_docstring(ast.parse((CODE / "extract_clamp2.py").read_text()))
    [command] = re.findall(r"accelerate launch --multi_gpu --num_machines.*\\\n.*", doc)
    for old, new in (("HOST", "127.0.0.1"), ("29500", str(free_port())), ("processes 16", "processes 2"), ("files features", f"{KIT}/mtf {tmp_path}/out")):  # fmt: skip
        assert old in command
        command = command.replace(old, new)
    env = environment(write_config(tmp_path / "kit.py", **KIT_MODEL), **cluster)
    machines = [
        subprocess.Popen(
            ["bash", "-c", command.replace("--machine_rank 0", f"--machine_rank {rank}")],
            cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    printed = [machine.communicate(timeout=300) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], printed
    assert "5 files, 2 x CPU" in printed[0][0] and "5 done" in printed[0][0] and printed[1][0] == ""
    golden = np.load(KIT / "values.npz")
    np.testing.assert_allclose(np.load(tmp_path / "out" / "plain.npy")[0], golden["clamp2_normalized/plain.mtf"].reshape(-1), atol=1e-4)  # fmt: skip
