"""What the docstrings give for clusters: the scripts for SLURM, as they stand there, with stand-ins for its commands, and
several machines as several launchers on this one."""

import ast
import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

import command_line
import processes
from files import InputError
from helpers import (
    CODE,
    KIT,
    KIT_MODEL,
    KIT_SIZES,
    ROOT,
    environment,
    free_port,
    run,
    run_ranks,
    run_script,
    write_config,
)
from processes import OtherProcessError, Processes
from test_training import TORCHRUN, clamp2_config, m3_config

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
    found = re.findall(r"stopped in epoch (\d+) after step (\d+), as asked; the same command continues", told)
    assert len(found) == 1, told
    [(epoch, step)] = found
    state = torch.load(latest, weights_only=True)
    assert (state["epoch"], state["step"], state["order"]["processes"]) == (int(epoch), int(step), 2)

    config = write_config(tmp_path / "short.py", **constants, M3_NUM_EPOCH=int(epoch) + 1)
    result, other = run_ranks(2, CODE / "train_m3.py", config=config)
    assert result.returncode == other.returncode == 0, result.stderr + other.stderr
    assert f"{latest}, epoch {epoch}, step {step}" in result.stdout and f"epoch {int(epoch) + 1}: train_loss" in result.stdout  # fmt: skip


def test_the_script_gives_nearly_all_the_time_that_is_left_for_saving(tmp_path):
    script = slurm_script("train_m3.py", tmp_path).read_text()
    [left] = re.findall(r"--signal=TERM@(\d+)", script)
    [given] = re.findall(r"^export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=(\d+)$", script, re.MULTILINE)
    assert int(left) - 30 < int(given) < int(left)


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


# --- a process that fails -------------------------------------------------------------------------------------------
HOST = socket.gethostname()
SCRIPT = ROOT / "tests" / "cluster_script.py"


