"""Reading back what MLflow holds of a run and comparing it with the lake, point by point through checksums.

What must be there is computed anew from the lake, not taken from what the load said it wrote.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict

from neptune_assets.lake.reader import LakeRun
from neptune_assets.targets.mlflow.artifact_store import Artifacts
from neptune_assets.targets.mlflow.artifacts import MANIFEST_FILE
from neptune_assets.targets.mlflow.mapping import MlflowPlan
from neptune_assets.targets.mlflow.points import Latest, Points, PointStream, SeriesSum, Sums
from neptune_assets.targets.protocol import Receipt

MAX_DIFFERENCES = 100


def expected_points(
    run: LakeRun, plan: MlflowPlan
) -> tuple[dict[str, SeriesSum], dict[str, tuple[int, int, float, bool]]]:
    """Return the sums and the latest point that every metric must have."""
    sums, latest = Sums(), Latest()
    for points in PointStream(run, plan.metric_keys, plan.step_multiplier, plan.start):
        sums.add(points)
        latest.add(points)
    return sums.result(), {key: (step, time, value, nan) for key, step, time, value, nan in latest.rows()}


def sum_points(portions: Iterable[Points]) -> dict[str, SeriesSum]:
    """Return the sums of what MLflow holds."""
    sums = Sums()
    for points in portions:
        sums.add(points)
    return sums.result()


def compare_points(expected: Mapping[str, SeriesSum], held: Mapping[str, SeriesSum]) -> list[str]:
    """Name every metric that is not as it must be, and what differs first."""
    differences = []
    for key in sorted({*expected, *held}):
        want, have = expected.get(key), held.get(key)
        if want == have:
            continue
        if want is None:
            differences.append(f"metric {key!r} is not in the lake")
        elif have is None:
            differences.append(f"metric {key!r} is missing ({want.points:,} points)")
        else:
            name = next(name for name, value in asdict(want).items() if value != getattr(have, name))
            differences.append(f"metric {key!r}: {name} is {getattr(have, name)} instead of {getattr(want, name)}")
    return differences


def compare_texts(what: str, expected: Mapping[str, object], held: Mapping[str, object], *, subset: bool) -> list[str]:
    """Name every key whose value differs; ``subset`` allows more to be held than expected."""
    differences = []
    for key in sorted({*expected} if subset else {*expected, *held}):
        if key not in held:
            differences.append(f"{what} {key!r} is missing")
        elif key not in expected:
            differences.append(f"{what} {key!r} is not in the lake")
        elif held[key] != expected[key]:
            differences.append(f"{what} {key!r} is {str(held[key])[:100]!r} instead of {str(expected[key])[:100]!r}")
    return differences


def compare_artifacts(store: Artifacts, receipt: Receipt, *, content: bool) -> list[str]:
    """Compare what lies in the artifact store with the manifest that the load wrote, and that with the receipt.

    ``content`` False leaves it at names and sizes, and reads nothing but the manifest.
    """
    sizes = store.sizes()
    if MANIFEST_FILE not in sizes:
        return [f"artifact {MANIFEST_FILE!r} is missing"]
    data = store.read(MANIFEST_FILE)
    # A receipt that was lost with the ledger checks nothing; the list itself still does.
    if store.digest(data) != receipt.checks.get("artifacts", store.digest(data)):
        return [f"artifact {MANIFEST_FILE!r} is not the one that was written"]
    differences = []
    manifest = json.loads(data)
    for path, entry in manifest.items():
        if path not in sizes:
            differences.append(f"artifact {path!r} is missing")
        elif sizes[path] != entry["size"]:
            differences.append(f"artifact {path!r} has {sizes[path]:,} bytes instead of {entry['size']:,}")
        elif content and store.sha256(path) != entry["sha256"]:
            differences.append(f"artifact {path!r} has other content than was written")
    differences += [f"artifact {path!r} was not written" for path in sorted({*sizes} - {*manifest, MANIFEST_FILE})]
    return differences
