"""What can go wrong with one call to the server without ending the whole reading."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from neptune_assets.errors import NeptuneAssetsError


class CallError(NeptuneAssetsError):
    """One call failed for good, and the server still answers others: what was asked for is missing, the rest goes on.

    ``status`` is the HTTP status; 0 where there was none.
    """

    def __init__(self, message: str, *, hint: str, status: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.status = status

    @property
    def not_there(self) -> bool:
        """True if the server says that it does not have what was asked for."""
        return self.status == 404


@contextmanager
def understood(what: str) -> Iterator[None]:
    """Turn what goes wrong with an answer of an unexpected shape into a CallError that says what it is of."""
    try:
        yield
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise CallError(
            f"What the server answers about {what} cannot be understood: {type(error).__name__} {error!s:.200}.",
            hint="Check that the API token names a Neptune 2.x server.",
        ) from error
