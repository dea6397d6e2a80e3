"""pipeline/models/graphs.py: a graph is compiled once for a shape, said so, and counted by no bar."""

import logging
import re

import numpy as np
import pytest

from pipeline import progress, times
from pipeline.models.graphs import compiled

import mindspore as ms  # isort: skip
from mindspore import nn  # isort: skip

pytestmark = pytest.mark.usefixtures("device")


class Double(nn.Cell):
    def construct(self, x):
        return x + x


@pytest.fixture
def said(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path))
    caplog.set_level(logging.INFO)
    return caplog


def test_a_compilation_is_said_with_the_time_that_it_took_last(said, monkeypatch):
    double = compiled(Double(), "Double")
    ones = ms.Tensor(np.ones((2, 3), np.float32))
    with progress.Bar(10, "step", "test") as bar:
        began = bar.start_t
        assert (double(ones).asnumpy() == 2).all()
        assert said.messages[0] == "Double 2x3 compiles" and bar.start_t > began
        assert re.fullmatch(r"Double 2x3, done in \d+\.\d s", said.messages[1])
        began = bar.start_t
        assert (double(ones).asnumpy() == 2).all() and len(said.messages) == 2 and bar.start_t == began
    double(ms.Tensor(np.ones((4, 3), np.float32)))
    assert said.messages[2] == "Double 4x3 compiles" and said.messages[3].startswith("Double 4x3, done in ")
    compiled(Double(), "Double")(ones)  # known to be short
    assert len(said.messages) == 4
    monkeypatch.setattr(times, "compilation", lambda graph: 71.2)
    compiled(Double(), "Double")(ones)
    assert said.messages[4] == "Double 2x3 compiles (71 s last time)" and len(said.messages) == 6


def test_what_the_store_cannot_tell_is_not_known(said):
    times.note_compilation("a", 12.34)
    assert times.compilation("a") == 12.3 and times.compilation("b") is None
    times._path("compile", "a").write_text("x")
    assert times.compilation("a") is None
