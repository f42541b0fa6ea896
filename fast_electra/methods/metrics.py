"""Metrics as sums: each batch adds a vector of counts on the device, fetched and divided only when a step is logged.

Sums over processes and batches are exact, so that a figure does not depend on how rows were split. ROC-AUC comes from
two histograms of the logits, of original and of replaced tokens, each 1/128 wide from -16 to 16: ties within a bin
count half.

The majority-class floor is the loss of always predicting the share p of replaced tokens, the entropy
-p ln p - (1 - p) ln(1 - p): a discriminator that has learned nothing else sits there.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

NUM_BINS, LIMIT = 4096, 16.0
_SUMS = 5


def rtd_counts(logits: Tensor, labels: Tensor, counted: Tensor) -> Tensor:
    """Float64 sums over the tokens (B, T) where `counted`: tokens, loss, replaced, predicted, hits, two histograms."""
    logits, labels, counted = logits.detach().float().flatten(), labels.flatten(), counted.flatten()
    weight = counted.double()
    replaced, predicted = labels.double() * weight, (logits > 0).double() * weight
    each = F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").double() * weight
    place = ((logits.clamp(-LIMIT, LIMIT) + LIMIT) * (NUM_BINS / (2 * LIMIT))).long().clamp_(0, NUM_BINS - 1)
    histograms = torch.zeros(2 * NUM_BINS, dtype=torch.float64, device=logits.device)
    histograms.scatter_add_(0, place + NUM_BINS * labels.long(), weight)
    sums = torch.stack([weight.sum(), each.sum(), replaced.sum(), predicted.sum(), (predicted * replaced).sum()])
    return torch.cat([sums, histograms])


def rtd_report(counts: Tensor, masked_share: float) -> dict[str, float]:
    """What the counts say. `auxiliary_accuracy` is the share of samples that equal the original token."""
    tokens, total_loss, replaced, predicted, hits = counts[:_SUMS].tolist()
    share = replaced / tokens
    return {
        "loss": total_loss / tokens,
        "floor": binary_entropy(share),
        "replaced_share": share,
        "auxiliary_accuracy": 1 - share / masked_share,
        "precision": hits / predicted if predicted else 0.0,
        "recall": hits / replaced if replaced else 0.0,
        "roc_auc": roc_auc(counts[_SUMS : _SUMS + NUM_BINS], counts[_SUMS + NUM_BINS :]),
    }


@torch.no_grad()
def mlm_counts(loss: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """Float64 sums over the masked positions (B, N) of logits (B, N, V) whose mean `loss` is known: positions, loss,
    hits."""
    hits = (logits.argmax(dim=-1) == targets).sum().double()
    return torch.stack([torch.full_like(hits, targets.numel()), loss.double() * targets.numel(), hits])


def mlm_report(counts: Tensor) -> dict[str, float]:
    """What the counts say: mean loss and the share of masked tokens predicted."""
    positions, total_loss, hits = counts.tolist()
    return {"loss": total_loss / positions, "accuracy": hits / positions}


def binary_entropy(share: float) -> float:
    """-p ln p - (1 - p) ln(1 - p), in nats."""
    return -sum(p * math.log(p) for p in (share, 1 - share) if p > 0)


def roc_auc(original: Tensor, replaced: Tensor) -> float:
    """The chance that a replaced token scores above an original one, from histograms (bins,) of their logits.

    NaN when one of them is empty.
    """
    below = original.cumsum(0) - original
    pairs = original.sum() * replaced.sum()
    return float((replaced * (below + original / 2)).sum() / pairs) if pairs > 0 else math.nan
