"""A new head on an exported encoder: the encoder whole, the outputs new, everything a function of the seed."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from task_files import export
from transformers import (
    BertConfig,
    BertForMaskedLM,
    CTRLConfig,
    DistilBertConfig,
    DistilBertModel,
    ElectraForMaskedLM,
    RobertaConfig,
    T5Config,
    XLNetConfig,
)

from fast_electra.finetuning import task_head

KINDS = ("modernbert", "electra", "bert", "deberta-v2")


def encoder(model):
    return {name: weight.clone() for name, weight in model.base_model.named_parameters() if "pooler" not in name}


def test_results_of_an_export_from_before_its_output_had_a_name_stay_those_of_the_same_model(tmp_path):
    path = export(tmp_path, "modernbert")
    before, file = task_head.settings_hash(path), tmp_path / "config.json"
    settings = json.loads(file.read_text())
    assert settings["id2label"] == {"0": "LABEL_0"}
    file.write_text(json.dumps(settings | {"id2label": {"0": "replaced"}, "label2id": {"replaced": 0}}))
    assert task_head.settings_hash(path) == before
    file.write_text(json.dumps(settings | {"id2label": {"0": "other"}, "label2id": {"other": 0}}))
    assert task_head.settings_hash(path) != before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_labels", [0, 1, 3])
def test_the_exported_encoder_is_there_whole_and_the_outputs_are_new(kind, num_labels, tmp_path):
    path = export(tmp_path, kind)
    saved = load_file(tmp_path / "model.safetensors")
    first = task_head.load(path, num_labels, 32, seed=1)
    prefix = first.base_model_prefix
    weights = encoder(first)
    assert weights and all(torch.equal(saved[f"{prefix}.{name}"], weight) for name, weight in weights.items())
    again, other = task_head.load(path, num_labels, 32, seed=1), task_head.load(path, num_labels, 32, seed=2)
    outputs = {}
    for name, weight in first.named_parameters():
        assert torch.equal(again.get_parameter(name), weight), f"{name} is a function of the seed"
        if weight.dim() == 2 and not torch.equal(other.get_parameter(name), weight):
            outputs[name] = weight
    last = [name for name, weight in first.named_parameters() if weight.dim() == 2][-1]
    assert last in outputs and len(outputs[last]) == (num_labels or 2)
    assert last not in saved or not torch.equal(saved[last], outputs[last]), "a discriminator's outputs are left behind"
    row = torch.tensor([[2, 5, 6, 3]])
    out = first(input_ids=row, attention_mask=torch.ones_like(row))
    assert (out.logits if num_labels else out.start_logits).shape == ((1, num_labels) if num_labels else (1, 4))


@pytest.mark.parametrize("model", [BertForMaskedLM, ElectraForMaskedLM])
def test_a_masked_lm_of_the_hubs_kind_gives_its_encoder(model, tmp_path):
    export(tmp_path, "electra" if model is ElectraForMaskedLM else "bert")
    lm = model.from_pretrained(tmp_path)
    lm.save_pretrained(tmp_path)
    loaded = task_head.load(str(tmp_path), 2, 32, seed=1)
    assert all(torch.equal(lm.base_model.get_parameter(name), weight) for name, weight in encoder(loaded).items())


def test_an_encoder_with_a_weight_missing_is_refused(tmp_path):
    path = export(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    kept = {name: weight for name, weight in weights.items() if "layers.1." not in name}
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"weights of the encoder are not in the checkpoint .*model\.layers\.1\."):
        task_head.load(path, 2, 32, seed=1)
    name = "model.layers.0.mlp.Wi.weight"
    save_file(weights | {name: weights[name][:-2].clone()}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"1 weights of the encoder .*{name}"):
        task_head.load(path, 2, 32, seed=1)


def test_what_is_no_encoder_is_refused_with_a_way_out(tmp_path):
    with pytest.raises(ValueError, match=r"no config that transformers reads .*export folder"):
        task_head.load_config(str(tmp_path / "nothing"))
    T5Config(d_model=8).save_pretrained(tmp_path / "t5")
    with pytest.raises(ValueError, match="holds no weights"):
        task_head.identity(str(tmp_path / "t5"), task_head.load_config(str(tmp_path / "t5")))
    export(tmp_path / "gone")
    config = task_head.load_config(str(tmp_path / "gone"))
    config.vocab_size -= 1
    with pytest.raises(ValueError, match=r"embeddings for 104 entries and a tokenizer of 105: save the model's own"):
        task_head.load_tokenizer(str(tmp_path / "gone"), config)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "gone" / name).unlink()
    with pytest.raises(ValueError, match=r"gone' has no|no tokenizer could be loaded"):
        task_head.load_tokenizer(str(tmp_path / "gone"), config)
    (tmp_path / "gone" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"'modernbert', cannot be loaded for question answering"):
        task_head.load(str(tmp_path / "gone"), 0, 32, seed=1)


def test_rows_are_no_longer_than_the_model_has_positions():
    config = RobertaConfig(max_position_embeddings=66, pad_token_id=1)
    assert task_head.longest_row("m", config, None, 128, 512) == 64
    assert task_head.longest_row("m", config, 40, 128, 32) == 40
    with pytest.raises(ValueError, match="max_length = 65: 'm' has 64 positions"):
        task_head.longest_row("m", config, 65, 128, 512)
    assert task_head.longest_row("m", BertConfig(), None, 128, 512) == 128
    assert task_head.longest_row("m", DistilBertConfig(), None, 512, 512) == 512


def test_a_model_that_counts_no_positions_takes_rows_of_any_length():
    config = XLNetConfig(vocab_size=30, d_model=16, n_layer=1, n_head=2, d_inner=16)
    assert config.max_position_embeddings == -1
    assert task_head.longest_row("m", config, None, 128, 10**30) == 128


def test_a_kind_that_transformers_has_no_class_of_is_refused():
    config = CTRLConfig()
    task_head.require_class("m", config, answers=False)
    with pytest.raises(ValueError, match=r"model = 'm': transformers has no class of a 'ctrl' for question answ"):
        task_head.require_class("m", config, answers=True)


def test_dropout_is_the_models_own_unless_given(tmp_path):
    path = export(tmp_path, "electra")
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | {"hidden_dropout_prob": 0.25}))
    assert task_head.load(path, 2, 32, seed=1).config.hidden_dropout_prob == 0.25
    changed = task_head.load(path, 2, 32, seed=1, dropout=0.1)
    rates = {one.p for one in changed.modules() if isinstance(one, torch.nn.Dropout)}
    assert rates == {0.1}


def test_all_rates_of_a_distilbert_are_set(tmp_path):
    DistilBertModel(DistilBertConfig(vocab_size=32, dim=16, hidden_dim=16, n_layers=1, n_heads=2)).save_pretrained(
        tmp_path
    )
    for num_labels in (2, 0):
        changed = task_head.load(str(tmp_path), num_labels, 32, seed=1, dropout=0.05)
        assert {one.p for one in changed.modules() if isinstance(one, torch.nn.Dropout)} == {0.05}
