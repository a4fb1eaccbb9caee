"""Many requests of every kind, failures among them: nothing of them stays."""

import asyncio
import gc
import json
import os
import random
import re
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from proxy import running_proxy
from running import running_service
from test_completions import ASKED
from test_upstream import numbered

from cappy_lightning import Cappy

CLIENTS = 8
#: Also what the service makes of an upstream that breaks off.
EXPECTED = {200, 429, 500, 502, 503}


def resident() -> float:
    """Memory of this process, in MiB."""
    found = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found
    return int(found[1]) / 1024


def tasks() -> int:
    """Tasks of every loop in this process that are not done."""
    gc.collect()
    return sum(issubclass(type(one), asyncio.Task) and not one.done() for one in gc.get_objects())


def ask(url: str, number: int) -> int | None:
    """A request by its number; its status, or None where the client has hung up."""
    draw = random.Random(number)
    kind = draw.choice(["plain", "plain", "stream", "tools", "tools stream", "hang up", "score"])
    body: dict[str, Any] = {"model": "m", "messages": ASKED, "user": str(number), "stream": "stream" in kind}
    if "tools" in kind:
        body["tools"] = [{"type": "function"}]
    path = "/v1/chat/completions"
    if kind == "score":
        path, body = "/score", {"pairs": [{"instruction": "x", "response": f"y {i}"} for i in range(number % 40 + 1)]}
    content = json.dumps(body).encode()
    if kind == "hang up":
        host, port = urllib.parse.urlsplit(url).netloc.split(":")
        with socket.create_connection((host, int(port))) as connection:
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
            connection.sendall(head.encode() + content[: draw.choice([len(content), 20])])
            time.sleep(draw.uniform(0, 0.05))
        return None
    try:
        with urllib.request.urlopen(urllib.request.Request(url + path, content), timeout=60) as response:
            response.read()
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.read()
        return error.code


def fault(number: int, body: dict[str, Any]) -> Any:
    draw = random.Random(f"{body.get('user')} {body.get('temperature')} {body.get('n')}").random()
    if draw < 0.15:
        status = (429, 500, 503)[int(draw * 20)]
        return status, {"error": {"message": "busy"}}
    return "drop" if draw < 0.2 else (200, numbered(body))


@pytest.mark.parametrize("requests", [200, pytest.param(10_000, marks=pytest.mark.soak)])
def test_nothing_is_left_of_requests(lora_run: Path, requests: int) -> None:
    scorer = Cappy.from_pretrained(lora_run / "adapter")
    words = ["answer.stop=0.9", "answer.step=2", "backbone.concurrency=16"]
    with (
        running_proxy("", fault) as (upstream, proxy),
        running_service(scorer, upstream, *words) as (url, service),
        ThreadPoolExecutor(CLIENTS) as threads,
    ):
        idle_tasks = tasks()

        def load(numbers: range) -> tuple[int, int, float]:
            statuses = set(threads.map(lambda number: ask(url, number), numbers))
            assert statuses <= {*EXPECTED, None}
            deadline = time.monotonic() + 20
            while (service.gate.under_way or tasks() > idle_tasks) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert service.gate.under_way == 0
            assert tasks() <= idle_tasks
            proxy.seen.clear()
            proxy.keys.clear()
            return len(gc.get_objects()), len(os.listdir("/proc/self/fd")), resident()

        part = requests // 5
        found = [load(range(start, start + part)) for start in range(0, requests, part)]
        (objects, files, memory), (last_objects, last_files, last_memory) = found[1], found[-1]
        print(f"\n{requests} requests; objects, files and MiB after each fifth: {found}")
        assert last_objects < objects + 1000
        assert last_files <= files + 2 * CLIENTS
        assert last_memory < memory + 32
        with urllib.request.urlopen(f"{url}/metrics") as response:
            text = response.read().decode()
        assert 'status="499"' in text
        assert 'status="429"' in text
