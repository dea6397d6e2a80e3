"""A run's curves: DVCLive's files, a line of JSON for each point, a few telling numbers in metrics.json, and a progress
bar.

`live/log.jsonl` can be read while the run goes on. The curves are a function of the points alone, so a resumed run puts
its folder back from the state and goes on in it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from dvclive import Live

from pipeline import progress
from pipeline.training import course, tensorboard
from pipeline.training.data import PICTURES

# In metrics.json, a column each of `dvc exp show`; the rest has its curves.
_MEANS = ("train/loss", "train/images_per_second")  # over the last twentieth of the points
_LATEST = ("validation/loss", "validation/ema_loss")


class Log:
    def __init__(
        self,
        folder: Path,
        steps: int,
        done: int = 0,
        pending: dict | None = None,
        memory: Callable[[], int] = lambda: 0,
        board: bool = False,
    ):
        """Log to `folder`, from the beginning. A resumed run gives its count of steps that are `done`, for which the
        folder holds the curves up to there, and what `pending` held then. `memory` gives the bytes that the bar shows
        to be in use. board: TensorBoard's event files too, beside the folder."""
        if not done:
            shutil.rmtree(folder, ignore_errors=True)
        (folder / PICTURES).mkdir(parents=True, exist_ok=True)
        self._live = Live(dir=str(folder), save_dvc_exp=False, dvcyaml=None, resume=done > 0)
        self._lines = open(folder / "log.jsonl", "a+", encoding="utf-8")
        self._lines.seek(0)
        rows = [json.loads(line) for line in self._lines] if done else []
        self._history = {name: [row[name] for row in rows if name in row] for name in _MEANS}
        self._summary = self._live.summary  # of a resumed run as it stood
        self._memory, self._shown = memory, {}
        self._bar = progress.Bar(steps, "step", "train", done, uneven=True)  # validations are a part of it
        tensorboard.remove(folder)
        self._board = tensorboard.writer(folder) if board else None
        # since the last point: name -> [sum, count], and of those that are logged as they are the last value
        self.pending: dict[str, dict] = pending or {"means": {}, "latest": {}}

    def step(self, done: int, steps: int, means: dict[str, float], latest: dict[str, float], point: bool) -> None:
        """The values of the last `steps` steps, after which `done` are done. At a `point` of the curves the `means`
        since the last one are logged, and the `latest` values as they are."""
        sums = self.pending["means"]
        for name, value in means.items():
            total, count = sums.get(name, (0.0, 0))
            sums[name] = [total + value, count + 1]
        self.pending["latest"] = latest
        self._bar.update(steps)
        if point:
            self.flush(done)

    def flush(self, done: int) -> None:
        """The point of the steps since the last one, if there are any."""
        sums, latest = self.pending["means"], self.pending["latest"]
        if sums:
            self.point(done, {name: total / count for name, (total, count) in sums.items()} | latest)
        self.pending = {"means": {}, "latest": {}}

    def point(self, step: int, values: dict[str, float]) -> None:
        """One point of each of the named curves."""
        self._live.step = step
        for name, value in values.items():
            self._live.log_metric(name, value)
        self._summarize(values)
        row = {"step": step, **values}
        self._lines.write(json.dumps(row) + "\n")
        self._lines.flush()
        if self._board is not None:
            tensorboard.add(self._board, row)
        told = {"loss": "train/loss", "validation": "validation/loss", "images/s": "train/images_per_second"}
        self._shown |= {short: f"{values[name]:.4g}" for short, name in told.items() if name in values}
        self._bar.set_postfix(self._shown | {"memory": f"{self._memory() / 1e9:.3g} GB"}, refresh=False)

    def _summarize(self, values: dict[str, float]) -> None:
        """What metrics.json says, which DVCLive would fill with the latest value of each curve."""
        found = {name: values[name] for name in _LATEST if name in values}
        for name, history in self._history.items():
            history += [values[name]] if name in values else []
            last = history[-max(1, len(history) // 20) :]
            found |= {name: sum(last) / len(last)} if last else {}
        validation = self._summary.get("validation", {})
        if (loss := values.get("validation/loss")) is not None:
            if self._live.step:  # as the best weights are of those after a step
                best = course.judged(values)
                found["validation/best_loss"] = min(best, validation.get("best_loss", best))
            found["validation/base_loss"] = validation.get("base_loss", loss)  # of the first, before any step
        for name, value in found.items():
            self._put(name, value)
        self._live.summary = self._summary
        self._live.make_summary()

    def _put(self, name: str, value: float) -> None:
        section, _, key = name.partition("/")
        self._summary = self._summary | {section: self._summary.get(section, {}) | {key: value}}

    def fact(self, name: str, value: float) -> None:
        """A number of the whole run, for metrics.json alone; before `close`."""
        self._put(name, value)
        self._live.summary = self._summary
        self._live.make_summary()

    def picture(self, path: Path) -> None:
        """One that was drawn into PICTURES just now."""
        if self._board is not None:
            tensorboard.add_picture(self._board, path)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
        self._live.end()
        self._lines.close()
        self._bar.close()
