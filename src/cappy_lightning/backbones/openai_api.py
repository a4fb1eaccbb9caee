"""Candidates from any endpoint that speaks the OpenAI API: closed LLMs, vLLM, TGI, llama.cpp."""

import asyncio
import os
import random
import re
import threading
from collections import deque
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, Self, TypeVar

import openai

from cappy_lightning.backbones.backbone import ONLY_EMPTY, Answer, CutAnswers, Request, candidate
from cappy_lightning.backbones.decoding import Decoding
from cappy_lightning.backbones.prompts import Prompt, stops
from cappy_lightning.config import BackboneConfig
from cappy_lightning.errors import InputError
from cappy_lightning.progress import say
from cappy_lightning.records import Candidate

#: The environment variable that holds the key, where the endpoint wants one.
KEY_VARIABLE = "OPENAI_API_KEY"

#: Parts of a request that not every endpoint takes, in the order in which they are given up. The first are
#: not in OpenAI's own API; without them, and `top_p`, llama.cpp and vLLM would apply defaults of their own.
OPTIONAL = ("top_k, min_p", "top_p", "logprobs", "seed", "n")

#: Seconds between two attempts that the package may take at most.
_LONGEST_PAUSE = 60.0

#: Answers that tell of the single request that it cannot be served.
_UNFIT = (openai.BadRequestError, openai.UnprocessableEntityError)


T = TypeVar("T")


