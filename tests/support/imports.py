"""Read the imports of an installed package from its source, and check them against a table of floors.

Nothing is imported but the package itself. Module-level imports, late ones and those for type checkers count
alike. So do strings that name a module of the package ("package.module" or "package.module:function"), and
import statements in strings, as both are run as code in another process.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from textwrap import dedent

Floors = Sequence[Mapping[str, Sequence[str]]]
_STATEMENT = re.compile(r"^[ \t]*(import|from)[ \t]+\w", re.MULTILINE)
_STANDARD = sys.stdlib_module_names | {"__future__", "tomllib"}  # tomllib: since Python 3.11


@dataclass(frozen=True)
class Import:
    """One module names another.

    importer, imported: full dotted names. `imported` is a module of the package, or any name outside of it.
    line: in the importer's file, counted from 1.
    """

    importer: str
    imported: str
    line: int

    def __str__(self) -> str:
        return f"{self.importer} (line {self.line}) imports {self.imported}"


@dataclass(frozen=True)
class Package:
    """A package's modules (full dotted name -> file) and all of their imports."""

    name: str
    modules: Mapping[str, Path]
    imports: Sequence[Import]

    @classmethod
    def installed(cls, name: str) -> Package:
        """Read the package that `import name` finds, folders that its installation maps into it included."""
        places = [Path(place) for place in importlib.import_module(name).__path__]
        modules = {name: places[0] / "__init__.py"}
        for place in places:
            for found in pkgutil.iter_modules([str(place)]):
                path = place / found.name
                if not found.ispkg:
                    modules[f"{name}.{found.name}"] = path.with_suffix(".py")
                elif path not in places:  # a checkout's root holds the folder of the package itself
                    modules.update(_below(path, f"{name}.{found.name}"))
        return cls(name, modules, _read(name, modules))

    @classmethod
    def at(cls, folder: Path) -> Package:
        """Read the package in a folder, which is not imported."""
        modules = _below(folder, folder.name)
        return cls(folder.name, modules, _read(folder.name, modules))

    @property
    def inner(self) -> list[Import]:
        """The imports of one module of the package by another."""
        return [i for i in self.imports if i.imported in self.modules and i.imported != i.importer]

    def short(self, module: str) -> str:
        """Return a module's name without the package's; "" for the package's own `__init__`."""
        return module.removeprefix(self.name).lstrip(".")


def _below(folder: Path, name: str) -> dict[str, Path]:
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        found[".".join([name, *(parts[:-1] if parts[-1] == "__init__" else parts)])] = path
    return found


def _read(package: str, modules: Mapping[str, Path]) -> list[Import]:
    found: dict[Import, None] = {}
    for name, path in modules.items():
        base = name if path.name == "__init__.py" else name.rpartition(".")[0]
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        for imported, line in _named(tree, package, base, modules):
            found[Import(name, imported, line)] = None
    return list(found)


def _named(tree: ast.AST, package: str, base: str, modules: Mapping[str, Path]) -> Iterator[tuple[str, int]]:
    """Yield (full name, line) of all that a tree imports. base: the package that relative names start in."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = base.split(".")[: 1 - node.level or None] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{source}.{alias.name}"
                yield full if full in modules else source, node.lineno
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            for imported in _in_string(node.value, package, base, modules):
                yield imported, node.lineno
        elif isinstance(node, ast.JoinedStr) and re.match(rf"f.{package}\.[\w.]*{{", ast.unparse(node)):
            yield f"{package}.<computed>", node.lineno


def _in_string(text: str, package: str, base: str, modules: Mapping[str, Path]) -> Iterator[str]:
    named = re.fullmatch(rf"({package}(?:\.\w+)+)(:\w+)?", text)
    if named and (named[1] in modules or named[2]):
        yield named[1]
    elif _STATEMENT.search(text):
        try:
            code = ast.parse(dedent(text))
        except SyntaxError:  # a sentence, such as a docstring
            return
        yield from (imported for imported, _ in _named(code, package, base, modules))


def missing(package: Package) -> list[str]:
    """Return the imports of modules that the package has not, and those whose name is computed."""
    own = (i for i in package.imports if i.imported.split(".")[0] == package.name)
    return [str(i) for i in own if i.imported not in package.modules]


def circle(package: Package) -> list[str]:
    """Return the modules of one circle of imports, the first one again at its end; [] where there is none."""
    graph: dict[str, set[str]] = {name: set() for name in package.modules}
    for i in package.inner:
        graph[i.importer].add(i.imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


def room_of(module: str, floors: Floors) -> tuple[int, str] | None:
    """Return (floor, room) of a module's short name: the longest name in the table that it starts with."""
    found = {}
    for level, rooms in enumerate(floors):
        for room, names in rooms.items():
            for name in names:
                if module == name or (name and module.startswith(f"{name}.")):
                    found[name] = (level, room)
    return found[max(found, key=len)] if found else None


def homeless(package: Package, floors: Floors) -> list[str]:
    """Return the modules that stand in no room of the table."""
    return [name for name in package.modules if room_of(package.short(name), floors) is None]


def upward(package: Package, floors: Floors) -> list[str]:
    """Return the imports that lead neither to the module's own room nor to a lower floor."""
    found = []
    for i in package.inner:
        here, there = (room_of(package.short(name), floors) for name in (i.importer, i.imported))
        if here and there and here != there and there[0] >= here[0]:
            found.append(f"{i}: {there[1]} is not below {here[1]}")
    return found


def strangers(package: Package, allowed: Iterable[str], places: Iterable[str]) -> list[str]:
    """Return the imports of packages that are neither Python's own nor `allowed`, but those in `places`."""
    known, inside = {*_STANDARD, package.name, *allowed}, tuple(places)
    return [
        str(i)
        for i in package.imports
        if i.imported.split(".")[0] not in known and not _is_in(package.short(i.importer), inside)
    ]


def outside(package: Package, room: str, allowed: Iterable[str]) -> list[str]:
    """Return the imports by modules in `room` of packages that are neither Python's own nor `allowed`."""
    known = {*_STANDARD, package.name, *allowed}
    by_room = (i for i in package.imports if _is_in(package.short(i.importer), (room,)))
    return [str(i) for i in by_room if i.imported.split(".")[0] not in known]


def across(package: Package, room: str) -> list[str]:
    """Return the imports of one sub-folder of `room` by another."""
    found = []
    for i in package.inner:
        here, there = (package.short(name).split(".") for name in (i.importer, i.imported))
        if here[0] == there[0] == room and len(here) > 1 and len(there) > 1 and here[1] != there[1]:
            found.append(str(i))
    return found


def _is_in(module: str, places: Sequence[str]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)
