"""The few numbers of a run that say most."""

from dataclasses import dataclass

import numpy as np

from pipeline.report.gather import Run


@dataclass(frozen=True)
class Summary:
    """None where it is not known."""

    pictures: int | None
    steps: int | None  # done
    wanted: object  # train.steps
    base_loss: float | None  # of validation, before the first step
    loss: float | None  # of validation, after the last
    validations: int  # done
    best_loss: float | None
    best_step: int | None  # of the validation that had it
    best_of_averages: bool
    stopped: bool  # early, by train.patience
    weights: list[str]
    train_loss: float | None  # mean of the last twentieth
    images_per_second: float | None  # median
    wait_share: float | None  # of a step's time
    train_seconds: float | None  # of the stage, else in its steps
    peak_bytes: int | None  # of the largest process that trained
    overflows: int

    @property
    def change(self) -> float | None:
        """Of the validation loss, as a share of the base model's; None before a step was validated."""
        return self.loss / self.base_loss - 1 if self.validations > 1 and self.base_loss else None


def of(run: Run) -> Summary:
    curves = run.curves.value or {}

    def last(name: str) -> float | None:
        return curves[name].last if name in curves else None

    def median(name: str) -> float | None:
        return float(np.median(curves[name].values)) if name in curves else None

    validation, train = curves.get("validation/loss"), curves.get("train/loss")
    averages = curves.get("validation/ema_loss")  # by which the best weights are chosen where there are some
    best = (averages or validation).best if validation else None
    seconds, waited = curves.get("train/step_seconds"), curves.get("train/data_wait_seconds")
    stage = run.stage("train")
    noted = stage.time if stage else None
    in_steps = float((np.diff(seconds.steps, prepend=0) * seconds.values).sum()) if seconds else None
    return Summary(
        pictures=run.data.value.used if run.data.value else None,
        steps=int(train.steps[-1]) if train else None,
        wanted=run.params.get("train.steps"),
        base_loss=float(validation.values[0]) if validation and validation.steps[0] == 0 else None,
        loss=validation.last if validation else None,
        validations=len(validation.values) if validation else 0,
        best_loss=best[1] if best else None,
        best_step=best[0] if best else None,
        best_of_averages=averages is not None,
        stopped=bool((run.metrics.value or {}).get("train", {}).get("stopped_early")),
        weights=run.weights.value or [],
        train_loss=float(train.values[-max(1, len(train.values) // 20) :].mean()) if train else None,
        images_per_second=median("train/images_per_second"),
        wait_share=float(waited.values.sum() / max(seconds.values.sum(), 1e-9)) if seconds and waited else None,
        train_seconds=noted.seconds if noted else in_steps,
        peak_bytes=noted.peak_bytes if noted else None,
        overflows=int(last("train/overflows") or 0),
    )
