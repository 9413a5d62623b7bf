"""`JobPool(seed=)` and `job_rng`: the same numbers whatever the workers do."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from primitive_jobs import JobExecutor, JobPool, PrimitiveJob, as_completed, job_rng, run, wait

# Or each worker would import pytest first.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

PATIENCE = 30.0  # s
SEED = 20261125

Draws = tuple[float, float, float]


def draw(item: object = None) -> Draws:
    """One number of each kind."""
    del item
    return float(job_rng().random()), random.random(), float(np.random.random())


def draw_later(gate: Path) -> Draws:
    """Not before ``gate`` is there."""
    while not gate.exists():
        time.sleep(0.001)
    return draw()


def draw_after_a_death(mark: Path) -> Draws:
    """The first attempt kills its worker, in the middle of its draws."""
    draw()
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return draw()


def expected(*spawn_key: int, seed: Any = SEED) -> float:
    """The first of the three, as numpy makes it."""
    child = np.random.SeedSequence(seed)
    for number in spawn_key:
        child = child.spawn(number + 1)[number]
    return float(np.random.default_rng(child).random())


@pytest.fixture(scope="module")
def reference() -> list[Draws]:
    """What the first 30 jobs draw."""
    with JobPool(1, seed=SEED) as pool:
        return [pool.submit(draw).result(PATIENCE) for _ in range(30)]


def test_what_a_job_draws_follows_from_seed_and_number(reference: list[Draws]) -> None:
    assert [drawn[0] for drawn in reference] == [expected(n) for n in range(30)]
    for kind in zip(*reference, strict=True):
        assert len(set(kind)) == 30  # nothing repeats


def test_number_of_workers_and_order_make_no_difference(
    reference: list[Draws], tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    with JobPool(3, seed=SEED, max_jobs_per_worker=4) as pool:
        first = pool.submit(draw_later, gate)  # it ends as the last
        jobs = [first, *(pool.submit(draw) for _ in range(29))]
        for count, job in enumerate(as_completed(jobs[1:], PATIENCE), 1):
            assert job is not first
            if count == 29:
                gate.touch()
        assert [job.result(PATIENCE) for job in jobs] == reference


def test_kills_cancels_failures_and_retries(reference: list[Draws], tmp_path: Path) -> None:
    never = tmp_path / "never"
    with JobPool(2, seed=SEED) as pool:
        running = pool.submit(draw_later, never)
        failing = pool.submit(int, "x")
        unpicklable = pool.submit(id, sys._getframe())
        retried = pool.options(retries=1).submit(draw_after_a_death, tmp_path / "mark")
        others = [pool.submit(draw) for _ in range(26)]
        ended: list[PrimitiveJob[Any]] = [failing, unpicklable, retried]
        wait(ended, PATIENCE)
        assert retried.attempts == 2
        assert running.cancel()
        assert [job.result(PATIENCE) for job in others] == reference[4:]
        # The second attempt began anew: so its second draw is the second of that seed.
        rng = np.random.default_rng(np.random.SeedSequence(SEED).spawn(4)[3])
        assert retried.result()[0] == rng.random(2)[1]


def by_pool(workers: int, **options: Any) -> list[Draws]:
    with JobPool(workers, seed=SEED) as pool:
        return list(pool.map(draw, range(200), **options))


def by_executor(workers: int, chunksize: int) -> list[Draws]:
    with JobExecutor(workers, seed=SEED) as executor:
        return list(executor.map(draw, range(200), chunksize=chunksize))


def test_map_draws_the_same_whatever_the_chunks() -> None:
    drawn = by_pool(1)
    assert [kind[0] for kind in drawn] == [expected(0, n) for n in range(200)]
    assert len({kind[1] for kind in drawn}) == len({kind[2] for kind in drawn}) == 200
    assert by_pool(2, chunksize=7) == drawn
    assert by_pool(2, chunksize=1) == drawn
    assert sorted(by_pool(2, ordered=False)) == sorted(drawn)
    assert by_executor(2, 1) == drawn
    assert by_executor(1, 9) == drawn


def test_two_mappings_and_a_job_do_not_share_numbers() -> None:
    with JobPool(2, seed=SEED) as pool:
        drawn = [*pool.map(draw, range(20)), *pool.map(draw, range(20))]
        drawn += [pool.submit(draw).result(PATIENCE) for _ in range(20)]
    for kind in zip(*drawn, strict=True):
        assert len(set(kind)) == 60


def draw_by_modules_of_its_own() -> tuple[bool, float, float]:
    import sys

    fresh = not {"random", "numpy"} & set(sys.modules)
    import random

    import numpy as np

    return fresh, random.random(), float(np.random.random())


def test_modules_that_the_job_imports_itself_are_seeded(reference: list[Draws]) -> None:
    # In a script, whose functions travel by value: so nothing is imported before.
    source = f"""
