"""The train stage's run, on a stub of the UNet: what it writes and logs, and that every setting counts."""

import json
from dataclasses import dataclass, field, replace

import pipeline.device  # noqa: F401  (before MindSpore)

import mindspore as ms
import numpy as np
import pytest
from PIL import Image

from pipeline.models import config
from pipeline.params import Train
from pipeline.stage import StageError
from pipeline.training import build, compiled, data, key, preview, run, state, stored, weights
from pipeline.training.optimizers.prodigy import FIRST
from pipeline.weights import card, chosen, ckpt, provenance, safetensors
from tests.cache.cache_samples import latent
from tests.models.stub_unet import StubUNet
from tests.training.training_samples import CONFIG, UNET, open_stub, params, share_graphs, write_stub, write_workspace

TIMES = ("train/images_per_second", "train/step_seconds", "train/data_wait_seconds")
BASE = {"train.steps": 4, "train.batch_size": 3, "train.validation_interval": 2, "train.validation_share": 0.0}
VALIDATED = {"train.validation_share": 0.2}


@dataclass
class Outcome:
    weights: dict[str, np.ndarray]
    ema: dict[str, np.ndarray] | None
    rows: list[dict]
    saved: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    made_with: dict = field(default_factory=dict)
    between: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)  # the other files of weights

    def __eq__(self, other):
        return (
            (self.rows, self.saved, self.kept, self.made_with) == (other.rows, other.saved, other.kept, other.made_with)
            and same(self.weights, other.weights)
            and (self.ema is None) == (other.ema is None)
            and (self.ema is None or same(self.ema, other.ema))
            and self.between.keys() == other.between.keys()
            and all(same(values, other.between[name]) for name, values in self.between.items())
        )


def same(a, b):
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and np.array_equal(a[n], b[n]) for n in a)


def read(path):
    found = ckpt.read(path) if path.suffix == ".ckpt" else safetensors.read(path)
    return {name: np.array(tensor.array()) for name, tensor in found.items()}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    root = write_workspace(tmp_path_factory.mktemp("train"))
    write_stub(root / "outs/convert/unet.ckpt")
    return root


@pytest.fixture
def stubbed(workspace, graphs, tmp_path, monkeypatch):
    """-> function of a device and changed params giving the run's Outcome, on the stub of the UNet. The runs share
    graphs: a setting that shapes one and is not in its key would take another setting's, and change nothing."""
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(compiled, "_KEPT_KEYS", 1000)
    share_graphs(tmp_path / "store", graphs)
    monkeypatch.setitem(config.CONFIGS, "tiny", CONFIG)
    monkeypatch.setattr(build, "UNet", StubUNet)
    monkeypatch.setattr(build, "open_unet", open_stub)
    return lambda device, changes: outcome(workspace, tmp_path / "out", device, monkeypatch, changes)


@pytest.fixture
def train(stubbed, device):
    """-> function of changed params giving the run's Outcome."""
    return lambda **changes: stubbed(replace(device, compile_cache=True), changes)


