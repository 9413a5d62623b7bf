"""The suites that any `BasePool` has to pass take their pools from one place."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import PATIENCE, double, hold, until
from makers import DEFAULT_KIND, Makers
from other_pool import OtherPool

from primitive_jobs import JobExecutor, JobPool, PoolClosedError

FOLDER = Path(__file__).parent
SUITES = [
    "test_asyncio",
    "test_cancel",
    "test_checkpoint",
    "test_executor",
    "test_executor_stop",
    "test_groups",
    "test_joblib_arrays",
    "test_limits",
    "test_map",
    "test_map_first",
    "test_map_layers",
    "test_map_semantics",
    "test_pool",
    "test_needs",
    "test_report",
    "test_retries",
    "test_shared",
    "test_status",
    "test_store",
    "test_timeline",
    "test_usage",
]
# What a test has to be `local` for: what no `BasePool` has, and what is told of processes here.
NAMES = {"default_pool", "expect", "gone", "kills_that_need", "maps", "probe", "process", "run"}
ATTRIBUTES = {"_engine", "is_gone", "pid_exists", "resize", "restart_workers"}


def not_local(suite: str) -> Iterator[ast.FunctionDef]:
    """Tests without the marker, and fixtures."""
    for node in ast.parse((FOLDER / f"{suite}.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            marks = {ast.unparse(each) for each in node.decorator_list}
            fixture = any(mark.startswith("pytest.fixture") for mark in marks)
            if fixture or (node.name.startswith("test_") and "pytest.mark.local" not in marks):
                yield node


def makes_a_pool(node: ast.AST) -> bool:
    """Whether it is a call of `JobPool`, or of `JobExecutor` without a pool that is given."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        return False
    given = any(keyword.arg == "pool" for keyword in node.keywords)
    return node.func.id == "JobPool" or (node.func.id == "JobExecutor" and not given)


def needs_more(test: ast.FunctionDef) -> list[str]:
    """What a test uses that not every `BasePool` has."""
    nodes = list(ast.walk(test))
    own = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return [
        f"{test.name}: {ast.unparse(node)}"
        for node in nodes
        if makes_a_pool(node)
        or (isinstance(node, ast.Name) and node.id in NAMES - own)
        or (isinstance(node, ast.Attribute) and node.attr in ATTRIBUTES)
    ]


@pytest.mark.parametrize("suite", SUITES)
def test_what_is_not_local_asks_for_its_pools(suite: str) -> None:
    assert not [what for test in not_local(suite) for what in needs_more(test)]


@pytest.mark.parametrize("kind", [DEFAULT_KIND, "other_pool:make"])
def test_what_is_made_is_of_the_kind_and_closed(kind: str, tmp_path: Path) -> None:
    makers = Makers(kind)
    pool, executor = makers.pool(1), makers.executor(1, memory_limit="1 GB")
    own = kind == DEFAULT_KIND
    assert type(pool) is (JobPool if own else OtherPool)
    assert type(executor) is JobExecutor
    assert type(executor._pool) is (JobPool if own else OtherPool)
    assert executor.submit(double, 1).result(PATIENCE) == 2
    executor.shutdown()
    job = pool.submit(hold, tmp_path / "never")
    until(job.running, "RUNNING")
    makers.close()
    assert job.cancelled()
    with pytest.raises(PoolClosedError):
        pool.submit(double, 1)
