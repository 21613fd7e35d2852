"""Private names of libraries: each that is used is in the table, and each in the table exists.

A rule that reads the source is tried on offenders too.
"""

from __future__ import annotations

import ast
import dis
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module, metadata
from types import FunctionType
from typing import NamedTuple

from pyrycode_relay.internals import INTERNALS, Internal, problems
from tests.unit.bench import Cases, cases
from tests.unit.sources import MODULES, SOURCES, Source

DOCUMENTED = {"_exit", "_asdict", "_fields", "_make", "_replace"}
"""Names that begin with an underscore and are for everybody: of os, and of named tuples."""

GENERIC = {"abc", "builtins", "collections", "enum", "typing"}
"""Modules of base classes that have no private names for us."""

LISTED = {(each.user, each.name) for each in INTERNALS}

EACH = {
    f"{each.user}_{each.owner or each.module}_{each.name}".replace(".", "_"): (each,)
    for each in INTERNALS
}


class Use(NamedTuple):
    """A name that begins with an underscore, and the line that uses it."""

    line: int
    name: str


def is_private(name: object) -> bool:
    """Whether a name begins with one underscore."""
    return isinstance(name, str) and name.startswith("_") and not name.startswith("__")


def own_names(tree: ast.Module) -> set[str]:
    """Return the names that a module gives to its functions, classes and attributes."""
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                found.add(name)
            case ast.ClassDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
                found.add(name)
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                found.add(name)
    return found


def taken(source: Source) -> Iterator[Use]:
    """Yield the private names that a module takes from objects and modules of others."""
    own = own_names(source.tree) | DOCUMENTED
    for node in source.nodes:
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                pass
            case ast.Attribute(attr=name) if is_private(name) and name not in own:
                yield Use(node.lineno, name)
            case ast.ImportFrom(names=names):
                for alias in names:
                    if is_private(alias.name):
                        yield Use(node.lineno, alias.name)
            case ast.Call(
                func=ast.Name(id="getattr" | "setattr" | "hasattr" | "delattr"),
                args=[_, ast.Constant(value=name), *_],
            ) if is_private(name):
                yield Use(node.lineno, str(name))


def inherited(source: Source, classes: dict[str, type]) -> Iterator[Use]:
    """Yield the private names that a module's classes use and a base class of others has."""
    for node in source.nodes:
        if not isinstance(node, ast.ClassDef) or node.name not in classes:
            continue
        names = private_names(classes[node.name])
        for each in ast.walk(node):
            match each:
                case ast.Attribute(attr=name) | ast.FunctionDef(name=name) if name in names:
                    yield Use(each.lineno, name)
                case ast.Constant(value=str(name)) if name in names:
                    yield Use(each.lineno, name)


def private_names(owner: type) -> set[str]:
    """Return the private names of a class's bases that are not the relay's."""
    return {name for base in owner.__mro__ for name in names_of(base) if is_private(name)}


@cache
def names_of(base: type) -> set[str]:
    """Return the names that a class of a library defines, and those that its methods set."""
    if base.__module__.partition(".")[0] in GENERIC | {"pyrycode_relay"}:
        return set()
    found = set()
    for name, value in vars(base).items():
        found.add(name)
        if isinstance(value, FunctionType):
            steps = dis.get_instructions(value)
            found |= {step.argval for step in steps if step.opname == "STORE_ATTR"}
    return found


def classes_of(source: Source) -> dict[str, type]:
    """Return a module's classes, by their names."""
    name = source.module.removesuffix(".__init__")
    module = import_module("pyrycode_relay" if name == "__init__" else f"pyrycode_relay.{name}")
    return {name: each for name, each in vars(module).items() if isinstance(each, type)}


def uses(source: Source, name: str) -> bool:
    """Whether a module's code has a name, as an attribute, a definition, an import or a string."""
    for node in source.nodes:
        match node:
            case ast.Attribute(attr=found) | ast.FunctionDef(name=found) | ast.alias(name=found):
                pass
            case ast.Name(id=found) | ast.Constant(value=found):
                pass
            case _:
                continue
        if found == name:
            return True
    return False


