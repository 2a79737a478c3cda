"""The W&B server: uploading a staged run exactly once with the real ``wandb sync``, and asking what arrived.

``wandb sync`` ends with exit code 0 even when uploads failed, so that a run only counts as uploaded once the server
says that it has every history row and the digest, which is in the summary's last record. The key is passed by
environment only and is never part of a message.

``wandb sync`` appends: it asks the server how many history rows the run has and sends all of the file behind them. So
what the server has already is looked up first, and only the rows it lacks are put into the file that is synced. Hashes
of the rows that were sent are kept beside the staged run; if what W&B holds is not the beginning of the run as it is
now, uploading is refused, because W&B can neither change nor remove rows.

Fields and mutations of the GraphQL documents are those that wandb's own package sends.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import http.client
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from neptune_assets import durable
from neptune_assets.errors import TargetError, TargetUnavailableError
from neptune_assets.targets.wandb.artifacts import DIGEST, PROJECT, STAGE, TYPE, VERSION, alias_of
from neptune_assets.targets.wandb.codec import LogWriter, protobuf, read_log
from neptune_assets.targets.wandb.settings import WandbSettings
from neptune_assets.targets.wandb.staged_runs import Marker, StagedProject, Synced, read_synced, write_marker
from neptune_assets.tempdirs import TempDirectory

_COLLECTION: Final = """query NeptuneAssetsModel($project: String!, $entity: String, $type: String!, $name: String!) {
  project(name: $project, entityName: $entity) { artifactType(name: $type) { artifactCollection(name: $name) {
    id description
  } } }
}"""
_VERSIONS: Final = """query NeptuneAssetsVersions(
  $project: String!, $entity: String, $type: String!, $name: String!, $after: String
) {
  project(name: $project, entityName: $entity) { artifactType(name: $type) { artifactCollection(name: $name) {
    artifacts(first: 50, after: $after) {
      edges { node {
        id versionIndex digest state description metadata tags { name }
        createdBy { ... on Run { name } }
        artifactMemberships { edges { node {
          aliases { alias } artifactCollection { __typename name project { name entity { name } } }
        } } }
      } }
      pageInfo { endCursor hasNextPage }
    }
  } } }
}"""
_UPDATE: Final = """mutation NeptuneAssetsUpdate($input: UpdateArtifactInput!) {
  updateArtifact(input: $input) { artifact { id } }
}"""
_ADD_ALIASES: Final = """mutation NeptuneAssetsAddAliases($input: AddAliasesInput!) {
  addAliases(input: $input) { success }
}"""
_DELETE_ALIASES: Final = """mutation NeptuneAssetsDeleteAliases($input: DeleteAliasesInput!) {
  deleteAliases(input: $input) { success }
}"""
_DELETE: Final = """mutation NeptuneAssetsDelete($input: DeleteArtifactInput!) {
  deleteArtifact(input: $input) { artifact { id } }
}"""
_LINK: Final = """mutation NeptuneAssetsLink($input: LinkArtifactInput!) {
  linkArtifact(input: $input) { versionIndex }
}"""
_DESCRIBE: Final = """mutation NeptuneAssetsDescribe($input: UpdateArtifactSequenceInput!) {
  updateArtifactSequence(input: $input) { artifactCollection { id } }
}"""
_ORGANIZATION: Final = """query NeptuneAssetsOrganization($entity: String!) {
  entity(name: $entity) { organization { orgEntity { name } } }
}"""


class Queries(Protocol):
    """Sends GraphQL documents, as :class:`~neptune_assets.targets.wandb.client.WandbClient` does."""

    def query(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Send a document and return its data."""


@dataclass(frozen=True, slots=True)
class CollectionName:
    """A collection: of a project, or of a registry, which W&B keeps as a project of the organization."""

    entity: str
    project: str
    name: str


