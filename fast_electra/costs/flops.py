"""FLOPs of a training step by objective, model, pass and part, and the share of a device's peak that a run reaches.

What the method saves is the generator's backward pass, so that forward and backward are counted apart: a trained
generator costs both, a frozen auxiliary model one, a replacement path none. The count of one pass is model_flops.py,
where it is said what counts. The optimizer and the sampling are not matrix products: their time shows in tokens per
second, and in MFU as a loss.

MFU = model FLOPs per token x tokens per second / peak. No figure without its peak: `vendor_peak` is the data sheet's,
`measured_matmul_flops_per_second` what a matrix product reached on this machine today.

B rows, T tokens a row, N masked positions a row.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode, bmm_flop, sdpa_backward_flop_count, sdpa_flop_count
from transformers import PreTrainedConfig

from fast_electra.costs.model_flops import (
    PARTS,
    Parts,
    check_sizes,
    encoder_backward,
    encoder_forward,
    lm_head_forward,
    rtd_head_forward,
    twice,
)

# What an objective asks of the auxiliary model (generator) in a step, beside training the discriminator.
_AUXILIARY_USE: Mapping[str, str] = {
    "frozen": "forward",
    "two_stage": "forward",
    "replay": "none",
    "unigram": "none",
    "random": "none",
    "joint": "trained",
    "joint_shallow": "trained",
    "joint_gdes": "trained",
    "joint_decoupled": "trained",
}
OBJECTIVES = ("mlm", *_AUXILIARY_USE)

# Dense 16-bit tensor-core FLOP/s of the data sheets (bf16; fp16 on V100 and T4), by words of the device's name.
VENDOR_PEAK: Mapping[str, float] = {
    "B200": 2250e12,
    "H200": 989e12,
    "H200 NVL": 835e12,
    "GH200": 989e12,
    "H100": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "A40": 149.7e12,
    "A30": 165e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "V100": 125e12,
    "V100 PCIE": 112e12,
    "V100S": 130e12,
    "T4": 65e12,
}


@dataclass(frozen=True)
class Passes:
    """One model's FLOPs of one step, by part; a pass that is not run is empty."""

    forward: Parts = field(default_factory=dict)
    backward: Parts = field(default_factory=dict)

    @property
    def total(self) -> int:
        """FLOPs of both passes."""
        return sum(self.forward.values()) + sum(self.backward.values())


@dataclass(frozen=True)
class Flops:
    """FLOPs of one step of `tokens` = B x T tokens."""

    tokens: int
    discriminator: Passes
    auxiliary: Passes

    @property
    def total(self) -> int:
        """FLOPs of the step."""
        return self.discriminator.total + self.auxiliary.total

    @property
    def per_token(self) -> float:
        """FLOPs for each of the B x T tokens of the step."""
        return self.total / self.tokens

    def rows(self) -> list[tuple[str, str, str, int]]:
        """(model, pass, part, FLOPs of the step) for a table; they sum to `total`."""
        return [
            (model, name, part, count)
            for model, passes in (("discriminator", self.discriminator), ("auxiliary", self.auxiliary))
            for name, parts in (("forward", passes.forward), ("backward", passes.backward))
            for part, count in parts.items()
        ]

    def by_part(self) -> Parts:
        """FLOPs of each part, both models and both passes together; they sum to `total`."""
        return {part: sum(count for *_, name, count in self.rows() if name == part) for part in PARTS}


def training_step(  # noqa: PLR0913 (two models, three sizes of a batch)
    objective: str,
    discriminator_config: PreTrainedConfig | None,
    auxiliary_config: PreTrainedConfig | None = None,
    *,
    batch_rows: int,
    sequence_length: int,
    num_masked: int,
    attention: str = "model",
    document_lengths: NDArray[np.int64] | None = None,
) -> Flops:
    """FLOPs of one step (forward and backward) of `objective` over B = batch_rows rows of T = sequence_length tokens.

    The LM head runs on N = num_masked positions a row; pass num_masked = sequence_length to count one that runs on all.
    "mlm" trains the one model given, reported in that model's place. "replay", "unigram" and "random" run no auxiliary
    model, and its configuration is not read. `batch_rows` is one micro-batch on one process: DeBERTa projects its table
    of distances once a pass, whatever the rows. `attention` is explained in `fast_electra.costs.model_flops`. With
    `document_lengths` (see `attention_share`) only attention within documents counts, on the average over all rows.

    Raises ValueError for an unknown objective, a configuration missing or of an unknown type, sizes out of range.
    """
    use = _auxiliary_use(objective, discriminator_config, auxiliary_config)
    check_sizes(batch_rows=batch_rows, sequence_length=sequence_length, num_masked=num_masked)
    if num_masked > sequence_length:
        raise ValueError(
            f"num_masked={num_masked} is more than sequence_length={sequence_length}: mask fewer positions"
        )

    def passes(config: PreTrainedConfig, head: Parts) -> Passes:
        sizes = (batch_rows, sequence_length, attention)
        found = Passes(encoder_forward(config, *sizes) | head, encoder_backward(config, *sizes) | twice(head))
        if document_lengths is not None:
            share = attention_share(config, document_lengths, sequence_length)
            for parts in (found.forward, found.backward):
                parts["attention_scores"] = round(share * parts["attention_scores"])
        return found

    discriminator = auxiliary = Passes()
    if discriminator_config is not None:
        rtd = rtd_head_forward(discriminator_config, batch_rows, sequence_length)
        mlm = lm_head_forward(discriminator_config, batch_rows * num_masked)
        discriminator = passes(discriminator_config, mlm if objective == "mlm" else rtd)
    if auxiliary_config is not None and use != "none":
        auxiliary = passes(auxiliary_config, lm_head_forward(auxiliary_config, batch_rows * num_masked))
        if use == "forward":
            auxiliary = Passes(auxiliary.forward)
    return Flops(batch_rows * sequence_length, discriminator, auxiliary)


