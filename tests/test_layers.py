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
LAYERS = [
    "errors",
    "lock_free",
    "imported",
    "advice",
    "status",
    "options",
    "hints",
    "map_results",
    "signatures",
    "thread_variables",
    "logs",
    "callbacks",
    "markup",
    "reloads",
    "threads",
    "wire",
    "fact",
    "evidence",
    "notes",
    "nesting",
    "import_hook",
    "bell",
    "messages",
    "randomness",
    "by_value",
    "naming",
    "serialize",
    "culprit",
    "forking",
    "layers",
    "leftovers",
    "chunks",
    "channel",
    "kept_globals",
    "initializer",
    "sources",
    "shared",
    "unseen",
    "lifetime",
    "tracker",
    "record",
    "verdicts",
    "pauses",
    "scheduler",
    "memory",
    "guard",
    "interpreter",
    "guardian",
    "orphans",
    "libc",
    "worker",
    "surroundings",
    "former",
    "entry",
    "launch",
    "killing",
    "process",
    "reaper",
    "spawner",
    "memory_watch",
    "worker_log",
    "fence",
    "dispatcher",
    "awaiting",
    "circles",
    "base_job",
    "job",
    "rows",
    "batches",
    "mapping",
    "base_pool",
    "pool",
    "waiting",
    "groups",
    "pace",
    "progress",
    "executor",
    "joblib",
    "qiskit",
    "demo",
    "__main__",
]
# A job finds the default pool by itself; nothing is imported before somebody submits to it. What
# cannot be pickled is looked at by a module that pickles.
ALLOWED_UPWARD = {("job", "pool"), ("serialize", "culprit")}
PURE = {
    "base_job",
    "errors",
    "lock_free",
    "imported",
    "advice",
    "status",
    "options",
    "hints",
    "map_results",
    "signatures",
    "thread_variables",
    "logs",
    "markup",
    "reloads",
    "threads",
    "wire",
    "by_value",
    "naming",
    "pauses",
    "memory",
    "guard",
    "orphans",
    "leftovers",
    "libc",
}


def imports_of(module: str) -> Iterator[str]:
    """The modules of the package that one imports, anywhere in it."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            yield from [node.module] if node.module else [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "primitive_jobs":
            yield from ["__init__"]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("primitive_jobs."):
            yield str(node.module).split(".")[1]
        elif isinstance(node, ast.Import):
            for name in node.names:
                if name.name.startswith("primitive_jobs."):
                    yield name.name.split(".")[1]


def test_every_module_has_its_layer() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"} == set(LAYERS)


def test_no_module_imports_a_higher_one() -> None:
    for place, module in enumerate(LAYERS):
        for other in imports_of(module):
            if other == "__init__":
                assert module in ("demo", "__main__", "entry"), (
                    f"{module} imports the package itself"
                )
            elif (module, other) not in ALLOWED_UPWARD:
                assert other in LAYERS[:place], f"{module} must not import {other}"


def test_the_lowest_are_pure() -> None:
    for module in PURE:
        assert not list(imports_of(module)), f"{module} imports something of the package"
    assert set(imports_of("interpreter")) == {"imported"}
    assert set(imports_of("scheduler")) == {"messages", "pauses", "wire"}


def test_a_worker_loads_little() -> None:
    with JobPool(1) as pool:
        loaded = pool.submit(eval, "sorted(__import__('sys').modules)").result(30)
    ours = {name for name in loaded if name.split(".")[0] == "primitive_jobs"}
    parts = {"wire", "serialize", "channel", "leftovers", "libc", "naming", "orphans", "worker"}
    parts |= {"imported", "import_hook", "nesting", "notes"}
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
