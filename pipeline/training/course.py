"""How a run went so far, beside its weights and curves: plain values, which a state's facts hold. Needs no MindSpore.

The validation of step 0 is that of the weights which the run starts from, so it is never the best."""

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Course:
    step: int = 0  # steps done
    validated: int = -1  # the step of the last validation
    best: int = 0  # the step of the lowest validation loss; 0: none yet
    best_loss: float = float("inf")
    worse: int = 0  # validations since the best one
    saved: tuple[int, ...] = ()  # steps whose weights are outs (train.save_interval)


def judged(values: Mapping[str, float]) -> float:
    """The loss that counts of a validation's `values` of the curves: that of the averages where there are some, for their
    weights are what people draw with then."""
    return values.get("validation/ema_loss", values["validation/loss"])


def validated(course: Course, values: Mapping[str, float]) -> Course:
    """After a validation that gave these `values` of the curves."""
    loss = judged(values)
    course = replace(course, validated=course.step)
    if course.step == 0:
        return course
    if loss < course.best_loss:  # not so for NaN
        return replace(course, best=course.step, best_loss=loss, worse=0)
    return replace(course, worse=course.worse + 1)


def saved(course: Course, limit: int | None) -> Course:
    """After a step whose weights become outs, the newest `limit` of them."""
    return replace(course, saved=(*course.saved, course.step)[-(limit or 0) :])


def kept(course: Course, keep_best: bool) -> list[int]:
    """The steps whose weights must be there at the end."""
    return sorted({*course.saved, *([course.best] if keep_best and course.best else [])})


def stops(course: Course, patience: int) -> bool:
    """Whether the run ends here: `patience` validations in a row brought nothing better; 0: never."""
    return 0 < patience <= course.worse