class TableTests(Cases):
    @cases(EACH)
    def test_exists(self, internal: Internal) -> None:
        """The library that is installed still has the name."""
        self.assertEqual([*problems([internal], load=True)], [])

    @cases(EACH)
    def test_used(self, internal: Internal) -> None:
        """The module that the table names still uses the name."""
        self.assertTrue(uses(SOURCES[internal.user], internal.name))

    @cases(MODULES)
    def test_listed(self, source: Source) -> None:
        """Each private name of a library that a module uses is in the table."""
        found = {*taken(source), *inherited(source, classes_of(source))}
        missing = [each for each in sorted(found) if (source.module, each.name) not in LISTED]
        self.assertEqual(missing, [])


class SentenceTests(Cases):
    def test_what_is_missing(self) -> None:
        """The sentence names the library, its version, the class, the name and its user."""
        place = ("twisted.internet.abstract", "FileDescriptor")
        lost = Internal("Twisted", *place, "_gone", "websocket.transports")
        (sentence,) = problems([lost])
        self.assertEqual(
            sentence,
            f"Twisted {metadata.version('Twisted')} has no FileDescriptor._gone, used by "
            "pyrycode_relay.websocket.transports; install a version of Twisted that the relay "
            "supports.",
        )

    @cases(
        {
            "class": ("Gone", "_tempDataLen", "Gone._tempDataLen"),
            "function": ("", "_gone", "twisted.internet.abstract._gone"),
            "read_and_never_set": ("FileDescriptor", "bufferSizes", "FileDescriptor.bufferSizes"),
        }
    )
    def test_each_kind(self, owner: str, name: str, place: str) -> None:
        """A class that is missing is found as its name is, and so is a module's function."""
        lost = Internal("Twisted", "twisted.internet.abstract", owner, name, "tap")
        (sentence,) = problems([lost])
        self.assertIn(f" has no {place}, used by pyrycode_relay.tap", sentence)

    def test_set_on_objects(self) -> None:
        """A name that only objects have is found where a method sets it, not where one reads it."""
        place = ("Twisted", "tests.unit.test_internals", "Sample")
        kept, read = (Internal(*place, name, "tap") for name in ("_kept", "_read"))
        self.assertEqual(len([*problems([kept])]), 0)
        self.assertEqual(len([*problems([read])]), 1)

    def test_a_library_that_is_not_in_use(self) -> None:
        """A library that nobody has loaded is neither checked nor loaded for it."""
        module = "twisted.words.protocols.irc"
        unused = Internal("Twisted", module, "IRCClient", "_gone", "tap")
        self.assertNotIn(module, sys.modules)
        self.assertEqual([*problems([unused])], [])
        self.assertNotIn(module, sys.modules)


class Sample:
    """Sets one name on its objects, and reads another."""

    def __init__(self, other: Sample) -> None:
        self._kept = other._read  # type: ignore[attr-defined]


class OffenderTests(Cases):
    @cases(
        {
            "attribute": ("transport._aborting",),
            "assignment": ("response._content = b''",),
            "import": ("from twisted.internet.posixbase import _Waker",),
            "by_name": ("getattr(endpoint, '_interface', None)",),
            "elsewhere": ("class Own:\n def go(self): self._own = self._own._theirs",),
        }
    )
    def test_taken(self, text: str) -> None:
        """Each way to take a private name is found."""
        self.assertEqual(len([*taken(Source("offender", text))]), 1)

    @cases(
        {
            "own": ("class Own:\n def go(self, other): self._own = other._own",),
            "named_tuple": ("reading._asdict()",),
            "special": ("type.__new__(self.__class__)",),
        }
    )
    def test_left_alone(self, text: str) -> None:
        """A module's own names are nobody else's business."""
        self.assertEqual([*taken(Source("honest", text))], [])

    @cases(
        {
            "read": ("def go(self): return self._aborting",),
            "call": ("def go(self): super()._closeSocket(True)",),
            "override": ("def _closeWriteConnection(self): pass",),
            "set_on_objects": ("def go(self): self._tempDataLen = 0",),
            "slot": ("__slots__ = ('_tempDataLen',)",),
        }
    )
    def test_inherited(self, text: str) -> None:
        """Each way to use a base class's private name is found."""
        connection = import_module("twisted.internet.tcp").Connection
        source = Source("offender", f"class Own(Connection):\n {text}")
        self.assertEqual(len([*inherited(source, {"Own": connection})]), 1)
