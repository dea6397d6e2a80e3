"""Numbers of one model that are left when model.config is switched: refused by name, or doubted."""

import re

import pytest

from pipeline import params, preset, without_effect
from pipeline.doubts import doubts
from pipeline.params import ParamsError
from tests.training.training_samples import ROOT

TINY = params.parse((ROOT / "params.yaml").read_text(), "params.yaml")
SDXL = params.parse(preset.write("sdxl-1x910b", None).text, "sdxl-1x910b")


def changed(tree: dict, changes: dict) -> dict:
    tree = {section: dict(keys) for section, keys in tree.items()}
    for name, value in changes.items():
        section, key = name.split(".")
        tree[section][key] = value
    return tree


def refused(tree: dict) -> str:
    try:
        params.check(tree, "params.yaml")
    except ParamsError as error:
        return str(error)
    return ""


def test_sdxl_on_the_tiny_models_numbers_is_refused_with_each_of_them():
    said = refused(changed(TINY, {"model.config": "sdxl-base"}))
    for key in ("train.learning_rate", "index.resolution", "sample.width", "sample.height"):
        assert re.search(rf"(?m)^  {re.escape(key)}: .*tiny model's.*`make preset NAME=.*sdxl-8x910b", said), said


def test_the_tiny_model_on_sdxls_numbers_is_refused_or_doubted_with_each_of_them():
    tree = changed(SDXL, {"model.config": "tiny"})
    assert re.search(r"index\.resolution: 1024 is SDXL's.*`make preset NAME=", refused(tree))
    found = params.check(changed(tree, {"index.resolution": 512}), "params.yaml")
    assert {key for key, _ in doubts(found)} == {
        "train.learning_rate", "index.resolution", "sample.width", "sample.height",
    }  # fmt: skip


REFUSED = {
    "train.learning_rate": [1e-3, 5e-4, 1.0],
    "index.resolution": [64, 128, 192],
    "train.batch_size": [65, 4096],
    "sample.width": [64, 128],
    "sample.height": [64, 224],
}
DOUBTED = {
    "train.learning_rate": [1e-4, 3e-4],
    "index.resolution": [256, 512, 704],
    "index.bucket_step": [32],
    "train.precision": ["float32"],
    "train.checkpointing_steps": [1, 100],
    "sample.width": [256],
    "sample.height": [480],
}
TAKEN = {
    "train.learning_rate": [4e-7, 1e-6, 1e-5, 2e-5, 5e-5],
    "index.resolution": [768, 832, 1024, 1536],
    "index.bucket_step": [64, 128],
    "index.min_side": [32, 256],  # max_enlargement bounds them
    "index.max_enlargement": [None, 1.0, 2.0],
    "train.batch_size": [1, 8, 16],
    "train.optimizer": ["adamw", "adamw8bit", "lion", "adafactor"],
    "train.weights_dtype": ["float16", "bfloat16"],
    "train.checkpointing_steps": [500],
    "train.steps": [300, 10**6],
    "train.snr_gamma": [None],
    "train.precision": ["bfloat16"],
    "sample.width": [512, 832, 1536],
}


def cases(table: dict) -> list[tuple]:
    return [(key, value) for key, values in table.items() for value in values]


@pytest.mark.parametrize(("key", "value"), cases(REFUSED))
def test_what_sdxl_cannot_want_is_refused(key, value):
    assert re.search(rf"(?m)^  {re.escape(key)}: {value:g} .*`make preset", refused(changed(SDXL, {key: value})))


@pytest.mark.parametrize(("key", "value"), cases(DOUBTED))
def test_what_sdxl_seldom_wants_is_taken_and_doubted(key, value):
    found = params.check(changed(SDXL, {key: value}), "params.yaml")
    assert [name for name, _ in doubts(found)] == [key]


@pytest.mark.parametrize(("key", "value"), cases(TAKEN))
def test_what_some_run_wants_is_not_doubted(key, value):
    assert list(doubts(params.check(changed(SDXL, {key: value}), "params.yaml"))) == []


