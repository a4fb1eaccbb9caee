"""What a client is told when it gets no answer: a status, and an error as the OpenAI API has it."""

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse


class Json(JSONResponse):
    """JSON in ASCII: half a surrogate pair, which an upstream may have sent, goes on as it came, escaped."""

    def render(self, content: Any) -> bytes:
        """The bytes of the body."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


class Refusal(Exception):
    """A request that is not served.

    Attributes:
        status: of the HTTP answer.
        body: its JSON.
        headers: more of them.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        self.body: Any = {"error": {"message": message, "type": kind, "param": None, "code": code}}

    def response(self) -> Json:
        """As it is sent."""
        return Json(self.body, self.status, self.headers)


def checked_text(value: Any, where: str) -> str:
    """A text with something in it.

    Raises:
        Refusal: it is none.
    """
    if not isinstance(value, str) or not value.strip():
        raise invalid(where, "expected a text")
    return value


def invalid(where: str, problem: str) -> Refusal:
    """A request that says something wrong: what, and what was expected."""
    return Refusal(400, f"{where}: {problem}")
