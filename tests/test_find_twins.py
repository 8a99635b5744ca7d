"""Twins: the command as a user runs it, what two melodies share by hand, notes and melody against other readers."""

import itertools
import json
import os
import random
import time
from collections import Counter

import numpy as np
import pytest
import symusic

import find_twins
import notes
import second_opinion
import twins
import xml_abc
from find_twins import Melody, Twins
from helpers import CODE, KIT, run_script

SCALE = (60, 62, 64, 65, 67, 69, 71, 72, 74, 76, 77, 79)


def tune(seed: int, count: int = 41) -> list[tuple[float, float, int]]:
    """A melody of chance: (onset, length, pitch)."""
    rng = random.Random(seed)
    lengths = rng.choices((0.5, 1.0, 1.5), k=count)
    onsets = [0.0, *itertools.accumulate(lengths)]
    return list(zip(onsets, lengths, rng.choices(SCALE, k=count), strict=False))


def melody(found: list[tuple[float, float, int]], name: str = "x") -> Melody:
    return Melody(name, "", np.array([pitch for *_, pitch in found]), np.diff([onset for onset, *_ in found]))


def write_midi(path, found) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(twins.midi(found))


# --- what two melodies share ------------------------------------------------------------------------------------------


def changed(found, *rows):
    return [(*note[:2], note[2] + (row in rows)) for row, note in enumerate(found)]


@pytest.mark.parametrize(
    "other, expected",
    [
        (tune(1), (1, 0, 1)),
        (twins.transposed(3)(tune(1)), (1, 3, 1)),
        (twins.slower(0.5)(tune(1)), (1, 0, 0.5)),
        (twins.transposed(12)(tune(1)), (1, 12, 1)),
        (tune(1)[:19] + twins.transposed(-12)(tune(1)[19:]), (1, -12, 1)),  # most notes are lower
        (changed(tune(1), 20), (38 / 40, 0, 1)),  # a note has two steps
        (changed(tune(1), 10, 15), (33 / 40, 0, 1)),  # three steps between them are no run
        (changed(tune(1), 10, 16), (36 / 40, 0, 1)),  # four are
        (tune(1)[:20], (1, 0, 1)),  # of the shorter one
        (tune(1) + [(100 + onset, length, pitch) for onset, length, pitch in tune(1)], (1, 0, 1)),
        ([(onset * (1 if row < 20 else 1.6), 0, pitch) for row, (onset, _, pitch) in enumerate(tune(1))], None),
    ],
)
def test_what_two_melodies_share(other, expected):
    first, second = melody(tune(1)), melody(other)
    if expected is None:  # 19 steps are as long, 20 are 1.6 times as long, and one is neither
        assert find_twins.compare(first, second)[0] == 20 / 40
        return
    assert find_twins.compare(first, second) == pytest.approx(expected)
    shared, semitones, factor = find_twins.compare(second, first)
    assert (shared, -semitones, 1 / factor) == pytest.approx(expected)


def test_other_rhythm_is_another_tune():
    """The same pitches, each of another length; within a dot, it is the same."""
    rng = random.Random(0)
    first = melody(tune(1))
    lengths = first.lengths * np.array([rng.choice((0.25, 0.5, 1, 2, 4)) for _ in first.lengths])
    assert find_twins.compare(first, Melody("", "", first.pitches, lengths))[0] < 0.4
    lengths = first.lengths * np.array([rng.uniform(0.9, 1.2) for _ in first.lengths])
    assert find_twins.compare(first, Melody("", "", first.pitches, lengths))[0] == 1


def test_thousands_of_repeated_notes_cost_no_time():
    """A run that is common is matched beside others, or at the beginning."""
    repeated = [(row, 1, 60) for row in range(4000)]
    with_ends = melody(tune(1) + [(onset + 100, length, pitch) for onset, length, pitch in repeated])
    began = time.process_time()
    assert find_twins.compare(with_ends, with_ends) == (1, 0, 1)
    assert find_twins.compare(melody(repeated), melody(repeated)) == (1, 0, 1)
    assert time.process_time() - began < 1


