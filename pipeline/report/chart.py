"""A figure as Plotly draws it in a page; colours of text and grid are the page's own (script.js)."""

import json
from dataclasses import dataclass

import plotly.graph_objects as go

COLOURS = ("#3b76d6", "#e0762f", "#2e9e6b", "#b653a6", "#c39a1c", "#6d6fd8", "#cf4a5a", "#2aa3b5")


@dataclass(frozen=True)
class Chart:
    name: str  # of its element
    title: str
    about: str
    figure: dict  # data and layout
    can_be_log: bool = False  # whether its y axis has a switch


def chart(
    name: str, title: str, about: str, traces: list, x: str = "step", unit: str = "", log: bool = False
) -> Chart | None:
    """None without traces."""
    if not traces:
        return None
    layout = {
        "xaxis": {"title": {"text": x}, "automargin": True},
        "yaxis": {"title": {"text": unit}, "automargin": True, "rangemode": "tozero"},
        "showlegend": len(traces) > 1,
    }
    figure = json.loads(go.Figure(traces, layout).to_json())
    figure["layout"].pop("template", None)
    return Chart(name, title, about, figure, log)
