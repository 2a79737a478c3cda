"""What a run's attributes become as artifacts, and where those of one run are stored.

A local artifact directory is written to directly; anything else goes through MLflow's own repositories, one temporary
file at a time.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq
import requests
from mlflow.entities import FileInfo
from mlflow.entities.multipart_upload import CreateMultipartUploadResponse
from mlflow.entities.presigned_download import PresignedDownloadUrlResponse
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.request_utils import augmented_raise_for_status
from mlflow.utils.rest_utils import http_request
from mlflow.utils.uri import is_local_uri, validate_path_is_safe

from neptune_assets import durable
from neptune_assets.durable import SyncPool
from neptune_assets.errors import LakeError, TargetError, TargetUnavailableError
from neptune_assets.lake.layout import extension_of, format_step
from neptune_assets.lake.reader import LakeRun
from neptune_assets.lake.rows import microsteps
from neptune_assets.schema import FILE_TYPES, AttributeType
from neptune_assets.targets.mlflow import mapping
from neptune_assets.targets.mlflow.connection import Connection
from neptune_assets.targets.mlflow.points import SIDECAR
from neptune_assets.targets.naming import distinct_paths
from neptune_assets.targets.protocol import RowCounts
from neptune_assets.targets.times import iso, whole_milliseconds
from neptune_assets.tempdirs import TempDirectory


class Artifacts:
    """The artifact store of one run. ``written`` has size and sha256 of everything written through this object."""

    def __init__(self, uri: str, connection: Connection) -> None:
        self.uri = uri
        self.written: dict[str, tuple[int, str]] = {}
        self._repository = _repository(uri, connection)
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
        with TempDirectory("artifact") as folder:
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
        """Return the hash of one artifact; one that is not local is downloaded first, which needs room on the disk."""
        if self._local is not None:
            return _sha256(self._local / path)
        with TempDirectory("artifact") as folder, _storage_errors(self.uri):
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
        with TempDirectory("artifact") as folder, _storage_errors(self.uri):
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


def _repository(uri: str, connection: Connection) -> Any:
    """Return MLflow's repository for an artifact URI; behind a tracking server one with the target's credentials."""
    scheme = uri.partition(":")[0]
    if connection.dialect is None and scheme in _OF_SERVERS:
        return _OF_SERVERS[scheme](uri, connection)
    return get_artifact_repository(uri, tracking_uri=connection.uri)


class _OfServer(HttpArtifactRepository):
    """Requests of MLflow 3.17's ``store/artifact/http_artifact_repo.py``, signed with the target's credentials.

    MLflow signs them with what its own variables hold, which all targets of a process share.
    """

    def __init__(self, uri: str, connection: Connection) -> None:
        self._creds_for = connection.credentials.host_creds
        super().__init__(uri, connection.uri)  # type: ignore[no-untyped-call]

    @property
    def _host_creds(self) -> Any:
        return self._creds_for(self.artifact_uri)

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        """Return files and directories right below ``path``; nothing if it is a file."""
        _, root = self._parts()
        below = posixpath.join(root, path) if path else root
        listing = self._asked("GET", f"{_SERVICE}/artifacts", params={"path": below}).json().get("files", [])
        names = [
            str(validate_path_is_safe(item["path"]))  # type: ignore[no-untyped-call]
            for item in listing
        ]
        if path is not None and names == [posixpath.basename(path)] and not listing[0]["is_dir"]:
            return []
        return [
            FileInfo(posixpath.join(path, name) if path else name, item["is_dir"], int(item.get("file_size") or 0))
            for name, item in zip(names, listing, strict=True)
        ]

    def _get_presigned_download_url(self, remote_file_path: str) -> Any:
        answer = self._asked("GET", self._endpoint("presigned", remote_file_path))
        return PresignedDownloadUrlResponse.from_dict(answer.json())

    def create_multipart_upload(self, local_file: str, num_parts: int = 1, artifact_path: str | None = None) -> Any:
        """Begin to upload a large file in parts, straight to the server's store."""
        body = {"path": local_file, "num_parts": num_parts}
        answer = self._asked("POST", self._endpoint("mpu/create", artifact_path), json=body)
        return CreateMultipartUploadResponse.from_dict(answer.json())

    def complete_multipart_upload(
        self, local_file: str, upload_id: str, parts: Any = None, artifact_path: str | None = None
    ) -> None:
        """Make a file of the parts that were uploaded."""
        body = {"path": local_file, "upload_id": upload_id, "parts": [part.to_dict() for part in parts]}
        self._asked("POST", self._endpoint("mpu/complete", artifact_path), json=body)

    def abort_multipart_upload(self, local_file: str, upload_id: str, artifact_path: str | None = None) -> None:
        """Throw parts that were uploaded away."""
        body = {"path": local_file, "upload_id": upload_id}
        self._asked("POST", self._endpoint("mpu/abort", artifact_path), json=body)

    def _endpoint(self, what: str, path: str | None) -> str:
        return posixpath.join(_SERVICE, what, self._parts()[1], *([path] if path else []))

    def _parts(self) -> tuple[str, str]:
        """Return the server's address, and the path of the artifacts in it."""
        server, _, root = str(self.artifact_uri).partition(f"{_SERVICE}/artifacts")
        return server, root.strip("/")

    def _asked(self, method: str, endpoint: str, **content: Any) -> requests.Response:
        response: requests.Response = http_request(  # type: ignore[no-untyped-call]
            self._creds_for(self._parts()[0]), endpoint, method, **content
        )
        augmented_raise_for_status(response)  # type: ignore[no-untyped-call]
        return response


