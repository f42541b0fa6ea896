"""Weights of models in training, wherever their parts lie: under ZeRO-3 each process holds a share of every one."""

from collections.abc import Iterator, Mapping

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor, nn

from fast_electra.engine import parallel
from fast_electra.models.auxiliary import MaskedLM
from fast_electra.models.discriminator import ReplacedTokenDetection
from fast_electra.models.initial_weights import Beginning


def begin(module: nn.Module, beginning: Beginning) -> None:
    """Put what a run begins with into the models within `module`, and let go of it."""
    for part in module.modules():
        if isinstance(part, ReplacedTokenDetection):
            assign_weights(part.model.base_model, beginning.encoder)
            beginning.encoder.clear()
        elif isinstance(part, MaskedLM):
            assign_weights(part.model, beginning.masked_lm)
            beginning.masked_lm.clear()


def assign_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put `weights` in the place of the model's of the same names.

    Those that ZeRO-3 has split are gathered one at a time, and the first process's value is kept.
    """
    for name, parameter in model.named_parameters():
        if name in weights:
            with torch.no_grad(), deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                parameter.copy_(weights[name])


def weights_are_finite(engine: parallel.Engine) -> bool:
    """Whether all weights are, those held by other processes included. All processes take part."""
    device = parallel.device()  # offloaded shares lie on the host, small weights beside them on the GPU
    here = torch.stack([_own(p).isfinite().all().to(device) for p in engine.module.parameters()])
    return not parallel.sum_over_processes((~here).any().int()).item()


def _own(parameter: nn.Parameter) -> Tensor:
    """What this process holds of a weight.

    Under ZeRO-3 all shares of one have the same size: the last are filled up with memory that nobody ever wrote to,
    which is left out here.
    """
    share: Tensor | None = getattr(parameter, "ds_tensor", None)
    if share is None:
        return parameter.detach()
    return share[: max(0, _elements(parameter) - share.numel() * parallel.rank())]


def _elements(parameter: nn.Parameter) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def full_weights(engine: parallel.Engine, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, float32 master weight on the CPU) one at a time, gathered from wherever its parts lie; all take part."""
    for name, parameter in module.named_parameters():
        weight = safe_get_full_fp32_param(parameter)
        assert weight is not None, f"DeepSpeed has no master weight of {name}"
        yield name, weight.detach().to("cpu", copy=True)


def local_weight_elements(module: nn.Module) -> int:
    """How many weight elements this process holds now: under ZeRO-3, its share."""
    return sum(getattr(p, "ds_tensor", p).numel() for p in module.parameters())


def num_weights(module: nn.Module) -> int:
    """Weight elements of the whole module, wherever its parts lie."""
    return sum(map(_elements, module.parameters()))
