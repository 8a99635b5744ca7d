"""Search over files of any type: against the extractor and plain numpy, with its memory, and on input that is wrong."""

import json
import os
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest

import batch_script
import pieces
import xml_abc
from files import InputError
from helpers import CODE, KIT, KIT_MODEL, environment, run, run_script, write_config
from interleaving import interleave
from test_mtf import LOST, meta, midi, rmi

SEARCH = CODE / "semantic_search.py"
TUNES = ("solo_jig", "duo", "tiny")


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    """Every type of file, and every way to write its suffix."""
    folder = tmp_path_factory.mktemp("music")
    for name in ("duo", "octet"):
        (folder / "abc" / "standard").mkdir(parents=True, exist_ok=True)
        shutil.copy(KIT / "interleaved" / f"{name}.abc", folder / "abc")
        shutil.copy(KIT / "abc" / f"{name}.abc", folder / "abc" / "standard")
    shutil.copy(KIT / "midi" / "plain.mid", folder / "plain.MIDI")
    shutil.copy(KIT / "midi" / "plain.mid", folder / "plain.kar")
    (folder / "plain.RMI").write_bytes(rmi((KIT / "midi" / "plain.mid").read_bytes()))
    shutil.copy(KIT / "mtf" / "plain.mtf", folder)
    shutil.copy(KIT / "texts" / "lines.txt", folder)
    (folder / "book.abc").write_text("\n\n".join((KIT / "abc" / f"{name}.abc").read_text() for name in TUNES))
    score = xml_abc.abc_to_musicxml((KIT / "abc" / "quartet.abc").read_text())
    (folder / "quartet.musicxml").write_bytes(score)
    with zipfile.ZipFile(folder / "quartet.mxl", "w") as archive:
        archive.writestr("quartet.xml", score)
    (folder / "notes.pdf").write_text("not ours")
    return folder


@pytest.fixture(scope="module")
def extracted(music, config, tmp_path_factory):
    """What the extractor makes of the same music, which it wants as interleaved ABC and MTF: name of the hit -> [48]."""
    source, target = tmp_path_factory.mktemp("in"), tmp_path_factory.mktemp("out")
    names = {"abc/duo.abc": "duo.abc", "abc/octet.abc": "octet.abc", "plain.mtf": "plain.mtf", "lines.txt": "lines.txt"}
    for kind in ("interleaved", "mtf", "texts"):
        shutil.copytree(KIT / kind, source, dirs_exist_ok=True)
    names |= {"abc/standard/duo.abc": "duo.abc", "abc/standard/octet.abc": "octet.abc"}
    names |= dict.fromkeys(("plain.MIDI", "plain.kar", "plain.RMI"), "plain.mtf")
    names |= {f"book.abc#{number}": f"{name}.abc" for number, name in enumerate(TUNES, 1)}
    abc, _ = xml_abc.musicxml_to_abc((music / "quartet.musicxml").read_bytes(), "quartet")
    (source / "from_xml.abc").write_text(interleave(abc)[0][0])
    names |= {"quartet.musicxml": "from_xml.abc", "quartet.mxl": "from_xml.abc"}
    result = run_script(CODE / "extract_clamp2.py", source, target, "--normalize", config=config)
    assert result.returncode == 0, result.stderr
    files = {path.stem: path for path in target.glob("*.npy")}
    return {hit: np.load(files[name[: name.rindex(".")]])[0] for hit, name in names.items()}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    return write_config(folder / "kit.py", **KIT_MODEL, FEATURE_CACHE=str(folder / "cache"))


def search(*arguments, config, code=0):
    """Runs a search; its hits as name -> score, in their order, and what it said."""
    out = config.parent / "hits.json"
    out.unlink(missing_ok=True)
    result = run_script(SEARCH, "search", *arguments, "--json", out, config=config)
    assert result.returncode == code and "Traceback" not in result.stderr, result.stderr
    hits = json.loads(out.read_text())["hits"] if out.exists() else []
    return {hit["name"]: hit["score"] for hit in hits}, result


def without_torch(*arguments, config):
    """A search in a process of its own: (whether it did without torch and transformers, what it printed)."""
    script = "import sys, semantic_search as s; s.main(sys.argv[1:]); print('torch' in sys.modules or 'transformers' in sys.modules)"
    result = run("-c", script, "search", *arguments, config=config, cwd=CODE)
    *printed, loaded = result.stdout.splitlines()
    return loaded == "False", printed


