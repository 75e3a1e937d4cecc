"""A model hub for tests: repositories in memory, at the addresses that huggingface_hub requests."""

import base64
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TOKEN = "hf_for_tests"
COMMIT = "0" * 40


class Repositories(http.server.ThreadingHTTPServer):
    """Attributes: `files` by repository and name, whether each is `private`, and what was `asked`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving() -> Iterator[Repositories]:
    server = Repositories()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Repositories
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, body: Any = b"", **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self) -> None:
        content = self.body()
        self.server.asked.append(f"POST {self.path}")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(401, {"error": "Invalid username or password."})
        elif self.path == "/api/repos/create":
            wanted = json.loads(content)
            repo = f"{wanted['organization']}/{wanted['name']}"
            self.server.files.setdefault(repo, {})
            hidden = wanted.get("visibility") == "private" or bool(wanted.get("private"))
            self.server.private.setdefault(repo, hidden)
            self.answer(200, {"url": f"{self.server.url}/{repo}"})
        elif self.path.endswith("/preupload/main"):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(content)["files"]
            ]
            self.answer(200, {"files": files})
        elif self.path.endswith("/commit/main") or "/commit/main?" in self.path:
            repo = self.path.removeprefix("/api/models/").split("/commit/")[0]
            for line in content.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    value = entry["value"]
                    self.server.files[repo][value["path"]] = base64.b64decode(value["content"])
            self.answer(
                200, {"commitOid": COMMIT, "commitUrl": f"{self.server.url}/{repo}/commit/{COMMIT}"}
            )
        else:
            self.answer(200, {})

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        repo, _, rest = self.path.removeprefix("/").partition("/resolve/")
        name = rest.partition("/")[2]
        if not rest:
            self.answer(200, {"id": "x", "sha": COMMIT, "siblings": [], "tags": []})
        elif name in self.server.files.get(repo, {}):
            content = self.server.files[repo][name]
            etag = hashlib.sha256(content).hexdigest()
            self.answer(200, content, ETag=f'"{etag}"', X_Repo_Commit=COMMIT)
        else:
            self.answer(
                404,
                {"error": "Entry not found"},
                X_Error_Code="EntryNotFound",
                X_Repo_Commit=COMMIT,
            )

    do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for
