"""Libraries that are written for `multiprocessing.Pool`, unchanged, with ours: the serial numbers.

What is not installed is skipped; the extra `libraries` has all of them.
"""

from __future__ import annotations

import functools
import importlib
import random
import sys
import types
import warnings
from collections.abc import Iterator
from typing import Any

import cloudpickle
import pytest

from primitive_jobs import JobPool
from primitive_jobs.multiprocessing import Pool

np: Any = pytest.importorskip("numpy")

# A worker need not import this module.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def library(name: str) -> Any:
    """A library, whose own import may warn of what we have no say in."""
    pytest.importorskip(name.partition(".")[0], reason="the extra `libraries` has it")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


@pytest.fixture
def pool(workers: JobPool) -> Iterator[Pool]:
    over = Pool(pool=workers)
    yield over
    over.close()
    over.join()


def log_density(x: Any) -> float:
    return -0.5 * float(np.sum(x**2))


def from_unit_cube(u: Any) -> Any:
    return 10 * u - 5


# --- samplers -------------------------------------------------------------------------------------


def test_emcee(pool: Pool) -> None:
    emcee = library("emcee")
    start = np.random.default_rng(3).normal(size=(8, 2))

    def sample(over: Any) -> Any:
        sampler = emcee.EnsembleSampler(8, 2, log_density, pool=over)
        sampler.random_state = np.random.RandomState(4).get_state()
        sampler.run_mcmc(start, 20)
        return sampler.get_chain()

    assert (sample(pool) == sample(None)).all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_zeus(pool: Pool) -> None:
    zeus = library("zeus")
    start = np.random.default_rng(3).normal(size=(6, 2))

    def sample(over: Any) -> Any:
        random.seed(4)
        np.random.seed(4)
        sampler = zeus.EnsembleSampler(6, 2, log_density, pool=over, verbose=False)
        sampler.run_mcmc(start, 15, progress=False)
        return sampler.get_chain()

    assert (sample(pool) == sample(None)).all()


@pytest.mark.filterwarnings("ignore:The sampling was stopped short:UserWarning")
@pytest.mark.parametrize("kind", ["Pool", "JobPool"])
def test_dynesty_asks_the_pool_for_its_size(kind: str, pool: Pool, workers: JobPool) -> None:
    dynesty = library("dynesty")

    def sample(over: Any) -> Any:
        rng = np.random.default_rng(5)
        sampler = dynesty.NestedSampler(
            log_density, from_unit_cube, 2, nlive=30, pool=over, rstate=rng
        )
        sampler.run_nested(maxiter=60, print_progress=False)
        return sampler.results.samples

    # It proposes as many points at a time as the pool has workers.
    serial = sample(types.SimpleNamespace(map=map, size=2))
    assert (sample(pool if kind == "Pool" else workers) == serial).all()


def test_schwimmbad(workers: JobPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pool is a class that is derived from the one of `multiprocess`; here from ours."""
    multiprocess = library("multiprocess.pool")
    library("schwimmbad")
    with monkeypatch.context() as patch:
        patch.setattr(multiprocess, "Pool", Pool)
        patch.delitem(sys.modules, "schwimmbad.multiprocessing", raising=False)
        made = importlib.import_module("schwimmbad.multiprocessing").MultiPool
    sys.modules.pop("schwimmbad.multiprocessing", None)
    assert issubclass(made, Pool)
    seen: list[float] = []
    with made(2, spare_workers=0) as pool:
        assert pool.size == 2
        items = [np.array([x]) for x in range(10)]
        found = pool.map(log_density, items, callback=seen.append)
        assert found == [log_density(x) for x in items] == seen
        with pytest.raises(TypeError):
            pool.map(log_density, ["a"])


# --- optimizers -----------------------------------------------------------------------------------


def test_pymoo(pool: Pool) -> None:
    problems = library("pymoo.core.problem")
    genetic = library("pymoo.algorithms.soo.nonconvex.ga")
    minimize = library("pymoo.optimize").minimize
    try:
        parallel = library("pymoo.parallelization").StarmapParallelization
    except ImportError:  # up to 0.6.1
        parallel = library("pymoo.core.problem").StarmapParallelization

    class Sphere(problems.ElementwiseProblem):  # type: ignore[misc,name-defined]
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(n_var=3, n_obj=1, xl=-2, xu=2, **kwargs)

        def _evaluate(self, x: Any, out: dict[str, Any], *args: Any, **kwargs: Any) -> None:
            out["F"] = np.sum(x**2)

    def best(problem: Any) -> Any:
        return minimize(problem, genetic.GA(pop_size=20), ("n_gen", 5), seed=1).F

    assert (best(Sphere(elementwise_runner=parallel(pool.starmap))) == best(Sphere())).all()


def of_ones(individual: Any) -> tuple[int]:
    return (sum(individual),)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")
def test_deap(pool: Pool) -> None:
    algorithms, base, creator, tools = map(
        library, ("deap.algorithms", "deap.base", "deap.creator", "deap.tools")
    )
    if not hasattr(creator, "Best"):
        creator.create("Best", base.Fitness, weights=(1.0,))
        creator.create("Bits", list, fitness=creator.Best)

    def evolve(over_map: Any) -> Any:
        random.seed(6)
        box = base.Toolbox()
        box.register("bit", random.randint, 0, 1)
        box.register("individual", tools.initRepeat, creator.Bits, box.bit, 20)
        box.register("population", tools.initRepeat, list, box.individual)
        box.register("evaluate", of_ones)
        box.register("mate", tools.cxTwoPoint)
        box.register("mutate", tools.mutFlipBit, indpb=0.05)
        box.register("select", tools.selTournament, tournsize=3)
        box.register("map", over_map)
        return algorithms.eaSimple(box.population(30), box, 0.5, 0.2, 6, verbose=False)[0]

    serial = evolve(map)
    assert evolve(pool.map) == serial
    assert evolve(functools.partial(pool.imap, chunksize=5)) == serial
