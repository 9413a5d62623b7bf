"""Who may import whom; and what a worker, or a mere import of the package, loads."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import primitive_jobs
from primitive_jobs import JobPool

PACKAGE = Path(primitive_jobs.__file__).parent
VOCABULARY = {"errors", "logs", "options", "snapshots", "status"}
ADAPTERS = {"joblib", "multiprocessing", "qiskit"}
PROGRAMS = {"__main__", "demo", "cluster.demo"}
# Which rooms the modules of a room may import, beside their own. Modules that lie in the package
# itself are the vocabulary, the adapters, the programs, or what users hold.
ARROWS = {
    "vocabulary": set[str](),
    "_common": {"vocabulary"},
    "_wire": {"_common", "vocabulary"},
    "_worker": {"_common", "_wire"},
    "inside": {"_common", "_wire", "vocabulary"},
    "insight": {"_common", "_wire", "vocabulary"},
    "monitor": {"_common", "vocabulary"},
    "viewer": {"_common", "monitor"},
    "_procs": {"_common", "_wire", "insight", "vocabulary"},
    "_local": {"_common", "_engine", "_procs", "_wire", "insight", "vocabulary"},
    "_engine": {"_common", "_wire", "insight", "vocabulary"},
    "held": {
        "_bars",
        "_common",
        "_engine",
        "_local",
        "_procs",
        "_wire",
        "insight",
        "monitor",
        "vocabulary",
    },
    "_bars": {"_common", "_engine", "held", "insight", "vocabulary"},
    "adapters": {"_common", "_engine", "_procs", "_wire", "held", "insight", "vocabulary"},
    "cluster": {"_common", "_engine", "_local", "_procs", "_wire", "held", "insight", "vocabulary"},
    "store": {"_common", "_engine", "_wire", "held", "insight", "vocabulary"},
    "programs": {"held", "cluster", "insight", "store", "viewer"},
}
# Imports inside of functions and for type checkers count; those of the package itself do not, which
# knows the modules of the public names: a job gets the default pool there.
# Private names of the standard library and of others, by whose they are.
FOREIGN = {
    "asyncio": {"_get_running_loop"},
    "atexit": {"_run_exitfuncs"},
    "collections": {"_asdict"},
    "cloudpickle": {
        "_class_reduce",
        "_class_setstate",
        "_dynamic_class_reduce",
        "_find_imported_submodules",
        "_function_getstate",
        "_function_setstate",
        "_get_or_create_tracker_id",
        "_is_registered_pickle_by_value",
        "_lookup_class_or_track",
        "_lookup_module_and_qualname",
        "_make_skeleton_class",
        "_module_reduce",
        "_should_pickle_by_reference",
    },
    "ctypes": {"_SimpleCData"},
    "locks": {"_at_fork_reinit", "_is_owned", "_semlock"},
    "loky": {"_python_exe"},
    "multiprocessing": {
        "_ParentProcess",
        "_args_from_interpreter_flags",
        "_check_not_importing_main",
        "_children",
        "_config",
        "_dispatch_table",
        "_extra_reducers",
        "_fd",
        "_handle",
        "_lock",
        "_log_to_stderr",
        "_logger",
        "_parent_name",
        "_parent_process",
        "_pid",
        "_popen",
        "_resource_tracker",
    },
    "os": {"_data", "_exit"},
    "numpy": {"_seed_seq"},
    "pickle": {"_Unpickler"},
    "sys": {"_getframe"},
    "threading": {"_register_atexit", "_shutdown"},
    "torch": {"_untyped_storage"},
}


def room_of(module: str) -> str:
    if module in PROGRAMS:
        return "programs"
    room, _, name = module.rpartition(".")
    if room:
        return "adapters" if room in ADAPTERS else room
    if name in VOCABULARY:
        return "vocabulary"
    return "adapters" if name in ADAPTERS else "held"


@functools.cache
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


@functools.cache
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
    assert not {module: reach[module] for module in arrows if module in reach[module]}


def test_a_fleet_knows_the_engine_by_its_protocol_and_events() -> None:
    for module, imported in graph().items():
        if room_of(module) == "_local":
            known = {other for other in imported if room_of(other) == "_engine"}
            assert known <= {"_engine.events", "_engine.fleet", "_engine.poller"}, module


def names_defined_by(tree: ast.Module) -> set[str]:
    """What a module's functions, classes and assignments give names to."""
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                names.add(name)
            case ast.ClassDef(name=name) | ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                names.add(name)
    return names


def private_names_used_by(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Lines, and the underscore attributes there that are taken of what is not `self`."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or not node.attr.startswith("_"):
            continue
        owner = node.value
        own = isinstance(owner, ast.Name) and owner.id in ("self", "cls")
        base = isinstance(owner, ast.Call) and ast.unparse(owner) == "super()"
        if not own and not base and not node.attr.endswith("__"):
            yield node.lineno, node.attr


def private_names_imported_by(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The same of what is imported from modules of the package; modules may be private."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.level and node.module):
            yield from ((node.lineno, a.name) for a in node.names if a.name.startswith("_"))


def test_no_module_uses_private_names_of_another() -> None:
    foreign = set().union(*FOREIGN.values())
    used: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        own = names_defined_by(tree)
        for line, name in private_names_used_by(tree):
            assert name in own | foreign, f"{module}, line {line}: {name} is another module's"
            used.add(name)
        assert not [*private_names_imported_by(tree)], module
    assert foreign <= used, "what nobody uses is no exception"


def test_a_private_name_of_another_module_is_seen() -> None:
    code = """
class Mine:
    def __init__(self):
        self._mine = super()._base()

    def use(self, job, other):
        other._mine.__class__
        return job._record, self._gone
"""
    tree = ast.parse(code)
    used = [name for _, name in private_names_used_by(tree)]
    assert sorted(used) == ["_mine", "_record"]
    assert names_defined_by(tree) & {*used} == {"_mine"}
    tree = ast.parse("from . import _room\nfrom .job import PrimitiveJob, _rebuild")
    assert [*private_names_imported_by(tree)] == [(2, "_rebuild")]


def test_the_scheduler_is_pure() -> None:
    names = "admission delays held job_table lines pauses queue reservations roster slots staffing"
    parts = {f"_engine.{name}" for name in [*names.split(), "wide", "worker_events"]}
    allowed = {"_engine.events", "_wire.evidence", "_wire.messages", "_wire.notes", "options"}
    allowed |= parts
    arrows = graph()
    for module in {"_engine.scheduler"} | parts:
        assert arrows[module] <= allowed, module
    assert not arrows["_engine.pauses"]
    assert arrows["_engine.queue"] == {"options"}


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
        "facts",
        "failures",
        "import_hook",
        "leftovers",
        "libc",
        "messages",
        "nesting",
        "notes",
        "parcel",
        "pickling",
        "present",
    ]
    parts = {"_common", "_common.imported", "_common.naming", "_wire", "_worker"}
    parts |= {f"_wire.{name}" for name in shared} | {
        "_worker.imports",
        "_worker.loop",
        "_worker.meter",
        "_worker.orphans",
        "_worker.stacks",
    }
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


def test_what_forks_do_has_an_order() -> None:
    """That of imports would not do: see `_common.forks`."""
    marker = "after_in_child="
    calls = {name for name, path in modules().items() if marker in path.read_text("utf-8")}
    assert calls == {"_common.forks", "_worker.loop"}, "use in_forks; a worker is no pool's program"
