"""The figures of a data set."""

import numpy as np
import plotly.graph_objects as go

from pipeline.report.chart import COLOURS, Chart, chart
from pipeline.report.data import Bucket, Data, Histogram

_RATIOS = ((1, 8), (1, 4), (1, 3), (1, 2), (2, 3), (3, 4), (1, 1), (4, 3), (3, 2), (2, 1), (3, 1), (4, 1), (8, 1))
_ABOUT_TOKENS = "CLIP's tokens of distinct captions, begin and end included; a chunk takes 77."
_ABOUT_LETTERS = (  # of the page that index leaves, which must not depend on the tokenizer
    "Letters of distinct captions. python -m pipeline data report gives them in CLIP's tokens, where the tokenizer "
    "(model.tokenizer) is there."
)


def of_data(data: Data, suffix: str) -> list[Chart]:
    """The buckets, and of the others those with more than one bar."""
    ratios = {"tickvals": [float(np.log2(w / h)) for w, h in _RATIOS], "ticktext": [f"{w}:{h}" for w, h in _RATIOS]}
    sizes = {"tickvals": list(range(-10, 13, 2)), "ticktext": [f"{2.0**power:.3g}" for power in range(-10, 13, 2)]}
    about_ratios, about_sizes = (
        "Width to height of the pictures that are used.",
        "Megapixels of the pictures that are used.",
    )
    charts = [
        _buckets(data.buckets, f"buckets{suffix}"),
        _bars(data.aspects, f"aspects{suffix}", "Aspect ratios", about_ratios, ratios),
        _bars(data.megapixels, f"megapixels{suffix}", "Sizes", about_sizes, sizes),
    ]
    if data.lengths is not None:
        about = _ABOUT_TOKENS if data.unit == "tokens" else _ABOUT_LETTERS
        charts.append(_bars(data.lengths, f"lengths{suffix}", f"Caption lengths ({data.unit})", about, {}))
    return [one for one in charts if one is not None]


def _buckets(buckets: list[Bucket], name: str) -> Chart | None:
    about = "Pictures of each, from the tallest to the widest; the rare ones in another colour."
    if not buckets:
        return None
    bars = go.Bar(
        x=[f"{one.width}×{one.height}" for one in buckets],
        y=[one.count for one in buckets],
        marker={"color": [COLOURS[1] if one.rare else COLOURS[0] for one in buckets]},
        hovertemplate="%{y:,}<extra></extra>",
    )
    made = chart(name, "Buckets", about, [bars], x="", log=len(buckets) > 1)
    made.figure["layout"]["xaxis"]["type"] = "category"
    return made


def _bars(histogram: Histogram, name: str, title: str, about: str, axis: dict) -> Chart | None:
    if np.count_nonzero(histogram.counts) < 2:
        return None
    middle = (histogram.edges[:-1] + histogram.edges[1:]) / 2
    bars = go.Bar(
        x=[float(f"{x:.6g}") for x in middle],
        y=[int(count) for count in histogram.counts],
        width=float(histogram.edges[1] - histogram.edges[0]) * 0.92,
        marker={"color": COLOURS[0]},
        hovertemplate="%{y:,}<extra></extra>",
    )
    made = chart(name, title, about, [bars], x="")
    made.figure["layout"]["xaxis"].update(axis)
    return made
