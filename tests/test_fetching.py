import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, clean_environment
from huggingface_hub import constants, is_offline_mode

from fast_electra.engine import fetching, parallel

FETCH = """
import os, sys, time
from pathlib import Path
from huggingface_hub import constants
from fast_electra.engine import fetching, parallel

parallel.start()
name, cache = sys.argv[-1], Path.cwd() / "cache"
if name == "own caches":
    os.environ["PLACE_ON_MACHINE"] = "0"
    cache = cache.with_name(f"cache-{parallel.rank()}")

def say(what):
    sys.stdout.write(f"rank {parallel.rank()} {what}\\n")
    sys.stdout.flush()

def fetch():
    if cache.exists():
        return say("has it")
    if constants.HF_HUB_OFFLINE:
        say("has nothing")
        raise ValueError("not cached")
    say("fetches")
    time.sleep(2)
    if name == "refused":
        raise ValueError("refused")
    cache.touch()

try:
    fetching.in_turns(fetch)
except ValueError as error:
    say(error)
assert not constants.HF_HUB_OFFLINE
parallel.stop(0)
"""


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("one cache", ["0 fetches", "1 has it"]),
        ("own caches", ["0 fetches", "1 has nothing", "1 fetches"]),
        ("refused", ["0 fetches", "0 refused", "1 has nothing", "1 not cached"]),
    ],
)
def test_one_process_asks_the_hub_and_the_others_find_it_cached(name, lines, tmp_path):
    (tmp_path / "fetch.py").write_text(FETCH)
    command = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus=2", "--master_port=29873", "fetch.py", name]
    environment = clean_environment(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=True
    )
    said = re.findall(r"rank (\d (?:fetches|has it|has nothing|refused|not cached))", done.stdout)
    assert said[0] == "0 fetches"
    assert sorted(said) == sorted(lines), "a refusal of the first leaves none waiting"


def test_the_libraries_ask_the_cache_alone_where_they_are_told_to(monkeypatch):
    monkeypatch.setattr(parallel, "rank", lambda: 1)
    monkeypatch.setattr(parallel, "barrier", lambda: None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for place in ("0", "1"):
        monkeypatch.setenv("PLACE_ON_MACHINE", place)
        assert fetching.in_turns(is_offline_mode) is True
        assert is_offline_mode() is False
