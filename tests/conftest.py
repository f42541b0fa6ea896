"""What tests share: a tiny corpus made of the interpreter's own documentation, and a way to start runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TINY = [
    "--data.sequence_length=32",
    "--data.held_out_rows=32",
    "--encoder.num_layers=2",
    "--encoder.hidden_size=32",
    "--encoder.num_heads=2",
    "--encoder.intermediate_size=48",
    "--encoder.max_positions=64",
    "--run.batch_rows=16",
    "--run.micro_batch_rows=8",
    "--run.steps=8",
    "--run.log_every=1",
    "--run.evaluate_every=4",
    "--run.save_every=4",
    "--auxiliary_gate=false",
]


@pytest.fixture(scope="session")
def documents():
    from fast_electra import documentation

    return list(documentation.documents())[:200]


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory, documents):
    """A corpus folder of a few hundred thousand tokens with a vocabulary of 512."""
    from fast_electra import corpus

    folder = tmp_path_factory.mktemp("corpus")
    text = folder / "text.txt"
    text.write_text("\n\n".join(documents))
    corpus.build([str(text)], folder / "tiny", tokenizer=None, vocab_size=512, workers=1, progress=False)
    return folder / "tiny"


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_corpus):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_corpus / "tokenizer")


def clean_environment(**added: str) -> dict[str, str]:
    """This process's environment without the place in a process group that an engine in it may have taken."""
    place = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {name: value for name, value in os.environ.items() if name not in place} | added


def launch(*arguments: str, num_processes: int = 1, check: bool = True, timeout: int = 240):
    """`deepspeed launchers/pretrain.py ARGUMENTS` as a user starts it; returns the finished process."""
    port = 20_000 + os.getpid() % 20_000 + num_processes
    command = [
        str(Path(sys.executable).parent / "deepspeed"),
        f"--num_gpus={num_processes}",
        f"--master_port={port}",
        "launchers/pretrain.py",
        *arguments,
    ]
    environment = clean_environment(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1")
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}")
    return done


def metrics(folder: Path) -> list[dict]:
    """The rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
