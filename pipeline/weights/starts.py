"""With which files a training begins: train.init_from, and the base's components."""

from pathlib import Path

from pipeline.stage import StageError
from pipeline.weights.chosen import trained_parts
from pipeline.weights.files import read_file
from pipeline.weights.names import canonical, part_of

TEXTS = {"clip_l": "CLIP-L", "clip_g": "bigG"}


def starts(init_from: Path, converted: Path, text_encoders: str) -> dict[str, Path]:
    """unet, clip_l, clip_g -> the file that it begins with: `init_from` (train.init_from) the UNet, and those text encoders
    that are trained (train.text_encoders) and that the file holds; the folder `converted` has the others. Raises
    StageError where text encoders that were trained with that UNet would be lost."""
    found = {"unet": init_from} | {part: converted / f"{part}.ckpt" for part in TEXTS}
    if init_from == converted / "unet.ckpt":
        return found
    held = {part_of(canonical(name)) for name in read_file(init_from)}
    trained = trained_parts(text_encoders)
    lost = [part for part in TEXTS if part in held and part not in trained]
    if lost and "vae" not in held:  # it is no whole model, whose UNet alone may be wanted
        names = " and ".join(TEXTS[part] for part in lost)
        wanted = "both" if len({*lost, *trained}) == 2 else lost[0]
        raise StageError(
            f"train.init_from: {init_from} holds {names} as trained with its UNet, and train.text_encoders "
            f"{text_encoders} would take the base's in that place; wanted train.text_encoders {wanted}, or as model.base "
            "the merged.safetensors that was made of it"
        )
    return found | {part: init_from for part in trained if part in held}
