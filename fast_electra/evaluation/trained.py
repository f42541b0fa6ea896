"""A trained model from its folder, ready to score sentences: a discriminator or a masked LM, of ours or of the hub."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForTokenClassification,
    ElectraForPreTraining,
    PreTrainedTokenizerBase,
)

from fast_electra.corpora import tokenizer as tokenizers
from fast_electra.evaluation import blimp
from fast_electra.kernels import precision
from fast_electra.methods import objectives
from fast_electra.models import discriminator


class _NotScorableError(ValueError):
    """A model of a kind that scores no sentence."""


@dataclass(frozen=True)
class Trained:
    """A trained model, frozen. `module` takes what its training took: see ReplacedTokenDetection and MaskedLMLoss."""

    path: str
    kind: str  # "discriminator" or "masked_lm"
    module: nn.Module
    tokenizer: PreTrainedTokenizerBase

    def token_scores(self, input_ids: Tensor) -> Tensor:
        """How well each token (B, T) fits: log P(original), or the pseudo-log-likelihood of a masked LM."""
        if self.kind == "discriminator":
            labels = torch.zeros_like(input_ids, dtype=torch.uint8)
            return discriminator.log_original(self.module(input_ids, labels)[1])
        special = torch.tensor([self.tokenizer.mask_token_id, *self.tokenizer.all_special_ids], device=input_ids.device)
        return objectives.pseudo_log_likelihood(self.module, input_ids, special)


def open_model(path: str, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> Trained:
    """The model in a folder or on the hub, by the class that its config names.

    `dtype` None is what this machine computes fast: bfloat16 or float32.

    Raises ValueError when it is neither a discriminator nor a masked LM, or when weights of its head are missing.
    """
    dtype = dtype or precision.dtype("auto", torch.device(device).type == "cpu")
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        name = (config.architectures or [""])[0]
        kind = "masked_lm" if name.endswith("ForMaskedLM") else "discriminator"
        stock: Any = _class_of(name, path)
        model, info = stock.from_pretrained(
            path, config=config, dtype=dtype, output_loading_info=True, weights_only=True, trust_remote_code=False
        )
    except _NotScorableError:
        raise
    except Exception as error:  # whatever a damaged or foreign file makes transformers, safetensors or torch raise
        raise ValueError(f"model {path!r} cannot be loaded ({error}); name a folder runs/NAME/export") from error
    absent = sorted(info["missing_keys"])
    if absent or (kind == "discriminator" and config.num_labels != 1 and name != "ElectraForPreTraining"):
        raise ValueError(
            f"model {path!r} has no trained replaced-token or masked-LM head ({name}, absent: {absent[:3]}); name the "
            "export of a pre-training run, or an ELECTRA discriminator or masked LM of the hub"
        )
    wrap = objectives.MaskedLMLoss if kind == "masked_lm" else discriminator.ReplacedTokenDetection
    module = wrap(model).eval().requires_grad_(False).to(device)
    return Trained(path, kind, module, tokenizers.load(path))


def _class_of(name: str, path: str) -> Any:
    if name == "ElectraForPreTraining":
        return ElectraForPreTraining
    if name.endswith("ForTokenClassification"):
        return AutoModelForTokenClassification
    if name.endswith("ForMaskedLM"):
        return AutoModelForMaskedLM
    raise _NotScorableError(
        f"model {path!r} is a {name or 'bare encoder'}, and can score no sentence; name the export of a pre-training "
        "run, or an ELECTRA discriminator or masked LM of the hub"
    )


def blimp_accuracy(model: Trained, pairs: Sequence[blimp.Pair]) -> dict[str, Any]:
    """BLiMP's report with what it took: `seconds_per_1000_pairs`, loading left out."""
    device = next(model.module.parameters()).device
    how = blimp.Score(model.token_scores, model.tokenizer.all_special_ids, device)
    start = time.perf_counter()
    scores = blimp.sentence_scores(blimp.encode(pairs, model.tokenizer), how)
    seconds = time.perf_counter() - start
    return blimp.report(pairs, scores) | {"seconds_per_1000_pairs": 1000 * seconds / len(pairs)}
