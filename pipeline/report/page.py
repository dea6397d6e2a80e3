"""The page of a run, or of several side by side."""

import datetime
import platform
from dataclasses import dataclass
from importlib import metadata

from pipeline.report import charts, data_charts, graph, html, settings, summary
from pipeline.report.chart import COLOURS
from pipeline.report.gather import Run

_PACKAGES = ("mindspore", "numpy", "dvc", "dvclive", "pyarrow", "pillow", "transformers")


@dataclass(frozen=True)
class Group:
    """Runs that have the same of something, shown once."""

    names: list[str]
    run: Run


def render(runs: list[Run], defaults: settings.Defaults, code: str) -> str:
    """`code`: what commit the project is at."""
    of_data = _groups(runs, "index")
    drawings = {
        group.run.name: data_charts.of_data(group.run.data.value, f"-{number}")
        for number, group in enumerate(of_data)
        if group.run.data.value
    }
    training = charts.of_training(runs)
    return html.render(
        "page.jinja",
        [*training, *(chart for found in drawings.values() for chart in found)],
        runs=runs,
        summaries=[summary.of(run) for run in runs],
        colours=[COLOURS[number % len(COLOURS)] for number in range(len(runs))],
        training=training,
        data_groups=of_data,
        data_charts=drawings,
        latent_groups=_groups(runs, "cache_latents"),
        drawing=graph.draw(runs[0].stages),
        box=(graph.WIDTH, graph.HEIGHT),
        defaults=defaults,
        rows=settings.rows([run.params for run in runs], defaults.values),
        versions={"python": platform.python_version()} | {name: metadata.version(name) for name in _PACKAGES},
        trained=[run for run in runs if (stage := run.stage("train")) and stage.time],
        code=code,
        made=datetime.datetime.now().strftime("%Y-%m-%d %H:%M"),
    )


def _groups(runs: list[Run], stage: str) -> list[Group]:
    found: dict[str, Group] = {}
    for run in runs:
        found.setdefault(run.made(stage), Group([], run)).names.append(run.name)
    return list(found.values())
