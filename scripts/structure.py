"""Prints how the packages hang together, and what is wrong with that.

    python scripts/structure.py [FOLDER ...]

`FOLDER` is a package, like `models`, or a part of one, like `deft_jax/tree`.

A package's *rooms* are its sub-packages and the modules beside them. An *arrow* is an
import of one room by another, wherever in a file it stands, one for type checkers or
within a function included. A room's *floor* is the length of the longest way down from
it, so a package without circles has one direction of import: every arrow leads to a
lower floor. Only names of the package itself count. `ORDER` says which rooms of
`deft_jax` are meant to lie below which; tests/test_structure.py holds all of this.
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

ORDER = (
    *("errors.py", "capacity.py", "tree", "kv", "attention", "layers", "sampling"),
    *("results", "strategies", "runtime", "accounting", "engine", "cli"),
)
"""Rooms of `deft_jax`, each of which may import those before it alone."""


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

    def upward(self, order: tuple[str, ...]) -> list[str]:
        """Return the arrows that do not lead to an earlier room of an order.

        Args:
            order: rooms from the lowest to the highest; a room that is not among them
                may neither import nor be imported.
        """
        height = {room: index for index, room in enumerate(order)}
        return [
            f"{a} -> {b} in {', '.join(files)}"
            for (a, b), files in sorted(self.arrows.items())
            if not {a, b} <= height.keys() or height[a] <= height[b]
        ]

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


def hidden_imports(file: Path) -> list[int]:
    """Return the lines of a file at which a block for type checkers alone begins."""
    tree = ast.parse(file.read_text(), str(file))
    blocks = (node for node in ast.walk(tree) if isinstance(node, ast.If))
    return [x.lineno for x in blocks if "TYPE_CHECKING" in ast.unparse(x.test)]


def parts_of(folder: str) -> list[str]:
    """Return the sub-packages of a package, at any depth, as paths below it."""
    files = (ROOT / folder).rglob("*/__init__.py")
    parts = (file.parent.relative_to(ROOT / folder) for file in files)
    return sorted(part.as_posix() for part in parts if part.parts)


def structure_of(folder: str, part: str = "") -> Structure:
    """Return the structure of a package, or of one of its sub-packages.

    Args:
        folder: folder of the repository, a key of `PACKAGES`.
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


def describe(name: str, structure: Structure, order: tuple[str, ...] = ()) -> str:
    """Return the structure of a package as text, the highest floor first.

    Args:
        name: what the text calls it.
        structure: its rooms and arrows.
        order: rooms from the lowest to the highest; not looked at if empty.
    """
    floors, circles = structure.floors(), structure.circles()
    lines = [
        f"{name}: {sum(structure.rooms.values())} modules, {len(set(floors.values()))} "
        f"floors, {len(structure.arrows)} arrows, {len(circles)} circles"
    ]
    for floor in sorted(set(floors.values()), reverse=True):
        rooms = sorted(room for room in floors if floors[room] == floor)
        lines.append(f"  {floor}: {'  '.join(rooms)}")
    if order:
        lines += [f"  upward: {arrow}" for arrow in structure.upward(order)]
    return "\n".join(lines + describe_circles(structure))


def describe_circles(structure: Structure) -> list[str]:
    """Return a line for each circle, and one for each of its arrows."""
    lines = []
    for circle in structure.circles():
        lines.append(f"  circle: {' <-> '.join(circle)}")
        lines += [
            f"    {a} -> {b} in {', '.join(files)}"
            for (a, b), files in sorted(structure.arrows.items())
            if a in circle and b in circle
        ]
    return lines


def main(names: list[str]) -> None:
    """Print the structure of packages, all by default, and what is wrong in parts."""
    for name in names or PACKAGES:
        folder, _, part = name.partition("/")
        order = ORDER if name == "deft_jax" else ()
        print(describe(name, structure_of(folder, part), order))
        if part:
            continue
        for inner in parts_of(folder):
            for line in describe_circles(structure_of(folder, inner)):
                print(f"  {inner}:{line[1:]}")
        for file in source_files(folder):
            for number in hidden_imports(file):
                print(f"  hidden: {file.relative_to(ROOT)}:{number}")


if __name__ == "__main__":
    main(sys.argv[1:])