def outcome(workspace, out, device, monkeypatch, changes, root=None):
    p = params(**(BASE | changes))
    saved, kept = [], []
    save = state.States.save

    def spy(self, step, *args, **kwargs):
        save(self, step, *args, **kwargs)
        saved.append(step)
        self.wait()  # it is written beside the training
        kept[:] = [stored.step_of(path) for path in self.steps()]

    with monkeypatch.context() as patch:
        patch.setattr(state.States, "save", spy)
        outs = (root or workspace) / "outs"
        paths = data.Paths(
            *(outs / name for name in ("convert/unet.ckpt", "latents", "text", "index/samples.parquet")),
            *(outs / f"convert/{part}.ckpt" for part in ("vae", "clip_l", "clip_g")),
            out,
        )
        opened = data.open_data(paths, {}, p.train)
        end, _ = data.count_steps(opened, p.train, 1)
        origin = {name: {"name": "b.safetensors", "file": True, "sha256": "5"} for name in ("base", "vae")}
        origin |= {"config": "tiny", "resolution": 64}
        origin = None if p.train.adapter == "none" else origin
        training = key.training(paths, "tiny", {"target": device.target}, p.diffusion, p.train, 1, end, origin)
        run.fine_tune(training, opened, paths, "tiny", device, p.diffusion, p.train)
    rows = [json.loads(line) for line in (out / "live/log.jsonl").read_text().splitlines()]
    rows = [{name: value for name, value in row.items() if name not in TIMES} for row in rows]
    raw, ema = (out / "weights" / chosen.file_name(which, p.train.adapter != "none") for which in ("raw", "ema"))
    found = read(ema) if p.train.ema else None
    ema.unlink(missing_ok=True)
    between = {path.stem: read(path) for path in (out / "weights").glob(f"*{raw.suffix}") if path != raw}
    return Outcome(read(raw), found, rows, saved, kept, dict(StubUNet.made_with), between)


_known: dict = {}


def base_outcome(train, base):
    name = json.dumps(base, sort_keys=True)
    if name not in _known:
        _known[name] = train(**base)
    return _known[name]


# key -> (its other value, what else is set before and after)
CHANGES = {
    "seed": (1, {}),
    "steps": (3, {}),
    "epochs": (2, {"train.steps": None, "train.epochs": 1}),
    "batch_size": (2, {}),
    "gradient_accumulation_steps": (2, {}),
    "learning_rate": (2e-3, {}),
    "scale_lr": (True, {}),
    "lr_scheduler": ("linear", {}),
    "lr_warmup_steps": (3, {"train.lr_scheduler": "constant_with_warmup"}),
    "lr_num_cycles": (2, {"train.lr_scheduler": "cosine_with_restarts"}),
    "lr_power": (2.0, {"train.lr_scheduler": "polynomial"}),
    "lr_end": (5e-4, {"train.lr_scheduler": "polynomial"}),
    "lr_decay_steps": (3, {"train.lr_scheduler": "wsd"}),
    "groups": ([{"pattern": "*.weight", "learning_rate": 0.5}], {}),
    "optimizer": ("adafactor", {}),
    "adam_beta1": (0.1, {}),
    "adam_beta2": (0.9, {}),
    "adam_epsilon": (1e-2, {}),
    "weight_decay": (0.5, {}),
    "max_grad_norm": (1e-3, {"train.adam_epsilon": 1e-2}),
    "ema": (True, {}),
    "ema_decay": (0.05, {"train.ema": True}),
    "timestep_distribution": ("sigmoid", {"train.timestep_sigmoid_scale": 0.1}),
    "timestep_logit_mean": (3.0, {"train.timestep_distribution": "logit_normal"}),
    "timestep_logit_std": (0.1, {"train.timestep_distribution": "logit_normal"}),
    "timestep_sigmoid_scale": (0.1, {"train.timestep_distribution": "sigmoid"}),
    "timestep_alpha": (9.0, {"train.timestep_distribution": "beta"}),
    "timestep_beta": (9.0, {"train.timestep_distribution": "beta"}),
    "timestep_min": (900, {}),
    "timestep_max": (100, {}),
    "timestep_bias_strategy": ("later", {"train.timestep_bias_multiplier": 100.0}),
    "timestep_bias_multiplier": (100.0, {"train.timestep_bias_strategy": "later"}),
    "timestep_bias_begin": (800, {"train.timestep_bias_strategy": "range", "train.timestep_bias_multiplier": 1e4}),
    "timestep_bias_end": (100, {"train.timestep_bias_strategy": "range", "train.timestep_bias_multiplier": 1e4}),
    "timestep_bias_portion": (0.01, {"train.timestep_bias_strategy": "later", "train.timestep_bias_multiplier": 1e4}),
    "snr_gamma": (1.0, {}),
    "snr_gamma_soft": (1.0, {}),
    "p2_gamma": (1.0, {}),
    "p2_k": (2.0, {"train.p2_gamma": 1.0}),
    "debiased_estimation": (True, {}),
    "loss_type": ("huber", {}),
    "huber_c": (0.9, {"train.loss_type": "huber"}),
    "huber_schedule": ("snr", {"train.loss_type": "huber"}),
    "noise_offset": (0.3, {}),
    "multires_noise_iterations": (3, {}),
    "multires_noise_discount": (0.9, {"train.multires_noise_iterations": 3}),
    "input_perturbation": (0.1, {}),
    "caption_dropout": (0.9, {}),
    "caption_dropout_with": ("empty", {"train.caption_dropout": 0.9}),
    "precision": ("float16", {}),
    "weights_dtype": ("bfloat16", {}),
    "loss_scale": (2.0**40, {"train.precision": "float16"}),
    "validation_share": (0.5, VALIDATED),
    "validation_interval": (1, VALIDATED),
    "validation_timesteps": ([300, 701], VALIDATED),
    "log_interval": (2, {}),
    "checkpointing_steps": (1, {}),
    "checkpoints_total_limit": (2, {"train.checkpointing_steps": 1}),
    "keep_state": (True, {}),
    "save_interval": (2, {}),
    "save_limit": (1, {"train.save_interval": 2}),
    "save_dtype": ("float16", {"train.save_interval": 2}),
    "keep_best": (True, VALIDATED),
    "patience": (1, VALIDATED | {"train.validation_interval": 1, "train.learning_rate": 0.5}),
}
# test_distributed.py, below, test_init_from.py, test_tensorboard.py, test_train_adapters.py
ELSEWHERE = {"shard_optimizer", "sample_interval", "previews", "preview_sampler", "init_from", "tensorboard"}
ELSEWHERE |= {"source", "text_encoders", "text_encoder_learning_rate"}  # test_live.py, test_train_text.py
ELSEWHERE |= {"gradient_checkpointing"}  # tests/models/test_unet_adapters.py
ELSEWHERE |= {"adapter", "rank", "alpha", "adapter_targets", "lokr_factor", "mask_floor"}


