"""What of params.yaml, and of the data, a plan depends on."""

import os
from dataclasses import dataclass
from math import ceil, sqrt
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.models.config import CONFIGS
from pipeline.params import Params
from pipeline.planning.views import Counted
from pipeline.training import groups, memory
from pipeline.training.groups import Groups
from pipeline.training.targets import frozen_dtype, targets, text_targets
from pipeline.weights import layout
from pipeline.weights.adapters import kinds
from pipeline.weights.chosen import trained_parts, unused_parameters
from pipeline.weights.names import PREFIX, to_mindspore, to_stability

BUFFER_MB = 200  # HCCL_BUFFSIZE of CANN, where it is not set


@dataclass(frozen=True)
class Run:
    config: str
    images: int
    resolution: int
    devices: int
    batch_size: int
    accumulation: int
    steps: int | None
    epochs: int | None
    precision: str
    weights_dtype: str
    optimizer: str
    shard_optimizer: bool
    ema: bool
    gradient_checkpointing: bool
    attention: str
    latent_channels: int
    chunks: int
    captions: int | None = None  # distinct ones; None: as many as pictures
    rows_per_picture: int = 1  # of the latents' cache in one bucket: mirrored, cropped
    further: tuple[int, ...] = ()  # index.further_resolutions
    neighbors: int = 0  # index.neighbors
    counted: Counted | None = None  # by the index, in place of what follows from these
    validation_share: float = 0.0
    max_grad_norm: float = 1.0
    nodes: int = 1
    target: str = "Ascend"  # or "CPU"
    states: int = 1  # train.checkpoints_total_limit
    checkpointing_steps: int = 100
    validation_interval: int = 100
    save_interval: int = 0
    save_limit: int | None = None
    save_bytes: int = 4  # of a number in the weights in between
    keep_best: bool = False
    merge_bytes: int = 2  # of a number in the merged files
    hccl_buffer: int = BUFFER_MB * 2**20
    buckets: int | None = None  # that the index's pictures fill
    sinks: bool = False
    groups: Groups = ()  # train.groups
    adapter: str = "none"
    rank: int = 16
    adapter_targets: tuple[str, ...] = ()
    lokr_factor: int = -1
    source: str = "cache"  # or "pictures"
    encoder_bytes: tuple[int, int] = (4, 4)  # of a number in the VAE and in the text encoders, where training has them
    encoded_at_once: int = 1  # pictures
    text_encoders: str = "none"

    @property
    def encodes(self) -> bool:
        """Whether the training has the VAE and both text encoders."""
        return self.source == "pictures"

    @property
    def reads_captions(self) -> bool:
        """Whether it has the text encoders."""
        return self.encodes or self.text_encoders != "none"

    @property
    def text_bytes(self) -> int:
        """Of a number in the text encoders. All count as trained where one is."""
        trained = self.text_encoders != "none" and not self.adapts
        return memory.SIZES[self.weights_dtype] if trained else self.encoder_bytes[1]

    @property
    def adapts(self) -> bool:
        return self.adapter != "none"

    @property
    def trained_dtype(self) -> str:
        """Of what is trained: adapters are float32."""
        return "float32" if self.adapts else self.weights_dtype

    @property
    def kept_dtype(self) -> str:
        """Of the UNet's weights."""
        return frozen_dtype(self.precision, self.weights_dtype) if self.adapts else self.weights_dtype

    @property
    def size(self) -> int:
        """Bytes of a number in the dtype of the computation."""
        return 4 if self.precision == "float32" else 2

    @property
    def attention_kind(self) -> str:
        """As Device.attention_kind chooses (pipeline/device.py, which needs MindSpore)."""
        if self.attention != "auto":
            return self.attention
        return "flash" if self.target == "Ascend" and self.precision != "float32" else "tiled"

    @property
    def resolutions(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys((self.resolution, *self.further)))

    @property
    def largest(self) -> int:
        """The side of a square picture of the largest bucket's pixels."""
        return max(*self.resolutions, 0, ceil(sqrt(self.counted.largest)) if self.counted else 0)

    @property
    def side(self) -> int:
        """Of that picture's latents."""
        return self.largest // CONFIGS[self.config].vae.factor

    @property
    def rows(self) -> int:
        """Of the latents' cache; without an index as if no bucket were left out."""
        if self.counted:
            return self.counted.rows
        return self.images * self.rows_per_picture * len(self.resolutions) * (1 + self.neighbors)

    @property
    def pixels(self) -> int:
        """Of all of them."""
        if self.counted:
            return self.counted.pixels
        squares = sum(resolution**2 for resolution in self.resolutions)
        return self.images * self.rows_per_picture * (1 + self.neighbors) * squares

    @property
    def samples(self) -> int:
        """Pictures of one optimizer step."""
        return self.batch_size * self.accumulation * self.devices


