r"""MTF, the MIDI text format, and both ways between it and MIDI files.

The first line is `ticks_per_beat N`; then each message of all tracks, merged by time, is one line of space-separated
values: of channel and system messages the type, the time and the rest, of meta messages the type, the rest and the
time. The time is the ticks since the message before. All but printable ASCII is escaped as Python does it (`\xe9`).
The order of values is that of mido's `Message.dict()`, the order of messages that of mido's `merged_track`:

    ticks_per_beat 480
    time_signature 3 4 24 8 0
    program_change 0 0 40
    note_on 120 0 60 64
    end_of_track 240
"""

import functools
import re
import struct

import mido
from mido.messages import SPEC_BY_TYPE

from midi_reader import KNOWN_METAS, TEXT_METAS, read_midi
from shared import InputError

MODES = ("m3_compatible", "all_messages", "carry_delta")
NOT_M3 = frozenset(TEXT_METAS.values()) | {"sequencer_specific", "sysex"}  # what the published training data left out


def midi_to_mtf(data: bytes, messages: str = "m3_compatible") -> tuple[str, list[str]]:
    """Convert a MIDI file to MTF: (text without a final newline, warnings of what was repaired or lost).

    Args:
        data: the file's content.
        messages: "m3_compatible" leaves out text and system exclusive messages *and their times*, as the published
            training data did, and counts the ticks lost in a warning; "all_messages" leaves out nothing; "carry_delta"
            leaves out the same as "m3_compatible", but adds their times to the next message's.

    Raises InputError if there is nothing to read: no MIDI header, or no track.

    mido, hence the published training data, forgets the time of meta messages of unknown type. So does
    "m3_compatible", with a warning; the other two keep it.
    """
    if messages not in MODES:
        raise ValueError(f"messages={messages!r} is none of {', '.join(MODES)}")
    midi = read_midi(data, () if messages == "all_messages" else NOT_M3, forget_unknown=messages == "m3_compatible")
    events = [event for track, _ in midi.tracks for event in track]
    events.sort(key=lambda event: event[0])  # stable: of simultaneous messages, those of the earlier track come first
    carry = messages == "carry_delta"
    before = lost = 0
    lines = [f"ticks_per_beat {midi.ticks_per_beat}"]
    for time, head, tail in events:
        if head:
            lines.append(f"{head}{time - before}{tail}")
        elif carry:
            continue
        else:
            lost += time - before
        before = time
    lines.append(f"end_of_track {max((end for _, end in midi.tracks), default=0) - before}")
    return "\n".join(lines), [*midi.repairs, *_warnings(midi.ticks_per_beat, lost)]


def _warnings(ticks_per_beat: int, lost: int) -> list[str]:
    """List reasons why the times of MTF may not be those of the music."""
    found = []
    if lost:
        left_out = "text and system exclusive messages"
        found.append(f"{lost} ticks before {left_out} left out with them; batch_midi2mtf.py --carry_delta keeps them")
    if ticks_per_beat < 0:
        frames, ticks = -(ticks_per_beat >> 8), ticks_per_beat & 0xFF
        meaning = f"SMPTE time, {frames} frames a second of {ticks} ticks"
        found.append(f"ticks_per_beat {ticks_per_beat} is {meaning}: its ticks are no part of a beat")
    elif ticks_per_beat == 0:
        found.append("ticks_per_beat 0: its ticks are no part of a beat")
    return found


def mtf_to_midi(text: str) -> bytes:
    """Convert MTF to a MIDI file of one track (type 0), which "all_messages" reads as the same text again.

    So do the other modes, but for the lines that they leave out, and "m3_compatible" for times of `unknown_meta`.

    Raises InputError, which names the line, if the text is not MTF. A missing last line, `end_of_track`, is added.
    """
    lines = text.rstrip("\n").split("\n")
    track = bytearray()
    ticks_per_beat = 0
    kind = ""
    for number, line in enumerate(lines, start=1):
        try:
            if kind == "end_of_track":
                raise ValueError("end_of_track must come last")
            kind, _, values = line.partition(" ")
            if number == 1:
                if kind != "ticks_per_beat":
                    raise ValueError("not MTF, which begins with ticks_per_beat")
                ticks_per_beat = _integer(values)
                if not -0x8000 <= ticks_per_beat < 0x8000:
                    raise ValueError("more than MIDI's 16 bits")
            else:
                track += _encode(_message(kind, values))
        except (ValueError, TypeError, LookupError) as error:
            raise InputError(f"line {number} ({line[:60]!r}): {error}") from error
    if kind != "end_of_track":
        track += _encode(mido.MetaMessage("end_of_track"))
    header = struct.pack(">4sLhhh", b"MThd", 6, 0, 1, ticks_per_beat)
    return header + struct.pack(">4sL", b"MTrk", len(track)) + track


