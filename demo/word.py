"""Pictures that teach a new word:

    python -m demo.word FOLDER        # writes them
    python -m demo.word --check       # looks at what `sample` drew, after a training on them

Half of them are of the base's own style, with captions as it knows them; the others are of the sticker style, and their
captions begin with a word that it never saw. docs/pictures.md trains text encoders on them. Where the word was learnt,
prompts with it draw the sticker's white outline, and the others do not."""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from demo.check import agrees, white_share
from demo.pictures import sample
from pipeline import params, store
from pipeline.sampling.picture import pictures as drawn_from

WORD = "zorp"
COUNT, SEED = 300, 5


def write(out: Path) -> None:
    with store.atomic(out) as folder:
        folder.mkdir(parents=True)
        lines = []
        for number in range(COUNT):
            style = ("base", "sticker")[number % 2]
            pixels, caption = sample(SEED, number, style)
            Image.fromarray(pixels).save(folder / f"{number:04d}.png")
            text = f"{WORD} {caption}" if style == "sticker" else caption
            lines.append(json.dumps({"file_name": f"{number:04d}.png", "text": text}) + "\n")
        (folder / "metadata.jsonl").write_text("".join(lines))
    print(f"{out}: {COUNT} pictures with captions, half of them with the word {WORD}; docs/pictures.md trains on them")


def check() -> None:
    """Print what the fine-tuned model's pictures have of white and of their prompts' colours, with the word and without."""
    found: dict[bool, list[tuple[float, bool, bool]]] = {True: [], False: []}
    prompts = [one.prompt for one in drawn_from(params.load().sample)]
    for number, prompt in enumerate(prompts):
        picture = np.array(Image.open(f"outs/sample/{number:02d}_tuned.png"))
        caption = prompt.removeprefix(f"{WORD} ")
        found[caption != prompt].append((white_share(picture), *agrees(picture, caption)))
    for with_word, rows in found.items():
        white, shape, background = np.mean(rows, axis=0)
        print(
            f"{len(rows)} prompts {'with' if with_word else 'without'} {WORD}: near white {white:.3f}, colour of the shape "
            f"{shape:.0%}, of the background {background:.0%}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("folder", type=Path, nargs="?")
    chosen.add_argument("--check", action="store_true")
    given = parser.parse_args()
    check() if given.check else write(given.folder)


if __name__ == "__main__":
    main()
