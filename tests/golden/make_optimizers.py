"""Write optimizers.npz: the steps of PyTorch's AdamW with learning rates by group, bitsandbytes' AdamW8bit on a CPU,
lion-pytorch's Lion and prodigyopt's Prodigy, on the parameters of optimizers_rule.py.

bitsandbytes' quantization on a CPU is approximate: of 25,600 squares 798 got the second-nearest code. So its optimizer
is there as it is (bitsandbytes), and with the nearest codes, by distance to all 256 (adamw8bit).

    pip install torch bitsandbytes lion-pytorch prodigyopt
    (made with torch 2.13.0, bitsandbytes 0.50.2, lion-pytorch 0.2.5, prodigyopt 1.1.2)
    python -m tests.golden.make_optimizers"""

from pathlib import Path

import numpy as np
import torch
from bitsandbytes.backends.cpu import ops as bitsandbytes_cpu
from bitsandbytes.functional import create_dynamic_map
from bitsandbytes.optim import AdamW8bit
from lion_pytorch import Lion
from prodigyopt import Prodigy

from tests.golden import optimizers_rule as o


def groups(parameters, rate: float, factors=o.FACTORS) -> list[dict]:
    return [
        {"params": [parameter], "lr": rate * factor, "weight_decay": o.WEIGHT_DECAY if decays else 0.0}
        for parameter, factor, decays in zip(parameters, factors, o.DECAYED, strict=True)
    ]


def adamw(parameters):
    return torch.optim.AdamW(groups(parameters, o.RATE), betas=o.BETAS, eps=o.EPSILON)


def nearest(numbers, code, absmax, out, blocksize) -> None:
    flat = torch.nn.functional.pad(numbers.reshape(-1), (0, -numbers.numel() % blocksize)).reshape(-1, blocksize)
    largest = flat.abs().amax(1)
    codes = (flat / largest[:, None])[..., None].sub(code).abs().argmin(-1)
    absmax.copy_(largest)
    out.copy_(codes.reshape(-1)[: numbers.numel()].reshape(out.shape))


def bitsandbytes(parameters):
    return AdamW8bit(groups(parameters, o.RATE), betas=o.BETAS, eps=o.EPSILON)


def adamw8bit(parameters):
    bitsandbytes_cpu._quant_blockwise_fp32_direct = nearest
    return bitsandbytes(parameters)


def lion(parameters):
    return Lion(groups(parameters, o.RATE), betas=o.BETAS)


def prodigy(parameters):
    equal = groups(parameters, o.PRODIGY_RATE, (1.0,) * len(o.SHAPES))  # it takes no others
    return Prodigy(
        equal, betas=o.BETAS, eps=o.EPSILON, slice_p=11, use_bias_correction=True, safeguard_warmup=True
    )  # fmt: skip


def main() -> None:
    found = {"signed": create_dynamic_map(True).numpy(), "unsigned": create_dynamic_map(False).numpy()}
    for make in (adamw, bitsandbytes, adamw8bit, lion, prodigy):
        name = make.__name__
        parameters = [torch.nn.Parameter(torch.from_numpy(value)) for value in o.values()]
        optimizer = make(parameters)
        distances = []
        for step in range(o.STEPS):
            gradients = o.gradients(step, [parameter.detach().numpy() for parameter in parameters])
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = torch.from_numpy(gradient)
            optimizer.step()
            distances.append(optimizer.param_groups[0].get("d", 0.0))
        for index, parameter in enumerate(parameters):
            found[f"{name}_{index}"] = parameter.detach().numpy()
        if name == "prodigy":
            found["prodigy_d"] = np.array(distances)
        if name == "adamw8bit":
            state = optimizer.state[parameters[-1]]
            found |= {f"adamw8bit_{key}": state[key].numpy() for key in ("state1", "state2", "absmax1", "absmax2")}
    path = Path(__file__).parent / "optimizers.npz"
    np.savez_compressed(path, **found)
    print(path.name, path.stat().st_size)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
