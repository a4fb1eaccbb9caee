"""A stand-in for the Hugging Face hub on loopback: repositories that `huggingface_hub`'s own client fills and reads."""

import base64
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

COMMIT = "1" * 40


class Hub:
    """Files by repository and path; `private` as each repository was made; `tokens` that came with requests."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.tokens: set[str | None] = set()


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

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            info = re.fullmatch(r"/api/models/([^/]+/[^/]+)(/(revision|tree)/[^/]+)?", path)
            if info and info[1] in hub.files:
                files = hub.files[info[1]]
                if info[3] == "tree":
                    return self._answer([
                        {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                        for name, data in files.items()
                    ])  # fmt: skip
                return self._answer({"id": info[1], "sha": COMMIT, "siblings": [{"rfilename": n} for n in files]})
            file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
            if not file or file[1] not in hub.files:
                return self._missing()
            if file[2] not in hub.files[file[1]]:
                return self._answer({}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
            data = hub.files[file[1]][file[2]]
            return self._answer(data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=COMMIT)

        do_HEAD = do_GET

    return Handler


@contextmanager
def open_hub(cache: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that this process takes for the real one; what is downloaded goes to `cache`."""
    hub = Hub()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with monkeypatch.context() as patch:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        patch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", cache)
        try:
            yield hub
        finally:
            server.shutdown()
            server.server_close()
