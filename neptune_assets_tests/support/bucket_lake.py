"""A lake in a bucket for tests of its writers, and a look at what lies there that needs nothing of the package.

The look goes over raw objects, with JSON and pyarrow.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from functools import cache
from typing import Any

import boto3
import pyarrow.parquet as pq

from neptune_assets.settings import LakeSettings, StorageSettings
from neptune_assets_tests.support.lake_factory import file, metric, texts


@cache
def client(endpoint: str) -> Any:
    """Return a client that needs nothing of the package; making one takes a tenth of a second."""
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
        region_name="us-east-1",
    )


class Bucket:
    """One bucket: the objects in it, and settings to write a lake there."""

    def __init__(self, endpoint: str, name: str) -> None:
        self._client = client(endpoint)
        self._client.create_bucket(Bucket=name)
        self.name = name

    def settings(self, endpoint: str, **options: Any) -> LakeSettings:
        storage = StorageSettings(
            options={"endpoint_url": endpoint}, secrets_env={"key": "LAKE_KEY", "secret": "LAKE_SECRET"}
        )
        return LakeSettings(root=f"s3://{self.name}/lake", storage=storage, part_mb=1, **options)

    def put(self, objects: dict[str, bytes]) -> None:
        for key, content in objects.items():
            self._client.put_object(Bucket=self.name, Key=key, Body=content)

    def objects(self) -> dict[str, bytes]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.name)
        keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
        return {key: self._client.get_object(Bucket=self.name, Key=key)["Body"].read() for key in keys}


def noise(version: int, lines: int) -> list[str]:
    return [hashlib.sha256(f"{version} {line}".encode()).hexdigest() * 4 for line in range(lines)]


def rows(version: int, lines: int) -> list[dict[str, Any]]:
    logged = texts("log", noise(version, lines))
    return [*metric("m", [float(version)] * 5), *logged, file("f", f"content {version}".encode(), "f.txt")]


def records(objects: dict[str, bytes]) -> dict[str, dict[str, Any]]:
    """Return the runs that the manifest names, as its format says: the last checkpoint and the deltas after it."""
    files = {int(m[1]): raw for key, raw in objects.items() if (m := re.search(r"\.manifest/(\d{10})\.jsonl$", key))}
    found: dict[str, dict[str, Any]] = {}
    for number in sorted(files):
        header, *lines = [json.loads(line) for line in files[number].splitlines()]
        if header["kind"] == "checkpoint":
            found = {}
        found.update((line["run_id"], line) for line in lines if "run_id" in line)
    return found


def version_of(objects: dict[str, bytes], record: dict[str, Any]) -> int:
    """Return which version of a run can be read, after a look at every part, row and file that its record names."""
    points: list[float] = []
    total = 0
    group = record["generation"].partition(".")[0]
    for part in record["parts"]:
        place = re.compile(rf".*/data/[^/]+/(\.staging/{group}/)?{re.escape(part['name'])}")
        places = sorted(filter(place.fullmatch, objects), key=lambda key: "/.staging/" not in key)
        assert places, f"part {part['name']} of run {record['run_id']} is lost"
        parquet = pq.ParquetFile(io.BytesIO(objects[places[0]]))
        assert parquet.schema_arrow.metadata[b"neptune_assets.generation"].decode() == record["generation"]
        table = parquet.read()
        assert set(table["run_id"].to_pylist()) == {record["run_id"]}
        points += [value for value in table["float_value"].to_pylist() if value is not None]
        total += table.num_rows
    assert total == sum(record["rows"].values())
    (version,) = set(points)
    assert len(points) == 5
    for item in record.get("files", ()):
        (key,) = [key for key in objects if "/files/" in key and key.endswith(f"/{item['path']}")]
        assert objects[key] == f"content {version:.0f}".encode()
    return int(version)


def digests(objects: dict[str, bytes]) -> dict[str, str]:
    return {run_id: record["digest"] for run_id, record in records(objects).items()}


def versions(objects: dict[str, bytes]) -> dict[str, int]:
    return {run_id: version_of(objects, record) for run_id, record in records(objects).items()}
