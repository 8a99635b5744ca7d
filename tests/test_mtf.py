"""MIDI -> MTF against mido and golden values, damaged files, and the scripts."""

import argparse
import hashlib
import io
import json
import struct
import subprocess
import sys
from collections import Counter
from itertools import accumulate
from pathlib import Path

import mido
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import batch_midi2mtf
import mtf
from files import InputError
from helpers import KIT, ROOT, SHARED, count_calls

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the collection of scores beside the repository")
MIDI_FILES = sorted((KIT / "midi").glob("*.mid"))
TEXTS = ["text", "copyright", "track_name", "instrument_name", "lyrics", "marker", "cue_marker", "device_name"]
LEFT_OUT = [*TEXTS, "sequencer_specific", "sysex"]
NUMBERS = ["sequence_number", "channel_prefix", "midi_port", "set_tempo", "smpte_offset", "time_signature"]
LOST = (
    "{} ticks before text and system exclusive messages left out with them; batch_midi2mtf.py --carry_delta keeps them"
)
DIVISIONS = {
    "ticks_per_beat 0: its ticks are no part of a beat": 0,
    "ticks_per_beat -6360 is SMPTE time, 25 frames a second of 40 ticks: its ticks are no part of a beat": -6360,
}
METAS = [*TEXTS, *NUMBERS, "key_signature", "end_of_track", "sequencer_specific", "unknown_meta"]


def shared_files(step: int) -> list[Path]:
    return sorted(path for path in (SHARED / "data").rglob("*") if path.suffix in (".mid", ".midi"))[::step]


def messages_of(data: bytes) -> list:
    return list(mido.MidiFile(file=io.BytesIO(data)).merged_track)


def mido_mtf(data: bytes, everything: bool = False) -> str:
    """MTF by its definition, with mido. Raises whatever mido raises."""
    file = mido.MidiFile(file=io.BytesIO(data))
    lines = [f"ticks_per_beat {file.ticks_per_beat}"]
    for message in file.merged_track:
        if everything or message.type not in LEFT_OUT:
            lines.append(" ".join(str(value) for value in message.dict().values()).encode("unicode_escape").decode())
    return "\n".join(lines)


def warnings_of(data: bytes, everything: bool = False) -> list[str]:
    """Those of a sound file, with mido: the ticks that its messages left out have, and a division that is no beat's."""
    file = mido.MidiFile(file=io.BytesIO(data))
    lost = 0 if everything else sum(message.time for message in file.merged_track if message.type in LEFT_OUT)
    said = [LOST.format(lost)] if lost else []
    return said + [text for text, ticks in DIVISIONS.items() if ticks == file.ticks_per_beat]


def times(text: str) -> list[tuple[int, str]]:
    """Absolute time of every line but the first, and the line without its time."""
    entries = []
    for line in text.split("\n")[1:]:
        kind, *values = line.split(" ")
        at = -1 if kind in METAS else 0
        entries.append((int(values.pop(at)), " ".join([kind, *values])))
    return list(zip(accumulate(time for time, _ in entries), (rest for _, rest in entries), strict=True))


# -- golden values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", MIDI_FILES, ids=lambda path: path.stem)
def test_kit(path):
    data = path.read_bytes()
    for mode, folder in (("m3_compatible", "mtf"), ("all_messages", "mtf_all")):
        text, warnings = mtf.midi_to_mtf(data, mode)
        assert text == (KIT / folder / f"{path.stem}.mtf").read_text()
        assert warnings == (warnings_of(data) if folder == "mtf" else [])
    assert mtf.midi_to_mtf(data) == mtf.midi_to_mtf(data, "m3_compatible")


@needs_shared
def test_golden_digests():
    golden = json.loads((SHARED / "golden" / "mtf.json").read_text())
    assert len(golden) == 200
    for name, expected in golden.items():
        text, warnings = mtf.midi_to_mtf((SHARED / "data" / name).read_bytes())
        assert all("--carry_delta" in said for said in warnings)
        assert {"lines": text.count("\n") + 1, "sha256": hashlib.sha256(text.encode()).hexdigest()} == expected, name