def _message(kind: str, line: str) -> mido.Message | mido.MetaMessage:
    """Parse the message of a line without its type. Raises ValueError, TypeError or LookupError if it is none."""
    fields = _fields(kind)
    # One value of a line may hold spaces itself: text, or a list of bytes.
    open_field = next((index for index, field in enumerate(fields) if field in ("text", "name", "data")), None)
    texts = line.split(" ")
    if open_field is not None:
        after = len(texts) - (len(fields) - open_field - 1)
        texts[open_field:after] = [" ".join(texts[open_field:after])]
    if len(texts) != len(fields):
        raise ValueError(f"{len(texts)} values, where {kind} has {len(fields)}: {', '.join(fields)}")
    values = {field: _value(kind, field, text) for field, text in zip(fields, texts, strict=True)}
    if kind == "unknown_meta":
        return mido.UnknownMetaMessage(**values)
    return (mido.Message if kind in SPEC_BY_TYPE else mido.MetaMessage)(kind, **values)


@functools.cache
def _fields(kind: str) -> tuple[str, ...]:
    """Name the values that follow the type in a line, in mido's order."""
    if kind == "unknown_meta":
        return ("type_byte", "data", "time")
    if kind == "reset":
        raise ValueError("a MIDI file cannot have a reset message")
    try:
        message = mido.Message(kind) if kind in SPEC_BY_TYPE else mido.MetaMessage(kind)
    except LookupError:
        raise ValueError(f"there is no message type {kind}") from None
    return tuple(name for name in message.dict() if name != "type")


def _value(kind: str, field: str, text: str) -> int | float | str | list[int] | tuple[int, ...]:
    """Parse a value. Raises ValueError if MTF would write it otherwise."""
    if field == "key":
        return text
    if field == "frame_rate":
        return 29.97 if text == "29.97" else _integer(text)
    value: str | list[int] | tuple[int, ...]
    if field in ("text", "name"):
        value = text.encode("ascii").decode("unicode_escape")
        written = value.encode("unicode_escape").decode("ascii")
    elif field == "data":
        value = (list if kind == "sysex" else tuple)(int(number) for number in re.findall("[0-9]+", text))
        written = str(value) if max(value, default=0) < 256 else ""
    else:
        number = _integer(text)
        if (field == "hours" and number > 31) or (
            field == "type_byte" and (number in KNOWN_METAS or not 0 <= number < 256)
        ):
            raise ValueError(f"{field} {number} is out of range")
        return number
    if text != written:
        raise ValueError(f"{text[:60]!r} is no {field} as MTF writes it")
    return value


def _integer(text: str) -> int:
    value = int(text)
    if str(value) != text:
        raise ValueError(f"{text!r} is no number as MTF writes it")
    return value


def _encode(message: mido.Message | mido.MetaMessage) -> bytes:
    """Encode a message with its time. (mido's own writer refuses what its reader takes, such as `clock`.)"""
    if message.type == "sysex":
        data = b"\xf0" + _variable_length(len(message.data) + 1) + bytes(message.data) + b"\xf7"
    else:
        data = bytes(message.bytes())
    return _variable_length(message.time) + data


def _variable_length(number: int) -> bytes:
    """Encode a number as MIDI files do: seven bits a byte, all but the last with the high bit set."""
    if not 0 <= number < 2**63:
        raise ValueError(f"time {number} is out of range")
    data = [number & 127]
    while number := number >> 7:
        data.append(number & 127 | 128)
    return bytes(reversed(data))
