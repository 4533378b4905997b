"""The pinned table: which files make up a data set, where they come from, their SHA-256, packed and unpacked.

Digests were computed from the original files and exact pixels; that of the CIFAR-10 archive is the published one.
"""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class File:
    """One file to find."""

    name: str  # as it is published
    sha256: str  # of the published file
    content: str  # SHA-256 of what it unpacks to; "" where none is published, and the packed file alone is accepted
    size: int  # bytes of the published file
    urls: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """A data set: its files, the folders other tools keep it in, its classes, image size, reader and largest pixel.

    `made` names how its images are made of those in the files, with a version, if they are not these.
    """

    files: tuple[File, ...]
    folders: tuple[str, ...]
    classes: tuple[str, ...]
    size: tuple[int, int, int]
    reader: str
    scale: float = 255.0
    made: str = ""


def _idx(urls: tuple[str, ...], *pins: tuple[str, str, int]) -> tuple[File, ...]:
    """The four files of an MNIST-like data set, by packed digest, unpacked digest and size."""
    names = [f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    return tuple(File(name, *pin, tuple(url + name for url in urls)) for name, pin in zip(names, pins, strict=True))


#: SHA-256 of the unpacked first 4,000 records, however they were obtained.
CIFAR10_4K_RECORDS = "0993cf8b8e43bc207603aef9787006995746513f5e3fa5a52e06d1b069926330"

#: SHA-256 of the pixels (uint8, 0 to 16) that ship inside scikit-learn.
DIGITS_PIXELS = "8f26b2bd9d135c256808f68f14fdabddde6d9c7f869ae419704b051f0f14b3b3"

_MNIST = _idx(  # CC BY-SA 3.0
    ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
    ("440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
     "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db", 9_912_422),
    ("3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
     "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5", 28_881),
    ("8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
     "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7", 1_648_877),
    ("f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
     "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2", 4_542),
)  # fmt: skip
_FASHION = _idx(  # MIT licence
    ("https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/b2617bb6d3ffa2e429640350f613e3291e10b141/data/fashion/",
     "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"),
    ("3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
     "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888", 26_421_880),
    ("a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
     "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9", 29_515),
    ("346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
     "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b", 4_422_102),
    ("67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
     "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34", 5_148),
)  # fmt: skip
_CIFAR = File(  # licence not stated by its authors
    "cifar-10-binary.tar.gz", "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd", "", 170_052_171,
    ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
)  # fmt: skip
_CIFAR_4K = File(
    "data_batch_1.first4000.bin.xz", "ac4ba4529b64050c3834b115802494bc12d2d4fbf2471a5f09f8d051f6b386ed",
    CIFAR10_4K_RECORDS, 9_305_168,
)  # fmt: skip

_NUMERALS = tuple("0123456789")
_CLOTHES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_OBJECTS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

SOURCES: dict[str, Source] = {
    "digits": Source((), (), _NUMERALS, (1, 8, 8), "digits", scale=16.0),
    "mnist": Source(_MNIST, ("mnist", "MNIST/raw"), _NUMERALS, (1, 28, 28), "idx"),
    "two_digits": Source(
        _MNIST, ("mnist", "MNIST/raw"), _NUMERALS, (1, 28, 28), "two_digits", made="two digits side by side, 1"
    ),
    "fashion_mnist": Source(_FASHION, ("fashion_mnist", "FashionMNIST/raw"), _CLOTHES, (1, 28, 28), "idx"),
    "cifar10": Source((_CIFAR,), ("cifar10", "cifar-10-batches-bin"), _OBJECTS, (3, 32, 32), "cifar_archive"),
    "cifar10_4k": Source((_CIFAR_4K,), ("cifar10", "cifar10_4k"), _OBJECTS, (3, 32, 32), "cifar_slice"),
}


def fingerprint(name: str) -> str:
    """Short digest of what all files of a data set unpack to (of CIFAR-10's archive itself); part of every key.

    Example:
        >>> len(fingerprint("digits")), fingerprint("digits") == fingerprint("mnist")
        (12, False)
    """
    source = SOURCES[name]
    contents = [file.content or file.sha256 for file in source.files] or [DIGITS_PIXELS]
    contents += [source.made] if source.made else []
    return (contents[0] if len(contents) == 1 else hashlib.sha256("".join(contents).encode()).hexdigest())[:12]
