"""Running status, meta messages and limits of MIDI files: exhaustively against mido, and by hand where mido gives up."""

import struct
from itertools import product

import pytest

import mtf
from helpers import KIT
from test_mtf import CHANNEL_SIZES, LOST, SYSTEM_SIZES, chunk, length, meta, midi, mido_mtf, rmi, times

SYSTEM = {bytes([status]): data for status, size in SYSTEM_SIZES.items() for data in (b"\x22\x33"[:size],)}
SYSEX = {b"\xf0": b"\x03\x01\x02\xf7", b"\xf7": b"\x02\x01\x02"}
UNDEFINED = {bytes([status]): b"" for status in (0xF4, 0xF5, 0xF9, 0xFD)}
METAS = {b"\xff": b"\x01\x02hi", b"\xff\x51": b"\x03\x07\xa1\x20", b"\xff\x60": b"\x00", b"\xff\x2f": b"\x00"}
BETWEEN = {status + data for table in (SYSTEM, SYSEX, UNDEFINED, METAS) for status, data in table.items()}
# What may follow a time without a status byte: some of it fits one message, some another, some none.
DATA = [b"", b"\x05", b"\x3c\x40", b"\x3c\x00", b"\x3c\x01\x07", b"\x3c\x00\x07", b"\x3c\x02\x01\x02", b"\x01\xf7"]


def test_running_status_after_any_message_is_as_mido_reads_it():
    """Behind a meta message the status before it goes on, behind a system message that one does; else mido fails."""
    read = failed = 0
    channel_messages = [bytes([status]) + b"\x3c\x40"[:size] for status, size in CHANNEL_SIZES.items()]
    for first, between, data in product([b"", *channel_messages], sorted(BETWEEN), DATA):
        track = (b"\x00" + first if first else b"") + b"\x02" + between + b"\x03" + data + b"\x04\x91\x30\x31"
        file = midi(track)
        text, repairs = mtf.midi_to_mtf(file, "all_messages")
        try:
            expected = mido_mtf(file, everything=True)
        except Exception:  # noqa: BLE001 - mido raises what it happens to
            assert repairs, track.hex(" ")
            failed += 1
            continue
        read += 1
        if "unknown_meta" not in expected:  # mido forgets its time
            assert (text, repairs) == (expected, []), track.hex(" ")
        assert mtf.midi_to_mtf(file)[0] == mido_mtf(file), track.hex(" ")
    assert read > 200 and failed > 200


@pytest.mark.parametrize("system", [*SYSTEM, *SYSEX])
def test_running_status_after_a_system_message_in_a_damaged_track(system):
    """By the standard there is none; what comes can only be of the channel message before."""
    between = system + (SYSTEM | SYSEX)[system]
    damage = b"\x00\xf4" + b"\x00\xff\x2f\x00"  # an undefined status
    said = "track 1: running status after a system message taken for the status before that"
    undefined = "track 1: undefined status 0xf4 skipped"
    for first, name in (
        (b"\x00\x92\x3c\x40", "note_on {} 2 60 {}"),
        (b"\x00\xb1\x3c\x40", "control_change {} 1 60 {}"),
    ):
        track = first + b"\x05" + between + b"\x07\x3c\x00" + b"\x08\x3c\x41" + damage
        text, repairs = mtf.midi_to_mtf(midi(track), "all_messages")
        assert repairs == [said, undefined]
        lines = text.split("\n")
        assert len(lines) == 6 and lines[1] == name.format(0, 64)
        assert lines[3:5] == [name.format(7, 0), name.format(8, 65)]
        # Each time it comes it is counted; a status of its own is no repair.
        track = first + 2 * (b"\x05" + between + b"\x07\x3c\x00") + b"\x05" + between + b"\x07" + first[1:] + damage
        text, repairs = mtf.midi_to_mtf(midi(track), "all_messages")
        assert repairs == [f"{said} (2 times)", undefined]
        assert [line for line in text.split("\n") if line.startswith(name[:6])] == [
            name.format(0, 64), name.format(7, 0), name.format(7, 0), name.format(7, 64)
        ]  # fmt: skip
    # Without a channel message before, the bytes are of none.
    text, repairs = mtf.midi_to_mtf(midi(damage[:2] + b"\x05" + between + b"\x07\x3c\x00\x91\x30\x31"), "all_messages")
    assert repairs == [undefined, "track 1: bytes before the first status byte skipped"]
    assert text.split("\n")[2] == "note_on 7 1 48 49"


