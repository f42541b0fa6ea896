"""A stored path and the auxiliary model with the same noise give the same batches, and no other paths are replayed."""

import copy
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, BertConfig

from fast_electra.batching.batches import Batches
from fast_electra.files import json_file
from fast_electra.methods import replay
from fast_electra.methods.objectives import Frozen
from fast_electra.models.auxiliary import Auxiliary, MaskedLM
from fast_electra.pretraining import pretrain, setup_run
from fast_electra.pretraining.precompute import Precomputation, provenance_of
from fast_electra.replacements import replacement_store
from fast_electra.replacements.gumbel import NoiseKeys, gumbel_noise
from fast_electra.replacements.replacement_paths import TemperatureGrid, sample
from fast_electra.replacements.replacement_store import ReplacementStore
from fast_electra.settings.config import Config, DataConfig, EncoderConfig, TemperatureConfig
from fast_electra.settings.run_config import RunConfig

LENGTH, STEPS, BATCH = 16, 30, 8
DATA = DataConfig(sequence_length=LENGTH, held_out_rows=6, num_draws=2)
GRID = TemperatureGrid.covering(1, 4)
SCHEDULES = [
    TemperatureConfig(),
    TemperatureConfig("linear", initial=4.0),
    TemperatureConfig("cosine", initial=1.0, final=3.3),
    TemperatureConfig("constant", initial=1.37),
]


class FixedNoise(Auxiliary):
    """Online samples with the noise that a position keeps: argmax of logit + T x noise, every word's noise drawn."""

    def sample(self, batch, temperature):
        keys, (num_rows, num_masked) = batch.rows.numpy(), batch.positions.shape
        slots = np.tile(np.arange(num_masked), num_rows)
        noise = gumbel_noise(NoiseKeys(self.seed, np.repeat(keys, num_masked), slots), self.vocab_size)
        logits = torch.cat([logits for _, logits in self.logits(batch)]).flatten(0, 1)
        snapped = GRID.temperature(GRID.level(temperature))
        return sample(logits, noise, snapped).reshape(num_rows, num_masked)


def made_up_corpus(tokenizer, num_rows, seed):
    tokens = np.random.default_rng(seed).integers(300, len(tokenizer), num_rows * (LENGTH - 1)).astype(np.uint16)
    return SimpleNamespace(
        path=f"corpus {seed}",
        tokens=tokens,
        num_tokens=len(tokens),
        tokenizer=tokenizer,
        tokenizer_fingerprint="words",
        fingerprint=f"tokens {seed}",
    )


@pytest.fixture(scope="module")
def corpora(tiny_tokenizer):
    return [(made_up_corpus(tiny_tokenizer, 60, 1), 2.0), (made_up_corpus(tiny_tokenizer, 30, 2), 1.0)]


@pytest.fixture(scope="module")
def batches(corpora):
    return Batches(corpora, DATA, seed=3)


@pytest.fixture(scope="module")
def model(tiny_tokenizer):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    made = AutoModelForMaskedLM.from_config(BertConfig(**sizes, vocab_size=len(tiny_tokenizer))).eval()
    made.get_input_embeddings().weight.data *= 40  # tied to the head: logits that spread as a trained model's do
    return MaskedLM(made.to(torch.bfloat16))


def build(folder, model, batches, grid=GRID):
    auxiliary = Auxiliary(model, batches.corpora[0].tokenizer, batches.seed)
    work = Precomputation(auxiliary, batches, provenance_of(batches, "weights", grid))
    for shard in replacement_store.begin(folder, work.provenance):
        replacement_store.write_shard(folder, work.provenance, shard, work.shard(shard))
    replacement_store.finish(folder, work.provenance)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model, batches):
    return build(tmp_path_factory.mktemp("paths"), model, batches)


def config(folder, **changes):
    settings = {"data": DATA, "encoder": EncoderConfig(max_positions=64), "run": RunConfig(steps=STEPS), "seed": 3}
    return Config(objective="replay", replacements=str(folder), **settings | changes)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda each: each.schedule)
