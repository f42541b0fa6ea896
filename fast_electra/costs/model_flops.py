"""FLOPs of one pass through a stock transformers model, from its configuration alone: exact, before any model exists.

Only matrix products count, multiply and add apart. In the backward pass a product costs twice its forward, once for
the gradient of each operand: embeddings are trained, so that no product's input goes without one. Embedding look-ups,
normalisation, softmax and activations are left out, as `torch.utils.flop_counter` leaves them out; the counts here
equal its counts of a real step to the last digit (tests/test_flops.py).

One part has more than one right answer, the attention scores, so that a count says which it is (`attention=`):
  "model"  what the model asks for: backward = 2 x forward, pairs outside a sliding window left out. MFU uses this one.
  "math"   what unfused attention executes: the whole T x T square, masked afterwards.
  "fused"  what torch's fused kernels execute: as "math", and the backward pass computes the scores once more (5
           products where the forward has 2), the price of never storing them.

B rows, T tokens a row, H hidden size, E embedding size, V vocabulary.
"""

from collections.abc import Mapping
from typing import NamedTuple

from transformers import PreTrainedConfig

PARTS = ("embedding_projection", "attention_projections", "attention_scores", "feed_forward", "rtd_head", "lm_head")

Parts = dict[str, int]  # FLOPs by part; a part that the model lacks is absent


class Family(NamedTuple):
    """What sets one model type's matrix products apart from another's."""

    embedding_projection: bool  # an H x E product where the embedding size E differs from H
    feed_forward_matrices: int  # 2, or 3 with a gate
    rtd_dense: bool  # an H x H product before the replaced-token logit
    fused_attention: bool  # computed by torch's scaled_dot_product_attention


_BERT_LIKE = Family(False, 2, False, True)
FAMILIES: Mapping[str, Family] = {
    "electra": Family(True, 2, True, True),
    "bert": _BERT_LIKE,
    "roberta": _BERT_LIKE,
    "xlm-roberta": _BERT_LIKE,
    "camembert": _BERT_LIKE,
    "deberta-v2": Family(True, 2, False, False),
    "modernbert": Family(False, 3, True, True),
}


def encoder_forward(config: PreTrainedConfig, batch_rows: int, sequence_length: int, attention: str = "model") -> Parts:
    """FLOPs of one forward pass of the bare encoder over (B, T) tokens, by part.

    Raises ValueError for a model type that is not in `FAMILIES`, a size below 1, or an unknown `attention`.
    """
    family = _family(config)
    check_sizes(batch_rows=batch_rows, sequence_length=sequence_length)
    if attention not in ("model", "math", "fused"):
        raise ValueError(f"attention={attention!r} is not a way to count attention: use 'model', 'math' or 'fused'")
    tokens, hidden, layers = batch_rows * sequence_length, config.hidden_size, config.num_hidden_layers
    embedding = _embedding_size(config)
    feed_forward = layers * family.feed_forward_matrices * hidden * config.intermediate_size + _convolution(config)
    parts = {"embedding_projection": 2 * tokens * embedding * hidden} if embedding != hidden else {}
    return parts | {
        "attention_projections": layers * (8 * tokens * hidden**2 + _position_projections(config)[0]),
        "attention_scores": _attention_scores(config, batch_rows, sequence_length, attention),
        "feed_forward": 2 * tokens * feed_forward,
    }


def encoder_backward(
    config: PreTrainedConfig, batch_rows: int, sequence_length: int, attention: str = "model"
) -> Parts:
    """FLOPs of the backward pass through the bare encoder, by part. Raises what `encoder_forward` raises."""
    parts = twice(encoder_forward(config, batch_rows, sequence_length, attention))
    computed, used = _position_projections(config)
    parts["attention_projections"] -= 2 * config.num_hidden_layers * (computed - used)
    if attention == "fused" and _family(config).fused_attention:
        parts["attention_scores"] += parts["attention_scores"] // 4  # the scores once more: 5 products, not 4
    return parts


