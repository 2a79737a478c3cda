"""What can be wrong with a query. The client is told; nothing is guessed."""

from __future__ import annotations

from neptune_assets.errors import NeptuneAssetsError


class QueryError(NeptuneAssetsError):
    """A query cannot be answered as it is written."""

    def __init__(self, message: str, *, hint: str = "See Neptune's documentation of its query language, NQL.") -> None:
        super().__init__(message, hint=hint)


class QuerySyntaxError(QueryError):
    """The text is not in the query language."""