@pytest.mark.parametrize("between", sorted(status + data for status, data in METAS.items() if status != b"\xff\x2f"))
def test_running_status_after_a_meta_message_in_a_damaged_track(between):
    track = b"\x00\x92\x3c\x40" + b"\x05" + between + b"\x07\x3c\x00" + b"\x00\xf4" + b"\x00\xff\x2f\x00"
    text, repairs = mtf.midi_to_mtf(midi(track), "all_messages")
    assert repairs == ["track 1: undefined status 0xf4 skipped"]
    assert text.split("\n")[3] == "note_on 7 2 60 0"


def test_a_track_begins_without_status():
    text, repairs = mtf.midi_to_mtf(midi(b"\x00\x92\x3c\x40", b"\x00\x3c\x41\x92\x3c\x42"), "all_messages")
    assert text.split("\n")[1:3] == ["note_on 0 2 60 64", "note_on 0 2 60 66"]
    assert repairs == ["track 2: bytes before the first status byte skipped"]


@pytest.mark.parametrize(
    ("data", "values"), [(b"\x80\x40", "127 64"), (b"\x3c\x80", "60 127"), (b"\xff\xff", "127 127")]
)
@pytest.mark.parametrize("before", [b"", b"\x00\x91\x01\x02\x00\xff\x01\x00"])
def test_data_bytes_over_127(data, values, before):
    """Such a byte is lowered, and the messages behind it are read."""
    text, repairs = mtf.midi_to_mtf(midi(before + b"\x05\x92" + data + b"\x06\x3e\x41\x07\x95\x30\x31"))
    assert text.split("\n")[-4:] == [
        f"note_on 5 2 {values}",
        "note_on 6 2 62 65",
        "note_on 7 5 48 49",
        "end_of_track 0",
    ]
    assert repairs == ["track 1: data byte over 127 lowered to 127"]


@pytest.mark.parametrize("status", [b"\xf0", b"\xf7"])
@pytest.mark.parametrize("start", [b"", b"\xf0", b"\xf0\xf0", b"\xf7"])
@pytest.mark.parametrize("end", [b"", b"\xf7", b"\xf7\xf7", b"\xf0"])
def test_system_exclusive_messages(status, start, end):
    """One byte at the start and one at the end may be marks; the rest are data, of which 127 is the highest."""
    content = start + b"\x01\x7f\x02" + end
    file = midi(b"\x05" + status + length(len(content)) + content + b"\x03\x92\x3c\x40")
    text, repairs = mtf.midi_to_mtf(file, "all_messages")
    lines = ["ticks_per_beat 96", "sysex 5 [1, 127, 2]", "note_on 3 2 60 64", "end_of_track 0"]
    assert text == "\n".join(lines)
    sound = start in (b"", b"\xf0") and end in (b"", b"\xf7")
    assert repairs == ([] if sound else ["track 1: sysex data over 127 left out"])
    if sound:
        assert mido_mtf(file, everything=True) == text


def test_repairs_are_counted_once_however_often_a_track_is_read():
    unknown, broken = b"\x05\xff\x60\x00", b"\x00\xf4"
    forgotten = "5 ticks before unknown meta messages left out; batch_midi2mtf.py --carry_delta keeps them"
    _, repairs = mtf.midi_to_mtf(midi(unknown, unknown + broken, 2 * unknown))
    assert sorted(repairs) == [
        f"track 1: {forgotten}", f"track 2: {forgotten}", "track 2: undefined status 0xf4 skipped",
        f"track 3: {forgotten.replace('5', '10')}",
    ]  # fmt: skip


