import copy
import os
import subprocess
import sys
from functools import cache
from types import SimpleNamespace

import pytest
import tiny_models
import torch
import torch.nn.functional as F

from fast_electra.batching.separation import WHOLE_ROWS
from fast_electra.costs.flops import flop_counter
from fast_electra.engine import parallel
from fast_electra.kernels import cpu_attention
from fast_electra.models import discriminator
from fast_electra.models.encoder import attention_kernel
from fast_electra.settings.config import EncoderConfig

UNITS = torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.cpu._is_avx512_bf16_supported()
here = pytest.mark.skipif(not UNITS, reason="needs a CPU with AVX-512 BF16")
SHAPES = [
    (2, 3, 128, 64),
    (1, 2, 512, 64),
    (2, 1, 272, 32),
    (1, 2, 496, 64),
    (3, 2, 16, 96),
    (1, 1, 1040, 32),
]  # B, H, T, D
ENCODER = SimpleNamespace(is_causal=False)


@pytest.fixture(scope="module", autouse=True)
def built():
    cpu_attention.missing()


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
def test_it_is_built_and_runs_wherever_there_are_units_for_it():
    assert cpu_attention.missing() == ""


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
    ("shape", "causal"), [((1, 2, 20, 32), False), ((1, 2, 16, 24), False), ((1, 2, 16, 32), True)]
)
def test_what_it_has_no_code_for_is_what_stock_attention_gives(shape, causal):
    *qkv, given = projections(shape)
    stock = gradients(lambda *qkv: F.scaled_dot_product_attention(*qkv, is_causal=causal), *qkv, given=given)
    for mine, torchs in zip(gradients(ours(is_causal=causal), *qkv, given=given), stock, strict=True):
        assert error(mine, torchs.double()) < 1e-9


@here
@pytest.mark.parametrize("hidden", [(2, 1, 1, 64), (1, 1, 1, 64), (2, 3, 1, 64)])
def test_so_is_what_a_mask_of_keys_alone_hides(hidden):
    *qkv, given = projections((2, 3, 64, 32))
    mask = torch.zeros(hidden).masked_fill_(torch.arange(64) > 40, -1e4).bfloat16()
    stock = gradients(lambda *qkv: F.scaled_dot_product_attention(*qkv, attn_mask=mask), *qkv, given=given)
    for mine, torchs in zip(gradients(ours(mask), *qkv, given=given), stock, strict=True):
        assert error(mine, torchs.double()) < 1e-9


@here
def test_so_are_projections_whose_channels_lie_apart():
    *qkv, given = projections((2, 3, 64, 32))
    apart = [each.transpose(-1, -2).contiguous().transpose(-1, -2) for each in qkv]
    assert apart[0].stride(-1) != 1
    wanted = gradients(exact(), *(each.double() for each in qkv), given=given.double())
    for mine, right in zip(gradients(ours(), *apart, given=given), wanted, strict=True):
        assert error(mine, right) < 0.006


@here
def test_what_stock_attention_refuses_is_refused():
    *qkv, _ = projections((1, 2, 16, 32))
    with pytest.raises(ValueError, match="softcap"):
        ours(softcap=30.0)(*qkv)


@here
def test_the_operator_refuses_what_it_has_no_code_for():
    *qkv, given = projections((1, 2, 20, 32))
    operator, sums = torch.ops.fast_electra.attention_gradient, torch.zeros(1, 2, 32)
    with pytest.raises(RuntimeError, match="rows of 20 tokens"):
        operator(given, *qkv, given, torch.zeros(1, 2, 20), None, 1.0)
    with pytest.raises(RuntimeError, match="rows of 0 tokens"):
        operator(*(each[:, :, :0] for each in (given, *qkv, given)), sums[..., :0], None, 1.0)
    *qkv, given = projections((1, 2, 32, 32))
    with pytest.raises(RuntimeError, match=r"query of \[1, 2, 32, 32\] beside \[1, 2, 16, 32\]"):
        operator(given[:, :, :16], *qkv, given, sums, None, 1.0)
    with pytest.raises(RuntimeError, match="sums of"):
        operator(given, *qkv, given, sums[..., :16], None, 1.0)
    with pytest.raises(RuntimeError, match="a mask of another size"):
        operator(given, *qkv, given, sums, torch.zeros(1, 1, 1, 32).bfloat16(), 1.0)


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

    monkeypatch.setattr(cpu_attention, "_build_failure", cache(cpu_attention._build_failure.__wrapped__))
    monkeypatch.setattr(cpu_attention.cpp_extension, "load", no_compiler)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert attention_kernel(EncoderConfig(), 512, torch.device("cpu"), torch.bfloat16) == "sdpa"
    assert "stock attention, which trains slower" in capsys.readouterr().out


@here
def test_so_is_one_that_was_built_and_does_not_run():
    """As under a limit on what oneDNN may use."""
    code = "from fast_electra.kernels import cpu_attention; assert cpu_attention.missing()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "does not run here" in done.stdout


@here
def test_no_process_trains_with_it_where_another_cannot(monkeypatch):
    monkeypatch.setattr(cpu_attention, "_without", [])
    for another, kernel in ((False, cpu_attention.NAME), (True, "sdpa")):
        monkeypatch.setattr(parallel, "anywhere", lambda mine, another=another: mine or another)
        parallel.agree_on_attention(EncoderConfig(), 512, torch.bfloat16)
        assert attention_kernel(EncoderConfig(), 512, torch.device("cpu"), torch.bfloat16) == kernel
    assert cpu_attention.missing() == "another process of this run has none"


@pytest.mark.parametrize("chosen", [{"attention": "sdpa"}, {"attention": "eager"}, {"model_type": "deberta-v2"}])
def test_a_run_of_another_attention_does_not_build_it(chosen, monkeypatch):
    monkeypatch.setattr(cpu_attention, "missing", lambda: pytest.fail("built"))
    parallel.agree_on_attention(EncoderConfig(**chosen), 512, torch.bfloat16)


def test_another_torch_is_another_operator(monkeypatch):
    name = cpu_attention.operator_name()
    assert name == cpu_attention.operator_name()
    monkeypatch.setattr(torch, "__version__", "3.0")
    assert name != cpu_attention.operator_name()