@needs_shared
def test_every_80th_real_file_is_read_as_mido_does():
    for path in shared_files(80):
        data = path.read_bytes()
        assert mtf.midi_to_mtf(data) == (mido_mtf(data), warnings_of(data)), path
        assert mtf.midi_to_mtf(data, "all_messages")[0] == mido_mtf(data, everything=True), path


# -- generated files ------------------------------------------------------------------------------------------------


def length(number: int) -> bytes:
    """A variable-length quantity."""
    data = [number & 127]
    while number := number >> 7:
        data.insert(0, number & 127 | 128)
    return bytes(data)


def meta(kind: int, data: bytes) -> bytes:
    return bytes([0xFF, kind]) + length(len(data)) + data


def chunk(name: bytes, data: bytes, size: int | None = None) -> bytes:
    return name + struct.pack(">L", len(data) if size is None else size) + data


def midi(*tracks: bytes, kind: int = 1, ticks: int = 96, count: int | None = None) -> bytes:
    header = struct.pack(">hhh", kind, len(tracks) if count is None else count, ticks)
    return chunk(b"MThd", header) + b"".join(chunk(b"MTrk", track) for track in tracks)


def rmi(data: bytes, *more: bytes) -> bytes:
    """A MIDI file in a RIFF file, which may hold other chunks before and behind it."""
    chunks = [name + struct.pack("<L", len(content)) + content + bytes(len(content) % 2) for name, content in
              [*((b"DISP", content) for content in more), (b"data", data), *((b"LIST", content) for content in more)]]  # fmt: skip
    return b"RIFF" + struct.pack("<L", 4 + sum(map(len, chunks))) + b"RMID" + b"".join(chunks)


byte = st.integers(0, 255)
value = st.integers(0, 127)
exact = [exponent for exponent in range(256) if exponent not in (29, 31)]  # what else mido refuses is filtered below
CHANNEL_SIZES = {0x80: 2, 0x90: 2, 0xA0: 2, 0xB0: 2, 0xC0: 1, 0xD0: 1, 0xE0: 2}
SYSTEM_SIZES = {0xF1: 1, 0xF2: 2, 0xF3: 1, 0xF6: 0, 0xF8: 0, 0xFA: 0, 0xFB: 0, 0xFC: 0, 0xFE: 0}


def data_bytes(size: int):
    return st.lists(value, min_size=size, max_size=size).map(bytes)


channel_messages = st.sampled_from(sorted(CHANNEL_SIZES)).flatmap(
    lambda kind: st.tuples(
        st.integers(0, 15).map(lambda channel: bytes([kind | channel])), data_bytes(CHANNEL_SIZES[kind])
    )
)
system_messages = st.sampled_from(sorted(SYSTEM_SIZES)).flatmap(
    lambda kind: st.tuples(st.just(bytes([kind])), data_bytes(SYSTEM_SIZES[kind]))
)
sysex = st.tuples(
    st.sampled_from([b"\xf0", b"\xf7"]),
    st.builds(
        lambda start, data, end: length(len(start + data + end)) + start + data + end,
        st.sampled_from([b"", b"\xf0"]),
        st.lists(value, max_size=5).map(bytes),
        st.sampled_from([b"", b"\xf7"]),
    ),
)
known_metas = st.one_of(
    st.tuples(st.sampled_from([*range(1, 8), 9, 0x7F]), st.binary(max_size=12)),
    st.tuples(st.just(0x00), st.sampled_from([b"", b"\x01\x02", b"\xff\xff\xff"])),
    st.tuples(st.just(0x20), st.binary(min_size=1, max_size=2)),
    st.tuples(st.just(0x21), st.binary(max_size=2)),
    st.tuples(st.just(0x51), st.binary(min_size=3, max_size=4)),
    st.tuples(
        st.just(0x54),
        st.builds(lambda *parts: bytes(parts), value, st.integers(0, 59), st.integers(0, 59), byte, st.integers(0, 99)),
    ),
    st.tuples(st.just(0x58), st.builds(lambda *parts: bytes(parts), byte, st.sampled_from(exact[:20]), byte, byte)),
    st.tuples(
        st.just(0x59),
        st.builds(lambda *parts: bytes(parts), st.integers(-7, 7).map(lambda n: n % 256), st.integers(0, 1)),
    ),
    st.tuples(st.just(0x2F), st.just(b"")),
).map(lambda pair: (b"\xff", meta(*pair)[1:]))
unknown_metas = st.tuples(st.sampled_from([8, 10, 0x22, 0x60, 0x80, 0xFF]), st.binary(max_size=3)).map(
    lambda pair: (b"\xff", meta(*pair)[1:])
)
deltas = st.one_of(st.just(0), st.integers(0, 500), st.sampled_from([127, 128, 16383, 16384, 2**28 - 1, 2**40]))


