"""Every number of config.json is measured before memory is taken for it; what is accepted can be built."""

import json

import jax
import numpy as np
import pytest

from tljax import models
from tljax.errors import WeightsError
from tljax.models.layers import ACTIVATIONS
from tljax.weights import schema
from tljax.weights.families import FAMILIES
from tljax.weights.hfconfig import read_config
from tljax.weights.load import load_pretrained

BAD = (10**9, -1, 0, 2.5, "x", None, [])
MEANT = {
    "local_attention": (0,),  # each token sees itself
    "max_relative_positions": (-1, 0),  # as many as max_position_embeddings
    "max_window_layers": (0,),
    "mlp_ratio": (2.5,),
    "num_register_tokens": (0,),
    "pad_token_id": (0,),
    "position_buckets": (-1, 0),  # each distance its own
    "type_vocab_size": (0,),
}  # which of BAD says something
FAMILY = pytest.mark.parametrize("family", models.FAMILIES)
SMALL = {"num_hidden_layers": 3, "n_layer": 3, "n_layers": 3, "inner_group_num": 3, "num_hidden_groups": 3, "depths": 3}
THETA = {"rope_theta": 500.0}
ROPES = (None, {}, {"rope_type": "default"}, {"type": "linear", "factor": 2.0}, {"rope_type": "dynamic", "factor": 2.0},
         {"rope_type": "yarn", "factor": 4.0, **THETA}, {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1.0},
         {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0,
          "original_max_position_embeddings": 8},
         {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8},
         {"full_attention": THETA, "sliding_attention": {"rope_type": "dynamic", "factor": 2.0}},
         {"full_attention": {"full_attention": THETA}}, {"full_attention": {"rope_type": "linear"}})  # fmt: skip
FIELDS = ([["a", 3, True], ["b", 40, False]], [["a", 3, True]], [], [["a", 2, True]], [["a", 3, True]] * 2, [["a", 3]])
WORDS = {"answers": ("each", "last", "next", "item"), "fields": FIELDS, "foretold": (["a"], [], ["b", "a"], ["c"]),
         "item": ("a", "", "b"), "classifier_pooling": ("cls", "mean"), "layer_type": ("basic", "bottleneck"),
         "norm_rel_ebd": ("none", "layer_norm"), "pos_att_type": (None, "c2p|p2c", ["p2c"], []),
         "layer_types": (None, ["full_attention"] * 2, ["sliding_attention"]), "rope_parameters": ROPES,
         "rope_scaling": ROPES, **dict.fromkeys(schema.ACTS, tuple(ACTIVATIONS))}  # fmt: skip


def whole(family):
    """The fields of a family that are whole numbers."""
    defaults = models.FAMILIES[family].defaults
    return [name for name, value in defaults.items()
            if type(value) is int or (name in schema.LIMITS and name not in schema.LISTS)]  # fmt: skip


def written(folder, **fields):
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


@FAMILY
def test_a_number_out_of_bounds_is_refused_before_anything_is_built(family, tmp_path, monkeypatch):
    def unwanted(*args, **kwargs):
        pytest.fail("a network was built")

    monkeypatch.setattr(models, "build", unwanted)
    for name in whole(family):
        meant = list(MEANT.get(name, ()))
        if models.FAMILIES[family].defaults[name] is None or name in schema.NULLABLE:
            meant.append(None)
        for value in BAD:
            folder = written(tmp_path, model_type=family, **{name: value})
            if any(value is other or value == other for other in meant):
                assert read_config(folder)[name] == value
                continue
            for reader in (read_config, lambda folder: load_pretrained(str(folder), scratch=True)):
                with pytest.raises(WeightsError) as caught:
                    reader(folder)
                assert len(caught.value.details) == 1
                assert caught.value.details[0].startswith(f"{name}: {value!r}, expected ")


def anything(name, default, rng):
    """A value of roughly the right kind."""

    def one(*values):
        return values[rng.integers(len(values))]

    if rng.random() < 0.01:
        return one(None, "x", -1, 0, 2.5, [], {}, True, 10**9)
    if name in WORDS:
        return WORDS[name][0] if rng.random() < 0.5 else one(*WORDS[name])
    if isinstance(default, bool):
        return one(True, False)
    if name in schema.LISTS:
        return [one(1, 2, 3, 4, 8) for _ in range(one(1, 2, 2, 3))]
    if isinstance(default, tuple):
        return [0.5] * 3
    if name in SMALL:
        return int(rng.integers(1, SMALL[name] + 1))
    if name in schema.NULLABLE and rng.random() < 0.5:
        return None
    if type(default) is int or name in schema.LIMITS:
        return one(0, 1, 1, 2, 2, 3, 4, 4, 5, 6, 8, 8, 12, 16, 24, 32)
    if default is None:
        return one(None, 0.0, 0.5, 2.0)
    return one(0.0, 0.1, 0.5, 0.9) if rng.random() < 0.95 else one(1.0, 4.0)


def width(config, labels):
    """How many logits there are."""
    sizes = {name: size for name, size, _ in config.get("fields", ())}
    of_events = {"next": lambda: sum(sizes[name] for name in config["foretold"]), "item": lambda: sizes[config["item"]]}
    return of_events.get(config.get("answers"), lambda: labels or config["vocab_size"])()


