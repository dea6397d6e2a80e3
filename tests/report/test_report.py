"""The report of the workspace: its parts, what is missing or damaged, and text from outside that would run."""

import io
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from pipeline import params, times
from pipeline.report import __main__ as report
from pipeline.report import curves, gather, graph, html, latents, page, pictures, revision, settings
from tests.report.report_samples import EVIL, EVIL_NAME, SIZES, STAGES, edit, write_project

VOID = {"meta", "img", "link", "br", "hr", "input"}
ALL = tuple(STAGES)


class Page(HTMLParser):
    """What a browser would make of a page, as far as it matters here."""

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.open, self.texts, self.tags, self.scripts, self.images, self.ids = [], [], [], [], [], set()
        self.feed(html)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append((tag, values))
        assert not [name for name in values if name.startswith("on")], (tag, values)
        self.ids |= {values["id"]} if "id" in values else set()
        if tag == "img" and "src" in values:
            self.images.append(values["src"])
        if tag not in VOID and not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    handle_startendtag = handle_starttag

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, text):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += text
        elif not (self.open and self.open[-1] == "style"):
            self.texts.append(text)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))

    @property
    def figures(self) -> dict:
        return json.loads(self.scripts[0])


@pytest.fixture
def project(tmp_path, monkeypatch):
    """`project(stages)` makes one in the working folder, whose latents are decoded to gray."""
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setattr(latents, "_decoder", lambda p, vae: gray)
    root = tmp_path / "project"
    root.mkdir()
    monkeypatch.chdir(root)

    def make(*stages: str):
        write_project(root, *stages)
        return root

    return make


def gray(values: np.ndarray) -> np.ndarray:
    """In the place of the VAE's decoder: (1, 4, h, w) to (1, 3, 8h, 8w)."""
    return np.zeros((1, 3, 8 * values.shape[2], 8 * values.shape[3]), np.float32)


def written(*names: str, against=None, count: int = 4) -> Page:
    report.write(list(names), against, count, report.OUT)
    return Page(report.OUT.read_text(encoding="utf-8"))


def test_every_part_of_a_whole_run_is_on_the_page(project):
    project(*ALL)
    found = written()
    sections = {"result", "samples", "curves", "previews", "data", "latents", "settings", "stages", "versions"}
    assert sections <= found.ids
    assert set(found.figures) == {
        *("loss", "timesteps", "learning_rate", "grad_norm", "speed", "wait"),
        *("buckets-0", "aspects-0", "megapixels-0", "lengths-0"),
    }
    assert set(found.figures) <= found.ids
    assert len(found.images) == 2 * 2 + 2 * 4  # two prompts, four latents
    assert all(image.startswith("data:image/png;base64,") for image in found.images)
    assert f"{len(SIZES) + 1} pictures are used" in found.text and "Rejected pictures 1" in found.text
    assert "0.101 -80 % from 0.5 of the base model" in found.text  # 0.1 + 0.4 exp(-6)
    assert [name for name in STAGES if name not in found.text] == []


def test_what_weights_are_kept_and_an_early_stop_are_said(project):
    root = project(*ALL)
    assert "stopped early" not in written().text and "Weights kept" not in written().text
    (root / "outs/train/weights").mkdir()
    for name in ("unet", "unet_best", "step-00000300", "step-00000400"):
        (root / f"outs/train/weights/{name}.ckpt").touch()
    (root / "outs/train/live/metrics.json").write_text('{"train": {"stopped_early": 1}}')
    found = written().text
    assert "of 600, stopped early" in found and "raw, best, step 300, step 400 (merge.weights)" in found


def test_the_curves_hold_the_points_of_the_log(project):
    project(*ALL)
    loss = {trace["name"]: trace for trace in written().figures["loss"]["data"]}
    lines = [json.loads(line) for line in open("outs/train/live/log.jsonl")]
    wanted = [(line["step"], line["validation/loss"]) for line in lines if "validation/loss" in line]
    shown = list(zip(loss["validation"]["x"], loss["validation"]["y"]))
    assert shown == [(step, pytest.approx(value, 1e-5)) for step, value in wanted]
    assert loss["training"]["x"] == list(range(1, 601))


