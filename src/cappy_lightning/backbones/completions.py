"""Candidates from an OpenAI-compatible completion endpoint (`POST {url}/v1/completions`)."""

import os
from typing import Any

import httpx

from cappy_lightning.backbones.decoding import Decoding
from cappy_lightning.errors import InputError
from cappy_lightning.records import Candidate

#: The environment variable that holds the key, where the endpoint wants one.
KEY_VARIABLE = "OPENAI_API_KEY"


class CompletionsBackbone:
    """An LLM behind an OpenAI-compatible server.

    Args:
        url: the server's address without `/v1`.
        model: the model name to send; None where the server has one model only.
    """

    def __init__(self, url: str, model: str | None = None, timeout: float = 600.0) -> None:
        self.url, self.model = url.rstrip("/").removesuffix("/v1"), model
        key = os.environ.get(KEY_VARIABLE)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        transport = httpx.HTTPTransport(retries=3)  # of connections only; an answer is never asked for twice
        self._client = httpx.Client(base_url=self.url, timeout=timeout, headers=headers, transport=transport)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def sample(self, prompt: str, decoding: Decoding, *, max_tokens: int, stop: str, seed: int) -> list[Candidate]:
        """Draw `decoding.n` candidates; an answer of white space alone is left out.

        Raises:
            InputError: the server cannot be reached, refuses, or answers something else.
        """
        request: dict[str, Any] = {
            "prompt": prompt,
            "n": decoding.n,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "max_tokens": max_tokens,
            "stop": [stop],
            "seed": seed,
            "logprobs": 1,
            # Not in OpenAI's own API; llama.cpp would otherwise apply its defaults (40 and 0.05).
            "top_k": decoding.top_k,
            "min_p": 0.0,
        }
        if self.model:
            request["model"] = self.model
        try:
            response = self._client.post("/v1/completions", json=request)
        except httpx.HTTPError as error:
            raise InputError(self.url, f"no answer from the LLM server ({error or type(error).__name__})") from None
        if response.is_error:
            raise InputError(self.url, f"the LLM server answered {response.status_code}: {response.text[:200]}")
        try:
            choices = sorted(response.json()["choices"], key=lambda choice: choice["index"])
            candidates = [_candidate(choice, decoding) for choice in choices]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(self.url, "the LLM server's answer is no OpenAI completion with 'choices'") from None
        return [candidate for candidate in candidates if candidate.response]


def _candidate(choice: dict[str, Any], decoding: Decoding) -> Candidate:
    logprobs = choice.get("logprobs") or {}
    if "content" in logprobs:  # llama.cpp, in the form of OpenAI's chat API
        values = [token["logprob"] for token in logprobs["content"]]
    else:  # OpenAI's completion API, vLLM
        values = list(logprobs.get("token_logprobs") or [])
    response = " ".join(choice["text"].split())
    if not values or any(value is None for value in values):
        return Candidate(response, decoding.name)
    total = sum(values)
    return Candidate(response, decoding.name, round(total, 4), round(total / len(values), 4))