def test_a_rate_that_is_multiplied_counts_as_such():
    """5e-6 times 16 samples."""
    found = params.check(changed(SDXL, {"train.scale_lr": True}), "params.yaml")
    assert [text for key, text in doubts(found) if key == "train.learning_rate"][0].startswith("8e-05 is high")
    assert "train.learning_rate: 0.00064 ruins" in refused(
        changed(SDXL, {"train.scale_lr": True, "train.gradient_accumulation_steps": 32}))  # fmt: skip


def test_the_sides_of_single_prompts_count():
    small = changed(SDXL, {"sample.prompts": ["a", {"prompt": "b", "width": 64}]})
    assert re.search(r"(?m)^  sample\.prompts\.1\.width: 64 is the tiny model's", refused(small))
    for tree, side in ((SDXL, 256), (TINY, 512)):
        found = params.check(changed(tree, {"sample.prompts": [{"prompt": "b", "height": side}]}), "params.yaml")
        assert [(key, str(side) in text) for key, text in doubts(found)] == [("sample.prompts", True)]


@pytest.mark.parametrize(("tree", "side"), [(SDXL, 256), (TINY, 512)], ids=["sdxl", "tiny"])
def test_a_square_that_is_doubted_is_doubted_once(tree, side):
    found = params.check(changed(tree, {"sample.prompts": [{"prompt": "b", "width": side, "height": side}]}), "")
    assert [key for key, _ in doubts(found)] == ["sample.prompts"]


@pytest.mark.parametrize(
    ("changes", "doubted"),
    [
        ({"train.save_interval": 601}, ["save_interval"]),
        ({"train.save_interval": 600}, []),
        ({"train.sample_interval": 601}, ["sample_interval"]),
        ({"train.sample_interval": 600}, []),
        ({"train.patience": 5}, ["patience"]),  # validations after 100, 200, ..., of which the first is the best
        ({"train.patience": 4}, []),
        ({"train.patience": 5, "train.validation_interval": 99}, []),
        ({"train.patience": 5, "train.steps": None, "train.epochs": 1}, []),
    ],
)
def test_what_the_run_is_too_short_for_is_doubted(changes, doubted):
    found = params.check(changed(TINY, changes), "params.yaml")
    assert [key for key, _ in doubts(found)] == [f"train.{key}" for key in doubted]


BIAS = "train.timestep_bias_"
EARLIER, RANGE = (
    {f"{BIAS}strategy": "earlier", f"{BIAS}multiplier": 2.0},
    {f"{BIAS}strategy": "range", f"{BIAS}multiplier": 2.0},
)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (EARLIER | {"train.timestep_min": 100}, "timesteps 0 to 249, of which only 100 to 249 are drawn"),
        (EARLIER | {"train.timestep_max": 200}, "changes nothing: all timesteps that are drawn, 0 to 199, are in it"),
        (EARLIER | {f"{BIAS}multiplier": 1.0}, "changes nothing with timestep_bias_multiplier 1"),
        (EARLIER | {f"{BIAS}strategy": "later", "train.timestep_max": 900}, "750 to 999, of which only 750 to 899"),
        (RANGE, "changes nothing: all timesteps that are drawn, 0 to 999"),
        (
            RANGE | {f"{BIAS}begin": 200, f"{BIAS}end": 600, "train.timestep_max": 300},
            "of which only 200 to 299 are drawn",
        ),
        (RANGE | {f"{BIAS}begin": 200, f"{BIAS}end": 600, "train.timestep_min": 100}, None),
        (EARLIER, None),
        ({"train.timestep_min": 500}, None),
    ],
)
def test_a_bias_on_timesteps_that_are_not_drawn_is_doubted(changes, said):
    found = list(doubts(params.check(changed(TINY, changes), "params.yaml")))
    assert [key for key, _ in found] == ([] if said is None else [f"{BIAS}strategy"])
    assert said is None or said in found[0][1]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (EARLIER | {"train.timestep_min": 250}, "portion"),
        (EARLIER | {f"{BIAS}strategy": "later", "train.timestep_max": 750}, "portion"),
        (RANGE | {f"{BIAS}end": 100, "train.timestep_min": 500}, "begin"),
        (RANGE | {f"{BIAS}begin": 300, f"{BIAS}end": 400, "train.timestep_max": 300}, "begin"),
    ],
)
def test_a_bias_of_which_nothing_is_left_is_refused(changes, key):
    said = refused(changed(TINY, changes))
    assert re.search(
        rf"(?m)^  {re.escape(BIAS)}{key}: .*none of them is drawn: timestep_min and timestep_max are", said
    )