def test_what_m3_compatible_leaves_out():
    """Texts, and what only devices understand; their times with them, which "carry_delta" keeps."""
    left_out = [meta(kind, b"x") for kind in (1, 2, 3, 4, 5, 6, 7, 9, 0x7F)] + [b"\xf0\x02\x01\xf7"]
    kept = {meta(0x21, b"\x02"): "midi_port 2", meta(0x20, b"\x02"): "channel_prefix 2", meta(0x51, b"\0\0\x09"): "set_tempo 9",
            meta(0x00, b"\0\x07"): "sequence_number 7", meta(0x58, b"\x03\x02\x18\x08"): "time_signature 3 4 24 8",
            meta(0x59, b"\0\0"): "key_signature C", meta(0x54, b"\0\0\0\0\0"): "smpte_offset 24 0 0 0 0 0"}  # fmt: skip
    for message in left_out:
        file = midi(b"\x05" + message + b"\x03\x92\x3c\x40")
        assert mtf.midi_to_mtf(file)[0] == "ticks_per_beat 96\nnote_on 3 2 60 64\nend_of_track 0"
        assert mtf.midi_to_mtf(file, "carry_delta")[0] == "ticks_per_beat 96\nnote_on 8 2 60 64\nend_of_track 0"
    for message, line in kept.items():
        file = midi(b"\x05" + message + b"\x03\x92\x3c\x40")
        for mode in mtf.MODES:
            text = f"ticks_per_beat 96\n{line} 5\nnote_on 3 2 60 64\nend_of_track 0"
            assert mtf.midi_to_mtf(file, mode) == (text, [])


def test_lyrics_on_their_own_track():
    """Beside three quarter notes at 0, 480 and 960: the published form takes their times away, and two of the three."""
    lyrics = b"".join(length(delta) + meta(5, b"la") for delta in (0, 480, 480))
    notes = b"\0\x90\x3c\x40" + (length(480) + b"\x3c\x00\0\x3c\x40") * 2 + length(480) + b"\x3c\x00"
    data = midi(lyrics, notes, ticks=480)
    text, warnings = mtf.midi_to_mtf(data)
    assert [time for time, _ in times(text)] == [0, 0, 0, 0, 0, 480, 480]
    assert warnings == [LOST.format(960)]
    for mode in ("carry_delta", "all_messages"):
        text, warnings = mtf.midi_to_mtf(data, mode)
        assert [time for time, line in times(text) if "note" in line] == [0, 480, 480, 960, 960, 1440] and not warnings


@pytest.mark.parametrize("more", [(), (b"odd",), (b"one byte more", b"even")])
def test_riff_files(more):
    """A MIDI file in a wrapper is no damage, and the rest of the wrapper is no MIDI."""
    path = KIT / "midi" / "two_tracks.mid"
    for mode in mtf.MODES:
        assert mtf.midi_to_mtf(rmi(path.read_bytes(), *more), mode) == mtf.midi_to_mtf(path.read_bytes(), mode)


# Meta messages


def assert_same(file: bytes, message: str) -> None:
    text, repairs = mtf.midi_to_mtf(file, "all_messages")
    try:
        expected = mido_mtf(file, everything=True)
    except Exception:  # noqa: BLE001
        assert len(repairs) == 1 and "that says nothing valid left out" in repairs[0], message
    else:
        assert (text, repairs) == (expected, []), message


def test_meta_messages_of_every_type_and_size():
    """Where mido fails, too little data or a wrong value is the reason, and the message is left out."""
    for kind in range(256):
        for size in (0, 1, 2, 3, 4, 5, 6):
            assert_same(
                midi(b"\x00\xff" + bytes([kind]) + length(size) + b"\x01\x02\x03\x04\x05\x06"[:size]), str(kind)
            )


def test_values_of_meta_messages():
    for value in range(256):
        for mode in (0, 1, 2):
            assert_same(midi(b"\x00" + meta(0x59, bytes([value, mode]))), f"key {value} {mode}")
        assert_same(midi(b"\x00" + meta(0x58, bytes([4, value, 24, 8]))), f"denominator {value}")
        assert_same(midi(b"\x00" + meta(0x01, bytes([value]))), f"text {value}")
        for place in range(5):
            parts = bytearray(b"\x01\x02\x03\x04\x05")
            parts[place] = value
            if place or value < 128:  # of a frame rate there are four; mido has a list of them
                assert_same(midi(b"\x00" + meta(0x54, bytes(parts))), f"offset {place} {value}")


def test_key_signatures_by_hand():
    """Sharps are positive, flats negative, in two's complement; the second byte is 1 for minor."""
    for data, name in ((b"\x00\x00", "C"), (b"\x00\x01", "Am"), (b"\x01\x00", "G"), (b"\xff\x00", "F"), (b"\xfd\x01", "Cm"),
                       (b"\x07\x00", "C#"), (b"\xf9\x00", "Cb"), (b"\x07\x01", "A#m"), (b"\xf9\x01", "Abm")):  # fmt: skip
        assert mtf.midi_to_mtf(midi(b"\x09" + meta(0x59, data)))[0].split("\n")[1] == f"key_signature {name} 9"