import inspect, sys
sys.path[:0] = {sys.path!r}
import test_randomness
from primitive_jobs import JobPool
namespace = {{"__name__": "__main__"}}
exec(inspect.getsource(test_randomness.draw_by_modules_of_its_own), namespace)
with JobPool(1, seed={SEED}) as pool:
    print([pool.submit(namespace["draw_by_modules_of_its_own"]).result() for _ in range(2)])
"""
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=50, check=True
    )
    assert done.stdout.strip() == str([(True, *reference[0][1:]), (False, *reference[1][1:])])


def test_seeds_of_all_kinds() -> None:
    huge = 2**20_000  # more digits than Python writes
    seeds: list[Any] = [0, huge, np.int64(7), [1, huge], (3,), np.array([4, 5])]
    for seed in seeds:
        with JobPool(1, seed=seed) as pool:
            plain = [int(s) for s in seed] if hasattr(seed, "__len__") else int(seed)
            assert pool.submit(draw).result(PATIENCE)[0] == expected(0, seed=plain)
    parent = np.random.SeedSequence(11).spawn(3)[2]
    with JobPool(1, seed=parent) as pool:
        assert pool.submit(draw).result(PATIENCE)[0] == expected(2, 0, seed=11)
    assert parent.n_children_spawned == 0
    parent.spawn(2)  # somebody else has these
    with JobPool(1, seed=parent) as pool:
        assert pool.submit(draw).result(PATIENCE)[0] == expected(2, 2, seed=11)
    with pytest.raises(ValueError, match="seed must be a SeedSequence of pool_size 4, not 8"):
        JobPool(1, seed=np.random.SeedSequence(1, pool_size=8))


def test_seeds_that_are_none() -> None:  # more of them in test_bad_calls
    wrong: list[Any] = [np.array(5), np.array([1.5]), np.True_, {1, 2}, {1: 2}]
    for seed in wrong:
        with pytest.raises(TypeError, match="seed must be an i"):
            JobPool(1, seed=seed)
    with pytest.raises(ValueError, match="seed must be 0 or more, not int"):
        JobPool(1, seed=-(2**20_000))


class Drawing:
    """Draws when it is unpickled."""

    def __init__(self) -> None:
        self.drawn = draw()
        self.rng = job_rng()

    def __reduce__(self) -> tuple[Any, ...]:
        return Drawing, ()


def what_it_drew(drawing: Drawing) -> tuple[Draws, bool, Draws]:
    return drawing.drawn, drawing.rng is job_rng(), draw()


def test_what_unpickling_draws_is_the_jobs_own(reference: list[Draws]) -> None:
    with JobPool(1, seed=SEED) as pool:
        found = [pool.submit(what_it_drew, Drawing()).result(PATIENCE) for _ in range(3)]
    assert [drawn for drawn, _, _ in found] == reference[:3]
    assert all(same for _, same, _ in found)
    # The old functions begin anew: unpickling imports modules, in some workers only.
    assert [drawn[1:] for _, _, drawn in found] == [drawn[1:] for drawn in reference[:3]]
    with JobPool(2, seed=SEED) as pool:
        mapped = list(pool.map(what_it_drew, [Drawing()] * 6, chunksize=3))
    with JobPool(2, seed=SEED) as pool:
        assert list(pool.map(what_it_drew, [Drawing()] * 6, chunksize=1)) == mapped
    assert [drawn[0] for drawn, _, _ in mapped] == [expected(0, n) for n in range(6)]
    assert [drawn[1:] for drawn, _, _ in mapped] == [drawn[1:] for _, _, drawn in mapped]


def set_another_bit_generator() -> None:
    numpy_random: Any = np.random  # not in the types of every numpy
    numpy_random.set_bit_generator(np.random.PCG64(1))


def test_a_job_that_sets_another_bit_generator(reference: list[Draws]) -> None:
    with JobPool(1, seed=SEED) as pool:
        pool.submit(set_another_bit_generator).result(PATIENCE)
        assert pool.submit(draw).result(PATIENCE) == reference[1]
    kinds = []
    for jobs in (1, 2):
        with JobPool(1, seed=SEED, initializer=set_another_bit_generator) as pool:
            kinds += [pool.submit(draw).result(PATIENCE)[2] for _ in range(jobs)]
    assert kinds[0] == kinds[1] != reference[0][2], "that of an initializer stays"


def generators_of_threads() -> int:
    sys.setswitchinterval(1e-6)
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(job_rng())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len({id(generator) for generator in found})


def test_threads_of_a_job_get_the_same_generator() -> None:
    with JobPool(1, seed=SEED) as pool:
        assert {pool.submit(generators_of_threads).result(PATIENCE) for _ in range(30)} == {1}


def same_generator() -> tuple[bool, list[float]]:
    first = job_rng()
    numbers = [float(first.random()) for _ in range(2)]
    return job_rng() is first, numbers


def test_a_job_has_one_generator() -> None:
    with JobPool(1, seed=SEED) as pool:
        for number in range(2):
            same, drawn = pool.submit(same_generator).result(PATIENCE)
            assert same
            assert drawn[0] == expected(number)
            assert drawn[0] != drawn[1]


def test_without_a_seed_nobody_can_foresee_it() -> None:
    assert job_rng() is not job_rng()
    drawn = {float(job_rng().random()) for _ in range(5)}
    drawn |= {run(draw).result(PATIENCE)[0] for _ in range(5)}
    assert len(drawn) == 10
    with JobPool(1) as pool:
        state = random.getstate()
        pool.submit(draw).result(PATIENCE)
        assert random.getstate() == state


def test_streams_of_jobs_are_independent() -> None:
    """By the numbers of one seed, so it always ends the same way; the bounds are some 4 sigma."""
    jobs, each = 120, 2000
    with JobPool(2, seed=SEED) as pool:
        streams = np.array(list(pool.map(normals, [each] * jobs)))
    for kind in range(3):
        numbers = streams[:, kind]
        # Correlations between any two jobs; and, with a lag, as if one went on where the other is.
        for lag in (0, 1, 2):
            left, right = numbers[:, lag:], numbers[:, : each - lag]
            correlation = np.corrcoef(left, right)[:jobs, jobs:]
            off = correlation[~np.eye(jobs, dtype=bool)]
            assert abs(off).max() < 5 / np.sqrt(each)
            assert abs(off.std() * np.sqrt(each) - 1) < 0.05
        # Means of jobs are distributed as those of independent samples.
        means = numbers.mean(axis=1) * np.sqrt(each)
        assert abs(means.mean()) < 4 / np.sqrt(jobs)
        assert abs(means.var() - 1) < 4 * np.sqrt(2 / jobs)


def normals(count: int) -> list[list[float]]:
    return [
        job_rng().normal(size=count).tolist(),
        [random.gauss(0, 1) for _ in range(count)],
        np.random.normal(size=count).tolist(),
    ]


def test_without_numpy(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("raise ImportError('no numpy here')")
    source = """
import random
from primitive_jobs import JobPool, job_rng
def ask():
    try:
        return job_rng()
    except ImportError as error:
        return str(error)
with JobPool(2, seed=3) as pool:
    print(len({pool.submit(lambda: random.random()).result() for _ in range(3)}))
    print(pool.submit(ask).result())
"""
    done = subprocess.run(
        [sys.executable, "-c", source],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    assert done.stdout.splitlines() == [
        "3",
        "job_rng() returns a numpy generator, but: no numpy here",
    ]
