import json
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.utils import counters
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    CamembertConfig,
    DebertaV2Config,
    ElectraConfig,
    ElectraForPreTraining,
    ModernBertConfig,
    RobertaConfig,
)

from fast_electra.batching.batches import Batches, MaskedBatch
from fast_electra.corpora.corpus import Corpus
from fast_electra.models import auxiliary
from fast_electra.models.auxiliary import Auxiliary, MaskedLM, mask_out
from fast_electra.settings.config import DataConfig

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}


def config_of(kind, tokenizer):
    kinds = {
        "electra": lambda **k: ElectraConfig(embedding_size=16, **k),
        "bert": BertConfig,
        "roberta": lambda **k: RobertaConfig(**k | {"max_position_embeddings": 66 + tokenizer.pad_token_id}),
        "deberta-v2": lambda **k: DebertaV2Config(relative_attention=True, pos_att_type=["p2c", "c2p"], **k),
        "modernbert": lambda **k: ModernBertConfig(global_attn_every_n_layers=1, **k),
    }
    return kinds[kind](**SIZES, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)


@pytest.fixture
def batch(tiny_tokenizer):
    generator = np.random.default_rng(0)
    ids = torch.from_numpy(generator.integers(300, len(tiny_tokenizer), size=(6, 32)))
    positions = torch.from_numpy(np.sort(generator.permuted(np.tile(np.arange(32), (6, 1)), axis=1)[:, :5], axis=1))
    return MaskedBatch(ids, positions, torch.arange(6))


@pytest.fixture
def saved(tmp_path, tiny_tokenizer):
    """A masked LM in a folder, as an existing one would lie there."""
    model = AutoModelForMaskedLM.from_config(config_of("bert", tiny_tokenizer))
    model.save_pretrained(tmp_path / "lm")
    tiny_tokenizer.save_pretrained(tmp_path / "lm")
    return tmp_path / "lm"


@pytest.mark.parametrize("kind", ["electra", "bert", "roberta", "deberta-v2", "modernbert"])
def test_the_head_on_masked_positions_gives_the_stock_models_logits(kind, tiny_tokenizer, batch):
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(config_of(kind, tiny_tokenizer)).eval()
    with torch.no_grad():
        everywhere = model(input_ids=batch.input_ids).logits
        at_positions = MaskedLM(model)(batch.input_ids, batch.positions)
    assert at_positions.shape == (6, 5, len(tiny_tokenizer))
    index = batch.positions.unsqueeze(-1).expand_as(at_positions)
    torch.testing.assert_close(at_positions, everywhere.gather(1, index))


def auxiliary_of(model, tokenizer):
    return Auxiliary(MaskedLM(model.eval()), tokenizer, seed=0)


def test_the_model_sees_masks_and_the_samples_are_ordinary_tokens(tiny_tokenizer, batch):
    seen = []

    def predict(input_ids, positions, _position_ids):
        seen.append(input_ids)
        return torch.zeros(*positions.shape, len(tiny_tokenizer))

    samples = Auxiliary(predict, tiny_tokenizer, seed=0).sample(batch, 1.0)
    masked = torch.cat(seen)
    assert (masked.gather(1, batch.positions) == tiny_tokenizer.mask_token_id).all()
    assert ((masked == tiny_tokenizer.mask_token_id).sum(1) == 5).all()
    assert samples.shape == batch.positions.shape
    assert not torch.isin(samples, torch.tensor(tiny_tokenizer.all_special_ids)).any()


def test_a_rows_samples_do_not_depend_on_its_batch_or_the_chunks(tiny_tokenizer, batch, monkeypatch):
    torch.manual_seed(0)
    frozen = auxiliary_of(AutoModelForMaskedLM.from_config(config_of("bert", tiny_tokenizer)), tiny_tokenizer)
    whole = frozen.sample(batch, 1.5)
    parts = torch.cat([frozen.sample(MaskedBatch(*(each[i : i + 1] for each in batch)), 1.5) for i in range(6)])
    monkeypatch.setitem(auxiliary.LOGITS_BUDGET_MIB, "cpu", 1e-6)
    assert torch.equal(whole, parts)
    assert torch.equal(whole, frozen.sample(batch, 1.5))


