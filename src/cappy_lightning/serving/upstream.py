"""The LLM behind the service: requests are passed on, with other decodings and without a stream."""

import asyncio
import contextlib
import json
import math
import re
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import openai

from cappy_lightning.backbones.decoding import Decoding
from cappy_lightning.backbones.openai_api import log_likelihoods
from cappy_lightning.serving.refusals import Refusal

#: A body of the OpenAI API.
Body = dict[str, Any]

#: Of a failed answer of the upstream, what its sender wants the client to know.
HANDED_ON = ("retry-after", "retry-after-ms", "x-should-retry")

#: Keys of a body that are the service's own, and never sent on.
OWN = ("instruction",)

#: Not in OpenAI's own API; without them llama.cpp and vLLM apply defaults of their own.
WHOLE: Body = {"top_k": 0, "min_p": 0.0}

#: Status, headers and bytes of an answer.
Forwarded = tuple[int, Mapping[str, str], AsyncIterator[bytes]]

T = TypeVar("T")


@dataclass(frozen=True)
class Reply:
    """An answer of the upstream.

    Attributes:
        body: as it came.
        choices: the choices in it.
        tokens: of the prompt, and of the answers; None where it does not say it.
    """

    body: Body
    choices: tuple[Body, ...]
    tokens: tuple[int, int] | None


class Upstream:
    """An OpenAI-compatible endpoint.

    Args:
        client: with the endpoint's address, the key, and limits of time and retries.
        model: the model that is asked, whatever the client of the service names; None: the one that it names.
        concurrency: requests to it under way at a time; others wait.
    """

    def __init__(self, client: openai.AsyncOpenAI, model: str | None, concurrency: int) -> None:
        self._client, self._model = client, model
        #: For who starts the service; it holds no key.
        self.address = str(client.base_url)
        self._limit = asyncio.Semaphore(concurrency)
        self._one_at_a_time = False
        #: Whether requests go without `WHOLE`.
        self._plain = False

    async def sample(self, path: str, body: Body, decoding: Decoding) -> list[Reply]:
        """The choices of a decoding, in several replies where the upstream gives fewer at once.

        Where some of the requests fail, there are fewer choices.

        Args:
            path: `chat/completions` or `completions`.
            body: the client's, without what the service decides.
            decoding: how, and how many.

        Raises:
            Refusal: the upstream fails, or answers nonsense.
        """
        asked = body | {"temperature": decoding.temperature, "top_p": decoding.top_p}
        if decoding.top_k:
            asked["top_k"] = decoding.top_k

        def seeded(given: int) -> Body:
            """The request for the choices after those that were given: each has a seed of its own."""
            seed = body.get("seed")
            return asked | ({"seed": seed + decoding.skip + given} if isinstance(seed, int) else {})

        replies: list[Reply] = []
        refused = False
        if not self._one_at_a_time or decoding.n == 1:
            try:
                replies.append(await self._whole(path, seeded(0) | {"n": decoding.n}))
            except Refusal as refusal:
                refused = decoding.n > 1 and _is_about(refusal, "n", "n_cmpl")
                if not refused:
                    raise
        given = sum(len(reply.choices) for reply in replies)
        if given < decoding.n:
            places = range(given, decoding.n)
            found = await all_that_come(self._whole(path, seeded(place) | {"n": 1}) for place in places)
            replies += [one for one in found if isinstance(one, Reply)]
            if not replies:
                raise next(one for one in found if isinstance(one, Refusal))
            self._one_at_a_time = self._one_at_a_time or refused or given == 1
        return replies

    async def _whole(self, path: str, body: Body) -> Reply:
        """A reply drawn from all of the distribution, unless the body says otherwise."""
        plain = self._plain
        try:
            return await self.ask(path, body if plain else WHOLE | body)
        except Refusal as refusal:
            if plain or not _is_about(refusal, *WHOLE):
                raise
        self._plain = True
        return await self.ask(path, body)

    async def ask(self, path: str, body: Body, model: str | None = None) -> Reply:
        """One reply; of another model than usual, where one is named.

        Raises:
            Refusal: the upstream fails, or answers nonsense.
        """
        async with self._limit:
            with _failures():
                raw = await self._endpoint(path).with_raw_response.create(**self._arguments(path, body, model))
        try:
            content = _read(raw.http_response.text)
            choices = sorted(content["choices"], key=lambda choice: int(choice.get("index") or 0))
            if not choices or not all(_is_choice(path, choice) for choice in choices):
                raise ValueError
            tokens = None
            if usage := content.get("usage"):
                # llama.cpp counts the tokens of one choice only.
                written = max(int(usage.get("completion_tokens") or 0), sum(len(log_likelihoods(c)) for c in choices))
                tokens = int(usage.get("prompt_tokens") or 0), written
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise Refusal(502, "the upstream's answer is no OpenAI completion", "upstream_error") from None
        return Reply(content, tuple(choices), tokens)

    @contextlib.asynccontextmanager
    async def forward(self, path: str, body: Body) -> AsyncIterator[Forwarded]:
        """An answer as it is: status, headers and bytes, of a stream or not; the connection is held meanwhile.

        Raises:
            Refusal: the upstream fails; also while the bytes are read.
        """
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self._limit)
            with _failures():
                create = self._endpoint(path).with_streaming_response.create
                response = await stack.enter_async_context(create(**self._arguments(path, body)))

            async def content() -> AsyncIterator[bytes]:
                try:
                    async for part in response.iter_bytes():
                        yield part
                except Exception:  # whatever the HTTP package has for it
                    raise Refusal(502, "the upstream's answer broke off", "upstream_error") from None

            kind = response.headers.get("content-type", "application/json")
            yield response.status_code, {"content-type": kind}, content()

    async def models(self) -> Body:
        """The list of its models, as it is.

        Raises:
            Refusal: the upstream fails, or answers nonsense.
        """
        async with self._limit:
            with _failures():
                raw = await self._client.models.with_raw_response.list()
                content: Body = _read(raw.http_response.text)
        return content

    def _endpoint(self, path: str) -> Any:
        return self._client.chat.completions if path.startswith("chat") else self._client.completions

    def _arguments(self, path: str, body: Body, model: str | None = None) -> Body:
        given = "messages" if path.startswith("chat") else "prompt"
        rest = {name: value for name, value in body.items() if name not in (given, "model", *OWN)}
        model = model or self._model or str(body.get("model") or "default")
        return {given: body[given], "model": model, "extra_body": rest}

    async def close(self) -> None:
        """Give the connections back."""
        await self._client.close()