def cosines(query, references):
    """name -> cosine, best first, in float64."""
    query = query.astype(np.float64)
    all_of = {
        name: query @ v / np.linalg.norm(query) / np.linalg.norm(v.astype(np.float64)) for name, v in references.items()
    }
    return dict(sorted(all_of.items(), key=lambda item: -item[1]))


def check(hits, expected):
    assert hits == pytest.approx(expected, abs=1e-5)
    assert all(expected[a] >= expected[b] - 1e-5 for a, b in zip(list(hits)[:-1], list(hits)[1:], strict=True))


def test_every_query_on_every_file_type_is_the_plain_answer(music, extracted, config, tmp_path):
    expected = {name: cosines(extracted[name], extracted) for name in extracted}
    for name in ("book.abc#2", "plain.MIDI", "plain.RMI", "quartet.mxl", "lines.txt"):
        hits, _ = search(music / name, music, "--top_k", 20, config=config)
        check(hits, expected[name])
    np.save(tmp_path / "query.npy", extracted["plain.mtf"][None])
    hits, result = search(tmp_path / "query.npy", music, "--top_k", 20, config=config)
    check(hits, expected["plain.mtf"])
    assert "duo" in result.stdout.split("book.abc#2")[1].splitlines()[0].split()  # its title
    assert f"{music}: 1 file of other types left alone" in result.stderr

    for number, vector in enumerate(extracted.values()):
        (tmp_path / "npy").mkdir(exist_ok=True)
        np.save(tmp_path / "npy" / f"{number}.npy", vector[None])
    hits, _ = search(music / "lines.txt", tmp_path / "npy", "--top_k", 20, config=config)
    by_number = {f"{number}.npy": expected["lines.txt"][name] for number, name in enumerate(extracted)}
    check(hits, by_number)
    assert next(iter(hits)) == f"{list(extracted).index('lines.txt')}.npy"


def test_a_sentence_is_a_text_file_of_that_sentence(music, config, tmp_path):
    (tmp_path / "query.txt").write_text("Ein langsamer Walzer, nach 1850")
    from_file, _ = search(tmp_path / "query.txt", music, config=config)
    from_sentence, _ = search("Ein langsamer Walzer, nach 1850", music, config=config)
    assert from_file == from_sentence and len(from_file) == 10


MANY = """
import io, sys
sys.path.insert(0, {code!r})
import clamp2, semantic_search
load = clamp2.load_clamp2
clamp2.load_clamp2 = lambda: print("loaded", file=sys.stderr) or load()
sys.stdin = io.TextIOWrapper(io.BytesIO(sys.argv.pop().encode()))
sys.exit(semantic_search.main(sys.argv[1:]))
"""


def test_many_queries_are_those_of_single_searches(music, config, tmp_path):
    """From standard input: two new sentences, a tune of a book and a text, with one loading of the model."""
    lines = ["Ein Walzer, nach 1851", f"{music}/book.abc#2", f"{music}/lines.txt", "no.mid", "two jigs"]
    (tmp_path / "many.py").write_text(MANY.format(code=str(CODE)))
    words = ("search", "--queries", "-", music, "--top_k", 20, "\n".join(lines) + "\n")
    done = run_script(tmp_path / "many.py", *words, config=config)
    assert done.returncode == 1 and done.stderr.count("loaded") == 1, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["query"] for answer in answers] == lines and "no such file" in answers[3]["error"]
    for line in (lines[0], lines[1], lines[4]):
        expected, _ = search(line, music, "--top_k", 20, config=config)
        hits = answers[lines.index(line)]["hits"]
        assert {hit["name"]: hit["score"] for hit in hits} == pytest.approx(expected, abs=1e-5)


def test_second_search_needs_no_model_and_a_moved_file_is_known(music, config, tmp_path):
    hits, _ = search("a jig", music, config=config)
    shutil.copytree(music, tmp_path / "moved")
    os.rename(tmp_path / "moved" / "plain.mtf", tmp_path / "moved" / "other name.mtf")
    done, printed = without_torch("a jig", tmp_path / "moved", config=config)
    assert done and len(printed) == 11 and float(printed[1].split()[1]) == pytest.approx(max(hits.values()), abs=1e-4)


def fresh(query, folder, tmp_path, **changes):
    """The hits with a cache that is empty."""
    shutil.rmtree(tmp_path / "fresh", ignore_errors=True)
    (tmp_path / "fresh").mkdir()
    settings = KIT_MODEL | changes | {"FEATURE_CACHE": str(tmp_path / "fresh" / "cache")}
    return search(query, folder, config=write_config(tmp_path / "fresh" / "kit.py", **settings))[0]


