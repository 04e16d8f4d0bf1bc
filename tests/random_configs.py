"""Small random configs of every family, as transformers takes them too; what each option can be is a row here."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Pick = Callable[..., Any]  # one of its arguments
LABELS = {"0": "no", "1": "perhaps", "2": "yes"}
FLAT = (None, {"rope_type": "default", "rope_theta": 500.0}, {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
        {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
        {"rope_type": "yarn", "factor": 4.0, "rope_theta": 500.0, "original_max_position_embeddings": 8})  # fmt: skip
BY_KIND = {"full_attention": {"rope_type": "default", "rope_theta": 900.0},
           "sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 30.0}}  # fmt: skip


def _layers(pick: Pick) -> dict[str, Any]:
    heads = pick(1, 2, 4)
    return {"num_attention_heads": heads, "hidden_size": heads * pick(4, 6), "num_hidden_layers": pick(1, 2, 3),
            "intermediate_size": pick(5, 12, 24)}  # fmt: skip


def _text(pick: Pick) -> dict[str, Any]:
    return {**_layers(pick), "vocab_size": pick(17, 40), "max_position_embeddings": pick(12, 16), "pad_token_id": 0}


def _bert(pick: Pick) -> dict[str, Any]:
    return {**_text(pick), "type_vocab_size": pick(1, 2, 3), "hidden_act": pick("gelu", "relu", "gelu_new")}


def _albert(pick: Pick) -> dict[str, Any]:
    groups, layers = pick((1, 1), (1, 3), (2, 2), (2, 4))
    return {**_bert(pick), "num_hidden_groups": groups, "num_hidden_layers": layers, "inner_group_num": pick(1, 2),
            "embedding_size": pick(3, 8)}  # fmt: skip


def _roberta(pick: Pick) -> dict[str, Any]:
    return {**_bert(pick), "pad_token_id": pick(0, 1, 2)}


def _deberta(pick: Pick) -> dict[str, Any]:
    text = _text(pick)
    return {**text, "type_vocab_size": pick(0, 2), "relative_attention": pick(True, True, False),
            "position_buckets": pick(-1, 4), "norm_rel_ebd": pick("none", "layer_norm"),
            "share_att_key": pick(True, False), "pos_att_type": pick(["p2c", "c2p"], ["c2p"], ["p2c"]),
            "position_biased_input": pick(True, False), "embedding_size": pick(text["hidden_size"], 10),
            "pooler_hidden_size": text["hidden_size"], "max_relative_positions": pick(-1, 8)}  # fmt: skip


def _distilbert(pick: Pick) -> dict[str, Any]:
    heads = pick(1, 2, 4)
    return {"n_heads": heads, "dim": heads * 4, "n_layers": pick(1, 2, 3), "hidden_dim": pick(5, 24), "vocab_size": 40,
            "max_position_embeddings": 16, "pad_token_id": 0}  # fmt: skip


def _gpt2(pick: Pick) -> dict[str, Any]:
    heads = pick(1, 2, 4)
    return {"n_head": heads, "n_embd": heads * 4, "n_layer": pick(1, 2, 3), "n_inner": pick(None, 20),
            "n_positions": 16, "vocab_size": 40, "pad_token_id": 0, "scale_attn_weights": pick(True, False),
            "scale_attn_by_inverse_layer_idx": pick(True, False)}  # fmt: skip


def _decoder(pick: Pick) -> dict[str, Any]:
    text = _text(pick)
    shared = pick(1, text["num_attention_heads"])
    return {**text, "num_key_value_heads": shared, "head_dim": pick(None, 4, 6), "rope_parameters": pick(*FLAT),
            "tie_word_embeddings": pick(True, False)}  # fmt: skip


def _llama(pick: Pick) -> dict[str, Any]:
    return {**_decoder(pick), "attention_bias": pick(True, False), "mlp_bias": pick(True, False)}


def _mistral(pick: Pick) -> dict[str, Any]:
    return {**_decoder(pick), "sliding_window": pick(None, 3)}


def _qwen2(pick: Pick) -> dict[str, Any]:
    config = {**_decoder(pick), "use_sliding_window": pick(True, False), "sliding_window": 3,
              "max_window_layers": pick(0, 1)}  # fmt: skip
    del config["head_dim"]
    return config


def _qwen3(pick: Pick) -> dict[str, Any]:
    return {**_qwen2(pick), "head_dim": pick(4, 6), "attention_bias": pick(True, False)}


def _modernbert(pick: Pick) -> dict[str, Any]:
    biases = {name: pick(True, False) for name in ("attention_bias", "classifier_bias", "mlp_bias", "norm_bias")}
    return {**_text(pick), **biases, "classifier_pooling": pick("cls", "mean"), "local_attention": pick(2, 6),
            "global_attn_every_n_layers": pick(1, 2), "rope_parameters": pick(None, BY_KIND),
            "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip


def _vit(pick: Pick) -> dict[str, Any]:
    patch = pick(2, 3, 4)
    return {**_layers(pick), "patch_size": patch, "image_size": patch * pick(2, 3), "qkv_bias": pick(True, False),
            "hidden_act": pick("gelu", "relu")}  # fmt: skip


def _siglip(pick: Pick) -> dict[str, Any]:
    config = _vit(pick)
    del config["qkv_bias"]
    return config


def _dinov2(pick: Pick) -> dict[str, Any]:
    return {**_vit(pick), "mlp_ratio": pick(1, 2), "use_swiglu_ffn": pick(True, False), "layerscale_value": 0.5,
            "use_mask_token": pick(True, False)}  # fmt: skip


def _registers(pick: Pick) -> dict[str, Any]:
    config = {**_dinov2(pick), "num_register_tokens": pick(1, 3)}
    del config["use_mask_token"]
    return config


def _stages(pick: Pick) -> dict[str, Any]:
    depths = pick([1], [2, 1], [1, 2, 1])
    return {"depths": depths, "hidden_sizes": [pick(4, 8) * (i + 1) for i in range(len(depths))], "image_size": 32,
            "num_stages": len(depths)}  # fmt: skip


def _convnext(pick: Pick) -> dict[str, Any]:
    return {**_stages(pick), "patch_size": pick(2, 4), "layer_scale_init_value": pick(0.0, 0.5)}


def _resnet(pick: Pick) -> dict[str, Any]:
    return {**_stages(pick), "embedding_size": pick(4, 6), "layer_type": pick("basic", "bottleneck"),
            "downsample_in_first_stage": pick(True, False), "downsample_in_bottleneck": pick(True, False)}  # fmt: skip


def _mobilenet(pick: Pick) -> dict[str, Any]:
    return {"depth_multiplier": pick(0.1, 0.25), "depth_divisible_by": pick(2, 4), "min_depth": pick(2, 4),
            "expand_ratio": pick(2.0, 3.0), "first_layer_is_expansion": pick(True, False), "image_size": 32,
            "finegrained_output": False, "tf_padding": pick(True, False), "output_stride": pick(8, 16, 32)}  # fmt: skip


def _swin(pick: Pick) -> dict[str, Any]:
    stages, patch = pick(1, 2, 3), pick(2, 4)
    return {"embed_dim": 8, "depths": [pick(1, 2) for _ in range(stages)], "num_heads": [2, 4, 4][:stages],
            "window_size": pick(2, 3), "patch_size": patch, "image_size": patch * pick(9, 12),  # windows fit everywhere
            "mlp_ratio": pick(1.5, 2.0), "qkv_bias": pick(True, False),
            "use_absolute_embeddings": pick(True, False)}  # fmt: skip


def _events(pick: Pick) -> dict[str, Any]:
    heads, fields = pick(1, 2, 4), [["shop", pick(3, 20), False], ["amount", pick(4, 9), True]]
    return {"n_head": heads, "n_embd": heads * 4, "n_layer": pick(1, 2, 3), "n_inner": pick(None, 20),
            "n_positions": 16, "fields": fields[: pick(1, 2)], "foretold": ["shop"], "item": "shop",
            "answers": pick("each", "last")}  # fmt: skip


DRAWN: Mapping[str, Callable[[Pick], dict[str, Any]]] = {
    "albert": _albert,
    "bert": _bert,
    "convnext": _convnext,
    "convnextv2": _convnext,
    "deberta-v2": _deberta,
    "deit": _vit,
    "dinov2": _dinov2,
    "dinov2_with_registers": _registers,
    "distilbert": _distilbert,
    "gpt2": _gpt2,
    "llama": _llama,
    "mistral": _mistral,
    "mobilenet_v2": _mobilenet,
    "modernbert": _modernbert,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "resnet": _resnet,
    "roberta": _roberta,
    "siglip": _siglip,
    "swin": _swin,
    "tljax_events": _events,
    "vit": _vit,
    "xlm-roberta": _roberta,
}


def draw(family: str, seed: int) -> dict[str, Any]:
    """The fields of a config.json of `family`, the same for the same seed."""
    rng = np.random.default_rng([seed, *family.encode()])

    def pick(*values: Any) -> Any:
        return values[rng.integers(len(values))]

    return {"model_type": family, "id2label": LABELS, **DRAWN[family](pick)}
