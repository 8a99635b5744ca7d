"""The identity of remembered features, each fact alone, and what the cache gives back. The model is a stand-in."""

import hashlib
import json
import os
import shutil
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from transformers import AutoTokenizer

import cache
import config
import pieces
import scores
from files import InputError
from helpers import KIT
from pieces import Piece

WIDTH = 4
SIZES = ("PATCH_SIZE", "PATCH_LENGTH", "PATCH_NUM_LAYERS", "M3_HIDDEN_SIZE", "CLAMP2_HIDDEN_SIZE", "MAX_TEXT_LENGTH")
READ_AT_VERSION = {  # FEATURE_VERSION -> digests of what the model reads of the kit, by kind
    1: {
        "abc": "e8c2c2aae8803188",
        "interleaved": "af1bb080ccaf34d8",
        "midi": "bcc05ed8fd73beb4",
        "mtf": "0e7e4f74deb9d0df",
        "texts": "d2cc054ac8523707",
        "musicxml": "a505b6e39dbd6603",
    }
}


@pytest.fixture
def setup(tmp_path, monkeypatch):
    """Weights and a text model that a test may change, and a cache of its own."""
    (tmp_path / "weights.pth").write_bytes(b"weights")
    text_model = tmp_path / "text_model"
    text_model.mkdir()
    for name in ("config.json", "vocab.txt", "sentencepiece.model", "pytorch_model.bin"):
        (text_model / name).write_text(f"content of {name}")
    monkeypatch.setattr(config, "CLAMP2_WEIGHTS_PATH", str(tmp_path / "weights.pth"))
    monkeypatch.setattr(config, "TEXT_MODEL_NAME", str(text_model))
    monkeypatch.setattr(config, "FEATURE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(config, "CLAMP2_HIDDEN_SIZE", WIDTH)
    return tmp_path


def folder_of_the_model() -> str:
    return cache.FeatureCache().folder.name


def append(path: Path) -> None:
    with open(path, "a") as file:
        file.write("\n")


# --- the identity of the model ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["weights.pth", *(f"text_model/{n}" for n in ("config.json", "vocab.txt"))])
def test_another_content_of_the_model_is_another_model(setup, file):
    before = folder_of_the_model()
    append(setup / file)
    assert folder_of_the_model() != before


def test_a_raised_version_names_another_model(setup, monkeypatch):
    before = folder_of_the_model()
    monkeypatch.setattr(cache, "FEATURE_VERSION", cache.FEATURE_VERSION + 1)
    assert folder_of_the_model() != before


def read_of_the_kit(kind: str) -> str:
    """A digest of the titles and tokens of some pieces, and of whether there is a warning."""
    import clamp2

    if kind == "musicxml":
        contents = [scores.score(title="Air").encode(), scores.mxl({"a.xml": scores.score()})]
    else:
        contents = [path.read_bytes() for path in sorted((KIT / kind).iterdir())]
    suffix = {"abc": ".abc", "interleaved": ".abc", "midi": ".mid", "mtf": ".mtf", "texts": ".txt", "musicxml": ".xml"}
    read = hashlib.sha256()
    for piece in [piece for content in contents for piece in pieces.read(content, suffix[kind])]:
        assert not piece.error
        read.update(json.dumps([piece.title, bool(piece.warning)]).encode() + clamp2.encode(piece, True).tobytes())
    return read.hexdigest()[:16]


@pytest.mark.parametrize("kind", ["abc", "interleaved", "midi", "mtf", "texts", "musicxml"])
def test_the_version_is_raised_when_reading_changes(kind, monkeypatch):
    """How tokens are embedded is held by the golden features (test_models.py, test_embedding.py)."""
    import clamp2

    monkeypatch.setattr(clamp2, "_tokenizer", lambda: AutoTokenizer.from_pretrained(KIT / "tiny-xlmr"))
    read = {name: digest for name, digest in READ_AT_VERSION[cache.FEATURE_VERSION].items() if name == kind}
    assert {kind: read_of_the_kit(kind)} == read, (
        "what is read of the kit has changed: raise FEATURE_VERSION in cache.py, so that no remembered feature of"
        " before is used, and put the digests of now beside the new number in READ_AT_VERSION"
    )


@pytest.mark.parametrize("name", SIZES)
def test_each_size_names_another_model(setup, monkeypatch, name):
    before = folder_of_the_model()
    monkeypatch.setattr(config, name, getattr(config, name) + 64)
    assert folder_of_the_model() != before


def test_the_precision_names_another_model(setup, monkeypatch):
    before = folder_of_the_model()
    monkeypatch.setattr(config, "EXTRACT_PRECISION", "bfloat16")
    assert folder_of_the_model() != before


def test_how_music_is_read_names_another_model(setup, monkeypatch):
    before = folder_of_the_model()
    monkeypatch.setattr(config, "KEEP_UNIT_LENGTH", not config.KEEP_UNIT_LENGTH)
    assert folder_of_the_model() != before


@pytest.mark.parametrize("package", ["abctoolkit", "unidecode"])
def test_the_version_of_a_package_of_the_conversions_names_another_model(setup, monkeypatch, package):
    before, version = folder_of_the_model(), cache.version
    monkeypatch.setattr(cache, "version", lambda name: version(name) + (".1" if name == package else ""))
    assert folder_of_the_model() != before


def test_each_file_of_a_text_model_but_its_weights_names_another_model(setup, monkeypatch):
    before, folder = folder_of_the_model(), setup / "text_model"
    append(folder / "pytorch_model.bin")  # CLaMP 2's own weights hold the text model's
    assert folder_of_the_model() == before
    append(folder / "sentencepiece.model")
    after = folder_of_the_model()
    (folder / "vocab.txt").rename(folder / "words.txt")  # the last one, as it was
    renamed = folder_of_the_model()
    monkeypatch.setattr(config, "TEXT_MODEL_NAME", "some/model")
    names = [folder_of_the_model()]
    monkeypatch.setattr(config, "TEXT_MODEL_NAME", "other/model")
    names.append(folder_of_the_model())
    assert len({before, after, renamed, *names}) == 5


def test_what_features_do_not_depend_on_names_the_same_model(setup, monkeypatch):
    before = folder_of_the_model()
    shutil.copy(setup / "weights.pth", setup / "copy.pth")
    monkeypatch.setattr(config, "CLAMP2_WEIGHTS_PATH", str(setup / "copy.pth"))
    monkeypatch.setattr(config, "EXTRACT_BATCH_TOKENS", 7)
    monkeypatch.setattr(config, "M3_LEARNING_RATE", 7.0)
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: reversed(list(listed(self))))  # a disk may list in any order
    assert folder_of_the_model() == before


