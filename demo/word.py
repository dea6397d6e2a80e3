"""Pictures that teach a new word:  python -m demo.word FOLDER

Half of them are of the base's own style, with captions as it knows them; the others are of the sticker style, and their
captions begin with a word that it never saw. docs/pictures.md trains text encoders on them."""

import argparse
import json
from pathlib import Path

from PIL import Image

from demo.pictures import sample
from pipeline import store

WORD = "zorp"
COUNT, SEED = 300, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    with store.atomic(parser.parse_args().folder) as folder:
        folder.mkdir(parents=True)
        lines = []
        for number in range(COUNT):
            style = ("base", "sticker")[number % 2]
            pixels, caption = sample(SEED, number, style)
            Image.fromarray(pixels).save(folder / f"{number:04d}.png")
            text = f"{WORD} {caption}" if style == "sticker" else caption
            lines.append(json.dumps({"file_name": f"{number:04d}.png", "text": text}) + "\n")
        (folder / "metadata.jsonl").write_text("".join(lines))


if __name__ == "__main__":
    main()
