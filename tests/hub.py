"""A stand-in for the Hugging Face hub on loopback: repositories that `huggingface_hub`'s own client fills and reads."""

import base64
import hashlib
import http.server
import json
import os
import re
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

COMMIT = "1" * 40


class Hub:
    """Files by repository and path; `private` as each repository was made; `tokens` that came with requests.

    Repositories of data sets are named as in addresses, `datasets/me/rows`; one that has other files in some revision
    is there twice, as `datasets/me/rows@REVISION` too.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.tokens: set[str | None] = set()


_INFO = re.compile(r"/api/(?:models/|(datasets/))([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(/.*)?)?")
_FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/(resolve)/([^/]+)/(.+)")


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def _folder(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "oid": _oid(path.encode())}


def _entries(files: dict[str, bytes]) -> list[dict[str, Any]]:
    return [{"type": "file", "path": name, "size": len(data), "oid": _oid(data)} for name, data in files.items()]


def _listed(files: dict[str, bytes], folder: str, recursive: bool) -> list[dict[str, Any]]:
    start = f"{folder}/" if folder else ""
    inside = {name: data for name, data in files.items() if name.startswith(start)}
    if recursive:
        return _entries(inside)
    own = {name: data for name, data in inside.items() if "/" not in name[len(start) :]}
    folders = sorted({start + name[len(start) :].split("/")[0] for name in inside if name not in own})
    return [*_entries(own), *map(_folder, folders)]


def _handler(hub: Hub) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def _answer(self, content: bytes | dict[str, Any] | list[Any], code: int = 200, **headers: str) -> None:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(code)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def _missing(self) -> None:
            self._answer({"error": "not found"}, 404, X_Error_Code="RepoNotFound")

        def do_POST(self) -> None:
            hub.tokens.add(self.headers.get("authorization"))
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
                hub.files.setdefault(name, {})
                hub.private[name] = asked["visibility"] == "private"
                return self._answer({"url": f"http://{self.headers['host']}/{name}"})
            if self.path == "/api/validate-yaml":
                return self._answer({"errors": [], "warnings": []})
            info = _INFO.fullmatch(self.path)
            if info and info[3] == "paths-info" and (files := self._files(info)) is not None:
                asked = urllib.parse.parse_qs(body.decode())["paths"]
                folders = sorted({folder for folder in map(os.path.dirname, files) if folder})
                return self._answer(
                    [entry for entry in [*_entries(files), *map(_folder, folders)] if entry["path"] in asked]
                )
            found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", self.path)
            if not found or found[1] not in hub.files:
                return self._missing()
            if found[2] == "preupload":
                files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                         for file in json.loads(body)["files"]]  # fmt: skip
                return self._answer({"files": files})
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    hub.files[found[1]][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            address = f"http://{self.headers['host']}/{found[1]}/commit/{COMMIT}"
            return self._answer({"commitUrl": address, "commitOid": COMMIT})

        def _files(self, found: re.Match[str]) -> dict[str, bytes] | None:
            """The files of a repository in a revision: the first and the last group but one."""
            name = (found[1] or "") + found[2]
            return hub.files.get(f"{name}@{urllib.parse.unquote(found[4] or 'main')}", hub.files.get(name))

        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            info, file = _INFO.fullmatch(path), _FILE.fullmatch(path)
            files = self._files(info or file) if info or file else None
            if files is None:
                return self._missing()
            if info and info[3] == "tree":
                folder = urllib.parse.unquote((info[5] or "")[1:])
                return self._answer(_listed(files, folder, "recursive=true" in query.lower()))
            if info:
                return self._answer({"id": info[2], "sha": COMMIT, "siblings": [{"rfilename": n} for n in files]})
            assert file
            if file[5] not in files:
                return self._answer({}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
            return self._answer(files[file[5]], ETag=f'"{_oid(files[file[5]])}"', X_Repo_Commit=COMMIT)

        do_HEAD = do_GET

    return Handler


@contextmanager
def serve_hub() -> Iterator[tuple[Hub, str]]:
    """A hub and its address, as other processes take it from $HF_ENDPOINT."""
    hub = Hub()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def open_hub(cache: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that this process takes for the real one; what is downloaded goes to `cache`."""
    with serve_hub() as (hub, address), monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.constants.ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", cache)
        yield hub
