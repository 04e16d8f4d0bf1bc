"""Law 4: the cache changes nothing but the time, and what has changed is never found in it."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from cases import CLASSES, CONFIGS, EVENT_FIELDS, make_case

from tljax import models, trees
from tljax.data import batching, ledger
from tljax.data.events import EventExamples, Histories
from tljax.data.images import ImageExamples, Preprocess
from tljax.data.stores import ArrayStore, ImageRef
from tljax.data.text import Ragged, TextExamples
from tljax.transfer import boundary
from tljax.transfer.cache import Cache, Pass

ROWS, LONGEST, BATCH = 23, 9, 8
CACHEABLE = ("feature_extraction", "last_k", "custom", "embeddings_frozen")


def texts(seed: int = 0) -> TextExamples:
    """Texts of 2 to 9 tokens."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, LONGEST + 1, ROWS)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = rng.integers(1, 60, offsets[-1]).astype(np.int32)
    return TextExamples(Ragged(ids, offsets), rng.integers(0, CLASSES, ROWS).astype(np.int32), str, 0)


def images(seed: int = 0, **options: Any) -> ImageExamples:
    """Pictures of 16 x 16 pixels."""
    rng = np.random.default_rng(seed)
    store = ArrayStore("a", rng.integers(0, 256, (ROWS, 16, 16, 3)).astype(np.uint8))
    labels = rng.integers(0, CLASSES, ROWS).astype(np.int32)
    return ImageExamples([ImageRef(store, i) for i in range(ROWS)], labels, str, Preprocess(16, **options))


