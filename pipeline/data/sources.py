"""Where pictures and captions come from: a folder, WebDataset tars or Parquet files, told apart by what is there."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from pipeline.data.folder import Folder
from pipeline.data.parquet import ParquetFiles
from pipeline.data.part import Part, SourceError, is_picture
from pipeline.data.webdataset import WebDataset


class Source(Protocol):
    """A data set. It can be pickled, opens files when it needs them, and is shared by threads."""

    root: str

    def read(self, path: str) -> bytes:
        """The bytes of the picture with this path in images.parquet. Raises SourceError."""

    def parts(self) -> Iterator[Part]:
        """All pictures and captions. Raises SourceError, CaptionError."""


def open_source(path: str) -> Source:
    """The data set at `path` (params.data.images).

    A .tar, or a folder of .tar and no pictures: WebDataset. A .parquet, or a folder of .parquet and no pictures:
    Parquet. Any other folder: imagefolder or kohya form. Raises SourceError."""
    if not os.path.exists(path):
        raise SourceError(f"data.images is {path!r}, and there is no such folder or file")
    if os.path.isfile(path):
        root, name = os.path.split(path)
        if name.endswith(".tar"):
            return WebDataset(root or ".", (name,))
        if name.endswith(".parquet"):
            return ParquetFiles(root or ".", (name,))
        raise SourceError(f"data.images is the file {path!r}; wanted a folder, a .tar (uncompressed) or a .parquet")
    tars, parquets = [], []
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.startswith("."):
                continue
            if is_picture(name):
                return Folder(path)
            for extension, found in ((".tar", tars), (".parquet", parquets)):
                if name.endswith(extension):
                    found.append(Path(folder, name).relative_to(path).as_posix())
    if tars and parquets:
        raise SourceError(
            f"{path} holds tars ({tars[0]}) and Parquet files ({parquets[0]}); give a folder with one kind"
        )
    if tars:
        return WebDataset(path, tuple(sorted(tars)))
    if parquets:
        return ParquetFiles(path, tuple(sorted(parquets)))
    raise SourceError(f"{path} holds no pictures, no .tar and no .parquet")
