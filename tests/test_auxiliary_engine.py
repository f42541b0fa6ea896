"""The auxiliary model's engines: DeepSpeed's kernels, with a stand-in for their operator, and the choice among them."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from deepspeed.ops.op_builder.builder import MissingCUDAException
from deepspeed.ops.transformer.inference.op_binding.base import BaseOp
from torch.nn import functional
from transformers import AutoConfig, AutoModelForMaskedLM

from fast_electra.batching.batches import MaskedBatch
from fast_electra.engine import auxiliary_engine, injection, parallel
from fast_electra.engine.auxiliary_engine import Choice
from fast_electra.engine.injection import Injected, NotInjectedError
from fast_electra.models.auxiliary import MaskedLM
from fast_electra.runs import preemption, run_folder
from fast_electra.settings import recipes

ROWS, LENGTH, WORDS, MASK = 4, 24, 90, 4
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "initializer_range": 0.3,
}


class Operator:
    """The linear layer of DeepSpeed's operator; DeepSpeed brings torch versions of all else."""

    def linear_layer_fp32(self, x, weight, bias, add_bias, _flash, _heads, transposed, _theta):
        return functional.linear(x, weight if transposed else weight.t(), bias if add_bias else None)


class BrokenOperator(Operator):
    """The same, wrong."""

    def linear_layer_fp32(self, x, *rest):
        return super().linear_layer_fp32(x.roll(1, dims=1), *rest)


@pytest.fixture
def operator(monkeypatch):
    """Put an operator in the place of the one DeepSpeed would build."""
    parallel.start()

    def put(made):
        monkeypatch.setattr(BaseOp, "inference_module", made)

    return put


def masked_lm(kind, **changes):
    torch.manual_seed(0)
    more = {"electra": {"embedding_size": 16}, "modernbert": {"pad_token_id": 0}}.get(kind, {})
    config = AutoConfig.for_model(kind, vocab_size=WORDS, max_position_embeddings=64, **SIZES | more | changes)
    return MaskedLM(AutoModelForMaskedLM.from_config(config).eval().requires_grad_(False))


def batch_of(rows=ROWS):
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(5, WORDS, (rows, LENGTH), generator=generator)
    positions = torch.rand(rows, LENGTH, generator=generator).argsort(dim=1)[:, :4].sort(dim=1).values
    return MaskedBatch(input_ids, positions, torch.arange(rows))


def inject(module):
    return injection.inject(copy.deepcopy(module), module.model.config, torch.float32, ROWS, LENGTH)


@pytest.mark.parametrize("kind", ["bert", "electra", "roberta"])
def test_injected_layers_give_what_the_stock_model_gives(kind, operator):
    operator(Operator())
    module, batch = masked_lm(kind), batch_of()
    expected = module(batch.input_ids, batch.positions)
    injected = inject(module)
    torch.testing.assert_close(injected(batch.input_ids, batch.positions), expected, rtol=1e-4, atol=2e-5)
    names = {type(each).__name__ for each in injected.modules()}
    assert "DeepSpeedBERTInference" in names
    assert not names & {layer.__name__ for layer in injection.LAYERS.values()}
    torch.testing.assert_close(module(batch.input_ids, batch.positions), expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["bert", "electra"])
def test_a_mask_reaches_the_kernels_as_they_read_it(kind, operator):
    operator(Operator())
    module, batch = masked_lm(kind), batch_of()
    seen = torch.ones(ROWS, LENGTH, dtype=torch.long)
    seen[1:, -7:] = 0
    expected = module.model(input_ids=batch.input_ids, attention_mask=seen).logits if module_ready(module, batch) else 0
    injected = inject(module)
    inner = injected.engine.module
    assert module_ready(inner, batch)
    got = inner.model(input_ids=batch.input_ids, attention_mask=seen).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", ["bert", "electra", "roberta"])
def test_injected_layers_keep_documents_apart(kind, operator):
    operator(Operator())
    module, batch = masked_lm(kind), batch_of()
    position_ids = torch.arange(LENGTH).remainder(9).expand(ROWS, -1)
    expected = module(batch.input_ids, batch.positions, position_ids)
    got = inject(module)(batch.input_ids, batch.positions, position_ids)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-5)


def module_ready(module, batch):
    """Let the next call of the stock model inside gather the batch's positions."""
    module._positions = batch.positions
    return True


def test_a_batch_larger_than_the_workspace_is_refused(operator):
    operator(Operator())
    injected, larger = inject(masked_lm("bert")), batch_of(ROWS + 1)
    assert isinstance(injected, Injected)
    with pytest.raises(ValueError, match=r"workspace was made for \(4, 24\)"):
        injected(larger.input_ids, larger.positions)


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("modernbert", {"layer_types": ["full_attention"] * 2}, "they know bert, roberta, electra"),
        ("bert", {"hidden_act": "relu"}, "they compute GELU"),
        ("bert", {"hidden_size": 36}, "multiple of 8"),
        ("bert", {"intermediate_size": 96}, "4 times"),
        ("bert", {"attn_implementation": "flex_attention"}, "no block-sparse mask"),
    ],
)
def test_a_model_the_kernels_cannot_run_is_refused_with_the_reason(kind, changes, reason, operator):
    operator(Operator())
    with pytest.raises(NotInjectedError, match=reason):
        inject(masked_lm(kind, **changes))