@st.composite
def tracks(draw, events):
    """A track chunk's content, with running status wherever it may stand and is drawn."""
    content, running = b"", b""
    for status, data in draw(st.lists(events, max_size=15)):
        content += length(draw(deltas))
        if not (status == running and draw(st.booleans())):
            content += status
        content += data
        if status != b"\xff":  # by mido, metas leave it, and so does everything else
            running = status if 0x80 <= status[0] < 0xF0 else b""
    return content


@st.composite
def midi_files(draw, events):
    content = draw(st.lists(tracks(events), max_size=4))
    return midi(
        *content, kind=draw(st.sampled_from([0, 1, 3])), ticks=draw(st.sampled_from([96, 480, 0, -6360, 32767]))
    )


all_events = st.one_of(channel_messages, channel_messages, system_messages, sysex, known_metas)
quick = settings(max_examples=100, deadline=None)


@quick
@given(midi_files(all_events | unknown_metas))
def test_generated_files_are_read_as_mido_does(data):
    text, warnings = mtf.midi_to_mtf(data)
    assert text == mido_mtf(data)
    assert [said for said in warnings if "ticks before unknown meta messages" not in said] == warnings_of(data)


@quick
@given(midi_files(all_events | unknown_metas))
def test_generated_files_with_all_messages(data):
    # mido forgets the time of a meta message that it does not know; with --all_messages, ours may not.
    build = mido.midifiles.midifiles.build_meta_message

    def build_with_time(kind, content, delta=0):
        message = build(kind, content, delta)
        message.time = delta
        return message

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mido.midifiles.midifiles, "build_meta_message", build_with_time)
        expected = mido_mtf(data, everything=True)
    text, warnings = mtf.midi_to_mtf(data, "all_messages")
    division = warnings_of(data, everything=True)
    assert (text, warnings) == (expected, division)

    # And with --carry_delta, what is left in is when it was.
    carried, warnings = mtf.midi_to_mtf(data, "carry_delta")
    kept = [entry for entry in times(text) if entry[1].split(" ")[0] not in LEFT_OUT]
    assert (times(carried), warnings) == (kept, division)

    # The text comes back from MIDI.
    assert mtf.midi_to_mtf(mtf.mtf_to_midi(text), "all_messages") == (text, division)
    assert mtf.midi_to_mtf(mtf.mtf_to_midi(carried), "all_messages") == (carried, division)


def test_an_unknown_meta_message_is_reported_where_its_time_is_forgotten():
    data = midi(b"\x05\xff\x60\x01\x07" + b"\x03\x90\x3c\x40")
    assert mtf.midi_to_mtf(data) == (
        "ticks_per_beat 96\nunknown_meta 96 (7,) 0\nnote_on 3 0 60 64\nend_of_track 0",
        ["track 1: 5 ticks before unknown meta messages left out; batch_midi2mtf.py --carry_delta keeps them"],
    )
    assert mtf.midi_to_mtf(data, "all_messages")[0].split("\n")[1] == "unknown_meta 96 (7,) 5"
    assert mtf.midi_to_mtf(data, "carry_delta")[0].split("\n")[1] == "unknown_meta 96 (7,) 5"