class OpenAIBackbone:
    """An LLM behind an OpenAI-compatible endpoint, plain completions or chat.

    Requests are retried with growing pauses on 408, 409, 429, 5xx and broken connections (by the `openai`
    package). A first small request finds out what the endpoint takes.

    Args:
        config: the section `backbone`.
        local: the address of a server on this machine, which goes before `config.url`; no proxy of the
            environment and no key is used for it.

    Raises:
        InputError: a URL or a key that cannot be used.
    """

    group = 1

    def __init__(self, config: BackboneConfig, local: str | None = None) -> None:
        self._config = config
        self._model = config.model or "default"
        self._given_up: set[str] = set()
        self._length = "max_tokens"
        #: Answers that are asked for in one request at most, where the endpoint has a limit.
        self._most: int | None = None
        self._limit = asyncio.Semaphore(config.concurrency)
        self._cut_answers = CutAnswers(config.max_tokens)
        self._client = open_client(config, local)
        self.where = str(self._client.base_url).rstrip("/")

    def __enter__(self) -> Self:
        # A loop in a thread of its own: it also works where a loop is already running, as in a notebook.
        self._loop, self._lock, self._closed = asyncio.new_event_loop(), threading.Lock(), False
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        try:
            self._start(self._probe()).result()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:  # what another thread has started is before it, and ends with it
            last, self._closed = asyncio.run_coroutine_threadsafe(self._stop(), self._loop), True
        last.result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        with self._lock:
            if not self._closed:
                return asyncio.run_coroutine_threadsafe(work, self._loop)
        work.close()
        raise CancelledError("the backbone is closed")

    async def _stop(self) -> None:
        tasks = asyncio.all_tasks(self._loop) - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.close()

    def refuses(self, decoding: Decoding) -> str | None:
        """Why it cannot decode like this; None if it can."""
        if decoding.beams > 1:
            return "the OpenAI API has no beam search"
        if decoding.top_k and OPTIONAL[0] in self._given_up:
            return "the endpoint does not take top_k"
        return None

    def answer(self, requests: Iterator[Request], decodings: Sequence[Decoding]) -> Iterator[Answer]:
        """Answer every request with every decoding, in order; `concurrency` HTTP requests at a time.

        Raises:
            InputError: the endpoint cannot be reached, refuses the key, or answers nonsense.
        """
        under_way: deque[Future[Answer]] = deque()
        for request in requests:
            under_way.append(self._start(self._answer(request, decodings)))
            # More than are sent at once, so that one slow answer at the front holds up nobody.
            if len(under_way) >= 2 * self._config.concurrency:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()

    async def _answer(self, request: Request, decodings: Sequence[Decoding]) -> Answer:
        seed = self._config.seed
        parts = await asyncio.gather(
            *(self._sample(request.prompt, d, d.seed_text(seed, request.example.id)) for d in decodings),
            return_exceptions=True,
        )
        refusals: list[openai.APIStatusError] = []
        for part in parts:
            if isinstance(part, _UNFIT):
                refusals.append(part)
            elif isinstance(part, BaseException):
                raise part
        known = [part for part in parts if not isinstance(part, BaseException)]
        answers = [one for found, _, _ in known for one in found]
        candidates = tuple(one for one in answers if one.response)
        problem = _said(refusals[0]) if refusals else None if candidates else ONLY_EMPTY
        return Answer(
            () if problem else candidates,
            sum(part[1] for part in known),
            sum(part[2] for part in known),
            len(answers) - len(candidates),
            problem,
        )

    async def _sample(self, prompt: Prompt, decoding: Decoding, seed: str) -> tuple[list[Candidate], int, int]:
        """`n` candidates, in several requests where the endpoint gives fewer at once."""
        found: list[Candidate] = []
        missing, input_tokens, output_tokens, round_ = decoding.n, 0, 0, 0
        while missing > 0:
            asked = min(missing, self._most or missing)
            try:
                choices, usage = await self._request(prompt, decoding, asked, _seed(f"{seed} {round_}"))
            except _UNFIT as refusal:
                if asked == 1 or not re.search(r"\bn(_cmpl)?\b", _said(refusal)):
                    raise
                self._most = min(self._most or asked, asked) // 2 or 1  # it has a limit, which it seldom tells
                continue
            found += choices[:missing]
            missing, round_ = missing - len(choices), round_ + 1
            input_tokens += usage[0]
            output_tokens += usage[1]
        return found, input_tokens, output_tokens

    async def _request(
        self, prompt: Prompt, decoding: Decoding, n: int, seed: int, max_tokens: int | None = None
    ) -> tuple[list[Candidate], tuple[int, int]]:
        chat = not isinstance(prompt, str)
        body: dict[str, Any] = {"messages" if chat else "prompt": prompt, "model": self._model}
        body |= {"temperature": decoding.temperature, "stop": stops(self._config) or None}
        body[self._length] = max_tokens or self._config.max_tokens
        if decoding.top_p < 1:
            body["top_p"] = decoding.top_p
        optional: dict[str, dict[str, Any]] = {
            "top_k, min_p": {"extra_body": {"top_k": decoding.top_k, "min_p": 0.0}},
            "top_p": {} if decoding.top_p < 1 else {"top_p": 1.0},
            "logprobs": {"logprobs": True} if chat else {"logprobs": 1},
            "seed": {"seed": seed},
            "n": {"n": n},
        }
        for name in OPTIONAL:
            if name not in self._given_up:
                body |= optional[name]
        create: Any = self._client.chat.completions.create if chat else self._client.completions.create
        # The package's time-out is for each wait on the connection; this one for an answer that trickles in.
        patience = (self._config.timeout + _LONGEST_PAUSE) * (self._config.retries + 1)
        async with self._limit:
            try:
                async with asyncio.timeout(patience):
                    response = await create(**{key: value for key, value in body.items() if value is not None})
            except TimeoutError:
                raise InputError(self.where, "no answer from the LLM endpoint (it sends, but never ends)") from None
            except _UNFIT:
                raise
            except openai.APIStatusError as error:
                raise InputError(self.where, _refusal(error)) from None
            except openai.APIError as error:  # no connection, a time-out, an answer that is no JSON
                raise InputError(self.where, f"no answer from the LLM endpoint ({_reason(error)})") from None
            except ValueError:
                raise InputError(self.where, "the LLM endpoint's answer is no JSON") from None
        choices, usage = self._read(response, decoding)
        if max_tokens is None:
            for choice in response.choices:
                self._cut_answers.add(choice.finish_reason == "length")
        return choices, usage

    def _read(self, response: Any, decoding: Decoding) -> tuple[list[Candidate], tuple[int, int]]:
        try:
            content = response.model_dump(warnings=False)  # what is not as it should be is refused below
            chosen = sorted(content["choices"], key=lambda choice: int(choice.get("index") or 0))
            likelihoods = [log_likelihoods(choice) for choice in chosen]
            choices = [candidate(_text(c), decoding, values) for c, values in zip(chosen, likelihoods, strict=True)]
            usage = content.get("usage") or {}
            # llama.cpp counts the tokens of one choice only.
            written = max(int(usage.get("completion_tokens") or 0), sum(map(len, likelihoods)))
            tokens = int(usage.get("prompt_tokens") or 0), written
        except (ValueError, KeyError, TypeError, AttributeError):
            choices = []
        if not choices:
            raise InputError(self.where, "the LLM endpoint's answer is no OpenAI completion with 'choices'")
        return choices, tokens

    async def _probe(self) -> None:
        """Ask for one token, giving up what the endpoint does not take, and nothing else.

        Raises:
            InputError: even the plainest request is refused.
        """
        said = ""
        while (refusal := await self._refusal()) is not None:
            said = _said(refusal)
            if "max_completion_tokens" in said and self._length == "max_tokens":
                self._length = "max_completion_tokens"
                continue
            left = [name for name in OPTIONAL if name not in self._given_up]
            if not left:
                raise InputError(self.where, _refusal(refusal)) from None
            named = [name for name in left if re.search(rf"\b({name.replace(', ', '|')})\b", said)]
            self._given_up.add((named or left)[0])
        for name in sorted(self._given_up):  # given up on a guess, perhaps
            self._given_up.remove(name)
            if await self._refusal() is not None:
                self._given_up.add(name)
        if self._given_up:
            say(f"{self.where}: requests go without {', '.join(sorted(self._given_up))} (the endpoint said: {said})")

    async def _refusal(self) -> openai.APIStatusError | None:
        prompt: Prompt = [{"role": "user", "content": "Hello"}] if self._config.chat else "Hello"
        try:
            await self._request(prompt, Decoding("probe", 2), 2, 0, max_tokens=1)
        except _UNFIT as error:
            return error
        return None


