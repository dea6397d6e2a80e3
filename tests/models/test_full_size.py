"""The full-size cells have the layout's names and shapes (tests/weights/test_layout.py holds the layout against the file), and
are made without their 10 GB of values."""

import re
from pathlib import Path

import pipeline.device  # noqa: F401  (before MindSpore)

import pytest
from mindspore.nn.utils import no_init_parameters

from pipeline.models.clip import ClipG, ClipL
from pipeline.models.config import CONFIGS, SDXL_BASE
from pipeline.models.unet import UNet
from pipeline.models.vae import VAEDecoder, VAEEncoder
from pipeline.weights import layout, names

pytestmark = pytest.mark.usefixtures("device")


def shapes(cells: dict) -> dict[str, tuple[int, ...]]:
    """Stability's names of all parameters, from the path in the cell and from the parameter's own name, which agree."""
    found = {}
    for part, cell in cells.items():
        for path, parameter in cell.parameters_and_names():
            assert parameter.name == path
            found[names.to_stability(names.PREFIX[part.split("+")[0]] + path)] = tuple(parameter.shape)
    return found


def build(config):
    with no_init_parameters():
        return {
            "unet": UNet(config.unet),
            "clip_l": ClipL(config.clip_l),
            "clip_g": ClipG(config.clip_g),
            "vae": VAEEncoder(config.vae),
            "vae+decoder": VAEDecoder(config.vae),
        }


@pytest.mark.parametrize("name", CONFIGS)
def test_cells_have_exactly_the_layout(name):
    assert shapes(build(CONFIGS[name])) == layout.shapes(CONFIGS[name])


def test_full_size_is_described_without_allocating():
    def resident():
        return 1024 * int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1])

    before = resident()
    cells = build(SDXL_BASE)
    parameters = sum(p.size for cell in cells.values() for p in cell.get_parameters())
    assert parameters == 3_468_837_868
    assert resident() - before < 200e6