# --- the identity of the weights file, by which its digest is remembered ----------------------------------------------


def pin_status(monkeypatch, path: Path, **changes: int) -> None:
    """The status of a file stays what it is now, but for the changes, whatever is done to the file."""
    real = Path.stat
    status = real(path)
    pinned = {name: getattr(status, name) for name in dir(status) if name.startswith("st_")} | changes
    files = {path, path.resolve()}

    def stat(self: Path, **options):
        return SimpleNamespace(**pinned) if self in files else real(self, **options)

    monkeypatch.setattr(Path, "stat", stat)


@pytest.mark.parametrize("fact", ["st_size", "st_mtime_ns", "st_ctime_ns", "st_ino"])
def test_weights_are_read_again_if_one_fact_of_their_file_differs(setup, monkeypatch, fact):
    weights, before = setup / "weights.pth", folder_of_the_model()
    value = getattr(weights.stat(), fact)
    pin_status(monkeypatch, weights)
    weights.write_bytes(b"WEIGHTS")
    assert folder_of_the_model() == before  # they are not read if nothing differs
    pin_status(monkeypatch, weights, **{fact: value + 1})
    assert folder_of_the_model() != before


def test_weights_behind_a_link_are_read_again_if_it_leads_elsewhere(setup, monkeypatch):
    link = setup / "link.pth"
    (setup / "others.pth").write_bytes(b"WEIGHTS")
    link.symlink_to(setup / "weights.pth")
    monkeypatch.setattr(config, "CLAMP2_WEIGHTS_PATH", str(link))
    before = folder_of_the_model()
    pin_status(monkeypatch, link)
    link.unlink()
    link.symlink_to(setup / "others.pth")
    assert folder_of_the_model() != before


