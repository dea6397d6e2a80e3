"""With which files a training begins."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from pipeline.models.config import TINY
from pipeline.stage import StageError
from pipeline.weights import ckpt, layout
from pipeline.weights import safetensors as streamed
from pipeline.weights.__main__ import inspect
from pipeline.weights.adapters import file, kinds
from pipeline.weights.adapters.apply import adapted_texts
from pipeline.weights.merge import merge
from pipeline.weights.names import PREFIX, part_of, to_mindspore
from pipeline.weights.starts import starts
from tests.weights import synthetic

SHAPES = layout.shapes(TINY)
CONVERTED = Path("outs/convert")
BASE = {part: CONVERTED / f"{part}.ckpt" for part in ("unet", "clip_l", "clip_g")}


def write(path: Path, *parts: str, seed: int = 0) -> Path:
    """As the train stage writes what it trains."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with ckpt.Writer(path) as writer:
        for name, shape in SHAPES.items():
            if part_of(name) in parts:
                writer.add(to_mindspore(name), synthetic.values(name, shape, seed))
    return path


def test_the_base(tmp_path):
    """Nothing is read for it."""
    for trained in ("none", "both"):
        assert starts(BASE["unet"], CONVERTED, trained) == BASE


@pytest.mark.parametrize(
    ("held", "trained", "taken"),
    [
        (["unet"], "none", ["unet"]),
        (["unet"], "both", ["unet"]),
        (["unet", "clip_l"], "clip_l", ["unet", "clip_l"]),
        (["unet", "clip_l"], "both", ["unet", "clip_l"]),
        (["unet", "clip_l", "clip_g"], "both", ["unet", "clip_l", "clip_g"]),
        (["unet", "clip_l", "clip_g", "vae"], "none", ["unet"]),  # a whole model
        (["unet", "clip_l", "clip_g", "vae"], "clip_g", ["unet", "clip_g"]),
    ],
)
def test_text_encoders_that_are_trained_begin_as_the_file_has_them(tmp_path, held, trained, taken):
    path = write(tmp_path / "start.ckpt", *held)
    assert starts(path, CONVERTED, trained) == BASE | dict.fromkeys(taken, path)


@pytest.mark.parametrize(
    ("held", "trained", "said"),
    [
        (
            ["clip_l"],
            "none",
            "holds CLIP-L as trained .* train.text_encoders none would .* wanted train.text_encoders clip_l,",
        ),
        (["clip_l"], "clip_g", "holds CLIP-L .* wanted train.text_encoders both,"),
        (["clip_l", "clip_g"], "clip_g", "holds CLIP-L as trained .* wanted train.text_encoders both,"),
        (["clip_l", "clip_g"], "none", "holds CLIP-L and bigG as trained .* wanted train.text_encoders both,"),
    ],
)
def test_those_that_would_be_lost_are_refused(tmp_path, held, trained, said):
    path = write(tmp_path / "start.ckpt", "unet", *held)
    with pytest.raises(StageError, match=said):
        starts(path, CONVERTED, trained)


def test_a_whole_model_by_other_names(tmp_path):
    start = synthetic.write_checkpoint(tmp_path / "other.safetensors", TINY, seed=5)
    assert starts(start, CONVERTED, "clip_l") == BASE | {"unet": start, "clip_l": start}


