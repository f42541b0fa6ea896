"""Documents kept apart in a packed row give what each gives alone."""

import copy
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import CONFIGS, FUSED, LENGTH, POSITIONS, ROWS, VOCABULARY, bert_like
from torch.nn.attention.flex_attention import create_mask
from transformers import AutoModelForMaskedLM, BertConfig, FunnelConfig

from fast_electra.batching import separation
from fast_electra.batching.separation import SEPARABLE, WHOLE_ROWS, places, require_separable
from fast_electra.costs.model_flops import FAMILIES
from fast_electra.models import discriminator
from fast_electra.models.auxiliary import MaskedLM
from fast_electra.models.discriminator import ReplacedTokenDetection

# Where documents begin in each row: of one token, at the row's end, none but the first.
BEGINS = [[0, 7, 8, 17], [0, 19], [0]]
SEPARATED = [name for name, config in CONFIGS.items() if not getattr(config, "conv_kernel_size", 0)]
KERNELS = [(name, kernel) for name in SEPARATED for kernel in ("eager", "sdpa") if kernel == "eager" or name in FUSED]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def rows():
    """Tokens (B, T) and their places in their documents."""
    documents = np.array([np.searchsorted(begins, np.arange(LENGTH), side="right") for begins in BEGINS])
    return torch.randint(2, VOCABULARY - 1, (ROWS, LENGTH)), torch.from_numpy(places(documents))


def spans(row):
    return [slice(*ends) for ends in pairwise([*BEGINS[row], LENGTH])]