def test_no_change_is_said_before_a_step_was_validated(project):
    log = project(*ALL) / curves.LOG
    assert "of the base model" in (text := written().text) and re.search(r"[+-]\d+ %", text)
    first = next(line for line in log.read_text().splitlines() if "validation/loss" in line)
    log.write_text(f"{json.dumps({'step': 0, 'validation/loss': json.loads(first)['validation/loss']})}\n")
    assert "of the base model" in (text := written().text) and not re.search(r"[+-]\d+ %", text)


def test_the_best_is_of_the_validations_after_a_step():
    curve = curves.Curve(np.array([0, 2, 4]), np.array([0.1, 0.5, 0.4]))
    assert curve.best == (4, 0.4)
    assert curves.Curve(curve.steps[:1], curve.values[:1]).best is None


def test_a_stage_that_dvc_runs_now_runs(project):
    root = project(*ALL)
    lock = root / ".dvc/tmp/rwlock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    ended = subprocess.Popen(["true"])
    ended.wait()
    for pid, state in ((os.getpid(), "running"), (ended.pid, "absent")):
        holder = {"pid": pid, "cmd": "dvc repro"}
        lock.write_text(json.dumps({"write": {str(root / "outs/train/live/log.jsonl"): holder}, "read": {}}))
        (run,) = gather.read([revision.workspace()], 0)
        assert run.stage("train").state == state and run.stage("sample").state == "absent"
    lock.write_text("{")
    assert gather.read([revision.workspace()], 0)[0].stage("train").state == "absent"


