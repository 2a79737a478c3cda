"""What was found damaged in a project: noted by whoever finds it, read anew by the next materialization."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Final

from neptune_assets.errors import LakeDamagedError
from neptune_assets.lake.layout import Layout
from neptune_assets.lake.records import RunRecord
from neptune_assets.lake.storage import Storage
from neptune_assets.schema import Scope

_NAME: Final = "damaged.json"


class DamagedRuns:
    """The damaged runs of one project, by id with what is wrong, in ``.manifest/damaged.json``; no file if none is.

    Two that note at once can lose one note: what is damaged is found again by the next check.
    """

    def __init__(self, storage: Storage, layout: Layout, project_id: str, scope: Scope) -> None:
        self._storage = storage
        self._path = f"{layout.manifest(project_id, scope)}/{_NAME}"

    def read(self) -> dict[str, str]:
        """Return what is noted. Raises LakeDamagedError if the notes cannot be read."""
        try:
            found = json.loads(self._storage.read(self._path))
            return {str(run_id): str(reason) for run_id, reason in found.items()}
        except FileNotFoundError:
            return {}
        except (ValueError, AttributeError) as error:
            raise LakeDamagedError(
                f"The notes of damaged runs in {self._storage.url(self._path)} cannot be read: {error}.",
                hint="Remove that file and run `python -m neptune_assets.verify`, which makes it again.",
            ) from error

    def add(self, found: Mapping[str, str]) -> None:
        """Note runs that were found damaged; the next materialization reads them anew."""
        if found:
            self._write({**self.read(), **found})

    def remove(self, run_ids: Collection[str]) -> None:
        """Forget runs that were written anew, are whole after all, or are gone."""
        known = self.read()
        left = {run_id: reason for run_id, reason in known.items() if run_id not in run_ids}
        if left != known:
            self._write(left)

    def _write(self, runs: dict[str, str]) -> None:
        if runs:
            self._storage.put(self._path, json.dumps(runs, sort_keys=True).encode("ascii"))
        else:
            self._storage.delete(self._path)


class Holdings:
    """What the lake holds for the runs of one project, by two listings: sizes of parts and of files.

    What listings cannot show, bytes of the right length and parts of another commit, is found by the checks ``schema``
    and ``intact``, which note the run as damaged. Opening every part at each materialization would cost large lakes on
    object stores more than all the rest of one that finds nothing new.
    """

    def __init__(
        self, parts: Mapping[str, int], files: Mapping[str, int], files_root: str, damaged: Collection[str]
    ) -> None:
        self._parts = parts
        self._files = files
        self._root = files_root
        self._damaged = damaged

    def holds(self, record: RunRecord) -> bool:
        """True if the lake has the run's parts and files in the sizes recorded, and it is not known as damaged."""
        return (
            record.run_id not in self._damaged
            and all(self._parts.get(part.name) == part.bytes for part in record.parts)
            and all(self._files.get(f"{self._root}/{item.path}") == item.size for item in record.files)
        )
