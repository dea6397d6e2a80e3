"""The report's charts hold what the log says, and say why there is none; runs of adapters, averages and other optimizers."""

import json

import pytest

from pipeline.report import curves
from tests.report.report_samples import STAGES, edit
from tests.report.test_report import Page, project, written  # noqa: F401

# chart -> the curve of log.jsonl that it draws
CHARTS = {
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "speed": "train/images_per_second",
    "wait": "train/data_wait_seconds",
    "prodigy_d": "train/prodigy_d",
}


def rewrite(root, change) -> list[dict]:
    """Each line of the log by `change(line)`; -> the lines."""
    log = root / curves.LOG
    lines = [change(json.loads(line)) for line in log.read_text().splitlines()]
    log.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return lines


def test_each_chart_draws_its_own_curve(project):  # noqa: F811
    """With values that differ from curve to curve and from step to step."""

    def change(line: dict) -> dict:
        step = line["step"]
        values = {name: (number + 2) * 1000 + step for number, name in enumerate(CHARTS.values())}
        return line | values if "train/loss" in line else line

    lines = rewrite(project(*STAGES), change)
    figures = written().figures
    for chart, name in CHARTS.items():
        (trace,) = figures[chart]["data"]
        wanted = [(line["step"], pytest.approx(line[name], 1e-5)) for line in lines if name in line]
        assert list(zip(trace["x"], trace["y"])) == wanted and len(wanted) == 600, chart


def test_the_validation_of_averages_is_a_curve_of_its_own(project):  # noqa: F811
    root = project(*STAGES)
    names = lambda: [trace["name"] for trace in written().figures["loss"]["data"]]  # noqa: E731
    assert "validation, EMA" not in names()
    rewrite(root, lambda line: line | ({"validation/ema_loss": 0.25} if "validation/loss" in line else {}))
    traces = {trace["name"]: trace for trace in written().figures["loss"]["data"]}
    assert set(traces["validation, EMA"]["y"]) == {0.25} and set(traces["validation"]["y"]) != {0.25}


def test_a_run_on_pictures_says_why_no_latents_are_shown(project):  # noqa: F811
    root = project("index", "convert", "train")
    edit(root / "params.yaml", root / "params.yaml", {"train.source": "pictures"})
    assert "train.source is pictures, so none are cached" in written().text
    edit(root / "params.yaml", root / "params.yaml", {"train.source": "cache"})
    assert "No latents are cached yet: dvc repro cache_latents" in written().text


def test_what_an_adapters_run_keeps_is_named(project):  # noqa: F811
    root = project(*STAGES)
    (root / "outs/train/weights").mkdir()
    for name in ("adapter", "adapter_best", "step-00000300"):
        (root / f"outs/train/weights/{name}.safetensors").touch()
    assert "raw, best, step 300 (merge.weights)" in written().text
