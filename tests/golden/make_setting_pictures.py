"""Make setting_pictures.npz: what diffusers draws with the repository's tiny model and the settings of pictures_rule.py:
samplers, v with a zero-terminal SNR and rescaled guidance, rectified flow, negative prompts, and what a prompt has of its own.

In an environment of its own: pip install torch==2.13.0 diffusers==0.39.0 transformers==4.57.1 peft==0.21.2
lycoris-lora==4.1.3 pydantic ruamel.yaml pillow, then `python -m tests.golden.make_setting_pictures` in the project's folder."""

from pathlib import Path

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusionXLPipeline
from diffusers.schedulers import scheduling_euler_ancestral_discrete
from safetensors.torch import load_file

from tests.golden import pictures_rule
from tests.golden.compare_adapters import noise, pipe, psnr
from tests.golden.make_euler import SDXL
from tests.golden.make_samplers import SCHEDULERS


class FlowEuler(FlowMatchEulerDiscreteScheduler):
    """With the two things that diffusers' pipeline of SDXL asks of a scheduler and this one lacks."""

    init_noise_sigma = 1.0

    def scale_model_input(self, sample, timestep):
        return sample


def scheduler(settings: dict):
    prediction = settings["diffusion.prediction"]
    if prediction == "flow":
        return FlowEuler(shift=settings["diffusion.flow_shift"])
    kind, changes = SCHEDULERS[settings["sample.sampler"]]
    changes = changes | {"prediction_type": {"epsilon": "epsilon", "v": "v_prediction"}[prediction]}
    if settings["diffusion.zero_terminal_snr"]:
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return kind.from_config(SDXL | changes)


def draw(made: StableDiffusionXLPipeline, settings: dict) -> np.ndarray:
    """(prompts, height, width, 3) uint8."""
    made.scheduler, found = scheduler(settings), []
    shared = {key: settings[f"sample.{key}"] for key in ("height", "width", "steps", "guidance_scale", "seed")}
    for number, prompt in enumerate(settings["sample.prompts"]):
        own = shared | (prompt if isinstance(prompt, dict) else {"prompt": prompt})
        number = number if isinstance(prompt, str) else 0  # one with a seed of its own has that seed's first noise
        of_picture = own["seed"], number, own["height"], own["width"]
        steps = iter(range(own["steps"]))  # what the ancestral sampler draws, one a step
        scheduling_euler_ancestral_discrete.randn_tensor = lambda *_, **__: noise(*of_picture, next(steps))
        drawn = made(
            own["prompt"], negative_prompt=own.get("negative_prompt"), height=own["height"], width=own["width"],
            num_inference_steps=own["steps"], guidance_scale=own["guidance_scale"], latents=noise(*of_picture),
            guidance_rescale=settings["sample.guidance_rescale"], output_type="np",
        )  # fmt: skip
        found.append(np.round(drawn.images[0] * 255).astype(np.uint8))
    return np.stack(found)


def main() -> None:
    made, found = pipe(load_file(pictures_rule.BASE), pictures_rule.TOKENIZER), {}
    for name, changes in ({"base": {}} | pictures_rule.SETTINGS).items():
        found[name] = draw(made, pictures_rule.of(changes))
        print(
            name,
            [f"{psnr(a, b):.1f} dB to the base's, spread {a.std():.0f}" for a, b in zip(found[name], found["base"])],
        )
    np.savez_compressed(Path(__file__).with_name("setting_pictures.npz"), **found)


if __name__ == "__main__":
    main()