async def all_that_come(work: Iterable[Coroutine[Any, Any, T]]) -> list[T | Refusal]:
    """The results of all, done side by side; a refusal stands in the place of what failed."""
    found = await asyncio.gather(*work, return_exceptions=True)
    for one in found:
        if isinstance(one, BaseException) and not isinstance(one, Refusal):
            raise one
    return found  # type: ignore[return-value]  # mypy does not see what was raised


def _is_about(refusal: Refusal, *keys: str) -> bool:
    """Whether a request is refused for one of its keys."""
    return refusal.status in (400, 422) and bool(re.search(rf"\b({'|'.join(keys)})\b", str(refusal)))


def _read(text: str) -> Any:
    """JSON; a number that is not finite, which JSON does not have, is null."""

    def finite(number: str) -> float | None:
        value = float(number)
        return value if math.isfinite(value) else None

    return json.loads(text, parse_constant=lambda _: None, parse_float=finite)


def _is_choice(path: str, choice: Body) -> bool:
    return isinstance(choice["message"], dict) if path.startswith("chat") else isinstance(choice["text"], str)


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    """Failures of the upstream as refusals."""
    try:
        yield
    except openai.APIStatusError as error:
        raise _handed_on(error) from None
    except openai.APITimeoutError:
        raise Refusal(504, "the upstream does not answer in time", "upstream_error") from None
    except openai.APIConnectionError:
        raise Refusal(502, "the upstream cannot be reached, or breaks off", "upstream_error") from None
    except (openai.APIError, ValueError):
        raise Refusal(502, "the upstream answers nonsense", "upstream_error") from None


def _handed_on(error: openai.APIStatusError) -> Refusal:
    """The upstream's failure for the client; one of the service's own key is none of the client's."""
    headers = {name: value for name in HANDED_ON if (value := error.response.headers.get(name))}
    if error.status_code in (401, 403):
        return Refusal(502, "the upstream refuses the service's key", "upstream_error")
    refusal = Refusal(error.status_code, str(error.message), "upstream_error", headers=headers)
    try:
        body = _read(error.response.text)
    except ValueError:
        return refusal
    if isinstance(body, dict) and "error" in body:
        refusal.body = body
    elif isinstance(body, dict) and "detail" in body:  # FastAPI's
        detail = body["detail"]
        said = detail if isinstance(detail, str) else json.dumps(detail)
        refusal = Refusal(error.status_code, said, "upstream_error", headers=headers)
    return refusal
