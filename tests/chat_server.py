"""A chat server on loopback whose behaviour a test writes; records to ask it about; and runs of the real script."""

import functools
import http.server
import json
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

import chat
import gpt4_summarize

SCRIPTS = Path(gpt4_summarize.__file__).parent
KEY = "sk-test-Zq81Vx4LmT07secretKey5530"
ENGLISH = "A lively Irish jig in D major. Its two parts are full of leaps, and it suits a session."
IN_OTHER = {
    "French": "Une gigue irlandaise pleine d'entrain, en ré majeur, dont les deux parties conviennent à la danse.",
    "Russian": "Живая ирландская джига в ре мажоре из двух частей, полных скачков.",
    "Japanese": "ニ長調の軽快なアイルランドのジグで、二つの部分からなる踊りの曲です。",
}


class Server(http.server.ThreadingHTTPServer):
    """A chat server whose behaviour a test writes: `behave(title, count, request) -> answer`.

    `count` is 1 at the first request for a title. An answer is a text (the model's), a dict (the model's JSON), or a
    function of the handler. Every request and answer is recorded.
    """

    daemon_threads = True

    def __init__(self, behave=None, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.behave = behave or (lambda title, count, request: good(request))
        self.requests, self.answered, self.counts = [], [], Counter()
        self.active = self.most_active = 0
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):
        pass  # clients that are killed are part of the tests

    def close(self):
        self.shutdown()
        self.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args):
        pass

    def do_POST(self):
        server = self.server
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        request["path"], request["key"] = self.path, self.headers["Authorization"]
        request["time"] = time.monotonic()
        request["title"] = title = json.loads(asked(request)[1]).get("title")
        with server.lock:
            server.requests.append(request)
            server.counts[title] += 1
            count = server.counts[title]
            server.active += 1
            server.most_active = max(server.active, server.most_active)
        try:
            answer = server.behave(title, count, request)
            if callable(answer):
                answer(self)
            else:
                content = answer if isinstance(answer, str) else json.dumps(answer)
                self.say(200, completion(content))
                server.answered.append(title)
        finally:
            with server.lock:
                server.active -= 1

    def say(self, status, body, **headers):
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)


def asked(request):
    """(language, metadata as JSON) of a prompt."""
    match = re.match(r"Language: (.*)\n\n(\{.*?\n\})", request["messages"][-1]["content"], re.DOTALL)
    return match.groups()


def completion(content, **message):
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content} | message}
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
    }


def good(request):
    language = asked(request)[0]
    return {
        "sufficient": True,
        "summary_en": ENGLISH,
        "summary_nen": {"language": language, "summary": IN_OTHER[language]},
    }


def status(code, message="", **headers):
    return lambda handler: handler.say(code, {"error": {"message": message, "code": None}}, **headers)


def write_records(folder, *records):
    for record in records:
        path = folder / record.pop("at", f"{record['title']}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record))


def read_tree(folder):
    return {path.relative_to(folder).as_posix(): json.loads(path.read_text()) for path in folder.rglob("*.json")}


def errors(out):
    path = out / "errors.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {entry["file"]: entry["error"] for entry in map(json.loads, lines)}


@pytest.fixture
def serve():
    servers = []

    def start(behave=None, port=0):
        servers.append(Server(behave, port))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


create_context = functools.cache(ssl.create_default_context)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The folder of a test, with short pauses between attempts, and a key."""
    monkeypatch.setattr(chat, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(chat, "LONGEST_PAUSE", 0.02)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(ssl, "create_default_context", create_context)  # else each client reads all certificates again
    (tmp_path / "languages.txt").write_text("\n".join(IN_OTHER))
    return tmp_path


def arguments(place, server, *more):
    return [
        *map(str, (place / "in", place / "out", "--model", "m", "--languages", place / "languages.txt")),
        *("--base_url", server.url),
        *map(str, more),
    ]


def run(place, server, *more):
    return gpt4_summarize.main(arguments(place, server, *more))


def start(place, server, *more):
    """The same, as a process of its own."""
    command = [sys.executable, SCRIPTS / "gpt4_summarize.py", *arguments(place, server, *more)]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job would have it ignored
    try:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)


def wait_for(condition, seconds=240):
    """Waits until it is so; the time is a guard against hanging, not a measure."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def assert_key_is_nowhere(place, *printed):
    """Neither the key nor a part of it worth having."""
    pieces = [KEY[start : start + 8] for start in range(len(KEY) - 7)]
    for path in (place / "out").rglob("*"):
        if path.is_file():
            printed += (path.read_text(),)
    assert not [text for text in printed if any(piece in text for piece in pieces)]
