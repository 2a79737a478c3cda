"""What a fork takes over from its ancestors: the single values they had at the moment of each fork.

Decisions. The moment of a fork is when its create operation was recorded, by the clock of the machine, not the creation
time that the user may have chosen. All values of users are taken over, files too, and of ``sys/`` the tags, the group
tags and the description. Series are never taken over: a run holds its own points only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from neptune_assets.errors import NeptuneAssetsError
from neptune_assets.schema import Scope
from neptune_assets.sources.offline.recordings import Recording
from neptune_assets.sources.offline.scale import ScaleRecording
from neptune_assets.sources.offline.state import RunState

_INHERITED_SYS: Final = frozenset({"sys/tags", "sys/group_tags", "sys/description"})

RunKey = tuple[str, Scope, str]
"""Project, scope, run id."""
Runs = Mapping[RunKey, Sequence[Recording]]


def inherits(recordings: Sequence[Recording]) -> tuple[RunKey, int] | None:
    """Parent and fork time (epoch ms) of a run that takes over its parent's values."""
    for recording in recordings:
        fork = recording.fork
        if fork is not None:
            return ((fork.parent_project, Scope.RUNS, fork.parent_run_id), fork.at) if fork.inherits else None
    return None


def ancestry(runs: Runs, key: RunKey) -> list[tuple[RunKey, int]]:
    """Ancestors a run inherits from, nearest first, each with the time up to which; a loop ends where it closes."""
    chain: list[tuple[RunKey, int]] = []
    seen = {key}
    step = inherits(runs.get(key, ()))
    while step is not None and step[0] not in seen:
        seen.add(step[0])
        chain.append(step)
        step = inherits(runs.get(step[0], ()))
    return chain


def take_over(runs: Runs, key: RunKey, state: RunState) -> None:
    """Give ``state`` what its ancestors had at the moment of each fork, the farthest first."""
    heir = RunState(key[0], key[2], lambda path, kind: False)
    for ancestor, until in reversed(ancestry(runs, key)):
        if ancestor not in runs:
            state.note(orphaned(ancestor, "What the run inherited from it is not known."))
        for recording in runs.get(ancestor, ()):
            if not isinstance(recording, ScaleRecording):
                continue
            try:
                recording.inherit(heir, until)
            except (NeptuneAssetsError, OSError) as error:
                state.whole = False
                state.error(f"What the run inherited from {ancestor[2]!r} cannot be read: {error}")
    for path, kinds in heir.snapshot().items():
        if path.startswith("sys/") and path not in _INHERITED_SYS:
            continue
        for kind, value in kinds.items():
            state.assign(path, kind, value)
    damaged = len(heir.end().errors)
    if damaged:
        state.note(f"{damaged} operations of runs it inherits from cannot be read; inherited values may be missing.")


def orphaned(ancestor: RunKey, consequence: str) -> str:
    """The note about an ancestor that is not here."""
    return f"Its ancestor {ancestor[2]!r} in {ancestor[0]} is not among the recordings. {consequence}"