def attention_share(config: PreTrainedConfig, document_lengths: NDArray[np.int64], sequence_length: int) -> float:
    """The share of the attention scores' FLOPs that is left when the documents of a row do not see each other.

    `document_lengths` are the parts of whole rows (`Batches.document_lengths`), each counted as if it ran alone:
    without sliding windows, sum of len^2 / (rows x T^2).
    """
    lengths = zip(*np.unique(document_lengths, return_counts=True), strict=True)
    alone = sum(encoder_forward(config, int(rows), int(length))["attention_scores"] for length, rows in lengths)
    num_rows = int(document_lengths.sum()) // sequence_length
    return alone / encoder_forward(config, num_rows, sequence_length)["attention_scores"]


def model_flops_per_token(
    objective: str,
    discriminator_config: PreTrainedConfig | None,
    auxiliary_config: PreTrainedConfig | None = None,
    **sizes: Any,
) -> float:
    """Model FLOPs for each token of a step: what MFU counts. `sizes` are `training_step`'s, and so are the errors.

    For a BERT-like model 6 x N_enc + 12 x H x layers x T + 6 x f x (H^2 + H x V), N_enc the weights in the encoder's
    products and f the share of positions that get vocabulary logits; a forward pass alone is a third of it.
    """
    return training_step(objective, discriminator_config, auxiliary_config, **sizes).per_token


def mfu(flops_per_token: float, tokens_per_second: float, peak_flops_per_second: float) -> float:
    """Model FLOPs utilisation, a share of 1: of one process with its own tokens/s, or of all with the sum of both."""
    if peak_flops_per_second <= 0:
        raise ValueError(f"peak_flops_per_second={peak_flops_per_second}: give a positive peak, measured if need be")
    return flops_per_token * tokens_per_second / peak_flops_per_second


def vendor_peak(device_name: str, dtype: torch.dtype) -> float | None:
    """The data sheet's dense FLOP/s of one device, as `torch.cuda.get_device_name` calls it; None where it has none.

    None for a CPU, a device that is not in `VENDOR_PEAK`, a MIG slice of one, and a dtype that is not 16 bits wide.
    """
    words = set(device_name.upper().replace("-", " ").split())
    known = [name for name in VENDOR_PEAK if words.issuperset(name.upper().split())]
    if not known or dtype not in (torch.bfloat16, torch.float16) or "MIG" in words:
        return None
    return VENDOR_PEAK[max(known, key=len)]


def measured_matmul_flops_per_second(
    device: torch.device | str,
    dtype: torch.dtype,
    size: int | None = None,
    repeats: int = 10,
    of: Callable[[Sequence[float]], float] = median,
) -> float:
    """FLOP/s of a (size, size) x (size, size) product on `device`, by seconds `of` the `repeats`, after two to warm up.

    size: on a CPU 2048, 1024 for float32; 8192 elsewhere, unless given. On a CPU the product runs with torch's threads
    as they are set; with several processes on one machine measure in all at once, or the figure is of a machine without
    neighbours. The factors are random, since a GPU multiplies constants faster; torch's own random state is left alone.
    """
    device = torch.device(device)
    if size is None:
        on_cpu = 1024 if dtype == torch.float32 else 2048
        size = on_cpu if device.type == "cpu" else 8192
    check_sizes(size=size, repeats=repeats)
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(size, size, generator=generator, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(2 + repeats):
        _wait_for(device)
        start = time.perf_counter()
        torch.mm(left, right)
        _wait_for(device)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / of(seconds[2:])


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def flop_counter() -> FlopCounterMode:
    """torch's counter of an eager step's FLOPs, set right in two places.

    It is told of the CPU's fused attention, which it leaves out by itself. It is told to leave out batched outer
    products, which add nothing up: transformers before 5.19 writes the angles of rotary positions as one.
    """
    aten = torch.ops.aten
    return FlopCounterMode(
        display=False,
        custom_mapping={
            aten.bmm: lambda a, b, *_, **__: bmm_flop(a, b) if a[-1] > 1 else 0,
            aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
            aten._scaled_dot_product_flash_attention_for_cpu_backward: (
                lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
            ),
        },
    )


def _auxiliary_use(
    objective: str, discriminator_config: PreTrainedConfig | None, auxiliary_config: PreTrainedConfig | None
) -> str:
    """What the objective asks of the auxiliary model: "none", "forward" or "trained"; checks what is given."""
    if objective not in OBJECTIVES:
        nearest = get_close_matches(objective, OBJECTIVES, n=1, cutoff=0)[0]
        raise ValueError(f"unknown objective {objective!r}: did you mean {nearest!r}? Known: {', '.join(OBJECTIVES)}")
    if objective == "mlm":
        if (discriminator_config is None) == (auxiliary_config is None):
            raise ValueError("objective 'mlm' trains one model: give one configuration, either of the two")
        return "trained"
    use = _AUXILIARY_USE[objective]
    if discriminator_config is None:
        raise ValueError(f"objective {objective!r} trains a discriminator: give discriminator_config")
    if auxiliary_config is None and use != "none":
        raise ValueError(f"objective {objective!r} runs an auxiliary model: give auxiliary_config")
    return use
