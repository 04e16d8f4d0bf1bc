"""config.json: known fields of the right type and size; anything else is refused or left out."""

import json

import pytest

from tljax.errors import WeightsError
from tljax.weights.hfconfig import read_config

BERT = {"model_type": "bert", "hidden_size": 8, "num_attention_heads": 2}
VIT = {"model_type": "vit", "image_size": 32, "patch_size": 8}


def written(folder, **fields):
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def test_known_fields_are_kept_and_others_left_out(tmp_path):
    found = read_config(written(tmp_path, **BERT, _attn_implementation_internal="x", use_cache=True, pad_token_id=0))
    assert found == {**BERT, "pad_token_id": 0}


def test_labels_come_in_the_order_of_their_numbers(tmp_path):
    labels = {str(i): f"class {i}" for i in (10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)}
    found = read_config(written(tmp_path, **BERT, id2label=labels))
    assert list(found["id2label"].values()) == [f"class {i}" for i in range(11)]


def test_normalisation_comes_from_the_image_processor(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3], "size": 9}))
    assert read_config(written(tmp_path, **VIT)) == {**VIT, "image_mean": [0.1, 0.2, 0.3]}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({**BERT, "auto_map": {"AutoModel": "x.py"}}, "asks to run code of its own"),
        ({**BERT, "hidden_size": 10**9}, "from 1 to 32768"),
        ({**BERT, "num_hidden_layers": 10**9}, "from 1 to 512"),
        ({**BERT, "vocab_size": -1}, "vocab_size: -1"),
        ({**BERT, "vocab_size": 30.5}, "vocab_size: 30.5"),
        ({**BERT, "vocab_size": True}, "vocab_size: True"),
        ({**BERT, "vocab_size": "30"}, "vocab_size: '30'"),
        ({**BERT, "num_attention_heads": 3}, "no multiple of num_attention_heads 3"),
        ({**BERT, "hidden_act": "exec"}, "hidden_act: 'exec'"),
        ({**BERT, "hidden_act": ["gelu"]}, "hidden_act: ['gelu']"),
        ({**BERT, "hidden_dropout_prob": "0.1"}, "expected a rate from 0 to 1"),
        ({**BERT, "classifier_dropout": 2}, "expected null or a rate"),
        ({**BERT, "position_embedding_type": "relative_key"}, "tljax computes 'absolute' only"),
        ({**BERT, "is_decoder": True}, "tljax computes False only"),
        ({**BERT, "id2label": ["a"]}, "id2label"),
        ({**BERT, "id2label": {"0": "a", "2": "b"}}, "the numbers are not 0 to 1"),
        ({**BERT, "id2label": {"0": 1}}, "id2label"),
        ({**BERT, "architectures": [1]}, "architectures"),
        ({**VIT, "qkv_bias": 1}, "expected true or false"),
        ({**VIT, "patch_size": 64}, "larger than image_size"),
        ({**VIT, "image_mean": [1, 2]}, "image_mean: 2 numbers, num_channels: 3"),
        ({**VIT, "image_std": [1, 0, 1]}, "expected numbers above 0"),
        ({"model_type": "swin", "depths": [2, 2], "num_heads": [3]}, "depths: 2 numbers, num_heads: 1 numbers"),
        ({"model_type": "resnet", "depths": [2, 2], "hidden_sizes": [64]}, "expected as many in each"),
        ({"model_type": "llama", "rope_scaling": {"type": "linear"}}, "rope_scaling"),
        ({"model_type": "llama", "rope_parameters": {"rope_type": "longrope"}}, "rope_parameters"),
        ({"hidden_size": 8}, "'None' is no family"),
        ({**BERT, "model_type": "bart"}, "the nearest is 'bert'"),
        ({**BERT, "model_type": ["bert"]}, "is no family"),
    ],
)
def test_other_values_are_refused(tmp_path, fields, words):
    with pytest.raises(WeightsError) as caught:
        read_config(written(tmp_path, **fields))
    assert words in str(caught.value)
    assert caught.value.exit_code == 66


def test_all_problems_are_named_at_once(tmp_path):
    with pytest.raises(WeightsError) as caught:
        read_config(written(tmp_path, **{**BERT, "hidden_size": 0, "auto_map": {}, "hidden_act": "?"}))
    assert len(caught.value.details) == 3


def test_no_config_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"config\.json: cannot be opened"):
        read_config(tmp_path)
