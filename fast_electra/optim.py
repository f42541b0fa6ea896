"""Learning rate and weight decay: AdamW with linear warm-up and linear decay, as pure functions."""

from typing import Any

from torch import nn

from fast_electra.run_config import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The rate for update `step` (from 0) of `steps`: up over the first `warmup_ratio`, then down to 0 at the end."""
    warmup_steps = round(config.warmup_ratio * steps)
    if step < warmup_steps:
        return config.peak_learning_rate * (step + 1) / warmup_steps
    return config.peak_learning_rate * (steps - step) / max(1, steps - warmup_steps)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices with weight decay; biases and normalisation weights without (BERT's and ELECTRA's rule)."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    exempt = [parameter for name, parameter in named if exempt_from_decay(name)]
    ids = {id(parameter) for parameter in exempt}
    return [
        {"params": [parameter for _, parameter in named if id(parameter) not in ids], "weight_decay": weight_decay},
        {"params": exempt, "weight_decay": 0.0},
    ]


def exempt_from_decay(name: str) -> bool:
    """Whether the weight of this name is a bias or belongs to a normalisation."""
    return name.endswith("bias") or "norm" in name.lower()
