"""Pictures of the reader's own as a batch of pixels in [0, 1]: from a folder, from arrays, or from a known data set.

Files are read as data: no pickled object is loaded, only common picture formats are decoded, and what a header promises
is looked at before anything is decoded. Nothing is written.
"""

import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image, ImageOps

from attrobust import checks, data
from attrobust.models import watched
from attrobust.shapes import Images, Labels

#: Formats that are decoded (of an animation the first frame), and how their files are called.
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif")
#: Pixels that a picture may have, and bytes that an array may; more are refused before they are decoded.
PIXELS, BYTES = 50_000_000, 1 << 32
#: Channels that tell the layout of an array: grey, colour, colour with one more.
CHANNELS = (1, 3, 4)

#: Tags of a TIFF: bits of a sample, and whether zero is white (0) or black (1).
_BITS, _ZERO = 258, 262

#: How bright red, green and blue are (ITU-R 601), as PIL has it.
_GREY = np.array([0.299, 0.587, 0.114], np.float32)

Pixels = Float32[np.ndarray, "height width channels"]


class Pictures(NamedTuple):
    """Images in [0, 1] (float32), their labels if any are known, what each is called, and the names of the classes.

    Example:
        >>> Pictures(torch.zeros(1, 1, 2, 2), torch.tensor([3]), ["a.png"], None).names
        ['a.png']
    """

    x: Images
    y: Labels | None
    names: list[str]
    classes: list[str] | None


def load_images(
    source: str, *, n: int, size: int | tuple[int, int] | None = None, channels: int | None = None, seed: int = 0,
    train: bool = False,
) -> Pictures:  # fmt: skip
    """At most n pictures of a source, drawn with a seed, class-balanced where labels are known; in the source's order.

    `source` is a folder that holds one folder of pictures for each class (their sorted names are classes 0, 1, ...), or
    pictures without labels; a .npz file with an array `x`, (n, height, width), (n, height, width, channels) or
    (n, channels, height, width), uint8 or floating-point in [0, 1], and whole-numbered labels `y` if there are any; or
    one of `data.NAMES`, of which test images are taken, or, to `train` on, training images. A picture is called by its
    path inside the folder, or by its place among the arrays. Hidden files, and files that by their names are no
    pictures, are passed over.

    `size` is a side, or height and width: the largest centred part of that aspect is resized (bicubic). `channels` 1
    makes all grey, 3 makes all coloured; None leaves them, but makes grey pictures among coloured ones coloured.

    Raises:
        ValueError: in one sentence, for a source that is not found, is empty or damaged, holds pickled objects, mixes
            pictures and folders, or links to what lies outside it; for a picture that is no picture, too large, has
            transparent pixels or pixels of unknown range; for pictures of several shapes where no `size` is given.
        DataError: for a data set whose files are not on this machine.

    Example:
        >>> digits = load_images("digits", n=20, size=16, channels=3)
        >>> digits.x.shape, digits.y.bincount().tolist()
        (torch.Size([20, 3, 16, 16]), [2, 2, 2, 2, 2, 2, 2, 2, 2, 2])
    """
    checks.kind("source", source, str)
    checks.count("n", n)
    checks.count("seed", seed, least=0)
    sides = None if size is None else _sides(size)
    if channels not in (None, 1, 3) or isinstance(channels, bool):
        raise ValueError(f"channels is {checks.short(channels)}; it must be 1 (grey), 3 (colour) or None (as they are)")
    path, known = Path(source), source in data.NAMES
    if known and path.exists():
        raise ValueError(f"source is {source!r}, a data set and a file here; write ./{source} for the file")
    if known:
        pictures, y, names, classes = _data_set(source, n, seed, train=train)
    elif source and path.is_dir():
        pictures, y, names, classes = _folder(path, n, seed, sides)
    elif path.is_file() and path.suffix.lower() == ".npz":
        pictures, y, names, classes = _arrays(path, n, seed)
    else:
        what = "which is no folder and no .npz file" if path.is_file() else "which is not found"
        raise ValueError(
            f"source is {source!r}, {what}; it must be a folder of pictures, a .npz file, or one of"
            f" {', '.join(data.NAMES)}{checks.meant(source, data.NAMES)}"
        )
    x = _batch(pictures, names, sides, channels, source)
    return Pictures(x, None if y is None else torch.from_numpy(y.astype(np.int64)), names, classes)


