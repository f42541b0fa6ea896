"""Updates whose gradients are not finite are left out, and the device is not asked about it while it works.

DeepSpeed asks several times an update (whether a gradient has overflowed; the norm, once and once more for each group
of weights), and after each answer the device stands still until the next kernels have started. Here the norm stays on
the device: torch's fused AdamW takes what comes of it as `grad_scale` and `found_inf`, clips by the one and, where the
other is 1, leaves weights, moments and its count of updates as they were. The verdict is read when it has long come.
(Under ZeRO-3 DeepSpeed still waits for its reductions at the end of each backward.)
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime import bf16_optimizer
from deepspeed.runtime.zero import stage3, stage_1_and_2
from torch import Tensor

_STABILISER = 1e-6  # added to the norm, as DeepSpeed and torch do
_PIECE = 1 << 16

Replaced: TypeAlias = tuple[Any, str, Callable[..., Any]]  # what stands where under which name while a step is made


def install(optimizer: Any) -> None:
    """Have a ZeRO optimizer decide on the device.

    Where its state is offloaded, or AdamW is not the fused one, DeepSpeed goes on asking.
    """
    adam = optimizer.optimizer
    offloads = any(getattr(optimizer, name, False) for name in ("cpu_offload", "offload_optimizer"))
    if not offloads and isinstance(adam, torch.optim.AdamW) and adam.defaults["fused"]:
        optimizer.step = partial(_step, optimizer, list(_replaced(optimizer)))


def _replaced(optimizer: Any) -> Iterator[Replaced]:
    """What asks, or clips, in the step of each of DeepSpeed's optimizers."""
    if isinstance(optimizer, bf16_optimizer.BF16_Optimizer):  # ZeRO-1 in bf16: whole gradients on each process
        yield bf16_optimizer, "get_global_norm_of_tensors", lambda input_tensors, **_: _judge(optimizer, input_tensors)
        yield bf16_optimizer, "clip_tensors_by_global_norm", lambda **_: None
        yield bf16_optimizer, "is_invalid_grad_norm", lambda _norm: False
    elif isinstance(optimizer, stage3.DeepSpeedZeroOptimizer_Stage3):
        process_group = optimizer._get_param_partition_group(optimizer.fp16_groups[0][0])
        yield optimizer, "_get_norm_groups", lambda: [_judge(optimizer, _parts(optimizer), process_group)]
        yield stage3, "combine_grad_norm_groups", lambda norms: norms[0]
        yield optimizer, "unscale_and_clip_grads", lambda _group, _norm: None
        yield stage3, "is_invalid_grad_norm", lambda _norm: False
    else:
        process_group = optimizer.dp_process_group
        yield optimizer, "check_overflow", lambda **_: None
        yield optimizer, "scaled_global_norm", lambda: _judge(optimizer, _parts(optimizer), process_group)
        yield optimizer, "unscale_and_clip_grads", lambda _gradients, _norm: None
        yield stage_1_and_2, "is_invalid_grad_norm", lambda _norm: False


def _parts(optimizer: Any) -> list[Tensor]:
    """This process's part of all gradients."""
    return [gradient for group in optimizer.averaged_gradients.values() for gradient in group]


def _judge(optimizer: Any, gradients: list[Tensor], process_group: Any = None) -> Tensor:
    """The L2 norm of all gradients, and what AdamW is to do by it; each process of the group, if any, has a part."""
    device = torch.device(get_accelerator().current_device_name())
    pieces = gradients
    if device.type == "cpu":  # where many float32 squares in one sum lose what each adds: 1 % of the norm of 90 million
        pieces = [piece for gradient in gradients for piece in gradient.flatten().split(_PIECE)]
    norm = torch.nn.utils.get_total_norm(pieces).to(device)  # of no gradient at all it would be on the CPU
    if process_group is not None:
        square = norm.double().square()
        dist.all_reduce(square, group=process_group)
        norm = square.sqrt().float()
    adam = optimizer.optimizer
    adam.found_inf = norm.isfinite().logical_not().float()
    if optimizer.clip_grad > 0:
        adam.grad_scale = ((norm + _STABILISER) / optimizer.clip_grad).clamp(min=1.0)
    return norm


def _step(optimizer: Any, replaced: list[Replaced]) -> None:
    with _in_place_of(replaced):
        type(optimizer).step(optimizer)


@contextmanager
def _in_place_of(replaced: list[Replaced]) -> Iterator[None]:
    before = [getattr(place, name) for place, name, _ in replaced]
    for place, name, ours in replaced:
        setattr(place, name, ours)
    try:
        yield
    finally:
        for (place, name, _), theirs in zip(replaced, before, strict=True):
            setattr(place, name, theirs)


class Verdict:
    """Whether the update that engines have just been given is made: the answer is on its way to the host."""

    def __init__(self, optimizers: Sequence[Any]) -> None:
        broken = torch.stack([_left_out(each) for each in optimizers]).any()
        self._broken = broken.to("cpu", non_blocking=True)
        self._there = torch.cuda.current_stream().record_event() if broken.is_cuda else None

    def made(self) -> bool:
        """The answer; waits for the device where that has not come to it yet. The same on all processes."""
        if self._there is not None:
            self._there.synchronize()
        return not self._broken


def _left_out(optimizer: Any) -> Tensor:
    found = getattr(optimizer.optimizer, "found_inf", None)
    return torch.tensor(optimizer.overflow) if found is None else found.bool()
