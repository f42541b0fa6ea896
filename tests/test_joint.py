"""Joint objectives are what their papers say: what is tied, which loss moves what, one step against plain torch."""

import copy
import dataclasses

import pytest
import torch
from transformers import ElectraForMaskedLM, ElectraForPreTraining

from fast_electra.batching.batches import MaskedBatch
from fast_electra.engine import parallel, sharded_weights
from fast_electra.methods.decoupled import Decoupled
from fast_electra.methods.joint import Joint, JointOutputs, generator_encoder
from fast_electra.methods.objectives import masked_lm_inputs
from fast_electra.models import discriminator
from fast_electra.models.encoder import transformers_config
from fast_electra.settings import recipes
from fast_electra.settings.config import EncoderConfig

ROWS, LENGTH, MASKED = 6, 24, 4
ELECTRA = EncoderConfig("electra", 4, 32, 4, 48, embedding_size=16, max_positions=64)
MODERN = EncoderConfig("modernbert", 4, 32, 4, 48, max_positions=64)


class Tokenizer:
    """As much of a tokenizer as a model's shape asks for: 60 tokens, the first five of them special."""

    pad_token_id, unk_token_id, cls_token_id, sep_token_id, mask_token_id = range(5)
    all_special_ids = (0, 1, 2, 3, 4)

    def __len__(self):
        return 60


def joint(name, encoder=ELECTRA, kind=Joint):
    config = dataclasses.replace(recipes.get("demo"), objective=name, encoder=encoder)
    return kind(config, Tokenizer())


def built(objective):
    torch.manual_seed(0)
    shape = transformers_config(objective.config.encoder, Tokenizer())
    return objective.module(shape, "eager", torch.float32).eval()


def batch_of():
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(5, 60, (ROWS, LENGTH), generator=generator)
    positions = torch.rand(ROWS, LENGTH, generator=generator).argsort(dim=1)[:, :MASKED].sort(dim=1).values
    return MaskedBatch(input_ids, positions, torch.arange(ROWS))


def gradients(module, objective):
    module.zero_grad()
    module(*objective.inputs(batch_of(), 0.0))[0].backward()
    return {name: p.grad.clone() for name, p in module.named_parameters()}


def token_table(model):
    return model.get_input_embeddings().weight


def models(module):
    return module.generator.model, module.discriminator.model


def test_joint_ties_token_and_position_embeddings_and_the_lm_head():
    generator, model = models(built(joint("joint")))
    assert token_table(generator) is token_table(model)
    assert generator.get_output_embeddings().weight is token_table(model)
    positions = [each.electra.embeddings.position_embeddings.weight for each in (generator, model)]
    assert positions[0] is positions[1]
    names = {id(p) for p in generator.parameters()} & {id(p) for p in model.parameters()}
    assert len(names) == 2


@pytest.mark.parametrize("encoder", [ELECTRA, MODERN], ids=["electra", "modernbert"])
def test_joint_shallow_ties_token_embeddings_only(encoder):
    generator, model = models(built(joint("joint_shallow", encoder)))
    assert {id(p) for p in generator.parameters()} & {id(p) for p in model.parameters()} == {id(token_table(model))}
    assert generator.get_output_embeddings().weight is token_table(model)


