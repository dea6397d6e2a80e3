"""pipeline/progress.py: bars on a terminal, lines in a log, and what they leave out."""

import os
import pty
import re
import struct
import subprocess
import sys
import termios
from fcntl import ioctl

import pytest
import tqdm.std

from pipeline import progress
from pipeline.cache.building import engine
from pipeline.data import examine
from pipeline.data.examine import Examiner
from pipeline.data.index import index
from pipeline.data.sources import open_source
from pipeline.models.config import TINY
from pipeline.training.compiled import Compiler
from pipeline.training.log import Log
from pipeline.weights.convert import convert
from pipeline.weights.merge import merge
from tests.cache.cache_jobs import Encoder, job
from tests.data import data_sets
from tests.training.training_samples import ROOT
from tests.weights import synthetic

WORK = """
import logging, time
from pipeline import progress, stage
clock = [1e9]
time.time = lambda: clock[0]
import tqdm.std
tqdm.std.time = time.time

def main(params):
    with progress.Bar(300, "image", "latents") as bar:
        for done in range(1, 301):
            if done == 101:
                with progress.outside():
                    clock[0] += 200
                    with progress.outside():  # a graph that a validation compiles
                        clock[0] += 400
                logging.getLogger("x").info("something is said")
            clock[0] += 0.5
            bar.update()
            bar.set_postfix({"loss": "0.1"}, refresh=False)
    with progress.Bar(10, "caption", "short") as bar:
        for _ in range(10):
            clock[0] += 0.1
            bar.update()

logging.basicConfig(level=logging.INFO, format="%(message)s")
with stage.logging_redirect_tqdm():
    main(None)
"""


def in_a_log() -> str:
    done = subprocess.run([sys.executable, "-c", WORK], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stdout, done.stderr
    return done.stderr


def on_a_terminal(script: str = WORK) -> str:
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=theirs, stderr=theirs, stdin=theirs)
    os.close(theirs)
    text = b""
    try:
        while part := os.read(ours, 1 << 16):
            text += part
    except OSError:  # a terminal that nobody has open any more
        pass
    os.close(ours)
    process.wait()
    return text.decode()


def test_a_log_has_a_line_now_and_then_with_rate_and_estimate():
    text = in_a_log()
    assert "\r" not in text and "\x1b" not in text
    lines = text.splitlines()
    assert lines.pop(2) == "something is said"
    # after 5 seconds, then after 30 each, then at the end; of what took a second, nothing
    assert lines == [
        f"latents: {done * 100 // 300}%, {done} of 300, 2.00image/s, {gone} gone, {left} left, loss=0.1"
        for done, gone, left in ((10, "00:05", "02:25"), (70, "00:35", "01:55"), (130, "01:05", "01:25"),
                                 (190, "01:35", "00:55"), (250, "02:05", "00:25"), (300, "02:30", "00:00"))
    ]  # fmt: skip


def test_a_terminal_has_a_bar_that_is_drawn_anew_and_below_what_is_said():
    text = on_a_terminal()
    drawn = re.findall(r"\r(latents: [^\r\n]*)", text)
    assert len(drawn) > 200 and len(text.splitlines()) < 2 * len(drawn)
    assert "█" in drawn[-1] and "300/300 [02:30<00:00" in drawn[-1] and "2.00image/s, loss=0.1" in drawn[-1]
    assert re.search(r"\r *\rsomething is said\r?\n", text)


def test_what_is_outside_stands_in_no_bars_rate():
    """600 seconds, 12 times as long as what was done before: they came when 100 of 300 were done in 50 s."""
    for drawn in (in_a_log(), on_a_terminal()):
        rates = set(re.findall(r"([\d.]+)(image/s|s/image)", drawn))
        assert rates == {("2.00", "image/s")}, rates


class Clock:
    """Of all bars: it goes on where a test says so."""

    def __init__(self, monkeypatch):
        self.now = 1e9
        monkeypatch.setattr(progress.time, "time", lambda: self.now)
        monkeypatch.setattr(tqdm.std, "time", lambda: self.now)


