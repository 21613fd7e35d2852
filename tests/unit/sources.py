"""The package's source, each module parsed once: what it imports, and what it calls."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import pyrycode_relay

PACKAGE = Path(pyrycode_relay.__file__).parent


class Import(NamedTuple):
    """One imported name; ``name`` is empty where a whole module is imported."""

    module: str
    name: str
    inside: tuple[str, ...]
    """The functions around the import, outermost first."""

    @property
    def full(self) -> str:
        return f"{self.module}.{self.name}" if self.name else self.module


def within(name: str, *packages: str) -> bool:
    """Whether a dotted name is one of ``packages`` or lies in one."""
    return any(name == each or name.startswith(each + ".") for each in packages)


@dataclass(frozen=True)
class Source:
    """A module of the package: its dotted name below the package, and its text."""

    module: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        """The syntax tree."""
        return ast.parse(self.text)

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """Every node of the tree."""
        return [*ast.walk(self.tree)]

    @cached_property
    def calls(self) -> list[ast.Call]:
        """Every call."""
        return [node for node in self.nodes if isinstance(node, ast.Call)]

    @cached_property
    def imports(self) -> list[Import]:
        """Every import, wherever it stands."""
        return [*_imports(self.tree, ())]

    @cached_property
    def siblings(self) -> frozenset[str]:
        """The modules of the package that this one imports; the package itself is ``__init__``."""
        ours = (each.full for each in self.imports if within(each.full, "pyrycode_relay"))
        return frozenset(_sibling(name.split(".")[1:]) for name in ours)

    @property
    def is_probe(self) -> bool:
        """Whether the module is the probe's, which is a program of its own."""
        return within(self.module, "probe")


def _imports(node: ast.AST, inside: tuple[str, ...]) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, "", inside)
        elif isinstance(child, ast.ImportFrom):
            module = child.module or ""
            if child.level:
                module = f"pyrycode_relay.{module}".rstrip(".")
            for alias in child.names:
                yield Import(module, alias.name, inside)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _imports(child, (*inside, child.name))
        elif isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield from _imports(child, inside)


def _sibling(parts: list[str]) -> str:
    """Return the module that an imported name below the package belongs to.

    A name that is no module of ours is its package's, or stays as it is: then it has no level.
    """
    for length in range(len(parts), 0, -1):
        module = ".".join(parts[:length])
        if module in SOURCES:
            return module
    if not parts or parts[0].startswith("__"):
        return "__init__"
    package = f"{parts[0]}.__init__"
    return package if package in SOURCES else parts[0]


SOURCES = {
    module: Source(module, path.read_text(encoding="utf-8"))
    for path in sorted(PACKAGE.rglob("*.py"))
    for module in [".".join(path.relative_to(PACKAGE).with_suffix("").parts)]
}
"""Every module of the package, by its dotted name below the package."""

MODULES = {module.replace(".", "_"): (source,) for module, source in SOURCES.items()}
"""The same as a table of cases."""
