"""Published weights -> one MindSpore checkpoint per component, streamed: one chunk in memory at a time."""

from pathlib import Path

from pipeline.models.config import SDXLConfig
from pipeline.stage import StageError
from pipeline.store import atomic
from pipeline.weights import check, ckpt
from pipeline.weights.names import PREFIX, part_of, to_mindspore
from pipeline.weights.source import open_weights
from pipeline.weights.tensor import Tensor


def convert(base: Path, vae: Path, config: SDXLConfig, out: Path) -> None:
    """Write the folder `out` with unet.ckpt, clip_l.ckpt, clip_g.ckpt and vae.ckpt, all or none of them.

    Names are MindSpore's with the component's prefix, in the layout's order; each tensor keeps the dtype that it has
    in the source. Raises StageError for weights that do not fit the configuration, are damaged, or hold NaN or
    infinity."""
    tensors = open_weights(base, vae, config)
    faults: list[str] = []
    with atomic(out) as folder:
        folder.mkdir()
        for part in PREFIX:
            own = {name: tensor for name, tensor in tensors.items() if part_of(name) == part}
            _write(folder / f"{part}.ckpt", own, faults)
            dtypes = ", ".join(sorted({tensor.dtype for tensor in own.values()}))
            count = sum(tensor.count for tensor in own.values())
            print(f"{part}: {len(own):,} tensors, {count:,} parameters, {dtypes}", flush=True)
            if len(faults) > check.MOST:
                break
        if faults:
            listed = check.listed("tensors with values that are no numbers", faults)
            raise StageError(f"{base} (VAE: {vae}) is damaged:\n{listed}")


def _write(path: Path, tensors: dict[str, Tensor], faults: list[str]) -> None:
    """Stops early when more faults are found than a message shows."""
    with ckpt.Writer(path) as writer:
        for name, tensor in tensors.items():
            writer.begin(to_mindspore(name), tensor.dtype, tensor.shape)
            for chunk in check.chunks(name, tensor, faults):
                writer.write(chunk)
            if len(faults) > check.MOST:
                return
