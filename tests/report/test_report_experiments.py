"""Experiments side by side, read through DVC; and the pages in a real browser."""

import os
import platform
import re
import shutil
from importlib import metadata

import pytest
from ruamel.yaml import YAML

from pipeline.report import __main__ as report
from pipeline.report import gather, latents, revision
from tests.report import chromium
from tests.report.report_samples import EVIL, STAGES, write_repository
from tests.report.test_report import Page, gray

WIDTHS = {"wide": (1320, 900), "narrow": (400, 800)}


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """The working folder: a project with the experiments "faster" and "longer"."""
    root = tmp_path_factory.mktemp("repository")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIPELINE_STORE", str(tmp_path_factory.mktemp("store")))
        patch.delenv("DVC_ROOT", raising=False)
        patch.setattr(latents, "_decoder", lambda p, vae: gray)
        write_repository(root)
        patch.chdir(root)
        yield root


@pytest.fixture(scope="module")
def pages(repository):
    """Name -> file: of the workspace, of both experiments, and of the data."""
    made = {"one": repository / "one.html", "several": repository / "several.html"}
    made["data"] = repository / "outs/index/report.html"
    report.write([], None, 4, made["one"])
    report.write(["faster", "longer"], None, 4, made["several"])
    return made


def test_experiments_side_by_side(pages):
    found = Page(pages["several"].read_text(encoding="utf-8"))
    names = [trace["hovertemplate"].partition("<extra>")[2] for trace in found.figures["loss"]["data"]]
    kinds = ("training, smoothed", "validation")
    assert names == [f"{run}, {kind}</extra>" for run in ("faster", "longer") for kind in kinds]
    assert [trace["name"] for trace in found.figures["loss"]["data"] if trace["showlegend"]] == ["faster", "longer"]
    ends = [trace["x"][-1] for trace in found.figures["loss"]["data"]]
    assert ends == [600, 600, 800, 800]
    rates = {trace["name"]: set(trace["y"]) for trace in found.figures["learning_rate"]["data"]}
    assert rates == {"faster": {2e-3}, "longer": {1e-3}}
    assert "train.learning_rate 0.001 0.002 0.001" in found.text and "train.steps 600 600 800" in found.text
    assert [trace["name"] for trace in found.figures["timesteps"]["data"]] == ["faster", "longer"]  # what they end with
    for timestep in (100, 500, 900):  # and how they come there
        figure = found.figures[f"timestep{timestep}"]["data"]
        assert [(trace["name"], trace["x"][-1]) for trace in figure] == [("faster", 600), ("longer", 800)]
    # for each of two prompts the base and both; previews of one; the latents, which both have, once
    assert len(found.images) == 2 * 3 + 12 + 2 * 4
    assert "faster, longer" in found.text
    assert len(found.scripts) == 3 and EVIL in "".join(found.texts)


def test_a_run_of_a_stage_is_done_in_the_page(pages):
    text = Page(pages["one"].read_text(encoding="utf-8")).text
    assert "not run" not in text and "differs by now" not in text and "earlier" not in text


def test_times_memory_hashes_versions_and_the_graph_are_on_the_page(pages, repository):
    html = pages["one"].read_text(encoding="utf-8")
    text = Page(html).text
    for name in STAGES:
        assert re.search(
            rf"\b{name} (run \d times, at most 1 min 01 s )?1 min 01 s [\d.]+ MB [\d.]+ (k?B|MB)\b", text
        ), name
    lock = YAML(typ="safe").load(repository / "dvc.lock")["stages"]
    outs = [out for stage in lock.values() for out in stage["outs"]]
    assert len(outs) == 6 and [out["path"] for out in outs if f"{out['path']} " not in text] == []
    assert [out["md5"] for out in outs if f"<code>{out['md5']}</code>" not in html] == []
    python = platform.python_version()
    for name, version in (("python", python), ("mindspore", metadata.version("mindspore"))):
        assert f"{name} {version} {version}" in text  # of this report, and of training
    drawing = html[html.index("<svg viewBox") : html.index("</svg>")]
    assert set(re.findall(r"<text [^>]*>(\w+)</text>", drawing)) == STAGES.keys()
    assert drawing.count("<path ") == 4  # index and convert to the latents, these to training, that to the pictures
    assert set(re.findall(r'<g class="(\w+)"', drawing)) == {"done"}


