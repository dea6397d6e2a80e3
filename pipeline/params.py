"""The schema of params.yaml: one class per section, no defaults (what is not in params.yaml is not in the run).

Reading needs no MindSpore, so a wrong key stops a stage at once. Errors name the key's path and the allowed values.
What keys demand of each other is in pipeline/contradictions."""

import datetime
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_serializer,
    model_validator,
)  # fmt: skip
from pydantic_core import PydanticCustomError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError

from pipeline import unknown_keys
from pipeline.contradictions import contradictions

_SHOWN, _WIDTH = 20, 100  # faults of one file that an error lists, and letters of a value
_FLOAT32 = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # the smallest and the largest that devices compute with


class ParamsError(ValueError):
    """params.yaml does not fit the schema, or its keys contradict each other; the message lists each key with what was found and what is wanted."""


def _in_float32(value: float) -> float:
    smallest, largest = _FLOAT32
    if value and not smallest <= abs(value) <= largest:
        raise PydanticCustomError("float32", "Input is outside of float32: wanted 0 or a size of 1.2e-38 to 3.4e38")
    return value


def _text(text: str) -> str:
    if any("\ud800" <= letter <= "\udfff" for letter in text):  # from an escape such as "\ud83d"
        raise PydanticCustomError("text", "Input should be Unicode text without halves of surrogate pairs")
    return text


def _file_name(text: str) -> str:
    if not text.strip() or "\0" in text:
        raise PydanticCustomError("path", "Input should be the path of a file or folder")
    if text.startswith("~"):
        raise PydanticCustomError("path", "~ is not replaced by your home folder here: write the whole path")
    return text


