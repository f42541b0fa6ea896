"""From one process's simulated step to the bytes on each of n GPUs, by ZeRO stage and offload.

ZeRO splits what belongs to weights over the n GPUs of data parallelism, stage by stage; activations, temporary tensors
and the frozen auxiliary model stay whole on each. DeepSpeed sums gradients in float32 beside the bf16 ones: at stage 1
whole on each GPU, with a flat copy of them while several reduce them. At stages 2 and 3 it adds a buffer in which
gradients are reduced, and at stage 3 the weights gathered for use, which may be all of them up to
`stage3_max_live_parameters`.

The figures are arithmetic on the simulated peak. One process was checked against the allocator's own count in a real
step under DeepSpeed, stages 1 to 3, frozen and joint_shallow, with a small buffer: `demo` came out within 0.5 % at 16
rows, where activations decide, and within 8 % at one row and 16,000 words, where weights do (tests/test_benchmarks.py
holds stage 1). More processes, offload and a GPU's allocator are not checked.
"""

from collections.abc import Iterable

from benchmarks.rows import Row, provenance

# In elements, of bf16, two bytes each: what ds_configs/ set at stages 2 and 3, and DeepSpeed's default.
REDUCE_BUCKET, MAX_LIVE_PARAMETERS = 50_000_000, 1_000_000_000
_FLATTENED = 500_000_000  # gradients that stage 1 reduces at a time, as one flat float32 copy, if there are others
STAGES, NUM_GPUS, OFFLOADS = (1, 2, 3), (1, 8, 64), ("none", "optimizer", "optimizer and weights")
FORMULA = (
    "P trained weights on n GPUs: weights 2P (stage 3: 2P/n + min(2P, 2e9) gathered if n > 1 or offloaded), float32 "
    "sums of gradients 4P (stages 2, 3: 4P/n), float32 weights and moments 12P/n, buffer for reduction 1e8 (stages 2, "
    "3) or, after the backward pass, a copy of 4 min(P, 5e8) (stage 1, n > 1); bf16 gradients, auxiliary model, "
    "activations and temporary as simulated; the larger of backward pass and update. Offloaded: optimizer and sums of "
    "gradients on the host (16P/n), weights too (2P/n)"
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
    flattened = 4.0 * min(weights, _FLATTENED) if stage == 1 and num_gpus > 1 else 0.0
    for step, copied in ((row["backward_bytes"], 0.0), (row["update_bytes"], flattened)):
        sums, passing = 4.0 * weights, step["gradients"] - 4.0 * weights
        held = 0.0 if offload == OFFLOADS[2] else step["parameters"] / split["p"]
        moments.append(
            step
            | {
                "parameters": held + gathered,
                "gradients": passing + (0.0 if offloaded else sums / split["g"]),
                "optimizer": 0.0 if offloaded else step["optimizer"] / split["o"],
                "buffers": copied if stage == 1 else 2.0 * bucket,
            }
        )
    peak = max(moments, key=lambda moment: sum(moment.values()))
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
