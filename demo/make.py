"""Makes the repository's embedded default again:  python -m demo.make

data/tokenizer, data/images and data/base/tiny_sdxl.safetensors. The two trainings take about an hour on two cores. A
VAE or UNet that an earlier call has finished is taken from the store: delete .store/demo/ to train them anew."""

import logging
import shutil

from demo import pictures, tokenizer, unet, vae
from pipeline import device, store
from pipeline.stage import PROJECT

IMAGES, SEED = 300, 3
DATA = PROJECT / "data"


def write_images() -> None:
    """data/images: the new style's pictures and captions."""
    with store.atomic(DATA / "images") as folder:
        pictures.write_folder(folder, IMAGES, SEED, "sticker")


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tokenizer.write(DATA / "tokenizer")
    write_images()
    if not (store.root() / vae.PATH).exists():
        device.setup("CPU")
        vae.train(vae.STEPS)
    if not (store.root() / unet.RESULT).exists():
        unet.main()
    with store.atomic(DATA / "base/tiny_sdxl.safetensors") as base:
        shutil.copyfile(store.root() / unet.RESULT, base)


if __name__ == "__main__":
    main()
