"""python -m pipeline.report [EXPERIMENT ...]: one HTML page of a run, or of several side by side.

Without a name it is of the workspace as it stands, also while a stage runs. A name is that of a DVC experiment, a
branch, a tag or a commit; "workspace" is one too. The page needs no network."""

import argparse
import sys
from pathlib import Path

from dvc.exceptions import DvcException

from pipeline import store
from pipeline.params import ParamsError
from pipeline.report import gather, page, revision, settings
from pipeline.stage import StageError

OUT = Path("dvc_plots/report.html")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline.report", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="EXPERIMENT", help="default: the workspace")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="FILE",
        help="settings to compare with, such as presets/tiny.yaml; default: params.yaml at git's HEAD",
    )
    parser.add_argument("--latents", type=_count, default=8, help="how many to decode; 0: none (default 8)")
    parser.add_argument("--out", type=Path, default=OUT, help=f"default: {OUT}")
    args = parser.parse_args()
    try:
        write(list(dict.fromkeys(args.names)), args.against, args.latents, args.out)
    except (StageError, ParamsError, DvcException, OSError) as error:
        sys.exit(f"{parser.prog}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


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


def _count(text: str) -> int:
    if not 0 <= (number := int(text)) <= 200:
        raise argparse.ArgumentTypeError(f"wanted 0 to 200, found {number}")
    return number


if __name__ == "__main__":
    main()
