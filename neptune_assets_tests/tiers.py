"""Which tier each test file is in: exactly one. A file that is not named here is in the tier ``normal``.

``make test-fast`` runs ``fast``, ``make test`` runs ``fast`` and ``normal``, ``make test-all`` runs ``full`` as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent

FAST: Final = frozenset(
    {
        "lake/test_damage.py",
        "lake/test_digest.py",
        "lake/test_external_sort.py",
        "lake/test_files.py",
        "lake/test_in_place.py",
        "lake/test_manifest.py",
        "lake/test_moments.py",
        "lake/test_small_runs.py",
        "lake/test_writer.py",
        "lake/test_writer_changes.py",
        "server/catalog/test_concurrency.py",
        "server/catalog/test_names.py",
        "server/neptune2/test_artifact_hash.py",
        "server/neptune2/test_attributes.py",
        "server/neptune2/test_filesets.py",
        "server/neptune2/test_float_pages.py",
        "server/neptune2/test_keyset.py",
        "server/neptune2/test_operations.py",
        "server/neptune2/test_uploads.py",
        "server/neptune3/test_snapshots.py",
        "server/nql/test_parser.py",
        "server/nql/test_sql.py",
        "server/reading/test_float_encoding.py",
        "server/series/test_buckets.py",
        "server/store/test_operations.py",
        "server/test_garbage_collection.py",
        "sources/neptune2/test_requests.py",
        "sources/neptune2/test_attribute_pages.py",
        "sources/neptune2/test_listing.py",
        "sources/neptune2/test_reading.py",
        "sources/neptune2/test_series.py",
        "sources/neptune2/test_source.py",
        "sources/neptune3/test_rows.py",
        "sources/offline/test_client_cases.py",
        "sources/offline/test_client_log.py",
        "sources/offline/test_file_roots.py",
        "sources/offline/test_search.py",
        "sources/server/test_server.py",
        "sources/export/test_export.py",
        "sources/test_filters.py",
        "summary/test_quoting.py",
        "summary/test_rows.py",
        "summary/test_table_values.py",
        "targets/test_concurrency.py",
        "targets/test_load.py",
        "test_audit.py",
        "test_partitions.py",
        "test_settings.py",
    }
)
"""Seconds each, and without another process: rows, codecs, names, settings, listings, one lake on disk."""

FULL: Final = frozenset(
    {
        "plugins/test_installed.py",
    }
)
"""Proofs that install packages, or go through what others prove in short with every input there is."""


def tier(file: Path) -> str:
    """Return the tier of a test file."""
    name = file.relative_to(HERE).as_posix()
    return "fast" if name in FAST else "full" if name in FULL else "normal"
