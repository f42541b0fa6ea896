"""Text that is always there: the running interpreter's own documentation, a corpus that needs no network or licence.

It is the language reference that `help()` reads (`pydoc_data.topics`), the docstrings of the standard library and those
of the built-in objects. The library is parsed, never imported: importing all of it would run its side effects, and
would leave out what does not import on this platform. The price is that modules written in C are represented by the
built-ins alone.

Python 3.11 gives 798 documents, 2.3 million characters of English, in 2.8 s of one core.
"""

import ast
import builtins
import re
import sysconfig
import warnings
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path
from pydoc_data.topics import topics

FILE_NAME = "documentation.txt"

# Folders below the standard library whose docstrings are of tests, or of somebody else's packages.
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
# A paragraph whose every line starts like a sentence was wrapped by its author and becomes one line again; the lines of
# tables, lists, code and examples stay apart.
_PROSE_LINE = re.compile(r"""[A-Za-z0-9"'`(\[]""")
_BLANK_LINES = re.compile(r"\n\s*\n")
_SHORTEST_DOCUMENT = 40  # characters; anything shorter is a name rather than text


def documents() -> Iterator[str]:
    """Yield the documentation as plain text, one document a topic, module or built-in object, ordered by name.

    No passage is yielded twice (a docstring that is repeated stays where it stands first); no document holds a blank
    line.
    """
    seen: set[str] = set()
    for passages in (*_topics(), *_library(), *_builtins()):
        fresh = list(dict.fromkeys(text for text in map(_plain, passages) if text and text not in seen))
        seen.update(fresh)
        document = "\n".join(fresh)
        if len(document) >= _SHORTEST_DOCUMENT:
            yield document


def write(folder: str | Path) -> Path:
    """Write the documentation as `documentation.txt` into `folder` (made if missing), blank lines between documents."""
    path = Path(folder) / FILE_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(documents()) + "\n", encoding="utf-8")
    return path


def _topics() -> Iterator[list[str]]:
    for name in sorted(topics):
        yield [topics[name]]


def _library() -> Iterator[list[str]]:
    """The docstrings of each module of the standard library, in the order in which they stand in its source."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        if _SKIPPED_FOLDERS.isdisjoint(path.relative_to(root).parts):
            yield _docstrings(path)


def _docstrings(path: Path) -> list[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the library's own invalid escapes
            tree = ast.parse(path.read_bytes())
    except SyntaxError:  # templates and files of another Python: lib2to3 and others bring some
        return []
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, documented)]
    nodes.sort(key=lambda node: getattr(node, "lineno", 0))
    return [docstring for node in nodes if (docstring := ast.get_docstring(node))]


def _builtins() -> Iterator[list[str]]:
    """The docstrings of each built-in object, a class's followed by those of its attributes."""
    for _, thing in sorted(vars(builtins).items()):
        if getattr(thing, "__module__", None) != "builtins":  # what `site`, a shell or a test runner has put there
            continue
        attributes = [vars(thing)[key] for key in sorted(vars(thing))] if isinstance(thing, type) else []
        texts = [getattr(item, "__doc__", None) for item in (thing, *attributes)]
        yield [text for text in texts if isinstance(text, str)]


def _plain(text: str) -> str:
    """The text without blank lines, without trailing blanks, and with each wrapped paragraph on one line."""
    paragraphs = (
        [line.rstrip() for line in part.splitlines() if line.strip()] for part in _BLANK_LINES.split(cleandoc(text))
    )
    return "\n".join(_paragraph(lines) for lines in paragraphs if lines)


def _paragraph(lines: list[str]) -> str:
    separator = " " if all(map(_PROSE_LINE.match, lines)) else "\n"
    return separator.join(lines)
