"""Writes data/: for each family a tiny checkpoint as transformers saves it, and what PyTorch computes with it.

    python tests/golden/make.py [name …]     needs torch and transformers (the extra `bench`)

Weights are random and every parameter is perturbed, so that no bias is zero and no scale is one. The files are
committed; nothing makes them again in CI.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

DATA = Path(__file__).parent / "data"
LABELS = 3
TEXT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 40,
        "max_position_embeddings": 24, "pad_token_id": 0}  # fmt: skip
LLAMA = {**TEXT, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32}
IMAGE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 16,
         "patch_size": 4}  # fmt: skip
CONV = {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 24], "depths": [1, 2, 1, 1]}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, "rope_theta": 500.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8, "rope_theta": 500.0}  # fmt: skip
# name -> (prefix of transformers' classes, class of the model, fields of the config)
SETS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "albert": ("Albert", "SequenceClassification", {**TEXT, "embedding_size": 12, "num_hidden_layers": 4,
                                                    "num_hidden_groups": 2, "inner_group_num": 2}),
    "bert": ("Bert", "SequenceClassification", TEXT),
    "convnext": ("ConvNext", "ImageClassification", {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 2, 1],
                                                     "image_size": 64, "layer_scale_init_value": 0.5}),
    "convnextv2": ("ConvNextV2", "ImageClassification", {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 2, 1],
                                                         "image_size": 64}),
    "deberta-v2": ("DebertaV2", "SequenceClassification", {**TEXT, "relative_attention": True,
                                                           "position_buckets": 4, "norm_rel_ebd": "layer_norm",
                                                           "share_att_key": True, "pos_att_type": ["p2c", "c2p"],
                                                           "position_biased_input": False, "type_vocab_size": 0,
                                                           "pooler_hidden_size": 16}),
    "deit": ("DeiT", "ImageClassification", IMAGE),
    "deit-distilled": ("DeiT", "ImageClassificationWithTeacher", IMAGE),
    "dinov2": ("Dinov2", "ImageClassification", {**IMAGE, "mlp_ratio": 2, "layerscale_value": 0.5}),
    "dinov2-swiglu": ("Dinov2", "ImageClassification", {**IMAGE, "mlp_ratio": 2, "use_swiglu_ffn": True}),
    "dinov2_with_registers": ("Dinov2WithRegisters", "ImageClassification", {**IMAGE, "mlp_ratio": 2,
                                                                             "num_register_tokens": 3}),
    "distilbert": ("DistilBert", "SequenceClassification", {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24,
                                                            "vocab_size": 40, "max_position_embeddings": 24}),
    "gpt2": ("GPT2", "SequenceClassification", {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 40,
                                                "n_positions": 24, "pad_token_id": 0}),
    "gpt2-lm": ("GPT2", "LMHeadModel", {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 40, "n_positions": 24,
                                        "scale_attn_by_inverse_layer_idx": True}),
    "llama": ("Llama", "SequenceClassification", {**LLAMA, "attention_bias": True, "mlp_bias": True}),
    "llama-lm": ("Llama", "CausalLM", {**LLAMA, "rope_parameters": LLAMA3}),
    "llama-yarn": ("Llama", "CausalLM", {**LLAMA, "rope_parameters": YARN, "tie_word_embeddings": True}),
    "mistral": ("Mistral", "SequenceClassification", {**LLAMA, "sliding_window": 3, "head_dim": 6}),
    "mobilenet_v2": ("MobileNetV2", "ImageClassification", {"depth_multiplier": 0.25, "min_depth": 4, "image_size": 32,
                                                            "depth_divisible_by": 4, "finegrained_output": False}),
    "modernbert": ("ModernBert", "SequenceClassification", {**TEXT, "global_attn_every_n_layers": 3,
                                                            "num_hidden_layers": 4, "local_attention": 4,
                                                            "classifier_pooling": "mean", "cls_token_id": 1,
                                                            "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}),
    "qwen2": ("Qwen2", "SequenceClassification", {**LLAMA, "use_sliding_window": True, "sliding_window": 3,
                                                  "max_window_layers": 1}),
    "qwen3": ("Qwen3", "SequenceClassification", {**LLAMA, "head_dim": 6}),
    "resnet": ("ResNet", "ImageClassification", CONV),
    "resnet-basic": ("ResNet", "ImageClassification", {**CONV, "layer_type": "basic",
                                                       "downsample_in_first_stage": True}),
    "roberta": ("Roberta", "SequenceClassification", {**TEXT, "pad_token_id": 1, "type_vocab_size": 1}),
    "siglip": ("Siglip", "ImageClassification", {"vision_config": IMAGE, "text_config": {"hidden_size": 16}}),
    "siglip_vision_model": ("SiglipVision", "Model", IMAGE),
    "swin": ("Swin", "ImageClassification", {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [2, 2],
                                             "num_heads": [2, 4], "window_size": 4}),
    "vit": ("ViT", "ImageClassification", IMAGE),
    "xlm-roberta": ("XLMRoberta", "SequenceClassification", {**TEXT, "pad_token_id": 1, "type_vocab_size": 1}),
}  # fmt: skip


def made(prefix: str, kind: str, fields: dict[str, Any]) -> Any:
    """A model of transformers in which every parameter and every statistic matters."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{prefix}Config")(num_labels=LABELS, attn_implementation="eager", **fields)
    name = f"{prefix}{kind}" if kind in ("LMHeadModel", "Model") else f"{prefix}For{kind}"
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for path, tensor in model.state_dict().items():
            if path.endswith("running_var"):
                tensor.uniform_(0.5, 2.0)
            elif tensor.dtype == torch.float32:
                tensor.add_(torch.randn_like(tensor) * 0.2)
    return model


def inputs_of(config: Any) -> dict[str, np.ndarray]:
    """Two texts, one padded; or two images, channels first."""
    rng = np.random.default_rng(0)
    if not hasattr(config, "vocab_size"):
        size = getattr(getattr(config, "vision_config", config), "image_size", 64)
        return {"pixel_values": rng.normal(size=(2, 3, size, size)).astype(np.float32)}
    padding = config.pad_token_id or 0
    ids = rng.integers(3, 40, (2, 9)).astype(np.int64)
    mask = np.ones_like(ids)
    ids[1, 6:], mask[1, 6:] = padding, 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if getattr(config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = (np.arange(9)[None] > 4).astype(np.int64) * mask
    return inputs


def write(name: str) -> None:
    model = made(*SETS[name])
    inputs = inputs_of(model.config)
    with torch.no_grad():
        asked = {key: torch.from_numpy(value) for key, value in inputs.items()}
        found = model(**asked, output_hidden_states=True)
        names = (model.base_model_prefix, "vision_model")
        trunk = next((getattr(model, name) for name in names if hasattr(model, name)), model)(**asked)
    folder = DATA / name
    model.save_pretrained(folder)
    outputs = {"last_hidden_state": trunk.last_hidden_state}
    outputs |= {"logits": found.logits} if hasattr(found, "logits") else {"pooled": found.pooler_output}
    np.savez_compressed(folder / "golden.npz", **inputs, **{key: value.numpy() for key, value in outputs.items()})
    config = json.loads((folder / "config.json").read_text())
    (folder / "generation_config.json").unlink(missing_ok=True)
    print(f"{name}: {config['model_type']}, {sum(p.stat().st_size for p in folder.iterdir()) // 1024} KiB")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    for name in sys.argv[1:] or SETS:
        write(name)
