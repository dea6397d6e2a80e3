"""What ranks say when they do not agree. That real ones do so under msrun is in tests/training/test_distributed.py."""

import json
import socket

from pipeline.device import Device

import pytest

from pipeline.stage import StageError
from pipeline.training import agreement
from pipeline.training.key import differences


class Ranks(Device):
    """A rank among others, which found `others`."""

    def gather(self, text: str) -> list[str]:
        return [text, *(json.dumps(other) for other in self.others)]


def ranks(*others) -> Device:
    device = Ranks("CPU", world_size=1 + len(others))
    object.__setattr__(device, "others", others)
    return device


FOUND = {"train": {"seed": 0, "learning_rate": 0.001}, "code": "a", "inputs": {"latents": "1", "text": "2"}}


def test_ranks_that_agree_go_on():
    agreement.check(ranks(["b", FOUND], ["c", json.loads(json.dumps(FOUND))]), FOUND, "advice")
    agreement.check(Device("CPU"), FOUND, "advice")


def test_ranks_that_differ_are_named_with_what_differs_once_a_kind():
    code, rate = FOUND | {"code": "b"}, FOUND | {"train": {"seed": 0, "learning_rate": 0.0005}}
    caches = FOUND | {"inputs": {"latents": "3", "text": "2"}}
    with pytest.raises(StageError) as error:
        agreement.check(ranks(["n0", FOUND], ["n1", rate], ["n1", rate], ["n2", code], ["n2", caches]), FOUND, "Do so")
    assert str(error.value).splitlines()[1:] == [
        "  rank 2, 3 on n1: train.learning_rate 0.001 -> 0.0005",
        "  rank 4 on n2: code a -> b",
        "  rank 5 on n2: inputs.latents 1 -> 3",
        "Do so",
    ]
    assert f"rank 0 on {socket.gethostname()} " in str(error.value)


def test_keys_that_one_lacks_are_differences():
    with pytest.raises(StageError, match="train.seed 0 -> left out"):
        agreement.check(ranks(["n1", FOUND | {"train": {"learning_rate": 0.001}}]), FOUND, "")


def test_what_a_description_leaves_out_is_not_null():
    """A run whose steps do not depend on its length has no length in its description."""
    old, new = {"train": {"steps": 600, "snr_gamma": None, "ema": True}}, {"train": {"snr_gamma": 5.0, "ema": False}}
    wanted = ["train.ema true -> false", "train.snr_gamma null -> 5.0", "train.steps 600 -> left out"]
    assert differences(old, new) == wanted


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_each_rank_has_the_texts_of_all(rank, monkeypatch):
    """The sum over ranks is a stub, in float32 as the device's is."""
    import numpy as np

    texts = ["é" * 300, "", "".join(map(chr, range(1, 256)))]
    lengths = [len(text.encode()) for text in texts]

    def all_reduce(self, values):
        others = np.zeros(values.shape, np.float32)
        for other, text in enumerate(texts):
            if other != self.rank and values.ndim == 1:
                others[other] = lengths[other]
            elif other != self.rank:
                others[other, : lengths[other]] = list(text.encode())
        return (values.astype(np.float32) + others).astype(values.dtype)

    monkeypatch.setattr(Device, "all_reduce", all_reduce)
    assert Device("CPU", rank, 3).gather(texts[rank]) == texts
