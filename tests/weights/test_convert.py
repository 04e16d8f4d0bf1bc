"""Names on both sides are accounted for exactly once; every mismatch is in one message and nothing is loaded."""

import json

import jax
import msgpack
import numpy as np
import pytest

from tljax import models, trees
from tljax.errors import WeightsError
from tljax.weights import convert, files, rules
from tljax.weights.families import FAMILIES

QUERY = "bert.encoder.layer.0.attention.self.query.weight"


def target(folder, pooling="pooler", **fields):
    config = {**json.loads((folder / "config.json").read_text()), **fields}
    return models.build(config, num_labels=3, pooling=pooling).shapes()


def converted(folder, family="bert", **options):
    return convert.convert(files.open_weights(folder), family, target(folder), **options)


def head(path: str) -> bool:
    return path.startswith("classifier/")


@pytest.mark.parametrize("family", ["bert", "vit"])
def test_there_and_back_is_bit_identical(tiny, family):
    folder = tiny(family)
    flat, report = converted(folder, family)
    assert report == convert.Report((), (), ())
    assert list(flat) == sorted(target(folder))
    assert {p: leaf.shape for p, leaf in flat.items()} == {p: s.shape for p, s in target(folder).items()}
    tensors = convert.to_safetensors(flat, family)
    weights = files.open_weights(folder)
    assert tensors.keys() == weights.names.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(array, weights.read(name))


@pytest.mark.parametrize(("kind", "axes"), [("conv", (2, 3, 1, 0)), ("dense", (1, 0))])
def test_axes_move_as_the_names_say(kind, axes):
    """torch keeps (out, in, height, width) and (out, in); Flax (height, width, in, out) and (in, out)."""
    table = FAMILIES["vit"]
    leaves = {"conv": "embeddings/patch_embeddings/projection", "dense": "encoder/layer/0/intermediate/dense"}
    stored = np.zeros((2, 3, 5, 7)[: len(axes)])
    assert rules.lookup(table, f"vit/{leaves[kind]}/kernel", len(axes))[1] == axes
    assert np.transpose(stored, axes).shape == tuple(stored.shape[a] for a in axes)
    assert convert._stored(np.transpose(stored, axes).shape, axes) == stored.shape


def rename(pairs):
    def edit(tensors):
        for name in list(tensors):
            new = name
            for old, by in pairs:
                new = new.replace(old, by)
            tensors[new] = tensors.pop(name)

    return edit


NEW_VIT = [("vit.encoder.layer.", "vit.layers."), ("attention.attention.query", "attention.q_proj"),
           ("attention.attention.key", "attention.k_proj"), ("attention.attention.value", "attention.v_proj"),
           ("attention.output.dense", "attention.o_proj"), ("intermediate.dense", "mlp.fc1"),
           ("output.dense", "mlp.fc2")]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "edit"),
    [
        ("bert", rename([("bert.", "")])),
        ("vit", rename([("vit.", "")])),
        ("bert", rename([("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")])),
        ("vit", rename(NEW_VIT)),
        ("vit", rename([*NEW_VIT, ("vit.", "")])),
        ("bert", lambda tensors: tensors.update({"bert.embeddings.position_ids": np.arange(12)[None]})),
    ],
    ids=["bert trunk", "vit trunk", "gamma and beta", "transformers 5 names", "transformers 5 trunk", "buffer"],
)
def test_other_spellings_give_the_same_parameters(tiny, family, edit):
    want, _ = converted(tiny(family), family)
    have, report = converted(tiny(family, edit), family)
    assert report == convert.Report((), (), ())
    assert trees.digests(have) == trees.digests(want)


@pytest.mark.parametrize("wrapped", [True, False], ids=["params", "bare"])
@pytest.mark.parametrize("prefixed", [True, False], ids=["with base", "without base"])
def test_flax_trees_give_the_same_parameters(tiny, wrapped, prefixed):
    folder = tiny("bert")
    want, _ = converted(folder)
    leaves = {path: np.asarray(leaf) for path, leaf in want.items()}
    tree = trees.unflatten({p if prefixed else p.removeprefix("bert/"): msgpack.ExtType(
        1, msgpack.packb((a.shape, a.dtype.name, a.tobytes()))) for p, a in leaves.items()})  # fmt: skip
    (folder / files.SAFETENSORS).unlink()
    (folder / files.FLAX).write_bytes(msgpack.packb({"params": tree} if wrapped else tree))
    have, report = converted(folder)
    assert report == convert.Report((), (), ())
    assert trees.digests(have) == trees.digests(want)


def test_heads_of_other_kinds_are_dropped_and_named(tiny):
    extra = {"cls.predictions.bias": np.ones(20, np.float32), "qa_outputs.bias": np.ones(2, np.float32)}
    folder = tiny("bert", lambda tensors: tensors.update(extra))
    flat, report = converted(folder, reinitialise=head)
    assert report.dropped == ("classifier.bias", "classifier.weight", "cls.predictions.bias", "qa_outputs.bias")
    assert report.reinitialised == ("classifier/bias", "classifier/kernel")
    assert not any(map(head, flat))
    _, report = convert.convert(files.open_weights(folder), "bert", target(folder, "mean"))
    assert set(report.dropped) == {*extra, "bert.pooler.dense.bias", "bert.pooler.dense.weight"}


