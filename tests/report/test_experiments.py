"""pipeline/experiments.py: the small table. tests/test_docs_run.py has it from DVC itself."""

import json

import pytest

from pipeline import experiments


def row(name: str | None, best: float | None, **more) -> dict:
    rev = "abc" if name else more.pop("rev")
    metrics = {"validation.best_loss": best, "train.loss": None if best is None else 0.5, "step": 600.0}
    return {"Experiment": name, "rev": rev, "State": None, **metrics, "train.seed": 0.0, "outs/latents": name, **more}


ROWS = [
    row(None, 0.3, rev="workspace", **{"train.learning_rate": 1e-3}),
    row(None, 0.3, rev="main", **{"train.learning_rate": 1e-3}),
    row("low-rate", 0.2, **{"train.learning_rate": 2e-5}),
    row("waits", None, **{"State": "Queued", "train.learning_rate": 5e-5, "train.ema": "True"}),
]


def test_the_best_comes_first_and_columns_are_what_differs():
    found = experiments.table(ROWS)
    assert [(one["experiment"], one["state"]) for one in found] == [
        ("low-rate", "done"), ("workspace", "as it stands"), ("main", "committed"), ("waits", "queued")]  # fmt: skip
    columns = ["experiment", "state", "validation.best_loss", "train.loss", "step", "train.learning_rate", "train.ema"]
    assert all(list(one) == columns for one in found)
    assert found[0]["train.learning_rate"] == 2e-5 and found[3]["validation.best_loss"] is None


def test_before_any_training_there_is_a_table_too():
    found = experiments.table([{"Experiment": None, "rev": "workspace", "State": None, "train.seed": 0.0}])
    assert found == [{"experiment": "workspace", "state": "as it stands"}]


def test_as_people_read_it(monkeypatch, capsys, tmp_path):
    import dvc.api

    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.setattr(dvc.api, "exp_show", lambda revs: ROWS if revs is None else [])
    monkeypatch.setattr(experiments, "_commits", lambda: ("a", {"a": 2, "b": 3}))
    try:
        experiments.main([])
    except SystemExit as end:
        assert end.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[:2] == ["experiment", "state"] and "best validation  train loss" in lines[0]
    assert lines[1].split() == ["low-rate", "done", "0.2", "0.5", "600", "2e-05", "-"]
    assert lines[4].startswith("waits       queued")
    assert lines[5:] == ["3 more start from other commits: `python -m pipeline exps --all`"]


def test_as_a_script_reads_it(monkeypatch, capsys, tmp_path):
    import dvc.api

    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.setattr(dvc.api, "exp_show", lambda revs: ROWS if revs is None else [])
    monkeypatch.setattr(experiments, "_commits", lambda: ("a", {"a": 2}))
    with pytest.raises(SystemExit) as ended:
        experiments.main(["--json"])
    found = json.loads(capsys.readouterr().out)
    assert ended.value.code == 0 and found == experiments.table(ROWS)


def test_what_is_null_is_none_and_no_text():
    """As DVC gives it of a task that runs: no validation yet but the base's."""
    runs = row("runs", 0.1, **{"State": "Running", "validation.best_loss": "None"})
    assert experiments.table([runs, *ROWS])[-1]["validation.best_loss"] is None


def test_a_task_whose_folder_is_being_made(monkeypatch, capsys, tmp_path):
    from scmrepo.exceptions import SCMError

    def fails():
        raise SCMError("Empty git repo")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.setattr(experiments, "_commits", fails)
    with pytest.raises(SystemExit) as ended:
        experiments.main([])
    assert (
        "Empty git repo; while a queue runs, a task may just be starting"
        in f"{ended.value.code}{capsys.readouterr().err}"
    )


def test_what_dvc_cannot_read_of_a_commit_comes_last():
    lost = {"Experiment": None, "rev": "dd5756d", "State": None, "validation.best_loss": "!", "train.seed": 0.0}
    assert experiments.table([lost, *ROWS])[-2:] == [
        {name: None for name in experiments.table(ROWS)[0]} | {"experiment": "dd5756d", "state": "committed"},
        experiments.table(ROWS)[-1],
    ]
