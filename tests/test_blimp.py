"""Minimal pairs: scores equal those of one sentence at a time, accuracy is what it says, whole runs track it."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY, clean_environment, launch, metrics
from transformers import AutoModel, AutoModelForMaskedLM

from fast_electra.evaluation import blimp, trained
from fast_electra.evaluation.blimp import Pair, Score
from fast_electra.methods import objectives
from fast_electra.models import discriminator
from fast_electra.models.encoder import transformers_config
from fast_electra.settings.config import EncoderConfig

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
PAIRS = [
    Pair("The cats sleep.", "The cats sleeps.", "agreement", "morphology"),
    Pair("Who has she seen in the garden?", "Who has she seen them in the garden?", "islands", "syntax"),
    Pair("A dog barks at the door.", "A dog bark at the door.", "agreement", "morphology"),
    Pair("No one has ever left.", "Someone has ever left.", "npi", "semantics"),
]


@pytest.fixture(scope="module")
def shape(tiny_tokenizer):
    return transformers_config(EncoderConfig("modernbert", 2, 32, 2, 48, max_positions=64), tiny_tokenizer)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """PAIRS as BLiMP's own files."""
    made = tmp_path_factory.mktemp("blimp")
    for pair in PAIRS:
        row = {"sentence_good": pair.good, "sentence_bad": pair.bad, "UID": pair.paradigm, "field": pair.field}
        with (made / f"{pair.paradigm}.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
    return made


def scored(token_scores, tokenizer, share=(0, 1)):
    how = Score(token_scores, tokenizer.all_special_ids, CPU, share)
    return blimp.sentence_scores(blimp.encode(PAIRS, tokenizer), how)


def test_a_discriminators_scores_are_those_of_each_sentence_alone(shape, tiny_tokenizer):
    torch.manual_seed(0)
    module = discriminator.ReplacedTokenDetection(discriminator.build(shape, "eager", torch.float32)).eval()
    objective = objectives.Frozen(None, None, 0.15)
    found = scored(lambda ids: objective.token_scores(module, ids), tiny_tokenizer)
    sentences = [pair.good for pair in PAIRS] + [pair.bad for pair in PAIRS]
    for row, sentence in zip(found, sentences, strict=True):
        ids = tiny_tokenizer(sentence, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            replaced = torch.sigmoid(module.model(input_ids=ids).logits.flatten())
        each = [math.log1p(-float(p)) for p in replaced]
        inner = each[1:-1]
        expected = [sum(inner), sum(inner) / len(inner), sum(each)]
        assert row.tolist() == pytest.approx(expected, rel=1e-4)


def test_a_masked_lms_scores_are_pseudo_log_likelihoods_of_each_sentence_alone(shape, tiny_tokenizer):
    torch.manual_seed(0)
    objective = objectives.Mlm(tiny_tokenizer.mask_token_id, tiny_tokenizer.all_special_ids)
    module = objective.module(shape, "eager", torch.float32).eval()
    found = scored(lambda ids: objective.token_scores(module, ids), tiny_tokenizer)
    stock = AutoModelForMaskedLM.from_config(shape, attn_implementation="eager", dtype=torch.float32).eval()
    stock.load_state_dict(module.model.state_dict())
    for row, pair in zip(found, PAIRS, strict=False):
        ids = tiny_tokenizer(pair.good)["input_ids"]
        total = 0.0
        for place in range(1, len(ids) - 1):
            masked = [*ids[:place], tiny_tokenizer.mask_token_id, *ids[place + 1 :]]
            with torch.no_grad():
                logits = stock(input_ids=torch.tensor([masked])).logits[0, place]
            total += float(logits.log_softmax(-1)[ids[place]])
        assert row[0].item() == pytest.approx(total, rel=1e-4)
        assert row[2].item() == row[0].item(), "the special tokens are not asked"


def test_scores_do_not_depend_on_batches_or_processes(shape, tiny_tokenizer, monkeypatch):
    torch.manual_seed(0)
    module = discriminator.ReplacedTokenDetection(discriminator.build(shape, "eager", torch.float32)).eval()
    objective, calls = objectives.Frozen(None, None, 0.15), [0]

    def ask(ids):
        calls[0] += 1
        return objective.token_scores(module, ids)

    whole = scored(ask, tiny_tokenizer)
    monkeypatch.setattr(blimp, "BATCH_TOKENS", 1)
    parts, numbers = [], []
    for rank in range(3):
        calls[0] = 0
        parts.append(scored(ask, tiny_tokenizer, (rank, 3)))
        numbers.append(calls[0])
    torch.testing.assert_close(sum(parts), whole, rtol=1e-5, atol=1e-6)
    assert len(set(numbers)) == 1, "processes that call the engine a different number of times wait for ever"


def test_a_model_that_knows_good_from_bad_scores_all_and_one_that_knows_nothing_half(tiny_tokenizer):
    good = {tuple(ids) for ids in tiny_tokenizer([pair.good for pair in PAIRS])["input_ids"]}

    def knows(ids):
        return torch.tensor([[0.0 if tuple(row) in good else -1.0] * len(row) for row in ids.tolist()])

    best = blimp.report(PAIRS, scored(knows, tiny_tokenizer))
    assert best["accuracy"] == 1.0
    assert best["variants"] == dict.fromkeys(blimp.VARIANTS, 1.0)
    assert best["fields"] == {"morphology": 1.0, "semantics": 1.0, "syntax": 1.0}
    worst = blimp.report(PAIRS, scored(lambda ids: -1 - knows(ids), tiny_tokenizer))
    assert worst["accuracy"] == 0.0
    nothing = blimp.report(PAIRS, torch.zeros(2 * len(PAIRS), len(blimp.VARIANTS)))
    assert nothing["accuracy"] == 0.5


def test_accuracy_is_the_mean_over_paradigms():
    scores = torch.zeros(8, 3)
    scores[0] = 1.0  # the first pair of `agreement` is right, its second a tie
    found = blimp.report(PAIRS, scores)
    assert found["paradigms"] == {"agreement": 0.75, "islands": 0.5, "npi": 0.5}
    assert found["accuracy"] == pytest.approx((0.75 + 0.5 + 0.5) / 3)


def test_pairs_are_read_and_what_is_none_is_named(folder, tmp_path):
    assert sorted(blimp.load(folder)) == sorted(PAIRS)
    assert len(blimp.load(folder, 1)) == 3
    odd = {"sentence_good": "A.", "sentence_bad": "B.", "UID": "u", "field": "syntax/semantics"}
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "u.jsonl").write_text(json.dumps(odd) + "\n")
    assert blimp.load(tmp_path / "odd")[0].field == "syntax_semantics"
    with pytest.raises(ValueError, match=r"no \.jsonl file is there"):
        blimp.load(tmp_path)
    (tmp_path / "x.jsonl").touch()
    with pytest.raises(ValueError, match=r"its \.jsonl files are empty"):
        blimp.load(tmp_path)
    (tmp_path / "x.jsonl").write_text('{"sentence_good": "A."}\n')
    with pytest.raises(ValueError, match=r"x\.jsonl:1 is no BLiMP pair \(KeyError: 'field'\)"):
        blimp.load(tmp_path)


@pytest.fixture(scope="module")
def tracked(tiny_corpus, folder, tmp_path_factory):
    """A joint run on two processes under ZeRO-3, which scores BLiMP's sentences on its way."""
    output = tmp_path_factory.mktemp("tracked") / "run"
    launch(
        *TINY,
        "--objective=joint_shallow",
        "--generator.depth_divisor=2",
        f"--corpus={tiny_corpus}",
        f"--output={output}",
        f"--run.blimp={folder}",
        "--run.blimp_pairs=0",
        num_processes=2,
    )
    return output


def test_a_run_under_zero_3_tracks_what_its_export_scores(tracked, folder):
    """The engine's last accuracy is the exported model's by the launcher, and training was not disturbed by it."""
    rows = [row["held_out"] for row in metrics(tracked) if "held_out" in row]
    assert [set(row) >= {"blimp", "blimp_morphology", "blimp_syntax"} for row in rows] == [True, True]
    place = tracked / "scores" / "of" / "blimp.json"
    command = [sys.executable, "launchers/blimp.py", str(tracked / "export"), f"--data={folder}", f"--output={place}"]
    done = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(place.read_text())
    assert found["accuracy"] == pytest.approx(rows[-1]["blimp"], abs=0.2), "one of 4 pairs may turn on bf16 rounding"
    assert "BLiMP, 4 pairs" in done.stdout
    assert "s per 1,000 pairs" in done.stdout


def test_what_is_no_trained_model_is_refused(tiny_corpus, folder, tmp_path, shape, tiny_tokenizer):
    AutoModel.from_config(shape).save_pretrained(tmp_path / "bare")
    tiny_tokenizer.save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="is a ModernBertModel, and can score no sentence"):
        trained.open_model(str(tmp_path / "bare"))
    with pytest.raises(ValueError, match="cannot be loaded"):
        trained.open_model(str(tmp_path / "nowhere"))
    weights = tmp_path / "bare" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    config = json.loads((tmp_path / "bare" / "config.json").read_text()) | {"architectures": ["ModernBertForMaskedLM"]}
    (tmp_path / "bare" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="cannot be loaded"):
        trained.open_model(str(tmp_path / "bare"))
