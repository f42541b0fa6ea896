"""The FLOPs of a run's tokens, for its MFU, and what keeping documents apart leaves of them.

A block mask leaves nothing out: the whole square of a row is computed and counted, as it is without one, and no saving
is claimed. Where FlexAttention skips what lies between documents, the rest alone is counted.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedConfig

from fast_electra.batching.batches import Batches
from fast_electra.batching.separation import FLEX
from fast_electra.costs import flops
from fast_electra.costs.model_flops import FAMILIES
from fast_electra.settings.config import Config


def flops_per_token(
    config: Config,
    shapes: tuple[PreTrainedConfig, PreTrainedConfig | None],
    micro_batch_rows: int,
    document_lengths: NDArray[np.int64] | None = None,
) -> float:
    """Model FLOPs for each token of a step; NaN, and MFU with it, for an auxiliary model of a type not counted.

    `shapes` are the discriminator's and the auxiliary model's; `document_lengths` where documents are apart.
    """
    if shapes[1] is not None and shapes[1].model_type not in FAMILIES:
        return math.nan
    return flops.model_flops_per_token(
        config.objective,
        *shapes,
        batch_rows=micro_batch_rows,
        sequence_length=config.data.sequence_length,
        num_masked=config.data.num_masked,
        document_lengths=document_lengths,
    )


def counted(
    config: Config,
    batches: Batches,
    shapes: tuple[PreTrainedConfig, PreTrainedConfig | None],
    micro_batch_rows: int,
    attention: str,
) -> tuple[float, dict[str, Any]]:
    """FLOPs a token as MFU counts them under the kernel `attention`, and what a summary says of separated documents.

    `separated_attention_share` of the discriminator's attention scores lies within documents, and with it
    `separated_flops_share` of all FLOPs; `separation_skips` tells whether the rest is left out.
    """
    whole = flops_per_token(config, shapes, micro_batch_rows)
    if not config.data.separate_documents:
        return whole, {}
    lengths = batches.document_lengths()
    apart = flops_per_token(config, shapes, micro_batch_rows, lengths)
    facts = {
        "separated_attention_share": flops.attention_share(shapes[0], lengths, config.data.sequence_length),
        "separated_flops_share": apart / whole,
        "separation_skips": attention == FLEX,
    }
    return apart if attention == FLEX else whole, facts
