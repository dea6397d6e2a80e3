"""The planner's bytes against what MindSpore allocates for the tiny UNet, and its advice."""

import shutil
import subprocess
import sys
from dataclasses import replace

import pipeline.device  # noqa: F401  (before MindSpore)
import mindspore as ms
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pipeline.models.load import load_weights
from pipeline.models.unet import UNet
from pipeline.training.optimizer import Adafactor, AdamW, decays
from pipeline.training.step import average_of

from pipeline import plan
from pipeline.models.config import TINY
from pipeline.training import memory
from pipeline.weights import ckpt
from pipeline.weights.names import PREFIX
from tests.training_samples import ROOT, params

SHAPES = plan.unet_shapes("tiny")
FULL = plan.Run(
    config="sdxl-base", images=100_000, resolution=1024, devices=8, batch_size=1, accumulation=1, steps=None, epochs=2,
    precision="bfloat16", param_fp16=False, optimizer="adamw", shard_optimizer=False, ema=False,
    gradient_checkpointing=True,
    attention="tiled", latent_channels=8, chunks=1,
)  # fmt: skip


def nbytes(parameters) -> int:
    return sum(p.asnumpy().nbytes for p in parameters)


@pytest.fixture(scope="module")
def unet(device):
    return UNet(TINY.unet)


def test_parameters_are_those_that_are_allocated(unet, tmp_path):
    assert memory.parameters(SHAPES, False) == nbytes(unet.get_parameters())
    path = tmp_path / "unet.ckpt"
    with ckpt.Writer(path) as writer:
        for p in unet.get_parameters():
            writer.add(PREFIX["unet"] + p.name, p.asnumpy())
    half = UNet(TINY.unet)
    load_weights(half, path, PREFIX["unet"], ms.float16)
    assert memory.parameters(SHAPES, True) == nbytes(half.get_parameters())


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_optimizer_is_what_is_allocated(unet, ranks):
    adamw = AdamW(unet.trainable_params(), decays(unet), 0.01, 0.9, 0.999, 1e-8, rank=0, ranks=ranks)
    assert memory.optimizer(SHAPES, "adamw", ranks) == nbytes((*adamw.moment1, *adamw.moment2, adamw.updates))
    whole = memory.optimizer(SHAPES, "adamw", 1)
    assert memory.optimizer(SHAPES, "adamw", ranks) == pytest.approx(whole / ranks, rel=0.02)


def test_adafactor_and_ema_are_what_is_allocated(unet):
    adafactor = Adafactor(unet.trainable_params(), decays(unet), 0.01)
    assert memory.optimizer(SHAPES, "adafactor", 1) == nbytes((*adafactor.rows, *adafactor.columns, adafactor.updates))
    assert memory.ema(SHAPES) == nbytes(average_of(unet.trainable_params()))


def test_the_full_size_has_sdxls_parameters():
    parts = plan.device_bytes(FULL)
    assert parts["parameters"] == 2_567_463_684 * 4
    assert parts["optimizer"] == 2_567_463_684 * 8 + 4


@pytest.mark.parametrize(
    ("change", "part", "grows"),
    [
        ({"batch_size": 2}, "activations (estimated)", True),
        ({"resolution": 2048}, "activations (estimated)", True),
        ({"gradient_checkpointing": False}, "activations (estimated)", True),
        ({"precision": "float32"}, "activations (estimated)", True),
        ({"attention": "plain"}, "activations (estimated)", True),
        ({"shard_optimizer": True}, "optimizer", False),
        ({"optimizer": "adafactor"}, "optimizer", False),
        ({"accumulation": 2}, "gradients", True),
        ({"precision": "float16", "param_fp16": True}, "parameters", False),
    ],
)
def test_what_changes_which_part(change, part, grows):
    before, after = plan.device_bytes(FULL)[part], plan.device_bytes(replace(FULL, **change))[part]
    assert (after > before) is grows and after != before


def test_steps_cache_and_hours():
    assert plan.steps(FULL) == 2 * 12_500
    assert plan.cache_bytes(FULL) == 100_000 * (8 * 128 * 128 * 2 + 77 * 2048 * 2 + 1280 * 4)
    best, worst = plan.hours(FULL)
    assert best == pytest.approx(25_000 * 0.53 / 3600) and worst == pytest.approx(25_000 * 1.10 / 3600)
    assert plan.hours(replace(FULL, config="tiny")) is None


