"""A run's curves: DVCLive's files, a line of JSON for each point, and a progress bar.

`live/log.jsonl` can be read while the run goes on. The curves are a function of the points alone, so a resumed run puts
its folder back from the state and goes on in it."""

import json
import shutil
from pathlib import Path

from dvclive import Live
from tqdm import tqdm


PICTURES = "pictures"  # subfolder for what is drawn on the way; it is there also when nothing is


class Log:
    def __init__(self, folder: Path, steps: int, done: int = 0, pending: dict | None = None):
        """Log to `folder`, from the beginning. A resumed run gives its count of steps that are `done`, for which the
        folder holds the curves up to there, and what `pending` held then."""
        if not done:
            shutil.rmtree(folder, ignore_errors=True)
        (folder / PICTURES).mkdir(parents=True, exist_ok=True)
        self._live = Live(dir=str(folder), save_dvc_exp=False, dvcyaml=None, resume=done > 0)
        self._lines = open(folder / "log.jsonl", "a", encoding="utf-8")
        self._bar = tqdm(total=steps, initial=done, unit="step", mininterval=1, smoothing=0.1)
        self.pending: dict[str, list] = pending or {}  # name -> [sum, count] since the last point

    def step(self, done: int, steps: int, means: dict[str, float], latest: dict[str, float], point: bool) -> None:
        """The values of the last `steps` steps, after which `done` are done. At a `point` of the curves the `means`
        since the last one are logged, and the `latest` values as they are."""
        for name, value in means.items():
            total, count = self.pending.get(name, (0.0, 0))
            self.pending[name] = [total + value, count + 1]
        self._bar.update(steps)
        if point:
            self.point(done, {name: total / count for name, (total, count) in self.pending.items()} | latest)
            self.pending = {}

    def point(self, step: int, values: dict[str, float]) -> None:
        """One point of each of the named curves."""
        self._live.step = step
        for name, value in values.items():
            self._live.log_metric(name, value)
        self._live.make_summary()
        self._lines.write(json.dumps({"step": step, **values}) + "\n")
        self._lines.flush()
        shown = {name: f"{values[name]:.4g}" for name in ("train/loss", "validation/loss") if name in values}
        self._bar.set_postfix(shown, refresh=False)

    def fact(self, name: str, value: float) -> None:
        """A number for metrics.json that has no curve."""
        self._live.log_metric(name, value, plot=False)

    def close(self) -> None:
        self._live.end()
        self._lines.close()
        self._bar.close()