def test_an_experiment_is_read_as_the_workspace_was(repository):
    """HEAD's data and cache, through git and DVC's cache, against the files."""
    faster, workspace = gather.read([revision.find("faster"), revision.workspace()], 2)
    assert faster.latents is workspace.latents
    assert faster.data.value.used == workspace.data.value.used
    assert faster.data.value.buckets == workspace.data.value.buckets
    with revision.find("faster").folder("outs/latents") as folder:
        linked = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert linked == {path.name: path.read_bytes() for path in (repository / "outs/latents").iterdir()}


def test_an_unknown_name_is_answered_with_those_that_there_are(repository):
    with pytest.raises(report.StageError, match="fast is neither an experiment nor a commit.*are faster, longer$"):
        report.write(["fast"], None, 0, report.OUT)


def test_an_edit_of_params_since_the_run_is_named(repository):
    text = (repository / "params.yaml").read_text()
    (repository / "params.yaml").write_text(text.replace("steps: 600 ", "steps: 700 "))
    try:
        (run,) = gather.read([revision.workspace()], 0)
    finally:
        (repository / "params.yaml").write_text(text)
    states = {stage.name: (stage.state, stage.why) for stage in run.stages}
    assert states.pop("train") == ("stale", "params.yaml differs by now: train.steps")
    assert {state for state, _ in states.values()} == {"done"}


