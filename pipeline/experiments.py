"""List the experiments in a small table: what came out, and the settings in which they differ.

Those that start from git's HEAD, the best validation loss first; with --all those of all commits. `dvc exp show` has
every setting and every hash, a hundred columns."""

import argparse
from pathlib import Path

from dvc.exceptions import DvcException

from pipeline import cli, params
from pipeline.stage import StageError

# Of outs/train/live/metrics.json -> what stands above its column.
METRICS = {
    "validation.best_loss": "best validation",
    "validation.loss": "last validation",
    "validation.ema_loss": "EMA's",
    "validation.base_loss": "base model's",
    "train.loss": "train loss",
    "train.images_per_second": "images/s",
    "step": "steps",
}

_WIDEST = 40  # letters of a cell; --json has all


def main(arguments: list[str] | None = None) -> None:
    made = cli.parser("exps", __doc__)
    made.add_argument("--all", action="store_true", help="those of all commits that have some, not only of HEAD")
    cli.add_json(made)
    cli.run(made, _run, arguments)


def _run(given: argparse.Namespace) -> None:
    if not Path("dvc.yaml").is_file():
        raise StageError("dvc.yaml is not there; start it in the project's folder")
    from dvc.api import exp_show  # takes a second or two
    from scmrepo.exceptions import SCMError

    try:
        head, counts = _commits()
        others = [commit for commit in counts if commit != head]
        rows = table(exp_show(revs=[head, *others] if given.all else None))
    except DvcException as error:
        raise StageError(f"the experiments cannot be read: {error}") from error
    except SCMError as error:  # among others for the folder of a task whose clone is being made
        raise StageError(
            f"the experiments cannot be read: {error}; while a queue runs, a task may just be starting: try again in a few seconds"
        ) from error
    if given.json:
        cli.print_json(rows)
        return
    heads = list(rows[0])
    cells = [[METRICS.get(head, head) for head in heads], *([_shown(row[head]) for head in heads] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    if others and not given.all:
        print(
            f"{sum(counts[commit] for commit in others)} more start from other commits: `python -m pipeline exps --all`"
        )


def _commits() -> tuple[str, dict[str, int]]:
    """git's HEAD, and how many experiments start from each commit that has some."""
    from dvc.repo import Repo

    with Repo() as repo:
        found = repo.experiments.ls(all_commits=True)
        return repo.scm.get_rev(), {commit: len(names) for commit, names in found.items()}


def table(found: list[dict]) -> list[dict]:
    """Rows with the same columns: the experiment and its state, the METRICS that one of them has, and the keys of
    params.yaml that are not the same in all. `found` are rows of dvc.api.exp_show, which has "!" for what it cannot
    read, and "None" for null."""
    found = [{name: None if value in ("!", "None") else value for name, value in row.items()} for row in found]
    metrics = [name for name in METRICS if any(row.get(name) is not None for row in found)]
    keys = dict.fromkeys(key for row in found for key in row if key not in METRICS)
    keys = [key for key in keys if key.split(".")[0] in params.Params.model_fields and "/" not in key]
    keys = [key for key in keys if len({str(row.get(key)) for row in found}) > 1]
    rows = [
        {"experiment": row.get("Experiment") or row["rev"], "state": (row.get("State") or _state(row)).lower()}
        | {name: row.get(name) for name in metrics + keys}
        for row in found
    ]
    best = "validation.best_loss" if "validation.best_loss" in metrics else "experiment"
    return sorted(rows, key=lambda row: (row[best] is None, row[best]))


def _state(row: dict) -> str:
    if row.get("Experiment"):
        return "done"
    return "as it stands" if row["rev"] == "workspace" else "committed"


def _shown(value: object) -> str:
    if value is None:
        return "-"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…"


if __name__ == "__main__":
    main()
