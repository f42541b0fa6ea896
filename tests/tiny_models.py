"""Tiny stock models of every encoder type, of odd sizes, with the LM head on the masked positions as in training."""

from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForTokenClassification,
    BertConfig,
    CamembertConfig,
    DebertaV2Config,
    ElectraConfig,
    ElectraForPreTraining,
    ModernBertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    XLMRobertaConfig,
)

from fast_electra.costs.model_flops import FAMILIES

# Odd sizes throughout, so that no two dimensions can be exchanged unseen.
ROWS, LENGTH, MASKED, VOCABULARY = 3, 20, 4, 97
SHAPE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 56}
POSITIONS = torch.tensor([[1, 3, 4, 7], [2, 9, 11, 19], [5, 6, 12, 18]])
MASK_TOKEN = VOCABULARY - 1


def bert_like(config_class: type[PreTrainedConfig], **changes: Any) -> PreTrainedConfig:
    sizes = {"vocab_size": VOCABULARY, "max_position_embeddings": 40, "attention_probs_dropout_prob": 0.0}
    return config_class(**(sizes | SHAPE | {"num_labels": 1} | changes))


def modernbert(**changes: Any) -> ModernBertConfig:
    special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0)
    sizes = SHAPE | {"vocab_size": VOCABULARY, "num_labels": 1} | changes
    layers = {"layer_types": ["full_attention"] * sizes["num_hidden_layers"]}
    return ModernBertConfig(**(special | layers | sizes))


def deberta(**changes: Any) -> PreTrainedConfig:
    v3 = {"relative_attention": True, "position_buckets": 7, "norm_rel_ebd": "layer_norm", "share_att_key": True}
    return bert_like(DebertaV2Config, **(v3 | {"pos_att_type": "p2c|c2p", "position_biased_input": False} | changes))


WINDOWS = ["full_attention", "sliding_attention", "sliding_attention"]
CONFIGS = {
    "electra": bert_like(ElectraConfig, embedding_size=24),
    "electra without a projection": bert_like(ElectraConfig, embedding_size=32),
    "bert": bert_like(BertConfig),
    "roberta": bert_like(RobertaConfig, pad_token_id=1),
    "xlm-roberta": bert_like(XLMRobertaConfig, pad_token_id=1),
    "camembert": bert_like(CamembertConfig, pad_token_id=1),
    "deberta-v2": deberta(),
    "deberta-v2 with position projections": deberta(share_att_key=False, pos_att_type="c2p", position_buckets=-1),
    "deberta-v2 with a projection unused": deberta(pos_att_type="p2c", max_relative_positions=9, position_buckets=-1),
    "deberta-v2 with absolute positions": deberta(relative_attention=False, embedding_size=24),
    "deberta-v2 with convolution and new head": deberta(conv_kernel_size=3, legacy=False),
    "modernbert": modernbert(),
    "modernbert with windows": modernbert(layer_types=WINDOWS, local_attention=10),
}
FUSED = [name for name, config in CONFIGS.items() if FAMILIES[config.model_type].fused_attention]


def build(config: PreTrainedConfig, head: str, attention: str = "fused") -> PreTrainedModel:
    """A stock model in training mode; `head` is "rtd_head" or "lm_head" (on the masked positions only)."""
    fused = FAMILIES[config.model_type].fused_attention and attention == "fused"
    implementation = "sdpa" if fused else "eager"
    if head == "lm_head":
        model = AutoModelForMaskedLM.from_config(config, attn_implementation=implementation)
        model.base_model.register_forward_hook(keep_masked_positions)
    elif config.model_type == "electra":
        model = ElectraForPreTraining._from_config(config, attn_implementation=implementation)
    else:
        model = AutoModelForTokenClassification.from_config(config, attn_implementation=implementation)
    return model.train()


def keep_masked_positions(module: nn.Module, args: Any, output: Any) -> Any:
    """(B, T, H) -> (B, N, H), so that the model's own head runs on the masked positions."""
    hidden = output.last_hidden_state
    at = POSITIONS.to(hidden.device)[..., None].expand(-1, -1, hidden.shape[-1])
    output["last_hidden_state"] = hidden.gather(1, at)
    return output