def test_generators_have_the_papers_shapes():
    dropout = {"dropout": 0.1, "attention_dropout": 0.1}
    for recipe, heads in (("electra_small", 1), ("electra_base", 4), ("electra_large", 4)):
        config = dataclasses.replace(recipes.get(recipe), objective="joint")
        shape, whole = generator_encoder(config), config.encoder
        ratio = 3 if recipe == "electra_base" else 4
        assert (shape.hidden_size, shape.num_layers) == (whole.hidden_size // ratio, whole.num_layers)
        assert shape.intermediate_size == 4 * shape.hidden_size
        assert shape.num_heads == heads
        assert shape.embedding_size == (whole.embedding_size or whole.hidden_size)
        assert shape.dropout == 0.1
    for recipe, layers in (("base", 4), ("large", 6)):
        config = recipes.get(recipe)
        config = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, **dropout))
        shallow = generator_encoder(dataclasses.replace(config, objective="joint_shallow"))
        assert shallow == dataclasses.replace(config.encoder, num_layers=layers, dropout=0.0, attention_dropout=0.0)
        gdes = generator_encoder(dataclasses.replace(config, objective="joint_gdes"))
        assert gdes == dataclasses.replace(config.encoder, num_layers=config.encoder.num_layers // 2)


@pytest.mark.parametrize("name", ["joint", "joint_shallow", "joint_gdes"])
def test_the_discriminator_starts_where_frozens_starts(name):
    module, objective = built(joint(name)), joint(name)
    torch.manual_seed(0)
    alone = discriminator.build(transformers_config(ELECTRA, Tokenizer()), "eager", torch.float32).eval()
    _, *outputs = module(*objective.inputs(batch_of(), 0.0))
    of = JointOutputs(*outputs)
    assert torch.equal(alone(input_ids=of.input_ids).logits, of.logits)


@pytest.mark.parametrize("encoder", [ELECTRA, MODERN], ids=["electra", "modernbert"])
def test_gdes_lets_each_loss_move_its_own_embedding_only(encoder):
    objective = joint("joint_gdes", encoder)
    module = built(objective)
    generator, model = models(module)
    delta, table = token_table(model), token_table(generator)
    assert delta is not table
    assert not delta.any()
    loss, *outputs = module(*objective.inputs(batch_of(), 0.0))
    of = JointOutputs(*outputs)
    rtd = discriminator.loss(of.logits, of.labels, of.input_ids >= 0)
    mlm = loss - module.weight * rtd
    of_rtd = torch.autograd.grad(rtd, [delta, *generator.parameters()], retain_graph=True, allow_unused=True)
    assert of_rtd[0].any()
    assert all(each is None or not each.any() for each in of_rtd[1:])
    by_mlm = torch.autograd.grad(mlm, [table, delta], allow_unused=True)
    assert by_mlm[0].any()
    assert by_mlm[1].abs().max() < 1e-6  # what rounding leaves of loss - weight x RTD


def test_gdes_embeds_the_sum_and_exports_it():
    objective = joint("joint_gdes")
    module = built(objective)
    generator, model = models(module)
    torch.nn.init.normal_(token_table(model))
    ids = torch.arange(5, 60)
    table = token_table(generator) + token_table(model)
    assert torch.equal(model.get_input_embeddings()(ids), table[ids])
    inputs = objective.evaluation_inputs(batch_of())
    exported = objective.exports(module, batch_of(), inputs, module(*inputs)[1:])["export"]
    name, added = exported.added
    stock = ElectraForPreTraining(model.config).eval()
    state = dict(model.named_parameters())
    stock.load_state_dict({**state, name: state[name] + added.weight})
    logits = stock(input_ids=exported.inputs.input_ids).logits
    torch.testing.assert_close(logits, exported.logits)


@pytest.mark.parametrize("name", ["joint", "joint_shallow", "joint_gdes"])
def test_the_discriminators_loss_reaches_the_generator_through_tied_tables_alone(name):
    objective = joint(name)
    module = built(objective)
    heavy = gradients(module, objective)
    module.weight = 1.0
    light = gradients(module, objective)
    shared = {id(p) for p in module.discriminator.parameters()}
    changed = {
        name
        for name, p in module.generator.named_parameters(prefix="generator")
        if not torch.equal(heavy[name], light[name])
    }
    tied = {name for name, p in module.generator.named_parameters(prefix="generator") if id(p) in shared}
    assert changed == tied
    assert len(tied) == {"joint": 2, "joint_shallow": 1, "joint_gdes": 0}[name]


def test_samples_are_never_special_and_labels_compare_with_the_originals():
    objective, batch = joint("joint"), batch_of()
    module = built(objective)
    module.generator.model.generator_lm_head.bias.data[:5] = 50.0  # a generator that would name special tokens
    of = JointOutputs(*module(*objective.inputs(batch, 0.0))[1:])
    assert (of.input_ids >= 5).all()
    assert torch.equal(of.labels.bool(), of.input_ids != batch.input_ids)
    outside = torch.ones_like(batch.input_ids).scatter(1, batch.positions, 0).bool()
    assert not of.labels[outside].any()


def test_vocabulary_logits_are_kept_for_evaluation_only():
    objective = joint("joint")
    module = built(objective)
    inputs = objective.inputs(batch_of(), 0.0)
    assert JointOutputs(*module(*inputs)[1:]).generator_logits.shape == (ROWS, MASKED, 60)
    assert JointOutputs(*module.train()(*inputs)[1:]).generator_logits.numel() == 0


def plain_step(generator, model, parameters, objective, weight):
    """One ELECTRA step with stock models, their own losses, torch's AdamW; returns (MLM loss, RTD loss)."""
    batch = batch_of()
    masked = batch.input_ids.scatter(1, batch.positions, Tokenizer.mask_token_id)
    wanted = torch.full_like(masked, -100).scatter(1, batch.positions, batch.input_ids.gather(1, batch.positions))
    predicted = generator(input_ids=masked, labels=wanted)
    uniforms = objective.inputs(batch, 0.0).uniforms
    logits = predicted.logits.detach()[torch.arange(ROWS)[:, None], batch.positions].double()
    logits[..., :5] = -torch.inf
    samples = (logits.softmax(dim=-1).cumsum(dim=-1) <= uniforms[..., None]).sum(dim=-1)
    corrupted = batch.input_ids.scatter(1, batch.positions, samples)
    told = model(input_ids=corrupted, labels=(corrupted != batch.input_ids).float())
    (predicted.loss + weight * told.loss).backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01).step()
    return predicted.loss.item(), told.loss.item()


