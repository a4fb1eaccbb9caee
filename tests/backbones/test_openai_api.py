"""The OpenAI API client against the real embedded server, with what goes wrong between them."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import run_cappy
from proxy import running_proxy, sometimes

from cappy_lightning.backbones import openai_api
from cappy_lightning.backbones.backbone import Request
from cappy_lightning.backbones.decoding import parse_decoding
from cappy_lightning.backbones.embedded import embedded_server
from cappy_lightning.backbones.generate import left_out_path, made_by_path, record_pools
from cappy_lightning.backbones.openai_api import OpenAIBackbone
from cappy_lightning.backbones.prompts import PLAIN_TEMPLATE
from cappy_lightning.backbones.survey import fingerprint, settings
from cappy_lightning.config import BackboneConfig
from cappy_lightning.errors import InputError
from cappy_lightning.records import Example
from cappy_lightning.sources.jsonl import read_labelled_pools

THINGS = ["tomato", "leaf", "sky", "banana", "coal", "snow", "carrot", "plum", "bark", "ash", "rose", "sea"]
EXAMPLES = [Example("colors", f"{i}", f"What color is {thing}?", ("red",)) for i, thing in enumerate(THINGS)]
DECODINGS = {"greedy": 1, "sampling": 3, "temperature_0.7": 0, "nucleus_0.9": 0}
SETTINGS = BackboneConfig(kind="openai", shots=2, max_tokens=4, decodings=DECODINGS, concurrency=3, timeout=60)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with embedded_server() as address:
        yield address


def record(config: BackboneConfig, out: Path, examples: list[Example] = EXAMPLES) -> list[Any]:
    record_pools(lambda: examples, config, out)
    return read_labelled_pools([out])


def _asks(body: dict[str, Any], example: Example) -> bool:
    prompt = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
    return example.instruction in prompt[-len(example.instruction) - 10 :]


def refusal(config: BackboneConfig) -> str:
    with pytest.raises(InputError) as error, OpenAIBackbone(config) as backbone:
        list(backbone.answer(iter([Request(EXAMPLES[0], "x")]), [parse_decoding("greedy", 1)]))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("chat", [False, True])
def test_completion_and_chat_give_every_decoding_with_likelihoods(server: str, tmp_path: Path, chat: bool) -> None:
    with running_proxy(server) as (url, proxy):
        shown = replace(SETTINGS, url=url, chat=chat)
        examples = [replace(e, split="train") for e in EXAMPLES[:4]]
        for pool in record(shown, tmp_path / "pool.jsonl", examples):
            assert [c.decoding for c in pool.candidates] == ["greedy", *["sampling"] * 3]
            for candidate in pool.candidates:
                assert candidate.log_likelihood_sum <= candidate.log_likelihood_mean <= 0
    sent = [body for body in proxy.seen if body["max_tokens"] == 4]  # without the probe
    assert len(sent) == 8
    made_by = json.loads(made_by_path(tmp_path / "pool.jsonl").read_text())
    prefix = made_by["prompt_prefixes"]["colors"]
    asked = next(example for example in examples if example.instruction not in str(prefix))  # is no shot itself
    last = next(body for body in sent if _asks(body, asked) and body["n"] == 3)
    if chat:
        assert [turn["role"] for turn in last["messages"]] == ["user", "assistant"] * 2 + ["user"]
        assert last["messages"][-1]["content"] == asked.instruction
        assert "stop" not in last
    else:
        assert last["prompt"].count("Question: ") == 3
        assert last["prompt"].endswith(f"Question: {asked.instruction}\nAnswer:")
        assert last["stop"] == ["\n"]
    assert (made_by["template"], made_by["stop"]) == (("{instruction}", []) if chat else (PLAIN_TEMPLATE, ["\n"]))
    assert last["messages"][:-1] == prefix if chat else last["prompt"].startswith(prefix)
    assert made_by["input_tokens"] > 0
    assert made_by["output_tokens"] >= 16


def test_what_is_recorded_is_the_same_however_many_requests_are_under_way(server: str, tmp_path: Path) -> None:
    config = replace(SETTINGS, url=server, decodings=DECODINGS | {"sampling": 0})
    one, many = (record(replace(config, concurrency=n), tmp_path / f"{n}.jsonl") for n in (1, 5))
    assert [[c.response for c in pool.candidates] for pool in one] == [
        [c.response for c in pool.candidates] for pool in many
    ]


def test_through_429s_5xx_and_dropped_connections_every_record_is_complete(server: str, tmp_path: Path) -> None:
    faults = sometimes(3, drop=0.15, http_429=0.2, http_503=0.1)
    with running_proxy(server, faults) as (url, proxy):
        pools = record(replace(SETTINGS, url=url, retries=12), tmp_path / "pool.jsonl")
    assert [pool.example for pool in pools] == EXAMPLES
    for pool in pools:
        assert [c.decoding for c in pool.candidates] == ["greedy", *["sampling"] * 3]
    assert min(proxy.answers[fault] for fault in ("drop", 429, 503)) > 0
    assert proxy.most_at_once <= 3


def test_an_endpoint_that_takes_less_is_asked_for_less(server: str, tmp_path: Path, capsys: Any) -> None:
    def plain(number: int, body: dict[str, Any]) -> Any:
        for name in ("top_k", "logprobs", "n"):
            if body.get(name) is not None and (name != "n" or body[name] > 1):
                return 400, {"error": {"message": f"unknown parameter: {name}"}}
        return None

    decodings = DECODINGS | {"top_k_5": 2, "beam_4": 1}
    with running_proxy(server, plain) as (url, _):
        pools = record(replace(SETTINGS, url=url, decodings=decodings), tmp_path / "pool.jsonl", EXAMPLES[:2])
    said = capsys.readouterr().err
    assert "requests go without logprobs, n, top_k, min_p (the endpoint said: unknown parameter" in said
    assert "left out: top_k_5 (the endpoint does not take top_k)" in said
    assert "left out: beam_4 (the OpenAI API has no beam search)" in said
    for pool in pools:
        assert [c.decoding for c in pool.candidates] == ["greedy", *["sampling"] * 3]
        assert {c.log_likelihood_sum for c in pool.candidates} == {None}


def test_an_endpoint_that_gives_one_choice_whatever_n_is_asked_again(tmp_path: Path) -> None:
    def single(number: int, body: dict[str, Any]) -> Any:
        return 200, {"choices": [{"index": 0, "text": f" {body['seed']}"}], "usage": {"prompt_tokens": 5}}

    with running_proxy("", single) as (url, proxy):
        (pool,) = record(replace(SETTINGS, url=url, shots=0), tmp_path / "pool.jsonl", EXAMPLES[:1])
    sampled = [c.response for c in pool.candidates if c.decoding == "sampling"]
    assert len(set(sampled)) == 3
    assert [body["n"] for body in proxy.seen if body["temperature"] == 1 and body["max_tokens"] == 4] == [3, 2, 1]


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ((401, {"error": {"message": "Incorrect API key: sk-secret"}}), "the LLM endpoint refuses the key (HTTP 401)"),
        ((404, {"error": {"message": "no model x"}}), "the LLM endpoint answered HTTP 404: no model x"),
        ((400, {"error": {"message": "no"}}), "the LLM endpoint answered HTTP 400: no"),
        ((500, b"<html>oops</html>"), "the LLM endpoint answered HTTP 500: "),
        ((200, b"<html>hello</html>"), "the LLM endpoint's answer is no "),
        ((200, {"hello": 1}), "the LLM endpoint's answer is no OpenAI completion with 'choices'"),
        ((200, {"choices": []}), "the LLM endpoint's answer is no OpenAI completion with 'choices'"),
        ((200, {"choices": [{"index": 0}]}), "the LLM endpoint's answer is no OpenAI completion with 'choices'"),
        ("drop", "no answer from the LLM endpoint ("),
        ("hang", "no answer from the LLM endpoint ("),
    ],
)
def test_nonsense_silence_and_refusals_are_one_clear_line(
    answer: Any, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with running_proxy("", lambda number, body: answer) as (url, proxy):
        said = refusal(replace(SETTINGS, url=url, retries=1, timeout=0.5))
    assert said.startswith(f"{url}/v1: {problem}")
    assert "sk-secret" not in said
    assert proxy.keys[0] == "Bearer sk-secret"


def test_an_endpoint_that_is_not_there_is_named() -> None:
    assert refusal(replace(SETTINGS, url="http://127.0.0.1:9", retries=0)).startswith(
        "http://127.0.0.1:9/v1: no answer from the LLM endpoint ("
    )


def test_examples_that_the_endpoint_cannot_serve_are_left_out_with_the_reason(
    server: str, tmp_path: Path, capsys: Any
) -> None:
    def too_long(number: int, body: dict[str, Any]) -> Any:
        return (400, {"error": {"message": "too long"}}) if "banana" in body["prompt"][-40:] else None

    with running_proxy(server, too_long) as (url, _):
        pools = record(replace(SETTINGS, url=url), tmp_path / "pool.jsonl")
    assert [pool.example.id for pool in pools] == [e.id for e in EXAMPLES if "banana" not in e.instruction]
    (line,) = left_out_path(tmp_path / "pool.jsonl").read_text().splitlines()
    assert (json.loads(line)["problem"], json.loads(line)["example"]["id"]) == ("too long", "3")
    assert "left out without an answer: 1 example," in capsys.readouterr().err


def test_of_many_in_a_row_it_is_asked_whether_the_examples_or_the_endpoint_are_to_blame(tmp_path: Path) -> None:
    fine, served = EXAMPLES[:2], True

    def fault(number: int, body: dict[str, Any]) -> Any:
        probe = body["max_tokens"] == 1
        if probe or (served and (any(_asks(body, e) for e in fine) or _asks(body, EXAMPLES[-1]))):
            return 200, {"choices": [{"index": 0, "text": "a"}]}
        return 400, {"error": {"message": "too long"}}

    plain = replace(SETTINGS, shots=0, concurrency=1)
    with running_proxy("", fault) as (url, _):
        assert [pool.example for pool in record(replace(plain, url=url), tmp_path / "a.jsonl")] == [*fine, EXAMPLES[-1]]
        assert len(left_out_path(tmp_path / "a.jsonl").read_text().splitlines()) == 9
        assert len(record(replace(plain, url=url), tmp_path / "b.jsonl", fine)) == 2
        fine = []  # from now on the endpoint refuses all but the last
        with pytest.raises(InputError, match="8 examples one after the other have no answer"):
            record(replace(plain, url=url), tmp_path / "c.jsonl")
        served = False
        choices = [Example("kind", str(n), f"kind of {n}?", choices=("a", "b"), label=n % 2) for n in range(12)]
        mixed = [one for pair in zip(EXAMPLES, choices, strict=True) for one in pair]
        with pytest.raises(InputError, match="8 examples one after the other have no answer"):
            record(replace(plain, url=url), tmp_path / "d.jsonl", mixed)
        assert len((tmp_path / "d.jsonl.partial").read_text().splitlines()) == 1


def test_an_endpoint_with_a_limit_of_answers_and_half_of_a_character(tmp_path: Path) -> None:
    def fault(number: int, body: dict[str, Any]) -> Any:
        if body["n"] > 2:
            return 400, {"error": {"message": "n_cmpl: Value must be between 1 and 2"}}
        return 200, {"choices": [{"index": i, "text": f"a {number} {i} \ud83d"} for i in range(body["n"])]}

    config = replace(SETTINGS, shots=0, decodings=DECODINGS | {"greedy": 0, "sampling": 7})
    with running_proxy("", fault) as (url, proxy):
        pools = record(replace(config, url=url), tmp_path / "pool.jsonl", EXAMPLES[:3])
    assert [len({one.response for one in pool.candidates}) for pool in pools] == [7, 7, 7]
    assert all(one.response.endswith(" ?") for pool in pools for one in pool.candidates)
    assert {body["n"] for body in proxy.seen[-3:]} <= {1, 2}


def test_without_a_model_the_address_tells_one_llm_from_another(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (replace(SETTINGS, url=f"http://localhost:{port}") for port in (1, 2))
    assert fingerprint("", settings(one)) != fingerprint("", settings(other))
    named = [settings(replace(config, model="m")) for config in (one, other)]
    assert fingerprint("", named[0]) == fingerprint("", named[1])
    bare = fingerprint("", settings(SETTINGS))
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:3/v1")
    assert fingerprint("", settings(SETTINGS)) != bare


def test_a_password_in_the_environments_address_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://me:sEcReT@127.0.0.1:9/v1")
    assert refusal(SETTINGS) == "$OPENAI_BASE_URL: holds a name or a password, expected the key in $OPENAI_API_KEY"


def test_when_nothing_can_be_served_the_recording_ends_and_can_go_on(tmp_path: Path) -> None:
    def never(number: int, body: dict[str, Any]) -> Any:
        probe = body["max_tokens"] == 1
        return (200, {"choices": [{"index": 0, "text": "a"}]}) if probe else (400, {"error": {"message": "no"}})

    with running_proxy("", never) as (url, _):
        for few in (12, 5):
            for _ in range(2):  # the same command again is told the same, and nothing is left out for good
                with pytest.raises(
                    InputError, match=r"8 examples one after the other have no answer \(no\)|no example has"
                ):
                    record(replace(SETTINGS, url=url), tmp_path / f"{few}.jsonl", EXAMPLES[:few])
                assert len((tmp_path / f"{few}.jsonl.partial").read_text().splitlines()) == 1


def test_a_key_that_cannot_be_sent_is_refused_without_being_shown(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", " sk-secret\n")  # as it stands in a mounted file
    with running_proxy(server) as (url, proxy):
        record(replace(SETTINGS, url=url), tmp_path / "pool.jsonl", EXAMPLES[:2])
        assert set(proxy.keys) == {"Bearer sk-secret"}
    monkeypatch.setenv("OPENAI_API_KEY", "sk-sécret")
    said = refusal(replace(SETTINGS, url=server))
    assert said == "$OPENAI_API_KEY: holds characters that no key has, expected printable ASCII"


def test_what_is_no_url_is_refused() -> None:
    assert refusal(replace(SETTINGS, url="http://localhost:80a")).startswith("backbone.url: is 'http://localhost:80a'")


def test_parts_are_given_up_one_by_one_and_not_on_a_guess(server: str, tmp_path: Path, capsys: Any) -> None:
    def picky(number: int, body: dict[str, Any]) -> Any:
        if body.get("top_p") == 1 or "max_tokens" in body:
            name = "max_tokens: use max_completion_tokens" if "max_tokens" in body else "something"
            return 400, {"error": {"message": f"we do not like {name}"}}
        return None

    with running_proxy(server, picky) as (url, proxy):
        record(replace(SETTINGS, url=url, chat=True), tmp_path / "pool.jsonl", EXAMPLES[:2])
    assert "requests go without top_p (the endpoint said: we do not like something)" in capsys.readouterr().err
    last = proxy.seen[-1]
    assert last["max_completion_tokens"] == 4
    assert {"top_k", "logprobs", "seed", "n"} <= last.keys()


def test_an_answer_that_trickles_in_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_api, "_LONGEST_PAUSE", 0.5)
    with running_proxy("", lambda number, body: "trickle") as (url, _):
        said = refusal(replace(SETTINGS, url=url, retries=0, timeout=0.5))
    assert said == f"{url}/v1: no answer from the LLM endpoint (it sends, but never ends)"


def test_the_embedded_llm_is_asked_without_the_proxy_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    record(replace(SETTINGS, kind="embedded"), tmp_path / "pool.jsonl", EXAMPLES[:2])


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")
def test_the_embedded_llm_has_as_many_threads_as_it_is_told() -> None:
    code = (
        "import os\n"
        "from cappy_lightning.backbones.embedded import embedded_server\n"
        "with embedded_server(): print(len(os.listdir('/proc/self/task')), flush=True); os._exit(0)"
    )

    def threads(told: str) -> int:
        command, environment = [sys.executable, "-c", code], {**os.environ, "OMP_NUM_THREADS": told}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
        return int(done.stdout)

    cores = len(os.sched_getaffinity(0))
    # More or less: a thread of another kind may be starting.
    assert threads(str(cores + 9)) - threads("no number") == pytest.approx(9, abs=3)


def test_a_budget_stops_and_with_more_the_same_command_continues(server: str, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "pool.jsonl"
    config = replace(SETTINGS, url=server, concurrency=1, input_price=10.0, output_price=1000.0)
    with pytest.raises(InputError) as error:
        record(replace(config, budget_tokens=300), out)
    assert str(error.value).startswith("backbone.budget_tokens: is spent, ")
    done = len((tmp_path / "pool.jsonl.partial").read_text().splitlines()) - 1
    assert 0 < done < len(EXAMPLES)
    said = capsys.readouterr().err
    assert "12 examples, 24 requests with about " in said
    assert "(where an endpoint gives one answer at a time, 48 requests with " in said
    assert "at most about $" in said
    with pytest.raises(InputError, match=r"backbone.budget_usd: is spent"):
        record(replace(config, budget_usd=0.001), out)
    assert [pool.example for pool in record(config, out)] == EXAMPLES


def test_from_the_command_line(server: str, tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    path.write_text("".join(json.dumps(replace(e, split="train").to_row()) + "\n" for e in EXAMPLES[:3]))
    words = ["backbone.kind=openai", f"backbone.url={server}", "backbone.max_tokens=3", "backbone.shots=1"]
    done = run_cappy("generate", path, "-o", tmp_path / "pool.jsonl", *words)
    assert done.returncode == 0, done.stderr
    assert len(read_labelled_pools([tmp_path / "pool.jsonl"])) == 3
    refused = run_cappy(
        "generate",
        path,
        "-o",
        tmp_path / "other.jsonl",
        *words[:1],
        "backbone.url=http://127.0.0.1:9",
        "backbone.retries=0",
    )
    assert (refused.returncode, "no answer from the LLM endpoint" in refused.stderr) == (2, True)
