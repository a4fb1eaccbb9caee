"""Completions through the service: the official client, a real LLM as the upstream, and what goes wrong between."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from conftest import Run, rouge_l
from proxy import running_proxy
from running import running_service

from cappy_lightning import Cappy
from cappy_lightning.backbones.embedded import embedded_server
from cappy_lightning.records import Pool

ASKED: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What color is a banana?"}]


@pytest.fixture(scope="module")
def cappy_scorer(lora_run: Path) -> Cappy:
    return Cappy.from_pretrained(lora_run / "adapter")


@pytest.fixture(scope="module")
def llm() -> Iterator[str]:
    with embedded_server() as address:
        yield address


@pytest.fixture(scope="module")
def service(cappy_scorer: Cappy, llm: str) -> Iterator[str]:
    with running_service(cappy_scorer, llm) as (url, _):
        yield url


def client(url: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60)


def chat(url: str, **more: Any) -> Any:
    return client(url).chat.completions.create(model="any", messages=ASKED, max_tokens=6, **more)


def post(url: str, content: bytes, **headers: str) -> tuple[int, Any, Any]:
    request = urllib.request.Request(url, content, {"Content-Type": "application/json", **headers}, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.loads(response.read()), response.headers
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read()), error.headers


def test_the_official_client_gets_the_best_of_several(service: str, cappy_scorer: Cappy) -> None:
    answer = chat(service)
    told = answer.cappy
    assert len(answer.choices) == 1
    assert told["samples"] == len(told["candidates"]) == 5
    scores = [one["score"] for one in told["candidates"]]
    assert scores == sorted(scores, reverse=True)
    assert answer.choices[0].message.content.strip() == told["candidates"][0]["response"]
    assert told["score"] == scores[0]
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0
    # The scorer reads the last message of the user.
    pairs = [("What color is a banana?", one["response"]) for one in told["candidates"]]
    assert scores == pytest.approx(cappy_scorer.score(pairs).tolist(), abs=1e-5)
    assert sorted(one["decoding"] for one in told["candidates"]) == ["greedy", *["temperature_0.7"] * 4]


def test_a_stream_brings_the_chosen_answer(service: str) -> None:
    whole = chat(service, seed=1)
    parts = list(chat(service, seed=1, stream=True, stream_options={"include_usage": True}))
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert text == whole.choices[0].message.content
    ends = [part.choices[0].finish_reason for part in parts if part.choices]
    assert ends[:-1] == [None] * (len(ends) - 1)
    assert ends[-1] == whole.choices[0].finish_reason
    assert parts[-1].usage.total_tokens == whole.usage.total_tokens
    told = next(part.cappy for part in parts if hasattr(part, "cappy"))
    assert told["candidates"] == whole.cappy["candidates"]
    plain: Any = client(service).completions.create
    prompt = {
        "model": "any",
        "prompt": "Question: What color is coal?\nAnswer:",
        "max_tokens": 5,
        "stop": "\n",
        "seed": 2,
    }
    streamed = "".join(part.choices[0].text for part in plain(**prompt, stream=True))
    assert streamed == plain(**prompt).choices[0].text


@pytest.mark.parametrize("examples", [12, pytest.param(280, marks=pytest.mark.soak)])
def test_selections_are_those_of_cappy_select_on_the_same_samples(
    service: str, cappy: Run, lora_run: Path, pools: list[Pool], tmp_path: Path, examples: int
) -> None:
    held_out = [pool for pool in pools if pool.example.split == "validation"][:examples]
    assert len(held_out) == examples
    shots = "".join(f"{pool.example.instruction} {pool.example.references[0]}\n\n" for pool in pools[:2])
    rows, chosen = [], []
    for pool in held_out:
        answer: Any = client(service).completions.create(
            model="any",
            prompt=f"{shots}{pool.example.instruction}",
            max_tokens=16,
            stop="\n",
            logprobs=1,
            extra_body={"instruction": pool.example.instruction},
        )
        # As they were sampled: the order decides between equal ones.
        told = sorted(answer.cappy["candidates"], key=lambda one: one["index"])
        samples = [{"response": one["response"], "decoding": one["decoding"]} for one in told]
        rows.append(pool.example.to_row() | {"candidates": samples})
        chosen.append(rouge_l(pool.example.references, answer.choices[0].text))
    file = tmp_path / "pool.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = tmp_path / "report.json"
    done = cappy("select", file, "--scorer", lora_run / "adapter", "-o", tmp_path / "out", "--report", report)
    assert done.returncode == 0, done.stderr
    mean = json.loads(report.read_text())["average"]["methods"]["cappy"]["mean"]
    print(f"{examples} examples, mean Rouge-L {100 * mean:.1f}")
    assert mean == pytest.approx(sum(chosen) / len(chosen), abs=1e-9)


def test_n_choices_are_the_n_best(service: str) -> None:
    answer = chat(service, n=3)
    texts = [one.message.content.strip() for one in answer.choices]
    assert texts == [one["response"] for one in answer.cappy["candidates"][:3]]
    assert [one.index for one in answer.choices] == [0, 1, 2]
    for wrong in (0, 6):
        with pytest.raises(openai.BadRequestError, match=f"n: is {wrong}, expected 1 to 5"):
            chat(service, n=wrong)


def test_sampling_stops_when_a_score_is_reached_and_low_scores_are_not_answered(cappy_scorer: Cappy, llm: str) -> None:
    with running_proxy(llm) as (upstream, proxy):
        with running_service(cappy_scorer, upstream, "answer.stop=0") as (url, _):
            assert chat(url).cappy["samples"] == 2
            assert chat(url, n=3).cappy["samples"] == 4  # as many as the client wants
        first_round = sorted((body["temperature"], body["n"]) for body in proxy.seen[:2])  # sent at the same time
        assert first_round == [(0.0, 1), (0.7, 1)]
        with running_service(cappy_scorer, upstream, "answer.abstain=1") as (url, _):
            answer = chat(url)
            assert answer.choices[0].message.content == "I am not sure."
            assert answer.cappy["abstained"] is True
            assert len(answer.cappy["candidates"]) == 5
            assert client(url).completions.create(model="any", prompt="Hi", max_tokens=3).choices[0].text == (
                "I am not sure."
            )
        words = ["answer.abstain=1", "serve.fallback_model=large", "backbone.model=small"]
        proxy.seen.clear()
        with running_service(cappy_scorer, upstream, *words) as (url, _):
            answer = chat(url, temperature=0.2)
            assert (answer.cappy["abstained"], answer.cappy["fallback"]) == (True, "large")
            assert answer.choices[0].message.content != "I am not sure."
        assert {body["model"] for body in proxy.seen[:-1]} == {"small"}
        assert (proxy.seen[-1]["model"], proxy.seen[-1]["temperature"]) == ("large", 0.2)  # as the client wants it


def test_what_a_scorer_cannot_judge_is_passed_on(cappy_scorer: Cappy, llm: str) -> None:
    with running_proxy(llm) as (upstream, proxy), running_service(cappy_scorer, upstream) as (url, _):
        tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
        answer = chat(url, tools=[tool], temperature=0.3)
        assert not hasattr(answer, "cappy")
        (seen,) = proxy.seen
        assert (seen["tools"], seen["temperature"]) == ([tool], 0.3)
        assert "n" not in seen
        several = json.dumps({"model": "m", "prompt": ["a", "b"], "n": 9, "max_tokens": 1}).encode()
        assert "cappy" not in post(f"{url}/v1/completions", several)[1]
        assert proxy.seen.pop()["n"] == 9
        parts = list(chat(url, tools=[tool], stream=True))
        assert parts[-1].choices[0].finish_reason


def test_other_keys_of_the_client_reach_the_upstream(cappy_scorer: Cappy, llm: str) -> None:
    with running_proxy(llm) as (upstream, proxy), running_service(cappy_scorer, upstream) as (url, _):
        chat(url, presence_penalty=0.5, user="me", extra_body={"min_p": 0.1}, stream=True)
        for body in proxy.seen:
            assert (body["presence_penalty"], body["user"], body["min_p"], body["model"]) == (0.5, "me", 0.1, "any")
            assert "stream" not in body
        assert proxy.keys == ["Bearer none"] * 2


def test_the_whole_distribution_is_asked_for_where_that_can_be_said(cappy_scorer: Cappy, llm: str) -> None:
    refused = (400, {"error": {"message": "Unrecognized request argument supplied: top_k"}})
    with (
        running_proxy(llm, lambda _, body: refused if "top_k" in body else None) as (upstream, proxy),
        running_service(cappy_scorer, upstream) as (url, _),
    ):
        assert chat(url).cappy["samples"] == 5
        tried = [body for body in proxy.seen if "top_k" in body]
        assert {(body["top_k"], body["min_p"]) for body in tried} == {(0, 0.0)}
        assert 0 < len(tried) <= 2
        before = len(proxy.seen)
        assert chat(url).cappy["samples"] == 5
        assert len(proxy.seen) == before + 2  # it is not tried again


def test_an_upstream_that_gives_one_answer_at_a_time(cappy_scorer: Cappy, llm: str) -> None:
    no_n = (400, {"error": {"message": "unknown parameter: n"}})
    with (
        running_proxy(llm, lambda _, body: no_n if body.get("n", 1) > 1 else None) as (upstream, proxy),
        running_service(cappy_scorer, upstream) as (url, _),
    ):
        assert chat(url).cappy["samples"] == 5
        assert len(proxy.seen) == 6
        assert chat(url, seed=3).cappy["samples"] == 5
        assert len(proxy.seen) == 11  # it is not tried again
        assert sorted(body["seed"] for body in proxy.seen[6:] if body["temperature"]) == [3, 4, 5, 6]


@pytest.mark.parametrize(
    ("fault", "status", "said"),
    [
        ((429, {"error": {"message": "slow down"}}), 429, "slow down"),
        ((400, {"error": {"message": "no such thing"}}), 400, "no such thing"),
        ((500, b"oops"), 500, "Error code: 500"),
        ((401, {"error": {"message": "sk-secret is wrong"}}), 502, "the upstream refuses the service's key"),
        ((200, b"<html>"), 502, "the upstream's answer is no OpenAI completion"),
        ((200, {"choices": []}), 502, "the upstream's answer is no OpenAI completion"),
        ("drop", 502, "the upstream cannot be reached, or breaks off"),
        ("hang", 504, "the upstream does not answer in time"),
    ],
)
def test_failures_of_the_upstream_are_handed_on(
    cappy_scorer: Cappy, llm: str, fault: Any, status: int, said: str
) -> None:
    with (
        running_proxy(llm, lambda number, _: fault) as (upstream, _),
        running_service(cappy_scorer, upstream, "backbone.timeout=1.5") as (url, service),
    ):
        body = json.dumps({"model": "m", "messages": ASKED}).encode()
        found, content, headers = post(f"{url}/v1/chat/completions", body)
        assert found == status
        assert said in json.dumps(content)
        assert "sk-secret" not in json.dumps(content)
        assert (headers["retry-after-ms"] == "20") == (status == 429)
        assert service.gate.under_way == 0


def test_some_answers_are_better_than_none(cappy_scorer: Cappy, llm: str) -> None:
    busy = (503, {"error": {"message": "busy"}})
    with (
        running_proxy(llm, lambda _, body: busy if body["temperature"] else None) as (upstream, _),
        running_service(cappy_scorer, upstream) as (url, _),
    ):
        assert [one["decoding"] for one in chat(url).cappy["candidates"]] == ["greedy"]


def test_a_client_that_hangs_up_leaves_nothing_behind(cappy_scorer: Cappy, llm: str) -> None:
    with (
        running_proxy(llm, lambda number, _: "hang") as (upstream, proxy),
        running_service(cappy_scorer, upstream) as (url, service),
    ):
        body = json.dumps({"model": "m", "messages": ASKED}).encode()
        with pytest.raises(TimeoutError):
            urllib.request.urlopen(urllib.request.Request(f"{url}/v1/chat/completions", body), timeout=1)
        assert len(proxy.seen) == 2
        deadline = time.monotonic() + 10
        while service.gate.under_way and time.monotonic() < deadline:
            time.sleep(0.05)
        assert service.gate.under_way == 0
        with urllib.request.urlopen(f"{url}/metrics") as response:
            assert 'cappy_requests_total{route="chat/completions",status="499"} 1.0' in response.read().decode()


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"\xff\xfe{", 400, "the request: is no JSON, expected an object"),
        (b"[" * 100_000, 400, "the request: is no JSON"),
        (b"[1]", 400, "the request: is no object"),
        (b"{}", 400, "messages: expected a list of objects"),
        (b'{"messages": [1]}', 400, "messages: expected a list of objects"),
        (b'{"messages": [{"role": "system", "content": "x"}]}', 400, "messages: have none of the role user"),
        (b'{"messages": [{"role": "user"}]}', 400, "the last one of the user has no content"),
        (b'{"messages": [{"role": "user", "content": " "}]}', 400, "instruction: expected a text"),
        (b'{"messages": [{"role": "user", "content": "x"}], "instruction": 7}', 400, "instruction: expected a text"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400, "the request: holds half a"),
        (b'{"messages": [{"role": "user", "content": "x"}], "user": "\\udc00"}', 400, "the request: holds half a"),
        (b'{"messages": [{"role": "user", "content": "x"}], "top_k": NaN}', 400, "the request: holds NaN or Infinity"),
        (b'{"messages": [{"role": "user", "content": "x"}], "top_k": -1e999}', 400, "the request: holds NaN or"),
        (b'{"tools": [1]}', 400, "messages: expected a list of objects"),
        (b'{"messages": [{"role": "user", "content": "x"}], "n": 0}', 400, "n: is 0, expected 1 to 5"),
        (b'{"messages": [{"role": "user", "content": "x"}], "n": true}', 400, "n: is true, expected 1 to 5"),
        (b'{"messages": [{"role": "user", "content": "x"}], "model": 7}', 400, "model: is no text"),
        (b'{"x": "' + b"y" * 1_000_000 + b'"}', 413, "the request is larger than 1000000 bytes"),
    ],
)
def test_requests_that_make_no_sense(service: str, body: bytes, status: int, said: str) -> None:
    found, content, _ = post(f"{service}/v1/chat/completions", body)
    assert found == status
    assert content["error"]["message"].startswith(said) or said in content["error"]["message"]


@pytest.mark.parametrize("body", [b"{}", b'{"echo": true}', b'{"prompt": 7, "suffix": "x"}'])
def test_prompts_that_make_no_sense(service: str, body: bytes) -> None:
    status, content, _ = post(f"{service}/v1/completions", body)
    assert (status, content["error"]["message"]) == (400, "prompt: is no text, expected one")


def test_what_is_not_there(service: str) -> None:
    assert post(f"{service}/v1/embeddings", b"{}")[:2] == (
        404,
        {
            "error": {
                "message": "POST /v1/embeddings: is not served here",
                "type": "invalid_request_error",
                "param": None,
                "code": None,
            }
        },
    )
    with pytest.raises(urllib.error.HTTPError, match="405"):
        urllib.request.urlopen(f"{service}/v1/completions")


def test_clients_send_their_key_and_never_the_upstreams(
    cappy_scorer: Cappy, llm: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with (
        running_proxy(llm) as (upstream, proxy),
        running_service(cappy_scorer, upstream, "backbone.model=llm", key="sk-client") as (url, _),
    ):
        for wrong in ("sk-clien", "none"):
            with pytest.raises(openai.AuthenticationError, match="the key is missing or wrong"):
                client(url, wrong).models.list()
            with pytest.raises(openai.AuthenticationError):
                client(url, wrong).chat.completions.create(model="any", messages=ASKED)
        right = client(url, "sk-client")
        assert [one.id for one in right.models.list()] == ["llm"]  # what is asked, whatever the client names
        assert right.chat.completions.create(model="any", messages=ASKED, max_tokens=3).choices
        assert set(proxy.keys) == {"Bearer none"}
        for path in ("health", "ready", "metrics"):  # for probes, which have no key
            assert urllib.request.urlopen(f"{url}/{path}").status == 200
    out, err = capfd.readouterr()
    assert "sk-client" not in out + err


def test_more_requests_than_it_takes_and_requests_that_take_too_long(cappy_scorer: Cappy, llm: str) -> None:
    with (
        running_proxy(llm, lambda number, _: "hang") as (upstream, _),
        running_service(cappy_scorer, upstream, "serve.timeout=1.5", "serve.concurrency=1") as (url, service),
    ):
        body = json.dumps({"model": "m", "messages": ASKED}).encode()
        found: list[int] = []

        def ask() -> None:
            found.append(post(f"{url}/v1/chat/completions", body)[0])

        first = threading.Thread(target=ask)
        first.start()
        while not service.gate.under_way:
            time.sleep(0.01)
        status, content, headers = post(f"{url}/v1/chat/completions", body)
        assert (status, headers["retry-after"]) == (503, "1")
        assert content["error"]["message"] == "too many requests are in work"
        first.join()
        assert found == [504]
        assert service.gate.under_way == 0
