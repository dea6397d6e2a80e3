"""Kinds of files, told by the end of their names, in small letters or capitals."""

import posixpath

# What images.FORMATS reads, whatever the name. .dib files are mostly BMP, .mpo and .jfif are JPEG, .apng is PNG.
PICTURES = frozenset(
    ".png .apng .jpg .jpeg .jpe .jif .jfif .jfi .pjpeg .pjp .mpo .webp .gif .bmp .dib .tif .tiff .avif .avifs".split()
)
TEXTS = frozenset({".txt", ".caption"})
METADATA = frozenset({"metadata.jsonl", "metadata.csv"})
MASKS = ("-masklabel", ".mask")  # end of a mask's name, before its extension: OneTrainer's form and our own
SETS = ("sets.yaml", "dataset.toml", "concepts.json")  # beside the pictures: our form, kohya's, OneTrainer's

_NAMES = {  # pictures that are not read
    "HEIC": ".heic .heics .heif .heifs .hif",
    "JPEG XL": ".jxl",
    "JPEG 2000": ".jp2 .j2k .j2c .jpc .jpf .jpx .jpm",
    "JPEG XR": ".jxr .wdp .hdp",
    "SVG": ".svg .svgz",
    "Photoshop": ".psd .psb",
    "GIMP": ".xcf",
    "Krita": ".kra",
    "OpenEXR": ".exr",
    "Radiance HDR": ".hdr",
    "TGA": ".tga",
    "icon": ".ico .icns .cur",
    "PNM": ".ppm .pgm .pbm .pnm .pam .pfm",
    "QOI": ".qoi",
    "DDS": ".dds",
    "PCX": ".pcx",
    "EPS": ".eps .ai",
    "WMF": ".wmf .emf",
    "raw": ".raw .dng .cr2 .cr3 .crw .nef .nrw .arw .srf .sr2 .orf .rw2 .raf .pef .srw .3fr .erf .kdc .dcr .mrw .x3f",
}
_NOT_READ = {extension: name for name, extensions in _NAMES.items() for extension in extensions.split()}


def extension(path: str) -> str:
    """From the last dot of the file's name on, in small letters; empty without a dot."""
    return posixpath.splitext(path)[1].lower()


def is_picture(path: str) -> bool:
    return extension(path) in PICTURES


def mask_stem(path: str) -> str | None:
    """The name, without its extension, of the picture that a file of this name is the mask of; None for others."""
    stem = posixpath.splitext(path)[0]
    end = next((end for end in MASKS if stem.lower().endswith(end)), None)
    return stem[: -len(end)] if end and is_picture(path) and posixpath.basename(stem[: -len(end)]) else None


def is_metadata(path: str) -> bool:
    return posixpath.basename(path).lower() in METADATA


def not_read(path: str) -> str | None:
    """Why a picture of this name is not read; None when it is no picture, or one that is read."""
    name = _NOT_READ.get(extension(path))
    return name and f"not read: {name}; convert it to PNG or JPEG"
