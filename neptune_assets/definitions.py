"""The code location: loads every migration under ``defs/`` and does nothing else."""

from pathlib import Path

import dagster as dg


@dg.definitions
def defs() -> dg.Definitions:
    """Load all components under ``neptune_assets/defs``."""
    return dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
