"""What tests share: a tiny corpus made of the interpreter's own documentation, and a way to start runs."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory

import forked
import pytest

from fast_electra.engine import heap

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


@pytest.fixture(autouse=True, scope="session")
def freed_memory_goes_back():
    """A process of tests trains models of many sizes, and forks: it must not grow by what each of them held."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(heap, "keep_freed", lambda: False)
        yield


def pytest_terminal_summary(terminalreporter):
    """After `make survive`: a table of what was tried and what held, also in runs/survive.md."""
    outcomes = {"passed": "held", "failed": "DID NOT HOLD", "error": "DID NOT RUN", "skipped": "skipped"}
    rows = [
        (
            report.head_line.replace("test_", "").replace("_", " "),
            dict(getattr(report, "user_properties", ())).get("tried", ""),
            held,
        )
        for outcome, held in outcomes.items()
        for report in terminalreporter.stats.get(outcome, [])
    ]
    if rows and terminalreporter.config.getoption("markexpr") == "survive":
        lines = ["| proof | what was tried | |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
        table = ROOT / "runs" / "survive.md"
        table.parent.mkdir(exist_ok=True)
        table.write_text("\n".join(lines) + "\n")
        terminalreporter.write_line("\n".join(["", *lines]))


@pytest.fixture(scope="session")
def documents():
    from fast_electra.corpora import documentation

    return list(documentation.documents())[:200]


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory, documents):
    """A corpus folder of a few hundred thousand tokens with a vocabulary of 512."""
    from fast_electra.corpora import corpus

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


def launch_command(*arguments: str, num_processes: int = 1) -> list[str]:
    """`deepspeed launchers/pretrain.py ARGUMENTS`."""
    deepspeed = str(Path(sys.executable).parent / "deepspeed")
    place = [f"--num_gpus={num_processes}", f"--master_port={own_port(num_processes)}"]
    return [deepspeed, *place, "launchers/pretrain.py", *arguments]


def own_port(num_processes: int) -> int:
    """A run's own beside that of another worker's run."""
    return 20_000 + 8 * os.getpid() % 20_000 + num_processes


def _of_a_run(**added: str) -> dict[str, str]:
    return clean_environment(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1", **added)


def launch(*arguments: str, num_processes: int = 1, check: bool = True, timeout: int = 240):
    """What comes of the processes that `deepspeed launchers/pretrain.py ARGUMENTS` starts, without that launcher.

    As under it, the first failure ends the others and is the result.
    """
    command = ["launchers/pretrain.py", *arguments]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(own_port(num_processes))}
    place |= dict.fromkeys(("WORLD_SIZE", "LOCAL_SIZE"), str(num_processes))
    with TemporaryDirectory() as folder, ExitStack() as stack:
        streams = [Path(folder, name) for name in ("stdout", "stderr")]
        processes = []
        for rank in map(str, range(num_processes)):
            environment = _of_a_run(RANK=rank, LOCAL_RANK=rank, **place)
            processes.append(forked.start(command, ROOT, environment, *streams))
            stack.callback(_end, processes[-1])
        returncode = _outcome(processes, timeout)
        stdout, stderr = (stream.read_text() for stream in streams)
    if (check and returncode) or returncode is None:
        ending = f"ended with {returncode}" if returncode else f"is not done after {timeout} s"
        raise AssertionError(f"{' '.join(command)} {ending}\n{stdout[-3000:]}\n{stderr[-6000:]}")
    return subprocess.CompletedProcess(command, returncode, stdout, stderr)


def _outcome(processes: list[BaseProcess], timeout: float) -> int | None:
    """The first failure's status, 0 when all have ended well, None when time is up."""
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        codes = [process.exitcode for process in processes]
        if failed := [code for code in codes if code]:
            return failed[0]
        if None not in codes:
            return 0
        time.sleep(0.02)
    return None


def _end(process: BaseProcess) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join()


@contextmanager
def launched(*arguments: str, num_processes: int = 1, log: Path):
    """`deepspeed launchers/pretrain.py ARGUMENTS`, still running; `log` takes its output."""
    command = launch_command(*arguments, num_processes=num_processes)
    with log.open("a") as output, start(command, stdout=output, stderr=output) as process:
        yield process


@contextmanager
def start(command: list[str], **streams):
    """The command, running in a process group of its own, of which nothing is left on leaving."""
    process = subprocess.Popen(command, cwd=ROOT, env=_of_a_run(), text=True, start_new_session=True, **streams)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(condition, process, timeout: float = 240):
    """Return what `condition()` gives as soon as that is true; fails when the process ends or time is up."""
    until = time.monotonic() + timeout
    while not (found := condition()):
        assert process.poll() is None, f"ended with {process.returncode} before that"
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.001)
    return found


def metrics(folder: Path) -> list[dict]:
    """The rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 16 MiB, mounted for the test."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
