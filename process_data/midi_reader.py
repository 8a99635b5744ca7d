"""Read MIDI files into the parts of MTF lines: as mido 1.3 does, many times faster; and what it cannot read too.

An intact file is read exactly as mido reads it, its oddities included, since the published training data were made so.
A file on which mido raises an error is read again with repairs, which are counted and named.
"""

import math
import struct
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass

from shared import InputError

SUFFIXES = (".mid", ".midi", ".kar", ".rmi")  # of MIDI files; .kar has lyrics, .rmi is wrapped in RIFF
_TEXTS = ("text", "copyright", "track_name", "instrument_name", "lyrics", "marker", "cue_marker")
TEXT_METAS = dict(enumerate(_TEXTS, 1)) | {9: "device_name"}
_PAIRS = {0x80: "note_off", 0x90: "note_on", 0xA0: "polytouch", 0xB0: "control_change"}  # two data bytes
_PAIR_LINES = {
    status | channel: (f"{name} ", f" {channel}") for status, name in _PAIRS.items() for channel in range(16)
}
_NUMBERS = [f" {number}" for number in range(128)]
_SINGLES = {0xC0: "program_change", 0xD0: "aftertouch"}  # one data byte
_SYSTEM = {  # name, number of data bytes, data bytes -> values
    0xF1: ("quarter_frame", 1, lambda data: f" {data[0] >> 4} {data[0] & 15}"),
    0xF2: ("songpos", 2, lambda data: f" {data[0] | data[1] << 7}"),
    0xF3: ("song_select", 1, lambda data: f" {data[0]}"),
    0xF6: ("tune_request", 0, lambda data: ""),
    0xF8: ("clock", 0, lambda data: ""),
    0xFA: ("start", 0, lambda data: ""),
    0xFB: ("continue", 0, lambda data: ""),
    0xFC: ("stop", 0, lambda data: ""),
    0xFE: ("active_sensing", 0, lambda data: ""),
}
_KEYS = (
    ("Cb", "Gb", "Db", "Ab", "Eb", "Bb", "F", "C", "G", "D", "A", "E", "B", "F#", "C#"),  # major, -7 ... 7 sharps
    ("Abm", "Ebm", "Bbm", "Fm", "Cm", "Gm", "Dm", "Am", "Em", "Bm", "F#m", "C#m", "G#m", "D#m", "A#m"),
)
_FRAME_RATES = (24, 25, 29.97, 30)
# mido takes a denominator if its logarithm comes out whole, which in floating point is not so of all powers of two.
_DENOMINATORS = {power: 2**power for power in range(256) if math.log(2**power, 2) == power}


def _key_signature(data: bytes) -> str:
    sharps = (data[0] ^ 128) - 128
    if abs(sharps) > 7:
        raise ValueError
    return _KEYS[data[1]][sharps + 7]


def _smpte_offset(data: bytes) -> str:
    if data[1] > 59 or data[2] > 59 or data[4] > 99:
        raise ValueError
    return f"{_FRAME_RATES[data[0] >> 5]} {data[0] & 31} {data[1]} {data[2]} {data[3]} {data[4]}"


_METAS = {  # name, data -> values; IndexError, KeyError or ValueError if it cannot be
    0x00: ("sequence_number", lambda data: str(data[0] << 8 | data[1] if data else 0)),
    0x20: ("channel_prefix", lambda data: str(data[0])),
    0x21: ("midi_port", lambda data: str(data[0] if data else 0)),
    0x51: ("set_tempo", lambda data: str(data[0] << 16 | data[1] << 8 | data[2])),
    0x54: ("smpte_offset", _smpte_offset),
    0x58: ("time_signature", lambda data: f"{data[0]} {_DENOMINATORS[data[1]]} {data[2]} {data[3]}"),
    0x59: ("key_signature", _key_signature),
    0x7F: ("sequencer_specific", lambda data: str(tuple(data))),
}

END_OF_TRACK = b"\xff\x2f\x00"
KNOWN_METAS = {*TEXT_METAS, *_METAS, 0x2F}

# A message of a track: ticks since the track's start, and what its line has before and after the time. Of a message
# that is left out, the line is ("", "").
Event = tuple[int, str, str]
Track = tuple[list[Event], int]  # events, and ticks from the track's start to its end


