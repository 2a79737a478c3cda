"""From our errors to Dagster's: what heals is tried again, what cannot heal fails at once with its next action.

Belongs here: how often Dagster runs a step again, and the one place that turns a :class:`NeptuneAssetsError` into
``dg.Failure``. Retries within a step are in :mod:`neptune_assets.retries`.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from neptune_assets.errors import NeptuneAssetsError
from neptune_assets.lake.storage import disk_message, next_action

RETRY_POLICY = dg.RetryPolicy(max_retries=2, delay=10, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)


@contextmanager
def clear_failures() -> Iterator[None]:
    """Turn errors that name their next action into Dagster failures that show it."""
    try:
        yield
    except NeptuneAssetsError as error:
        raise dg.Failure(
            description=str(error),
            metadata={"error": type(error).__name__, "next_action": error.hint},
            allow_retries=error.transient,
        ) from error
    except OSError as error:
        # A full or read-only disk, wherever the stage writes.
        raise dg.Failure(
            description=disk_message(error),
            metadata={"error": type(error).__name__, "next_action": next_action(error.errno)},
            allow_retries=error.errno not in {errno.EACCES, errno.EPERM, errno.EROFS},
        ) from error