class _Proxied(_OfServer, MlflowArtifactsRepository):
    """Artifacts of ``mlflow-artifacts:`` addresses, which the tracking server resolves."""

    @property
    def _artifact_server_host_creds(self) -> Any:
        return self._creds_for(self._parts()[0].removesuffix("/api/2.0"))


_SERVICE: Final = "/mlflow-artifacts"
_OF_SERVERS: Final = {"mlflow-artifacts": _Proxied, "http": _OfServer, "https": _OfServer}


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


NAMES_FILE: Final = "neptune/names.json"
MANIFEST_FILE: Final = "neptune/artifacts.json"
SIDECAR_FILE: Final = "neptune/points_apart.parquet"

_BLOCK: Final = 1 << 20
_STAMPED: Final = ("attribute_path", "step", "timestamp")


def write_artifacts(run: LakeRun, plan: mapping.MlflowPlan, store: Artifacts, counts: RowCounts) -> None:
    """Write everything of a run that becomes an artifact, except what is only known after the points."""
    for attribute, value in mapping.parameters(run) if plan.long_params else ():
        path = plan.long_params.get(attribute)
        if path is not None:
            store.write(path, [mapping.param_text(attribute[1], value).encode("utf-8", errors="surrogatepass")])
    for kinds, column, line in (
        ([AttributeType.STRING_SERIES], "string_value", _text_lines),
        ([AttributeType.HISTOGRAM_SERIES], "histogram_value", _histogram_lines),
    ):
        rows = (item for batch in run.batches(kinds, (*_STAMPED, column)) for item in line(batch))
        for attribute_path, lines in groupby(rows, key=lambda item: item[0]):
            counted = _Counted(text for _, text in lines)
            store.write(plan.artifacts[(attribute_path, kinds[0])], counted)
            counts.take(kinds[0], mapped=counted.items)
    _write_files(run, plan, store, counts)
    store.write(NAMES_FILE, [mapping.names_json(plan)])


def write_sidecar(store: Artifacts, batches: list[pa.RecordBatch]) -> None:
    """Write the points that MLflow cannot hold as they are."""
    if batches:
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_batches(batches, SIDECAR), sink, store_decimal_as_integer=True)
        store.write(SIDECAR_FILE, [sink.getvalue().to_pybytes()])


def write_manifest(store: Artifacts) -> str:
    """Write the list of artifacts as the last of them; return its sha256. All of them are durable then."""
    listing = {path: {"size": size, "sha256": sha} for path, (size, sha) in sorted(store.written.items())}
    store.write(MANIFEST_FILE, [json.dumps(listing, ensure_ascii=False).encode()])
    store.sync()
    return store.written[MANIFEST_FILE][1]


