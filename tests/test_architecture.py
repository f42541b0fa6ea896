"""The shape of package and benchmarks: every module has its place, imports flow one way, one edge knows processes."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE, BENCHMARKS = ROOT / "fast_electra", ROOT / "benchmarks"
_ENGINE = "broken_updates gradient_sums injection parallel sharded_weights stop_vote"
EDGE = {f"fast_electra.engine.{name}" for name in _ENGINE.split()}
EDGE |= {"fast_electra.checkpoints.universal", "fast_electra.checkpoints.checkpoint"}
EDGE_PACKAGES = ("torch.distributed", "deepspeed", "megatron.core.parallel_state")


def flow(package):
    """The modules that a package's docstring lists, each with what it is for, in their order; rooms with their own."""
    text = ast.get_docstring(ast.parse((package / "__init__.py").read_text()))
    for name in re.findall(r"^([a-z_]+) {2,}\S", text, flags=re.MULTILINE):
        yield from flow(package / name) if (package / name).is_dir() else [package / f"{name}.py"]


def dotted(path):
    """A module's name: what a file of it is imported as."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


FLOW = {package: [dotted(path) for path in flow(package)] for package in (PACKAGE, BENCHMARKS)}


def modules(package):
    """Every file of the package that holds code."""
    return [path for path in sorted(package.rglob("*.py")) if path.stem != "__init__"]


def imports(path):
    """Every import of the file, those of a name from a package also as PACKAGE.NAME."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", FLOW, ids=dotted)
def test_every_module_stands_in_the_list_of_its_room(package):
    assert sorted(FLOW[package]) == sorted(dotted(path) for path in modules(package))


@pytest.mark.parametrize("path", [path for package in FLOW for path in modules(package)], ids=dotted)
def test_modules_import_only_upstream(path):
    order = FLOW[ROOT / path.relative_to(ROOT).parts[0]]
    for module in imports(path):
        if module in order:
            assert order.index(module) < order.index(dotted(path)), f"{dotted(path)} imports {module}, downstream"


def test_rooms_are_empty_but_for_what_they_say():
    for path in [*PACKAGE.rglob("*/__init__.py"), *BENCHMARKS.rglob("__init__.py")]:
        assert len(ast.parse(path.read_text()).body) == 1, f"{path} does more than list its modules"


def test_only_the_edge_knows_of_processes():
    for path in modules(PACKAGE):
        if dotted(path) not in EDGE:
            for module in imports(path):
                assert not module.startswith(EDGE_PACKAGES), f"{dotted(path)} imports {module}"


def test_modules_can_be_read_in_a_sitting():
    for path in modules(PACKAGE):
        assert len(path.read_text().splitlines()) <= 310, f"{dotted(path)} is too long; split it by stage"
