"""`/score` and `/rerank`, adapters by name, and the command itself."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Run
from running import running_service
from test_completions import post

from cappy_lightning import Cappy
from cappy_lightning.records import Pool
from cappy_lightning.serving.app import Service
from cappy_lightning.serving.server import bind

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def scorer(lora_run: Path) -> Cappy:
    return Cappy.from_pretrained(lora_run / "adapter")


@pytest.fixture(scope="module")
def service(scorer: Cappy) -> Iterator[tuple[str, Service]]:
    with running_service(scorer, NOWHERE, "serve.max_pairs=100") as found:
        yield found


def ask(url: str, path: str, body: Any) -> Any:
    status, content, _ = post(f"{url}{path}", json.dumps(body).encode())
    return content if status == 200 else (status, content["error"]["message"])


def test_scores_are_the_scorers_own_however_many_ask(
    service: tuple[str, Service], scorer: Cappy, pools: list[Pool]
) -> None:
    url, own = service
    requests = [
        [{"instruction": pool.example.instruction, "response": one.response} for one in pool.candidates[:3]]
        for pool in pools[:40]
    ]
    expected = [scorer.logits([(row["instruction"], row["response"]) for row in rows]) for rows in requests]
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda rows: ask(url, "/score", {"pairs": rows}), requests))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["logits"] == pytest.approx(theirs.tolist(), abs=1e-4)
        assert ours["scores"] == pytest.approx(scorer.to_scores(theirs).tolist(), abs=1e-5)
    assert own._scorer.pairs == 120
    assert own._scorer.batches < 40  # what came while the scorer worked was taken together


def test_rerank_takes_and_gives_what_clients_of_jina_and_cohere_expect(
    service: tuple[str, Service], scorer: Cappy, pools: list[Pool]
) -> None:
    url, _ = service
    query = pools[0].example.instruction
    texts = [candidate.response for candidate in pools[0].candidates]
    ranked = scorer.rank(query, texts)
    found = ask(url, "/v1/rerank", {"model": "cappy", "query": query, "documents": texts, "top_n": 4})
    assert [one["index"] for one in found["results"]] == [one.index for one in ranked[:4]]
    assert [one["relevance_score"] for one in found["results"]] == pytest.approx([one.score for one in ranked[:4]])
    assert found["results"][0]["document"] == {"text": ranked[0].response}
    encoded = scorer.scorer.encoder.encode([query] * len(texts), texts)
    tokens = sum(len(one.ids) for one in encoded)
    assert found["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert found["meta"] == {"api_version": {"version": "2"}, "tokens": {"input_tokens": tokens}}
    assert found["id"]
    objects = [{"text": text} for text in texts]
    for path in ("/rerank", "/v2/rerank"):
        plain = ask(url, path, {"query": query, "documents": objects, "return_documents": False})
        assert [one["index"] for one in plain["results"]] == [one.index for one in ranked]
        assert plain["results"][0].keys() == {"index", "relevance_score"}


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/score", {}, (400, "pairs: expected a list that is not empty")),
        ("/score", {"pairs": ["x"]}, (400, "pairs[0]: is no object, expected one with 'instruction' and 'response'")),
        ("/score", {"pairs": [{"instruction": "x", "response": " "}]}, (400, "pairs[0].response: expected a text")),
        ("/score", {"pairs": [{}] * 101}, (413, "pairs: are 101, expected at most 100")),
        ("/rerank", {"query": "", "documents": ["x"]}, (400, "query: expected a text")),
        ("/rerank", {"query": "x", "documents": []}, (400, "documents: expected a list that is not empty")),
        ("/rerank", {"query": "x", "documents": [7]}, (400, "documents[0]: expected a text")),
        (
            "/rerank",
            {"query": "x", "documents": [{"text": "\ud800"}]},
            (400, "the request: holds half a surrogate pair"),
        ),
        ("/rerank", {"query": "x", "documents": ["y"], "model": "\ud800"}, (400, "the request: holds half a")),
        ("/rerank", {"query": "x", "documents": ["y"], "top_n": 0}, (400, "top_n: is 0, expected a whole number")),
    ],
)
def test_bad_requests(service: tuple[str, Service], path: str, body: Any, expected: tuple[int, str]) -> None:
    status, said = ask(service[0], path, body)
    assert status == expected[0]
    assert said.startswith(expected[1])


def test_the_model_names_the_adapter(scorer: Cappy, lora_run: Path, pools: list[Pool]) -> None:
    other = lora_run / "adapter_best" if (lora_run / "adapter_best").is_dir() else lora_run / "adapter"
    both = Cappy.from_pretrained("embedded", {"tickets": lora_run / "adapter", "faq": other})
    rows = [{"instruction": pools[0].example.instruction, "response": one.response} for one in pools[0].candidates]
    with running_service(both, NOWHERE, "backbone.model=llm") as (url, _):
        found = ask(url, "/score", {"model": "tickets", "pairs": rows})
        expected = scorer.score([(row["instruction"], row["response"]) for row in rows])
        assert found["scores"] == pytest.approx(expected.tolist(), abs=1e-5)
        assert ask(url, "/score", {"model": "faq", "pairs": rows})["scores"] == pytest.approx(
            Cappy.from_pretrained(other).score([(row["instruction"], row["response"]) for row in rows]).tolist(),
            abs=1e-5,
        )
        for model, found in (("cappy", "is 'cappy'"), (None, "is missing")):
            status, said = ask(url, "/score", {"model": model, "pairs": rows})
            assert (status, said) == (404, f"model: {found}, expected one of tickets, faq")
        with urllib.request.urlopen(f"{url}/v1/models") as response:
            assert [one["id"] for one in json.loads(response.read())["data"]] == ["tickets", "faq"]


def start_service(adapter: Path, *words: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "cappy_lightning", "serve", "--scorer", str(adapter), "serve.port=0", *words]
    environment = os.environ | {"CAPPY_API_KEY": "sk-mine"}
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_can_be_told_to_end_as_soon_as_it_serves(lora_run: Path, number: signal.Signals) -> None:
    process = start_service(lora_run / "adapter", "backbone.kind=openai", f"backbone.url={NOWHERE}")
    assert process.stderr is not None
    try:
        assert next(line for line in process.stderr if line.startswith("serving on"))
        process.send_signal(number)
        assert process.wait(20) == 0
        assert process.stderr.read() == "ended\n"
    finally:
        process.kill()
        process.wait()


def test_the_command_serves_until_it_is_told_to_end_and_finishes_what_is_in_work(lora_run: Path) -> None:
    process = start_service(lora_run / "adapter", "-n", "2", "backbone.kind=embedded")
    assert process.stderr is not None
    try:
        line = next(line for line in process.stderr if line.startswith("serving on"))
        url = line.split()[2].removesuffix("/v1,")
        body = json.dumps({"messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 20}).encode()
        with ThreadPoolExecutor(1) as thread:
            answer = thread.submit(post, f"{url}/v1/chat/completions", body, Authorization="Bearer sk-mine")
            while not _in_work(url):
                assert not answer.done(), answer.result()
            process.send_signal(signal.SIGTERM)
            status, content, _ = answer.result(60)
        assert status == 200
        assert len(content["cappy"]["candidates"]) == 2
        assert process.wait(30) == 0
        assert "sk-mine" not in line + process.stderr.read()
    finally:
        process.kill()
        process.wait()


def test_answers_are_not_held_back() -> None:
    """By Nagle's algorithm, which waits for the client's delayed acknowledgement: 40 ms for every answer."""
    found = []

    async def play() -> None:
        def accepted(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection = writer.get_extra_info("socket")
            found.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listening = bind("127.0.0.1", 0)
        async with await asyncio.start_server(accepted, sock=listening):
            reader, writer = await asyncio.open_connection(*listening.getsockname())
            await reader.read()
            writer.close()

    asyncio.run(play())
    assert found == [1]


def _in_work(url: str) -> bool:
    with urllib.request.urlopen(f"{url}/metrics") as response:
        return b"cappy_requests_in_work 1.0" in response.read()


def test_settings_that_cannot_be(cappy: Run, lora_run: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for words, said in (
            ((f"serve.port={port}",), f"serve.port: 127.0.0.1:{port} cannot be used (Address already in use)"),
            (("serve.port=70000",), "serve.port: is 70000, expected 0 to 65535"),
            (("serve.concurrency=0",), "serve.concurrency: is 0, expected at least 1"),
            (("serve.timeout=0",), "serve.timeout: is 0.0, expected seconds above 0"),
            (
                ("backbone.kind=recorded", "backbone.pools=[x]"),
                "backbone.kind: is 'recorded', expected embedded or openai",
            ),
            (("backbone.max_tokens=9",), "backbone.max_tokens: has no effect in a service, where requests say"),
            (("backbone.chat=true",), "backbone.chat: has no effect in a service"),
            (("backbone.decodings.beam_4=1",), "backbone.decodings.beam_4: the OpenAI API has no beam search"),
            (("backbone.kind=openai", "backbone.url=http://x:y"), "backbone.url: is 'http://x:y', which is no URL"),
            (("-n", "0"), "-n: is 0, expected 1 up"),
            (("serve.fallback_model=x",), "serve.fallback_model: has no effect without answer.abstain"),
        ):
            done = cappy("serve", "--scorer", lora_run / "adapter", *words)
            assert (done.returncode, done.stdout) == (2, ""), words
            assert said in done.stderr
