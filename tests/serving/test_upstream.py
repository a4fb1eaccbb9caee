"""What the service makes of an upstream's answers, by hand-made ones."""

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from proxy import running_proxy
from running import running_service
from test_completions import ASKED, chat, client, post

from cappy_lightning import Cappy
from cappy_lightning.serving.batching import TOGETHER, BatchingScorer

Answer = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.fixture(scope="module")
def cappy_scorer(lora_run: Path) -> Cappy:
    return Cappy.from_pretrained(lora_run / "adapter")


def said(*texts: str | None, model: str = "m", usage: bool = True, **more: Any) -> dict[str, Any]:
    """A body of the chat API."""
    choices = [
        {"index": i, "message": {"role": "assistant", "content": text, **more}, "finish_reason": "stop"}
        for i, text in enumerate(texts)
    ]
    counted = {"usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}} if usage else {}
    return {
        "id": f"id-{model}",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": choices,
    } | counted


def numbered(body: dict[str, Any]) -> dict[str, Any]:
    return said(*(f"answer {i}" for i in range(body.get("n", 1))), model=body["model"])


def streamed(url: str, **more: Any) -> list[dict[str, Any]]:
    """The events of a stream, as they are."""
    import urllib.request

    content = json.dumps({"model": "m", "messages": ASKED, "stream": True, **more}).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/chat/completions", content)) as response:
        lines = response.read().decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def test_if_one_of_several_requests_fails_the_others_count(cappy_scorer: Cappy) -> None:
    def fault(number: int, body: dict[str, Any]) -> Any:
        if body["temperature"] == 0:
            return 500, {"error": {"message": "greedy is broken"}}
        if body["n"] > 1:
            return 422, {"detail": [{"loc": ["body", "n"], "msg": "must be 1"}]}
        return (503, {"error": {"message": "busy"}}) if body["seed"] == 4 else (200, numbered(body))

    with running_proxy("", fault) as (upstream, _), running_service(cappy_scorer, upstream) as (url, _):
        assert chat(url, seed=3).cappy["samples"] == 3  # one of four has failed, and the greedy one


def test_when_all_fail_the_client_is_told_why(cappy_scorer: Cappy) -> None:
    detail = (422, {"detail": "the prompt is too long"})
    with (
        running_proxy("", lambda *_: detail) as (upstream, _),
        running_service(cappy_scorer, upstream) as (url, _),
    ):
        status, content, _ = post(f"{url}/v1/chat/completions", json.dumps({"messages": ASKED}).encode())
        assert (status, content["error"]["message"]) == (422, "the prompt is too long")


def test_seeds_are_those_of_the_places_however_the_candidates_come(cappy_scorer: Cappy) -> None:
    def several(number: int, body: dict[str, Any]) -> Any:
        return 200, numbered(body)

    def single(number: int, body: dict[str, Any]) -> Any:
        return (400, {"error": {"message": "n must be 1"}}) if body["n"] > 1 else (200, numbered(body))

    def first_only(number: int, body: dict[str, Any]) -> Any:
        return 200, numbered({**body, "n": 1})

    words = ["answer.stop=1", "answer.step=3"]  # rounds of 3, 3 and 1
    for fault, seeds in ((several, [10, 12, 15]), (single, range(10, 16)), (first_only, range(10, 16))):
        with (
            running_proxy("", fault) as (upstream, proxy),
            running_service(cappy_scorer, upstream, *words, n=7) as (url, _),
        ):
            for _ in range(2):
                proxy.seen.clear()
                assert chat(url, seed=10).cappy["samples"] == 7
                answered = [body for body in proxy.seen if body["temperature"] and (fault is several or body["n"] == 1)]
                found = sorted(body["seed"] for body in answered)
                if fault is first_only and len(found) < 6:
                    found = sorted({*found, 10})  # the first was asked as one of several
                assert found == list(seeds)


def test_instructions_are_never_sent_on(cappy_scorer: Cappy) -> None:
    with (
        running_proxy("", lambda _, body: (200, numbered(body))) as (upstream, proxy),
        running_service(cappy_scorer, upstream, "answer.abstain=1", "serve.fallback_model=large") as (url, _),
    ):
        own = {"instruction": "What color?"}
        chat(url, extra_body=own)
        chat(url, extra_body={**own, "tools": [{"type": "function"}]})
        assert len(proxy.seen) == 4
        assert not any("instruction" in body for body in proxy.seen)


def test_a_fallback_that_fails_leaves_the_abstention(cappy_scorer: Cappy) -> None:
    broken = True

    def fault(number: int, body: dict[str, Any]) -> Any:
        busy = broken and body["model"] == "large"
        return (503, {"error": {"message": "busy"}}) if busy else (200, numbered(body))

    words = ["answer.abstain=1", "serve.fallback_model=large", "backbone.model=small"]
    with running_proxy("", fault) as (upstream, _), running_service(cappy_scorer, upstream, *words) as (url, _):
        answer = chat(url)
        assert (answer.choices[0].message.content, answer.id) == ("I am not sure.", "id-small")
        assert answer.cappy["abstained"] is True
        assert "fallback" not in answer.cappy
        broken = False
        answer = chat(url)
        assert (answer.id, answer.model, answer.cappy["fallback"]) == ("id-large", "large", "large")
        assert answer.usage.prompt_tokens == 3 * 7


def test_a_stream_has_all_that_a_message_has(cappy_scorer: Cappy) -> None:
    logprobs = {"content": [{"token": "yes", "logprob": -0.5, "top_logprobs": []}]}

    def fault(number: int, body: dict[str, Any]) -> Any:
        found = said(*["yes"] * body["n"], reasoning_content="because", refusal=None, usage=False)
        found["choices"] = [choice | {"logprobs": logprobs} for choice in found["choices"]]
        return 200, found

    with running_proxy("", fault) as (upstream, _), running_service(cappy_scorer, upstream) as (url, _):
        first, second, last = streamed(url, stream_options={"include_usage": True})  # and no usage, which is not known
        assert first["choices"] == [
            {"index": 0, "logprobs": None, "finish_reason": None, "delta": {"role": "assistant", "content": ""}}
        ]
        assert second["choices"][0]["delta"] == {"content": "yes", "reasoning_content": "because"}
        assert second["choices"][0]["logprobs"] == logprobs
        assert (last["choices"][0]["delta"], last["choices"][0]["logprobs"]) == ({}, None)


def test_texts_and_numbers_that_are_none(cappy_scorer: Cappy) -> None:
    def fault(number: int, body: dict[str, Any]) -> Any:
        text = json.dumps(said(*["half: \ud83d"] * body.get("n", 1)))
        return 200, text.replace(
            '"finish_reason"', '"logprobs": {"a": [-Infinity, NaN, 1e999]}, "finish_reason"'
        ).encode()

    with running_proxy("", fault) as (upstream, _), running_service(cappy_scorer, upstream) as (url, _):
        asked = {"model": "m", "messages": ASKED}
        status, content, _ = post(f"{url}/v1/chat/completions", json.dumps(asked).encode())
        assert status == 200
        assert content["choices"][0]["message"]["content"] == "half: \ud83d"
        assert content["choices"][0]["logprobs"] == {"a": [None, None, None]}
        assert len(streamed(url)) == 3


def test_tokens_are_what_the_upstream_says(cappy_scorer: Cappy) -> None:
    tokens = {"content": [{"token": "x", "logprob": -0.5}] * 3}

    def fault(number: int, body: dict[str, Any]) -> Any:
        found = said(*(f"answer {i}" for i in range(body["n"])), usage=body.get("user") != "silent")
        if body.get("logprobs"):
            found["choices"] = [choice | {"logprobs": tokens} for choice in found["choices"]]
        return 200, found

    with running_proxy("", fault) as (upstream, _), running_service(cappy_scorer, upstream) as (url, _):
        assert chat(url).usage.completion_tokens == 2 + 2
        assert chat(url, logprobs=True).usage.completion_tokens == 3 + 4 * 3  # llama.cpp counts one choice only
        assert chat(url, user="silent").usage is None


@pytest.mark.parametrize("choice", [{}, {"message": None}, {"message": "yes"}, {"text": "yes"}, 7])
def test_a_choice_without_a_message_is_no_answer(cappy_scorer: Cappy, choice: Any) -> None:
    with (
        running_proxy("", lambda *_: (200, {"choices": [choice]})) as (upstream, _),
        running_service(cappy_scorer, upstream) as (url, _),
    ):
        for stream in (True, False):
            body = json.dumps({"messages": ASKED, "stream": stream}).encode()
            status, content, _ = post(f"{url}/v1/chat/completions", body)
            assert (status, content["error"]["message"]) == (502, "the upstream's answer is no OpenAI completion")


def test_no_more_requests_are_under_way_than_the_upstream_takes(cappy_scorer: Cappy) -> None:
    with (
        running_proxy("", lambda _, body: (200, numbered(body))) as (upstream, proxy),
        running_service(cappy_scorer, upstream, "backbone.concurrency=2") as (url, _),
    ):
        threads = [threading.Thread(target=chat, args=(url,)) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(proxy.seen) == 24
        assert proxy.most_at_once <= 2
        assert chat(url, n=None).choices  # null is as good as nothing


def test_a_mistake_of_ours_is_said_without_what_the_client_sent(
    cappy_scorer: Cappy, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(self: Cappy, pairs: Any, task: Any = None) -> Any:
        raise ZeroDivisionError("secret")

    with (
        running_proxy("", lambda _, body: (200, numbered(body))) as (upstream, _),
        running_service(cappy_scorer, upstream) as (url, service),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(Cappy, "logits", broken)
            status, content, _ = post(f"{url}/v1/chat/completions", json.dumps({"messages": ASKED}).encode())
        assert (status, content["error"]["message"]) == (500, "the service failed")
        assert service.gate.under_way == 0
        assert chat(url).choices
    err = capfd.readouterr().err
    assert "chat/completions: ZeroDivisionError" in err
    assert "secret" not in err
    assert "Traceback" not in err


def test_models_are_those_that_can_be_asked(cappy_scorer: Cappy) -> None:
    from cappy_lightning.backbones.embedded import embedded_server

    with embedded_server() as llm, running_service(cappy_scorer, llm) as (url, _):
        (listed,) = [one.id for one in client(llm).models.list()]
        assert [one.id for one in client(url).models.list()] == [listed]


class Slow:
    """A scorer whose logit is the length of the response; it notes what it was given at a time."""

    fusion = None

    def __init__(self) -> None:
        self.calls: list[list[tuple[str, str]]] = []
        self.begun, self.go_on = threading.Event(), threading.Event()

    def logits(self, pairs: Any, tasks: Any) -> Any:
        self.calls.append(list(pairs))
        self.begun.set()
        assert self.go_on.wait(10)
        return np.array([float(len(response)) for _, response in pairs], dtype=np.float32)


def test_a_large_request_takes_turns_with_others_and_ends_with_its_client() -> None:
    scorer = Slow()
    large, small = [("large", "x" * (1 + i % 7)) for i in range(4 * TOGETHER)], [("small", "xyz")]

    async def play() -> None:
        batching = BatchingScorer(scorer)  # type: ignore[arg-type]
        first = asyncio.create_task(batching.logits(large, None))
        await asyncio.to_thread(scorer.begun.wait)
        second = asyncio.create_task(batching.logits(small, None))
        left = asyncio.create_task(batching.logits([("left", "x")] * 3 * TOGETHER, None))
        await asyncio.sleep(0.05)
        left.cancel()
        scorer.go_on.set()
        assert await second == [3.0]
        assert len(scorer.calls) <= 3
        assert await first == [float(len(response)) for _, response in large]
        batching.close()

    asyncio.run(play())
    assert all(len(call) <= TOGETHER for call in scorer.calls)
    assert scorer.calls[1] == small
    assert not any(pair[0] == "left" for call in scorer.calls for pair in call)
    assert len(scorer.calls) == 5


def test_a_fusion_is_not_computed_on_the_loop(cappy_scorer: Cappy, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []

    class Noting:
        def choose(self, pool: Any, selection: Any) -> Any:
            threads.append(threading.current_thread().name)
            return selection, selection.logits

    monkeypatch.setattr(cappy_scorer, "fusion", Noting())
    with (
        running_proxy("", lambda _, body: (200, numbered(body))) as (upstream, _),
        running_service(cappy_scorer, upstream) as (url, _),
    ):
        assert chat(url).choices
    (name,) = threads
    assert name.startswith("ThreadPoolExecutor")