@dataclass(frozen=True, slots=True)
class HeldVersion:
    """A version as W&B holds it."""

    id: str
    index: int
    digest: str
    state: str
    description: str
    metadata: Mapping[str, Any]
    tags: frozenset[str]
    creator: str
    aliases: Mapping[CollectionName, frozenset[str]]
    """Aliases by collection: its own, and those it is linked into."""

    @property
    def committed(self) -> bool:
        """True if all of its files arrived."""
        return self.state == "COMMITTED"

    @property
    def finished(self) -> str | None:
        """The digest in the lake of what it was loaded from; None if it is not as it must be yet."""
        digest = self.metadata.get(DIGEST)
        return digest if self.committed and isinstance(digest, str) else None

    @property
    def stage(self) -> str | None:
        """The alias that its stage wants."""
        return alias_of(self.metadata.get(STAGE))

    def is_of(self, project_id: str, version_id: str | None = None) -> bool:
        """True if it is a version of ours, of this Neptune project."""
        ours = self.metadata.get(PROJECT) == project_id and isinstance(self.metadata.get(VERSION), str)
        return ours and version_id in {None, self.metadata[VERSION]}


def model_versions(client: Queries, entity: str, project: str, collection: str) -> list[HeldVersion]:
    """Return all versions of a collection of models, first to last; none if there is no such collection."""
    found: list[HeldVersion] = []
    variables: dict[str, Any] = {"project": project, "entity": entity, "type": TYPE, "name": collection}
    more = True
    while more:
        held = _collection_of(client.query(_VERSIONS, variables)) or {}
        page = held.get("artifacts") or {"edges": [], "pageInfo": {}}
        found += [_held(edge["node"]) for edge in page["edges"] if edge["node"]["state"] != "DELETED"]
        more = bool(page["pageInfo"].get("hasNextPage"))
        variables = {**variables, "after": page["pageInfo"].get("endCursor")}
    return sorted(found, key=lambda version: version.index)


def describe_collection(client: Queries, place: CollectionName, description: str, *, ask_only: bool = False) -> bool:
    """Give a collection its description if it has another; return whether it had it, or is not there."""
    variables = {"project": place.project, "entity": place.entity, "type": TYPE, "name": place.name}
    held = _collection_of(client.query(_COLLECTION, variables))
    if held is None or (held.get("description") or "") == description:
        return True
    if not ask_only:
        client.query(_DESCRIBE, {"input": {"artifactSequenceID": held["id"], "description": description}})
    return False


def update(
    client: Queries,
    version: HeldVersion,
    *,
    description: str,
    metadata: str,
    tags: Collection[str],
    untag: Collection[str],
) -> None:
    """Change what W&B lets be changed in a version. Metadata are JSON, and replaced as a whole."""
    change = {
        "artifactID": version.id,
        "description": description,
        "metadata": metadata,
        "tagsToAdd": [{"tagName": tag} for tag in sorted(tags)],
        "tagsToDelete": [{"tagName": tag} for tag in sorted(untag)],
    }
    client.query(_UPDATE, {"input": change})


def change_aliases(
    client: Queries, version: HeldVersion, place: CollectionName, aliases: Collection[str], *, add: bool
) -> None:
    """Add aliases of a version in a collection, or take them away."""
    if not aliases:
        return
    where = {"artifactCollectionName": place.name, "entityName": place.entity, "projectName": place.project}
    change = {"artifactID": version.id, "aliases": [{**where, "alias": alias} for alias in sorted(aliases)]}
    client.query(_ADD_ALIASES if add else _DELETE_ALIASES, {"input": change})


def delete(client: Queries, version: HeldVersion) -> None:
    """Delete a version with its aliases; its number is never given again."""
    client.query(_DELETE, {"input": {"artifactID": version.id, "deleteAliases": True}})


def link(client: Queries, version: HeldVersion, place: CollectionName) -> None:
    """Link a version into a collection of a registry, which is made if it is not there."""
    change = {
        "artifactID": version.id,
        "artifactPortfolioName": place.name,
        "entityName": place.entity,
        "projectName": place.project,
        "aliases": [],
    }
    client.query(_LINK, {"input": change})


