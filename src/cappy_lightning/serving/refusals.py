"""What a client is told when it gets no answer: a status, and an error as the OpenAI API has it."""

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse


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

    def response(self) -> JSONResponse:
        """As it is sent."""
        return JSONResponse(self.body, self.status, self.headers)


def checked_text(value: Any, where: str) -> str:
    """A text with something in it.

    Raises:
        Refusal: it is none.
    """
    if not isinstance(value, str) or not value.strip():
        raise invalid(where, "expected a text")
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can escape
        raise invalid(where, "is not Unicode text") from None
    return value


def invalid(where: str, problem: str) -> Refusal:
    """A request that says something wrong: what, and what was expected."""
    return Refusal(400, f"{where}: {problem}")