def events(seed: int = 0) -> EventExamples:
    """Histories of 2 to 9 events, of most of which something is asked."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, LONGEST + 1, ROWS)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    n = int(offsets[-1])
    own = ledger.Ledger("a", {}, "card", "", np.arange(n), offsets, np.arange(ROWS))
    columns = {name: rng.integers(2, size, n).astype(np.int32) for name, size, _ in EVENT_FIELDS}
    columns["amount.number"] = rng.normal(size=n).astype(np.float32)
    asked = rng.random(n) < 0.8
    asked[offsets[:-1]] = True  # a window for each
    labels = rng.integers(0, CLASSES, n).astype(np.int32)
    return EventExamples(Histories("a", own, asked, columns, labels), "each", (), LONGEST, LONGEST - 1)


EXAMPLES = {"bert": texts, "vit": images, "events-each": events}


@pytest.fixture(params=list(EXAMPLES))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def plans(examples: Any, epoch: int = 0) -> list[batching.Planned]:
    return batching.plan(0, epoch, ROWS, examples.lengths, BATCH, (4, LONGEST))


def losses(case: Any, examples: Any, start: int = 0, seeds: tuple[int | None, ...] = (None, None)) -> np.ndarray:
    """The losses of two epochs, and after them the norm of all that trains."""
    now, step, found = case.state(), case.step(start=start), []
    for epoch, seed in enumerate(seeds):
        for plan in plans(examples, epoch):
            batch = batching.collate(examples, plan, BATCH, seed)
            now, metrics = step(now, {name: batch[name] for name in ("inputs", "labels", "weights")})
            found.append(float(metrics["loss"]))
    return np.array(found)


def kept(case: Any, examples: Any, cache: Cache, stages: Any = None, seeds: Any = (None,), **options: Any) -> Any:
    made = Pass(case.backbone, trees.flatten(case.params), 5, **options)
    return made(cache, examples, stages or [case.plan.lowest], seeds)


@pytest.mark.parametrize("strategy", CACHEABLE)
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_training_from_the_cache_gives_the_losses_of_training_without(family, strategy, where, tmp_path):
    case, examples = make_case(family, strategy, dropout=0.1), EXAMPLES[family]()
    cache = Cache(tmp_path if where == "disk" else None)
    cached = kept(case, examples, cache)[case.plan.lowest]
    # float32 products of batches of other sizes and paddings; a wrong row or mask is 1e-2 and more off
    np.testing.assert_allclose(losses(case, cached, case.plan.lowest), losses(case, examples), rtol=2e-5)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_one_pass_gives_the_activations_at_every_stage(family, stage, tmp_path):
    case, examples = make_case(family, "full"), EXAMPLES[family]()
    together, alone = (kept(case, examples, Cache(), stages) for stages in ([1, 2, 3], [stage]))
    rows = np.array([3, 0, 22])
    for name, array in together[stage].gather(rows, LONGEST).items():
        np.testing.assert_array_equal(array, alone[stage].gather(rows, LONGEST)[name])


def test_shards_join_without_a_seam(family, monkeypatch):
    case, examples = make_case(family, "last_k"), EXAMPLES[family]()
    whole = kept(case, examples, Cache())[case.plan.lowest]
    monkeypatch.setattr(Pass, "_per_shard", lambda *of: 5)
    parts = kept(case, examples, Cache())[case.plan.lowest]
    assert len(parts.views[None]) == 5
    assert len(parts) == ROWS
    rows = np.arange(ROWS)[::-1]
    for name, array in whole.gather(rows, LONGEST).items():
        np.testing.assert_allclose(parts.gather(rows, LONGEST)[name], array, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("examples", "most", "count"), [(15_000, 8192, 2), (8192, 8192, 1), (8193, 8192, 2),
                                                         (1, 64, 1), (700, 100, 7), (65, 1, 2)])  # fmt: skip
def test_shards_are_even_and_no_longer_than_may_be(monkeypatch, examples, most, count):
    """One of a few rows behind full ones would be padded batches for nothing."""
    case = make_case("vit", "last_k")
    monkeypatch.setattr("tljax.transfer.cache.SHARD_BYTES", most * boundary.largest(case.backbone, 1))
    long = Pass(case.backbone, {}, 5)._per_shard(examples, 0)
    assert -(-examples // long) == count
    assert long <= max(most, 64)  # a shard that is kept has 64 at least
    assert count * long - examples < count, "the last is as long as the others, but for the rest of the division"


def passes(case: Any, examples: Any, folder: Path, **options: Any) -> int:
    """How many examples go through the trunk until the activations are there."""
    seen: list[int] = []
    kept(case, examples, Cache(folder), show=seen.append, **options)
    return sum(seen)


def test_a_second_run_starts_from_the_disk(family, tmp_path):
    case = make_case(family, "last_k")
    assert passes(case, EXAMPLES[family](), tmp_path) == ROWS
    assert passes(case, EXAMPLES[family](), tmp_path) == 0
    unlike = make_case(family, "last_k")
    head = unlike.params["score" if family.startswith("events") else "classifier"]
    head["kernel"] += 1.0  # above the stage: none of the cache's business
    assert passes(unlike, EXAMPLES[family](), tmp_path) == 0
    relabelled = EXAMPLES[family]()
    if family.startswith("events"):
        own = relabelled.histories
        relabelled.histories = dataclasses.replace(own, labels=own.labels[::-1])
    else:
        relabelled.labels = relabelled.labels[::-1]
    assert passes(case, relabelled, tmp_path) == 0


def flipped(leaf: Any) -> Any:
    """One bit of one number changed, the lowest."""
    bits = np.array(leaf).reshape(-1).view(np.uint32)
    bits[-1] ^= 1
    return jax.numpy.asarray(bits.view(np.float32).reshape(leaf.shape))


def test_one_bit_of_a_weight_makes_it_stale(family, tmp_path):
    case = make_case(family, "last_k")
    assert passes(case, EXAMPLES[family](), tmp_path) == ROWS
    flat = trees.flatten(case.params)
    for path in list(boundary.below(case.backbone, flat, case.plan.lowest))[:: 3 if family == "vit" else 4]:
        changed = dataclasses.replace(case, params=trees.unflatten({**flat, path: flipped(flat[path])}))
        assert passes(changed, EXAMPLES[family](), tmp_path) == ROWS, path


def test_a_network_of_the_same_weights_makes_it_stale(tmp_path):
    case = make_case("bert", "last_k")
    assert passes(case, texts(), tmp_path) == ROWS
    for field, value in (("hidden_act", "relu"), ("num_attention_heads", 2), ("layer_norm_eps", 1e-6)):
        other = models.build({**CONFIGS["bert"], field: value}, num_labels=CLASSES)
        assert passes(dataclasses.replace(case, backbone=other), texts(), tmp_path) == ROWS, field


def test_one_token_makes_it_stale(tmp_path):
    case, changed = make_case("bert", "last_k"), texts()
    assert passes(case, texts(), tmp_path) == ROWS
    changed.ragged.ids[-1] += 1
    assert passes(case, changed, tmp_path) == ROWS
    moved = texts()
    moved.ragged.offsets[1] += 1
    assert passes(case, TextExamples(moved.ragged, moved.labels, str, 0), tmp_path) == ROWS
    assert passes(case, TextExamples(texts().ragged, None, str, 1), tmp_path) == ROWS  # another padding


def test_one_pixel_or_field_of_preprocessing_makes_it_stale(tmp_path):
    case, changed = make_case("vit", "last_k"), images()
    assert passes(case, images(), tmp_path) == ROWS
    changed.refs[0].store.images[-1, -1, -1, -1] ^= 1
    assert passes(case, changed, tmp_path) == ROWS
    other = {"mean": (0.5, 0.5, 0.4), "std": (0.5, 0.4, 0.5), "resample": 3, "resize": "crop"}
    for field, value in other.items():
        assert passes(case, images(**{field: value}), tmp_path) == ROWS, field


def test_the_precision_it_is_kept_in_is_part_of_the_key(tmp_path):
    case = make_case("bert", "last_k")
    assert passes(case, texts(), tmp_path) == ROWS
    assert passes(case, texts(), tmp_path, dtype="bfloat16") == ROWS


def test_half_precision_takes_half_the_room_and_comes_close(family):
    case, examples = make_case(family, "last_k"), EXAMPLES[family]()
    at = case.plan.lowest
    full, half = (kept(case, examples, Cache(), dtype=dtype)[at] for dtype in ("", "bfloat16"))
    sizes = [made.views[None][0]["hidden"].nbytes for made in (full, half)]
    assert sizes[0] == 2 * sizes[1]
    np.testing.assert_allclose(losses(case, half, at), losses(case, examples), rtol=2e-2)


def test_views_are_the_first_epochs_of_training_without_a_cache():
    case = make_case("vit", "last_k")
    drawn = images(flip=True, crop_area=0.5)
    seeds = tuple(batching.epoch_seed(0, epoch) for epoch in range(2))
    cached = kept(case, drawn, Cache(), seeds=seeds)[case.plan.lowest]
    np.testing.assert_allclose(losses(case, cached, case.plan.lowest, seeds), losses(case, drawn, 0, seeds), rtol=2e-5)
    one, two = (cached.gather(np.arange(ROWS), 0, seed)["hidden"] for seed in seeds)
    assert not np.allclose(one, two)


def test_a_step_cannot_start_above_what_trains():
    case = make_case("bert", "last_k")
    with pytest.raises(ValueError, match="expected 0 to 2"):
        case.step(start=case.plan.lowest + 1)
