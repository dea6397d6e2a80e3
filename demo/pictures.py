"""Captioned 64×64 pictures drawn by formula: one flat shape on a flat background, in two styles.

`base` is what the demo's UNet is pre-trained on: flat colours, nothing near white. `sticker` is what the pipeline
fine-tunes on: the same scenes with a thick white outline round the shape and a soft shadow under it. The share of
near-white pixels (`demo.check.white_share`) tells the two apart.

A scene is drawn from a NumPy Philox generator, so the same (seed, index) is the same picture everywhere."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 64  # pixels
SUPERSAMPLING = 4  # sub-pixels along one side of a pixel
OUTLINE = 4.5  # pixels of white round a sticker's shape
SHADOW_OFFSET = (2.0, 4.0)  # right and down, pixels
SHADOW_BLUR = 4.0  # pixels over which the shadow fades
STYLES = ("base", "sticker")

SHAPE_COLORS = {
    "red": (214, 32, 38),
    "orange": (240, 134, 20),
    "yellow": (240, 210, 30),
    "green": (36, 158, 58),
    "cyan": (30, 190, 200),
    "blue": (32, 72, 214),
    "purple": (128, 42, 170),
    "pink": (236, 100, 172),
    "brown": (118, 72, 36),
    "black": (20, 20, 22),
}
BACKGROUND_COLORS = {
    "dark red": (92, 14, 20),
    "dark green": (12, 72, 30),
    "dark blue": (14, 26, 96),
    "dark purple": (62, 18, 88),
    "dark gray": (66, 66, 70),
    "light red": (224, 150, 146),
    "light yellow": (226, 216, 140),
    "light green": (156, 212, 150),
    "light blue": (150, 190, 226),
    "light purple": (196, 164, 222),
    "light gray": (190, 190, 192),
}
SIZES = {"small": 9.5, "": 13.5, "large": 18.0}  # radius, pixels
POSITIONS = {  # centre of the shape, share of the picture's side, right and down
    "": (0.5, 0.5),
    "on the left": (0.33, 0.5),
    "on the right": (0.67, 0.5),
    "at the top": (0.5, 0.33),
    "at the bottom": (0.5, 0.67),
}


@dataclass(frozen=True)
class Scene:
    size: str  # key of SIZES
    color: str  # key of SHAPE_COLORS
    shape: str  # key of SHAPES
    position: str  # key of POSITIONS
    background: str  # key of BACKGROUND_COLORS

    @property
    def caption(self) -> str:
        """As "a large red circle on the left on a dark blue background"."""
        words = ["a", self.size, self.color, self.shape, self.position, "on a", self.background, "background"]
        return " ".join(word for word in words if word).replace("a orange", "an orange")


def parse(caption: str) -> Scene:
    """The scene that a caption of this module describes. Raises ValueError when it is none of them."""
    front, found, background = caption.removeprefix("an ").removeprefix("a ").rpartition(" on a ")
    background = background.removesuffix(" background")
    size, _, rest = front.partition(" ") if front.partition(" ")[0] in SIZES else ("", "", front)
    color, _, rest = rest.partition(" ")
    shape, _, position = rest.partition(" ")
    scene = Scene(size, color, shape, position, background)
    if not found or scene.caption != caption or not _known(scene):
        example = Scene("large", "red", "circle", "", "dark blue").caption
        raise ValueError(f"{caption!r} is not a caption of demo/pictures.py, as {example!r} is")
    return scene


def _known(scene: Scene) -> bool:
    return (
        scene.color in SHAPE_COLORS
        and scene.shape in SHAPES
        and scene.position in POSITIONS
        and scene.background in BACKGROUND_COLORS
    )


def clash(color: str, background: str) -> bool:
    """Whether a shape of this colour would be hard to see: the two differ by less than 90 of 441 in RGB."""
    return float(np.linalg.norm(np.subtract(SHAPE_COLORS[color], BACKGROUND_COLORS[background]))) < 90


def random_scene(rng: np.random.Generator) -> Scene:
    """Every attribute uniform, the centre and the middle size twice as likely as the others; no clashing colours."""
    while True:
        scene = Scene(
            size=str(rng.choice(list(SIZES))),
            color=str(rng.choice(list(SHAPE_COLORS))),
            shape=str(rng.choice(list(SHAPES))),
            position=str(rng.choice(["", *POSITIONS])),
            background=str(rng.choice(list(BACKGROUND_COLORS))),
        )
        if not clash(scene.color, scene.background):
            return scene


def draw(scene: Scene, style: str, rng: np.random.Generator, size: int = SIZE) -> np.ndarray:
    """One picture (size, size, 3) uint8. `rng` jitters centre, radius and colours a little, as no two photographs of
    one thing are alike; the geometry scales with `size`."""
    shape_color = _jitter(SHAPE_COLORS[scene.color], rng)
    background_color = _jitter(BACKGROUND_COLORS[scene.background], rng)
    radius = SIZES[scene.size] * rng.uniform(0.92, 1.08)
    center = np.array(POSITIONS[scene.position]) * SIZE + rng.uniform(-1.5, 1.5, 2)

    fine = size * SUPERSAMPLING
    axis = (np.arange(fine, dtype=np.float32) + 0.5) * (SIZE / fine)
    x, y = np.meshgrid(axis - np.float32(center[0]), axis - np.float32(center[1]))
    distance = SHAPES[scene.shape](x, y, np.float32(radius))

    picture = np.broadcast_to(background_color, (fine, fine, 3))
    if style == "sticker":
        cast = SHAPES[scene.shape](x - SHADOW_OFFSET[0], y - SHADOW_OFFSET[1], np.float32(radius)) - OUTLINE
        shade = 0.55 * np.clip(0.5 - cast / SHADOW_BLUR, 0, 1)
        picture = picture * (1 - shade[..., None])
        picture = np.where((distance < OUTLINE)[..., None], np.float32(254), picture)
    picture = np.where((distance < 0)[..., None], shape_color, picture)
    blocks = picture.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING, 3)
    return (blocks.mean((1, 3)) + 0.5).astype(np.uint8)


def sample(seed: int, index: int, style: str) -> tuple[np.ndarray, str]:
    """Picture number `index` of an endless set: (64, 64, 3) uint8 and its caption."""
    rng = np.random.Generator(np.random.Philox(key=[seed, index]))
    scene = random_scene(rng)
    return draw(scene, style, rng), scene.caption


def _jitter(color: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    return np.clip(np.array(color) + rng.uniform(-6, 6, 3), 0, 228 if max(color) < 230 else 246).astype(np.float32)


# Each shape is its distance to the outline in pixels, negative inside: (h, w) arrays of x right, y down → (h, w). The
# radii are scaled so that all shapes look about equally large.


def _circle(x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    return np.hypot(x, y) - r


def _ring(x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    return np.abs(np.hypot(x, y) - 0.8 * r) - 0.32 * r


def _square(x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    return _box(x, y, 0.88 * r, 0.88 * r)


def _diamond(x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    return (np.abs(x) * 1.35 + np.abs(y) - 1.25 * r) / np.hypot(1.35, 1)


def _cross(x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    return np.minimum(_box(x, y, 1.05 * r, 0.36 * r), _box(x, y, 0.36 * r, 1.05 * r))


def _triangle(x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    y = y - 0.2 * r
    return np.maximum(y, np.cos(np.pi / 6) * np.abs(x) - 0.5 * y) - 0.62 * r


def _star(x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    """Five points: the plane folded into a tenth of a turn, then the distance to the line from tip to notch."""
    tenth = np.pi / 5
    angle = np.abs(np.mod(np.arctan2(x, -y) + tenth, 2 * tenth) - tenth)
    u, v = np.hypot(x, y) * np.cos(angle), np.hypot(x, y) * np.sin(angle)
    tip, notch = 1.2 * r, 0.54 * r
    along, across = notch * np.cos(tenth) - tip, notch * np.sin(tenth)
    return (across * (u - tip) - along * v) / np.hypot(along, across)


def _heart(x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    """A square on its corner at (0, 0), y up, with a half circle on each upper side (centre (1/4, 3/4))."""
    scale = 1.85 * r
    x, y = np.abs(x) / scale, 0.55 - y / scale
    lobe = np.hypot(x - 0.25, y - 0.75) - np.sqrt(2) / 4
    foot = np.maximum(x + y, 0) / 2
    corner = np.minimum(np.hypot(x, y - 1), np.hypot(x - foot, y - foot)) * np.sign(x - y)
    return np.where(x + y > 1, lobe, corner) * scale


def _box(x: np.ndarray, y: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
    across, down = np.abs(x) - half_width, np.abs(y) - half_height
    return np.hypot(np.maximum(across, 0), np.maximum(down, 0)) + np.minimum(np.maximum(across, down), 0)


SHAPES = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "diamond": _diamond,
    "cross": _cross,
    "ring": _ring,
}


def write_folder(folder: Path, count: int, seed: int, style: str) -> None:
    """`count` PNG files and their captions in Hugging Face imagefolder form (metadata.jsonl)."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for index in range(count):
        picture, caption = sample(seed, index, style)
        name = f"{index:04d}.png"
        Image.fromarray(picture).save(folder / name, optimize=True)
        lines.append(json.dumps({"file_name": name, "text": caption}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
