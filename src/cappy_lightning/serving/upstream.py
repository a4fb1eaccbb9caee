"""The LLM behind the service: requests are passed on, with other decodings and without a stream."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import openai

from cappy_lightning.backbones.decoding import Decoding
from cappy_lightning.serving.refusals import Refusal

#: A body of the OpenAI API.
Body = dict[str, Any]

#: Of a failed answer of the upstream, what its sender wants the client to know.
HANDED_ON = ("retry-after", "retry-after-ms", "x-should-retry")


@dataclass(frozen=True)
class Reply:
    """An answer of the upstream.

    Attributes:
        body: as it came.
        choices: the choices in it.
        tokens: of the prompt, and of the answers, as far as it says it.
    """

    body: Body
    choices: tuple[Body, ...]
    tokens: tuple[int, int]


class Upstream:
    """An OpenAI-compatible endpoint.

    Args:
        client: with the endpoint's address, the key, and limits of time and retries.
        model: the model that is asked, whatever the client of the service names; None: the one that it names.
    """

    def __init__(self, client: openai.AsyncOpenAI, model: str | None) -> None:
        self._client, self._model = client, model
        self._one_at_a_time = False

    async def sample(self, path: str, body: Body, decoding: Decoding) -> list[Reply]:
        """The choices of a decoding, in several replies where the upstream gives fewer at once.

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
        if isinstance(body.get("seed"), int):
            asked["seed"] = body["seed"] + decoding.skip
        replies: list[Reply] = []
        refused = False
        if not self._one_at_a_time or decoding.n == 1:
            try:
                replies.append(await self.ask(path, asked | {"n": decoding.n}))
            except Refusal as refusal:
                refused = decoding.n > 1 and refusal.status == 400 and bool(re.search(r"\bn\b", str(refusal)))
                if not refused:
                    raise
        missing = decoding.n - sum(len(reply.choices) for reply in replies)
        if missing > 0:
            seeds = [{"seed": asked["seed"] + 1 + i} if "seed" in asked else {} for i in range(missing)]
            replies += await asyncio.gather(*(self.ask(path, asked | {"n": 1} | seed) for seed in seeds))
            self._one_at_a_time = self._one_at_a_time or refused or len(replies[0].choices) == 1
        return replies

    async def ask(self, path: str, body: Body, model: str | None = None) -> Reply:
        """One reply; of another model than usual, where one is named.

        Raises:
            Refusal: the upstream fails, or answers nonsense.
        """
        with _failures():
            raw = await self._endpoint(path).with_raw_response.create(**self._arguments(path, body, model))
        try:
            content = raw.http_response.json()
            choices = sorted(content["choices"], key=lambda choice: int(choice.get("index") or 0))
            usage = content.get("usage") or {}
            tokens = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
            if not choices or not all("message" in one or isinstance(one["text"], str) for one in choices):
                raise ValueError
        except (ValueError, LookupError, TypeError, AttributeError):
            raise Refusal(502, "the upstream's answer is no OpenAI completion", "upstream_error") from None
        return Reply(content, tuple(choices), tokens)

    async def forward(self, path: str, body: Body) -> tuple[int, Mapping[str, str], AsyncIterator[bytes]]:
        """An answer as it is: status, headers and bytes, of a stream or not.

        Raises:
            Refusal: the upstream fails.
        """
        manager = self._endpoint(path).with_streaming_response.create(**self._arguments(path, body))
        with _failures():
            response = await manager.__aenter__()

        async def content() -> AsyncIterator[bytes]:
            try:
                async for part in response.iter_bytes():
                    yield part
            finally:
                await manager.__aexit__(None, None, None)

        kind = response.headers.get("content-type", "application/json")
        return response.status_code, {"content-type": kind}, content()

    def _endpoint(self, path: str) -> Any:
        return self._client.chat.completions if path.startswith("chat") else self._client.completions

    def _arguments(self, path: str, body: Body, model: str | None = None) -> Body:
        given = "messages" if path.startswith("chat") else "prompt"
        rest = {name: value for name, value in body.items() if name not in (given, "model")}
        model = model or self._model or str(body.get("model") or "default")
        return {given: body[given], "model": model, "extra_body": rest}

    async def close(self) -> None:
        """Give the connections back."""
        await self._client.close()


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    """Failures of the upstream as refusals."""
    try:
        yield
    except openai.APIStatusError as error:
        raise _handed_on(error) from None
    except openai.APITimeoutError:
        raise Refusal(504, "the upstream does not answer in time", "upstream_error") from None
    except (openai.APIError, ValueError):
        raise Refusal(502, "the upstream cannot be reached, or answers nonsense", "upstream_error") from None


def _handed_on(error: openai.APIStatusError) -> Refusal:
    """The upstream's failure for the client; one of the service's own key is none of the client's."""
    headers = {name: value for name in HANDED_ON if (value := error.response.headers.get(name))}
    if error.status_code in (401, 403):
        return Refusal(502, "the upstream refuses the service's key", "upstream_error")
    refusal = Refusal(error.status_code, str(error.message), "upstream_error", headers=headers)
    try:
        body = error.response.json()
    except ValueError:
        return refusal
    if isinstance(body, dict) and "error" in body:
        refusal.body = body
    return refusal
