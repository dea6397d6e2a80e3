"""Each stage's own code with SDXL's presets at full size, on a few pictures, up to where it would read weights' values or
take an NPU: which rows, batches, graphs and bytes it has planned then."""

import json
from collections import Counter
from math import prod
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import params, preset
from pipeline.cache.building import engine
from pipeline.cache.format import shards
from pipeline.models.config import CONFIGS
from pipeline.progress import Bar
from pipeline.training import build, launch, run
from pipeline.weights import convert, layout
from pipeline.weights import merge as merging
from pipeline.weights.chosen import file_name
from stages import cache_latents, cache_text, index, merge, sample, train
from stages import convert as converting
from tests import stub_npus
from tests.cache.cache_samples import caption, latent, write_cache

SDXL = [name for name in preset.PRESETS if name != "tiny"]
BUCKETS = {(1024, 1024): 20, (832, 1216): 17, (1152, 896): 16}  # width and height: pictures, of which 16 are enough
BYTES = 2 * (2_567_463_684 + 123_060_480 + 694_659_841 + 83_653_863)  # of UNet, CLIP-L, bigG and VAE


class Stop(Exception):
    """At the place where values or a device would come."""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """The index of pictures in three buckets and in one that is given up, and files that stand for weights."""
    root = tmp_path_factory.mktemp("presets")
    (root / "pictures").mkdir()
    for (width, height), count in {**BUCKETS, (1536, 640): 2}.items():
        for number in range(count):
            path = root / f"pictures/{width}-{number}"
            Image.new("RGB", (width, height), (number, width % 251, 9)).save(f"{path}.png", compress_level=1)
            path.with_suffix(".txt").write_text(f"picture {number}")
    (root / "tokenizer").mkdir()
    vocabulary = {str(number): number for number in range(49408)}
    (root / "tokenizer/vocab.json").write_text(json.dumps(vocabulary))
    (root / "tokenizer/merges.txt").write_text("")
    (root / "outs/convert").mkdir(parents=True)
    for part in ("unet", "vae", "clip_l", "clip_g"):
        (root / f"outs/convert/{part}.ckpt").write_text(part)
    (root / "outs/convert/sources.json").write_text(
        json.dumps(dict.fromkeys(("base", "vae"), {"name": "base.safetensors", "file": True, "sha256": "0"}))
    )
    (root / "outs/merge").mkdir()
    for name in ("merged.ckpt", "merged.safetensors"):
        (root / f"outs/merge/{name}").touch()
    write_weights(root / "base.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("PIPELINE_STORE", str(root / "store"))
        index.main(settings("sdxl-1x910b"))
    return root


def write_weights(path: Path) -> None:
    """SDXL's header in float16, and values that take no room on the disk."""
    header, end = {}, 0
    for name, shape in layout.shapes(CONFIGS["sdxl-base"]).items():
        begin, end = end, end + 2 * prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(file.tell() + end)


def settings(name: str) -> params.Params:
    found = params.check(params.parse(preset.write(name, None).text, name), name)
    own = {"data.images": "pictures", "index.workers": 1, "model.tokenizer": "tokenizer"}
    own |= {"model.base": "base.safetensors", "model.vae": "base.safetensors", "model.lora_folder": "."}
    return params.replaced(found, own)


@pytest.fixture(params=SDXL)
def found(request, workspace, monkeypatch, tmp_path):
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("PIPELINE_STORE", str(workspace / "store"))
    for name in ("RANK_ID", "OMPI_COMM_WORLD_RANK", "MS_ROLE", "RANK_TABLE_FILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("MS_DEV_RUNTIME_CONF", "ONEDNN_MAX_CPU_ISA"):  # which the train stage sets
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    chosen = settings(request.param)
    stub_npus.show(monkeypatch, tmp_path / "dev", chosen.device.workers)
    return chosen


BARS = []  # those that were open then


def stopped(monkeypatch, module, name: str, main, found: params.Params) -> tuple:
    """What `main(found)` calls `module.name` with; there it ends."""
    given = []

    def stop(*arguments, **named):
        given.append(arguments)
        BARS[:] = [(bar.desc, bar.unit, bar.total) for bar in Bar.all_open]
        raise Stop

    monkeypatch.setattr(module, name, stop)
    with pytest.raises(Stop):
        main(found)
    return given[0]


def rows() -> list[dict]:
    return [row for row in pq.read_table("outs/index/images.parquet").to_pylist() if row["rejected"] is None]


def test_index_has_the_buckets_of_the_preset(found):
    used = Counter((row["bucket_width"], row["bucket_height"]) for row in rows())
    assert used.keys() == BUCKETS.keys() and used.total() == sum(BUCKETS.values()) + 2
    assert min(used.values()) >= found.index.min_bucket


def test_convert_writes_all_values(found, monkeypatch):
    total, unit, _ = stopped(monkeypatch, convert.progress, "Bar", converting.main, found)
    assert (total, unit) == (BYTES, "B")


def test_cache_latents_plans_a_row_for_each_picture(found, monkeypatch):
    job, out, _ = stopped(monkeypatch, engine, "build", cache_latents.main, found)
    of_picture = (2 if found.cache_latents.flip else 1) * found.cache_latents.crops
    assert out == "outs/latents" and len(job.wanted.rows) == len(rows()) * of_picture
    assert {(width, height) for height, width in job.wanted.groups.tolist()} == BUCKETS.keys()
    pixels, _ = job.prepare(0)
    assert pixels.shape == (3, *job.wanted.groups[0]) and pixels.dtype == np.float32
    assert (job.wanted.kind.name, job.unit) == ("latents", "image")  # of its bar
    assert (job.batch_size, job.workers) == (found.cache_latents.batch_size, found.cache_latents.workers)


def test_cache_text_plans_a_row_for_each_distinct_caption(found, monkeypatch):
    job, out, _ = stopped(monkeypatch, engine, "build", cache_text.main, found)
    assert out == "outs/text" and len(job.wanted.rows) == 20 + 1  # "picture 0" to "picture 19", and the empty one
    assert job.batch_size == found.cache_text.batch_size
    assert (job.wanted.kind.name, job.unit) == ("text", "caption")  # of its bar


def caches(found: params.Params, workspace) -> None:
    """Of the preset's own fingerprints, one for all presets: they encode alike."""
    if (workspace / "outs/latents").exists():
        return
    channels = {"moments": 8, "mean": 4, "sample": 4}[found.cache_latents.store]
    used = [latent(row["image"], (row["bucket_width"], row["bucket_height"]), channels=channels) for row in rows()]
    made_with = cache_latents.describe(found, workspace / cache_latents.VAE)
    write_cache(workspace / "outs/latents", shards.LATENTS, used, made_with)
    files = {name: workspace / name for name in (cache_text.CLIP_L, cache_text.CLIP_G, found.model.tokenizer)}
    texts = [caption(text, width=2048, pooled_width=1280) for text in ["", *(f"picture {n}" for n in range(20))]]
    write_cache(workspace / "outs/text", shards.TEXT, texts, cache_text.describe(found, files))


def test_train_plans_its_steps_ranks_and_graphs(found, workspace, monkeypatch):
    caches(found, workspace)
    ranks = found.device.workers * found.device.nodes
    data = []
    real = train.open_data
    monkeypatch.setattr(train, "open_data", lambda *given: data.append(real(*given)) or data[0])
    trainings = []
    make = train.key.training
    monkeypatch.setattr(train.key, "training", lambda *given: trainings.append(make(*given)) or trainings[0])
    if ranks > 1:
        device, script, _ = stopped(monkeypatch, launch, "start", train.main, found)
        assert (device.workers * device.nodes, script) == (ranks, [train.__file__])
    else:
        monkeypatch.setattr(build, "device", lambda wanted: None)
        given = stopped(monkeypatch, run, "fine_tune", train.main, found)
        assert given[0] is trainings[0] and given[3] == "sdxl-base"
    description = trainings[0].description
    per_rank = found.train.batch_size * found.train.gradient_accumulation_steps
    assert description["train"]["global_batch"] == per_rank * ranks and trainings[0].split["ranks"] == ranks
    assert trainings[0].reach.end == found.train.steps
    assert ("origin" in description) == (found.train.adapter != "none")
    assert 0.8 * len(rows()) < len(data[0].subset) <= len(rows())  # some 5 % are held out
    assert set(map(tuple, data[0].reader.buckets.tolist())) == BUCKETS.keys()


def test_merge_writes_all_values(found, workspace, monkeypatch):
    adapts = found.train.adapter != "none"
    weights = workspace / "outs/train/weights"
    weights.mkdir(parents=True, exist_ok=True)
    (weights / file_name(found.merge.weights, adapts)).touch()
    (weights / "run.json").write_text(json.dumps(RUN | {"description": {"train": found.train.model_dump()}}))
    monkeypatch.setattr(merging, "_open", lambda part, path, shapes: {})  # the values' part
    monkeypatch.setattr(merging, "base_part", lambda path, part, config: {})
    monkeypatch.setattr(merging, "apply", lambda tensors, adapters, *how: tensors)
    monkeypatch.setattr(merge.card, "render", lambda *given: "")
    monkeypatch.setattr(merge.provenance, "metadata", lambda *given: {})
    total, unit, _ = stopped(monkeypatch, merging.progress, "Bar", merge.main, found)
    assert (total, unit) == (BYTES * {"float16": 1, "bfloat16": 1, "float32": 2}[found.merge.dtype], "B")


RUN = {"name": "n", "split": {}, "steps": 1, "best_step": None, "pictures": 1, "images": "0"}


def test_sample_plans_its_batches(found, monkeypatch):
    _, units, _ = stopped(monkeypatch, sample, "paint", sample.main, found)
    prompts = len(found.sample.prompts)
    steps = found.sample.steps * len(units)
    assert BARS == [(f"draws {prompts} prompts with 2 models", "step", steps)]
    for model in ("base", "tuned"):
        mine = [unit for unit in units if unit.model.name == model]
        assert sum(unit.count for unit in mine) == prompts
        assert {len(unit.chosen) for unit in mine} == {min(found.sample.batch_size, prompts)}
