import pipeline.device  # noqa: F401  (before MindSpore)

import mindspore as ms
import numpy as np
import pytest

from pipeline.models.clip import ClipG, ClipL
from tests.golden import rule
from tests.golden.compare import assert_close, build, golden

pytestmark = pytest.mark.usefixtures("device")


@pytest.fixture(scope="module")
def clip_g(device):
    prefix = "conditioner.embedders.1."
    return {label: build(lambda: ClipG(config.clip_g), prefix) for label, config in rule.CONFIGS.items()}


@pytest.mark.parametrize("label", ["tiny", "small"])
def test_clip_l_equals_transformers(label):
    config = rule.CONFIGS[label].clip_l
    clip_l = build(lambda: ClipL(config), "conditioner.embedders.0.")
    assert_close(clip_l(ms.Tensor(rule.ids(config.vocab_size, "end"))), golden(label)["clip_l"])


@pytest.mark.parametrize("label", ["tiny", "small"])
def test_clip_g_equals_transformers(label, clip_g):
    hidden, pooled = clip_g[label](ms.Tensor(rule.ids(rule.CONFIGS[label].clip_g.vocab_size, "zero")))
    assert_close(hidden, golden(label)["clip_g"])
    assert_close(pooled, golden(label)["pooled"])


def test_pooled_is_at_the_first_end_of_text_token(clip_g):
    """Whatever follows the end of the text changes nothing: the mask is causal."""
    ids = rule.ids(rule.CONFIGS["tiny"].clip_g.vocab_size, "zero")
    padded = rule.ids(rule.CONFIGS["tiny"].clip_g.vocab_size, "end")
    assert (ids != padded).any()
    pooled, other = (clip_g["tiny"](ms.Tensor(rows))[1].asnumpy() for rows in (ids, padded))
    np.testing.assert_allclose(other, pooled, atol=1e-6)
