"""The planner's bytes against what MindSpore allocates for the tiny UNet, and its advice."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from typing import get_args

import pipeline.device  # noqa: F401  (before MindSpore)

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from pipeline import plan, recorded
from pipeline.cache.building import tokens
from pipeline.models.config import CONFIGS
from pipeline.params import Train
from pipeline.planning import device as device_memory
from pipeline.planning import disk, duration, host
from pipeline.planning.run import count_index, from_params, trained_shapes
from tests.planning.full_size import FULL
from tests.training.training_samples import ROOT, params


def test_states_host_and_disk():
    whole = 4 * 2_567_463_684
    assert disk.state_bytes(FULL) == 3 * whole + 4
    assert disk.state_bytes(replace(FULL, ema=True)) == 4 * whole + 4  # 41 GB
    parts = disk.disk_bytes(replace(FULL, states=2))
    assert parts["states: 2 kept and the next being written"] == 3 * (3 * whole + 4)
    assert parts["merged.ckpt and merged.safetensors"] == 2 * 2 * 3_468_837_868
    assert host.host_bytes(FULL)["weights and state, the host's side"] == 8 * (3 * whole + 4)
    assert set(host.COMPILING) == set(CONFIGS) - {"33 M"}  # that one is benchmarks/memory.py's
    two_nodes = host.host_bytes(replace(FULL, nodes=2))
    assert two_nodes["weights and state, the host's side"] == 4 * (3 * whole + 4)


def test_weights_in_between():
    """Never less than a run has at once: those that become outs, and those of steps whose state is not written yet."""
    run = replace(FULL, steps=1000, epochs=None, checkpointing_steps=300, save_interval=100)
    assert disk.between(FULL) == 0 and not any("between" in part for part in disk.disk_bytes(FULL))
    assert disk.between(run) == disk.between(replace(run, save_limit=20)) == 10
    assert disk.between(replace(run, save_limit=2)) == 2 + 3 + 1
    best = replace(run, save_interval=0, keep_best=True, validation_interval=150, save_bytes=2)
    assert disk.between(best) == 2 + 2
    assert disk.disk_bytes(best)["weights in between: 4 at most"] == 4 * 2 * 2_567_463_684
    assert host.host_bytes(run)["weights in between, until they are written"] == 4 * 2_567_463_684
    planned = from_params(params(**{"train.save_interval": 7, "train.save_limit": 3, "train.keep_best": True}), 9)
    assert (planned.save_interval, planned.save_limit, planned.save_bytes, planned.keep_best) == (7, 3, 4, True)


def test_what_was_checked_on_a_cpu_alone_and_the_averages_validation_are_said():
    small = replace(FULL, config="tiny", resolution=64)
    assert "An NPU has otherwise than a CPU: flash attention, the fused AdamW," in plan.report(small)
    averages = plan.report(replace(small, target="CPU", ema=True, validation_share=0.02))
    assert "An NPU has otherwise" not in averages
    assert "or a validation of the averages:" in averages and "weights, put by" in averages


def test_encoders_in_the_loop():
    """No caches, and the encoders' weights and the VAE's widest layer on the device."""
    live = replace(FULL, source="pictures", encoder_bytes=(4, 2), encoded_at_once=3)
    assert disk.cache_bytes(live) == 0 and "No caches of 100,000 pictures" in plan.report(live)
    stays = device_memory.stays(live)
    assert stays["the VAE's encoder"] == 4 * 34_163_664 and stays["text encoders"] == 2 * (123_060_480 + 694_659_841)
    assert sum(device_memory.encoding(live).values()) == 4 * 4 * 3 * 128 * 1024 * 1024
    assert not device_memory.encoding(FULL) and "encoders in the loop" not in plan.report(FULL)
    more = host.host_bytes(live).keys() - host.host_bytes(FULL).keys()
    assert more == {"pictures, prepared ahead"}
    taught = replace(live, text_encoders="clip_l", batch_size=1)
    clip_l = 123_060_480
    unused = 7_089_408  # CLIP-L's last layer and last norm
    assert disk.state_bytes(taught) == 3 * 4 * (2_567_463_684 + clip_l - unused) + 4
    assert disk.written(taught) == 2_567_463_684 + clip_l
    assert device_memory.kept_by_texts(live) == 0
    parts = [
        device_memory.kept_by_texts(replace(taught, text_encoders=which)) for which in ("clip_l", "clip_g", "both")
    ]
    assert 0 < parts[0] < parts[1] and sum(parts[:2]) == parts[2]
    middle = replace(taught, source="cache")
    assert disk.cache_parts(middle) == (disk.cache_parts(FULL)[0], 0)
    assert disk.cache_bytes(middle) == disk.latents_bytes(FULL) and "0 of text a caption" in plan.report(middle)
    stays = device_memory.stays(middle)
    assert "the VAE's encoder" not in stays and stays["text encoders"] == device_memory.stays(taught)["text encoders"]
    assert not device_memory.encoding(middle) and "text encoders in the loop" in plan.report(middle)
    planned = from_params(params(**{"train.source": "pictures", "train.batch_size": 2}), 9)
    assert planned.encodes and planned.encoded_at_once == 2


@pytest.mark.parametrize("optimizer", get_args(Train.model_fields["optimizer"].annotation))
@pytest.mark.parametrize("texts", ["clip_l", "clip_g", "both"])
def test_text_encoders_with_every_optimizer(texts, optimizer):
    """Also bigG's scalar, which is not trained."""
    taught = replace(FULL, text_encoders=texts, optimizer=optimizer)
    shapes = trained_shapes(taught)
    assert "conditioner.embedders.1.model.logit_scale" not in shapes and all(shapes.values())
    assert disk.state_bytes(taught) > disk.state_bytes(
        FULL if optimizer == "adamw" else replace(FULL, optimizer=optimizer)
    )
    assert "text encoders in the loop" in plan.report(taught)


