"""The discriminator: a stock transformers encoder with a one-logit head per token, and the replaced-token loss.

ELECTRA is `ElectraForPreTraining`; every other encoder type goes through its token classification class with one
label, so that what is exported loads with stock transformers, head included. The loss is binary cross-entropy over
all tokens that are not padding (Clark et al., ICLR 2020); a sample that equals the original counts as original.

Shapes: B rows, T tokens a row.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForTokenClassification, ElectraForPreTraining, PreTrainedConfig, PreTrainedModel

from fast_electra.batching import separation
from fast_electra.batching.separation import WHOLE_ROWS
from fast_electra.models.encoder import with_new_weights

LABEL = "replaced"  # the name of the one output, in what is exported


def build(config: PreTrainedConfig, attention: str, dtype: torch.dtype) -> PreTrainedModel:
    """A discriminator with new weights."""
    electra = config.model_type == "electra"
    make = ElectraForPreTraining._from_config if electra else AutoModelForTokenClassification.from_config
    return with_new_weights(make, config, attention, dtype)


class ReplacedTokenDetection(nn.Module):
    """What the engine trains for the discriminator: tokens and labels in, loss and logits out."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.pad_id = model.config.pad_token_id
        separation.prepare(model)

    def forward(self, input_ids: Tensor, labels: Tensor, position_ids: Tensor = WHOLE_ROWS) -> tuple[Tensor, Tensor]:
        """Mean loss and the logits (B, T) that tokens `input_ids` (B, T) were replaced; `labels` (B, T) are 1 there."""
        logits = self.model(input_ids=input_ids, **separation.inputs(self.model, position_ids)).logits
        logits = logits.squeeze(-1) if logits.dim() == 3 else logits  # (B, T)
        return loss(logits, labels, input_ids != self.pad_id), logits


def loss(logits: Tensor, labels: Tensor, counted: Tensor) -> Tensor:
    """Binary cross-entropy in float32, averaged over the tokens (B, T) where `counted` holds."""
    each = F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none")
    return (each * counted).sum() / counted.sum()


def log_original(logits: Tensor) -> Tensor:
    """Log P(original), float32 (B, T), from logits (B, T) that tokens were replaced."""
    return F.logsigmoid(-logits.float())
