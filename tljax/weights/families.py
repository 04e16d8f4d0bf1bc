"""The tables: what each family has besides the convention of rules.py. The key is `model_type` in config.json."""

import dataclasses
from typing import Any

from tljax.weights.rules import Family

_BERT = Family(
    base="bert",
    classifier="BertForSequenceClassification",
    trunk="BertModel",
    language="BertForMaskedLM",
    words=("cls/predictions",),
    flax=True,
    poolings=("pooler", "mean"),
    pooler="pooler",
    buffers=(r"embeddings\.(position_ids|token_type_ids)",),
    droppable=(r"cls\..*", r"qa_outputs\..*", r"pooler\..*", r"classifier\.(kernel|weight|bias)"),
    may_be_zero=(r".*/token_type_embeddings/.*",),
    requires={"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False},
)
_ROBERTA = dataclasses.replace(
    _BERT,
    base="roberta",
    classifier="RobertaForSequenceClassification",
    trunk="RobertaModel",
    language="RobertaForMaskedLM",
    words=("lm_head",),
    head=("classifier/dense", "classifier/out_proj"),
    pooler="",
    droppable=(
        r"lm_head\..*",
        r"qa_outputs\..*",
        r"pooler\..*",
        r"classifier\.((dense|out_proj)\.)?(kernel|weight|bias)",
    ),
)
_LLAMA = Family(
    base="model",
    classifier="LlamaForSequenceClassification",
    trunk="LlamaModel",
    language="LlamaForCausalLM",
    flax=True,
    head=("score",),
    buffers=(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq", r"rotary_emb\.inv_freq"),
    droppable=(r"lm_head\..*", r"qa_outputs\..*", r"score\..*"),
    tied="model/embed_tokens/embedding",
)
_VIT = Family(
    base="vit",
    classifier="ViTForImageClassification",
    trunk="ViTModel",
    flax=True,
    spellings=(  # in memory in transformers 5
        (r"encoder\.layer\.(\d+)\.attention\.attention\.(q|k|v)[a-z]+", r"layers.\1.attention.\2_proj"),
        (r"encoder\.layer\.(\d+)\.attention\.output\.dense", r"layers.\1.attention.o_proj"),
        (r"encoder\.layer\.(\d+)\.intermediate\.dense", r"layers.\1.mlp.fc1"),
        (r"encoder\.layer\.(\d+)\.output\.dense", r"layers.\1.mlp.fc2"),
        (r"encoder\.layer\.(\d+)\.layernorm", r"layers.\1.layernorm"),
    ),
    droppable=(r"(pooler\.dense|decoder|pre_logits|head)\..*", r"embeddings\.mask_token"),
    may_be_zero=(r".*/(cls|distillation|mask|register)_tokens?",),
    positions="vit/embeddings/position_embeddings",
)
_DINOV2 = dataclasses.replace(
    _VIT,
    base="dinov2",
    classifier="Dinov2ForImageClassification",
    trunk="Dinov2Model",
    spellings=(),
    droppable=(),
    positions="dinov2/embeddings/position_embeddings",
)


_RESNET = Family(
    base="resnet",
    classifier="ResNetForImageClassification",
    trunk="ResNetModel",
    flax=True,
    head=("classifier/1",),
    buffers=(r".*\.num_batches_tracked",),
)
_CONVNEXT = Family(
    base="convnext",
    classifier="ConvNextForImageClassification",
    trunk="ConvNextModel",
    may_be_zero=(r".*/grn/(weight|bias)",),
)


NO_WORDS: dict[str, Any] = {"language": "", "words": ()}


def _kin(family: Family, name: str, **changes: Any) -> Family:
    """A family that differs in the names of its classes, and little else."""
    names = {"classifier": f"{name}ForSequenceClassification", "trunk": f"{name}Model"}
    names |= {"language": f"{name}ForMaskedLM" if family.words else f"{name}ForCausalLM"} if family.language else {}
    return dataclasses.replace(family, **{**names, **changes})


FAMILIES: dict[str, Family] = {
    "albert": _kin(
        _BERT,
        "Albert",
        **NO_WORDS,
        base="albert",
        droppable=(r"predictions\..*", r"sop_classifier\..*", r"qa_outputs\..*", r"pooler\..*"),
        requires={},
    ),
    "bert": _BERT,
    "convnext": _CONVNEXT,
    "convnextv2": dataclasses.replace(
        _CONVNEXT,
        base="convnextv2",
        classifier="ConvNextV2ForImageClassification",
        trunk="ConvNextV2Model",
    ),
    "deberta-v2": _kin(
        _BERT,
        "DebertaV2",
        **NO_WORDS,
        flax=False,
        base="deberta",
        head=("pooler/dense", "classifier"),
        pooler="",
        droppable=(r"(cls|lm_predictions|mask_predictions|qa_outputs)\..*",),
        requires={"conv_kernel_size": 0, "is_decoder": False},
    ),
    "deit": dataclasses.replace(
        _VIT,
        base="deit",
        classifier="DeiTForImageClassification",
        other_heads=(("DeiTForImageClassificationWithTeacher", ("cls_classifier", "distillation_classifier")),),
        trunk="DeiTModel",
        flax=False,
        positions="deit/embeddings/position_embeddings",
        prefix=2,
    ),
    "dinov2": _DINOV2,
    "dinov2_with_registers": dataclasses.replace(
        _DINOV2,
        base="dinov2_with_registers",
        classifier="Dinov2WithRegistersForImageClassification",
        trunk="Dinov2WithRegistersModel",
        flax=False,
        positions="dinov2_with_registers/embeddings/position_embeddings",
        antialias=True,
    ),
    "distilbert": _kin(
        _BERT,
        "DistilBert",
        **NO_WORDS,
        base="distilbert",
        head=("pre_classifier", "classifier"),
        pooler="",
        droppable=(r"vocab_(transform|layer_norm|projector)\..*", r"qa_outputs\..*"),
        requires={},
    ),
    "gpt2": Family(
        base="transformer",
        classifier="GPT2ForSequenceClassification",
        trunk="GPT2Model",
        language="GPT2LMHeadModel",
        flax=True,
        head=("score",),
        conv1d=r".*/(c_attn|c_proj|c_fc)/kernel",
        buffers=(r"h\.\d+\.attn\.(masked_)?bias",),
        droppable=(r"lm_head\..*", r"multiple_choice_head\..*", r"score\..*", r"classifier\..*"),
        tied="transformer/wte/embedding",
        requires={"reorder_and_upcast_attn": False, "add_cross_attention": False},
    ),
    "llama": _LLAMA,
    "mistral": _kin(_LLAMA, "Mistral"),
    "mobilenet_v2": dataclasses.replace(
        _RESNET,
        base="mobilenet_v2",
        classifier="MobileNetV2ForImageClassification",
        trunk="MobileNetV2Model",
        flax=False,
        head=("classifier",),
    ),
    "modernbert": Family(
        base="model",
        classifier="ModernBertForSequenceClassification",
        trunk="ModernBertModel",
        head=("head/dense", "head/norm", "classifier"),
        poolings=("pooler", "mean"),
        droppable=(r"decoder\..*", r"head\..*"),
    ),
    "qwen2": _kin(_LLAMA, "Qwen2", flax=False),
    "qwen3": _kin(_LLAMA, "Qwen3", flax=False),
    "resnet": _RESNET,
    "roberta": _ROBERTA,
    "siglip": Family(
        base="vision_model",
        classifier="SiglipForImageClassification",
        trunk="SiglipVisionModel",
        droppable=(r"head\..*", r"text_model\..*", r"logit_(scale|bias)"),
        positions="vision_model/embeddings/position_embedding/embedding",
        prefix=0,
        part="vision_config",
        part_fields={"vision_use_head": False},  # the head that compares pictures with texts
    ),
    "swin": Family(
        base="swin",
        classifier="SwinForImageClassification",
        trunk="SwinModel",
        buffers=(r".*\.relative_position_index", r".*\.attn_mask"),
        droppable=(r"decoder\..*", r"embeddings\.mask_token"),
        may_be_zero=(r".*/relative_position_bias_table",),
        positions="swin/embeddings/position_embeddings",
        prefix=0,
    ),
    "tljax_events": Family(
        base="transformer",
        classifier="TljaxEventsForClassification",
        trunk="TljaxEventsModel",
        language="TljaxEventsForPretraining",
        words=("next", "item_head"),
        head=("score",),
        droppable=(r"(next|item_head|score)\..*",),
    ),
    "vit": _VIT,
    "xlm-roberta": _kin(_ROBERTA, "XLMRoberta"),
}