@pytest.mark.parametrize("damaged", [b"", b"abc", b"\xff" * 64])
def test_a_damaged_digest_of_the_weights_is_made_again(setup, damaged):
    before = folder_of_the_model()
    [remembered] = (setup / "cache" / "weights").iterdir()
    assert remembered.read_text() == hashlib.sha256(b"weights").hexdigest()
    remembered.write_bytes(damaged)
    assert folder_of_the_model() == before
    assert remembered.read_text() == hashlib.sha256(b"weights").hexdigest()


@pytest.mark.parametrize("fact", ["st_size", "st_mtime_ns", "st_ctime_ns", "st_ino"])
def test_weights_that_change_while_they_are_read_are_refused(setup, monkeypatch, fact):
    weights = setup / "weights.pth"

    def load():
        pin_status(monkeypatch, weights, **{fact: getattr(weights.stat(), fact) + 1})
        return "a model"

    monkeypatch.setitem(sys.modules, "clamp2", SimpleNamespace(load_clamp2=load))
    with pytest.raises(InputError, match=r"weights\.pth: changed while they were read"):
        _ = cache.FeatureCache().model


def test_weights_that_stay_are_loaded_once(setup, monkeypatch):
    loaded = []
    monkeypatch.setitem(sys.modules, "clamp2", SimpleNamespace(load_clamp2=lambda: loaded.append(1) or "a model"))
    remembered = cache.FeatureCache()
    assert (remembered.model, remembered.model, loaded) == ("a model", "a model", [1])


# --- entries ----------------------------------------------------------------------------------------------------------


def entry_of(count: int) -> cache.Entry:
    vectors = np.random.default_rng(count).standard_normal((count, WIDTH)).astype(np.float32)
    titles = [f"tune {number}\n\udcff–" for number in range(count)]
    return cache.Entry(vectors, titles, ["", "no note", "\n"][:count], ["9 ticks left out", "", "–"][:count])


@pytest.mark.parametrize("count", [1, 3])
def test_an_entry_comes_back_as_it_was(setup, count):
    remembered, entry = cache.FeatureCache(), entry_of(count)
    assert remembered.get("key.abc") is None
    remembered.put("key.abc", entry)
    assert remembered.get("key.mtf") is None
    again = cache.FeatureCache().get("key.abc")
    np.testing.assert_array_equal(again.vectors, entry.vectors)
    assert again.vectors.dtype == np.float32 and (again.titles, again.errors) == (entry.titles, entry.errors)
    assert again.warnings == entry.warnings


def test_every_damage_to_an_entry_is_seen(setup):
    remembered = cache.FeatureCache()
    remembered.put("key.abc", entry_of(1))
    path = remembered.folder / "key.abc"
    whole = path.read_bytes()
    damaged = [whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :] for place in range(len(whole))]
    for content in [*damaged, *(whole[:length] for length in range(len(whole))), whole + b"\0"]:
        path.write_bytes(content)
        assert remembered.get("key.abc") is None
    path.write_bytes(whole)
    assert remembered.get("key.abc") is not None


# --- features of sources ----------------------------------------------------------------------------------------------


def vector_of(text: str) -> np.ndarray:
    """The stand-in for the feature of a text."""
    return np.frombuffer(hashlib.sha256(text.encode()).digest()[: 2 * WIDTH], np.uint16).astype(np.float32)


@pytest.fixture
def embedded(setup, monkeypatch):
    """The texts that were embedded by the stand-in for the model, which is three pieces behind what it reads."""
    texts: list[str] = []

    def embed_pieces(model, found):
        waiting = []
        for key, piece in found:
            texts.append(piece.text)
            waiting.append((key, vector_of(piece.text)))
            if len(waiting) > 3:
                yield waiting.pop(0)
        yield from waiting

    module = SimpleNamespace(load_clamp2=lambda: "a model", embed_pieces=embed_pieces)
    monkeypatch.setitem(sys.modules, "clamp2", module)
    monkeypatch.setattr(pieces, "read_files", read_files)
    cache._cache.cache_clear()
    yield texts
    cache._cache.cache_clear()


def read_files(paths):
    """`pieces.read_files` without its processes: a tune for each word; `crash` ends its converter, `bad` is no tune."""
    for path in reversed(list(paths)):
        words = path.read_text().split()
        if "crash" in words:
            yield path, "", [Piece("", error="ended by signal 11")]
            continue
        key = pieces.digest(path.read_bytes(), pieces.kind(path))
        bad = Piece("", "", "bad tune")
        yield path, key, [bad if word == "bad" else Piece(word, word.upper(), warning=word[1:]) for word in words]