def test_every_setting_has_its_case():
    assert set(Train.model_fields) == set(CHANGES) | ELSEWHERE


@pytest.mark.parametrize("key", CHANGES)
def test_no_setting_is_ignored(train, key):
    value, base = CHANGES[key]
    assert train(**(base | {f"train.{key}": value})) != base_outcome(train, base)


def test_the_same_settings_give_the_same_bits(train):
    assert train(**{"train.ema": True}) == train(**{"train.ema": True})


@pytest.mark.parametrize(
    ("key", "value", "base"),
    [
        ("prediction", "v", {}),
        ("prediction", "flow", {}),
        ("zero_terminal_snr", True, {"diffusion.prediction": "v"}),
        ("flow_shift", 3.0, {"diffusion.prediction": "flow"}),
        ("scaling_factor", 0.2, {}),
        ("shift_factor", 0.2, {}),
    ],
)
def test_no_diffusion_setting_is_ignored(train, key, value, base):
    assert train(**(base | {f"diffusion.{key}": value})) != base_outcome(train, base)


def test_the_curves_and_the_summary(train, tmp_path):
    found = train(**VALIDATED, **{"train.ema": True, "train.learning_rate": 0.02})
    steps = [row["step"] for row in found.rows if "train/loss" in row]
    assert steps == [1, 2, 3, 4]
    validations = {row["step"]: row for row in found.rows if "validation/loss" in row}
    assert list(validations) == [0, 2, 4]
    row = validations[4]
    assert row["validation/loss"] == pytest.approx(np.mean([row["validation/loss_t300"], row["validation/loss_t700"]]))
    assert (
        row["validation/loss"] < validations[0]["validation/loss"]
        and row["validation/ema_loss"] != row["validation/loss"]
    )
    assert validations[0]["validation/ema_loss"] == validations[0]["validation/loss"]
    live = tmp_path / "out/live"
    summary = json.loads((live / "metrics.json").read_text())
    assert summary["step"] == 4 and summary["validation"]["base_loss"] == validations[0]["validation/loss"]
    losses = [row["validation/loss"] for row in validations.values()]
    assert summary["validation"]["loss"] == losses[-1] and summary["validation"]["best_loss"] == min(
        row["validation/ema_loss"] for step, row in validations.items() if step
    )  # the best weights are the averages'
    # few columns of `dvc exp show`
    assert set(summary["validation"]) == {"loss", "ema_loss", "best_loss", "base_loss"}
    assert set(summary["train"]) == {"loss", "images_per_second"} and len(summary) == 3
    curve = (live / "plots/metrics/train/loss.tsv").read_text().splitlines()
    assert curve[0] == "step\tloss" and len(curve) == 5


