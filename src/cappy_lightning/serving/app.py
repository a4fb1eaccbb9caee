"""The service as an ASGI application: routes, and what holds for every request."""

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from cappy_lightning.backbones.decoding import Decoding
from cappy_lightning.cappy import Cappy
from cappy_lightning.config import Config
from cappy_lightning.scorer.inference import Pair
from cappy_lightning.serving.batching import BatchingScorer
from cappy_lightning.serving.completions import Completions, as_stream
from cappy_lightning.serving.metrics import Metrics
from cappy_lightning.serving.refusals import Refusal, checked_text, invalid
from cappy_lightning.serving.upstream import Body, Upstream

#: Nobody reads the answer any more; the number is nginx's.
HUNG_UP = 499

Handler = Callable[[Body], Awaitable[Response]]


class Service:
    """What the routes do.

    Args:
        cappy: who scores.
        upstream: who answers.
        config: whose sections `answer` and `serve` are used.
        decodings: of the candidates.
        key: what clients have to send; None: nothing.
    """

    def __init__(
        self,
        cappy: Cappy,
        upstream: Upstream,
        config: Config,
        decodings: Sequence[Decoding],
        key: str | None,
    ) -> None:
        self._tasks, self._upstream, self._limits, self._key = cappy.tasks, upstream, config.serve, key
        self._scorer = BatchingScorer(cappy)
        self._completions = Completions(cappy, self._scorer, upstream, config, decodings)
        self._metrics = Metrics(self._scorer, self._completions)
        self._under_way = 0

    def app(self) -> Starlette:
        """The application."""

        @asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            yield
            await self._upstream.close()
            self._scorer.close()

        completions = [
            Route(f"/v1/{path}", self._guarded(path, self._complete(path)), methods=["POST"])
            for path in ("chat/completions", "completions")
        ]
        score, rerank = self._guarded("score", self._score), self._guarded("rerank", self._rerank)
        return Starlette(
            lifespan=lifespan,
            routes=[
                *completions,
                *(Route(path, score, methods=["POST"]) for path in ("/score", "/v1/score")),
                *(Route(path, rerank, methods=["POST"]) for path in ("/rerank", "/v1/rerank", "/v2/rerank")),
                Route("/v1/models", self._models),
                Route("/health", _healthy),
                Route("/ready", _healthy),
                Route("/metrics", self._metrics.page),
            ],
            exception_handlers={404: _not_found, 405: _not_found},
        )

    def _guarded(self, name: str, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        """The handler of a route behind the key, the limits, the clock and the counters."""

        async def guarded(request: Request) -> Response:
            start = time.perf_counter()
            self._under_way += 1
            self._metrics.in_work(self._under_way)
            try:
                if self._under_way > self._limits.concurrency:
                    raise Refusal(503, "too many requests are in work", "overloaded", headers={"retry-after": "1"})
                self._check_key(request)
                response = await self._answer(request, handler)
            except Refusal as refusal:
                response = refusal.response()
            except TimeoutError:
                response = Refusal(504, f"not done in {self._limits.timeout:g} s", "timeout").response()
            except ClientDisconnect:
                response = Response(status_code=HUNG_UP)
            finally:
                self._under_way -= 1
                self._metrics.in_work(self._under_way)
            self._metrics.count(name, response.status_code, time.perf_counter() - start)
            return response

        return guarded

    def _check_key(self, request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if self._key and not (scheme.lower() == "bearer" and hmac.compare_digest(given.encode(), self._key.encode())):
            raise Refusal(401, "the key is missing or wrong", "authentication_error", "invalid_api_key")

    async def _answer(self, request: Request, handler: Handler) -> Response:
        """The handler's answer, unless the client goes before."""
        async with asyncio.timeout(self._limits.timeout):
            body = await self._body(request)
            work = asyncio.ensure_future(handler(body))
            gone = asyncio.ensure_future(_gone(request))
            try:
                await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
                if not work.done():
                    raise ClientDisconnect
                return work.result()
            finally:
                for task in (work, gone):
                    task.cancel()
                await asyncio.gather(work, gone, return_exceptions=True)

    async def _body(self, request: Request) -> Body:
        content = bytearray()
        async for part in request.stream():
            content += part
            if len(content) > self._limits.max_body_bytes:
                raise Refusal(413, f"the request is larger than {self._limits.max_body_bytes} bytes")
        try:
            body = json.loads(content)
        except (ValueError, RecursionError):
            raise invalid("the request", "is no JSON, expected an object") from None
        if not isinstance(body, dict):
            raise invalid("the request", "is no object, expected one")
        return body

    def _task(self, body: Body) -> str | None:
        """Whose adapter is meant, where there are several."""
        model = body.get("model")
        if model is not None and not isinstance(model, str):
            raise invalid("model", "is no text, expected a name")
        if not self._tasks:
            return None
        if model not in self._tasks:
            known = ", ".join(self._tasks)
            raise Refusal(404, f"model: is '{model}', expected one of {known}", code="model_not_found")
        return model

    def _complete(self, path: str) -> Handler:
        async def complete(body: Body) -> Response:
            question = self._completions.understand(path, body, self._task(body))
            if question is None:
                status, headers, content = await self._upstream.forward(path, body)
                return StreamingResponse(content, status, headers)
            answer = await self._completions.answer(path, question)
            if not body.get("stream"):
                return JSONResponse(answer)
            options = body.get("stream_options")
            usage = isinstance(options, dict) and bool(options.get("include_usage"))
            return StreamingResponse(as_stream(path, answer, usage), media_type="text/event-stream")

        return complete

    async def _score(self, body: Body) -> Response:
        pairs = [_pair(row, f"pairs[{place}]") for place, row in enumerate(self._list(body, "pairs"))]
        logits = await self._scorer.logits(pairs, self._task(body))
        return JSONResponse({"scores": self._scorer.scores(logits), "logits": logits})

    async def _rerank(self, body: Body) -> Response:
        query, documents = checked_text(body.get("query"), "query"), self._list(body, "documents")
        most = body.get("top_n")
        if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
            raise invalid("top_n", f"is {json.dumps(most)[:40]}, expected a whole number of at least 1")
        texts = [_document(one, f"documents[{place}]") for place, one in enumerate(documents)]
        logits = await self._scorer.logits([(query, text) for text in texts], self._task(body))
        scores = self._scorer.scores(logits)
        order = sorted(range(len(texts)), key=lambda i: -logits[i])[:most]
        shown = body.get("return_documents") is not False
        results = [
            {"index": i, "relevance_score": scores[i]} | ({"document": {"text": texts[i]}} if shown else {})
            for i in order
        ]
        return JSONResponse({"model": body.get("model") or "cappy", "results": results})

    def _list(self, body: Body, name: str) -> list[Any]:
        rows = body.get(name)
        if not isinstance(rows, list) or not rows:
            raise invalid(name, "expected a list that is not empty")
        if len(rows) > self._limits.max_pairs:
            raise Refusal(413, f"{name}: are {len(rows)}, expected at most {self._limits.max_pairs}")
        return rows

    async def _models(self, request: Request) -> Response:
        try:
            self._check_key(request)
        except Refusal as refusal:
            return refusal.response()
        rows = [
            {"id": name, "object": "model", "created": 0, "owned_by": "cappy"} for name in self._tasks or ("cappy",)
        ]
        return JSONResponse({"object": "list", "data": rows})


def _pair(row: Any, where: str) -> Pair:
    if not isinstance(row, dict):
        raise invalid(where, "is no object, expected one with 'instruction' and 'response'")
    instruction, response = (checked_text(row.get(name), f"{where}.{name}") for name in ("instruction", "response"))
    return instruction, response


def _document(row: Any, where: str) -> str:
    return checked_text(row.get("text"), f"{where}.text") if isinstance(row, dict) else checked_text(row, where)


async def _gone(request: Request) -> None:
    """Until the client hangs up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _healthy(_: Request) -> Response:
    return PlainTextResponse("ok\n")


async def _not_found(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    return Refusal(status, f"{request.method} {request.url.path}: is not served here").response()
