"""pipeline/training/course.py: the best validation, patience, and which weights stay. Needs no MindSpore."""

from dataclasses import asdict, replace

import pytest

from pipeline.training import course
from pipeline.training.course import Course


def after(losses: list[float], name: str = "validation/loss") -> Course:
    """With a validation of each of the losses at the steps 0, 10, 20, ..."""
    now = Course()
    for number, loss in enumerate(losses):
        now = course.validated(replace(now, step=10 * number), {"validation/loss": 5.0, name: loss})
    return now


@pytest.mark.parametrize(
    ("losses", "best", "worse"),
    [
        ([0.1], 0, 0),  # the base's own does not count
        ([0.1, 0.5], 10, 0),
        ([0.9, 0.5, 0.4, 0.45], 20, 1),
        ([0.9, 0.5, 0.5, float("nan")], 10, 2),  # no lower loss is no improvement
        ([0.9, float("nan"), 0.7], 20, 0),
    ],
)
def test_the_best_and_how_long_it_lasts(losses, best, worse):
    now = after(losses)
    assert (now.best, now.worse, now.validated) == (best, worse, 10 * (len(losses) - 1))
    assert now.best_loss == (losses[best // 10] if best else float("inf"))


def test_the_averages_loss_counts_where_there_are_averages():
    assert after([0.9, 0.5, 0.6], "validation/ema_loss").best_loss == 0.5


@pytest.mark.parametrize(("patience", "wanted"), [(0, False), (1, True), (2, True), (3, False)])
def test_patience(patience, wanted):
    assert course.stops(after([0.9, 0.5, 0.6, 0.7]), patience) == wanted


@pytest.mark.parametrize(("limit", "wanted"), [(None, (10, 20, 30)), (1, (30,)), (2, (20, 30)), (9, (10, 20, 30))])
def test_the_newest_steps_stay(limit, wanted):
    now = Course()
    for step in (10, 20, 30):
        now = course.saved(replace(now, step=step), limit)
    assert now.saved == wanted
    best = replace(now, best=10)
    assert course.kept(now, True) == list(wanted) and course.kept(best, False) == list(wanted)
    assert course.kept(best, True) == sorted({10, *wanted})


def test_plain_values_give_it_back():
    now = course.saved(after([0.9, 0.5, 0.6]), None)
    assert course.saved(Course(**asdict(now) | {"saved": list(now.saved)}), None).saved == (20, 20)
