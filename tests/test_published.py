"""The published weights, from a hub on loopback that holds the kit's."""

import hashlib
import json
import os
import pty
import subprocess
import sys
import termios

import numpy as np
import pytest

import chat_server
import published
from helpers import CODE, KIT, KIT_MODEL, KIT_SIZES, environment, run, run_script, write_config
from hub import serving

REPOSITORY = "sander-wood/clamp2"
HELD = {published.M3: (KIT / "weights_m3_kit.pth").read_bytes(), published.CLAMP2: (KIT / "weights_clamp2_kit.pth").read_bytes()}  # fmt: skip
M3_FILE = f"{REPOSITORY}/{published.M3}"
M3_SIZE = len(HELD[published.M3])


@pytest.fixture
def hub():
    with serving({f"{REPOSITORY}/{name}": content for name, content in HELD.items()}) as hub:
        yield hub


@pytest.fixture
def config(tmp_path):
    """The published names, in a folder of the test."""
    paths = {"M3_WEIGHTS_PATH": str(tmp_path / published.M3), "CLAMP2_WEIGHTS_PATH": str(tmp_path / published.CLAMP2)}
    return write_config(tmp_path / "kit.py", **(KIT_MODEL | paths | {"FEATURE_CACHE": str(tmp_path / "cache")}))


PROVIDE = """import sys, pathlib, files, published
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = 100_000  # of which the kit's files have several
try:
    published.provide(pathlib.Path(sys.argv[1]), True)
except files.InputError as error:
    sys.exit(files.tell_mistake(error))
"""


@pytest.fixture
def provide(hub, tmp_path):
    """What --download does, in a process without torch."""

    def start(name=published.M3, **changes):
        return run("-c", PROVIDE, tmp_path / name, cwd=CODE, **(hub.environment(tmp_path / "home") | changes))

    return start


def assert_downloaded(tmp_path, name=published.M3):
    assert (tmp_path / name).read_bytes() == HELD[name]
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(name)) == [name, name + ".json"]


def test_names_are_those_of_config():
    code = "import config; print(config.M3_WEIGHTS_PATH, config.CLAMP2_WEIGHTS_PATH)"
    assert run("-c", code, cwd=CODE).stdout.split() == [published.M3, published.CLAMP2]


def test_without_them_the_error_is_the_command(config, hub, tmp_path):
    result = run_script(CODE / "extract_m3.py", KIT / "interleaved", tmp_path / "out", config=config)
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    command = f"python {CODE / 'extract_m3.py'} {KIT / 'interleaved'} {tmp_path / 'out'} --download"
    assert f"{tmp_path / published.M3}: there are no such weights; `{command}` downloads" in result.stderr
    assert not hub.asked


def test_two_processes_download_once_and_record_it(hub, config, tmp_path):
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    command = (CODE / "extract_m3.py", KIT / "interleaved", tmp_path / "out", "--download")
    result = run(*launch, *command, config=config, **hub.environment(tmp_path / "home"))
    assert result.returncode == 0, result.stderr
    assert_downloaded(tmp_path)
    assert hub.asked == [(M3_FILE, 0)]
    digest, revision = hashlib.sha256(HELD[published.M3]).hexdigest(), hub.commit(REPOSITORY)
    assert f"{REPOSITORY}, revision {revision}, SHA-256 {digest}" in result.stdout
    manifest = json.loads((tmp_path / "out.extraction.json").read_text())
    assert (manifest["repository"], manifest["revision"], manifest["sha256"]) == (REPOSITORY, revision, digest)  # fmt: skip
    feature, golden = np.load(tmp_path / "out" / "duo.npy"), np.load(KIT / "values.npz")["m3/duo.abc"]
    np.testing.assert_allclose(feature[0], golden, atol=1e-4, rtol=0)
    again = run_script(*command, config=config)  # without the network
    assert again.returncode == 0 and hub.asked == [(M3_FILE, 0)]


def test_weights_trained_in_their_place_are_not_reported_as_published(tmp_path):
    (tmp_path / "w.pth.json").write_text(json.dumps({"repository": "r", "revision": "1", "sha256": "a", "bytes": 1}))
    assert published.origin(tmp_path / "w.pth", "a") == {"repository": "r", "revision": "1"}
    assert published.origin(tmp_path / "w.pth", "b") == {}


def test_a_cut_connection_is_taken_up_again(provide, hub, tmp_path):
    hub.cuts = [1_000_000, 500_000]
    assert provide().returncode == 0
    assert_downloaded(tmp_path)
    assert [name for name, _ in hub.asked] == [M3_FILE] * 3
    starts = [start for _, start in hub.asked]
    assert starts[0] == 0 < starts[1] <= 1_000_000 and starts[1] <= starts[2] <= 1_500_000


def test_a_download_that_was_killed_goes_on_at_the_next_start(provide, hub, tmp_path):
    hub.stall = 2_000_000
    command = [sys.executable, "-c", PROVIDE, str(tmp_path / published.M3)]
    started = subprocess.Popen(command, cwd=CODE, env=environment(**hub.environment(tmp_path / "home")))
    chat_server.wait_for(lambda: any(path.stat().st_size > 1_000_000 for path in tmp_path.glob("*.part")))
    started.kill()
    assert started.wait() == -9
    [part] = tmp_path.glob("*.part")
    there = part.stat().st_size
    assert 1_000_000 < there <= 2_000_000
    hub.stall = 0
    assert provide().returncode == 0
    assert hub.asked == [(M3_FILE, 0), (M3_FILE, there)]
    assert_downloaded(tmp_path)


