"""Fine-tune the UNet on the caches, where the VAE and the text encoders are not even loaded; or with train.source pictures
on the pictures and captions themselves, which both encode in every step; or with train.text_encoders on cached latents
and captions, whose encoders are trained with it.

outs/train/weights/unet.ckpt, unet_ema.ckpt with train.ema, those in between with train.save_interval and
train.keep_best, and the curves in outs/train/live/. With train.adapter it is adapters that are trained, and the weights
are adapter.safetensors and so on. A killed run goes on by itself from its last state in the store, and
a longer one from that of a shorter one where train.lr_scheduler allows it. A run waits while another process trains the
same, and takes the outs of a training that is done already. With device.workers or device.nodes above 1 the stage starts
its ranks under msrun; it may as well be started by msrun or mpirun, or with a rank table."""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from pipeline import hardware
from pipeline.cache.building.tokens import check_vocabulary
from pipeline.cache.format import fingerprint
from pipeline.cache.format.preparation import usual
from pipeline.cache.reading.live import Originals
from pipeline.cache.reading.texts import Captions
from pipeline.data.part import is_far
from pipeline.data.sources import open_source
from pipeline.models.config import CONFIGS
from pipeline.params import Params, Train, replaced
from pipeline.stage import StageError, run
from pipeline.training import finished, key, launch, tensorboard
from pipeline.training.data import Paths, count_steps, open_data
from pipeline.training.key import Training
from pipeline.weights import provenance
from pipeline.weights.source import check_start, open_part
from pipeline.weights.starts import starts

PATHS = Paths(
    unet=Path("outs/convert/unet.ckpt"),  # or train.init_from
    latents=Path("outs/latents"),
    text=Path("outs/text"),
    samples=Path("outs/index/samples.parquet"),
    vae=Path("outs/convert/vae.ckpt"),
    clip_l=Path("outs/convert/clip_l.ckpt"),
    clip_g=Path("outs/convert/clip_g.ckpt"),
    out=Path("outs/train"),
)
IMAGES, CAPTIONS = Path("outs/index/images.parquet"), Path("outs/index/captions.parquet")  # where no cache is read
RANK = "stages.train"  # what each rank on a cluster's nodes runs
SOURCES = Path("outs/convert") / provenance.SOURCES  # which an adapter's file names


def main(params: Params) -> None:
    d = params.device
    if d.cluster is None or launch.inside():
        hardware.check(params, *_sections(params))
        _train(params, launch.target(d), lambda *_: launch.start(d, [__file__], Path("outs/train-logs")))
        return
    from pipeline.training import on_nodes  # Ray
    from pipeline.workers import cluster

    with cluster.connected(d.cluster):
        target = cluster.target(d)
        hardware.check_cluster(params, target, *_sections(params))
        params = replaced(params, {"device.target": target})
        _train(params, target, partial(on_nodes.train, *_for_nodes(params), PATHS.out, RANK))


def _train(params: Params, target: str, start: Callable[[Callable[[Train, int], Training]], None]) -> None:
    """Train on `target` in this process, or `start` the ranks that do."""
    paths = replace(PATHS, **_starts(params))
    reads = _sections(params)
    originals = _originals(params) if "cache_latents" in reads else None
    captions = _captions(params) if "cache_text" in reads else None
    how = usual(params.cache_latents), originals, captions, params.cache_text.emphasis
    data = open_data(paths, made_with(params), params.train, *how)
    if params.train.sample_interval and params.device.node_rank == 0 and not PATHS.vae.exists():
        raise StageError(f"train.sample_interval is above 0 and {PATHS.vae} does not exist; run `dvc repro convert`")
    origin = _origin(params)
    ranks = launch.world_size(params.device)
    end, _ = count_steps(data, params.train, ranks)
    d = params.device
    kernels = launch.kernels(d, target)

    def training_of(train: Train, ranks: int) -> Training:
        return key.training(paths, params.model.config, kernels, params.diffusion, train, ranks, end, origin)

    training = training_of(params.train, ranks)
    with launch.turn(training.name, d):
        if launch.first(d):
            done = finished.take(training, PATHS.out, params.train.keep_state)
        else:
            done = finished.there(training)
        if done:
            if params.train.tensorboard and launch.first(d):
                tensorboard.writer(PATHS.out / "live").close()
            return
        if (ranks > 1 or d.cluster) and not launch.inside():
            data.reader.close()
            start(training_of)
            return

        # Training convolves by products on a CPU, and they want AVX-512 (pipeline/models/cpu/convolution.py).
        os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "DEFAULT")
        if target == "Ascend":
            os.environ.setdefault("MS_DEV_RUNTIME_CONF", "backend_compile_cache:False")  # see training/compiled.py
        # Only now: importing MindSpore takes seconds.
        from pipeline.training import build
        from pipeline.training.run import fine_tune

        device = build.device(d)
        fine_tune(training, data, paths, params.model.config, device, params.diffusion, params.train)


