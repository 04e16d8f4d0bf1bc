"""Whether and where activations are kept: the decision table, and the numbers that it is made of."""

import dataclasses
import os
import shutil
from pathlib import Path

import jax
import pytest
from cases import CONFIGS

from tljax import models
from tljax.config import CacheConfig
from tljax.errors import ConfigError
from tljax.transfer import boundary, worth
from tljax.transfer.worth import Load

PLACE = Path("/somewhere/activations")
MB = 10**6
# 20 epochs of a trunk that is worth keeping, on a CPU: 10,000 products a byte
LOAD = Load(("layer_2", "head"), 100 * MB, 1e8, 1e4, 20, 1, False)
AUGMENTED = {"augmented": True}
ROOM = {"disk": 200 * MB, "memory": 200 * MB}
NO_DISK, NO_ROOM = {"disk": 99 * MB, "memory": 200 * MB}, {"disk": 99 * MB, "memory": 98 * MB}

DECISIONS = [
    # asked, load, views, room, mode, and words of the reason
    ("auto", {}, 0, ROOM, "disk", "activations at layer_2 and head, 100 MB on disk (/somewhere/activations): instead "
                                  "of 20 passes through what is frozen, 1"),
    ("auto", {}, 0, NO_DISK, "memory", "activations at layer_2 and head, 100 MB in memory: instead of 20 passes"),
    ("auto", {}, 0, NO_ROOM, "off", "activations at layer_2 and head take 100 MB and there is room for 99 MB on disk, "
                                    "98 MB in memory"),
    ("auto", {"nbytes": 200 * MB}, 0, ROOM, "disk", "200 MB on disk"),  # exactly enough
    ("auto", {"nbytes": 200 * MB + 1}, 0, ROOM, "off", "there is room for 200 MB on disk"),
    ("auto", {"passes": 1}, 0, ROOM, "off", "the frozen part is run on the examples 1 x anyway"),
    ("auto", {"passes": 2}, 0, ROOM, "disk", "instead of 2 passes"),
    ("auto", {"products": 49.0 * 1e4}, 0, ROOM, "off", "what is frozen below layer_2 is sooner computed than read "
                                                       "(49 products a byte)"),
    ("auto", {"products": 50.0 * 1e4}, 0, ROOM, "disk", "on disk"),
    ("auto", {"products": 0.0, "each": 0.0}, 0, ROOM, "disk", "on disk"),
    ("auto", AUGMENTED, 0, ROOM, "off", "examples are drawn anew in every epoch (of images --config.cache.views=V"),
    ("auto", {**AUGMENTED, "views": 4}, 4, ROOM, "disk", "instead of 20 passes through what is frozen, 4"),
    ("auto", {**AUGMENTED, "views": 20}, 20, ROOM, "off", "run on the examples 20 x anyway"),
    ("off", {}, 0, ROOM, "off", "as asked"),
    ("off", AUGMENTED, 0, NO_ROOM, "off", "as asked"),
    ("disk", {}, 0, ROOM, "disk", "on disk"),
    ("disk", {"passes": 1}, 0, ROOM, "disk", "instead of 1 passes"),  # who asks for it gets it
    ("disk", {"products": 0.0}, 0, ROOM, "disk", "on disk"),
    ("disk", {**AUGMENTED, "views": 4}, 4, ROOM, "disk", "on disk"),
    ("memory", {}, 0, ROOM, "memory", "in memory"),
    ("memory", {}, 0, NO_DISK, "memory", "in memory"),
    ("memory", {"passes": 1, "products": 0.0}, 0, ROOM, "memory", "in memory"),
]  # fmt: skip


@pytest.fixture
def rooms(monkeypatch):
    def give(room):
        monkeypatch.setattr(worth, "room_on_disk", lambda folder, limit: room["disk"])
        monkeypatch.setattr(worth, "room_in_memory", lambda: room["memory"])

    return give


@pytest.mark.parametrize(("asked", "load", "views", "room", "mode", "words"), DECISIONS)
def test_decisions(rooms, asked, load, views, room, mode, words):
    rooms(room)
    made = worth.decide(CacheConfig(mode=asked, views=views), dataclasses.replace(LOAD, **load), PLACE)
    assert made.mode == mode
    assert made.why.startswith("cache: ")
    assert words in made.why


@pytest.mark.parametrize(("asked", "load", "room", "words"), [
    ("memory", {}, NO_ROOM, ("'memory', and room for 98 MB", "expected 100 MB for layer_2 and head",
                             "mode=disk or auto")),
    ("disk", {}, NO_DISK, ("'disk', and room for 99 MB", "expected 100 MB", "--config.cache.limit_gb")),
    ("memory", AUGMENTED, ROOM, ("'memory' with random crops or flips", "--config.cache.views=V")),
    ("disk", AUGMENTED, ROOM, ("'disk' with random crops or flips", "auto, off, or --config.cache.views=V")),
])  # fmt: skip
def test_what_was_asked_for_and_cannot_be_is_refused(rooms, asked, load, room, words):
    rooms(room)
    with pytest.raises(ConfigError) as caught:
        worth.decide(CacheConfig(mode=asked), dataclasses.replace(LOAD, **load), PLACE)
    assert caught.value.where == "--config.cache.mode"
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(("backend", "mode"), [("cpu", "disk"), ("gpu", "off"), ("tpu", "off")])
def test_a_fast_device_computes_more_while_it_waits(rooms, monkeypatch, backend, mode):
    rooms(ROOM)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert worth.decide(CacheConfig(), dataclasses.replace(LOAD, products=9_999e4), PLACE).mode == mode
    assert worth.decide(CacheConfig(), dataclasses.replace(LOAD, products=10_000e4), PLACE).mode == "disk"