def open_client(config: BackboneConfig, local: str | None = None) -> openai.AsyncOpenAI:
    """A client for an endpoint.

    Args:
        config: the section `backbone`.
        local: see `OpenAIBackbone`.

    Raises:
        InputError: a URL or a key that cannot be used.
    """
    url = local or config.url
    key = environment_key(KEY_VARIABLE) if local is None else None
    try:
        client = openai.AsyncOpenAI(
            api_key=key or "none",  # the package insists on one, local servers do not
            base_url=_with_version(url) if url else None,
            timeout=config.timeout,
            max_retries=config.retries,
            http_client=openai.DefaultAsyncHttpxClient(trust_env=False) if local else None,
        )
    except Exception as error:  # the URL is all that can be wrong, in ways that the HTTP package names
        raise InputError("backbone.url", f"is '{url}', which is no URL ({error})") from None
    if client.base_url.userinfo:  # the config's own is refused before, that of the environment is not
        raise InputError("$OPENAI_BASE_URL", f"holds a name or a password, expected the key in ${KEY_VARIABLE}")
    return client


def environment_key(variable: str) -> str | None:
    """The key in a variable of the environment, if there is one.

    Raises:
        InputError: it cannot be sent in a header; the message does not show it.
    """
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"${variable}", "holds characters that no key has, expected printable ASCII")
    return key or None


def _with_version(url: str) -> str:
    """The base URL as the API has it: `/v1` is added to a bare host."""
    return url if url.rstrip("/").count("/") > 2 else url.rstrip("/") + "/v1"


def _seed(text: str) -> int:
    return random.Random(text).randrange(2**31)


def _text(choice: dict[str, Any]) -> str:
    if "message" in choice:
        return str(choice["message"]["content"] or "")  # null where the LLM declines
    if not isinstance(choice["text"], str):
        raise TypeError("a completion without a text")
    return choice["text"]


def log_likelihoods(choice: dict[str, Any]) -> list[float | None]:
    """The log-probability of each token of a choice, where the endpoint gives them."""
    logprobs = choice.get("logprobs") or {}
    if logprobs.get("content"):  # the chat API, and llama.cpp's completions
        return [token["logprob"] for token in logprobs["content"]]
    return list(logprobs.get("token_logprobs") or [])  # OpenAI's completion API, vLLM


def _reason(error: Exception) -> str:
    cause = error.__cause__
    return str(cause or error) or type(cause or error).__name__


def _said(error: openai.APIStatusError) -> str:
    """What the endpoint said, without the package's own dressing."""
    body: Any = error.body
    if isinstance(body, dict):
        body = body.get("message") or body.get("error") or body
    return " ".join(str(body or error.message).split())[:200]


def _refusal(error: openai.APIStatusError) -> str:
    if error.status_code in (401, 403):
        return f"the LLM endpoint refuses the key (HTTP {error.status_code}), expected a valid one in ${KEY_VARIABLE}"
    return f"the LLM endpoint answered HTTP {error.status_code}: {_said(error)}"
