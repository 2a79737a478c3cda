"""Runs of one project that MLflow holds: asked for once, kept up to date by the load, shared by its threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from threading import Lock

from neptune_assets.targets.mlflow.database import HeldRun


class HeldRuns:
    """What MLflow holds of one project at a time; a load of a project has it for itself."""

    def __init__(self, runs_of: Callable[[str], list[HeldRun]]) -> None:
        self._runs_of = runs_of
        self._project: str | None = None
        self._runs: dict[str, list[HeldRun]] = {}
        self._forks: dict[str, set[str]] = {}
        """Key of a parent -> keys of runs that are or were its forks."""
        self._lock = Lock()

    def ask(self, project_id: str, *, again: bool = False) -> None:
        """Ask MLflow for the runs of the project, unless it was asked already."""
        with self._lock:
            if project_id == self._project and not again:
                return
            found = self._runs_of(project_id)
            self._runs, self._forks = {}, {}
            for run in found:
                self._runs.setdefault(run.key, []).append(run)
                self._remember_fork(run)
            self._project = project_id

    def of(self, key: str) -> list[HeldRun]:
        """Return what MLflow holds under the key of a run, finished or not."""
        return self._runs.get(key, [])

    def all_keys(self) -> list[str]:
        """Return the keys of all runs, sorted."""
        with self._lock:
            return sorted(self._runs)

    def put(self, key: str, runs: Iterable[HeldRun]) -> None:
        """Say what MLflow holds now under the key of a run."""
        with self._lock:
            self._runs[key] = [*runs]
            for run in self._runs[key]:
                self._remember_fork(run)

    def forks_of(self, key: str) -> list[str]:
        """Return the MLflow ids of runs that say they are forks of this one."""
        with self._lock:
            forks = sorted(self._forks.get(key, set()) - {key})
            return [run.uuid for fork in forks for run in self._runs.get(fork, ()) if run.parent_key == key]

    def _remember_fork(self, run: HeldRun) -> None:
        if run.parent_key is not None:
            self._forks.setdefault(run.parent_key, set()).add(run.key)
