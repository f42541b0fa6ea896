"""The masked LMs behind the committed rows of the quality study, so that rows made elsewhere and later compare.

benchmarks/results/masked_lms/SCALE/NAME-SEED holds a run's export, in bfloat16, and its summary. A study on the corpus
that they were trained on takes them as its own runs; on any other it trains its own.
"""

import shutil
from pathlib import Path

import torch
from transformers import AutoModelForMaskedLM

from fast_electra.models.auxiliary import weights_fingerprint

KEPT = Path(__file__).parent.parent / "results" / "masked_lms"


def restore(scale: str, corpus: Path, runs: Path) -> list[str]:
    """Copy the kept runs of a scale to the folder of runs, where none is there yet; gives their names.

    Nothing is copied for a corpus of another tokenizer.
    """
    tokenizer, restored = corpus / "tokenizer" / "tokenizer.json", []
    for kept in sorted((KEPT / scale).glob("*")):
        there = runs / kept.name
        theirs = kept / "export" / "tokenizer.json"
        if there.exists() or not tokenizer.is_file() or tokenizer.read_bytes() != theirs.read_bytes():
            continue
        partial = there.with_name(there.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(kept, partial)
        partial.rename(there)
        restored.append(kept.name)
    return restored


def fingerprint(export: Path, used: str, dtype: str) -> str:
    """The fingerprint of the masked LM in `export` as its file holds it, whatever a run computes in: rows in bfloat16
    and in float32 name the same model alike.

    `used` is what a run in `dtype` found; where the folder no longer holds that model, it stands.
    """
    if _loaded(export, getattr(torch, dtype)) != used:
        return used
    return _loaded(export, "auto")


def _loaded(export: Path, dtype: torch.dtype | str) -> str:
    return weights_fingerprint(AutoModelForMaskedLM.from_pretrained(export, dtype=dtype))
