"""DeepSpeed's JSON and the recipe: each fact has one home, and where both speak they must agree.

What the JSON leaves out or gives as "auto" is filled in from the recipe; every clash is reported in one message.
What is sharded and where it lives is DeepSpeed's to say, the batch, the optimizer's numbers and the precision ours.
"""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.utils import cpp_extension

from fast_electra.batching.batches import even_share
from fast_electra.files import json_file
from fast_electra.settings.config import Config

_MONITORS = ("tensorboard", "csv_monitor", "wandb", "comet")
_SECTIONS = (
    "zero_optimization",
    "optimizer",
    "bf16",
    "fp16",
    "csv_monitor",
    "tensorboard",
    "data_types",
    "timers",
    "compile",
)


def read(path: str, beside: Path | None = None) -> dict[str, Any]:
    """The JSON file as a dictionary; a relative path is looked for in the folder `beside` too.

    Raises ValueError when there is none or it is not JSON.
    """
    folders = list(dict.fromkeys([Path.cwd(), beside or Path.cwd()]))
    file = next((folder / path for folder in folders if (folder / path).is_file()), None)
    if file is None:
        looked = "" if Path(path).is_absolute() else f" in {' or '.join(repr(str(folder)) for folder in folders)}"
        raise ValueError(
            f"DeepSpeed's JSON: {path!r} is no file{looked}; ds_configs/ holds zero1, zero2, zero3 and more to start "
            "from: name one with --deepspeed"
        )
    return json_file.read(file, "It is what --deepspeed names; start from one of ds_configs/")


def for_generator(values: dict[str, Any], config: Config) -> dict[str, Any]:
    """Filled settings for a second engine, a masked LM's: the first writes the monitors."""
    kept = {name: value for name, value in values.items() if name not in _MONITORS}
    params = values["optimizer"]["params"] | {"eps": config.epsilon_for("mlm")}
    return kept | {"optimizer": values["optimizer"] | {"params": params}}


def zero_stage(values: dict[str, Any]) -> int:
    """The ZeRO stage that these settings ask for; 0 when they ask for none."""
    return int(values.get("zero_optimization", {}).get("stage", 0))


def _shape_errors(values: dict[str, Any]) -> list[str]:
    """What is wrong with the form of the sections that are read here."""
    errors = [
        f"{name}: expected an object of settings, got {values[name]!r:.200}"
        for name in _SECTIONS
        if not isinstance(values.get(name, {}), dict)
    ]
    if errors:
        return errors
    nested = [
        ("optimizer", "params"),
        ("zero_optimization", "offload_optimizer"),
        ("zero_optimization", "offload_param"),
        ("timers", "throughput"),
    ]
    errors += [
        f"{section}.{name}: expected an object of settings, got {values[section][name]!r:.200}"
        for section, name in nested
        if not isinstance(values.get(section, {}).get(name, {}), dict)
    ]
    if values.get("zero_optimization", {}).get("stage") not in (1, 2, 3):
        errors.append("zero_optimization.stage: choose 1, 2 or 3 (export reads ZeRO's float32 masters)")
    return errors


def micro_batch_rows(config: Config, num_processes: int) -> int:
    """Rows that one process takes at a time: the most up to `run.micro_batch_rows` that divide its share evenly."""
    rows, rest = divmod(config.run.batch_rows, num_processes)
    if rest or rows == 0:
        raise ValueError(
            f"run.batch_rows = {config.run.batch_rows} cannot be split evenly over {num_processes} processes; "
            f"give a multiple of the number of processes, such as {_that_splits(config, num_processes)}, or start fewer"
        )
    return even_share(rows, config.run.micro_batch_rows)


def note_of_small_pieces(config: Config, num_processes: int) -> str:
    """What to tell where a share of the batch splits into pieces of half `run.micro_batch_rows` or less; else empty."""
    rows, micro = config.run.batch_rows // num_processes, micro_batch_rows(config, num_processes)
    if _splits(rows, config.run.micro_batch_rows):
        return ""
    return (
        f"run.batch_rows = {config.run.batch_rows} is {rows} rows for each of {num_processes} processes, which split "
        f"evenly into pieces of {micro} at most (run.micro_batch_rows = {config.run.micro_batch_rows}); small ones are "
        f"slow, and run.batch_rows = {_that_splits(config, num_processes)} would take larger"
    )


