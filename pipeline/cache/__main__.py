"""Look at the caches in outs/ and at the store; remove what is not needed."""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from pipeline import cli, leftovers, store
from pipeline.cache.building import shelf
from pipeline.cache.format import shards, stand_in
from pipeline.cache.tools import verify
from pipeline.cache.tools.collect import collect
from pipeline.stage import StageError

OUTS = {"latents": Path("outs/latents"), "text": Path("outs/text")}
IMAGES = Path("outs/index/images.parquet")
VAE = Path("outs/convert/vae.ckpt")
DVC_CACHE = Path(".dvc/cache")


def main(arguments: list[str] | None = None) -> None:
    made = cli.parser("cache", __doc__)
    commands = made.add_subparsers(required=True, metavar="COMMAND")
    command = cli.subcommand(commands, "ls", "what is in the outs and in the store, with sizes and settings")
    cli.add_json(command)
    command.set_defaults(run=lambda args: list_caches(args.json))
    command = cli.subcommand(commands, "verify", "check every byte; exit code 1 when a file is damaged")
    command.add_argument("folders", nargs="*", type=Path, help="default: the outs and the store")
    command.add_argument(
        "--remove", action="store_true", help="remove damaged files, so that `dvc repro` makes them again"
    )
    command.set_defaults(run=lambda args: check(args.folders, args.remove))
    command = cli.subcommand(commands, "show", "decode some latents beside their pictures")
    command.add_argument("--count", type=cli.count(least=1), default=16, help="how many pairs (default 16)")
    command.add_argument("--out", type=cli.new_file(".png"), default=Path("dvc_plots/cache.png"))
    cli.add_json(command)
    command.set_defaults(run=lambda args: show(args.count, args.out, args.json))
    command = cli.subcommand(commands, "gc", "remove what neither the workspace nor the newest states need")
    command.add_argument(
        "--keep",
        type=cli.count(least=0),
        default=3,
        help="how many to keep, the newest, of each cache's states beside the workspace's, of half-done trainings, of kept "
        "states, of finished trainings, and of compiled graphs (default 3); nothing goes that a process works on",
    )
    command.add_argument("--dry-run", action="store_true", help="say what would be removed, and remove nothing")
    command.set_defaults(run=lambda args: collect_garbage(args.keep, args.dry_run))
    cli.run(made, _run, arguments)


def _run(given: argparse.Namespace) -> None:
    try:
        given.run(given)
    except ValueError as error:  # what a cache does not fit
        raise StageError(str(error)) from error


def list_caches(as_json: bool = False) -> None:
    """One line for each folder of shards, and below it what its rows were made with; then what else the store has."""
    caches = [_cache(kind, folder) for kind, folder in _folders()]
    states = len(list(shelf.states().glob("[!.]*.json")))
    found = leftovers.find()
    memos = [item.bytes for item in found if item.kind == "memo"]
    if as_json:
        others = [{**asdict(item), "path": str(item.path)} for item in found if item.kind != "memo"]
        kept = {"path": str(store.root()), "states": states, "memos": len(memos), "memo_bytes": sum(memos)}
        cli.print_json({"caches": caches, "store": kept | {"others": others}})
        return
    for one in caches:
        notes = [f"{one[key]} {key}" for key in ("parts", "damaged") if one[key]]
        size = f"{one['folder']}: {one['kind']}, {one['rows']:,} rows, {one['shards']:,} shards, {_size(one['bytes'])}"
        print(size, *notes, sep=", ")
        for text in one["made_with"]:
            print(f"    {text}")
    print(f"{states} states in the store ({store.root()})")
    for item in found:
        if item.kind != "memo":
            print(_line(item))
    print(f"{len(memos)} memos of pictures, files and times, {_size(sum(memos))}")


def _cache(kind: shards.Kind, folder: Path) -> dict:
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
    if stand_in.is_in(folder):
        found = stand_in.read(folder, kind.name)
        made_with = {found["why"], shards.canonical(found["made_with"])}
    return {
        "folder": str(folder), "kind": kind.name, "rows": rows, "shards": len(paths) - parts, "parts": parts,
        "damaged": damaged, "bytes": sum(path.stat().st_size for path in paths), "made_with": sorted(made_with),
    }  # fmt: skip


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


def show(count: int, out: Path, as_json: bool = False) -> None:
    for path in (OUTS["latents"], IMAGES, VAE):  # before MindSpore is imported
        path.stat()
    from pipeline import device, params  # the other commands need neither MindSpore nor params.yaml
    from pipeline.cache.tools.sheet import contact_sheet
    from pipeline.data.sources import open_source
    from pipeline.models.config import CONFIGS
    from pipeline.models.encode import vae_decoder

    p = params.load()
    decode = vae_decoder(CONFIGS[p.model.config], VAE, device.setup(p.device.target), p.cache_latents.precision)
    source = open_source(p.data.images, image_column=p.data.image_column)
    sheet, lines = contact_sheet(OUTS["latents"], IMAGES, source, decode, count)
    if not as_json:
        print(*lines, sep="\n")
    with store.atomic(out) as temporary:
        sheet.save(temporary, "PNG")
    if as_json:
        cli.print_json({"picture": str(out), "pairs": lines})
    else:
        print(f"each pair in {out}: the picture, then its decoded latent")


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
