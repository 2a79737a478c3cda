"""Recordings of neptune-client 2.x: `.neptune` folders of runs that were offline or never finished uploading.

Three layouts of folders occur, and all are told by names: ``run__<uuid>__<pid>__<random>/`` (and a fifth part for
partitioned queues), ``run__<uuid>/exec-<time>-.../``, and ``<uuid>/exec-.../``; offline runs of the older two have
the log directly inside. All executions of one container are one recording, merged in the order of their times.

Names: a recording knows neither its project (``source.offline.project`` says it) nor ``sys/id``, which only the server
gave out. The run id is ``OFFLINE-`` and the first twelve hex digits of the container's uuid (an id that is no uuid is
taken whole), the same on every machine and for every copy. ``sys/id`` (that id) and ``sys/creation_time`` are made up
where the log does not assign them. Recordings of a project's own metadata are refused: the lake holds runs, models and
model versions.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from neptune_assets.sources.offline.client_files import FileFinder
from neptune_assets.sources.offline.client_layout import Execution, execution_in, refusal_of
from neptune_assets.sources.offline.client_log import LOG_NAME
from neptune_assets.sources.offline.client_operations import ContainerKey
from neptune_assets.sources.offline.client_recording import ClientRecording
from neptune_assets.sources.offline.recordings import Refusal, walk
from neptune_assets.sources.offline.settings import OfflineSource


class ClientSearch:
    """Finds recordings of neptune-client below several directories: executions of one container may be in many."""

    def __init__(self, settings: OfflineSource) -> None:
        self._settings = settings
        self._containers: dict[ContainerKey, list[Execution]] = defaultdict(list)
        self._seen: set[str] = set()

    def search(self, root: Path) -> Iterator[Execution | Refusal]:
        """Search at and below a directory; yields executions that hold something, and what cannot be read."""
        if root.is_file():  # recordings of this client are folders
            return
        empty = 0
        for folder in walk(root):
            if isinstance(folder, Refusal):
                yield folder
                continue
            # A pipe or a device of the name is opened like a log, which says what is wrong with it and does not block.
            names = tuple(name for name in (*folder.files, *folder.special) if LOG_NAME.fullmatch(name))
            real = os.path.realpath(folder.path)
            if not names or real in self._seen:
                continue
            self._seen.add(real)
            found = execution_in(folder, names, self._settings)
            if found is None:
                continue
            if isinstance(found, Refusal):
                yield found
            elif found[1].empty:
                empty += 1
            else:
                self._containers[found[0]].append(found[1])
                yield found[1]
        if empty:
            yield Refusal(
                root,
                f"Nothing was recorded in {empty} executions of neptune-client below {root}; no runs are made of them.",
                self._settings.project,
                notice=True,
            )

    def recordings(self) -> Iterator[ClientRecording | Refusal]:
        """Everything found, one recording for each container.

        Gives a Refusal for a container that is not a run or model, and for every container if ``settings.project`` is
        left out.
        """
        settings = self._settings
        finder = FileFinder(settings)
        recordings: dict[ContainerKey, ClientRecording] = {}
        for key, executions in sorted(self._containers.items()):
            kind, identifier = key
            folder = executions[0].folder
            if settings.project is None:
                yield Refusal(
                    folder,
                    f"{folder} was recorded by neptune-client, which does not say for which project. "
                    "Set source.offline.project to 'workspace/project'.",
                )
            elif kind == "project":
                yield Refusal(
                    folder,
                    f"{folder} holds metadata of project {identifier} itself; the lake keeps runs, models and model "
                    "versions, so it is left out. Keep the folder.",
                    settings.project,
                )
            else:
                try:
                    recordings[key] = ClientRecording(key, executions, settings, finder, recordings)
                except OSError as error:
                    message = f"{error.filename or folder} cannot be read: {error.strerror or error}."
                    yield refusal_of(key, folder, message, settings.project)
        for recording in list(recordings.values()):
            for name in recording.keys:
                recordings.setdefault(name, recording)
            yield recording