@pytest.mark.parametrize("whole", [False, True])
def test_an_adapter_is_merged_into_the_encoder_that_it_was_trained_on(tmp_path, whole):
    """train.init_from's, as a training wrote it, or in a whole model; the other encoder is the base's."""
    for part in ("clip_l", "clip_g", "vae"):
        write(tmp_path / f"convert/{part}.ckpt", part)
    if whole:
        start = synthetic.write_checkpoint(tmp_path / "start.safetensors", TINY, seed=5)
    else:
        start = write(tmp_path / "start.ckpt", "unet", "clip_l", seed=5)
    found = starts(start, tmp_path / "convert", "clip_l")
    name = "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
    layer, shapes = file.layer_name(name, "clip_l"), kinds.shapes("lora", SHAPES[name], 4)
    parts = {part: synthetic.values(f"{name}.{part}", shape).astype(np.float32) for part, shape in shapes.items()}
    adapter = tmp_path / "adapter.safetensors"
    file.write(adapter, {f"{layer}.{part}": value for part, value in parts.items()}, {layer: 4.0}, {})
    merge(found | {"vae": tmp_path / "convert/vae.ckpt"}, TINY, "float32", tmp_path / "merge", adapter=adapter)
    merged = streamed.read(tmp_path / "merge/merged.safetensors")
    of_start = safetensors.numpy.load_file(start) if whole else None
    for other, shape in SHAPES.items():
        seed = 5 if part_of(other) in ("unet", "clip_l") else 0
        wanted = of_start[other].astype(np.float32) if whole and seed else synthetic.values(other, shape, seed)
        if other == name:
            wanted = kinds.changed(wanted, parts, 4.0)
        np.testing.assert_array_equal(merged[other].array(), wanted, err_msg=other)
    drawn = adapted_texts(found["clip_l"], found["clip_g"], adapter, TINY)
    np.testing.assert_array_equal(drawn[name].array(), merged[name].array())
    assert {part_of(other) for other in drawn} == {"clip_l", "clip_g"} and len(drawn) == sum(
        other.startswith((PREFIX["clip_l"], PREFIX["clip_g"])) for other in SHAPES
    )


@pytest.mark.parametrize(
    ("held", "kind"), [(["unet"], "UNet"), (["unet", "clip_l"], "UNet, CLIP-L"), (["clip_g"], "bigG")]
)
def test_inspect_knows_what_a_training_wrote(tmp_path, held, kind):
    found = inspect(write(tmp_path / "unet.ckpt", *held))
    assert (found["kind"], found["config"]) == (kind, "tiny")
    assert [part["name"] for part in found["components"]] == held


def test_inspect_knows_an_adapter(tmp_path):
    name = "model.diffusion_model.input_blocks.4.1.proj_in.weight"
    parts = {f"{file.layer_name(name)}.{part}": np.ones(shape, np.float32)
             for part, shape in kinds.shapes("lora", SHAPES[name], 4).items()}  # fmt: skip
    file.write(tmp_path / "one.safetensors", parts, {file.layer_name(name): 4.0}, {"ss_network_dim": "4"})
    found = inspect(tmp_path / "one.safetensors")
    assert (found["kind"], found["config"], found["marks"]) == ("adapter", "tiny", {})
    assert found["notes"] == ["lora of rank 4, alpha 4: 1 layer"]
    assert [part["name"] for part in found["components"]] == ["unet"] and found["metadata"]["ss_network_dim"] == "4"


def test_inspect_refuses_a_unet_that_lacks_something(tmp_path):
    path = tmp_path / "unet.ckpt"
    names = [name for name in SHAPES if part_of(name) == "unet"]
    with ckpt.Writer(path) as writer:
        for name in names[:-1]:
            writer.add(to_mindspore(name), synthetic.values(name, SHAPES[name], 0))
    with pytest.raises(StageError, match="does not hold the weights"):
        inspect(path)


def test_inspect_says_what_a_broken_adapter_lacks(tmp_path):
    path = tmp_path / "one.safetensors"
    layer = "lora_unet_input_blocks_4_1_proj_in"
    safetensors.numpy.save_file({f"{layer}.lora_down.weight": np.ones((4, 128), np.float32)}, path)
    with pytest.raises(
        StageError, match=f"not an adapter of this model.config:\n.*\n.*{layer} has the parts lora_down"
    ):
        inspect(path)


@pytest.mark.parametrize(("config", "wanted"), [("tiny", "782"), ("sdxl-base", "2,514")])
def test_inspect_counts_for_the_model_of_params_yaml(tmp_path, monkeypatch, config, wanted):
    text = Path("params.yaml").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(text.replace("config: tiny", f"config: {config}"), encoding="utf-8")
    safetensors.numpy.save_file({"some.weight": np.ones((4, 4), np.float32)}, "one.safetensors")
    with pytest.raises(StageError, match=f"holds 0 of the {wanted} tensors"):
        inspect(Path("one.safetensors"))