def test_what_dvcs_cache_lacks_is_a_reason(repository, tmp_path):
    cache = repository / ".dvc/cache/files/md5"
    shutil.move(cache, tmp_path / "md5")
    cache.mkdir()
    try:
        (run,) = gather.read([revision.find("longer")], 2)
    finally:
        cache.rmdir()
        shutil.move(tmp_path / "md5", cache)
    for part in (run.data, run.curves, run.samples, run.latents):
        assert part.value is None and "DVC's cache lacks outs/" in part.reason and "dvc pull" in part.reason
    assert run.params["train.steps"] == 800


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium; the tests that ask for it are skipped, with the reason, where there is none."""
    playwright = pytest.importorskip("playwright.sync_api")
    try:
        found = chromium.find()
    except LookupError as error:
        pytest.skip(str(error))
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(
            executable_path=found.path, env={**os.environ, **found.environment}, args=["--no-sandbox", "--no-zygote"]
        )
        yield opened
        opened.close()


@pytest.fixture
def show(browser, pages):
    """`show(name, size, scheme)` opens a page without a network; whatever it complains of fails the test."""
    complaints, contexts = [], []

    def opened(name: str, size: tuple[int, int], scheme: str = "light"):
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, offline=True)
        contexts.append(context)
        shown = context.new_page()
        shown.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        shown.on("pageerror", lambda error: complaints.append(str(error)))
        shown.on(
            "request",
            lambda r: complaints.append(r.url[:200]) if not r.url.startswith(("file:", "data:", "blob:")) else None,
        )
        shown.goto(f"file://{pages[name]}")
        shown.wait_for_function(
            "Object.keys(figures).every((name) => document.querySelector(`[id='${name}'] .main-svg`))"
        )
        return shown

    yield opened
    for context in contexts:
        context.close()
    assert not complaints


@pytest.mark.parametrize(
    ("name", "width", "scheme"),
    [("one", "wide", "light"), ("one", "narrow", "dark"), ("several", "wide", "dark"), ("several", "narrow", "light"),
     ("data", "wide", "light"), ("data", "narrow", "dark")],
)  # fmt: skip
def test_a_browser_shows_every_picture_and_curve(show, name, width, scheme):
    shown = show(name, WIDTHS[width], scheme)
    broken = shown.evaluate("[...document.images].filter((i) => i.src && !(i.complete && i.naturalWidth)).length")
    assert broken == 0 and shown.evaluate("document.images.length") >= 10
    drawn = shown.evaluate(
        "Object.entries(figures).map(([name, f]) => [f.data.length, "
        "document.getElementById(name).querySelectorAll('.scatterlayer .trace, .barlayer .trace').length])"
    )
    assert drawn and all(wanted == there for wanted, there in drawn)
    # there is text, and nothing is wider than the window
    width_of_text = """() => {
      const range = document.createRange();
      range.selectNodeContents(document.querySelector('h1'));
      return range.getBoundingClientRect().width;
    }"""
    assert shown.evaluate(width_of_text) > 50
    assert shown.evaluate("document.documentElement.scrollWidth") == WIDTHS[width][0]
    assert shown.evaluate("window.hacked") is None
    paper = shown.evaluate("getComputedStyle(document.body).backgroundColor")
    ink = shown.evaluate("document.querySelector('.plot .xtick text').style.fill")
    assert (brightness(paper) > brightness(ink)) == (scheme == "light")


@pytest.mark.parametrize("name", ["one", "several"])
@pytest.mark.parametrize("width", ["wide", "narrow"])
def test_buttons_and_legend_lie_over_nothing(show, name, width):
    """Neither over each other nor over the plot."""
    shown = show(name, WIDTHS[width])
    overlaps = """Object.keys(figures).flatMap((name) => {
      const element = document.getElementById(name);
      const boxes = ["rect.nsewdrag", ".modebar", ".legend .bg"].map((s) => [s, element.querySelector(s)])
        .filter(([, e]) => e).map(([s, e]) => [s, e.getBoundingClientRect()]);
      return boxes.flatMap(([s, a], i) => boxes.slice(i + 1)
        .filter(([, b]) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
          && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1)
        .map(([t]) => `${name}: ${s} and ${t}`));
    })"""
    assert shown.evaluate("document.querySelectorAll('.modebar').length") > 3
    assert shown.evaluate(overlaps) == []


def brightness(colour: str) -> int:
    """Of "rgb(1, 2, 3)"."""
    return sum(map(int, re.findall(r"\d+", colour)[:3]))


def test_a_curve_says_whose_it_is(show):
    shown = show("several", WIDTHS["wide"])
    plot = shown.locator("#loss .nsewdrag").first
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    shown.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    label = shown.locator("#loss .hoverlayer .legend")
    label.wait_for()
    assert (
        "faster, training, smoothed : 0." in label.text_content() and "longer, validation : 0." in label.text_content()
    )


def test_curves_are_looked_at_closely(show):
    shown = show("one", WIDTHS["wide"])
    plot = shown.locator("#loss .nsewdrag").first
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    middle = box["y"] + box["height"] / 2
    shown.mouse.move(box["x"] + box["width"] / 2, middle)
    label = shown.locator("#loss .hoverlayer .legend")
    label.wait_for()
    assert re.search(r"training.*smoothed : 0\.\d+.*validation : 0\.\d+", label.text_content())

    def span():
        return shown.evaluate("(([a, b]) => b - a)(document.getElementById('loss').layout.xaxis.range)")

    whole = span()
    shown.mouse.down()
    shown.mouse.move(box["x"] + 0.75 * box["width"], middle, steps=5)
    shown.mouse.up()
    shown.wait_for_function(f"(([a, b]) => b - a < {0.5 * whole})(document.getElementById('loss').layout.xaxis.range)")
    assert span() == pytest.approx(whole / 4, rel=0.1)
    shown.mouse.dblclick(box["x"] + box["width"] / 2, middle)
    shown.wait_for_function(f"(([a, b]) => b - a > {0.9 * whole})(document.getElementById('loss').layout.xaxis.range)")
    switch = shown.locator("[data-chart=loss]")
    switch.click()
    assert shown.evaluate("document.getElementById('loss').layout.yaxis.type") == "log"
    switch.click()
    assert shown.evaluate("document.getElementById('loss').layout.yaxis.type") == "linear"


def test_a_picture_is_enlarged(show):
    shown = show("one", WIDTHS["narrow"])
    picture = shown.locator(".picture").nth(2)
    picture.click()
    enlarged = shown.locator("#closer img")
    enlarged.wait_for(state="visible")
    assert enlarged.bounding_box()["width"] > picture.bounding_box()["width"]
    assert EVIL in shown.locator("#closer p").text_content()
    shown.locator("#closer").click()
    enlarged.wait_for(state="hidden")
