"""What every source and every target must keep, as pytest classes that anybody's source or target can inherit.

``neptune_assets.testing.targets.TargetContract`` and ``neptune_assets.testing.sources.SourceContract`` are the suites;
``neptune_assets.testing.lakes`` makes lakes from rows, and sources from tables.
The only part of the package that needs pytest.
"""

import pytest

# Before the suites are imported: their plain asserts then show what differs, as in a test module.
for _name in ("sources", "targets"):
    pytest.register_assert_rewrite(f"{__name__}.{_name}")
