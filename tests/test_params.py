"""params.yaml: what is refused, how it is said, and that a stage says it before MindSpore is imported."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from dvc.utils.serialize import modify_yaml, parse_yaml

from pipeline import params
from pipeline.params import Params, ParamsError, load

ROOT = Path(__file__).resolve().parent.parent


def with_changes(path, changes):
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    for key, value in changes.items():
        section, name = key.split(".")
        tree[section][name] = value
    file = path / "params.yaml"
    file.write_text(yaml.safe_dump(tree, allow_unicode=True))
    return file


def test_every_key_has_a_comment_or_says_itself():
    text = (ROOT / "params.yaml").read_text().splitlines()
    section, bare = None, []
    for line, below in zip(text, [*text[1:], ""], strict=True):
        if re.match(r"\w+:$", line):
            section = line[:-1]
        elif section in ("train", "device", "diffusion") and (match := re.match(r"  (\w+): [^#]*$", line)):
            if not below.startswith("    # "):
                bare.append(match[1])
    assert set(bare) <= {
        "gradient_accumulation_steps",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "timestep_bias_multiplier",
    }


# As YAML 1.2 has them; dates and digits with _ are the parser's own additions, which DVC reads so as well.
SCALARS = {
    "1e-5": 1e-5, "1e-05": 1e-5, "1E5": 1e5, "+.5": 0.5, "-.5": -0.5, ".5": 0.5, "1.": 1.0, "+1": 1,
    "1e400": float("inf"), "0x10": 16, "0o17": 15, "010": 10, "089": 89, "1_000": 1000, "0o8": "0o8", "1e": "1e",
    "no": "no", "No": "No", "yes": "yes", "on": "on", "off": "off", "y": "y", "True": True, "tRUE": "tRUE",
    "12:30:45": "12:30:45", "1:30": "1:30", "-1:30": "-1:30", "~": None, "Null": None, "": None, "'~'": "~",
}  # fmt: skip


@pytest.mark.parametrize("text", SCALARS)
def test_a_scalar_is_read_as_yaml_1_2_has_it_and_as_dvc_does(text):
    found = params.parse(f"a: {text}\n", "params.yaml")
    assert found == {"a": SCALARS[text]} == parse_yaml(f"a: {text}\n", "params.yaml")
    assert type(found["a"]) is type(SCALARS[text])


def test_prompts_are_the_text_that_was_given_to_dvc(tmp_path):
    """`dvc exp run -S` writes with the same function, and puts what needs none into no quotes."""
    texts = [text for text in [*SCALARS, "2026-01-01", "=", "<<", " a ", "é\u2028", "a: b", "- a", "#", '"'] if text]
    shutil.copy(ROOT / "params.yaml", tmp_path)
    with modify_yaml(tmp_path / "params.yaml") as tree:
        tree["sample"]["prompts"] = texts
    assert "- no\n" in (tmp_path / "params.yaml").read_text()
    assert load(tmp_path / "params.yaml").sample.prompts == texts


def bomb(first: str, item: str) -> str:
    """Each of 40 lines names the one before it twice."""
    return first + "".join(f"a{n}: &a{n} {item.format(n - 1)}\n" for n in range(1, 40))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("  seed: 0", "  seed: 0\n  seed: 1", 1), r'line \d+ .*duplicate key "seed"'),
        (lambda text: text.replace("  seed: 0", "\tseed: 0", 1), r"line \d+ is not YAML"),
        (lambda text: text + "---\n" + text, "another document"),
        (lambda text: "", "the whole file: wanted a mapping of the sections data, model"),
        (lambda text: "- a", "the whole file: wanted a mapping"),
        (lambda text: text + "5: 1\n", "5: Keys should be strings"),
        (lambda text: text + "? {a: b}\n: 1\n", "unhashable key"),
        (lambda text: text + "z: " + "[" * 2000, "is not YAML"),
        (lambda text: text + bomb("a0: &a0 [x]\n", "[*a{0}, *a{0}]"), "a39: there is no such key|and 20 more"),
        (lambda text: text + bomb("a0: &a0 {x: 1}\n", "{{<<: [*a{0}, *a{0}]}}"), "merge keys"),
        (lambda text: text.replace("  width: 64", "  width: " + "9" * 5000), "is not YAML.*digits"),
        (lambda text: text.replace("width: 64", "width: 0x" + "f" * 5000), "width: .*found a very large number"),
        (lambda text: text.replace("- a yellow star", "- 2026-01-01 #"), r"date 2026-01-01.*put it in quotes"),
        (lambda text: text.replace("- a yellow star", "- 1_000 #"), r"prompts\.1: .*found 1000.*put it in quotes"),
        (lambda text: text.replace("- a yellow star", "- ~ #"), r"prompts\.1: .*found None"),
        (lambda text: text.replace("- a yellow star", "- 2026-13-45 #"), "is not YAML 1.2: ValueError: month"),
        (lambda text: text.replace("- a yellow star", '- "\\ud83d" #'), r"prompts\.1: .*surrogate"),
        (lambda text: text.replace("- a yellow star", "- *a #"), "undefined alias"),
        (lambda text: text.replace("- a yellow star", "- !!python/object:os.system #"), "is not YAML"),
    ],
)  # fmt: skip
def test_what_is_no_settings_file_is_said_in_a_line(tmp_path, change, said):
    text = (ROOT / "params.yaml").read_text()
    assert change(text) != text
    (tmp_path / "params.yaml").write_text(change(text))
    with pytest.raises(ParamsError, match=said) as error:
        load(tmp_path / "params.yaml")
    assert str(tmp_path / "params.yaml") in str(error.value) and len(str(error.value)) < 6000


def test_a_byte_order_mark_and_line_ends_of_windows_are_read(tmp_path):
    text = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert load(tmp_path / "params.yaml") == load(ROOT / "params.yaml")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ParamsError, match="No such file.*params.yaml.*project's folder"):
        load(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_bytes(b"data: \xff")
    with pytest.raises(ParamsError, match="params.yaml is not UTF-8"):
        load(tmp_path / "params.yaml")


@pytest.mark.parametrize("text", ["1e-5", "1e-05", "0.00001", "1.0e-5"])
def test_a_float_is_a_float_however_dvc_writes_it(tmp_path, text):
    source = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(re.sub(r"learning_rate: \S+", f"learning_rate: {text}", source))
    assert load(tmp_path / "params.yaml").train.learning_rate == 1e-5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train.learning_rat": 1e-4}, r"train\.learning_rat: there is no such key"),
        ({"train.learning_rate": "fast"}, r"train\.learning_rate: .*number.*found 'fast'"),
        ({"train.learning_rate": 0.0}, r"train\.learning_rate: .*greater than 0"),
        ({"train.steps": 10.5}, r"train\.steps: .*integer"),
        (
            {"train.lr_scheduler": "inverse_sqrt"},
            r"train\.lr_scheduler: .*'constant', 'constant_with_warmup', 'linear', 'cosine', .* or 'wsd'.*'inverse_sqrt'",
        ),
        ({"train.steps": None}, r"train\.steps: give one of steps and epochs"),
        ({"train.epochs": 3}, r"train\.steps: give one of steps and epochs"),
        ({"train.timestep_bias_multiplier": 0.0}, r"train\.timestep_bias_multiplier: .*greater than 0"),
        (
            {"train.timestep_bias_strategy": "range", "train.timestep_bias_begin": 500, "train.timestep_bias_end": 500},
            r"train\.timestep_bias_begin: must be below",
        ),
        (
            {"train.snr_gamma": 5.0, "train.debiased_estimation": True},
            r"train\.debiased_estimation: true needs snr_gamma null",
        ),
        (
            {"train.snr_gamma": 5.0, "train.snr_gamma_soft": 4.0, "train.p2_gamma": 1.0},
            r"train\.snr_gamma_soft: 4\.0 needs snr_gamma null.*\n.*train\.p2_gamma: 1\.0 needs snr_gamma null",
        ),
        ({"diffusion.prediction": "flow", "train.p2_gamma": 1.0}, r"train\.p2_gamma: .*is flow; wanted null"),
        (
            {"diffusion.prediction": "flow", "train.loss_type": "huber", "train.huber_schedule": "snr"},
            r"train\.huber_schedule: snr .*is flow; wanted constant or exponential",
        ),
        (
            {"train.lr_scheduler": "polynomial", "train.lr_end": 1e-3, "train.learning_rate": 1e-3},
            r"train\.lr_end: must be below the learning rate \(0\.001\), found 0\.001",
        ),
        (
            {"train.lr_scheduler": "wsd", "train.lr_warmup_steps": 30, "train.lr_decay_steps": 571},
            r"train\.lr_warmup_steps: must not be above steps \(600\) together with lr_decay_steps, found 30 and 571, 601 "
            r"in all; add `-S train\.lr_warmup_steps=60 -S train\.lr_decay_steps=120`",
        ),
        (
            {"diffusion.prediction": "v", "diffusion.zero_terminal_snr": True, "train.snr_gamma": 5.0, "train.timestep_min": 999},
            r"train\.snr_gamma: gives the only timestep that is drawn, 999, the weight 0",
        ),
        ({"train.timestep_min": 500, "train.timestep_max": 500}, r"train\.timestep_min: must be below timestep_max"),
        ({"train.weights_dtype": "float16"}, r"train\.weights_dtype: float16 needs precision float16"),
        (
            {"train.weights_dtype": "float16", "train.precision": "float16", "train.optimizer": "prodigy"},
            r"train\.weights_dtype: float16 loses the first steps of prodigy",
        ),
        (
            {"train.shard_optimizer": True, "train.optimizer": "lion"},
            r"train\.shard_optimizer: true needs optimizer adamw: lion keeps",
        ),
        (
            {"train.shard_optimizer": True, "train.optimizer": "adafactor"},
            r"train\.shard_optimizer: true needs optimizer adamw",
        ),
        ({"train.lr_warmup_steps": 10**6}, r"train\.lr_warmup_steps: must not be above steps"),
        ({"train.validation_timesteps": [1000]}, r"train\.validation_timesteps\.0: .*less than or equal to 999"),
        ({"diffusion.zero_terminal_snr": True}, r"diffusion\.zero_terminal_snr: true needs diffusion\.prediction v"),
        (
            {"diffusion.prediction": "flow", "diffusion.zero_terminal_snr": True},
            r"diffusion\.zero_terminal_snr: true needs diffusion\.prediction v: flow .*wanted false",
        ),
        ({"diffusion.flow_shift": 3.0}, r"diffusion\.flow_shift: .*prediction flow, found epsilon; wanted 1\.0"),
        (
            {"diffusion.prediction": "flow", "train.snr_gamma": 5.0},
            r"train\.snr_gamma: .*prediction is flow; wanted null, found 5\.0",
        ),
        (
            {"diffusion.prediction": "flow", "train.debiased_estimation": True},
            r"train\.debiased_estimation: .*prediction is flow; wanted false, found true",
        ),
        ({"diffusion.scaling_factor": 0.0}, r"diffusion\.scaling_factor: .*greater than"),
        ({"device.node_rank": 1}, r"device\.node_rank: must be below nodes"),
        ({"device.master": "localhost"}, r"device\.master: "),
        (
            {"device.target": "CPU", "device.attention": "flash"},
            r"device\.attention: flash runs on Ascend only.*plain or tiled",
        ),
        (
            {"device.target": "CPU", "device.sink_size": 10},
            r"device\.sink_size: the data sink runs on Ascend only.*wanted 0",
        ),
        ({"device.target": "CPU", "device.max_device_memory": "59GB"}, r"device\.max_device_memory: .*wanted null"),
        ({"device.target": "CPU", "train.precision": "bfloat16"}, r"train\.precision: bfloat16 runs on Ascend only"),
        ({"device.target": "CPU", "device.jit_level": "O1"}, r"device\.jit_level: .*is CPU; wanted O0, found O1"),
        ({"device.target": "CPU", "device.kernel_launch_group": [2, 8]}, r"device\.kernel_launch_group: .*wanted null"),
        ({"device.target": "CPU", "device.memory_optimize_level": "O1"}, r"device\.memory_optimize_level: .*wanted O0"),
        ({"device.kernel_launch_group": [3, 8]}, r"device\.kernel_launch_group: .*3 and 8"),
        ({"device.kernel_launch_group": [8]}, r"device\.kernel_launch_group: .*at least 2"),
        ({"device.kernel_launch_group": [2, 8], "device.jit_level": "O1"}, r"device\.kernel_launch_group: needs .*O0"),
        ({"device.deterministic": "yes"}, r"device\.deterministic.*found 'yes'"),
        (
            {"device.target": "Ascend", "device.attention": "flash"},
            r"device\.attention: flash computes in float16 or bfloat16",
        ),
        (
            {"device.target": "Ascend", "device.sink_size": 1, "index.buckets": True},
            r"device\.sink_size: above 0 needs index\.buckets false",
        ),
        (
            {
                "device.target": "Ascend",
                "device.sink_size": 4,
                "index.buckets": False,
                "train.gradient_accumulation_steps": 2,
            },
            r"device\.sink_size: above 0 needs train\.gradient_accumulation_steps 1",
        ),
    ],
)
def test_what_is_refused_names_the_key_and_what_is_wanted(tmp_path, changes, said):
    with pytest.raises(ParamsError, match=said):
        load(with_changes(tmp_path, changes))


def test_all_faults_are_listed_at_once(tmp_path):
    changes = {"merge.weights": "ema", "sample.steps": 1000, "train.weights_dtype": "float16"}
    with pytest.raises(ParamsError) as error:
        load(with_changes(tmp_path, changes))
    assert [line.split(":")[0].strip() for line in str(error.value).splitlines()[1:]] == [
        "train.weights_dtype", "merge.weights", "sample.steps",
    ]  # fmt: skip


@pytest.mark.parametrize("changes", [{"merge.weights": "ema"}, {"merge.weights": "best"}])
def test_one_heading_for_a_wrong_value_and_for_keys_that_contradict_each_other(tmp_path, changes):
    with pytest.raises(ParamsError) as error:
        load(file := with_changes(tmp_path, changes))
    assert str(error.value).startswith(f"{file} cannot be used as it stands:\n  merge.weights: ")


@pytest.mark.parametrize(
    ("section", "key"),
    [(s, k) for s in ("device", "diffusion", "train") for k in Params.model_fields[s].annotation.model_fields],
)
def test_a_missing_key_is_named(tmp_path, section, key):
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    del tree[section][key]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(ParamsError, match=rf"{section}\.{key}: Field required"):
        load(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train.learning_rat": 1e-4}, "train.learning_rat"),
        ({"device.target": "CPU", "device.sink_size": 10}, "device.sink_size"),
        # these are refused because no NPU is found
        ({"device.sink_size": 1, "index.buckets": False}, "device.sink_size: 1 needs an Ascend NPU"),
        ({"device.jit_level": "O1"}, "device.jit_level: O1 needs an Ascend NPU"),
        ({"device.kernel_launch_group": [2, 8]}, "device.kernel_launch_group: [2, 8] needs an Ascend NPU"),
        ({"device.memory_optimize_level": "O1"}, "device.memory_optimize_level: O1 needs an Ascend NPU"),
        ({"device.target": "Ascend"}, "device.target: Ascend, but this machine shows no NPU"),
        ({"train.precision": "bfloat16"}, "train.precision: bfloat16 needs an Ascend NPU"),
        ({"device.attention": "flash", "train.precision": "float16"}, "device.attention: flash needs an Ascend NPU"),
    ],
)
def test_the_train_stage_refuses_before_mindspore_is_imported(tmp_path, changes, said):
    refuses_before_mindspore("train", tmp_path, changes, said)


@pytest.mark.parametrize(
    ("stage", "changes", "said"),
    [
        ("index", {"merge.weights": "ema"}, "merge.weights"),
        ("index", {"sample.steps": 1000}, "sample.steps"),
        ("convert", {"merge.weights": "ema"}, "merge.weights"),
        ("sample", {"sample.precision": "bfloat16"}, "sample.precision: bfloat16 needs an Ascend NPU"),
        ("sample", {"sample.width": 40}, "sample.width"),
    ],
)
def test_every_stage_refuses_before_mindspore_is_imported(tmp_path, stage, changes, said):
    refuses_before_mindspore(stage, tmp_path, changes, said)


def refuses_before_mindspore(stage, tmp_path, changes, said):
    for name in ("pipeline", "stages"):
        (tmp_path / name).symlink_to(ROOT / name)
    # a MindSpore that cannot be imported: whoever tries fails with another message
    (tmp_path / "mindspore.py").write_text("raise SystemExit('MindSpore was imported')")
    with_changes(tmp_path, changes)
    found = subprocess.run(
        [sys.executable, "-m", f"stages.{stage}"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert found.returncode != 0 and said in found.stderr and "MindSpore was imported" not in found.stderr
    assert "Traceback" not in found.stderr
    assert not (tmp_path / "outs").exists()


def test_the_documents_settings_for_real_weights_are_taken(tmp_path):
    text = re.search(r"```yaml\n(model:.*?)```", (ROOT / "docs/sdxl-on-npus.md").read_text(), re.S)[1]
    changes = {f"{section}.{key}": v for section, keys in yaml.safe_load(text).items() for key, v in keys.items()}
    found = load(with_changes(tmp_path, changes))
    assert (found.model.config, found.index.resolution, found.sample.width) == ("sdxl-base", 1024, 1024)


EMPTY = [
    (section, key)
    for section, keys in yaml.safe_load((ROOT / "params.yaml").read_text()).items()
    for key, value in keys.items()
    if value == []
]


@pytest.mark.parametrize(("section", "key"), EMPTY)
def test_dvc_can_empty_a_list_again(tmp_path, section, key):
    """`dvc exp run -S key=[...]`, and later `-S key=[]`: where a comment stands behind the empty list, ruamel.yaml 0.19
    then joins two lines further down. So it stands below."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    for value in ([{"path": "a"}], []):
        with modify_yaml(tmp_path / "params.yaml") as tree:
            tree[section][key] = value
    assert load(tmp_path / "params.yaml") == load(ROOT / "params.yaml")
