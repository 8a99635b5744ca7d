"""Writes the hits of a search as one self-contained HTML page, which loads nothing: page.html is its template,
page.js plays the hits."""

import base64
import hashlib
import json
from pathlib import Path

import jinja2
import markupsafe
from tqdm import tqdm

import features
import files
import pictures
import sound
from conversions import workers

TEXT_LENGTH = 600  # characters of a text that are shown


def write(
    path: Path, heading: str, query: Path | None, hits: list[dict], sources: list[Path | None], searched: str
) -> None:
    """Write the page, whole or not at all; see `render`."""
    shown = preview([source for source in [query, *sources] if source])
    with files.atomic_write(path, "w", encoding="utf-8", errors="xmlcharrefreplace") as file:
        file.write(render(heading, query, hits, sources, searched, *shown) + "\n")


def render(
    heading: str,
    query: Path | None,
    hits: list[dict],
    sources: list[Path | None],
    searched: str,
    previews: dict[Path, tuple[str, str]],
    sounds: dict[Path, tuple[str, list, str]],
) -> str:
    """Return the page.

    Args:
        heading: the query in words.
        query: its file, if there is one, to be drawn below the heading.
        hits: rank, score, name and title of each, as in `--json`.
        sources: the file of each hit, `#N` of a tune included; None if there are only features.
        searched: the folder or features searched, in words.
        previews, sounds: of all files, from `preview`.
    """
    script = Path(__file__).with_name("page.js").read_text(encoding="utf-8")
    titles = [hit.get("title") or Path(features.without_suffix(hit["name"])).name for hit in hits]
    nearest = "the nearest piece" if len(hits) == 1 else f"the {len(hits)} nearest pieces"
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return templates.get_template("page.html").render(
        heading=heading,
        about=f"{nearest} of {searched}, by the cosine of their features",
        query=query,
        previews=previews,
        sounds=sounds,
        script=markupsafe.Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        hits=list(zip(hits, titles, sources, strict=True)),
    )


def preview(
    sources: list[Path], timeout: float | None = None
) -> tuple[dict[Path, tuple[str, str]], dict[Path, tuple[str, list, str]]]:
    """Draw and read music, and read texts.

    Returns, by source:
        ("picture", SVG in base64), ("text", its beginning) or ("problem", error);
        of music, (JSON for page.js, buttons as words and where to stop, error).
    """
    timeout = timeout or pictures.TIMEOUT
    previews = {}
    music = []
    for source in dict.fromkeys(sources):
        if source.suffix.lower() == ".txt":
            text = source.read_text(encoding="utf-8-sig", errors="replace").strip()
            previews[source] = ("text", text[:TEXT_LENGTH] + ("…" if len(text) > TEXT_LENGTH else ""))
        else:
            music.append(source)
    drawn = pictures.draw_all(music, timeout)
    boxes = {}
    for source, svg, problem in tqdm(drawn, "pictures", len(music), unit="piece", delay=1, disable=None):
        previews[source] = ("picture", base64.b64encode(svg.encode()).decode()) if svg else ("problem", problem)
        boxes[source] = pictures.bar_boxes(svg) if svg else []
    sounds: dict[Path, tuple[str, list, str]] = {}
    for source, heard in workers.run(sound.read, music, timeout):
        if isinstance(heard, workers.Failed):
            sounds[source] = ("", [], heard.reason)
        else:
            sounds[source] = (*player(heard, boxes[source]), "")
    return previews, sounds


def player(heard: dict, boxes: list[list[float]]) -> tuple[str, list[tuple[str, int]]]:
    """Return the data of page.js, and the words of each button with the millisecond at which it stops."""
    notes, bars, count = heard["notes"], heard["bars"], heard["count"]
    is_marked = len(boxes) == len(bars) - 1  # else it is unknown which bar is where
    data = json.dumps({"notes": notes, "bars": bars, "boxes": boxes if is_marked else []}, separators=(",", ":"))
    end = max(start + length for start, length, _ in notes)
    whole = "whole piece" if count == len(notes) else f"first {len(notes):,} of {count:,} notes"
    return data, [("first bars", bars[-1])] * (end > bars[-1]) + [(whole, end)]
