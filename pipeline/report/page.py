"""The page: one HTML file that loads nothing.

What comes from data, such as captions, names of files and of experiments, is escaped by Jinja; should a gap be found in
that, the page's own policy still runs no script but those whose hashes it names, and loads nothing."""

import base64
import datetime
import hashlib
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from pipeline.report import charts, graph, settings, summary
from pipeline.report.gather import Run

_TEMPLATES = Path(__file__).parent / "templates"
_PACKAGES = ("mindspore", "numpy", "dvc", "dvclive", "pyarrow", "pillow", "transformers")


@dataclass(frozen=True)
class Group:
    """Runs that have the same of something, shown once."""

    names: list[str]
    run: Run


def render(runs: list[Run], defaults: settings.Defaults, code: str) -> str:
    """`code`: what commit the project is at."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"size": size, "duration": duration, "number": number, "value": value}
    of_data = _groups(runs, "index")
    drawings = {
        group.run.name: charts.of_data(group.run.data.value, f"-{number}")
        for number, group in enumerate(of_data)
        if group.run.data.value
    }
    training = charts.of_training(runs)
    every = [*training, *(chart for found in drawings.values() for chart in found)]
    scripts = [get_plotlyjs(), (_TEMPLATES / "script.js").read_text(encoding="utf-8")]
    html = environment.get_template("page.jinja").render(
        runs=runs,
        summaries=[summary.of(run) for run in runs],
        colours=[charts.COLOURS[number % len(charts.COLOURS)] for number in range(len(runs))],
        training=training,
        figures={chart.name: chart.figure for chart in every},
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
        style=Markup((_TEMPLATES / "style.css").read_text(encoding="utf-8")),
        scripts=[Markup(script) for script in scripts],
        hashes=" ".join(f"'sha256-{_sha256(script)}'" for script in scripts),
    )
    # Half a surrogate pair, which a name of a file can hold, is no text.
    return html.encode("utf-8", "replace").decode()


def _groups(runs: list[Run], stage: str) -> list[Group]:
    found: dict[str, Group] = {}
    for run in runs:
        found.setdefault(run.made(stage), Group([], run)).names.append(run.name)
    return list(found.values())


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def size(count: float | None) -> str:
    if count is None:
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def number(found: float | None, places: int = 3) -> str:
    return "–" if found is None else f"{found:.{places}g}" if isinstance(found, float) else f"{found:,}"


def value(setting: object) -> str:
    """A setting as params.yaml would write it."""
    if setting is None:
        return "null"
    if isinstance(setting, bool):
        return str(setting).lower()
    if isinstance(setting, list):
        return "[" + ", ".join(map(value, setting)) + "]"
    return f"{setting:g}" if isinstance(setting, float) else str(setting)
