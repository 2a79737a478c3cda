"""Dagster's own launcher for one machine, which also notices runs whose process is gone.

Dagster's ``DefaultRunLauncher`` cannot say whether a run's process is alive, so a run of a process that was killed, or
of a machine that was switched off, stays *started* for ever and blocks its partition in the queue. With this launcher
the daemon's run monitoring marks such a run as failed, however it was started.
Concept: https://docs.dagster.io/deployment/execution/run-monitoring
"""

from __future__ import annotations

import os

import dagster as dg
import psutil
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus

_CLOCK_TOLERANCE_SECONDS = 2.0


class LocalRunLauncher(DefaultRunLauncher):
    """Launches runs on this machine; run monitoring fails those whose process is gone.

    For an instance that only one machine writes to: process ids of other machines mean nothing here.
    """

    @property
    def supports_check_run_worker_health(self) -> bool:
        """True: run monitoring asks for every started run."""
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Look whether the process that wrote the run's start event still runs."""
        started = self._instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.RUN_START).records
        event = started[-1].event_log_entry if started else None
        pid = event.dagster_event.pid if event is not None and event.dagster_event is not None else None
        if event is None or pid is None:
            return CheckRunHealthResult(WorkerStatus.RUNNING, "No process is recorded for it yet.")
        try:
            # A process that is younger than the run only has its number.
            alive = psutil.Process(pid).create_time() <= event.timestamp + _CLOCK_TOLERANCE_SECONDS
        except psutil.NoSuchProcess:
            alive = False
        if alive or pid == os.getpid():
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(
            WorkerStatus.FAILED,
            f"Process {pid} of this run has ended without finishing it: it was killed, or the machine was restarted. "
            "Materialize again; what was committed is kept.",
        )