def test_layers_that_deepspeed_left_alone_are_noticed(operator, monkeypatch):
    operator(Operator())
    module = masked_lm("electra")
    monkeypatch.setattr(injection, "LAYERS", {"electra": injection.BertLayer})
    monkeypatch.setattr(injection.HFBertLayerPolicy, "_orig_layer_class", [injection.BertLayer])
    with pytest.raises(NotInjectedError, match="replaced 0 of 2 layers"):
        inject(module)


def test_the_engine_named_is_taken_if_it_agrees(operator):
    operator(Operator())
    batch = batch_of()
    choice = auxiliary_engine.choose(masked_lm("electra"), batch, MASK, torch.float32, "injected")
    assert choice.name == "injected"
    assert isinstance(choice.engine, Injected)
    told = [str(each) for each in choice.trials]
    assert told[0].startswith("plain: ")
    assert "100.00% of the most likely tokens agree" in told[1]


def test_kernels_that_compute_something_else_are_not_taken(operator):
    operator(BrokenOperator())
    with pytest.raises(ValueError, match=r"auxiliary_engine = 'injected'.*not what the plain engine gives; take plain"):
        auxiliary_engine.choose(masked_lm("bert"), batch_of(), MASK, torch.float32, "injected")


def test_an_engine_that_a_signal_ended_in_its_making_is_not_refused(operator, monkeypatch):
    """The choice is kept for good, and a compiler is in the process group that a terminal's signal reaches."""

    def ended():
        raise RuntimeError("CppCompileError: C++ compile error")

    operator(None)
    monkeypatch.setattr(auxiliary_engine, "_builders", lambda *_: {"compiled": ended})
    assert auxiliary_engine.choose(masked_lm("bert"), batch_of(), MASK, torch.float32).name == "plain"
    monkeypatch.setattr(preemption, "_requested", True)
    with pytest.raises(preemption.Preempted):
        auxiliary_engine.choose(masked_lm("bert"), batch_of(), MASK, torch.float32)


@pytest.mark.parametrize(
    ("began_with", "asked", "remedy"),
    [
        ({"auxiliary_engine": "compiled"}, "auto", "the run began with it, and engines round differently: go on where"),
        ({}, "compiled", "take plain, or auto"),
    ],
)
def test_a_run_says_what_it_began_with_where_that_cannot_be_had(
    began_with, asked, remedy, operator, tmp_path, monkeypatch
):
    def absent():
        raise RuntimeError("no C++ compiler")

    operator(None)
    run_folder.bind(str(tmp_path), began_with)
    monkeypatch.setattr(auxiliary_engine, "_builders", lambda *_: {"compiled": absent})
    batches = SimpleNamespace(vocab_size=WORDS, training=lambda first, count: batch_of(min(count, 8)))
    config = replace(recipes.get("demo"), output=str(tmp_path), auxiliary_engine=asked)
    with pytest.raises(ValueError, match=rf"auxiliary_engine = 'compiled': no C\+\+ compiler; {remedy}"):
        auxiliary_engine.for_run(masked_lm("bert"), batches, MASK, config, torch.float32)


def test_kernels_that_cannot_be_built_are_not_taken(operator):
    operator(None)  # DeepSpeed then builds its own, which it has not for a CPU
    with pytest.raises(ValueError, match="DeepSpeed could not load its kernels"):
        auxiliary_engine.choose(masked_lm("bert"), batch_of(), MASK, torch.float32, "injected")


def test_a_machine_without_nvcc_is_one_where_they_cannot_be_built(operator, monkeypatch):
    """DeepSpeed tells of it by a plain Exception; nothing but the plain engine is then left to a run."""

    def absent(*_args, **_kwargs):
        raise MissingCUDAException("CUDA_HOME does not exist")

    operator(Operator())
    monkeypatch.setattr(injection.deepspeed, "init_inference", absent)
    with pytest.raises(NotInjectedError, match=r"could not load its kernels .CUDA_HOME does not exist"):
        inject(masked_lm("bert"))


def test_auto_takes_the_fastest_that_serves(operator, monkeypatch):
    operator(BrokenOperator())
    module, slow, fast = masked_lm("bert"), masked_lm("bert"), masked_lm("bert")
    made = {"slow": lambda: slow, "fast": lambda: fast, "injected": lambda: inject(module)}
    monkeypatch.setattr(auxiliary_engine, "_builders", lambda *_: made)
    of_each = {"plain": 2.0, "slow": 3.0, "fast": 1.0, "injected": 2.0}
    monkeypatch.setattr(
        auxiliary_engine, "_seconds_in_turn", lambda engines, _: {name: of_each[name] for name in engines}
    )
    seconds = {each.name: each.seconds for each in auxiliary_engine.compare(module, batch_of(), MASK, torch.float32)}
    assert seconds == of_each
    choice = auxiliary_engine.choose(module, batch_of(), MASK, torch.float32)
    assert (choice.name, choice.engine) == ("fast", fast)
    assert [each.name for each in choice.trials] == ["plain", "slow", "fast"], (
        "unproven kernels are tried by name alone"
    )


