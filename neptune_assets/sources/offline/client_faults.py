"""How a recording of neptune-client tells a run what is wrong with its log and its operations."""

from __future__ import annotations

from neptune_assets.sources.offline.state import RunState


class Flaws:
    """Tells a run what is wrong with a log, every flaw once although the log is read twice."""

    def __init__(self, state: RunState) -> None:
        self._state = state
        self._told: set[str] = set()

    def _new(self, message: str) -> bool:
        new = message not in self._told
        self._told.add(message)
        return new

    def lost(self, message: str) -> None:
        """Missing operations make the run partial, and nobody knows what it should hold."""
        self._state.whole = False
        if self._new(message):
            self._state.error(message)

    def noted(self, message: str) -> None:
        """Report without making the run partial."""
        if self._new(message):
            self._state.note(message)


class Fault:
    """Tells a run of operations that make no sense."""

    def __init__(self, state: RunState) -> None:
        self._state = state

    def __call__(self, message: str, path: str | None) -> None:
        """Report an operation that was left out."""
        self._state.error(message, path)


def silent(message: str, path: str | None) -> None:
    """For passes whose faults another pass tells."""
