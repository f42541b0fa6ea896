"""From our few numbers to a stock transformers config: the only place that knows how each encoder type spells them.

Attention: `auto` takes torch's fused kernel; on a CPU that multiplies bf16 our own (cpu_attention.py), on others plain
matrix products for rows of up to 128 tokens, where the fused kernel's backward pass costs more than it saves (LOG.md).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModel,
    BertConfig,
    DebertaV2Config,
    ElectraConfig,
    ModernBertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RobertaConfig,
)
from transformers.initialization import no_init_weights
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import is_torch_flex_attn_available

from fast_electra.batching.separation import FLEX, FLEX_BLOCK
from fast_electra.kernels import cpu_attention
from fast_electra.settings.config import EncoderConfig

PLAIN_ATTENTION_TOKENS = 128


def transformers_config(encoder: EncoderConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """The stock config of this shape for this tokenizer's vocabulary, with one label (original or replaced)."""
    common: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": encoder.hidden_size,
        "num_hidden_layers": encoder.num_layers,
        "num_attention_heads": encoder.num_heads,
        "intermediate_size": encoder.intermediate_size,
        "max_position_embeddings": encoder.max_positions,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "num_labels": 1,
    }
    if encoder.model_type == "modernbert":
        modern: dict[str, Any] = {
            "cls_token_id": tokenizer.cls_token_id,
            "sep_token_id": tokenizer.sep_token_id,
            "global_attn_every_n_layers": 1,
            "attention_dropout": encoder.attention_dropout,
            "embedding_dropout": encoder.dropout,
            "mlp_dropout": encoder.dropout,
        }
        return ModernBertConfig(**common, **modern)
    common |= {
        "hidden_dropout_prob": encoder.dropout,
        "attention_probs_dropout_prob": encoder.attention_dropout,
        "type_vocab_size": 2,
    }
    match encoder.model_type:
        case "electra":
            return ElectraConfig(**common, embedding_size=encoder.embedding_size or encoder.hidden_size)
        case "bert":
            return BertConfig(**common)
        case "roberta":
            padded = encoder.max_positions + tokenizer.pad_token_id + 1
            return RobertaConfig(**common | {"max_position_embeddings": padded, "layer_norm_eps": 1e-5})  # as published
        case _:
            return DebertaV2Config(**common, relative_attention=True, pos_att_type=["p2c", "c2p"])


def with_new_weights(
    make: Callable[..., PreTrainedModel], config: PreTrainedConfig, attention: str, dtype: torch.dtype
) -> PreTrainedModel:
    """The model that `make` (a class's from_config) builds, its weights a function of torch's seed alone.

    Under ZeRO-3 transformers builds an empty model and draws the weights module by module afterwards; without it, the
    building draws too. Doing the same here gives the same weights under every ZeRO stage.
    """
    settings: dict[str, Any] = {"attn_implementation": attention, "dtype": dtype}
    if is_deepspeed_zero3_enabled():
        return make(config, **settings)
    with no_init_weights():
        model = make(config, **settings)
    model.init_weights()
    return model


def recompute_activations(module: nn.Module) -> None:
    """Have the layers of all stock models in `module` keep their inputs alone and compute the rest again in backward.

    Losses and gradients are the same, dropout included. Raises ValueError for a model whose layers cannot do it.
    """
    models = [each for each in module.modules() if isinstance(each, PreTrainedModel)]
    within = {id(each) for model in models for each in model.modules() if each is not model}
    for model in (each for each in models if id(each) not in within):
        if not model.supports_gradient_checkpointing:
            raise ValueError(
                f"run.activation_checkpointing = True: {type(model).__name__} cannot compute its layers again; leave "
                "it out, or choose another encoder.model_type"
            )
        # Before transformers 5.23 it has the older name alone, from then on that one warns.
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})


def attention_kernel(
    encoder: EncoderConfig,
    sequence_length: int,
    device: torch.device,
    dtype: torch.dtype,
    separate_documents: bool = False,
) -> str:
    """The name transformers gives the attention to train with: what the config asks for, or the fastest one.

    FlexAttention, which alone skips what lies between documents, needs CUDA, heads of 16 and no attention dropout. It
    skips in blocks of 128 tokens, so that in rows of one block it has nothing to skip.
    """
    if encoder.model_type == "deberta-v2":
        return "eager"
    if encoder.attention != "auto":
        return encoder.attention
    skips = separate_documents and sequence_length > FLEX_BLOCK
    flexible = encoder.attention_dropout == 0 and encoder.hidden_size // encoder.num_heads >= 16
    if skips and flexible and device.type == "cuda" and is_torch_flex_attn_available():
        return FLEX
    if device.type != "cpu":
        return "sdpa"
    if cpu_attention.covers(encoder, sequence_length, dtype) and not cpu_attention.missing():
        return cpu_attention.NAME
    return "eager" if sequence_length <= PLAIN_ATTENTION_TOKENS else "sdpa"


def positions_available(config: PreTrainedConfig) -> int:
    """The longest row that a pre-trained model of this config has positions for.

    RoBERTa and its kin (CamemBERT, MPNet, XLM-R ...) number positions from that of their padding on, which the model's
    embeddings tell and its config does not.
    """
    positions = int(getattr(config, "max_position_embeddings", 0) or 0)
    positions = positions if positions > 0 else 10**9  # XLNet says -1
    with torch.device("meta"):
        modules = AutoModel.from_config(config).named_modules()
    padded = (getattr(module, "padding_idx", None) for name, module in modules if name.endswith("position_embeddings"))
    return positions - max((padding for padding in padded if padding is not None), default=-1) - 1
