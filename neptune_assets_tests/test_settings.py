from pathlib import Path

import pytest
from pydantic import ValidationError

from neptune_assets.migration_settings import Settings

LAKE = {"root": "lake"}
EXPORT = {"export": {"data": "exports/data"}}


def make(**changes: object) -> Settings:
    return Settings.model_validate({"source": EXPORT, "lake": LAKE, **changes})


def test_two_lines_are_enough() -> None:
    settings = make()
    assert settings.source.export is not None
    assert settings.source.export.mode == "copy"
    assert settings.targets.partial_runs == "withhold"


@pytest.mark.parametrize(
    ("changes", "where", "what"),
    [
        ({"source": {}}, "source", "exactly one of"),
        ({"source": {**EXPORT, "offline": {"paths": ["x"]}}}, "source", "exactly one of"),
        ({"lake": {}}, "lake.root", "Field required"),
        ({"lake": {"rot": "x"}}, "lake.rot", "Extra inputs"),
        ({"lake": {"root": "x", "part_mb": 0}}, "lake.part_mb", "greater than or equal to 1"),
        ({"filters": {"projects": {"include": ["("]}}}, "filters.projects.include.0", "not a regular expression"),
        ({"filters": {"runs": {"created_since": "yesterday"}}}, "filters.runs.created_since", "ISO 8601"),
        ({"filters": {"runs": {"created_since": "2025-01-01T10:00:00"}}}, "filters.runs.created_since", "time zone"),
        ({"filters": {"attributes": {"classes": ["metric"]}}}, "filters.attributes.classes.0", "parameters"),
        ({"source": {"export": {"data": "x", "source_tz": "Mars/Base"}}}, "source.export", "IANA"),
        ({"lake": {"root": "s3://b", "storage": {"options": {"secret": "x"}}}}, "lake.storage", "environment variable"),
        ({"lake": {"root": "s3://b", "storage": {"secrets_env": {"key": "AKIA/123"}}}}, "lake.storage", "environment"),
        ({"key_prefix": "a/b"}, "key_prefix", "pattern"),
        ({"source": {"neptune2": {"client": "public"}}}, "source.neptune2", "Remove the line"),
        ({"source": {"neptune3": {"client": "public"}}}, "source.neptune3", "Remove the line"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, object], where: str, what: str) -> None:
    with pytest.raises(ValidationError) as error:
        make(**changes)
    places = {".".join(str(part) for part in item["loc"]): item["msg"] for item in error.value.errors()}
    assert any(place.startswith(where) for place in places), places
    assert what in str(error.value)


@pytest.mark.parametrize("kind", ["neptune2", "neptune3"])
def test_a_client_setting_of_version_0_1_is_accepted_for_one_release(kind: str) -> None:
    with pytest.warns(DeprecationWarning, match="client was removed"):
        _, settings = make(source={kind: {"client": "fast", "concurrency": 3}}).source.chosen
    assert settings.model_dump()["concurrency"] == 3


def test_relative_paths_are_taken_from_the_project_root(tmp_path: Path) -> None:
    settings = make(lake={"root": "data/lake", "scratch": "/scratch"}, targets={"wandb": {"staging": "w"}})
    anchored = settings.anchored(tmp_path)
    assert anchored.lake.root == str(tmp_path / "data/lake")
    assert anchored.lake.scratch == "/scratch"
    assert anchored.source.export is not None
    assert anchored.source.export.data == str(tmp_path / "exports/data")
    assert anchored.targets.wandb is not None
    assert anchored.targets.wandb.staging == str(tmp_path / "w")
    assert settings.lake.root == "data/lake"


def test_urls_stay_as_they_are(tmp_path: Path) -> None:
    assert make(lake={"root": "s3://bucket/lake"}).anchored(tmp_path).lake.root == "s3://bucket/lake"


def test_every_setting_is_described() -> None:
    def walk(model: type, path: str = "") -> None:
        for name, field in model.model_fields.items():
            assert field.description, f"{path}{name} has no description"
            for nested in [field.annotation, *getattr(field.annotation, "__args__", ())]:
                if isinstance(nested, type) and hasattr(nested, "model_fields"):
                    walk(nested, f"{path}{name}.")

    walk(Settings)