Count = Annotated[int, Field(gt=0, le=99_999_999)]  # a state's name has its step in eight digits
Interval = Annotated[int, Field(ge=0, le=99_999_999)]
BatchSize = Annotated[int, Field(gt=0, le=4096)]
Workers = Annotated[int, Field(gt=0, le=1024)]
Side = Annotated[int, Field(gt=0, le=16384)]  # pixels
Seed = Annotated[int, Field(ge=0, lt=2**64)]
Timestep = Annotated[int, Field(ge=0, le=999)]
Byte = Annotated[int, Field(ge=0, le=255)]
Float = Annotated[float, AfterValidator(_in_float32)]
Steps = Annotated[int, Field(gt=0, le=1000)]  # of sampling
Guidance = Annotated[Float, Field(ge=0, le=1000)]
NotNegative = Annotated[Float, Field(ge=0)]
Share = Annotated[Float, Field(ge=0, le=1)]
Decay = Annotated[Float, Field(ge=0, le=0.999999)]  # 1 minus it is still a number in float32
Text = Annotated[str, AfterValidator(_text)]
Column = Annotated[Text, Field(min_length=1, max_length=1000)]
FileName = Annotated[Text, AfterValidator(_file_name)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Data(Section):
    images: FileName
    image_column: Column
    caption_column: Column


class Lora(Section):
    """A file that is merged into the base, its change times `weight`."""

    path: FileName
    weight: Annotated[Float, Field(ge=-10, le=10)] = 1.0


class Model(Section):
    config: Literal["tiny", "sdxl-base"]
    base: FileName
    vae: FileName
    tokenizer: FileName
    lora_folder: FileName
    loras: list[Lora]


class Device(Section):
    target: Literal["auto", "CPU", "Ascend"]
    workers: Workers
    cluster: Annotated[Text, Field(pattern=r"^(auto|[^\s:/]+:[0-9]{1,5})$")] | None
    nodes: Annotated[int, Field(gt=0, le=65536)]
    min_nodes: Annotated[int, Field(gt=0, le=65536)]
    node_rank: Annotated[int, Field(ge=0)]
    master: Annotated[Text, Field(pattern=r"^[^\s:]+:[0-9]{1,5}$")]
    attention: Literal["auto", "plain", "tiled", "flash", "flash_padded"]
    sink_size: Interval
    jit_level: Literal["O0", "O1"]
    deterministic: Literal["auto"] | bool
    kernel_launch_group: Annotated[list[Workers], Field(min_length=2, max_length=2)] | None
    max_device_memory: Annotated[Text, Field(pattern=r"^[0-9]{1,4}(\.[0-9]{1,3})?GB$")] | None
    memory_optimize_level: Literal["O0", "O1"]
    compile_cache: bool


class Index(Section):
    resolution: Side
    further_resolutions: Annotated[list[Side], Field(max_length=16)]
    neighbors: Annotated[int, Field(ge=0, le=16)]
    bucket_step: Side
    buckets: bool
    min_bucket: Annotated[int, Field(gt=0, lt=2**31)]
    min_side: Annotated[int, Field(gt=0, lt=2**31)]
    max_enlargement: Annotated[Float, Field(ge=1)] | None
    max_pixels: Annotated[int, Field(gt=0, lt=2**31)]
    max_rejected: Share
    caption_lines: Literal["several", "one"]
    caption_variants: Annotated[int, Field(gt=0, le=1000)]
    caption_seed: Seed
    max_samples: Annotated[int, Field(gt=0, lt=2**31)] | None
    alpha_mask: bool
    workers: Workers


class CacheLatents(Section):
    store: Literal["moments", "sample", "mean"]
    crop: Literal["center", "random"]
    crops: Annotated[int, Field(gt=0, le=1000)]
    flip: bool
    interpolation: Literal["lanczos", "bicubic", "bilinear", "area"]
    background: Annotated[list[Byte], Field(min_length=3, max_length=3)]
    precision: Literal["float32", "bfloat16"]
    batch_size: BatchSize
    workers: Workers


class CacheText(Section):
    chunks: Annotated[int, Field(ge=1, le=3)]
    emphasis: Literal["none", "a1111"]
    precision: Literal["float32", "bfloat16"]
    batch_size: BatchSize


class Diffusion(Section):
    prediction: Literal["epsilon", "v", "flow"]
    zero_terminal_snr: bool
    flow_shift: Annotated[Float, Field(ge=0.01, le=100)]
    scaling_factor: Annotated[Float, Field(ge=1e-3, le=1e3)] | None
    shift_factor: Annotated[Float, Field(ge=-1e3, le=1e3)]


class Group(Section):
    pattern: Annotated[Text, Field(min_length=1)]
    learning_rate: Annotated[Float, Field(ge=0, le=1e6)] | None = None  # not below 1e-6 (contradictions/train.py)
    freeze: bool = False


class Prompt(Section):
    """What one picture has of its own; the rest is as for a plain text."""

    prompt: Text
    negative_prompt: Text | None = None
    width: Side | None = None
    height: Side | None = None
    steps: Steps | None = None
    guidance_scale: Guidance | None = None
    seed: Seed | None = None

    @model_serializer(mode="wrap")
    def _given(self, dump: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """As it stands in the file."""
        return {key: value for key, value in dump(self).items() if value is not None}


_FORMS = ("text", "mapping")  # of a prompt
_KINDS = ("bool", "int", "float", "str")  # that a value may be one of
TextOrPrompt = Annotated[
    Annotated[Text, Tag("text")] | Annotated[Prompt, Tag("mapping")],
    Discriminator(lambda value: "mapping" if isinstance(value, (dict, Prompt)) else "text"),
]
Sampler = Literal["euler", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_karras", "ddim", "unipc"]


class Train(Section):
    init_from: FileName
    source: Literal["cache", "pictures"]
    seed: Seed
    steps: Count | None
    epochs: Count | None
    batch_size: BatchSize
    gradient_accumulation_steps: BatchSize

    learning_rate: Annotated[Float, Field(gt=0)]
    scale_lr: bool
    lr_scheduler: Literal[
        "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "wsd"
    ]
    lr_warmup_steps: Interval
    lr_num_cycles: Annotated[int, Field(gt=0, le=10_000)]
    lr_power: Annotated[Float, Field(ge=0.01, le=100)]
    lr_end: NotNegative
    lr_decay_steps: Interval
    groups: list[Group]
    text_encoders: Literal["none", "clip_l", "clip_g", "both"]
    text_encoder_learning_rate: Annotated[Float, Field(gt=0)]

    adapter: Literal["none", "lora", "dora", "lokr", "loha"]
    rank: Annotated[int, Field(ge=1, le=1024)]
    alpha: Annotated[Float, Field(ge=1e-3, le=1e6)]
    adapter_targets: Annotated[list[Annotated[Text, Field(min_length=1)]], Field(min_length=1)]
    lokr_factor: Literal[-1] | Annotated[int, Field(ge=2, le=1024)]

    optimizer: Literal["adamw", "adamw8bit", "lion", "prodigy", "adafactor"]
    adam_beta1: Decay
    adam_beta2: Decay
    adam_epsilon: Annotated[Float, Field(ge=1e-30, le=1)]
    weight_decay: NotNegative
    max_grad_norm: NotNegative
    shard_optimizer: Literal["auto"] | bool
    ema: bool
    ema_decay: Decay

    timestep_distribution: Literal["uniform", "logit_normal", "sigmoid", "beta"]
    timestep_logit_mean: Annotated[Float, Field(ge=-10, le=10)]
    timestep_logit_std: Annotated[Float, Field(ge=0.01, le=10)]
    timestep_sigmoid_scale: Annotated[Float, Field(ge=0.01, le=10)]
    timestep_alpha: Annotated[Float, Field(ge=0.01, le=100)]
    timestep_beta: Annotated[Float, Field(ge=0.01, le=100)]
    timestep_min: Timestep
    timestep_max: Annotated[int, Field(ge=1, le=1000)]
    timestep_bias_strategy: Literal["none", "earlier", "later", "range"]
    timestep_bias_multiplier: Annotated[Float, Field(gt=0, le=1e6)]
    timestep_bias_begin: Timestep
    timestep_bias_end: Annotated[int, Field(ge=0, le=1000)]
    timestep_bias_portion: Share
    snr_gamma: Annotated[Float, Field(gt=0, le=1e6)] | None
    snr_gamma_soft: Annotated[Float, Field(ge=1e-6, le=1e6)] | None
    p2_gamma: Annotated[Float, Field(gt=0, le=10)] | None
    p2_k: Annotated[Float, Field(ge=0.001, le=1000)]
    debiased_estimation: bool
    loss_type: Literal["l2", "huber"]
    huber_c: Annotated[Float, Field(ge=1e-6, le=1e6)]
    huber_schedule: Literal["constant", "exponential", "snr"]
    noise_offset: Annotated[Float, Field(ge=0, le=10)]
    multires_noise_iterations: Annotated[int, Field(ge=0, le=100)]
    multires_noise_discount: Share
    input_perturbation: Annotated[Float, Field(ge=0, le=10)]
    caption_dropout: Share
    caption_dropout_with: Literal["empty", "zeros"]
    mask_floor: Share

    precision: Literal["float32", "float16", "bfloat16"]
    weights_dtype: Literal["float32", "float16", "bfloat16"]
    loss_scale: Annotated[Float, Field(ge=1, le=2.0**40)]
    gradient_checkpointing: bool

    validation_share: Annotated[Float, Field(ge=0, lt=1)]
    validation_interval: Count
    validation_timesteps: Annotated[list[Timestep], Field(min_length=1)]
    sample_interval: Interval
    previews: list[TextOrPrompt]
    preview_sampler: Sampler
    log_interval: Count
    tensorboard: bool
    checkpointing_steps: Count
    checkpoints_total_limit: Count
    keep_state: bool

    save_interval: Interval
    save_limit: Count | None
    save_dtype: Literal["float32", "float16"]
    keep_best: bool
    patience: Interval

    @property
    def reads_captions(self) -> bool:
        """Whether training reads captions themselves, and no cache of them."""
        return self.source == "pictures" or self.text_encoders != "none"


class Merge(Section):
    weights: Literal["raw", "ema", "best"] | Count
    dtype: Literal["float16", "bfloat16", "float32"]


class Sample(Section):
    prompts: Annotated[list[TextOrPrompt], Field(min_length=1)]
    saved_steps: Literal["all"] | list[Count]
    sampler: Sampler
    steps: Steps
    guidance_scale: Guidance
    guidance_rescale: Share
    width: Side
    height: Side
    seed: Seed
    precision: Literal["float32", "float16", "bfloat16"]
    batch_size: BatchSize


class Params(Section):
    data: Data
    model: Model
    device: Device
    index: Index
    cache_latents: CacheLatents
    cache_text: CacheText
    diffusion: Diffusion
    train: Train
    merge: Merge
    sample: Sample

    @model_validator(mode="after")
    def _possible(self):
        lines = [f"{key}: {message}" for key, message in contradictions(self)]
        if lines:
            raise PydanticCustomError("contradictions", "{lines}", {"lines": "\n".join(lines)})
        return self


def load(path: str | Path = "params.yaml") -> Params:
    """Read and check params.yaml. Raises ParamsError."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ParamsError(f"{error}; stages are started in the project's folder") from None
    except UnicodeDecodeError as error:
        raise ParamsError(f"{path} is not UTF-8: {error}; save it as UTF-8") from None
    return check(parse(text, path), path)


def check(tree: Any, path: str | Path) -> Params:
    """The values of a file, checked; `path` names it in errors. Raises ParamsError."""
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        lines = _lines(error.errors(include_url=False))
    more = [f"... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    text = "\n".join(f"  {line}" for line in lines[:_SHOWN] + more)
    raise ParamsError(f"{path} cannot be used as it stands:\n{text}") from None


def replaced(params: Params, values: dict[str, Any]) -> Params:
    """`params` with other values of some keys, such as {"train.steps": 3}, which are not checked."""
    changed: dict[str, dict] = {}
    for key, value in values.items():
        section, name = key.split(".")
        changed.setdefault(section, {})[name] = value
    return params.model_copy(
        update={section: getattr(params, section).model_copy(update=own) for section, own in changed.items()}
    )


def sections(text: bytes, name: str) -> dict[str, Any]:
    """Section -> its keys with their values, of a text in the form of params.yaml that need not fit the schema. Raises
    ParamsError, which calls it by `name`."""
    try:
        tree = parse(text.decode(), name)
    except UnicodeDecodeError as error:
        raise ParamsError(f"{name} is not UTF-8: {error}; save it as UTF-8") from None
    if not isinstance(tree, dict):
        raise ParamsError(f"{name}: wanted a mapping of the sections {', '.join(Params.model_fields)}")
    return tree


class _Constructor(SafeConstructor):
    def flatten_mapping(self, node: Any) -> Any:
        """Merges of merges, which no file of settings needs, take a time that doubles with each."""
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise ConstructorError(None, None, "merge keys (<<) are not taken here", key.start_mark)
        return super().flatten_mapping(node)


def parse(text: str, path: str | Path) -> Any:
    """The values of a YAML text as DVC itself reads them (its dvc/utils/serialize/_yaml.py): YAML 1.2, where `1e-05` is
    a number and `no` is text. Keys given twice are refused. By Python's parser: libyaml's, which DVC uses, ends the
    process on what is nested too deeply."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    try:
        return yaml.load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise ParamsError(f"{path}{where} is not YAML 1.2: {error.problem or error.context}") from None
    except Exception as error:  # the parser lets ValueError, RecursionError and others of Python's out
        raise ParamsError(f"{path} is not YAML 1.2: {type(error).__name__}: {error}") from None


def _lines(errors: list[dict]) -> list[str]:
    """A line for each key, whatever forms its value may have; of lists what is wrong with an item, where one is named."""
    found: dict[str, list[str]] = {}
    for error in errors:
        if error["type"] == "contradictions":
            return error["msg"].split("\n")
        key, message, tail = _parts(error)
        before = found.setdefault(key, [message, tail])
        if message != before[0]:
            before[0] += f", or {message.removeprefix('Input should be ')}"
    inner = {key.rpartition(".")[0] for key in found if key.rpartition(".")[2].isdigit()}
    return [f"{clip(key) or 'the whole file'}: {''.join(said)}" for key, said in found.items() if key not in inner]


def _parts(error: dict) -> tuple[str, str, str]:
    """The key, what is wrong, and what was found."""
    place = [part for before, part in zip((None, *error["loc"]), error["loc"]) if not _is_form(before, part)]
    key, message, found = ".".join(map(str, place)), error["msg"], error["input"]
    if error["type"] == "extra_forbidden":
        message = unknown_keys.words(Params, place)
    if error["type"] == "model_type":  # pydantic's own words name a class
        (wanted,) = (section for section in Section.__subclasses__() if section.__name__ == error["ctx"]["class_name"])
        message = f"Input should be a mapping of keys such as {', '.join(list(wanted.model_fields)[:3])}"
    if not key:
        message = f"wanted a mapping of the sections {', '.join(Params.model_fields)}"
    if error["type"] == "missing":
        is_prompt = key.startswith(("sample.prompts.", "train.previews."))
        return key, message, "; a prompt that is a text with a colon stands in quotes" * is_prompt
    unquoted = error["type"] == "string_type" and isinstance(found, (bool, int, float, datetime.date))
    hint = "; put it in quotes, if it is meant as text" if unquoted else ""
    return key, message, f" (found {short(found)}){hint}"


def _is_form(before: Any, part: Any) -> bool:
    """Whether a part of an error's place is no key but pydantic's name for what a value was taken for."""
    if isinstance(part, int):
        return False
    named = part in _KINDS or part.startswith(("literal[", "list[", "constrained-", "function-"))
    return named or isinstance(before, int) and part in _FORMS


def short(value: Any) -> str:
    """A value as an error shows it. Aliases of aliases in YAML make values of a few bytes whose text fills memory."""
    if isinstance(value, datetime.date):
        return f"the date {value}"
    shown = reprlib.Repr()
    shown.maxlevel, shown.maxstring, shown.maxother = 2, _WIDTH, _WIDTH
    try:
        return clip(shown.repr(value))
    except ValueError:  # an int of more digits than Python writes out
        return "a very large number"


def clip(text: str) -> str:
    return text if len(text) <= _WIDTH else f"{text[:_WIDTH]}..."
