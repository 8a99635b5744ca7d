"""What process_data/README.md shows is what the scripts make."""

import re

import mtf
from helpers import ROOT, run
from interleaving import interleave
from xml_abc import abc_to_musicxml, musicxml_to_abc

FOLDER = ROOT / "process_data"
TEXT = (FOLDER / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def block(start: str) -> str:
    (found,) = [block for block in BLOCKS if block.startswith(start)]
    return found


def test_the_piece_in_all_forms():
    standard, interleaved = block("X:1\n"), block("%%score")
    assert interleave(standard) == [(interleaved, [])]
    for abc in (standard, interleaved):
        again, warnings = musicxml_to_abc(abc_to_musicxml(abc), "x.xml")
        assert interleave(again) == [(interleaved, [])] and not warnings
        if abc == standard:
            assert again.strip() == standard.strip()
    shown = block("ticks_per_beat").strip()
    assert mtf.midi_to_mtf(mtf.mtf_to_midi(shown), "m3_compatible")[0].startswith(shown)
    melody = [line.split()[3] for line in shown.splitlines() if line.startswith("note_on") and line.split()[2] == "0"]
    assert melody == ["60", "60", "67"] and "[V:1]C2 C2 G2" in interleaved


def test_every_script_is_named_and_knows_the_options_shown():
    scripts = {path.name for path in FOLDER.glob("*.py") if '__name__ == "__main__"' in path.read_text()}
    assert scripts == set(re.findall(r"^\| `(\w+\.py)`", TEXT, re.MULTILINE))
    commands = re.findall(r"python process_data/(\w+\.py) ((?:.|\\\n)*)", TEXT)
    assert {option for _, words in commands for option in re.findall(r"--\w+", words)} >= {"--shard", "--model"}
    for script in scripts:
        shown = {option for name, words in commands if name == script for option in re.findall(r"--\w+", words)}
        assert script in dict(commands), script
        help = run(FOLDER / script, "--help").stdout
        assert help and shown <= set(re.findall(r"--\w+", help)), script
