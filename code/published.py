"""The published weights: fetched from the hub to the place where config.py looks for them. Imports no torch.

The file is fetched beside its place, as `NAME.ETAG.part`, where a second start goes on (the hub's own cache keeps
nothing of a download that was ended), and takes its name when its checksum is that of the hub. `NAME.json` beside it
says which revision it is. HF_ENDPOINT names another hub.
"""

import hashlib
import importlib
import json
import os
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import config
from files import InputError, atomic_write, printable

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
PATIENCE = 5  # seconds until a hub that does not answer is out of reach


@dataclass
class Origin:
    """Where a file is from, and how it is known again."""

    repository: str
    revision: str
    sha256: str
    bytes: int


def provide(path: Path, download: bool = False, command: str = "") -> None:
    """Sees to it that there are weights at `path`: fetches them, if they are published ones and it is wanted.

    Args:
        download: wanted; otherwise somebody at a terminal is asked.
        command: what fetches them, for the error; by default this program's command line with --download.
    Raises InputError if there are no weights then.
    """
    if path.is_file():
        return
    if path.name not in REPOSITORIES:
        raise InputError(f"{path}: there are no such weights; train them, or set their path in {config.source()}")
    if not (download or _agreed(path)):
        command = command or shlex.join(["python", *sys.argv, "--download"])
        raise InputError(
            f"{path}: there are no such weights; `{command}` fetches the published ones from {REPOSITORIES[path.name]};"
            f" or train them, or set their path in {config.source()}"
        )
    fetch(path)


def _agreed(path: Path) -> bool:
    """Whether somebody is there and says yes."""
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()) or int(os.environ.get("WORLD_SIZE", 1)) > 1:
        return False
    size = _metadata(path.name).size / 1e9
    question = f"Fetch the published ones from {REPOSITORIES[path.name]} ({size:.1f} GB)? [y/N] "
    print(f"{printable(path)}: there are no such weights.\n{question}", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _metadata(name: str) -> Any:
    """Revision (`commit_hash`), checksum (`etag`) and size of published weights. Raises InputError."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return metadata(REPOSITORIES[name], name)
    except HfHubHTTPError as error:
        raise InputError(
            f"{name} of {REPOSITORIES[name]} cannot be had from {constants.ENDPOINT} ({_reason(error)}); name another"
            " hub in HF_ENDPOINT"
        ) from error


def metadata(repository: str, name: str) -> Any:
    """The same of any file of the hub, which is asked once.

    Raises InputError if the hub cannot be reached, HfHubHTTPError if it answers with an error.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        raise InputError(f"{name} of {repository} is not here, and HF_HUB_OFFLINE forbids to fetch it")
    try:
        return get_hf_file_metadata(hf_hub_url(repository, name), timeout=PATIENCE)
    except HfHubHTTPError:
        raise
    except _network_errors() as error:
        raise InputError(
            f"{name} of {repository} cannot be had from {constants.ENDPOINT} ({_reason(error)}); connect to the"
            " network, or name a mirror in HF_ENDPOINT"
        ) from error


def fetch(path: Path) -> None:
    """Fetches the published weights that are called as `path` is to `path`. Raises InputError if that fails."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import WeakFileLock

    found, repository = _metadata(path.name), REPOSITORIES[path.name]
    url = hf_hub_url(repository, path.name, revision=found.commit_hash)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{found.etag[:12]}.part")
    lock = path.with_name(path.name + ".lock")
    with WeakFileLock(lock):  # of two that are started at once, one waits
        if path.is_file():
            return
        _download(url, part, found.size)
        with open(part, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if len(found.etag) == len(digest) and found.etag != digest:  # of files of any size, it is their SHA-256
            part.unlink()
            raise InputError(
                f"{path.name} of {repository} came damaged: its SHA-256 is {digest}, the hub's is {found.etag};"
                " it was thrown away; start again"
            )
        origin = Origin(repository, found.commit_hash, digest, part.stat().st_size)
        with atomic_write(_note(path), "w") as note:
            json.dump(asdict(origin), note)
        os.replace(part, path)
        lock.unlink(missing_ok=True)
    print(f"{printable(path)}: {origin.repository}, revision {origin.revision}, SHA-256 {origin.sha256}")


def _download(url: str, part: Path, size: int) -> None:
    """Adds to `part` what it lacks of `size` bytes. A connection that breaks is taken up again some times."""
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
                " the same command goes on there"
            ) from error


def _network_errors() -> tuple[type[Exception], ...]:
    """What huggingface_hub lets through when the network fails: the errors of httpx2 or, before version 2, of httpx."""
    from huggingface_hub.utils import get_session

    library = importlib.import_module(type(get_session()).__module__.partition(".")[0])
    return OSError, library.HTTPError


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _note(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def origin(path: Path, sha256: str) -> dict[str, str]:
    """{"repository", "revision"} of weights that were fetched; {} for others, such as those trained in their place."""
    if not _note(path).is_file():
        return {}
    known = Origin(**json.loads(_note(path).read_text()))
    return {"repository": known.repository, "revision": known.revision} if known.sha256 == sha256 else {}