def organization_of(client: Queries, entity: str) -> str:
    """Return the entity of the organization that an entity belongs to. Raises TargetError if there is none."""
    found = (client.query(_ORGANIZATION, {"entity": entity}).get("entity") or {}).get("organization") or {}
    name = (found.get("orgEntity") or {}).get("name")
    if not name:
        raise TargetError(
            f"The W&B entity {entity!r} belongs to no organization, so there is no registry to link models into.",
            hint="Set targets.wandb.entity to a team of the organization, or leave out targets.wandb.registry.",
        )
    return str(name)


def _collection_of(data: Mapping[str, Any]) -> dict[str, Any] | None:
    kind = (data.get("project") or {}).get("artifactType") or {}
    found = kind.get("artifactCollection")
    return found if isinstance(found, dict) else None


def _held(node: Mapping[str, Any]) -> HeldVersion:
    metadata = json.loads(node.get("metadata") or "{}")
    aliases: dict[CollectionName, frozenset[str]] = {}
    for edge in (node.get("artifactMemberships") or {}).get("edges") or ():
        where = edge["node"]["artifactCollection"]
        place = CollectionName(where["project"]["entity"]["name"], where["project"]["name"], where["name"])
        aliases[place] = frozenset(item["alias"] for item in edge["node"]["aliases"] or ())
    return HeldVersion(
        id=node["id"],
        index=int(node["versionIndex"] or 0),
        digest=node["digest"],
        state=node["state"],
        description=node.get("description") or "",
        metadata=metadata if isinstance(metadata, dict) else {},
        tags=frozenset(tag["name"] for tag in node.get("tags") or ()),
        creator=str((node.get("createdBy") or {}).get("name") or ""),
        aliases=aliases,
    )


PUBLIC: Final = "https://api.wandb.ai"
CONFIRM_SECONDS: Final = 120.0
"""How long the server may take to show what was uploaded."""
_REQUEST_SECONDS: Final = 60
_BYTES_PER_SECOND: Final = 50_000
"""Uploads slower than this are given up."""
_PASSED_ON: Final = re.compile(
    "PATH|HOME|USER|TMPDIR|LANG|LC_ALL|TZ|LD_LIBRARY_PATH|VIRTUAL_ENV|SYSTEMROOT|PYTHONPATH|PYTHONHOME|"
    "SSL_CERT_(FILE|DIR)|(REQUESTS|CURL)_CA_BUNDLE|(HTTP|HTTPS|ALL|NO)_PROXY"
)
"""Environment variables, in capitals, that ``wandb sync`` gets from ours."""
_VIEWER: Final = "query Viewer { viewer { id entity } }"
_RUN: Final = """query NeptuneAssetsRun($project: String!, $entity: String, $run: String!) {
  project(name: $project, entityName: $entity) {
    run(name: $run) { id historyLineCount eventsLineCount summaryMetrics }
  }
}"""


_ARTIFACTS: Final = """query NeptuneAssetsArtifacts($project: String!, $entity: String, $run: String!, $after: String) {
  project(name: $project, entityName: $entity) { run(name: $run) { outputArtifacts(first: 100, after: $after) {
    edges { node { digest state artifactSequence { name } } } pageInfo { endCursor hasNextPage }
  } } }
}"""


