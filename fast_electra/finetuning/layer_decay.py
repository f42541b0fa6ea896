"""Layer-wise learning-rate decay: the nearer a weight stands to the input, the smaller its learning rate.

As google-research/electra has it (model/optimization.py, `_get_layer_lrs`): with L layers, the rate of a weight at
depth d is rate * decay ** (L + 2 - d). Embeddings stand at depth 0, layer i (from 0) at i + 1, what follows the layers
inside the encoder (a last normalisation) at L, the task's head at L + 2.
"""

import re
from typing import Any

from transformers import PreTrainedModel

from fast_electra.engine.optim import exempt_from_decay

_LAYER = re.compile(r"(?:^|\.)(\d+)\.")


def depths(model: PreTrainedModel) -> dict[str, int]:
    """The depth of every weight of a model with a head, by name: 0 the embeddings, L + 2 the head.

    Raises ValueError when the encoder's layers are not numbered 0 to L - 1 (layers that share weights, for example).
    """
    num_layers = int(model.config.num_hidden_layers)
    inside = {id(weight): name for name, weight in model.base_model.named_parameters()}
    found = {
        name: num_layers + 2 if id(weight) not in inside else _depth(inside[id(weight)], num_layers)
        for name, weight in model.named_parameters()
    }
    layers = {depth for name, depth in found.items() if _LAYER.search(inside.get(id(model.get_parameter(name)), ""))}
    if layers != set(range(1, num_layers + 1)):
        raise ValueError(
            f"layer_decay: the {num_layers} layers of a {model.config.model_type!r} encoder cannot be told apart by "
            "the names of its weights; pass --layer_decay 1 (one rate for all of it)"
        )
    return found


def parameter_groups(
    model: PreTrainedModel, learning_rate: float, layer_decay: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer, each with `lr` and `weight_decay`; biases and normalisation are not decayed.

    A `layer_decay` of 1 gives every weight the same rate.
    """
    top = int(model.config.num_hidden_layers) + 2
    depth = depths(model) if layer_decay != 1 else dict.fromkeys((name for name, _ in model.named_parameters()), top)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    without = exempt_from_decay(model)
    for name, weight in model.named_parameters():
        exempt = name in without
        group = groups.setdefault(
            (depth[name], exempt),
            {
                "params": [],
                "lr": learning_rate * layer_decay ** (top - depth[name]),
                "weight_decay": 0.0 if exempt else weight_decay,
            },
        )
        group["params"].append(weight)
    return list(groups.values())


def _depth(name: str, num_layers: int) -> int:
    """The depth of an encoder's weight by its name within the encoder."""
    if layer := _LAYER.search(name):
        return int(layer[1]) + 1
    if "pooler" in name:
        return num_layers + 2
    return 0 if "embed" in name else num_layers
