"""One HTML file that loads nothing.

What comes from data, such as captions, names of files and of experiments, is escaped by Jinja; should a gap be found in
that, the page's own policy still runs no script but those whose hashes it names, and loads nothing."""

import base64
import hashlib
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from pipeline.data.summary import counted
from pipeline.report.chart import Chart

_TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, charts: list[Chart], /, **values: object) -> str:
    """The page of a template that extends layout.jinja, which finds `values` and draws the `charts`."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"size": size, "duration": duration, "number": number, "value": value, "counted": counted}
    scripts = [get_plotlyjs(), (_TEMPLATES / "script.js").read_text(encoding="utf-8")]
    html = environment.get_template(template).render(
        figures={chart.name: chart.figure for chart in charts},
        style=Markup((_TEMPLATES / "style.css").read_text(encoding="utf-8")),
        scripts=[Markup(script) for script in scripts],
        hashes=" ".join(f"'sha256-{_sha256(script)}'" for script in scripts),
        **values,
    )
    # Half a surrogate pair, which a name of a file can hold, is no text.
    return html.encode("utf-8", "replace").decode()


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