def _that_splits(config: Config, num_processes: int) -> int:
    """The `run.batch_rows` next to the one given that makes good pieces on so many processes."""
    asked, most = config.run.batch_rows, config.run.micro_batch_rows
    shares = filter(lambda rows: _splits(rows, most), range(1, asked // num_processes + most + 1))
    return num_processes * min(shares, key=lambda rows: abs(num_processes * rows - asked))


def _splits(rows: int, most: int) -> bool:
    """Whether the pieces of these rows are larger than half of what they could be."""
    return 2 * even_share(rows, most) > min(rows, most)


def fill(values: dict[str, Any], config: Config, num_processes: int, on_cpu: bool) -> dict[str, Any]:
    """The settings with what they leave open filled in from `config`, whose `run.dtype` is no longer "auto".

    Raises ValueError naming every setting in which JSON and recipe differ.
    """
    malformed = _shape_errors(values)
    if malformed:
        raise ValueError(
            "the DeepSpeed JSON cannot be used; change it, or start from one of ds_configs/:\n  "
            + "\n  ".join(malformed)
        )
    assert config.run.dtype != "auto", "which the machine decides: choices.decided"
    micro, optimizer = micro_batch_rows(config, num_processes), config.optimizer
    decided = {
        "train_batch_size": config.run.batch_rows,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": config.run.batch_rows // (micro * num_processes),
        "gradient_clipping": optimizer.clip_norm,
        "bf16.enabled": config.run.dtype == "bfloat16",
        "bf16.check_grad_overflow": True,
        "zero_optimization.compute_grad_norm": True,
        "optimizer.type": "AdamW",
        "optimizer.params.lr": optimizer.peak_learning_rate,
        "optimizer.params.betas": [optimizer.beta1, optimizer.beta2],
        "optimizer.params.eps": config.epsilon_for(config.objective),
        "optimizer.params.weight_decay": optimizer.weight_decay,
        "data_types.grad_accum_dtype": "fp32",
    }
    filled = json.loads(json.dumps(values))
    # DeepSpeed's timer, which nothing here reads, would wait for the device around each micro-batch.
    ours = {"timers.throughput.enabled": False}
    ours |= _places(values, config) | _communication(values) | _optimizer_kernel(values, on_cpu)
    for key, value in ours.items():
        _put(filled, key, value)
    clashes = [
        f"{key}: the JSON says {given!r:.200}, the recipe {value!r}"
        for key, value in decided.items()
        if (given := _put(filled, key, value)) is not None
    ]
    if filled.get("fp16", {}).get("enabled"):
        clashes.append("fp16.enabled: training runs in bf16 or float32 (run.dtype)")
    if filled.get("torch_autocast", {}).get("enabled"):
        clashes.append("torch_autocast.enabled: the weights themselves are in run.dtype, and computed with as they are")
    if filled.get("compile", {}).get("deepcompile"):
        clashes.append("compile.deepcompile: what is compiled is run.compile's to say, which compiles layer by layer")
    if not on_cpu and _on_nvme(values) and not _makes_async_io():
        clashes.append(
            "zero_optimization: offload to nvme needs the CUDA toolkit, which DeepSpeed builds against; "
            "set CUDA_HOME, or offload to the host (ds_configs/zero3_offload.json)"
        )
    if num_processes > 1 and not on_cpu and _frees_too_early(values):
        clashes.append(
            "zero_optimization: overlap_comm (the default) beside contiguous_gradients false frees gradients that "
            "DeepSpeed may still read on another stream; change one of them"
        )
    if "scheduler" in filled:
        clashes.append("scheduler: the learning rate follows optimizer.warmup_ratio and run.steps of the recipe")
    clashes += [f"{key:.200}: 'auto' has no counterpart in the recipe; give a value" for key in _autos(filled)]
    if clashes:
        raise ValueError(
            'the DeepSpeed JSON and the recipe differ; write "auto" in the JSON or override the recipe:\n  '
            + "\n  ".join(clashes)
        )
    return filled


def _places(values: dict[str, Any], config: Config) -> dict[str, str]:
    """Folders for what these settings write, inside the run's own; a JSON that names others is left as it is."""
    places: dict[str, str] = {}
    for name in ("csv_monitor", "tensorboard"):
        if values.get(name, {}).get("enabled"):
            places |= {f"{name}.output_path": f"{config.output}/monitor", f"{name}.job_name": config.recipe}
    return places | {f"zero_optimization.{name}.nvme_path": f"{config.output}/offload" for name in _on_nvme(values)}


def _makes_async_io() -> bool:
    """Whether DeepSpeed's operator for NVMe can be built on a GPU machine, or was built as DeepSpeed was installed."""
    toolkit = cpp_extension.CUDA_HOME is not None or torch.version.hip is not None
    return toolkit or find_spec("deepspeed.ops.aio.async_io_op") is not None


def _on_nvme(values: dict[str, Any]) -> list[str]:
    """What these settings offload to NVMe."""
    zero = values.get("zero_optimization", {})
    return [name for name in ("offload_optimizer", "offload_param") if zero.get(name, {}).get("device") == "nvme"]


def _frees_too_early(values: dict[str, Any]) -> bool:
    """Whether ZeRO-3 reduces on a stream of its own and lets go of gradients without a mark of that stream.

    By the sources of DeepSpeed 0.19 (stage3.py, partition_grads): those of weights of which a process has no share.
    """
    zero = values.get("zero_optimization", {})
    return (
        zero_stage(values) == 3 and zero.get("contiguous_gradients") is False and zero.get("overlap_comm") is not False
    )


def _communication(values: dict[str, Any]) -> dict[str, str]:
    """Under ZeRO-1 float32: its sums of gradients are, and the one reduction of an update would round them to bf16.

    ZeRO-2 and 3 reduce at every micro-batch what backward gives in bf16, before they add it.
    """
    return {"communication_data_type": "fp32"} if zero_stage(values) == 1 else {}


def _optimizer_kernel(values: dict[str, Any], on_cpu: bool) -> dict[str, Any]:
    """torch's own fused AdamW, which needs no compiler, unless a GPU's optimizer state is offloaded to its host."""
    offloaded = bool(values.get("zero_optimization", {}).get("offload_optimizer"))
    if offloaded and not on_cpu:
        return {}
    return {"optimizer.params.torch_adam": True, "optimizer.params.fused": True}


def _put(values: dict[str, Any], key: str, value: Any) -> Any:
    """Set the dotted key unless it is set (null and "auto" are not); returns what stands there when that differs."""
    *parents, last = key.split(".")
    for name in parents:
        values = values.setdefault(name, {})
    if values.get(last) in (None, "auto"):
        values[last] = value
    return None if values[last] == value else values[last]


def _autos(values: dict[str, Any], prefix: str = "") -> list[str]:
    """The dotted keys that still say "auto"."""
    found = []
    for name, value in values.items():
        if isinstance(value, dict):
            found += _autos(value, f"{prefix}{name}.")
        elif value == "auto":
            found.append(prefix + name)
    return found
