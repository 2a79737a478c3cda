"""What can go wrong with one call to the server without ending the whole reading."""

from __future__ import annotations

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
