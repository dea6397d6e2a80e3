"""The figures of trainings."""

from html import escape

import numpy as np
import plotly.graph_objects as go

from pipeline.report import curves
from pipeline.report.chart import COLOURS, Chart, chart
from pipeline.report.curves import Curve
from pipeline.report.gather import Run

_TIMESTEPS = ("#2b83ba", "#5aae61", "#c39a1c", "#e0762f", "#d7425a", "#8a4fbf")


def of_training(runs: list[Run]) -> list[Chart]:
    """The curves of the runs that have any, each run in its own colour."""
    having = [(number, run.name, run.curves.value) for number, run in enumerate(runs) if run.curves.value]
    charts = [
        _loss(having),
        *_timesteps(having),
        _single(having, "learning_rate", "Learning rate", "After warm-up and schedule.", "train/learning_rate"),
        _single(
            having, "prodigy_d", "Prodigy's d", "What the learning rate is multiplied by.", "train/prodigy_d", log=True
        ),
        _single(
            having, "grad_norm", "Gradient norm", "Before clipping, over all parameters.", "train/grad_norm", log=True
        ),
        _single(having, "speed", "Speed", "Pictures in a second.", "train/images_per_second", unit="images/s"),
        _single(
            having, "wait", "Data wait", "Seconds of a step in which training waited for its batch.",
            "train/data_wait_seconds", unit="s", log=True,
        ),
    ]  # fmt: skip
    return [chart for chart in charts if chart is not None]


def _loss(having: list) -> Chart | None:
    """One run: training raw and smoothed, validation. Several: each in its colour, once in the legend."""
    traces, kinds = [], ("training, smoothed", "validation", "validation, EMA")
    for number, name, found in having:
        colour = COLOURS[number % len(COLOURS)]
        train, *validations = (found.get(key) for key in ("train/loss", "validation/loss", "validation/ema_loss"))
        styles = [{}, {"markers": True}, {"markers": True, "dash": "dot"}]
        lines = [curves.smooth(train) if train else None, *validations]
        if len(having) == 1:
            traces += [_line(train, "training", colour, width=1, opacity=0.3)] if train else []
            colours = (colour, COLOURS[1], COLOURS[1])
            traces += [_line(c, k, col, **s) for c, k, col, s in zip(lines, kinds, colours, styles) if c]
            continue
        styles[0] = {"opacity": 0.55}
        group = [_line(c, f"{escape(name)}, {k}", colour, **s) for c, k, s in zip(lines, kinds, styles) if c]
        for trace in group:
            trace.update(
                legendgroup=str(number),
                showlegend=trace is group[min(1, len(group) - 1)],
                hovertemplate=f"%{{y:.4~g}}<extra>{trace.name}</extra>",
                name=escape(name),
            )
        traces += group
    about = "Of the training batches, and of the held-out pictures with the same noise each time."
    if len(having) > 1:
        about = "Pale: training, smoothed. With points: validation, the same noise each time; dotted with EMA weights."
    return chart("loss", "Loss", about, traces, log=True)


def _timesteps(having: list) -> list[Chart | None]:
    """By step for a single run, in one chart. For several runs what they ended with, by timestep, and a chart by step
    for each timestep."""
    title, traces = "Validation loss by timestep", []
    if len(having) == 1:
        for number, (timestep, curve) in enumerate(curves.by_timestep(having[0][2]).items()):
            traces.append(_line(curve, f"t = {timestep}", _TIMESTEPS[number % len(_TIMESTEPS)], markers=True))
        about = "Small timesteps are little noise, large ones nearly nothing but noise."
        return [chart("timesteps", title, about, traces, log=True)]
    for number, name, found in having:
        ends = curves.by_timestep(found)
        profile = Curve(np.array(list(ends)), np.array([curve.last for curve in ends.values()]))
        if ends:
            traces.append(_line(profile, escape(name), COLOURS[number % len(COLOURS)], markers=True))
    about = "What each run ended with. Small timesteps are little noise, large ones nearly nothing but noise."
    charts = [chart("timesteps", title, about, traces, x="timestep", log=True)]
    for timestep in sorted({timestep for _, _, found in having for timestep in curves.by_timestep(found)}):
        traces = [
            _line(by[timestep], escape(name), COLOURS[number % len(COLOURS)], markers=True)
            for number, name, found in having
            if timestep in (by := curves.by_timestep(found))
        ]
        about = f"Of the held-out pictures at timestep {timestep} of 1,000, the same noise each time."
        charts.append(chart(f"timestep{timestep}", f"Validation loss at t = {timestep}", about, traces, log=True))
    return charts


def _single(
    having: list, key: str, title: str, about: str, name: str, unit: str = "", log: bool = False
) -> Chart | None:
    traces = []
    for number, run, found in having:
        if curve := found.get(name):
            traces.append(_line(curve, escape(run), COLOURS[number % len(COLOURS)], width=1.5))
    return chart(key, title, about, traces, unit=unit, log=log)


def _line(
    curve: Curve,
    name: str,
    colour: str,
    width: float = 2,
    opacity: float = 1,
    dash: str = "solid",
    markers: bool = False,
) -> go.Scatter:
    drawn, stretch = curves.thin(curve)
    return go.Scatter(
        x=[float(step) for step in drawn.steps],
        y=[float(f"{value:.6g}") for value in drawn.values],
        name=name + (f" (means of {stretch} points)" if stretch > 1 else ""),
        mode="lines+markers" if markers else "lines",
        line={"color": colour, "width": width, "dash": dash},
        marker={"size": 5},
        opacity=opacity,
        hovertemplate="%{y:.4~g}",
    )
