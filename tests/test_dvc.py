"""What DVC re-runs after each kind of change, walked through DVC itself in a project of its own
(tests/dvc_project.py). What counts here is when it runs them, and dvc.yaml is the project's."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.params import Prompt, load
from pipeline.weights import ckpt, safetensors
from pipeline.weights.adapters.file import write
from pipeline.weights.names import part_of, to_mindspore
from tests.dvc_project import ALL, changed, dvc, edit, picture, project_in, ran, ran_changed, stages_of


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """After its first `dvc repro`."""
    with project_in(tmp_path_factory.mktemp("dvc")) as root:
        assert ran(root, "repro") == ALL
        yield root


def test_unchanged_runs_nothing(project):
    assert ran(project, "repro") == []


def test_an_edited_caption(project):
    edit(project / "data/images/metadata.jsonl", "picture 3", "another picture")
    output = dvc(project, "repro")
    assert stages_of(output) == ["index", "cache_text", "train", "merge", "sample"]
    assert "7 captions in 1 shards: 1 encoded" in output  # six and the empty one


def test_a_changed_weight(project):
    """How often a picture is seen is decided when training, so neither cache runs."""
    edit(project / "data/images/metadata.jsonl", '"text": "another picture"', '"text": "another picture", "repeats": 3')
    output = dvc(project, "repro")
    assert stages_of(output) == ["index", "train", "merge", "sample"]
    assert "6 samples, 8 an epoch" in output


def test_an_added_picture_is_encoded_alone(project):
    picture(project, 6)
    with open(project / "data/images/metadata.jsonl", "a") as metadata:
        metadata.write('{"file_name": "6.png", "text": "picture 6"}\n')
    output = dvc(project, "repro")
    assert stages_of(output) == ["index", "cache_latents", "cache_text", "train", "merge", "sample"]
    assert "7 latents in 1 shards: 1 encoded" in output and "8 captions in 1 shards: 1 encoded" in output


def test_weights_of_words(project):
    """Encoded anew is what they are in, and no other caption."""
    edit(project / "data/images/metadata.jsonl", '"picture 2"', '"picture (2:1.3)"')
    assert "8 captions in 1 shards: 1 encoded" in dvc(project, "repro")
    output = changed(project, "cache_text.emphasis=a1111")
    assert stages_of(output) == ["index", "cache_text", "train", "merge", "sample"]
    assert "8 captions in 1 shards: 1 encoded" in output
    edit(project / "data/images/metadata.jsonl", '"picture (2:1.3)"', '"picture 2"')
    output = changed(project, "cache_text.emphasis=none")
    assert "cache_text" not in stages_of(output) or "8 captions in 1 shards: 0 encoded" in output


def test_a_mask_and_a_centre_of_interest(project):
    """They are part of their picture's row. How little it lets count is decided when training."""
    Image.new("L", (64, 64), 7).save(project / "data/images/5.mask.png")
    output = dvc(project, "repro")
    assert stages_of(output) == ["index", "cache_latents", "cache_text", "train", "merge", "sample"]
    assert "7 latents in 1 shards: 1 encoded" in output and "8 captions in 1 shards: 0 encoded" in output
    edit(project / "data/images/metadata.jsonl", '"text": "picture 4"', '"text": "picture 4", "focus": [0.9, 0.9]')
    output = dvc(project, "repro")
    assert stages_of(output) == ["index", "cache_latents", "cache_text", "train", "merge", "sample"]
    assert "7 latents in 1 shards: 1 encoded" in output and "8 captions in 1 shards: 0 encoded" in output
    assert ran_changed(project, "train.mask_floor=0.5") == ["train", "merge", "sample"]
    assert ran_changed(project, "index.alpha_mask=true") == ["index"]  # no picture is transparent


def test_a_further_resolution(project):
    output = changed(project, "index.further_resolutions=[32]")
    assert stages_of(output) == ["index", "cache_latents", "train", "merge", "sample"]
    assert "14 latents in 1 shards: 7 encoded" in output


def test_pictures_in_place_of_a_cache(project):
    """Neither cache is made, and training runs again when a picture or a caption changes, and only then."""
    output = changed(project, "train.source=pictures")
    assert stages_of(output) == ["cache_latents", "cache_text", "train", "merge", "sample"]
    assert "cache_latents: train.source is pictures: pictures are encoded while training, and none is cached" in output
    assert re.search("cache_text: train.source is pictures: captions are encoded while training, and none is", output)
    for out in ("latents", "text"):
        assert [path.name for path in (project / "outs" / out).iterdir()] == ["not-cached.json"]
    edit(project / "data/images/metadata.jsonl", "picture 4", "a fourth picture")
    assert ran(project, "repro") == ["index", "cache_text", "train", "merge", "sample"]
    (project / "data/images/4.png").rename(project / "data/images/renamed.png")
    edit(project / "data/images/metadata.jsonl", "4.png", "renamed.png")
    assert ran(project, "repro") == ["index", "cache_latents"]
    picture(project, 7)
    (project / "data/images/7.png").rename(project / "data/images/renamed.png")
    assert ran(project, "repro") == ["index", "cache_latents", "cache_text", "train", "merge", "sample"]
    output = changed(project, "train.source=cache")
    assert "1 encoded" in output and stages_of(output) == ["cache_latents", "cache_text", "train", "merge", "sample"]


