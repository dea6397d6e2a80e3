"""Make adapter_pictures.npz: what diffusers draws with the repository's tiny model and adapters of its UNet and of both text
encoders, which this project's writer wrote by a rule: LoRA by its load_lora_weights, the others as compare_adapters.py has
it.

In an environment of its own: pip install torch==2.13.0 diffusers==0.39.0 transformers==4.57.1 peft==0.21.2
lycoris-lora==4.1.3 pydantic ruamel.yaml pillow, then `python -m tests.golden.make_adapter_pictures` in the project's folder."""

import tempfile
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from pipeline.weights.adapters import kinds
from tests.golden import pictures_rule
from tests.golden.compare_adapters import draw, load, pipe, psnr


def main() -> None:
    source, found = load_file(pictures_rule.BASE), {}
    with tempfile.TemporaryDirectory() as name:
        for kind in ("base", *kinds.KINDS):
            made = pipe(source, pictures_rule.TOKENIZER)
            if kind != "base":
                path = Path(name) / f"{kind}.safetensors"
                pictures_rule.write(path, kind)
                load(made, kind, source, path)
            found[kind] = np.stack(draw(made, pictures_rule.SAMPLE))
            print(kind, [f"{psnr(a, b):.1f} dB to the base's" for a, b in zip(found[kind], found["base"])])
    np.savez_compressed(Path(__file__).with_name("adapter_pictures.npz"), **found)


if __name__ == "__main__":
    main()
