"""The first bars of a piece as an SVG picture: ABC and MusicXML engraved by verovio, MIDI and MTF as a piano roll.

Drawn in worker processes, because verovio is a C++ library that a strange score can crash or keep busy for ever.
"""

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import files
import pieces
from conversions import midi_to_mtf, musicxml, workers, xml_abc
from files import InputError

BARS = 8
TIMEOUT = 30  # seconds for one picture
PAGE_WIDTH = 2100  # of an engraving, in tenths of a millimetre; the page that shows it makes it fit


def draw_all(sources: list[Path]) -> Iterator[tuple[Path, str, str]]:
    """Yields (source, SVG, why there is none) of music files, `#N` of a tune included, in any order."""
    for source, svg in workers.run(draw, sources, TIMEOUT):
        yield source, *(("", svg.reason) if isinstance(svg, workers.Failed) else (svg, ""))


def draw(source: Path) -> str:
    """The SVG of one piece. Raises InputError, and whatever a converter may raise."""
    path, number = pieces.locate(source)
    files.require_piece(path)
    data, kind = path.read_bytes(), pieces.kind(path)
    if kind == ".xml":
        return engrave(musicxml.read(data)[0])
    if kind == ".mid":
        return piano_roll(midi_to_mtf(data, "carry_delta")[0])  # at the true times, which features are not of
    piece = (pieces.tunes if kind == ".abc" else pieces.read)(data, kind)[(number or 1) - 1]
    if not piece.ok:
        raise InputError(piece.error)
    if kind == ".abc":
        return engrave(xml_abc.abc_to_musicxml(first_bars(piece.text)).decode())
    return piano_roll(piece.text)


# --- scores -----------------------------------------------------------------------------------------------------------


def first_bars(tune: str) -> str:
    """Cuts an interleaved tune, which has a line for each bar, so that only its first bars are converted."""
    lines = tune.splitlines(keepends=True)
    bars = [place for place, line in enumerate(lines) if line.startswith("[V:")]
    return "".join(lines[: bars[BARS]] if len(bars) > BARS else lines)


def engrave(score: str) -> str:
    """Draws the first bars of a MusicXML score as one SVG picture, without its title. Raises InputError."""
    import verovio

    verovio.enableLog(verovio.LOG_OFF)
    toolkit = verovio.toolkit()
    toolkit.setOptions(
        {
            "inputFrom": "xml",
            "header": "none",
            "footer": "none",
            "pageWidth": PAGE_WIDTH,
            "pageHeight": 60000,  # the largest, for all systems; it is then adjusted
            "adjustPageHeight": True,
            "pageMarginTop": 20,
            "pageMarginBottom": 20,
            "pageMarginLeft": 40,
            "pageMarginRight": 20,
            "scale": 40,
            "svgViewBox": True,
            "svgFormatRaw": True,
            "xmlIdSeed": 1,  # the same picture each time
        }
    )
    toolkit.select({"measureRange": f"start-{BARS}"})
    if not toolkit.loadData(score):
        raise InputError("verovio cannot read it")
    svg = toolkit.renderToSVG(1)
    if 'class="measure' not in svg:
        raise InputError("verovio drew no bar of it")
    return svg


# --- piano rolls ------------------------------------------------------------------------------------------------------

_COLOURS = ("#2f6db3", "#c25a2b", "#3b8f5a", "#8a4fa8", "#b0892a", "#b5446e")
_DRUMS = 9  # the channel whose notes are no pitches
_WIDTH, _ROW, _LEFT, _BOTTOM = 840, 5, 34, 18  # in units of the picture