def runs_of_eight(found) -> set:
    intervals = [(b[2] - a[2]) % 12 for a, b in itertools.pairwise(found)]
    return {tuple(intervals[row : row + 8]) for row in range(len(intervals) - 7)}


@pytest.mark.parametrize("others", [0, 6, 9])
def test_candidates_are_those_that_share_a_tenth_of_their_runs(others, monkeypatch):
    monkeypatch.setattr(find_twins, "CHUNK", 5)
    tunes = [tune(seed) for seed in range(12)]
    for seed in range(12):  # parts of one in another, of all lengths about the limit
        tunes[seed] = tunes[seed][: 30 - seed] + tunes[(seed + 5) % 12][: 8 + seed]
    runs = [runs_of_eight(found) for found in tunes]
    all_pairs = {
        (a, b)
        for a, b in itertools.combinations(range(12), 2)
        if len(runs[a] & runs[b]) >= 0.1 * min(len(runs[a]), len(runs[b]))
    }
    wanted = {(a, b) for a, b in all_pairs if not others or a < others <= b}
    if others:  # some are within one collection: the second, the first
        assert others <= max(a for a, _ in all_pairs) or min(b for _, b in all_pairs) < others
    found = list(find_twins.candidates([melody(found) for found in tunes], others))
    assert len(wanted) > 2
    assert sorted(found) == sorted(wanted)


def test_what_is_kept():
    """A chain: 0 and 2 are no twins, so both are kept; 3 has two twins that are kept, and names the better one."""
    melodies = [melody(tune(row, count), str(row)) for row, count in enumerate((60, 50, 55, 40, 41))]
    pairs = [Twins(0, 1, 0.6, 1, 1.0), Twins(1, 2, 0.7, 0, 1.0), Twins(2, 3, 0.8, 5, 2.0), Twins(0, 3, 0.5, 0, 1.0)]
    [group] = find_twins.groups_of(melodies, pairs)
    assert [piece["name"] for piece in group["keep"]] == ["0", "2"]
    assert [(p["name"], p["twin"], p["semitones"], p["note_values"]) for p in group["drop"]] == [
        ("1", "2", 0, 1),
        ("3", "2", 5, 2),
    ]
    [group] = find_twins.groups_of(melodies, [Twins(3, 4, 0.9, 7, 4.0)])
    assert [piece["name"] for piece in group["keep"]] == ["4"]
    assert (group["drop"][0]["semitones"], group["drop"][0]["note_values"]) == (-7, 0.25)


# --- notes and melody -------------------------------------------------------------------------------------------------


def test_melody():
    found = [
        (0.0, 1.0, 60), (0.0, 1.0, 72), (0.0, 4.0, 40),  # a chord and a long bass
        (1.0, 2.0, 52), (1.05, 2.1, 76),  # a chord comes apart; its upper note is held too long
        (2.0, 3.0, 71),
        (3.0, 4.0, 74), (3.01, 4.0, 74),  # in unison
        (4.0, 6.0, 80), (5.0, 5.5, 70),  # something below
        (6.0, 6.0625, 79), (6.0625, 6.125, 77), (6.125, 7.0, 81),  # quick
    ]  # fmt: skip
    pitches, lengths = notes.melody_of([(start, end, 0, pitch) for start, end, pitch in found])
    assert pitches.tolist() == [72, 76, 71, 74, 80, 79, 77, 81]
    assert lengths.tolist() == pytest.approx([1.05, 0.95, 1, 1, 2, 0.0625, 0.0625])


def grid(found) -> Counter:
    first = min(start for start, *_ in found)
    return Counter((round((a - first) * 16), round((b - a) * 16), pitch) for a, b, _, pitch in found)


TIES = """X:1
T:Ties, a triplet, a grace note, a chord that is tied, an overlay and a second voice
M:4/4
L:1/8
K:D
V:1
A2-A2 (3fga {b}e2 | [DF]2-[DF]2 d4- & A8 | d2-d2 B4 |]
V:2
D,8 | F,4-F,4 | F,4 D,4 |]
"""


