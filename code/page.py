"""Write the hits of a search as one self-contained HTML page, which loads nothing; its template is page.html."""

import base64
from pathlib import Path

import jinja2
from tqdm import tqdm

import features
import files
import pictures

TEXT_LENGTH = 600  # characters of a text that are shown


def write(
    path: Path, heading: str, query: Path | None, hits: list[dict], sources: list[Path | None], searched: str
) -> None:
    """Write the page.

    Args:
        heading: the query in words.
        query: its file, if there is one, to be drawn below the heading.
        hits: rank, score, name and title of each, as in `--json`.
        sources: the file of each hit, `#N` of a tune included; None if there are only features.
        searched: the folder or features searched, in words.
    """
    previews = preview([source for source in [query, *sources] if source])
    titles = [hit.get("title") or Path(features.without_suffix(hit["name"])).name for hit in hits]
    nearest = "the nearest piece" if len(hits) == 1 else f"the {len(hits)} nearest pieces"
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = templates.get_template("page.html").render(
        heading=heading,
        about=f"{nearest} of {searched}, by the cosine of their features",
        query=query,
        previews=previews,
        hits=list(zip(hits, titles, sources, strict=True)),
    )
    with files.atomic_write(path, "w", encoding="utf-8", errors="xmlcharrefreplace") as file:
        file.write(page + "\n")


def preview(sources: list[Path]) -> dict[Path, tuple[str, str]]:
    """Draw music and read texts: ("picture", SVG in base64), ("text", its beginning) or ("problem", error)."""
    previews = {}
    music = []
    for source in dict.fromkeys(sources):
        if source.suffix.lower() == ".txt":
            text = source.read_text(encoding="utf-8-sig", errors="replace").strip()
            previews[source] = ("text", text[:TEXT_LENGTH] + ("…" if len(text) > TEXT_LENGTH else ""))
        else:
            music.append(source)
    drawn = pictures.draw_all(music)
    for source, svg, problem in tqdm(drawn, "pictures", len(music), unit="piece", delay=1, disable=None):
        previews[source] = ("picture", base64.b64encode(svg.encode()).decode()) if svg else ("problem", problem)
    return previews
