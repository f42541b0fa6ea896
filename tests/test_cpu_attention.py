import copy
from types import SimpleNamespace

import pytest
import tiny_models
import torch
import torch.nn.functional as F

from fast_electra import cpu_attention, discriminator
from fast_electra.config import EncoderConfig
from fast_electra.encoder import attention_kernel
from fast_electra.flops import flop_counter
from fast_electra.separation import WHOLE_ROWS

here = pytest.mark.skipif(bool(cpu_attention.missing()), reason=cpu_attention.missing()[:200])
SHAPES = [(2, 3, 128, 64), (1, 2, 512, 64), (2, 1, 272, 32), (3, 2, 16, 96), (1, 1, 1040, 32)]  # B, H, T, D
ENCODER = SimpleNamespace(is_causal=False)


def projections(shape):
    """Query, key and value, and the gradient of the output, (B, H, T, D) as a model's projections lie in memory."""
    torch.manual_seed(0)
    rows, heads, length, channels = shape
    packed = torch.randn(rows, length, 3, heads, channels).bfloat16()
    return *packed.permute(2, 0, 3, 1, 4).unbind(0), torch.randn(rows, heads, length, channels).bfloat16()


def documents_mask(rows, length):
    """Additive (B, 1, T, T): tokens see their own document alone, and, so that it is not symmetric, none the first."""
    here_, lowest = torch.randint(0, 3, (rows, length)).sort(dim=1).values, torch.finfo(torch.bfloat16).min
    apart = here_[:, None, :, None] != here_[:, None, None, :]
    apart[..., 1:, 0] = True
    return torch.zeros(apart.shape, dtype=torch.bfloat16).masked_fill_(apart, lowest)


def gradients(attention, *tensors, given):
    leaves = [each.detach().requires_grad_() for each in tensors]
    return torch.autograd.grad(attention(*leaves), leaves, given)


def ours(mask=None, **more):
    return lambda *qkv: cpu_attention.attend(ENCODER, *qkv, mask, **more)[0].transpose(1, 2)


def exact(mask=None):
    """In float64, written out."""

    def attend(query, key, value):
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        return torch.softmax(scores if mask is None else scores + mask.double(), dim=-1) @ value

    return attend


def error(found, wanted):
    return float((found.double() - wanted).norm() / wanted.norm())


@here
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_as_exact_as_those_of_torchs_fused_attention(shape, masked):
    *qkv, given = projections(shape)
    mask = documents_mask(shape[0], shape[2]) if masked else None
    wanted = gradients(exact(mask), *(each.double() for each in qkv), given=given.double())
    stock = gradients(lambda *tensors: F.scaled_dot_product_attention(*tensors, attn_mask=mask), *qkv, given=given)
    for name, mine, torchs, right in zip("qkv", gradients(ours(mask), *qkv, given=given), stock, wanted, strict=True):
        assert error(mine, right) < max(0.003, 1.05 * error(torchs, right)), name


@here
def test_a_mask_may_differ_from_head_to_head():
    *qkv, given = projections((2, 3, 64, 32))
    mask = torch.randn(1, 3, 64, 64).bfloat16()
    wanted = gradients(exact(mask), *(each.double() for each in qkv), given=given.double())
    for mine, right in zip(gradients(ours(mask), *qkv, given=given), wanted, strict=True):
        assert error(mine, right) < 0.004


@here
def test_gradients_do_not_depend_on_the_number_of_threads():
    *qkv, given = projections((2, 3, 128, 64))
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(gradients(ours(), *qkv, given=given))
    torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


@here
@pytest.mark.parametrize(
    ("shape", "more"),
    [
        ((1, 2, 20, 32), {}),
        ((1, 2, 16, 24), {}),
        ((1, 2, 16, 32), {"is_causal": True}),
        ((1, 2, 16, 32), {"scaling": 1.0}),
    ],
)
def test_what_it_has_no_code_for_is_what_stock_attention_gives(shape, more):
    *qkv, given = projections(shape)
    stock = gradients(
        lambda *tensors: F.scaled_dot_product_attention(
            *tensors, is_causal=more.get("is_causal", False), scale=more.get("scaling")
        ),
        *qkv,
        given=given,
    )
    for mine, torchs in zip(gradients(ours(**more), *qkv, given=given), stock, strict=True):
        assert error(mine, torchs.double()) < (0.008 if more.get("scaling") else 1e-9)


