"""Text encoders among the parts of a run: their own rate by every optimizer, what of them is trained, and the precision
that each has."""

import re
from types import SimpleNamespace

import pipeline.device  # noqa: F401  (before MindSpore)

import mindspore as ms
import pytest

from pipeline import params as schema
from pipeline.models import config
from pipeline.models.with_text import part_of
from pipeline.training import build
from pipeline.training.data import Paths
from stages import train as stage
from tests.models.stub_unet import StubUNet
from tests.training.training_samples import CONFIG, open_stub, params, write_encoders, write_stub

TAUGHT = {"train.text_encoders": "both", "train.text_encoder_learning_rate": 2e-4}  # a fifth of the UNet's
OPTIMIZERS = schema.Train.model_fields["optimizer"].annotation.__args__


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    root = tmp_path_factory.mktemp("parts")
    write_stub(root / "unet.ckpt")
    write_encoders(root)
    return Paths(**vars(stage.PATHS) | {part: root / f"{part}.ckpt" for part in ("unet", "clip_l", "clip_g")})


@pytest.fixture
def made(paths, device, monkeypatch):
    """-> function of changes and of the frozen encoders' precision giving the run's parts."""
    monkeypatch.setattr(build, "UNet", StubUNet)
    monkeypatch.setattr(build, "open_unet", open_stub)

    def make(precision="float32", **changes):
        p = params(**TAUGHT | changes)
        return build.trained(CONFIG, device, p.diffusion, p.train, paths, precision)

    return make


@pytest.mark.parametrize("how", ["none", "lora"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_encoders_rate_is_their_own_with_every_optimizer(made, optimizer, how):
    """Of what the scheduler gives."""
    rule = made(**{"train.optimizer": optimizer, "train.adapter": how}).update.optimizer
    _, rates, _ = rule.begin(ms.Tensor(0.5, ms.float32))
    found = {part: set() for part in ("unet", "clip_l", "clip_g")}
    for parameter, group in zip(rule.parameters, rule.groups, strict=True):
        found[part_of(parameter.name)].add(round(float(rates[group]), 6))
    assert found == {"unet": {0.5}, "clip_l": {0.1}, "clip_g": {0.1}}


@pytest.mark.parametrize("how", ["none", "lora"])
@pytest.mark.parametrize("encoders", ["clip_l", "clip_g", "both"])
def test_an_encoder_that_is_not_trained_is_frozen_in_the_caches_precision(made, encoders, how):
    """With adapters both are, and the parts of adapters are float32. Norms are float32 always."""
    network = made("bfloat16", **{"train.text_encoders": encoders, "train.adapter": how}).network
    trained = {"clip_l", "clip_g"} if encoders == "both" else {encoders}
    assert {part_of(p.name) for p in network.trainable_params()} == {"unet", *trained}
    for part in ("clip_l", "clip_g"):
        own = [p for p in network.get_parameters() if part_of(p.name) == part]
        whole = part in trained and how == "none"
        matrices = {p.dtype for p in own if p.ndim > 1 and ".lora_" not in p.name}
        assert matrices == {ms.float32 if whole else ms.bfloat16}, part
        assert {p.dtype for p in own if ".lora_" in p.name} <= {ms.float32}
        assert any(".lora_" in p.name for p in own) == (part in trained and how == "lora")


@pytest.mark.parametrize("encoders", ["none", "clip_l"])
def test_encoders_of_the_loop_have_the_caches_precision(made, paths, device, monkeypatch, encoders):
    """The VAE's and the text's each have their own section's; those that are trained are called as they are."""
    given = {}

    def encoder(name):
        return lambda *arguments: given.update({name: arguments[-1]}) or name

    monkeypatch.setattr(build, "vae_encoder", encoder("vae"))
    monkeypatch.setattr(build, "text_encoder", encoder("text"))
    trained = made(**{"train.text_encoders": encoders})
    reader = SimpleNamespace(encodes=True, precision="bfloat16", texts=SimpleNamespace(precision="float32"))
    build.start_encoders(reader, trained, CONFIG, paths, device)
    assert given == {"vae": "bfloat16"} | ({"text": "float32"} if encoders == "none" else {})
    assert reader.encode_pixels == "vae" and (reader.texts.encode_ids == "text") == (encoders == "none")


def test_graphs_know_the_encoders_precision_and_rate(device, monkeypatch):
    """The update's alone know the rate; without encoders in them graphs know neither."""
    monkeypatch.setitem(config.CONFIGS, "tiny", CONFIG)

    def keys(precision, **changes):
        p = params(**TAUGHT | changes)
        return build.graph_keys("tiny", device, p.train, build.settings(device, p.diffusion, p.train), precision)

    (network, update), (of_half, update_of_half) = keys("float32"), keys("bfloat16")
    assert network != of_half and update != update_of_half
    same, other = keys("float32", **{"train.text_encoder_learning_rate": 1e-4})
    assert same == network and other != update
    frozen = {"train.text_encoders": "none"}
    assert keys("float32", **frozen) == keys("bfloat16", **frozen, **{"train.text_encoder_learning_rate": 1e-4})


def test_layers_of_lokr_for_which_the_rank_does_nothing_are_told(made, caplog):
    """By component; of bigG's layers there are none."""
    with caplog.at_level("INFO"):
        network = made(**{"train.adapter": "lokr", "train.rank": 1}).network
    found = re.findall(r"lokr: in (\d+) of (\d+) layers of (.+) the second part is a whole matrix", caplog.text)
    wanted = []
    for part, called in (("unet", "the UNet"), ("clip_l", "clip_l"), ("clip_g", "clip_g")):
        names = [p.name.split(".")[-1] for p in network.trainable_params() if part_of(p.name) == part]
        wanted.append((str(names.count("lokr_w2")), str(names.count("lokr_w1")), called))
    assert found == wanted[:2] and wanted[2][0] == "0" != wanted[2][1]
