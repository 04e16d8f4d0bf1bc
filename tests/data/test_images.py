"""Images: every kind of file in one defined way, bounded memory, and augmentation by seed and index alone."""

import io
import json
import struct
import threading
import tracemalloc
import warnings
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tljax.config import DataConfig
from tljax.data import pixels
from tljax.data.batching import plan
from tljax.data.images import ImageExamples, Preprocess, normalise
from tljax.data.pipeline import batches
from tljax.data.sources import from_arrays, label_ids, read_records
from tljax.errors import DataError, WeightsError


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def grey(value: int, mode: str = "L") -> Image.Image:
    return Image.new(mode, (4, 3), value)


RED = Image.new("RGB", (4, 3), (200, 10, 20))
HALF = Image.new("RGBA", (4, 3), (200, 10, 20, 0))  # transparent: what it hides must not show
PALETTE = RED.convert("P", palette=Image.Palette.ADAPTIVE)
DEEP = Image.fromarray(np.full((3, 4), 0x8040, np.uint16))


def first_pixel(content: bytes) -> tuple[int, ...]:
    return tuple(int(v) for v in np.asarray(pixels.decode(content))[0, 0])


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header claims width x height, with a body of a few bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("name", "content", "expected", "tolerance"),  # tolerance: JPEG and WebP are lossy
    [
        ("png", encoded(RED, "PNG"), (200, 10, 20), 0),
        ("bmp", encoded(RED, "BMP"), (200, 10, 20), 0),
        ("webp", encoded(RED, "WEBP", lossless=True), (200, 10, 20), 0),
        ("jpeg", encoded(RED, "JPEG", quality=95), (200, 10, 20), 3),
        ("grey", encoded(grey(77), "PNG"), (77, 77, 77), 0),
        ("one_bit", encoded(grey(1, "1"), "PNG"), (255, 255, 255), 0),
        ("sixteen_bit", encoded(DEEP, "PNG"), (0x80, 0x80, 0x80), 0),
        ("palette", encoded(PALETTE, "PNG"), (200, 10, 20), 0),
        ("palette_alpha", encoded(PALETTE, "PNG", transparency=PALETTE.getpixel((0, 0))), (255, 255, 255), 0),
        ("alpha", encoded(HALF, "PNG"), (255, 255, 255), 0),
        ("grey_alpha", encoded(Image.new("LA", (4, 3), (9, 0)), "PNG"), (255, 255, 255), 0),
        ("webp_alpha", encoded(HALF, "WEBP", lossless=True), (255, 255, 255), 0),
        ("cmyk", encoded(Image.new("CMYK", (4, 3), (0, 255, 255, 0)), "JPEG", quality=95), (255, 0, 0), 3),
        ("animated", encoded(RED, "GIF", save_all=True, append_images=[grey(0).convert("RGB")]), (200, 10, 20), 0),
    ],
)
def test_modes(name: str, content: bytes, expected: tuple[int, ...], tolerance: int) -> None:
    image = pixels.decode(content)
    assert (image.mode, image.size) == ("RGB", (4, 3))
    assert max(abs(a - b) for a, b in zip(first_pixel(content), expected, strict=True)) <= tolerance


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns(orientation: int) -> None:
    """Each orientation as the EXIF standard defines it, written out as where the stored corner pixel goes."""
    stored = np.zeros((3, 4, 3), np.uint8)
    stored[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    shown = np.asarray(pixels.decode(encoded(Image.fromarray(stored), "PNG", exif=exif)))
    corners = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "tl", 6: "tr", 7: "br", 8: "bl"}
    assert shown.shape[:2] == ((3, 4) if orientation < 5 else (4, 3))
    at = {"tl": shown[0, 0], "tr": shown[0, -1], "bl": shown[-1, 0], "br": shown[-1, -1]}
    assert [name for name, pixel in at.items() if pixel[0] == 255] == [corners[orientation]]


