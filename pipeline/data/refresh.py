"""Ask the servers behind a .urls file (docs/far-data.md) whether their files have changed, by names, sizes and ETags, and
write it down there. `dvc repro` then runs index again exactly when something has. `make repro` does it by itself."""

import argparse

from pipeline import cli, params
from pipeline.data import urls
from pipeline.data.part import SourceError


def main(arguments: list[str] | None = None) -> None:
    made = cli.parser("data refresh", __doc__)
    made.add_argument("path", nargs="?", help="a .urls file; default: data.images of params.yaml")
    cli.run(made, _run, arguments)


def _run(given: argparse.Namespace) -> None:
    path = given.path or params.load().data.images
    if not path.lower().endswith(urls.END):
        raise SourceError(f"{path} is no {urls.END} file; `dvc repro` itself looks whether it has changed")
    changes = urls.refresh(path)
    for change in changes:
        print(f"{change.url}: {change.old or 'not looked at before'} -> {change.new}")
    print(f"{path}: " + ("`dvc repro` will run index again" if changes else "nothing behind it has changed"))
