"""A run that begins with another encoder's weights: which it takes, and what it refuses."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY, launch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, BertConfig, ElectraConfig, RobertaConfig

from fast_electra.engine.sharded_weights import assign_weights, begin
from fast_electra.methods.decoupled import Decoupled
from fast_electra.methods.joint import DisentangledEmbedding, Joint
from fast_electra.methods.objectives import Mlm
from fast_electra.models import discriminator, initial_weights
from fast_electra.models.encoder import transformers_config
from fast_electra.pretraining import setup_run
from fast_electra.runs import run_folder
from fast_electra.runs.summary import begun, describe
from fast_electra.settings import recipes
from fast_electra.settings.config import EncoderConfig

SHAPE = EncoderConfig(num_layers=3, hidden_size=32, num_heads=2, intermediate_size=48, max_positions=64)


def saved(folder, tokenizer, **sizes):
    """The folder of a masked LM with new weights."""
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(transformers_config(replace(SHAPE, **sizes), tokenizer))
    with torch.no_grad():
        for weight in model.parameters():  # biases and gains are all alike in a new model
            weight.add_(0.3 * torch.randn_like(weight))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def taken(path, tokenizer, layers=1_000, **sizes):
    """(weights, facts) that a run of this shape begins with."""
    shape = replace(SHAPE, **sizes)
    config = replace(recipes.get("demo"), encoder=shape, initial_weights=path, initial_layers=layers)
    beginning, facts = initial_weights.read(config, transformers_config(shape, tokenizer), None, tokenizer)
    assert beginning.masked_lm == {}
    return beginning.encoder, facts


@pytest.mark.parametrize(
    ("layers", "there", "expected"), [(1_000, 2, {0, 1}), (1_000, 5, {0, 1, 2}), (1, 5, {0}), (0, 5, set())]
)
def test_the_first_layers_and_the_embeddings_are_taken(layers, there, expected, tiny_tokenizer, tmp_path):
    path = saved(tmp_path, tiny_tokenizer, num_layers=there)
    weights, facts = taken(path, tiny_tokenizer, layers)
    assert {int(name.split(".")[1]) for name in weights if name.startswith("layers.")} == expected
    assert facts["initial_layers"] == len(expected)
    rest = {name for name in weights if not name.startswith("layers.")}
    embeddings = {"embeddings.tok_embeddings.weight", "embeddings.norm.weight"}
    assert rest == (embeddings if layers == 0 else embeddings | {"final_norm.weight"})


@pytest.mark.parametrize("kind", ["modernbert", "electra", "bert", "roberta", "deberta-v2"])
def test_a_model_of_every_kind_computes_what_the_one_it_began_with_does(kind, tiny_tokenizer, tmp_path):
    longer = 64 if kind == "deberta-v2" else 96  # whose positions are relative: there is nothing to cut
    path = saved(tmp_path, tiny_tokenizer, model_type=kind, max_positions=longer)
    weights, _ = taken(path, tiny_tokenizer, model_type=kind)
    torch.manual_seed(1)
    model = AutoModelForMaskedLM.from_config(
        transformers_config(replace(SHAPE, model_type=kind), tiny_tokenizer)
    ).base_model.eval()
    source = AutoModelForMaskedLM.from_pretrained(path).base_model.eval()
    tokens = torch.randint(6, len(tiny_tokenizer), (2, 20))
    before = model(tokens)[0]
    assert weights.keys() == {name for name, _ in model.named_parameters() if "pooler" not in name}
    assign_weights(model, weights)
    torch.testing.assert_close(model(tokens)[0], source(tokens)[0])
    assert not torch.allclose(before, model(tokens)[0])


@pytest.mark.parametrize(
    ("there", "message"),
    [
        ({"model_type": "bert"}, "of the kind 'bert', the run's encoder 'modernbert'"),
        ({"hidden_size": 64}, "hidden_size is 64 there, 32 here"),
        ({"intermediate_size": 64}, "intermediate_size is 64 there, 48 here"),
        ({"num_heads": 4}, "num_attention_heads is 4 there, 2 here"),
    ],
)
def test_an_encoder_that_does_not_fit_is_refused(there, message, tiny_tokenizer, tmp_path):
    with pytest.raises(ValueError, match=message):
        taken(saved(tmp_path, tiny_tokenizer, **there), tiny_tokenizer)


def changed(path, **settings):
    """The model at `path` saved again with other settings that leave its weights' sizes as they are."""
    config = AutoConfig.from_pretrained(path)
    for name, value in settings.items():
        setattr(config, name, value)
    config.save_pretrained(path)
    return path