def test_the_place_is_looked_at(tmp_path):
    store, outs = tmp_path / "store", tmp_path / "outs"
    store.mkdir(), outs.mkdir()
    (store / "shard").write_bytes(b"x" * 40960)
    (outs / "shard").hardlink_to(store / "shard")
    place = disk.look(store, outs)
    assert 40960 <= place.used < 2 * 40960 and place.free > 0 and place.speed > 0
    assert sorted(path.name for path in store.iterdir()) == ["shard"]
    text = plan.report(FULL, disk.Place(free=10**9, used=5 * 10**9, speed=2 * 10**9))
    missing = sum(disk.disk_bytes(FULL).values()) - 6 * 10**9
    assert f"Does NOT fit this disk: {missing / 1e9:.1f} GB are missing" in text
    assert "15.4 s at the 2.00 GB/s of this disk" in text


def test_launches_bound_a_step():
    assert duration.kernels(FULL) == 13_953 + 3_453 == 17_406
    assert duration.kernels(replace(FULL, accumulation=2, gradient_checkpointing=False)) == 2 * 11_700 + 3_453
    assert duration.launches(17_406) == pytest.approx((17_406 * 5e-6, 17_406 * 10e-6))
    text = plan.report(FULL)
    assert "level O2, which 2.10" in text and "0.09 to 0.17 s a step" in text and "17,406 kernels" in text
    assert "O1 fuses kernels: 0.05 to 0.10 s" in text
    assert "launches" not in plan.report(replace(FULL, config="tiny"))


def test_steps_cache_and_hours():
    assert duration.steps(FULL) == 2 * 12_500
    assert disk.cache_bytes(FULL) == 100_000 * (8 * 128 * 128 * 2 + 77 * 2048 * 2 + 1280 * 4)
    best, worst = duration.hours(FULL)
    assert best == pytest.approx(25_000 * 0.53 / 3600) and worst == pytest.approx(25_000 * 1.10 / 3600)
    assert duration.hours(replace(FULL, config="tiny")) is None


def test_it_says_what_would_make_a_run_fit():
    heavy = replace(FULL, batch_size=6, gradient_checkpointing=False, shard_optimizer=True)
    assert not device_memory.fits(heavy)
    ways = device_memory.ways_to_fit(heavy)
    assert ways and all(way.startswith("train.") or way.startswith("device.") for way in ways)
    assert "train.gradient_checkpointing: true" in ways
    assert device_memory.fits(replace(heavy, gradient_checkpointing=True))
    report = plan.report(heavy)
    assert "Does NOT fit" in report and "would fit with train.gradient_checkpointing: true" in report
    # where no single setting is enough, several together are named
    (together,) = device_memory.ways_to_fit(replace(heavy, batch_size=8, resolution=2048, shard_optimizer=False))
    assert together.startswith("train.gradient_checkpointing: true and train.shard_optimizer: true")


def test_checkpointings_saving_is_not_promised():
    """Where the count fits by it alone, the plan says that no NPU has shown so."""
    run = replace(FULL, batch_size=4, shard_optimizer=True)
    assert device_memory.relies_on_checkpointing(run)
    assert "MAY fit a card" in plan.report(run) and "Fits a card" not in plan.report(run)
    assert "Fits a card" in plan.report(replace(run, batch_size=1))