def test_it_says_what_would_make_a_run_fit():
    heavy = replace(FULL, batch_size=6, precision="float32", gradient_checkpointing=False)
    assert not plan.fits(heavy)
    ways = plan.ways_to_fit(heavy)
    assert ways and all(way.startswith("train.") or way.startswith("device.") for way in ways)
    assert "train.gradient_checkpointing: true" in ways
    assert plan.fits(replace(heavy, gradient_checkpointing=True))
    report = plan.report(heavy)
    assert "Does NOT fit" in report and "would fit with train.gradient_checkpointing: true" in report
    # where no single setting is enough, several together are named
    together = plan.ways_to_fit(replace(heavy, batch_size=8, resolution=2048, ema=True))
    assert together == [] or " and " in together[0]


def test_it_takes_params_as_they_stand():
    run = plan.from_params(
        params(**{"train.batch_size": 5, "device.workers": 2, "device.nodes": 3, "device.master": "a:1", "train.ema": True}), 77
    )
    assert (run.batch_size, run.devices, run.ema, run.images, run.latent_channels) == (5, 6, True, 77, 8)
    assert "Fits a card" in plan.report(run)


def said(capsys, *arguments: str) -> tuple[int, str]:
    """(exit code, what the command printed)"""
    try:
        plan.main(list(arguments))
        code = 0
    except SystemExit as ended:  # with a message, argparse with 2
        code = ended.code if isinstance(ended.code, int) else print(ended.code) or 1
    captured = capsys.readouterr()
    return code, captured.out + captured.err


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with params.yaml and nothing else, to run the command in."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


FULL_SIZE = ["--config", "sdxl-base", "--resolution", "1024", "--devices", "8", "--batch-size", "4", "--steps", "10"]


def test_the_command(capsys, project):
    code, text = said(capsys, "--images", "1000", *FULL_SIZE)
    assert code == 0 and "10,269,854,736 bytes" in text and "Steps: 10" in text and "Hours on Ascend 910B" in text


def write_index(project, pictures: int, captions: int) -> None:
    """An index of so many used pictures, each of them twice, and one more that is rejected."""
    (project / "outs/index").mkdir(parents=True)
    images = [n.to_bytes(16, "big") for n in range(pictures)]
    rows = [(image, f"{copy}.png", None) for image in images for copy in "ab"] + [(b"x" * 16, "x.png", "too small")]
    pq.write_table(
        pa.table(
            [pa.array(column, kind) for column, kind in zip(zip(*rows), (pa.binary(16), pa.string(), pa.string()))],
            ["image", "path", "rejected"],
        ),
        project / "outs/index/images.parquet",
    )
    names = [(n % captions).to_bytes(16, "big") for n in range(pictures)]
    columns = {"image": pa.array(images, pa.binary(16)), "caption": pa.array(names, pa.binary(16))}
    pq.write_table(pa.table(columns), project / "outs/index/captions.parquet")


def test_the_command_counts_the_index(capsys, project):
    """As the README has it: without options."""
    write_index(project, 40, 7)
    code, text = said(capsys)
    latent, caption = 8 * 8 * 8 * 2, 77 * 160 * 2 + 96 * 4
    assert code == 0 and "Caches of 40 pictures and 8 captions:" in text  # the empty one is the eighth
    counted = plan.from_params(params(), *plan.count_index(project / "outs/index"))
    assert plan.cache_bytes(counted) == 40 * latent + 8 * caption
    assert "Caches of 77 pictures:" in said(capsys, "--images", "77")[1]


def test_rows_and_held_out_pictures_count():
    changes = {"cache_latents.crop": "random", "cache_latents.crops": 3, "cache_latents.flip": True}
    epochs = {"train.steps": None, "train.epochs": 2, "train.validation_share": 0.25, "train.batch_size": 10}
    latent, caption = 8 * 8 * 8 * 2, 77 * 160 * 2 + 96 * 4
    run = plan.from_params(params(**changes | epochs), 100)
    assert plan.cache_bytes(run) == 100 * (6 * latent + caption)
    assert plan.steps(run) == 2 * 8  # of 75 pictures


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ([], "outs/index/images.parquet is not there: run `dvc repro index`, or say how many pictures with --images"),
        (["--images", "0"], "wanted a whole number above 0, found '0'"),
        (["--images", "-5"], "--images"),
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
