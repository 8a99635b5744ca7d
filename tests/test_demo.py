"""The page of `demo.py` as browsers and programs ask it: answers, many at a time, and what a stranger may try."""

import base64
import html
import os
import queue
import re
import runpy
import shutil
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy.special import softmax

import cache
import config
import demo
import pictures
import semantic_search
import workers
from helpers import KIT, KIT_MODEL
from test_listen import SPY, Browser
from test_page import CHROMIUM, Reader

try:
    import gradio
    import gradio_client
    import httpx
except ImportError:
    gradio = None

pytestmark = pytest.mark.filterwarnings("ignore::Warning:gradio[.].*")
needs_gradio = pytest.mark.skipif(gradio is None, reason="needs Gradio: pip install gradio")
SECRET = "a secret beside the folder"
META = {"_type": "gradio.FileData"}


@pytest.fixture(scope="module")
def patch():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three scores, MIDI and a text, and two links that lead out of the folder."""
    folder = tmp_path_factory.mktemp("demo") / "music"
    folder.mkdir()
    for name in ("abc/solo_jig.abc", "abc/duo.abc", "abc/tiny.abc", "midi/plain.mid", "texts/one_line.txt"):
        shutil.copy(KIT / name, folder)
    (folder / "inside.abc").symlink_to("duo.abc")
    (folder.parent / "secret.txt").write_text(SECRET)
    (folder / "secret.txt").symlink_to("../secret.txt")
    (folder / "out").symlink_to(KIT / "mtf")
    return folder


@pytest.fixture(scope="module")
def model(patch, tmp_path_factory):
    """The kit's model, in this process."""
    import clamp2

    for name, value in (KIT_MODEL | {"FEATURE_CACHE": str(tmp_path_factory.mktemp("cache"))}).items():
        patch.setattr(config, name, value)
    for remembered in (cache._cache, clamp2._tokenizer):
        remembered.cache_clear()
    yield clamp2.load_clamp2()
    for remembered in (cache._cache, clamp2._tokenizer):
        remembered.cache_clear()


@pytest.fixture(scope="module")
def run(patch, model):
    """Runs the command, with these arguments, in a thread; the page that it opens."""
    opened, ends = queue.Queue(), threading.Event()

    def block_thread(blocks):
        opened.put(blocks)
        ends.wait()
        blocks.close(verbose=False)

    if gradio:
        patch.setattr(gradio.Blocks, "block_thread", block_thread)
    threads = []

    def start(*arguments):
        def command():
            if status := demo.main([str(argument) for argument in arguments]):
                opened.put(status)

        threads.append(threading.Thread(target=command))
        threads[-1].start()
        return opened.get(timeout=60)

    yield start
    ends.set()
    for thread in threads:
        thread.join()


@pytest.fixture(scope="module")
def site(run, folder):
    return run(folder).local_url


@pytest.fixture
def in_process(monkeypatch):
    """Files are read in this process, which is quicker; not drawn, for verovio may fail in a thread of a server.

    The hostile files of fifty questions are read as ever.
    """
    in_workers = workers.run

    def run(function, items, *limits):
        if function is pictures.draw:
            return in_workers(function, items, *limits)
        return [(item, function(item)) for item in items]

    monkeypatch.setattr(workers, "run", run)


@pytest.fixture(scope="module")
def http(site):
    with httpx.Client(base_url=site, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def client(site):
    return connect(site)


@pytest.fixture(scope="module")
def features(folder, model):
    """name -> [H], of what is in the folder."""
    import clamp2

    music = ["solo_jig.abc", "duo.abc", "tiny.abc", "plain.mid", "inside.abc"]
    vectors = clamp2.embed_music(model, [folder / name for name in music])
    text = clamp2.embed_texts(model, [(folder / "one_line.txt").read_text()])
    return dict(zip([*music, "one_line.txt"], [*vectors, *text], strict=True))


def keep_environment(monkeypatch):
    """What the command sets is that of `site` again at the end of the test."""
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, os.environ.get(name, ""))