NOISE = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)), "JPEG")
FAULTS: list[tuple[str, bytes, str]] = [
    ("truncated_jpeg", NOISE[:-900], "damaged or cut off"),
    ("truncated_png", encoded(Image.effect_noise((64, 64), 50), "PNG")[:-500], "damaged or cut off"),
    ("random", bytes(range(256)), "no image can be recognised"),
    ("empty", b"", "0 bytes"),
    ("lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ("html", b"\n<!DOCTYPE html><html>", "HTML page"),
    ("svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image can be recognised"),
    ("tiff", encoded(RED, "TIFF"), "no image can be recognised"),
    ("eps", encoded(RED, "EPS"), "no image can be recognised"),
    ("bomb", bomb(30000, 30000), "too many pixels"),
    ("over_limit", bomb(8001, 8000), "8001 x 8000 pixels, expected at most 64 million"),
    ("zero", bomb(0, 5), "no image can be recognised"),
]


@pytest.mark.parametrize(("name", "content", "words"), FAULTS, ids=[row[0] for row in FAULTS])
def test_faults(name: str, content: bytes, words: str) -> None:
    tracemalloc.start()
    with pytest.raises(pixels.ImageFault, match=words):
        pixels.decode(content)
    assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    tracemalloc.stop()


def test_a_bomb_that_pillow_only_warns_of_is_refused() -> None:
    content = bomb(10000, 10000)  # between Pillow's warning and its error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(pixels.ImageFault, match="10000 x 10000"):
            pixels.decode(content)
    with pytest.raises(pixels.ImageFault, match="too many pixels"):
        pixels.decode(content)


def test_at_the_limit_the_header_passes() -> None:
    with pytest.raises(pixels.ImageFault, match="damaged or cut off"):  # the body is short, the size is allowed
        pixels.decode(bomb(8000, 8000))


def test_a_very_long_image_takes_little_memory() -> None:
    line = Image.new("L", (4_000_000, 1), 9)
    for resize in ("squash", "crop"):
        assert Preprocess(32, resize).to_square(line.convert("RGB")).shape == (32, 32, 3)


def gradient(width: int, height: int) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))


def test_squash_and_crop() -> None:
    wide = gradient(300, 100)
    squashed, cropped = Preprocess(50).to_square(wide), Preprocess(50, "crop").to_square(wide)
    expected = np.asarray(wide.resize((50, 50), Image.Resampling.BILINEAR))
    assert np.array_equal(squashed, expected)
    # The short side to 50, then the middle 50 of 150; the same to rounding of the positions of the pixels.
    reference = np.asarray(wide.resize((150, 50), Image.Resampling.BILINEAR))[:, 50:100]
    assert abs(cropped.astype(int) - reference).max() <= 1
    bicubic = Preprocess(50, resample=3).to_square(wide)
    assert np.array_equal(bicubic, np.asarray(wide.resize((50, 50), Image.Resampling.BICUBIC)))


@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize(("width", "height"), [(100, 100), (300, 100), (1, 500), (7, 3)])
def test_random_boxes_lie_inside_and_keep_their_area(resize: str, width: int, height: int) -> None:
    process = Preprocess(32, resize, crop_area=0.3)
    fallback = Preprocess(32, resize).crop_box(width, height)
    for seed in range(300):
        left, top, right, bottom = box = process.crop_box(width, height, np.random.default_rng(seed))
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        area = (right - left) * (bottom - top) / (width * height)
        assert box == fallback or 0.3 - 1e-9 <= area <= 1 + 1e-9


def examples(n: int = 12, side: int = 20, cache_bytes: int = 2**31, **process: Any) -> ImageExamples:
    images = np.random.default_rng(0).integers(0, 256, (n, 17, 23, 3), np.uint8)
    records = from_arrays(images, list(range(n)), "noise")
    labels = np.arange(n, dtype=np.int32)
    return ImageExamples(records.inputs, labels, records.where, Preprocess(side, **process), cache_bytes)  # type: ignore[arg-type]


ALL = np.arange(12)