# -- damaged files --------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    midi_files(all_events) | st.sampled_from([path.read_bytes()[:600] for path in MIDI_FILES]),
    st.lists(st.tuples(st.integers(0, 2000), st.sampled_from(["set", "insert", "delete", "cut"]), byte), max_size=6),
)
def test_altered_bytes(data, edits):
    """Whatever mido can still read, ours reads alike; what it cannot, ours reads, and says so."""
    altered = bytearray(data)
    for position, what, new in edits:
        position = position % (len(altered) + 1)
        if what == "cut":
            del altered[max(position, 40) :]
        elif what == "insert":
            altered.insert(position, new)
        elif position < len(altered):
            altered[position : position + 1] = bytes([new]) if what == "set" else b""
    try:
        expected = mido_mtf(bytes(altered), everything=True)
    except Exception:  # noqa: BLE001 - mido raises what it happens to
        expected = None
    try:
        text, repairs = mtf.midi_to_mtf(bytes(altered), "all_messages")
    except ValueError as error:
        assert expected is None
        assert str(error) in ("not a MIDI file: it has no header chunk (MThd)", "no track in it")
        return
    if expected is None:
        assert repairs
        # What was made of it is sound.
        assert mtf.midi_to_mtf(mtf.mtf_to_midi(text), "all_messages")[0] == text
    else:
        forgotten = "unknown_meta" in expected
        assert forgotten or text == expected


NOTES = b"\x00\xc0\x05" + b"\x00\x90\x3c\x40" + b"\x60\x3c\x00"
END = b"\x00\xff\x2f\x00"
TRACK = NOTES + END
LINES = ["program_change 0 0 5", "note_on 0 0 60 64", "note_on 96 0 60 0", "end_of_track 0"]
PADDING = b"\x00\xff\x01\x05tunes"  # a text, so that a track is longer than a header