Found = tuple[list[np.ndarray], np.ndarray | None, list[str], list[str] | None]


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width."""
    sides = (size, size) if not isinstance(size, tuple | list) else tuple(size)
    if len(sides) != 2:
        raise ValueError(f"size is {checks.short(size)}; it must be one side, or height and width")
    for side in sides:
        checks.count("size", side)
    if sides[0] * sides[1] > PIXELS:
        raise ValueError(f"size is {checks.short(size)}; it must make at most {PIXELS:,} pixels")
    return sides


def _drawn(y: np.ndarray | None, n: int, seed: int, *, among: int) -> np.ndarray:
    """Places of n examples, or of all where there are fewer; class-balanced by labels y, sorted."""
    if y is None:
        return np.sort(np.random.default_rng(seed).permutation(among)[:n])
    return np.sort(data.balanced(y, min(n, among), seed))


def _data_set(name: str, n: int, seed: int, *, train: bool) -> Found:
    """Test or training images of one of our data sets."""
    loaded = data.load(name, n_train=None if train else 1)
    taken = loaded.train if train else loaded.test
    y = taken.y.numpy()
    places = _drawn(y, n, seed, among=len(y))
    pictures = list(taken.x.numpy()[places].transpose(0, 2, 3, 1))
    return pictures, y[places], [str(i) for i in places], list(loaded.classes)


# ------------------------------------------------------------------ arrays


def _arrays(path: Path, n: int, seed: int) -> Found:
    """Pictures and labels of a .npz file."""
    said = f"source is {str(path)!r}"
    _promised(path, said)
    try:
        with np.load(path, allow_pickle=False) as held:
            x, y = held["x.npy"], held["y.npy"] if "y.npy" in held.zip.namelist() else None
    except Exception as error:  # a damaged archive ends in an error of any kind
        raise ValueError(f"{said}, which is damaged: {watched.said(error)}") from error
    last = _channels_last(x.shape, said)
    if x.dtype != np.uint8:
        _in_range(x, said)
    if y is not None:
        _whole(y, len(x), said)
    places = _drawn(y, n, seed, among=len(x))
    chosen = np.moveaxis(x[places][..., None] if x.ndim == 3 else x[places], last, -1)
    chosen = chosen.astype(np.float32) / np.float32(255 if x.dtype == np.uint8 else 1)
    return list(chosen), None if y is None else y[places], [str(i) for i in places], None


def _promised(path: Path, said: str) -> None:
    """Refuse an archive whose arrays are not there, are of objects, or are larger than `BYTES` or than their files."""
    headers, formats = {}, np.lib.format
    if not path.stat().st_size:
        raise ValueError(f"{said}, which is empty (0 bytes); it must hold an array x, and labels y if there are any")
    try:
        with zipfile.ZipFile(path) as archive:
            held = [name.removesuffix(".npy") for name in archive.namelist()]
            for name in [name for name in archive.namelist() if name in ("x.npy", "y.npy")]:
                with archive.open(name) as file:
                    major = formats.read_magic(file)[0]
                    read = formats.read_array_header_1_0 if major == 1 else formats.read_array_header_2_0
                    shape, _, dtype = read(file)
                    size = archive.getinfo(name).file_size - file.tell()
                headers[name.removesuffix(".npy")] = shape, dtype, size
    except Exception as error:
        raise ValueError(f"{said}, which is damaged or no .npz file: {watched.said(error)}") from error
    if "x" not in headers:
        has = f"holds {', '.join(map(repr, held[:5]))}" if held else "holds nothing"
        raise ValueError(f"{said}, which {has}; it must hold an array x, and labels y if there are any")
    for name, (shape, dtype, size) in headers.items():
        if dtype.hasobject:
            raise ValueError(f"{said}, whose {name} is an array of pickled objects, which could do anything when read")
        if name == "x" and dtype != np.uint8 and dtype.kind != "f":
            raise ValueError(f"{said}, whose x has dtype {dtype}; it must be uint8, or floating-point in [0, 1]")
        needed = int(np.prod([*map(int, shape)], dtype=object)) * dtype.itemsize
        if needed > BYTES:
            raise ValueError(f"{said}, whose {name} has {needed:,} bytes; at most {BYTES:,} are read")
        if needed != size:
            raise ValueError(f"{said}, which is damaged: its {name} has {size:,} bytes where {needed:,} are promised")


def _channels_last(shape: tuple[int, ...], said: str) -> int:
    """The axis of channels in an array of pictures; the last of a new one, where it has none."""
    accepted = "it must be (n, height, width), (n, height, width, channels) or (n, channels, height, width)"
    if len(shape) not in (3, 4) or not all(shape):
        raise ValueError(f"{said}, whose x has shape {shape}; {accepted}, and not empty")
    if len(shape) == 3:
        if shape[-1] in CHANNELS:
            raise ValueError(
                f"{said}, whose x has shape {shape}, which may be grey pictures or one of {shape[-1]} channels; save it"
                " with all four axes"
            )
        return -1
    axes = [axis for axis in (1, 3) if shape[axis] in CHANNELS]
    if len(axes) == 2:
        raise ValueError(f"{said}, whose x has shape {shape}, of which axis 1 or 3 may be the channels; {accepted}")
    if not axes:
        raise ValueError(f"{said}, whose x has shape {shape}, with 1, 3 or 4 channels nowhere; {accepted}")
    return axes[0]


def _in_range(x: np.ndarray, said: str) -> None:
    low, high = float(x.min()), float(x.max())
    if not (low >= 0 and high <= 1):  # NaN too
        raise ValueError(f"{said}, whose x spans [{low:g}, {high:g}]; floating-point pixels must lie in [0, 1]")


def _whole(y: np.ndarray, n: int, said: str) -> None:
    if y.shape != (n,) or y.dtype.kind not in "iu":
        raise ValueError(f"{said}, whose y has shape {y.shape} and dtype {y.dtype}; it must hold {n} whole numbers")
    if int(y.min()) < 0 or int(y.max()) > checks.LARGEST:
        raise ValueError(f"{said}, whose y spans [{y.min()}, {y.max()}]; labels must be class indices of at least 0")


# ------------------------------------------------------------------ folders


def _folder(root: Path, n: int, seed: int, sides: tuple[int, int] | None) -> Found:
    """Pictures of a folder, whose folders are classes, if it has any."""
    folders, files = _inside(root, root)
    said = f"source is {str(root)!r}"
    if folders and files:
        raise ValueError(
            f"{said}, which holds pictures ({files[0].name}) and folders ({folders[0].name}); it must hold pictures, or"
            " one folder for each class"
        )
    if len(folders) == 1:
        raise ValueError(
            f"{said}, which holds one folder, {folders[0].name!r}; it must hold one for each class, so give that one"
            " for pictures without labels"
        )
    labels = []
    for label, folder in enumerate(folders):
        deeper, own = _inside(folder, root)
        if deeper or not own:
            cause = f"holds a folder, {deeper[0].name!r}" if deeper else "holds no pictures"
            raise ValueError(
                f"{said}, in which {folder.name!r} {cause}; it must hold a folder for each class, of pictures"
            )
        files += own
        labels += [label] * len(own)
    if not files:
        raise ValueError(f"{said}, which holds no pictures ({', '.join(SUFFIXES)})")
    y = np.array(labels) if folders else None
    places = _drawn(y, n, seed, among=len(files))
    chosen = [files[i] for i in places]
    names = [path.relative_to(root).as_posix() for path in chosen]
    pictures = [_cut(_picture(path), sides) for path in chosen]
    return pictures, None if y is None else y[places], names, [folder.name for folder in folders] or None


def _inside(folder: Path, root: Path) -> tuple[list[Path], list[Path]]:
    """Folders and pictures in a folder, sorted by name; a link that leads out of the root, or nowhere, is refused."""
    folders, files = [], []
    try:
        entries = sorted(folder.iterdir(), key=lambda path: path.name)
    except OSError as error:
        raise ValueError(f"source holds {folder}, which cannot be read: {watched.said(error)}") from error
    for path in entries:
        if path.name.startswith(".") or not (path.suffix.lower() in SUFFIXES or path.is_dir()):
            continue
        if path.is_symlink() and not (path.is_file() and path.resolve().is_relative_to(root.resolve())):
            raise ValueError(
                f"source holds {path}, a link to a folder, to what lies outside {root}, or to nothing; put the pictures"
                " themselves there"
            )
        if path.is_dir():
            folders.append(path)
        elif path.is_file():
            files.append(path)
    return folders, files


def _picture(path: Path) -> Pixels:
    """Pixels of a picture file, upright, in [0, 1]; of one channel if it is stored as grey, else of three."""
    said = f"picture {path}"
    if not path.stat().st_size:
        raise ValueError(f"{said} is empty (0 bytes); delete it, or copy it anew")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path, formats=FORMATS) as opened:
                width, height = opened.size
                if width * height <= PIXELS:
                    opened.load()
                    image, tags = ImageOps.exif_transpose(opened), dict(getattr(opened, "tag_v2", {}))
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise ValueError(f"{said} has more than {PIXELS:,} pixels; make it smaller") from error
        except Exception as error:  # decoders of damaged pictures raise whatever their format ends in
            raise ValueError(
                f"{said} cannot be read as {', '.join(FORMATS)} ({type(error).__name__}: {watched.said(error)}); it is"
                " damaged or no picture"
            ) from error
    if width * height > PIXELS:
        raise ValueError(f"{said} has {width} x {height} pixels; at most {PIXELS:,} are read, so make it smaller")
    (bits, *_), zero = (tags.get(_BITS, (16,)), tags.get(_ZERO, 1)) if image.mode.startswith("I;16") else ((16,), 1)
    if (bits, zero) != (16, 1):
        raise ValueError(f"{said} has grey of {bits} bits, photometric {zero}; it must have 16, and 1: save it as PNG")
    return _pixels(image, said)


def _pixels(image: Image.Image, said: str) -> Pixels:
    """Pixels in [0, 1] of a decoded picture of any kind whose range is known."""
    if image.mode.startswith("I;16"):
        return np.array(image).astype(np.float32)[..., None] / np.float32(65535)
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"):
        raise ValueError(
            f"{said} has pixels of mode {image.mode!r}, whose range is not known; save it with 8 bits a channel, or 16"
            " of grey"
        )
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        alpha = np.array(image.convert("RGBA"))[..., 3]
        if alpha.min() < 255:
            raise ValueError(f"{said} has transparent pixels, which have no colour; put it on a background and save it")
    plain = np.array(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    return plain.reshape(*plain.shape[:2], -1).astype(np.float32) / np.float32(255)


# ------------------------------------------------------------------ one shape


def _cut(pixels: Pixels, sides: tuple[int, int] | None) -> Float32[np.ndarray, "rows columns channels"]:
    """The largest centred part that has the aspect of the asked sides, resized to them; as it is where none are."""
    if sides is None or pixels.shape[:2] == sides:
        return pixels
    (height, width), (tall, wide) = pixels.shape[:2], sides
    cut = min(height, max(1, width * tall // wide)), min(width, max(1, height * wide // tall))
    top, left = (height - cut[0]) // 2, (width - cut[1]) // 2
    part = pixels[top : top + cut[0], left : left + cut[1]]
    planes = [Image.fromarray(np.ascontiguousarray(part[..., c])) for c in range(part.shape[-1])]
    resized = [np.array(plane.resize((wide, tall), Image.Resampling.BICUBIC)) for plane in planes]
    return np.stack(resized, -1).clip(0, 1)


def _batch(
    pictures: Sequence[np.ndarray], names: Sequence[str], sides: tuple[int, int] | None, channels: int | None,
    source: str,
) -> Float32[torch.Tensor, "batch channels height width"]:  # fmt: skip
    """Pictures of one shape and as many channels as asked."""
    most = max(p.shape[-1] for p in pictures)
    if channels is not None and most not in (1, 3):
        raise ValueError(f"channels is {channels}, but pictures of {source} have {most}; leave it out, or save 1 or 3")
    pictures = [_cut(_with(p, channels or most), sides) for p in pictures]
    for name, p in zip(names, pictures, strict=True):
        if p.shape != pictures[0].shape:
            one, other = (f"{at} {q.shape[0]} x {q.shape[1]}" for at, q in ((names[0], pictures[0]), (name, p)))
            raise ValueError(f"size is None, but pictures of {source} have several ({one}, {other}); give a size")
    return torch.from_numpy(np.stack(pictures).transpose(0, 3, 1, 2).copy())


def _with(pixels: Pixels, channels: int) -> Float32[np.ndarray, "height width {channels}"]:
    """Grey or coloured pixels."""
    if pixels.shape[-1] == channels:
        return pixels
    return pixels.repeat(3, -1) if channels == 3 else (pixels * _GREY).sum(-1, keepdims=True).clip(0, 1)