def known_of(sources) -> dict:
    return dict(cache.features_of(sources))


def check(entry: cache.Entry, words: str) -> None:
    expected = [np.zeros(WIDTH) if word == "bad" else vector_of(word) for word in words.split()]
    np.testing.assert_array_equal(entry.vectors, expected)
    assert entry.titles == ["" if word == "bad" else word.upper() for word in words.split()]
    assert entry.errors == ["bad tune" if word == "bad" else "" for word in words.split()]
    assert entry.warnings == ["" if word == "bad" else word[1:] for word in words.split()]


CONTENTS = {"a.abc": "one", "b.abc": "two bad three four", "c.txt": "five", "d.mtf": "bad", "e.mtf": "six seven"}


def test_sources_that_cannot_be_read_are_reported_and_the_others_go_on(setup, embedded, monkeypatch):
    """A folder is no piece, and one file is not there: an error of each kind, before a file that is good."""
    folder = setup / "music"
    (folder / "a.abc").mkdir(parents=True)
    (folder / "c.abc").write_text("one")
    names = ["a.abc", "b.abc", "c.abc"]
    known = known_of([folder / name for name in names])
    assert known[folder / "a.abc"].errors == ["not a regular file"]
    assert known[folder / "b.abc"].errors == ["No such file or directory"]
    check(known[folder / "c.abc"], "one")


def test_each_piece_gets_its_own_feature_and_is_embedded_once(setup, embedded):
    folder = setup / "music"
    folder.mkdir()
    for name, words in CONTENTS.items():
        (folder / name).write_text(words)
    sources = [folder / name for name in CONTENTS]
    for times in (1, 2):
        known = known_of([*sources, "a sentence"])
        for name, words in CONTENTS.items():
            check(known[folder / name], words)
        np.testing.assert_array_equal(known["a sentence"].vectors, [vector_of("a sentence")])
        assert sorted(embedded) == sorted(
            ["a sentence", *(word for words in CONTENTS.values() for word in words.split() if word != "bad")]
        ), times


def test_the_key_of_a_file_is_its_content_and_kind(setup, embedded):
    (setup / "a.abc").write_text("one")
    known_of([setup / "a.abc"])
    for name in ("other name.abc", "upper.ABC"):
        shutil.copy(setup / "a.abc", setup / name)
    known = known_of([setup / "other name.abc", setup / "upper.ABC"])
    assert embedded == ["one"]
    check(known[setup / "upper.ABC"], "one")

    shutil.copy(setup / "a.abc", setup / "a.mtf")  # read in another way
    known_of([setup / "a.mtf"])
    assert embedded == ["one", "one"]

    times = (setup / "a.abc").stat()
    (setup / "a.abc").write_text("two")
    os.utime(setup / "a.abc", ns=(times.st_atime_ns, times.st_mtime_ns))
    check(known_of([setup / "a.abc"])[setup / "a.abc"], "two")


def test_a_sentence_and_a_file_of_it_have_one_entry(setup, embedded):
    (setup / "a.txt").write_text("sentence")
    known_of(["sentence"])
    known_of([setup / "a.txt"])
    assert embedded == ["sentence"]


def test_a_bad_piece_is_remembered_and_a_crash_is_not(setup, embedded):
    (setup / "bad.abc").write_text("bad")
    (setup / "crash.abc").write_text("crash")
    known = known_of([setup / "bad.abc", setup / "crash.abc", setup / "gone.abc", setup])
    assert {source.name: entry.errors for source, entry in known.items()} == {
        "bad.abc": ["bad tune"],
        "crash.abc": ["ended by signal 11"],
        "gone.abc": ["No such file or directory"],
        setup.name: ["not a regular file"],
    }
    assert all(entry.vectors.shape == (1, WIDTH) and not entry.vectors.any() for entry in known.values())
    remembered = cache.FeatureCache()
    assert remembered.get(pieces.digest(b"bad", ".abc")).errors == ["bad tune"]
    assert len(list(remembered.folder.iterdir())) == 1


def test_what_killed_processes_left_in_the_cache_is_removed(setup, embedded):
    leftover = cache.FeatureCache().folder / f".tmp-{socket.gethostname()[:64]}-999999999-00000000"
    leftover.parent.mkdir(parents=True)
    leftover.touch()
    known_of(["a sentence"])
    assert not leftover.exists()
