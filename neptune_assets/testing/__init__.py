"""What every source and every target must keep, as pytest classes that anybody's source or target can inherit.

``neptune_assets.testing.targets.TargetContract`` and ``neptune_assets.testing.sources.SourceContract`` are the suites;
``neptune_assets.testing.lakes`` makes lakes from rows, ``neptune_assets.testing.tables`` sources from tables.
The only part of the package that needs pytest.
"""

import pytest

# Before the suites are imported: their plain asserts then tell what differs, as in a test module.
for _name in ("sources", "target_case", "target_plans", "target_runs", "target_troubles", "target_values"):
    pytest.register_assert_rewrite(f"{__name__}.{_name}")