def reference_of(module):
    """Stock copies of the module's two models, tied by hand, and all their parameters once."""
    generator, model = (
        ElectraForMaskedLM(module.generator.model.config),
        ElectraForPreTraining(models(module)[1].config),
    )
    generator.load_state_dict(copy.deepcopy(module.generator.model.state_dict()))
    model.load_state_dict(copy.deepcopy(module.discriminator.model.state_dict()))
    table = generator.electra.embeddings
    model.electra.embeddings.word_embeddings.weight = table.word_embeddings.weight
    model.electra.embeddings.position_embeddings.weight = table.position_embeddings.weight
    generator.generator_lm_head.weight = table.word_embeddings.weight
    parameters = list({id(p): p for each in (generator, model) for p in each.parameters()}.values())
    return generator.eval(), model.eval(), parameters


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_one_joint_step_is_plain_torchs_under_every_zero_stage(stage):
    objective = joint("joint")
    weight = objective.config.generator.discriminator_loss_weight
    module = built(objective)
    generator, model, parameters = reference_of(module)
    adam = {"lr": 1e-3, "betas": [0.9, 0.98], "eps": 1e-6, "weight_decay": 0.01, "torch_adam": True}
    settings = {
        "train_batch_size": ROWS,
        "gradient_clipping": 1.0,
        "optimizer": {"type": "AdamW", "params": adam},
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "steps_per_print": 10**9,
    }
    parallel.start()
    engine = parallel.training_engine(module, [{"params": list(module.parameters())}], settings)
    engine.eval()
    batch = batch_of().to(parallel.device())
    loss, *outputs = engine(*objective.inputs(batch, 0.0))
    engine.train()
    engine.backward(loss)
    engine.step()
    mlm, rtd = plain_step(generator, model, parameters, objective, weight)
    report = objective.report(objective.counts(outputs, None).cpu())
    assert (report["generator_loss"], report["loss"]) == pytest.approx((mlm, rtd), rel=1e-6)
    for ours, theirs in zip(models(engine.module), (generator, model), strict=True):
        expected = dict(theirs.named_parameters())
        for name, weight in sharded_weights.full_weights(engine, ours):
            torch.testing.assert_close(weight.cpu(), expected[name], rtol=1e-5, atol=2e-6, msg=f"{name} differs")


class Engine(torch.nn.Module):
    """A training engine as far as an objective knows one."""

    def __init__(self, module, rate=0.1):
        super().__init__()
        self.module, self.optimizer = module, torch.optim.SGD(module.parameters(), lr=rate)

    def forward(self, *inputs):
        return self.module(*inputs)

    def backward(self, loss):
        loss.backward()

    def step(self):
        self.optimizer.step()