TRAIN_ON = """
import sys, torch
checkpoint = torch.load(sys.argv[1], weights_only=True)
checkpoint["model"]["music_proj.weight"] += 0.02 * torch.randn_like(checkpoint["model"]["music_proj.weight"])
torch.save(checkpoint, sys.argv[1])
"""


def test_a_changed_file_other_weights_or_sizes_are_never_answered_from_the_cache(tmp_path):
    folder = tmp_path / "music"
    shutil.copytree(KIT / "mtf", folder)
    shutil.copy(KIT / "texts" / "long.txt", folder)
    weights = tmp_path / "weights.pth"
    shutil.copy(KIT_MODEL["CLAMP2_WEIGHTS_PATH"], weights)
    settings = KIT_MODEL | {"CLAMP2_WEIGHTS_PATH": str(weights), "FEATURE_CACHE": str(tmp_path / "cache")}
    config = write_config(tmp_path / "kit.py", **settings)
    before, _ = search("a jig", folder, config=config)

    changed, times = folder / "plain.mtf", (folder / "plain.mtf").stat()
    changed.write_text(changed.read_text().replace(" 60 ", " 67 "))
    os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))  # as old as before
    after, _ = search("a jig", folder, config=config)
    assert after == pytest.approx(fresh("a jig", folder, tmp_path), abs=1e-5)
    assert {name for name in after if after[name] != before[name]} == {"plain.mtf"}

    times = weights.stat()
    (tmp_path / "train.py").write_text(TRAIN_ON)
    assert run_script(tmp_path / "train.py", weights).returncode == 0
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    other, _ = search("a jig", folder, config=config)
    assert other == pytest.approx(fresh("a jig", folder, tmp_path, CLAMP2_WEIGHTS_PATH=str(weights)), abs=1e-5)
    assert all(abs(other[name] - after[name]) > 1e-4 for name in other if name.endswith(".mtf"))

    config = write_config(tmp_path / "kit.py", **settings, MAX_TEXT_LENGTH=64)
    shorter, _ = search("a jig", folder, config=config)
    assert shorter["long.txt"] != pytest.approx(other["long.txt"], abs=1e-6)


def damage(kind, content):
    if kind == "flipped":
        return content[:-9] + bytes([content[-9] ^ 64]) + content[-8:]
    return {"empty": b"", "cut": content[:-4], "short": content[:10], "noise": os.urandom(len(content))}[kind]


def test_damaged_entries_are_made_again(tmp_path):
    config = write_config(tmp_path / "kit.py", **KIT_MODEL, FEATURE_CACHE=str(tmp_path / "cache"))
    before, _ = search("a jig", KIT / "mtf", config=config)
    [remembered] = [path for path in (tmp_path / "cache").iterdir() if path.name != "weights"]
    entries = sorted(remembered.iterdir())
    assert len(entries) == 6  # five files and the sentence
    kept = [path.read_bytes() for path in entries]
    for path, kind in zip(entries, ("empty", "cut", "short", "noise", "flipped"), strict=False):
        path.write_bytes(damage(kind, path.read_bytes()))
    [digest] = (tmp_path / "cache" / "weights").iterdir()
    digest.write_bytes(b"\xff not a digest")
    again, result = search("a jig", KIT / "mtf", config=config)
    assert again == pytest.approx(before, abs=1e-5) and not result.stderr.startswith("error")
    assert [len(path.read_bytes()) for path in entries] == [len(content) for content in kept]
    assert without_torch("a jig", KIT / "mtf", config=config)[0]


PUT_AND_GET = """
import cache, numpy as np
remembered = cache.FeatureCache()
for number in range(60):
    remembered.put("key.abc", cache.Entry(np.full((3000, 48), number, np.float32), ["t"] * 3000, [""] * 3000, [""] * 3000))
    entry = remembered.get("key.abc")
    assert entry is not None and len(set(entry.vectors.ravel())) == 1, "half of two entries"
"""


def test_runs_side_by_side_never_see_half_an_entry(tmp_path):
    config = write_config(tmp_path / "kit.py", **KIT_MODEL, FEATURE_CACHE=str(tmp_path / "cache"))
    command = [sys.executable, "-c", PUT_AND_GET]
    runs = [subprocess.Popen(command, cwd=CODE, env=environment(config)) for _ in range(3)]
    assert [process.wait(300) for process in runs] == [0, 0, 0]
    assert not list((tmp_path / "cache").rglob(".tmp-*"))


