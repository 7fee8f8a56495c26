"""A hub of datasets over HTTP, as `huggingface_hub` asks for them: what it has, and what it was asked for."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

ASKED = re.compile(r"/api/datasets/(?P<name>[^/]+/[^/]+)(/(?P<what>revision|tree|paths-info)/(?P<revision>[^/]+))?.*")
FILE = re.compile(r"/datasets/(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


@dataclass
class Hub:
    """Datasets by name, revision and path; a revision's commit is the hash of its name."""

    files: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    requests: int = 0
    sent_bytes: int = 0
    url: str = ""

    def tree(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Return commit and files of a revision, by its name or commit."""
        commits = {hashlib.sha1(known.encode()).hexdigest(): known for known in self.files.get(name, {})}
        known = commits.get(revision, revision)
        found = self.files.get(name, {}).get(known)
        return None if found is None else (hashlib.sha1(known.encode()).hexdigest(), found)


@contextmanager
def running() -> Iterator[Hub]:
    """Yield a hub that answers at its `url`."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            hub.requests += 1
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = urlsplit(self.path).path
            asked = FILE.fullmatch(path) or ASKED.fullmatch(path)
            assert asked is not None, path
            revision = unquote(asked["revision"] or "main")
            if asked["name"] not in hub.files:
                return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
            if (found := hub.tree(asked["name"], revision)) is None:
                return self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
            commit, files = found
            if asked.re is FILE:
                data = files[unquote(asked["path"])]
                given = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                part = data[int(given[1]) : int(given[2]) + 1] if given else data
                hub.sent_bytes += len(part)
                return self.answer(206 if given else 200, part, {"X-Repo-Commit": commit, "ETag": '"x"'})
            if asked["what"] in ("tree", "paths-info"):
                rows = [{"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in files.items()]
                return self.answer(200, json.dumps(rows).encode(), {})
            info = {"id": asked["name"], "sha": commit, "siblings": [{"rfilename": name} for name in files]}
            return self.answer(200, json.dumps(info).encode(), {})

        do_POST = do_GET

        def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