DAMAGES = {
    "RMID": (
        b"RIFF" + struct.pack("<L", 400) + b"RMIDdata" + struct.pack("<L", 60) + midi(TRACK) + b"LIST\x04\0\0\0INFO",
        LINES,
        ["RIFF file unwrapped", "12 bytes after the last track left out"],
    ),
    "junk before the header": (b"\0" * 128 + midi(TRACK), LINES, ["128 bytes before the header skipped"]),
    "key signature of 8 sharps": (
        midi(b"\x07" + meta(0x59, b"\x08\x00") + TRACK),
        ["program_change 7 0 5", *LINES[1:]],
        ["track 1: key_signature that says nothing valid left out"],
    ),
    "key signature of mode 2, twice": (
        midi(2 * (b"\x07" + meta(0x59, b"\x00\x02")) + TRACK),
        ["program_change 14 0 5", *LINES[1:]],
        ["track 1: key_signature that says nothing valid left out (2 times)"],
    ),
    "short tempo": (
        midi(b"\x01" + meta(0x51, b"\x07\xa1") + TRACK),
        ["program_change 1 0 5", *LINES[1:]],
        ["track 1: set_tempo that says nothing valid left out"],
    ),
    "short time signature": (
        midi(b"\x01" + meta(0x58, b"\x04\x02\x18") + TRACK),
        ["program_change 1 0 5", *LINES[1:]],
        ["track 1: time_signature that says nothing valid left out"],
    ),
    "short SMPTE offset": (
        midi(b"\x01" + meta(0x54, b"\x00") + TRACK),
        ["program_change 1 0 5", *LINES[1:]],
        ["track 1: smpte_offset that says nothing valid left out"],
    ),
    "impossible SMPTE offset": (
        midi(b"\x01" + meta(0x54, b"\x00\x3c\x00\x00\x00") + TRACK),
        ["program_change 1 0 5", *LINES[1:]],
        ["track 1: smpte_offset that says nothing valid left out"],
    ),
    "empty channel prefix": (
        midi(b"\x01" + meta(0x20, b"") + TRACK),
        ["program_change 1 0 5", *LINES[1:]],
        ["track 1: channel_prefix that says nothing valid left out"],
    ),
    "unknown chunk": (
        midi(count=1) + chunk(b"XFIH", b"abc") + chunk(b"MTrk", TRACK),
        LINES,
        ["unknown chunk XFIH skipped"],
    ),
    "unknown chunk between tracks": (
        midi(TRACK, count=2) + chunk(b"XFKM", b"\0" * 9) + chunk(b"MTrk", TRACK),
        [*LINES[:2], *LINES[:3], "note_on 0 0 60 0", LINES[3]],
        ["unknown chunk XFKM skipped"],
    ),
    "garbage between tracks": (
        midi(count=1) + b"\x00\x01\x02" + chunk(b"MTrk", TRACK),
        LINES,
        ["3 bytes that belong to no chunk skipped"],
    ),
    "fewer tracks than declared": (midi(TRACK, count=5), LINES, ["1 tracks found, where the header says 5"]),
    "longer header": (
        chunk(b"MThd", struct.pack(">hhh", 2, 1, 96) + b"more") + chunk(b"MTrk", TRACK),
        LINES,
        ["type 2 (independent tracks) read as type 1: all tracks start together"],
    ),
    "header without its length": (
        midi(TRACK).replace(b"MThd\0\0\0\6", b"MThd\0\0\0\0"),
        LINES,
        ["header length of 0 bytes taken for 6"],
    ),
    "track without its length": (
        midi(count=2) + chunk(b"MTrk", PADDING + TRACK, size=0) + chunk(b"MTrk", END),
        LINES,
        [f"track 1: {len(PADDING + TRACK)} bytes, where its length says 0"],
    ),
    "track shorter than it is": (
        midi(count=2) + chunk(b"MTrk", PADDING + TRACK, size=12) + chunk(b"MTrk", END),
        LINES,
        [f"track 1: {len(PADDING + TRACK)} bytes, where its length says 12"],
    ),
    "track longer than it is": (
        midi(count=2) + chunk(b"MTrk", PADDING + TRACK, size=40) + chunk(b"MTrk", END),
        LINES,
        [f"track 1: {len(PADDING + TRACK)} bytes, where its length says 40"],
    ),
    "type 2": (
        midi(TRACK, kind=2),
        LINES,
        ["type 2 (independent tracks) read as type 1: all tracks start together"],
    ),
    "truncated in a message": (
        midi(NOTES + b"\x05\x3c" + END)[: -len(END)],
        [*LINES[:3], "end_of_track 5"],
        ["track 1: 12 bytes, where its length says 16", "track 1: ends in the middle of a message"],
    ),
    "truncated in a time": (
        midi(NOTES + b"\x85\x05" + END)[: -len(END) - 1],
        LINES,
        ["track 1: 11 bytes, where its length says 16", "track 1: ends in the middle of a message"],
    ),
    "running status cut off by a system exclusive message": (
        midi(b"\x00\xf0\x02\x01\xf7".join([b"\x00\x90\x3c\x40", b"\x60\x3c\x7f" + b"\x00\xc0\x05" + END])),
        [LINES[1], "note_on 96 0 60 127", "program_change 0 0 5", LINES[3]],
        ["track 1: running status after a system message taken for the status before that"],
    ),
    "running status cut off at the start": (
        midi(b"\x00\x3c\x40" + TRACK),
        LINES,
        ["track 1: bytes before the first status byte skipped"],
    ),
    "data byte over 127": (
        midi(b"\x00\xb0\x07\xff" + TRACK),
        ["control_change 0 0 7 127", *LINES],
        ["track 1: data byte over 127 lowered to 127"],
    ),
    "program over 127": (
        midi(b"\x00\xc1\x80" + TRACK),
        ["program_change 0 1 127", *LINES],
        ["track 1: data byte over 127 lowered to 127"],
    ),
    "undefined status": (
        midi(b"\x09\xf4" + TRACK),
        ["program_change 9 0 5", *LINES[1:]],
        ["track 1: undefined status 0xf4 skipped"],
    ),
    "system exclusive message without its length": (
        midi(b"\x00\xf0\x7e\x7f\x09\x01\xf7" + TRACK),
        LINES,
        ["track 1: sysex without its length, read up to its end byte"],
    ),
    "system exclusive message with high bytes": (
        midi(b"\x04\xf0\x04\x01\x80\x02\xf7" + TRACK),
        LINES,
        ["track 1: sysex data over 127 left out", LOST.format(4)],
    ),
    "bytes after the end": (midi(TRACK + b"\xff\xff\xff"), LINES, ["track 1: bytes after its end skipped"]),
    "text that goes on after the end": (
        midi(TRACK[:-4] + b"\x00\xff\x01\x7fshort"),
        LINES,
        ["track 1: ends in the middle of a message"],
    ),
    "a long message": (
        midi(b"\x00\xff\x01" + length(1_000_001) + bytes(1_000_001) + TRACK),
        LINES,
        ["track 1: message of over 1,000,000 bytes read"],
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage(name):
    data, lines, repairs = DAMAGES[name]
    with pytest.raises(Exception):  # noqa: B017 - of any type: the case is one where mido gives up
        mido_mtf(data)
    assert mtf.midi_to_mtf(data) == ("\n".join(["ticks_per_beat 96", *lines]), repairs)


def test_damage_in_one_track_leaves_the_others():
    clean = mtf.midi_to_mtf(midi(TRACK, NOTES, TRACK))[0]
    text, repairs = mtf.midi_to_mtf(midi(TRACK, NOTES + b"\x00\x90\x80", TRACK))
    assert text == clean
    assert repairs == ["track 2: ends in the middle of a message"]


def test_surplus_tracks_are_left_out_as_mido_does_but_said():
    data = midi(TRACK, TRACK, TRACK, count=1)
    assert mtf.midi_to_mtf(data) == (mido_mtf(data), ["2 more tracks than the header says left out"])


def test_truncated_anywhere():
    """Of any beginning of a file, those messages come that are whole in it."""
    data = (KIT / "midi" / "two_tracks.mid").read_bytes()
    whole = Counter(times(mtf.midi_to_mtf(data, "all_messages")[0]))
    before = 0
    for size in range(22, 900):
        text, repairs = mtf.midi_to_mtf(data[:size], "all_messages")
        found = times(text)[:-1]
        assert repairs and not Counter(found) - whole
        assert before <= len(found) <= before + 1
        before = len(found)
    assert before > 100


@pytest.mark.parametrize("data", [b"", b"MThd", b"<html>", midi(count=1)[:13], midi(count=3), midi(count=1) + b"MTr"])
def test_nothing_to_read(data):
    with pytest.raises(ValueError, match=r"not a MIDI file|no track"):
        mtf.midi_to_mtf(data)


@pytest.mark.parametrize("flag", ["--m3_compatible", "--all_messages", "--carry_delta"])
def test_a_file_without_a_note_fails_as_a_score_without_one_does(tmp_path, flag):
    (tmp_path / "silent.mid").write_bytes(midi(b"\x00\xc0\x05", ticks=0))  # a program change
    parser = argparse.ArgumentParser()
    batch_midi2mtf.add_arguments(parser)
    with pytest.raises(InputError, match=r"^no note in it; ticks_per_beat 0: "):
        batch_midi2mtf.convert(tmp_path / "silent.mid", parser.parse_args([flag]))


def test_a_mode_that_does_not_exist():
    with pytest.raises(ValueError, match="'all' is none of m3_compatible, all_messages, carry_delta"):
        mtf.midi_to_mtf(midi(TRACK), "all")


# -- speed, scripts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", MIDI_FILES, ids=lambda path: path.stem)
def test_the_work_is_an_eighth_of_mido_s(path):
    """Counted in calls, of which about four go to a message."""
    data = path.read_bytes()
    ours = count_calls(mtf.midi_to_mtf, data, "all_messages")
    assert ours < count_calls(mido_mtf, data, True) / 8
    assert ours < 6 * len(messages_of(data)) + 100


def script(name: str, *arguments: object, status: int = 0) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "process_data" / name, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == status, done.stderr
    return done


def test_scripts(tmp_path):
    source = tmp_path / "midi" / "sub"
    source.mkdir(parents=True)
    for path in MIDI_FILES[:2]:
        (source / path.name).write_bytes(path.read_bytes())
    (source / "MENDED.MIDI").write_bytes(DAMAGES["undefined status"][0])
    (source / "page.mid").write_text("<html>")
    (source / "sung.kar").write_bytes(midi(TRACK))
    (source / "wrapped.RMI").write_bytes(rmi(midi(TRACK)))
    for flag, kit, warned in ((), "mtf", 3), (("--all_messages",), "mtf_all", 1):
        done = script("batch_midi2mtf.py", tmp_path / "midi", tmp_path / "mtf", "--overwrite", *flag, status=1)
        counts = f"1 failed, {warned} with warnings, 0 other files ignored\n"
        assert done.stdout == f"5 done, 0 skipped (finished before), {counts}"
        for name in ("sung", "wrapped"):
            assert (tmp_path / "mtf" / "sub" / f"{name}.mtf").read_text() == "\n".join(["ticks_per_beat 96", *LINES])
        for path in MIDI_FILES[:2]:
            expected = (KIT / kit / f"{path.stem}.mtf").read_bytes()
            assert (tmp_path / "mtf" / "sub" / f"{path.stem}.mtf").read_bytes() == expected
    assert json.loads((tmp_path / "mtf" / "errors.jsonl").read_text()) == {
        "file": "sub/page.mid",
        "error": "not a MIDI file: it has no header chunk (MThd)",
    }
    assert json.loads((tmp_path / "mtf" / "warnings.jsonl").read_text()) == {
        "file": "sub/MENDED.MIDI",
        "warnings": DAMAGES["undefined status"][2],
    }
    single = MIDI_FILES[0]
    script("batch_midi2mtf.py", single, tmp_path / "carried", "--carry_delta")
    carried = (tmp_path / "carried" / f"{single.stem}.mtf").read_text()
    assert carried == mtf.midi_to_mtf(single.read_bytes(), "carry_delta")[0] != mtf.midi_to_mtf(single.read_bytes())[0]

    (tmp_path / "mtf" / "sub" / "broken.mtf").write_text("ticks_per_beat 480\nnote_on 1")
    (tmp_path / "mtf" / "sub" / "binary.mtf").write_bytes(b"ticks_per_beat \xff")
    script("batch_mtf2midi.py", tmp_path / "mtf", tmp_path / "back", status=1)
    assert [json.loads(line)["error"] for line in (tmp_path / "back" / "errors.jsonl").read_text().splitlines()] == [
        "not MTF, which is ASCII: byte 0xff",
        "line 2 ('note_on 1'): 1 values, where note_on has 4: time, channel, note, velocity",
    ]
    script("batch_midi2mtf.py", tmp_path / "back", tmp_path / "again", "--all_messages")
    for path in MIDI_FILES[:2]:
        expected = (KIT / "mtf_all" / f"{path.stem}.mtf").read_bytes()
        assert (tmp_path / "again" / "sub" / f"{path.stem}.mtf").read_bytes() == expected
    assert (
        "not allowed with" in script("batch_midi2mtf.py", "a", "b", "--all_messages", "--carry_delta", status=2).stderr
    )
