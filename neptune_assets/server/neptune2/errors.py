"""Errors that a 2.x client understands: a status, and what it reads of the body."""

from __future__ import annotations

from typing import Final

from neptune_assets.server.endpoints import ApiError

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
