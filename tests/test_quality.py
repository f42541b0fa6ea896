"""The quality study: its table, its judge, its rule, its page, and that a study that was killed goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import clean_environment, launch, metrics
from transformers import AutoTokenizer

from benchmarks import judge, quality, rows
from benchmarks.page import quality_sections
from benchmarks.study import arm_rows, arm_runs, arms, masked_lms, verdicts
from benchmarks.study.verdicts import FAILS, FEW, HOLDS, NOISY, NOTHING, Spread
from fast_electra.batching.batches import Batches
from fast_electra.corpora.corpus import Corpus
from fast_electra.methods import objectives
from fast_electra.models import discriminator
from fast_electra.models.auxiliary import MaskedLM, build_masked_lm, load, weights_fingerprint
from fast_electra.models.encoder import transformers_config
from fast_electra.runs import command_line
from fast_electra.settings.config import DataConfig, EncoderConfig

ROOT = Path(__file__).parent.parent

STUDY = arm_runs.Study("2x96", "some/corpus", "some/blimp", Path("runs/study"), Path("none.jsonl"))


# The table.


def test_help_tells_every_default(capsys):
    with pytest.raises(SystemExit):
        quality.parse(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    options = {each.split()[0]: each for each in text.partition("options:")[2].split(" --")[2:]}
    shown = {name: each.partition("(default: ")[2].rstrip(")") for name, each in options.items()}
    assert [name for name, default in shown.items() if not default] == ["list"]
    assert (shown["scale"], shown["jobs"], shown["only"], shown["output"]) == ("4x128", "1", "all", "runs/study")


def test_an_unknown_arm_is_refused_with_the_nearest_known(capsys):
    with pytest.raises(ValueError, match="'frozn' is no arm of the study: did you mean 'frozen'"):
        list(arms.plan(["frozn"]))
    assert quality.main(["--corpus", str(ROOT), "--only", "joint_shalow"]) == 2
    assert "did you mean 'joint_shallow'?" in capsys.readouterr().err


def test_every_arm_is_run_once_a_seed_after_what_it_is_made_and_judged_with():
    planned = [(arm.name, seed) for arm, seed in arms.plan()]
    assert len(set(planned)) == len(planned)
    assert {name for name, _ in planned} == set(arms.ARMS)
    for name, seed in planned:
        for made_with in arms.masked_lms(arms.ARMS[name]):
            assert planned.index((made_with, arms.AUXILIARY_SEED)) < planned.index((name, seed))
        if arms.ARMS[name].objective != "mlm":
            assert planned.index(arms.JUDGE) < planned.index((name, seed))
    for arm in arms.MAIN:
        assert sorted(seed for name, seed in planned if name == arm.name)[0] == 0
    assert [seed for name, seed in planned if name == "frozen"] == [0, 1, 2]


def test_an_arm_alone_brings_the_masked_lms_that_it_is_made_and_judged_with():
    assert {(arm.name, seed) for arm, seed in arms.plan(["frozen_half"])} == {
        ("auxiliary_half", arms.AUXILIARY_SEED),
        ("auxiliary", arms.AUXILIARY_SEED),
        arms.JUDGE,
        ("frozen_half", 0),
    }


def test_seeds_choose_of_an_arms_own_and_masked_lms_keep_theirs(capsys):
    assert [(arm.name, seed) for arm, seed in arms.plan(["frozen", "joint"], [2])] == [
        ("auxiliary", arms.AUXILIARY_SEED),
        arms.JUDGE,
        ("frozen", 2),
        ("joint", 2),
    ]
    assert {(arm.name, seed) for arm, seed in arms.plan(seeds=[1]) if arm.group != "auxiliary"} == {
        (arm.name, seed) for arm, seed in arms.plan() if seed == 1
    }
    assert quality.main(["--corpus", str(ROOT), "--seeds", "1", "7"]) == 2
    assert "no arm has seed 7: choose of 0, 1, 2, 100, 200" in capsys.readouterr().err


@pytest.mark.parametrize("scale", arms.SCALES)
def test_the_launcher_takes_every_arms_settings_and_arms_differ_in_their_line_alone(scale):
    study = arm_runs.Study(scale, "some/corpus", "", Path("runs/study"), Path("none.jsonl"))

    def given(arm):
        train = next(each for each in arm_runs.commands(study, arm, 1) if "launchers/pretrain.py" in each)
        return train[train.index("launchers/pretrain.py") + 1 :]

    configs = {
        name: command_line.parse(given(arm), "")[0]
        for name, arm in arms.ARMS.items()
        if arm.group in ("main", "control", "auxiliary")
    }
    for name, config in configs.items():
        assert config.seed == 1
        begins = "auxiliary" if "warm" in name or name == "frozen_embeddings" else ""
        assert arms.ARMS[name].begins or config.initial_weights == begins
        if arms.ARMS[name].group == "main":
            assert config.encoder == configs["frozen"].encoder
            assert (config.run, config.optimizer, config.data) == tuple(
                getattr(configs["frozen"], part) for part in ("run", "optimizer", "data")
            )
    assert configs["auxiliary"].encoder.num_layers == arms.SCALES[scale].auxiliary_layers
    assert configs["electra_joint"].encoder.model_type == "electra"
    half = arm_runs.settings(study, arms.ARMS["frozen_half"], 1)
    assert f"--auxiliary={study.masked_lm('auxiliary_half') / 'export'}" in half
    assert f"--initial_weights={study.masked_lm('auxiliary') / 'export'}" in half
    assert configs["auxiliary_half"].run.steps * 2 == arms.SCALES[scale].steps
    for arm in arms.LONG:
        long, _ = command_line.parse(given(arm), "")
        main = configs[arms.shorter(arm)]
        assert (long.run.steps, long.run.compile, main.run.compile) == (4 * main.run.steps, True, "auto")
        same = replace(long.run, steps=main.run.steps, compile=main.run.compile)
        assert replace(long, run=same, output=main.output) == main


def test_the_committed_rows_are_of_the_arms_as_they_are():
    """Else a study that goes on begins them all again."""
    path = ROOT / "benchmarks" / "results" / "quality.jsonl"
    study = arm_runs.Study("4x128", "data/study", "", Path("runs/study"), path)
    there = {(row["arm"], row["seed"]) for row in rows.read(path) if row["scale"] == study.scale_name}
    asked = {(arm.name, seed) for arm, seed in quality.outstanding(study) if arm.group != "auxiliary"}
    assert len(there) > 60 and not there & asked


# The judge.


@pytest.fixture(scope="module")
def shape(tiny_tokenizer):
    return transformers_config(EncoderConfig("modernbert", 1, 32, 2, 48, max_positions=64), tiny_tokenizer)


def judge_of(tiny_corpus, shape):
    opened = Corpus.open(str(tiny_corpus))
    batches = Batches([(opened, 1.0)], DataConfig(sequence_length=32, held_out_rows=23), judge.JUDGE_SEED)
    torch.manual_seed(1)
    sampler = MaskedLM(build_masked_lm(shape, "eager", torch.float32).eval())
    return judge.Judge(batches, sampler, opened.tokenizer)


def test_the_judge_does_not_depend_on_batches_or_order(tiny_corpus, shape):
    torch.manual_seed(2)
    module = discriminator.ReplacedTokenDetection(discriminator.build(shape, "eager", torch.float32)).eval()
    lm = objectives.MaskedLMLoss(build_masked_lm(shape, "eager", torch.float32)).eval()
    court = judge_of(tiny_corpus, shape)
    whole, masked = court.discriminator(module), court.masked_lm(lm)
    again = judge_of(tiny_corpus, shape)
    assert again.discriminator(module, batch_rows=5) == pytest.approx(whole, rel=1e-4)
    assert again.masked_lm(lm, batch_rows=3) == pytest.approx(masked, rel=1e-4)
    assert whole["replaced_share"] > 0.1


def test_the_judge_gives_all_to_who_knows_what_was_replaced(tiny_corpus, shape):
    court = judge_of(tiny_corpus, shape)
    found = court.discriminator(lambda input_ids, labels, _position_ids: (None, 20.0 * labels.float() - 10.0))
    assert found["roc_auc"] == 1.0
    assert found["loss"] < 0.001 < found["floor"]


# The rule.


@pytest.mark.parametrize(
    ("method", "rival", "equal", "better"),
    [
        ((0.70, 0.71), (0.60, 0.62), HOLDS, HOLDS),
        ((0.60, 0.62), (0.70, 0.71), FAILS, FAILS),
        ((0.700, 0.704), (0.701, 0.703), HOLDS, FAILS),
        ((0.706, 0.7065), (0.700, 0.7005), HOLDS, FAILS),
        ((0.700, 0.7005), (0.706, 0.7065), HOLDS, FAILS),
        ((0.60, 0.70), (0.62, 0.68), NOISY, NOISY),
        ((0.70,), (0.60, 0.62), FEW, FEW),
        ((0.499, 0.503), (0.501, 0.502), NOTHING, NOTHING),
    ],
)
def test_a_verdict_follows_from_difference_and_range(method, rival, equal, better):
    assert verdicts.verdict(Spread(method), Spread(rival), better=False) == equal
    assert verdicts.verdict(Spread(method), Spread(rival), better=True) == better


def test_insensitive_is_what_moves_no_more_than_seeds_do():
    main = Spread((0.70, 0.72))
    assert verdicts.insensitive(main, Spread((0.70, 0.71, 0.72))) == HOLDS
    assert verdicts.insensitive(main, Spread((0.68, 0.72))) == NOISY
    assert verdicts.insensitive(main, Spread((0.60, 0.72))) == FAILS
    assert verdicts.insensitive(Spread((0.70,)), Spread((0.60, 0.72))) == FEW
    assert verdicts.insensitive(Spread((0.60, 0.72)), Spread((0.66, 0.70))) == NOISY, "seeds that differ prove nothing"


def test_an_ablation_that_diverged_is_shown_and_is_no_little_sensitivity():
    found = [made(arms.REFERENCE, seed, 0.70 + seed / 100) for seed in (0, 1)] + [made("linear", 0, 0.70)]
    assert "by ROC-AUC: holds (means" in "\n".join(quality_sections._ablations(found))
    found.append(arm_rows.identity(STUDY, arms.ARMS["polynomial"], 0) | {"diverged": "loss nan"})
    page = "\n".join(quality_sections._ablations(found))
    assert "by ROC-AUC: does not hold (means" in page
    assert "| polynomial | - | 0.500 | 0.500 |" in page
    assert "Diverged, and counted as chance: polynomial." in page


def test_at_chance_is_wider_for_blimp():
    found = [made(arm, seed, auc) for arm, auc in (("frozen", 0.7), ("joint", 0.6)) for seed in (0, 1)]
    low = [row | {"blimp": 0.523 if row["arm"] == "frozen" else 0.505} for row in found]
    said = {(metric, each) for _, metric, _, _, each in verdicts.judged(low)}
    assert said == {("judge_auc", HOLDS), ("blimp", NOTHING)}


def test_a_run_that_diverged_counts_as_chance_and_not_as_a_seed_less():
    broken = arm_rows.identity(STUDY, arms.ARMS["joint"], 2) | {"diverged": "loss nan"}
    found = [made("joint", 0, 0.7), made("joint", 1, 0.72), broken]
    assert verdicts.spread(found, "joint", "judge_auc").values == (0.7, 0.72, 0.5)
    assert verdicts.spread(found, "joint", "auxiliary_accuracy").values == (), "it has no chance to count as"


# The page.


def made(name, seed, auc, **changes):
    arm = arms.ARMS[name]
    return {
        **arm_rows.identity(STUDY, arm, seed),
        "tokens": 100,
        "flops": 2e12,
        "flops_auxiliary": 1e12 if arm.auxiliary else 0.0,
        "flops_with_auxiliary": 3e12 if arm.auxiliary else 2e12,
        "auxiliary": arm.auxiliary or None,
        "auxiliary_accuracy": 0.2 if arm.auxiliary else None,
        "judge_auc": auc,
        "judge_loss": 0.3,
        "floor": 0.4,
        "judge_accuracy": None,
        "blimp": 0.5 + auc / 10,
        "curve": [{"step": 5, "roc_auc": auc - 0.1, "blimp": 0.5}, {"step": 10, "roc_auc": auc, "blimp": 0.55}],
        "machine_shared": True,
        "formula": "a formula",
        "n": 1,
    } | changes


def test_the_page_says_what_rows_say_and_what_is_not_run(tmp_path):
    found = [made("frozen", 0, 0.70, glue={"RTE": 52.3}, second_judge_auc=0.64), made("frozen", 1, 0.71)]
    found += [made("joint_shallow", seed, 0.65 + seed / 100) for seed in (0, 1)]
    found += [made("linear", 0, 0.70), made("polynomial", 0, 0.70), made("constant_1", 0, 0.5)]
    found += [made(arms.REFERENCE, seed, 0.70 + seed / 100) for seed in (0, 1)]
    found += [made("mlm", 0, 0.5, judge_auc=None, judge_loss=5.5, floor=None, judge_accuracy=0.15)]
    found += [made("auxiliary", 200, 0.5, judge_loss=5.5, floor=None, judge_accuracy=0.12, tokens=4_100_000)]
    found += [made("two_stage", 0, 0.6, judge_loss=0.4), made("frozen_x8", 0, 0.5, judge_loss=0.41)]
    found += [
        arm_rows.identity(STUDY, arms.ARMS["joint_shallow_x8"], 0) | {"diverged": "loss nan", "formula": "f", "n": 1}
    ]
    page = "\n".join(quality_sections.quality_section(found, tmp_path))
    assert "| frozen | 2 | 0.705 (0.700 to 0.710) | 0.640 |" in page
    assert "| on a par with joint training (METRO's generator) | ROC-AUC |" in page
    assert "| holds |" in page
    assert f"| {FEW} |" in page
    assert "| two_stage | 1 | 0.600 | - | 1.000 | - | 0.560 | 0 of 1 |" in page
    assert "| frozen | not run | not run | not run | 0.500, 1.025 (collapsed) |" in page
    assert "| joint_shallow | not run | not run | not run | diverged |" in page
    assert "left out, by ROC-AUC: holds (means range over 0.005) (largest range over seeds: 0.010)" in page
    assert "| constant_1 | 12.0 % | 0.500 |" in page
    assert "The judge is of the auxiliary model's shape" not in page
    assert "The second judge is `auxiliary_deep`" in page
    assert (
        "Not run yet: frozen_warm, two_stage_warm, frozen_embeddings, frozen_warm_quarter, joint_shallow_warm, random"
        in page
    )
    assert "| linear | 12.0 % | 0.700 |" in page
    assert f"| {arms.REFERENCE} | 12.0 % | 0.705 (0.700 to 0.710) |" in page
    assert "| mlm | 1 | - | - | - | 0.150 | 0.550 | 0 of 1 |" in page
    assert "`auxiliary` predicts 12.0 % of held-out masked tokens after 4.10 million (2.00 TFLOPs)" in page
    assert "| frozen | 1 | 0.523 |" in page, "fine-tuned"
    assert "| *the most frequent answer* |  | 0.527 |" in page
    assert "150.0 %" in page, "the auxiliary model's training counted"
    for name in ("quality_2x96.png", "curves_2x96.png", "varied_2x96.png"):
        assert f"]({name})" in page
        assert (tmp_path / name).stat().st_size > 5000
    assert "`make study` runs them" in "\n".join(quality_sections.quality_section([], tmp_path))


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ((0.6, 0.6, 0.6, 0.5), (0.6, 0.6, 0.5, 0.5), "`frozen` x4, `joint_shallow` x2): so far it holds, by one seed"),
        ((0.6, 0.5, 0.6, 0.6), (0.6, 0.6, 0.6, 0.6), "`frozen` x1, `joint_shallow` x8): so far it does not hold,"),
        ((0.6, 0.6, 0.6, 0.6), (0.6, 0.6, 0.6, 0.6), "x8): no difference seen, at all rates tried, by one seed"),
        (
            (0.5, 0.6, 0.6, 0.6),
            (0.5, 0.6, 0.6, 0.6),
            "`frozen` x0, `joint_shallow` x0): no difference seen,",
        ),
    ],
)
def test_steadiness_is_the_highest_rate_up_to_which_no_run_collapsed(ours, theirs, said, tmp_path):
    found = [
        made(f"{objective}_x{rate}", 0, auc, judge_loss=0.41 if auc == 0.5 else 0.3)
        for objective, aucs in (("frozen", ours), ("joint_shallow", theirs))
        for rate, auc in zip(arms.RATES, aucs, strict=True)
    ]
    assert said in "\n".join(quality_sections._rates(found))
    assert "Steadier" not in "\n".join(quality_sections._rates(found[:4]))
    assert "Steadier" not in "\n".join(quality_sections._rates(found[1:])), "the lowest rate was not tried"
    assert "The second judge" not in "\n".join(quality_sections.quality_section(found, tmp_path)), "it asked none"


def test_long_arms_stand_beside_the_main_ones_of_their_names(tmp_path):
    assert "as long" not in "\n".join(quality_sections.quality_section([made("frozen", 0, 0.58)], tmp_path))
    found = [made("frozen", seed, 0.58 + seed / 100) for seed in (0, 1)]
    found += [made("frozen_long", seed, 0.75 + seed / 100, tokens=41_000_000, flops=8e12) for seed in (0, 1)]
    found += [made("joint_shallow_long", seed, 0.70 + seed / 100, second_judge_auc=0.69) for seed in (0, 1)]
    found += [arm_rows.identity(STUDY, arms.ARMS["two_stage_long"], 0) | {"diverged": "nan", "formula": "f", "n": 1}]
    page = "\n".join(quality_sections.quality_section(found, tmp_path))
    short, long, joint = (line for line in page.split("#### Four times as long")[1].splitlines() if "0.7" in line)
    assert short.startswith("| frozen | 2 | 0.0 | 2.0 | 3.0 | 0.750 (0.750 to 0.750) | 0.585 (0.580 to 0.590) | - |")
    assert long.startswith("| frozen_long | 2 | 41.0 | 8.0 | 3.0 | 0.750 (0.750 to 0.750) | 0.755 (0.750 to 0.760) |")
    assert joint.startswith("| joint_shallow_long | 2 | 0.0 | 2.0 | 2.0 |") and "| 0.690 (0.690 to 0.690) |" in joint
    claim = next(line for line in page.splitlines() if "four times the updates" in line and "ROC-AUC |" in line)
    assert claim.endswith("| frozen_long 0.755 (0.750 to 0.760) | joint_shallow_long 0.705 (0.700 to 0.710) | holds |")
    assert (tmp_path / "long_2x96.png").stat().st_size > 5000


def test_rows_that_do_not_share_their_masked_lms_are_told_of(tmp_path):
    def sampled(name, seed, auxiliary, weights):
        return made(name, seed, 0.7, auxiliary=auxiliary, auxiliary_weights=weights, judge_weights="j")

    same = [sampled("frozen", seed, "auxiliary", "a") for seed in (0, 1)]
    other, half = sampled("linear", 0, "auxiliary", "b"), sampled("frozen_half", 0, "auxiliary_half", "c")
    warning = "**Not all rows compare**, because they do not share their masked LMs: `auxiliary` (2 times)."
    assert warning in quality_sections.quality_section([*same, other, half], tmp_path)
    assert "Not all rows compare" not in "\n".join(quality_sections.quality_section([*same, half], tmp_path))


def test_rows_whose_gradients_were_summed_in_half_the_width_are_told_of(tmp_path):
    ways = [{"dtype": "bfloat16"}, {"dtype": "bfloat16", "token_sums": "float32"}, {"dtype": "float32"}]
    ways.append({"dtype": "bfloat16", "hardware": {"gpu": "NVIDIA H200"}})
    found = [made(name, 0, 0.7, **way) for name, way in zip(("frozen", "joint", "random", "mlm"), ways, strict=True)]
    assert "**1 of 4 rows lost part of their gradients.**" in "\n".join(
        quality_sections.quality_section(found, tmp_path)
    )
    assert "lost part" not in "\n".join(quality_sections.quality_section(found[1:], tmp_path))


def test_rows_of_two_seeds_stand_beside_each_other(tmp_path):
    path = tmp_path / "quality.jsonl"
    for row in (made("frozen", 0, 0.7), made("frozen", 1, 0.8), made("frozen", 0, 0.9)):
        rows.keep(path, [row | {"code": "a", "commit": "b"}])
    assert sorted((row["seed"], row["judge_auc"]) for row in rows.read(path)) == [(0, 0.9), (1, 0.8)]


def test_what_has_a_row_is_not_run_again_unless_more_is_asked_of_it(tmp_path):
    study = replace(STUDY, rows=tmp_path / "quality.jsonl")
    origin = {"code": "a", "commit": "b"}
    rows.keep(study.rows, [made("frozen", 0, 0.7) | origin, made("linear", 0, 0.7) | origin])

    def todo(of):
        return [(arm.name, seed) for arm, seed in quality.outstanding(of)]

    assert ("frozen", 0) not in todo(study)
    assert ("linear", 0) not in todo(study)
    assert ("frozen", 1) in todo(study)
    assert ("frozen", 0) in todo(replace(study, glue="some/glue"))
    assert ("linear", 0) not in todo(replace(study, glue="some/glue")), "main arms only"
    assert ("frozen", 0) in todo(replace(study, corpus="another/corpus")), "another recipe is another row"
    rows.keep(study.rows, [made("frozen", 0, 0.7, glue={"RTE": 50.0}) | origin])
    assert ("frozen", 0) not in todo(replace(study, glue="some/glue"))


def test_the_second_judge_asks_the_main_arms_whose_runs_are_here_and_each_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = replace(STUDY, rows=tmp_path / "quality.jsonl")
    rows.keep(study.rows, [made(name, 0, 0.7) | {"code": "a", "commit": "b"} for name in ("frozen", "mlm", "linear")])
    frozen, run, second = arms.ARMS["frozen"], study.run("frozen", 0), study.run(*arms.SECOND_JUDGE)
    for name in ("frozen", "mlm", "linear"):
        (study.run(name, 0) / "export").mkdir(parents=True)

    def asked():
        return {arm.name for arm, seed in quality.outstanding(study) if seed == 0} & {"frozen", "mlm", "linear"}

    (run / "scores.json").write_text(json.dumps({"judged": {}}))
    assert asked() == set(), "it has not been trained"
    assert arm_rows.scored(study, frozen, run)
    assert "--second" not in " ".join(arm_runs.commands(study, frozen, 0)[-1])
    second.mkdir()
    (second / "summary.json").touch()
    assert asked() == {"frozen"}
    assert not arm_rows.scored(study, frozen, run)
    assert f"--second={second / 'export'}" in arm_runs.commands(study, frozen, 0)[-1]
    (run / "scores.json").write_text(json.dumps({"judged": {}, "second": {}}))
    assert arm_rows.scored(study, frozen, run)
    rows.keep(study.rows, [made("frozen", 0, 0.7, second_judge_auc=0.6) | {"code": "a", "commit": "b"}])
    assert asked() == set()
    rows.keep(study.rows, [made("frozen", 0, 0.7) | {"code": "a", "commit": "b"}])
    shutil.rmtree(run)
    assert asked() == set(), "it would have to be trained again"


def test_masked_lms_whose_runs_are_gone_are_made_again_where_others_need_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where runs/study is not
    study = replace(STUDY, rows=tmp_path / "quality.jsonl")
    planned = list(arms.plan())
    rows.keep(study.rows, [made(arm.name, seed, 0.7) | {"code": "a", "commit": "b"} for arm, seed in planned])
    assert quality.outstanding(study) == []
    lost = [made(arm.name, seed, 0.7) | {"code": "a", "commit": "b"} for arm, seed in planned if arm.name != "frozen"]
    rows.write(study.rows, lost)
    todo = [(arm.name, seed) for arm, seed in quality.outstanding(study)]
    assert todo == [("auxiliary", arms.AUXILIARY_SEED), arms.JUDGE, ("frozen", 0), ("frozen", 1), ("frozen", 2)]
    for name, seed in todo[:2]:
        study.run(name, seed).mkdir(parents=True)
        (study.run(name, seed) / "summary.json").touch()
    assert [arm.name for arm, _ in quality.outstanding(study)] == ["frozen"] * 3


_JUDGES = sorted([arms.SECOND_JUDGE, arms.JUDGE])


def test_a_study_on_the_corpus_of_the_committed_rows_takes_their_masked_lms(tiny_corpus, tmp_path, capsys):
    kept = sorted(each.name for each in (masked_lms.KEPT / "4x128").iterdir())
    assert kept == [f"auxiliary-{arms.AUXILIARY_SEED}", *("-".join(map(str, each)) for each in _JUDGES)]
    corpus, runs = tmp_path / "corpus", tmp_path / "study" / "4x128"
    shutil.copytree(masked_lms.KEPT / "4x128" / kept[0] / "export", corpus / "tokenizer")
    runs.mkdir(parents=True)
    assert masked_lms.restore("4x128", tiny_corpus, runs) == [], "another vocabulary"
    assert masked_lms.restore("2x96", corpus, runs) == [], "none is kept for this scale"
    assert masked_lms.restore("4x128", corpus, runs) == kept
    assert masked_lms.restore("4x128", corpus, runs) == [], "they are there"
    study = arm_runs.Study("4x128", str(corpus), "", tmp_path / "study", tmp_path / "none")
    assert arm_runs.ready(study, arms.ARMS["frozen"])


def test_the_committed_rows_were_made_with_the_masked_lms_kept_beside_them():
    found = rows.select(rows.read(ROOT / "benchmarks" / "results" / "quality.jsonl"), "quality", scale="4x128")
    for name, seed, field, dtype in (
        ("auxiliary", arms.AUXILIARY_SEED, "auxiliary_weights", torch.bfloat16),
        (*arms.JUDGE, "judge_weights", torch.float32),
        (*arms.SECOND_JUDGE, "second_judge_weights", torch.float32),
        (*arms.SECOND_JUDGE, "auxiliary_weights", torch.bfloat16),
    ):
        export = masked_lms.KEPT / "4x128" / f"{name}-{seed}" / "export"
        weights = weights_fingerprint(load(str(export), AutoTokenizer.from_pretrained(export), 64, dtype))
        asked = rows.select(found, "quality", auxiliary=name) if field == "auxiliary_weights" else found
        assert {row[field] for row in asked if row.get(field)} == {weights}


def test_rows_name_a_masked_lm_alike_whatever_their_runs_compute_in():
    """Rows in float32 that sample from the kept model, whose file is in bfloat16, were taken for another model's."""
    export = masked_lms.KEPT / "4x128" / f"auxiliary-{arms.AUXILIARY_SEED}" / "export"
    tokenizer = AutoTokenizer.from_pretrained(export)
    found = [weights_fingerprint(load(str(export), tokenizer, 64, dtype)) for dtype in (torch.bfloat16, torch.float32)]
    assert found[0] != found[1], "what a run is bound to: other numbers may come of other dtypes"
    assert masked_lms.fingerprint(export, found[0], "bfloat16") == found[0]
    assert masked_lms.fingerprint(export, found[1], "float32") == found[0]
    assert masked_lms.fingerprint(export, "of a model since replaced", "float32") == "of a model since replaced"


