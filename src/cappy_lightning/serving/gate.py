"""What holds for a request until the last byte of its answer is sent: the key, the limits, the clock, the counters."""

import asyncio
import hmac
import json
import logging
import time
import traceback
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from cappy_lightning.config import ServeConfig
from cappy_lightning.serving.metrics import Metrics
from cappy_lightning.serving.refusals import Refusal, invalid
from cappy_lightning.serving.upstream import Body

#: Nobody reads the answer any more; the number is nginx's.
HUNG_UP = 499

#: Makes the answer to a body; what it enters into the stack is left when the answer is sent.
Handler = Callable[[Body, AsyncExitStack], Awaitable[Response]]

_log = logging.getLogger("uvicorn.error")


class Gate:
    """What every request passes.

    Args:
        limits: the section `serve`.
        key: what clients have to send; None: nothing.
        metrics: counts the requests.

    Attributes:
        under_way: requests in work.
    """

    def __init__(self, limits: ServeConfig, key: str | None, metrics: Metrics) -> None:
        self._limits, self._key, self._metrics = limits, key, metrics
        self.under_way = 0

    def route(self, path: str, handler: Handler, name: str, method: str = "POST") -> Route:
        """A route to a handler behind the gate; `name` is that of the metrics."""
        return Route(path, _Gated(self, name, handler), methods=[method])

    async def handle(self, name: str, handler: Handler, request: Request, send: Send) -> None:
        """Answer a request, whatever happens."""
        start, answer = time.perf_counter(), _Answer(send)
        status, refusal = HUNG_UP, None
        self._count(1)
        try:
            async with asyncio.timeout(self._limits.timeout), AsyncExitStack() as stack:
                if self.under_way > self._limits.concurrency:
                    message = "too many requests are in work"
                    raise Refusal(503, message, "overloaded", headers={"retry-after": "1"})
                self._check_key(request)
                response = await self._respond(request, handler, stack)
                await response(request.scope, request.receive, answer.send)
                if answer.complete:
                    status = response.status_code
        except Refusal as error:
            refusal = error
        except TimeoutError:
            refusal = Refusal(504, f"not done in {self._limits.timeout:g} s", "timeout")
        except ClientDisconnect:
            pass
        except asyncio.CancelledError:  # by uvicorn, which has waited for it long enough; there is nothing to clean up
            refusal = Refusal(503, "the service is ending", "overloaded", headers={"retry-after": "1"})
        except Exception as error:  # a mistake of ours; what it says may hold what the client sent
            place = traceback.extract_tb(error.__traceback__)[-1]
            _log.error("%s: %s (%s, line %d)", name, type(error).__name__, place.filename, place.lineno)
            refusal = Refusal(500, "the service failed", "server_error")
        finally:
            self._count(-1)
        if refusal:
            status = refusal.status
            if answer.begun:  # that the connection ends is all that the client can still be told
                _log.error("%s: an answer was cut off: %s", name, refusal)
            else:
                await refusal.response()(request.scope, request.receive, send)
        self._metrics.count(name, status, time.perf_counter() - start)

    def _count(self, more: int) -> None:
        self.under_way += more
        self._metrics.in_work(self.under_way)

    def _check_key(self, request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if self._key and not (scheme.lower() == "bearer" and hmac.compare_digest(given.encode(), self._key.encode())):
            raise Refusal(401, "the key is missing or wrong", "authentication_error", "invalid_api_key")

    async def _respond(self, request: Request, handler: Handler, stack: AsyncExitStack) -> Response:
        """The handler's response, unless the client goes before."""
        body = await self._body(request) if request.method == "POST" else {}
        work = asyncio.ensure_future(handler(body, stack))
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
        try:  # what Python reads is more than what JSON and Unicode allow, and than what can be sent on
            json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
        except UnicodeEncodeError:
            raise invalid("the request", "holds half a surrogate pair, expected Unicode text") from None
        except (ValueError, RecursionError):
            raise invalid("the request", "holds NaN or Infinity, expected finite numbers") from None
        return body


class _Gated:
    """A handler behind the gate, as an ASGI application."""

    def __init__(self, gate: Gate, name: str, handler: Handler) -> None:
        self._gate, self._name, self._handler = gate, name, handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._gate.handle(self._name, self._handler, Request(scope, receive), send)


class _Answer:
    """What has been sent on a request: whether it has begun, and whether it is all there."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = self.complete = False

    async def send(self, message: Message) -> None:
        """Send a message of ASGI."""
        self.begun = True
        await self._send(message)
        self.complete = message["type"] == "http.response.body" and not message.get("more_body")


async def _gone(request: Request) -> None:
    """Until the client hangs up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
