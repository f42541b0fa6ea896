"""Run by test_layouts.py on some processes: train a few updates, or restore them into another layout; print digests.

layout.py STAGE FOLDER train|restore|train_as_before: a digest of all weights, moments and counts of updates, gathered
from their parts. As before, weights lie in the model's own order, of which the manifest says nothing.
"""

import hashlib
import sys
from dataclasses import replace
from pathlib import Path

import torch
from deepspeed.utils import safe_get_full_optimizer_state
from torch import nn

from fast_electra.checkpoints import checkpoint
from fast_electra.checkpoints.checkpoint import Keep, Position
from fast_electra.checkpoints.layout import Layout
from fast_electra.engine import deepspeed_config, optim, parallel, sharded_weights
from fast_electra.settings import recipes


class Model(nn.Module):
    """Sizes that no number of processes divides, one weight used twice, some that are given no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(13, 7, dtype=torch.bfloat16)
        self.hidden = nn.Linear(7, 7, dtype=torch.bfloat16)
        self.norm = nn.LayerNorm(7, dtype=torch.bfloat16)
        self.unused = nn.Parameter(torch.ones(5, dtype=torch.bfloat16))
        self.of_even_size = nn.Parameter(torch.ones(8, dtype=torch.bfloat16))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.hidden(self.embeddings(tokens)))
        logits = hidden @ self.embeddings.weight.T
        return nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens.flatten())


def build(stage: int) -> parallel.Engine:
    config = recipes.get("demo")
    config = replace(config, run=replace(config.run, batch_rows=24, micro_batch_rows=2, dtype="bfloat16"))
    settings = deepspeed_config.fill({"zero_optimization": {"stage": stage}}, config, parallel.world_size(), True)
    torch.manual_seed(stage)  # another start for every stage: what is equal later has been restored
    module = Model()
    return parallel.training_engine(module, optim.parameter_groups(module, 0.5), settings)


def train(engine: parallel.Engine, updates: int, first: int = 0) -> None:
    for update in range(first, first + updates):
        parallel.set_learning_rate(engine, 0.01)
        batch = torch.randint(13, (24, 5), generator=torch.Generator().manual_seed(update))
        mine = batch.chunk(parallel.world_size())[parallel.rank()]
        for rows in mine.split(engine.train_micro_batch_size_per_gpu()):
            engine.backward(engine(rows))
            engine.step()


def plain_norm(engine: parallel.Engine, update: int) -> float:
    """The gradient's norm at an update, of a whole model in plain torch on the whole batch."""
    plain = Model()
    plain.load_state_dict(dict(sharded_weights.full_weights(engine, engine.module)))
    plain.float()(torch.randint(13, (24, 5), generator=torch.Generator().manual_seed(update))).backward()
    gradients = [weight.grad for weight in plain.parameters() if weight.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients))


def digest(engine: parallel.Engine) -> str:
    """Of everything that an update reads, whole."""
    found = hashlib.sha256()
    for name, weight in sharded_weights.full_weights(engine, engine.module):
        parameter = dict(engine.module.named_parameters())[name]
        states = [safe_get_full_optimizer_state(parameter, key) for key in ("exp_avg", "exp_avg_sq")]
        for each in (weight, *states):
            found.update(each.float().numpy().tobytes())
    counts = {float(state["step"]) for state in engine.optimizer.optimizer.state.values() if "step" in state}
    return f"{found.hexdigest()} {counts}"


def _without_order(layout: Layout) -> dict[str, int]:
    return {"num_processes": layout.num_processes, "zero_stage": layout.zero_stage}


def main() -> None:
    _launchers, *_, stage_number, folder_name, action = sys.argv
    stage, folder = int(stage_number), Path(folder_name)
    parallel.start()
    if action == "train_as_before":
        optim._IN_16_BYTES, Layout._asdict = 1, _without_order
    engine = build(stage)
    before = {name: tensor.clone() for name, tensor in sharded_weights.full_weights(engine, engine.module)}
    position = checkpoint.restore(engine, folder)
    if action != "restore":
        train(engine, 2, position.step)
        plain = plain_norm(engine, position.step + 2)
        train(engine, 1, position.step + 2)
        if parallel.rank() == 0:
            print(f"norm {float(engine.get_global_grad_norm()) / plain}", flush=True)
        position = Position(position.step + 3, 72, 1.0)
        checkpoint.save(engine, folder, position, Keep(9))
    moved = [not torch.equal(before[name], now) for name, now in sharded_weights.full_weights(engine, engine.module)]
    text = digest(engine)
    decays = [group["weight_decay"] for group in engine.optimizer.param_groups]
    loss = engine(torch.arange(10).view(2, 5)).detach()
    if parallel.rank() == 0:
        print(f"digest {position.step} {text}", flush=True)
        print(f"decays {decays}", flush=True)
        print(f"moved {sum(moved)}", flush=True)
        print(f"loss {float(loss)!r}", flush=True)
    parallel.stop(0)


main()
