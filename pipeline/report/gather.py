"""All that a page shows of one run, read from its files. What is not there yet or cannot be read is a reason, not an
error: a report of a pipeline that is half done is as welcome."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from dvc.exceptions import DvcException
from networkx import NetworkXException
from ruamel.yaml.error import YAMLError

from pipeline import params
from pipeline.report import curves, data, graph, latents, settings
from pipeline.report.curves import Curve
from pipeline.report.pictures import Picture, from_png
from pipeline.report.revision import Revision
from pipeline.stage import StageError, shown
from pipeline.weights import chosen

TEXT = "outs/text"
SAMPLE = "outs/sample"
PREVIEWS = "outs/train/live/pictures"
WEIGHTS = "outs/train/weights"
_PREVIEWS_SHOWN, _PROMPTS_SHOWN = 16, 64
# What damaged files, an absent cache and a device that is not there end in.
_UNREADABLE = (
    *(StageError, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, pa.ArrowException),
    DvcException,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Part(Generic[T]):
    """Something of a run, or why it is not on the page."""

    value: T | None
    reason: str = ""


@dataclass(frozen=True)
class Sample:
    prompt: str
    base: Picture
    tuned: Picture
    between: list[tuple[int, Picture]]  # training step, picture: of sample.saved_steps


@dataclass(frozen=True)
class Run:
    name: str
    commit: str | None
    params: dict[str, object]
    stages: list[graph.Stage]
    data: Part[data.Data]
    curves: Part[dict[str, Curve]]
    metrics: Part[dict]
    weights: Part[list[str]]  # such as raw, best, step 300
    previews: Part[list[tuple[int, Picture]]]
    samples: Part[list[Sample]]
    latents: Part[list[latents.Pair]]

    def stage(self, name: str) -> graph.Stage | None:
        return next((stage for stage in self.stages if stage.name == name), None)

    def made(self, name: str) -> str:
        """What names the outs of a stage: runs of which it is equal have the same."""
        stage = self.stage(name)
        return " ".join(out.hash for out in stage.outs) if stage and stage.state == "done" else self.name

    @property
    def anything(self) -> bool:
        """Whether a stage has left something to show."""
        parts = (self.data, self.curves, self.samples, self.latents)
        return any(stage.outs for stage in self.stages) or any(part.value is not None for part in parts)


def read(revisions: list[Revision], pairs: int) -> list[Run]:
    """`pairs` latents are decoded, once for runs that have the same. Raises ParamsError and StageError when there is no
    project."""
    runs: list[Run] = []
    for revision in revisions:
        run = _read(revision)
        same = [other.latents for other in runs if other.made("cache_latents") == run.made("cache_latents")]
        runs.append(replace(run, latents=same[0] if same else _latents(revision, run.params, pairs)))
    return runs


def _read(revision: Revision) -> Run:
    values = settings.read(revision)
    previews = "None are drawn yet"
    if values.get("train.sample_interval") == 0:
        previews = "train.sample_interval is 0, so none are drawn while training"
    return Run(
        name=revision.name,
        commit=revision.commit,
        params=values,
        stages=_stages(revision, values),
        data=_part(lambda: _data(revision), "The pictures are not indexed yet: dvc repro index"),
        curves=_part(lambda: curves.read(revision), "No training has run yet: dvc repro train"),
        metrics=_part(lambda: _metrics(revision), "No training has run yet: dvc repro train"),
        weights=_part(lambda: _weights(revision), "No training is done yet: dvc repro train"),
        previews=_part(lambda: _previews(revision), previews),
        samples=_part(lambda: _samples(revision, values), "No pictures are drawn yet: dvc repro"),
        latents=Part(None),
    )


def _stages(revision: Revision, values: dict[str, object]) -> list[graph.Stage]:
    try:
        return graph.read(revision, values)
    except (*_UNREADABLE, YAMLError, NetworkXException) as error:
        reason = shown(str(error) or type(error).__name__)
        raise StageError(f"dvc.yaml and dvc.lock of {revision.name} cannot be read: {reason}") from None


def _part(make: Callable[[], T | None], absent: str) -> Part[T]:
    try:
        value = make()
    except _UNREADABLE as error:
        return Part(None, f"Cannot be shown: {shown(str(error) or type(error).__name__)}")
    return Part(value) if value is not None else Part(None, absent)


def _latents(revision: Revision, values: dict[str, object], count: int) -> Part[list[latents.Pair]]:
    if not count:
        return Part(None, "Left out with --latents 0")

    def make() -> list[latents.Pair] | None:
        with revision.file(settings.FILE) as path:
            return latents.read(revision, params.load(path), count)

    absent = "No latents are cached yet: dvc repro cache_latents"
    if values.get("train.source") == "pictures":
        absent = "train.source is pictures, so none are cached"
    return _part(make, absent)


def _data(revision: Revision) -> data.Data | None:
    if not revision.exists(f"{data.INDEX}/images.parquet"):
        return None
    return data.read(lambda name: revision.open(f"{data.INDEX}/{name}"), partial(_lengths, revision))


def _lengths(revision: Revision, texts: pa.StringArray) -> tuple[np.ndarray, str]:
    """In tokens where the captions are encoded, else in letters."""
    shards = [name for name in revision.names(TEXT) if name.endswith(".parquet")]
    if not shards:
        return data.letters(texts)
    counts = []
    for name in shards:
        with revision.open(f"{TEXT}/{name}") as file:
            counts.append(pq.read_table(file, columns=["caption_tokens"])["caption_tokens"].to_numpy())
    return np.concatenate(counts), "tokens"


def _metrics(revision: Revision) -> dict | None:
    data = revision.read(curves.METRICS)
    return None if data is None else json.loads(data)


def _weights(revision: Revision) -> list[str] | None:
    """What merge.weights may choose."""
    files = revision.names(WEIGHTS)
    found = chosen.there(files, adapter=False) + chosen.there(files, adapter=True)
    return [one if isinstance(one, str) else f"step {one}" for one in found] or None


def _previews(revision: Revision) -> list[tuple[int, Picture]] | None:
    found = [(int(m[1]), name) for name in revision.names(PREVIEWS) if (m := re.fullmatch(r"step-(\d+)\.png", name))]
    stretch = max(1, (len(found) - 1) / (_PREVIEWS_SHOWN - 1))
    chosen = [found[round(n * stretch)] for n in range(min(len(found), _PREVIEWS_SHOWN))]
    return [(step, from_png(revision.read(f"{PREVIEWS}/{name}"))) for step, name in chosen] or None


def _samples(revision: Revision, values: dict[str, object]) -> list[Sample] | None:
    names = set(revision.names(SAMPLE))
    numbers = sorted(int(m[1]) for name in names if (m := re.fullmatch(r"(\d+)_base\.png", name)))
    prompts = values.get("sample.prompts")
    is_theirs = isinstance(prompts, list) and len(prompts) == len(numbers)
    found = []
    for number in numbers[:_PROMPTS_SHOWN]:
        pair = [from_png(revision.read(f"{SAMPLE}/{number:02d}_{which}.png") or b"") for which in ("base", "tuned")]
        steps = sorted(int(m[1]) for name in names if (m := re.fullmatch(rf"{number:02d}_step-(\d{{8}})\.png", name)))
        between = [
            (step, from_png(revision.read(f"{SAMPLE}/{number:02d}_step-{step:08d}.png") or b"")) for step in steps
        ]
        found.append(Sample(_said(prompts[number]) if is_theirs else f"Prompt {number + 1}", *pair, between))
    return found or None


def _said(prompt: object) -> str:
    """A prompt of params.yaml in a line: its text, and what it has of its own."""
    if not isinstance(prompt, dict):
        return str(prompt)
    own = [f"{key.replace('_', ' ')}: {value}" for key, value in prompt.items() if key != "prompt"]
    return f"{prompt.get('prompt', '')} ({', '.join(own)})" if own else str(prompt.get("prompt", ""))