def connect(site) -> "gradio_client.Client":
    return gradio_client.Client(site, verbose=False, httpx_kwargs={"timeout": 60})  # 5 s is little on a busy machine


def cosines(vector, vectors) -> np.ndarray:
    vectors = np.float64(vectors)
    return vectors @ np.float64(vector) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(np.float64(vector))


def page_of(answer: str) -> Reader:
    """The page of hits within the frame of an answer."""
    [(_, words), (tag, frame)] = Reader(answer).elements  # for those who hear it, and those who see it
    assert words == {"class": "sr-only"} and (tag, frame["sandbox"]) == ("iframe", "allow-scripts")
    assert "default-src 'none'" in frame["srcdoc"]
    return Reader(frame["srcdoc"])


def hits_of(answer: str) -> tuple[str, list[tuple[str, float]]]:
    """The heading of an answer, and its hits."""
    texts = page_of(answer).texts
    names = [text for text in texts["p"] if re.search(r"\.(abc|mid|mtf|txt)$", text) and "query" not in text]
    scores = [float(text) for text in texts["span"] if re.fullmatch(r"-?\d\.\d{3}", text)]
    return texts["h1"][0], list(zip(names, scores, strict=True))


def ask(client, sentence=None, file=None) -> str:
    return client.predict(sentence, file and gradio_client.handle_file(str(file)), api_name="/search")


def problem_of(answer: str) -> str:
    reader = Reader(answer)
    assert reader.elements == [("p", {"role": "alert"})]
    return html.unescape(reader.texts["p"][0])


def write_hostile(folder):
    """name -> content, of files that cannot be used, and what the page says of each."""
    said = {
        "broken.mid": (b"MThd\0\0\0\6\0\1\xff\xff\0\x60MTrk\xff\xff\xff\xff" + bytes(range(256)), "no note"),
        "laughs.xml": (b'<!DOCTYPE a [<!ENTITY a "&b;">]><score-partwise>&a;</score-partwise>', "entities"),
        "endless.abc": (b"X:1\nK:C\n" + b"|: C8 :|" * 300_000, "took over 0.5 s of CPU time"),
    }
    for name, (content, _) in said.items():
        (folder / name).write_bytes(content)
    return {folder / name: words for name, (_, words) in said.items()}


@needs_gradio
def test_fifty_questions_of_eight_clients_while_hostile_files_come(site, features, model, tmp_path, monkeypatch):
    import clamp2

    monkeypatch.setattr(demo, "SECONDS", 0.5)
    monkeypatch.setattr(demo, "HITS", 2)  # their pages cost most of the time
    questions = [f"question {number} <b>" for number in range(50)]
    expected = {}
    for question, vector in zip(questions, clamp2.embed_texts(model, questions), strict=True):
        scores = cosines(vector, list(features.values()))
        expected[question] = dict(zip(features, scores, strict=True))
    hostile = write_hostile(tmp_path)

    def one_client(mine):
        client = connect(site)
        jobs = [client.submit(question, None, api_name="/search") for question in mine]  # all at a time
        return [hits_of(job.result(timeout=60)) for job in jobs]

    def intruder(file):
        return problem_of(ask(connect(site), file=file))

    with ThreadPoolExecutor(8 + len(hostile)) as threads:
        refused = threads.map(intruder, hostile)
        answers = threads.map(one_client, [questions[start::8] for start in range(8)])
    assert len(features) == 6
    for start, mine in enumerate(answers):
        assert [heading for heading, _ in mine] == [f"“{question}”" for question in questions[start::8]]
        for question, (_, hits) in zip(questions[start::8], mine, strict=True):
            best = sorted(expected[question].values(), reverse=True)[:2]
            assert [score for _, score in hits] == pytest.approx(best, abs=6e-4)
            assert [expected[question][name] for name, _ in hits] == pytest.approx(best, abs=1e-5)
    for (file, words), found in zip(hostile.items(), refused, strict=True):
        assert found.startswith(file.name) and words in found