@pytest.mark.parametrize("abc", [TIES, (KIT / "abc" / "octet.abc").read_text()], ids=["ties", "octet"])
def test_notes_of_abc_and_musicxml(abc, tmp_path):
    xml = xml_abc.abc_to_musicxml(abc)
    other = second_opinion.tied(second_opinion.xml_notes(xml))
    (tmp_path / "a.musicxml").write_bytes(xml)
    (tmp_path / "a.abc").write_text(abc)
    for path in (tmp_path / "a.musicxml", tmp_path / "a.abc"):
        [(title, found, error)] = notes.read(path)
        assert not error and title
        assert grid(found) == other


@pytest.mark.parametrize("name", ["plain", "two_tracks"])
def test_notes_of_midi_and_mtf(name):
    score = symusic.Score.from_midi((KIT / "midi" / f"{name}.mid").read_bytes())
    ticks = score.ticks_per_quarter
    other = [(n.time / ticks, n.end / ticks, 0, n.pitch) for t in score.tracks if not t.is_drum for n in t.notes]
    for path in (KIT / "midi" / f"{name}.mid", KIT / "mtf" / f"{name}.mtf"):
        [(_, found, error)] = notes.read(path)
        assert not error
        assert grid(found) == grid(other)


def test_drums_and_smpte_time(tmp_path):
    lines = ["ticks_per_beat -6120", "note_on 0 0 60 64", "note_on 0 9 90 64", "note_off 1000 0 60 0"]
    (tmp_path / "a.mtf").write_text("\n".join([*lines, "note_off 0 9 90 0", "end_of_track 0"]))
    [(_, found, _)] = notes.read(tmp_path / "a.mtf")
    assert found == [(0, 1000 / 288, 0, 60)]  # 576 ticks a second


# --- the command ------------------------------------------------------------------------------------------------------


