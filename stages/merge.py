"""The trained UNet and the base's other components -> one checkpoint for MindONE and one for ComfyUI and diffusers.

outs/merge/merged.ckpt, outs/merge/merged.safetensors"""

from pathlib import Path

from pipeline.models.config import CONFIGS
from pipeline.params import Params
from pipeline.stage import StageError, run
from pipeline.weights import marks
from pipeline.weights.merge import merge

TRAINED = {"raw": Path("outs/train/weights/unet.ckpt"), "ema": Path("outs/train/weights/unet_ema.ckpt")}
CONVERTED = Path("outs/convert")


def main(params: Params) -> None:
    unet = TRAINED[params.merge.weights]
    if not unet.exists():
        hint = {
            "raw": "run `dvc repro train`",
            "ema": "set train.ema to true and train again, or set merge.weights to raw",
        }
        wanted = f"merge.weights: {params.merge.weights} asks for it"
        raise StageError(f"{unet} does not exist and {wanted}; {hint[params.merge.weights]}")
    components = {"unet": unet, **{part: CONVERTED / f"{part}.ckpt" for part in ("clip_l", "clip_g", "vae")}}
    trained_with = marks.written(params.diffusion.prediction, params.diffusion.zero_terminal_snr)
    merge(components, CONFIGS[params.model.config], params.merge.dtype, Path("outs/merge"), trained_with)


if __name__ == "__main__":
    run(main)
