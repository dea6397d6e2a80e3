"""Layers with adapters against LyCORIS' and PEFT's modules: outputs and gradients (tests/golden/make_adapters.py)."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from pipeline.models.adapters import attach
from pipeline.models.cpu import layers
from pipeline.weights.adapters import kinds
from tests.golden import adapters_rule as rule
from tests.golden.rule import probe
from tests.project import ROOT

pytestmark = pytest.mark.usefixtures("device")

GOLDEN = np.load(ROOT / "tests/golden/adapters.npz")


class Net(nn.Cell):
    """Each layer in a sequence of its own, for cells in sequences are called by another name."""

    def __init__(self):
        super().__init__()
        (outputs, inputs), (channels, width, kernel, _) = rule.LAYERS.values()
        self.linear = layers.Linear(inputs, outputs)
        self.conv = nn.SequentialCell(layers.Conv(width, channels, kernel))
        for name, layer in (("linear", self.linear), ("conv", self.conv[0])):
            layer.weight.set_data(ms.Tensor(rule.weight(name)))
            layer.bias.set_data(ms.Tensor(rule.bias(name)))

    def construct(self, x, maps):
        return self.linear(x), self.conv(maps)


class Scalar(nn.Cell):
    """The outputs' products with their directions, and the outputs."""

    def __init__(self, net: nn.Cell):
        super().__init__(auto_prefix=False)
        self.net = net

    def construct(self, x, maps, along, along_maps):
        y, out = self.net(x, maps)
        return (y * along).sum() + (out * along_maps).sum(), y, out


TARGETS = {"linear": "linear.weight", "conv": "conv.0.weight"}


def adapted(kind: str, trained: bool = True) -> Net:
    net = Net()
    attach(net, layers, kind, list(TARGETS.values()), rule.RANK, rule.ALPHA, rule.FACTOR, seed=0)
    if trained:
        values = {f"{TARGETS[layer].removesuffix('.weight')}.{part}": value
                  for layer in rule.LAYERS for part, value in rule.parts(kind, layer).items()}  # fmt: skip
        for parameter in net.trainable_params():
            parameter.set_data(ms.Tensor(values.pop(parameter.name)))
        assert not values
    return net


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_outputs_and_gradients(kind):
    net = adapted(kind)
    parameters = net.trainable_params()
    function = ms.value_and_grad(Scalar(net), (0, 1), ms.ParameterTuple(parameters), has_aux=True)
    inputs = [rule.x(layer) for layer in rule.LAYERS]
    along = [rule.direction(layer, GOLDEN[f"{kind}.{layer}.y"].shape) for layer in rule.LAYERS]
    (_, *outputs), (of_inputs, of_parts) = function(*map(ms.Tensor, (*inputs, *along)))
    found = {f"{layer}.x": value for layer, value in zip(rule.LAYERS, of_inputs, strict=True)}
    layer_of = {target.removesuffix(".weight"): layer for layer, target in TARGETS.items()}
    for parameter, value in zip(parameters, of_parts, strict=True):
        module, part = kinds.apart(parameter.name)
        found[f"{layer_of[module]}.{part}"] = value
    for layer, y in zip(rule.LAYERS, outputs, strict=True):
        np.testing.assert_allclose(y.asnumpy(), GOLDEN[f"{kind}.{layer}.y"], rtol=1e-4, atol=2e-5)
    wanted = {key.removeprefix(f"{kind}.") for key in GOLDEN if key.startswith(f"{kind}.")}
    assert set(found) == {key for key in wanted if not key.endswith((".y", ".merged"))}
    for name, value in found.items():
        key = f"{kind}.{name}"
        np.testing.assert_allclose(probe(key, value.asnumpy()), GOLDEN[key], rtol=1e-4, atol=1e-3, err_msg=key)


def test_attach_keeps_the_network():
    """The weights keep their names, are frozen, and the new network computes what the old one did."""
    plain, net = Net(), adapted("lora", trained=False)
    inputs = [ms.Tensor(rule.x(layer)) for layer in rule.LAYERS]
    names = {parameter.name for parameter in plain.get_parameters()}
    frozen = {parameter.name for parameter in net.get_parameters() if not parameter.requires_grad}
    assert frozen == names
    assert len(net.trainable_params()) == 4
    for before, after in zip(plain(*inputs), net(*inputs), strict=True):
        np.testing.assert_array_equal(before.asnumpy(), after.asnumpy())


def test_others_stay_without():
    net = Net()
    attach(net, layers, "loha", ["conv.0.weight"], rule.RANK, rule.ALPHA, rule.FACTOR, seed=0)
    assert {kinds.apart(parameter.name)[0] for parameter in net.trainable_params()} == {"conv.0"}
    assert isinstance(net.linear, layers.Linear)