def test_making_the_encoder_stands_in_no_rate(lines, tmp_path, monkeypatch):
    clock = Clock(monkeypatch)

    encode = Encoder()

    def timed(inputs):
        clock.now += 2
        return encode(inputs)

    def make_encoder():
        clock.now += 600  # MindSpore's import, and weights that are read
        return timed

    engine.build(job(range(40), encode, make_encoder=make_encoder, batch_size=10), tmp_path / "out")
    found = lines()
    assert "40 of 40" in found[-1] and f"image/s, 00:{2 * encode.calls:02d} gone" in found[-1]
    assert not any("s/image" in line for line in found)


def test_the_start_of_workers_stands_in_no_rate(tmp_path, monkeypatch, capsys):
    clock = Clock(monkeypatch)
    monkeypatch.setattr(progress, "SHORT_SECONDS", 0.0)
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    real = examine.wait

    def slow(futures):
        clock.now += 600
        return real(futures)

    monkeypatch.setattr(examine, "wait", slow)
    data_sets.write_folder(tmp_path / "data", {f"{n}.png": data_sets.picture(n, 8, 8) for n in range(40)})
    with Examiner(open_source(str(tmp_path / "data")), 1000, 1) as examiner:
        examiner.examine(next(examiner.source.parts()))
    assert "40 of 40" in (text := capsys.readouterr().err) and "00:00 gone" in text and "10:00 gone" not in text