def test_frozen_with_the_same_noise_and_replay_agree_token_for_token(schedule, folder, model, batches, tiny_tokenizer):
    frozen = Frozen(FixedNoise(model, tiny_tokenizer, batches.seed), schedule, DATA.mask_rate)
    store = replay.open_store(config(folder, temperature=schedule), batches)
    replayed = replay.Replay(store, tiny_tokenizer.pad_token_id, schedule, DATA.mask_rate)
    draws = set()
    for step in range(STEPS):  # 240 samples: nearly three passes over 84 rows, so that the draws come round again
        batch = batches.training(step * BATCH, BATCH)
        expected, got = (each.inputs(batch, step / STEPS) for each in (frozen, replayed))
        assert torch.equal(expected.input_ids, got.input_ids)
        assert torch.equal(expected.labels, got.labels)
        assert 0 < got.labels.sum() < got.labels.numel()
        draws |= set((batch.rows // batches.num_rows).tolist())
    assert draws == {0, 1}
    held_out = batches.held_out(0, 6)
    expected, got = (each.evaluation_inputs(held_out) for each in (frozen, replayed))
    assert torch.equal(expected.input_ids, got.input_ids)


def test_training_has_the_paths_of_rows_fetched_while_their_batch_is_made(folder, batches, monkeypatch):
    class AskedError(Exception):
        pass

    def ask(_batches, _spans, _pin, foresee):
        foresee(batches.training(0, 3))
        raise AskedError

    told, store = [], replay.open_store(config(folder), batches)
    monkeypatch.setattr(store, "foresee", lambda keys: told.append(keys.tolist()))
    monkeypatch.setattr(pretrain, "prefetch", ask)
    objective = replay.Replay(store, 0, TemperatureConfig(), DATA.mask_rate)
    with pytest.raises(AskedError):
        pretrain.train(SimpleNamespace(config=config(folder), batches=batches, objective=objective), None)
    assert told == [batches.training(0, 3).rows.tolist()]


def test_the_temperature_moves_the_tokens(folder, batches):
    keys = batches.training(0, 40).rows.numpy()
    cold, warm = (ReplacementStore(folder).tokens_at(keys, value) for value in (1.0, 4.0))
    assert 0.05 < (cold != warm).mean() < 0.95


def test_the_temperature_logged_is_the_one_replayed(tmp_path, model, batches):
    coarse = TemperatureGrid.covering(1, 4, max_levels=256)
    schedule = TemperatureConfig("linear")
    store = ReplacementStore(build(tmp_path, model, batches, coarse))
    logged = replay.Replay(store, 0, schedule, 0.15).progress(0.331)["temperature"]
    assert logged == 1 + 43 / 64
    assert logged != 1.669


def test_as_many_draws_are_used_as_are_stored_or_fewer_but_not_more(folder):
    assert replay.with_stored_draws(replace(DATA, num_draws=0), folder).num_draws == 2
    assert replay.with_stored_draws(replace(DATA, num_draws=1), folder).num_draws == 1
    with pytest.raises(ValueError, match=r"data.num_draws = 3: .* holds 2 draws a row; precompute more \(--draws\)"):
        replay.with_stored_draws(replace(DATA, num_draws=3), folder)


@pytest.mark.parametrize(
    ("changes", "seed", "message"),
    [
        ({}, 4, "seed is 3, not 4"),
        ({"mask_rate": 0.25}, 3, "mask_rate is 0.15, not 0.25; masked_per_row is 2, not 4"),
        ({"sequence_length": 18}, 3, "sequence_length is 16, not 18"),
    ],
)
def test_paths_of_other_masks_or_rows_are_refused(folder, corpora, changes, seed, message):
    other = Batches(corpora, replace(DATA, **changes), seed)
    with pytest.raises(ValueError, match="precompute paths for this run or change the run") as problem:
        replay.open_store(config(folder), other)
    assert message in str(problem.value)


def test_paths_of_whole_rows_are_refused_where_documents_are_apart(folder, corpora):
    apart = [(SimpleNamespace(**vars(each), document_starts=np.arange(0, 500, 9)), weight) for each, weight in corpora]
    data = replace(DATA, separate_documents=True)
    with pytest.raises(ValueError, match="separate_documents is False, not True"):
        replay.open_store(config(folder, data=data), Batches(apart, data, seed=3))


def test_paths_from_before_documents_could_be_separated_are_of_whole_rows(folder, batches, tmp_path):
    shutil.copytree(folder, tmp_path / "old")
    manifest = json.loads((tmp_path / "old" / "manifest.json").read_text())
    del manifest["provenance"]["separate_documents"]
    manifest.pop(json_file.SEAL)
    (tmp_path / "old" / "manifest.json").write_text(json.dumps(json_file.sealed(manifest)))
    assert replay.open_store(config(tmp_path / "old"), batches).provenance.separate_documents is False


def test_paths_of_another_corpus_order_or_vocabulary_are_refused(folder, corpora, tiny_tokenizer):
    with pytest.raises(ValueError, match=r"corpus is .*, not "):
        replay.open_store(config(folder), Batches(corpora[::-1], DATA, seed=3))
    with pytest.raises(ValueError, match=r"corpus is .*, not tokens 1; .*num_rows is 90, not 60"):
        replay.open_store(config(folder), Batches(corpora[:1], DATA, seed=3))
    other = [(SimpleNamespace(**vars(each) | {"tokenizer_fingerprint": "others"}), weight) for each, weight in corpora]
    with pytest.raises(ValueError, match="tokenizer is words, not others"):
        replay.open_store(config(folder), Batches(other, DATA, seed=3))


def test_what_differs_is_said_in_words_beside_the_hashes(folder, corpora):
    with pytest.raises(ValueError, match=r"the replacement paths in .* are others") as problem:
        replay.open_store(config(folder), Batches(corpora[::-1], DATA, seed=3))
    assert str(problem.value).splitlines()[1:] == [
        "  corpus: another corpus, or several in another order or number",
        "  the same are mask_rate 0.15, sequence_length 16, seed 3, separate_documents False",
    ]
    with pytest.raises(ValueError, match="seed is 3, not 4") as problem:
        replay.open_store(config(folder), Batches(corpora, DATA, seed=4))
    assert str(problem.value).splitlines()[1:] == [
        "  masking: other positions are masked because of seed",
        "  seed: the seed of masks and samples",
        "  the same are mask_rate 0.15, sequence_length 16, separate_documents False",
    ]
    with pytest.raises(ValueError, match="sequence_length is 16, not 18") as problem:
        replay.open_store(config(folder), Batches(corpora, replace(DATA, sequence_length=18, mask_rate=0.25), seed=3))
    assert "  masking: other positions are masked because of mask_rate, sequence_length\n" in str(problem.value)
    assert "  num_rows: rows of the corpus" in str(problem.value)


def test_masks_drawn_in_another_way_are_noticed(folder, batches, corpora):
    other = Batches(corpora, DATA, seed=3)
    other.special_ids = [*batches.special_ids, int(corpora[0][0].tokens[0])]
    with pytest.raises(ValueError, match=r"masking is .*, not [\s\S]*, which another version of the code would do\n"):
        replay.open_store(config(folder), other)


def test_paths_of_another_auxiliary_model_are_told_apart(folder, batches, model, tmp_path):
    """A run that is resumed keeps its own (setup_run binds what facts say)."""
    again = ReplacementStore(build(tmp_path / "again", model, batches)).fingerprint
    assert replay.facts(ReplacementStore(folder))["replacement_paths"] == again
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.get_output_embeddings().bias += torch.linspace(0, 9, other.model.config.vocab_size)
    assert ReplacementStore(build(tmp_path / "other", other, batches)).fingerprint != again
    assert "replacement_paths" in setup_run._BOUND


def test_weights_of_corpora_may_change(folder, corpora):
    replay.open_store(config(folder), Batches([(each, 1.0) for each, _ in corpora], DATA, seed=3))


@pytest.mark.parametrize("schedule", [TemperatureConfig(initial=5.0), TemperatureConfig("linear", 2.0, 0.5)])
def test_a_schedule_that_leaves_the_temperatures_stored_is_refused(folder, batches, schedule):
    with pytest.raises(ValueError, match=r"lies outside \[1.0, 4.0\].*change the schedule, or precompute"):
        replay.open_store(config(folder, temperature=schedule), batches)


def test_the_objective_and_the_folder_belong_together():
    with pytest.raises(ValueError, match=r"replacements = '': .*name a folder that precompute_replacements.py made"):
        Config(objective="replay")
    with pytest.raises(ValueError, match=r"replacements = 'paths': objective 'frozen' reads no replacement paths"):
        Config(replacements="paths")
    with pytest.raises(ValueError, match="auxiliary = 'lm': objective 'replay' uses no existing masked LM"):
        Config(objective="replay", replacements="paths", auxiliary="lm")
