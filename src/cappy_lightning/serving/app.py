"""The service as an ASGI application: its routes."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import uuid4

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from cappy_lightning.backbones.decoding import Decoding
from cappy_lightning.cappy import Cappy
from cappy_lightning.config import Config
from cappy_lightning.scorer.inference import Pair
from cappy_lightning.serving.batching import BatchingScorer
from cappy_lightning.serving.completions import Completions, as_stream
from cappy_lightning.serving.gate import Gate, Handler
from cappy_lightning.serving.metrics import Metrics
from cappy_lightning.serving.refusals import Json, Refusal, checked_text, invalid
from cappy_lightning.serving.upstream import Body, Upstream


class Service:
    """What the routes do.

    Args:
        cappy: who scores.
        upstream: who answers.
        config: whose sections `answer` and `serve` are used, and `backbone.model`.
        decodings: of the candidates.
        key: what clients have to send; None: nothing.

    Attributes:
        gate: what every request passes.
    """

    def __init__(
        self,
        cappy: Cappy,
        upstream: Upstream,
        config: Config,
        decodings: Sequence[Decoding],
        key: str | None,
    ) -> None:
        self._tasks, self._upstream, self._config = cappy.tasks, upstream, config
        self._scorer = BatchingScorer(cappy)
        self._completions = Completions(cappy, self._scorer, upstream, config, decodings)
        self._metrics = Metrics(self._scorer, self._completions)
        self.gate = Gate(config.serve, key, self._metrics)

    def app(self) -> Starlette:
        """The application."""

        @asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            yield
            await self._upstream.close()
            self._scorer.close()

        route = self.gate.route
        return Starlette(
            lifespan=lifespan,
            routes=[
                *(route(f"/v1/{path}", self._complete(path), path) for path in ("chat/completions", "completions")),
                *(route(path, self._score, "score") for path in ("/score", "/v1/score")),
                *(route(path, self._rerank, "rerank") for path in ("/rerank", "/v1/rerank", "/v2/rerank")),
                route("/v1/models", self._models, "models", "GET"),
                Route("/health", _healthy),
                Route("/ready", _healthy),
                Route("/metrics", self._metrics.page),
            ],
            exception_handlers={404: _not_found, 405: _not_found},
        )

    def _task(self, body: Body) -> str | None:
        """Whose adapter is meant, where there are several."""
        model = body.get("model")
        if model is not None and not isinstance(model, str):
            raise invalid("model", "is no text, expected a name")
        if not self._tasks:
            return None
        if model not in self._tasks:
            known = ", ".join(self._tasks)
            found = "is missing" if model is None else f"is '{model}'"
            raise Refusal(404, f"model: {found}, expected one of {known}", code="model_not_found")
        return model

    def _complete(self, path: str) -> Handler:
        async def complete(body: Body, stack: AsyncExitStack) -> Response:
            question = self._completions.understand(path, body, self._task(body))
            if question is None:
                status, headers, content = await stack.enter_async_context(self._upstream.forward(path, body))
                return StreamingResponse(content, status, headers)
            answer = await self._completions.answer(path, question)
            if not body.get("stream"):
                return Json(answer)
            options = body.get("stream_options")
            usage = isinstance(options, dict) and bool(options.get("include_usage"))
            return StreamingResponse(as_stream(path, answer, usage), media_type="text/event-stream")

        return complete

    async def _score(self, body: Body, _: AsyncExitStack) -> Response:
        pairs = [_pair(row, f"pairs[{place}]") for place, row in enumerate(self._list(body, "pairs"))]
        logits = await self._scorer.logits(pairs, self._task(body))
        return Json({"scores": self._scorer.scores(logits), "logits": logits})

    async def _rerank(self, body: Body, _: AsyncExitStack) -> Response:
        query, documents = checked_text(body.get("query"), "query"), self._list(body, "documents")
        most = body.get("top_n")
        if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
            raise invalid("top_n", f"is {json.dumps(most)[:40]}, expected a whole number of at least 1")
        texts = [_document(one, f"documents[{place}]") for place, one in enumerate(documents)]
        pairs = [(query, text) for text in texts]
        logits = await self._scorer.logits(pairs, self._task(body))
        scores, tokens = self._scorer.scores(logits), await self._scorer.tokens(pairs)
        order = sorted(range(len(texts)), key=lambda i: -logits[i])[:most]
        shown = body.get("return_documents") is not False
        results = [
            {"index": i, "relevance_score": scores[i]} | ({"document": {"text": texts[i]}} if shown else {})
            for i in order
        ]
        return Json(
            {
                "id": str(uuid4()),
                "model": body.get("model") or "cappy",
                "results": results,
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},  # as Jina has it
                "meta": {"api_version": {"version": "2"}, "tokens": {"input_tokens": tokens}},  # as Cohere has it
            }
        )

    def _list(self, body: Body, name: str) -> list[Any]:
        rows, most = body.get(name), self._config.serve.max_pairs
        if not isinstance(rows, list) or not rows:
            raise invalid(name, "expected a list that is not empty")
        if len(rows) > most:
            raise Refusal(413, f"{name}: are {len(rows)}, expected at most {most}")
        return rows

    async def _models(self, _: Body, __: AsyncExitStack) -> Response:
        """What a request can name: an adapter, or the LLM."""
        model = self._config.backbone.model
        names = self._tasks or ((model,) if model else ())
        if not names:
            return Json(await self._upstream.models())
        rows = [{"id": name, "object": "model", "created": 0, "owned_by": "cappy"} for name in names]
        return Json({"object": "list", "data": rows})


def _pair(row: Any, where: str) -> Pair:
    if not isinstance(row, dict):
        raise invalid(where, "is no object, expected one with 'instruction' and 'response'")
    instruction, response = (checked_text(row.get(name), f"{where}.{name}") for name in ("instruction", "response"))
    return instruction, response


def _document(row: Any, where: str) -> str:
    return checked_text(row.get("text"), f"{where}.text") if isinstance(row, dict) else checked_text(row, where)


async def _healthy(_: Request) -> Response:
    return PlainTextResponse("ok\n")


async def _not_found(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    return Refusal(status, f"{request.method} {request.url.path}: is not served here").response()
