"""What the handlers of 2.x keep between requests, one of each for a service."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from neptune_assets.server.neptune2.artifacts import LakeArtifacts
from neptune_assets.server.neptune2.containers import Containers
from neptune_assets.server.neptune2.creation import Creation
from neptune_assets.server.neptune2.series import SeriesPages
from neptune_assets.server.neptune2.tables import Tables
from neptune_assets.server.neptune2.writing import Sessions

if TYPE_CHECKING:
    from neptune_assets.server.endpoints import Call
    from neptune_assets.server.service import Service


class State:
    """Containers by id, tables and series that clients are paging through, sessions that write."""

    def __init__(self, service: Service) -> None:
        self.containers = Containers(service)
        self.creation = Creation(service, self.containers)
        self.artifacts = LakeArtifacts(service.series)
        self.series = SeriesPages(service)
        self.sessions = Sessions()
        self.tables = Tables(service, self.artifacts, self.series)


_states: Final[WeakKeyDictionary[Service, State]] = WeakKeyDictionary()
_guard: Final = threading.Lock()


def state_of(call: Call) -> State:
    """Return the state that belongs to the service of a call."""
    with _guard:
        state = _states.get(call.service)
        if state is None:
            state = _states[call.service] = State(call.service)
        return state


def text_of(call: Call, name: str) -> str:
    """Return a parameter of the URL; empty if it is missing."""
    return call.query.get(name, "")


def number_of(call: Call, name: str, default: int) -> int:
    """Return a whole number of the URL, not negative. Raises BadRequestError for anything else."""
    from neptune_assets.server.neptune2.responses import BadRequestError

    text = call.query.get(name)
    if text is None or text == "":
        return default
    if not text.isdecimal():
        raise BadRequestError(f"{name} must be a whole number, not {text!r}.")
    return int(text)
