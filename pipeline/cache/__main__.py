"""python -m pipeline.cache ls | verify | show | gc: look at the caches in outs/ and in the store."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from pipeline import store
from pipeline.cache import shards, shelf, verify
from pipeline.cache.collect import collect
from pipeline.stage import StageError

OUTS = {"latents": Path("outs/latents"), "text": Path("outs/text")}
IMAGES = Path("outs/index/images.parquet")
VAE = Path("outs/convert/vae.ckpt")
DVC_CACHE = Path(".dvc/cache")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline.cache", description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("ls", help="rows, bytes and fingerprints of the outs and the store")
    command.set_defaults(run=lambda _: list_caches())
    command = commands.add_parser("verify", help="check every byte; exit code 1 when a file is damaged")
    command.add_argument("folders", nargs="*", type=Path, help="default: the outs and the store")
    command.add_argument(
        "--remove", action="store_true", help="remove damaged files, so that `dvc repro` makes them again"
    )
    command.set_defaults(run=lambda args: check(args.folders, args.remove))
    command = commands.add_parser("show", help="decode some latents beside their pictures")
    command.add_argument("--count", type=int, default=16)
    command.add_argument("--out", type=Path, default=Path("dvc_plots/cache.png"))
    command.set_defaults(run=lambda args: show(args.count, args.out))
    command = commands.add_parser("gc", help="remove what neither the workspace nor the newest states need")
    command.add_argument(
        "--keep", type=int, default=3, help="states of each cache to keep beside the workspace's (default 3)"
    )
    command.set_defaults(run=lambda args: collect_garbage(args.keep))
    args = parser.parse_args()
    try:
        args.run(args)
    except (StageError, ValueError, OSError) as error:
        sys.exit(f"{parser.prog}: {error}")


def list_caches() -> None:
    """One line for each folder of shards, and below it what its rows were made with."""
    for kind, folder in _folders():
        paths = sorted(folder.glob("[!.]*.parquet"))
        rows = damaged = 0
        made_with = set()
        for path in paths:
            try:
                opened = shards.open_shard(path, kind)
                rows += len(opened)
                made_with.add(shards.canonical(opened.fingerprint))
            except shards.ShardError:
                damaged += 1
        parts = sum(map(shelf.is_part, paths))
        size = sum(path.stat().st_size for path in paths)
        notes = [f"{parts} parts"] * bool(parts) + [f"{damaged} damaged"] * bool(damaged)
        print(f"{folder}: {kind.name}, {rows:,} rows, {len(paths) - parts:,} shards, {_size(size)}", *notes, sep=", ")
        print(*(f"    {text}" for text in sorted(made_with)), sep="\n")
    states = list(shelf.states().glob("[!.]*.json"))
    print(f"{len(states)} states in the store ({store.root()})")


def check(folders: list[Path], remove: bool) -> None:
    for folder in folders:
        if not folder.is_dir():
            raise StageError(f"{folder} is not a folder")
    good = bad = 0
    for paths in verify.distinct(folders or [folder for _, folder in _folders()]):
        reason = verify.damage(paths[0])
        if reason is None:
            good += 1
            continue
        bad += 1
        print(reason)
        if remove:
            for path in verify.remove(paths, DVC_CACHE):
                print(f"    removed {path}")
    print(f"{good} files are whole, {bad} are damaged")
    if bad:
        advice = (
            "run `dvc repro`: the rows of the removed files are encoded again"
            if remove
            else "remove them with --remove, then run `dvc repro`"
        )
        sys.exit(f"{advice}")


def show(count: int, out: Path) -> None:
    from pipeline import device, params  # the other commands need neither MindSpore nor params.yaml
    from pipeline.cache.sheet import contact_sheet
    from pipeline.data.sources import open_source
    from pipeline.models.config import CONFIGS
    from pipeline.models.encode import vae_decoder

    p = params.load()
    decode = vae_decoder(CONFIGS[p.model.config], VAE, device.setup(p.device.target), p.cache_latents.precision)
    sheet, lines = contact_sheet(OUTS["latents"], IMAGES, open_source(p.data.images), decode, count)
    print(*lines, sep="\n")
    with store.atomic(out) as temporary:
        sheet.save(temporary, "PNG")
    print(f"each pair in {out}: the picture, then its decoded latent")


def collect_garbage(keep: int) -> None:
    freed = collect(OUTS, keep)
    print(
        f"removed {freed.files} files of {_size(freed.bytes)} and {freed.states} states; "
        f"kept the workspace's and the {keep} newest"
    )
    if freed.still_linked:
        print(f"{_size(freed.still_linked)} of that is still in outs or in DVC's cache (`dvc gc` frees the latter)")


def _folders() -> Iterator[tuple[shards.Kind, Path]]:
    """The outs and the store's folders."""
    for name, kind in shards.KINDS.items():
        for folder in [OUTS[name], *sorted((store.root() / "cache" / name).glob("*"))]:
            if folder.is_dir():
                yield kind, folder


def _size(count: int) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


if __name__ == "__main__":
    main()
