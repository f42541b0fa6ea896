"""The edge: what knows of several processes and of DeepSpeed.

With it do sharded_weights, gradient_sums, broken_updates, stop_vote, injection, universal and checkpoint.

Models and objectives know of one process; here they meet the group, the ZeRO partitioning and the engines. A model
built inside `building` under ZeRO-3 is split as it is made and never whole on one process; the frozen auxiliary model
is loaded outside of it and sits whole in a DeepSpeed-Inference engine of its own on each process.
"""

import logging
import os
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, TypeAlias

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import groups, set_z3_leaf_modules
from deepspeed.utils import logger as deepspeed_logger
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations import deepspeed as integration
from transformers.utils import logging as transformers_logging

from fast_electra.engine import (
    broken_updates,
    buffers,
    deepspeed_config,
    gradient_sums,
    heap,
    shared_memory,
    torchs_linear,
)
from fast_electra.kernels import compilation, cpu_attention, exact_sums, operator_builds
from fast_electra.runs import preemption, slurm
from fast_electra.settings.config import EncoderConfig

Engine: TypeAlias = deepspeed.DeepSpeedEngine


def start(patience_minutes: float = 30.0) -> None:
    """Join the process group that the launcher or SLURM describes; alone, without either, a group of one.

    Its processes wait for each other for `patience_minutes` at most.
    """
    deepspeed_logger.setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()
    if dist.is_initialized():
        return
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    by_srun = {} if "RANK" in os.environ else slurm.rendezvous(os.environ)
    if "RANK" not in os.environ:
        os.environ |= by_srun or alone | {"MASTER_PORT": str(_free_port())}
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # some groups have a socket to each other process
    operator_builds.prefer_own_ninja()
    if local_rank() == 0:
        operator_builds.release_abandoned(say=partial(print, flush=True))
        shared_memory.release_abandoned()
        if device().type == "cpu":
            operator_builds.announce("deepspeed_shm_comm", say=partial(print, flush=True))
    if device().type != "cpu":
        get_accelerator().set_device(local_rank())  # before anything makes a context on another's GPU
    _join(timedelta(minutes=patience_minutes))
    # On a GPU too: an optimizer whose state is offloaded computes on the host, in all processes at once.
    cores = os.environ.get("SLURM_CPUS_PER_TASK") if by_srun else None
    torch.set_num_threads(int(cores or 0) or max(1, len(os.sched_getaffinity(0)) // local_world_size()))


def _join(patience: timedelta) -> None:
    """Join the group; the memory that DeepSpeed shares within a machine is left to end with its processes.

    DeepSpeed reduces gradients in a clone of it, which would keep the backend's own patience, ten minutes of NCCL's.
    Raises ValueError where the first process finds its port taken: the launcher ends the others, which wait for it.
    """
    try:
        with preemption.compiling():
            deepspeed.init_distributed(timeout=patience, verbose=False)
            groups._WORLD_GROUP = dist.new_group(range(world_size()), timeout=patience)
    except RuntimeError as error:
        if "EADDRINUSE" in str(error):
            port, another = os.environ["MASTER_PORT"], int(os.environ["MASTER_PORT"]) + 1
            raise ValueError(
                f"port {port} is taken, most likely by another run on this machine: `deepspeed --master_port {another} "
                f"...` (under srun: export MASTER_PORT={another})"
            ) from error
        raise
    if device().type == "cpu":
        dist.barrier()
        shared_memory.unname(rank())


def stop(status: int, patience_seconds: float = 60.0) -> int:
    """Leave the process group together, so that none is cut off by another's exit; returns `status`.

    All that a run leaves is written by then: where another process does not come within `patience_seconds`, this one
    waits no longer and ends with `status`.
    """
    waited = threading.Timer(patience_seconds, os._exit, [status])
    waited.daemon = True
    waited.start()
    dist.barrier()
    dist.destroy_process_group()
    waited.cancel()
    return status


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


def local_rank() -> int:
    """This process's number on this machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def place_on_machine() -> int:
    """Which of this machine's processes this is: its local rank, unless SLURM shows each task a GPU 0 of its own."""
    return int(os.environ.get(slurm.PLACE) or local_rank())


def device() -> torch.device:
    """Where this process computes: DeepSpeed says (DS_ACCELERATOR, or what it finds)."""
    kind = get_accelerator().device_name()
    return torch.device(kind) if kind == "cpu" else torch.device(kind, local_rank())


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


def from_all(value: Any) -> list[Any]:
    """The value of each process, in their order, on every process."""
    box: list[Any] = [None] * world_size()
    dist.all_gather_object(box, value)
    return box


def on_rank_zero(action: Callable[[], Any]) -> None:
    """Run `action` on the first process; a ValueError or OSError of its is raised as ValueError on all of them.

    So is `Preempted`, as itself.
    """
    message, preempted = None, False
    if rank() == 0:
        try:
            action()
        except (ValueError, OSError) as error:
            message = str(error)
        except preemption.Preempted:
            preempted = True
    message, preempted = from_rank_zero((message, preempted))
    if preempted:
        raise preemption.Preempted
    if message is not None:
        raise ValueError(message)


def anywhere(here: bool) -> bool:
    """Whether it is so on any process. All processes take part and wait for each other."""
    flag = torch.tensor([here], dtype=torch.int32, device=device())
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag[0])


def agree_on_attention(encoder: EncoderConfig, sequence_length: int, dtype: torch.dtype) -> None:
    """Have all processes train with the same attention on CPUs: with ours where each of them can. All take part."""
    if device().type == "cpu" and cpu_attention.covers(encoder, sequence_length, dtype):
        missing = cpu_attention.missing()
        if anywhere(bool(missing)) and not missing:
            cpu_attention.do_without("another process of this run has none")


@contextmanager
def building(settings: dict[str, Any]) -> Iterator[None]:
    """Inside, new transformers models are partitioned as they are made when the settings ask for ZeRO-3.

    transformers finds the settings through the `HfDeepSpeedConfig` kept alive here (a plain zero.Init fails in its
    weight initialisation), and forgets them on leaving: whatever is loaded later must not be split.
    """
    keep = integration.HfDeepSpeedConfig(settings) if deepspeed_config.zero_stage(settings) == 3 else None
    replaced, integration.initialize_weights_zero3 = integration.initialize_weights_zero3, _draw_weights
    try:
        yield
    finally:
        del keep
        integration.initialize_weights_zero3 = replaced
        integration.unset_hf_deepspeed_config()


def _draw_weights(model: PreTrainedModel) -> None:
    """New weights for a model that ZeRO-3 has split, equal to those of a whole one.

    transformers' own way does not give them in version 5.17: a weight that the module above it draws stays as it was,
    and rotary frequencies are rounded to bf16.
    """
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.float()
    drawing = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    for part in drawing:
        part._init_weights = partial(_draw_gathered, part._init_weights)  # type: ignore[method-assign]
    model.init_weights()
    for part in drawing:
        del part._init_weights


def _draw_gathered(draw: Callable[[nn.Module], None], module: nn.Module) -> None:
    """`draw` a module's weights while they and those of its children are whole; the first process's are kept.

    They are drawn on the CPU, as a whole model's are: a GPU has a generator of its own.
    """
    nearby = [weight for each in (module, *module.children()) for weight in each.parameters(recurse=False)]
    with deepspeed.zero.GatheredParameters(nearby, modifier_rank=0):
        there = [weight.data for weight in nearby]
        for weight in nearby:
            weight.data = weight.data.cpu()
        draw(module)
        for weight, place in zip(nearby, there, strict=True):
            weight.data = place.copy_(weight.data)


def training_engine(
    module: nn.Module, groups: list[dict[str, Any]], settings: dict[str, Any], compiled: bool = False
) -> Engine:
    """DeepSpeed's engine around a module and its parameter groups, its parts through torch.compile if `compiled`.

    ZeRO-3's hooks would break the graph of a layer at every module in it, so that each layer is gathered as a whole.
    """
    in_wholes = deepspeed_config.zero_stage(settings) == 3
    parts = compilation.parts(module, layers_alone=in_wholes) if compiled else []
    if parts and in_wholes:
        set_z3_leaf_modules(module, list({type(each) for each in parts}))
    if device().type == "cpu":
        exact_sums.install(module, parts, bool(settings.get("bf16", {}).get("enabled")))
        heap.keep_freed()
    with buffers.kept(module, device()):
        engine, *_ = deepspeed.initialize(model=module, model_parameters=groups, config=settings)
    broken_updates.install(engine.optimizer)
    gradient_sums.install(engine)
    engine.monitor.enabled = False  # it would write a line of its own at every update, beside progress.py's
    if compiled:
        compilation.compile_parts(module, parts)
    return engine


def inference_engine(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A frozen module in DeepSpeed-Inference's engine, whole on each process, without kernel injection."""
    frozen = module.eval().requires_grad_(False).to(device())
    with buffers.kept(frozen, device()):
        engine = deepspeed.init_inference(frozen, dtype=dtype, replace_with_kernel_inject=False)
    return torchs_linear.kept(engine)


def set_learning_rate(engine: Engine, value: float) -> None:
    """Set the rate of every parameter group for the next update."""
    for group in engine.optimizer.param_groups:
        group["lr"] = value
