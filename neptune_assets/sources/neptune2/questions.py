"""What is asked about a run besides its attributes: strings of sets, files of artifacts, pages of series."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Final

import numpy as np

from neptune_assets.schema import AttributeType
from neptune_assets.sources.neptune2.artifacts import ArtifactFile, ArtifactStore, list_files
from neptune_assets.sources.neptune2.calls import Calls
from neptune_assets.sources.neptune2.errors import CallError
from neptune_assets.sources.neptune2.open_run import OpenRun
from neptune_assets.sources.neptune2.references import Reference
from neptune_assets.sources.neptune2.series import CALLS, Page, Points, image_page, parse_page
from neptune_assets.sources.neptune2.values import texts

_CLIENTS_PAGE: Final = 1_000
"""Points that neptune-client asks for at once; one string may have 1,000 characters, so more are not asked for."""
_TOO_MUCH: Final = frozenset({400, 413, 422})
"""Statuses with which a server may refuse a page for its size."""


class StringSetQuestion:
    """The strings of a set, where the server does not tell them with the other attributes."""

    def __init__(self, run: OpenRun, calls: Calls, path: str) -> None:
        self.run = run
        self._calls = calls
        self._path = path

    def ask(self) -> list[str]:
        """Ask for the strings."""
        key = self.run.listed.key
        return texts(self._calls.json("getStringSetAttribute", experimentId=key, attribute=self._path)["values"])

    def take(self, answer: Future[list[str]]) -> bool:
        """Assign the strings, or tell why there are none."""
        state, path = self.run.state, self._path
        try:
            state.assign(path, AttributeType.STRING_SET, answer.result())
        except CallError as error:
            if error.not_there:
                # Neptune's own service lists sys/group_tags and denies having it.
                state.note(f"The server lists {path!r} but has no such attribute.", path, AttributeType.STRING_SET)
            else:
                state.error(str(error), path, AttributeType.STRING_SET)
        except (TypeError, ValueError, KeyError) as error:
            state.error(f"The strings of {path!r} cannot be understood: {error}.", path, AttributeType.STRING_SET)
        return False


class ArtifactQuestion:
    """The files of an artifact, and which of them can be copied."""

    def __init__(
        self, run: OpenRun, calls: Calls, artifacts: ArtifactStore, project_key: str, path: str, digest: str
    ) -> None:
        self.run = run
        self._calls = calls
        self._artifacts = artifacts
        self._project_key = project_key
        self._path = path
        self._digest = digest

    def ask(self) -> tuple[Sequence[ArtifactFile], set[str]]:
        """Ask for the files, and look which of them are there."""
        files = list_files(self._calls, self._project_key, self._digest)
        return files, {member.relative_path for member in self._artifacts.members(files)}

    def take(self, answer: Future[tuple[Sequence[ArtifactFile], set[str]]]) -> bool:
        """Add what can be copied as a file set beside the list, and say what cannot."""
        state, path = self.run.state, self._path
        try:
            files, found = answer.result()
        except CallError as error:
            state.error(str(error), path, AttributeType.ARTIFACT)
            return False
        missing = [file for file in files if file.name not in found]
        if missing:
            state.note(
                f"{len(missing):,} of {len(files):,} files that the artifact {path!r} tracks cannot be copied, "
                f"such as {missing[0].location!r}: they are gone, changed, or outside "
                "source.neptune2.artifact_roots.",
                path,
                AttributeType.ARTIFACT,
            )
        if found:
            reference = Reference("artifact_files", self._project_key, path, place=self._digest)
            state.assign(f"{path}/files", AttributeType.FILE_SET, str(reference))
        return False


class SeriesPages:
    """Asks for pages of series: of fewer points, once the server refused one for its size."""

    def __init__(self, calls: Calls, most: int) -> None:
        self._calls = calls
        self.most = most

    def page(self, key: str, path: str, kind: AttributeType, offset: int, limit: int) -> tuple[Page, bool]:
        """Ask for a page, and tell if its steps and times are the server's. Raises as :meth:`Calls.json` does."""
        limit = min(limit, self.most if kind is AttributeType.FLOAT_SERIES else _CLIENTS_PAGE)
        try:
            answer = self._calls.json(CALLS[kind], experimentId=key, attribute=path, limit=limit, offset=offset)
        except CallError as error:
            if limit <= _CLIENTS_PAGE or error.status not in _TOO_MUCH:
                raise
            limit = _CLIENTS_PAGE
            answer = self._calls.json(CALLS[kind], experimentId=key, attribute=path, limit=limit, offset=offset)
            self.most = limit
        if kind is AttributeType.FILE_SERIES:
            return image_page(answer, offset, limit, lambda place: str(Reference("image", key, path, place=place)))
        return parse_page(answer, kind), True