def rtd_head_forward(config: PreTrainedConfig, batch_rows: int, sequence_length: int) -> Parts:
    """FLOPs of the replaced-token head's forward pass: one logit for each of (B, T) tokens.

    The head is that of `ElectraForPreTraining`, for other model types of the one-label token classification class.
    """
    dense = config.hidden_size**2 if _family(config).rtd_dense else 0
    return {"rtd_head": 2 * batch_rows * sequence_length * (dense + config.hidden_size)}


def lm_head_forward(config: PreTrainedConfig, num_positions: int) -> Parts:
    """FLOPs of the masked-LM head's forward pass over `num_positions` hidden states: a transform, then V logits each.

    `num_positions` is B x N where the head runs on the masked positions only, B x T where it runs on all.
    """
    width = _embedding_size(config)  # the decoder is the embedding table, transposed
    return {"lm_head": 2 * num_positions * (config.hidden_size * width + width * config.vocab_size)}


def twice(parts: Parts) -> Parts:
    """The backward pass of plain matrix products: one more product for the gradient of each of their two operands."""
    return {part: 2 * count for part, count in parts.items()}


def check_sizes(**sizes: int) -> None:
    """Raises ValueError for a size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}={size}: must be at least 1")


def _family(config: PreTrainedConfig) -> Family:
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"FLOPs of model type {config.model_type!r} are not known: use one of {', '.join(FAMILIES)}, "
            "or add its row to fast_electra.costs.model_flops.FAMILIES and to tests/test_flops.py"
        )
    return FAMILIES[config.model_type]


def _embedding_size(config: PreTrainedConfig) -> int:
    return (
        getattr(config, "embedding_size", config.hidden_size)
        if _family(config).embedding_projection
        else config.hidden_size
    )


def _attention_scores(config: PreTrainedConfig, batch_rows: int, sequence_length: int, attention: str) -> int:
    """FLOPs, forward, of queries x keys and weights x values in all layers, DeBERTa's position products among them."""
    pairs = [sequence_length**2] * config.num_hidden_layers
    if attention == "model" and config.model_type == "modernbert":
        window = min(config.sliding_window, sequence_length - 1)  # how far a token sees to either side
        inside = sequence_length * (2 * window + 1) - window * (window + 1)
        pairs = [inside if kind == "sliding_attention" else sequence_length**2 for kind in config.layer_types]
    positions = len(_position_kinds(config)) * config.num_hidden_layers * sequence_length * _num_distances(config)
    return 2 * batch_rows * config.hidden_size * (2 * sum(pairs) + positions)


# DeBERTa-v2 alone: products of content with a table of relative distances, and a convolution in its xlarge sizes.


def _position_kinds(config: PreTrainedConfig) -> list[str]:
    """Which products of content ("c") and relative position ("p") the model's attention adds."""
    if config.model_type != "deberta-v2" or not config.relative_attention:
        return []
    return [kind for kind in ("c2p", "p2c") if kind in (config.pos_att_type or [])]


def _num_distances(config: PreTrainedConfig) -> int:
    """Rows of the table of relative distances; 0 for a model without one."""
    if config.model_type != "deberta-v2" or not config.relative_attention:
        return 0
    buckets, furthest = getattr(config, "position_buckets", -1), config.max_relative_positions
    return 2 * (buckets if buckets > 0 else furthest if furthest > 0 else config.max_position_embeddings)


def _position_projections(config: PreTrainedConfig) -> tuple[int, int]:
    """FLOPs, forward, of one layer's projections of the table of distances: (computed, used by the scores)."""
    one = 2 * _num_distances(config) * config.hidden_size**2
    used = len(_position_kinds(config))
    return (2 if getattr(config, "share_att_key", False) else used) * one, used * one


def _convolution(config: PreTrainedConfig) -> int:
    """Weights of the convolution beside the first layer, counted as feed-forward."""
    if config.model_type != "deberta-v2":
        return 0
    return getattr(config, "conv_kernel_size", 0) * config.hidden_size**2 // getattr(config, "conv_groups", 1)
