"""An adapter's file beside the one that kohya's sdxl_train_network.py writes in the same run: names, shapes, dtypes, alphas,
metadata and its hash (tests/golden/make_adapter_files.py)."""

import gzip
import json

import pytest
import safetensors.numpy

from pipeline.training import weights
from pipeline.training.targets import targets, text_targets
from pipeline.weights import layout, provenance
from pipeline.weights import safetensors as streamed
from pipeline.weights.adapters import file, kinds
from pipeline.weights.adapters.extract import TARGETS
from pipeline.weights.names import PREFIX
from tests.golden import adapters_rule, rule
from tests.project import ROOT
from tests.training import training_samples
from tests.weights import provenance_samples
from tests.weights.test_adapter_file import WITHOUT

GOLDEN = json.loads(gzip.decompress((ROOT / "tests/golden/adapter_files.json.gz").read_bytes()))
UNET = {
    name.removeprefix(PREFIX["unet"]): shape
    for name, shape in layout.shapes(adapters_rule.KOHYA).items()
    if name.startswith(PREFIX["unet"])
}
RUNS = ["lora", "texts", "dora", "loha", "lokr"]
GIVEN = adapters_rule.KOHYA_ARGUMENTS
SETTINGS = {
    "device.target": "Ascend",  # which has bfloat16
    "train.rank": GIVEN["network_dim"],
    "train.alpha": GIVEN["network_alpha"],
    "train.learning_rate": GIVEN["learning_rate"],
    "train.lr_scheduler": GIVEN["lr_scheduler"],
    "train.lr_warmup_steps": GIVEN["lr_warmup_steps"],
    "train.optimizer": GIVEN["optimizer_type"].lower(),
    "train.batch_size": GIVEN["train_batch_size"],
    "train.gradient_accumulation_steps": GIVEN["gradient_accumulation_steps"],
    "train.max_grad_norm": GIVEN["max_grad_norm"],
    "train.precision": {"bf16": "bfloat16"}[GIVEN["mixed_precision"]],
    "train.seed": GIVEN["seed"],
    "train.noise_offset": GIVEN["noise_offset"],
    "train.snr_gamma": GIVEN["min_snr_gamma"],
    "train.caption_dropout": GIVEN["caption_dropout_rate"],
}
NAMED_OTHERWISE = {"ss_optimizer": ("adamw", "torch.optim.adamw.AdamW")}  # ours by train.optimizer, theirs by the class


@pytest.fixture(scope="module", params=RUNS)
def files(request, tmp_path_factory):
    """(tensors, metadata) of the file that the train stage writes, and what stands in kohya's."""
    folder = tmp_path_factory.mktemp(request.param)
    kind = "lora" if request.param == "texts" else request.param
    layers = {
        file.layer_name(target): UNET[target] for target in targets(UNET, TARGETS if kind == "lora" else ["*"], ())
    }
    settings = SETTINGS | {"train.adapter": kind}
    if request.param == "texts":
        settings |= {"train.text_encoders": "both", "train.text_encoder_learning_rate": adapters_rule.KOHYA_TEXT_RATE}
        for part in ("clip_l", "clip_g"):
            found = text_targets(part, adapters_rule.KOHYA)
            layers |= {file.layer_name(name, part): shape for name, shape in found.items()}
    if kind != "lora":  # LyCORIS' presets leave some out
        layers = {name: shape for name, shape in layers.items() if name not in map(file.layer_name, WITHOUT)}
    base = folder / adapters_rule.KOHYA_BASE
    base.write_bytes(adapters_rule.KOHYA_BASE.encode())
    run = provenance_samples.run(**settings)
    if request.param != "texts":  # as key.py leaves it out
        del run["description"]["train"]["text_encoder_learning_rate"]
    run["description"]["origin"] = provenance.sources(base, base) | {
        "config": "sdxl-base", "resolution": GIVEN["resolution"],
    }  # fmt: skip
    train = training_samples.params(**settings).train
    values = {
        f"{layer}.{part}": rule.normal(f"{layer}.{part}", part_shape)
        for layer, shape in layers.items()
        for part, part_shape in kinds.shapes(kind, shape, train.rank, train.lokr_factor).items()
    }
    weights.write_adapter(folder / "adapter.safetensors", values, train, run, "raw")
    written = safetensors.numpy.load_file(folder / "adapter.safetensors")
    return written, streamed.metadata(folder / "adapter.safetensors"), GOLDEN[request.param]


def test_tensors_are_those_of_kohyas_file(files):
    written, _, golden = files
    wanted = {name: one for name, one in golden["tensors"].items() if not name.startswith(adapters_rule.KOHYA_UNUSED)}
    assert {name: [value.dtype.name, list(value.shape)] for name, value in written.items()} == wanted
    assert sorted({float(value) for name, value in written.items() if name.endswith(".alpha")}) == golden["alphas"]


def test_keys_have_the_values_of_kohyas(files):
    _, metadata, golden = files
    theirs = golden["metadata"]
    own = {key: value for key, value in metadata.items() if key.startswith("ss_") and key != "ss_network_args"}
    assert {key: (value, theirs[key]) for key, value in own.items() if value != theirs.get(key)} == NAMED_OTHERWISE
    assert len(own) >= 25
    # what kohya's scripts write in any case; no arguments are no key there either
    assert {key for key in GOLDEN["minimum"] if key in theirs} <= set(metadata)
    assert ("ss_network_args" in metadata) == ("ss_network_args" in theirs)
    arguments = json.loads(metadata.get("ss_network_args", "{}"))
    assert arguments.items() <= json.loads(theirs.get("ss_network_args", "{}")).items()
    of_a_tool = {"modelspec.title", "modelspec.implementation_version"}
    spec = {key: value for key, value in theirs.items() if key.startswith("modelspec.") and key not in of_a_tool}
    assert len(spec) >= 5 and spec.items() <= metadata.items()


def test_the_hash_is_that_of_kohyas_function(files):
    """Of the same values; LyCORIS' own function, which it copied from there, writes 0x before it."""
    _, metadata, golden = files
    assert metadata["sshs_model_hash"] == golden["metadata"]["sshs_model_hash"].removeprefix("0x")
