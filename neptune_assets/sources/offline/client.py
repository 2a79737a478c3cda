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

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from neptune_assets.settings import OfflineSource
from neptune_assets.sources.offline.client_files import FileFinder
from neptune_assets.sources.offline.client_layout import Execution, execution_in
from neptune_assets.sources.offline.client_log import LOG_NAME
from neptune_assets.sources.offline.client_operations import ContainerKey
from neptune_assets.sources.offline.client_recording import ClientRecording
from neptune_assets.sources.offline.recordings import Refusal, walk


def find_client_recordings(root: Path, settings: OfflineSource) -> Iterator[ClientRecording | Refusal]:
    """Find every recording of neptune-client at or below a directory.

    Gives a Refusal for what cannot be read: a layout from the future, a log without a name, a container that is no
    run or model, and every container if ``settings.project`` is left out.
    """
    if root.is_file():  # recordings of this client are folders
        return
    containers: dict[ContainerKey, list[Execution]] = defaultdict(list)
    for folder in walk(root):
        if isinstance(folder, Refusal):
            yield folder
            continue
        # A pipe or a device of the name is opened like a log, which says what is wrong with it and does not block.
        names = tuple(name for name in (*folder.files, *folder.special) if LOG_NAME.fullmatch(name))
        if not names:
            continue
        found = execution_in(folder, names, settings.project)
        if isinstance(found, Refusal):
            yield found
        elif found is not None:
            containers[found[0]].append(found[1])
    finder = FileFinder(settings)
    recordings: dict[ContainerKey, ClientRecording] = {}
    for key, executions in sorted(containers.items()):
        kind, identifier = key
        folder_path = executions[0].folder
        if settings.project is None:
            yield Refusal(
                folder_path,
                f"{folder_path} was recorded by neptune-client, which does not say for which project. "
                "Set source.offline.project to 'workspace/project'.",
            )
        elif kind == "project":
            yield Refusal(
                folder_path,
                f"{folder_path} holds metadata of project {identifier} itself; the lake keeps runs, models and model "
                "versions, so it is left out. Keep the folder.",
                settings.project,
            )
        else:
            try:
                recordings[key] = ClientRecording(key, executions, settings, finder, recordings)
            except OSError as error:
                yield Refusal(folder_path, f"{folder_path} cannot be read: {error}.", settings.project)
    for recording in list(recordings.values()):
        for name in recording.keys:
            recordings.setdefault(name, recording)
        yield recording
