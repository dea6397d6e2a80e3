"""Write training.npz: schedules, loss weights, optimizers, EMA and five training steps as PyTorch, diffusers and
transformers compute them.

    pip install torch diffusers transformers        (made with torch 2.13.0, diffusers 0.39.0, transformers 4.57.1)
    python -m tests.golden.make_training"""

from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel, compute_snr
from transformers.optimization import Adafactor

from tests.golden import make_models, rule
from tests.golden import training_rule as t

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


def schedules() -> dict[str, np.ndarray]:
    plain = DDPMScheduler(**SCHEDULE)
    rescaled = DDIMScheduler(**SCHEDULE, rescale_betas_zero_snr=True)
    rescaled.alphas_cumprod = rescaled.alphas_cumprod.double()
    everywhere = torch.arange(1000)
    snr, snr_rescaled = compute_snr(plain, everywhere), compute_snr(rescaled, everywhere)
    gamma = torch.full_like(snr, t.SNR_GAMMA)
    return {
        "alphas_cumprod": plain.alphas_cumprod.numpy(),
        "alphas_cumprod_rescaled": rescaled.alphas_cumprod.numpy(),
        # the two forms in diffusers' train_text_to_image_sdxl.py
        "min_snr_epsilon": (torch.minimum(snr, gamma) / snr).numpy(),
        "min_snr_v": (torch.minimum(snr_rescaled, gamma) / (snr_rescaled + 1)).numpy(),
    }


def learning_rates() -> dict[str, np.ndarray]:
    found = {}
    for name in ("constant", "constant_with_warmup", "linear", "cosine"):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-3)
        scheduler = get_scheduler(name, optimizer, num_warmup_steps=4, num_training_steps=12)
        rates = []
        for _ in range(12):
            rates.append(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()
        found[f"lr_{name}"] = np.array(rates)
    return found


def optimizers() -> dict[str, np.ndarray]:
    found = {}
    for name in ("adamw", "adafactor"):
        # transformers' Adafactor factors a kernel's last two axes, ours takes it as (out, rest): so it gets the matrix
        shapes = [s if name == "adamw" or len(s) < 3 else (s[0], -1) for s in t.SHAPES]
        parameters = [
            torch.nn.Parameter(torch.from_numpy(rule.normal(f"p {s}", s).reshape(shape)))
            for s, shape in zip(t.SHAPES, shapes, strict=True)
        ]
        decay = [p for p in parameters if p.ndim > 1]
        groups = [
            {"params": decay, "weight_decay": 0.1},
            {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
        ]
        if name == "adamw":
            optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.99), eps=1e-6)
        else:
            optimizer = Adafactor(groups, lr=1e-2, scale_parameter=False, relative_step=False, warmup_init=False)
        ema = EMAModel(parameters, decay=0.6)
        norms = []
        for step in range(4):
            for parameter, shape in zip(parameters, t.SHAPES, strict=True):
                parameter.grad = torch.from_numpy(rule.normal(f"g {step} {shape}", shape)).reshape(parameter.shape)
            norms.append(torch.nn.utils.clip_grad_norm_(parameters, 2.0).item() if name == "adamw" else 0.0)
            optimizer.step()
            ema.step(parameters)
        for index, (parameter, average) in enumerate(zip(parameters, ema.shadow_params, strict=True)):
            found[f"{name}_{index}"] = parameter.detach().numpy()
            found[f"{name}_ema_{index}"] = average.numpy()
        found[f"{name}_norms"] = np.array(norms)
    return found


def unet_name(name: str) -> str:
    return make_models.unet_name(name, t.UNET.num_res_blocks)


def five_steps() -> dict[str, np.ndarray]:
    """Epsilon prediction with Min-SNR weights, clipping, weight decay on all but norms and biases, EMA."""
    scheduler = DDPMScheduler(**SCHEDULE)
    model = make_models.unet_model(t.UNET).train()
    kinds = {id(p): type(module).__name__ for module in model.modules() for p in module.parameters(recurse=False)}
    decay = [p for n, p in model.named_parameters() if not n.endswith("bias") and "Norm" not in kinds[id(p)]]
    chosen = {id(p) for p in decay}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": t.WEIGHT_DECAY}, {"params": rest, "weight_decay": 0.0}],
        lr=t.LEARNING_RATE, betas=t.BETAS, eps=t.EPSILON,
    )  # fmt: skip
    ema = EMAModel(model.parameters(), decay=t.EMA_DECAY)
    losses, norms = [], []
    for step in range(t.STEPS):
        values = {name: torch.from_numpy(value) for name, value in t.inputs(step).items()}
        timesteps = torch.from_numpy(t.timesteps(step))
        predicted = model(
            scheduler.add_noise(values["x_0"], values["noise"], timesteps),
            timesteps,
            values["context"],
            added_cond_kwargs={"text_embeds": values["pooled"], "time_ids": values["time_ids"]},
        ).sample
        snr = compute_snr(scheduler, timesteps)
        weights = torch.minimum(snr, torch.full_like(snr, t.SNR_GAMMA)) / snr
        loss = (((predicted - values["noise"]) ** 2).mean(dim=(1, 2, 3)) * weights).mean()
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), t.MAX_GRAD_NORM).item())
        losses.append(loss.item())
        optimizer.step()
        ema.step(model.parameters())
    found = {
        "losses": np.array(losses),
        "norms": np.array(norms),
        "decayed": np.array(sorted(unet_name(n) for n, p in model.named_parameters() if id(p) in chosen)),
    }
    for (name, parameter), average in zip(model.named_parameters(), ema.shadow_params, strict=True):
        found[f"raw {unet_name(name)}"] = t.picked(parameter.detach().numpy())
        found[f"ema {unet_name(name)}"] = t.picked(average.numpy())
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    path = Path(__file__).parent / "training.npz"
    np.savez_compressed(path, **schedules(), **learning_rates(), **optimizers(), **five_steps())
    print(path.name, path.stat().st_size)