@dataclass
class Midi:
    """A MIDI file."""

    ticks_per_beat: int
    tracks: list[Track]
    repairs: list[str]


def read_midi(data: bytes, left_out: Container[str] = (), forget_unknown: bool = False) -> Midi:
    """Read the content of a MIDI file.

    Args:
        left_out: types of messages of which only the times are wanted.
        forget_unknown: forget the times of meta messages of unknown type, as mido does; it is named among the repairs.

    Raises InputError if there is nothing to read: no MIDI header, or no track.
    """
    reader = _FileReader(_unwrapped(data), left_out, forget_unknown)
    try:
        ticks_per_beat, tracks = reader.read_intact()
    except _Damaged:
        reader = _FileReader(data, left_out, forget_unknown)
        ticks_per_beat, tracks = reader.read_damaged()
    repairs = [text if n == 1 else f"{text} ({n} times)" for text, n in reader.repairs.items()]
    return Midi(ticks_per_beat, tracks, repairs)


def _unwrapped(data: bytes) -> bytes:
    """Return the MIDI file in a RIFF file of type RMID (.rmi), its chunk "data"; other data as they are."""
    start = data.find(b"MThd")
    size = int.from_bytes(data[start - 4 : start], "little")
    names = data[:4] + data[8:12] + data[start - 8 : start - 4]
    return data[start : start + size] if names == b"RIFFRMIDdata" and start + size <= len(data) else data


class _Damaged(Exception):
    """mido raises an error here."""


class _FileReader:
    """Finds the tracks of a file."""

    def __init__(self, data: bytes, left_out: Container[str], forget_unknown: bool):
        self.data, self.left_out, self.forget_unknown = data, left_out, forget_unknown
        self.repairs: Counter[str] = Counter()

    def read_intact(self) -> tuple[int, list[Track]]:
        """Read a file that mido can read: (ticks per beat, tracks). Raises _Damaged otherwise."""
        data, size = self.data, self._size(0)
        if data[:4] != b"MThd" or size < 6 or len(data) < 14:
            raise _Damaged
        kind, count, ticks_per_beat = struct.unpack_from(">hhh", data, 8)
        if kind == 2:
            raise _Damaged
        tracks, position = [], 8 + size
        for number in range(1, count + 1):
            size = self._size(position)
            chunk = data[position + 8 : position + 8 + size]
            if data[position : position + 4] != b"MTrk" or position + 8 + size > len(data):
                raise _Damaged
            tracks.append(_TrackReader(chunk, number, self, forgiving=False).read())
            position += 8 + size
        self._note_surplus(position)
        return ticks_per_beat, tracks

    def read_damaged(self) -> tuple[int, list[Track]]:
        """Read a file that mido cannot read, as far as it goes: (ticks per beat, tracks)."""
        data = self.data
        start = data.find(b"MThd")
        if start < 0 or len(data) < start + 14:
            raise InputError("not a MIDI file: it has no header chunk (MThd)")
        if start:
            is_riff = data[:4] == b"RIFF"
            self.repairs["RIFF file unwrapped" if is_riff else f"{start} bytes before the header skipped"] += 1
        kind, count, ticks_per_beat = struct.unpack_from(">hhh", data, start + 8)
        if kind == 2:
            self.repairs["type 2 (independent tracks) read as type 1: all tracks start together"] += 1
        size = self._size(start)
        position = start + 8 + size
        if not self._is_chunk(position):
            if size != 6:
                self.repairs[f"header length of {size} bytes taken for 6"] += 1
            position = start + 14
        tracks: list[Track] = []
        while len(tracks) < count and position + 8 <= len(data):
            position = self._read_chunk(position, tracks)
        if count > 0 and not tracks:
            raise InputError("no track in it")
        if len(tracks) < count:
            self.repairs[f"{len(tracks)} tracks found, where the header says {count}"] += 1
        else:
            self._note_surplus(position)
        return ticks_per_beat, tracks

    def _read_chunk(self, position: int, tracks: list[Track]) -> int:
        """Add the track at `position` to `tracks`, or skip what else is there. Returns the position after it."""
        name, size = self.data[position : position + 4], self._size(position)
        end = position + 8 + size
        if name != b"MTrk" and self._is_chunk(position):
            self.repairs[f"unknown chunk {name.decode()} skipped"] += 1
            return end
        if name != b"MTrk":
            end = self._next_track(position)
            self.repairs[f"{end - position} bytes that belong to no chunk skipped"] += 1
            return end
        number = len(tracks) + 1
        ended = self.data[position + 8 : end].endswith(END_OF_TRACK) and end <= len(self.data)
        if not ended and end != len(self.data) and not self._is_chunk(end):
            end = self._next_track(position)
            self.repairs[f"track {number}: {end - position - 8} bytes, where its length says {size}"] += 1
        chunk, repairs = self.data[position + 8 : end], self.repairs.copy()
        try:
            tracks.append(_TrackReader(chunk, number, self, forgiving=False).read())
        except _Damaged:
            self.repairs = repairs
            tracks.append(_TrackReader(chunk, number, self, forgiving=True).read())
        return end

    def _next_track(self, position: int) -> int:
        """Find the start of the next track, or the end of the file, where lengths cannot be trusted."""
        found = self.data.find(b"MTrk", position + 1)
        return len(self.data) if found < 0 else found

    def _size(self, position: int) -> int:
        return int.from_bytes(self.data[position + 4 : position + 8])

    def _is_chunk(self, position: int) -> bool:
        """Whether a chunk begins there: a track, or an unknown one that fits in."""
        name = self.data[position : position + 4]
        fits = position + 8 + self._size(position) <= len(self.data)
        return name == b"MTrk" or (len(name) == 4 and name.isalnum() and fits)

    def _note_surplus(self, position: int) -> None:
        """Note what follows the tracks that the header announces; mido does not read it either."""
        tracks = self.data.count(b"MTrk", position)
        if tracks:
            self.repairs[f"{tracks} more tracks than the header says left out"] += 1
        elif position < len(self.data):
            self.repairs[f"{len(self.data) - position} bytes after the last track left out"] += 1


