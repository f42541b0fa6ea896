"""A run that begins with another encoder's weights: which it takes, and what it refuses."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import TINY, launch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForMaskedLM, BertConfig, ElectraConfig, RobertaConfig

from fast_electra import initial_weights, recipes, run_folder, setup_run
from fast_electra.config import EncoderConfig
from fast_electra.encoder import transformers_config
from fast_electra.sharded_weights import assign_weights
from fast_electra.summary import describe

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
    return initial_weights.read(config, transformers_config(shape, tokenizer), tokenizer)


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
        initial_weights._encoder(initial_weights._unfilled(each))
        for each in (published, transformers_config(encoder, tiny_tokenizer))
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
    weights, facts = initial_weights.read(config, transformers_config(SHAPE, tiny_tokenizer), tiny_tokenizer)
    assert (bool(weights), "initial_from" in facts) == (fits, fits)
    assert ("initial_misfit" in facts) == (not fits and demo.needs_auxiliary)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "joint_shallow", "initial_weights": "somewhere"}, "trains a generator beside the encoder"),
        ({"objective": "mlm", "initial_weights": "auxiliary"}, "has no auxiliary model"),
        ({"initial_layers": -2}, "give 0, embeddings alone, or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        replace(recipes.get("demo"), **settings)


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


def test_auto_goes_with_every_objective():
    small = replace(recipes.get("small"), initial_weights="auto")
    for objective in ("joint_shallow", "mlm", "random"):
        replace(small, objective=objective)
