"""An update's float32 sums of gradients, with as few passes over memory as they take.

DeepSpeed blanks the sums after each update and adds every gradient through a widened copy of it; under ZeRO-3 it also
copies each gradient into one buffer after another to reduce it, one process with itself, and all sums once more to hand
them to AdamW. Here the first gradient of an update is copied in the place of old sums, the next are widened a cache at
a time, a process by itself reduces nothing, and AdamW reads the sums where they lie. The sums are the same numbers, but
for a weight that no gradient comes to in an update under ZeRO-3: DeepSpeed trains it by its sum of before again, which
AdamW, where it clips, has scaled in place by then. Each of our objectives has a gradient for each weight.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero import stage3
from torch import Tensor, nn

_PIECE = 1 << 18  # numbers, of which the widened copy stays in a core's cache

_reduced_and_scattered = stage3.reduce_scatter_coalesced


def install(engine: DeepSpeedEngine) -> None:
    """Have an engine sum so under ZeRO-1 in bf16, and under ZeRO-3. Others sum as DeepSpeed does."""
    optimizer: Any = engine.optimizer
    if isinstance(optimizer, BF16_Optimizer):
        if dist.get_world_size() == 1:
            engine.enable_backward_allreduce = False  # which would copy all sums out and back
        optimizer._update_hp_grad = partial(_add, optimizer)
        optimizer.clear_hp_grads = partial(_begin_anew, optimizer)
        for name in ("get_grads_for_reduction", "get_grads_for_norm"):
            setattr(optimizer, name, partial(_when_complete, optimizer, getattr(optimizer, name)))
    elif isinstance(optimizer, stage3.DeepSpeedZeroOptimizer_Stage3):
        stage3.reduce_scatter_coalesced = _reduce_and_scatter
        hand_over = optimizer._prepare_fp32_grad_for_sub_group
        optimizer._prepare_fp32_grad_for_sub_group = partial(_in_place, optimizer, hand_over)


@torch.no_grad()
def _add(optimizer: Any, weight: nn.Parameter, group: int, index: int, clear_lp_grads: bool) -> None:
    """What `BF16_Optimizer._update_hp_grad` does: a weight's gradient into its place among the float32 sums."""
    if weight.grad is None:
        return
    total, begun = optimizer.fp32_groups_gradients[group][index], optimizer.fp32_groups_has_gradients[group]
    if begun[index]:
        _add_widened(total.view(-1), weight.grad.reshape(-1))
    else:
        total.view(-1).copy_(weight.grad.reshape(-1))
    begun[index], weight._hp_grad = True, total  # type: ignore[attr-defined]
    if clear_lp_grads:
        weight.grad.zero_()


def _add_widened(total: Tensor, gradient: Tensor) -> None:
    """Add in float32; a GPU widens as it reads, torch on a CPU makes a copy of what it is given first."""
    size = max(1, total.numel()) if total.is_cuda else _PIECE
    for mine, given in zip(total.split(size), gradient.split(size), strict=True):
        mine.add_(given)


def _begin_anew(optimizer: Any) -> None:
    """The update is made: the next gradients take the place of these sums."""
    optimizer.fp32_groups_has_gradients = [[False] * len(group) for group in optimizer.fp32_groups_gradients]


def _when_complete(optimizer: Any, gradients: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The sums, once weights that no gradient came to have zero, and not what an earlier update left."""
    for totals, begun in zip(optimizer.fp32_groups_gradients, optimizer.fp32_groups_has_gradients, strict=True):
        for index, total in enumerate(totals):
            if not begun[index]:
                total.zero_()
                begun[index] = True
    return gradients(*args, **kwargs)


def _reduce_and_scatter(tensors: list[Tensor], group: Any = None) -> list[Tensor]:
    """The mean over a group's processes, this one's part of each: by itself it has all of them as they are."""
    if dist.get_world_size(group) == 1:
        return [tensor.reshape(-1) for tensor in tensors]
    parts: list[Tensor] = _reduced_and_scattered(tensors, group)
    return parts


def _in_place(optimizer: Any, hand_over: Callable[[int], None], group: int) -> None:
    """`hand_over` a group's sums to AdamW; as one tensor, of which DeepSpeed makes no copy, where they lie in a row."""
    parts = [part.view(-1) for part in optimizer.averaged_gradients[group]]
    ends = [part.data_ptr() + part.nbytes for part in parts]
    if all(part.data_ptr() == end for part, end in zip(parts[1:], ends, strict=False)):
        whole = parts[0].as_strided((sum(part.numel() for part in parts),), (1,))
        optimizer.averaged_gradients[group] = [whole]
    hand_over(group)
