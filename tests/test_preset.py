"""Presets: whole files that the stages take at full size, and what of a user's own they keep."""

import re
import shutil
import subprocess
import sys
from math import prod

import pytest
from ruamel.yaml import YAML

from pipeline import doubts, hardware, params, preset
from pipeline.contradictions.data import side_multiple
from pipeline.data.buckets import buckets
from pipeline.models.config import CONFIGS
from pipeline.params import ParamsError
from pipeline.planning import device, duration
from pipeline.planning.run import from_params
from pipeline.training import groups
from pipeline.training.rates import ema_decay, learning_rate
from pipeline.training.targets import targets
from pipeline.weights.adapters import kinds
from pipeline.weights.adapters.extract import TARGETS
from tests import stub_npus
from tests.training.training_samples import ROOT

TEXT = (ROOT / "params.yaml").read_text()
SDXL = [name for name in preset.PRESETS if name != "tiny"]
DEVICES = {
    "tiny": (1, 1),
    "sdxl-1x910b": (1, 1),
    "sdxl-lora-1x910b": (1, 1),
    "sdxl-8x910b": (8, 1),
    "sdxl-16x910b": (8, 2),
}


def loaded(text: str) -> params.Params:
    return params.check(params.parse(text, "x"), "x")


def edited(text: str, **changes: str) -> str:
    """`text` with other values for some keys, such as train__steps="5"."""
    for name, value in changes.items():
        section, key = name.split("__")
        lines = text.splitlines()
        begin, end = preset._entries(text)[f"{section}.{key}"]
        lines[begin:end] = [f"  {key}: {value} # {preset._comment(lines[begin:end])}"]
        text = "\n".join(lines) + "\n"
    return text


def test_the_demos_file_is_the_committed_one():
    """When a key of params.yaml is added or explained anew: `cp params.yaml presets/tiny.yaml`."""
    assert (ROOT / "presets/tiny.yaml").read_text() == TEXT


@pytest.mark.parametrize("name", preset.PRESETS)
def test_tiny_comes_back_to_the_byte(name):
    there = preset.write(name, TEXT)
    assert preset.write("tiny", there.text).text == TEXT == preset.write("tiny", None).text
    assert preset.write(name, there.text).text == there.text == preset.write(name, None).text


@pytest.mark.parametrize("name", preset.PRESETS)
def test_a_preset_has_every_key_with_its_comment(name):
    text = preset.write(name, None).text
    found = loaded(text)
    assert (found.device.workers, found.device.nodes) == DEVICES[name]
    assert list(preset._entries(text)) == list(preset._entries(TEXT))  # all of them, in their order
    assert [line for line in text.splitlines() if line.endswith(":")] == [
        line for line in TEXT.splitlines() if line.endswith(":")
    ]
    commented = {key for key, (begin, _) in preset._entries(TEXT).items() if " # " in TEXT.splitlines()[begin]}
    lines = text.splitlines()
    assert all(" # " in lines[begin] for key, (begin, _) in preset._entries(text).items() if key in commented
               and not key.endswith(("resolution", "height", "step")))  # fmt: skip


@pytest.mark.parametrize("file", ["sdxl", *SDXL])
def test_a_presets_file_has_only_what_differs_and_a_reason(file):
    text = (ROOT / f"presets/{file}.yaml").read_text()
    given = preset._values(YAML(typ="safe").load(text))
    below = {"sdxl": "tiny", "sdxl-16x910b": "sdxl-8x910b"}.get(file)
    under = preset.values(below) if below else preset.values("tiny") | preset._values(
        YAML(typ="safe").load((ROOT / "presets/sdxl.yaml").read_text()))  # fmt: skip
    assert given.keys() <= preset.values("tiny").keys()
    lines, entries = text.splitlines(), preset._entries(text)
    assert list(entries) == list(given)
    for key, value in given.items():
        assert value != under[key] or " # " in lines[entries[key][0]], f"{key} says nothing new"
    assert text.startswith("# ")


@pytest.mark.parametrize("name", preset.PRESETS)
def test_nothing_in_a_preset_is_doubtful(name):
    assert list(doubts.doubts(loaded(preset.write(name, None).text))) == []