CHANGE_WHILE_LOADING = """
import os, sys, types, cache
sys.modules["clamp2"] = types.SimpleNamespace(load_clamp2=lambda: os.utime({weights!r}))
try:
    cache.FeatureCache().model
except cache.InputError as error:
    print(error)
"""


def test_weights_that_a_training_replaces_meanwhile(tmp_path):
    weights = shutil.copy(KIT_MODEL["CLAMP2_WEIGHTS_PATH"], tmp_path)
    settings = KIT_MODEL | {"CLAMP2_WEIGHTS_PATH": weights, "FEATURE_CACHE": str(tmp_path / "cache")}
    script = CHANGE_WHILE_LOADING.format(weights=weights)
    result = run("-c", script, config=write_config(tmp_path / "kit.py", **settings), cwd=CODE)
    assert result.stdout == f"{weights}: changed while they were read; start again\n", result.stderr


def test_a_cache_that_cannot_be_written_is_told_once(music, config, tmp_path):
    expected, _ = search("a jig", music, config=config)
    (tmp_path / "file").touch()
    config = write_config(tmp_path / "kit.py", **KIT_MODEL, FEATURE_CACHE=str(tmp_path / "file" / "cache"))
    found, result = search("a jig", music, config=config)
    assert found == pytest.approx(expected, abs=1e-5)
    assert result.stderr.count("features are not remembered") == 1


def test_bad_files_cost_themselves_alone_and_are_named_each_time(tmp_path):
    config = write_config(tmp_path / "kit.py", **KIT_MODEL, FEATURE_CACHE=str(tmp_path / "cache"))
    folder = tmp_path / "music"
    shutil.copytree(KIT / "midi", folder)
    (folder / "broken.mid").write_bytes(b"MTrk nothing")
    (folder / "silent.abc").write_text("X:1\nK:C\nz4|]\n")
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    (folder / "not.mxl").write_bytes(b"PK\x03\x04 cut")
    (folder / "book.abc").write_text("X:1\nT:good\nK:C\nCDEF|]\n\nX:2\nT:no key\nCDEF|\n\nX:3\nT:fine\nK:G\nGABc|]\n")
    (folder / "gone.abc").symlink_to("nowhere")
    for _ in range(2):
        hits, result = search("a jig", folder, "--top_k", 50, config=config, code=1)
        assert set(hits) == {path.name for path in (KIT / "midi").iterdir()} | {"book.abc#1", "book.abc#3"}
        skipped = result.stderr.partition("read with warnings:")[0].splitlines()
        told = {line.split(": ")[0].rpartition("/")[2]: line for line in skipped if line.startswith("  ")}
        assert set(told) == {"broken.mid", "silent.abc", "latin.txt", "not.mxl", "book.abc#2", "gone.abc"}
        assert "no header chunk" in told["broken.mid"] and "no note" in told["silent.abc"]
        assert "not UTF-8" in told["latin.txt"] and "no K: line" in told["book.abc#2"]
        assert "7 pieces, fewer than the 50" in result.stderr


def test_what_was_read_with_warnings_is_counted_and_named_each_time(tmp_path):
    config = write_config(tmp_path / "kit.py", **KIT_MODEL, FEATURE_CACHE=str(tmp_path / "cache"))
    folder = tmp_path / "music"
    folder.mkdir()
    note = b"\x60\x90\x3c\x40\x60\x3c\x00"
    (folder / "song.kar").write_bytes(midi(b"\x60" + meta(5, b"la"), note))
    (folder / "tune.mid").write_bytes(midi(note))
    (folder / "odd.abc").write_text("X:1\nM:4/4\nL:1/4\nK:C\nV:1\nCDEF|CDEF|]\nV:2\nCDEF|]\n")
    for query in ("a jig", folder / "song.kar"):
        _, result = search(query, folder, config=config)
        [abc, kar] = json.loads((tmp_path / "hits.json").read_text())["warnings"][str(folder)]
        assert abc.startswith(f"{folder}/odd.abc: ") and kar == f"{folder}/song.kar: {LOST.format(96)}"
        assert f"2 of {folder} read with warnings:\n  {abc}\n  {kar}\n" in result.stderr
        assert (f"{query}: {LOST.format(96)}" in result.stderr.splitlines()) is (query != "a jig")