def test_a_batch_counts_by_its_pixels():
    found = changed(SDXL, {"index.resolution": 512, "train.batch_size": 128})
    assert refused(found) == "" and "train.batch_size" in refused(changed(found, {"index.resolution": 1024}))


def test_unbounded_enlargement_and_a_last_timestep_without_weight():
    found = changed(SDXL, {"index.max_enlargement": None, "index.min_side": 32, "diffusion.prediction": "v",
                           "diffusion.zero_terminal_snr": True})  # fmt: skip
    assert [key for key, _ in doubts(params.check(found, "params.yaml"))] == ["index.min_side", "train.snr_gamma"]


@pytest.mark.parametrize("key", ["train.snr_gamma", "train.snr_gamma_soft", "train.p2_gamma"])
def test_every_weighting_that_leaves_out_the_last_timestep_is_doubted(key):
    v = {"train.snr_gamma": None, "diffusion.prediction": "v", "diffusion.zero_terminal_snr": True}
    assert list(doubts(params.check(changed(SDXL, v), "params.yaml"))) == []
    [(found, said)] = doubts(params.check(changed(SDXL, v | {key: 1.0}), "params.yaml"))
    assert found == key and "gets the weight 0" in said


@pytest.mark.parametrize(
    ("changes", "doubted"),
    [({}, True), ({"diffusion.flow_shift": 1.0}, False), ({"index.further_resolutions": []}, False)],
)
def test_one_shift_for_several_resolutions_is_doubted(changes, doubted):
    flow = {"diffusion.prediction": "flow", "diffusion.flow_shift": 2.5, "index.further_resolutions": [32]}
    found = list(doubts(params.check(changed(TINY, flow | changes), "params.yaml")))
    assert [key for key, _ in found] == ["diffusion.flow_shift"] * doubted
    assert not doubted or "(32, 64) get the shift 2.5" in found[0][1]


@pytest.mark.parametrize("tree", [TINY, SDXL], ids=["tiny", "sdxl"])
@pytest.mark.parametrize(("rate", "doubted"), [(1.0, False), (0.5, False), (1e-3, True), (1e-5, True), (20.0, True)])
def test_prodigy_wants_a_rate_of_about_1(tree, rate, doubted):
    found = changed(tree, {"train.optimizer": "prodigy", "train.learning_rate": rate})
    said = [text for key, text in doubts(params.check(found, "params.yaml")) if key == "train.learning_rate"]
    assert any("far from 1" in text for text in said) is doubted and (doubted or not said)


@pytest.mark.parametrize(
    ("tree", "rate", "doubted"), [(TINY, 1e-3, True), (TINY, 2e-4, False), (SDXL, 1e-5, True), (SDXL, 1e-6, False)]
)
def test_lion_does_not_want_adamws_rate(tree, rate, doubted):
    found = changed(tree, {"train.optimizer": "lion", "train.learning_rate": rate})
    said = [text for key, text in doubts(params.check(found, "params.yaml")) if key == "train.learning_rate"]
    assert [("lion wants a rate 3 to 10 times smaller" in text) for text in said] == [True] * doubted


