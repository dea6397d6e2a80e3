"""Who draws the pictures: this process, several, or a cluster's nodes."""

import os
import signal
import sys
from functools import partial

import numpy as np
import pytest

from pipeline.sampling import paint
from pipeline.sampling.picture import batches, pictures
from pipeline.stage import StageError
from tests.training.training_samples import params

MODELS = ["base", "tuned"]


def painter(pids, params, files):
    """Pictures that say of which weights, prompt and batch they are."""

    def draw(unit, stepped):
        weights = files[str(unit.model.unet)].read_text()
        (pids / f"{weights} {unit.chosen[0]} {os.getpid()}").touch()
        if params.sample.prompts[unit.chosen[0]] == "broken":
            raise StageError("the latents are not finite")
        if params.sample.prompts[unit.chosen[0]] == "dies" and not (pids.parent / "died").exists():
            (pids.parent / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        stepped()
        pixels = [MODELS.index(weights), unit.chosen[0]]
        return {
            (unit.model.name, index): np.array([[[*pixels, index]]], np.uint8) for index in unit.chosen[: unit.count]
        }

    return draw


def painted(tmp_path, prompts, **device):
    """The pictures, how many steps were said, and the processes that drew."""
    (tmp_path / "pids").mkdir(exist_ok=True)
    settings = params(**{f"device.{key}": value for key, value in device.items()} | {"sample.prompts": prompts})
    models = []
    for name in MODELS:
        (tmp_path / name).write_text(name)
        models.append(
            paint.Model(name, tmp_path / name, None, (tmp_path / name, tmp_path / name, None), tmp_path / name)
        )
    units = [paint.Unit(model, *batch) for model in models for batch in batches(pictures(settings.sample), 2)]
    steps = []

    found = paint.paint(settings, units, steps.append, partial(painter, tmp_path / "pids"))
    drew = [path.name.split(" ") for path in (tmp_path / "pids").iterdir()]
    return {key: value.tolist() for key, value in found.items()}, sum(steps), {pid for _, _, pid in drew}


@pytest.fixture(autouse=True)
def _store(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))


WANTED = {(model, index): [[[of, index // 2 * 2, index]]] for of, model in enumerate(MODELS) for index in range(5)}
PROMPTS = ["a", "b", "c", "d", "e"]


def test_this_process_draws_alone(tmp_path):
    found, _, pids = painted(tmp_path, PROMPTS)
    assert found == WANTED and pids == {str(os.getpid())}


def test_several_processes_draw(tmp_path):
    found, steps, pids = painted(tmp_path, PROMPTS, workers=2)
    assert found == WANTED and str(os.getpid()) not in pids
    assert steps == 6 * params().sample.steps
    assert not list((tmp_path / "store/drawn").iterdir())


def test_nodes_of_a_cluster_draw(tmp_path, nodes):
    """Which have none of the tests' code, so it is sent. One worker dies meanwhile."""
    ray = pytest.importorskip("ray")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    found, _, pids = painted(tmp_path, ["a", "b", "dies", "d", "e"], cluster=nodes.address)
    assert found == WANTED and str(os.getpid()) not in pids and len(pids) > 1 and (tmp_path / "died").exists()


def test_a_process_that_dies_loses_no_picture(tmp_path):
    found, _, pids = painted(tmp_path, ["a", "b", "dies", "d", "e"], workers=2)
    assert found == WANTED and len(pids) > 1 and (tmp_path / "died").exists()


def test_what_a_worker_finds_wrong_is_said(tmp_path):
    with pytest.raises(StageError, match="the latents are not finite"):
        painted(tmp_path, ["a", "b", "broken"], workers=2)
