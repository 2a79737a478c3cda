from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
from importlib import import_module
from pathlib import Path

import pytest
from pydantic import ValidationError

from neptune_assets.errors import SettingsError
from neptune_assets.migration_settings import Settings, TargetSettings
from neptune_assets.plugins import SourceSpec, TargetSpec, find_plugins, source_plugins, target_plugins
from neptune_assets.schema import Scope
from neptune_assets.settings import Filters, Model
from neptune_assets.sources.protocol import Source
from neptune_assets.targets.protocol import Target
from neptune_assets.targets.registry import loads

TARGET = """
from neptune_assets.plugins import TargetSpec
from neptune_assets.settings import Filters, Model
from neptune_assets.sources.protocol import Source
from neptune_assets.targets.protocol import Target

class Mine(Model):
    '''Settings of mine.'''
    directory: str = "here"
    naming: str = "default"

def opened(settings, lake, scope):
    raise RuntimeError(f"opened {scope} with {settings}")

TARGET = TargetSpec(name={name!r}, title="Mine", settings=Mine, description="Runs in mine.", models="Models in mine.",
                    paths=("directory",), open=opened{more})
"""


def install(site: Path, distribution: str, group: str, name: str, module: str, code: str) -> None:
    """Put a distribution on a directory of the path as pip would: its module, and metadata with its entry point."""
    (site / f"{module}.py").write_text(code, encoding="utf-8")
    info = site / f"{distribution.replace(chr(45), chr(95))}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}:TARGET\n", encoding="utf-8")


def target(name: str, more: str = "") -> str:
    return TARGET.replace("{name!r}", repr(name)).replace("{more}", more)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "site"
    path.mkdir()
    monkeypatch.syspath_prepend(str(path))
    return path


def test_ours_are_found_as_anybodys() -> None:
    assert set(source_plugins().specs) == {"export", "offline", "neptune2", "neptune3", "server"}
    assert {"mlflow", "wandb"} <= set(target_plugins().specs)
    assert not source_plugins().broken | target_plugins().broken


def test_a_name_with_an_underscore_has_its_own_ledgers_and_assets(tmp_path: Path) -> None:
    """In a process of its own: settings are made from what is installed when they are imported."""
    site = tmp_path / "site"
    site.mkdir()
    install(site, "my-tracker", "neptune_assets.targets", "my_tracker", "my_tracker_plugin", target("my_tracker"))
    code = textwrap.dedent("""
        import dagster as dg
        from pathlib import Path
        from neptune_assets.build import build_defs
        from neptune_assets.migration_settings import Settings
        from neptune_assets.schema import Scope
        from neptune_assets.targets.registry import loads

        settings = Settings.model_validate({
            "source": {"offline": {"paths": ["x"]}}, "lake": {"root": "lake"},
            "targets": {"my_tracker": {"directory": "d"}, "names": {"naming": "neptune-exporter"}},
        }).anchored(Path("/project"))
        assert settings.targets.my_tracker.directory == "/project/d"
        found = loads(settings)
        assert [load.name for load in found] == ["my_tracker", "my_tracker_models"]
        assert [load.ledger_name(scope) for load in found for scope in load.openers] == [
            "my_tracker", "my_tracker_models", "my_tracker_model_versions"]
        for load in found:
            for scope, open_target in load.openers.items():
                try:
                    open_target()
                except RuntimeError as error:
                    assert str(error) == f"opened {scope} with directory='/project/d' naming='neptune-exporter'", error
        graph = build_defs(settings, ["ws/p"], prefix="m").resolve_asset_graph()
        keys = {key.to_user_string() for key in graph.get_all_asset_keys()}
        for name in ("my_tracker", "my_tracker_models"):
            assert {f"m/targets/{name}", f"m/targets/{name}_reconciled"} <= keys, keys
            assert graph.get(dg.AssetKey(["m", "targets", name])).kinds == {"my_tracker"}
        checks = {(key.asset_key.to_user_string(), key.name) for key in graph.asset_check_keys}
        assert ("m/targets/my_tracker_models", "rows_accounted_for") in checks
    """)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "code", "what"),
    [
        ("breaks", "import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("breaks", "TARGET = 7", "is not a TargetSpec of that name, but 7"),
        ("breaks", target("other"), "is not a TargetSpec of that name"),
        ("names", target("names"), "does not have a valid name"),
        ("mine_models", target("mine_models"), "does not have a valid name"),
        ("mlflow", target("mlflow"), "of neptune_assets and some-tracker: a name can be taken only once"),
    ],
)
def test_what_cannot_be_used_is_one_error_of_who_uses_it(
    site: Path, caplog: pytest.LogCaptureFixture, name: str, code: str, what: str
) -> None:
    install(site, "some-tracker", "neptune_assets.targets", name, f"plugin_{abs(hash(code))}", code)
    with caplog.at_level(logging.WARNING):
        found = find_plugins("neptune_assets.targets", TargetSpec)
    assert set(found.broken) == {name}
    assert what in found.broken[name]
    assert "some-tracker" in found.broken[name]
    assert [record.message for record in caplog.records if what in record.message] == [found.broken[name]]
    assert "wandb" in found.specs


