"""Read a lake with nothing but pyarrow, and recompute every digest that it records.

It follows docs/lake-format.md and shares no code with neptune_assets, so that the format has a second witness and a
lake can be checked in years to come: ``python examples/read_lake.py <lake>``. Exit status 1 if anything differs.
"""

import json
import struct
import sys
from collections import defaultdict
from hashlib import blake2b, sha256
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

NULL, NAN = -(2**63), 0x7FF8000000000000
COLUMN = {
    **{"float": "float_value", "float_series": "float_value", "int": "int_value", "bool": "bool_value"},
    **{"string": "string_value", "string_series": "string_value", "string_set": "string_set_value"},
    **{"datetime": "datetime_value", "histogram_series": "histogram_value"},
    **dict.fromkeys(("file", "file_series", "file_set", "artifact"), "file_value"),
}
STREAMS = {"string_value": 3, "histogram_value": 8}


def manifest(directory: Path) -> dict[str, dict[str, Any]]:
    """Records of all runs: the newest checkpoint, then each delta after it."""
    records: dict[str, dict[str, Any]] = {}
    files = sorted(directory.glob("[0-9]" * 10 + ".jsonl"))
    for number, file in enumerate(files):
        data = file.read_bytes()
        *lines, last = data.splitlines(keepends=True)
        header = json.loads(lines[0] if lines else last)
        if header["format"].endswith("/2"):
            assert json.loads(last)["sha256"] == sha256(data[: -len(last)]).hexdigest(), f"{file} is damaged"
        else:
            lines.append(last)
        if header["kind"] == "checkpoint":
            records = {}
        else:
            assert number == 0 or int(files[number - 1].stem) + 1 == int(file.stem), f"a file before {file} is missing"
        records.update((record["run_id"], record) for record in map(json.loads, lines[1:]))
    return records


def framed(data: bytes) -> bytes:
    """A text with its length before it."""
    return struct.pack("<q", len(data)) + data


def bits(value: float | None) -> bytes:
    """A double's bits, little endian; one NaN for all, and one more for a null inside a list."""
    if value is None or value != value:
        return struct.pack("<Q", NAN + (value is None))
    return struct.pack("<d", value)


def streams(column: str, value: Any, files: list[dict[str, Any]]) -> list[bytes]:
    """What one value adds to each stream of its attribute, the first of which says whether it is null."""
    if value is None or (column == "file_value" and value["path"] is None):
        return [b"\0"] + [b""] * (STREAMS.get(column, 2) - 1)
    if column == "float_value":
        return [b"\1", bits(value)]
    if column in ("int_value", "datetime_value"):
        return [b"\1", struct.pack("<q", value)]
    if column == "bool_value":
        return [b"\1", bytes([value])]
    if column == "string_value":
        return [b"\1", struct.pack("<q", len(value)), value]
    if column == "string_set_value":
        members = sorted(value, key=lambda item: (item is not None, item or b""))
        return [
            b"\1",
            struct.pack("<q", len(value)) + b"".join(b"\0" if m is None else b"\1" + framed(m) for m in members),
        ]
    if column == "histogram_value":
        kind = value["type"]
        found = (
            [b"\1", b"\0", b"", b""] if kind is None else [b"\1", b"\1", struct.pack("<q", len(kind)), kind.encode()]
        )
        for numbers in (value["edges"], value["values"]):
            found += [struct.pack("<q", -1 if numbers is None else len(numbers)), b"".join(map(bits, numbers or []))]
        return found
    content = struct.pack("<q", len(files))
    for file in sorted(files, key=lambda item: item.get("member") or ""):
        member = (file.get("member") or "").encode("utf-8", "surrogatepass")
        content += struct.pack("<qq", len(member), file["size"]) + member + bytes.fromhex(file["sha256"])
    return [b"\1", content]


def rows(part: Path) -> Any:
    """Rows as (path, type, micro-step, milliseconds, value); texts as bytes, times as numbers."""
    for batch in pq.ParquetFile(part, page_checksum_verification=True).iter_batches():
        texts = {"string_value": pa.binary(), "string_set_value": pa.list_(pa.binary())}
        whole = {**texts, "timestamp": pa.int64(), "datetime_value": pa.int64()}
        data = {name: batch[name].cast(whole.get(name, batch[name].type)).to_pylist() for name in batch.schema.names}
        for i, (path, kind) in enumerate(zip(data["attribute_path"], data["attribute_type"], strict=True)):
            step, time = data["step"][i], data["timestamp"][i]
            micro = NULL if step is None else int(step.scaleb(6))
            value = data[COLUMN[kind]][i] if COLUMN[kind] in data else None
            yield path, kind, micro, NULL if time is None else time, value


def digest(record: dict[str, Any], parts: list[Path]) -> str:
    """The content digest of a run: the digests of its attributes, in order, each over its columns."""
    run = blake2b(digest_size=16, person=b"neptune_assets-digest-1"[:16])
    files = defaultdict(list)
    for file in record.get("files", ()):
        files[file["attribute_path"], file.get("step", NULL)].append(file)
    every = (row for part in parts for row in rows(part))
    for (path, kind), group in groupby(every, key=lambda row: row[:2]):
        hashes: list[Any] = []
        for count, (_, _, step, time, value) in enumerate(group, 1):  # noqa: B007
            pieces = [struct.pack("<q", step), struct.pack("<q", time)]
            pieces += streams(COLUMN[kind], value, files[path, step])
            hashes = hashes or [blake2b(digest_size=16) for _ in pieces]
            for stream, piece in zip(hashes, pieces, strict=True):
                stream.update(piece)
        head = framed(path.encode("utf-8", "surrogatepass")) + framed(kind.encode()) + struct.pack("<q", count)
        run.update(blake2b(head + b"".join(item.digest() for item in hashes), digest_size=16).digest())
    return run.hexdigest()


def main(root: Path) -> int:
    """Check all projects of a lake, print a line for each run, and return the exit status."""
    wrong = runs = 0
    for directory in sorted([*root.glob("data/*/.manifest"), *root.glob("model_data/*/*/.manifest")]):
        place = directory.parent
        scoped = place.parent.parent.name == "model_data"
        stored = root / "model_files" / place.parent.name if scoped else root / "files" / place.name
        for run_id, record in manifest(directory).items():
            if record.get("in_place") is not None:
                print(f"{place.name} {run_id}: read in place, not checked")
                continue
            runs, problems = runs + 1, []
            parts = [place / part["name"] for part in record.get("parts", ())]
            staged = place / ".staging" / record["generation"].rpartition(".")[0]
            parts = [path if path.exists() else staged / path.name for path in parts]
            for part, path in zip(record.get("parts", ()), parts, strict=True):
                if part.get("sha256") not in (None, sha256(path.read_bytes()).hexdigest()):
                    problems.append(f"{path} is damaged")
            problems += [
                f"{stored / file['path']} is damaged"
                for file in record.get("files", ())
                if sha256((stored / file["path"]).read_bytes()).hexdigest() != file["sha256"]
            ]
            if digest(record, parts) != record["digest"]:
                problems.append("its rows are not those of its digest")
            print(f"{place.name} {run_id}: {'; '.join(problems) or record['digest']}")
            wrong += bool(problems)
    print(f"{runs} runs, {wrong} not as recorded")
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
