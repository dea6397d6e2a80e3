"""Encode every picture once with the VAE: outs/index/images.parquet, outs/convert/vae.ckpt → outs/latents. With
train.source pictures nothing is encoded: the out says so, and by it DVC knows which pictures training reads."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from pipeline import hardware
from pipeline.cache.building import engine, pictures
from pipeline.cache.building.latents import make_job
from pipeline.cache.format import fingerprint, stand_in
from pipeline.cache.format.preparation import usual
from pipeline.data.sources import Source, open_source
from pipeline.models.config import CONFIGS
from pipeline.params import Params
from pipeline.stage import run
from pipeline.workers.crew import Files, crew

IMAGES = "outs/index/images.parquet"
VAE = "outs/convert/vae.ckpt"
OUT = "outs/latents"


def main(params: Params) -> None:
    source = open_source(params.data.images, image_column=params.data.image_column)
    if params.train.source == "pictures":
        made_with = describe(params, Path(VAE))
        found = pictures.open_pictures(IMAGES, source, made_with, replace(usual(params.cache_latents), fresh=True))
        rows = found.names, found.bucket
        print(f"cache_latents: {stand_in.write(OUT, 'latents', made_with, rows, 'train.source is pictures')}")
        return
    files = {name: Path(name) for name in (IMAGES, VAE)}
    job = make(params, files, source)
    with crew(params.device, partial(engine.worker, partial(make, params), job.wanted.key), files, source) as workers:
        report = engine.build(job, OUT, workers)
    print(
        f"{report.rows} latents in {report.shards} shards: "
        f"{report.encoded} encoded, {report.shards_written} shards written"
    )


def describe(params: Params, vae: Path) -> dict:
    """The fingerprint of the latents."""
    p = params.cache_latents
    return fingerprint.latents(
        vae,
        config=params.model.config,
        precision=p.precision,
        batch_size=p.batch_size,
        preparation=usual(p).fingerprint,
    )


def make(params: Params, files: Files, source: Source) -> engine.Job:
    """The job, in this process and in each worker."""
    p, made_with = params.cache_latents, describe(params, files[VAE])

    def make_encoder():
        hardware.check(params, "cache_latents")
        from pipeline import device  # MindSpore takes seconds to import, and most runs encode nothing
        from pipeline.models.encode import vae_encoder

        encode = vae_encoder(CONFIGS[params.model.config], files[VAE], device.setup(params.device.target), p.precision)
        fingerprint.check(made_with, describe(params, files[VAE]))
        return encode

    return make_job(files[IMAGES], source, made_with, usual(p), make_encoder, p.batch_size, p.workers)


if __name__ == "__main__":
    run(main)