def test_it_takes_params_as_they_stand():
    run = from_params(
        params(
            **{"train.batch_size": 5, "device.workers": 2, "device.nodes": 3, "train.ema": True}
            | {"device.master": "a:1"}
        ),
        77,
    )
    assert (run.batch_size, run.devices, run.ema, run.images, run.latent_channels) == (5, 6, True, 77, 8)
    assert run.target == "CPU" and "Fits this computer" in plan.report(run)
    run = from_params(params(**{"device.target": "auto"}), 77)
    assert run.target == "Ascend" and "Fits a card" in plan.report(run)


def said(capsys, *arguments: str) -> tuple[int, str]:
    """(exit code, what the command printed)"""
    try:
        plan.main(list(arguments))
        code = 0
    except SystemExit as ended:  # with a message, argparse with 2
        code = ended.code if isinstance(ended.code, int) else print(ended.code) or 1
    captured = capsys.readouterr()
    return code, captured.out + captured.err


ROOMY = disk.Place(free=10**12, used=0, speed=2 * 10**9)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with params.yaml and nothing else, on a large disk, to run the command in."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(disk, "look", lambda *_: ROOMY)
    return tmp_path


FULL_SIZE = ["--config", "sdxl-base", "--resolution", "1024", "--devices", "8", "--batch-size", "1", "--steps", "10"]


def test_the_command(capsys, project):
    code, text = said(capsys, "--images", "1000", *FULL_SIZE, "--precision", "bfloat16")
    assert code == 0 and "10,269,854,736 bytes" in text and "Steps: 10" in text and "Hours on Ascend 910B" in text


def test_the_command_fails_when_it_does_not_fit(capsys, project):
    code, text = said(capsys, "--images", "1000", *FULL_SIZE, "--batch-size", "16")
    assert code == 1 and "Does NOT fit a card of 64 GB" in text and "would fit with" in text


def test_the_command_fails_when_the_disk_has_no_room(capsys, project, monkeypatch):
    arguments = ["--images", "1000", *FULL_SIZE, "--precision", "bfloat16"]
    monkeypatch.setattr(disk, "look", lambda *_: replace(ROOMY, free=5 * 10**9))
    code, text = said(capsys, *arguments)
    assert code == 1 and "Does NOT fit this disk" in text
    code, text = said(capsys, *arguments, "--json")
    assert code == 1 and json.loads(text)["fits"] and not json.loads(text)["disk"]["fits"]


def test_the_verdict_comes_first(capsys, project, monkeypatch):
    """Of device memory, disk and hours, and whether this machine has what a host needs."""
    monkeypatch.setattr(host, "this_machine", lambda: 10**9)
    for changes, wanted in {("8", 10**12): ("fits", "fits"), ("16", 10**9): ("does NOT fit", "does NOT fit")}.items():
        monkeypatch.setattr(disk, "look", lambda *_, free=changes[1]: replace(ROOMY, free=free))
        arguments = ["--images", "1000", *FULL_SIZE, "--precision", "bfloat16"]
        arguments += ["--batch-size", "16"] if changes[0] == "16" else []
        memory, room, hours = said(capsys, *arguments)[1].splitlines()[1:4]
        assert memory.strip().startswith(f"device memory  {wanted[0]}: ") and "MORE than this machine has" in memory
        assert room.strip().startswith(f"disk           {wanted[1]}: ")
        assert hours.strip().startswith("hours ") and " to " in hours
    monkeypatch.setattr(host, "this_machine", lambda: 10**13)
    text = said(capsys, "--images", "77")[1]
    assert "MORE than" not in text and "this machine has" in text and "hours          not known" in text


def write_index(project, pictures: int, captions: int) -> None:
    """An index of so many used pictures over two buckets, each of them twice, and one more that is rejected."""
    (project / "outs/index").mkdir(parents=True)
    images = [n.to_bytes(16, "big") for n in range(pictures)]
    rows = [(image, f"{copy}.png", 64, 32 + 32 * (image[-1] % 2), None) for image in images for copy in "ab"]
    rows += [(b"x" * 16, "x.png", None, None, "too small")]
    kinds = (pa.binary(16), pa.string(), pa.int32(), pa.int32(), pa.string())
    pq.write_table(
        pa.table(
            [pa.array(column, kind) for column, kind in zip(zip(*rows), kinds)]
            + [pa.nulls(len(rows), pa.list_(pa.int32())), pa.nulls(len(rows), pa.string())],
            ["image", "path", "bucket_width", "bucket_height", "rejected", "views", "mask"],
        ),
        project / "outs/index/images.parquet",
    )
    names = [(n % captions).to_bytes(16, "big") for n in range(pictures)]
    columns = {"image": pa.array(images, pa.binary(16)), "caption": pa.array(names, pa.binary(16))}
    pq.write_table(pa.table(columns), project / "outs/index/captions.parquet")


