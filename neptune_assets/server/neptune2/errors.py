"""Errors that a 2.x client understands: a status, and what it reads of the body."""

from __future__ import annotations

from typing import Any, Final

from neptune_assets.errors import NeptuneAssetsError


class ApiError(NeptuneAssetsError):
    """A request that is answered by an HTTP status of 4xx; `status` is the class's own."""

    status: int = 400

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message, hint="")
        self.details = details

    def body(self) -> dict[str, Any]:
        """Return the JSON body of the answer."""
        return {"code": self.status, "message": str(self), "title": str(self), **self.details}


class BadRequestError(ApiError):
    """The request itself is wrong: sending it again cannot help."""


class NotFoundError(ApiError):
    """A project, attribute, artifact or upload that is not there.

    The body names no `errorType`: on an attribute's call the client would take a missing run for it.
    """

    status = 404


class ExperimentNotFoundError(ApiError):
    """There is no such run, model or version. Only for getExperiment: elsewhere the bare 404 is what clients expect."""

    status = 404

    def body(self) -> dict[str, Any]:
        """Return the body with the error type by which the client knows that the object is missing."""
        return {**super().body(), "errorType": "EXPERIMENT_NOT_FOUND"}


class ConflictError(ApiError):
    """Something of that name is there already."""

    status = 409


class QuerySyntaxError(ApiError):
    """A query that cannot be parsed; the client looks for this very title."""

    def body(self) -> dict[str, Any]:
        """Return the body with the title that makes the client raise its own error for queries."""
        return {**super().body(), "title": "Syntax error", "errorType": "QUERY_SYNTAX_ERROR"}


RANGE_MISMATCH: Final = "Length of stream does not match given range"
"""Text by which the client knows that it must begin an upload anew."""
