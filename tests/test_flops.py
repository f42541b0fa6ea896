"""The FLOPs of whole steps equal torch's counter, for every objective; peaks, MFU and bad input."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import (
    CONFIGS,
    LENGTH,
    MASK_TOKEN,
    MASKED,
    POSITIONS,
    ROWS,
    VOCABULARY,
    bert_like,
    build,
    deberta,
    modernbert,
)
from torch import nn
from transformers import AutoModelForMaskedLM, BertConfig, ElectraConfig, GPT2Config, PreTrainedModel

from fast_electra.batching.separation import WHOLE_ROWS
from fast_electra.costs.flops import (
    OBJECTIVES,
    VENDOR_PEAK,
    attention_share,
    flop_counter,
    measured_matmul_flops_per_second,
    mfu,
    model_flops_per_token,
    training_step,
    vendor_peak,
)
from fast_electra.costs.model_flops import PARTS
from fast_electra.models import discriminator
from fast_electra.models.discriminator import ReplacedTokenDetection

STEP = {"batch_rows": ROWS, "sequence_length": LENGTH, "num_masked": MASKED}

# Whole steps, put together by hand: what an objective runs, whatever the package's own objectives do.

PAIRS = {
    "electra, narrow generator": (
        bert_like(ElectraConfig, embedding_size=32),
        bert_like(ElectraConfig, embedding_size=32, hidden_size=16, num_attention_heads=2, intermediate_size=40),
    ),
    "modernbert, shallow generator": (modernbert(), modernbert(num_hidden_layers=1)),
    "modernbert beside electra": (modernbert(), bert_like(ElectraConfig, embedding_size=24, num_hidden_layers=2)),
    "electra beside deberta-v2": (CONFIGS["electra"], deberta(num_hidden_layers=2)),
    "roberta beside bert": (CONFIGS["roberta"], bert_like(BertConfig, num_hidden_layers=1)),
}


def run_step(objective: str, discriminator: PreTrainedModel, auxiliary: PreTrainedModel) -> None:
    ids = torch.randint(2, VOCABULARY - 1, (ROWS, LENGTH))
    masked = ids.scatter(1, POSITIONS, MASK_TOKEN)
    loss = torch.zeros(())
    if objective in ("replay", "unigram", "random"):
        samples = torch.randint(2, VOCABULARY - 1, POSITIONS.shape)
    else:
        with torch.set_grad_enabled(objective not in ("frozen", "two_stage")):
            logits = auxiliary(masked).logits.float()  # (B, N, V)
        samples = torch.distributions.Categorical(logits=logits.detach()).sample()
        loss = F.cross_entropy(logits.flatten(0, 1), ids.gather(1, POSITIONS).flatten())
    corrupted = ids.scatter(1, POSITIONS, samples)
    if objective == "joint_gdes":
        words = auxiliary.get_input_embeddings().weight.detach()
        delta = torch.zeros_like(words, requires_grad=True)
        rtd = discriminator(inputs_embeds=F.embedding(corrupted, words + delta)).logits
    else:
        rtd = discriminator(corrupted).logits
    detection = F.binary_cross_entropy_with_logits(rtd.float().view(ROWS, LENGTH), (corrupted != ids).float())
    if objective == "joint_decoupled":
        loss.backward()
        detection.backward()
    else:
        (loss + 50 * detection).backward()


def same_embedding_size(pair: str) -> bool:
    """Whether the two models can share or add their embedding tables."""
    discriminator, auxiliary = (getattr(config, "embedding_size", config.hidden_size) for config in PAIRS[pair])
    return discriminator == auxiliary


@pytest.mark.parametrize(
    ("objective", "pair"),
    [
        (objective, pair)
        for objective in OBJECTIVES
        for pair in PAIRS
        if objective != "mlm" and (objective != "joint_gdes" or same_embedding_size(pair))
    ],
)
def test_step_equals_the_counter(objective: str, pair: str) -> None:
    configs = PAIRS[pair]
    discriminator, auxiliary = build(configs[0], "rtd_head"), build(configs[1], "lm_head")
    if objective == "joint" and same_embedding_size(pair):
        discriminator.set_input_embeddings(auxiliary.get_input_embeddings())
    with flop_counter() as counter:
        run_step(objective, discriminator, auxiliary)
    assert training_step(objective, *configs, **STEP, attention="fused").total == counter.get_total_flops()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["electra", "deberta-v2", "modernbert"])
def test_masked_lm_step_equals_the_counter(name: str, dtype: torch.dtype) -> None:
    config, ids = CONFIGS[name], torch.randint(2, VOCABULARY, (ROWS, LENGTH))
    model = build(config, "lm_head").to(dtype)
    with flop_counter() as counter:
        F.cross_entropy(model(ids).logits.float().flatten(0, 1), ids.gather(1, POSITIONS).flatten()).backward()
    step = training_step("mlm", config, **STEP, attention="fused")
    assert step.total == counter.get_total_flops()
    assert training_step("mlm", None, config, **STEP, attention="fused").auxiliary == step.discriminator


def test_lm_head_on_all_positions_equals_the_counter() -> None:
    config, ids = CONFIGS["modernbert"], torch.randint(2, VOCABULARY, (ROWS, LENGTH))
    model = AutoModelForMaskedLM.from_config(config, attn_implementation="sdpa")
    with flop_counter() as counter:
        model(ids).logits.sum().backward()
    everywhere = STEP | {"num_masked": LENGTH}
    assert training_step("mlm", config, **everywhere, attention="fused").total == counter.get_total_flops()


# Laws of the count.


def linear_weights(module: nn.Module) -> int:
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))


@pytest.mark.parametrize("name", ["electra", "bert", "modernbert"])
def test_model_flops_are_the_closed_formula(name: str) -> None:
    """6 x N_enc + 12 x H x layers x T + 6 x f x (H^2 + H x V), a forward pass alone a third; here H = 32, 3 layers."""
    config, generator_config = CONFIGS[name], CONFIGS["bert"]
    discriminator, generator = build(config, "rtd_head"), build(generator_config, "lm_head")
    attention = 12 * 32 * 3 * LENGTH
    main = 6 * linear_weights(discriminator) + attention
    auxiliary = 6 * linear_weights(generator.base_model) + attention + 6 * MASKED / LENGTH * (32**2 + 32 * VOCABULARY)
    expected = {"replay": main, "frozen": main + auxiliary / 3, "joint": main + auxiliary}
    counted = {name: model_flops_per_token(name, config, generator_config, **STEP) for name in expected}
    assert counted == pytest.approx(expected, rel=1e-12)


def test_model_flops_and_fused_kernels_differ_by_one_product_in_the_backward_pass() -> None:
    config = CONFIGS["electra"]
    model, fused = (training_step("replay", config, **STEP, attention=kind) for kind in ("model", "fused"))
    scores = model.discriminator.forward["attention_scores"]
    assert model.discriminator.backward["attention_scores"] == 2 * scores
    assert fused.total - model.total == scores // 2


@pytest.mark.parametrize("name", ["electra", "deberta-v2", "modernbert", "modernbert with windows"])
def test_separated_documents_cost_what_each_costs_alone(name: str) -> None:
    config, lengths = CONFIGS[name], np.array([7, 1, 12, 20, 19, 1])
    apart = training_step("mlm", config, **STEP, document_lengths=lengths).discriminator
    alone = [
        training_step("mlm", config, batch_rows=1, sequence_length=int(length), num_masked=1).discriminator
        for length in lengths
    ]
    for part in ("attention_scores", "feed_forward"):
        assert apart.forward[part] == sum(each.forward[part] for each in alone)
        assert apart.backward[part] == sum(each.backward[part] for each in alone)


def test_the_share_of_attention_within_documents_is_the_sum_of_squares() -> None:
    lengths = np.array([7, 1, 12, 20, 19, 1])
    expected = (7**2 + 1 + 12**2 + 20**2 + 19**2 + 1) / (3 * 20**2)
    assert attention_share(CONFIGS["bert"], lengths, 20) == pytest.approx(expected, rel=1e-12)
    near = sum(abs(a - b) <= 5 for length in lengths for a in range(length) for b in range(length))
    everywhere = 3 * sum(abs(a - b) <= 5 for a in range(20) for b in range(20))
    windows = modernbert(layer_types=["sliding_attention"] * 3, local_attention=10)
    assert attention_share(windows, lengths, 20) == pytest.approx(near / everywhere, rel=1e-12)


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_a_block_mask_computes_the_whole_square(kernel: str) -> None:
    """So that MFU, which counts what is computed, claims no saving on it."""
    model = discriminator.build(CONFIGS["bert"], kernel, torch.float32)
    ids, places = torch.randint(2, VOCABULARY, (ROWS, LENGTH)), torch.arange(LENGTH).remainder(7).expand(ROWS, -1)
    totals = []
    for position_ids in (WHOLE_ROWS, places):
        with flop_counter() as counter:
            ReplacedTokenDetection(model)(ids, torch.zeros_like(ids), position_ids)[0].backward()
        totals.append(counter.get_total_flops())
    assert totals[0] == totals[1]


def test_savings_follow_from_the_ratio_of_auxiliary_to_main_cost() -> None:
    configs = (modernbert(num_hidden_layers=12), modernbert(num_hidden_layers=4))
    joint, frozen, replay = (training_step(name, *configs, **STEP) for name in ("joint", "frozen", "replay"))
    ratio = joint.auxiliary.total / joint.discriminator.total
    assert 1 - frozen.total / joint.total == pytest.approx(2 * ratio / (3 * (1 + ratio)))
    assert 1 - replay.total / joint.total == pytest.approx(ratio / (1 + ratio))


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from(OBJECTIVES[1:]),
    st.sampled_from(sorted(CONFIGS)),
    st.sampled_from(sorted(CONFIGS)),
    st.integers(1, 64),
    st.integers(1, 600),
)
def test_rows_and_parts_sum_to_the_total(objective: str, main: str, aux: str, rows: int, length: int) -> None:
    sizes = {"batch_rows": rows, "sequence_length": length, "num_masked": max(1, length // 7)}
    step = training_step(objective, CONFIGS[main], CONFIGS[aux], **sizes)
    assert sum(count for *_, count in step.rows()) == step.total == sum(step.by_part().values())
    assert set(step.by_part()) == set(PARTS)
    assert all(count >= 0 for *_, count in step.rows())
    assert step.per_token * rows * length == pytest.approx(step.total)


# Peaks and MFU.


def test_mfu_is_a_share_of_the_peak() -> None:
    assert mfu(0.66e9, 593e3, 989e12) == pytest.approx(0.3957, abs=1e-4)
    with pytest.raises(ValueError, match=r"peak_flops_per_second=0: .*positive"):
        mfu(1.0, 1.0, 0)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("Tesla V100-SXM2-32GB", 125e12),
        ("Tesla V100-PCIE-16GB", 112e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA A10G", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("cpu", None),
    ],
)
def test_vendor_peak_goes_by_whole_words_of_the_device_name(name: str, peak: float | None) -> None:
    assert vendor_peak(name, torch.bfloat16) == peak
    assert vendor_peak(name, torch.float32) is None


def test_every_vendor_peak_can_be_found() -> None:
    assert {name: vendor_peak(f"NVIDIA {name}", torch.float16) for name in VENDOR_PEAK} == VENDOR_PEAK


def test_measured_peak_is_positive_and_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    assert measured_matmul_flops_per_second("cpu", torch.float32, size=64, repeats=3) > 1e6
    assert torch.equal(torch.get_rng_state(), before)


def test_measured_peak_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="size=0: must be at least 1"):
        measured_matmul_flops_per_second("cpu", torch.float32, size=0)
    with pytest.raises(ValueError, match="repeats=0: must be at least 1"):
        measured_matmul_flops_per_second("cpu", torch.float32, size=8, repeats=0)


def test_measured_peak_is_the_median_after_two_to_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 90.0, 0.0, 90.0, 0.0, 1.0, 0.0, 4.0, 0.0, 2.0])
    monkeypatch.setattr("fast_electra.costs.flops.time.perf_counter", lambda: next(clock))
    assert measured_matmul_flops_per_second("cpu", torch.float32, size=8, repeats=3) == 2 * 8**3 / 2.0


# Bad input.


@pytest.mark.parametrize(
    ("objective", "main", "auxiliary", "changes", "message"),
    [
        ("frozn", "bert", "bert", {}, r"unknown objective 'frozn': did you mean 'frozen'"),
        ("frozen", "bert", None, {}, r"'frozen' runs an auxiliary model: give auxiliary_config"),
        ("replay", None, "bert", {}, r"'replay' trains a discriminator: give discriminator_config"),
        ("mlm", "bert", "bert", {}, r"'mlm' trains one model: give one configuration"),
        ("mlm", None, None, {}, r"'mlm' trains one model: give one configuration"),
        ("replay", "bert", None, {"batch_rows": 0}, r"batch_rows=0: must be at least 1"),
        ("replay", "bert", None, {"num_masked": 21}, r"num_masked=21 is more than sequence_length=20"),
        ("replay", "bert", None, {"attention": "flash"}, r"attention='flash' .*'model', 'math' or 'fused'"),
        ("replay", "gpt2", None, {}, r"model type 'gpt2' are not known: use one of electra, bert, "),
    ],
)
def test_bad_input_names_the_value_and_the_remedy(
    objective: str, main: str | None, auxiliary: str | None, changes: dict[str, Any], message: str
) -> None:
    known = CONFIGS | {"gpt2": GPT2Config()}
    configs = (known[main] if main else None, known[auxiliary] if auxiliary else None)
    with pytest.raises(ValueError, match=message):
        training_step(objective, *configs, **(STEP | changes))
