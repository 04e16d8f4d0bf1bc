"""config.json as the well-known checkpoints have it: accepted, and a network of as many parameters as transformers'.

The fields are those of the published files, as far as they say something of the network; the counts, of a classifier
of two labels without running statistics, are transformers 5.23's on the meta device (SigLIP's without the head that
compares pictures with texts).
"""

import json
import math

import checkpoints
import pytest

from tljax import models
from tljax.transfer.freeze import is_statistic
from tljax.weights.hfconfig import read_config

BERT = {"attention_probs_dropout_prob": 0.1, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768,
        "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-12, "max_position_embeddings": 512,
        "num_attention_heads": 12, "num_hidden_layers": 12, "type_vocab_size": 2}  # fmt: skip
ROBERTA = {**BERT, "layer_norm_eps": 1e-5, "max_position_embeddings": 514, "type_vocab_size": 1, "bos_token_id": 0,
           "eos_token_id": 2, "pad_token_id": 1}  # fmt: skip
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
          "rope_type": "llama3"}  # fmt: skip
VIT = {**{name: BERT[name] for name in ("hidden_act", "hidden_size", "initializer_range", "intermediate_size",
                                        "layer_norm_eps", "num_attention_heads", "num_hidden_layers")},
       "attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0, "image_size": 224, "num_channels": 3,
       "patch_size": 16, "qkv_bias": True}  # fmt: skip
CONVNEXT = {"depths": [3, 3, 9, 3], "drop_path_rate": 0.0, "hidden_act": "gelu", "hidden_sizes": [96, 192, 384, 768],
            "image_size": 224, "initializer_range": 0.02, "layer_norm_eps": 1e-12, "num_channels": 3, "num_stages": 4,
            "patch_size": 4}  # fmt: skip
DINOV2 = {**VIT, "image_size": 518, "patch_size": 14, "layer_norm_eps": 1e-6, "mlp_ratio": 4, "layerscale_value": 1.0,
          "drop_path_rate": 0.0, "use_swiglu_ffn": False, "apply_layernorm": True, "reshape_hidden_states": True,
          "out_features": ["stage12"], "stage_names": ["stem"]}  # fmt: skip
