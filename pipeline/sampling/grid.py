"""One picture of all pictures: a column for each prompt, a row for each model."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL = 192  # pixels: small pictures are shown enlarged to about this, large ones reduced to twice this
COLUMNS = 8
MARGIN, LINE = 8, 16
BACKGROUND, INK = (245, 245, 245), (30, 30, 30)


def grid(rows: dict[str, list[np.ndarray]], prompts: list[str]) -> Image.Image:
    """`rows`: label → pictures (H, W, 3) uint8, one for each prompt; all are enlarged or reduced alike. More than COLUMNS
    prompts go on below. The prompts stand above their columns."""
    height, width = (max(picture.shape[axis] for row in rows.values() for picture in row) for axis in (0, 1))
    factor = max(1, round(CELL / width)) if width < 2 * CELL else 2 * CELL / width
    cell_width, cell_height = round(width * factor), round(height * factor)
    font = ImageFont.load_default(12)
    gutter = MARGIN + round(max(font.getlength(label) for label in rows)) + MARGIN
    wrapped = [_wrap(prompt, font, cell_width) for prompt in prompts]
    head = LINE * max(map(len, wrapped)) + MARGIN
    columns = min(COLUMNS, len(prompts))
    band = head + len(rows) * (cell_height + MARGIN) + MARGIN
    bands = -(-len(prompts) // columns)
    sheet = Image.new("RGB", (gutter + columns * (cell_width + MARGIN), MARGIN + bands * band), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for index, lines in enumerate(wrapped):
        left = gutter + index % columns * (cell_width + MARGIN)
        top = MARGIN + index // columns * band
        for number, line in enumerate(lines):
            draw.text((left, top + number * LINE), line, INK, font)
        for row, (label, pictures) in enumerate(rows.items()):
            y = top + head + row * (cell_height + MARGIN)
            resampling = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.LANCZOS
            own = tuple(max(1, round(side * factor)) for side in pictures[index].shape[1::-1])
            sheet.paste(Image.fromarray(pictures[index]).resize(own, resampling), (left, y))
            if index % columns == 0:
                draw.text((MARGIN, y + cell_height // 2), label, INK, font)
    return sheet


def _wrap(text: str, font: ImageFont.ImageFont, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