def from_params(params: Params, images: int, captions: int | None = None, counted: Counted | None = None) -> Run:
    train, device, latents = params.train, params.device, params.cache_latents
    target = "CPU" if device.target == "CPU" else "Ascend"
    shards = target == "Ascend" and train.optimizer == "adamw"
    return Run(
        config=params.model.config,
        images=images,
        resolution=params.index.resolution,
        devices=device.workers * device.nodes,
        batch_size=train.batch_size,
        accumulation=train.gradient_accumulation_steps,
        steps=train.steps,
        epochs=train.epochs,
        precision=train.precision,
        weights_dtype=train.weights_dtype,
        optimizer=train.optimizer,
        shard_optimizer=shards if train.shard_optimizer == "auto" else train.shard_optimizer,
        ema=train.ema,
        gradient_checkpointing=train.gradient_checkpointing,
        attention=device.attention,
        latent_channels=8 if latents.store == "moments" else 4,
        chunks=params.cache_text.chunks,
        captions=captions,
        rows_per_picture=(latents.crops if latents.crop == "random" else 1) * (2 if latents.flip else 1),
        further=tuple(params.index.further_resolutions),
        neighbors=params.index.neighbors,
        counted=counted,
        validation_share=train.validation_share,
        max_grad_norm=train.max_grad_norm,
        nodes=device.nodes,
        target=target,
        states=train.checkpoints_total_limit,
        checkpointing_steps=train.checkpointing_steps,
        validation_interval=train.validation_interval,
        save_interval=train.save_interval,
        save_limit=train.save_limit,
        save_bytes=2 if train.save_dtype == "float16" else 4,
        keep_best=train.keep_best,
        merge_bytes=4 if params.merge.dtype == "float32" else 2,
        hccl_buffer=_buffer_megabytes() * 2**20,
        buckets=counted.buckets if counted else _buckets(params),
        sinks=device.sink_size > 0,
        groups=groups.groups(train.groups),
        adapter=train.adapter,
        rank=train.rank,
        adapter_targets=tuple(train.adapter_targets),
        lokr_factor=train.lokr_factor,
        source=train.source,
        encoder_bytes=tuple(2 if section.precision == "bfloat16" else 4 for section in (latents, params.cache_text)),
        text_encoders=train.text_encoders,
        encoded_at_once=min(latents.batch_size, train.batch_size),
    )


def _buffer_megabytes() -> int:
    """As CANN reads it from the environment, which the ranks inherit."""
    said = os.environ.get("HCCL_BUFFSIZE", "")
    return int(said) if said.isascii() and said.isdigit() else BUFFER_MB


def _buckets(params: Params) -> int | None:
    return None if params.index.buckets else 1 + len(params.index.further_resolutions)


def count_index(folder: Path) -> tuple[int, int]:
    """(pictures that are used, captions) that the index lists, each content once. Raises OSError, pa.ArrowException."""
    images = pq.read_table(folder / "images.parquet", columns=["image", "rejected"])
    captions = pq.read_table(folder / "captions.parquet", columns=["caption"])
    used = images.filter(pc.is_null(images["rejected"]))
    return pc.count_distinct(used["image"]).as_py(), pc.count_distinct(captions["caption"]).as_py() + 1  # the empty one


def component_shapes(config: str, part: str) -> memory.Shapes:
    """A component's tensors under MindSpore's names."""
    prefix = PREFIX[part]
    return {
        to_mindspore(name): shape for name, shape in layout.shapes(CONFIGS[config]).items() if name.startswith(prefix)
    }


def unet_shapes(config: str) -> memory.Shapes:
    return component_shapes(config, "unet")


def adapted_shapes(run: Run) -> memory.Shapes:
    """The UNet's weights that have an adapter, by their names below its prefix."""
    shapes = {name.removeprefix(PREFIX["unet"]): shape for name, shape in unet_shapes(run.config).items()}
    return {name: shapes[name] for name in targets(shapes, run.adapter_targets, run.groups)}


def adapted_texts(run: Run) -> memory.Shapes:
    """The text encoders' weights that have an adapter, by their names below their prefixes."""
    found: memory.Shapes = {}
    for part in trained_parts(run.text_encoders) if run.adapts else ():
        found |= text_targets(part, CONFIGS[run.config])
    return found


def trained_shapes(run: Run) -> memory.Shapes:
    """Those of the UNet that are not frozen and of the text encoders with it, or of the adapters."""
    prefix = PREFIX["unet"]
    if run.adapts:
        return {
            f"{name.removesuffix('.weight')}.{part}": own
            for name, shape in (adapted_shapes(run) | adapted_texts(run)).items()
            for part, own in kinds.shapes(run.adapter, shape, run.rank, run.lokr_factor).items()
        }
    unet = {
        name: shape
        for name, shape in unet_shapes(run.config).items()
        if groups.factor(run.groups, to_stability(name).removeprefix(prefix))
    }
    return unet | {
        name: shape
        for part in trained_parts(run.text_encoders)
        for name, shape in component_shapes(run.config, part).items()
        if not name.removeprefix(PREFIX[part]).startswith(unused_parameters(part, CONFIGS[run.config]))
    }
