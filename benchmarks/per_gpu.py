"""From one process's simulated step to the bytes on each of n GPUs, by ZeRO stage and offload.

ZeRO splits what belongs to weights over the n GPUs of data parallelism, stage by stage; activations, temporary tensors
and the frozen auxiliary model stay whole on each. DeepSpeed sums gradients in float32 beside the bf16 ones: at stage 1
whole on each GPU. At stages 2 and 3 it adds a buffer in which gradients are reduced, and at stage 3 the weights
gathered for use, which may be all of them up to `stage3_max_live_parameters`.

The figures are arithmetic on the simulated peak. One process was checked against the allocator's own count in a real
step under DeepSpeed: `demo` with a small buffer came out within 0.5 % at all three stages, frozen and joint_shallow
(tests/test_benchmarks.py holds stage 1). More processes, offload and a GPU's allocator are not checked.
"""

from collections.abc import Iterable

from benchmarks.rows import Row, provenance

# DeepSpeed's defaults, in elements, which ds_configs/ leave as they are; bf16, two bytes each.
REDUCE_BUCKET, MAX_LIVE_PARAMETERS = 500_000_000, 1_000_000_000
STAGES, NUM_GPUS, OFFLOADS = (1, 2, 3), (1, 8, 64), ("none", "optimizer", "optimizer and weights")
FORMULA = (
    "P trained weights on n GPUs: weights 2P (stage 3: 2P/n + min(2P, 2e9) gathered if n > 1 or offloaded), float32 "
    "sums of gradients 4P (stages 2, 3: 4P/n), float32 weights and moments 12P/n, reduction buffer 1e9 (stages 2, 3); "
    "bf16 gradients, auxiliary model, activations and temporary as simulated; the larger of backward pass and update. "
    "Offloaded: optimizer and sums of gradients on the host (16P/n), weights too (2P/n)"
)


def per_gpu(row: Row, stage: int, num_gpus: int, offload: str = "none", bucket: int = REDUCE_BUCKET) -> Row:
    """Peak bytes on each GPU by kind, and on the host for each GPU, of a simulated (memory) row.

    Raises ValueError for a ZeRO stage or an offload that DeepSpeed does not have.
    """
    if stage not in STAGES or offload not in OFFLOADS or (offload == OFFLOADS[2] and stage != 3):
        raise ValueError(f"ZeRO stage {stage} with offload {offload!r}: weights are offloaded at stage 3 only")
    weights, offloaded = row["trained_weights"], offload != "none"
    split = {name: num_gpus if stage >= first else 1 for name, first in (("o", 1), ("g", 2), ("p", 3))}
    gathers = stage == 3 and (num_gpus > 1 or offload == OFFLOADS[2])
    gathered = min(2.0 * weights, 2.0 * MAX_LIVE_PARAMETERS) if gathers else 0.0
    moments = []
    for step in (row["backward_bytes"], row["update_bytes"]):
        sums, passing = 4.0 * weights, step["gradients"] - 4.0 * weights
        held = 0.0 if offload == OFFLOADS[2] else step["parameters"] / split["p"]
        moments.append(
            step
            | {
                "parameters": held + gathered,
                "gradients": passing + (0.0 if offloaded else sums / split["g"]),
                "optimizer": 0.0 if offloaded else step["optimizer"] / split["o"],
            }
        )
    peak = max(moments, key=lambda moment: sum(moment.values()))
    peak |= {"buffers": 2.0 * bucket if stage >= 2 else 0.0}
    host = (16.0 + (2.0 if offload == OFFLOADS[2] else 0.0)) * weights / num_gpus if offloaded else 0.0
    return {"bytes": peak, "total_gib": sum(peak.values()) / 2**30, "host_gib": host / 2**30}


def per_gpu_all(simulated: Iterable[Row]) -> list[Row]:
    """Rows for each stage, number of GPUs and offload, of every simulated row."""
    origin = provenance("per_gpu")
    case = ("recipe", "objective", "sequence_length", "vocab_size", "head", "micro_batch_rows")
    return [
        {
            "kind": "per_gpu",
            **{name: row[name] for name in case},
            "zero_stage": stage,
            "num_gpus": num_gpus,
            "offload": offload,
            **per_gpu(row, stage, num_gpus, offload),
            "n": 1,
            "formula": FORMULA,
            **origin,
        }
        for row in simulated
        for stage in STAGES
        for num_gpus in NUM_GPUS
        for offload in OFFLOADS
        if offload == "none" or stage == 3
    ]
