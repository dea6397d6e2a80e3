"""Published weights -> one MindSpore checkpoint per component, streamed: a few chunks in memory at a time."""

import json
from collections.abc import Iterator
from pathlib import Path

from pipeline import progress, store
from pipeline.models.config import SDXLConfig
from pipeline.stage import StageError
from pipeline.weights import check, ckpt, provenance
from pipeline.weights.ahead import ahead
from pipeline.weights.names import PREFIX, part_of, to_mindspore
from pipeline.weights.source import open_weights
from pipeline.weights.tensor import Tensor


def convert(base: Path, vae: Path, config: SDXLConfig, out: Path) -> None:
    """Write the folder `out` with unet.ckpt, clip_l.ckpt, clip_g.ckpt and vae.ckpt, and with what they were made of
    (provenance.SOURCES), all or none of them.

    Names are MindSpore's with the component's prefix, in the layout's order; each tensor keeps the dtype that it has
    in the source. Raises StageError for weights that do not fit the configuration, are damaged, or hold NaN or
    infinity."""
    tensors = open_weights(base, vae, config)
    faults: list[str] = []

    def refuse() -> None:
        listed = check.listed("tensors with values that are no numbers", faults)
        raise StageError(f"{base} (VAE: {vae}) is damaged; download or make it again:\n{listed}")

    def checked_chunks(own: dict[str, Tensor]) -> Iterator[tuple[str, memoryview]]:
        for name, tensor in own.items():
            for chunk in check.chunks(name, tensor, faults):
                yield name, chunk
            if len(faults) > check.MOST:
                refuse()

    total = sum(tensor.nbytes for tensor in tensors.values())
    summary = []
    with store.out(out) as folder, progress.Bar(total, "B", "convert") as bar:
        folder.mkdir()
        for part in PREFIX:
            own = {name: tensor for name, tensor in tensors.items() if part_of(name) == part}
            with ckpt.Writer(folder / f"{part}.ckpt") as writer:
                begun = None
                for name, chunk in ahead(checked_chunks(own)):
                    if name != begun:
                        writer.begin(to_mindspore(name), own[name].dtype, own[name].shape)
                        begun = name
                    writer.write(chunk)
                    bar.update(chunk.nbytes)
            dtypes = ", ".join(sorted({tensor.dtype for tensor in own.values()}))
            count = sum(tensor.count for tensor in own.values())
            summary.append(f"{part}: {len(own):,} tensors, {count:,} parameters, {dtypes}")
        if faults:
            refuse()
        text = json.dumps(provenance.sources(base, vae), indent=1)
        (folder / provenance.SOURCES).write_text(text, encoding="utf-8")
    print(*summary, sep="\n", flush=True)
