"""Who may import whom; and what a worker, or a mere import of the package, loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import primitive_jobs
from primitive_jobs import JobPool

PACKAGE = Path(primitive_jobs.__file__).parent
VOCABULARY = {"errors", "logs", "options", "status"}
ADAPTERS = {"joblib", "qiskit"}
# Which rooms the modules of a room may import, beside their own. Modules that lie in the package
# itself are the vocabulary, the adapters, the programs, or what users hold.
ARROWS = {
    "vocabulary": set[str](),
    "_common": {"vocabulary"},
    "_wire": {"_common", "vocabulary"},
    "_worker": {"_common", "_wire"},
    "_procs": {"_common", "_wire", "vocabulary"},
    "_local": {"_common", "_engine", "_procs", "_wire", "vocabulary"},
    "_engine": {"_common", "_local", "_procs", "_wire", "vocabulary"},
    "held": {"_common", "_engine", "_procs", "_wire", "vocabulary"},
    "adapters": {"_common", "_engine", "_procs", "_wire", "held", "vocabulary"},
    "programs": {"held"},
}
# Imports inside of functions and for type checkers count. These are inside of functions: a job
# finds the default pool by itself, and a pool's `map` is made of jobs; what cannot be pickled is
# looked at by a module that pickles.
CIRCLES = [
    {"base_pool", "job", "mapping", "pool"},
    {"_wire.culprit", "_wire.pickling"},
]


def room_of(module: str) -> str:
    room, _, name = module.rpartition(".")
    if room:
        return room
    if name in VOCABULARY:
        return "vocabulary"
    if name in ADAPTERS:
        return "adapters"
    return "programs" if name in ("demo", "__main__") else "held"


def modules() -> dict[str, Path]:
    """The files of the package, by what follows the package's own name."""
    paths = (path for path in PACKAGE.rglob("*.py") if path.stem != "__init__")
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in paths}


def imports_of(module: str, path: Path) -> Iterator[str]:
    """The modules of the package that one imports, anywhere in it."""
    known = modules()
    own = module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            names = [parts[1:] for parts in names if parts[0] == "primitive_jobs"]
        elif isinstance(node, ast.ImportFrom):
            parts = (node.module or "").split(".") if node.module else []
            if not node.level and parts[:1] != ["primitive_jobs"]:
                continue
            base = own[: len(own) + 1 - node.level] if node.level else []
            base = base + (parts if node.level else parts[1:])
            names = [base, *([*base, alias.name] for alias in node.names)]
        else:
            continue
        yield from (".".join(parts) for parts in names if ".".join(parts) in known)


def graph() -> dict[str, set[str]]:
    return {module: set(imports_of(module, path)) for module, path in modules().items()}


def test_every_arrow_between_rooms_is_in_the_table() -> None:
    for module, imported in graph().items():
        for other in imported:
            room, target = room_of(module), room_of(other)
            assert room == target or target in ARROWS[room], f"{module} must not import {other}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    arrows = graph()

    def reached(module: str) -> set[str]:
        found: set[str] = set()
        rest = [module]
        while rest:
            for other in arrows[rest.pop()]:
                if other not in found:
                    found.add(other)
                    rest.append(other)
        return found

    reach = {module: reached(module) for module in arrows}
    circles = {
        frozenset(other for other in reach[module] if module in reach[other])
        for module in arrows
        if module in reach[module]
    }
    assert circles == set(map(frozenset, CIRCLES))


def test_the_scheduler_is_pure() -> None:
    parts = {f"_engine.{part}" for part in ("job_table", "pauses", "queue", "roster", "slots")}
    allowed = {"_engine.events", "_wire.evidence", "_wire.messages", "options"} | parts
    arrows = graph()
    for module in {"_engine.scheduler"} | parts:
        assert arrows[module] <= allowed, module
    assert not arrows["_engine.pauses"]
    assert not arrows["_engine.queue"]


def test_the_guard_imports_nothing_of_the_package() -> None:
    """It is run as a script, by an interpreter that may not find the package."""
    assert not graph()["_procs.guard"]


def test_a_room_has_a_map() -> None:
    for room in {path.parent for path in modules().values()} - {PACKAGE}:
        told = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8")))
        assert told is not None
        named = {line.split(" ")[0] for line in told.splitlines() if "  " in line}
        assert named - {"="} >= {path.stem for path in room.glob("*.py")} - {"__init__"}, room


def test_a_worker_loads_little() -> None:
    with JobPool(1) as pool:
        loaded = pool.submit(eval, "sorted(__import__('sys').modules)").result(30)
    ours = {name for name in loaded if name.split(".")[0] == "primitive_jobs"}
    shared = [
        "channel",
        "import_hook",
        "leftovers",
        "libc",
        "messages",
        "nesting",
        "notes",
        "pickling",
    ]
    parts = {"_common", "_common.imported", "_common.naming", "_wire", "_worker"}
    parts |= {f"_wire.{name}" for name in shared} | {"_worker.loop", "_worker.orphans"}
    assert ours == {"primitive_jobs"} | {f"primitive_jobs.{part}" for part in parts}
    # Each costs some milliseconds at every start of a worker.
    dear = {"loky", "multiprocessing", "threading", "typing", "re", "pickle", "socket"}
    dear |= {"numpy", "asyncio", "dataclasses", "sysconfig"}
    if sys.version_info >= (3, 13):  # before, it maps the worker's notes
        dear.add("ctypes")
    assert not dear & {*loaded}


def test_an_import_of_the_package_loads_little() -> None:
    code = (
        "import primitive_jobs, sys;"
        "print(*{'loky', 'psutil', 'asyncio', 'cloudpickle', 'joblib', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.strip() == ""