def test_loras_of_a_unet_that_is_not_trained_are_doubted():
    merged = changed(TINY, {"model.loras": [{"path": "a.safetensors"}]})
    assert list(doubts(params.check(merged, "params.yaml"))) == []
    [(key, said)] = doubts(params.check(changed(merged, {"train.init_from": "data/start.ckpt"}), "params.yaml"))
    assert key == "model.loras" and "train.init_from: data/start.ckpt" in said


@pytest.mark.parametrize(
    ("alpha", "doubted"), [(1000.0, True), (130.0, True), (128.0, False), (16.0, False), (1.0, False)]
)
def test_an_alpha_far_above_the_rank(alpha, doubted):
    tree = changed(TINY, {"train.adapter": "lora", "train.rank": 16, "train.alpha": alpha})
    said = dict(doubts(params.check(tree, "params.yaml")))
    assert ("train.alpha" in said) == doubted
    assert alpha != 1000 or re.search("1000 with a rank of 16 .* by 62.5", said["train.alpha"])


@pytest.mark.parametrize(
    ("changes", "key", "said"),
    [
        ({"train.learning_rate": 5e-6}, "train.learning_rate", "5e-06 is low for an adapter of SDXL"),
        ({"train.learning_rate": 1e-3}, "train.learning_rate", "0.001 is high for an adapter of SDXL"),
        ({"train.learning_rate": 5e-5}, "train.learning_rate", None),
        ({"train.learning_rate": 5e-4}, "train.learning_rate", None),
        ({"train.text_encoder_learning_rate": 2e-6}, "train.text_encoder_learning_rate", "2e-06 is low for adapters"),
    ],
)  # fmt: skip
def test_rates_of_adapters(changes, key, said):
    tree = changed(SDXL, {"train.adapter": "lora", "train.learning_rate": 1e-4, "train.text_encoders": "both", "train.source": "pictures",
                          "train.text_encoder_learning_rate": 5e-5} | changes)  # fmt: skip
    found = dict(doubts(params.check(tree, "params.yaml")))
    assert said in found[key] if said else key not in found


@pytest.mark.parametrize(
    ("changes", "key", "said"),
    [
        ({"train.keep_best": True, "train.validation_interval": 600}, "train.keep_best", "only validation is that of the last step"),
        ({"train.log_interval": 1000}, "train.log_interval", "have one point"),
        ({"train.lr_scheduler": "cosine_with_restarts", "train.lr_num_cycles": 1000}, "train.lr_num_cycles", "1000 in 600 steps"),
        ({"train.lr_scheduler": "wsd", "train.lr_decay_steps": 0}, "train.lr_decay_steps", "without its decay"),
        ({"train.multires_noise_iterations": 3, "train.multires_noise_discount": 0.0}, "train.multires_noise_discount", "adds nothing"),
        ({"train.loss_type": "huber", "train.huber_schedule": "exponential", "train.huber_c": 2.0}, "train.huber_c", "rises"),
        ({"train.save_dtype": "float16"}, "train.save_dtype", "float16 has no effect without"),
        ({"sample.guidance_scale": 1.0, "sample.guidance_rescale": 0.7}, "sample.guidance_rescale", "0.7 has no effect"),
        ({"sample.prompts": ["x", {"prompt": "y", "negative_prompt": "z", "guidance_scale": 1.0}]}, "sample.prompts.1",
         "its negative prompt has no effect"),
    ],
)  # fmt: skip
def test_values_with_which_a_key_does_nothing(changes, key, said):
    found = list(doubts(params.check(changed(TINY, changes), "params.yaml")))
    assert [name for name, _ in found] == [key] and said in found[0][1]


def test_loras_that_change_nothing_or_twice():
    loras = [{"path": "a.safetensors", "weight": 0.0}, {"path": "b.safetensors"}, {"path": "b.safetensors"}]
    found = [
        text
        for key, text in doubts(params.check(changed(TINY, {"model.loras": loras}), "params.yaml"))
        if key == "model.loras"
    ]
    assert found == ["b.safetensors stands there more than once, and each one's change is added",
                     "a.safetensors has the weight 0, and changes nothing"]  # fmt: skip