def piano_roll(mtf: str) -> str:
    """Draws the notes of the first bars that sound, by time and pitch, a colour for each channel.

    Where ticks are no part of a beat, there are no bars: of SMPTE time 16 seconds are shown, else all of it. Below
    stand the numbers of the bars, or else the first and the last second, or tick.
    """
    ticks_per_beat, meters, notes = _notes(mtf)
    pitched = [note for note in notes if note[2] != _DRUMS] or notes
    if not pitched:
        raise InputError("there is no note in it")
    earliest = min(note[0] for note in pitched)
    if ticks_per_beat > 0:
        first, lines = bar_lines(ticks_per_beat, meters, earliest, BARS)
    else:
        per_second = -(ticks_per_beat >> 8) * (ticks_per_beat & 0xFF)
        length = per_second * 16 or max(note[1] for note in notes) - earliest + 1
        first, lines = 0, [Fraction(earliest), Fraction(earliest + length)]
    begin, end = lines[0], lines[-1]
    shown = [note for note in pitched if begin <= note[0] < end]
    low = min(note[3] for note in shown) // 12 * 12  # whole octaves, from C
    high = max(note[3] for note in shown) // 12 * 12 + 12
    height = (high - low) * _ROW

    def x(time: Fraction | int) -> float:
        return round(float(_LEFT + (_WIDTH - _LEFT - 2) * (time - begin) / (end - begin)), 2)

    def y(pitch: int) -> int:
        return height - (pitch - low) * _ROW

    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height + _BOTTOM}"'
        ' font-family="system-ui, sans-serif" font-size="10" fill="#666">'
    ]
    for pitch in range(low, high + 1, 12):
        svg.append(f'<path d="M{_LEFT} {y(pitch)}H{_WIDTH - 2}" stroke="#ddd"/>')
        svg.append(f'<text x="{_LEFT - 5}" y="{max(y(pitch), 10)}" text-anchor="end">C{pitch // 12 - 1}</text>')
    for number, time in enumerate(lines, start=first):
        svg.append(f'<path d="M{x(time)} 0V{height}" stroke="#bbb"/>')
        if ticks_per_beat > 0 and time < end:
            svg.append(f'<text x="{x(time) + 3}" y="{height + 13}">{number + 1}</text>')
    if ticks_per_beat > 0:
        svg.append(f'<text x="{_LEFT - 5}" y="{height + 13}" text-anchor="end">bar</text>')
    else:
        for time, anchor in ((begin, "start"), (end, "end")):
            label = f"{float(time / per_second):.4g} s" if per_second else f"tick {time}"
            svg.append(f'<text x="{x(time)}" y="{height + 13}" text-anchor="{anchor}">{label}</text>')
    channels = sorted({note[2] for note in shown})
    for start, stop, channel, pitch in shown:
        left = x(start)
        width = max(1.5, round(x(min(Fraction(stop), end)) - left - 0.5, 2))
        colour = _COLOURS[channels.index(channel) % len(_COLOURS)]
        svg.append(
            f'<rect x="{left}" y="{y(pitch + 1)}" width="{width}" height="{_ROW}" rx="1.5" fill="{colour}"'
            ' fill-opacity=".85" class="note"/>'
        )
    return "".join([*svg, "</svg>"])


def bar_lines(
    ticks_per_beat: int, meters: list[tuple[int, int, int]], earliest: int, bars: int
) -> tuple[int, list[Fraction]]:
    """Returns the bar that `earliest` is in, counted from 0, and the times of `bars` + 1 bar lines from its start on.

    meters: (time, numerator, denominator), by time. Each begins a bar; before the first, it is 4/4.
    """
    changes = [(0, 4, 4), *(meter for meter in meters if meter[1] > 0 and meter[2] > 0)]
    ends = [*(time for time, _, _ in changes[1:]), math.inf]
    count = 0
    lines: list[Fraction] = []
    for (start, numerator, denominator), end in zip(changes, ends, strict=True):
        bar = Fraction(4 * ticks_per_beat * numerator, denominator)
        if not lines and end <= earliest:
            count += math.ceil((end - start) / bar)
            continue
        skipped = 0 if lines else (earliest - start) // bar
        count += skipped
        while start + skipped * bar < end and len(lines) <= bars:
            lines.append(start + skipped * bar)
            skipped += 1
    return count, lines


def _notes(mtf: str) -> tuple[int, list[tuple[int, int, int]], list[tuple[int, int, int, int]]]:
    """Reads MTF: ticks in a beat, meters (time, numerator, denominator) and notes (start, end, channel, pitch)."""
    from mido.messages import SPEC_BY_TYPE

    head, *lines = mtf.splitlines()
    ticks_per_beat = int(head.split()[1])
    time, meters, notes = 0, [], []
    sounding: dict[tuple[int, int], list[int]] = {}  # (channel, pitch) -> starts
    for line in lines:
        kind, *values = line.split(" ")
        try:
            time += int(values[0] if kind in SPEC_BY_TYPE else values[-1])  # metas end with their time
            if kind == "time_signature":
                meters.append((time, int(values[0]), int(values[1])))
            elif kind in ("note_on", "note_off"):
                channel, pitch, velocity = map(int, values[1:])
                if kind == "note_on" and velocity > 0:
                    sounding.setdefault((channel, pitch), []).append(time)
                elif sounding.get((channel, pitch)):
                    notes.append((sounding[channel, pitch].pop(0), time, channel, pitch))
        except (ValueError, IndexError):
            raise InputError(f"not MTF: {line[:60]!r}") from None
    notes += [(start, time, *where) for where, starts in sounding.items() for start in starts]
    return ticks_per_beat, meters, sorted(notes)