def test_the_page_loads_nothing(project):
    project(*ALL)
    tags = written().tags
    links = [v for _, values in tags for name, v in values.items() if name in ("src", "href", "srcset", "action")]
    assert links and all(link.startswith(("data:image/", "#")) for link in links)
    policy = next(values["content"] for tag, values in tags if values.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "http" not in policy
    assert "unsafe-inline" not in policy.partition("script-src")[2]


def test_text_from_outside_is_text(project):
    project(*ALL)
    found = written(count=20)
    assert len(found.scripts) == 3  # the figures, Plotly and our own
    assert "window.hacked" not in "".join(found.scripts)
    assert not [values for tag, values in found.tags if tag == "img" and values.get("src") == "x"]
    for text in (EVIL, f"{EVIL_NAME}.png", f"bad {EVIL_NAME}.png", f"alone {EVIL_NAME}.txt"):
        assert text in "".join(found.texts), text
    assert EVIL in [sample.split(": ", 1)[-1] for tag, values in found.tags if (sample := values.get("alt"))]


def test_half_a_surrogate_pair_in_a_name_is_written(project):
    project("index")
    rejected = gather._data(revision.workspace()).rejected
    made = page.render(gather.read([revision.workspace()], 0), settings.Defaults("x\udce4y", {}), "")
    assert rejected.count == 1 and "x?y" in Page(made).text


@pytest.mark.parametrize("count", range(1, len(ALL)))
def test_a_run_that_is_half_done_says_what_is_missing(project, count):
    project(*ALL[:count])
    text = written().text
    missing = {
        3: "No latents are cached yet: dvc repro cache_latents",
        4: "No training has run yet: dvc repro train",
        5: "No pictures are drawn yet: dvc repro",
    }
    for number, reason in missing.items():
        assert (reason in text) == (count < number), reason


def test_nothing_has_run(project):
    project()
    with pytest.raises(report.StageError, match="no stage has run yet.*make repro"):
        written()
    assert not report.OUT.exists()


def test_mistakes_are_messages(project, monkeypatch, capsys):
    project("index")
    cases = {
        ("nosuch",): "not inside of a DVC repository",
        ("--against", "nosuch.yaml"): "nosuch.yaml",
        ("--out", "params.yaml/report.html"): "params.yaml",
    }
    for words, message in cases.items():
        monkeypatch.setattr("sys.argv", ["report", *words])
        with pytest.raises(SystemExit) as ended:
            report.main()
        assert message in f"{ended.value} {capsys.readouterr().err}", words
    monkeypatch.chdir("/")
    monkeypatch.setattr("sys.argv", ["report"])
    with pytest.raises(SystemExit, match="dvc.yaml is not there"):
        report.main()


def test_the_latents_may_be_left_out(project, monkeypatch):
    project(*ALL)
    monkeypatch.setattr(latents, "_decoder", None)  # not called
    with pytest.raises(SystemExit) as ended:
        report.main(["--latents", "0"])
    assert ended.value.code == 0 and "Left out with --latents 0" in Page(report.OUT.read_text()).text


@pytest.mark.parametrize("text", ["-1", "201", "x", "", "9" * 5000, "٣"])
def test_other_numbers_of_latents_are_refused(capsys, text):
    with pytest.raises(SystemExit) as ended:
        report.main(["--latents", text])
    assert ended.value.code == 2 and "--latents: wanted a whole number of 0 to 200, found" in capsys.readouterr().err


DAMAGES = {  # file -> bytes -> what the page says
    "outs/index/images.parquet": (lambda d: d[: len(d) // 2], "images.parquet cannot be read"),
    "outs/index/captions.parquet": (lambda d: b"", "captions.parquet cannot be read"),
    "outs/index/rejected.csv": (lambda d: d + b"one\n", "rejected.csv: row 2 has 1 columns, wanted 2"),
    "outs/index/unmatched.csv": (lambda d: d + b'a,b,"' + b"x" * 2_000_000, "unmatched.csv: field larger than"),
    "outs/train/live/log.jsonl": (lambda d: b"{]\n" + d, "line 1 is not one of a training's log"),
    "outs/sample/00_base.png": (lambda d: d[:40], "not a PNG"),
    "outs/sample/01_tuned.png": (lambda d: b"", "not a PNG"),
    "outs/latents/00000-of-00001.parquet": (lambda d: d[:-30], "Cannot be shown"),
    "outs/latents": (lambda d: None, "Cannot be shown"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_out_costs_its_part_of_the_page(project, name):
    root = project(*ALL)
    damage, reason = DAMAGES[name]
    if (root / name).is_dir():
        for file in (root / name).iterdir():
            file.write_bytes(b"PAR1")
    else:
        (root / name).write_bytes(damage((root / name).read_bytes()))
    text = written().text
    assert reason in text and "Settings" in text


def test_steps_in_between_and_a_prompts_own_settings_are_shown(project):
    root = project(*ALL)
    shutil.copy(root / "outs/sample/00_tuned.png", root / "outs/sample/00_step-00000200.png")
    found = report.gather._samples(revision.workspace(), {"sample.prompts": [{"prompt": "a", "seed": 3}, "b"]})
    assert [one.prompt for one in found] == ["a (seed: 3)", "b"]
    assert [[step for step, _ in one.between] for one in found] == [[200], []]
    assert "step 200" in [text.strip() for text in written().texts]


@pytest.mark.parametrize("text", ["a: [", "stages: 3", "stages: {train: 3}", "stages: {train: {outs: 1}}", "- 1"])
@pytest.mark.parametrize("file", ["dvc.lock", "dvc.yaml"])
def test_a_damaged_graph_is_a_message(project, file, text):
    root = project("index")
    (root / file).write_text(text)
    with pytest.raises(report.StageError, match="dvc.yaml and dvc.lock of workspace cannot be read"):
        written()


def test_an_empty_lock_is_none(project):
    """A full disk leaves one."""
    root = project("index")
    (root / "dvc.lock").write_text("")
    assert "not run" in written().text


def test_a_line_that_is_being_written_is_left_out(project):
    root = project(*ALL)
    whole = curves.read(revision.workspace())
    with open(root / "outs/train/live/log.jsonl", "a") as file:
        file.write('{"step": 601, "train/lo')
    again = curves.read(revision.workspace())
    assert whole.keys() == again.keys() and all((whole[k].values == again[k].values).all() for k in whole)


def test_settings_against_a_preset(project, tmp_path):
    root = project("index")
    preset = tmp_path / "preset.yaml"
    edit(preset, root / "params.yaml", {"train.learning_rate": 0.125, "train.optimizer": "adafactor"})
    text = written(against=preset).text
    assert f"Other than in {preset} 2" in text and "train.learning_rate 0.125 0.001" in text
    assert re.search(r"All \d+ settings are those of", written(against=root / "params.yaml").text)


def test_rows_of_settings():
    rows = settings.rows([{"a": 1, "b": 2}, {"a": 1, "c": 3}], {"a": 1, "b": 2})
    assert rows == [
        ("a", 1, [1, 1], False),
        ("b", 2, [2, "absent"], True),
        ("c", "absent", ["absent", 3], True),
    ]


def test_thin_and_smooth():
    curve = curves.Curve(np.arange(1, 4001.0), np.arange(4000.0) ** 2)
    thinned, stretch = curves.thin(curve)
    assert stretch == 3 and len(thinned.values) == 1334
    assert thinned.values[0] == pytest.approx((0 + 1 + 4) / 3) and thinned.values[-1] == 3999.0**2
    half = 100
    smoothed = curves.smooth(curve).values
    assert smoothed[2000] == pytest.approx((np.arange(2000 - half, 2001 + half) ** 2.0).mean())
    assert smoothed[0] == pytest.approx((np.arange(half + 1) ** 2.0).mean())
    assert smoothed[-1] == pytest.approx((np.arange(3999 - half, 4000) ** 2.0).mean())


def test_large_pictures_are_reduced_and_enormous_ones_refused():
    def png(width, height):
        file = io.BytesIO()
        Image.new("RGB", (width, height)).save(file, "PNG")
        return file.getvalue()

    small, wide = pictures.from_png(png(64, 32)), pictures.from_png(png(4096, 1024))
    assert (small.width, small.height) == (64, 32) and small.url.startswith("data:image/png")
    assert (wide.width, wide.height) == (2048, 512) and wide.url.startswith("data:image/webp")
    noise = pictures.from_pixels(np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8))
    assert (noise.width, noise.height) == (512, 512) and noise.url.startswith("data:image/webp")
    with pytest.raises(ValueError, match=r"20000×20000|\(400000000 pixels\)"):
        pictures.from_png(png(20000, 20000))


def test_the_graph_is_drawn_without_implied_edges():
    def stage(name, needs):
        return graph.Stage(name, "", needs, "done", "", [], [])

    drawing = graph.draw([stage("a", []), stage("b", ["a"]), stage("c", ["a", "b"]), stage("d", ["b"])])
    assert len(drawing.edges) == 3  # not a to c
    tops = {one.name: y for one, _, y in drawing.boxes}
    assert tops["a"] < tops["b"] < tops["c"] == tops["d"]


def test_numbers_read_as_a_person_writes_them():
    assert [html.duration(s) for s in (None, 0.42, 61, 3661)] == ["–", "0.4 s", "1 min 01 s", "1 h 01 min"]
    assert [html.size(n) for n in (None, 999, 1.5e6, 6.94e9)] == ["–", "999 B", "1.5 MB", "6.94 GB"]
    assert [html.value(v) for v in (None, True, 1e-5, [1, 2.5], "x")] == ["null", "true", "1e-05", "[1, 2.5]", "x"]


def test_times_are_found_by_what_the_stage_ran_with(project, monkeypatch):
    project()
    with open("dvc.lock", "w") as file:
        file.write("schema: '2.0'\nstages: {index: {cmd: x, outs: [{path: outs/index, md5: abc}]}}\n")
    for name in ("RANK_ID", "OMPI_COMM_WORLD_RANK", "MS_ROLE"):
        monkeypatch.delenv(name, raising=False)
    started = times.start()
    times.note("train", {"train.steps": 5, "train.ema": True}, ["outs/index", "stages/train.py"], started)
    (found,) = times.find("train", times.inputs({"train.ema": True, "train.steps": 5.0}, {"outs/index": "abc"}))
    assert found.started == started and 0 <= found.seconds < 60 and found.peak_bytes > 10**7
    for other in ({"train.steps": 6, "train.ema": True}, {"train.steps": 5, "train.ema": 1}):
        assert times.find("train", times.inputs(other, {"outs/index": "abc"})) == []
    assert times.find("train", times.inputs({"train.steps": 5, "train.ema": True}, {"outs/index": "abd"})) == []


def test_a_rank_notes_no_time(project, monkeypatch):
    project()
    monkeypatch.setenv("RANK_ID", "1")
    times.note("train", {}, [], times.start())
    assert times.find("train", times.inputs({}, {})) == []


def test_the_last_runs_with_the_same_inputs_are_kept(project):
    project()
    for number in range(12):
        times.note("index", {}, [], float(number + 1))
    assert [one.started for one in times.find("index", times.inputs({}, {}))] == [float(n) for n in range(3, 13)]


def test_damaged_params_are_a_message(project):
    root = project("index")
    for text in (b"a: [", b"\xff\xfe", b"- 1", b"a: {b: 1, b: 2}"):
        (root / "params.yaml").write_bytes(text)
        with pytest.raises(params.ParamsError):
            written()