def test_the_demo_is_not_doubted():
    assert list(doubts(params.check(TINY, "params.yaml"))) == []


@pytest.mark.parametrize("rate, said", [(1e-4, True), (2e-5, True), (1e-5, False), (2e-6, False)])
def test_a_rate_of_sdxls_text_encoders(rate, said):
    """The preset's own is none of the tiny model's."""
    tree = changed(SDXL, {"train.source": "pictures", "train.text_encoders": "clip_l"})
    found = changed(tree, {"train.text_encoder_learning_rate": rate})
    key = "train.text_encoder_learning_rate"
    assert (key in dict(doubts(params.check(found, "params.yaml")))) == said
    assert key not in dict(doubts(params.check(tree, "params.yaml")))
    adapters = changed(tree, {"train.adapter": "lora", "train.text_encoder_learning_rate": 5e-5})
    assert key not in dict(doubts(params.check(adapters, "params.yaml")))
    high = changed(adapters, {"train.text_encoder_learning_rate": 2e-3})
    assert "for adapters of SDXL's" in dict(doubts(params.check(high, "params.yaml")))[key]


@pytest.mark.parametrize(
    ("changes", "key", "said"),
    [
        ({"train.huber_c": 0.2}, "train.huber_c", "0.2 has no effect without train.loss_type huber, and that is l2"),
        ({"train.huber_schedule": "snr"}, "train.huber_schedule", "snr has no effect without train.loss_type huber"),
        ({"train.p2_k": 2.0}, "train.p2_k", "2.0 has no effect without train.p2_gamma, and that is null"),
        ({"train.rank": 4}, "train.rank", "4 has no effect without train.adapter lora or dora or loha or lokr, and that is none"),
        ({"train.adapter": "lora", "train.lokr_factor": 4}, "train.lokr_factor", "without train.adapter lokr"),
        ({"train.adam_beta2": 0.99, "train.optimizer": "adafactor"}, "train.adam_beta2", "and that is adafactor"),
        ({"train.ema_decay": 0.9}, "train.ema_decay", "without train.ema, and that is false"),
        ({"train.save_limit": 2}, "train.save_limit", "without train.save_interval, and that is 0"),
        ({"index.bucket_step": 96, "index.buckets": False}, "index.bucket_step", "without index.buckets"),
        ({"train.validation_share": 0.0, "train.validation_timesteps": [5]}, "train.validation_timesteps", "[5] has no"),
    ],
)  # fmt: skip
def test_a_key_without_effect_is_doubted(changes, key, said):
    found = list(doubts(params.check(changed(TINY, changes), "params.yaml")))
    assert [name for name, _ in found] == [key] and said in found[0][1]


def test_a_key_with_its_effect_is_not():
    changes = {"train.loss_type": "huber", "train.huber_c": 0.2, "train.p2_gamma": 1.0, "train.p2_k": 2.0,
               "train.adapter": "lokr", "train.rank": 4, "train.lokr_factor": 4, "train.save_interval": 10,
               "train.save_limit": 2, "train.ema": True, "train.ema_decay": 0.9}  # fmt: skip
    assert list(without_effect.doubts(params.check(changed(TINY, changes), "params.yaml"))) == []


def test_what_is_without_effect_is_a_key_with_the_presets_values():
    presets = [
        params.check(params.parse(preset.write(file.stem, None).text, file.name), file.name)
        for file in sorted((ROOT / "presets").glob("*.yaml"))
        if file.stem != "sdxl"
    ]
    assert len(presets) > 3
    assert [list(without_effect.doubts(found)) for found in presets] == [[]] * len(presets)
    for idle in without_effect.IDLE:
        assert all(TINY[idle.section][key] == usual[0] for key, usual in idle.keys.items())
        assert idle.needs in TINY[idle.section]