def test_the_command_counts_the_index(capsys, project):
    """As docs/sdxl-on-npus.md has it: without options."""
    write_index(project, 40, 7)
    code, text = said(capsys)
    latent, caption = 8 * 8 * 8 * 2, 77 * 160 * 2 + 96 * 4
    assert code == 0 and "Caches of 40 pictures and 8 captions:" in text  # the empty one is the eighth
    assert "Graphs to compile: 5 at most, over 2 buckets" in text  # two of gradients, two of validation, the update
    counted = from_params(params(), *count_index(project / "outs/index"))
    assert disk.cache_bytes(counted) == 40 * latent + 8 * caption
    assert "Caches of 77 pictures:" in said(capsys, "--images", "77")[1]
    assert "Graphs to compile: an index says how many" in said(capsys, "--resolution", "128")[1]


def test_an_index_of_other_settings_is_named(capsys, project):
    write_index(project, 40, 7)
    shutil.copy(ROOT / "dvc.yaml", project)
    made = recorded.written("index")
    for changes, arguments, wanted in (
        ({}, [], []),
        ({"index.resolution": 256}, [], ["index.resolution 256 -> 64"]),
        ({"index.resolution": 256, "index.min_side": 7}, ["--images", "40"], []),
        ({}, ["--resolution", "128"], ["index.resolution 64 -> 128"]),
    ):
        lock = {"stages": {"index": {"params": {"params.yaml": made | changes}}}}
        YAML().dump(lock, project / "dvc.lock")
        text = said(capsys, *arguments)[1]
        assert ("`dvc repro index`" in text) == bool(wanted) and all(one in text for one in wanted)
        assert ("by dvc.lock (a stage run by hand is not in it)" in text) == bool(wanted)
        assert json.loads(said(capsys, *arguments, "--json")[1])["index_differs"] == wanted


def test_one_bucket_is_no_buckets(capsys, project):
    write_index(project, 1, 1)
    assert "over 1 bucket:" in said(capsys)[1]


@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_the_tokens_are_those_of_the_cache(chunks):
    """Chunks share one begin and one end."""
    hidden = tokens.join_chunks(np.zeros((chunks, 77, 160), np.float16))
    run = from_params(params(**{"cache_text.chunks": chunks}), 10)
    assert disk.cache_parts(run)[1] == hidden.nbytes + 96 * 4


def test_rows_and_held_out_pictures_count():
    changes = {"cache_latents.crop": "random", "cache_latents.crops": 3, "cache_latents.flip": True}
    epochs = {"train.steps": None, "train.epochs": 2, "train.validation_share": 0.25, "train.batch_size": 10}
    latent, caption = 8 * 8 * 8 * 2, 77 * 160 * 2 + 96 * 4
    run = from_params(params(**changes | epochs), 100)
    assert disk.cache_bytes(run) == 100 * (6 * latent + caption)
    assert duration.steps(run) == 2 * 8  # of 75 pictures


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ([], "outs/index/images.parquet is not there: run `dvc repro index`, or say how many pictures with --images"),
        (["--images", "0"], "wanted a whole number of 1 to 999,999,999,999, found '0'"),
        (["--images", "-5"], "--images"),
        (["--images", "99999999999999"], "to 999,999,999,999, found '99999999999999'"),
        (["--images", "many"], "found 'many'"),
        (["--images", "10", "--resolution", "1000"], "--resolution must be a multiple of 32, found 1000"),
        (["--images", "10", "--steps", "0"], "--steps"),
        (["--images", "10", "--config", "sd15"], "--config"),
    ],
)
def test_a_fault_is_said_without_a_traceback(capsys, project, arguments, wanted):
    code, text = said(capsys, *arguments)
    assert code == 2 and wanted in text


def test_a_broken_index_and_broken_params_are_named(capsys, project):
    write_index(project, 3, 3)
    (project / "outs/index/images.parquet").write_bytes(b"PAR1 and no more")
    code, text = said(capsys)
    assert code == 1 and "python -m pipeline plan: " in text and "arquet" in text
    (project / "params.yaml").write_text("data: 5")
    code, text = said(capsys)
    assert code == 1 and "params.yaml cannot be used as it stands" in text


def test_the_help_explains_each_option(capsys, project):
    code, text = said(capsys, "--help")
    assert code == 0 and "outs/index" in text and all(option in text for option in FULL_SIZE[::2])


def test_the_command_needs_no_mindspore():
    script = "import sys, pipeline.plan; sys.exit('mindspore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0
