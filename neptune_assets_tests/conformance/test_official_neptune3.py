"""Runs the end-to-end tests of Neptune's own 3.x clients against our server, as they are.

Each suite needs a checkout of its repository (with its git history and a remote) and a Python that has the client and
what its tests need: NEPTUNE_SCALE_SRC and NEPTUNE_SCALE_PYTHON, NEPTUNE_QUERY_SRC and NEPTUNE_QUERY_PYTHON. Nothing is
fetched. Tests that cannot pass here are named below with the reason; any other failure fails.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from neptune_assets_tests.support.server import Served, ServerProcess, server_process

pytestmark = [pytest.mark.official, pytest.mark.timeout(4 * 3600)]

WORKSPACE = "official"

_PLUGIN = """
class Hooks:
    pass

for name in {hooks!r}:
    setattr(Hooks, name, lambda self: None)

def pytest_addhooks(pluginmanager):
    if {hooks!r}:
        pluginmanager.add_hookspecs(Hooks)
"""


@dataclass(frozen=True)
class Suite:
    """One client's tests: where they are, how they are started, and which of them may fail."""

    source: str
    python: str
    folder: str
    tests: str
    allowed: dict[str, str] = field(default_factory=dict)
    """Part of a test's name, and why tests with it may fail."""
    least: int = 1
    """How many tests must pass at the very least: a suite that is not collected is no success."""
    hooks: tuple[str, ...] = ()
    """Hooks of pytest-retry, which can hang and is switched off, that the suite's own conftest implements."""


SCALE = Suite(
    source="NEPTUNE_SCALE_SRC",
    python="NEPTUNE_SCALE_PYTHON",
    folder="tests",
    tests="e2e",
    allowed={
        "test_async_lag_callback": "waits for requests that are not processed yet; ours are when they are answered",
    },
    least=160,
)

QUERY = Suite(
    source="NEPTUNE_QUERY_SRC",
    python="NEPTUNE_QUERY_PYTHON",
    folder=".",
    tests="tests/e2e",
    allowed={
        f"test_fetch_string_series_values_retrieval[{case}-False]": "expects to be refused more than 2,000 series with "
        "names of 1 KiB; ours answers"
        for case in ("1-2001", "2-1001", "3-667")
    },
    least=1_055,
    hooks=("pytest_set_filtered_exceptions",),
)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with server_process(tmp_path / "store") as running:
        yield running


def test_neptune_scale(server: ServerProcess, tmp_path: Path) -> None:
    _run(SCALE, server, tmp_path, {"NEPTUNE_E2E_PROJECT": f"{WORKSPACE}/scale"})


def test_neptune_query(server: ServerProcess, tmp_path: Path) -> None:
    impatient = {"NEPTUNE_QUERY_RETRY_SOFT_TIMEOUT": "60", "NEPTUNE_QUERY_RETRY_HARD_TIMEOUT": "90"}
    _run(QUERY, server, tmp_path, {"NEPTUNE_E2E_PROJECT": f"{WORKSPACE}/query", **impatient})


def _run(suite: Suite, server: ServerProcess, folder: Path, environment: dict[str, str]) -> None:
    source, python = (os.environ.get(name) for name in (suite.source, suite.python))
    if not source or not python:
        pytest.fail(f"Set {suite.source} to a checkout and {suite.python} to a Python with what its tests need.")
    with Served(server.url, server.token, server.store).client() as client:
        workspace, _, name = environment["NEPTUNE_E2E_PROJECT"].partition("/")
        answer = client.post("/api/backend/v1/projects", json={"organizationIdentifier": workspace, "name": name})
        answer.raise_for_status()
    given = {
        **os.environ,
        "NEPTUNE_E2E_API_TOKEN": server.token,
        "NEPTUNE_API_TOKEN": server.token,
        "NEPTUNE_E2E_WORKSPACE": WORKSPACE,
        "NEPTUNE_LOG_DIRECTORY": str(folder / "neptune"),
        "PYTHONPATH": os.pathsep.join((source, str(folder))),
        **environment,
    }
    place = Path(source) / suite.folder
    (folder / "retry_hooks.py").write_text(_PLUGIN.format(hooks=suite.hooks), encoding="utf-8")
    outcomes, output = _pytest(python, [suite.tests], place, given, folder / "report.xml")
    failed = _unexpected(outcomes, suite)
    if failed:
        # The suites' own settings let a failing test try again, with a plugin that can hang: here it gets one more try.
        names = [str(Path(source) / name) for name in failed]
        again, output = _pytest(python, names, place, given, folder / "again.xml")
        outcomes |= again
    passed = sum(outcome == "passed" for outcome in outcomes.values())
    print(f"{passed} of {len(outcomes)} passed, {len(failed)} of them tried twice.")
    for name, outcome in sorted(outcomes.items()):
        if outcome != "passed":
            print(f"{outcome}: {name}")
    unexpected = _unexpected(outcomes, suite)
    assert not unexpected, "\n".join(unexpected) + output[-20_000:]
    assert passed >= suite.least


def _unexpected(outcomes: dict[str, str], suite: Suite) -> list[str]:
    return sorted(
        name
        for name, outcome in outcomes.items()
        if outcome == "failed" and not any(part in name for part in suite.allowed)
    )


def _pytest(
    python: str, tests: list[str], place: Path, environment: dict[str, str], report: Path
) -> tuple[dict[str, str], str]:
    """Run tests and return the outcome of each, by its id from the root of the checkout, and what was printed."""
    command = [
        *_unprivileged(),
        python,
        "-m",
        "pytest",
        *tests,
        "-p",
        "no:pytest-retry",
        "-p",
        "retry_hooks",
        "-o",
        "addopts=",
        "-q",
    ]
    command += ["-o", "retries=", "-W", "ignore", "--timeout=300"]
    command += [f"--junitxml={report}", "-o", "junit_family=xunit1"]
    output = _finished(command, place, environment, report)
    assert report.exists(), output[-8000:]
    outcomes: dict[str, str] = {}
    for case in ET.parse(report).getroot().iter("testcase"):
        file, within = case.get("file") or "", case.get("classname") or ""
        inner = within.removeprefix(file.removesuffix(".py").replace("/", ".")).strip(".")
        name = "::".join(part for part in (file, *inner.split("."), case.get("name")) if part)
        failed = case.find("failure") is not None or case.find("error") is not None
        skipped = case.find("skipped") is not None
        outcomes[name] = "failed" if failed else "skipped" if skipped else "passed"
    return outcomes, output


def _finished(command: list[str], place: Path, environment: dict[str, str], report: Path) -> str:
    """Run pytest until its report is there and return what it printed.

    Processes of neptune-scale that its tests leave behind can keep it from ending afterwards: it then is killed.
    """
    log = report.with_suffix(".log")
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, cwd=place, env=environment, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            while process.poll() is None and not report.exists():
                time.sleep(1)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return log.read_text(encoding="utf-8", errors="replace")


def _unprivileged() -> list[str]:
    """What makes a command respect file permissions as root: the suites test what happens to unreadable files."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        return []
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
