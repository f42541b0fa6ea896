"""ModernBERT's gated GELU: the stock layer's values and gradients, whichever way they are made."""

import copy
from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import ModernBertConfig, ModernBertModel

from fast_electra.kernels import compilation, gated_gelu


def make_model(activation="gelu", dropout=0.0, num_layers=2):
    torch.manual_seed(0)
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": num_layers,
        "global_attn_every_n_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 48,
    }
    config = ModernBertConfig(
        vocab_size=64,
        hidden_activation=activation,
        mlp_dropout=dropout,
        pad_token_id=0,
        **shape,
        reference_compile=False,
    )
    return ModernBertModel._from_config(config, attn_implementation="eager")


def output_and_gradients(model, tokens):
    torch.manual_seed(1)  # of dropout
    out = model(input_ids=tokens).last_hidden_state
    out.backward(torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape).to(out.dtype))
    return [out.detach(), *(weight.grad for weight in model.parameters())]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_model_computes_what_the_stock_one_does(dropout):
    stock = make_model(dropout=dropout)
    ours, tokens = copy.deepcopy(stock), torch.randint(1, 64, (3, 20))
    assert gated_gelu.install(ours) == 2
    for one, other in zip(output_and_gradients(ours, tokens), output_and_gradients(stock, tokens), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_another_activation_is_left_alone():
    assert gated_gelu.install(make_model("silu")) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_is_that_of_the_formula(dtype):
    hidden = (3 * torch.randn(7, 5, 96)).to(dtype).requires_grad_()
    given = torch.randn(7, 5, 48).to(dtype)
    up, gate = hidden.detach().double().requires_grad_().chunk(2, dim=-1)
    expected = torch.autograd.grad(torch.nn.functional.gelu(up) * gate, (up, gate), given.double())
    (got,) = torch.autograd.grad(gated_gelu.gated_gelu(hidden), hidden, given)
    assert got.dtype == dtype
    accuracy = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 8e-3, "atol": 1e-3}
    torch.testing.assert_close(got.double(), torch.cat(expected, dim=-1), **accuracy)


def test_compiled_layers_that_run_so_share_their_graphs(monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    graphs = []
    for num_layers in (3, 5):
        model = make_model(num_layers=num_layers)
        gated_gelu.install(model)
        compilation.compile_parts(model, compilation.parts(model))
        torch._dynamo.reset()
        counters.clear()
        output_and_gradients(model, torch.randint(1, 64, (3, 20)))
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs == [3, 3], "embeddings, the first layer and the others"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [48, 1000, 2048, 2752])
def test_the_kernel_is_the_formula(dtype, width):
    gated_gelu.install(torch.nn.Identity())  # loads it
    hidden = (3 * torch.randn(9, 31, 2 * width, device="cuda")).to(dtype)
    given = torch.randn(9, 31, width, device="cuda").to(dtype)
    got = torch.ops.fast_electra.gated_gelu_gradient(given, hidden)
    torch.testing.assert_close(got, gated_gelu.gradient_in_torch(given, hidden))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_compiled_parts_with_the_kernel_compute_what_the_stock_model_does():
    stock = make_model().cuda()
    ours, tokens = copy.deepcopy(stock), torch.randint(1, 64, (3, 20), device="cuda")
    compilation.compile_parts(ours, compilation.parts(ours))
    for one, other in zip(output_and_gradients(ours, tokens), output_and_gradients(stock, tokens), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
