"""Write diffusers_folder/: diffusers' and transformers' own conversion of a small checkpoint in Stability's layout.

    pip install torch diffusers transformers pydantic ruamel.yaml
    (made with torch 2.13.0, diffusers 0.39.0, transformers 4.57.1)
    python -m tests.golden.make_diffusers_folder

The source holds tests.weights.synthetic's values for the configuration SMALL. The UNet is saved in shards with an index, the
VAE and text encoders whole. The models are loaded strictly, so every name and shape in the folder is diffusers'."""

from pathlib import Path

import torch

from pipeline.models.config import CLIPConfig, SDXLConfig, UNetConfig, VAEConfig
from pipeline.weights import layout
from tests.golden.diffusers_models import models
from tests.weights import synthetic

# As small as shows every kind of block: a level without attention, one of depth 1 and one of depth 2.
SMALL = SDXLConfig(
    unet=UNetConfig(4, (1, 2, 3), (0, 1, 2), context_dim=24, vector_dim=40, head_dim=4, norm_groups=2),
    vae=VAEConfig(channels=4, channel_mult=(1, 2, 2, 4), num_res_blocks=2, norm_groups=2),
    clip_l=CLIPConfig(width=8, layers=2, heads=2, vocab_size=32),
    clip_g=CLIPConfig(width=16, layers=2, heads=2, vocab_size=32, projection_dim=12),
)
SHARDS = {"unet": {"max_shard_size": "60KB"}}


def save(model: torch.nn.Module, folder: Path, **options) -> None:
    model.half().save_pretrained(folder, safe_serialization=True, **options)
    (folder / "config.json").unlink()


def main() -> None:
    source = {
        name: torch.from_numpy(synthetic.bits(name, shape, "float16").copy())
        for name, shape in layout.shapes(SMALL).items()
    }
    for folder, model in models(SMALL, source).items():
        save(model, Path(__file__).parent / "diffusers_folder" / folder, **SHARDS.get(folder, {}))


if __name__ == "__main__":
    main()