def test_a_wrong_size_and_a_wrong_checksum(provide, hub, tmp_path):
    hub.claimed = 10
    result = provide()
    assert result.returncode == 2 and not (tmp_path / published.M3).exists()
    assert f"the download stopped at {M3_SIZE:,} of {M3_SIZE + 10:,} bytes" in result.stderr
    for part in tmp_path.glob("*.part"):
        part.unlink()
    hub.claimed, hub.damage = 0, True
    result = provide()
    assert result.returncode == 2 and "is damaged: its SHA-256 is" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / published.M3).exists() and not list(tmp_path.glob("*.part"))
    hub.damage = False
    assert provide().returncode == 0
    assert_downloaded(tmp_path)


def test_no_hub_no_such_file_and_no_network(provide, hub):
    unreachable = provide(HF_ENDPOINT="http://127.0.0.1:9")
    assert "cannot be downloaded from http://127.0.0.1:9" in unreachable.stderr and "HF_ENDPOINT" in unreachable.stderr
    assert "HF_HUB_OFFLINE forbids downloading" in provide(HF_HUB_OFFLINE="1").stderr
    hub.files.clear()
    missing = provide()
    assert "cannot be downloaded from" in missing.stderr and "404" in missing.stderr
    assert all(result.returncode == 2 and "Traceback" not in result.stderr for result in (unreachable, missing))


def test_weights_of_another_model_are_an_error(provide, hub, config, tmp_path):
    hub.files[M3_FILE] = HELD[published.CLAMP2]
    assert provide().returncode == 0
    result = run_script(CODE / "extract_m3.py", KIT / "mtf", tmp_path / "out", config=config)
    assert result.returncode == 2 and "these weights are of another model" in result.stderr


@pytest.mark.parametrize(("answer", "status"), [("y\n", 0), ("\n", 2)])
def test_on_a_terminal_it_asks(hub, config, tmp_path, answer, status):
    ours, theirs = pty.openpty()
    command = [sys.executable, CODE / "semantic_search.py", "search", "a jig", KIT / "interleaved", "--top_k", "1"]
    env = environment(config, **hub.environment(tmp_path / "home"))
    started = subprocess.Popen(command, env=env, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    termios.tcsetwinsize(ours, (24, 200))
    os.write(ours, answer.encode())
    shown = b""
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:  # the other side has ended
        pass
    printed = started.communicate(timeout=300)[0].decode()
    os.close(ours)
    assert started.returncode == status, shown
    question = f"Download the published ones from {REPOSITORY} ({len(HELD[published.CLAMP2]) / 1e9:.1f} GB)? [y/N]"
    assert question in shown.decode()
    assert ("3.21M/3.21M" in shown.decode()) == (status == 0)  # the progress bar
    assert printed.count("rank   score  name") == (status == 0)
    assert (tmp_path / published.CLAMP2).exists() == (status == 0)


def test_search_metrics_and_the_library_download_too(hub, config, tmp_path):
    folder, fetched = KIT / "interleaved", tmp_path / published.CLAMP2
    code = "import sys; sys.path.insert(0, {!r}); from clamp2 import load_clamp2; load_clamp2()"
    (tmp_path / "ask.py").write_text(code.format(str(CODE)))
    error = run_script(tmp_path / "ask.py", config=config).stderr
    assert "`load_clamp2(download=True)` downloads" in error
    code = f"""
import clamp2, semantic_search
print(semantic_search.main(["search", "a jig", {str(folder)!r}, "--top_k", "1", "--download"]))
for fetch in (
    lambda: print(semantic_search.main(["metrics", {str(folder)!r}, {str(folder)!r}, "--download"])),
    lambda: print(type(clamp2.load_clamp2(download=True))),
):
    open({str(fetched)!r}).close()
    import os; os.unlink({str(fetched)!r})
    fetch()
"""
    result = run("-c", code, config=config, cwd=CODE, **hub.environment(tmp_path / "home"))
    assert result.stdout.count(", revision ") == 3 and "MRR" in result.stdout, result.stderr
    assert "<class 'utils.CLaMP2Model'>" in result.stdout
    assert_downloaded(tmp_path, published.CLAMP2)


def test_a_part_that_is_too_long_is_begun_anew(provide, hub, tmp_path):
    etag = hashlib.sha256(HELD[published.M3]).hexdigest()
    (tmp_path / f"{published.M3}.{etag[:12]}.part").write_bytes(b"x" * (M3_SIZE + 1))
    assert provide().returncode == 0
    assert_downloaded(tmp_path)


def test_other_weights_are_not_offered(config, tmp_path):
    own = write_config(tmp_path / "own.py", **(KIT_SIZES | {"M3_WEIGHTS_PATH": str(tmp_path / "weights_own.pth")}))
    result = run_script(CODE / "extract_m3.py", KIT / "mtf", tmp_path / "out", "--download", config=own)
    assert result.returncode == 2 and "there are no such weights; train them" in result.stderr
