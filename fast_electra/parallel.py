"""The edge: the only module, with checkpoint.py, that knows of several processes and of DeepSpeed.

Models and objectives know of one process; here they meet the group, the ZeRO partitioning and the engines. A model
built inside `building` under ZeRO-3 is split as it is made and never whole on one process; the frozen auxiliary model
is loaded outside of it and sits whole, in bf16, in a DeepSpeed-Inference engine of its own on each process.
"""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeAlias

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import logger as deepspeed_logger
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor, nn
from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config
from transformers.utils import logging as transformers_logging

from fast_electra import deepspeed_config

Engine: TypeAlias = deepspeed.DeepSpeedEngine


def start() -> None:
    """Join the process group that the launcher describes; alone, without a launcher, a group of one."""
    deepspeed_logger.setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()
    if dist.is_initialized():
        return
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    if "RANK" not in os.environ:
        os.environ |= alone | {"MASTER_PORT": str(_free_port())}
    deepspeed.init_distributed(timeout=timedelta(minutes=30), verbose=False)
    if device().type == "cpu":
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_world_size()))
    else:
        torch.cuda.set_device(device())


def stop() -> None:
    """Leave the process group together, so that none is cut off by another's exit."""
    dist.barrier()
    dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def rank() -> int:
    """This process's number in the group."""
    return dist.get_rank()


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size()


def local_world_size() -> int:
    """How many of them are on this machine, as the launcher says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or world_size())


def device() -> torch.device:
    """Where this process computes."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def barrier() -> None:
    """Wait for all processes."""
    dist.barrier()


def sum_over_processes(values: Tensor) -> Tensor:
    """The elementwise sum over all processes."""
    total = values.clone()
    dist.all_reduce(total)
    return total


def from_rank_zero(value: Any) -> Any:
    """The first process's value, on every process."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


@contextmanager
def building(settings: dict[str, Any]) -> Iterator[None]:
    """Inside, new transformers models are partitioned as they are made when the settings ask for ZeRO-3.

    transformers finds the settings through the `HfDeepSpeedConfig` kept alive here (a plain zero.Init fails in its
    weight initialisation), and forgets them on leaving: whatever is loaded later must not be split.
    """
    keep = HfDeepSpeedConfig(settings) if deepspeed_config.zero_stage(settings) == 3 else None
    try:
        yield
    finally:
        del keep
        unset_hf_deepspeed_config()


def training_engine(module: nn.Module, groups: list[dict[str, Any]], settings: dict[str, Any]) -> Engine:
    """DeepSpeed's engine around a module and its parameter groups."""
    with _buffers_kept(module):
        engine, *_ = deepspeed.initialize(model=module, model_parameters=groups, config=settings)
    return engine


def inference_engine(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A frozen module in DeepSpeed-Inference's engine, whole on each process, without kernel injection."""
    frozen = module.eval().requires_grad_(False).to(device())
    with _buffers_kept(frozen):
        return deepspeed.init_inference(frozen, dtype=dtype, replace_with_kernel_inject=False)


@contextmanager
def _buffers_kept(module: nn.Module) -> Iterator[None]:
    """Buffers keep their precision: DeepSpeed casts them with the weights, and rotary frequencies in bf16 turn far
    positions by wrong angles (ZeRO-3 leaves them alone, so that stages would also differ)."""
    exact = {name: buffer.clone() for name, buffer in module.named_buffers() if buffer.is_floating_point()}
    yield
    for name, buffer in module.named_buffers():
        if name in exact and buffer.dtype != exact[name].dtype:
            buffer.data = exact[name].to(buffer.device)


def set_learning_rate(engine: Engine, value: float) -> None:
    """Set the rate of every parameter group for the next update."""
    for group in engine.optimizer.param_groups:
        group["lr"] = value


def full_weights(engine: Engine, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
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
    return sum(getattr(p, "ds_numel", p.numel()) for p in module.parameters())
