"""The targets: ratios turn by turn within one contest, met or not."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.page import machine_sections, targets
from benchmarks.rows import Row


def timed(objective: str, speeds: list[float], **changes: Any) -> Row:
    return {
        "kind": "throughput",
        "contest": "c1",
        "recipe": "base",
        "objective": objective,
        "sequence_length": 512,
        "vocab_size": 32_000,
        "micro_batch_rows": 2,
        "device": "cpu",
        "num_processes": 1,
        "threads": 2,
        "dtype": "bfloat16",
        "compiled": False,
        "activation_checkpointing": False,
        "hardware": {"cpu": "some"},
        "tokens_per_second_all": speeds,
        "flops_per_token": 3e9 if objective == "joint_plain" else 2e9,
        "code": "a1",
        "commit": "c1",
    } | changes


def test_a_ratio_is_taken_turn_by_turn_and_not_of_two_medians() -> None:
    found = [timed("frozen", [100.0, 10.0, 50.0]), timed("joint_plain", [50.0, 2.0, 25.0])]
    (row,) = targets.targets(found)
    assert (row["ratio"], row["ratio_lowest"], row["ratio_highest"]) == (2.0, 2.0, 5.0)
    assert (row["met"], row["turns_at_target"], row["n"]) == (False, 1, 3)


def test_compiled_methods_meet_the_plain_rival_as_it_is_and_joint_training_as_they_are() -> None:
    found = [
        timed("replay", [130.0]),
        timed("replay", [260.0], compiled=True),
        timed("joint_shallow", [100.0]),
        timed("joint_shallow", [190.0], compiled=True),
        timed("joint_plain", [100.0]),
    ]
    made = {(row["compiled"], row["rival"]): row for row in targets.targets(found)}
    assert len(made) == 4
    assert made[True, "joint_plain"]["ratio"] == pytest.approx(2.6)
    assert made[True, "joint_plain"]["met"]
    assert made[False, "joint_shallow"]["met"], "exactly the target is enough"
    assert made[True, "joint_shallow"]["ratio"] == pytest.approx(260 / 190)


def test_a_method_that_computes_layers_again_is_held_against_joint_training_that_does() -> None:
    found = [timed(name, [1.0], activation_checkpointing=way) for name in ("frozen", "joint_shallow") for way in (0, 1)]
    (kept, again) = targets.targets(found)
    assert (kept["activation_checkpointing"], again["activation_checkpointing"]) == (0, 1)


@pytest.mark.parametrize("apart", ["contest", "recipe", "micro_batch_rows"])
def test_rows_of_two_contests_or_shapes_are_no_ratio(apart: str) -> None:
    assert targets.targets([timed("frozen", [2.0]), timed("joint_plain", [1.0], **{apart: "another"})]) == []


def test_an_electra_recipe_is_held_against_electras_own_generator() -> None:
    found = [timed(name, [1.0], recipe="electra_base") for name in ("frozen", "joint", "joint_shallow")]
    assert [row["rival"] for row in targets.targets(found)] == ["joint"]


def test_rows_from_before_contests_had_names_are_left_out(tmp_path: Path) -> None:
    found = [timed("frozen", [2.0]), timed("joint_plain", [1.0])]
    for row in found:
        del row["contest"]
    assert targets.targets(found) == []
    assert "No contest had a method beside either" in "\n".join(targets.target_section(found, tmp_path))


def test_the_page_says_what_is_met_and_what_is_not(tmp_path: Path) -> None:
    found = [timed("replay", [2.6, 2.4, 2.7]), timed("joint_plain", [1.0] * 3), timed("joint_shallow", [2.1] * 3)]
    text = "\n".join(targets.target_section(targets.targets(found), tmp_path))
    assert "2.600 (2.400 to 2.700) | 1.500 | 2.5 | 2 of 3 | yes" in text
    assert "1.238 (1.143 to 1.286) | 1.000 | 1.3 | 0 of 3 | no" in text


def test_the_plain_rival_stands_in_the_tables_of_its_own_contest_and_in_no_other() -> None:
    plain = timed("joint_plain", [1.0])
    here, elsewhere = timed("frozen", [2.0]), timed("frozen", [3.0], contest="c2", threads=1)
    beside = machine_sections._beside_the_plain_rival([({}, [here]), ({}, [plain]), ({}, [elsewhere])])
    assert [members for _, members in beside] == [[here, plain], [elsewhere]]
    assert [members for _, members in machine_sections._beside_the_plain_rival([({}, [plain])])] == [[plain]]