@needs_gradio
def test_a_file_finds_itself_and_is_drawn_and_can_be_played(in_process, client, folder, features):
    answer = ask(client, file=folder / "duo.abc")
    heading, hits = hits_of(answer)
    expected = dict(zip(features, cosines(features["duo.abc"], list(features.values())), strict=True))
    assert heading == "duo" and dict(hits) == pytest.approx(expected, abs=6e-4)
    assert {name for name, score in hits if score == 1} == {"duo.abc", "inside.abc"}
    reader = page_of(answer)
    assert "The query: duo.abc" in reader.texts["p"]  # without the folder that it was uploaded to
    images = [a["src"] for tag, a in reader.elements if tag == "img"]
    assert len(images) == 6  # the query and five hits; the sixth is a text
    assert all(b"<svg" in base64.b64decode(source.partition(",")[2]) for source in images)
    assert len([a for _, a in reader.elements if "data-sound" in a]) == 6


@needs_gradio
def test_the_classes_of_a_file(in_process, client, folder, features, model):
    import clamp2

    sentences = ["A jig.", "Une gigue.", "Ein Walzer: langsam"]
    vectors = np.float64(clamp2.embed_texts(model, sentences))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    classes = np.stack([vectors[:2].mean(axis=0), vectors[2]])
    expected = softmax(cosines(features["plain.mid"], classes) / 0.07)
    file = gradio_client.handle_file(str(folder / "plain.mid"))
    lines = "jig: A jig.\n\n waltz：Ein Walzer: langsam\njig :Une gigue.\n"
    shares, note = client.predict(file, lines, api_name="/classify")
    found = {one["label"]: one["confidence"] for one in shares["confidences"]}
    assert found == pytest.approx(dict(zip(["jig", "waltz"], expected, strict=True)), abs=1e-4) and note == demo.DONE
    shares, note = client.predict(file, "<i>A: same\nB: same\n", api_name="/classify")
    assert [one["confidence"] for one in shares["confidences"]] == [0.5, 0.5]
    assert "in doubt: the features of '<i>A' and 'B' are equal" in problem_of(note)
    for given, lines, words in ((file, "A jig.", "2 to 100 classes"), (None, "A jig.\nA reel.", "drop a file")):
        shares, note = client.predict(given, lines, api_name="/classify")
        assert not shares.get("confidences") and words in problem_of(note)


@needs_gradio
@pytest.mark.parametrize(
    ("sentence", "name", "content", "words"),
    [
        ("", None, "", "type a sentence or drop a file, one of the two"),
        ("a reel", "a.txt", "a reel", "one of the two"),
        ("x" * 10_001, None, "", "10,001 characters; the page takes 10,000"),
        (None, "a.txt", "x" * 10_001, "a text of 10,001 characters; the page takes 10,000"),
        (None, "a.abc", "X:1\nK:C\nCDEF|\n\nX:2\nK:C\nCDEF|\n", "a.abc: holds 2 tunes; drop a file of one"),
        (
            None,
            "a.mtf",
            "ticks_per_beat 4\n" + "note_on 1 0 60 64\n" * 100,
            "patches, and it takes 20",
        ),
        (None, "a.mid", "<img src=x>", "a.mid: not a MIDI file"),
    ],
)
def test_questions_that_cannot_be_answered(in_process, client, tmp_path, monkeypatch, sentence, name, content, words):
    monkeypatch.setattr(demo, "PATCHES", 20)
    file = None
    if name:
        file = tmp_path / name
        file.write_text(content)
    assert words in problem_of(ask(client, sentence, file))


@needs_gradio
def test_other_files_and_large_ones_are_refused_at_once(client, tmp_path):
    (tmp_path / "a.npy").write_bytes(b"x")
    with pytest.raises(gradio_client.exceptions.AppError, match="Invalid file type"):
        ask(client, file=tmp_path / "a.npy")
    with open(tmp_path / "large.abc", "wb") as file:
        file.truncate(demo.BYTES + 1)
    with open(tmp_path / "large.abc", "rb") as file:
        answer = httpx.post(f"{client.src}gradio_api/upload", files={"files": ("large.abc", file)})
    assert answer.status_code == 413