@pytest.mark.parametrize("name", SDXL)
def test_every_stage_takes_a_preset_at_full_size(monkeypatch, tmp_path, name):
    """All that stages work out of settings before they touch data, weights or an NPU."""
    found = loaded(preset.write(name, None).text)
    config = CONFIGS[found.model.config]
    assert found.model.config == "sdxl-base"
    stub_npus.show(monkeypatch, tmp_path, found.device.workers)
    hardware.check(found, "device", "cache_latents", "cache_text", "train", "sample")
    sizes = buckets(found.index.resolution, found.index.bucket_step)
    assert len(sizes) == 40 and found.index.min_side == min(min(size) for size in sizes)  # SDXL's list
    assert not any(side % side_multiple(config) for size in sizes for side in size)
    assert (found.sample.width, found.sample.height) in sizes
    assert found.cache_latents.precision == "float32" or found.cache_latents.precision == "bfloat16"
    train = found.train
    rates = [learning_rate(step, train.steps, train.learning_rate, train.lr_scheduler, train.lr_warmup_steps)
             for step in (0, train.lr_warmup_steps, train.steps - 1)]  # fmt: skip
    assert rates[0] == 0 and rates[1] == train.learning_rate and 0 < rates[2] <= train.learning_rate
    low, high = (4e-7, 1e-5) if train.adapter == "none" else (5e-5, 5e-4)
    assert low <= train.learning_rate <= high
    assert train.validation_interval <= train.steps // 10 and train.checkpointing_steps <= train.steps // 5
    assert (found.merge.weights == "ema") == train.ema
    assert not train.ema or ema_decay(train.steps, train.ema_decay) > 0.99


@pytest.mark.parametrize("name", preset.PRESETS)
@pytest.mark.parametrize("images", [100, 100_000])
def test_a_preset_fits(name, images):
    found = loaded(preset.write(name, None).text)
    run = from_params(found, images)
    assert device.fits(run), device.device_bytes(run)
    assert duration.steps(run) == found.train.steps


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("name", SDXL)
def test_the_unet_of_a_preset_is_made_at_full_size(name):
    """Its parameters only: no value of the 10 GB is."""
    from pipeline.device import Device

    from mindspore.nn.utils import no_init_parameters

    from pipeline.models.unet import UNet
    from pipeline.training import build
    from pipeline.training.optimizers.common import decays

    found = loaded(preset.write(name, None).text)
    train = found.train
    with no_init_parameters():
        unet = UNet(CONFIGS["sdxl-base"].unet, Device("CPU").attention_kind(train.precision),
                    build.DTYPES[train.precision], train.gradient_checkpointing)  # fmt: skip
    assert sum(parameter.size for parameter in unet.trainable_params()) == 2_567_463_684
    if train.adapter != "none":
        shapes = {parameter.name: parameter.shape for parameter in unet.get_parameters()}
        chosen = targets(shapes, train.adapter_targets, groups.groups(train.groups))
        assert len(chosen) == 722 and tuple(train.adapter_targets) == TARGETS
        numbers = sum(
            prod(s) for name in chosen for s in kinds.shapes(train.adapter, shapes[name], train.rank).values()
        )
        assert round(numbers / 1e6) == 85  # as the preset says
    assert len(decays(unet)) == len(unet.trainable_params())
    settings = build.settings(Device("CPU"), found.diffusion, train)
    assert settings.gradient_accumulation_steps == train.gradient_accumulation_steps
    assert settings.loss_scale == (65536.0 if train.precision == "float16" else None)


def test_the_preset_of_a_lora():
    """What its name and its plan promise: rank 32 and batch 8 on one card."""
    train = loaded(preset.write("sdxl-lora-1x910b", None).text).train
    assert (train.adapter, train.rank, train.batch_size) == ("lora", 32, 8)
    assert train.gradient_checkpointing and train.precision == "float16" and train.optimizer == "adamw"
    assert list(TARGETS) == YAML(typ="safe").load(TEXT)["train"]["adapter_targets"]


# What is the user's own

OWN = {
    "data__images": "/data/pictures",
    "model__base": "/models/own.safetensors",
    "model__lora_folder": "/models/loras",
    "model__vae": "/models/vae.safetensors",
    "model__tokenizer": "/models/tokenizer",
    "index__caption_lines": "one",
    "device__master": "10.0.0.7:8118",
    "diffusion__prediction": "v",
}


