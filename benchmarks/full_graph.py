"""The training graphs of sdxl-base compiled on this CPU, with no weight made: python -m benchmarks.full_graph
[--config sdxl-base] [--side 128] [--batch 1] [--precision float16] [--npu] [--graph update] [--no-recompute]

With gradient checkpointing (but for --no-recompute), tiled attention and the CPU's form of each layer. Says for the
gradients' graph and for the update's what compilation took, the process's peak memory, and the kernels by name. Nothing
is run: the weights and the optimizer's state of a full size take 31 GB. To run alone, for the peak is the process's own.

With --npu the graphs are those for an NPU, with flash attention: this CPU lacks some of their kernels, so MindSpore stops
behind type inference and optimization, and the kernels are those that it would hand to the device, as benchmarks.kernels
counts them."""

import argparse
import contextlib
import time

from benchmarks import kernels
from benchmarks.full_size import peak_gigabytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="sdxl-base")
    parser.add_argument("--side", type=int, default=128, help="of the latents")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--precision", choices=("float32", "float16"), default="float16")
    parser.add_argument("--npu", action="store_true", help="an NPU's form of each layer")
    parser.add_argument("--no-recompute", action="store_true", help="train.gradient_checkpointing: false")
    parser.add_argument("--graph", choices=("gradients", "update"), help="this one alone")
    options = parser.parse_args()
    if not options.npu:
        for name, cell, given in graphs(options):
            begin = time.perf_counter()
            cell.compile(*given)
            print(_compiled(name, begin), kernels.report(kernels.compiled(cell)), sep="\n", flush=True)
        return
    with kernels.dumping() as folder, contextlib.ExitStack() as forms:
        import pipeline.device  # noqa: F401

        forms.enter_context(kernels.npu_forms())
        for name, cell, given in graphs(options):
            begin = time.perf_counter()
            nodes, lacks = kernels.stopped(cell, given, folder)
            print(_compiled(name, begin), kernels.report(kernels.counted(nodes)), sep="\n", flush=True)
            print("this CPU has no kernel", lacks, flush=True)


def graphs(options: argparse.Namespace) -> list[tuple]:
    """(name, cell, its inputs) of the gradients and of the update, without values."""
    import pipeline.device

    import mindspore as ms
    import numpy as np
    from mindspore.nn.utils import no_init_parameters

    from pipeline.models.config import CONFIGS
    from pipeline.models.unet import UNet
    from pipeline.training.optimizers.adamw import AdamW
    from pipeline.training.optimizers.common import decays
    from pipeline.training.step import Apply, Gradients, SampleLoss, Settings, Update

    pipeline.device.setup("CPU")
    # MindSpore makes all weights when a graph is compiled.
    ms.nn.Cell.init_parameters_data = lambda self, auto_parallel_mode=False: {}
    config = CONFIGS[options.config].unet
    attention = "flash" if options.npu else "tiled"
    with no_init_parameters():
        unet = UNet(config, attention, getattr(ms, options.precision), recompute=not options.no_recompute).set_train()
        optimizer = AdamW(unet.trainable_params(), decays(unet), 0.01, 0.9, 0.999, 1e-8)
    scale = 65536.0 if options.precision == "float16" else None
    settings = Settings(max_grad_norm=1.0, loss_scale=scale)
    update = Update(optimizer, None, settings)
    latents = (options.batch, 4, options.side, options.side)
    shapes = [latents, (options.batch,), (options.batch, 77, config.context_dim), (options.batch, config.vector_dim)]
    shapes += [latents, (options.batch,)]
    inputs = [ms.Tensor(shape=shape, dtype=ms.float32) for shape in shapes]
    scalar = ms.Tensor(np.float32(0))
    values = [ms.Tensor(shape=p.shape, dtype=p.dtype) for p in update.parameters]
    print(
        f"{options.config}, {sum(p.size for p in update.parameters):,} parameters in {len(values)} tensors", flush=True
    )
    found = [
        ("gradients", Gradients(SampleLoss(unet, settings), update), inputs),
        ("update", Apply(update), [scalar, scalar, scalar, *values]),
    ]
    return [row for row in found if options.graph in (None, row[0])]


def _compiled(name: str, begin: float) -> str:
    return f"{name}: compiled in {time.perf_counter() - begin:.0f} s, peak {peak_gigabytes():.1f} GB"


if __name__ == "__main__":
    main()
