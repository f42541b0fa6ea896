"""The FLOPs of one pass equal torch's counter on a real one, for every encoder type, part by part."""

import re
from collections import Counter
from functools import partial
from typing import Any

import pytest
import torch
from tiny_models import CONFIGS, FUSED, LENGTH, MASKED, ROWS, VOCABULARY, bert_like, build, modernbert
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, PreTrainedConfig, PreTrainedModel

from fast_electra.costs.flops import Passes, flop_counter
from fast_electra.costs.model_flops import (
    FAMILIES,
    encoder_backward,
    encoder_forward,
    lm_head_forward,
    rtd_head_forward,
    twice,
)

ENCODER_MODULES = {
    "embedding_projection": r"embeddings_project|embed_proj",
    "attention_projections": r"attention\.self\.\w*(query|key|value)\w*|attention\.output\.dense|attn\.(Wqkv|Wo)",
    "feed_forward": r"intermediate\.dense|layer\.\d+\.output\.dense|mlp\.(Wi|Wo)|encoder\.conv\.conv",
}


def watch(model: PreTrainedModel, head: str, counter: FlopCounterMode, counts: Counter) -> None:
    """Add what `counter` counts in each watched module to counts[pass, part], backward by the autograd nodes it made.

    (The counter's own module names are right in the forward pass only: query, key and value run into each other.)
    """
    marks: list[int] = []

    def start(*_: Any) -> None:
        marks.append(counter.get_total_flops())

    def stop(key: tuple[str, str], *_: Any) -> None:
        counts[key] += counter.get_total_flops() - marks.pop()

    def after_forward(part: str, module: nn.Module, args: Any, output: Tensor) -> None:
        stop(("forward", part))
        todo, seen = [output.grad_fn], {args[0].grad_fn, None}
        while todo:
            node = todo.pop()
            if node not in seen and node.name() != "torch::autograd::AccumulateGrad":
                seen.add(node)
                node.register_prehook(start)
                node.register_hook(partial(stop, ("backward", part)))
                todo += [following for following, _ in node.next_functions]

    heads = {name for name, _ in model.named_children()} - {model.base_model_prefix}
    for name, module in model.named_modules():
        parts = [part for part, pattern in ENCODER_MODULES.items() if re.search(f"({pattern})$", name)]
        if name in heads:
            parts = [head]
        for part in parts:
            module.register_forward_pre_hook(start)
            module.register_forward_hook(partial(after_forward, part))


def count_part_by_part(config: PreTrainedConfig, head: str, attention: str, device: str = "cpu") -> Passes:
    """FLOPs of a real forward and backward pass; attention scores are what no module accounts for."""
    model, counts = build(config, head, attention).to(device), Counter()
    counter = flop_counter()
    watch(model, head, counter, counts)
    with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"), counter:
        logits = model(torch.randint(2, VOCABULARY, (ROWS, LENGTH), device=device)).logits
        forward = counter.get_total_flops()
        logits.float().square().sum().backward()
        backward = counter.get_total_flops() - forward
    for name, total in (("forward", forward), ("backward", backward)):
        counts[name, "attention_scores"] = total - sum(n for (which, _), n in counts.items() if which == name)
    by_pass = {name: {p: n for (which, p), n in counts.items() if which == name} for name in ("forward", "backward")}
    return Passes(**by_pass)


def analytic(config: PreTrainedConfig, head: str, attention: str) -> Passes:
    sizes = (ROWS, LENGTH, attention)
    of_head = lm_head_forward(config, ROWS * MASKED) if head == "lm_head" else rtd_head_forward(config, ROWS, LENGTH)
    return Passes(encoder_forward(config, *sizes) | of_head, encoder_backward(config, *sizes) | twice(of_head))


@pytest.mark.parametrize("head", ["rtd_head", "lm_head"])
@pytest.mark.parametrize("name", CONFIGS)
def test_unfused_passes_equal_the_counter_part_by_part(name: str, head: str) -> None:
    assert analytic(CONFIGS[name], head, "math") == count_part_by_part(CONFIGS[name], head, "math")


@pytest.mark.parametrize("head", ["rtd_head", "lm_head"])
@pytest.mark.parametrize("name", FUSED)
def test_fused_passes_equal_the_counter_part_by_part(name: str, head: str) -> None:
    assert analytic(CONFIGS[name], head, "fused") == count_part_by_part(CONFIGS[name], head, "fused")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", FUSED)
def test_fused_passes_equal_the_counter_on_a_gpu(name: str) -> None:
    assert analytic(CONFIGS[name], "rtd_head", "fused") == count_part_by_part(
        CONFIGS[name], "rtd_head", "fused", "cuda"
    )


def test_every_family_is_compared_with_the_counter() -> None:
    assert {config.model_type for config in CONFIGS.values()} == set(FAMILIES)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in FUSED])
def test_an_encoder_without_fused_attention_never_computes_scores_twice(name: str) -> None:
    assert analytic(CONFIGS[name], "rtd_head", "fused") == analytic(CONFIGS[name], "rtd_head", "math")


def test_attention_dropout_makes_torch_take_the_unfused_path_on_a_cpu() -> None:
    config = bert_like(BertConfig, attention_probs_dropout_prob=0.1)
    assert count_part_by_part(config, "rtd_head", "fused") == analytic(config, "rtd_head", "math")


def test_without_our_formula_torch_counts_no_fused_attention_on_a_cpu() -> None:
    model, counter = build(CONFIGS["bert"], "rtd_head"), FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.randint(2, VOCABULARY, (ROWS, LENGTH)))
    ours = analytic(CONFIGS["bert"], "rtd_head", "fused").forward
    assert counter.get_total_flops() in (sum(ours.values()) - ours["attention_scores"], sum(ours.values()))


def test_model_flops_leave_out_pairs_beyond_the_window_and_kernels_do_not() -> None:
    config = CONFIGS["modernbert with windows"]
    distance = (torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)).abs()
    pairs = LENGTH**2 + 2 * int((distance <= config.local_attention // 2).sum())
    seen = encoder_forward(config, 1, LENGTH)["attention_scores"]
    assert seen == 4 * config.hidden_size * pairs
    assert encoder_forward(config, 1, LENGTH, "math")["attention_scores"] == 4 * config.hidden_size * 3 * LENGTH**2


def test_a_token_in_a_windowed_layer_sees_as_far_as_the_model_lets_it() -> None:
    """The window that is counted is the one that the model masks with: a token beyond it changes nothing."""
    config = modernbert(layer_types=["sliding_attention"], num_hidden_layers=1, local_attention=10)
    model = build(config, "rtd_head").eval()
    ids = torch.full((1, LENGTH), 5)
    reference = model(ids).logits[0, 0]
    reached = [at for at in range(1, LENGTH) if not torch.equal(model(other_word(ids, at)).logits[0, 0], reference)]
    assert reached == list(range(1, config.local_attention // 2 + 1))


def other_word(ids: Tensor, at: int) -> Tensor:
    return ids.index_fill(1, torch.tensor([at]), 9)
