"""pipeline/report/summary.py: what the page says of a run in numbers."""

from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.report import summary
from pipeline.report.curves import Curve


def run(**curves) -> SimpleNamespace:
    found = {f"validation/{name}": Curve(np.array([0, 2, 4]), np.array(values)) for name, values in curves.items()}
    part = SimpleNamespace(value=None)
    return SimpleNamespace(
        curves=SimpleNamespace(value=found), params={}, data=part, metrics=part, weights=part, stage=lambda name: None
    )


@pytest.mark.parametrize(
    ("curves", "best"),
    [
        ({"loss": [0.5, 0.3, 0.2]}, (4, 0.2, False)),
        ({"loss": [0.1, 0.3, 0.4]}, (2, 0.3, False)),  # the base is none of the run's
        ({"loss": [0.5, 0.3, 0.2], "ema_loss": [0.5, 0.1, 0.4]}, (2, 0.1, True)),
    ],
)
def test_the_best_is_the_one_whose_weights_are_kept(curves, best):
    found = summary.of(run(**curves))
    assert (found.best_step, found.best_loss, found.best_of_averages) == best