@pytest.mark.parametrize(("setting", "own", "xdg", "expected"), [
    ("/a", "/b", "/c", "/a/activations"), ("", "/b", "/c", "/b/activations"), ("", "", "/c", "/c/tljax/activations"),
    ("", "", "", "/home/x/.cache/tljax/activations"), ("here", "", "", "{now}/here/activations"),
])  # fmt: skip
def test_the_folder(monkeypatch, tmp_path, setting, own, xdg, expected):
    monkeypatch.chdir(tmp_path)
    for name, value in {"TLJAX_CACHE": own, "XDG_CACHE_HOME": xdg, "HOME": "/home/x"}.items():
        monkeypatch.setenv(name, value)
    assert str(worth.default_folder(CacheConfig(folder=setting))) == expected.format(now=tmp_path)


@pytest.mark.parametrize(
    ("free", "limit_gb", "room"), [(10**9, 20.0, 5 * 10**8), (10**12, 20.0, 20 * 10**9), (0, 20.0, 0)]
)
def test_room_on_disk(monkeypatch, tmp_path, free, limit_gb, room):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(worth.shutil, "disk_usage", lambda path: usage._replace(free=free))
    assert worth.room_on_disk(tmp_path / "not" / "yet", limit_gb) == room


def test_no_room_where_nothing_may_be_written(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append(path))
    assert worth.room_on_disk(tmp_path / "not" / "yet", 20.0) == 0
    assert asked == [tmp_path]


@pytest.mark.parametrize(("text", "free"), [
    ("MemTotal: 9 kB\nMemAvailable:    1000 kB\n", 1000 * 1024), ("MemTotal: 9 kB\n", None), ("MemAvailable:\n", None),
    ("MemAvailable: many kB\n", None), (None, None),
])  # fmt: skip
def test_room_in_memory(monkeypatch, text, free):
    def read(self, **options):
        if text is None:
            raise FileNotFoundError
        return text

    monkeypatch.setattr(Path, "read_text", read)
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}.__getitem__)
    assert worth.room_in_memory() == int(0.4 * (free if free is not None else 4096 * 1000 // 2))


@pytest.mark.parametrize(("size", "text"), [
    (0, "0 kB"), (1500, "2 kB"), (999_499, "999 kB"), (1_000_000, "1 MB"), (2_340_000, "2.34 MB"),
    (254_000_000, "254 MB"),
    (999_900_000, "1,000 MB"), (1_500_000_000, "1.5 GB"), (1_234_000_000_000, "1,234 GB"),
])  # fmt: skip
def test_sizes_for_people(size, text):
    assert worth.shown(size) == text


WIDE = {"hidden_size": 128, "intermediate_size": 512}
TOKENS = 16


@pytest.mark.parametrize("family", list(CONFIGS))
def test_products_are_those_counted_by_hand(family):
    """Each layer: four D x D products and two of D x F for every token, and two of T x T x D for attention."""
    backbone = models.build({**CONFIGS[family], **WIDE}, num_labels=5)
    d, f = WIDE["hidden_size"], WIDE["intermediate_size"]
    t = TOKENS if family == "bert" else 16 + 1
    layer = 2 * t * (4 * d * d + 2 * d * f + 2 * t * d)
    patches = 0 if family == "bert" else 2 * 16 * (4 * 4 * 3) * d
    each = [worth.products(backbone, stage, TOKENS) for stage in (1, 2, 3)]  # the embeddings lie below stage 1
    for number, found in enumerate(each):
        # elementwise work: 15 or so for each number of the hidden layer and of attention
        assert patches + number * layer <= found <= 1.05 * (patches + number * layer) + 60 * t * d
    assert each[2] - each[1] == pytest.approx(each[1] - each[0], rel=1e-6)


def test_what_is_asked_of_a_cache():
    backbone = models.build(CONFIGS["bert"], num_labels=5)
    names = {name: number for number, name in enumerate(backbone.stage_names)}
    stages, examples = (names["head"], names["layer_2"]), [(10, 73), (4, 20)]
    load = worth.load_of(backbone, stages, "", examples, 7, 1, False)
    token, pooled = 64 * 4, 64 * 4  # float32
    masks = sum(leaf.nbytes(1, 1) for leaf in boundary.layout(backbone, names["layer_2"]) if leaf.name != "hidden")
    assert load.names == ("layer_2", "head")
    assert load.nbytes == (73 + 20) * (token + masks) + (10 + 4) * pooled
    assert load.each == 73 * (token + masks) / 10
    assert load.products == worth.products(backbone, names["layer_2"], 7)
    assert (load.passes, load.views, load.augmented) == (7, 1, False)
    three = worth.load_of(backbone, stages, "", examples, 7, 3, True)
    assert three.nbytes == (3 * 73 + 20) * (token + masks) + (3 * 10 + 4) * pooled
    half = worth.load_of(backbone, stages, "bfloat16", examples, 7, 1, False)
    assert half.nbytes == (73 + 20) * (token // 2 + masks) + (10 + 4) * pooled // 2
