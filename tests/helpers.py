"""The golden kit, and how tests start the real scripts."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KIT = ROOT / "tests" / "kit"
SHARED_GOLDEN = ROOT.parent / "shared" / "golden"  # more of the same kind, where it is there
CODE = ROOT / "code"

KIT_SIZES = {"PATCH_NUM_LAYERS": 2, "TOKEN_NUM_LAYERS": 1, "M3_HIDDEN_SIZE": 64, "CLAMP2_HIDDEN_SIZE": 48}
KIT_MODEL = {
    **KIT_SIZES,
    "TEXT_MODEL_NAME": str(KIT / "tiny-xlmr"),
    "M3_WEIGHTS_PATH": str(KIT / "weights_m3_kit.pth"),
    "CLAMP2_WEIGHTS_PATH": str(KIT / "weights_clamp2_kit.pth"),
}


def write_config(path: Path, **constants) -> Path:
    """A file for CLAMP2_CONFIG."""
    path.write_text("".join(f"{name} = {value!r}\n" for name, value in constants.items()))
    return path


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def run(*command, config: Path | None = None, cwd: Path | str = "/", timeout: float = 240, **environment):
    """Runs a command on this interpreter, from a folder that is not the repository's, and returns what it printed.

    "python" and "-m" forms only: the first word is a script or "-m".
    """
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "CLAMP2_CONFIG")}
    env |= {"OMP_NUM_THREADS": "1", **environment}
    if config:
        env["CLAMP2_CONFIG"] = str(config)
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout
    )
