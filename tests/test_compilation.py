"""Compiled runs on the real engine: what is compiled, when, and that it computes what is computed without."""

import json
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import deepspeed
import pytest
import torch
from conftest import TINY, launch, metrics
from torch._dynamo.utils import counters
from transformers import BertConfig, BertForMaskedLM

from fast_electra.engine import parallel
from fast_electra.pretraining import pretrain, setup_run
from fast_electra.pretraining.progress import Progress
from fast_electra.runs.watchdog import Watchdog
from fast_electra.settings import recipes


@pytest.fixture
def quick_backend(monkeypatch):
    """Graphs are found, guarded and differentiated as always, and not turned into C++."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


def make_run(output, corpus, stage=1, objective="random", num_layers=2, auxiliary=None, recipe="demo", **of_run):
    """A run of six updates of two micro-batches of 4 rows; the 10 held-out rows do not fill their last one."""
    parallel.start()
    usual = recipes.get(recipe)
    tiny = {"num_layers": num_layers, "hidden_size": 32, "num_heads": 4, "intermediate_size": 48}
    narrow = {"embedding_size": 16, "dropout": 0.0, "attention_dropout": 0.0} if recipe != "demo" else {}
    rhythm = {"steps": 6, "batch_rows": 8, "micro_batch_rows": 4, "log_every": 1, "evaluate_every": 2, "save_every": 6}
    config = replace(
        usual,
        objective=objective,
        output=str(output),
        corpus=str(corpus),
        encoder=replace(usual.encoder, **tiny, **narrow),
        data=replace(usual.data, sequence_length=32, held_out_rows=10),
        run=replace(usual.run, **{**rhythm, "dtype": "float32", "hang_minutes": 0, "compile": True, **of_run}),
        initial_weights="",
        **({"auxiliary": str(auxiliary), "auxiliary_engine": "compiled", "auxiliary_gate": False} if auxiliary else {}),
    )
    output.mkdir()
    zero = {"stage": stage} | ({"stage3_param_persistence_threshold": 0} if stage == 3 else {})  # splits all weights
    settings = {"zero_optimization": zero, "zero_allow_untested_optimizer": True}
    with patch.object(setup_run, "matrix_product_flops", lambda _: 1e12):  # no speed is measured here
        return setup_run.build(config, settings, setup_run.open_batches(config))


def graphs_by_moment(run):
    """Train and finish the run; graphs compiled by the end of each update and of each evaluation, in their order."""
    torch._dynamo.reset()
    counters.clear()
    found, update, evaluate = [], Progress.end_update, pretrain.evaluate

    def then_count(name, action):
        def counted(*args):
            result = action(*args)
            found.append((name, counters["stats"]["unique_graphs"]))
            return result

        return counted

    progress = Progress(run, Watchdog(0))
    with (
        patch.object(Progress, "end_update", then_count("update", update)),
        patch.object(pretrain, "evaluate", then_count("evaluation", evaluate)),
    ):
        pretrain.train(run, progress)
        pretrain.finish(run, progress)
    found.append(("export", counters["stats"]["unique_graphs"]))
    for engine in run.engines:
        engine.destroy()
    return found


MOMENTS = [*(["update"] * 2 + ["evaluation"]) * 3, "export"]


def compiled_late(found):
    """Graphs compiled after the first update and the first evaluation."""
    assert [name for name, _ in found] == MOMENTS
    numbers = [number for _, number in found]
    return (numbers[1] - numbers[0]) + (numbers[-1] - numbers[2])


RIVALS = [("joint_shallow", "demo"), ("joint_gdes", "demo"), ("joint_decoupled", "demo"), ("joint", "electra_small")]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("objective", "recipe"), [("random", "demo"), ("mlm", "demo"), *RIVALS])
def test_nothing_is_compiled_after_the_first_update_and_evaluation(
    objective, recipe, checkpointing, tiny_corpus, tmp_path, quick_backend
):
    how = {"objective": objective, "recipe": recipe, "num_layers": 4, "activation_checkpointing": checkpointing}
    found = graphs_by_moment(make_run(tmp_path / "run", tiny_corpus, **how))
    assert compiled_late(found) == 0, found
    once, in_all = found[0][1], found[-1][1]
    # Embeddings, first layer, other layers and head of each model, and what passes over the vocabulary.
    of_two = {"joint_shallow": 4 + 1 + 2, "joint_decoupled": 4 + 2, "joint": 4 + 1 + 2}
    of_two["joint_gdes"] = of_two["joint_shallow"] + 1  # embeddings of two kinds
    graphs = {"random": 4, "mlm": 4 + 1, **of_two}[objective]
    in_training_alone = 2 if checkpointing and objective == "joint_gdes" else 0  # a hook of its embeddings, twice
    assert once == graphs + in_training_alone
    assert in_all == once + graphs, "and each once more for evaluation"


def test_nothing_is_compiled_late_of_a_compiled_auxiliary_model_and_its_samples(
    tiny_corpus, tiny_tokenizer, tmp_path, quick_backend, monkeypatch
):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    masked_lm = BertForMaskedLM(BertConfig(vocab_size=len(tiny_tokenizer), max_position_embeddings=64, **shape))
    for each in (masked_lm, tiny_tokenizer):
        each.save_pretrained(tmp_path / "lm")
    found = graphs_by_moment(make_run(tmp_path / "run", tiny_corpus, objective="frozen", auxiliary=tmp_path / "lm"))
    assert compiled_late(found) == 0, found
    assert found[0][1] == 2 + 4, "the auxiliary model as a whole, its samples, and the parts of the model"
    assert found[-1][1] == found[0][1] + 4, "the parts once more for evaluation"


def test_rows_that_do_not_fill_a_micro_batch_would_be_a_graph_of_their_own(
    tiny_corpus, tmp_path, quick_backend, monkeypatch
):
    """What the tests above would count if evaluations compiled whatever comes."""
    monkeypatch.setattr(pretrain, "compiled", lambda usual: nullcontext())
    assert graphs_by_moment(make_run(tmp_path / "run", tiny_corpus))[2][1] == 3 * 4


@pytest.mark.parametrize("stage", [1, 3])
def test_layers_share_their_graphs_however_many_there_are(stage, tiny_corpus, tmp_path, quick_backend):
    """Under ZeRO-3 hooks would break them; beyond a limit of graphs for each function, nothing would be compiled."""
    graphs = []
    for num_layers in (4, 12):
        found = graphs_by_moment(
            make_run(tmp_path / f"{num_layers} layers", tiny_corpus, stage=stage, num_layers=num_layers)
        )
        assert compiled_late(found) == 0, found
        graphs.append((found[0][1], found[-1][1]))
    assert graphs[0] == graphs[1]


def test_layers_are_gathered_whole_only_where_they_are_compiled_under_zero_3(tiny_corpus, tmp_path, quick_backend):
    marked = []
    for stage, compiled in ((3, False), (1, True), (3, True)):
        run = make_run(tmp_path / f"{stage}-{compiled}", tiny_corpus, stage, compile=compiled)
        leaves = {type(each).__name__ for each in run.engine.module.modules() if getattr(each, "_z3_leaf", False)}
        marked.append(leaves)
        run.engine.destroy()
    assert marked == [set(), set(), {"ModernBertEncoderLayer"}]


@pytest.mark.slow
def test_nothing_is_compiled_late_by_the_backend_of_a_run(tiny_corpus, tmp_path):
    assert compiled_late(graphs_by_moment(make_run(tmp_path / "run", tiny_corpus))) == 0


def step_of(folder, corpus, compiled, **how):
    """The loss of a micro-batch and the gradients of all weights."""
    run = make_run(folder / str(compiled), corpus, compile=compiled, **how)
    torch._dynamo.reset()  # or what earlier tests compiled counts towards a limit, beyond which nothing is
    counters.clear()
    loss, *_ = run.engine(*run.objective.inputs(run.batches.training(0, 4), 0.5))
    run.engine.backward(loss)
    gradients = [deepspeed.utils.safe_get_full_grad(weight) for weight in run.engine.module.parameters()]
    assert (counters["stats"]["unique_graphs"] > 0) == compiled
    run.engine.destroy()
    return loss.detach(), gradients


def assert_alike(one, other):
    torch.testing.assert_close(one[0], other[0])
    assert len(one[1]) == len(other[1]) > 10
    for mine, its in zip(one[1], other[1], strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("stage", [1, 3])
def test_a_compiled_step_is_the_plain_one(stage, checkpointing, tiny_corpus, tmp_path, quick_backend):
    plain = step_of(tmp_path, tiny_corpus, False, stage=stage)
    assert_alike(plain, step_of(tmp_path, tiny_corpus, True, stage=stage, activation_checkpointing=checkpointing))


@pytest.mark.parametrize(("objective", "recipe"), [*RIVALS[:2], RIVALS[3], ("random", "electra_small")])
def test_a_compiled_step_is_the_plain_one_for_rivals_and_electra(
    objective, recipe, tiny_corpus, tmp_path, quick_backend
):
    plain, made = (step_of(tmp_path, tiny_corpus, each, objective=objective, recipe=recipe) for each in (False, True))
    assert_alike(plain, made)


@pytest.mark.slow
def test_a_compiled_run_of_two_processes_under_zero_3_learns_as_a_plain_one(tiny_corpus, tmp_path):
    settings = tmp_path / "zero3.json"
    settings.write_text(json.dumps({"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}))
    arguments = [*TINY, "--objective=random", "--run.dtype=float32", f"--corpus={tiny_corpus}"]
    found = []
    for compiled in ("false", "true"):
        output = tmp_path / compiled
        of_run = [f"--run.compile={compiled}", f"--run.activation_checkpointing={compiled}", f"--output={output}"]
        launch(*arguments, *of_run, f"--deepspeed={settings}", num_processes=2)
        found.append([row["loss"] for row in metrics(output) if "loss" in row])
        assert json.loads((output / "summary.json").read_text())["export_logit_difference"] < 1e-3
    assert len(found[0]) == 8
    assert found[1] == pytest.approx(found[0], rel=1e-4)