def test_warnings_about_files_and_texts_of_music_are_printed_in_their_order(tmp_path, monkeypatch, capsys):
    import clamp2

    monkeypatch.setattr(clamp2, "_stack", lambda model, chosen: [piece.title for piece in chosen])
    odd = "X:1\nT:odd\nM:4/4\nL:1/4\nK:C\nV:1\nCDEF|CDEF|]\nV:2\nCDEF|]\n"
    (tmp_path / "odd.abc").write_text(odd.replace("T:odd", "T:file"))
    even = odd.replace("CDEF|CDEF|]", "CDEF|]").replace("T:odd", "T:even")
    assert clamp2.embed_music(None, [even, tmp_path / "odd.abc", odd]) == ["even", "file", "odd"]
    first, *named = capsys.readouterr().err.splitlines()[-3:]
    assert first == "2 pieces of music read with warnings:"
    for line, name in zip(named, (tmp_path / "odd.abc", "music text 3"), strict=True):
        assert line.startswith(f"  {name}: voice 2 has 1 bars, others 2")
    for text, problem in ((f"{odd}\n{odd}", "holds 2 tunes; pass them one by one"), ("K:C\n|\n", "no note")):
        with pytest.raises(InputError, match=f"music text 2: .*{problem}"):
            clamp2.embed_music(None, [even, text])


def test_a_converter_that_crashes_or_hangs_costs_its_file_alone(tmp_path, monkeypatch):
    contents = {"good.abc": "echo x", "crash.abc": "signal 11", "slow.abc": "work 60", "leave.abc": "exit 3"}
    orders = [tmp_path / name for name in contents]
    for path, order in zip(orders, contents.values(), strict=True):
        path.write_text(order)
    monkeypatch.setattr(pieces, "_read_file", batch_script.read)
    found = {path.name: (key, piece.text or piece.error) for path, key, [piece] in pieces.read_files(orders, 1)}
    assert found.pop("good.abc") == ("a digest", "echo x")
    assert {key for key, _ in found.values()} == {""}
    assert "signal 11" in found["crash.abc"][1] and "status 3" in found["leave.abc"][1]
    assert found["slow.abc"][1] == "took over 1 s of CPU time"


MISTAKES = {
    "no reference": (["a jig", "nowhere"], "nowhere: no such file"),
    "empty reference": (["a jig", "empty"], "no music, text or .npy file in it (0 files"),
    "other types only": (["a jig", "others"], "(1 file of other types)"),
    "music and features": (["a jig", "both"], "Separate them"),
    "only bad files": (["a jig", "bad"], "of its 1 file, none can be used; the first: bad/x.mid: not a MIDI"),
    "query of unknown type": (["others/x.pdf", "good"], "others/x.pdf: of unknown type; a query is a sentence, or"),
    "query not there": (["my tune.mid", "good"], "my tune.mid: no such file"),
    "tune of a file not there": (["bok.abc#12", "good"], "bok.abc: no such file"),
    "tune of no number": (["my book.abc#x", "good"], "my book.abc#x: no such file"),
    "tune of no suffix": (["bok#12", "good"], "bok#12: no such file"),
    "tune of features": (["width.npy#1", "good"], "width.npy#1: no such file"),
    "query is a folder": (["good", "good"], "good: a folder"),
    "empty query": (["  ", "good"], "the query is empty"),
    "several tunes": (["book.abc", "good"], "holds 2 tunes; choose one: book.abc#1"),
    "no such tune": (["book.abc#3", "good"], "holds 2 tunes, there is no number 3"),
    "a bad tune": (["book.abc#2", "good"], "book.abc#2: no K: line"),
    "a bad query": (["bad/x.mid", "good"], "bad/x.mid: not a MIDI file"),
    "another width": (["wide.npy", "good"], "wide.npy has width 7, good 48"),
    "NaN": (["nan.npy", "good"], "48 values are NaN"),
    "top_k": (["a jig", "good", "--top_k", "-1"], "not a number from 1"),
}


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mistakes")
    for name in ("empty", "others", "both", "bad", "good"):
        (folder / name).mkdir()
    (folder / "others" / "x.pdf").touch()
    for name in ("both", "good"):
        shutil.copy(KIT / "mtf" / "plain.mtf", folder / name)
    np.save(folder / "both" / "x.npy", np.ones((1, 48), np.float32))
    np.save(folder / "wide.npy", np.ones((1, 7), np.float32))
    np.save(folder / "nan.npy", np.full((1, 48), np.nan, np.float32))
    (folder / "bad" / "x.mid").write_text("x")
    (folder / "book.abc").write_text("X:1\nK:C\nCDEF|]\n\nX:2\nCDEF|\n")
    return folder


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_in_one_line(mistakes, config, mistake):
    arguments, problem = MISTAKES[mistake]
    result = run_script(SEARCH, "search", *arguments, config=config, cwd=mistakes)
    assert result.returncode == 2 and problem in result.stderr and "Traceback" not in result.stderr, result.stderr
    assert "usage:" in result.stderr or len(result.stderr.splitlines()) == 1