def test_text_encoders_that_are_trained(project):
    """The captions' cache is not made, and that of the latents stays. A changed caption trains again, another way to write
    the pictures' places does not."""
    assert ran_changed(project, "train.text_encoders=clip_l") == ["cache_text", "train", "merge", "sample"]
    assert [path.name for path in (project / "outs/text").iterdir()] == ["not-cached.json"]
    assert list((project / "outs/latents").glob("*.parquet"))
    assert merged_from_the_trained(project, "clip_l") == {"unet", "clip_l"}
    # the same captions, so that the out stays
    assert ran_changed(project, "train.text_encoders=both") == ["cache_text", "train", "merge", "sample"]
    assert merged_from_the_trained(project, "clip_l", "clip_g") == {"unet", "clip_l", "clip_g"}
    assert ran_changed(project, "train.text_encoder_learning_rate=2e-4") == ["train", "merge", "sample"]
    edit(project / "data/images/metadata.jsonl", "picture 0", "a nullth picture")
    assert ran(project, "repro") == ["index", "cache_text", "train", "merge", "sample"]
    (project / "data/images/0.png").rename(project / "data/images/moved.png")
    edit(project / "data/images/metadata.jsonl", '"0.png"', '"moved.png"')
    output = dvc(project, "repro")
    assert "train" not in stages_of(output)
    output = changed(project, "train.text_encoders=none", "train.text_encoder_learning_rate=1e-4")
    assert stages_of(output) == ["cache_text", "train", "merge", "sample"]
    assert "captions in 1 shards: 1 encoded" in output  # the changed one
    assert merged_from_the_trained(project) == {"unet"}


def merged_from_the_trained(project: Path, *encoders: str) -> set[str]:
    """Which components of outs/merge/merged.safetensors have a tensor that is not the base's; they are those of
    outs/train/weights/unet.ckpt, where with the UNet these text encoders are."""
    merged = safetensors.read(project / "outs/merge/merged.safetensors")
    base = {}
    for part in ("clip_l", "clip_g", "unet"):
        base |= ckpt.read(project / f"outs/convert/{part}.ckpt")
    trained = ckpt.read(project / "outs/train/weights/unet.ckpt")
    assert {part_of(name) for name in trained} == {"unet", *encoders}
    found = set()
    for name, tensor in merged.items():
        if (own := to_mindspore(name)) in base and tensor.count:
            values = np.asarray(tensor.array())
            np.testing.assert_array_equal(values, (base | trained)[own].array())
            if not np.array_equal(values, base[own].array()):
                found.add(part_of(name))
    return found


def test_another_vae(project):
    edit(project / "params.yaml", "vae: data/base/tiny_sdxl.safetensors", "vae: data/base/other.safetensors")
    assert ran(project, "repro") == ["convert", "cache_latents", "train", "merge", "sample"]


def test_a_lora_that_is_merged_into_the_base(project):
    """Of the UNet alone it encodes nothing. Its content counts; another file beside it runs convert, whose outs stay."""
    after = ["convert", "train", "merge", "sample"]
    lora(project, "style", "lora_unet_middle_block_1_proj_in", 128)
    assert ran_changed(project, "model.loras=[{path: style.safetensors, weight: 0.5}]") == after
    lora(project, "style", "lora_unet_middle_block_1_proj_out", 128)
    assert ran(project, "repro") == after
    lora(project, "unused", "lora_unet_middle_block_1_proj_in", 128)
    assert ran(project, "repro") == ["convert"]
    lora(project, "words", "lora_te1_text_model_encoder_layers_0_self_attn_q_proj", 64)
    output = changed(project, "model.loras=[{path: words.safetensors}]")
    assert stages_of(output) == ["convert", "cache_text", "train", "merge", "sample"]
    assert re.search(r"(\d+) captions in 1 shards: \1 encoded", output)
    assert ran_changed(project, "model.loras=[]") == ["convert"]  # and the rest is as it was


def lora(project: Path, name: str, layer: str, width: int) -> None:
    values = np.full((width, 2), 0.1, np.float32)
    parts = {f"{layer}.lora_up.weight": values, f"{layer}.lora_down.weight": values.T}
    write(project / f"data/loras/{name}.safetensors", parts, {layer: 2}, {})


def test_a_training_setting(project):
    assert ran(project, "exp", "run", "-S", "train.learning_rate=1e-5") == ["train", "merge", "sample"]


