"""The golden kit, and how tests start the real scripts."""

import atexit
import functools
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KIT = ROOT / "tests" / "kit"
SHARED = ROOT.parent / "shared"  # real music and more golden values, where they are there
SHARED_GOLDEN = SHARED / "golden"
CODE = ROOT / "code"

KIT_SIZES = {"PATCH_NUM_LAYERS": 2, "TOKEN_NUM_LAYERS": 1, "M3_HIDDEN_SIZE": 64, "CLAMP2_HIDDEN_SIZE": 48}
KIT_MODEL = {
    **KIT_SIZES,
    "TEXT_MODEL_NAME": str(KIT / "tiny-xlmr"),
    "M3_WEIGHTS_PATH": str(KIT / "weights_m3_kit.pth"),
    "CLAMP2_WEIGHTS_PATH": str(KIT / "weights_clamp2_kit.pth"),
}


def m3_configs(hidden: int = 64, layers: int = 2, decoder_layers: int = 1) -> tuple:
    """The configurations of an encoder and a decoder as programs write them; by default the kit's."""
    from transformers import BertConfig, GPT2Config

    sizes = {"num_attention_heads": hidden // 64, "intermediate_size": hidden * 4, "max_position_embeddings": 512}
    encoder = BertConfig(vocab_size=1, hidden_size=hidden, num_hidden_layers=layers, **sizes)
    decoder = {"n_positions": 64, "n_embd": hidden, "n_layer": decoder_layers, "n_head": hidden // 64}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return encoder, GPT2Config(vocab_size=128, n_inner=hidden * 4, **decoder, **ids)


def write_config(path: Path, **constants) -> Path:
    """A file for CLAMP2_CONFIG."""
    path.write_text("".join(f"{name} = {value!r}\n" for name, value in constants.items()))
    return path


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def environment(config: Path | None = None, **changes: str) -> dict[str, str]:
    """What a script is started with: no trace of a launcher around the tests, no network, one thread."""
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "CLAMP2_CONFIG")}
    env |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **changes}
    return env | ({"CLAMP2_CONFIG": str(config)} if config else {})


def run(*command, config: Path | None = None, cwd: Path | str = "/", timeout: float = 240, **changes: str):
    """Runs `python *command`, from a folder that is not the repository's, and returns its status and what it printed."""
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=environment(config, **changes),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@functools.cache
def _zygote() -> subprocess.Popen:
    zygote = subprocess.Popen(
        [sys.executable, ROOT / "tests" / "zygote.py"],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(zygote.kill)
    return zygote


def run_script(
    script: Path,
    *arguments,
    config: Path | None = None,
    cwd: Path | str = "/",
    kill_after: float | None = None,
    **changes: str,
):
    """Like `run` for a script in one process, but quick, and killed after some seconds if asked: see zygote.py."""
    [done] = _fork(script, arguments, cwd, [environment(config, **changes)], kill_after)
    return done


def run_ranks(
    count: int,
    script: Path,
    *arguments,
    config: Path | list[Path] | None = None,
    cwd: Path | str = "/",
    **changes: str,
):
    """Runs a script as the `count` processes of one job, with what torchrun has in their environment, without torchrun.

    Quick, as `run_script` is. `config` may be one for each. Returns what each of them printed, in the order of their ranks.
    """
    configs = config if isinstance(config, list) else [config] * count
    job = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port()), **changes}
    job |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(count))
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    envs = [environment(config, **job, **rank) for config, rank in zip(configs, ranks, strict=True)]
    return _fork(script, arguments, cwd, envs, None)


def _fork(script: Path, arguments: tuple, cwd: Path | str, envs: list[dict], kill_after: float | None) -> list:
    with tempfile.TemporaryDirectory() as folder:
        argv = [str(word) for word in (script, *arguments)]
        job = {"argv": argv, "cwd": str(cwd), "envs": envs, "kill_after": kill_after}
        job |= {name: str(Path(folder) / name) for name in ("stdout", "stderr")}
        printed = [
            [Path(job[name] + (str(number) if number else "")) for name in ("stdout", "stderr")]
            for number in range(len(envs))
        ]
        for path in itertools.chain(*printed):
            path.touch()  # a process may be killed before it opens them
        zygote = _zygote()
        zygote.stdin.write(json.dumps(job) + "\n")
        zygote.stdin.flush()
        statuses = json.loads(zygote.stdout.readline())
        return [
            subprocess.CompletedProcess(argv, status, *(path.read_text() for path in paths))
            for status, paths in zip(statuses, printed, strict=True)
        ]


def count_calls(function: Callable, *arguments) -> int:
    """The number of calls, of Python's and of C's functions, that a call costs: the same on every machine."""
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        function(*arguments)
    finally:
        sys.setprofile(before)
    return calls


def assert_time_is_linear(work: Callable[[int], object], size: int) -> None:
    """Compares the CPU time of `work` on `size` and on 8 times as much: 8 times the time if linear, 64 if quadratic.

    For what no count of calls shows, such as the time in a regular expression. A busy machine can make a measurement
    longer, but not shorter, so it is repeated and the least counts.
    """
    small = large = float("inf")
    for _ in range(5):
        start = time.thread_time()
        work(size)
        middle = time.thread_time()
        work(8 * size)
        small, large = min(small, middle - start), min(large, time.thread_time() - middle)
        if large < 24 * max(small, 1e-3):
            return
    raise AssertionError(f"{small:.4f} s for {size}, {large:.4f} s for 8 times as much")