def test_the_best_loss_is_one_after_a_step_as_the_best_weights_are(train, tmp_path):
    """Also where no step is as good as the base."""
    found = train(**VALIDATED, **{"train.learning_rate": 1.0})
    losses = {row["step"]: row["validation/loss"] for row in found.rows if "validation/loss" in row}
    summary = json.loads((tmp_path / "out/live/metrics.json").read_text())["validation"]
    assert summary["base_loss"] == losses.pop(0) < summary["best_loss"] == min(losses.values())


def test_the_weights_are_whole_and_named_as_in_the_base(train, workspace):
    found, base = train(), read(workspace / "outs/convert/unet.ckpt")
    assert list(found.weights) == list(base)
    assert all(
        found.weights[name].dtype == np.float32 and found.weights[name].shape == base[name].shape for name in base
    )
    assert all((found.weights[name] != base[name]).any() for name in base)


@pytest.mark.parametrize("ema", [False, True])
def test_weights_in_between_and_the_best_are_those_of_a_run_of_so_many_steps(train, tmp_path, ema):
    """Or its averages, where there are some."""
    settings = VALIDATED | {"train.validation_interval": 1, "train.learning_rate": 0.03, "train.keep_best": True}
    settings |= {"train.ema": ema, "train.ema_decay": 0.5, "train.save_interval": 2}
    long = train(**settings)
    best = provenance.read(tmp_path / "out/weights" / provenance.RUN, "train")["best_step"]
    assert best == 3 and long.between.keys() == {"step-00000002", "step-00000004", "unet_best"}
    for name, steps in (("step-00000002", 2), ("unet_best", best)):
        short = train(**settings | {"train.steps": steps, "train.keep_best": False, "train.save_interval": 0})
        assert same(long.between[name], short.ema if ema else short.weights)
    half = train(**settings | {"train.save_dtype": "float16"}).between
    assert half.keys() == long.between.keys()
    for name, values in long.between.items():
        assert same(half[name], {key: value.astype(np.float16) for key, value in values.items()})


def test_a_flows_shift_moves_its_validation(train):
    """Already of the weights that it starts from."""
    flow = VALIDATED | {"diffusion.prediction": "flow", "train.steps": 1}
    first = [train(**flow, **{"diffusion.flow_shift": shift}).rows[0]["validation/loss"] for shift in (1.0, 3.0)]
    assert first[0] != pytest.approx(first[1], rel=1e-3)


def test_a_value_beyond_float16_is_refused_by_its_name(device):
    network = StubUNet(UNET)
    trained = network.trainable_params()
    values = [ms.Tensor(np.full(parameter.shape, 7e4, np.float32)) for parameter in trained]
    given = network, values, trained
    with pytest.raises(
        StageError, match=r"a value of 70000 is too large for train\.save_dtype float16; set it to float32"
    ):
        list(weights.named(*given, "float16"))
    assert all((value == 7e4).all() for _, value in weights.named(*given, "float32"))


