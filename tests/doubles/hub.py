"""The Hugging Face hub over HTTP, for one repository out of a folder.

It stands for huggingface.co, as huggingface_hub 0.36 speaks to it without Xet: the list of a
revision with sizes and digests, HEAD and GET of a file with its commit, etag and linked etag, the
redirect of a large file to where its bytes are, ranges, access tokens, and the answers to a
repository or revision that is not there, is private or gated. It can break off in the middle of a
file, or hold it back.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

COMMIT = "c0ffee" + "0" * 34
_CHUNK = 1 << 16


@dataclass
class Hub:
    """What the hub has, what it is to do wrong, and what it was asked for."""

    folder: Path
    repo: str = "org/m"
    revisions: tuple[str, ...] = ("main", COMMIT)
    # Without a valid token: 401 for a private repository; with one, 403 while the terms of a gated
    # one are not accepted.
    token: str | None = None
    gated: bool = False
    # File name: bytes after which the connection breaks, once each.
    cuts: dict[str, int] = field(default_factory=dict)
    # File name: bytes after which it waits for `release`.
    holds: dict[str, int] = field(default_factory=dict)
    # A list without sizes and digests, as some mirrors have it.
    bare_list: bool = False
    # Bytes that differ from what the list and the etag say, as of a broken proxy.
    spoiled: set[str] = field(default_factory=set)
    held: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)
    bytes_sent: dict[str, int] = field(default_factory=dict)
    tokens_seen: set[str | None] = field(default_factory=set)
    endpoint: str = ""

    def is_lfs(self, name: str) -> bool:
        return name.endswith(".safetensors")

    def etag(self, name: str) -> str:
        data = (self.folder / name).read_bytes()
        if self.is_lfs(name):
            return hashlib.sha256(data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()

    def listing(self) -> dict[str, object]:
        siblings: list[dict[str, object]] = []
        for file in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            name, size = str(file.relative_to(self.folder)), file.stat().st_size
            entry: dict[str, object] = {"rfilename": name}
            if not self.bare_list:
                entry.update(
                    size=size, blobId=self.etag(name) if not self.is_lfs(name) else "1" * 40
                )
                if self.is_lfs(name):
                    entry["lfs"] = {"sha256": self.etag(name), "size": size, "pointerSize": 134}
            siblings.append(entry)
        return {
            "_id": "1",
            "id": self.repo,
            "modelId": self.repo,
            "sha": COMMIT,
            "private": False,
            "gated": self.gated,
            "siblings": siblings,
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, body: bool) -> None:
        hub, path = self.hub, urlsplit(self.path).path
        if path.startswith("/cdn/"):
            self._file(path.removeprefix("/cdn/"), body)
            return
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        hub.tokens_seen.add(token)
        api, files = f"/api/models/{hub.repo}/revision/", f"/{hub.repo}/resolve/"
        if not path.startswith((api, files)):
            self._error(404 if token else 401, "RepoNotFound", "Repository not found")
        elif hub.token is not None and token != hub.token:
            self._error(
                401,
                None if token else "RepoNotFound",
                "Invalid credentials in Authorization header" if token else "Repository not found",
            )
        elif hub.gated:
            self._error(403, "GatedRepo", "Access to model is restricted")
        elif path.startswith(api):
            if path.removeprefix(api) not in hub.revisions:
                self._error(404, "RevisionNotFound", "Invalid rev id")
                return
            data = json.dumps(hub.listing()).encode()
            self._headers(
                200, {"Content-Type": "application/json", "Content-Length": str(len(data))}
            )
            if body:
                self.wfile.write(data)
        else:
            revision, _slash, name = path.removeprefix(files).partition("/")
            self._resolve(revision, name, body)

    def _resolve(self, revision: str, name: str, body: bool) -> None:
        hub = self.hub
        if revision not in hub.revisions or not (hub.folder / name).is_file():
            known = revision in hub.revisions
            self._error(404, "EntryNotFound" if known else "RevisionNotFound", "not found")
            return
        if not hub.is_lfs(name):
            self._file(name, body)
            return
        size = str((hub.folder / name).stat().st_size)
        linked = {
            "X-Linked-Size": size,
            "X-Linked-Etag": f'"{hub.etag(name)}"',
            "X-Repo-Commit": COMMIT,
            "ETag": f'"{"1" * 40}"',
        }
        self._headers(
            302, {**linked, "Location": f"{hub.endpoint}/cdn/{name}", "Content-Length": "0"}
        )

    def _file(self, name: str, body: bool) -> None:
        hub = self.hub
        data = (hub.folder / name).read_bytes()
        if name in hub.spoiled:
            data = data[:-1] + bytes([data[-1] ^ 1])
        begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        if begin and begin >= len(data):
            self._headers(416, {"Content-Range": f"bytes */{len(data)}", "Content-Length": "0"})
            return
        headers = {
            "ETag": f'"{hub.etag(name)}"',
            "X-Repo-Commit": COMMIT,
            "Content-Length": str(len(data) - begin),
            "Accept-Ranges": "bytes",
        }
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        self._headers(206 if begin else 200, headers)
        if not body:
            return
        for place in range(begin, len(data), _CHUNK):
            if hub.cuts.get(name, len(data)) <= place:
                del hub.cuts[name]
                self.close_connection = True
                self.connection.close()
                return
            if hub.holds.get(name, len(data)) <= place:
                hub.held.set()
                hub.release.wait(60)
            part = data[place : place + _CHUNK]
            try:
                self.wfile.write(part)
            except OSError:
                self.close_connection = True
                return
            hub.bytes_sent[name] = hub.bytes_sent.get(name, 0) + len(part)

    def _error(self, status: int, code: str | None, message: str) -> None:
        named = {"X-Error-Code": code} if code else {}
        self._headers(status, {**named, "X-Error-Message": message, "Content-Length": "0"})

    def _headers(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.release.set()
            server.shutdown()
            thread.join()
