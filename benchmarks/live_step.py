"""A training step on cached rows, on pictures, and on cached latents with CLIP-L trained, in one run on a CPU:
python -m benchmarks.live_step

The UNet of benchmarks.train_step, with 33 million parameters, batch 4, pictures of 256x256, a VAE and text encoders whose
parts are as large beside it as SDXL's are beside SDXL's UNet, or nearly. The stages before train make a cache and what
stands for one, of the same random pictures; then each kind takes one step in turns, in the train stage's environment.
A step's time is from when it is asked for to its loss: with the encoders, and with the wait for pictures."""

import argparse
import contextlib
import dataclasses
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

PICTURES, SIDE, BATCH, STEPS, WARM_UP = 64, 256, 4, 40, 10
SETTINGS = {
    "data": {"images": "pictures"},
    "index": {"resolution": SIDE, "bucket_step": 32, "max_enlargement": None},
    "cache_latents": {"batch_size": BATCH},
    "cache_text": {"batch_size": BATCH},
    "train": {"batch_size": BATCH, "validation_share": 0.0, "steps": STEPS + WARM_UP, "lr_warmup_steps": 0},
}


# In this order, for each kind's stages replace the outs of the one before: a reader of pictures needs none any more, and the
# cache's single shard of captions is open by then.
KINDS = {
    "pictures": {"source": "pictures", "text_encoders": "none"},
    "cache": {"source": "cache", "text_encoders": "none"},
    "captions": {"source": "cache", "text_encoders": "clip_l"},
}


def configuration():
    """In the place of the tiny SDXL, whose tokenizer it has."""
    from benchmarks.train_step import CHANNELS, CONTEXT, DEPTH, HEAD, MULT
    from pipeline.models.config import CLIPConfig, SDXLConfig, UNetConfig, VAEConfig

    clip_l = CLIPConfig(width=128, layers=6, heads=2, vocab_size=1024)
    clip_g = CLIPConfig(width=CONTEXT - 128, layers=32, heads=2, vocab_size=1024, projection_dim=CONTEXT)
    unet = UNetConfig(CHANNELS, MULT, DEPTH, CONTEXT, CONTEXT + 6 * 256, HEAD)
    return SDXLConfig(unet, VAEConfig(channels=16, channel_mult=(1, 2, 4, 4), norm_groups=4), clip_l, clip_g)


def write_originals(folder: Path, config) -> None:
    """Random pictures with captions, and random weights of each component."""
    from pipeline.stage import PROJECT
    from pipeline.weights import ckpt, layout
    from pipeline.weights.names import PREFIX, part_of, to_mindspore

    draw = np.random.default_rng(0)
    (folder / "pictures").mkdir()
    (folder / "outs/convert").mkdir(parents=True)
    (folder / "data").mkdir()
    (folder / "data/tokenizer").symlink_to(PROJECT / "data/tokenizer")
    for number in range(PICTURES):
        coarse = draw.integers(0, 256, (12, 12, 3), np.uint8)
        Image.fromarray(coarse).resize((400, 400)).save(folder / f"pictures/{number}.jpg")
        (folder / f"pictures/{number}.txt").write_text(f"a star number {number}")
    for part in PREFIX:
        with ckpt.Writer(folder / f"outs/convert/{part}.ckpt") as writer:
            for name, shape in layout.shapes(config).items():
                if part_of(name) == part:
                    scale = np.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.1
                    values = scale * draw.standard_normal(shape, np.float32) + (len(shape) == 1)
                    writer.add(to_mindspore(name), values.astype(np.float32))


def params(kind: str):
    from pipeline.params import check, parse
    from pipeline.stage import PROJECT

    tree = parse((PROJECT / "presets/tiny.yaml").read_text(), "presets/tiny.yaml")
    for section, keys in SETTINGS.items():
        tree[section] |= keys
    tree["train"] |= KINDS[kind]
    return check(tree, "the benchmark's settings")


def steps(kind: str, device, graphs: dict) -> Iterator[float]:
    """Seconds of each step, from asking for it to its loss. graphs: those of trainings by now, by train.text_encoders."""
    from pipeline.cache.format.preparation import usual
    from pipeline.models.config import CONFIGS
    from pipeline.training import build, drive, feed
    from pipeline.training.compiled import Compiler
    from pipeline.training.data import open_data
    from pipeline.training.objective import objective
    from stages import cache_latents, cache_text
    from stages import train as stage

    p, config = params(kind), CONFIGS["tiny"]
    cache_latents.main(p)
    cache_text.main(p)
    originals = stage._originals(p) if p.train.source == "pictures" else None
    captions = stage._captions(p) if p.train.reads_captions else None
    data = open_data(stage.PATHS, stage.made_with(p), p.train, usual(p.cache_latents), originals, captions)
    if p.train.text_encoders not in graphs:
        trained = build.trained(config, device, p.diffusion, p.train, stage.PATHS)
        compiler = Compiler(None, dataclasses.replace(device, compile_cache=False), 2)
        graphs[p.train.text_encoders] = (
            trained, drive.Graphs(trained.network, trained.update, trained.settings, compiler, False),
        )  # fmt: skip
    trained, graph = graphs[p.train.text_encoders]
    build.start_encoders(data.reader, trained, config, stage.PATHS, device)
    wanted = objective(p.diffusion, p.train, config.vae.scaling_factor)
    source = feed.Steps(data.reader, wanted, data.subset, 0, p.train.steps, BATCH, 1, 0, 1)
    begun = feed.ahead(map(source.begin, range(len(source))))
    for _ in range(len(source)):
        begin = time.perf_counter()
        step = next(begun)()
        graph.take(step.micro_batches, 1e-4, 0.0).asnumpy()
        yield time.perf_counter() - begin


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "DEFAULT")  # as the train stage has it
    import pipeline.device

    from pipeline.models import config as models
    from stages import index

    models.CONFIGS["tiny"] = configuration()
    device = pipeline.device.setup("CPU")
    pipeline.device.setup = lambda *_: device  # once in a process
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        os.environ["PIPELINE_STORE"] = f"{folder}/store"
        write_originals(Path(folder), models.CONFIGS["tiny"])
        index.main(params("cache"))
        graphs: dict = {}
        kinds = {kind: steps(kind, device, graphs) for kind in KINDS}
        seconds = np.array([[next(kind) for kind in kinds.values()] for _ in range(STEPS + WARM_UP)])[WARM_UP:]
    columns = dict(zip(kinds, seconds.T, strict=True))
    for kind, column in columns.items():
        low, median, high = 1000 * np.quantile(column, (0.1, 0.5, 0.9))
        print(f"{kind:9} step {median:4.0f} ms (a tenth below {low:.0f}, a tenth above {high:.0f})")
    for kind in ("pictures", "captions"):
        low, median, high = np.quantile(columns[kind] / columns["cache"], (0.1, 0.5, 0.9))
        print(f"{kind} / cache: {median:.2f} (a tenth of the pairs below {low:.2f}, a tenth above {high:.2f})")


if __name__ == "__main__":
    main()