@pytest.mark.parametrize("name", SDXL)
def test_the_users_own_is_kept_and_said(name):
    lists = {"sample__prompts": "[\"no\", 'a: b']", "train__previews": "[a star, {prompt: 'a: b', seed: 3}]"}
    lists |= {"index__alpha_mask": "true", "cache_text__emphasis": "a1111"}
    written = preset.write(name, edited(TEXT, **OWN, train__learning_rate="3.0e-4", **lists))
    kept = {key.replace("__", "."): value for key, value in OWN.items()} | {
        "sample.prompts": ["no", "a: b"], "train.previews": ["a star", {"prompt": "a: b", "seed": 3}],
        "index.alpha_mask": True, "cache_text.emphasis": "a1111",
    }  # fmt: skip
    assert written.kept == kept
    assert {key: preset._values(params.parse(written.text, "x"))[key] for key in kept} == kept
    assert written.changed["train.learning_rate"] == (3e-4, loaded(written.text).train.learning_rate)
    assert not written.changed.keys() & kept.keys() and not written.added and not written.dropped
    assert "  images: /data/pictures # imagefolder" in written.text  # under the preset's comment
    again = preset.write("sdxl-8x910b", written.text)
    assert again.kept == kept and preset.write(name, again.text).text == written.text


def test_the_base_of_sdxl_does_not_follow_to_the_tiny_model():
    sdxl = preset.write("sdxl-1x910b", edited(TEXT, **OWN))
    written = preset.write("tiny", sdxl.text)
    assert loaded(written.text).model == loaded(TEXT).model and loaded(written.text).diffusion == loaded(TEXT).diffusion
    assert written.kept == {"data.images": "/data/pictures", "index.caption_lines": "one",
                            "device.master": "10.0.0.7:8118"}  # fmt: skip
    assert written.changed["model.base"] == ("/models/own.safetensors", "data/base/tiny_sdxl.safetensors")


def test_a_base_of_ones_own_brings_its_vae():
    found = loaded(preset.write("sdxl-1x910b", edited(TEXT, model__base="own.safetensors")).text)
    assert found.model.vae == found.model.base == "own.safetensors"
    sdxl = preset.write("sdxl-1x910b", None).text
    found = loaded(preset.write("sdxl-8x910b", edited(sdxl, model__base="own.safetensors")).text)
    assert found.model.vae == "data/base/sd_xl_base_1.0.safetensors"  # as it was chosen beside SDXL


ODD = ['"a # b"', "'#'", '"no"', '"1e-5"', '"a: b"', "日本", '"a\\nb"', '"\\u2028"', "'*a'", "''",
       "{prompt: 'a: b', negative_prompt: no, seed: 3, width: 512}"]  # fmt: skip


@pytest.mark.parametrize("value", ODD)
def test_odd_prompts_are_the_same_text_afterwards(value):
    before = edited(TEXT, sample__prompts=f"[{value}]")
    assert loaded(preset.write("sdxl-1x910b", before).text).sample.prompts == loaded(before).sample.prompts


def test_a_file_of_another_version_is_brought_up_to_date():
    old = edited(TEXT, data__images="/data/pictures").replace("  ema_decay", "  ema_rate").replace("merge:", "mergers:")
    written = preset.write("tiny", old)
    assert written.text == edited(TEXT, data__images="/data/pictures")
    assert written.added.keys() == {"train.ema_decay", "merge.weights", "merge.dtype"}
    assert written.dropped.keys() == {"train.ema_rate", "mergers.weights", "mergers.dtype"}


def test_a_flow_stays_one_without_the_presets_min_snr():
    written = preset.write("sdxl-8x910b", edited(TEXT, diffusion__prediction="flow", diffusion__flow_shift="2.5"))
    tree = params.parse(written.text, "params.yaml")
    assert (tree["diffusion"]["prediction"], tree["diffusion"]["flow_shift"]) == ("flow", 2.5)
    assert tree["train"]["snr_gamma"] is None and preset.values("sdxl-8x910b")["train.snr_gamma"] == 5.0


@pytest.mark.parametrize("key", ["sample.prompts", "train.previews"])
def test_of_a_prompts_size_only_the_user_can_say_another(key):
    """A preset keeps prompts as they are, so that its own advice would send in a circle."""
    given = {key.replace(".", "__"): "[a star, {prompt: a red ring, width: 96}]"}
    with pytest.raises(ParamsError) as refused:
        preset.write("sdxl-1x910b", edited(TEXT, **given))
    [line] = [line for line in str(refused.value).splitlines() if line.startswith("  ")]
    assert line.startswith(f"  {key}.1.width: 96 is the tiny model's") and "take it out of this prompt" in line
    assert "make preset" not in line