def test_weights_that_are_not_there(mistakes, tmp_path):
    config = write_config(tmp_path / "kit.py", **KIT_MODEL | {"CLAMP2_WEIGHTS_PATH": "/no/such.pth"})
    result = run_script(SEARCH, "search", "a jig", mistakes / "good", config=config)
    assert result.returncode == 2 and result.stderr.startswith("error: /no/such.pth: there are no such weights"), (
        result.stderr
    )


def test_metrics_between_folders_of_music(config, tmp_path):
    """A piece and its interleaved form are the same to the model, so every one is first."""
    result = run_script(SEARCH, "metrics", KIT / "abc", KIT / "interleaved", config=config)
    assert result.returncode == 0, result.stderr
    assert [line.split()[1] for line in result.stdout.splitlines() if line.startswith(("MRR", "Hit@1 "))] == [
        "1.0000"
    ] * 2


NOTEBOOK = """
import sys
sys.path.append({code!r})
from pathlib import Path
import numpy as np
from clamp2 import embed_music, embed_texts, load_clamp2
from files import InputError

model = load_clamp2({weights!r})
print("started")
paths = [{folder!r} + name for name in ("/quartet.mxl", "/book.abc#2", "/plain.MIDI", "/book.abc#2")]
np.save("music.npy", embed_music(model, paths))
np.save("texts.npy", embed_texts(model, ["Slow air", open({folder!r} + "/lines.txt", encoding="utf-8").read()]))
assert embed_texts(model, []).shape == embed_music(model, []).shape == (0, 48)
for call, items in (
    (embed_texts, ["a", " "]), (embed_music, [{folder!r} + "/lines.txt"]), (embed_music, ["no.abc#2"]),
    (embed_texts, "a slow air"), (embed_music, "no.abc"), (embed_music, Path("no.abc")), (embed_texts, ["a", Path("b")]),
    (embed_music, iter(["no.abc", None])), (embed_texts, None),
):
    try:
        call(model, items)
    except (InputError, OSError) as error:
        print(error)
"""


def test_a_mistake_takes_one_line_in_a_notebook():
    """IPython prints what this method of an exception returns in place of a traceback."""
    assert InputError("no.abc: no such file")._render_traceback_() == ["InputError: no.abc: no such file"]


def test_the_three_calls_in_a_script_without_a_main_guard(music, extracted, config, tmp_path):
    script = tmp_path / "notebook.py"
    script.write_text(NOTEBOOK.format(code=str(CODE), folder=str(music), weights=KIT_MODEL["CLAMP2_WEIGHTS_PATH"]))
    result = run(script, config=config, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    expected = np.stack([extracted[name] for name in ("quartet.mxl", "book.abc#2", "plain.MIDI", "book.abc#2")])
    np.testing.assert_allclose(np.load(tmp_path / "music.npy"), expected, atol=1e-4)
    np.testing.assert_allclose(np.load(tmp_path / "texts.npy")[1], extracted["lines.txt"], atol=1e-4)
    started, empty, text, missing, *of_no_use = result.stdout.splitlines()
    assert of_no_use == [
        "text: a list is needed, not a single str; write ['a slow air']",
        "music: a list is needed, not a single str; write ['no.abc']",
        "music: a list is needed, not a single PosixPath; write [PosixPath('no.abc')]",
        "text 2 of 2 is of type PosixPath: PosixPath('b')",
        "music 2 of 2 is of type NoneType: None",
        "text: a list is needed, not None",
    ]
    assert started == "started" and empty == "text 2 of 2 is empty"
    assert "lines.txt: not a music file" in text and missing == "no.abc: no such file"
    assert result.stderr.count("read with warnings") == 1 and "quartet.mxl: META-INF" in result.stderr
