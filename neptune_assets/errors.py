"""Errors that name the thing and the next action.

Every error a user can meet is one of these: the message says what is wrong with which thing, ``hint`` says what
to do next. ``transient`` tells the orchestrating layer whether trying again can help. Nothing here knows Dagster;
:mod:`neptune_assets.failures` turns these into Dagster failures.
"""

from __future__ import annotations


class NeptuneAssetsError(Exception):
    """What is wrong with which thing, and what to do next."""

    transient = False

    def __init__(self, message: str, *, hint: str, retried: bool = False) -> None:
        """``retried`` says that it was tried again until a policy ended that: layers above do not start anew."""
        super().__init__(f"{message} {hint}" if hint else message)
        self.message = message
        self.hint = hint
        self.retried = retried


class SettingsError(NeptuneAssetsError):
    """A setting cannot be used as it is."""


class SourceError(NeptuneAssetsError):
    """A source, or a project in it, cannot be read at all."""


class SourceUnavailableError(SourceError):
    """A server that is read from does not answer for now."""

    transient = True


class UnknownProjectError(SourceError):
    """The source holds no project of that name."""


class FileGoneError(NeptuneAssetsError):
    """A file that a run names is not where the run says it is; the run becomes partial, the others go on."""


class UnsafePathError(NeptuneAssetsError):
    """A path taken from input would leave its root."""


class LakeError(NeptuneAssetsError):
    """The lake cannot be read or written."""


class LakeDamagedError(LakeError):
    """What the lake holds is not what was recorded when it was written: nothing may be derived from it."""


class LakeBusyError(LakeError):
    """Another materialization of the same project is writing."""

    transient = True


class TargetError(NeptuneAssetsError):
    """A target refuses, or holds something other than what was loaded."""


class TargetUnavailableError(TargetError):
    """A target does not answer for now."""

    transient = True
