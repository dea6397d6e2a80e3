"""Which weights have an adapter, and what of their keys is refused."""

import pytest

from pipeline import params as schema
from pipeline.models.config import SDXL_BASE
from pipeline.training.targets import targets
from pipeline.weights import layout
from pipeline.weights.names import PREFIX
from tests.training.training_samples import params

UNET = {n.removeprefix(PREFIX["unet"]): s for n, s in layout.shapes(SDXL_BASE).items() if n.startswith(PREFIX["unet"])}


@pytest.mark.parametrize(
    ("patterns", "count"),
    [
        (["*"], 794),  # all linear layers and convolutions
        (["*.attn?.*"], 8 * 70),  # 70 transformer blocks
        (["!*.attn?.*"], 794 - 560),
        (["*.attn1.to_q.*", "*.attn1.*"], 4 * 70),
    ],
)
def test_patterns(patterns, count):
    found = targets(UNET, patterns, ())
    assert len(found) == count and all(len(UNET[name]) > 1 for name in found)


def test_frozen_ones_have_none():
    found = targets(UNET, ["*.attn?.*"], (("input_blocks.*", 0.0), ("*.attn2.*", 0.5)))
    assert found and not any(name.startswith("input_blocks") for name in found)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"adapter_targets": ["*.attn3.*"]},
            r"adapter_targets\.0: no linear layer or convolution .*'\*\.attn3\.\*'; near it are \*attn[12]\*",
        ),
        ({"adapter_targets": ["*.norm1.*"]}, r"adapter_targets\.0: no linear layer"),
        ({"adapter_targets": []}, r"adapter_targets: "),
        ({"groups": [{"pattern": "*", "freeze": True}]}, "groups: every parameter of the UNet is frozen"),
        (
            {"adapter_targets": ["*.attn1.*"], "groups": [{"pattern": "*.attn2.*", "learning_rate": 2.0}]},
            r"groups\.0\.pattern: no weight of such a name has an adapter .train\.adapter_targets",
        ),
        ({"rank": 0}, "rank: "),
        ({"alpha": 0.0}, "alpha: "),
        ({"lokr_factor": 0}, "lokr_factor"),
        ({"adapter": "locon"}, "adapter: "),
    ],
)
def test_what_can_be_no_adapter_is_refused_by_its_key(changes, said):
    tree = params(**{"train.adapter": "lora"}).model_dump()
    tree["train"] |= changes
    with pytest.raises(schema.ParamsError, match=f"train\\.{said}"):
        schema.check(tree, "params.yaml")