class _Counted:
    """Passes blocks on and counts them."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self.items = 0

    def __iter__(self) -> Iterator[bytes]:
        for block in self._blocks:
            self.items += 1
            yield block


def _stamps(batch: pa.RecordBatch) -> Iterator[tuple[str, str, str]]:
    """Yield (attribute path, step, time) of each row, the last two as JSON."""
    for path, step, moment in zip(
        batch["attribute_path"].to_pylist(),
        microsteps(batch["step"]).tolist(),
        whole_milliseconds(batch["timestamp"]).to_pylist(),
        strict=True,
    ):
        text = format_step(step).rstrip("0").rstrip(".")
        yield path, text, "null" if moment is None else f'"{iso(moment)}"'


def _text_lines(batch: pa.RecordBatch) -> Iterator[tuple[str, bytes]]:
    for (path, step, moment), value in zip(_stamps(batch), batch["string_value"].to_pylist(), strict=True):
        text = json.dumps(value, ensure_ascii=False)
        yield path, f'{{"step": {step}, "timestamp": {moment}, "value": {text}}}\n'.encode()


def _histogram_lines(batch: pa.RecordBatch) -> Iterator[tuple[str, bytes]]:
    for (path, step, moment), value in zip(_stamps(batch), batch["histogram_value"].to_pylist(), strict=True):
        body = json.dumps({name: _strict(part) for name, part in (value or {}).items()}, allow_nan=False)
        yield path, f'{{"step": {step}, "timestamp": {moment}, "histogram": {body}}}\n'.encode()


def _strict(value: Any) -> Any:
    """JSON knows no infinities: they become the words that JavaScript and protocol buffers use."""
    if isinstance(value, list):
        return [_strict(item) for item in value]
    if isinstance(value, float) and (value != value or value in {float("inf"), float("-inf")}):
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    return value


def _write_files(run: LakeRun, plan: mapping.MlflowPlan, store: Artifacts, counts: RowCounts) -> None:
    for batch in run.batches(FILE_TYPES, ("attribute_path", "attribute_type", "step", "file_value")):
        for path, kind, step, value in zip(
            batch["attribute_path"].to_pylist(),
            batch["attribute_type"].to_pylist(),
            microsteps(batch["step"]).tolist(),
            batch["file_value"].to_pylist(),
            strict=True,
        ):
            reference = value and value["path"]
            if not reference:
                counts.take(kind, dropped=1, reason="the source had no file")
                continue
            base = plan.artifacts[(path, kind)]
            members = _members(run, path, kind, step, reference, base)
            missing, recorded = 0, {record.path for record in run.file_records(path)}
            for artifact, reference_path in members.items():
                try:
                    stream = run.open_file(reference_path)
                except LakeError:
                    # A source that had no file is one thing, a file that the lake lost is another.
                    if run.record.complete or reference_path in recorded:
                        raise
                    missing += 1
                    continue
                with stream:
                    store.write(artifact, _blocks(stream))
            if missing:
                counts.take(kind, dropped=1, reason="files are missing in the lake (the run is partial)")
            elif kind == AttributeType.ARTIFACT:
                counts.take(kind, mapped=1)
            else:
                counts.take(kind, written=1)


def _members(run: LakeRun, path: str, kind: str, step: int, reference: str, base: str) -> dict[str, str]:
    """Return artifact path -> path in the lake, for one row of a file type."""
    if kind == AttributeType.FILE_SET:
        records = [record for record in run.file_records(path) if record.attribute_type == kind]
        names = distinct_paths({record.member or record.path: record.member or record.path for record in records})
        return {f"{base}/{names[record.member or record.path]}": record.path for record in records}
    if kind == AttributeType.FILE_SERIES:
        extension = extension_of(reference)
        return {f"{base}/{format_step(step)}{'.' if extension else ''}{extension}": reference}
    return {base: reference}


def _blocks(stream: BinaryIO) -> Iterator[bytes]:
    while block := stream.read(_BLOCK):
        yield block