def decoupled():
    objective = joint("joint_decoupled", kind=Decoupled)
    module = built(objective)
    objective.generator = Engine(objective.generator_module("eager", torch.float32))
    return objective, module


@pytest.mark.parametrize(
    ("name", "encoder"),
    [("joint", ELECTRA), ("joint_shallow", MODERN), ("joint_gdes", MODERN), ("joint_decoupled", ELECTRA)],
)
def test_both_models_see_each_document_alone(name, encoder):
    batch, middle = batch_of(), 9
    batch = batch._replace(position_ids=torch.arange(LENGTH).expand(ROWS, -1) % middle)
    objective = joint(name, encoder, Decoupled if name == "joint_decoupled" else Joint)
    module = built(objective)
    if name == "joint_decoupled":
        objective.generator = Engine(objective.generator_module("eager", torch.float32))
    of = JointOutputs(*module(*objective.evaluation_inputs(batch))[1:])
    generator, model = objective.generator_of(module), module.discriminator.model
    masked = masked_lm_inputs(batch, objective.mask_id).input_ids
    for span in (slice(0, 9), slice(9, 18), slice(18, 24)):
        alone = model(input_ids=of.input_ids[:, span]).logits.reshape(ROWS, -1)
        torch.testing.assert_close(of.logits.reshape(ROWS, -1)[:, span], alone, rtol=1e-5, atol=1e-6)
        generator.base_model._forward_hooks.clear()  # stock again: all positions
        everywhere = generator(input_ids=masked[:, span]).logits
        for row, column in ((batch.positions >= span.start) & (batch.positions < span.stop)).nonzero().tolist():
            expected = everywhere[row, batch.positions[row, column] - span.start]
            torch.testing.assert_close(of.generator_logits[row, column], expected, rtol=1e-5, atol=1e-6)


def test_decoupled_models_share_nothing_and_the_generator_learns_from_its_own_loss():
    objective, module = decoupled()
    generator = objective.generator.module.model
    assert not {id(p) for p in generator.parameters()} & {id(p) for p in module.parameters()}
    before = copy.deepcopy(objective.generator.module)
    inputs = objective.inputs(batch_of(), 0.0)
    assert inputs.generator_logits.numel() == 0
    before(*masked_lm_inputs(batch_of(), objective.mask_id))[0].backward()
    for (name, old), new in zip(before.model.named_parameters(), generator.parameters(), strict=True):
        torch.testing.assert_close(new, old - 0.1 * old.grad, msg=f"{name} differs")
    grads = [p.grad.clone() for p in generator.parameters()]
    module(*inputs)[0].backward()
    assert all(torch.equal(p.grad, old) for p, old in zip(generator.parameters(), grads, strict=True))


def test_decoupled_evaluation_trains_nothing_and_gives_both_models_to_export():
    objective, module = decoupled()
    before = copy.deepcopy(objective.generator.module.state_dict())
    inputs = objective.evaluation_inputs(batch_of())
    after = objective.generator.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    outputs = module(*inputs)[1:]
    exported = objective.exports(module, batch_of(), inputs, outputs)
    assert list(exported) == ["export", "generator"]
    assert exported["generator"].model is objective.generator.module.model
    assert set(objective.report(objective.counts(outputs, inputs))) >= {"loss", "roc_auc", "generator_loss"}


@pytest.mark.parametrize("name", ["joint", "joint_shallow", "joint_gdes", "joint_decoupled"])
def test_scores_of_plain_tokens_are_the_discriminators_and_ask_no_generator(name, monkeypatch):
    objective, module = decoupled() if name == "joint_decoupled" else (joint(name), None)
    module = module or built(objective)
    generator = objective.generator.module if name == "joint_decoupled" else module.generator
    monkeypatch.setattr(generator, "forward", lambda *_: pytest.fail("the generator was asked"))
    input_ids = batch_of().input_ids
    with torch.no_grad():
        scores = objective.token_scores(module, input_ids)
        replaced = module.discriminator.model(input_ids=input_ids).logits.reshape(ROWS, LENGTH)
    torch.testing.assert_close(scores.exp(), 1 - replaced.sigmoid())