def test_an_encoder_that_would_compute_otherwise_is_refused(tiny_tokenizer, tmp_path):
    local = ["full_attention", "sliding_attention", "sliding_attention"]
    path = changed(saved(tmp_path / "local", tiny_tokenizer), layer_types=local)
    with pytest.raises(ValueError, match="layer_types begin with"):
        taken(path, tiny_tokenizer)
    path = changed(saved(tmp_path / "relu", tiny_tokenizer), hidden_activation="relu")
    with pytest.raises(ValueError, match="hidden_activation is 'relu' there, 'gelu' here"):
        taken(path, tiny_tokenizer)
    path = saved(tmp_path / "short", tiny_tokenizer, model_type="bert", max_positions=32)
    with pytest.raises(ValueError, match=r"position_embeddings\.weight has the shape"):
        taken(path, tiny_tokenizer, model_type="bert")


@pytest.mark.parametrize(
    ("published", "kind"),
    [
        (BertConfig(vocab_size=30_522, layer_norm_eps=1e-12), "bert"),
        (
            RobertaConfig(vocab_size=50_265, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5),
            "roberta",
        ),
        (
            ElectraConfig(embedding_size=768, hidden_size=768, num_attention_heads=12, intermediate_size=3072),
            "electra",
        ),
    ],
)
def test_the_published_base_models_fit(published, kind, tiny_tokenizer):
    """bert-base-uncased, roberta-base and google/electra-base-discriminator, as their config.json gives them."""
    encoder = EncoderConfig(kind, 12, 768, 12, 3072, dropout=0.1, attention_dropout=0.1)
    there, here = (
        initial_weights._unfilled(each) for each in (published, transformers_config(encoder, tiny_tokenizer))
    )
    assert initial_weights._misfits(there, here, 12) == []


def test_one_token_type_serves_for_two(tiny_tokenizer, tmp_path):
    config = transformers_config(replace(SHAPE, model_type="roberta"), tiny_tokenizer)
    config.type_vocab_size = 1
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    table = taken(str(tmp_path), tiny_tokenizer, model_type="roberta")[0]["embeddings.token_type_embeddings.weight"]
    assert len(table) == 2
    assert torch.equal(table[0], table[1])


def test_an_encoder_that_is_not_whole_or_of_another_tokenizer_is_refused(tiny_tokenizer, documents, tmp_path):
    path = saved(tmp_path / "part", tiny_tokenizer)
    weights = load_file(tmp_path / "part" / "model.safetensors")
    del weights["model.layers.1.mlp.Wo.weight"]
    save_file(weights, tmp_path / "part" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="would be random"):
        taken(path, tiny_tokenizer)
    path = saved(tmp_path / "other", tiny_tokenizer)
    vocabulary = tmp_path / "other" / "tokenizer.json"
    entries = json.loads(vocabulary.read_text())
    entries["model"]["vocab"][-2:] = entries["model"]["vocab"][:-3:-1]
    vocabulary.write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=r"initial_weights = .* uses another tokenizer"):
        taken(path, tiny_tokenizer)


@pytest.mark.parametrize("sizes", [{"hidden_size": 64}, {"num_heads": 4}])
def test_a_misfit_is_foreseen_before_an_auxiliary_model_is_trained(sizes, tiny_tokenizer):
    demo = replace(recipes.get("demo"), encoder=SHAPE, initial_weights="auxiliary")
    fitting = replace(demo, auxiliary_model=replace(demo.auxiliary_model, encoder=replace(SHAPE, num_layers=2)))
    initial_weights.foresee(fitting, tiny_tokenizer)
    other = replace(demo, auxiliary_model=replace(demo.auxiliary_model, encoder=replace(SHAPE, **sizes)))
    with pytest.raises(ValueError, match="initial_weights = 'auxiliary': it does not fit"):
        initial_weights.foresee(other, tiny_tokenizer)
    with pytest.raises(ValueError, match="is no encoder"):
        initial_weights.foresee(replace(demo, initial_weights="runs/typo"), tiny_tokenizer)
    initial_weights.foresee(replace(other, initial_weights="auto"), tiny_tokenizer)


