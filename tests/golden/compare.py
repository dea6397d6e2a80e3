"""What the tests of the networks share: cells with the rule's weights, and the golden outputs."""

from pathlib import Path

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


def assert_close(found: ms.Tensor, wanted: np.ndarray, tolerance: float = 1e-4) -> None:
    """The largest difference is within `tolerance` of the largest wanted value."""
    assert found.shape == wanted.shape
    error = np.abs(found.asnumpy() - wanted).max() / np.abs(wanted).max()
    assert error <= tolerance, f"relative error {error:.2e}"
