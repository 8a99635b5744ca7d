"""Features that were made with different weights, or in another way, are not used together; every command that could."""

import hashlib
import json

import numpy as np
import pytest

import cache
import config
import extraction
import features
import linear_probe
import pieces
import plot
import provenance
import semantic_search
from files import InputError

NAMES = [f"{label}_{number}.npy" for label in ("jig", "reel") for number in range(4)]
ALL = ("search", "metrics", "score", "pairwise", "packed", "pack", "train", "predict", "map", "similarity")


@pytest.fixture
def make(tmp_path):
    """make(name, weights, **facts) is a folder of features that an extraction has prepared; without weights, another."""

    def folder_of(name, weights=None, pooled=True, keep_unit_length=True, names=NAMES):
        folder = tmp_path / name
        if weights:
            path = tmp_path / f"{weights}.pth"
            path.write_text(weights)
            extraction.prepare_target(folder, path, pooled, keep_unit_length)
        folder.mkdir(parents=True, exist_ok=True)
        for number, file in enumerate(names):
            array = np.random.default_rng(number).standard_normal((1, 6)).astype(np.float32)
            np.save(folder / file, array)
        return folder

    return folder_of


def use(command, first, second, out):
    """The exit status of a command that takes the features of two folders, which lie in one."""

    def of(main, *arguments):
        return main([str(argument) for argument in arguments])

    match command:
        case "search":
            return of(semantic_search.main, "search", first / NAMES[0], second)
        case "pairwise":
            return of(semantic_search.main, "score", first, second, "--pairwise")
        case "metrics" | "score":
            return of(semantic_search.main, command, first, second)
        case "packed":
            features.pack(first, out / "packed")
            return of(semantic_search.main, "metrics", out / "packed", second)
        case "pack":
            return of(semantic_search.main, "pack", first.parent, out / "packed")
        case "train":
            return of(linear_probe.main, "train", first, second, "--epochs", 1)
        case "predict":
            assert of(linear_probe.main, "train", first, "--epochs", 1, "--model", out / "probe.pth") == 0
            return of(linear_probe.main, "predict", out / "probe.pth", second)
        case "map":
            return of(plot.main, "map", first.parent, out / "map.svg")
        case "similarity":
            return of(plot.main, "similarity", first, out / "similarity.svg", "--other", second)


@pytest.mark.parametrize("command", ALL)
def test_features_of_other_weights_are_refused(make, tmp_path_factory, capsys, command):
    out = tmp_path_factory.mktemp("out")
    assert use(command, make("in/m3", "one"), make("in/clamp2", "two"), out) == 2
    printed = capsys.readouterr().err
    for weights in ("one", "two"):
        assert f"{weights}.pth ({hashlib.sha256(weights.encode()).hexdigest()[:12]}...)" in printed
    assert "extract one of them again" in printed and "clamp2" in printed and "Traceback" not in printed
    assert not (out / "packed" / "names.json").exists() or command == "packed"


@pytest.mark.parametrize("command", ALL)
def test_features_of_the_same_weights_are_used_without_a_word(make, tmp_path_factory, capsys, command):
    assert use(command, make("in/text", "one"), make("in/music", "one"), tmp_path_factory.mktemp("out")) == 0
    assert "no note" not in capsys.readouterr().err


@pytest.mark.parametrize("command", ALL)
def test_features_from_elsewhere_are_taken_with_one_line(make, tmp_path_factory, capsys, command):
    out = tmp_path_factory.mktemp("out")
    first, second = make("in/known", "one"), make("in/elsewhere")
    assert use(command, first, second, out) == 0
    [line] = [line for line in capsys.readouterr().err.splitlines() if "no note" in line]
    unknown = first.parent if command in ("pack", "map") else second  # the folder that was given
    assert line == f"no note of what these features were made with; used as they are: {unknown}"