def test_an_unknown_meta_message_without_a_time_has_none_to_forget():
    data = midi(b"\x05\x92\x3c\x40\x00\xff\x60\x00\x03\x92\x3c\x00")
    lines = ["ticks_per_beat 96", "note_on 5 2 60 64", "unknown_meta 96 () 0", "note_on 3 2 60 0", "end_of_track 0"]
    assert mtf.midi_to_mtf(data) == ("\n".join(lines), [])


# Limits


def test_the_longest_message_that_is_no_repair():
    """mido takes a million bytes, and no more."""
    for size, said in ((1_000_000, []), (1_000_001, ["track 1: message of over 1,000,000 bytes read"])):
        file = midi(b"\x00\xff\x60" + length(size) + bytes(size))
        assert mtf.midi_to_mtf(file, "carry_delta")[1] == said
        if said:
            with pytest.raises(Exception):  # noqa: B017
                mido_mtf(file)
        else:
            mido_mtf(file)


def test_the_greatest_times():
    """A time of 63 bits is read and written; of 64, it is damage."""
    for time in (127, 128, 16383, 16384, 2**28 - 1, 2**62, 2**63 - 1):
        file = midi(length(time) + b"\x92\x3c\x40")
        assert mtf.midi_to_mtf(file) == (f"ticks_per_beat 96\nnote_on {time} 2 60 64\nend_of_track 0", [])
        assert (
            mtf.mtf_to_midi(f"ticks_per_beat 96\nnote_on {time} 2 60 64")[22:]
            == length(time) + b"\x92\x3c\x40\0\xff\x2f\0"
        )
    text, repairs = mtf.midi_to_mtf(midi(length(2**63) + b"\x92\x3c\x40"))
    assert text == "ticks_per_beat 96\nend_of_track 0" and repairs == ["track 1: ends in the middle of a message"]
    with pytest.raises(ValueError, match="out of range"):
        mtf.mtf_to_midi(f"ticks_per_beat 96\nnote_on {2**63} 2 60 64")


def test_ticks_per_beat_at_the_limits():
    for ticks in (-0x8000, -1, 0, 0x7FFF):
        header = b"MThd\0\0\0\6" + struct.pack(">hhh", 0, 1, ticks)  # type 0, one track
        assert mtf.mtf_to_midi(f"ticks_per_beat {ticks}")[:14] == header
        assert mtf.midi_to_mtf(midi(b"", ticks=ticks))[0].startswith(f"ticks_per_beat {ticks}\n")
    for ticks in (-0x8001, 0x8000):
        with pytest.raises(ValueError, match="more than MIDI's 16 bits"):
            mtf.mtf_to_midi(f"ticks_per_beat {ticks}")


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("unknown_meta 8 () 0", "unknown_meta 9 () 0"),  # 9 is device_name
        ("unknown_meta 255 (255,) 0", "unknown_meta 256 (255,) 0"),
        ("unknown_meta 255 (255,) 0", "unknown_meta 255 (256,) 0"),
        ("unknown_meta 10 (0,) 0", "unknown_meta -1 (0,) 0"),
        ("smpte_offset 24 31 59 59 255 99 0", "smpte_offset 24 32 59 59 255 99 0"),
        ("smpte_offset 29.97 31 59 59 255 99 0", "smpte_offset 24 31 60 59 255 99 0"),
        ("smpte_offset 30 31 59 59 255 99 0", "smpte_offset 24 31 59 60 255 99 0"),
        ("smpte_offset 25 31 59 59 255 99 0", "smpte_offset 24 31 59 59 256 99 0"),
        ("smpte_offset 25 0 0 0 0 0 0", "smpte_offset 24 31 59 59 255 100 0"),
        ("sysex 0 [127]", "sysex 0 [128]"),
        ("note_on 0 15 127 127", "note_on 0 16 127 127"),
        ("pitchwheel 0 0 8191", "pitchwheel 0 0 8192"),
        ("pitchwheel 0 0 -8192", "pitchwheel 0 0 -8193"),
        ("songpos 0 16383", "songpos 0 16384"),
        ("quarter_frame 0 7 15", "quarter_frame 0 8 15"),
        ("set_tempo 16777215 0", "set_tempo 16777216 0"),
        ("sequence_number 65535 0", "sequence_number 65536 0"),
        ("time_signature 255 4 255 255 0", "time_signature 256 4 255 255 0"),
        ("key_signature C# 0", "key_signature G# 0"),
    ],
)
def test_values_at_the_limits(line, wrong):
    text = f"ticks_per_beat 96\n{line}\nend_of_track 0"
    data = mtf.mtf_to_midi(text)
    assert mtf.midi_to_mtf(data, "all_messages") == (text, []) and mido_mtf(data, everything=True) == text
    with pytest.raises(ValueError, match="line 2"):
        mtf.mtf_to_midi(f"ticks_per_beat 96\n{wrong}")


