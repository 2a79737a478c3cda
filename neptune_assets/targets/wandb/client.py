"""The W&B server: uploading a staged run with the real ``wandb sync``, and asking what arrived.

``wandb sync`` ends with exit code 0 even when uploads failed, so that a run only counts as uploaded once the server
says that it has every history row and the digest, which is in the summary's last record. The key is passed by
environment only and never stands in a message.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from neptune_assets.errors import TargetError, TargetUnavailableError
from neptune_assets.scratch import ScratchDirectory
from neptune_assets.targets.wandb.config import Marker
from neptune_assets.targets.wandb.model_versions import model_versions
from neptune_assets.targets.wandb.settings import WandbSettings

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
        with ScratchDirectory("wandb") as home:
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
