"""The package's shape: every module has its place in a room, imports flow one way, and one edge knows of processes."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fast_electra"
_ENGINE = "broken_updates gradient_sums injection parallel sharded_weights stop_vote"
EDGE = {f"engine.{name}" for name in _ENGINE.split()} | {"checkpoints.universal", "checkpoints.checkpoint"}
EDGE_PACKAGES = ("torch.distributed", "deepspeed", "megatron.core.parallel_state")


def listed(package):
    """The names that a package's docstring lists, each with what it is for, in their order."""
    text = ast.get_docstring(ast.parse((package / "__init__.py").read_text()))
    return re.findall(r"^([a-z_]+) {2,}\S", text, flags=re.MULTILINE)


FLOW = [f"{room}.{name}" for room in listed(PACKAGE) for name in listed(PACKAGE / room)]


def modules():
    """(ROOM.NAME, path) of every module."""
    paths = [path for path in sorted(PACKAGE.rglob("*.py")) if path.stem != "__init__"]
    return [(".".join(path.relative_to(PACKAGE).with_suffix("").parts), path) for path in paths]


def imports(path):
    """Every import of the file, those of a name from a package also as PACKAGE.NAME."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_module_stands_in_the_list_of_its_room():
    assert sorted(FLOW) == [name for name, _ in modules()]
    assert {path.parent.name for path in PACKAGE.rglob("__init__.py")} == {*listed(PACKAGE), PACKAGE.name}


@pytest.mark.parametrize(("name", "path"), modules())
def test_modules_import_only_upstream(name, path):
    for module in imports(path):
        target = module.removeprefix("fast_electra.")
        if target != module and target in FLOW:
            assert FLOW.index(target) < FLOW.index(name), f"{name} imports {target}, which is downstream"


def test_rooms_are_empty_but_for_what_they_say():
    for path in PACKAGE.rglob("*/__init__.py"):
        assert len(ast.parse(path.read_text()).body) == 1, f"{path} does more than list its modules"


def test_only_the_edge_knows_of_processes():
    for name, path in modules():
        if name not in EDGE:
            for module in imports(path):
                assert not module.startswith(EDGE_PACKAGES), f"{name} imports {module}"


def test_modules_can_be_read_in_a_sitting():
    for name, path in modules():
        assert len(path.read_text().splitlines()) <= 310, f"{name} is too long; split it by stage"
