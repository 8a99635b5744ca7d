"""Draw the first bars of a piece as SVG: ABC and MusicXML engraved by verovio, MIDI and MTF as a piano roll.

This takes place in worker processes, because verovio is a C++ library that a strange score can crash or keep busy.
"""

import math
import re
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

from conversions import workers, xml_abc
from files import InputError
from notes import DRUMS, notated, of_mtf, smpte_ticks

BARS = 8
TIMEOUT = 30  # seconds for one picture
_SVG = "{http://www.w3.org/2000/svg}"
_STAFF_LINES = f"{_SVG}g[@class='staff']/{_SVG}path"  # of a measure
PAGE_WIDTH = 2100  # of an engraving, in tenths of a millimetre; the page that shows it makes it fit


def draw_all(sources: list[Path], timeout: float) -> Iterator[tuple[Path, str, str]]:
    """Yield (source, SVG, why there is none) of music files, `#N` of a tune included, in any order."""
    for source, svg in workers.run(draw, sources, timeout):
        yield source, *(("", svg.reason) if isinstance(svg, workers.Failed) else (svg, ""))


def draw(source: Path) -> str:
    """Draw one piece as SVG. Raises InputError, and whatever a converter may raise."""
    kind, text = notated(source)
    if kind == ".mtf":
        return piano_roll(text)
    return engrave(xml_abc.abc_to_musicxml(first_bars(text)).decode() if kind == ".abc" else text)


def first_bars(tune: str) -> str:
    """Cut an interleaved tune, which has a line for each bar, after its first bars."""
    lines = tune.splitlines(keepends=True)
    bars = [place for place, line in enumerate(lines) if line.startswith("[V:")]
    return "".join(lines[: bars[BARS]] if len(bars) > BARS else lines)


def engrave(score: str) -> str:
    """Draw the first bars of a MusicXML score as one SVG picture, without its title. Raises InputError."""
    import verovio

    verovio.enableLog(verovio.LOG_OFF)
    toolkit = verovio.toolkit()
    margins = {"pageMarginTop": 20, "pageMarginBottom": 20, "pageMarginLeft": 40, "pageMarginRight": 20}
    page = {"pageWidth": PAGE_WIDTH, "pageHeight": 60000, "adjustPageHeight": True, "scale": 40, **margins}  # one page
    look = {"header": "none", "footer": "none", "svgViewBox": True, "svgFormatRaw": True}
    toolkit.setOptions({"inputFrom": "xml", "xmlIdSeed": 1, **page, **look})  # seeded: the same picture each time
    toolkit.select({"measureRange": f"start-{BARS}"})
    score = re.sub(
        r"<multiple-rest\b.*?</multiple-rest>", "", score, flags=re.DOTALL
    )  # which would be drawn as one bar
    if not toolkit.loadData(score):
        raise InputError("verovio cannot read it")
    svg = toolkit.renderToSVG(1)
    if 'class="measure' not in svg:
        raise InputError("verovio drew no bar of it")
    return svg


def bar_boxes(svg: str) -> list[list[float]]:
    """Return left, top, width and height of the bars of an engraving or a piano roll, in percent of the picture."""
    picture = ElementTree.fromstring(svg)
    engraved = picture.find(f"{_SVG}svg")
    if engraved is None:
        lines = re.findall(r'd="M(\S+) 0V(\S+)"', svg)
        bars = [[left, "0", right, bottom] for (left, bottom), (right, _) in pairwise(lines)]
    else:
        picture = engraved  # its lines of staves are relative to the margin
        measures = picture.iterfind(f".//{_SVG}g[@class='measure']")
        staves = [[line.get("d", "") for line in measure.iterfind(_STAFF_LINES)] for measure in measures]
        bars = [re.findall(r"[\d.]+", lines[0])[:3] + re.findall(r"[\d.]+", lines[-1])[-1:] for lines in staves]
    width, height = map(float, picture.get("viewBox", "0 0 1 1").split()[2:])
    margin = re.search(r'class="page-margin" transform="translate\(([\d.]+), ([\d.]+)', svg)
    x, y = map(float, margin.groups()) if margin else (0, 0)
    boxes = []
    for left, top, right, bottom in (map(float, bar) for bar in bars):
        place = (x + left) / width, (y + top) / height, (right - left) / width, (bottom - top) / height
        boxes.append([round(100 * share, 2) for share in place])
    return boxes


_COLOURS = ("#2f6db3", "#c25a2b", "#3b8f5a", "#8a4fa8", "#b0892a", "#b5446e")
_WIDTH, _ROW, _LEFT, _BOTTOM = 840, 5, 34, 18  # in units of the picture


def piano_roll(mtf: str) -> str:
    """Draw the notes of the first bars that sound, by time and pitch, a colour for each channel.

    MTF without beats has no bars: in SMPTE time, 16 seconds are shown, else the whole piece.
    """
    ticks_per_beat, meters, _, notes = of_mtf(mtf)
    pitched = [note for note in notes if note[2] != DRUMS] or notes
    if not pitched:
        raise InputError("there is no note in it")
    first, lines = roll_lines(ticks_per_beat, meters, pitched)
    per_second = smpte_ticks(ticks_per_beat)
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

    def text(left: float, words: object, anchor: str = "start", down: int = height + 13) -> None:
        svg.append(f'<text x="{left}" y="{down}" text-anchor="{anchor}">{words}</text>')

    for pitch in range(low, high + 1, 12):
        svg.append(f'<path d="M{_LEFT} {y(pitch)}H{_WIDTH - 2}" stroke="#ddd"/>')
        text(_LEFT - 5, f"C{pitch // 12 - 1}", "end", max(y(pitch), 10))
    svg += [f'<path d="M{x(time)} 0V{height}" stroke="#bbb"/>' for time in lines]
    if ticks_per_beat > 0:
        text(_LEFT - 5, "bar", "end")
        for number, time in enumerate(lines[:-1], start=first + 1):
            text(x(time) + 3, number)
    else:
        for time, anchor in ((begin, "start"), (end, "end")):
            text(x(time), f"{float(time / per_second):.4g} s" if per_second else f"tick {time}", anchor)
    channels = sorted({note[2] for note in shown})
    for start, stop, channel, pitch in shown:
        width = max(1.5, round(x(min(Fraction(stop), end)) - x(start) - 0.5, 2))
        colour = _COLOURS[channels.index(channel) % len(_COLOURS)]
        place = f'x="{x(start)}" y="{y(pitch + 1)}" width="{width}" height="{_ROW}"'
        svg.append(f'<rect {place} rx="1.5" fill="{colour}" fill-opacity=".85" class="note"/>')
    return "".join([*svg, "</svg>"])


def roll_lines(
    ticks_per_beat: int, meters: list[tuple[int, int, int]], notes: list[tuple[int, int, int, int]]
) -> tuple[int, list[Fraction]]:
    """Return the number, from 0, of the first bar that a piano roll shows, and the times of its lines, in ticks."""
    earliest = min(note[0] for note in notes)
    if ticks_per_beat > 0:
        return bar_lines(ticks_per_beat, meters, earliest, BARS)
    length = smpte_ticks(ticks_per_beat) * 16 or max(note[1] for note in notes) - earliest + 1
    return 0, [Fraction(earliest), Fraction(earliest + length)]


def bar_lines(
    ticks_per_beat: int, meters: list[tuple[int, int, int]], earliest: int, bars: int
) -> tuple[int, list[Fraction]]:
    """Return the number, from 0, of the bar of `earliest`, and the times of `bars` + 1 bar lines from there on.

    meters: (time, numerator, denominator), by time. Each begins a bar; 4/4 before the first.
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