def test_compiled_samples_are_the_same_and_one_graph_serves_all_temperatures(tiny_tokenizer, batch, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch.manual_seed(0)
    model = MaskedLM(AutoModelForMaskedLM.from_config(config_of("bert", tiny_tokenizer)).eval())
    plain, compiled = (Auxiliary(model, tiny_tokenizer, 0, how) for how in (False, True))
    torch._dynamo.reset()
    counters.clear()
    drawn = [plain.sample(batch, value) for value in (2.0, 1.3, 0.1)]
    assert not counters["stats"]["unique_graphs"]
    for value, words in zip((2.0, 1.3, 0.1), drawn, strict=True):
        assert torch.equal(compiled.sample(batch, value), words)
    assert counters["stats"]["unique_graphs"] == 1
    assert not torch.equal(drawn[0], drawn[2])


def test_float32_logits_stay_within_the_budget(tiny_tokenizer, batch, monkeypatch):
    budget = 2 * 5 * len(tiny_tokenizer) * 4 / 2**20
    monkeypatch.setitem(auxiliary.LOGITS_BUDGET_MIB, "cpu", budget)
    frozen = auxiliary_of(AutoModelForMaskedLM.from_config(config_of("bert", tiny_tokenizer)), tiny_tokenizer)
    sizes = [logits.nbytes for _, logits in frozen.logits(batch)]
    assert len(sizes) == 3
    assert max(sizes) <= budget * 2**20


@pytest.mark.parametrize(("num_rows", "at_once"), [(64, 16), (27, 27), (26, 26), (29, 27), (61, 27), (1, 1)])
def test_chunks_have_one_size_where_that_costs_little(num_rows, at_once):
    """Within 256 MiB lie 27 rows of 77 positions and 32,000 words; each size is a graph to compile."""
    assert auxiliary.rows_at_once(num_rows, 77, 32_000) == at_once


def test_a_gpu_takes_a_micro_batch_of_base_at_once():
    assert auxiliary.rows_at_once(64, 77, 32_000, "cuda") == 64


def test_mask_out_leaves_the_rest_alone(batch):
    masked = mask_out(batch, 4)
    kept = torch.ones_like(masked, dtype=torch.bool).scatter(1, batch.positions, False)
    assert torch.equal(masked[kept], batch.input_ids[kept])


def test_a_loaded_model_is_frozen_and_in_eval_mode(saved, tiny_tokenizer):
    model = auxiliary.load(str(saved), tiny_tokenizer, 32, torch.bfloat16)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_a_checkpoint_without_its_head_is_refused(tmp_path, tiny_tokenizer):
    ElectraForPreTraining(config_of("electra", tiny_tokenizer)).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"not in the checkpoint and would be random .*masked-LM head"):
        auxiliary.load(str(tmp_path), tiny_tokenizer, 32, torch.bfloat16)


def test_a_folder_that_is_no_model_is_refused(tmp_path, tiny_tokenizer):
    with pytest.raises(ValueError, match="is no masked LM that transformers can load"):
        auxiliary.load(str(tmp_path), tiny_tokenizer, 32, torch.bfloat16)


def test_a_path_that_is_none_is_said_to_be_none(tmp_path):
    said = [str(auxiliary.unloadable("auxiliary", str(path), "masked LM", OSError())) for path in (tmp_path, "runs/x")]
    assert ["there is no such folder here" in each for each in said] == [False, True]


def test_a_smaller_vocabulary_is_refused(tmp_path, tiny_tokenizer):
    config = config_of("bert", tiny_tokenizer)
    config.vocab_size = 100
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"knows 100 tokens, the corpus uses 512.*--tokenizer"):
        auxiliary.load(str(tmp_path), tiny_tokenizer, 32, torch.bfloat16)


def test_another_tokenizer_is_refused(saved, tiny_tokenizer, documents, tmp_path):
    from fast_electra.corpora import tokenizer

    other = tokenizer.train(documents[50:], 512, tmp_path / "other")
    with pytest.raises(ValueError, match="uses another tokenizer than the corpus"):
        auxiliary.load(str(saved), other, 32, torch.bfloat16)


def test_a_model_without_a_tokenizer_beside_it_is_refused(tmp_path, tiny_tokenizer):
    AutoModelForMaskedLM.from_config(config_of("bert", tiny_tokenizer)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no tokenizer beside its weights"):
        auxiliary.load(str(tmp_path), tiny_tokenizer, 32, torch.bfloat16)


def test_positions_counted_from_padding_on_are_not_all_there_for_rows(tmp_path, tiny_tokenizer):
    sizes = SIZES | {"vocab_size": len(tiny_tokenizer), "pad_token_id": tiny_tokenizer.pad_token_id}
    AutoModelForMaskedLM.from_config(CamembertConfig(**sizes)).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"sequence_length = 64: .* has {63 - tiny_tokenizer.pad_token_id} positions"):
        auxiliary.load(str(tmp_path), tiny_tokenizer, 64, torch.bfloat16)