@needs_gradio
def test_a_large_request_and_other_doors_of_gradio_are_closed(http):
    def chunks():  # without a length in the head
        for _ in range(9):
            yield b"x" * 2**20

    assert http.post("gradio_api/queue/join", content=chunks()).status_code == 413
    assert http.get("gradio_api/info").status_code == 200
    for path in ("custom_component/%1b[31m/client/a/b", "deep_link?session_hash=x", "run/search", "dev/reload"):
        assert http.get(f"gradio_api/{path}").status_code == 404
    film = {"video": ("a.mp4", b"ffconcat version 1.0\nfile /etc/passwd\n")}  # ffmpeg would run without any limit
    for method in ("process_recording", "component_server", "run/search"):
        answer = http.post(f"gradio_api/{method}", files=film)
        assert (answer.status_code, answer.content) == (404, b"")


@needs_gradio
def test_what_is_too_long_is_not_drawn(in_process, model, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "PATCHES", 1)
    monkeypatch.setattr(demo.page, "preview", lambda *arguments: pytest.fail("drawn"))
    with pytest.raises(demo.InputError, match="too long"):
        demo.Library(folder).search(None, str(folder / "duo.abc"))


def test_what_has_left_the_folder_since_the_start_is_not_shown(in_process, model, folder, tmp_path):
    """A file that is gone, or a link out of the folder now; the path of the folder is not shown either."""
    shutil.copytree(folder, tmp_path / "music", symlinks=True)
    (tmp_path / "secret.txt").touch()  # nothing yet
    library = demo.Library(tmp_path / "music")
    (tmp_path / "secret.txt").write_text(SECRET)
    for name in ("one_line.txt", "duo.abc", "tiny.abc"):
        (tmp_path / "music" / name).unlink()
    (tmp_path / "music" / "one_line.txt").symlink_to("../secret.txt")
    os.mkfifo(tmp_path / "music" / "duo.abc")
    page = library.search("a reel", None)
    assert SECRET not in page and str(tmp_path) not in page
    assert [name for name in ("one_line.txt", "duo.abc", "tiny.abc") if name in page] and page.count("<img") == 2


@needs_gradio
def test_links_out_of_the_folder_are_left_out_and_named(in_process, folder, model, capsys):
    music = demo.without_outsiders(folder, semantic_search.read_folder(folder))
    assert sorted(music.names) == [
        "duo.abc",
        "inside.abc",
        "one_line.txt",
        "plain.mid",
        "solo_jig.abc",
        "tiny.abc",
    ]
    assert len(music.titles) == len(music.matrix) == 6
    said = capsys.readouterr().err
    assert "6 pieces" in said and "  secret.txt\n" in said and "  out/plain.mtf\n" in said


def request(http, inputs) -> str:
    """What the page answers to inputs as a program may write them."""
    event = http.post("gradio_api/call/search", json={"data": inputs}).json()["event_id"]
    return http.get(f"gradio_api/call/search/{event}").text


@needs_gradio
@pytest.mark.parametrize(
    "path",
    ["{folder}/../secret.txt", "../secret.txt", "{folder}/secret.txt", "/etc/passwd", "{upload}/../../etc/passwd"],
)
def test_no_path_is_served_or_read(http, site, folder, path):
    """Whether it is asked for, or given as the file that was dropped; the files of FOLDER neither."""
    path = path.format(folder=folder, upload=os.environ["GRADIO_TEMP_DIR"])
    for ask_for in ("gradio_api/file=", "gradio_api/file/", "static/", "assets/"):
        for spelled in (path, path.replace("/", "%2f"), path.replace("..", "%2e%2e")):
            answer = http.get(f"{site}{ask_for}{spelled}")
            assert answer.status_code in (403, 404), (ask_for, spelled)
    for file in ({"path": path, "meta": META}, {"path": path}, path, {"path": "a", "url": path, "meta": META}):
        for inputs in ([None, file], [file, None]):
            answer = request(http, inputs)
            is_text = inputs[0] and "meta" not in file  # as a sentence it is words
            assert is_text or answer.startswith("event: error"), answer[:300]
            assert SECRET not in answer and "root:" not in answer


