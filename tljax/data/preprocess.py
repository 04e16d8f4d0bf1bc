"""Preprocessing of images as their checkpoint expects it, and the random crop and flip of training."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tljax.config import DataConfig
from tljax.errors import WeightsError

ASPECT = (3 / 4, 4 / 3)  # of random crops: Szegedy et al. 2014, as in torchvision's RandomResizedCrop
TRIES = 10  # draws before the crop falls back to the whole image
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """How an image becomes (size, size, 3) uint8, and with which mean and deviation it is normalised later.

    Attributes:
      size: side of the square, pixels.
      resize: "squash": the whole image to the square; "crop": short side to the square, centre kept.
      flip: training: mirror left-right with probability 1/2.
      crop_area: training: smallest share of the area in a random crop; 1: none.
      mean, std: of pixels in 0..1, by channel.
      resample: Pillow's number of the filter (2 bilinear, 3 bicubic).
    """

    size: int
    resize: str = "squash"
    flip: bool = False
    crop_area: float = 1.0
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    resample: int = 2

    @property
    def random_crop(self) -> bool:
        return self.crop_area < 1

    @classmethod
    def from_folder(cls, folder: str | Path, image_size: int = 0, data: DataConfig | None = None) -> "Preprocess":
        """As preprocessor_config.json in a checkpoint's folder says; mean and deviation 0.5 where it does not.

        Args:
          folder: the checkpoint.
          image_size: side in pixels; 0: the checkpoint's own, 224 where it names none.
          data: resize, flip and crop_area.

        Raises:
          WeightsError: a file that cannot be read, or values that make no sense.
        """
        data = data or DataConfig()
        path = Path(folder) / "preprocessor_config.json"
        values = _read_json(path)
        size = image_size or _side(path, values) or _side(path, _read_json(Path(folder) / "config.json")) or 224
        mean, std = (_channels(path, values, name) for name in ("image_mean", "image_std"))
        if values.get("do_normalize") is False:
            mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        scale = 1.0 if values.get("do_rescale") is False else values.get("rescale_factor", 1 / 255)
        if not isinstance(scale, int | float) or not scale > 0:
            raise WeightsError(str(path), f"rescale_factor is {scale!r}", "a number above 0")
        if not math.isclose(scale * 255, 1, rel_tol=1e-6):
            # (x * scale - mean) / std is (x / 255 - m) / s with m and s scaled: one formula for all checkpoints.
            mean, std = (tuple(v / (255 * scale) for v in channels) for channels in (mean, std))  # type: ignore[assignment]
        resample = values.get("resample", 2)
        if resample not in range(6) or isinstance(resample, bool):
            raise WeightsError(str(path), f"resample is {resample!r}", "a number from 0 to 5")
        return cls(size, data.resize, data.flip, data.crop_area, mean, std, resample)

    def crop_box(self, width: int, height: int, rng: np.random.Generator | None = None) -> Box:
        """The part of a width x height image that becomes the square; at random with `rng` and crop_area < 1."""
        squash = self.resize == "squash"
        if rng is not None and self.random_crop:
            for _ in range(TRIES):
                area = rng.uniform(self.crop_area, 1)
                ratio = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
                # squash distorts the whole image anyway, so there the ratio is relative to the image's own.
                frame_w, frame_h = (width, height) if squash else (math.sqrt(width * height),) * 2
                w, h = frame_w * math.sqrt(area * ratio), frame_h * math.sqrt(area / ratio)
                if w <= width and h <= height:
                    left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
                    return left, top, min(left + w, width), min(top + h, height)
        if squash:
            return 0, 0, width, height
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return left, top, left + side, top + side

    def to_square(self, image: Image.Image, rng: np.random.Generator | None = None) -> np.ndarray:
        """uint8 (size, size, 3). Crops while it resizes, so a very long image takes no more memory than another."""
        box = self.crop_box(*image.size, rng)
        return np.asarray(image.resize((self.size, self.size), Image.Resampling(self.resample), box=box))


def generator(seed: int, index: int) -> np.random.Generator:
    """The random numbers of one example: a function of (seed, index) alone, whatever thread asks."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, index])))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):  # a checkpoint may be one file
        return {}
    except (ValueError, OSError, RecursionError) as error:
        raise WeightsError(str(path), f"cannot be read as JSON ({error})", "the checkpoint's own file") from None
    if not isinstance(values, dict):
        raise WeightsError(str(path), f"found a {type(values).__name__}", "an object")
    return values


def _side(path: Path, values: dict[str, Any]) -> int:
    """The side of the square that the network sees, 0 where the file does not say."""
    cropped = values.get("do_center_crop") and values.get("crop_size")
    side = values.get("crop_size") if cropped else values.get("size", values.get("image_size"))
    if isinstance(side, dict):
        sides = {side[name] for name in ("height", "width", "shortest_edge") if name in side}
        if len(sides) != 1:
            raise WeightsError(str(path), f"size is {side}", "a square")
        side = sides.pop()
    if side is None:
        return 0
    if not isinstance(side, int) or isinstance(side, bool) or not 1 <= side <= 4096:
        raise WeightsError(str(path), f"size is {side!r}", "pixels from 1 to 4096")
    return side


def _channels(path: Path, values: dict[str, Any], name: str) -> tuple[float, float, float]:
    found = values.get(name, 0.5)
    channels = [found] * 3 if isinstance(found, int | float) else found
    numbers = isinstance(channels, list) and all(isinstance(v, int | float) and math.isfinite(v) for v in channels)
    if not numbers or len(channels) != 3 or (name == "image_std" and min(channels) <= 0):
        raise WeightsError(str(path), f"{name} is {found!r}", "three numbers" + (" above 0" * (name == "image_std")))
    red, green, blue = map(float, channels)
    return red, green, blue
