"""The hits of a search as one self-contained HTML page (its template is page.html), which fetches nothing."""

import base64
from dataclasses import dataclass
from pathlib import Path

import jinja2
from tqdm import tqdm

import features
import files
import pictures

TEXT_LENGTH = 600  # characters of a text that are shown


@dataclass
class Shown:
    """One of these for a hit, or none: its picture, its text, why there is no picture."""

    svg: str = ""
    text: str = ""
    problem: str = ""

    @property
    def svg_base64(self) -> str:
        return base64.b64encode(self.svg.encode()).decode()


def write(
    path: Path, heading: str, query: Path | None, hits: list[dict], sources: list[Path | None], searched: str
) -> None:
    """Writes the page.

    Args:
        heading: the query in words.
        query: its file, to be drawn below the heading, if there is one.
        hits: rank, score, name and title of each, as `--json` has them.
        sources: the file of each hit, `#N` of a tune included; None: there are features only.
        searched: what was searched, in words.
    """
    shown = look([source for source in [query, *sources] if source])
    titles = [hit.get("title") or Path(features.without_suffix(hit["name"])).name for hit in hits]
    looks = [shown[source] if source else Shown() for source in sources]
    nearest = "the nearest piece" if len(hits) == 1 else f"the {len(hits)} nearest pieces"
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = templates.get_template("page.html").render(
        heading=heading,
        about=f"{nearest} of {searched}, by the cosine of their features",
        query=query,
        shown=shown,
        hits=list(zip(hits, titles, looks, strict=True)),
    )
    with files.atomic_write(path, "w", encoding="utf-8", errors="xmlcharrefreplace") as file:
        file.write(page + "\n")


def look(sources: list[Path]) -> dict[Path, Shown]:
    """Draws music and reads texts."""
    shown = {}
    music = []
    for source in dict.fromkeys(sources):
        if source.suffix.lower() == ".txt":
            text = source.read_text(encoding="utf-8-sig", errors="replace").strip()
            shown[source] = Shown(text=text[:TEXT_LENGTH] + ("…" if len(text) > TEXT_LENGTH else ""))
        else:
            music.append(source)
    drawn = pictures.draw_all(music)
    for source, svg, problem in tqdm(drawn, "pictures", len(music), unit="piece", delay=1, disable=None):
        shown[source] = Shown(svg=svg, problem=problem)
    return shown