@pytest.fixture
def agent():
    """What torchrun has in the environment of its processes, and the store behind it, which outlives them."""
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    yield {"MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}


MISTAKES = {
    "setting": ("train_m3.py", {"M3_BATCH_SIZE": 0}, r"\S+/bad\.py: M3_BATCH_SIZE = 0 is not a positive number"),
    "folder": ("train_m3.py", {"TRAIN_FOLDERS": ["/no/folder"]}, r"TRAIN_FOLDERS: /no/folder is not a folder; set it in \S+/bad\.py"),
    "jsonl": ("train_clamp2.py", {"TRAIN_JSONL": "/no/file.jsonl"}, r"TRAIN_JSONL: /no/file\.jsonl is not a file; set it in \S+/bad\.py"),
    "tokenizer": ("extract_clamp2.py", {"TEXT_MODEL_NAME": "/no/model"}, r".*/no/model.*"),
    "weights": ("extract_m3.py", {"M3_WEIGHTS_PATH": "/no/weights.pth"}, r"/no/weights\.pth: .*"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "rank"), [("setting", 1), ("folder", 0), ("jsonl", 1), ("tokenizer", 0), ("weights", 1)]
)
def test_the_mistake_of_one_process_is_printed_once_by_it(agent, tmp_path, kind, rank):
    script, mistake, reason = MISTAKES[kind]
    if script.startswith("train"):
        good, arguments = (m3_config if "m3" in script else clamp2_config)(tmp_path), ()
        bad = tmp_path / "bad.py"
        bad.write_text(good.read_text())
    else:
        good, arguments = write_config(tmp_path / "kit.py", **KIT_MODEL), (KIT / "interleaved", tmp_path / "out")
        bad = write_config(tmp_path / "bad.py", **KIT_MODEL)
    with open(bad, "a") as file:
        file.writelines(f"{name} = {value!r}\n" for name, value in mistake.items())
    configs = [good, good]
    configs[rank] = bad
    ranks = run_ranks(2, CODE / script, *arguments, config=configs, **agent)
    assert [done.returncode for done in ranks] == [2, 2], ranks
    printed = rf"error \(rank {rank} on {re.escape(HOST)}\): {reason}\nWhat the launcher prints below means no more\n"
    assert re.fullmatch(printed, ranks[rank].stderr), ranks
    assert ranks[1 - rank].stderr == ""


@pytest.mark.parametrize("second", ["/no/folder", "/neither"])
def test_what_all_share_is_printed_once_and_what_they_do_not_by_each(agent, tmp_path, second):
    configs = [write_config(tmp_path / f"{name[1:3]}{i}.py", TRAIN_FOLDERS=[name]) for i, name in enumerate(["/no/folder", second])]  # fmt: skip
    if second == "/no/folder":
        configs = configs[:1] * 2
    ranks = run_ranks(2, CODE / "train_m3.py", config=configs, **agent)
    assert [done.returncode for done in ranks] == [2, 2], ranks
    lines = sorted(
        line.partition("TRAIN_FOLDERS: ")[2].split()[0]
        for done in ranks
        for line in done.stderr.splitlines()
        if line.startswith("error")
    )
    assert sum(done.stderr.count(command_line.NO_MORE) for done in ranks) == 1, ranks
    assert lines == sorted({"/no/folder", second})


def test_an_error_does_not_wait_for_the_end_of_the_group():
    """Which never returns here. What rank 0 meets because rank 1 has failed takes one line."""
    result = run(*TORCHRUN, SCRIPT, "fail", "one", timeout=60)
    assert result.returncode == 1
    ours = result.stderr.partition("torch/distributed/elastic/")[0]
    assert ours.count("Traceback") == ours.count("torch.OutOfMemoryError: one by hand\n") == 1, result.stderr
    [of_rank_1, of_rank_0] = re.findall(r"^error \(rank (.*)", ours, re.MULTILINE)
    assert of_rank_1.startswith(f"1 on {HOST}): Traceback")
    assert of_rank_0.startswith(f"0 on {HOST}): another process has failed, ") and "Connection closed" in of_rank_0
    assert "torch.OutOfMemoryError: one by hand\nWhat the launcher prints below means no more\n" in ours, ours


def test_an_error_of_all_is_printed_once(agent):
    """Without a launcher that would kill a process that waits."""
    ranks = run_ranks(2, SCRIPT, "fail", "both", **agent)
    assert [done.returncode for done in ranks] == [1, 1], ranks
    printed = "".join(done.stderr for done in ranks)
    assert printed.count("Traceback") == 1, ranks
    # one that fails a while later takes it for a consequence, in one line
    others = printed.count("another process has failed, and so has this one: OutOfMemoryError: both by hand\n")
    assert len(re.findall("^error", printed, re.MULTILINE)) == 1 + others <= 2, ranks


def test_one_process_that_is_told_to_stop_in_an_evaluation_stops_both(tmp_path):
    """The first has 51 pieces for it, the other 50; the other is told in its third batch."""
    ranks = run_ranks(2, SCRIPT, "evaluate", tmp_path)
    assert [done.returncode for done in ranks] == [130, 130], ranks
    assert "stopped in epoch 1 after step 3, as asked" in ranks[0].stdout
    state = torch.load(tmp_path / "latest_weights.pth", weights_only=True)
    assert (state["epoch"], state["step"], state["order"]["processes"]) == (1, 3, 2)


@pytest.fixture
def job(monkeypatch):
    """Makes processes of one job, which share a store."""
    monkeypatch.setattr(processes, "GRACE", 0.0)
    store = dist.HashStore()

    def make(rank: int, world_size: int = 2) -> Processes:
        made = Processes(rank, rank, world_size)
        made.store = store
        return made

    return make


def test_an_error_after_a_failure_takes_one_line(job, monkeypatch):
    def printed(rank: int, error: BaseException) -> tuple[int, str]:
        monkeypatch.setattr("sys.stderr", io.StringIO())
        return job(rank, 9).report(error), sys.stderr.getvalue()

    no_file = FileNotFoundError(2, "No such file", "/x/\udcff")  # not UTF-8
    assert printed(0, no_file) == (2, f"error (rank 0 on {HOST}): /x/\\udcff: No such file\n")
    assert printed(1, no_file) == (2, "")
    assert printed(2, InputError("another mistake")) == (2, f"error (rank 2 on {HOST}): another mistake\n")
    assert printed(3, OtherProcessError()) == (2, "")
    lost = "another process has failed, and so has this one: RuntimeError: Connection closed"
    assert printed(4, RuntimeError("Connection closed\nby peer")) == (1, f"error (rank 4 on {HOST}): {lost}\n")
    assert printed(5, RuntimeError("Connection closed\nby another peer")) == (1, "")
    assert printed(6, KeyboardInterrupt()) == (130, "")
    assert printed(7, SystemExit(2)) == (2, "")


def test_a_reason_is_printed_where_the_store_is_lost(capsys, monkeypatch):
    """Its host has failed. A lost connection is no bug then, and a mistake of this process is one."""

    class Lost:
        def add(self, key, more):
            raise dist.DistNetworkError("Broken pipe")

    monkeypatch.setattr(processes, "GRACE", 0.0)
    job = Processes(1, 1, 2)
    job.store = Lost()
    assert job.report(InputError("a mistake")) == 2 and job.report(RuntimeError("Connection closed")) == 1
    told = capsys.readouterr().err
    assert told.count("a mistake") == told.count("another process has failed, ") == 1 and len(told.splitlines()) == 2


def test_an_interrupted_job_prints_one_line_before_the_launcher_does(job, monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert [job(rank).report(KeyboardInterrupt()) for rank in range(2)] == [130, 130]
    line = "interrupted; the same command continues there. What the launcher prints below means no more\n"
    assert capsys.readouterr().err == line


def test_no_rank_ends_before_rank_0_has_reported(job, capsys):
    """With a status other than 0: the launcher would kill it."""
    first, second = job(0), job(1)
    ending = threading.Thread(target=second.finish, args=[1])
    ending.start()
    ending.join(0.1)
    assert ending.is_alive() and not capsys.readouterr().err
    first.finish(1)
    ending.join(10)
    assert not ending.is_alive() and "all others are done" in capsys.readouterr().err


def test_a_restarted_job_begins_anew(agent, monkeypatch):
    """The store of torchrun is that of the attempt before (--max-restarts)."""
    agent |= {"MASTER_ADDR": "localhost", "GROUP_WORLD_SIZE": "1"}
    for attempt in "01":
        for name, value in (agent | {"TORCHELASTIC_RESTART_COUNT": attempt}).items():
            monkeypatch.setenv(name, value)
        assert [Processes(rank, rank, 2)._count("failures", 1, if_lost=0) for rank in range(2)] == [1, 2]


def test_one_process_alone_prints_no_rank(capsys, monkeypatch):
    def main(job):
        raise InputError("what is wrong")

    monkeypatch.setattr(processes, "GRACE", 3600.0)
    assert processes.run(main) == 2
    assert capsys.readouterr().err == "error: what is wrong\n"
    with pytest.raises(ZeroDivisionError):
        processes.run(lambda job: 1 // 0)


def test_what_would_steer_a_terminal_is_escaped(capsys):
    Processes(0, 0, 1).print("saved latest_\x1b[31m.pth\nweights: \x9b\udcff.pth")
    assert capsys.readouterr().out == "saved latest_\\x1b[31m.pth\nweights: \\x9b\\udcff.pth\n"


# --- waiting for each other -----------------------------------------------------------------------------------------
def test_nobody_goes_on_before_all_are_there(job):
    done, ranks = [], [job(rank, 3) for rank in range(3)]
    waiting = [threading.Thread(target=lambda r=r: done.append(r.together(lambda: r.rank))) for r in ranks]
    for meeting in range(2):
        for thread in waiting[:2]:
            thread.start()
        time.sleep(0.05)
        assert done == []
        waiting[2].start()
        for thread in waiting:
            thread.join(10)
        assert sorted(done) == [0, 1, 2], meeting
        done.clear()
        waiting = [threading.Thread(target=lambda r=r: done.append(r.together(lambda: r.rank))) for r in ranks]


def test_nobody_waits_for_one_that_has_failed_or_hangs(job, monkeypatch):
    monkeypatch.setattr(processes, "LONGEST_SILENCE", 0.3)
    clock = time.monotonic()
    with pytest.raises(InputError, match=r"for rank 1, 2, which did nothing"):
        job(0, 3).wait_for_all()
    assert time.monotonic() - clock < 5
    job(1, 3).report(InputError("a mistake"))
    with pytest.raises(OtherProcessError):
        job(2, 3).require_same("the data", 3)
    with pytest.raises(InputError, match=r"^nothing there$"):
        job(1, 3).together(lambda: (_ for _ in ()).throw(FileNotFoundError("nothing there")))
    with pytest.raises(InputError, match="here"):
        job(1, 3).together(lambda: (_ for _ in ()).throw(InputError("here")))


def test_one_that_makes_progress_is_waited_for(job, monkeypatch):
    monkeypatch.setattr(processes, "LONGEST_SILENCE", 0.3)
    slow, done = job(1), []
    waiting = threading.Thread(target=lambda: done.append(job(0).wait_for_all()))
    waiting.start()
    for _ in range(9):
        time.sleep(0.1)
        slow.show_progress()
    slow.wait_for_all()
    waiting.join(10)
    assert done == [None]


def test_processes_that_differ(job, monkeypatch):
    alone = job(0, 1)
    monkeypatch.setattr(alone, "wait_for_all", lambda: None)
    monkeypatch.setattr(alone, "gather", lambda value: [value, 4])
    with pytest.raises(InputError, match=r"the processes differ in the data: \[3, 4\]"):
        alone.require_same("the data", 3)


# --- the time to save in --------------------------------------------------------------------------------------------
def test_the_launcher_gives_the_time_to_save_that_it_is_told_to(tmp_path):
    """A save of 3 s, in 1 s and in 60."""
    jobs = {}
    for seconds in (1, 60):
        folder = tmp_path / str(seconds)
        folder.mkdir()
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=1", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", SCRIPT, "save", folder, "3"]  # fmt: skip
        env = environment(TORCH_ELASTIC_SHUTDOWN_TIMEOUT=str(seconds))
        jobs[seconds] = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        deadline = time.monotonic() + 120
        while not all((tmp_path / str(seconds) / "begun").exists() for seconds in jobs) and time.monotonic() < deadline:
            time.sleep(0.05)
        for process in jobs.values():
            process.terminate()
        printed = {seconds: process.communicate(timeout=60)[0] for seconds, process in jobs.items()}
    finally:
        for process in jobs.values():
            process.kill()
    assert "saved" not in printed[1] and not (tmp_path / "1" / "latest_weights.pth").exists(), printed[1]
    ours = printed[60].partition("Traceback")[0]
    assert ours.endswith("\nstopped and saved, see above. What the launcher prints below means no more\n"), printed[60]
    [took] = re.findall(r"^saved latest_weights\.pth in (3\.\d) s$", printed[60], re.MULTILINE)
    assert float(took) >= 3 and torch.load(tmp_path / "60" / "latest_weights.pth", weights_only=True)["step"] > 0
