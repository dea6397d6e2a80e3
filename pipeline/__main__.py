"""The tools of the pipeline, one a line; `python -m pipeline TOOL --help` explains each.

The stages themselves are run by `dvc repro`, or one alone by `python -m stages.NAME`."""

import importlib
import sys

# Tool -> (its module, which has parser() and run(), what it is for). Modules are imported when they are asked for: most
# need neither pictures nor MindSpore.
TOOLS = {
    "preset": ("pipeline.preset", "write params.yaml for a model and a number of NPUs"),
    "doctor": ("pipeline.doctor.__main__", "say whether the run of params.yaml can start, and what to do if not"),
    "plan": ("pipeline.plan", "say what a training run will take: memory, disk, steps, hours"),
    "data": ("pipeline.data.__main__", "look at pictures and captions before they are indexed"),
    "weights": ("pipeline.weights.__main__", "say what a file or folder of weights is"),
    "cache": ("pipeline.cache.__main__", "list, verify, show and clean up the caches and the store"),
    "report": ("pipeline.report.__main__", "write one HTML page about what was run"),
}


def main(arguments: list[str] | None = None) -> None:
    from pipeline import cli

    made = cli.parser("", __doc__)
    made.prog = "python -m pipeline"
    tools = made.add_subparsers(dest="tool", metavar="TOOL", required=True, title="tools")
    for name, (_, purpose) in TOOLS.items():
        tools.add_parser(name, help=purpose, add_help=False)
    arguments = sys.argv[1:] if arguments is None else arguments
    given, _ = made.parse_known_args(arguments[:1])
    tool = importlib.import_module(TOOLS[given.tool][0])
    cli.main(tool.parser(), tool.run, arguments[1:])


if __name__ == "__main__":
    main()
