"""python -m pipeline.cache ls | verify | show | gc: look at the caches in outs/ and at the store."""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline import leftovers, store
from pipeline.cache import shards, shelf, verify
from pipeline.cache.collect import collect
from pipeline.stage import StageError, explained

OUTS = {"latents": Path("outs/latents"), "text": Path("outs/text")}
IMAGES = Path("outs/index/images.parquet")
VAE = Path("outs/convert/vae.ckpt")
DVC_CACHE = Path(".dvc/cache")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline.cache", description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("ls", help="what is in the outs and in the store, with sizes and settings")
    command.set_defaults(run=lambda _: list_caches())
    command = commands.add_parser("verify", help="check every byte; exit code 1 when a file is damaged")
    command.add_argument("folders", nargs="*", type=Path, help="default: the outs and the store")
    command.add_argument(
        "--remove", action="store_true", help="remove damaged files, so that `dvc repro` makes them again"
    )
    command.set_defaults(run=lambda args: check(args.folders, args.remove))
    command = commands.add_parser("show", help="decode some latents beside their pictures")
    command.add_argument("--count", type=_count(least=1), default=16)
    command.add_argument("--out", type=Path, default=Path("dvc_plots/cache.png"))
    command.set_defaults(run=lambda args: show(args.count, args.out))
    command = commands.add_parser("gc", help="remove what neither the workspace nor the newest states need")
    command.add_argument(
        "--keep",
        type=_count(least=0),
        default=3,
        help="how many to keep, the newest, of each cache's states beside the workspace's, of half-done trainings, of "
        "finished ones, and of compiled graphs (default 3); nothing goes that a process works on",
    )
    command.add_argument("--dry-run", action="store_true", help="say what would be removed, and remove nothing")
    command.set_defaults(run=lambda args: collect_garbage(args.keep, args.dry_run))
    args = parser.parse_args()
    try:
        args.run(args)
    except (StageError, ValueError, OSError) as error:
        sys.exit(f"{parser.prog}: {explained(error)}")


def list_caches() -> None:
    """One line for each folder of shards, and below it what its rows were made with; then what else the store has."""
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
    found = leftovers.find()
    for item in found:
        if item.kind != "memo":
            print(_line(item))
    memos = [item.bytes for item in found if item.kind == "memo"]
    print(f"{len(memos)} memos of pictures and files, {_size(sum(memos))}")


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
    for path in (OUTS["latents"], IMAGES, VAE):  # before MindSpore is imported
        path.stat()
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


def _count(least: int) -> Callable[[str], int]:
    """Reads a number of things."""

    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= least):
            raise argparse.ArgumentTypeError(f"wanted {least} or more, found {text}")
        return int(text)

    return read


def collect_garbage(keep: int, dry: bool = False) -> None:
    removed = "would remove" if dry else "removed"
    freed = collect(OUTS, keep, dry)
    print(
        f"{removed} {freed.files} files of {_size(freed.bytes)} and {freed.states} states; "
        f"kept the workspace's and the {keep} newest"
    )
    chosen = leftovers.spare(leftovers.find(), keep)
    for item in chosen:
        if item.kind != "memo":
            print(f"{removed} {_line(item)}")
    memos = [item.bytes for item in chosen if item.kind == "memo"]
    if memos:
        print(f"{removed} {len(memos)} memos of {_size(sum(memos))}, unused for {leftovers.UNUSED_DAYS} days")
    if not dry and (half_written := leftovers.remove(chosen)):
        print(f"removed {_size(half_written)} that killed processes left half-written")
    if linked := freed.still_linked + sum(item.linked for item in chosen):
        print(f"{_size(linked)} of that is still in outs or in DVC's cache (`dvc gc` frees the latter)")


def _line(item: leftovers.Leftover) -> str:
    """Such as: half-done training .store/train/0a1b: 41 GB, 3 days old, step 300 of 1000"""
    age = f"{item.days:.0f} days old" if item.days >= 1 else f"{item.days * 24:.0f} h old"
    notes = ["in use"] * item.in_use + [item.note] * bool(item.note)
    return ", ".join([f"{item.kind} {item.path}: {_size(item.bytes)}", age, *notes])


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
