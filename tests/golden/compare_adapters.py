"""The pictures of the sample stage, drawn anew by diffusers with the same base and the same adapter.

In an environment of its own: pip install torch==2.13.0 diffusers==0.39.0 transformers==4.57.1 peft==0.21.2
lycoris-lora==4.1.3 pydantic ruamel.yaml pillow, and then in the project's folder

    python -m tests.golden.compare_adapters WORKSPACE

where WORKSPACE has run all stages with an adapter of any kind on the tiny model, with merge.dtype float32 (else the
pictures differ by that rounding). diffusers' load_lora_weights (PEFT) loads a LoRA as it stands. Of a DoRA in kohya's form
it leaves the magnitudes out, with a warning, so it is given one under its own names. It knows no LoHa and no LoKr: LyCORIS'
own modules are put into its UNet. model.loras, where the workspace has any, are loaded by load_lora_weights too, into the
base without them. Prints the PSNR of each picture to ours, and how far adapter and base are apart; ends with exit code 1
where one is below 40 dB."""

import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from lycoris.wrapper import LycorisNetwork, create_lycoris_from_weights
from PIL import Image
from ruamel.yaml import YAML
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from pipeline.models.config import TINY
from tests.golden.diffusers_models import Weights, models
from tests.golden.make_euler import SDXL

WANTED = 40.0  # dB
UNET = "model.diffusion_model."


