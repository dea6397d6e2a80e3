"""What the tests of the networks share: cells with the rule's weights, the golden outputs, and peak memory."""

import re
from pathlib import Path

import pipeline.device  # noqa: F401  (before MindSpore)

import mindspore as ms
import numpy as np
from mindspore.nn.utils import no_init_parameters

from tests.golden import rule


def build(make, prefix: str):
    """The cell that `make()` gives, with the rule's weights for Stability's names under `prefix`."""
    with no_init_parameters():
        cell = make()
    for name, parameter in cell.parameters_and_names():
        parameter.set_data(ms.Tensor(rule.weight(prefix + rule.stability(name), parameter.shape)))
    return cell.set_train(False)


def golden(label: str) -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parent / f"models_{label}.npz") as file:
        return dict(file)


def unet_inputs(config, label: str) -> tuple[ms.Tensor, ...]:
    """Of the golden outputs of a UNet of this configuration."""
    return (
        ms.Tensor(rule.normal("x", (rule.BATCH, 4, *rule.LATENT))),
        ms.Tensor(rule.TIMESTEPS, ms.int32),
        ms.Tensor(rule.normal("context", (rule.BATCH, 77, config.context_dim))),
        ms.Tensor(golden(label)["vector"]),
    )


def assert_close(found: ms.Tensor, wanted: np.ndarray, tolerance: float = 1e-4) -> None:
    """The largest difference is within `tolerance` of the largest wanted value."""
    assert found.shape == wanted.shape
    error = np.abs(found.asnumpy() - wanted).max() / np.abs(wanted).max()
    assert error <= tolerance, f"relative error {error:.2e}"


def training() -> dict[str, np.ndarray]:
    """What make_training.py wrote."""
    with np.load(Path(__file__).parent / "training.npz") as file:
        return dict(file)


def assert_gradients(
    network, inputs: tuple, shape: tuple, prefix: str, label: str, part: str, tolerance: float = 1e-4
) -> ms.Tensor:
    """Every parameter's gradient of sum(output (shape) * the rule's numbers), by rule.probe, within `tolerance` of
    PyTorch's length of it. -> the output, of the same graph"""
    wanted = dict(zip(golden(label)[f"{part}_gradient_names"], golden(label)[f"{part}_gradients"]))
    parameters = list(network.trainable_params())

    def loss(dout, *inputs):
        output = network(*inputs)
        return (output * dout).sum(), output

    (_, output), found = ms.jit(ms.value_and_grad(loss, None, parameters, has_aux=True))(
        ms.Tensor(rule.normal("dout", shape)), *inputs
    )
    assert len(found) > 0
    largest = max(length for length, _ in wanted.values())
    for parameter, gradient in zip(parameters, found):
        name = prefix + rule.stability(parameter.name)
        length, product = wanted[name]
        difference = np.abs(rule.probe(name, gradient.asnumpy()) - (length, product)).max()
        # a bias before a softmax or a norm has no gradient but rounding, hence the floor
        assert difference <= tolerance * max(length, 1e-3 * largest), (name, difference, length)
    return output


def peak(function) -> int:
    """Bytes by which `function()` raises this process's peak memory above what it holds before."""
    status = Path("/proc/self/status")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = int(re.search(r"VmRSS:\s+(\d+)", status.read_text())[1])
    function()
    return 1024 * (int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) - before)
