"""Sums of gradients are DeepSpeed's to the bit, unclipped those of weights that no gradient came to included."""

import hashlib
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import ROOT, clean_environment
from deepspeed.runtime.zero import stage3
from torch import nn

from fast_electra.engine import gradient_sums, parallel

MICRO_BATCHES = 3
UPDATES = 4
OF_OURS = [(1, "bfloat16"), (3, "bfloat16"), (3, "float32")]
CLIPS = [0.0, 0.01]


class Branches(nn.Module):
    """Unclipped, `odd` is part of the first update alone, and under ZeRO-1 of the first process's loss alone."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.always = nn.Parameter(torch.randn(700, 1000, generator=generator))  # more than two pieces, and a rest
        self.odd = nn.Parameter(torch.randn(7, 3, generator=generator))

    def forward(self, inputs, with_odd):
        loss = (inputs @ self.always.float()).square().mean()
        return loss + (self.odd.float() ** 3).mean() if with_odd else loss


def engine_of(stage, dtype, clip):
    parallel.start()
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": MICRO_BATCHES,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True, "fused": True}},
        "bf16": {"enabled": dtype == "bfloat16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "gradient_clipping": clip,
        "zero_optimization": {"stage": stage, "contiguous_gradients": False},
        "zero_allow_untested_optimizer": True,
    }
    module = Branches()
    return parallel.training_engine(module, [{"params": list(module.parameters())}], settings)


def weights(engine):
    """As this process holds them: under ZeRO-3 its share, without the end of the last one, which is nobody's."""
    return [share(each).detach().clone() for each in engine.module.parameters()]


def share(weight):
    if not hasattr(weight, "ds_tensor"):
        return weight
    return weight.ds_tensor[: weight.ds_numel - parallel.rank() * weight.ds_tensor.numel()]


def watched(engine, watch):
    adam, step = engine.optimizer.optimizer, engine.optimizer.optimizer.step

    def first_seen(*args, **kwargs):
        watch(engine)
        return step(*args, **kwargs)

    adam.step = first_seen


def trained(stage, dtype, clip=0.0, watch=lambda engine: None):
    """The weights after each update; what was there before the first stands first. `watch` sees what AdamW is given."""
    engine = engine_of(stage, dtype, clip)
    watched(engine, watch)
    found, generator = [weights(engine)], torch.Generator().manual_seed(1 + parallel.rank())
    for number in range(UPDATES):
        for _ in range(MICRO_BATCHES):
            inputs = torch.randn(8, 700, generator=generator)
            with_odd = clip > 0 or (number == 0 and (stage == 3 or parallel.rank() == 0))
            engine.backward(engine(inputs, with_odd))
            engine.step()
        assert float(engine.get_global_grad_norm()) > clip, "nothing to clip"
        found.append(weights(engine))
    engine.destroy()
    return found


def as_deepspeed_sums(stage, dtype, clip):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradient_sums, "install", lambda engine: None)
        patch.setattr(stage3, "reduce_scatter_coalesced", gradient_sums._reduced_and_scattered)
        return trained(stage, dtype, clip)


def digest(found):
    parts = [each.float().numpy().tobytes() for update in found for each in update]
    return hashlib.sha256(b"".join(parts)).hexdigest()


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize(("stage", "dtype"), OF_OURS)
def test_one_process_trains_to_the_bits_of_deepspeeds_sums(stage, dtype, clip):
    ours, theirs = trained(stage, dtype, clip), as_deepspeed_sums(stage, dtype, clip)
    for before, after in pairwise(ours):
        assert not torch.equal(before[0], after[0])
    assert digest(ours) == digest(theirs)


def test_what_an_earlier_update_left_is_no_gradient():
    """After the first update nothing asks for `odd`, whose place among the sums still has that update's."""
    sums = []

    def watch(engine):
        sums.append([each.clone() for each in engine.optimizer.fp32_groups_gradients[0]])

    trained(1, "bfloat16", watch=watch)
    assert [bool(odd.any()) for _, odd in sums] == [True] + [False] * (UPDATES - 1)


def test_a_sum_under_zero_3_is_handed_to_adam_where_it_lies():
    """DeepSpeed copies all of them first: 4 bytes a weight at the peak of an update."""
    given, flat = [], []

    def watch(engine):
        (weight,) = engine.optimizer.optimizer.param_groups[0]["params"]
        given.append(weight.grad.untyped_storage().data_ptr())
        flat.append(engine.optimizer.grad_partitions_flat_buffer.untyped_storage().data_ptr())

    trained(3, "bfloat16", watch=watch)
    assert len(given) == UPDATES
    assert given == flat


TWO = """
from fast_electra.engine import parallel
from test_gradient_sums import CLIPS, OF_OURS, as_deepspeed_sums, digest, trained

for stage, dtype in OF_OURS:
    for clip in CLIPS:
        same = digest(trained(stage, dtype, clip)) == digest(as_deepspeed_sums(stage, dtype, clip))
        place = f"process {parallel.rank()} of {parallel.world_size()}"
        print(f"{place}, ZeRO-{stage}, {dtype}, at most {clip}: {same}\\n", end="")
parallel.stop(0)
"""


def test_two_processes_train_to_the_bits_of_deepspeeds_sums(tmp_path):
    (tmp_path / "two.py").write_text(TWO)
    command = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus=2", "--master_port=29883", "two.py"]
    path = f"{ROOT}:{ROOT / 'tests'}"
    environment = clean_environment(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1", PYTHONPATH=path)
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for number in range(2):
        for stage, dtype in OF_OURS:
            for clip in CLIPS:
                said = f"process {number} of 2, ZeRO-{stage}, {dtype}, at most {clip}: True"
                assert said in done.stdout, done.stdout
