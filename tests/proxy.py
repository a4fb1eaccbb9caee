"""A small HTTP proxy that misbehaves on purpose, in front of a real LLM server."""

import contextlib
import http.server
import json
import random
import socket
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

#: What to do with a request, by its number from 0 and its body; None: pass it on.
Fault = Callable[[int, dict[str, Any]], "str | tuple[int, Any] | None"]


class Proxy:
    """Passes requests on to `target`, unless a fault says otherwise.

    A fault is a pair (status, body) to answer, `drop` (the connection is reset without an answer), `hang`
    (no answer for long), `trickle` (one that never ends), or None.
    """

    def __init__(self, target: str, fault: Fault) -> None:
        self.target, self.fault = target, fault
        self.seen: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.answers: Counter[object] = Counter()
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.done = threading.Event()

    def handle(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        with self.lock:
            number = len(self.seen)
            self.seen.append(json.loads(body))
            self.keys.append(handler.headers["Authorization"])
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            self._answer(handler, body, self.fault(number, self.seen[number]))
        finally:
            with self.lock:
                self.at_once -= 1

    def _answer(self, handler: http.server.BaseHTTPRequestHandler, body: bytes, fault: Any) -> None:
        self.answers[fault if isinstance(fault, str) else fault and fault[0]] += 1
        if fault == "drop":
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            handler.close_connection = True
            handler.connection.close()
            return
        if fault == "hang":
            self.done.wait(60)
            return
        if fault == "trickle":
            handler.send_response(200)
            handler.end_headers()
            while not self.done.wait(0.1):
                handler.wfile.write(b" ")
            return
        if fault is None:
            request = urllib.request.Request(
                self.target + handler.path, body, {"Content-Type": "application/json"}, method="POST"
            )
            with urllib.request.urlopen(request) as response:
                status, content = response.status, response.read()
        else:
            status, content = fault[0], fault[1] if isinstance(fault[1], bytes) else json.dumps(fault[1]).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(content)))
        if status == 429:
            handler.send_header("Retry-After-Ms", "20")
        handler.end_headers()
        handler.wfile.write(content)


@contextlib.contextmanager
def running_proxy(target: str, fault: Fault = lambda number, body: None) -> Iterator[tuple[str, Proxy]]:
    """Run a proxy on a free port, and yield its address and itself."""
    proxy = Proxy(target, fault)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            proxy.handle(self)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", proxy
    finally:
        proxy.done.set()
        deadline = time.monotonic() + 60
        while proxy.at_once and time.monotonic() < deadline:  # the packaged server cannot end while it answers
            time.sleep(0.01)
        server.shutdown()
        server.server_close()


def sometimes(seed: int, **shares: float) -> Fault:
    """Faults by chance: `drop`, `http_429`, `http_503`; never before the second request."""
    generator = random.Random(seed)

    def fault(number: int, body: dict[str, Any]) -> str | tuple[int, Any] | None:
        draw = generator.random()
        for name, share in shares.items():
            if number and draw < share:
                status = name.removeprefix("http_")
                return name if status == name else (int(status), {"error": {"message": "busy"}})
            draw -= share
        return None

    return fault
