"""The training graphs of sdxl-base compiled on this CPU, with no weight made: python -m benchmarks.full_graph
[--config sdxl-base] [--side 128] [--batch 1] [--precision float16]

With gradient checkpointing, tiled attention and the CPU's form of each layer. Says for the gradients' graph and for the
update's what compilation took, the process's peak memory, and the kernels by name. Nothing is run: the weights and the
optimizer's state of a full size take 31 GB. To run alone, for the peak is the process's own."""

import argparse
import time

import pipeline.device

import mindspore as ms
import numpy as np
from mindspore.nn.utils import no_init_parameters

from benchmarks import kernels
from benchmarks.full_size import peak_gigabytes
from pipeline.models.config import CONFIGS
from pipeline.models.unet import UNet
from pipeline.training.optimizers.adamw import AdamW
from pipeline.training.optimizers.common import decays
from pipeline.training.step import Apply, Gradients, SampleLoss, Settings, Update

DTYPES = {"float32": ms.float32, "float16": ms.float16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="sdxl-base", choices=sorted(CONFIGS))
    parser.add_argument("--side", type=int, default=128, help="of the latents")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--precision", choices=DTYPES, default="float16")
    options = parser.parse_args()

    pipeline.device.setup("CPU")
    # MindSpore makes all weights when a graph is compiled.
    ms.nn.Cell.init_parameters_data = lambda self, auto_parallel_mode=False: {}
    config = CONFIGS[options.config].unet
    with no_init_parameters():
        unet = UNet(config, "tiled", DTYPES[options.precision], recompute=True).set_train()
        optimizer = AdamW(unet.trainable_params(), decays(unet), 0.01, 0.9, 0.999, 1e-8)
    scale = 65536.0 if options.precision == "float16" else None
    settings = Settings(max_grad_norm=1.0, loss_scale=scale)
    update = Update(optimizer, None, settings)
    gradients, apply = Gradients(SampleLoss(unet, settings), update), Apply(update)
    latents = (options.batch, 4, options.side, options.side)
    shapes = [latents, (options.batch,), (options.batch, 77, config.context_dim), (options.batch, config.vector_dim)]
    shapes += [latents, (options.batch,)]
    inputs = [ms.Tensor(shape=shape, dtype=ms.float32) for shape in shapes]
    scalar = ms.Tensor(np.float32(0))
    values = [ms.Tensor(shape=p.shape, dtype=p.dtype) for p in update.parameters]
    count = sum(p.size for p in update.parameters)
    print(f"{options.config}, {count:,} parameters in {len(values)} tensors", flush=True)
    for name, cell, given in (("gradients", gradients, inputs), ("update", apply, [scalar, scalar, scalar, *values])):
        begin = time.perf_counter()
        cell.compile(*given)
        took = time.perf_counter() - begin
        print(f"{name}: compiled in {took:.0f} s, peak {peak_gigabytes():.1f} GB", flush=True)
        print(kernels.report(kernels.compiled(cell)), flush=True)


if __name__ == "__main__":
    main()
