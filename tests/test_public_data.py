"""The page "Train CLaMP 2 on public data": its commands, as it has them, on small files in the form of each set."""

import json
import re
from collections import Counter
from pathlib import Path

import checkpoints
from dataset_fixtures import MIDI, write, zipped
from helpers import ROOT
from readme_examples import SERVER, Shell, blocks, workspace
from test_datasets_small import CLIPS
from test_prepare_dataset import COLUMNS, caption, metadata, mxl, pdmx_row
from test_prepare_dataset import MIDI as SONG

README = "process_data/README.md"
TITLE = "Train CLaMP 2 on public data"
TINY = """
PATCH_NUM_LAYERS = 2
TOKEN_NUM_LAYERS = 1
M3_HIDDEN_SIZE = 64
CLAMP2_HIDDEN_SIZE = 48
TEXT_MODEL_NAME = "../tests/kit/tiny-xlmr"
EVAL_SPLIT = 0.3
NUM_WORKERS = 0
WARMUP_STEPS = 0
M3_NUM_EPOCH = 1
M3_BATCH_SIZE = 4
CLAMP2_NUM_EPOCH = 1
CLAMP2_BATCH_SIZE = 2
"""
SONGS = {  # of PDMX: what differs in the row
    "1/11/Qa": {},
    "1/12/Qb": {},
    "2/13/Qc": {},
    "2/13/Qd": {"title": "A sad waltz"},
    "2/14/Qe": {"mxl": "NA"},
    "3/15/Qf": {"subset:no_license_conflict": "False"},
    "3/15/Qg": {"subset:deduplicated": "False"},
    "3/15/Qh": {"subset:all_valid": "False"},
}
CAPTION = "A melancholic pop song with piano and drums, set in the key of Bb major at a slow tempo."
TUNE = "X:1\nL:1/8\nM:6/8\nK:D\n|: ABA d2 f | a3 g3 :|\n"


def page():
    """The blocks of the page."""
    text = (ROOT / README).read_text(encoding="utf-8")
    start = text.index(f"\n## {TITLE}\n")
    end = text.index("\n## ", start + 1)
    return [block for block in blocks(README) if start < block.at[0] < end]


def downloads(folder):
    """Write the files that the page downloads: the last song has none, nor has the first caption; the last tune is empty."""
    rows = [",".join(COLUMNS), *(pdmx_row(name, **changes) for name, changes in SONGS.items())]
    music = {f"{form}/{name}.{form}": data for name in SONGS for form, data in (("mxl", mxl()), ("mid", SONG))}
    music = {name: data for name, data in music.items() if "Qh" not in name and name != "mxl/2/14/Qe.mxl"}
    notes = {f"metadata/7/{name[-1]}.json": metadata(title=f"Song {name[-1]}") for name in SONGS}
    write(folder / "PDMX", {"PDMX.csv": "\n".join(rows) + "\n"} | music | notes)

    lines = [caption(f"{n}f", caption=CAPTION, test_set=n > 5) for n in range(1, 10)]
    write(folder / "MidiCaps", {"train.json": "\n".join(lines) + "\n"})
    write(folder / "MidiCaps", {f"lmd_full/{n}/{n}f.mid": SONG for n in range(2, 10)})

    tunes = [{"control code": "S:2\n", "abc notation": TUNE}] * 3 + [{"control code": "", "abc notation": ""}]
    write(folder / "IrishMAN", {"train.json": json.dumps(tunes), "validation.json": json.dumps(tunes[:1])})

    sheets = [{"title": f"Song {n}", "artist": "Anon", "genre": "Jazz", "description": f"Words {n}."} for n in (1, 2)]
    scores = {f"Anon - {sheet['title']}.mxl": mxl() for sheet in sheets}
    write(folder / "WikiMT", {"wikimusictext.jsonl": "".join(json.dumps(sheet) + "\n" for sheet in sheets)} | scores)
    write(folder, {"EMOPIA_2.2.zip": zipped({f"EMOPIA_2.2/midis/{clip}.mid": MIDI for clip in CLIPS})})


def run_page(folder):
    """Run the page in a fresh clone. Returns {command: (exit status, what it printed)}."""
    sh, done = Shell(workspace(folder), ".", SERVER), {}
    for block in page():
        if block.why_not == "download":
            downloads(folder)
        elif block.language == "python":
            assert sh.python(block.text + TINY) == (0, "")
        else:
            for command, _ in block.commands():
                assert command not in done
                done[command] = sh.run(command.replace("--nproc_per_node=8", "--nproc_per_node=2"))
    return done


def pieces(log):
    """The numbers of pieces that a training reports."""
    return sum(map(int, re.search(r"pieces +(\d+) for training, (\d+) for evaluation", log).groups()))


def test_the_whole_way(tmp_path):
    done, data = run_page(tmp_path), tmp_path / "data"
    incomplete = {command.split()[2] for command, (status, _) in done.items() if status == 1}
    assert {status for status, _ in done.values()} == {0, 1}, [shown for status, shown in done.values() if status]
    assert incomplete == {"midicaps", "irishman"}  # where something of the set itself is missing

    def printed(words):
        [found] = [text for command, (_, text) in done.items() if words in command]
        return found

    # 5 of PDMX, one of them without a score; 4 of MidiCaps, and 4 to test with
    merged = [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()]
    paths = [path for record in merged for path in record["filepaths"]]
    folders = Counter(re.split(r"/\d|/lmd_full", path)[0] for path in paths)
    assert folders == {"pdmx/interleaved": 4, "pdmx/mtf": 5, "midicaps/mtf/train": 4} and len(merged) == 9
    assert all((data / path).stat().st_size for path in paths)
    assert [record["summary_en"] == CAPTION for record in merged] == [False] * 5 + [True] * 4
    assert all(record["summary_nen"]["summary"] for record in merged)

    m3, clamp2 = printed("train_m3.py"), printed("train_clamp2.py")
    assert pieces(m3) == 4 + 5 + 4 + 3 and pieces(clamp2) == 9  # three of the tunes are for training
    assert re.search("music encoder starts from .*weights_m3_public.pth", clamp2)
    weights = checkpoints.load_checkpoint(data / "weights_clamp2_public.pth")["model"]
    assert weights["music_proj.weight"].shape == (48, 64)
    assert (data / "loss.png").stat().st_size

    hits = re.findall(r"^ +\d +-?0\.\d+ +lmd_full/(\d)/\1f\.mtf", printed("search.py search"), re.MULTILINE)
    assert len(hits) == 3 and set(hits) < set("6789")  # of the test part
    measured = {name: json.loads((data / f"{name}.json").read_text())["queries"] for name in ("midicaps", "wikimt")}
    assert measured == {"midicaps": 4, "wikimt": 2}
    made_with = json.loads((data / "emopia/features.extraction.json").read_text())
    assert (made_with["weights"], made_with["KEEP_UNIT_LENGTH"]) == ("weights_clamp2_public.pth", False)
    probed = json.loads((data / "emopia.json").read_text())
    assert Counter(Path(clip["file"]).parent.name for clip in probed["predictions"]) == {"test": 6}
    assert probed["pieces"] == 1  # of five songs