@here
def test_the_operator_refuses_what_it_has_no_code_for():
    *qkv, given = projections((1, 2, 20, 32))
    with pytest.raises(RuntimeError, match="rows of 20 tokens"):
        torch.ops.fast_electra.attention_gradient(given, *qkv, given, torch.zeros(1, 2, 20), None, 1.0)


@here
@pytest.mark.parametrize("kind", ["electra", "bert", "roberta", "modernbert", "modernbert with windows"])
@pytest.mark.parametrize("separate", [False, True])
def test_a_stock_model_trains_with_it_as_with_stock_attention(kind, separate):
    shape, found = copy.deepcopy(tiny_models.CONFIGS[kind]), []
    shape.hidden_size, shape.num_attention_heads = 64, 2
    ids, labels = torch.randint(2, tiny_models.VOCABULARY, (2, 32)), torch.zeros(2, 32)
    places = torch.arange(32).remainder(9).expand(2, -1) if separate else WHOLE_ROWS
    for kernel in ("sdpa", cpu_attention.NAME):
        torch.manual_seed(0)
        model = discriminator.build(shape, kernel, torch.bfloat16).eval()
        assert model.config._attn_implementation == kernel
        discriminator.ReplacedTokenDetection(model)(ids, labels, places)[0].backward()
        weights = [weight for weight in model.parameters() if weight.grad is not None]
        found.append(torch.cat([weight.grad.flatten().double() for weight in weights]))
    assert 0 < error(found[1], found[0]) < 0.02  # another way to the same numbers


@here
def test_it_is_part_of_one_compiled_graph():
    *qkv, given = projections((2, 2, 64, 32))
    compiled = torch.compile(ours(), fullgraph=True, dynamic=False)
    for once, again in zip(gradients(ours(), *qkv, given=given), gradients(compiled, *qkv, given=given), strict=True):
        torch.testing.assert_close(once, again)


@here
def test_its_flops_are_counted_as_fused_attentions():
    *qkv, given = projections((2, 3, 64, 32))
    counts = []
    for attention in (ours(), F.scaled_dot_product_attention):
        with flop_counter() as counter:
            gradients(attention, *qkv, given=given)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == (2 + 5) * 2 * 2 * 3 * 64 * 64 * 32


@here
def test_bf16_on_a_cpu_takes_it_wherever_it_covers_the_shape():
    cpu, bf16 = torch.device("cpu"), torch.bfloat16
    assert attention_kernel(EncoderConfig(), 128, cpu, bf16) == cpu_attention.NAME
    assert attention_kernel(EncoderConfig(), 512, cpu, bf16, True) == cpu_attention.NAME
    assert attention_kernel(EncoderConfig(), 100, cpu, bf16) == "eager"
    assert attention_kernel(EncoderConfig(attention_dropout=0.1), 512, cpu, bf16) == "sdpa"
    assert attention_kernel(EncoderConfig(num_heads=48), 512, cpu, bf16) == "sdpa"
    assert attention_kernel(EncoderConfig(attention="sdpa"), 512, cpu, bf16) == "sdpa"


def test_without_units_for_bf16_stock_attention_is_taken(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert "AVX-512" in cpu_attention.missing()
    assert attention_kernel(EncoderConfig(), 512, torch.device("cpu"), torch.bfloat16) == "sdpa"


def test_an_operator_that_cannot_be_built_is_told_of_and_done_without(monkeypatch, capsys):
    def no_compiler(*_, **__):
        raise RuntimeError("no compiler here")

    cpu_attention._build_failure.cache_clear()
    monkeypatch.setattr(cpu_attention.cpp_extension, "load", no_compiler)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    try:
        assert attention_kernel(EncoderConfig(), 512, torch.device("cpu"), torch.bfloat16) == "sdpa"
    finally:
        cpu_attention._build_failure.cache_clear()
    assert "stock attention, which trains slower" in capsys.readouterr().out
