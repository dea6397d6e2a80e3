"""What a plan shows of the timesteps."""

import base64
import json
import re

import numpy as np
import pytest

from pipeline import plan
from pipeline.diffusion import schedule
from pipeline.planning import timesteps
from pipeline.training.objective import objective
from tests.training.training_samples import params


def drawn(**changes):
    p = params(**changes)
    return objective(p.diffusion, p.train, 0.13025)


def test_shares_and_weights_are_the_trainings_own():
    found = timesteps.parts(drawn(**{"train.timestep_distribution": "logit_normal", "train.snr_gamma": 5.0}))
    assert [part["first"] for part in found] == list(range(0, 1000, 50))
    assert sum(part["share"] for part in found) == pytest.approx(1)
    assert max(part["share"] for part in found) == pytest.approx(found[9]["share"]) and found[9]["share"] > 0.07
    assert found[0]["share"] < 0.01
    assert found[0]["weight"] < 0.3 and found[-1]["weight"] == pytest.approx(1)  # 5 / SNR, and 1 where that is above


def test_what_is_not_drawn_has_no_bar_and_no_weight():
    lines = timesteps.lines(drawn(**{"train.timestep_min": 500, "train.timestep_bias_strategy": "none"}))
    assert len(lines) == timesteps.PARTS + 1
    assert all("█" not in line and "x" not in line for line in lines[1:11])
    assert all(re.match(r"  +\d+ to \d+ +10\.00% █{40} x 1$", line) for line in lines[11:])


def test_the_plan_says_it_and_writes_it_as_a_page(tmp_path, monkeypatch, capsys):
    p = params(**{"diffusion.prediction": "flow", "diffusion.flow_shift": 3.0})
    monkeypatch.setattr(plan, "load", lambda: p)
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    page = tmp_path / "plan.html"
    for form in ([], ["--json"]):
        with pytest.raises(SystemExit):
            plan.main(["--images", "100", "--plot", str(page), *form])
        said = capsys.readouterr().out
        if not form:
            assert "Timesteps that training draws" in said and " 950 to 999" in said
            assert said.endswith(f"\n{page}: the timesteps as curves; open it in a browser\n")
    assert json.loads(said)["plot"] == str(page)
    found = json.loads(said)["timesteps"]
    assert found[-1]["share"] > 5 * found[0]["share"] and {part["weight"] for part in found} == {1.0}
    text = page.read_text()
    assert "weight of the loss" in text and "Plotly.newPlot" in text and 'src="http' not in text


def test_the_curves_of_the_page_are_the_trainings_own(tmp_path):
    """Read back out of the page, as a browser does."""
    of = drawn(**{"train.timestep_min": 200, "train.snr_gamma": 5.0})
    timesteps.write_plot(of, tmp_path / "plan.html")
    called = (tmp_path / "plan.html").read_text().rpartition("Plotly.newPlot(")[2]
    curves, _ = json.JSONDecoder().raw_decode(called[called.index("[") :])
    found = {curve["name"]: [numbers(curve[axis]) for axis in "xy"] for curve in curves}
    alphas = schedule.alphas_cumprod(False)
    share = np.where(np.arange(1000) >= 200, 1.25, 0)  # of a thousand, where 800 are drawn
    weight = np.minimum(5 * (1 - alphas) / alphas, 1)  # Min-SNR's
    assert list(found) == ["drawn (chance x 1000)", "weight of the loss", "both (of a mean of 1)"]
    for (x, y), wanted in zip(found.values(), (share, weight, share * weight / (share * weight).mean()), strict=True):
        np.testing.assert_array_equal(x, np.arange(1000))
        np.testing.assert_allclose(y, wanted, rtol=1e-6)


def numbers(values: dict | list) -> np.ndarray:
    """As plotly writes an array."""
    if isinstance(values, list):
        return np.array(values)
    return np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("plan.png", r"wanted a name that ends in \.html, found"),
        ("no/such/plan.html", "there is no folder '.*no/such'; make it"),
    ],
)
def test_a_page_is_written_under_its_own_name_alone(tmp_path, capsys, name, said):
    with pytest.raises(SystemExit) as code:
        plan.main(["--images", "100", "--plot", str(tmp_path / name)])
    assert code.value.code == 2 and re.search(said, capsys.readouterr().err) and not list(tmp_path.iterdir())
