"""Write one HTML page of a run, or of several side by side.

Without a name it is of the workspace as it stands, also while a stage runs. A name is that of a DVC experiment, a
branch, a tag or a commit; "workspace" is one too. The page needs no network."""

import argparse
from pathlib import Path

from dvc.exceptions import DvcException

from pipeline import cli, store
from pipeline.report import gather, page, revision, settings
from pipeline.stage import StageError

OUT = Path("dvc_plots/report.html")


def main(arguments: list[str] | None = None) -> None:
    made = cli.parser("report", __doc__)
    made.add_argument("names", nargs="*", metavar="EXPERIMENT", help="default: the workspace")
    made.add_argument(
        "--against",
        type=Path,
        metavar="FILE",
        help="settings to compare with, such as presets/tiny.yaml; default: params.yaml at git's HEAD",
    )
    decoded = cli.count(least=0, most=200)
    made.add_argument("--latents", type=decoded, default=8, metavar="N", help="how many to decode; 0: none (default 8)")
    made.add_argument("--out", type=cli.new_file(".html"), default=OUT, help=f"default: {OUT}")
    cli.run(made, _run, arguments)


def _run(given: argparse.Namespace) -> None:
    try:
        write(list(dict.fromkeys(given.names)), given.against, given.latents, given.out)
    except DvcException as error:
        raise StageError(str(error)) from error


def write(names: list[str], against: Path | None, latents: int, out: Path) -> None:
    """Raises StageError, ParamsError, DvcException, OSError; no page is written then."""
    if not Path("dvc.yaml").is_file():
        raise StageError("dvc.yaml is not there; start it in the project's folder")
    revisions = [revision.find(name) for name in names] or [revision.workspace()]
    runs = gather.read(revisions, latents)
    if not any(run.anything for run in runs):
        raise StageError("no stage has run yet, so there is nothing to report; run `make repro` first")
    html = page.render(runs, defaults(against, runs[0]), revision.head())
    with store.atomic(out) as temporary:
        temporary.write_text(html, encoding="utf-8")
    print(f"{out}: {len(html.encode()) / 1e6:.1f} MB; open it in a browser")


def defaults(against: Path | None, first: gather.Run) -> settings.Defaults:
    """Those of the file, else of the last commit; without git the first run is what the others are compared with."""
    if against is not None:
        return settings.Defaults(str(against), settings.flat(against.read_bytes(), str(against)))
    text = revision.at_head(settings.FILE)
    if text is None:
        return settings.Defaults(f"{first.name} (git has no {settings.FILE})", first.params)
    return settings.Defaults(f"{settings.FILE} at git's HEAD", settings.flat(text, f"{settings.FILE} at HEAD"))


if __name__ == "__main__":
    main()
