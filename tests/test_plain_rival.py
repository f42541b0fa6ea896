"""The plain rival: its loss against our own pieces, its step, and a short contest that the targets are read from."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from benchmarks import cases, costs, measure, rows
from benchmarks.cases import Case
from benchmarks.contest import contestant, plain_rival
from benchmarks.contest.contestant import Variant
from benchmarks.page import targets
from fast_electra.batching.batches import Batches, MaskedBatch
from fast_electra.corpora.corpus import Corpus
from fast_electra.engine import parallel
from fast_electra.methods import joint
from fast_electra.models import discriminator
from fast_electra.models.auxiliary import MaskedLM
from fast_electra.settings.config import DataConfig

ROOT = Path(__file__).parent.parent

TINY = Case("demo", "joint_plain", 32, 64, "all", 4)
NARROW = replace(TINY, recipe="electra_small")
SETTINGS = json.loads((ROOT / "ds_configs/zero1.json").read_text())


def test_the_plain_rival_is_named_with_its_head_on_all_positions() -> None:
    assert cases.parse("base/joint_plain") == Case("base", "joint_plain", head="all")
    assert cases.parse(TINY.name) == TINY
    with pytest.raises(ValueError, match=r"head 'masked': joint_plain runs the LM head on all positions"):
        replace(TINY, head="masked")
    with pytest.raises(ValueError, match=r"\+checkpointing: joint_plain is as scripts are written"):
        cases.parse("base/joint_plain+checkpointing")


def test_its_generator_has_electras_shape_where_the_encoder_can_have_it() -> None:
    assert (cases.joint_of("electra_base"), cases.joint_of("base")) == ("joint", "joint_shallow")
    for recipe in ("electra_base", "base"):
        ours = cases.shapes(Case(recipe, cases.joint_of(recipe)))
        theirs = cases.shapes(Case(recipe, "joint_plain", head="all"))
        assert [each.to_dict() for each in ours if each] == [each.to_dict() for each in theirs if each]


def test_its_flops_are_those_of_joint_training_with_the_head_on_all_positions() -> None:
    ours, theirs = (costs.count(Case("base", name, head="all")) for name in ("joint_shallow", "joint_plain"))
    assert theirs["flops_per_token"] == ours["flops_per_token"]
    assert theirs["flops_per_token"] > costs.count(Case("base", "joint_shallow"))["flops_per_token"]


@pytest.mark.parametrize("case", [TINY, NARROW], ids=["modernbert", "electra"])
def test_its_loss_is_that_of_our_own_joint_pieces(case: Case) -> None:
    torch.manual_seed(0)
    settings = cases.config(case)
    shape, generator_shape = cases.shapes(case)
    assert generator_shape is not None
    module = plain_rival.module(shape, generator_shape).eval()
    with torch.no_grad():  # untrained, it may draw [PAD], which our loss leaves out
        module.generator.get_output_embeddings().bias[module.discriminator.config.pad_token_id] = -1e4
    tokens = torch.randint(5, case.vocab_size, (4, 32))
    positions = torch.arange(1, 1 + settings.data.num_masked).repeat(4, 1)
    batch = MaskedBatch(tokens, positions, torch.arange(4), torch.empty(0, 0, dtype=torch.int64))
    inputs = plain_rival.PlainInputsMaker(mask_id=4).inputs(batch, 0.0)
    loss, logits, corrupted = module(*inputs)
    masked, places, wanted, _ = joint.masked_lm_inputs(batch, 4)
    mlm = F.cross_entropy(MaskedLM(module.generator)(masked, places).flatten(0, 1), wanted.flatten())
    labels = (corrupted != tokens).to(torch.uint8)
    rtd, ours = discriminator.ReplacedTokenDetection(module.discriminator)(corrupted, labels)
    torch.testing.assert_close(logits, ours)
    torch.testing.assert_close(loss, mlm + 50 * rtd)
    assert not labels.scatter(1, places, 0).any(), "only masked positions are replaced"
    assert labels.any()


def test_its_step_is_autocast_over_float32_weights_clipped_to_one(tmp_path: Path) -> None:
    parallel.start()
    each = contestant.build(TINY, SETTINGS, tmp_path, variant=Variant(compiled=True))
    engine, weights = each.run.engine, dict(each.run.engine.module.named_parameters())
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert not each.run.config.run.compile, "such scripts are not compiled"
    tables = [m.get_input_embeddings().weight for m in (engine.module.generator, engine.module.discriminator)]
    assert tables[0] is tables[1]
    assert engine.module.generator.get_output_embeddings().weight is tables[0]
    clipped: list[float] = []
    engine.optimizer.register_step_pre_hook(
        lambda *_: clipped.append(float(torch.stack([w.grad.norm() for w in weights.values()]).norm()))
    )
    before = tables[0].detach().clone()
    parts = each.train_step()
    assert set(parts) == set(contestant.PARTS)
    assert clipped[0] == pytest.approx(1.0, abs=1e-3), "a loss of fifty times an entropy has a larger norm"
    assert not torch.equal(tables[0], before)
    assert engine(*each.run.objective.inputs(each.run.batches.training(0, 4), 0.0))[0].isfinite()
    each.close()


def test_its_update_of_several_micro_batches_takes_their_mean_gradient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain_rival, "CLIP_NORM", 1e9)
    parallel.start()
    each = contestant.build(TINY, SETTINGS, tmp_path, variant=Variant(micro_batches=2))
    assert (each.micro_batches, each.tokens_per_step) == (2, 2 * 4 * 32)
    engine = each.run.engine
    weight, updates = next(engine.module.parameters()), []
    engine.optimizer.register_step_pre_hook(lambda *_: updates.append(weight.grad.clone()))
    alone = []
    for first in (0, 4):  # each micro-batch's own gradient, as an update of one would take it
        torch.manual_seed(first)
        loss, *_ = engine(*each.run.objective.inputs(each.run.batches.training(first, 4), 0.0))
        alone.append(torch.autograd.grad(loss, weight)[0])
    for first in (0, 4):
        assert not updates
        torch.manual_seed(first)
        each.train_step(each.run.batches.training(first, 4))
    assert len(updates) == 1
    torch.testing.assert_close(updates[0], (alone[0] + alone[1]) / 2, rtol=1e-3, atol=1e-6)
    each.close()


def test_a_contest_with_the_plain_rival_tells_whether_the_targets_are_met(tmp_path: Path) -> None:
    """One short run of all four on one's own machine: the rows, the ratios and the section of the page."""
    names = ("frozen", "replay", "joint_shallow")
    contest = [replace(TINY, objective=name, head="masked") for name in names]
    early, made = measure.measure([*contest, TINY], SETTINGS, turns=4, steps=1, variants=[Variant(micro_batches=2)])
    assert [(row["n"], row["simulated_memory_gib"]) for row in early] == [(3, None)] * 4, "what a cut leaves"
    made = [row | rows.provenance("throughput") for row in made]
    assert {(row["n"], row["micro_batches"]) for row in made} == {(4, 2)}
    plain = rows.the(made, "throughput", objective="joint_plain")
    assert (plain["zero_stage"], plain["compiled"], plain["simulated_memory_gib"]) == (0, False, None)
    assert plain["mfu_measured"] > 0
    found = targets.targets(made)
    assert {(row["method"], row["rival"], row["target"]) for row in found} == {
        (method, rival, target)
        for method in ("frozen", "replay")
        for rival, target in (("joint_plain", 2.5), ("joint_shallow", 1.3))
    }
    text = "\n".join(targets.target_section([*made, *found], tmp_path))
    for row in found:
        assert 0 < row["ratio_lowest"] <= row["ratio"] <= row["ratio_highest"]
        assert f"{row['ratio']:.3f} ({row['ratio_lowest']:.3f} to {row['ratio_highest']:.3f})" in text


