"""Names and shapes of the full size against the reference list; nothing is allocated."""

from math import prod

from pipeline.models.config import SDXL_BASE, TINY
from pipeline.weights import layout
from pipeline.weights.names import PREFIX, part_of
from tests.reference import sdxl_base_tensors


def test_full_size_is_the_reference_list_in_its_order():
    assert list(layout.shapes(SDXL_BASE).items()) == [(name, shape) for name, _, shape in sdxl_base_tensors()]


def test_full_size_parameter_counts():
    counts = dict.fromkeys(PREFIX, 0)
    for name, shape in layout.shapes(SDXL_BASE).items():
        counts[part_of(name)] += prod(shape)
    # Published sizes: SDXL (arXiv 2307.01952) table 1 and the checkpoint itself.
    assert counts == {"unet": 2_567_463_684, "clip_l": 123_060_480, "clip_g": 694_659_841, "vae": 83_653_863}
    assert sum(counts.values()) == 3_468_837_868


def test_tiny_upsampler_index_and_absent_attention():
    names = layout.shapes(TINY)
    unet = PREFIX["unet"]
    assert names[unet + "output_blocks.2.2.conv.weight"] == (128, 128, 3, 3)
    assert not any(name.startswith(unet + "input_blocks.1.1.") for name in names)  # level 0 has depth 0
    assert names[unet + "output_blocks.8.0.skip_connection.weight"] == (32, 64, 1, 1)
    assert names[PREFIX["vae"] + "decoder.up.2.block.0.nin_shortcut.weight"] == (64, 128, 1, 1)