# Headers


@pytest.mark.parametrize("size", [6, 7, 8, 20])
def test_headers_of_more_than_six_bytes(size):
    head = struct.pack(">hhh", 1, 1, 96) + bytes(size - 6)
    file = chunk(b"MThd", head) + chunk(b"MTrk", b"\x03\x92\x3c\x40")
    assert mtf.midi_to_mtf(file) == (mido_mtf(file), [])
    assert "note_on 3 2 60 64" in mtf.midi_to_mtf(file)[0]


@pytest.mark.parametrize("before", [b"", b"\0" * 10])
@pytest.mark.parametrize("size", [0, 5, 7, 8, 20, 2**32 - 1])
def test_headers_whose_length_is_wrong(size, before):
    """There are six bytes in it, whatever it says, if that is where a track is."""
    track = chunk(b"MTrk", b"\x03\x92\x3c\x40")
    text, repairs = mtf.midi_to_mtf(before + chunk(b"MThd", struct.pack(">hhh", 1, 1, 96), size) + track)
    assert text == "ticks_per_beat 96\nnote_on 3 2 60 64\nend_of_track 0"
    skipped = ["10 bytes before the header skipped"] if before else []
    assert repairs == [*skipped, f"header length of {size} bytes taken for 6"]


@pytest.mark.parametrize(
    ("between", "said"),
    [
        (chunk(b"XFIH", b"abc"), "unknown chunk XFIH skipped"),
        (chunk(b"XFIH", b"abc", size=1000), "11 bytes that belong to no chunk skipped"),
        (chunk(b"XF-H", b"abc"), "11 bytes that belong to no chunk skipped"),
        (chunk(b"\0\1\2\3", b""), "8 bytes that belong to no chunk skipped"),
    ],
)
def test_what_stands_between_tracks(between, said):
    track = chunk(b"MTrk", b"\x03\x92\x3c\x40\x00\xff\x2f\x00")
    text, repairs = mtf.midi_to_mtf(midi(count=2) + track + between + track)
    assert text == "ticks_per_beat 96\nnote_on 3 2 60 64\nnote_on 0 2 60 64\nend_of_track 0" and repairs == [said]


@pytest.mark.parametrize("before", [b"", b"\0" * 10])
def test_headers_that_break_off(before):
    whole = before + midi()
    for size in range(len(whole)):
        with pytest.raises(ValueError, match="it has no header chunk"):
            mtf.midi_to_mtf(whole[:size])
    assert mtf.midi_to_mtf(whole)[0] == "ticks_per_beat 96\nend_of_track 0"


@pytest.mark.parametrize("count", [0, -1])
def test_a_header_that_announces_no_track(count):
    file = midi(b"\x03\x92\x3c\x40", count=count)
    assert mtf.midi_to_mtf(file) == (mido_mtf(file), ["1 more tracks than the header says left out"])
    assert mtf.midi_to_mtf(midi())[0] == mido_mtf(midi()) == "ticks_per_beat 96\nend_of_track 0"


def test_tracks_that_end_at_different_times():
    """Events of one time come in the order of the tracks; the text ends when the last track does."""
    end = b"\xff\x2f\x00"
    tracks = [b"\x05\x90\x3c\x40\x0a" + end, b"\x05\x91\x3c\x40\x00\x81\x3c\x40\x1e" + end, b"\x02" + end]
    for kind in (0, 1):
        file = midi(*tracks, kind=kind)
        text = "ticks_per_beat 96\nnote_on 5 0 60 64\nnote_on 0 1 60 64\nnote_off 0 1 60 64\nend_of_track 30"
        assert mtf.midi_to_mtf(file) == (text, []) and mido_mtf(file) == text
