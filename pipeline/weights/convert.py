"""Published weights -> one MindSpore checkpoint per component, streamed: a few chunks in memory at a time."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pipeline import progress, store
from pipeline.models.config import SDXLConfig
from pipeline.stage import StageError
from pipeline.weights import check, ckpt, provenance
from pipeline.weights.adapters.apply import Changed, apply, why_no_numbers
from pipeline.weights.ahead import ahead
from pipeline.weights.names import PREFIX, part_of, to_mindspore
from pipeline.weights.numeric import finite
from pipeline.weights.source import open_weights
from pipeline.weights.tensor import Tensor


def convert(base: Path, vae: Path, config: SDXLConfig, out: Path, loras: Sequence[tuple[Path, float]] = ()) -> None:
    """Write the folder `out` with unet.ckpt, clip_l.ckpt, clip_g.ckpt and vae.ckpt, and with what they were made of
    (provenance.SOURCES), all or none of them.

    Names are MindSpore's with the component's prefix, in the layout's order; each tensor keeps the dtype that it has
    in the source. `loras` (file, weight) are merged into them one after the other, in float32. Raises StageError for
    weights that do not fit the configuration, are damaged, or hold NaN or infinity, and for files that are no LoRA of
    it."""
    tensors = apply(open_weights(base, vae, config), loras, config)
    for path, weight in loras:
        print(f"{path}, times {weight:g}: {_changes(path, tensors)}", flush=True)
    faults: list[str] = []  # of the base
    of_loras: list[str] = []

    def refuse() -> None:
        lists = []
        if faults:
            listed = check.listed("tensors with values that are no numbers", faults)
            lists.append(f"{base} (VAE: {vae}) is damaged; download or make it again:\n{listed}")
        if of_loras:
            listed = check.listed("tensors with values that are no numbers then", of_loras)
            lists.append(f"model.loras cannot be merged into {base}:\n{listed}")
        raise StageError("\n".join(lists))

    def checked_chunks(own: Mapping[str, Tensor | Changed]) -> Iterator[tuple[str, memoryview]]:
        for name, tensor in own.items():
            before = len(faults)
            for chunk in check.chunks(name, tensor, faults):
                yield name, chunk
            if len(faults) > before and isinstance(tensor, Changed) and _finite(tensor.base):
                del faults[before:]
                of_loras.append(why_no_numbers(name, tensor))
            if len(faults) + len(of_loras) > check.MOST:
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
        if faults or of_loras:
            refuse()
        text = json.dumps(provenance.sources(base, vae, loras), indent=1)
        (folder / provenance.SOURCES).write_text(text, encoding="utf-8")
    print(*summary, sep="\n", flush=True)


def _finite(tensor: Tensor) -> bool:
    return all(finite(chunk, tensor.dtype) for chunk in tensor.chunks())


def _changes(path: Path, tensors: Mapping[str, Tensor | Changed]) -> str:
    """How many tensors of which components a LoRA changes."""
    changed = [
        part_of(name)
        for name, tensor in tensors.items()
        if isinstance(tensor, Changed) and any(adapter.path == path for adapter, _ in tensor.adapters)
    ]
    return ", ".join(f"{count} tensors of {part}" for part, count in Counter(changed).items())