def test_a_folder_from_elsewhere_alone_is_not_spoken_of(make, tmp_path, capsys):
    folder = make("elsewhere")
    assert use("metrics", folder, folder, tmp_path) == use("map", folder / NAMES[0], folder, tmp_path) == 0
    assert "no note" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"pooled": False}, "of form --normalize; .* of form temporal"),
        ({"keep_unit_length": False}, "KEEP_UNIT_LENGTH True; .* of KEEP_UNIT_LENGTH False"),
        ({"precision": "bfloat16"}, "precision float32; .* of precision bfloat16"),
    ],
)
def test_features_of_another_kind_are_refused(make, monkeypatch, changed, told):
    first = make("first", "one")
    if "precision" in changed:
        monkeypatch.setattr(config, "EXTRACT_PRECISION", changed["precision"])
        changed = {}
    second = make("second", "one", **changed)
    with pytest.raises(InputError, match=told):
        provenance.agreed(features.made_with([first, second]))


def test_a_part_of_an_output_folder_knows_what_it_was_made_with(make, tmp_path):
    folder = make("out/features", "one", names=["a.npy"])
    make("out/features/deep/er", names=["b.npy"])
    (tmp_path / "link").symlink_to(folder)
    facts = json.loads((tmp_path / "out" / "features.extraction.json").read_text())
    assert facts["weights"] == "one.pth"
    (tmp_path / "deep_link").symlink_to(folder / "deep" / "er")
    links = [tmp_path / "link", tmp_path / "deep_link"]
    for root in (folder, folder / "deep", folder / "deep" / "er" / "b.npy", *links):
        assert features.made_with([root]) == {str(root): facts}, root
    assert features.made_with([tmp_path / "out"]) == {str(folder): facts}
    make("out", names=["stray.npy"])
    assert features.made_with([tmp_path / "out"]) == {str(folder): facts, str(tmp_path / "out"): {}}


def test_a_folder_of_the_first_versions_knows_it(make):
    folder = make("old", names=["a.npy"])
    (folder / ".extraction.json").write_text(json.dumps({"weights": "w.pth", "sha256": "0" * 64, "form": "temporal"}))
    known = {"weights": "w.pth", "sha256": "0" * 64, "form": "temporal", "precision": "float32"}
    assert features.made_with([folder]) == {str(folder): known | {"KEEP_UNIT_LENGTH": False}}


def test_packing_other_features_there_forgets_what_the_earlier_were_made_with(make, tmp_path):
    packed = tmp_path / "packed"
    features.pack(make("known", "one"), packed)
    assert features.load(packed).made_with[str(packed)]["weights"] == "one.pth"
    features.pack(make("elsewhere"), packed)
    assert features.load(packed).made_with == {str(packed): {}}


@pytest.fixture
def remembered(make, tmp_path, monkeypatch):
    """A sentence and a file of music whose features, of the weights in config.py, are in the cache of search."""
    weights = make("own", "one").with_name("one.pth")
    monkeypatch.setattr(config, "CLAMP2_WEIGHTS_PATH", str(weights))
    monkeypatch.setattr(config, "FEATURE_CACHE", str(tmp_path / "cache"))
    cache._cache.cache_clear()
    entry = cache.Entry(np.ones((1, 6), np.float32), [""], [""], [""])
    for content, kind in ((b"a jig", ".txt"), (b"music", ".mtf")):
        cache._cache().put(pieces.digest(content, kind), entry)
    (tmp_path / "music").mkdir()
    (tmp_path / "music" / "a.mtf").write_bytes(b"music")
    yield tmp_path / "music"
    cache._cache.cache_clear()


@pytest.mark.parametrize("what", ["sentence", "music"])
def test_what_is_embedded_now_is_not_compared_with_features_of_other_weights(make, remembered, capsys, what):
    def search(folder):
        query, among = ("a jig", folder) if what == "sentence" else (folder / NAMES[0], remembered)
        return semantic_search.main(["search", str(query), str(among)])

    assert search(make("own", "one", keep_unit_length=config.KEEP_UNIT_LENGTH)) == 0
    assert "no note" not in capsys.readouterr().err
    assert search(make("others", "two", keep_unit_length=config.KEEP_UNIT_LENGTH)) == 2
    assert "one.pth" in capsys.readouterr().err
