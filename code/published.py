"""Download the published weights from the hub to the paths that config.py names. Imports no torch.

A download goes to `NAME.ETAG.part` beside its target, where the same command resumes it after a kill
(`hf_hub_download` deletes or ignores partial files), and is renamed once its checksum is the hub's. `NAME.json` beside
the weights records their revision. HF_ENDPOINT names another hub.
"""

import importlib
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import config
from files import InputError, atomic_write, printable, sha256

M3 = "weights_m3_p_size_64_p_length_512_t_layers_3_p_layers_12_h_size_768_lr_0.0001_batch_16_mask_0.45.pth"
CLAMP2 = (
    "weights_clamp2_h_size_768_lr_5e-05_batch_128_scale_1_t_length_128_t_model_FacebookAI_xlm-roberta-base"
    "_t_dropout_True_m3_True.pth"
)
CLAMP3_C2, CLAMP3_SAAS = (
    f"weights_clamp3_{version}_h_size_768_t_model_FacebookAI_xlm-roberta-base_t_length_128_a_size_768_a_layers_12"
    "_a_length_128_s_size_768_s_layers_12_p_size_64_p_length_512.pth"
    for version in ("c2", "saas")
)
REPOSITORIES = {
    M3: "sander-wood/clamp2",
    CLAMP2: "sander-wood/clamp2",
    CLAMP3_C2: "sander-wood/clamp3",
    CLAMP3_SAAS: "sander-wood/clamp3",
}
PATIENCE = 5  # seconds to wait for an answer of the hub


def provide(path: Path, download: bool = False, command: str = "") -> None:
    """Ensure that there are weights at `path`: download published ones if wanted. Raises InputError if there are none.

    Args:
        download: whether to download them; otherwise a user at a terminal is asked.
        command: what downloads them, for the error; by default this program's command line with --download.
    """
    if path.is_file():
        return
    advice = f"train them, or set their path in {config.source()}"
    if path.name not in REPOSITORIES:
        raise InputError(f"{path}: there are no such weights; {advice}")
    if not (download or _confirm(path)):
        command = command or shlex.join(["python", *sys.argv, "--download"])
        raise InputError(
            f"{path}: there are no such weights; `{command}` downloads the published ones from"
            f" {REPOSITORIES[path.name]}; or {advice}"
        )
    _fetch(path)


def _confirm(path: Path) -> bool:
    """Ask on an interactive terminal whether to download the published weights."""
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()) or int(os.environ.get("WORLD_SIZE", 1)) > 1:
        return False
    repository = REPOSITORIES[path.name]
    size = metadata(repository, path.name).size / 1e9
    question = f"Download the published ones from {repository} ({size:.1f} GB)? [y/N] "
    print(f"{printable(path)}: there are no such weights.\n{question}", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def metadata(repository: str, name: str) -> Any:
    """Get revision (`commit_hash`), checksum (`etag`) and size of a file of the hub, in one request.

    Raises InputError, caused by a HfHubHTTPError if the hub answers with an error.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    if constants.HF_HUB_OFFLINE:
        raise InputError(f"{name} of {repository} is not here, and HF_HUB_OFFLINE forbids downloading it")
    try:
        return get_hf_file_metadata(hf_hub_url(repository, name), timeout=PATIENCE)
    except _network_errors() as error:
        raise InputError(
            f"{name} of {repository} cannot be downloaded from {constants.ENDPOINT} ({_reason(error)}); check the"
            " network, or name a mirror in HF_ENDPOINT"
        ) from error


def _fetch(path: Path) -> None:
    """Download the published file with `path`'s name to `path`. Raises InputError if that fails."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import WeakFileLock

    repository = REPOSITORIES[path.name]
    found = metadata(repository, path.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{found.etag[:12]}.part")
    lock = path.with_name(path.name + ".lock")
    with WeakFileLock(lock):  # one process downloads, others wait
        if path.is_file():
            return
        _download(hf_hub_url(repository, path.name, revision=found.commit_hash), part, found.size)
        digest = sha256(part)
        if len(found.etag) == len(digest) and found.etag != digest:  # the etag of a large file is its SHA-256
            part.unlink()
            raise InputError(
                f"the download of {path.name} from {repository} is damaged: its SHA-256 is {digest}, the hub's is"
                f" {found.etag}; it was removed, start again"
            )
        note = {"repository": repository, "revision": found.commit_hash, "sha256": digest, "bytes": found.size}
        with atomic_write(path.with_name(path.name + ".json"), "w") as file:
            json.dump(note, file)
        os.replace(part, path)
        lock.unlink(missing_ok=True)
    print(f"{printable(path)}: {repository}, revision {found.commit_hash}, SHA-256 {digest}")


def _download(url: str, part: Path, size: int) -> None:
    """Append the missing bytes to `part`, of `size` in all; a broken connection is retried a few times."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    with open(part, "ab") as file:
        if file.tell() > size:
            file.seek(0)
            file.truncate()
        try:
            http_get(url, file, resume_size=file.tell(), headers=build_hf_headers(), expected_size=size)
        except _network_errors() as error:
            raise InputError(
                f"{url}: the download stopped at {file.tell():,} of {size:,} bytes ({_reason(error)});"
                " the same command resumes it"
            ) from error


def _network_errors() -> tuple[type[Exception], ...]:
    """Return the errors of huggingface_hub when the network fails: of httpx2 or, before version 2, of httpx."""
    from huggingface_hub.utils import get_session

    library = importlib.import_module(type(get_session()).__module__.partition(".")[0])
    return OSError, library.HTTPError


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def origin(path: Path, digest: str) -> dict[str, str]:
    """Return {"repository", "revision"} of downloaded weights; {} for others, such as those trained in their place."""
    note = path.with_name(path.name + ".json")
    known = json.loads(note.read_text()) if note.is_file() else {}
    return {name: known[name] for name in ("repository", "revision")} if known.get("sha256") == digest else {}
