"""What a computer can see in the demo's pictures:  python -m demo.check, after `dvc repro`

Whether shape and background have the caption's colours, and how much is near white, which the base style never has and
the sticker style always has, in its outline."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from demo.pictures import BACKGROUND_COLORS, SHAPE_COLORS, parse
from pipeline import params
from pipeline.sampling.picture import pictures as drawn_from

NEAR_WHITE = 235  # of 255, in all three channels
BORDER = 3  # pixels along the edge that show the background, for the most part
SHADES = (0.45, 0.6, 0.8)  # of the background under a sticker's shadow


def white_share(picture: np.ndarray) -> float:
    """The share of near-white pixels of (h, w, 3) uint8: 0 in the base style, a tenth or more in the sticker style."""
    return float((picture.min(axis=2) >= NEAR_WHITE).mean())


def colors(picture: np.ndarray) -> tuple[str, str]:
    """(colour of the shape, colour of the background), names of demo/pictures.py, of a picture (h, w, 3) uint8.

    The background is the median of the border. The shape's colour is the one that most pixels are nearest to, of those
    that are not near white and not nearest to the background, in light or shadow."""
    inner = picture[BORDER:-BORDER, BORDER:-BORDER]
    mask = np.ones(picture.shape[:2], bool)
    mask[BORDER:-BORDER, BORDER:-BORDER] = False
    ground = np.median(picture[mask], axis=0)
    background = _nearest(ground[None], BACKGROUND_COLORS)[0]

    palette = dict(SHAPE_COLORS) | {f"ground {shade}": shade * ground for shade in (1.0, *SHADES)}
    pixels = inner.reshape(-1, 3).astype(float)
    pixels = pixels[(pixels.min(axis=1) < NEAR_WHITE) & (np.linalg.norm(pixels - ground, axis=1) > 45)]
    votes = [name for name in _nearest(pixels, palette) if name in SHAPE_COLORS] if len(pixels) else []
    return max(sorted(set(votes)), key=votes.count, default=""), background


def agrees(picture: np.ndarray, caption: str) -> tuple[bool, bool]:
    """Whether the shape's and the background's colours are those of the caption. Ends the program where it is none of
    the demo's."""
    try:
        scene = parse(caption)
    except ValueError as error:
        sys.exit(f"sample.prompts: {error}")
    shape, background = colors(picture)
    return shape == scene.color, background == scene.background


def report(pictures: list[np.ndarray], captions: list[str]) -> dict[str, float]:
    """Shares of pictures with the caption's shape colour and with its background colour; mean share of white."""
    agreement = np.array([agrees(picture, caption) for picture, caption in zip(pictures, captions, strict=True)])
    shape, background = agreement.mean(axis=0)
    return {
        "shape_color": float(shape),
        "background_color": float(background),
        "white": float(np.mean([white_share(picture) for picture in pictures])),
    }


def _nearest(pixels: np.ndarray, palette: dict) -> list[str]:
    names, values = list(palette), np.array(list(palette.values()), float)
    return [names[i] for i in np.linalg.norm(pixels[:, None] - values, axis=2).argmin(axis=1)]


def main() -> None:
    """Print both models' reports. Exits with 1 when the fine-tuned model has not learnt the style, or lost the text."""
    prompts = [one.prompt for one in drawn_from(params.load().sample)]
    found = {}
    for model in ("base", "tuned"):
        paths = sorted(Path("outs/sample").glob(f"*_{model}.png"))
        if len(paths) != len(prompts):
            sys.exit(f"outs/sample holds {len(paths)} pictures for {len(prompts)} prompts; run `dvc repro sample`")
        drawn = [np.array(Image.open(path)) for path in paths]
        found[model] = report(drawn, prompts)
        print(model, {key: round(value, 3) for key, value in found[model].items()})
    base, tuned = found["base"], found["tuned"]
    if tuned["white"] < base["white"] + 0.04 or min(tuned["shape_color"], tuned["background_color"]) < 0.75:
        sys.exit("wanted of the fine-tuned model: 0.04 more white than the base model, and 0.75 of the prompts' colors")


if __name__ == "__main__":
    main()