def test_what_slows_a_machine_down_slows_all_engines(monkeypatch):
    """Timed one after the other, the quicker of two would be taken for the slower one."""
    clock, passes = [0.0], []
    monkeypatch.setattr(auxiliary_engine.time, "perf_counter", lambda: clock[0])

    def engine(seconds):
        def forward(inputs):
            passes.append(seconds)
            clock[0] += seconds * (5.0 if len(passes) > auxiliary_engine.TURNS else 1.0)  # slower from the middle on
            return inputs

        return forward

    found = auxiliary_engine._seconds_in_turn({"plain": engine(2.0), "fast": engine(1.0)}, (torch.zeros(1, 1, 1),))
    assert len(passes) == 2 * auxiliary_engine.TURNS
    assert found["fast"] < found["plain"]


@pytest.mark.parametrize("name", ["plain", "other"])
def test_no_engine_computes_with_the_linear_layer_that_zero_leaves_behind(name, operator, monkeypatch):
    operator(None)
    batch, other = batch_of(), masked_lm("bert")
    monkeypatch.setattr(auxiliary_engine, "_builders", lambda *_: {"other": lambda: other})
    engine = auxiliary_engine.choose(masked_lm("bert"), batch, MASK, torch.float32, name).engine
    expected = engine(batch.input_ids, batch.positions)
    monkeypatch.setattr(functional, "linear", lambda *_: pytest.fail("ZeRO's linear layer"))
    assert torch.equal(engine(batch.input_ids, batch.positions), expected)


@pytest.mark.parametrize(
    ("asked", "compiles", "began_with", "taken"),
    [
        ("auto", False, None, "plain"),
        ("auto", True, None, "auto"),
        ("auto", False, "compiled", "compiled"),
        ("auto", True, "plain", "plain"),
        ("plain", True, None, "plain"),
        ("compiled", False, None, "compiled"),
    ],
)
def test_on_a_cpu_auto_tries_engines_where_what_trains_is_compiled_and_a_resumed_run_keeps_its_own(
    asked, compiles, began_with, taken, operator, tmp_path, monkeypatch
):
    if began_with:
        run_folder.bind(str(tmp_path), {"auxiliary_engine": began_with})
    wanted = []
    monkeypatch.setattr(
        auxiliary_engine, "choose", lambda *args: wanted.append(args[4]) or Choice(torch.nn.Identity(), "")
    )
    batches = SimpleNamespace(vocab_size=WORDS, training=lambda first, count: batch_of(min(count, 8)))
    demo = recipes.get("demo")
    run = replace(demo.run, compile=compiles)
    config = replace(demo, output=str(tmp_path), auxiliary_engine=asked, run=run)
    auxiliary_engine.for_run(masked_lm("bert"), batches, MASK, config, torch.float32)
    assert wanted == [taken]


@pytest.mark.parametrize(("micro", "rows"), [(64, 16), (8, 16), (96, 24)])
def test_the_trial_has_as_many_rows_as_go_through_together_on_any_number_of_processes(
    micro, rows, operator, tmp_path, monkeypatch
):
    """A precomputation splits its rows by shards: its processes need not divide the batch of training."""
    tried = []
    monkeypatch.setattr(parallel, "world_size", lambda: 3)
    monkeypatch.setattr(auxiliary_engine, "choose", lambda *args: Choice(torch.nn.Identity(), ""))
    batches = SimpleNamespace(vocab_size=32_000, training=lambda first, count: tried.append(count) or batch_of(2))
    config = recipes.get("base")
    run = replace(config.run, micro_batch_rows=micro)
    config = replace(config, output=str(tmp_path), run=run)
    assert config.data.num_masked == 77
    auxiliary_engine.for_run(masked_lm("bert"), batches, MASK, config, torch.float32)
    assert tried == [rows]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["bert", "electra", "roberta"])
def test_a_gpu_takes_an_engine_and_tells_how_each_did(kind, capsys):
    """Of those that `auto` tries: building DeepSpeed's kernels takes longer than a test may (benchmarks.engines)."""
    parallel.start()
    batch = batch_of().to(parallel.device())
    module = masked_lm(kind, hidden_size=256, intermediate_size=1024)
    choice = auxiliary_engine.choose(module, batch, MASK, torch.bfloat16)
    with capsys.disabled():
        print(*choice.trials, f"taken: {choice.name}", sep="\n")
    assert choice.name in ("plain", "compiled")
    assert [each.name for each in choice.trials] == ["plain", "compiled"]
