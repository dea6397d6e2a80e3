"""Which timesteps a training will draw, and how much each will count: before it is started."""

from pathlib import Path

import numpy as np

from pipeline import store
from pipeline.training.feed import Objective

PARTS, WIDTH = 20, 40  # rows of the histogram, letters of its longest bar


def parts(objective: Objective) -> list[dict[str, float]]:
    """For each PARTS-th of the timesteps: the first, the share of the draws that fall into it, and their mean weight in
    the loss (None where nothing is drawn)."""
    size = len(objective.chances) // PARTS
    chances, weights = (a.reshape(PARTS, size) for a in (objective.chances, objective.weights))
    shares = chances.sum(1)
    counted = (chances * weights).sum(1)
    return [
        {"first": n * size, "share": float(share), "weight": float(total / share) if share else None}
        for n, (share, total) in enumerate(zip(shares, counted, strict=True))
    ]


def lines(objective: Objective) -> list[str]:
    """The same as a histogram of text."""
    found = parts(objective)
    most, size = max(part["share"] for part in found), len(objective.chances) // PARTS
    rows = ["Timesteps that training draws (0 is the picture, 1000 noise), and the mean weight of the loss there"]
    for part in found:
        bar = "█" * round(WIDTH * part["share"] / most)
        weight = "" if part["weight"] is None else f"x {part['weight']:.3g}"
        rows.append(
            f"  {part['first']:4d} to {part['first'] + size - 1:3d} {part['share']:7.2%} {bar:{WIDTH}} {weight}"
        )
    return [row.rstrip() for row in rows]


def write_plot(objective: Objective, path: Path) -> None:
    """A page with the chance of each timestep, its weight in the loss, and both together. Needs no network to open."""
    import plotly.graph_objects as go  # only now: it takes a second

    timesteps = np.arange(len(objective.chances))
    counted = objective.chances * objective.weights
    curves = {
        "drawn (chance x 1000)": objective.chances * len(timesteps),
        "weight of the loss": objective.weights,
        "both (of a mean of 1)": counted / counted.mean(),
    }
    figure = go.Figure([go.Scatter(x=timesteps, y=values, name=name) for name, values in curves.items()])
    figure.update_layout(
        title="Timesteps", xaxis_title="timestep: 0 is the picture, 1000 noise", template="plotly_white"
    )
    with store.atomic(path) as temporary:
        temporary.write_text(figure.to_html(include_plotlyjs=True), encoding="utf-8")