def test_rows_longer_than_its_positions_are_refused(saved, tiny_tokenizer):
    with pytest.raises(ValueError, match=r"data.sequence_length = 65: .* has 64 positions"):
        auxiliary.load(str(saved), tiny_tokenizer, 65, torch.bfloat16)


def test_the_gate_refuses_a_model_on_the_unigram_plateau():
    with pytest.raises(ValueError, match=r"predicts 5.1% of 1000 .* would get 5.0%.*--auxiliary_gate false"):
        auxiliary.gate("runs/aux/export", 0.051, 0.05, 1000)
    auxiliary.gate("runs/aux/export", 0.2, 0.05, 1000)


def test_accuracy_counts_hits_and_the_most_frequent_token(tiny_tokenizer, batch):
    class Held:
        num_held_out = 6

        @staticmethod
        def held_out(first, count, every):
            return MaskedBatch(*(each[first : first + count * every : every] for each in batch))

    targets = batch.input_ids.gather(1, batch.positions)
    always = int(targets[0, 0])

    def predict(input_ids, positions, _position_ids):
        return torch.nn.functional.one_hot(torch.full(positions.shape, always), len(tiny_tokenizer)).float()

    accuracy, most_frequent, total = Auxiliary(predict, tiny_tokenizer, 0).accuracy(Held(), 6, torch.device("cpu"))
    assert accuracy == pytest.approx(float((targets == always).float().mean()))
    assert most_frequent == pytest.approx(int(torch.bincount(targets.flatten()).max()) / 30)
    assert total == 30


def test_accuracy_asks_for_rows_of_every_corpus(tiny_corpus, tiny_tokenizer):
    data = DataConfig(sequence_length=16, held_out_rows=40)
    corpus, seen = Corpus.open(tiny_corpus), []
    batches = Batches([(corpus, 1.0), (corpus, 1.0)], data, seed=0)

    def predict(input_ids, positions, _position_ids):
        seen.append(input_ids)
        return torch.zeros(*positions.shape, len(tiny_tokenizer))

    Auxiliary(predict, tiny_tokenizer, 0).accuracy(batches, 10, torch.device("cpu"))
    asked = torch.cat(seen)
    assert asked.shape == (10, 16)
    second = batches.held_out(20, 20)
    held = mask_out(second, tiny_tokenizer.mask_token_id)
    assert sum(any(torch.equal(row, each) for each in held) for row in asked) >= 5


class Bomb:
    """Pickled, it makes a file when it is unpickled without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("hostile", [False, True])
def test_weights_that_were_pickled_are_read_as_tensors_and_never_as_code(hostile, saved, tiny_tokenizer, tmp_path):
    weights = load_file(saved / "model.safetensors")
    more = {"bert.embeddings.bomb": Bomb(tmp_path / "exploded")} if hostile else {}
    torch.save(weights | more, saved / "pytorch_model.bin")
    (saved / "model.safetensors").unlink()
    if hostile:
        with pytest.raises(ValueError, match="is no masked LM that transformers can load"):
            auxiliary.load(str(saved), tiny_tokenizer, 32, torch.float32)
    else:
        model = auxiliary.load(str(saved), tiny_tokenizer, 32, torch.float32)
        assert torch.equal(model.state_dict()["cls.predictions.bias"], weights["cls.predictions.bias"])
    assert not (tmp_path / "exploded").exists()


def test_code_that_comes_with_a_model_is_not_run(saved, tiny_tokenizer, tmp_path):
    exploded = tmp_path / "exploded"
    (saved / "modeling.py").write_text(
        f"from pathlib import Path\nPath({str(exploded)!r}).touch()\nclass Model: pass\n"
    )
    config = json.loads((saved / "config.json").read_text())
    config |= {"auto_map": {"AutoModelForMaskedLM": "modeling.Model", "AutoConfig": "modeling.Model"}}
    for kind in ("bert", "a kind of its own"):
        (saved / "config.json").write_text(json.dumps(config | {"model_type": kind}))
        with suppress(ValueError):
            auxiliary.load(str(saved), tiny_tokenizer, 32, torch.float32)
        assert not exploded.exists()
