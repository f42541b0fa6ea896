"""FLOPs of every case and what follows from them: savings beside the paper's claims, and total cost.

All of it is arithmetic on `fast_electra.costs.flops.training_step`, which torch's own counter confirms to the last
digit.

With r = auxiliary / main FLOPs of the rival (forward and backward of each), a rival with the method's own auxiliary
model is saved 2r / (3 (1 + r)) of its FLOPs online (frozen: the forward pass stays) and r / (1 + r) offline (replay).
The paper's ranges are therefore ranges of r, and where a saving lies outside, the row says which r it would take.

Total cost counts the auxiliary model's own training, a masked-LM run of a share k of the main run's updates. One
auxiliary model serves any number n of main runs.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import product

from benchmarks import cases, rows
from benchmarks.cases import METHODS, Case
from benchmarks.rows import Row
from fast_electra.costs import flops

CLAIMS = {  # Dong et al., Fast-ELECTRA, ICLR 2024
    ("flops", "frozen"): (0.20, 0.30),
    ("flops", "replay"): (0.30, 0.40),
    ("memory", "frozen"): (0.20, 0.25),
}
NUM_RUNS = (1, 2, 4, 8, 16)

FLOPS_FORMULA = (
    "matrix products, multiply and add apart, backward = 2 x forward, no recomputation, attention not halved: "
    "6 N_enc + 12 h sum(s_eff) + 6 f (h^2 + h V) a token, f the share of positions with vocabulary logits; a trained "
    "generator adds the same terms, a frozen auxiliary model 2/6 of them, replacement paths none"
)
SAVING_FORMULA = "1 - FLOPs(method) / FLOPs(rival), a token; needed r from 2r / (3 (1 + r)) online, r / (1 + r) offline"
TOTAL_FORMULA = (
    "n runs of U updates: joint n J; frozen n F + k M; replay n R + A + k M, with J, F, R FLOPs an update of the "
    "objectives, M of the auxiliary model's masked-LM training, A of its forward pass (paths stored once for all); "
    "break-even k where the cost equals n J"
)


def count(case: Case) -> Row:
    """FLOPs a token of one case, by model, pass and part."""
    settings = cases.config(case)
    main, generator = cases.shapes(case)
    num_masked = settings.data.num_masked if case.head == "masked" else case.sequence_length
    counted = flops.training_step(
        settings.objective,
        main,
        generator,
        batch_rows=settings.run.micro_batch_rows,
        sequence_length=case.sequence_length,
        num_masked=num_masked,
    )
    parts = [
        {"model": model, "pass": which, "part": part, "flops_per_token": value / counted.tokens}
        for model, which, part, value in counted.rows()
    ]
    return {
        "kind": "flops",
        **case.fields,
        "flops_per_token": counted.per_token,
        "discriminator_flops_per_token": counted.discriminator.total / counted.tokens,
        "auxiliary_flops_per_token": counted.auxiliary.total / counted.tokens,
        "parts": parts,
        "n": 1,
        "formula": FLOPS_FORMULA,
    }


def count_all(wanted: Iterable[Case]) -> list[Row]:
    """FLOPs rows of all these cases; they take milliseconds and are always made anew."""
    origin = rows.provenance("flops")
    return [count(case) | origin for case in wanted]


def _setting(row: Row) -> Row:
    return {name: row[name] for name in ("recipe", "sequence_length", "vocab_size", "head")}


def settings_of(counted: Sequence[Row]) -> list[Row]:
    """The (recipe, length, vocabulary, head) that the rows cover, each once, in their order."""
    found: list[Row] = []
    for row in counted:
        if _setting(row) not in found:
            found.append(_setting(row))
    return found


def _against_rivals(counted: Sequence[Row]) -> Iterator[tuple[Row, str, str]]:
    """Each (setting, method, rival) that the rows allow a comparison of."""
    for setting in settings_of(counted):
        for method, rival in product(METHODS, cases.rivals(setting["recipe"])):
            yield setting, method, rival


def savings(counted: Sequence[Row]) -> list[Row]:
    """For each setting, method and rival: the share of FLOPs saved, the paper's range, and the r it takes."""
    found = []
    for setting, method, rival in _against_rivals(counted):
        ours, theirs = (rows.the(counted, "flops", objective=name, **setting) for name in (method, rival))
        low, high = CLAIMS["flops", method]
        ratio = theirs["auxiliary_flops_per_token"] / theirs["discriminator_flops_per_token"]
        found.append(
            {
                "kind": "saving",
                **setting,
                "method": method,
                "rival": rival,
                "saving": 1 - ours["flops_per_token"] / theirs["flops_per_token"],
                "auxiliary_to_main": ratio,
                "claim": [low, high],
                "saving_with_rivals_generator": _saving(method, ratio),
                "needed_auxiliary_to_main": [_needed_ratio(method, share) for share in (low, high)],
                "lm_head_share_of_auxiliary": _lm_head_share(theirs),
                "n": 1,
                "formula": SAVING_FORMULA,
                "code": ours["code"],
                "commit": ours["commit"],
            }
        )
    return found


def _saving(method: str, ratio: float) -> float:
    """What the method saves of a rival whose generator it takes over, at r = auxiliary / main."""
    return 2 * ratio / (3 * (1 + ratio)) if method == "frozen" else ratio / (1 + ratio)


def _needed_ratio(method: str, saving: float) -> float:
    """The r = auxiliary / main at which the method saves this share of a rival with the same auxiliary model."""
    return saving / (2 / 3 - saving) if method == "frozen" else saving / (1 - saving)


def _lm_head_share(row: Row) -> float:
    head = sum(p["flops_per_token"] for p in row["parts"] if (p["model"], p["part"]) == ("auxiliary", "lm_head"))
    return head / row["auxiliary_flops_per_token"]


def total_costs(counted: Sequence[Row]) -> list[Row]:
    """For each setting and rival: what n runs cost, the auxiliary model's own training counted, and the break-even."""
    found = []
    for setting, rival in ((s, r) for s, m, r in _against_rivals(counted) if m == METHODS[0]):
        by_name = {name: rows.the(counted, "flops", objective=name, **setting) for name in (*METHODS, rival)}
        joint, frozen, replay = (by_name[name]["flops_per_token"] for name in (rival, *METHODS))
        forward = by_name["frozen"]["auxiliary_flops_per_token"]
        training = 3 * forward  # masked-LM training of the same model on the same rows: forward and backward
        recipe = cases.config(Case(setting["recipe"], "frozen"))
        share = recipe.auxiliary_model.steps / recipe.run.steps
        runs = [
            {
                "num_runs": n,
                "frozen_to_rival": (n * frozen + share * training) / (n * joint),
                "replay_to_rival": (n * replay + forward + share * training) / (n * joint),
                "break_even_k_frozen": n * (joint - frozen) / training,
                "break_even_k_replay": (n * (joint - replay) - forward) / training,
            }
            for n in NUM_RUNS
        ]
        found.append(
            {
                "kind": "total_cost",
                **setting,
                "rival": rival,
                "auxiliary_share_k": share,
                "auxiliary_training_flops_per_token": training,
                "runs": runs,
                "n": 1,
                "formula": TOTAL_FORMULA,
                "code": by_name["frozen"]["code"],
                "commit": by_name["frozen"]["commit"],
            }
        )
    return found