@needs_gradio
@pytest.mark.parametrize("host", ["example.org", "huggingface.co"])
def test_the_page_fetches_nothing_for_a_stranger(http, site, monkeypatch, host):
    fetched, look_up = [], socket.getaddrinfo

    def getaddrinfo(name, *arguments, **options):
        return look_up("93.184.216.34" if name == host else name, *arguments, **options)

    async def send(self, request, **options):
        fetched.append(request.url)
        return httpx.Response(200, content=b"X:1\nK:C\nCDEF|\n", request=request)

    monkeypatch.setattr(httpx.AsyncClient, "send", send)
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    link = f"http://{host}/a.abc"
    for file in ({"path": link, "meta": META}, {"path": "a.abc", "url": link, "meta": META}):
        for inputs in ([None, file], [file, None]):
            assert request(http, inputs).startswith("event: error")
    for ask_for in ("file=", "proxy="):
        assert http.get(f"{site}gradio_api/{ask_for}{link}").status_code in (400, 403, 404)
    assert not fetched


def test_without_gradio_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    keep_environment(monkeypatch)
    assert demo.main([str(KIT)]) == 2
    assert capsys.readouterr().err == (
        "error: the page is made with Gradio, which is not installed: pip install gradio\n"
    )


@pytest.mark.parametrize(
    ("host", "port", "words"),
    [
        ("203.0.113.1", "7860", "--host 203.0.113.1: not an address of this machine (Cannot assign"),
        ("no host", "7860", "--host no host: not an address of this machine ("),
        ("127.0.0.1", "a", "GRADIO_SERVER_PORT is 'a', not a number"),
    ],
)
def test_an_address_that_is_not_there(monkeypatch, capsys, host, port, words):
    monkeypatch.setenv("GRADIO_SERVER_PORT", port)
    assert demo.main([str(KIT), "--host", host]) == 2
    assert words in capsys.readouterr().err