@pytest.mark.parametrize("process", [{"flip": True}, {"crop_area": 0.4}, {"flip": True, "crop_area": 0.4}])
def test_augmentation_is_a_function_of_seed_and_index(process: dict[str, Any]) -> None:
    whole = examples(**process).gather(ALL, 0, 5)["pixel_values"]
    order = np.random.default_rng(1).permutation(12)
    again = examples(**process).gather(order, 0, 5)["pixel_values"]
    assert np.array_equal(again, whole[order])
    assert not np.array_equal(examples(**process).gather(ALL, 0, 6)["pixel_values"], whole)
    plain = examples().gather(ALL)["pixel_values"]
    assert not np.array_equal(whole, plain)
    assert np.array_equal(examples(**process).gather(ALL, 0, None)["pixel_values"], plain)


def test_random_crops_are_never_kept() -> None:
    """One object over two epochs and an evaluation: what an earlier call decoded does not come back."""
    found, process = examples(crop_area=0.4), {"crop_area": 0.4}
    for seed in (5, 6, None, 5):
        expected = examples(**process).gather(ALL, 0, seed)["pixel_values"]
        assert np.array_equal(found.gather(ALL, 0, seed)["pixel_values"], expected)


def test_flip_mirrors_about_half() -> None:
    many, plain = examples(200, flip=True), examples(200).gather(np.arange(200))["pixel_values"]
    found = many.gather(np.arange(200), 0, 3)["pixel_values"]
    mirrored = [np.array_equal(a, b[:, ::-1]) for a, b in zip(found, plain, strict=True)]
    kept = [np.array_equal(a, b) for a, b in zip(found, plain, strict=True)]
    assert sum(mirrored) + sum(kept) == 200
    assert 70 < sum(mirrored) < 130


@pytest.mark.parametrize("process", [{}, {"flip": True}, {"flip": True, "crop_area": 0.5}])
def test_same_batches_with_and_without_cache_and_threads(process: dict[str, Any]) -> None:
    plans = plan(0, 0, 12, None, 5, (0,))

    def run(threads: int, cache_bytes: int) -> list[np.ndarray]:
        kept = examples(cache_bytes=cache_bytes, **process)
        epochs = [list(batches(kept, plans, 5, 9, threads=threads)) for _ in range(2)]
        assert all(np.array_equal(a["inputs"]["pixel_values"], b["inputs"]["pixel_values"])
                   for a, b in zip(*epochs, strict=True))  # fmt: skip
        return [b["inputs"]["pixel_values"] for b in epochs[0]]

    expected = run(0, 0)
    for threads, cache_bytes in ((0, 2**31), (3, 2**31), (3, 0)):
        found = run(threads, cache_bytes)
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_the_cache_decodes_once_and_within_its_budget() -> None:
    size = 12 * 20 * 20 * 3
    for cache_bytes, kept in ((size, True), (size - 1, False)):
        found = examples(cache_bytes=cache_bytes)
        found.gather(ALL)
        for ref in found.refs:
            ref.store.images = None  # type: ignore[attr-defined]
        if kept:
            found.gather(ALL)
        else:
            with pytest.raises(TypeError):
                found.gather(ALL)


def test_the_cache_is_not_handed_out() -> None:
    found = examples(flip=True)
    first = found.gather(ALL)["pixel_values"].copy()
    found.gather(ALL)["pixel_values"][:] = 0
    assert np.array_equal(found.gather(ALL)["pixel_values"], first)


def test_gather_from_many_threads() -> None:
    found, expected = examples(100), examples(100).gather(np.arange(100))["pixel_values"]
    wrong: list[int] = []

    def work() -> None:
        if not np.array_equal(found.gather(np.arange(100))["pixel_values"], expected):
            wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("threads", [0, 2])
