"""Which form of the layers a network is made of: the one place that chooses."""

from types import ModuleType

import pipeline.device  # noqa: F401  (sets the environment of MindSpore before its import)

import mindspore as ms

import pipeline.models.cpu.layers
import pipeline.models.layers


def on_cpu() -> bool:
    return ms.get_context("device_target") == "CPU"


def convolves_by_products() -> bool:
    """Whether networks that are made now have convolutions by products (models/cpu/convolution.py)."""
    return on_cpu() and pipeline.models.cpu.layers.convolves_by_products()


def chosen() -> ModuleType:
    """The layers for the device that is set up; asked once for each network, when it is made."""
    return pipeline.models.cpu.layers if on_cpu() else pipeline.models.layers
