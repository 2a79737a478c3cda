"""A stub of the 2.x protocol that listens, and the source that asks it. The client and the wire are real."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from neptune_assets.settings import Filters
from neptune_assets.sources.neptune2.settings import Neptune2Source
from neptune_assets.sources.neptune2.source import Neptune2
from neptune_assets_tests.sources.neptune2.stub import Container, Stub, attribute


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    with Stub().running() as running:
        monkeypatch.setenv("NEPTUNE_API_TOKEN", running.token)
        yield running


@pytest.fixture
def source(stub: Stub) -> Callable[..., Neptune2]:
    def make(filters: Filters | None = None, **settings: Any) -> Neptune2:
        return Neptune2(Neptune2Source(**{"retry_seconds": 5, **settings}), filters or Filters())

    return make


@pytest.fixture
def run(stub: Stub) -> Container:
    """One run of the stub, with a bit of everything."""
    made = Container("P-1")
    made.attributes += [
        attribute("p/rate", "float", value=0.1),
        attribute("p/name", "string", value="first ☃"),
        attribute("sys/tags", "stringSet", values=["b", "a"]),
    ]
    made.floats("loss", (0, 1_740_000_000_000, 1.5), (1, 1_740_000_000_001, 2.0), (2.5, 1_740_000_000_002, -0.0))
    made.strings("log", (0, 1_740_000_000_000, "a"), (1, 1_740_000_000_001, ""))
    made.file("model/weights", b"w" * 100, "bin")
    made.attributes.append(attribute("set", "fileSet", size=5))
    made.sets["set"] = {"a/b.txt": b"hello", "c": b""}
    stub.containers += [made, Container("P-2")]
    return made