def test_beside_the_weights_stands_what_they_were_trained_with(train, tmp_path):
    """As merge writes it into the model."""
    train()
    run = provenance.read(tmp_path / "out/weights" / provenance.RUN, "train")
    origin = {name: {"name": "a.safetensors", "file": True, "sha256": "0" * 64} for name in ("base", "vae")}
    found = provenance.metadata(run, origin, "tiny", 64, "raw", "float16")
    assert (found["ss_steps"], found["ss_total_batch_size"]) == ("4", str(run["description"]["train"]["global_batch"]))
    assert int(found["ss_num_train_images"]) > 0 and all(isinstance(text, str) for text in found.values())
    assert run["best_step"] is None and "| steps | 4 |" in card.render(run, origin, 64, "raw", "float16")


def test_prodigys_d_is_a_curve_of_its_own(train):
    """Also with micro-batches and averages, whose graphs take the outcome; no other optimizer has one."""
    settings = {"train.optimizer": "prodigy", "train.learning_rate": 1.0, "train.lr_scheduler": "constant"}
    rows = train(**settings, **{"train.ema": True, "train.gradient_accumulation_steps": 2, "train.steps": 2}).rows
    found = [row["train/prodigy_d"] for row in rows if "train/loss" in row]
    assert len(found) == 2 and min(found) == pytest.approx(FIRST)
    assert not any("train/prodigy_d" in row for row in train().rows)


def test_frozen_parameters_stay_and_a_factor_multiplies_the_rate(train, workspace):
    """AdamW's first step moves every weight by the learning rate, whatever the gradient."""
    base = read(workspace / "outs/convert/unet.ckpt")
    # patterns that the UNet of params.yaml has as well as the stub
    frozen, slow = {"pattern": "time*", "freeze": True}, {"pattern": "*conv.*", "learning_rate": 0.25}
    settings = {"train.steps": 1, "train.weight_decay": 0.0, "train.ema": True}
    found, plain = train(**settings, **{"train.groups": [frozen, slow]}), train(**settings)
    assert list(found.weights) == list(found.ema) == list(base)
    for name, value in base.items():
        layer = name.removeprefix("model.diffusion_model.").split(".")[0]
        factor = {"time": 0.0, "conv": 0.25}.get(layer, 1.0)
        for weights in (found.weights, found.ema):
            moved = weights[name] - value
            np.testing.assert_allclose(moved, factor * (plain.weights[name] - value), atol=1e-7, err_msg=name)
            assert (moved == 0).all() == (factor == 0)


def test_half_weights_keep_their_norms_in_float32(train):
    found = train(**{"train.precision": "float16", "train.weights_dtype": "float16"}).weights
    halves = {
        name.removeprefix("model.diffusion_model.")
        for name, value in found.items()
        if (value == value.astype(np.float16)).all()
    }
    assert halves == {
        f"{layer}.{end}" for layer in ("conv", "out.1", "text", "label", "time") for end in ("weight", "bias")
    }


def test_overflows_are_counted(train):
    rows = train(**{"train.precision": "float16", "train.loss_scale": 2.0**40}).rows
    assert [row["train/overflows"] for row in rows if "train/overflows" in row] == [1, 2, 3, 4]


