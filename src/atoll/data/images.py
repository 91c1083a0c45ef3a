"""MNIST and Fashion-MNIST: 60 000 + 10 000 grey images of 28 x 28, ten classes, idx files.

LeCun, Cortes, Burges 1998, "The MNIST database of handwritten digits"; Xiao, Rasul, Vollgraf 2017,
"Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms".
"""

from __future__ import annotations

import gzip
import zlib
from math import prod
from pathlib import Path

import numpy as np

from atoll.core.errors import DataError
from atoll.core.registry import part

from .examples import Array, Dataset, Examples
from .fetch import File, locate

_MNIST = "https://storage.googleapis.com/cvdf-datasets/mnist/"
_FASHION = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
_NAMES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
_SHAPES = ((60_000, 28, 28), (60_000,), (10_000, 28, 28), (10_000,))
_MNIST_FILES = (
    (9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
    (28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
    (1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
    (4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
)
_FASHION_FILES = (
    (26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
    (29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
    (4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
    (5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
)
_CLOTHES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")


@part("data")
def mnist(*, image: bool = False) -> Dataset:
    """Handwritten digits, 60 000 + 10 000 images of 28 x 28, values 0..1.

    x is (n, 784) float32, or (n, 1, 28, 28) with `image=True`. Raises DataError if no copy is at hand.
    """
    files = [File(n, _MNIST + n, *f) for n, f in zip(_NAMES, _MNIST_FILES, strict=True)]
    digits = tuple("0123456789")
    return _load("mnist", files, digits, "LeCun, Cortes, Burges", "CC BY-SA 3.0", image=image)


@part("data")
def fashion_mnist(*, image: bool = False) -> Dataset:
    """Grey pictures of clothes in the sizes of MNIST, values 0..1.

    x is (n, 784) float32, or (n, 1, 28, 28) with `image=True`. Raises DataError if no copy is at hand.
    """
    files = [File(n, _FASHION + n, *f) for n, f in zip(_NAMES, _FASHION_FILES, strict=True)]
    return _load("fashion_mnist", files, _CLOTHES, "Zalando Research", "MIT", image=image)


def _load(
    name: str, files: list[File], classes: tuple[str, ...], source: str, licence: str, *, image: bool
) -> Dataset:
    paths = locate(name, files)
    arrays = [idx(paths[f], shape) for f, shape in zip(_NAMES, _SHAPES, strict=True)]
    shape = (-1, 1, 28, 28) if image else (-1, 784)
    train, test = (
        Examples((pixels / np.float32(255)).reshape(shape), labels.astype(np.int64))
        for pixels, labels in (arrays[:2], arrays[2:])
    )
    return Dataset(name, train, test, classes=classes, source=source, licence=licence)


def idx(path: Path, shape: tuple[int, ...]) -> Array:
    """The uint8 array of one idx file (plain or .gz), which must have exactly this shape.

    Format: two zero bytes, 0x08 for uint8, the number of dimensions, each dimension as a big-endian
    32-bit integer, then the bytes. Header and shape are compared before anything is read.
    Raises DataError if the file is damaged or holds another shape.
    """
    head = bytes((0, 0, 8, len(shape))) + b"".join(n.to_bytes(4, "big") for n in shape)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            if file.read(len(head)) != head:
                raise DataError(f"{path.name} is no idx file of uint8 with shape {shape}: fetch it again")
            body = file.read(prod(shape))
            if len(body) != prod(shape) or file.read(1):
                raise DataError(
                    f"{path.name} should hold {prod(shape)} values after its header: fetch it again"
                )
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path.name} cannot be read ({error}): fetch it again") from error
    return np.frombuffer(body, np.uint8).reshape(shape)