def test_a_migration_that_uses_a_broken_one_fails_and_others_do_not(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    install(site, "some-tracker", "neptune_assets.targets", "breaks", "breaks_plugin", "import no_such_module")
    code = textwrap.dedent("""
        from neptune_assets.migration_settings import Settings
        def make(**targets):
            return Settings.model_validate(
                {"source": {"export": {"data": "x"}}, "lake": {"root": "lake"}, "targets": targets})
        assert [spec.name for spec, _ in make(mlflow={}).targets.chosen] == ["mlflow"]
        make(breaks={})
    """)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert "targets.breaks\n" in done.stderr
    assert "of some-tracker cannot be imported" in done.stderr
    assert "or uninstall it" in done.stderr


def test_settings_beside_the_targets_are_no_names_of_targets(site: Path) -> None:
    beside = set(TargetSettings.model_fields) - set(target_plugins().specs)
    assert beside
    for name in beside:
        install(site, f"d-{name}", "neptune_assets.targets", name, f"plugin_of_{name}", target(name))
    assert set(find_plugins("neptune_assets.targets", TargetSpec).broken) == beside


class _Nothing(Model):
    """No settings."""


def test_what_is_not_installed_is_named_with_the_command_that_helps() -> None:
    spec = SourceSpec(
        name="s",
        title="S",
        settings=_Nothing,
        requires=("pyarrow", "no-such-distribution"),
        install="neptune-assets[s]",
        open=lambda *_: pytest.fail("opened"),
    )
    with pytest.raises(SettingsError, match=r'needs no-such-distribution.*pip install "neptune-assets\[s\]"'):
        spec.check_installed()


def test_a_registry_is_loaded_where_the_source_has_one() -> None:
    def settings(**source: object) -> Settings:
        return Settings.model_validate({"source": source, "lake": {"root": "l"}, "targets": {"wandb": {}}})

    assert not settings(export={"data": "x"}).model_registry
    assert settings(export={"data": "x", "model_data": "y"}).model_registry
    assert not settings(neptune3={}).model_registry
    assert settings(offline={"paths": []}).model_registry
    assert [[*load.openers] for load in loads(settings(neptune3={}))] == [
        [Scope.RUNS],
        [Scope.MODELS, Scope.MODEL_VERSIONS],
    ]


def test_an_unknown_target_is_named() -> None:
    with pytest.raises(ValidationError, match=r"targets\.nothing"):
        Settings.model_validate(
            {"source": {"export": {"data": "x"}}, "lake": {"root": "l"}, "targets": {"nothing": {}}}
        )


def test_the_plug_ins_of_the_slower_proof_speak_the_protocols_of_today(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their suites run from the wheel in `make test-all`; a change of a protocol is noticed here."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "plugins" / "toy"))
    for name, protocol, made in (
        ("toy_plugins.source", Source, lambda module: module.JsonLines("x", Filters())),
        ("toy_plugins.target", Target, lambda module: module.ParquetFolder("x")),
    ):
        found = made(import_module(name))
        missing = [member for member in vars(protocol) if not member.startswith("_") and not hasattr(found, member)]
        assert not missing, f"{name} lacks {missing}"
