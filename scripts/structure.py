"""Prints how the packages hang together: modules, floors, arrows and circles.

    python scripts/structure.py [FOLDER ...]

A package's *rooms* are its sub-packages and the modules beside them. An *arrow* is an
import of one room by another, wherever in a file it stands, one for type checkers or
within a function included. A room's *floor* is the length of the longest way down from
it, so a package without circles has one direction of import: every arrow leads to a
lower floor. Only names of the package itself count.
"""

import ast
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "deft_jax": "deft_jax",
    "models": "deft_jax.models",
    "pallas_kernels": "deft_jax.pallas_kernels",
    "bench": "deft_jax.bench",
}
"""Folder of the repository -> the package that it is when installed."""


@dataclasses.dataclass(frozen=True)
class Structure:
    """The rooms of one package and the imports between them.

    Attributes:
        rooms: number of modules in each room.
        arrows: imports between rooms, as pairs of importer and imported, with the files
            that import.
    """

    rooms: dict[str, int]
    arrows: dict[tuple[str, str], list[str]]

    @property
    def top_modules(self) -> list[str]:
        """Rooms that are single modules at the top of the package."""
        return sorted(room for room in self.rooms if room.endswith(".py"))

    def circles(self) -> list[tuple[str, ...]]:
        """Return the groups of rooms that can all reach each other, sorted."""
        reach = {room: self._reachable(room) for room in self.rooms}
        groups = {
            tuple(sorted(b for b in self.rooms if b in reach[a] and a in reach[b]))
            for a in self.rooms
        }
        return sorted(group for group in groups if group)

    def floors(self) -> dict[str, int]:
        """Return the floor of every room; the rooms of a circle count as one."""
        circle_of = {room: circle for circle in self.circles() for room in circle}
        below: dict[str, set[str]] = {room: set() for room in self.rooms}
        for importer, imported in self.arrows:
            if circle_of.get(importer, importer) != circle_of.get(imported, imported):
                for room in circle_of.get(importer, (importer,)):
                    below[room].add(imported)
        floor: dict[str, int] = {}

        def floor_of(room: str) -> int:
            if room not in floor:
                floor[room] = 1 + max((floor_of(x) for x in below[room]), default=-1)
            return floor[room]

        return {room: floor_of(room) for room in self.rooms}

    def _reachable(self, room: str) -> set[str]:
        seen: set[str] = set()
        todo = [room]
        while todo:
            here = todo.pop()
            new = {b for a, b in self.arrows if a == here} - seen
            seen |= new
            todo += new
        return seen


def source_files(folder: str) -> list[Path]:
    """Return the Python files below a folder of the repository."""
    return sorted((ROOT / folder).rglob("*.py"))


def absolute_module(node: ast.ImportFrom, package: str) -> str:
    """Return the module that `from ... import` names, as seen inside `package`."""
    if not node.level:
        return node.module or ""
    parents = package.split(".")
    parents = parents[: len(parents) - node.level + 1]
    return ".".join([*parents, *filter(None, [node.module])])


def imported_names(folder: str, file: Path) -> Iterator[str]:
    """Yield the full dotted name of every module and attribute a file imports."""
    below = file.relative_to(ROOT / folder).parent.parts
    package = ".".join([PACKAGES[folder], *below])
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = absolute_module(node, package)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def structure_of(folder: str, part: str = "") -> Structure:
    """Return the structure of a package, or of one of its sub-packages.

    Args:
        folder: of the repository, a key of `PACKAGES`.
        part: path of a sub-package below it; the package itself if empty.
    """
    base = ROOT / folder / part
    prefix = ".".join([PACKAGES[folder], *filter(None, part.split("/"))]) + "."
    room_of = {file: _room(file, base) for file in source_files(folder)}
    room_of = {file: room for file, room in room_of.items() if room}
    rooms: dict[str, int] = {}
    for room in room_of.values():
        rooms[room] = rooms.get(room, 0) + 1
    arrows: dict[tuple[str, str], list[str]] = {}
    for file, room in room_of.items():
        for name in imported_names(folder, file):
            if not name.startswith(prefix):
                continue
            first = name.removeprefix(prefix).split(".")[0]
            target = first if first in rooms else f"{first}.py"
            if target in rooms and target != room:
                files = arrows.setdefault((room, target), [])
                path = file.relative_to(ROOT).as_posix()
                files += [path] if path not in files else []
    return Structure(rooms, arrows)


def _room(file: Path, base: Path) -> str:
    """Return the room of a file; empty for `__init__` itself and files outside."""
    if not file.is_relative_to(base):
        return ""
    parts = file.relative_to(base).parts
    return "" if parts == ("__init__.py",) else parts[0]


def describe(name: str, structure: Structure) -> str:
    """Return the structure of a package as text, the highest floor first."""
    floors = structure.floors()
    lines = [
        f"{name}: {sum(structure.rooms.values())} modules in {len(floors)} rooms, "
        f"{len(structure.top_modules)} at the top, {len(set(floors.values()))} floors, "
        f"{len(structure.arrows)} arrows, {len(structure.circles())} circles"
    ]
    for floor in sorted(set(floors.values()), reverse=True):
        rooms = sorted(room for room in floors if floors[room] == floor)
        lines.append(f"  {floor}: {'  '.join(rooms)}")
    for circle in structure.circles():
        lines.append(f"  circle: {' <-> '.join(circle)}")
        lines += [
            f"    {a} -> {b}: {', '.join(files)}"
            for (a, b), files in sorted(structure.arrows.items())
            if a in circle and b in circle
        ]
    return "\n".join(lines)


def main(names: list[str]) -> None:
    """Print the structure of packages, all by default, and of their sub-packages."""
    for name in names or PACKAGES:
        folder, _, part = name.partition("/")
        structure = structure_of(folder, part)
        print(describe(name, structure))
        if part:
            continue
        for room in sorted(structure.rooms):
            inner = structure_of(folder, room) if not room.endswith(".py") else None
            if inner and len(inner.rooms) > 1:
                print(describe(f"  {folder}/{room}", inner).split("\n")[0])
                for circle in inner.circles():
                    print(f"    circle: {' <-> '.join(circle)}")


if __name__ == "__main__":
    main(sys.argv[1:])
