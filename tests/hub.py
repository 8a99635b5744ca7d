"""A model hub on loopback, as far as huggingface_hub needs one: files with ranges and checksums, repositories, commits."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Hub:
    files: dict[str, bytes] = field(default_factory=dict)  # "owner/name/path" -> content
    url: str = ""
    cuts: list[int] = field(default_factory=list)  # after how many bytes the next answers break off
    stall: int = 0  # after how many bytes answers wait until this is 0 again
    damage: bool = False  # answers have a wrong byte
    claimed: int = 0  # how many bytes more than there are a HEAD tells
    asked: list[tuple[str, int]] = field(default_factory=list)  # path and first byte of each GET of a file

    def commit(self, repository: str) -> str:
        """Something that names the content of a repository."""
        held = sorted((name, content) for name, content in self.files.items() if name.startswith(repository + "/"))
        return hashlib.sha1(repr(held).encode()).hexdigest()

    def environment(self, home) -> dict[str, str]:
        """What makes a script use this hub, with nothing remembered."""
        return {"HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", "HF_TOKEN": "hf_test"}  # fmt: skip


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def answer(self, status: int, content: bytes = b"", headers: dict | None = None, length: int | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.hub.cuts.pop(0) if self.hub.cuts and "/resolve/" in self.path else len(content)
        stall = self.hub.stall if "/resolve/" in self.path else 0
        self.wfile.write(content[: min(cut, stall)])
        while stall and self.hub.stall:
            time.sleep(0.05)
        try:
            self.wfile.write(content[min(cut, stall) : cut])
        except ConnectionError:  # who asked was killed
            self.close_connection = True
            return
        if cut < len(content):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    def file(self) -> None:
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", self.path)
        if not found:
            return self.answer(404)
        repository, name = found.groups()
        content = self.hub.files.get(f"{repository}/{name}")
        headers = {"X-Repo-Commit": self.hub.commit(repository), "Accept-Ranges": "bytes"}
        if content is None:
            return self.answer(404, headers=headers | {"X-Error-Code": "EntryNotFound"})
        headers["ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
        if self.command == "HEAD":
            return self.answer(200, headers=headers, length=len(content) + self.hub.claimed)
        start = int(re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
        self.hub.asked.append((f"{repository}/{name}", start))
        if self.hub.damage:
            content = content[:-1] + bytes([content[-1] ^ 1])
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return self.answer(206 if start else 200, content[start:], headers)

    do_GET = do_HEAD = file

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        what = self.path.split("?")[0].rsplit("/", 2)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            reply = {"url": f"{self.hub.url}/{asked.get('organization', 'me')}/{asked['name']}"}
        elif what[1] == "preupload":
            found = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]  # fmt: skip
            reply = {"files": found}
        elif what[1] == "commit":
            repository = what[0].removeprefix("/api/models/")
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.hub.files[f"{repository}/{line['value']['path']}"] = base64.b64decode(line["value"]["content"])
            oid = self.hub.commit(repository)
            reply = {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{repository}/commit/{oid}"}
        else:
            reply = {}
        self.answer(200, json.dumps(reply).encode(), {"Content-Type": "application/json"})

    def log_message(self, *_) -> None:
        pass


@contextlib.contextmanager
def serving(files: dict[str, bytes] | None = None) -> Iterator[Hub]:
    """A hub that holds these files, until the block ends."""
    hub = Hub(dict(files or {}))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