def put(name, array):
    return lambda tensors: tensors.update({name: np.asarray(array)})


ONES = np.ones((8, 8), np.float32)
NAN = np.where(np.eye(8, dtype=bool), np.float32(np.nan), ONES)
MISMATCHES = [
    ("missing", lambda tensors: tensors.pop(QUERY), f"query/kernel: missing, expected {QUERY} (8, 8)"),
    ("unexpected", put("bert.encoder.layer.7.output.dense.bias", np.ones(8, np.float32)), "unexpected"),
    ("doubled", put(QUERY.removeprefix("bert."), ONES), "query/kernel: doubled, found bert.encoder"),
    ("shape", put(QUERY, np.ones((8, 9), np.float32)), f"{QUERY}: shape (8, 9), expected (8, 8)"),
    ("not transposed", put("bert.encoder.layer.0.output.dense.weight", np.ones((16, 8), np.float32)),
     "shape (16, 8), expected (8, 16)"),
    ("dtype", put(QUERY, ONES.astype(np.float64)), f"{QUERY}: dtype F64"),
    ("whole numbers", put(QUERY, ONES.astype(np.int32)), f"{QUERY}: dtype I32"),
    ("NaN", put(QUERY, NAN), f"{QUERY}: 8 of 64 values are NaN or infinite"),
    ("infinite", put(QUERY, ONES * np.float32(np.inf)), "64 of 64 values are NaN or infinite"),
    ("zeros", put(QUERY, 0 * ONES), f"{QUERY}: all 64 values are zero"),
    ("hostile name", put("../../x\n", ONES), "../../x\\n: unexpected"),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "words"), [row[1:] for row in MISMATCHES], ids=[row[0] for row in MISMATCHES])
def test_a_mismatch_is_refused(tiny, edit, words):
    with pytest.raises(WeightsError) as caught:
        converted(tiny("bert", edit))
    assert words in str(caught.value)
    assert len(caught.value.details) == 1
    assert caught.value.exit_code == 66
    assert "nothing was loaded" in str(caught.value)


def test_all_mismatches_are_in_one_message(tiny):
    def edit(tensors):
        for _, damage, _ in MISMATCHES[1:6]:
            damage(tensors)
        tensors["bert.embeddings.LayerNorm.bias"] = np.full(8, np.nan, np.float32)
        tensors.pop("classifier.bias")

    with pytest.raises(WeightsError) as caught:
        converted(tiny("bert", edit))
    text = str(caught.value)
    for words in ("unexpected", "doubled", "shape (16, 8)", "NaN", "classifier/bias: missing"):
        assert words in text


def test_a_million_names_make_a_short_message(tiny):
    folder = tiny("bert", lambda tensors: tensors.update({f"junk.{i}": np.ones(1, np.float32) for i in range(3000)}))
    with pytest.raises(WeightsError) as caught:
        converted(folder)
    assert "3000 problem(s)" in str(caught.value)
    assert caught.value.details[-1] == "and 2900 more"


@pytest.mark.parametrize("name", ["bert.embeddings.token_type_embeddings.weight", "classifier.weight"])
def test_zeros_that_sound_checkpoints_have_are_taken(tiny, name):
    flat, _ = converted(tiny("bert", lambda tensors: tensors.update({name: 0 * tensors[name]})))
    assert flat


def test_a_name_that_two_rules_want_is_refused(tiny, monkeypatch):
    monkeypatch.setattr(rules, "sources", lambda table, format, path, rank: (("classifier.bias",), ()))
    with pytest.raises(WeightsError, match=r"classifier.bias: matched by two rules"):
        converted(tiny("bert"))


def test_positions_follow_the_image_size_only_when_asked(tiny):
    folder = tiny("vit")
    larger = target(folder, image_size=16)
    weights = files.open_weights(folder)
    with pytest.raises(WeightsError, match=r"position_embeddings: shape \(1, 5, 8\), expected \(1, 17, 8\)"):
        convert.convert(weights, "vit", larger)
    flat, report = convert.convert(weights, "vit", larger, adapt=("positions",))
    path = "vit/embeddings/position_embeddings"
    assert report.adapted == (path,)
    assert flat[path].shape == (1, 17, 8)
    same, report = convert.convert(weights, "vit", target(folder), adapt=("positions",))
    assert report.adapted == ()
    np.testing.assert_array_equal(same[path][:, 0], flat[path][:, 0])


def test_parameters_are_float32_arrays_of_jax(tiny):
    flat, _ = converted(tiny("bert", lambda t: t.update({QUERY: t[QUERY].astype(np.float16)})))
    assert {leaf.dtype.name for leaf in flat.values()} == {"float32"}
    assert all(isinstance(leaf, jax.Array) for leaf in flat.values())
