"""The lake that loads are measured on: generated in the exporter's format, brought in run by run, with little memory.

``python -m neptune_assets_tests.benchmarks.lakes --out DIR`` writes ``DIR/export`` and ``DIR/lake``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from neptune_assets.lake.writer import LakeWriter
from neptune_assets.migration_settings import Settings
from neptune_assets.settings import LakeSettings
from neptune_assets.sources.registry import open_source
from neptune_assets_tests.benchmarks.generate import Shape, generate


def export_lake(work: Path, runs: int, series: int, points: int) -> Path:
    """Write an export and a lake made from it below ``work``; return the lake's root.

    The same number of a run always gives the same run, so a lake of fewer runs holds a part of a larger one.
    """
    shape = Shape(runs=runs, series=series, points=points)
    generate(work / "export", shape)
    settings = Settings.model_validate(
        {
            "source": {"export": {"data": str(work / "export" / "data"), "files": str(work / "export" / "files")}},
            "lake": {"root": str(work / "lake")},
        }
    )
    report = LakeWriter(LakeSettings(root=str(work / "lake")), open_source(settings)).write_project(shape.project)
    if report.failed or report.partial:
        raise SystemExit(f"the lake could not be made: {report.failed or report.partial}")
    return work / "lake"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--series", type=int, default=40)
    parser.add_argument("--points", type=int, default=1_000)
    given = parser.parse_args()
    print(export_lake(given.out, given.runs, given.series, given.points))


if __name__ == "__main__":
    main()
