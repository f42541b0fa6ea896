"""Gradients that a CPU sums over tokens in bf16 are those of float32, rounded once."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import deepspeed
import pytest
import torch
from functorch.compile import make_boxed_func
from tiny_models import CONFIGS, LENGTH, ROWS, VOCABULARY
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch.nn import functional as F

from fast_electra.engine import deepspeed_config, parallel
from fast_electra.kernels import exact_sums
from fast_electra.methods import joint
from fast_electra.models import discriminator
from fast_electra.pretraining import setup_run
from fast_electra.settings import recipes
from fast_electra.settings.config import DataConfig

TOKENS, WIDTH = 8192, 32
WORDS = "embeddings.tok_embeddings"
NAMES = ["electra", "bert", "roberta", "deberta-v2", "modernbert"]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def distance(found, exact):
    return float((found.double() - exact).norm() / exact.norm())


def test_a_norms_gradients_do_not_stand_still_after_some_hundred_tokens():
    hidden = torch.randn(4, TOKENS // 4, WIDTH).bfloat16()
    given = (torch.randn_like(hidden) + 0.3) * 1e-4
    weight, bias = (torch.ones(WIDTH, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    exact_sums.layer_norm(hidden, weight, bias, 1e-5).backward(given)
    normalised = F.layer_norm(hidden.double(), (WIDTH,))
    assert distance(weight.grad, (given.double() * normalised).sum((0, 1))) < 0.003
    assert distance(bias.grad, given.double().sum((0, 1))) < 0.003


def test_a_tables_gradients_do_not_either_and_padding_has_none():
    ids = torch.randint(0, 5, (4, TOKENS // 4))
    given = (torch.randn(4, TOKENS // 4, WIDTH).bfloat16() + 0.3) * 1e-4
    table = torch.randn(9, WIDTH, dtype=torch.bfloat16, requires_grad=True)
    exact_sums.look_up(ids, table, 2).backward(given)
    exact = torch.zeros(9, WIDTH, dtype=torch.float64).index_add_(0, ids.flatten(), given.flatten(0, 1).double())
    exact[2] = 0
    assert not table.grad[[2, 5, 6, 7, 8]].any()
    assert distance(table.grad, exact) < 0.003


def test_in_compiled_code_a_tables_rows_are_added_by_our_operator_and_the_graph_is_whole():
    """The compiler would add them by atomic operations, in the order in which threads come."""

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.norm = nn.Embedding(50, WIDTH, padding_idx=2), nn.LayerNorm(WIDTH)

        def forward(self, ids):
            return self.norm(self.table(ids))

    backward = set()

    def keep(graph, _):
        backward.update(str(node.target) for node in graph.graph.nodes)
        return make_boxed_func(graph.forward)

    ids, given = torch.randint(0, 50, (4, 64)), torch.randn(4, 64, WIDTH)
    module = Words()
    exact_sums.in_tables(module.modules())
    backend = aot_autograd(fw_compiler=lambda graph, _: make_boxed_func(graph.forward), bw_compiler=keep)
    found = []
    for forward in (module, torch.compile(module, dynamic=False, fullgraph=True, backend=backend)):
        module.zero_grad()
        forward(ids).backward(given)
        found.append(module.table.weight.grad)
    assert "fast_electra.table_gradient.default" in backward
    assert not [name for name in backward if "index_put" in name or "embedding_dense" in name]
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)


def test_outputs_and_the_gradients_of_inputs_are_the_stock_ones_to_the_bit():
    hidden, weight = torch.randn(64, WIDTH).bfloat16(), torch.randn(WIDTH).bfloat16()
    found = []
    for norm in (partial(F.layer_norm, normalized_shape=(WIDTH,), weight=weight, eps=1e-5), None):
        into = hidden.clone().requires_grad_()
        out = norm(into) if norm else exact_sums.layer_norm(into, weight.requires_grad_(), None, 1e-5)
        out.backward(torch.ones_like(out))
        found.append((out, into.grad))
    for stock, ours in zip(*found, strict=True):
        assert torch.equal(stock, ours)


@pytest.mark.parametrize("name", NAMES)
def test_in_float32_every_gradient_of_a_model_is_the_stock_one(name):
    tokens, labels = torch.randint(2, VOCABULARY - 1, (ROWS, LENGTH)), torch.randint(0, 2, (ROWS, LENGTH))
    tokens[0, -3:] = CONFIGS[name].pad_token_id
    found = []
    for ours in (False, True):
        torch.manual_seed(0)
        module = discriminator.ReplacedTokenDetection(discriminator.build(CONFIGS[name], "eager", torch.float32)).eval()
        if ours:
            exact_sums.in_norms(module.modules())
            exact_sums.in_tables(module.modules())
            assert {exact_sums._Norm, exact_sums._Table} <= {type(each) for each in module.modules()}
        module(tokens, labels)[0].backward()
        found.append({name: weight.grad for name, weight in module.named_parameters() if weight.grad is not None})
    assert found[0].keys() == found[1].keys()
    for weight, stock in found[0].items():
        torch.testing.assert_close(found[1][weight], stock, rtol=1e-4, atol=1e-6)


def test_the_delta_of_disentangled_embeddings_is_summed_so_too():
    table, delta = nn.Embedding(9, WIDTH), nn.Parameter(torch.zeros(9, WIDTH, dtype=torch.bfloat16))
    embedding = joint.DisentangledEmbedding(table.bfloat16(), delta)
    exact_sums.in_tables([embedding])
    given = torch.full((1, TOKENS, WIDTH), 1e-4, dtype=torch.bfloat16)
    embedding(torch.full((1, TOKENS), 3)).backward(given)
    assert distance(delta.grad[3], given.double().sum((0, 1))) < 0.003


@pytest.mark.parametrize(
    ("dtype", "stage", "compiled", "swapped"),
    [
        ("bfloat16", 1, False, {WORDS, "embeddings.norm", "layers.0.mlp_norm", "final_norm", "head.norm"}),
        ("bfloat16", 3, False, {WORDS, "embeddings.norm", "layers.0.mlp_norm", "final_norm", "head.norm"}),
        ("float32", 1, False, set()),
        ("float32", 1, True, {WORDS}),
        # Compiled code adds norms' in float32 by itself: what is left of them is what is not compiled.
        ("bfloat16", 1, True, {WORDS, "final_norm"}),
        ("bfloat16", 3, True, {WORDS, "embeddings.norm", "final_norm", "head.norm"}),
    ],
)
def test_a_run_in_bf16_on_a_cpu_sums_so(dtype, stage, compiled, swapped, tiny_corpus, tmp_path, monkeypatch):
    made = []

    def initialize(model, **_):
        made.append(model)
        return (SimpleNamespace(monitor=SimpleNamespace(), optimizer=SimpleNamespace(optimizer=None)),)

    monkeypatch.setattr(deepspeed, "initialize", initialize)
    config = recipes.get("demo")
    encoder = replace(config.encoder, num_layers=1, hidden_size=16, num_heads=2, intermediate_size=16)
    run = replace(config.run, dtype=dtype, compile=compiled)
    data = DataConfig(sequence_length=16, held_out_rows=8)
    config = replace(
        config, objective="random", corpus=str(tiny_corpus), output=str(tmp_path), encoder=encoder, run=run, data=data
    )
    parallel.start()
    batches = setup_run.open_batches(config)
    settings = deepspeed_config.fill(deepspeed_config.read(f"ds_configs/zero{stage}.json"), config, 1, on_cpu=True)
    objective, *_ = setup_run._objective(config, batches.corpora[0].tokenizer, batches)
    shape = setup_run.transformers_config(encoder, batches.corpora[0].tokenizer)
    setup_run._engine(config, settings, partial(objective.module, shape), setup_run.initial_weights.Beginning({}, {}))
    known = {name: each for name, each in made[0].named_modules() if isinstance(each, nn.LayerNorm | nn.Embedding)}
    assert len(known) == 4 + 1
    own = {name for name, each in known.items() if isinstance(each, exact_sums._Norm | exact_sums._Table)}
    found = {name.removeprefix("model.").removeprefix("model.") for name in own}
    assert found == swapped