@FAMILY
def test_what_is_accepted_can_be_built(family, tmp_path):
    """Random fields, all of them at once: a sentence that refuses them, or the shapes of a network that runs."""
    rng = np.random.default_rng(list(family.encode()))
    architecture, accepted = models.FAMILIES[family], 0
    for _ in range(4000):
        fields = {name: anything(name, value, rng) for name, value in architecture.defaults.items()}
        for name in {"image_mean", "image_std"} & fields.keys():
            if fields[name] == [0.5] * 3 and fields["num_channels"] in range(1, 65):
                fields[name] = [0.5] * fields["num_channels"]
        folder = written(tmp_path, model_type=family, layer_types_of_another=1, **fields)
        try:
            config = read_config(folder)
        except WeightsError:
            continue
        pooling = FAMILIES[family].poolings[accepted % len(FAMILIES[family].poolings)]
        labels = accepted % 2 * 3 if architecture.decoder else 3
        network = models.build(config, num_labels=labels, pooling=pooling)
        batch = dict(network.example())
        if "attention_mask" in batch:  # as many tokens as there may be
            tokens = models.max_tokens(config, 40)
            assert tokens > 0
            batch = {key: jax.ShapeDtypeStruct((2, tokens), x.dtype) for key, x in batch.items()}

        def forward(params, x, key, network=network):
            return network.run(params, x, train=True, key=key)["logits"]

        params = {}
        for path, leaf in network.shapes().items():
            assert all(leaf.shape), f"{path}: {leaf.shape}"
            *parents, last = path.split("/")
            node = params
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = leaf
        logits = jax.eval_shape(forward, params, batch, jax.random.key(0))
        assert logits.shape[-1] == width(config, labels)
        if (accepted := accepted + 1) == 4:
            return
    pytest.fail(f"{accepted} of 4000 configs were accepted")


EVENT = {"fields": [["a", 5, True]]}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model_type": "albert", "embedding_size": None}, "embedding_size: None, expected a whole number"),
        ({"model_type": "resnet", "embedding_size": None}, "embedding_size: None, expected a whole number"),
        ({"model_type": "modernbert", "classifier_dropout": None}, "classifier_dropout: None"),
        ({"model_type": "bert", "hidden_dropout_prob": 1.0}, "hidden_dropout_prob: 1.0"),
        ({"model_type": "bert", "hidden_size": 6, "num_attention_heads": 4, "head_dim": 2}, "no multiple"),
        ({"model_type": "roberta", "max_position_embeddings": 2}, "at least pad_token_id 1 + 2"),
        ({"model_type": "deberta-v2", "position_buckets": 2}, "position_buckets: 2"),
        ({"model_type": "deberta-v2", "position_buckets": 8, "max_relative_positions": 5}, "max_relative_positions: 5"),
        ({"model_type": "llama", "head_dim": 5}, "head_dim: 5"),
        ({"model_type": "llama", "hidden_size": 6, "num_attention_heads": 2}, "expected an even number"),
        ({"model_type": "llama", "rope_parameters": {"full_attention": {"rope_theta": 5.0}}}, "expected one set"),
        ({"model_type": "llama", "rope_parameters": {"rope_theta": 1.0}}, "rope_parameters"),
        ({"model_type": "llama", "rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters"),
        ({"model_type": "modernbert", "rope_parameters": {"rope_type": "linear", "factor": 2}}, "one set for each"),
        ({"model_type": "mobilenet_v2", "depth_divisible_by": 0}, "depth_divisible_by: 0"),
        ({"model_type": "mobilenet_v2", "output_stride": 5}, "output_stride: 5"),
        ({"model_type": "swin", "window_size": 65}, "from 1 to 64"),
        ({"model_type": "swin", "image_size": 16384, "patch_size": 1}, "window_size: 7 times 16384"),
        ({"model_type": "swin", "image_size": 30}, "no multiple of patch_size 4"),
        ({"model_type": "swin", "num_heads": [3, 5, 12, 24]}, "num_heads: 5, expected a divisor"),
        ({"model_type": "convnext", "image_size": 16}, "too small to be halved 3 times"),
        ({"model_type": "resnet", "hidden_sizes": [3, 8, 8, 8]}, "hidden_sizes"),
        ({"model_type": "dinov2", "num_register_tokens": 10**6}, "num_register_tokens"),
        ({"model_type": "dinov2", "mlp_ratio": 0.001}, "mlp_ratio: 0.001"),
        ({"model_type": "tljax_events", "fields": [["a", 3, True]] * 2}, "each name once"),
        ({"model_type": "tljax_events", "fields": [["a/b", 3, True]]}, "each name once"),
        ({"model_type": "tljax_events", "fields": [["a", 2, True]]}, "each name once"),
        ({"model_type": "tljax_events", "fields": [["a", 10**9, True]]}, "each name once"),
        ({"model_type": "tljax_events", "fields": []}, "each name once"),
        ({"model_type": "tljax_events", **EVENT, "foretold": ["b"]}, "foretold: 'b' is none of the fields"),
        ({"model_type": "tljax_events", **EVENT, "item": "b"}, "item: 'b' is none of the fields"),
        ({"model_type": "tljax_events", **EVENT, "answers": "item"}, "item: '', expected"),
        ({"model_type": "tljax_events", **EVENT, "answers": "next"}, "foretold: (), expected"),
        ({"model_type": "tljax_events", "answers": "all"}, "answers: 'all', expected one of each, last, next, item"),
    ],
)
def test_values_that_make_no_network_are_refused(tmp_path, fields, words):
    with pytest.raises(WeightsError) as caught:
        read_config(written(tmp_path, **fields))
    assert words in str(caught.value)


def test_a_field_of_another_family_is_no_concern(tmp_path):
    fields = {"model_type": "bert", "layer_types": ["x"], "depths": 3, "num_heads": 2, "image_std": 0, "head_dim": "x"}
    assert read_config(written(tmp_path, **fields)) == {"model_type": "bert"}
