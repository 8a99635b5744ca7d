"""Ask in a browser: the music of a folder that is most similar to a sentence or a file, and the class of a file.

examples:
  python demo.py music/                       # prints the address of the page: http://127.0.0.1:7860
  python demo.py music/ --download            # downloads the published weights
  python demo.py music/ --host 0.0.0.0        # also for other machines, which the page does not ask who they are

The page is made with Gradio (pip install gradio). FOLDER holds music and texts, or features, as for semantic_search.py;
without it, the folder `music` beside `code`, or else a few examples, is searched. Its features are cached before the
page opens. Only what is in FOLDER is shown: a link that leads out of it is left out. Files that are dropped are read in
worker processes with limits of time and memory, and removed at the end. Nothing is fetched, shared or reported.
As a Space of the hub: `sdk: gradio` and `app_file: code/demo.py` in its README.md, a line `gradio` in requirements.txt.
"""

import argparse
import html
import os
import re
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import command_line

if __name__ == "__main__":
    command_line.begin()  # before the imports below, which take a while

import numpy as np

import cache
import classify
import config
import files
import page
import pieces
import published
import semantic_search
from features import INPUT_SUFFIXES, Features
from files import InputError
from pieces import Piece

if TYPE_CHECKING:
    import gradio

HITS = 10
AT_ONCE = 32  # questions that are read, answered or drawn at a time; the others wait
# Of one question, at most:
BYTES = 8 * 2**20  # of a file
SECONDS = 10  # of CPU time to read it, to draw it, and to find its notes
PATCHES = 16_384  # of its music
CHARACTERS = 10_000  # of a text, or of all classes
CLASSES = 100
REMEMBERED = 500  # pictures of FOLDER's pieces that are kept in memory
# The page's own requests and those of programs that ask it. Gradio answers more: it converts films, and prints paths.
OPEN = re.compile(
    r"/((config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)/?|(static|assets)/.*|gradio_api/"
    r"(info|app_id|startup-events|(heartbeat|call)/.*|upload|upload_progress|queue/(join|data)|cancel|reset|file=.*)/?)?",
    re.DOTALL,
)
# Screen readers read DONE out, as the part of the page that it comes into is live before.
LIVE = "() => { for (const answer of document.querySelectorAll('.prose.answer')) answer.ariaLive = 'polite' }"
DONE = '<p class="sr-only">The answer is there.</p>'
FRAME = DONE + '<iframe title="The answer" sandbox="allow-scripts" style="{}" srcdoc="{}"></iframe>'
SIZE = "display: block; width: 100%; height: max(75vh, 30rem); border: 0; border-radius: .6rem"


