"""Result rows: one JSON object a line, each with the code, the libraries and the machine that it comes from.

A row is kept under the hash of its case and of the source files that decide its value; when either changes, the row is
made anew. Rows of two versions of the code do not compare: `one_version` refuses them, naming both.
"""

import hashlib
import json
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cases import Case
from fast_electra.runs.run_folder import environment

Row = dict[str, Any]
ROOT = Path(__file__).parent.parent


_RECIPES = tuple(
    f"fast_electra/{name}.py" for name in ("settings/config", "settings/recipes", "models/encoder", "methods/joint")
)
_SHAPES = ("benchmarks/cases.py", *_RECIPES)
_COUNTED = ("benchmarks/costs.py", "fast_electra/costs/flops.py", "fast_electra/costs/model_flops.py")
_STEP = ("benchmarks/memory/live_memory.py", "benchmarks/memory/step.py")
_MODELS = tuple(
    f"fast_electra/{name}.py"
    for name in ("batching/separation", "models/auxiliary", "models/discriminator", "methods/objectives")
)
_PATH = tuple(
    f"fast_electra/{name}.py"
    for name in (
        *("batching/*", "costs/*", "engine/*", "methods/*", "kernels/exact_sums", "models/statistic"),
        *("pretraining/choices", "pretraining/pretrain", "pretraining/setup_run"),
    )
)
_TIMED = tuple(f"benchmarks/{name}.py" for name in ("contest/*", "measure", "memory/per_gpu", "simulate"))
_REPLAYED = (
    *_MODELS,
    *_PATH,
    *("fast_electra/kernels/*.*", "fast_electra/pretraining/precompute.py", "fast_electra/replacements/*.py"),
)
# The files that decide the rows of each kind: a change to any of them makes another version.
SOURCES = {
    "engine": (
        "benchmarks/engines.py",
        *_MODELS,
        *(f"fast_electra/engine/{name}.py" for name in ("auxiliary_engine", "injection")),
    ),
    "flops": (*_SHAPES, *_COUNTED),
    "memory": (*_SHAPES, *_STEP, *_MODELS, "benchmarks/simulate.py"),
    "per_gpu": (*_SHAPES, *_STEP, *_MODELS, "benchmarks/simulate.py", "benchmarks/memory/per_gpu.py"),
    "products": ("benchmarks/products.py", *_SHAPES, *_REPLAYED, *_TIMED),
    "quality": (
        *("benchmarks/study/arm*.py", "benchmarks/judge.py", "benchmarks/quality.py"),
        *("fast_electra/evaluation/*.py", "fast_electra/kernels/cpu_attention.*"),
        *_RECIPES,
        *_MODELS,
        *_PATH,
    ),
    "replay": (*(f"benchmarks/{name}.py" for name in ("cases", "contest/*", "replay")), *_REPLAYED),
    "throughput": (*_SHAPES, *_STEP, *_REPLAYED, *_TIMED),
}


def code_version(kind: str) -> str:
    """A short hash of the source files that decide the rows of a kind.

    Raises FileNotFoundError where one of them is not there.
    """
    digest = hashlib.sha256()
    for pattern in SOURCES[kind]:
        files = sorted(ROOT.glob(pattern))
        if not files:
            raise FileNotFoundError(f"{pattern} matches no source file under {ROOT}; correct benchmarks.rows.SOURCES")
        for file in files:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def commit() -> str:
    """The commit checked out, with "+" when files differ from it; "unknown" outside a git checkout."""
    try:
        command = ["git", "describe", "--always", "--dirty=+", "--abbrev=10"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def provenance(kind: str) -> Row:
    """What every row of a kind says of its origin."""
    return {"code": code_version(kind), "commit": commit(), **environment()}


def key(kind: str, case: Case) -> str:
    """The name a row is kept under: the same as long as neither case nor code changes."""
    text = json.dumps([kind, case.fields, code_version(kind)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read(path: Path) -> list[Row]:
    """The rows of a file. Raises FileNotFoundError, or ValueError naming the line that is no row."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file of result rows; `make bench` writes them to runs/bench")
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number} is no JSON ({error}); remove that line and run again") from error
        if not isinstance(row, dict) or "kind" not in row:
            raise ValueError(f"{path}:{number} is no result row (it has no kind); remove that line and run again")
        rows.append(row)
    return rows


def write(path: Path, rows: Iterable[Row]) -> None:
    """Write rows, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
    partial.replace(path)


def keep(path: Path, made: Sequence[Row]) -> None:
    """Write rows just made into a file of others; rows of the same measurement give way.

    A row that does not say where it comes from is given its kind's origin as of now.
    """
    made = [row if "code" in row else row | provenance(row["kind"]) for row in made]
    earlier = read(path) if path.exists() else []
    taken = {_measurement(row) for row in made}
    write(path, [row for row in earlier if _measurement(row) not in taken] + made)


def _measurement(row: Row) -> tuple[Any, ...]:
    """What tells two measurements apart: all but the outcome."""
    names = ("kind", "recipe", "objective", "sequence_length", "vocab_size", "head", "micro_batch_rows", "device")
    names += ("threads", "zero_stage", "num_processes", "compiled", "dtype", "corpus", "arm", "seed", "scale", "engine")
    names += ("activation_checkpointing",)
    micro_batches = row.get("micro_batches") or 1
    return *(row.get(name) or None for name in names), micro_batches  # an older row lacks what was not there to choose


def select(rows: Iterable[Row], kind: str, **fields: Any) -> list[Row]:
    """The rows of a kind whose fields have these values."""
    return [row for row in rows if row["kind"] == kind and all(row.get(k) == v for k, v in fields.items())]


def the(rows: Iterable[Row], kind: str, **fields: Any) -> Row:
    """The one row of a kind with these values. Raises ValueError where there is none, or more than one."""
    found = select(rows, kind, **fields)
    wanted = ", ".join(f"{name}={value}" for name, value in fields.items())
    if not found:
        raise ValueError(f"no {kind} row with {wanted}: run `make bench`, or merge the file that holds it (--rows)")
    if len(found) > 1:
        raise ValueError(f"{len(found)} {kind} rows with {wanted}: remove all but one from the files merged")
    return found[0]


def one_version(rows: Iterable[Row]) -> None:
    """Raise ValueError when rows of one kind come from different versions of the code."""
    versions: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        versions.setdefault(row["kind"], {}).setdefault(row["code"], []).append(row)
    mixed = [
        f"{kind}: {len(made)} rows of code {code} (commit {made[0]['commit']})"
        for kind, by_code in sorted(versions.items())
        if len(by_code) > 1
        for code, made in by_code.items()
    ]
    if mixed:
        raise ValueError(
            "the rows come from different versions of the code and do not compare; make them again with one version "
            "(`make bench` on each machine), leave a file out, or pass --mixed_code to have the page say so:\n  "
            + "\n  ".join(mixed)
        )


def distinct(found: Iterable[Row]) -> None:
    """Raise ValueError when a measurement is there twice, which would leave open which of the two a table shows."""
    seen: set[str] = set()
    for row in found:
        name = json.dumps([_measurement(row), row["hardware"]])
        if name in seen:
            raise ValueError(
                f"two {row['kind']} rows of {row['recipe']}/{row['objective']} on the same kind of machine: name each "
                "file once, and leave the older measurement out"
            )
        seen.add(name)
