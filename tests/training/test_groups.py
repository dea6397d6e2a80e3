"""Groups of parameters: which names a pattern means, and what training does with them."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline import params as schema
from pipeline.models.config import CONFIGS
from pipeline.planning import device as planned
from pipeline.planning import disk
from pipeline.planning.run import from_params, trained_shapes, unet_shapes
from pipeline.training import groups, memory
from pipeline.weights import layout
from pipeline.weights.names import PREFIX
from tests.training.training_samples import params

ATTENTION = ("!*.attn?.*", 0.0)


def named(config: str) -> list[str]:
    found = layout.shapes(CONFIGS[config])
    return [name.removeprefix(PREFIX["unet"]) for name in found if name.startswith(PREFIX["unet"])]


@pytest.mark.parametrize("config, blocks", [("sdxl-base", 70), ("tiny", 11)])
def test_attention_only_is_one_line(config, blocks):
    trained = [name for name in named(config) if groups.factor((ATTENTION,), name)]
    assert len(trained) == blocks * 2 * 5  # self and cross attention: q, k, v, and out with a bias
    assert all(".attn1.to_" in name or ".attn2.to_" in name for name in trained)
    assert list(groups.faults((ATTENTION,), named(config), named(config))) == []


def test_the_first_group_that_matches_counts():
    found = (("*.to_q.*", 3.0), ("input_blocks.*", 0.5), ("!out.*", 0.0))
    assert groups.factor(found, "input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight") == 3
    assert groups.factor(found, "input_blocks.4.0.in_layers.0.weight") == 0.5
    assert groups.factor(found, "time_embed.0.weight") == 0
    assert groups.factor(found, "out.2.bias") == groups.factor((), "time_embed.0.weight") == 1


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (
            [{"pattern": "*.attn3.*", "freeze": True}],
            r"groups\.0\.pattern: no parameter .*'\*\.attn3\.\*'; near .*\*attn2\*",
        ),
        ([{"pattern": "input_block.*", "freeze": True}], r"groups\.0\.pattern: .*near it are \*input_blocks\*"),
        ([{"pattern": "!*", "freeze": True}], r"groups\.0\.pattern: no parameter"),
        (
            [{"pattern": "out.*", "freeze": True}, {"pattern": "out.?.bias", "learning_rate": 2.0}],
            r"groups\.1\.pattern: 'out\.\?\.bias' changes nothing: the groups before it",
        ),
        ([{"pattern": "*", "freeze": True}], r"groups: every parameter of the UNet is frozen"),
        ([{"pattern": "out.*"}], r"groups\.0: give one of learning_rate and freeze: true, found neither"),
        (
            [{"pattern": "out.*", "learning_rate": 1.0, "freeze": True}],
            r"groups\.0: give one of learning_rate and freeze: true, found both",
        ),
        ([{"pattern": "out.*", "learning_rate": 0.0}], r"groups\.0\.learning_rate: .*with freeze: true"),
        ([{"pattern": "OUTPUT_BLOCKS.*", "freeze": True}], r"groups\.0\.pattern: .*near it are \*output_blocks\*"),
        ([{"pattern": "!attn2", "learning_rate": 2.0}], r"groups\.0\.pattern: no parameter .*'attn2'; near .*\*attn2\*"),
        ([{"pattern": "!", "freeze": True}], r"groups\.0\.pattern: no parameter"),
        ([{"pattern": "", "freeze": True}], r"groups\.0\.pattern: "),
        ([{"patern": "out.*", "freeze": True}], r"groups\.0\.patern: there is no such key"),
        ([{"pattern": "out.*", "learning_rate": 1e5}], r"weight_decay: must be below 1 / the learning rate \(100\)"),
    ],
)
def test_what_no_group_can_be_is_refused_by_its_key(wanted, said):
    tree = params().model_dump() | {}
    tree["train"] = tree["train"] | {"groups": wanted}
    with pytest.raises(schema.ParamsError, match=f"train\\.{said}"):
        schema.check(tree, "params.yaml")


def test_frozen_parameters_are_in_no_plan_but_as_weights():
    run = from_params(params(), 100)
    frozen = replace(run, groups=(ATTENTION,), ema=True)
    shapes = trained_shapes(frozen)
    assert {name.rpartition(".")[2] for name in shapes} == {"weight", "bias"} and len(shapes) == 110
    whole, less = planned.stays(replace(run, ema=True)), planned.stays(frozen)
    assert less["weights"] == whole["weights"] == memory.parameters(unet_shapes("tiny"), "float32")
    count = sum(int(np.prod(shape)) for shape in shapes.values())
    assert less["EMA"] == 4 * count and less["optimizer's state"] == 4 * (1 + 2 * count)
    assert planned.update(frozen)["gradients"] == 4 * count
    assert disk.state_bytes(frozen) == 4 * count + less["optimizer's state"] + less["EMA"]