class SeriesQuestion:
    """The points of one series, page by page.

    Pages are asked for one after the other: a server finds the next page by where the last one ended, and would count
    from the beginning for any other.
    """

    def __init__(self, run: OpenRun, pages: SeriesPages, path: str, kind: AttributeType) -> None:
        self.run = run
        self._pages = pages
        self._path = path
        self._kind = kind
        self._limit = pages.most
        self._got = 0
        self._total = 0
        self._untold = 0
        self._lost = 0
        self._why = ""
        self._last: Page | None = None
        self._told = True

    def ask(self) -> tuple[Page, bool]:
        """Ask for the next page."""
        return self._pages.page(self.run.listed.key, self._path, self._kind, self._got, self._limit)

    def take(self, answer: Future[tuple[Page, bool]]) -> bool:
        """Hand the points to the run; True if there is another page."""
        try:
            page, self._told = answer.result()
        except CallError as error:
            return self._fail(str(error))
        except (TypeError, ValueError, KeyError, OverflowError, AttributeError) as error:
            return self._fail(f"Points of {self._path!r} cannot be understood: {error!s:.200}.")
        if self._last is not None and page.sent and _same(page, self._last):
            return self._fail(f"The server gives the points of {self._path!r} twice, after {self._got:,} of them.")
        self._last = page
        self._total = page.total
        self._untold += page.untold
        if page.refused:
            self._lost += page.sent - len(page)
            self._why = self._why or page.refused
        if page.sent:
            if not self._got:
                # What the server gives at once may be fewer than were asked for.
                self._limit = page.sent
            self._got += page.sent
            if len(page):
                self.run.arrive(Points(self._path, self._kind, page))
            if self._got < self._total:
                return True
        self._report()
        return False

    def _fail(self, message: str) -> bool:
        self.run.state.error(message, self._path, self._kind)
        self.run.promise(self._kind)
        return False

    def _report(self) -> None:
        """Tell the run what is odd about the series, once all of it was read."""
        state, path, kind = self.run.state, self._path, self._kind
        if not self._total and not self._got:
            self.run.lack_points(path)
            return
        self.run.promise(kind)
        if self._got < self._total:
            state.error(f"The server gave {self._got:,} of {self._total:,} points of {path!r}.", path, kind)
        if self._lost:
            state.error(f"{self._lost:,} points of {path!r} cannot be kept: {self._why}.", path, kind)
        if self._untold:
            state.note(f"{self._untold:,} points of {path!r} have no time on the server; they are kept.", path, kind)
        if not self._told:
            state.repair("steps_numbered", self._got)
            state.note(
                f"The server does not tell steps and times of the images of {path!r}; steps are their places "
                "in the series.",
                path,
                kind,
            )


def _same(page: Page, other: Page) -> bool:
    """True if two pages hold the same points."""
    return (
        page.sent == other.sent
        and np.array_equal(page.steps, other.steps)
        and np.array_equal(page.times, other.times)
        and (
            page.values == other.values
            if isinstance(page.values, list) or isinstance(other.values, list)
            else np.array_equal(page.values, other.values, equal_nan=True)
        )
    )