def test_pictures_are_drawn_at_intervals(train, tmp_path, monkeypatch):
    asked, drawn, decoded, latents = [], [], [], preview.draw.latents

    def decoder(config, vae, device, precision):
        assert vae.name == "vae.ckpt"
        return lambda latents: (decoded.append(latents[0]), np.tanh(latents[:, :3]).repeat(8, 2).repeat(8, 3))[1]

    def spy(*arguments):
        asked.append(arguments)
        drawn.extend(latents(*arguments))
        return np.stack(drawn[-len(arguments[1]) :])

    monkeypatch.setattr(preview, "vae_decoder", decoder)
    monkeypatch.setattr(preview.draw, "latents", spy)
    scaled = VALIDATED | {"diffusion.scaling_factor": 0.2, "diffusion.shift_factor": 0.3}
    plain = train(**scaled, **{"train.steps": 5})
    assert list((tmp_path / "out/live/pictures").iterdir()) == []
    found = train(**scaled, **{"train.steps": 5, "train.sample_interval": 2})
    assert same(found.weights, plain.weights) and found.rows == plain.rows
    found = sorted((tmp_path / "out/live/pictures").iterdir())
    assert [path.name for path in found] == ["step-00000002.png", "step-00000004.png", "step-00000005.png"]
    pictures = [np.array(Image.open(path)) for path in found]
    assert pictures[0].shape[2] == 3 and pictures[0].shape[1] % 64 == 0
    assert (pictures[0] != pictures[2]).any()
    other = {"prompt": "picture 2", "negative_prompt": "picture 3", "width": 96, "height": 32, "steps": 2}
    own = {"train.previews": ["picture 1", other], "train.preview_sampler": "dpmpp_2m", "train.sample_interval": 5}
    for kept in (asked, drawn, decoded):
        kept.clear()
    assert same(train(**scaled, **own, **{"train.steps": 5}).weights, plain.weights)
    (path,) = (tmp_path / "out/live/pictures").iterdir()
    assert Image.open(path).size == (64 + 96, 64)
    # of the drawing itself test_preview.py has the numbers
    assert [[one.prompt for one in pictures] for _, pictures, *_ in asked] == [["picture 1"], ["picture 2"]]
    diffusion = params(**scaled).diffusion
    assert [arguments[5:7] for arguments in asked] == [("dpmpp_2m", diffusion)] * 2
    assert not asked[0][3][0].any() and asked[1][3][0].any()  # the negative text
    for wanted, found in zip(drawn, decoded, strict=True):
        np.testing.assert_allclose(found, wanted / 0.2 + 0.3, rtol=1e-6)


def test_a_finished_run_frees_its_room(train, tmp_path):
    assert train(**{"train.checkpointing_steps": 1}).saved == [1, 2, 3]
    assert not list((tmp_path / "store/train").glob("*/*"))


def nan_latent(image, bucket):
    row = latent(image, bucket)
    values = np.frombuffer(row["latent"], np.float16).copy()
    values[5] = np.nan
    return row | {"latent": values.tobytes()}


def test_a_value_that_is_not_finite_in_the_cache_stops_the_run(tmp_path, device, monkeypatch, train):
    root = write_workspace(
        tmp_path / "bad",
        rows=lambda image, bucket: nan_latent(image, bucket) if image[0] < 128 else latent(image, bucket),
    )
    write_stub(root / "outs/convert/unet.ckpt")
    with pytest.raises(StageError, match=r"step \d: the cached latents or text of sample [0-9a-f]{32} .* not finite"):
        outcome(root, tmp_path / "out", device, monkeypatch, {})
    assert not (tmp_path / "out/weights").exists()


def test_a_loss_that_is_not_finite_stops_the_run(train, tmp_path):
    with pytest.raises(StageError) as error:
        absurd = {"train.learning_rate": 1e38, "train.weight_decay": 0.0, "train.max_grad_norm": 0.0}
        train(**absurd, **{"train.checkpointing_steps": 1})
    message = str(error.value)
    assert "the loss is" in message and "step-0000000" in message and "learning_rate" in message
    assert len([word for word in message.replace(",", " ").split() if len(word.rstrip(".")) == 32]) == 3  # its samples
    assert not (tmp_path / "out/weights").exists()


def test_a_cache_without_training_pictures_is_refused(train):
    with pytest.raises(StageError, match="leaves none to train on"):
        train(**{"train.validation_share": 0.999})
