"""Runs of project demo/tabular, recorded by neptune-client offline: small models of tables that scikit-learn ships.

The client is used as people used it: with and without steps, files by path, file sets, artifacts, pictures. It records
files that are given by path only by their absolute path, so what the runs need lies beside the recordings in ``files``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.ensemble import GradientBoostingRegressor, RandomForestClassifier
from sklearn.linear_model import SGDClassifier, SGDRegressor
from sklearn.metrics import confusion_matrix, log_loss, roc_curve
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from demo import pictures
from demo.tally import Tally

PROJECT = "demo/tabular"
SEED = 20260305


class Recorder:
    """A run of neptune-client, and the tally of what it was given. The working directory holds its ``.neptune``."""

    def __init__(self, name: str, description: str, tags: list[str]) -> None:
        import neptune

        self.tally = Tally(name, tags=list(tags))
        # Everything that the client would find out about the machine by itself is switched off.
        self.run = neptune.init_run(
            mode="offline",
            name=name,
            description=description,
            tags=tags,
            source_files=[],
            capture_stdout=False,
            capture_stderr=False,
            capture_hardware_metrics=False,
            capture_traceback=False,
            git_ref=False,
            monitoring_namespace="monitoring",
        )
        self.container_id = str(self.run._id)

    def assign(self, path: str, value: Any) -> None:
        """Assign a value, or a dictionary of values as a namespace."""
        self.run[path] = value
        for inner, leaf in _leaves(path, value):
            kinds = {bool: "bool", int: "int", float: "float", str: "string", datetime: "datetime"}
            self.tally.value(inner, kinds[type(leaf)], leaf)

    def metric(self, path: str, value: float, step: float | None = None) -> None:
        """Append a point, numbered by the client if no step is given."""
        self.run[path].append(value, step=step)
        self.tally.point(path, "float_series", step, value)

    def metrics(self, path: str, values: Iterable[float]) -> None:
        """Append many points at once, numbered by the client."""
        numbers = list(values)
        self.run[path].extend(numbers)
        for value in numbers:
            self.tally.point(path, "float_series", None, value)

    def text(self, path: str, line: str) -> None:
        """Append a line to a string series."""
        self.run[path].append(line)
        self.tally.point(path, "string_series", None, line)

    def picture(self, path: str, data: bytes, step: float | None, name: str, description: str) -> None:
        """Append a PNG to a file series."""
        from neptune.types import File

        self.run[path].append(File.from_content(data, extension="png"), step=step, name=name, description=description)
        self.tally.point(path, "file_series", step, data)

    def content(self, path: str, text: str, extension: str) -> None:
        """Upload a file from memory; the client keeps a copy beside the recording."""
        from neptune.types import File

        self.run[path].upload(File.from_content(text, extension=extension))
        self.tally.value(path, "file", text.encode())

    def upload(self, path: str, file: Path) -> None:
        """Upload a file by its path."""
        self.run[path].upload(str(file))
        self.tally.value(path, "file", file.read_bytes())

    def upload_set(self, path: str, folder: Path, pattern: str) -> None:
        """Upload all files that match as one file set, by their names: patterns cannot be looked up elsewhere later."""
        files = sorted(folder.glob(pattern))
        self.run[path].upload_files([str(file) for file in files])
        self.tally.value(path, "file_set", {file.name: file.read_bytes() for file in files})

    def track(self, path: str, file: Path) -> None:
        """Track a file as an artifact: Neptune keeps its name, size and hash, not its bytes."""
        self.run[path].track_files(str(file))
        self.tally.value(path, "artifact", {file.name: file.read_bytes()})

    def strings(self, path: str, values: list[str]) -> None:
        """Add strings to a string set."""
        self.run[path].add(values)
        self.tally.value(path, "string_set", values)

    def group(self, tags: list[str]) -> None:
        """Add group tags."""
        self.run["sys/group_tags"].add(tags)
        self.tally.group_tags += tags

    def fail(self) -> None:
        """Mark the run as failed."""
        self.run["sys/failed"] = True
        self.tally.failed = True


def record(files: Path) -> dict[str, Tally]:
    """Train and record all runs of the project; ``files`` is relative to the working directory.

    Returns a tally by the run's container id, which is all that an offline recording is known by.
    """
    runs = [_wine(files / "wine", trees) for trees in (40, 120)]
    runs += [_cancer(rate) for rate in (0.0001, 0.01)]
    runs += [_diabetes(), _diabetes_failed()]
    return {run.container_id: run.tally for run in runs}


def _wine(files: Path, trees: int) -> Recorder:
    bunch = load_wine()
    inputs, held_inputs, labels, held_labels = train_test_split(
        bunch.data, bunch.target, test_size=0.3, random_state=SEED, stratify=bunch.target
    )
    run = Recorder(f"wine-forest-{trees}", "A random forest grown tree by tree.", ["wine", "forest"])
    run.group(["classification"])
    run.assign("parameters", {"trees": trees, "depth": {"limit": 4, "limited": True}, "seed": SEED, "features": 0.5})
    run.assign("data/name", "Wine recognition")
    run.assign("data/collected", datetime(1991, 7, 1, tzinfo=UTC))
    run.strings("data/classes", [str(name) for name in bunch.target_names])
    _tables(files, bunch.feature_names, bunch.data, bunch.target, bunch.target_names)
    run.track("data/table", files / "wine.csv")
    run.upload_set("data/by_class", files / "by_class", "*.csv")
    model = RandomForestClassifier(max_depth=4, max_features=0.5, random_state=SEED, warm_start=True)
    for count in range(1, trees + 1):
        model.set_params(n_estimators=count).fit(inputs, labels)
        accuracy = float(model.score(held_inputs, held_labels))
        run.metric("validation/accuracy", accuracy, step=count)
        run.metric("validation/loss", float(log_loss(held_labels, model.predict_proba(held_inputs))), step=count)
        if count % 5 == 0:
            run.text("log", f"{count} trees: accuracy {accuracy:.4f}")
        if count % 20 == 0:
            counts = confusion_matrix(held_labels, model.predict(held_inputs))
            names = [str(name).removeprefix("class_") for name in bunch.target_names]
            picture = pictures.confusion_matrix(counts, names, f"{count} trees")
            run.picture("validation/confusion", picture, count, f"{count} trees", "rows are true classes")
    importances = files / f"importances-{trees}.csv"
    lines = [f"{n},{v:.6f}" for n, v in zip(bunch.feature_names, model.feature_importances_, strict=True)]
    importances.write_text("feature,importance\n" + "\n".join(lines) + "\n")
    run.upload("model/importances", importances)
    run.assign("result/accuracy", accuracy)
    run.run.stop()
    return run


def _cancer(rate: float) -> Recorder:
    bunch = load_breast_cancer()
    inputs, held_inputs, labels, held_labels = train_test_split(
        StandardScaler().fit_transform(bunch.data), bunch.target, test_size=0.3, random_state=SEED
    )
    run = Recorder(f"cancer-logistic-{rate}", "Logistic regression by gradient descent.", ["breast cancer", "linear"])
    run.group(["classification", "medicine"])
    run.assign("parameters", {"penalty": rate, "loss": "log_loss", "epochs": 60, "average": False})
    model = SGDClassifier(loss="log_loss", alpha=rate, random_state=SEED)
    for epoch in range(60):
        model.partial_fit(inputs, labels, classes=np.unique(labels))
        run.metric("train/loss", float(log_loss(labels, model.predict_proba(inputs))))
        run.metric("validation/loss", float(log_loss(held_labels, model.predict_proba(held_inputs))))
        run.metric("validation/accuracy", float(model.score(held_inputs, held_labels)), step=epoch + 0.5)
        if (epoch + 1) % 20 == 0:
            wrong, right, _ = roc_curve(held_labels, model.predict_proba(held_inputs)[:, 1])
            picture = pictures.curve(wrong, right, f"epoch {epoch + 1}", "false positives", "true positives")
            run.picture("validation/roc", picture, None, f"ROC after {epoch + 1} epochs", "")
    run.metrics("model/coefficients", (float(value) for value in model.coef_[0]))
    run.assign("scratch/temporary", "deleted before the run ended")
    run.run["scratch"].pop("temporary")
    run.tally.forget("scratch/temporary")
    weights = dict(zip(map(str, bunch.feature_names), map(float, model.coef_[0]), strict=True))
    run.content("model/weights", json.dumps(weights, indent=1), "json")
    run.assign("result/accuracy", float(model.score(held_inputs, held_labels)))
    run.run.stop()
    return run


def _diabetes() -> Recorder:
    bunch = load_diabetes()
    inputs, held_inputs, labels, held_labels = train_test_split(
        bunch.data, bunch.target, test_size=0.3, random_state=SEED
    )
    run = Recorder("diabetes-boosting", "Gradient boosting, scored after every stage.", ["diabetes", "boosting"])
    run.assign("parameters", {"stages": 200, "learning_rate": 0.05, "depth": 2, "subsample": 0.7})
    model = GradientBoostingRegressor(
        n_estimators=200, learning_rate=0.05, max_depth=2, subsample=0.7, random_state=SEED
    ).fit(inputs, labels)
    errors = [float(((said - held_labels) ** 2).mean()) for said in model.staged_predict(held_inputs)]
    for stage, error in enumerate(errors, start=1):
        run.metric("train/loss", float(model.train_score_[stage - 1]), step=stage)
        run.metric("validation/loss", error, step=stage)
    picture = pictures.curve(range(1, 201), errors, "validation loss", "stage", "squared error")
    run.picture("plots/loss", picture, 0, "validation loss", "squared error by stage")
    best = int(np.argmin(errors))
    run.text("log", f"best after {best + 1} stages: {errors[best]:.2f}")
    run.assign("result", {"best_stage": best + 1, "best_loss": errors[best]})
    run.run.stop()
    return run


def _diabetes_failed() -> Recorder:
    bunch = load_diabetes()
    run = Recorder("diabetes-logarithm", "Changes its features half-way, and fails.", ["diabetes", "failed"])
    run.assign("parameters", {"learning_rate": 0.1, "epochs": 20, "seed": SEED})
    model = SGDRegressor(learning_rate="constant", eta0=0.1, random_state=SEED)
    inputs = bunch.data
    try:
        for epoch in range(20):
            if epoch == 12:
                run.text("log", "epoch 12: logarithms of the features from here")
                with np.errstate(invalid="ignore"):
                    inputs = np.log(inputs)  # most features are negative for some patients
            model.partial_fit(inputs, bunch.target)
            run.metric("train/loss", float(((model.predict(inputs) - bunch.target) ** 2).mean()), step=epoch)
    except ValueError as error:
        run.text("error", str(error))
        run.fail()
    run.run.stop()
    return run


def _tables(files: Path, features: list[str], data: Any, target: Any, names: Any) -> None:
    header = ",".join([*features, "class"])
    (files / "by_class").mkdir(parents=True, exist_ok=True)
    rows = [",".join([*(f"{value:g}" for value in row), str(kind)]) for row, kind in zip(data, target, strict=True)]
    (files / "wine.csv").write_text("\n".join([header, *rows]) + "\n")
    for kind, name in enumerate(names):
        chosen = [row for row, other in zip(rows, target, strict=True) if other == kind]
        (files / "by_class" / f"{name}.csv").write_text("\n".join([header, *chosen]) + "\n")


def _leaves(path: str, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(path, value)]
    return [leaf for key, inner in value.items() for leaf in _leaves(f"{path}/{key}", inner)]