def test_the_committed_page_shows_the_committed_rows(tmp_path):
    """`make page` makes it anew."""
    results = ROOT / "benchmarks" / "results"
    lines = quality_sections.quality_section(rows.read(results / "quality.jsonl"), tmp_path)
    assert "\n".join(lines).strip() in (results / "report" / "report.md").read_text()


def test_a_row_that_is_made_again_says_which_code_trained_and_which_judged(tmp_path, monkeypatch):
    study = arm_runs.Study("2x96", "some/corpus", "", tmp_path, tmp_path / "none.jsonl")
    run = study.run("mlm", 0)
    run.mkdir(parents=True)
    counted = dict.fromkeys(("flops_per_token", "tokens", "steps", "weights", "tokens_per_second"), 1)
    (run / "summary.json").write_text(json.dumps(counted | {"dtype": "float32"}))
    (run / "scores.json").write_text(json.dumps({"judged": {}, "blimp": None}))
    (run / "metrics.jsonl").touch()
    monkeypatch.setattr(quality, "commands", lambda *_: [["true"] * 2])
    made_by = []

    def perform(now):
        monkeypatch.setattr(rows, "commit", lambda: now)
        made_by.append(quality.perform(study, arms.ARMS["mlm"], 0, sorted(os.sched_getaffinity(0)), lock))
        return made_by[-1]

    with (tmp_path / "lock").open("w") as lock:
        perform("first")
        assert made_by.pop()["commit"] == "unknown", "it was trained, and by what is written nowhere"
        (run / "trained.json").unlink()
        (run / "summary.json").rename(run / "later")
        monkeypatch.setattr(quality, "commands", lambda *_: [["mv", str(run / "later"), str(run / "summary.json")]])
        rows.keep(study.rows, [perform("first")])
        monkeypatch.setattr(quality, "commands", lambda *_: [["true"] * 2])
        perform("later")
        (run / "trained.json").unlink()
        perform("latest")
    told = [(row["commit"], row["judged_by"]) for row in made_by]
    assert told == [("first", "first"), ("first", "later"), ("first", "latest")]
    assert {row["token_sums"] for row in made_by} == {"float32"}


