"""Image examples: references become batches of uint8 squares; normalisation waits for the device.

Shapes: B batch, H = W side in pixels, 3 channels RGB.
"""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import PIL

from tljax.data import pixels
from tljax.data.batching import OneAnswer
from tljax.data.preprocess import Preprocess, generator
from tljax.data.stores import ImageRef
from tljax.errors import DataError, printable

__all__ = ["ImageExamples", "Preprocess", "normalise"]

CACHE_BYTES = 2 * 2**30  # of decoded squares in memory; a larger set is decoded anew in each epoch


class ImageExamples(OneAnswer):
    """n images, decoded when a batch asks for them.

    Without random crops the squares are the same in every epoch, so the first decoding is kept where all of them
    together fit `cache_bytes`. Safe to use from several threads.
    """

    lengths = None  # images have no length: one shape

    def __init__(self, refs: Sequence[ImageRef], labels: np.ndarray | None, where: Callable[[int], str],
                 preprocess: Preprocess, cache_bytes: int = CACHE_BYTES):  # fmt: skip
        if labels is not None and len(labels) != len(refs):
            raise ValueError(f"{len(refs)} images and {len(labels)} labels")
        self.refs, self.where, self.preprocess = refs, where, preprocess
        self.labels = None if labels is None else np.asarray(labels, np.int32)
        square = (preprocess.size, preprocess.size, 3)
        keep = not preprocess.random_crop and len(refs) * int(np.prod(square)) <= cache_bytes
        # np.empty takes no memory before it is written to. Two threads may decode the same image at once; both
        # write the same bytes, and `_kept` is set only after them, so no lock is needed.
        self._squares = np.empty((len(refs), *square), np.uint8) if keep else None
        self._kept = np.zeros(len(refs), bool)

    def __len__(self) -> int:
        return len(self.refs)

    def gather(self, indices: np.ndarray, length: int = 0, seed: int | None = None) -> dict[str, np.ndarray]:
        """The images at these indices.

        Args:
          indices: (B,) example indices.
          length: not used; images have one shape.
          seed: of augmentation, for example one an epoch; None: evaluation, without augmentation.

        Returns:
          {"pixel_values": uint8 (B, H, W, 3)}; what example i looks like is a function of (seed, i) alone.

        Raises:
          DataError: an image that cannot be read or decoded, by name.
        """
        size = self.preprocess.size
        batch = np.empty((len(indices), size, size, 3), np.uint8)
        for row, i in enumerate(int(i) for i in indices):
            augment = self.preprocess.flip or self.preprocess.random_crop
            rng = generator(seed, i) if seed is not None and augment else None
            mirrored = rng is not None and self.preprocess.flip and rng.random() < 0.5
            square = self._square(i, rng)
            batch[row] = square[:, ::-1] if mirrored else square
        return {"pixel_values": batch}

    def _square(self, i: int, rng: np.random.Generator | None) -> np.ndarray:
        if self._squares is not None and self._kept[i]:
            return self._squares[i]
        ref = self.refs[i]
        try:
            square = self.preprocess.to_square(pixels.decode(ref.read()), rng)
        except (pixels.ImageFault, OSError) as error:
            reason = getattr(error, "strerror", None) or error
            fix = "mend it, or leave such images out with --config.data.on_bad=skip"
            place, name = self.where(i), printable(ref.name)
            raise DataError(place, f"{reason}" if place == name else f"image {name}: {reason}", fix=fix) from None
        if self._squares is not None:
            self._squares[i] = square
            self._kept[i] = True
        return square

    def content(self) -> str:
        """SHA-256 over all that a network sees: the images' own bytes and what is done to them. Reads every image."""
        with ThreadPoolExecutor() as pool:
            marks = list(pool.map(_content, self.refs))
        return hashlib.sha256(f"{self.preprocess!r} {PIL.__version__}".encode() + b"".join(marks)).hexdigest()

    def digest(self) -> str:
        """SHA-256 over the images' names and sizes (in a zip: checksums), labels and preprocessing; equal on
        machines where the data lies in different places, and it reads no image file."""
        mark = hashlib.sha256(repr(self.preprocess).encode())
        for ref in self.refs:
            mark.update(ref.store.stamp(ref.key).encode("utf-8", "surrogateescape") + b"\n")
        mark.update(b"" if self.labels is None else self.labels.tobytes())
        return mark.hexdigest()


def _content(ref: ImageRef) -> bytes:
    """SHA-256 of an image as it is stored; of one that cannot be read, none: who decodes it says so."""
    try:
        found = ref.read()
    except OSError:
        return b"unreadable"
    shape = repr(found.shape).encode() if isinstance(found, np.ndarray) else b""
    return hashlib.sha256(shape + bytes(found)).digest()


def normalise(x: Any, mean: Sequence[float], std: Sequence[float]) -> Any:
    """(x / 255 - mean) / std for uint8 (B, H, W, 3), as float32; on the device, for jax and numpy arrays alike."""
    shape = (1,) * (x.ndim - 1) + (3,)
    mean_, std_ = np.asarray(mean, np.float32).reshape(shape), np.asarray(std, np.float32).reshape(shape)
    return (x.astype(np.float32) / np.float32(255) - mean_) / std_