def test_an_error_closes_the_bars(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SHORT_SECONDS", 0.0)
    bar = progress.Bar(10, "step", "train")
    bar.update(3)
    progress.close()
    assert bar.disable and bar not in progress.Bar.all_open
    progress.close()
    assert capsys.readouterr().err.splitlines()[-1].startswith("train: 30%, 3 of 10,")


def test_bytes_are_scaled(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SHORT_SECONDS", 0.0)
    with progress.Bar(6_940_000_000, "B", "merge") as bar:
        bar.update(bar.total // 2)
    assert "merge: 50%, 3.47G of 6.94G," in capsys.readouterr().err


def test_a_stage_ends_its_bars_before_its_message(tmp_path):
    """On a terminal the message would stand behind the bar."""
    script = """
import sys, time
sys.argv = ["convert"]
from pipeline import progress, stage
progress._FLASH_SECONDS = 0.0

def main(params):
    progress.Bar(10, "step", "train").update(3)
    raise stage.StageError("it is broken")

stage.run(main)
"""
    assert re.search(r"step(/s)?\]\r?\nconvert.py: it is broken", on_a_terminal(script))


@pytest.fixture
def lines(monkeypatch, capsys, tmp_path):
    """-> function that gives the lines of the bars by now, each step's, however short it was."""
    monkeypatch.setattr(progress, "SHORT_SECONDS", 0.0)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    return lambda: [line for line in capsys.readouterr().err.splitlines() if "% " in line or "%, " in line]


def test_weights_are_counted_in_bytes(lines, tmp_path):
    base = synthetic.write_checkpoint(tmp_path / "base.safetensors", TINY)
    convert(base, base, TINY, tmp_path / "convert")
    found = lines()
    assert len(found) > 5 and found[-1].startswith("convert: 100%, 19.8M of 19.8M, ")  # 9,912,316 values of 2 bytes
    parts = {part: tmp_path / f"convert/{part}.ckpt" for part in ("unet", "clip_l", "clip_g", "vae")}
    merge(parts, TINY, "float32", tmp_path / "merge")
    assert lines()[-1].startswith("merge: 100%, 39.6M of 39.6M, ")


def test_pictures_are_counted(lines, tmp_path):
    data_sets.write_folder(tmp_path / "data", {f"{n}.png": data_sets.picture(n, 8, 8) for n in range(20)})
    with Examiner(open_source(str(tmp_path / "data")), 1000, 1) as examiner:
        examiner.examine(next(examiner.source.parts()))
    assert [line.split(", ")[:2] for line in lines()] == [["index: 80%", "16 of 20"], ["index: 100%", "20 of 20"]]


def tars(folder, counts):
    for number, count in enumerate(counts):
        members = {f"{n}.png": data_sets.picture(100 * number + n, 8, 8) for n in range(count)}
        data_sets.write_tar(folder / f"{number}.tar", members)


def test_pictures_in_tars_to_come_are_reckoned_with(lines, tmp_path):
    tars(tmp_path / "data", (10, 10, 10, 4))
    source = open_source(str(tmp_path / "data"))
    with Examiner(source, 1000, 1, source.part_count) as examiner:
        for part in source.parts():
            examiner.examine(part)
    found = [line.split(", ")[:2] for line in lines()]
    counts = ((10, 40), (20, 40), (30, 40), (34, 34))
    assert found == [[f"index: {n * 100 // total}%", f"{n} of {total}"] for n, total in counts]


def test_known_pictures_are_counted_in_each_pass(lines, tmp_path, monkeypatch):
    """They are decoded no more, and take half a minute where there are 100,000."""
    Clock(monkeypatch)
    tars(tmp_path / "data", (10, 10, 10, 4))
    source, counts = open_source(str(tmp_path / "data")), ((10, 40), (20, 40), (30, 40), (34, 34))
    index(source, tmp_path / "out", [(8, 8)], 1, None, 1000, None, 1, min_bucket=2)
    lines()
    index(source, tmp_path / "out", [(8, 8)], 1, None, 1000, None, 1, min_bucket=2)
    wanted = [[f"index: {n * 100 // total}%", f"{n} of {total}"] for n, total in counts]
    found = [line.split(", ")[:2] for line in lines()]
    assert found[:8] == 2 * wanted, found  # which bucket is common, and the rows
    assert [line for line, _ in found[8:]] == [f"index tables: {share}%" for share in (0, 25, 50, 100)]


def test_known_pictures_stand_in_no_rate_of_new_ones(lines, tmp_path, monkeypatch):
    clock = Clock(monkeypatch)
    monkeypatch.setattr(
        examine, "look", lambda *given, real=examine.look: setattr(clock, "now", clock.now + 2) or real(*given)
    )
    tars(tmp_path / "data", (10, 10))
    source = open_source(str(tmp_path / "data"))
    with Examiner(source, 1000, 1, 2) as examiner:
        examiner.examine(next(source.parts()))
    lines()
    tars(tmp_path / "data", (10, 10, 10))
    source = open_source(str(tmp_path / "data"))
    with Examiner(source, 1000, 1, 3) as examiner:
        for part in source.parts():
            examiner.examine(part)
    last = lines()[-1]
    assert "30 of 30" in last and "2.00s/image" in last, last


def test_trainings_bar_says_losses_speed_and_memory(lines, tmp_path, monkeypatch):
    clock, log = Clock(monkeypatch), Log(tmp_path / "live", 4, memory=lambda: 3 * 10**9)
    log.point(0, {"validation/loss": 0.25})
    for done in (1, 2):
        clock.now += 2
        log.step(done, 1, {"train/loss": 0.5 / done, "train/images_per_second": 40.0}, {}, point=True)
    log.point(2, {"validation/loss": 0.125})
    clock.now += 2
    log.step(3, 1, {"train/loss": 1.0, "train/images_per_second": 80.0}, {}, point=False)
    shown = "2.00s/step, 00:{gone} gone, 00:{left} left, validation={validation}, loss={loss}, images/s=40, memory=3 GB"
    found = lines()
    assert found[-1] == "train: 75%, 3 of 4, " + shown.format(gone="06", left="02", validation=0.125, loss=0.25)
    assert found[-2] == "train: 50%, 2 of 4, " + shown.format(gone="04", left="04", validation=0.25, loss=0.5)
    log.close()


def test_compilation_stands_in_no_rate_of_training(lines, tmp_path, monkeypatch):
    clock, log = Clock(monkeypatch), Log(tmp_path / "live", 4)

    class Cell:
        def compile(self, *inputs):
            clock.now += 600

    for done in (1, 2):
        Compiler(None, None, 2)(Cell(), "gradients")
        clock.now += 2
        log.step(done, 1, {}, {}, point=False)
    assert lines()[-1].startswith("train: 50%, 2 of 4, 2.00s/step, 00:04 gone, 00:04 left")
    log.close()
