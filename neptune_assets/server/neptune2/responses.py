"""Bodies and errors that a 2.x client understands."""

from __future__ import annotations

import json
import math
from typing import Any, Final
from urllib.parse import quote

from starlette.responses import Response

from neptune_assets.server.endpoints import ApiError


class Json(Response):
    """JSON, with a NaN or an infinity, which 3.x clients may log and variances may come to, as text.

    The client reads JSON with simplejson, which refuses them bare, and makes numbers of texts where numbers belong.
    """

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the bytes of the body."""
        try:
            text = _written(content)
        except ValueError:
            text = _written(_finite(content))
        return text.encode("utf-8", "surrogatepass")


def _written(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _finite(content: Any) -> Any:
    if isinstance(content, float) and not math.isfinite(content):
        return "NaN" if math.isnan(content) else "Infinity" if content > 0 else "-Infinity"
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content


def disposition(name: str) -> dict[str, str]:
    """Return the header by which the client names what it downloads."""
    plain = "".join(letter if 32 <= ord(letter) < 127 and letter not in '"\\/' else "_" for letter in name)
    # The client takes everything after the last `filename=` for the name.
    exact = "" if plain == name else f"filename*=UTF-8''{quote(name, safe='')}; "
    return {"Content-Disposition": f'attachment; {exact}filename="{plain}"'}


RANGE_MISMATCH: Final = "Length of stream does not match given range"
"""Text by which the client knows that it must begin an upload anew."""


class BadRequestError(ApiError):
    """The request itself is wrong: sending it again cannot help."""

    def __init__(self, message: str) -> None:
        super().__init__(400, "BAD_REQUEST", message)


class NotFoundError(ApiError):
    """A project, attribute, artifact, upload or run that is not there, as most calls tell it."""

    def __init__(self, message: str) -> None:
        super().__init__(404, "NOT_FOUND", message)


class ExperimentNotFoundError(ApiError):
    """There is no such run, model or version.

    Only for getExperiment: on the call of an attribute, this type of error would not be taken for a missing attribute.
    """

    def __init__(self, message: str) -> None:
        super().__init__(404, "EXPERIMENT_NOT_FOUND", message)


class ForbiddenError(ApiError):
    """Something that nobody may do here."""

    def __init__(self, message: str) -> None:
        super().__init__(403, "ACCESS_DENIED", message)


class ConflictError(ApiError):
    """Something of that name is there already."""

    def __init__(self, message: str) -> None:
        super().__init__(409, "CONFLICT", message)


class QueryTextError(ApiError):
    """A query that cannot be answered as it is written; by this very title the client knows it."""

    def __init__(self, message: str) -> None:
        super().__init__(400, "QUERY_SYNTAX_ERROR", message, title="Syntax error")
