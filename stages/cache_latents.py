"""Encode every picture once with the VAE: outs/index/images.parquet, outs/convert/vae.ckpt → outs/latents. With
train.source pictures nothing is encoded: the out says so, and by it DVC knows which pictures training reads."""

from dataclasses import replace

from pipeline import hardware
from pipeline.cache.building import engine, pictures, ranks
from pipeline.cache.building.latents import make_job
from pipeline.cache.format import fingerprint, stand_in
from pipeline.cache.format.preparation import usual
from pipeline.data.sources import open_source
from pipeline.models.config import CONFIGS
from pipeline.params import Params
from pipeline.stage import run

IMAGES = "outs/index/images.parquet"
VAE = "outs/convert/vae.ckpt"
OUT = "outs/latents"


def main(params: Params) -> None:
    p, config = params.cache_latents, params.model.config
    preparation = usual(p)

    def describe() -> dict:
        return fingerprint.latents(
            VAE, config=config, precision=p.precision, batch_size=p.batch_size, preparation=preparation.fingerprint
        )

    made_with = describe()
    source = open_source(params.data.images, image_column=params.data.image_column)
    if params.train.source == "pictures":
        found = pictures.open_pictures(IMAGES, source, made_with, replace(preparation, fresh=True))
        print(f"cache_latents: {stand_in.write(OUT, 'latents', made_with, (found.names, found.bucket))}")
        return

    def make_encoder():
        hardware.check(params, "cache_latents")
        from pipeline import device  # MindSpore takes seconds to import, and most runs encode nothing
        from pipeline.models.encode import vae_encoder

        encode = vae_encoder(CONFIGS[config], VAE, device.setup(params.device.target), p.precision)
        fingerprint.check(made_with, describe())
        return encode

    job = make_job(IMAGES, source, made_with, preparation, make_encoder, p.batch_size, p.workers)
    with ranks.beside(params.device.workers) as others:
        report = engine.build(job, OUT, others)
    print(
        f"{report.rows} latents in {report.shards} shards: "
        f"{report.encoded} encoded, {report.shards_written} shards written"
    )


if __name__ == "__main__":
    run(main)