def test_an_adapters_rank(project):
    """The stand-in for the train stage writes an adapter of that rank then."""
    assert ran_changed(project, "train.adapter=lora") == ["train", "merge", "sample"]
    assert ran_changed(project, "train.rank=8") == ["train", "merge", "sample"]
    weights = {path.name for path in (project / "outs/train/weights").iterdir()}
    assert "adapter.safetensors" in weights and "unet.ckpt" not in weights
    assert ran_changed(project, "train.adapter=none", "train.rank=16") == []  # as it was


def test_which_of_the_trained_weights(project):
    """Of a training that keeps some in between; the choice trains nothing."""
    assert ran_changed(project, "train.save_interval=100") == ["train", "merge", "sample"]
    assert ran_changed(project, "merge.weights=300") == ["merge", "sample"]
    assert ran_changed(project, "merge.weights=raw") == []  # DVC has both stages' outs of before


def test_other_weights_to_start_from(project):
    """And their content: the file is a dependency."""
    start = project / "data/base/start.ckpt"
    start.write_bytes((project / "outs/convert/unet.ckpt").read_bytes())
    assert ran_changed(project, "train.init_from=data/base/start.ckpt") == ["train", "merge", "sample"]
    start.write_bytes(start.read_bytes()[:-2] + b"\x00\x01")
    assert ran(project, "repro") == ["train", "merge", "sample"]  # an adapter is merged into it and drawn with it


def test_a_new_preview_is_encoded_alone(project):
    output = changed(project, 'train.previews=["a green star"]')
    assert stages_of(output) == ["cache_text", "train", "merge", "sample"]
    assert re.search(r"captions in 1 shards: 1 encoded", output)
    with_size = 'train.previews=[{prompt: "a green star", width: 96}]'
    output = changed(project, with_size)
    assert stages_of(output)[:2] == ["cache_text", "train"] and "captions in 1 shards: 0 encoded" in output


def test_what_the_unet_predicts(project):
    """convert looks at the base's marks again; its outs stay the same, so that the caches are skipped."""
    assert ran_changed(project, "diffusion.prediction=v") == ["convert", "train", "merge", "sample"]


@pytest.mark.parametrize("key", ["scaling_factor=0.18215", "shift_factor=0.1"])
def test_the_scale_of_the_latents_encodes_nothing(project, key):
    """merge runs for the weights that train made."""
    assert ran_changed(project, f"diffusion.{key}") == ["train", "merge", "sample"]


def test_flows_shift_and_a_schedule_without_signal(project):
    """The shift is of training and sampling; convert looks at the base's marks for the other."""
    changed(project, "diffusion.prediction=flow")
    assert ran_changed(project, "diffusion.flow_shift=2.5") == ["train", "merge", "sample"]
    changed(project, "diffusion.prediction=v", "diffusion.flow_shift=1.0")
    expected = ["convert", "train", "merge", "sample"]
    assert ran_changed(project, "diffusion.zero_terminal_snr=true") == expected


@pytest.mark.parametrize(
    "change",
    ["groups=[{pattern: '*.attn2.*', learning_rate: 2.0}]", "timestep_distribution=logit_normal", "keep_best=true"],
)
def test_how_it_is_trained(project, change):
    assert ran_changed(project, f"train.{change}") == ["train", "merge", "sample"]


def test_the_steps_that_are_drawn(project):
    changed(project, "train.save_interval=100")
    assert ran_changed(project, "sample.saved_steps=[300]") == ["sample"]
    assert ran_changed(project, "sample.saved_steps=all") == ["sample"]


def test_guidance_scale(project):
    assert ran_changed(project, "sample.guidance_scale=7.5") == ["sample"]


@pytest.mark.parametrize(
    "change",
    ["prompts=[a star, {prompt: 'two hearts', negative_prompt: ring, seed: 3, guidance_scale: 2.5}]",
     "prompts.0=a moon", "sampler=dpmpp_2m_karras", "guidance_rescale=0.7"],
)  # fmt: skip
def test_what_is_drawn(project, change):
    assert ran_changed(project, f"sample.{change}") == ["sample"]
    params = load(project / "params.yaml")
    if change.startswith("prompts="):
        own = {"negative_prompt": "ring", "seed": 3, "guidance_scale": 2.5}
        assert params.sample.prompts == ["a star", Prompt(prompt="two hearts", **own)]


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("index", ["index"]),
        ("convert", ["convert"]),
        ("cache_latents", ["cache_latents"]),
        ("cache_text", ["cache_text"]),
        ("train", ["train"]),
        ("merge", ["merge"]),
        ("sample", ["sample"]),
    ],
)
def test_an_edit_in_the_stages_own_code(project, stage, expected):
    """The stage runs again; its outs have the same bytes, so nothing after it does."""
    with open(project / f"stages/{stage}.py", "a") as script:
        script.write("\n# edited\n")
    assert ran(project, "repro") == expected
