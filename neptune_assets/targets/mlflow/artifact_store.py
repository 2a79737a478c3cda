"""Where the artifacts of one MLflow run lie: written one at a time through MLflow's own repositories, listed, deleted.

A local artifact directory is written to directly; anything else gets a temporary file for each artifact.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri

from neptune_assets import durable
from neptune_assets.durable import SyncPool
from neptune_assets.errors import TargetError, TargetUnavailableError
from neptune_assets.scratch import ScratchDirectory


class Artifacts:
    """The artifact store of one run. ``written`` has size and sha256 of everything written through this object."""

    def __init__(self, uri: str, tracking_uri: str) -> None:
        self.uri = uri
        self.written: dict[str, tuple[int, str]] = {}
        self._repository: Any = get_artifact_repository(uri, tracking_uri=tracking_uri)
        self._local = _local_path(uri)
        self._syncs = SyncPool()

    def write(self, path: str, blocks: Iterable[bytes]) -> None:
        """Write one artifact from blocks of bytes."""
        if self._local is not None:
            target = self._local / path
            if not self.written:
                durable.make_directory(self._local)
            target.parent.mkdir(parents=True, exist_ok=True)
            self.written[path] = _copy(blocks, target)
            self._syncs.file(str(target))
            self._syncs.directory(*(str(self._local / parent) for parent in PurePosixPath(path).parents))
            return
        directory, _, name = path.rpartition("/")
        with ScratchDirectory("artifact") as folder:
            file = folder / name
            self.written[path] = _copy(blocks, file)
            with _storage_errors(self.uri):
                self._repository.log_artifact(str(file), directory or None)

    def sync(self) -> None:
        """Return once everything written through this object is on a local disk; object stores answer only then."""
        self._syncs.wait()
        self._syncs.close()

    def sizes(self) -> dict[str, int]:
        """Return what is there: path -> bytes."""
        if self._local is not None:
            return {
                file.relative_to(self._local).as_posix(): file.stat().st_size
                for file in self._local.rglob("*")
                if file.is_file()
            }
        with _storage_errors(self.uri):
            return dict(self._list(None))

    def sha256(self, path: str) -> str:
        """Return the hash of one artifact; where it is not local, it comes as a file, which needs room on the disk."""
        if self._local is not None:
            return _sha256(self._local / path)
        with ScratchDirectory("artifact") as folder, _storage_errors(self.uri):
            file = folder / "content"
            # What every repository of MLflow has to have; the public call would list the directory for each file.
            self._repository._download_file(path, str(file))
            return _sha256(file)

    @staticmethod
    def digest(data: bytes) -> str:
        """Return the hash that :attr:`written` has for this content."""
        return hashlib.sha256(data).hexdigest()

    def read(self, path: str) -> bytes:
        """Return a small artifact."""
        if self._local is not None:
            return (self._local / path).read_bytes()
        with ScratchDirectory("artifact") as folder, _storage_errors(self.uri):
            return Path(self._repository.download_artifacts(path, str(folder))).read_bytes()

    def delete(self) -> None:
        """Delete everything; nothing happens if nothing is there."""
        self._syncs.close()
        if self._local is not None:
            if self._local.exists():
                shutil.rmtree(self._local)
        elif self.sizes():
            with _storage_errors(self.uri):
                self._repository.delete_artifacts()

    def children(self) -> list[str]:
        """Return the names of the directories right below the root."""
        if self._local is not None:
            return sorted(item.name for item in self._local.iterdir() if item.is_dir()) if self._local.is_dir() else []
        with _storage_errors(self.uri):
            return sorted(item.path.rpartition("/")[2] for item in self._repository.list_artifacts() if item.is_dir)

    def _list(self, path: str | None) -> Iterator[tuple[str, int]]:
        for item in self._repository.list_artifacts(path):
            if item.is_dir:
                yield from self._list(item.path)
            else:
                yield item.path, item.file_size or 0


@contextmanager
def _storage_errors(uri: str) -> Iterator[None]:
    """Turn what an object store's client raises into TargetErrors; MLflow's own errors pass."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in {"botocore", "boto3", "s3transfer"}:
            raise
        text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300].rstrip(".")
        if re.search(r"Connect|Timeout|SlowDown|InternalError|ServiceUnavailable|\b50[0234]\b", text):
            raise TargetUnavailableError(
                f"The artifact store {uri} does not answer: {text}.", hint="Load again when it does."
            ) from error
        raise TargetError(
            f"The artifact store {uri} refused: {text}.",
            hint="Look at the bucket's name and rights, the AWS variables, and MLFLOW_S3_ENDPOINT_URL.",
        ) from error


def _local_path(uri: str) -> Path | None:
    """Return the directory of a local artifact URI, or None."""
    if not is_local_uri(uri):  # type: ignore[no-untyped-call]
        return None
    return Path(str(local_file_uri_to_path(uri)))  # type: ignore[no-untyped-call]


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _copy(blocks: Iterable[bytes], target: Path) -> tuple[int, str]:
    size, sha = 0, hashlib.sha256()
    with target.open("wb") as stream:
        for block in blocks:
            stream.write(block)
            sha.update(block)
            size += len(block)
    return size, sha.hexdigest()