def test_a_damaged_image_is_named_when_it_is_reached(tmp_path: Path, threads: int) -> None:
    (tmp_path / "c").mkdir()
    for i in range(6):
        (tmp_path / "c" / f"{i}.jpg").write_bytes(NOISE if i != 4 else NOISE[:-900])
    records = read_records(str(tmp_path), DataConfig(), "image")
    found = ImageExamples(records.inputs, label_ids(records, ("c",)), records.where, Preprocess(8))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"4\.jpg: damaged or cut off .*on_bad=skip"):
        list(batches(found, plan(0, 0, 6, None, 2, (0,)), 2, threads=threads))
    (tmp_path / "c" / "4.jpg").unlink()
    with pytest.raises(DataError, match=r"4\.jpg: No such file"):
        found.gather(np.array([4]))


def test_digest() -> None:
    same = [examples().digest(), examples().digest()]
    other = [examples(side=21).digest(), examples(11).digest(), examples(flip=True).digest()]
    assert len(set(same)) == 1
    assert len({*same, *other}) == 4
    relabelled = examples()
    assert relabelled.labels is not None
    relabelled.labels[0] = 5
    assert relabelled.digest() != same[0]


def test_digest_does_not_depend_on_where_the_data_lies(tmp_path: Path) -> None:
    marks = []
    for root in ("a", "b"):
        (tmp_path / root / "c").mkdir(parents=True)
        (tmp_path / root / "c" / "1.png").write_bytes(encoded(RED, "PNG"))
        records = read_records(str(tmp_path / root), DataConfig(), "image")
        marks.append(ImageExamples(records.inputs, None, records.where, Preprocess(8)).digest())  # type: ignore[arg-type]
    assert marks[0] == marks[1]


def test_normalise() -> None:
    x = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = (x / 255 - np.array(mean)) / np.array(std)
    found = jax.jit(lambda x: normalise(x, mean, std))(jnp.asarray(x))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)  # float32 against float64
    np.testing.assert_allclose(normalise(x, mean, std), expected, rtol=1e-5, atol=1e-6)


FOLDERS: list[tuple[dict[str, Any] | None, int, dict[str, Any]]] = [
    (None, 0, {"size": 224, "mean": (0.5,) * 3, "std": (0.5,) * 3, "resample": 2}),
    (None, 96, {"size": 96}),
    ({"size": {"height": 160, "width": 160}, "resample": 3}, 0, {"size": 160, "resample": 3}),
    ({"size": 192, "image_mean": [0.1, 0.2, 0.3]}, 0, {"size": 192, "mean": (0.1, 0.2, 0.3)}),
    ({"size": {"shortest_edge": 256}, "crop_size": {"height": 192}, "do_center_crop": True}, 0, {"size": 192}),
    ({"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": False}, 0, {"size": 256}),
    ({"do_normalize": False}, 0, {"mean": (0,) * 3, "std": (1,) * 3}),
    ({"rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": 1.0}, 0, {"mean": (0.5,) * 3, "std": (0.5,) * 3}),
]  # fmt: skip


@pytest.mark.parametrize(("values", "image_size", "expected"), FOLDERS)
def test_from_folder(tmp_path: Path, values: dict[str, Any] | None, image_size: int, expected: dict[str, Any]) -> None:
    if values is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    found = Preprocess.from_folder(tmp_path, image_size, DataConfig(resize="crop", flip=True, crop_area=0.5))
    assert {name: getattr(found, name) for name in expected} == {k: pytest.approx(v) for k, v in expected.items()}
    assert (found.resize, found.flip, found.crop_area) == ("crop", True, 0.5)


def test_from_folder_takes_the_size_from_the_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"image_size": 30}')
    assert Preprocess.from_folder(tmp_path).size == 30


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "found a list"),
        ('{"size": {"height": 3, "width": 4}}', "a square"),
        ('{"size": 1000000}', "pixels from 1 to 4096"),
        ('{"image_std": [1, 0, 1]}', "three numbers above 0"),
        ('{"image_mean": [1, NaN, 1]}', "three numbers"),
        ('{"resample": 9}', "a number from 0 to 5"),
        ('{"rescale_factor": 0}', "above 0"),
    ],
)
def test_from_folder_refuses(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(WeightsError, match=words):
        Preprocess.from_folder(tmp_path)
