"""What is passed on as it is keeps the limits until its last byte, and ends with its upstream and its client."""

import contextlib
import http.client
import http.server
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from proxy import running_proxy
from running import running_service
from test_completions import ASKED, post

from cappy_lightning import Cappy
from cappy_lightning.serving.app import Service

BODY = json.dumps({"model": "m", "messages": ASKED, "tools": [{"type": "function"}], "stream": True}).encode()


@pytest.fixture(scope="module")
def cappy_scorer(lora_run: Path) -> Cappy:
    return Cappy.from_pretrained(lora_run / "adapter")


@contextlib.contextmanager
def running_dying() -> Iterator[str]:
    """An upstream that resets the connection in the middle of a stream."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"8\r\ndata: 1\n\r\n")
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def open_stream(url: str) -> Any:
    return urllib.request.urlopen(urllib.request.Request(f"{url}/v1/chat/completions", BODY), timeout=20)


def metrics(url: str) -> str:
    with urllib.request.urlopen(f"{url}/metrics") as response:
        found: str = response.read().decode()
        return found


def wait_until_idle(service: Service) -> None:
    deadline = time.monotonic() + 10
    while service.gate.under_way and time.monotonic() < deadline:
        time.sleep(0.02)
    assert service.gate.under_way == 0


def test_an_upstream_that_stalls_holds_its_slot_until_the_deadline(
    cappy_scorer: Cappy, capfd: pytest.CaptureFixture[str]
) -> None:
    with (
        running_proxy("", lambda *_: "trickle") as (upstream, _),
        running_service(cappy_scorer, upstream, "serve.timeout=2", "serve.concurrency=1") as (url, service),
    ):
        start = time.monotonic()
        with open_stream(url) as response:
            assert response.read(1) == b" "
            assert "cappy_requests_in_work 1.0" in metrics(url)
            assert post(f"{url}/v1/chat/completions", BODY)[0] == 503
            with pytest.raises((http.client.IncompleteRead, ConnectionError)):
                response.read()
        assert 1.5 < time.monotonic() - start < 8
        wait_until_idle(service)
        assert 'route="chat/completions",status="504"} 1.0' in metrics(url)
        assert 'status="200"' not in metrics(url)
    err = capfd.readouterr().err
    assert "chat/completions: an answer was cut off: not done in 2 s" in err
    assert "Exception in ASGI" not in err


def test_a_request_that_is_not_done_when_the_service_ends_is_told_so(
    cappy_scorer: Cappy, capfd: pytest.CaptureFixture[str]
) -> None:
    with ThreadPoolExecutor(1) as thread, running_proxy("", lambda *_: "hang") as (upstream, _):
        with running_service(cappy_scorer, upstream) as (url, service):
            answer = thread.submit(post, f"{url}/v1/chat/completions", BODY)
            while not service.gate.under_way:
                assert not answer.done(), answer.result()
        status, content, headers = answer.result(20)
    assert (status, content["error"]["message"], headers["retry-after"]) == (503, "the service is ending", "1")
    assert "Exception in ASGI" not in capfd.readouterr().err


def test_an_upstream_that_dies_ends_the_answer(cappy_scorer: Cappy, capfd: pytest.CaptureFixture[str]) -> None:
    with running_dying() as upstream, running_service(cappy_scorer, upstream) as (url, service):
        with open_stream(url) as response, pytest.raises((http.client.IncompleteRead, ConnectionError)):
            response.read()
        wait_until_idle(service)
        assert 'route="chat/completions",status="502"} 1.0' in metrics(url)
    err = capfd.readouterr().err
    assert "chat/completions: an answer was cut off: the upstream's answer broke off" in err
    assert "Exception in ASGI" not in err


def test_a_client_that_hangs_up_ends_the_upstreams_answer(cappy_scorer: Cappy) -> None:
    with (
        running_proxy("", lambda *_: "trickle") as (upstream, proxy),
        running_service(cappy_scorer, upstream) as (url, service),
    ):
        with open_stream(url) as response:
            response.read(1)
        wait_until_idle(service)
        assert 'route="chat/completions",status="499"} 1.0' in metrics(url)
        deadline = time.monotonic() + 10
        while proxy.at_once and time.monotonic() < deadline:  # its connection is closed as well
            time.sleep(0.05)
        assert not proxy.at_once
