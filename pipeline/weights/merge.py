"""A trained UNet and the other components -> one checkpoint, streamed, in MindSpore's form and in Stability's."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from pipeline import progress, store
from pipeline.models.config import SDXLConfig
from pipeline.stage import StageError
from pipeline.weights import check, ckpt, layout, provenance, safetensors
from pipeline.weights.adapters.apply import apply, base_part
from pipeline.weights.ahead import ahead, mapped
from pipeline.weights.names import part_of, to_mindspore
from pipeline.weights.numeric import cast, count_nonfinite, finite, largest
from pipeline.weights.tensor import Tensor, size

_DIVERGED = "; a training that diverges leaves such: lower train.learning_rate"


def merge(
    components: dict[str, Path],
    config: SDXLConfig,
    dtype: str,
    out: Path,
    marks: Sequence[str] = (),
    metadata: Mapping[str, str] = MappingProxyType({}),
    card: str | None = None,
    adapter: Path | None = None,
) -> None:
    """Write the folder `out` with merged.ckpt (MindSpore's names) and merged.safetensors (Stability's), both or none.

    `components` are the checkpoints of unet, clip_l, clip_g and vae, of which several may be one file. Both files hold
    the same tensors in the layout's order, as `dtype` (float16, bfloat16 or float32), rounded to nearest and ties to
    even; a component of that dtype already keeps its bits. `marks` are the names of empty tensors that end merged.safetensors (see marks.py);
    MindSpore's form has no place for them, nor for `metadata`, to which comes the hash of the tensors where there is any.
    `card` becomes the folder's README.md. An `adapter` is merged into the UNet and the text encoders; the UNet's file, and
    that of the components that are in it, may then be a whole model's as well (train.init_from). Raises StageError when a component is of another configuration, damaged,
    holds NaN or infinity, or has a value too large for `dtype`."""
    shapes = layout.shapes(config)
    tensors: dict[str, Tensor] = {}
    for part, path in components.items():
        of_start = adapter is not None and path == components["unet"]
        tensors |= base_part(path, part, config) if of_start else _open(part, path, shapes)
    if adapter is not None:
        tensors = apply(tensors, [(adapter, 1.0)], config, "float32")
    entries = {name: (dtype, shape) for name, shape in [*shapes.items(), *((mark, (0,)) for mark in marks)]}
    total = sum(size(dtype, shape) for dtype, shape in entries.values())
    placeholder = f"0x{'-' * 64}"  # stands in the header, before the data, until their hash is known
    metadata = {**metadata, provenance.HASH: placeholder} if metadata else {}
    digest, begun = hashlib.sha256(), None

    def hashed():
        for name, chunk in _cast_chunks(tensors, list(shapes), dtype, components):
            digest.update(chunk)
            yield name, chunk

    with store.out(out) as folder, progress.Bar(total, "B", "merge") as bar:
        folder.mkdir()
        with (
            ckpt.Writer(folder / "merged.ckpt") as mindspore,
            safetensors.Writer(folder / "merged.safetensors", entries, metadata) as stability,
        ):
            for name, chunk in ahead(hashed()):
                if name != begun:
                    mindspore.begin(to_mindspore(name), *entries[name])
                    stability.begin(name, *entries[name])
                    begun = name
                mindspore.write(chunk)
                stability.write(chunk)
                bar.update(chunk.nbytes)
            for mark in marks:
                stability.begin(mark, *entries[mark])
        if metadata:
            safetensors.replace_in_header(folder / "merged.safetensors", placeholder, f"0x{digest.hexdigest()}")
        if card is not None:
            (folder / "README.md").write_text(card, encoding="utf-8")
    marked = f", marked {' and '.join(marks)}" if marks else ""
    print(f"{len(shapes):,} tensors, {sum(t.count for t in tensors.values()):,} parameters, {dtype}{marked}")


def _open(part: str, path: Path, shapes: dict[str, layout.Shape]) -> dict[str, Tensor]:
    """A component's tensors by Stability's name."""
    if not path.exists():
        raise StageError(f"{path} does not exist; wanted the checkpoint of {part}: run the stage that writes it")
    # the text encoders that were trained with a UNet are in its file
    found = {name: tensor for name, tensor in ckpt.read(path).items() if part_of(name) in (None, part)}
    own = {to_mindspore(name): name for name in shapes if part_of(name) == part}
    if faults := check.differences(found, {name: (shapes[stability],) for name, stability in own.items()}):
        raise StageError(
            f"{path} does not hold the {part} of this model.config; make it again with this configuration:\n{faults}"
        )
    return {stability: found[name] for name, stability in own.items()}


def _cast_chunks(tensors: dict[str, Tensor], order: list[str], dtype: str, components: dict[str, Path]):
    """Yield (name, chunk as `dtype`). Raises StageError for NaN, infinity and overflow, when it has seen them all or
    more than a message shows."""
    faults: list[str] = []
    too_large: dict[str, tuple[int, float]] = {}

    def cast_chunk(item: tuple[str, memoryview]):
        name, chunk = item
        source = tensors[name].dtype
        result = cast(chunk, source, dtype)
        if result is chunk or finite(result, dtype) or not finite(chunk, source):
            return name, result, 0, 0.0
        return name, result, count_nonfinite(result, dtype)[1], largest(chunk, source)

    read = ((name, chunk) for name in order for chunk in check.chunks(name, tensors[name], faults))
    for name, result, overflows, peak in mapped(cast_chunk, ahead(read)):  # NumPy casts no faster than a disk writes
        if overflows:
            count, before = too_large.get(name, (0, 0.0))
            too_large[name] = count + overflows, max(before, peak)
        yield name, result
        if len(faults) + len(too_large) > check.MOST:
            break
    lines = [
        f"{name}: {count:,} of {tensors[name].count:,} values, the largest {peak:g}"
        for name, (count, peak) in too_large.items()
    ]
    _refuse(components, dtype, faults, lines)


def _refuse(components: dict[str, Path], dtype: str, faults: list[str], too_large: list[str]) -> None:
    """Raise for what was found, if anything."""
    lists = []
    if faults:
        lists.append(check.listed(f"tensors with values that are no numbers{_DIVERGED}", faults))
    if too_large:
        kind = f"tensors with values too large for {dtype}; set merge.dtype to bfloat16 or float32"
        lists.append(check.listed(kind, too_large))
    if lists:
        raise StageError(f"{', '.join(map(str, components.values()))} cannot be merged:\n" + "\n".join(lists))