def test_a_turn_takes_its_rows_in_order_from_batches_made_ahead(tiny_corpus: Path) -> None:
    parallel.start()
    batches = Batches([(Corpus.open(tiny_corpus), 1.0)], DataConfig(sequence_length=32, held_out_rows=8), seed=0)
    seen = []

    class Engine(torch.nn.Module):
        def forward(self, keys):
            seen.append(keys.tolist())
            return (torch.zeros(()),)

        def train_micro_batch_size_per_gpu(self):
            return 2

        def backward(self, loss):
            pass

        def step(self):
            pass

    objective = SimpleNamespace(inputs=lambda batch, u: (batch.rows,), counts=lambda outputs, inputs: None)
    config = SimpleNamespace(run=SimpleNamespace(batch_rows=4, steps=10))
    run = SimpleNamespace(config=config, batches=batches, engine=Engine(), objective=objective, generator=None)
    each = contestant.Contestant(SimpleNamespace(sequence_length=32), run)
    each.turn(3)
    each.turn(2)
    assert seen == [batches.training(2 * micro_step, 2).rows.tolist() for micro_step in range(10)], "two an update"
    assert (each.micro_step, len(each.seconds), len(each.parts)) == (10, 2, 2)
    assert set(each.parts[0]) == set(contestant.PARTS)
