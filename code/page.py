"""The hits of a search as one self-contained HTML page: nothing in it is fetched from anywhere."""

import base64
import html
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

import features
import files
import pictures

TEXT_LENGTH = 600  # characters of a text that are shown

# Pictures are images of their own, not part of the page: no name or script within a score can reach it.
_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
:root {{ --page: #f7f5f1; --paper: #fff; --ink: #22201c; --soft: #6b665d; --line: #e3dfd6; --accent: #2f6db3 }}
@media (prefers-color-scheme: dark) {{
  :root {{ --page: #171614; --paper: #211f1c; --ink: #ebe7df; --soft: #a39d91; --line: #38352f; --accent: #7fb0e6 }}
  img {{ filter: invert(.9) hue-rotate(180deg) }}
}}
* {{ box-sizing: border-box }}
body {{ margin: 0; background: var(--page); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif }}
main {{ max-width: 54rem; margin: 0 auto; padding: 3rem 1.25rem 5rem }}
h1, h2, blockquote {{ font-family: Georgia, "Times New Roman", serif; font-weight: normal; overflow-wrap: anywhere }}
h1 {{ font-size: clamp(1.5rem, 4vw, 2.2rem); line-height: 1.25; margin: .2rem 0 .6rem }}
h2 {{ font-size: 1.25rem; line-height: 1.3; margin: 0 }}
p {{ margin: 0 }}
.soft {{ color: var(--soft); font-size: .875rem; overflow-wrap: anywhere }}
ol {{ list-style: none; margin: 2.5rem 0 0; padding: 0 }}
article {{ background: var(--paper); border: 1px solid var(--line); border-radius: .6rem; padding: 1.1rem 1.25rem }}
li {{ margin: 0 0 1.1rem }}
.head {{ display: grid; grid-template-columns: 2.2rem 1fr auto; column-gap: .6rem; align-items: baseline }}
.rank {{ color: var(--soft); font-size: 1.25rem; font-family: Georgia, serif }}
.score {{ font-variant-numeric: tabular-nums; text-align: right }}
.bar {{ display: block; width: 5rem; height: .25rem; margin-top: .3rem; border-radius: 1rem; background: var(--line) }}
.bar span {{ display: block; height: 100%; border-radius: 1rem; background: var(--accent) }}
img {{ display: block; width: 100%; height: auto; margin-top: .9rem }}
blockquote {{ margin: .9rem 0 0; padding-left: .9rem; border-left: 3px solid var(--line); white-space: pre-line }}
.none {{ margin-top: .9rem; font-style: italic }}
</style>
</head>
<body>
<main>
"""


@dataclass
class Shown:
    """What there is to see of a piece: one of these, or nothing."""

    svg: str = ""
    text: str = ""
    problem: str = ""  # why there is no picture


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
    parts = [_HEAD.format(title=_escape(f"{heading} – music search"))]
    parts.append('<header><p class="soft">Music search by CLaMP 2</p>')
    parts.append(f"<h1>{_escape(heading)}</h1>")
    nearest = "the nearest piece" if len(hits) == 1 else f"the {len(hits)} nearest pieces"
    about = f"{nearest} of {searched}, by the cosine of their features"
    parts.append(f'<p class="soft">{_escape(about)}</p>')
    if query:
        parts.append(f'<p class="soft">The query: {_escape(str(query))}</p>')
        parts.append(_figure(shown[query], heading))
    parts.append("</header>\n<ol>")
    for hit, source in zip(hits, sources, strict=True):
        title = hit.get("title") or Path(features.key(hit["name"])).name
        parts.append(_hit(hit, title, shown[source] if source else Shown()))
    parts.append("</ol>\n</main>\n</body>\n</html>\n")
    with files.atomic_write(path, "w", encoding="utf-8", errors="xmlcharrefreplace") as file:
        file.write("\n".join(parts))


def look(sources: list[Path]) -> dict[Path, Shown]:
    """Draws or reads all of them."""
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


def _hit(hit: dict, title: str, shown: Shown) -> str:
    share = 100 * min(max(hit["score"], 0), 1)
    return (
        f'<li><article aria-labelledby="hit{hit["rank"]}"><div class="head">'
        f'<span class="rank" aria-label="rank {hit["rank"]}">{hit["rank"]}</span>'
        f'<div><h2 id="hit{hit["rank"]}">{_escape(title)}</h2><p class="soft">{_escape(hit["name"])}</p></div>'
        f'<div class="score" title="cosine similarity"><span aria-label="cosine {hit["score"]:.3f}">'
        f"{hit['score']:.3f}</span>"
        f'<span class="bar" aria-hidden="true"><span style="width:{share:.1f}%"></span></span></div></div>'
        f"{_figure(shown, title)}</article></li>"
    )


def _figure(shown: Shown, title: str) -> str:
    if shown.svg:
        data = base64.b64encode(shown.svg.encode()).decode()
        alt = _escape(f"The first bars of {title}")
        return f'<img alt="{alt}" src="data:image/svg+xml;base64,{data}">'
    if shown.text:
        return f'<blockquote dir="auto">{_escape(shown.text)}</blockquote>'
    if shown.problem:
        return f'<p class="soft none">The first bars cannot be shown: {_escape(shown.problem)}</p>'
    return ""


def _escape(text: str) -> str:
    return html.escape(text, quote=True)