def test_duplicates_of_a_collection(tmp_path):
    """Names, evidence, what to drop and what was left out, by the real script: its workers must find their function."""
    music = tmp_path / "music"
    jig = (KIT / "abc" / "solo_jig.abc").read_text()
    sounding = [(a / 16, b / 16, pitch) for (a, b, pitch), _ in second_opinion.abc_notes(jig).items()]
    write_midi(music / "up.mid", twins.transposed(5)(twins.slower(2)(sounding)))
    write_midi(music / "short.mid", tune(1, 15))
    others = [(KIT / "abc" / f"solo_{name}.abc").read_text() for name in ("reel", "waltz")]
    (music / "book.abc").write_text("\n\n".join([jig, *others, "X:9\nT:Nothing\nK:C\n"]))
    (music / "sub").mkdir()
    (music / "sub" / "half.musicxml").write_bytes(xml_abc.abc_to_musicxml(jig.replace("T:", "T:Not ")))
    (music / "broken.mid").write_bytes(b"MThd")
    (music / "cover.pdf").touch()
    out, drop = tmp_path / "twins.json", tmp_path / "drop.txt"
    done = run_script(CODE / "find_twins.py", "music", "--json", out, "--drop", drop, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    result = json.loads(out.read_text())
    [group] = result["groups"]
    assert [piece["name"] for piece in group["keep"]] == ["music/book.abc#1"]
    dropped = {piece["name"]: piece for piece in group["drop"]}
    assert drop.read_text().splitlines() == sorted(dropped) == ["music/sub/half.musicxml", "music/up.mid"]
    up = dropped["music/up.mid"]
    assert (up["twin"], up["semitones"], up["note_values"], up["shared"]) == ("music/book.abc#1", 5, 2, 1)
    assert len(result["twins"]) == 3
    assert "drop  music/up.mid" in done.stdout
    assert "100% shared with music/book.abc#1, 5 semitones up, note values x 2" in done.stdout
    assert "5 pieces of music compared: pairs of twins: 3, groups: 1, to drop: 2" in done.stdout
    assert [line.split(":")[0] for line in result["skipped"]["music"]] == [
        "music/book.abc#4",
        "music/broken.mid",
        "music/short.mid",
    ]
    assert "its melody has 15 notes" in done.stderr
    assert "1 file of other types" in done.stderr


def test_training_data_in_a_test_set(tmp_path, capsys):
    """Only pairs between the two count; those of the other folder are kept, though they are shorter."""
    for name, found in {"a": tune(1), "b": tune(2), "c": tune(3)}.items():
        write_midi(tmp_path / "train" / f"{name}.mid", found)
    write_midi(tmp_path / "train" / "a_again.mid", twins.transposed(-2)(tune(1)))
    write_midi(tmp_path / "train" / "c_again.mid", tune(3))
    write_midi(tmp_path / "test" / "a.mid", tune(1)[:30])
    write_midi(tmp_path / "test" / "d.mid", tune(4))
    out = tmp_path / "out.json"
    train, test = tmp_path / "train", tmp_path / "test"
    assert find_twins.main([str(train), "--other", str(test), "--json", str(out)]) == 0
    [group] = json.loads(out.read_text())["groups"]
    assert [piece["name"] for piece in group["keep"]] == [str(test / "a.mid")]
    assert {(piece["name"], piece["twin"], piece["semitones"]) for piece in group["drop"]} == {
        (str(train / "a.mid"), str(test / "a.mid"), 0),
        (str(train / "a_again.mid"), str(test / "a.mid"), -2),
    }
    assert f"5 pieces of {train} compared with 2 of {test}" in capsys.readouterr().out


def test_names_to_drop_are_those_on_the_disk(tmp_path):
    """One a line, in the bytes of the file system."""
    for name in (b"a.mid", b"caf\xe9.mid", b"two\nlines.mid"):
        write_midi(tmp_path / "m" / os.fsdecode(name), tune(1))
    assert find_twins.main([str(tmp_path / "m"), "--drop", str(tmp_path / "drop.txt")]) == 0
    folder = os.fsencode(tmp_path / "m")
    assert (tmp_path / "drop.txt").read_bytes() == folder + b"/caf\xe9.mid\n" + folder + b"/two\\nlines.mid\n"


def test_a_threshold_of_ones_own(tmp_path):
    write_midi(tmp_path / "m" / "a.mid", tune(1))
    write_midi(tmp_path / "m" / "b.mid", tune(1)[:21] + tune(2)[21:])
    for threshold, groups in (("0.45", 1), ("0.6", 0)):
        assert find_twins.main([str(tmp_path / "m"), "--shared", threshold, "--json", str(tmp_path / "out")]) == 0
        assert len(json.loads((tmp_path / "out").read_text())["groups"]) == groups


@pytest.mark.parametrize(
    "case, problem",
    [
        ("empty", "there is no music in it"),
        ("features", "1 file of other types; features hold no notes"),
        ("single", "holds one piece that can be used"),
        ("short", "of its 1 file, none can be used; the first: "),
        ("missing", "no such file or folder"),
    ],
)
def test_errors(case, problem, tmp_path, capsys):
    folder = tmp_path / "m"
    if case != "missing":
        folder.mkdir()
    if case in ("single", "short"):
        write_midi(folder / "a.mid", tune(1, 15 if case == "short" else 16))
    if case == "features":
        np.save(folder / "a.npy", np.ones((1, 4), np.float32))
    assert find_twins.main([str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {folder}") and problem in error


@pytest.mark.parametrize("other", ["m", "m/part", "."])
def test_a_folder_is_not_compared_with_itself(other, tmp_path, capsys):
    write_midi(tmp_path / "m" / "part" / "a.mid", tune(1))
    assert find_twins.main([str(tmp_path / "m"), "--other", str(tmp_path / other)]) == 2
    assert "one holds the other" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0", "1.1", "half", "nan"])
def test_a_threshold_that_is_none(text, tmp_path):
    with pytest.raises(SystemExit):
        find_twins.main([str(tmp_path), "--shared", text])