class WandbClient:
    """Talks to one W&B server with one key."""

    def __init__(self, settings: WandbSettings) -> None:
        """Raise TargetError if the environment variable that ``api_key_env`` names is not set."""
        name = settings.api_key_env or ""
        key = os.environ.get(name, "")
        if not key:
            raise TargetError(
                f"The environment variable {name} is not set.",
                hint="Set it to a W&B API key, or leave out targets.wandb.api_key_env to stage runs offline only.",
            )
        self._key, self._key_name = key, name
        self._entity = settings.entity
        self.base_url = (settings.base_url or PUBLIC).rstrip("/")

    def __repr__(self) -> str:
        return f"WandbClient({self.base_url})"

    def check(self) -> None:
        """Raise TargetError if the server does not accept the key, TargetUnavailableError if it does not answer."""
        if self.query(_VIEWER, {}).get("viewer") is None:
            raise TargetError(
                f"{self.base_url} does not accept the key in {self._key_name}.", hint="Put a valid W&B API key there."
            )

    def sync(self, directory: Path, marker: Marker, lock: int) -> None:
        """Run ``wandb sync`` on a directory and wait until the server has all of the run.

        ``lock`` is the descriptor of :func:`~neptune_assets.targets.wandb.upload.upload_lock`, which the tool holds on
        to: it is free once the tool has ended too, however this process ends.
        Raises TargetError with what the tool said if the run does not arrive.
        """
        size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
        command = [sys.executable, "-m", "wandb", "sync", str(directory), "--include-synced", "--include-online"]
        command += ["--id", marker.wandb_run, "--project", marker.wandb_project]
        if marker.entity:
            command += ["--entity", marker.entity]
        with TempDirectory("wandb") as home:
            # Without this directory the tool keeps a log in the system's temporary directory, for ever.
            (home / "wandb").mkdir()
            code, output = _run(command, self._environment(str(home)), str(home), 600 + size / _BYTES_PER_SECOND, lock)
        if code is None:
            raise TargetUnavailableError(
                f"Uploading run {marker.run_id} took too long and was given up.",
                hint="Load again; the staged run is kept.",
            )
        said = self._tail(output)
        if code < 0:
            raise TargetUnavailableError(
                f"wandb sync was killed by signal {-code} while it uploaded run {marker.run_id}.",
                hint="Load again; the staged run is kept and nothing is doubled.",
            )
        if code:
            self.check()  # a server that is away or refuses the key is the better reason
            raise TargetError(
                f"wandb sync failed for run {marker.run_id}: {said}", hint="Mend what it names and load again."
            )
        deadline, pause = time.monotonic() + CONFIRM_SECONDS, 0.2
        if " ERROR " in f" {said} ":
            deadline = time.monotonic()
        while missing := self.differences(marker):
            if time.monotonic() >= deadline:
                raise TargetError(
                    f"wandb sync ended, and {'; '.join(missing)} (run {marker.run_id}). It said: {said}",
                    hint="Load again; the staged run is kept and nothing is doubled.",
                )
            time.sleep(pause)
            pause = min(pause * 2, 5.0)

    def differences(self, marker: Marker) -> list[str]:
        """Ask the server for the run; return in what it is not the staged one."""
        run = self._run(marker)
        if run is None:
            return ["W&B has no such run"]
        said = []
        if run["historyLineCount"] != marker.history_rows:
            said.append(f"W&B has {run['historyLineCount']} history rows of {marker.history_rows}")
        if (run["eventsLineCount"] or 0) < marker.system_rows:
            said.append(f"W&B has {run['eventsLineCount'] or 0} rows of system metrics of {marker.system_rows}")
        summary = json.loads(run["summaryMetrics"] or "{}")
        if (summary.get("neptune_assets") or {}).get("digest") != marker.digest:
            said.append("W&B does not have the digest yet")
        held = self._artifacts(marker) if marker.artifacts else {}
        said += [f"W&B has no artifact {name}" for name, digest in marker.artifacts.items() if held.get(name) != digest]
        if marker.version:
            collection, digest = marker.version["collection"], marker.version["digest"]
            found = model_versions(self, marker.entity, marker.wandb_project, collection)
            if not any(version.digest == digest and version.committed for version in found):
                said.append(f"W&B has no version of the model {collection} with the files of {marker.run_id}")
        return said

    def held(self, marker: Marker) -> int | None:
        """Return how many history rows the server has of this run; None if it does not know the run."""
        run = self._run(marker)
        return None if run is None else int(run["historyLineCount"] or 0)

    def _run(self, marker: Marker) -> dict[str, Any] | None:
        variables = {"project": marker.wandb_project, "entity": marker.entity or None, "run": marker.wandb_run}
        found = (self.query(_RUN, variables).get("project") or {}).get("run")
        return found if isinstance(found, dict) else None

    def _artifacts(self, marker: Marker) -> dict[str, str]:
        """Return name and digest of the committed artifacts that the run has made."""
        found: dict[str, str] = {}
        variables: dict[str, Any] = {
            "project": marker.wandb_project,
            "entity": marker.entity or None,
            "run": marker.wandb_run,
        }
        more = True
        while more:
            run = (self.query(_ARTIFACTS, variables).get("project") or {}).get("run") or {}
            page = run.get("outputArtifacts") or {"edges": [], "pageInfo": {}}
            for edge in page["edges"]:
                node = edge["node"]
                if node["state"] == "COMMITTED":
                    found[node["artifactSequence"]["name"]] = node["digest"]
            more = bool(page["pageInfo"].get("hasNextPage"))
            variables["after"] = page["pageInfo"].get("endCursor")
        return found

    def _environment(self, home: str) -> dict[str, str]:
        """Return the environment of ``wandb sync``: what a program needs to run and to reach the network, no more.

        Everything else stays here: other W&B settings would change what is sent, and other loads' secrets are not its.
        """
        kept = {name: value for name, value in os.environ.items() if _PASSED_ON.fullmatch(name.upper())}
        return {
            **kept,
            "WANDB_API_KEY": self._key,
            "WANDB_BASE_URL": self.base_url,
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_CONFIG_DIR": home,
            "WANDB_CACHE_DIR": home,
            "WANDB_DATA_DIR": home,
            "WANDB_DIR": home,
            "WANDB_PROGRAM": "neptune",
            "NO_COLOR": "1",
        }

    def _tail(self, text: str) -> str:
        """Return the last lines of what the tool said, without the key."""
        lines = [line.strip() for line in text.replace(self._key, "***").splitlines() if line.strip()]
        return " | ".join(lines[-8:])[-2_000:]

    def query(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Send a GraphQL document and return its data.

        Raises TargetError for what the server refuses, TargetUnavailableError if it does not answer.
        """
        token = base64.b64encode(f"api:{self._key}".encode()).decode("ascii")
        request = urllib.request.Request(  # noqa: S310 (the address is the user's own setting)
            f"{self.base_url}/graphql",
            data=json.dumps({"query": query, "variables": variables}).encode("utf-8"),
            headers={"Content-Type": "application/json", "Authorization": f"Basic {token}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=_REQUEST_SECONDS) as answer:  # noqa: S310
                body = json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code in {401, 403}:
                raise TargetError(
                    f"{self.base_url} does not accept the key in {self._key_name}.",
                    hint="Put a valid W&B API key there.",
                ) from None
            if error.code >= 500 or error.code == 429:
                raise TargetUnavailableError(
                    f"{self.base_url} answers with HTTP {error.code}.", hint="Try again later."
                ) from None
            raise TargetError(
                f"{self.base_url} answers with HTTP {error.code}.", hint="Check targets.wandb.base_url."
            ) from None
        except (urllib.error.URLError, http.client.HTTPException, OSError, json.JSONDecodeError) as error:
            reason = getattr(error, "reason", error)
            raise TargetUnavailableError(
                f"{self.base_url} does not answer: {reason}.", hint="Check targets.wandb.base_url and the network."
            ) from None
        if body.get("errors"):
            text = "; ".join(str(item.get("message")) for item in body["errors"])
            raise TargetError(
                f"{self.base_url} refuses: {text.replace(self._key, '***')}.", hint="Check entity, project and key."
            )
        data = body.get("data")
        return data if isinstance(data, dict) else {}


def _run(
    command: list[str], environment: dict[str, str], home: str, seconds: float, lock: int
) -> tuple[int | None, str]:
    """Run a command in a session of its own; return its exit code and what it said.

    After ``seconds`` it and everything that it started is killed, and the code is None: nothing goes on uploading.
    """
    with subprocess.Popen(  # noqa: S603 (a fixed command; names are arguments, not shell text)
        command,
        env=environment,
        cwd=home,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=(lock,),
    ) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None, ""
        else:
            return process.returncode, output.decode("utf-8", "replace")
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


ROWS: Final = "synced.npy"
Hashes = npt.NDArray[np.uint64]


def row_hashes(log: Path) -> Hashes:
    """Return a hash for each history row of a ``.wandb`` file."""
    parse, found = protobuf().Record.FromString, bytearray()
    for payload in read_log(log):
        record = parse(payload)
        if record.WhichOneof("record_type") == "history":
            body = record.history.SerializeToString(deterministic=True)
            found += hashlib.blake2b(body, digest_size=8).digest()
    return np.frombuffer(bytes(found), dtype="<u8")


def carry_over(old: Path, new: Path) -> None:
    """Take what is known of earlier uploads along when a run is staged anew."""
    synced = read_synced(old)
    if synced is not None:
        write_marker(new, synced)
        if (old / ROWS).is_file():
            shutil.copyfile(old / ROWS, new / ROWS)


@contextmanager
def upload_lock(project: StagedProject, marker: Marker) -> Iterator[int]:
    """Hold the right to upload a run; yield the descriptor that stands for it.

    A load that is killed may leave ``wandb sync`` behind. It has inherited the descriptor, so that the next load does
    not send the same rows beside it. Raises TargetUnavailableError as long as it runs.
    """
    path = project.path / f".{marker.wandb_run}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TargetUnavailableError(
                f"An upload of run {marker.run_id} that an earlier load began still goes on.",
                hint="Load again once wandb sync has ended.",
            ) from None
        yield descriptor
    finally:
        os.close(descriptor)


def upload(client: WandbClient, project: StagedProject, directory: Path, marker: Marker) -> None:
    """Make W&B hold the staged run, and remember it. Raises TargetError if it cannot without doubling rows."""
    with upload_lock(project, marker) as lock:
        _upload(client, project, directory, marker, lock)


def _upload(client: WandbClient, project: StagedProject, directory: Path, marker: Marker, lock: int) -> None:
    held = client.held(marker)
    expected = Synced.of(marker, client.base_url, confirmed=True)
    log = directory / f"run-{marker.wandb_run}.wandb"
    hashes = row_hashes(log)
    if held is None or client.differences(marker):
        _refuse_other_rows(held or 0, hashes, directory, marker, client)
        _remember_rows(directory, hashes)
        write_marker(directory, Synced.of(marker, client.base_url, confirmed=False))
        if held:
            rest = _rest(project, directory, log, held)
            try:
                client.sync(rest, marker, lock)
            finally:
                shutil.rmtree(rest.parent)
        else:
            client.sync(directory, marker, lock)
    else:
        _remember_rows(directory, hashes)
    write_marker(directory, expected)


def check_rows(client: WandbClient, directory: Path, marker: Marker) -> None:
    """Raise TargetError if W&B holds rows of the run that an upload could neither change nor remove."""
    hashes = row_hashes(directory / f"run-{marker.wandb_run}.wandb")
    _refuse_other_rows(client.held(marker) or 0, hashes, directory, marker, client)


def _refuse_other_rows(held: int, hashes: Hashes, directory: Path, marker: Marker, client: WandbClient) -> None:
    if not held:
        return
    synced = read_synced(directory)
    same_place = synced is not None and synced.place == Synced.of(marker, client.base_url, confirmed=False).place
    sent = np.load(directory / ROWS, allow_pickle=False) if same_place and (directory / ROWS).is_file() else None
    if sent is not None and held <= min(len(sent), len(hashes)) and np.array_equal(sent[:held], hashes[:held]):
        return
    raise TargetError(
        f"W&B holds {held} history rows of run {marker.run_id} that are not the first ones of what it is now "
        f"({len(hashes)} rows), and W&B can neither change nor remove rows.",
        hint="Set another targets.wandb.project_prefix to upload into a new project.",
    )


def _remember_rows(directory: Path, hashes: Hashes) -> None:
    content = io.BytesIO()
    np.save(content, hashes, allow_pickle=False)
    durable.write(directory / ROWS, content.getvalue())


def _rest(project: StagedProject, directory: Path, log: Path, held: int) -> Path:
    """Return a run directory that lacks the first ``held`` history rows and shares the files of the staged one."""
    rest = project.new() / directory.name
    rest.mkdir()
    (rest / "files").symlink_to(directory / "files", target_is_directory=True)
    parse, seen = protobuf().Record.FromString, 0
    with LogWriter(rest / log.name) as writer:
        for payload in read_log(log):
            record = parse(payload)
            if record.WhichOneof("record_type") == "history":
                seen += 1
                if seen <= held:
                    continue
            writer.append(payload)
    return rest
