"""The plan of a training of adapters."""

from dataclasses import replace
from math import prod

import pytest

from pipeline.planning import device, disk, host
from pipeline.planning.run import Run, trained_shapes, unet_shapes
from pipeline.training import memory
from pipeline.weights.adapters import kinds

RUN = Run(
    config="sdxl-base", images=1000, resolution=1024, devices=1, batch_size=8, accumulation=1, steps=1000, epochs=None,
    precision="float16", weights_dtype="float32", optimizer="adamw", shard_optimizer=False, ema=False,
    gradient_checkpointing=True, attention="auto", latent_channels=8, chunks=1, adapter="lora", rank=32,
    adapter_targets=("*.proj_in.*", "*.transformer_blocks.*", "*.proj_out.*"),
)  # fmt: skip


def test_sdxl_of_rank_32_and_batch_8_fits_a_card():
    assert device.fits(RUN)
    stays = device.stays(RUN)
    norms = sum(prod(shape) for name, shape in unet_shapes("sdxl-base").items() if memory.is_norm(name))
    assert stays["weights"] == 2 * 2_567_463_684 + 2 * norms
    # 722 layers of kohya's LoRA: 32 (inputs + outputs) numbers each
    numbers = sum(prod(shape) for shape in trained_shapes(RUN).values())
    assert len(trained_shapes(RUN)) == 2 * 722 and stays["adapters"] == 4 * numbers
    assert stays["optimizer's state"] == 4 + 8 * numbers
    assert sum(stays.values()) < 0.25 * sum(device.stays(replace(RUN, adapter="none")).values())
    assert device.update(RUN)["gradients"] == 4 * numbers
    assert disk.state_bytes(RUN) == 4 * numbers + stays["optimizer's state"]
    assert disk.disk_bytes(RUN)["trained weights (the store keeps those of 3 runs)"] == 4 * numbers
    assert sum(host.host_bytes(RUN).values()) < sum(host.host_bytes(replace(RUN, adapter="none")).values())


def test_a_smaller_rank_is_a_way_to_fit():
    large = replace(RUN, rank=512)
    assert not device.fits(large) and "train.rank: 32" in device.ways_to_fit(large)
    assert device.fits(replace(large, rank=32))
    # a smaller rank is no way for one of 32, nor for a training without adapters
    for other in (replace(RUN, batch_size=16), replace(RUN, adapter="none", batch_size=16)):
        assert not device.fits(other) and not any("rank" in way for way in device.ways_to_fit(other))


def test_text_encoders_with_adapters():
    """66 of CLIP-L's layers and 192 of bigG's, which stay as precise as they are cached."""
    taught = replace(RUN, text_encoders="both", encoder_bytes=(4, 2))
    assert len(trained_shapes(taught)) == 2 * (722 + 66 + 192)
    more = sum(map(prod, trained_shapes(taught).values())) - sum(map(prod, trained_shapes(RUN).values()))
    clip_l = 11 * 32 * (4 * 2 * 768 + 2 * 5 * 768)
    assert more == clip_l + 32 * 32 * (4 * 2 * 1280 + 2 * 5 * 1280) == 28_459_008
    stays = device.stays(taught)
    assert stays["adapters"] - device.stays(RUN)["adapters"] == 4 * more
    assert stays["text encoders"] == 2 * (123_060_480 + 694_659_841)
    # LoRA changes the weights of bigG's queries, keys and values, and the other kinds all
    assert device.changed_weights(taught, True) == 6 * 32 * 3 * 1280**2
    loha, alone = (device.changed_weights(replace(run, adapter="loha"), True) for run in (taught, RUN))
    assert loha - alone == 6 * (11 * 12 * 768**2 + 32 * 12 * 1280**2)


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_each_kind_has_a_plan(kind):
    run = replace(RUN, adapter=kind)
    assert ("weights with their adapters (estimated)" in device.backward(run)) == (kind != "lora")
    assert device.backward(run)["gradients by then"] == memory.in_float32(trained_shapes(run))


def test_checkpointing_keeps_one_block_of_changed_weights():
    kept, recomputed = (device.changed_weights(replace(RUN, adapter="loha"), flag) for flag in (False, True))
    assert kept == 6 * sum(prod(s) for n, s in unet_shapes("sdxl-base").items() if len(s) == 2 and _adapted(n))
    # attention and feed-forward of 1280 channels: 4 squares each, 2 of the text's width in place of 2, and 12 squares
    assert recomputed == 6 * (4 * 1280**2 + 2 * 1280**2 + 2 * 1280 * 2048 + 12 * 1280**2)


def _adapted(name: str) -> bool:
    return any(part in name for part in (".proj_in.", ".transformer_blocks.", ".proj_out."))


def test_the_base_is_as_wide_as_the_computation():
    assert RUN.kept_dtype == "float16" and RUN.trained_dtype == "float32"
    on_cpu = replace(RUN, precision="float32", weights_dtype="bfloat16")
    assert on_cpu.kept_dtype == "bfloat16"
