"""Layers computed again in backward: the same losses and gradients, in every engine, for less memory."""

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from torch import nn
from transformers import ElectraForPreTraining
from transformers.modeling_layers import GradientCheckpointingLayer

from fast_electra.engine import parallel
from fast_electra.models import discriminator
from fast_electra.models.discriminator import ReplacedTokenDetection
from fast_electra.models.encoder import recompute_activations, transformers_config
from fast_electra.pretraining import pretrain, setup_run
from fast_electra.pretraining.progress import Progress
from fast_electra.runs.watchdog import Watchdog
from fast_electra.settings import recipes
from fast_electra.settings.config import EncoderConfig


def built(kind, tokenizer):
    torch.manual_seed(0)
    shape = transformers_config(EncoderConfig(kind, 3, 32, 2, 48, max_positions=64, dropout=0.2), tokenizer)
    return ReplacedTokenDetection(discriminator.build(shape, "eager", torch.float32)).train()


def kept_bytes_and_gradients(module, ids):
    """Bytes of the tensors that forward keeps for backward, each storage once; the loss; all gradients."""
    storages = {}

    def keep(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss, _ = module(ids, (ids % 2).to(torch.uint8))
    weights = {each.untyped_storage().data_ptr() for each in module.parameters()}
    loss.backward()
    kept = sum(size for pointer, size in storages.items() if pointer not in weights)
    return kept, loss.detach(), {name: weight.grad for name, weight in module.named_parameters()}


@pytest.mark.parametrize("kind", ["electra", "modernbert", "bert", "roberta", "deberta-v2"])
def test_losses_and_gradients_are_those_of_a_step_that_keeps_everything(kind, tiny_tokenizer):
    ids = torch.randint(5, len(tiny_tokenizer), (3, 16), generator=torch.Generator().manual_seed(2))
    kept, loss, gradients = kept_bytes_and_gradients(built(kind, tiny_tokenizer), ids)
    module = built(kind, tiny_tokenizer)
    recompute_activations(module)
    fewer, again, others = kept_bytes_and_gradients(module, ids)
    assert torch.equal(loss, again), "dropout draws the same when it is drawn again"
    assert others.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert (gradient is None) == (others[name] is None)
        assert gradient is None or torch.equal(gradient, others[name]), name
    assert fewer < kept / 2


def test_a_model_that_cannot_is_refused(tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(ElectraForPreTraining, "supports_gradient_checkpointing", False)
    with pytest.raises(ValueError, match=r"checkpointing = True: ElectraForPreTraining cannot .* leave it out"):
        recompute_activations(built("electra", tiny_tokenizer))


def make_run(output, corpus, stage, objective, **of_run):
    """A run of tiny models with two micro-batches an update, every weight of them split under ZeRO-3."""
    parallel.start()
    demo = recipes.get("demo")
    config = replace(
        demo,
        objective=objective,
        output=str(output),
        corpus=str(corpus),
        encoder=replace(demo.encoder, num_layers=2, hidden_size=32, num_heads=2, intermediate_size=48),
        data=replace(demo.data, sequence_length=32, held_out_rows=8),
        run=replace(demo.run, steps=100, batch_rows=8, micro_batch_rows=4, dtype="float32", hang_minutes=0, **of_run),
    )
    output.mkdir()
    zero = {"stage": stage} | ({"stage3_param_persistence_threshold": 0} if stage == 3 else {})
    settings = {"zero_optimization": zero, "zero_allow_untested_optimizer": True}
    with patch.object(setup_run, "matrix_product_flops", lambda _: 1e12):  # no speed is measured here
        return setup_run.build(config, settings, setup_run.open_batches(config))


def losses(run, updates=2):
    found = []
    run.engine.module.register_forward_hook(lambda _module, _inputs, outputs: found.append(outputs[0].item()))
    progress = Progress(run, Watchdog(0))
    for step in range(updates):
        pretrain.set_learning_rates(run, 10)
        for first in (8 * step, 8 * step + 4):
            pretrain.micro_step(run, run.batches.training(first, 4), 0.5, progress)
        progress.end_update()
    progress.bar.close()
    return found


def layers_that_recompute(module: nn.Module) -> int:
    return sum(
        isinstance(each, GradientCheckpointingLayer) and each.gradient_checkpointing for each in module.modules()
    )


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("objective", ["random", "joint_shallow", "joint_decoupled"])
def test_engines_train_alike_with_and_without(objective, stage, tiny_corpus, tmp_path):
    found, counted, recomputing = [], [], []
    for recompute in (False, True):
        run = make_run(tmp_path / str(recompute), tiny_corpus, stage, objective, activation_checkpointing=recompute)
        found.append(losses(run))
        counted.append(run.flops_per_token)
        recomputing.append([layers_that_recompute(engine.module) for engine in run.engines])
        for engine in run.engines:
            engine.destroy()
    assert len(set(found[0])) == 4, "the second update starts from what the first has changed"
    assert found[0] == found[1]
    assert counted[0] == counted[1], "MFU counts no FLOP twice"
    expected = {"random": [2], "joint_shallow": [3], "joint_decoupled": [2, 1]}[objective]
    assert recomputing == [[0] * len(expected), expected]