def lively(model):
    """Weights large enough for attention to matter."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3 if weight.dim() > 1 else 1)
    return model.eval()


def new(config, kernel, head):
    config = copy.deepcopy(config)
    if head == "rtd":
        return lively(discriminator.build(config, kernel, torch.float32))
    return lively(AutoModelForMaskedLM.from_config(config, attn_implementation=kernel))


def test_places_restart_in_each_document():
    documents = np.array([[4, 4, 4, 5, 9, 9], [0, 0, 0, 0, 0, 0], [2, 3, 4, 5, 6, 7]])
    assert places(documents).tolist() == [[0, 1, 2, 0, 0, 1], [0, 1, 2, 3, 4, 5], [0] * 6]


@pytest.mark.parametrize(("name", "kernel"), KERNELS)
def test_a_discriminator_says_of_a_packed_row_what_it_says_of_each_document_alone(name, kernel):
    model, (tokens, position_ids) = new(CONFIGS[name], kernel, "rtd"), rows()
    with torch.no_grad():
        _, packed = ReplacedTokenDetection(model)(tokens, torch.zeros_like(tokens), position_ids)
        _, whole = ReplacedTokenDetection(model)(tokens, torch.zeros_like(tokens))
        for row in range(ROWS):
            for span in spans(row):
                alone = model(input_ids=tokens[row : row + 1, span]).logits.reshape(-1)
                torch.testing.assert_close(packed[row, span], alone, rtol=1e-5, atol=1e-5)
    assert (packed - whole)[0].abs().max() > 1e-2
    torch.testing.assert_close(packed[2], whole[2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "kernel"), KERNELS)
def test_a_masked_lm_predicts_in_a_packed_row_what_it_predicts_in_each_document_alone(name, kernel):
    model, (tokens, position_ids) = new(CONFIGS[name], kernel, "lm"), rows()
    alone = torch.zeros(ROWS, LENGTH, VOCABULARY)
    with torch.no_grad():
        for row in range(ROWS):
            for span in spans(row):
                alone[row, span] = model(input_ids=tokens[row : row + 1, span]).logits[0]
        packed = MaskedLM(model)(tokens, POSITIONS, position_ids)
    expected = alone.gather(1, POSITIONS[..., None].expand(-1, -1, VOCABULARY))
    torch.testing.assert_close(packed, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "kernel"), KERNELS)
def test_no_gradient_crosses_a_boundary(name, kernel):
    model, (tokens, position_ids) = new(CONFIGS[name], kernel, "rtd"), rows()
    seen = []

    def keep(_module, _args, output):
        output.retain_grad()
        seen.append(output)

    model.get_input_embeddings().register_forward_hook(keep)
    _, logits = ReplacedTokenDetection(model)(tokens, torch.zeros_like(tokens), position_ids)
    inside = spans(0)[2]
    (logits[0, inside] ** 2).sum().backward()
    reached = seen[0].grad.abs().sum(dim=-1) > 0
    expected = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
    expected[0, inside] = True
    assert torch.equal(reached, expected)


@pytest.mark.parametrize("name", ["bert", "modernbert with windows"])
def test_flex_attentions_block_mask_is_the_plain_one(name):
    _, position_ids = rows()
    model = new(CONFIGS[name], "eager", "rtd")
    plain = separation.inputs(model, position_ids)["attention_mask"]
    model.config._attn_implementation = separation.FLEX
    block = separation.inputs(model, position_ids)["attention_mask"]
    if name == "bert":
        plain, block = {"all": plain}, {"all": block}
    assert plain.keys() == block.keys()
    for kind, mask in plain.items():
        found = create_mask(block[kind].mask_mod, ROWS, 1, LENGTH, LENGTH, device="cpu")
        assert torch.equal(found, mask == 0)


@pytest.mark.slow
def test_flex_attention_gives_the_logits_of_the_block_mask():
    model, (tokens, position_ids) = new(CONFIGS["modernbert with windows"], "sdpa", "rtd"), rows()
    found = []
    for kernel in ("sdpa", separation.FLEX):
        model.set_attn_implementation(kernel)
        with torch.no_grad():  # on a CPU it has no backward pass
            found.append(ReplacedTokenDetection(model)(tokens, torch.zeros_like(tokens), position_ids)[1])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["electra", "modernbert with windows"])
def test_on_a_gpu_flex_attention_gives_the_logits_and_gradients_of_the_block_mask(name):
    """In rows of several of its blocks, some of which lie between documents."""
    config = copy.deepcopy(CONFIGS[name])
    config.max_position_embeddings, config.num_attention_heads = 512, 2  # heads of 16, the least on a GPU
    documents = torch.arange(512).repeat(2, 1) // torch.tensor([[100], [300]])
    position_ids = torch.from_numpy(places(documents.numpy())).cuda()
    tokens = torch.randint(2, VOCABULARY - 1, (2, 512)).cuda()
    found = []
    for kernel in ("sdpa", separation.FLEX):
        torch.manual_seed(0)
        model = new(config, kernel, "rtd").cuda()
        loss, logits = ReplacedTokenDetection(model)(tokens, (tokens % 2).to(torch.uint8), position_ids)[:2]
        loss.backward()
        found.append([logits.detach(), *(weight.grad for weight in model.parameters() if weight.grad is not None)])
    assert len(found[0]) == len(found[1]) > 10
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=2e-3, atol=2e-3 * float(expected.abs().max()))


def test_rows_left_whole_get_neither_mask_nor_positions():
    def given(model_type, *layers):
        model = SimpleNamespace(config=SimpleNamespace(model_type=model_type, layer_types=list(layers)))
        return separation.inputs(model, WHOLE_ROWS)

    assert given("electra") == given("modernbert", "full_attention", "sliding_attention") == {}
    assert given("modernbert", "full_attention", "full_attention") == {"attention_mask": {"full_attention": None}}


def test_the_fused_attention_of_a_compiled_model_gets_no_mask():
    """transformers 5.17 builds one where it is left to itself, and fused kernels are then lost on a GPU."""
    masks = []

    def look(graph, _example):
        calls = [node for node in graph.graph.nodes if "scaled_dot_product" in str(node.target)]
        masks.extend(node.kwargs.get("attn_mask") for node in calls)
        return graph.forward

    model = ReplacedTokenDetection(new(CONFIGS["modernbert"], "sdpa", "rtd"))
    tokens, _ = rows()
    torch.compile(model, backend=look, dynamic=False)(tokens, torch.zeros_like(tokens))
    assert masks
    assert set(masks) == {None}


def test_the_types_kept_apart_are_those_whose_flops_are_counted():
    assert set(SEPARABLE) == set(FAMILIES)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (FunnelConfig(), "'lm' is a funnel"),
        (CONFIGS["deberta-v2 with convolution and new head"], "'lm' has a convolution"),
    ],
)
def test_a_model_that_would_look_across_is_refused(config, reason):
    with pytest.raises(ValueError, match=f"data.separate_documents = true: {reason}.*leave documents together"):
        require_separable(config, "'lm'")
    require_separable(bert_like(BertConfig), "'lm'")