class Library:
    """A folder of music, its features and the model, and the answers to questions, which may come from any thread."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.music = without_outsiders(folder, semantic_search.read_folder(folder))
        asked = Features([], np.empty((0, config.CLAMP2_HIDDEN_SIZE), np.float32))
        asked.made_with = {"a question": cache.made_with()}
        semantic_search.require_alike("a question", asked, folder, self.music)
        self.model = cache.model()
        self.embeds = threading.Lock()  # the model has one question at a time
        self.draws = threading.Lock()
        self.reads = threading.BoundedSemaphore(files.core_count())  # bad files wait for each other, not sentences
        self.shown: dict[Path, tuple] = {}  # previews and sounds of FOLDER's pieces, as of `page.preview`

    def search(self, sentence: str | None, file: str | None) -> str:
        """Return the page of the hits. Raises InputError, OSError."""
        sentence = clean(sentence)
        if bool(sentence) == bool(file):
            raise InputError("type a sentence or drop a file, one of the two")
        if file:
            path = Path(file)
            with self.reads:
                piece = read(path)
                vector = self.embed(piece)  # before it is drawn, which takes longer: it may be too long
                previews, sounds = page.preview([path], SECONDS)
        else:
            [piece] = pieces.read(sentence.encode(), ".txt")
            path, vector, previews, sounds = None, self.embed(piece), {}, {}
        [hits] = semantic_search.find_hits(vector, self.music, HITS)
        sources = [self.source_of(hit["name"]) for hit in hits]
        drawn = self.preview([source for source in sources if source])
        heading = (piece.title or path.name) if path else f"“{sentence}”"
        searched = f"{len(self.music.names):,} pieces in {self.folder.resolve().name}"
        return page.render(heading, path, hits, sources, searched, previews | drawn[0], sounds | drawn[1])

    def classify(self, file: str | None, lines: str | None) -> tuple[dict[str, float], list[str]]:
        """Return the probability of each class, and why the answer is in doubt. Raises InputError, OSError."""
        if not file:
            raise InputError("drop a file")
        question = read_classes(clean(lines))
        with self.reads:
            music = Features([Path(file).name], self.embed(read(Path(file))))
        with self.embeds:
            classes = Features(list(question), classify.embed(question))
        answer = classify.answer(music, classes, classify.TEMPERATURE)
        return answer["answers"][0]["probabilities"], answer["doubts"]

    def embed(self, piece: Piece) -> np.ndarray:
        """Embed a question, [1, H], which is not remembered. Raises InputError."""
        import clamp2

        if not piece.is_music and len(piece.text) > CHARACTERS:
            raise InputError(f"a text of {len(piece.text):,} characters; the page takes {CHARACTERS:,}")
        if piece.is_music and (length := len(clamp2.encode(piece, self.model.keep_unit_length))) > PATCHES:
            raise InputError(f"too long for the page: {length:,} patches, and it takes {PATCHES:,}")
        with self.embeds:
            return np.stack([vector for _, vector in clamp2.embed_pieces(self.model, [(0, piece)])])

    def source_of(self, name: str) -> Path | None:
        """Return the file of a hit, if it may be shown: FOLDER may have changed since it was read."""
        source = semantic_search.source_of(self.folder, name)
        return source if self.music.titles and is_inside(self.folder, source) else None

    def preview(self, sources: list[Path]) -> tuple[dict, dict]:
        """Return the previews and sounds of pieces of FOLDER, as `page.preview` does, and remember some."""
        found = {source: self.shown.get(source) for source in sources}
        if missing := [source for source in sources if not found[source]]:
            with self.draws:
                previews, sounds = page.preview([source for source in missing if source not in self.shown])
                self.shown |= {source: (drawn, sounds.get(source)) for source, drawn in previews.items()}
                found |= {source: self.shown[source] for source in missing}
                for source in list(self.shown)[:-REMEMBERED]:
                    del self.shown[source]
        shown = [(source, *pair) for source, pair in found.items() if pair]
        return {source: drawn for source, drawn, _ in shown}, {source: heard for source, _, heard in shown if heard}


def is_inside(folder: Path, source: Path) -> bool:
    """Whether a piece, `#N` of a tune included, is a file within the folder once all links are followed."""
    path, _ = pieces.locate(source)
    return path.is_file() and path.resolve().is_relative_to(folder.resolve())


def without_outsiders(folder: Path, music: Features) -> Features:
    """Leave out, and name, the pieces that a link within the folder leads to outside of it. Raises InputError."""
    inside, outside = list[int](), list[int]()
    for row, name in enumerate(music.names):
        is_shown = not music.titles or is_inside(folder, semantic_search.source_of(folder, name))
        (inside if is_shown else outside).append(row)  # of features, only the name is shown
    files.name_all(f"pieces of {folder} left out", music.skipped)
    files.name_all(f"pieces of {folder} left out: links that lead out of it", [music.names[row] for row in outside])
    if not inside:
        raise InputError(f"{folder}: all pieces are links that lead out of it")
    if outside:
        music.names, music.titles = ([of[row] for row in inside] for of in (music.names, music.titles))
        music.matrix = music.matrix[inside]
    return music


def clean(text: str | None) -> str:
    """Return a text of a form: without spaces around it, and with ? for what is not Unicode. Raises InputError."""
    text = (text or "").strip().encode("utf-8", "replace").decode()
    if len(text) > CHARACTERS:
        raise InputError(f"{len(text):,} characters; the page takes {CHARACTERS:,}")
    return text


def read(path: Path) -> Piece:
    """Read a file that was dropped, in a worker process. Raises InputError."""
    if path.suffix.lower() not in INPUT_SUFFIXES:
        raise InputError(f"{path.name}: of unknown type; a file is one of {' '.join(INPUT_SUFFIXES)}")
    [(_, _, found)] = pieces.read_files([path], SECONDS)
    if len(found) != 1:
        raise InputError(f"{path.name}: holds {len(found)} tunes; drop a file of one")
    if found[0].error:
        raise InputError(f"{path.name}: {found[0].error}")
    return found[0]


def read_classes(lines: str) -> classify.Question:
    """Read classes, a line each: `jig: A lively jig.`, or only the sentence. Lines of one label are one class."""
    question: classify.Question = {}
    for line in filter(None, map(str.strip, lines.splitlines())):
        label, sentence = found.groups() if (found := re.fullmatch(r"(.+?)\s*[:：]\s*(.+)", line)) else (line, line)
        question.setdefault(label, []).append(sentence)
    if not 2 <= len(question) <= CLASSES:
        raise InputError(f"write 2 to {CLASSES} classes, a line each; there are {len(question)}")
    return question


# --- the page ---------------------------------------------------------------------------------------------------------


def build(library: Library) -> "gradio.Blocks":
    import gradio

    def search(sentence: str | None, file: str | None) -> str:
        hits, wrong = answered(library.search, sentence, file)
        return wrong or FRAME.format(SIZE, html.escape(hits))

    def classify_file(file: str | None, lines: str | None) -> tuple[dict[str, float] | None, str]:
        answer, wrong = answered(library.classify, file, lines)
        if wrong:
            return None, wrong
        shares, doubts = answer
        return shares, problem(f"in doubt: {'; '.join(doubts)}") if doubts else DONE

    about = f"{len(library.music.names):,} pieces in {library.folder.resolve().name}"
    types = list(INPUT_SUFFIXES)
    with gradio.Blocks(title="CLaMP 2", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        gradio.HTML(f"<h1>CLaMP 2</h1><p>{html.escape(about)}</p>")
        with gradio.Tab("Search"):
            with gradio.Row():
                sentence = gradio.Textbox(label="A sentence, in any language", placeholder="a sad waltz", scale=2)
                dropped = gradio.File(label="or a file of music or text", file_types=types, height=160, min_width=280)
            button = gradio.Button("Search", variant="primary")
            hits = gradio.HTML(label="The answer", elem_classes="answer")
            asked = [button.click, sentence.submit]
            gradio.on(asked, search, [sentence, dropped], hits, api_name="search")
        with gradio.Tab("Classes"):
            with gradio.Row():
                example = "jig: A lively jig in 6/8.\nwaltz: A slow waltz."
                lines = gradio.Textbox(
                    example, label="Classes, a line each: a sentence, or label: sentence", lines=6, min_width=280
                )
                piece = gradio.File(label="A file of music or text", file_types=types, height=160, min_width=280)
            ask = gradio.Button("Classify", variant="primary")
            shares = gradio.Label(label="Confidence")
            note = gradio.HTML(elem_classes="answer")
            ask.click(classify_file, [piece, lines], [shares, note], api_name="classify")
        gradio.on([*asked, ask.click], js=LIVE)
    return blocks.queue(default_concurrency_limit=AT_ONCE)


def answered(ask: Callable, *question: str | None) -> tuple[Any, str]:
    """Return the answer to a question, and "" or what is wrong with it, as HTML."""
    try:
        return ask(*question), ""
    except InputError as error:
        return None, problem(str(error))
    except OSError as error:
        return None, problem(error.strerror or type(error).__name__)


def problem(words: str) -> str:
    return f'<p role="alert">{html.escape(files.printable(words))}</p>'


class Door:
    """Lets in the requests that the page needs, of limited size."""

    def __init__(self, app: Callable):
        self.app = app

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        from starlette.exceptions import HTTPException
        from starlette.responses import Response

        size = 0

        async def receive_some() -> dict:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > BYTES + 2**16:  # a form around a file
                raise HTTPException(413)
            return message

        if scope["type"] == "http" and not OPEN.fullmatch(scope["path"]):
            await Response(status_code=404)(scope, receive, send)
        else:
            await self.app(scope, receive_some, send)


def launch(blocks: "gradio.Blocks", host: str) -> str:
    """Open the page. Returns its address."""
    import gradio
    import safehttpx
    from starlette.middleware import Middleware

    async def refuse(host: str) -> NoReturn:
        raise InputError("links are not followed: drop the file")

    # A file of a request may be a link, which Gradio would download whole, of any size.
    safehttpx.async_validate_url = refuse
    gradio.processing_utils.PUBLIC_HOSTNAME_WHITELIST.clear()
    theme = gradio.themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"])
    off = {"share": False, "ssr_mode": False, "pwa": False, "mcp_server": False, "run_history": False}
    _, address, _ = blocks.launch(
        server_name=host,
        max_file_size=BYTES,
        theme=theme,
        footer_links=[],
        enable_monitoring=False,
        quiet=True,
        prevent_thread_lock=True,
        max_threads=AT_ONCE + 8,
        app_kwargs={"middleware": [Middleware(Door)]},
        **off,
    )
    return address


def demo(args: argparse.Namespace) -> int:
    require_address(args.host, os.environ.get("GRADIO_SERVER_PORT", "7860"))
    with tempfile.TemporaryDirectory() as uploads:
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": uploads}  # as Gradio is imported
        try:
            import gradio  # noqa: F401
        except ImportError as error:
            raise InputError("the page is made with Gradio, which is not installed: pip install gradio") from error
        if args.download or "SPACE_ID" in os.environ:
            published.provide(config.resolve(config.CLAMP2_WEIGHTS_PATH), download=True)
        blocks = build(Library(args.folder))
        print(f"{launch(blocks, args.host)}  (Ctrl-C ends it)", flush=True)
        blocks.block_thread()
    return 0


def require_address(host: str, port: str) -> None:
    """Raise InputError for an address that this machine does not have, with which Gradio would try a hundred ports."""
    if not port.isdigit():
        raise InputError(f"GRADIO_SERVER_PORT is {port!r}, not a number")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host.strip("[]"), 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as listener:
            listener.bind(address)
    except OSError as error:
        raise InputError(f"--host {host}: not an address of this machine ({error.strerror})") from error


def default_folder() -> Path:
    top = config.resolve("..").resolve()
    return top / "music" if (top / "music").is_dir() else top / "tests" / "examples"


def default_host() -> str:
    """Return this machine alone, unless the environment names a host, or is that of a Space."""
    return os.environ.get("GRADIO_SERVER_NAME") or ("0.0.0.0" if "SPACE_ID" in os.environ else "127.0.0.1")


def get_args_parser() -> argparse.ArgumentParser:
    parser = command_line.summarized(__doc__)
    parser.set_defaults(run=demo)
    about = "a folder of music and texts or of features"
    parser.add_argument("folder", metavar="FOLDER", type=Path, nargs="?", default=default_folder(), help=about)
    about = "the address to listen on (default: GRADIO_SERVER_NAME of the environment, or 127.0.0.1)"
    parser.add_argument("--host", default=default_host(), help=about)
    about = "download the published weights to CLAMP2_WEIGHTS_PATH if none are there"
    parser.add_argument("--download", action="store_true", help=about)
    return parser


def main(argv: list[str] | None = None) -> int:
    return files.run_command(get_args_parser(), argv)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends it as Ctrl-C does, and the uploads are removed
    sys.exit(main())
