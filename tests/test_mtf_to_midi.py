"""MTF -> MIDI -> MTF: nothing changes, and what is no MTF is refused by line."""

from collections import Counter

import pytest
import symusic

import mtf
from helpers import KIT, SHARED
from test_mtf import MIDI_FILES, messages_of, mido_mtf, needs_shared, shared_files, warnings_of


@pytest.mark.parametrize("path", sorted(KIT.glob("mtf*/*.mtf")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_kit_comes_back(path):
    text = path.read_text()
    data = mtf.mtf_to_midi(text)
    assert mtf.midi_to_mtf(data, "all_messages") == (text, [])
    assert mido_mtf(data, everything=True) == text
    assert mtf.midi_to_mtf(data) == ((KIT / "mtf" / path.name).read_text(), warnings_of(data))


@needs_shared
def test_real_files_come_back():
    for path in shared_files(80):
        text, _ = mtf.midi_to_mtf(path.read_bytes())
        assert mtf.midi_to_mtf(mtf.mtf_to_midi(text))[0] == text, path


def channel_events(data: bytes) -> Counter:
    now, events = 0, Counter()
    for message in messages_of(data):
        now += message.time
        if not message.is_meta and hasattr(message, "channel"):
            events[now, str(message.copy(time=0))] += 1
    return events


def notes(data: bytes) -> Counter:
    """What another library reads: onsets, pitch bends and tempos, by tick."""
    score = symusic.Score.from_midi(data)
    return Counter(
        [("note", note.time, note.pitch, note.velocity) for track in score.tracks for note in track.notes]
        + [("bend", event.time, event.value) for track in score.tracks for event in track.pitch_bends]
        + [("tempo", event.time, event.mspq) for event in score.tempos]
        + [("ticks", score.ticks_per_quarter)]
    )


@pytest.mark.parametrize(
    "path", MIDI_FILES + (shared_files(160) if SHARED.is_dir() else []), ids=lambda path: path.stem
)
def test_all_messages_keep_every_event_at_its_time(path):
    data = path.read_bytes()
    back = mtf.mtf_to_midi(mtf.midi_to_mtf(data, "all_messages")[0])
    assert channel_events(back) == channel_events(data)
    assert notes(back) == notes(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1 (''): not MTF"),
        ("X:1\nK:C", "line 1 ('X:1'): not MTF"),
        ("ticks_per_beat 40000", "more than MIDI's 16 bits"),
        ("ticks_per_beat 4\nnote_on 0 0 60", "line 2 ('note_on 0 0 60'): 3 values, where note_on has 4: time, channel"),
        ("ticks_per_beat 4\nclock 0\nnote_on 0 0 60 128", "line 3 ('note_on 0 0 60 128'): data byte must be in range"),
        ("ticks_per_beat 4\nnote_on 0 16 60 1", "channel must be in range 0..15"),
        ("ticks_per_beat 4\nnote_on -1 0 60 1", "time -1 is out of range"),
        ("ticks_per_beat 4\nnote_on 01 0 60 1", "'01' is no number as MTF writes it"),
        ("ticks_per_beat 4\nnote_on x 0 60 1", "invalid literal"),
        ("ticks_per_beat 4\nnote 0 0 60 1", "there is no message type note"),
        ("ticks_per_beat 4\n\nclock 0", "line 2 ('')"),
        ("ticks_per_beat 4\nreset 0", "a MIDI file cannot have a reset message"),
        ("ticks_per_beat 4\nkey_signature H 0", "invalid key 'H'"),
        ("ticks_per_beat 4\ntime_signature 4 3 24 8 0", "denominator must be a power of 2"),
        ("ticks_per_beat 4\nsmpte_offset 29.97 32 0 0 0 0 0", "hours 32 is out of range"),
        ("ticks_per_beat 4\nsmpte_offset 23 1 0 0 0 0 0", "23"),
        ("ticks_per_beat 4\nset_tempo 16777216 0", "16777215"),
        ("ticks_per_beat 4\nsysex 0 [1,2]", "'[1,2]' is no data as MTF writes it"),
        ("ticks_per_beat 4\nsysex 0 [200]", "data byte must be in range 0..127"),
        ("ticks_per_beat 4\nsequencer_specific (1, 256) 0", "is no data as MTF writes it"),
        ("ticks_per_beat 4\nunknown_meta 81 (1, 2, 3) 0", "type_byte 81 is out of range"),
        ("ticks_per_beat 4\nunknown_meta 96", "unknown_meta has 3"),
        ("ticks_per_beat 4\ntext \\u6708 0", "latin-1"),
        ("ticks_per_beat 4\ntext \\q 0", "is no text as MTF writes it"),
        ("ticks_per_beat 4\nend_of_track 0\nclock 0", "line 3 ('clock 0'): end_of_track must come last"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid escape")
def test_text_that_is_no_mtf(text, message):
    with pytest.raises(ValueError) as error:
        mtf.mtf_to_midi(text)
    assert message in str(error.value)


def test_a_text_that_breaks_off_is_ended():
    assert mtf.midi_to_mtf(mtf.mtf_to_midi("ticks_per_beat 4\nnote_on 0 0 60 1\n"))[0].endswith("60 1\nend_of_track 0")
    assert mtf.midi_to_mtf(mtf.mtf_to_midi("ticks_per_beat 4"))[0] == "ticks_per_beat 4\nend_of_track 0"