# A study, killed.

TINY_STUDY = """
import sys
from benchmarks import quality
from benchmarks.study import arms
arms.SCALES["2x96"] = arms.Scale(1, 1, 32, 2, 48, 32, 120, 8, 1e-3, 16, 0)
arms.ROUNDS = ((("mlm",), (0,)),)
sys.exit(quality.main(sys.argv[1:]))
"""


def test_a_study_that_was_killed_goes_on_to_the_same_rows(tiny_corpus, tmp_path, monkeypatch):
    options = [
        f"--corpus={tiny_corpus}",
        "--blimp=",
        "--scale=2x96",
        f"--output={tmp_path / 'study'}",
        f"--rows={tmp_path / 'q.jsonl'}",
    ]
    command = [sys.executable, "-c", TINY_STUDY, *options, "--only", "mlm"]
    environment = clean_environment(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    run = tmp_path / "study" / "2x96" / "mlm-0"
    started = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    deadline = time.monotonic() + 200
    while not list(run.glob("checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    assert not (run / "summary.json").exists(), "it was to be killed on its way"
    assert not (tmp_path / "q.jsonl").exists()
    for said in ("mlm, seed 0: done", ""):
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=250
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert said in done.stdout
    (row,) = rows.read(tmp_path / "q.jsonl")
    assert done.stdout == "", "all has a row: nothing was to be done"
    monkeypatch.setitem(arms.SCALES, "2x96", arms.Scale(1, 1, 32, 2, 48, 32, 120, 8, 1e-3, 16, 0))
    study = arm_runs.Study("2x96", str(tiny_corpus), "", tmp_path, tmp_path / "none")
    launch(
        *arm_runs.settings(study, arms.ARMS["mlm"], 0),
        f"--output={tmp_path / 'whole'}",
        "--deepspeed=ds_configs/zero1.json",
    )
    whole = [each["held_out"]["loss"] for each in metrics(tmp_path / "whole") if "held_out" in each]
    assert [each["loss"] for each in row["curve"]] == whole
    assert row["steps"] == 120
    assert row["tokens"] == 120 * 8 * 32
    assert 0 <= row["judge_accuracy"] <= 1
    assert row["flops"] == json.loads((run / "summary.json").read_text())["flops_per_token"] * row["tokens"]