class _TrackReader:
    """Reads the events of one track chunk.

    If not `forgiving`, it reads what mido reads, and raises _Damaged where mido raises an error. If forgiving, it goes
    on for as long as anything can be made of the bytes, and counts in `file.repairs` what it did.
    """

    def __init__(self, data: bytes, number: int, file: "_FileReader", forgiving: bool):
        self.data, self.number, self.file, self.forgiving = data, number, file, forgiving
        # `running` is the status of data bytes that come without one: 0 at first; +256 after a system message, which
        # by the standard leaves none (only if forgiving: mido takes the system message's).
        self.position = self.time = self.running = self.forgotten = 0
        self.ended = False

    def read(self) -> tuple[list[Event], int]:
        """Read the track: (events, ticks from its start to its end)."""
        # This loop takes most of the time: it handles notes in place, everything else in `_other`.
        data, end = self.data, len(self.data)
        events: list[Event] = []
        append = events.append
        position = time = running = 0
        pair = None  # parts of a line of the running status, if that has two data bytes
        try:
            while position < end and not self.ended:
                delta = data[position]
                position += 1
                if delta > 127:
                    delta &= 127
                    byte = 128
                    while byte > 127:
                        byte = data[position]
                        position += 1
                        delta = delta << 7 | byte & 127
                    if delta >> 63:
                        raise IndexError
                time += delta
                status = data[position]
                if status > 127:
                    position += 1
                    pair = _PAIR_LINES.get(status)
                    if pair:
                        running = status
                if pair:
                    first = data[position]
                    second = data[position + 1]
                    if first < 128 and second < 128:
                        position += 2
                        append((time, pair[0], f"{pair[1]}{_NUMBERS[first]}{_NUMBERS[second]}"))
                        continue
                    status = running
                self.position, self.time, self.running = position, time, running
                line = self._other(status, delta)
                position, time, running = self.position, self.time, self.running
                pair = _PAIR_LINES.get(running)
                if line:
                    append((time, *line))
        except IndexError:
            self._repair("ends in the middle of a message")
        if self.forgotten:
            lost = f"{self.forgotten} ticks before unknown meta messages left out"
            self.file.repairs[f"track {self.number}: {lost}; batch_midi2mtf.py --carry_delta keeps them"] += 1
        return events, time

    def _repair(self, what: str) -> None:
        if not self.forgiving:
            raise _Damaged
        self.file.repairs[f"track {self.number}: {what}"] += 1

    def _take(self, count: int) -> bytes:
        data = self.data[self.position : self.position + count]
        if len(data) < count:
            raise IndexError
        self.position += count
        return data

    def _take_data(self, count: int) -> bytes:
        """Take the data bytes of a message: 0 ... 127."""
        data = self._take(count)
        if max(data, default=0) > 127:
            self._repair("data byte over 127 lowered to 127")
            data = bytes(min(byte, 127) for byte in data)
        return data

    def _take_length(self) -> int:
        length, byte = 0, 128
        while byte > 127:
            byte = self._take(1)[0]
            length = length << 7 | byte & 127
        if length > 1_000_000:
            self._repair("message of over 1,000,000 bytes read")
        return length

    def _other(self, status: int, delta: int) -> tuple[str, str] | None:
        """Read a message of any kind, from after its status byte on: its line before and after the time.

        A `status` below 128 is no status but the first data byte, which then comes again.
        """
        if status < 128:
            status = self.running & 0xFF
            if self.running > 0xFF:
                self._repair("running status after a system message taken for the status before that")
                self.running = status
            if not status:
                self._repair("bytes before the first status byte skipped")
                while self.data[self.position] < 128:
                    self.position += 1
                return self._other(self._take(1)[0], delta)
            if status in (0xF0, 0xF7):
                self.position += 1  # mido takes this byte for the status byte, whatever it is
            elif status in _SYSTEM and not _SYSTEM[status][1]:
                raise _Damaged
        elif status < 0xF0 or (status < 0xFF and not self.forgiving):
            self.running = status
        elif status < 0xFF and self.running:
            self.running |= 0x100
        if status == 0xFF:
            return self._meta(delta)
        if status in (0xF0, 0xF7):
            return self._sysex()
        if status in _SYSTEM:
            name, count, values = _SYSTEM[status]
            return f"{name} ", values(self._take_data(count))
        kind, channel = status & 0xF0, status & 0x0F
        if kind in _PAIRS:
            first, second = self._take_data(2)
            return f"{_PAIRS[kind]} ", f" {channel} {first} {second}"
        if kind in _SINGLES:
            return f"{_SINGLES[kind]} ", f" {channel} {self._take_data(1)[0]}"
        if kind == 0xE0:
            low, high = self._take_data(2)
            return "pitchwheel ", f" {channel} {(low | high << 7) - 8192}"
        self._repair(f"undefined status 0x{status:02x} skipped")
        return None

    def _sysex(self) -> tuple[str, str]:
        start = self.position
        try:
            data = self._take(self._take_length())
        except IndexError:
            stop = self.data.find(0xF7, start)
            if stop < 0:
                raise
            self._repair("sysex without its length, read up to its end byte")
            data, self.position = self.data[start:stop], stop + 1
        data = data.removeprefix(b"\xf0").removesuffix(b"\xf7")
        if max(data, default=0) > 127:
            self._repair("sysex data over 127 left out")
            data = bytes(byte for byte in data if byte < 128)
        return ("", "") if "sysex" in self.file.left_out else ("sysex ", f" {list(data)}")

    def _meta(self, delta: int) -> tuple[str, str] | None:
        kind = self._take(1)[0]
        data = self._take(self._take_length())
        if kind == 0x2F:  # end of track
            self.ended = self.forgiving  # mido reads on as far as the chunk goes
            if self.ended and self.position < len(self.data):
                self._repair("bytes after its end skipped")
            return None
        if kind in TEXT_METAS:
            name = TEXT_METAS[kind]
            values = "" if name in self.file.left_out else data.decode("latin-1").encode("unicode_escape").decode()
        elif kind in _METAS:
            name, decode = _METAS[kind]
            try:
                values = decode(data)
            except (IndexError, KeyError, ValueError):
                self._repair(f"{name} that says nothing valid left out")
                return None
        else:
            name, values = "unknown_meta", f"{kind} {tuple(data)}"
            if delta and self.file.forget_unknown:
                self.time -= delta
                self.forgotten += delta
        return ("", "") if name in self.file.left_out else (f"{name} {values} ", "")
