"""An arm as programs: the run that pre-trains it by the ordinary launcher, and what makes its scores."""

import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.study import arms
from benchmarks.study.arms import Arm, Scale

GLUE_TASKS, GLUE_ROWS = ("CoLA", "SST-2", "MRPC", "STS-B", "RTE"), 2_000


@dataclass(frozen=True)
class Study:
    """Where a study reads and writes."""

    scale_name: str
    corpus: str
    blimp: str
    folder: Path
    rows: Path
    glue: str = ""
    deepspeed: str = "ds_configs/zero1.json"

    @property
    def scale(self) -> Scale:
        """Its size."""
        return arms.SCALES[self.scale_name]

    def run(self, name: str, seed: int) -> Path:
        """The run folder of an arm and seed."""
        return self.folder / self.scale_name / f"{name}-{seed}"

    def fine_tunes(self, arm: Arm) -> bool:
        """Whether the arm is to be fine-tuned."""
        return bool(self.glue) and arm.group in ("main", "control")

    def judges_twice(self, arm: Arm) -> bool:
        """Whether the arm is for the second judge too, and that has been trained."""
        asked = arm.group in ("main", "control", "long") and arm.objective != "mlm"
        return asked and self.ended(*arms.SECOND_JUDGE)

    def masked_lm(self, name: str) -> Path:
        """The run folder of a masked LM that arms sample from or begin with."""
        return self.run(name, arms.AUXILIARY_SEED)

    def ended(self, name: str, seed: int) -> bool:
        """Whether the run of an arm and seed has."""
        return (self.run(name, seed) / "summary.json").exists()


def settings(study: Study, arm: Arm, seed: int) -> list[str]:
    """What tells the arm's run, as options of launchers/pretrain.py, its folder left out."""
    chosen: dict[str, object] = {**arms.overrides(arm, seed, study.scale), "corpus": study.corpus}
    if arm.objective in ("frozen", "two_stage"):
        chosen["auxiliary"] = study.masked_lm(arm.auxiliary) / "export"
    if arm.begins:
        chosen["initial_weights"] = study.masked_lm(arm.begins) / "export"
    if arm.objective == "replay":
        chosen["replacements"] = study.run("paths", seed)
    return [f"--{name}={value}" for name, value in chosen.items()]


def commands(study: Study, arm: Arm, seed: int) -> list[list[str]]:
    """The programs that make an arm: replacement paths where it replays them, the run, its scores."""
    here, run, judge = Path(sys.executable).parent, study.run(arm.name, seed), study.run(*arms.JUDGE)
    start = [str(here / "deepspeed"), "--num_gpus=1", f"--master_port={_free_port()}"]
    # The recipe alone would begin with its auxiliary model's weights; what an arm says comes later and counts. Adam's
    # epsilon is that of the first rows.
    chosen = ["--initial_weights=", "--optimizer.epsilon=1e-6", *settings(study, arm, seed)]
    made = []
    if arm.objective == "replay":
        own = ("--replacements=", "--objective=")
        same = [each for each in chosen if not each.startswith(own)]
        paths = [f"--auxiliary={study.masked_lm(arm.auxiliary) / 'export'}", f"--output={study.run('paths', seed)}"]
        made.append([*start, "launchers/precompute_replacements.py", "--t_max=2", *paths, *same])
    tracked = [f"--run.blimp={study.blimp}"] if study.blimp and arm.objective != "mlm" else []
    launch = [*start, "launchers/pretrain.py", f"--deepspeed={study.deepspeed}", f"--output={run}"]
    made.append([*launch, *chosen, *tracked])
    pairs = [f"--blimp={study.blimp}", f"--pairs={study.scale.blimp_pairs}"] if arm.group != "auxiliary" else []
    sampled = [f"--auxiliary={judge / 'export'}"] if arm.objective != "mlm" else []
    if study.judges_twice(arm):
        sampled.append(f"--second={study.run(*arms.SECOND_JUDGE) / 'export'}")
    made.append([sys.executable, "-m", "benchmarks.judge", str(run), *sampled, *pairs])
    if study.fine_tunes(arm):
        tuned = [f"--model={run / 'export'}", f"--tasks={','.join(GLUE_TASKS)}", f"--data={study.glue}"]
        more = ["--seeds=1", f"--output={run / 'glue'}", f"--max_train_rows={GLUE_ROWS}"]
        made.append([sys.executable, "launchers/finetune.py", *tuned, *more])
    return made


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def requirements(arm: Arm) -> list[tuple[str, int]]:
    """The masked LMs, each a name and a seed, that the arm is judged and made with."""
    needed = [arms.JUDGE] if arm.objective != "mlm" else []
    return needed + [(name, arms.AUXILIARY_SEED) for name in sorted(arms.masked_lms(arm))]


def ready(study: Study, arm: Arm) -> bool:
    """Whether what the arm is made and judged with has ended."""
    return all(study.ended(name, seed) for name, seed in requirements(arm))