PUBLISHED: dict[str, tuple[dict, int]] = {
    "bert-base-uncased": ({**BERT, "model_type": "bert", "vocab_size": 30522, "pad_token_id": 0,
                           "gradient_checkpointing": False, "position_embedding_type": "absolute",
                           "use_cache": True}, 109_483_778),
    "roberta-base": ({**ROBERTA, "model_type": "roberta", "vocab_size": 50265}, 124_647_170),
    "xlm-roberta-base": ({**ROBERTA, "model_type": "xlm-roberta", "vocab_size": 250002, "output_past": True,
                          "position_embedding_type": "absolute"}, 278_045_186),
    "distilbert-base-uncased": ({"activation": "gelu", "attention_dropout": 0.1, "dim": 768, "dropout": 0.1,
                                 "hidden_dim": 3072, "initializer_range": 0.02, "max_position_embeddings": 512,
                                 "model_type": "distilbert", "n_heads": 12, "n_layers": 6, "pad_token_id": 0,
                                 "qa_dropout": 0.1, "seq_classif_dropout": 0.2, "sinusoidal_pos_embds": False,
                                 "tie_weights_": True, "vocab_size": 30522}, 66_955_010),
    "albert-base-v2": ({"attention_probs_dropout_prob": 0, "classifier_dropout_prob": 0.1, "down_scale_factor": 1,
                        "embedding_size": 128, "gap_size": 0, "hidden_act": "gelu_new", "hidden_dropout_prob": 0,
                        "hidden_size": 768, "initializer_range": 0.02, "inner_group_num": 1, "intermediate_size": 3072,
                        "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "albert",
                        "net_structure_type": 0, "num_attention_heads": 12, "num_hidden_groups": 1,
                        "num_hidden_layers": 12, "num_memory_blocks": 0, "pad_token_id": 0, "type_vocab_size": 2,
                        "vocab_size": 30000}, 11_685_122),
    "ModernBERT-base": ({"attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 50281,
                         "classifier_activation": "gelu", "classifier_bias": False, "classifier_dropout": 0.0,
                         "classifier_pooling": "mean", "cls_token_id": 50281, "decoder_bias": True,
                         "embedding_dropout": 0.0, "global_attn_every_n_layers": 3, "global_rope_theta": 160000.0,
                         "hidden_activation": "gelu", "hidden_size": 768, "initializer_cutoff_factor": 2.0,
                         "initializer_range": 0.02, "intermediate_size": 1152, "layer_norm_eps": 1e-5,
                         "local_attention": 128, "local_rope_theta": 10000.0, "max_position_embeddings": 8192,
                         "mlp_bias": False, "mlp_dropout": 0.0, "model_type": "modernbert", "norm_bias": False,
                         "norm_eps": 1e-5, "num_attention_heads": 12, "num_hidden_layers": 22, "pad_token_id": 50283,
                         "position_embedding_type": "absolute", "sep_token_id": 50282,
                         "vocab_size": 50368}, 149_606_402),
    "deberta-v3-base": ({**BERT, "layer_norm_eps": 1e-7, "max_relative_positions": -1, "model_type": "deberta-v2",
                         "norm_rel_ebd": "layer_norm", "pad_token_id": 0, "pos_att_type": "p2c|c2p",
                         "position_biased_input": False, "position_buckets": 256, "relative_attention": True,
                         "share_att_key": True, "type_vocab_size": 0, "vocab_size": 128100}, 184_423_682),
    "gpt2": ({"activation_function": "gelu_new", "attn_pdrop": 0.1, "bos_token_id": 50256, "embd_pdrop": 0.1,
              "eos_token_id": 50256, "initializer_range": 0.02, "layer_norm_epsilon": 1e-5, "model_type": "gpt2",
              "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1,
              "summary_activation": None, "vocab_size": 50257}, 124_441_344),
    "Llama-3.1-8B": ({"attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000,
                      "eos_token_id": 128001, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
                      "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": False,
                      "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
                      "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-5, "rope_scaling": LLAMA3,
                      "rope_theta": 500000.0, "tie_word_embeddings": False, "vocab_size": 128256}, 7_504_932_864),
    "Mistral-7B-v0.3": ({"attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
                         "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
                         "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32,
                         "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
                         "rope_theta": 1000000.0, "sliding_window": None, "tie_word_embeddings": False,
                         "vocab_size": 32768}, 7_113_814_016),
    "Qwen2.5-0.5B": ({"attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643, "hidden_act": "silu",
                      "hidden_size": 896, "initializer_range": 0.02, "intermediate_size": 4864,
                      "max_position_embeddings": 32768, "max_window_layers": 24, "model_type": "qwen2",
                      "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
                      "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "sliding_window": 32768,
                      "tie_word_embeddings": True, "use_mrope": False, "use_sliding_window": False,
                      "vocab_size": 151936}, 494_034_560),
    "Qwen3-0.6B": ({"attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
                    "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024, "initializer_range": 0.02,
                    "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28,
                    "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28,
                    "num_key_value_heads": 8, "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 1000000,
                    "sliding_window": None, "tie_word_embeddings": True, "use_sliding_window": False,
                    "vocab_size": 151936}, 596_051_968),
    "vit-base-patch16-224": ({**VIT, "model_type": "vit", "encoder_stride": 16}, 85_800_194),
    "deit-tiny-distilled-patch16-224": ({**VIT, "model_type": "deit", "hidden_size": 192, "intermediate_size": 768,
                                         "num_attention_heads": 3}, 5_525_186),
    "dinov2-base": ({**DINOV2, "model_type": "dinov2"}, 86_583_554),
    "dinov2-with-registers-base": ({**DINOV2, "model_type": "dinov2_with_registers", "num_register_tokens": 4,
                                    "interpolate_antialias": True, "interpolate_offset": 0.0}, 86_586_626),
    "siglip-base-patch16-224": ({"initializer_factor": 1.0, "model_type": "siglip",
                                 "text_config": {"model_type": "siglip_text_model", "vocab_size": 32000},
                                 "vision_config": {"model_type": "siglip_vision_model"}}, 85_798_658),
    "swin-tiny-patch4-window7-224": ({"attention_probs_dropout_prob": 0.0, "depths": [2, 2, 6, 2],
                                      "drop_path_rate": 0.1, "embed_dim": 96, "encoder_stride": 32,
                                      "hidden_act": "gelu", "hidden_dropout_prob": 0.0, "image_size": 224,
                                      "initializer_range": 0.02, "layer_norm_eps": 1e-5, "mlp_ratio": 4.0,
                                      "model_type": "swin", "num_channels": 3, "num_heads": [3, 6, 12, 24],
                                      "num_layers": 4, "patch_size": 4, "path_norm": True, "qkv_bias": True,
                                      "use_absolute_embeddings": False, "window_size": 7}, 27_520_892),
    "resnet-50": ({"depths": [3, 4, 6, 3], "downsample_in_first_stage": False, "embedding_size": 64,
                   "hidden_act": "relu", "hidden_sizes": [256, 512, 1024, 2048], "layer_type": "bottleneck",
                   "model_type": "resnet", "num_channels": 3, "out_features": None,
                   "stage_names": ["stem"]}, 23_512_130),
    "convnext-tiny-224": ({**CONVNEXT, "model_type": "convnext", "layer_scale_init_value": 1e-6}, 27_821_666),
    "convnextv2-tiny-1k-224": ({**CONVNEXT, "model_type": "convnextv2"}, 27_868_034),
    "mobilenet_v2_1.0_224": ({"classifier_dropout_prob": 0.8, "depth_divisible_by": 8, "depth_multiplier": 1.0,
                              "expand_ratio": 6, "finegrained_output": True, "first_layer_is_expansion": True,
                              "hidden_act": "relu6", "image_size": 224, "initializer_range": 0.02,
                              "layer_norm_eps": 0.001, "min_depth": 8, "model_type": "mobilenet_v2",
                              "num_channels": 3, "output_stride": 32, "semantic_loss_ignore_index": 255,
                              "tf_padding": True}, 2_226_434),
}  # fmt: skip


def test_every_family_is_here():
    assert {fields["model_type"] for fields, _ in PUBLISHED.values()} == set(checkpoints.THEIRS)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_gives_as_many_parameters(name, tmp_path):
    fields, parameters = PUBLISHED[name]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    shapes = models.build(read_config(tmp_path), num_labels=2).shapes()
    assert sum(math.prod(leaf.shape) for path, leaf in shapes.items() if not is_statistic(path)) == parameters