def test_a_resumed_run_must_find_the_same_weights_again(tmp_path):
    facts = {"initial_weights": "one", "auxiliary_engine": "plain", "other": 1}
    run_folder.bind(str(tmp_path), setup_run._bound(facts))
    with pytest.raises(ValueError, match="initial_weights: 'one' there, 'two' now"):
        run_folder.bind(str(tmp_path), setup_run._bound(facts | {"initial_weights": "two"}))


def test_no_encoder_is_refused_and_none_asked_for_is_none(tiny_tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"initial_weights = .* is no encoder"):
        taken(str(tmp_path), tiny_tokenizer)
    assert taken("", tiny_tokenizer) == ({}, {})


@pytest.mark.parametrize(
    ("objective", "sizes", "fits"),
    [
        ("frozen", {}, True),
        ("two_stage", {"num_layers": 5}, True),
        ("frozen", {"hidden_size": 64}, False),
        ("frozen", {"model_type": "bert"}, False),
        ("frozen", {"num_heads": 4}, False),
        ("mlm", {}, False),
        ("unigram", {}, False),
    ],
)
def test_auto_takes_the_auxiliary_models_weights_where_they_fit(objective, sizes, fits, tiny_tokenizer, tmp_path):
    path = saved(tmp_path, tiny_tokenizer, **sizes)
    demo = replace(recipes.get("demo"), objective=objective, encoder=SHAPE, initial_weights="auto")
    config = replace(demo, auxiliary=path if demo.needs_auxiliary else "")
    beginning, facts = initial_weights.read(config, transformers_config(SHAPE, tiny_tokenizer), None, tiny_tokenizer)
    assert (bool(beginning.encoder), "initial_from" in facts) == (fits, fits)
    assert ("initial_misfit" in facts) == (not fits and demo.needs_auxiliary)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "joint_shallow", "initial_weights": "auxiliary"}, "has no auxiliary model"),
        ({"objective": "mlm", "initial_weights": "auxiliary"}, "has no auxiliary model"),
        ({"initial_layers": -2}, "give 0, embeddings alone, or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        replace(recipes.get("demo"), **settings)


def joint(objective, path, tokenizer, layers=1_000, **sizes):
    """(what the objective's engines train, what they begin with, what is noted of it) for a run on `path`."""
    shape = replace(SHAPE, num_layers=4, **sizes)
    demo = recipes.get("demo")
    config = replace(
        demo,
        objective=objective,
        encoder=shape,
        initial_weights=path,
        initial_layers=layers,
        generator=replace(demo.generator, width_divisor=1, depth_divisor=2, gdes_depth_divisor=2),
    )
    of = (Decoupled if objective == "joint_decoupled" else Joint)(config, tokenizer)
    own = transformers_config(shape, tokenizer)
    torch.manual_seed(1)
    modules = [of.module(own, "eager", torch.float32).eval()]
    if objective == "joint_decoupled":
        modules.append(of.generator_module("eager", torch.float32).eval())
        of.generator = SimpleNamespace(module=modules[1])
    beginning, facts = initial_weights.read(config, own, of.generator_shape, tokenizer)
    return of, modules, beginning, facts


@pytest.mark.parametrize("kind", ["modernbert", "electra", "bert", "roberta", "deberta-v2"])
@pytest.mark.parametrize("objective", ["joint", "joint_shallow", "joint_gdes", "joint_decoupled"])
def test_both_models_of_a_joint_run_begin_with_one_masked_lm(objective, kind, tiny_tokenizer, tmp_path):
    if kind != "electra" and objective == "joint":
        kind = "modernbert"
    path = saved(tmp_path, tiny_tokenizer, model_type=kind, num_layers=2)
    of, modules, beginning, facts = joint(objective, path, tiny_tokenizer, model_type=kind)
    source = AutoModelForMaskedLM.from_pretrained(path).eval()
    model, generator = modules[0].discriminator.model, of.generator_of(modules[0])
    new = model.state_dict()["classifier.weight" if kind != "electra" else "discriminator_predictions.dense.weight"]
    before = new.clone()
    for module in modules:
        begin(module, beginning)
    assert beginning == ({}, {}), "let go of"
    assert torch.equal(new, before), "the discriminator's head stays new"
    tokens = torch.randint(6, len(tiny_tokenizer), (2, 20))
    positions = torch.tensor([[3, 7, 9], [1, 2, 18]])
    expected = source(tokens).logits[torch.arange(2).unsqueeze(1), positions]
    if generator.config.num_hidden_layers == 2:
        lm = modules[-1].lm if objective == "joint_decoupled" else modules[0].generator
        torch.testing.assert_close(lm(tokens, positions), expected)
    table = source.get_input_embeddings().weight
    assert torch.equal(generator.get_input_embeddings().weight, table)
    own = model.get_input_embeddings()
    torch.testing.assert_close(own(tokens), source.get_input_embeddings()(tokens))
    assert isinstance(own, DisentangledEmbedding) == (objective == "joint_gdes")
    there = dict(source.base_model.named_parameters())
    layers = 0
    for name, weight in model.base_model.named_parameters():
        if name in there and "tok_embeddings" not in name and "word_embeddings" not in name:
            assert torch.equal(weight, there[name]), name
            layers += "layer" in name
    assert layers > 0
    depth = 4 if objective == "joint" else 2
    assert generator.config.num_hidden_layers == depth
    assert (facts["initial_layers"], facts["initial_generator_layers"]) == (2, 2)


def test_a_joint_runs_generator_takes_all_layers_whatever_its_discriminator_takes(tiny_tokenizer, tmp_path):
    path = saved(tmp_path, tiny_tokenizer, num_layers=2)
    facts = joint("joint_shallow", path, tiny_tokenizer, layers=0)[-1]
    assert (facts["initial_layers"], facts["initial_generator_layers"]) == (0, 2)


def test_a_generator_that_cannot_begin_so_is_refused(tiny_tokenizer, tmp_path):
    path = saved(tmp_path / "lm", tiny_tokenizer, model_type="electra")
    demo = replace(recipes.get("demo"), objective="joint", encoder=replace(SHAPE, model_type="electra"))
    narrow = replace(demo, initial_weights=path, generator=replace(demo.generator, width_divisor=2))
    shapes = transformers_config(narrow.encoder, tiny_tokenizer), Joint(narrow, tiny_tokenizer).generator_shape
    with pytest.raises(
        ValueError, match=r"does not fit the generator: hidden_size is 32 there, 16 here.*joint_shallow"
    ):
        initial_weights.read(narrow, *shapes, tiny_tokenizer)
    shape = transformers_config(SHAPE, tiny_tokenizer)
    discriminator.build(shape, "eager", torch.float32).save_pretrained(tmp_path / "export")
    tiny_tokenizer.save_pretrained(tmp_path / "export")
    with pytest.raises(ValueError, match=r"no LM head \(decoder.bias.*name a masked LM"):
        joint("joint_shallow", str(tmp_path / "export"), tiny_tokenizer)


@pytest.mark.parametrize("changed_setting", [{"decoder_bias": False}, {"classifier_activation": "silu"}])
def test_a_head_that_is_not_the_stock_one_is_refused_for_a_generator_and_left_by_a_masked_lm(
    changed_setting, tiny_tokenizer, tmp_path
):
    shape = transformers_config(SHAPE, tiny_tokenizer)
    for name, value in changed_setting.items():
        setattr(shape, name, value)
    AutoModelForMaskedLM.from_config(shape).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    name = "decoder.bias" if "decoder_bias" in changed_setting else "classifier_activation"
    with pytest.raises(ValueError, match=rf"fit the generator: {name}.*name a masked LM with the stock head"):
        joint("joint_shallow", str(tmp_path), tiny_tokenizer)
    own = transformers_config(SHAPE, tiny_tokenizer)
    config = replace(recipes.get("demo"), objective="mlm", encoder=SHAPE, initial_weights=str(tmp_path))
    assert name in initial_weights.read(config, own, None, tiny_tokenizer)[1]["initial_lm_head"]
    assert taken(str(tmp_path), tiny_tokenizer)[1]["initial_layers"] == 3, "an encoder has no use for it"


@pytest.mark.parametrize(("kind", "objective"), [("bert", "frozen"), ("electra", "mlm")])
def test_what_is_drawn_for_absent_weights_is_the_same_at_each_start(kind, objective, tiny_tokenizer, tmp_path):
    """A resumed run is refused where the weights that it began with have another fingerprint."""
    shape = replace(SHAPE, model_type=kind)
    own = transformers_config(shape, tiny_tokenizer)
    model = AutoModelForMaskedLM.from_config(own)
    (model.base_model if objective == "mlm" else model).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    config = replace(recipes.get("demo"), objective=objective, encoder=shape, initial_weights=str(tmp_path))
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(initial_weights.read(config, own, None, tiny_tokenizer)[1]["initial_weights"])
        assert torch.initial_seed() == seed, "the run's own numbers go on"
    assert found[0] == found[1]


def test_a_longer_vocabulary_is_cut_in_the_lm_head_too(tiny_tokenizer, tmp_path):
    longer = transformers_config(replace(SHAPE, num_layers=2), tiny_tokenizer)
    longer.vocab_size += 24
    AutoModelForMaskedLM.from_config(longer).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    _, _, beginning, _ = joint("joint_shallow", str(tmp_path), tiny_tokenizer)
    assert len(beginning.masked_lm["decoder.bias"]) == len(tiny_tokenizer)


@pytest.mark.parametrize("layers", [1_000, 0])
@pytest.mark.parametrize("head", [True, False])
def test_a_masked_lm_goes_on_with_its_head_where_there_is_one(head, layers, tiny_tokenizer, tmp_path):
    shape = transformers_config(SHAPE, tiny_tokenizer)
    torch.manual_seed(0)
    there = AutoModelForMaskedLM.from_config(shape) if head else discriminator.build(shape, "eager", torch.float32)
    with torch.no_grad():
        for weight in there.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    there.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    config = replace(
        recipes.get("demo"), objective="mlm", encoder=SHAPE, initial_weights=str(tmp_path), initial_layers=layers
    )
    module = Mlm(4).module(shape, "eager", torch.float32).eval()
    before = {name: weight.clone() for name, weight in module.model.named_parameters()}
    beginning, facts = initial_weights.read(config, shape, None, tiny_tokenizer)
    begin(module, beginning)
    whole = head and layers > 0
    assert (facts["initial_lm_head"] == "") == whole
    assert ("with its LM head" in begun(facts)) == whole
    after, source = dict(module.model.named_parameters()), dict(there.named_parameters())
    of_head = {name for name in after if not name.startswith("model.")}
    assert of_head == {"head.dense.weight", "head.norm.weight", "decoder.bias"}
    for name in of_head:
        assert torch.equal(after[name], source[name] if whole else before[name])
    of_encoder = [name for name in after if name.startswith("model.layers.")]
    assert len(of_encoder) == 3 * 6 - 1
    for name in of_encoder:
        assert torch.equal(after[name], source[name] if layers else before[name])


@pytest.mark.parametrize(("stage", "num_processes"), [(1, 1), (3, 2)])
def test_a_run_begins_with_its_auxiliary_models_weights(stage, num_processes, tiny_corpus, tmp_path):
    """At a rate of next to nothing they are what it ends with; its fourth layer and its head are new."""
    still = ["--optimizer.peak_learning_rate=1e-12", "--optimizer.weight_decay=0", "--run.steps=2"]
    launch(*TINY, "--objective=mlm", f"--corpus={tiny_corpus}", f"--output={tmp_path / 'lm'}", *still)
    done = launch(
        *TINY,
        *still,
        "--initial_weights=auxiliary",
        "--encoder.num_layers=3",
        f"--auxiliary={tmp_path / 'lm' / 'export'}",
        f"--corpus={tiny_corpus}",
        f"--output={tmp_path / 'run'}",
        f"--deepspeed=ds_configs/zero{stage}.json",
        num_processes=num_processes,
    )
    before, after = (load_file(tmp_path / name / "export" / "model.safetensors") for name in ("lm", "run"))
    shared = {name for name in before if name.startswith("model.")}
    assert len(shared) == 2 + 1 + 2 * 6 - 1  # embeddings, last norm, two layers of six weights, one norm less
    for name in shared:
        torch.testing.assert_close(after[name], before[name], rtol=2**-8, atol=1e-6)
    assert {name for name in after if name.startswith("model.") and name not in before} == {
        name.replace("layers.1.", "layers.2.") for name in before if "layers.1." in name
    }
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert "begun with   the embeddings and 2 layers of" in describe(summary)
    assert f"{tmp_path / 'run'} begins with the embeddings and 2 layers of" in done.stdout, "said before it trains"


@pytest.mark.parametrize("objective", ["joint_gdes", "joint_decoupled"])
def test_a_joint_run_on_two_processes_under_zero3_begins_with_a_masked_lm(objective, tiny_corpus, tmp_path):
    """At a rate of next to nothing its generator ends as the masked LM that it began with; so do the discriminator's
    first layers, the other two are new."""
    still = ["--optimizer.peak_learning_rate=1e-12", "--optimizer.weight_decay=0", "--run.steps=2"]
    other = "--seed=1"  # the generator's own new weights are those of the same seed
    launch(*TINY, "--objective=mlm", f"--corpus={tiny_corpus}", f"--output={tmp_path / 'lm'}", *still, other)
    launch(
        *TINY,
        *still,
        f"--objective={objective}",
        f"--initial_weights={tmp_path / 'lm' / 'export'}",
        "--encoder.num_layers=4",
        "--generator.depth_divisor=2",
        f"--corpus={tiny_corpus}",
        f"--output={tmp_path / 'run'}",
        "--deepspeed=ds_configs/zero3.json",
        num_processes=2,
    )
    before, generator, export = (
        load_file(tmp_path / name / "model.safetensors") for name in ("lm/export", "run/generator", "run/export")
    )
    assert generator.keys() == before.keys()
    for name, weight in before.items():
        torch.testing.assert_close(generator[name], weight, rtol=2**-8, atol=1e-6)
        if name.startswith("model."):
            torch.testing.assert_close(export[name], weight, rtol=2**-8, atol=1e-6)
    said = describe(json.loads((tmp_path / "run" / "summary.json").read_text()))
    assert "its generator with 2 layers and the LM head of it" in said


@pytest.mark.parametrize("begun", [True, False])
def test_token_types_that_no_token_had_are_the_firsts_unless_the_run_began_with_others(
    begun, tiny_tokenizer, tiny_corpus, tmp_path
):
    """And the export's tokenizer says how long the rows were."""
    shape = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 48}
    path = saved(tmp_path / "lm", tiny_tokenizer, model_type="bert", **shape)
    launch(
        *TINY,
        "--objective=random",
        "--encoder.model_type=bert",
        f"--initial_weights={path if begun else ''}",
        "--run.steps=2",
        "--optimizer.weight_decay=0",
        f"--corpus={tiny_corpus}",
        f"--output={tmp_path / 'run'}",
    )
    name = "bert.embeddings.token_type_embeddings.weight"
    types = load_file(tmp_path / "run" / "export" / "model.safetensors")[name]
    assert len(types) == 2
    assert torch.equal(types[0], types[1]) != begun
    if begun:
        torch.testing.assert_close(
            types[1], load_file(tmp_path / "lm" / "model.safetensors")[name][1], rtol=2**-8, atol=0
        )
    assert AutoTokenizer.from_pretrained(tmp_path / "run" / "export").model_max_length == 32


def test_auto_goes_with_every_objective():
    small = replace(recipes.get("small"), initial_weights="auto")
    for objective in ("joint_shallow", "mlm", "random"):
        replace(small, objective=objective)