def pipe(source: Weights, tokenizer: Path) -> StableDiffusionXLPipeline:
    """As StabilityAI's repository of SDXL has it, with the tiny model's parts."""
    tokenizers = [
        CLIPTokenizer(tokenizer / "vocab.json", tokenizer / "merges.txt", pad_token=pad, model_max_length=77)
        for pad in ("<|endoftext|>", "!")
    ]
    parts = models(TINY, source)
    for own, encoder in zip(tokenizers, (parts["text_encoder"], parts["text_encoder_2"])):
        assert own.eos_token_id == encoder.config.eos_token_id and own.pad_token_id == encoder.config.pad_token_id
    made = StableDiffusionXLPipeline(
        **parts,
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        scheduler=EulerDiscreteScheduler.from_config(SDXL),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def by_diffusers_names(made: StableDiffusionXLPipeline, source: Weights, file: Path) -> dict[str, dict[str, Weights]]:
    """Component -> diffusers' name of a layer in it -> the parts of its adapter."""
    names = [name for name in source if name.startswith(UNET)]
    numbered = {name: torch.tensor(number) for number, name in enumerate(names)}
    theirs = {}
    for name, number in convert_ldm_unet_checkpoint(numbered, made.unet.config).items():  # its own conversion
        own = names[int(number)].removeprefix(UNET).removesuffix(".weight").replace(".", "_")
        theirs[f"lora_unet_{own}"] = "unet", name.removesuffix(".weight")
    for component, prefix in (("text_encoder", "lora_te1_"), ("text_encoder_2", "lora_te2_")):
        for name, _ in getattr(made, component).named_modules():
            theirs[prefix + name.replace(".", "_")] = component, name
    found: dict[str, dict[str, Weights]] = {}
    for name, value in load_file(file).items():
        layer, part = name.split(".", 1)
        component, own = theirs[layer]
        found.setdefault(component, {}).setdefault(own, {})[part] = value
    return found


def load(made: StableDiffusionXLPipeline, kind: str, source: Weights, file: Path) -> None:
    """An adapter of this project into diffusers' pipeline, as the first paragraph says; a LoRA or a DoRA by the name
    "trained"."""
    if kind == "lora":
        made.load_lora_weights(file.parent, weight_name=file.name, adapter_name="trained")
        return
    for component, layers in by_diffusers_names(made, source, file).items():
        if kind == "dora":
            load_dora(made, component, layers)
        else:
            put_lycoris_in(getattr(made, component), layers)


def load_dora(made: StableDiffusionXLPipeline, component: str, layers: dict[str, Weights]) -> None:
    weights = {}
    for layer, parts in layers.items():
        down, up, magnitude = parts["lora_down.weight"], parts["lora_up.weight"], parts["dora_scale"]
        weights[f"{component}.{layer}.lora_A.weight"] = down
        # PEFT takes alpha for the rank here
        weights[f"{component}.{layer}.lora_B.weight"] = up * (parts["alpha"] / len(down))
        shape = (1, -1, 1, 1) if magnitude.ndim == 4 else (-1,)
        weights[f"{component}.{layer}.lora_magnitude_vector"] = magnitude.reshape(shape)
    made.load_lora_weights(weights, adapter_name="trained")


def put_lycoris_in(model: torch.nn.Module, layers: dict[str, Weights]) -> None:
    prefix = LycorisNetwork.LORA_PREFIX
    weights = {
        f"{prefix}_{layer.replace('.', '_')}.{part}": value
        for layer, parts in layers.items() for part, value in parts.items()
    }  # fmt: skip
    network, _ = create_lycoris_from_weights(1.0, "", model, weights)
    assert len(network.loras) == len(layers)
    network.apply_to()


def noise(seed: int, number: int, height: int, width: int, step: int = -1) -> torch.Tensor:
    """As pipeline/sampling/draw.py's noise_of."""
    counter = np.array([0, 0, step + 1, 0], np.uint64)
    draw = np.random.Generator(np.random.Philox(key=np.array([seed, number], np.uint64), counter=counter))
    shape = (TINY.unet.latent_channels, height // TINY.vae.factor, width // TINY.vae.factor)
    return torch.from_numpy(draw.standard_normal(shape, np.float32)[None])


def draw(made: StableDiffusionXLPipeline, sample: dict) -> list[np.ndarray]:
    """(height, width, 3) uint8 of each prompt, which is a plain text."""
    height, width = sample["height"], sample["width"]
    found = []
    for number, prompt in enumerate(sample["prompts"]):
        drawn = made(
            prompt, height=height, width=width, num_inference_steps=sample["steps"],
            guidance_scale=sample["guidance_scale"], latents=noise(sample["seed"], number, height, width),
            output_type="np",
        )  # fmt: skip
        found.append(np.round(drawn.images[0] * 255).astype(np.uint8))
    return found


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.square(a.astype(np.float64) - b).mean()
    return 10 * np.log10(255**2 / error) if error else float("inf")


def main(workspace: Path) -> None:
    params = YAML(typ="safe").load(workspace / "params.yaml")
    sample, kind = params["sample"], params["train"]["adapter"]
    assert sample["sampler"] == "euler" and params["diffusion"]["prediction"] == "epsilon"
    source = load_file(workspace / params["model"]["base"])
    made = pipe(source, workspace / params["model"]["tokenizer"])
    loras = params["model"]["loras"]
    for number, lora in enumerate(loras):
        path = workspace / params["model"]["lora_folder"] / lora["path"]
        made.load_lora_weights(path.parent, weight_name=path.name, adapter_name=f"lora{number}")
    weights = {f"lora{number}": lora.get("weight", 1.0) for number, lora in enumerate(loras)}
    if weights:
        made.set_adapters(list(weights), list(weights.values()))
    drawn = {"base": draw(made, sample)}
    adapter = workspace / "outs/train/weights/adapter.safetensors"
    if kind != "none":
        load(made, kind, source, adapter)
    if kind in ("lora", "dora"):
        made.set_adapters([*weights, "trained"], [*weights.values(), 1.0])
    if kind != "none":
        drawn["tuned"] = draw(made, sample)
    lowest = float("inf")
    for number, prompt in enumerate(sample["prompts"]):
        ours = {which: np.asarray(Image.open(workspace / f"outs/sample/{number:02d}_{which}.png")) for which in drawn}
        found = {which: psnr(ours[which], pictures[number]) for which, pictures in drawn.items()}
        apart = psnr(*ours.values()) if len(ours) > 1 else float("nan")
        print(f"{', '.join(f'{which} {db:.1f} dB' for which, db in found.items())} (apart {apart:.1f}): {prompt}")
        lowest = min(lowest, *found.values())
    print(f"{kind}: the lowest of {len(sample['prompts'])} is {lowest:.1f} dB, wanted {WANTED}")
    sys.exit(lowest < WANTED)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