def test_what_is_kept_and_few_want_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own = "[a star, {prompt: a red ring, width: 1024, height: 512}]"
    sdxl = edited(preset.write("sdxl-1x910b", None).text, sample__prompts=own)
    (tmp_path / "params.yaml").write_text(sdxl)
    with pytest.raises(SystemExit) as ended:
        preset.main(["tiny"])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and re.search(r"(?m)^Doubtful:\n  sample\.prompts: 1024 is SDXL's.*\n.* 512 is", said)
    assert not preset.write("sdxl-8x910b", sdxl).doubtful


def test_what_is_kept_must_fit():
    with pytest.raises(ParamsError, match=r"sdxl-1x910b with what is yours in params.yaml .*\n  device.node_rank"):
        preset.write("sdxl-1x910b", edited(TEXT, device__node_rank="3"))
    with pytest.raises(ParamsError, match=r"data.images: .*found 5"):
        preset.write("sdxl-1x910b", edited(TEXT, data__images="5"))


# The command


@pytest.fixture
def project(tmp_path, monkeypatch):
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pipeline.preset", *arguments]
    return subprocess.run(command, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True)


def test_the_command_writes_and_says_what(project):
    (project / "params.yaml").write_text(edited(TEXT, data__images="/data/pictures"))
    done = start("sdxl-8x910b")
    assert done.returncode == 0, done.stderr
    assert "Kept, as your own:\n  data.images: /data/pictures\n" in done.stdout
    assert "  train.learning_rate: 0.001 -> 1e-05\n" in done.stdout and "make doctor" in done.stdout
    found = params.load(project / "params.yaml")
    assert (found.data.images, found.device.workers) == ("/data/pictures", 8)
    (project / "params.yaml").unlink()
    assert start("tiny").returncode == 0 and (project / "params.yaml").read_text() == TEXT
    assert sorted(path.name for path in project.iterdir()) == ["dvc.yaml", "params.yaml"]


@pytest.mark.parametrize(
    ("before", "arguments", "code", "said"),
    [
        (TEXT, ["sdxl"], 2, "invalid choice: 'sdxl'"),
        (TEXT, [], 2, "required: name"),
        ("data: [", ["tiny"], 1, "params.yaml, line 1 is not YAML 1.2"),
        (edited(TEXT, device__node_rank="3"), ["tiny"], 1, "device.node_rank: must be below nodes"),
    ],
)
def test_a_fault_is_said_and_leaves_the_file(project, before, arguments, code, said):
    (project / "params.yaml").write_text(before)
    done = start(*arguments)
    assert done.returncode == code and said in done.stderr and "Traceback" not in done.stderr
    assert (project / "params.yaml").read_text() == before


def test_it_is_written_in_a_project_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = start("tiny")
    assert done.returncode == 1 and "project's folder" in done.stderr and not list(tmp_path.iterdir())


def stages_with_other_keys(one: str, other: str) -> set[str]:
    """The stages of dvc.yaml whose own keys differ between two presets."""
    listed = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
    before, after = preset.values(one), preset.values(other)
    changed = {key for key in before if before[key] != after[key]}
    return {stage for stage, entry in listed.items()
            if any(key == name or key.startswith(f"{name}.") for name in entry["params"] for key in changed)}  # fmt: skip


def test_another_number_of_npus_encodes_nothing_anew():
    """As docs/presets.md and the table of docs/how-it-works.md have it."""
    assert stages_with_other_keys("sdxl-1x910b", "sdxl-8x910b") == {"train", "merge"}
    assert stages_with_other_keys("sdxl-8x910b", "sdxl-16x910b") == {"train"}
    assert stages_with_other_keys("tiny", "sdxl-1x910b") >= {"index", "convert", "cache_latents", "cache_text", "train"}


def test_the_documents_name_all_presets_and_what_is_kept():
    text = (ROOT / "docs/presets.md").read_text()
    assert all(f"`{name}`" in text for name in preset.PRESETS)
    assert all(f"`{key}`" in text or f"`{key}.*`" in text for key in preset.OWN)