def test_sigterm_removes_the_uploads_as_ctrl_c_does(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(sys, "argv", ["demo.py", str(KIT)])
    keep_environment(monkeypatch)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(SystemExit):
            runpy.run_path(demo.__file__, run_name="__main__")
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_an_error_of_the_system_does_not_show_a_path():
    def ask(path):
        raise FileNotFoundError(2, "No such file or directory", path)

    assert demo.answered(ask, "/home/me/music") == (None, '<p role="alert">No such file or directory</p>')


@needs_gradio
def test_an_empty_folder_is_an_error(tmp_path, monkeypatch, capsys):
    keep_environment(monkeypatch)
    assert demo.main([str(tmp_path)]) == 2
    assert "there is no music, text or .npy file in it" in capsys.readouterr().err


@needs_gradio
def test_it_is_open_to_this_machine_alone_unless_told_otherwise(in_process, run, site, folder, monkeypatch):
    asked, tunnels = [], []
    monkeypatch.setattr(gradio.networking, "setup_tunnel", lambda **options: tunnels.append(options) or "https://x")
    monkeypatch.setattr(demo.published, "provide", lambda path, download: asked.append(download))
    keep_environment(monkeypatch)
    monkeypatch.setenv("GRADIO_SHARE", "True")
    blocks = run(folder, "--host", "localhost")
    assert (
        not blocks.share
        and not tunnels
        and not blocks.analytics_enabled
        and os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    )
    assert blocks.server_name == "localhost" and site.startswith("http://127.0.0.1:")
    assert not asked
    monkeypatch.setenv("SPACE_ID", "me/demo")  # the environment of a Space, which gives no arguments
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    blocks = run()
    assert blocks.server_name == "0.0.0.0" and asked == [True]
    assert "4 pieces in examples" in httpx.get(blocks.local_url).text


@pytest.fixture
def browser(tmp_path):
    browser = Browser(tmp_path / "profile")
    yield browser
    browser.process.kill()
    browser.process.wait()
    os.close(browser.requests), os.close(browser.answers)


def drop(browser, path):
    """Drops a file on the field for files that is shown."""
    x, y = browser.ask(
        "(() => { const box = [...document.querySelectorAll('button')].find(b => b.offsetParent && /Drop/.test(b.innerText))"
        ".getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2] })()"
    )
    data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        browser("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)


def names(browser, *roles) -> list[str]:
    tree = [node for node in browser("Accessibility.getFullAXTree")["nodes"] if not node["ignored"]]
    return [node["name"]["value"] for node in tree if node["role"]["value"] in roles]


def frame_of(browser) -> str:
    """The session of the frame within the page, which has a process of its own."""
    for _ in range(200):
        browser.ask("0")  # collects events
        attached = [e["params"] for e in browser.events if e.get("method") == "Target.attachedToTarget"]
        if frames := [event["sessionId"] for event in attached if event["targetInfo"]["type"] == "iframe"]:
            return frames[0]
        time.sleep(0.05)
    return pytest.fail("there is no frame of its own process")


@needs_gradio
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_chromium_asks_hears_and_classifies(in_process, browser, site, folder):
    """By keys alone, but for the file that is dropped. Everything comes from the page's own address."""
    for domain in ("Page", "Network", "Log", "Runtime", "Accessibility"):
        browser(f"{domain}.enable")
    browser("Target.setAutoAttach", autoAttach=True, waitForDebuggerOnStart=False, flatten=True)
    browser("Page.navigate", url=site)
    shown = "[...document.querySelectorAll('button')].some(b => b.innerText === '{}' && b.offsetParent && !b.role)"
    browser.wait_for(shown.format("Search"), 60)
    for _ in range(50):  # the tree follows the page a little later
        fields, buttons = names(browser, "textbox"), names(browser, "button")
        if fields and "Search" in buttons:
            break
        time.sleep(0.1)
    assert fields == ["A sentence, in any language"] and "Search" in buttons
    assert names(browser, "tab") == ["Search", "Classes"] and names(browser, "heading") == ["CLaMP 2"]
    for _ in range(9):
        browser.press("Tab", 9)
        if browser.ask("document.activeElement.matches('input[type=text], textarea')"):
            break
    browser("Input.insertText", text="a lively reel")
    browser.press("Enter", 13, "\r")
    browser.wait_for("!!document.querySelector('iframe')", 60)
    assert browser.ask("document.querySelector('.prose[aria-live=polite] .sr-only').offsetWidth") == 1  # only heard

    page, browser.session = browser.session, {"sessionId": frame_of(browser)}
    for domain in ("Network", "Log", "Runtime"):
        browser(f"{domain}.enable")
    browser.wait_for("document.querySelectorAll('li').length === 6")
    assert browser.ask("document.querySelector('h1').innerText") == "“a lively reel”"
    browser.wait_for("[...document.images].length === 5 && [...document.images].every(i => i.naturalWidth > 0)")
    browser.ask(SPY + "document.querySelector('button:not([hidden])').focus()")
    browser.press("Space", 32, " ")
    browser.wait_for("tones.length > 3 && level() > 0.02")
    browser.press("Space", 32, " ")
    browser.wait_for("contexts[0].state === 'closed'")
    assert browser.ask("self.origin") == "null"  # it cannot reach the page around it, nor ask its server

    browser.session = page
    browser.ask("[...document.querySelectorAll('[role=tab]')].at(-1).focus()")
    browser.press("Enter", 13, "\r")
    browser.wait_for(shown.format("Classify"))
    drop(browser, folder / "duo.abc")
    browser.wait_for("document.body.innerText.includes('duo.abc') || document.body.innerText.includes('.abc')")
    browser.ask("[...document.querySelectorAll('button')].find(b => b.innerText === 'Classify').click()")
    browser.wait_for(
        "/waltz\\s*\\d+%/.test(document.body.innerText) && /jig\\s*\\d+%/.test(document.body.innerText)", 60
    )

    urls = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    assert len(urls) > 10 and all(url.startswith((site, "data:", "about:srcdoc")) for url in urls)
    assert not [e for e in browser.events if e.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown")]
