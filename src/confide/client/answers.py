"""What a workload's API answers through OpenAI's SDK: refusals as typed errors, and what is said only if it is text.

It came through the channel, so it is the workload's own word.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, cast

import httpx

from confide.errors import WORKLOAD_CODES, ConfideError, ProtocolError, ServerBusy, ServerFault, error_class
from confide.net.patience import asked_for
from confide.printable import quoted

if TYPE_CHECKING:
    from openai import APIError

_OPENAI_CODES: Final = {
    "context_length_exceeded": "prompt-too-long",
    "insufficient_quota": "budget-exhausted",
    "invalid_api_key": "api-key-refused",
    "model_not_found": "unknown-model",
    "rate_limit_exceeded": "rate-limited",
}
"""OpenAI's words for what has a code in `confide.errors`."""


@contextmanager
def typed_errors() -> Iterator[None]:
    """What the workload's API says is wrong, as typed errors."""
    from openai import APIError

    try:
        yield
    except APIError as error:
        raise _typed(error) from error
    except (AttributeError, LookupError, ValueError, RecursionError) as error:
        raise _no_answer() from error


def first_choice(made: Any) -> Any:
    """Of a completion. ProtocolError."""
    if not isinstance(made.choices, list) or not made.choices:
        raise _no_answer()
    return made.choices[0]


def text_of(found: object) -> str:
    """What has to be text. ProtocolError."""
    if not isinstance(found, str):
        raise _no_answer()
    return found


def _no_answer() -> ProtocolError:
    return ProtocolError("What the workload answered is not what the OpenAI API has; ask its operator what it runs.")


def _typed(error: "APIError") -> ConfideError:
    status = cast(int | None, getattr(error, "status_code", None))
    body = error.body if isinstance(error.body, dict) else {}
    message = f"The workload says: {quoted(str(body.get('message') or error.message))}"
    kind = error_class(_OPENAI_CODES.get(str(error.code), str(error.code)), WORKLOAD_CODES)
    if kind is None and status == httpx.codes.TOO_MANY_REQUESTS:
        kind = ServerBusy
    if kind is not None and issubclass(kind, ServerBusy):
        response = cast(httpx.Response | None, getattr(error, "response", None))
        return kind(message, asked_for(response.headers.get("retry-after") if response else None) or 1.0)
    if kind is not None:
        return kind(message)
    broken = status is None or status >= httpx.codes.INTERNAL_SERVER_ERROR
    return (ServerFault if broken else ProtocolError)(message)