def _sections(params: Params) -> list[str]:
    """Of params.yaml, those whose demands on the device this stage has."""
    live = {"cache_latents": params.train.source == "pictures", "cache_text": params.train.reads_captions}
    return ["device", "train", *(section for section, read in live.items() if read)]


def _for_nodes(params: Params) -> tuple[Params, dict[str, Path]]:
    """`params` as they are on a node of a cluster, and what it needs of this computer, by its place there."""
    files = {str(path): path for path in (*vars(PATHS).values(), SOURCES) if path != PATHS.out and path.exists()}
    start, there = Path(params.train.init_from), {}
    if start != PATHS.unet:
        there["train.init_from"] = f"start/{start.name}"
        files[f"start/{start.name}"] = start
    if params.train.reads_captions:
        there["model.tokenizer"] = "tokenizer"
        files |= {str(CAPTIONS): CAPTIONS, "tokenizer": Path(params.model.tokenizer)}
    if params.train.source == "pictures":
        files[str(IMAGES)] = IMAGES
        images = params.data.images
        if images.lower().endswith(".urls"):
            there["data.images"] = "pictures.urls"
            files["pictures.urls"] = Path(images)
        elif not is_far(images):
            there["data.images"] = os.path.abspath(images)
    return replaced(params, there), files


def _starts(params: Params) -> dict[str, Path]:
    """unet, clip_l, clip_g -> the file of the weights to start from, where it is not the base's UNet. Raises StageError as
    check_start and starts do."""
    start, config, diffusion = Path(params.train.init_from), CONFIGS[params.model.config], params.diffusion
    if start == PATHS.unet:
        return {}
    check_start(start, config, diffusion.prediction, diffusion.zero_terminal_snr)
    found = starts(start, PATHS.unet.parent, params.train.text_encoders)
    taken = [part for part, path in found.items() if path == start]
    for part in taken[1:]:
        open_part(start, part, config)
    print(f"train.init_from: of {start} it takes {', '.join(taken)}; the rest is model.base's")
    return found


def _origin(params: Params) -> dict | None:
    """What an adapter's file says beside what shapes the training."""
    if params.train.adapter == "none":
        return None
    found = {"config": params.model.config, "resolution": params.index.resolution, "date": provenance.date()}
    return provenance.read(SOURCES, "convert") | found


def _originals(params: Params) -> Originals:
    """The pictures, with the fingerprint of what stands for them in outs/latents."""
    latents, how = params.cache_latents, usual(params.cache_latents)
    return Originals(
        IMAGES,
        open_source(params.data.images, image_column=params.data.image_column),
        how,
        fingerprint.latents(
            PATHS.vae,
            config=params.model.config,
            precision=latents.precision,
            batch_size=latents.batch_size,
            preparation=how.fingerprint,
        ),
        latents.workers,
    )


def _captions(params: Params) -> Captions:
    """The captions, with the fingerprint of what stands for them in outs/text."""
    tokenizer, config, text = params.model.tokenizer, params.model.config, params.cache_text
    check_vocabulary(tokenizer, CONFIGS[config].clip_l.vocab_size, config)
    how = {"config": config, "precision": text.precision, "batch_size": text.batch_size, "chunks": text.chunks}
    return Captions(
        CAPTIONS,
        Path(tokenizer),
        fingerprint.text(PATHS.clip_l, PATHS.clip_g, tokenizer, **how),
        text.emphasis,
        CONFIGS[config].clip_l.width,
    )


def made_with(params: Params) -> dict[str, dict]:
    """What the caches' rows must say that they were made with, beside the encoders themselves. DVC sees to that; a
    train stage that is started by hand might find those of other settings."""
    latents = {"config": params.model.config, "precision": params.cache_latents.precision}
    latents |= usual(params.cache_latents).fingerprint
    text = {
        "config": params.model.config,
        "precision": params.cache_text.precision,
        "chunks": params.cache_text.chunks,
    }
    return {"latents": latents, "text": text}


if __name__ == "__main__":
    run(main)
