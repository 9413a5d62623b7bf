"""`primitive_jobs.qiskit` with the real Qiskit and Aer; and `PrimitiveJob` in place of theirs."""

from __future__ import annotations

import copy
import itertools
import os
import pickle
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import cloudpickle
import psutil
import pytest
from helpers import call_traced, sampled

pytest.importorskip("qiskit", reason="the extra `qiskit` is not installed")
pytest.importorskip("qiskit_aer", reason="the extra `qiskit` is not installed")

import numpy as np
import qiskit.primitives.statevector_sampler
import qiskit_aer.primitives as aer
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from qiskit.primitives import (
    BackendEstimatorV2,
    BackendSamplerV2,
    BaseEstimatorV2,
    BasePrimitiveJob,
    BaseSamplerV2,
    PrimitiveResult,
    StatevectorEstimator,
    StatevectorSampler,
)
from qiskit.primitives.containers import DataBin
from qiskit.primitives.containers.sampler_pub import SamplerPub
from qiskit.providers import JobStatus as QiskitStatus
from qiskit.providers.fake_provider import GenericBackendV2
from qiskit.quantum_info import SparsePauliOp
from qiskit_aer import AerSimulator
from qiskit_aer.jobs import AerJob

from primitive_jobs import (
    FINAL_STATES,
    JobCancelledError,
    JobError,
    JobExecutor,
    JobPool,
    JobStatus,
    JobTimeoutError,
    PoolClosedError,
    PrimitiveJob,
    ResultTimeoutError,
    SerializationError,
    WorkerDiedError,
)
from primitive_jobs._wire.parcel import HAVE_PACKETS
from primitive_jobs.qiskit import (
    PooledEstimator,
    PooledJob,
    PooledSampler,
    combined_status,
    remote,
    seeds,
)
from primitive_jobs.qiskit import parts as packing
from primitive_jobs.status import TRANSITIONS

PATIENCE = 40.0  # s, after which what is waited for will not come
PRELOAD = ("qiskit.primitives", "qiskit_aer.primitives")

# Or each worker would import pytest first.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for something that no event tells of."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"waited in vain for: {what}"
        time.sleep(0.002)


def gone(pid: int) -> bool:
    """Whether a process exists no more, or only as a zombie."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


# --- what is run --------------------------------------------------------------------------------


def bell(name: str | None = None) -> Any:
    circuit = QuantumCircuit(2, name=name)
    circuit.h(0)
    circuit.cx(0, 1)
    circuit.measure_all()
    return circuit


def ansatz(*, measured: bool) -> Any:
    angles = ParameterVector("angle", 3)
    circuit = QuantumCircuit(3)
    for qubit in range(3):
        circuit.ry(angles[qubit], qubit)
    circuit.cx(0, 1)
    circuit.cx(1, 2)
    if measured:
        circuit.measure_all()
    return circuit


def sampler_pubs() -> list[Any]:
    draw = np.random.default_rng(3).random
    circuit = ansatz(measured=True)
    return [
        (circuit, draw(3)),
        (circuit, draw((2, 3))),  # a sweep
        (circuit, draw(3), 77),  # shots of its own
        (circuit, draw((2, 2, 3))),
        (circuit, draw(3), 77),
        bell(),
    ]


def estimator_pubs() -> list[Any]:
    draw = np.random.default_rng(4).random
    circuit = ansatz(measured=False)
    one, other = SparsePauliOp(["ZZI", "XIX"], [1.0, 0.5]), SparsePauliOp("ZZZ")
    return [
        (circuit, one, draw(3)),
        (circuit, [[one], [other]], draw((4, 3))),  # broadcast to (2, 4)
        (circuit, other, draw(3), 0.2),
        (circuit, one, draw(3)),
    ]


def bits(result: Any) -> list[bytes]:
    return [one.data.meas.array.tobytes() for one in result]


def values(result: Any) -> list[bytes]:
    return [one.data.evs.tobytes() + one.data.stds.tobytes() for one in result]


class Trouble(Exception):
    pass


class Obedient(StatevectorSampler):  # type: ignore[misc]
    """Does with a pub what the name of its circuit says; leaves a mark of that name.

    Those that fail do so once the pub ``after`` has begun.
    """

    def __init__(self, folder: Path, after: str | None = None) -> None:
        super().__init__(seed=1)
        self.folder = folder
        self.after = after

    def _run_pub(self, pub: Any) -> Any:
        name = pub.circuit.name
        draft = self.folder / f".{name}"
        draft.write_text(str(os.getpid()))
        draft.rename(self.folder / name)
        order = name.split("-")[0]
        if order == "hold":
            end = time.monotonic() + 2 * PATIENCE
            while not (self.folder / "release").exists() and time.monotonic() < end:
                time.sleep(0.005)
        if order in ("warn", "fail"):
            warnings.warn("mind this", FutureWarning, stacklevel=1)
        if order == "fail":
            if self.after is not None:
                until((self.folder / self.after).exists, self.after)
            raise Trouble(name)
        if order == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._run_pub(pub)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def begun(folder: Path, name: str) -> int:
    """Wait until a pub has begun; return its worker's pid."""
    until((folder / name).exists, f"the mark {name}")
    return int((folder / name).read_text())


def alone(pool: JobPool) -> Any:
    """A view with which each pub is a part of its own."""
    return pool.options(timeout=4 * PATIENCE)


class OwnGenerator(BaseSamplerV2):  # type: ignore[misc]
    """Keeps a generator of some kind, under a name of its own."""

    def __init__(self, generator: Any) -> None:
        self.source = generator

    def run(self, pubs: Any, *, shots: int | None = None) -> Any:
        draw = self.source.integers if hasattr(self.source, "integers") else self.source.randint
        return StatevectorSampler(seed=int(draw(2**31 - 1))).run(pubs, shots=shots)


class OwnAer(AerSimulator):  # type: ignore[misc]
    pass


class FussyWarning(UserWarning):
    """It can be pickled, but not unpickled."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(one + other)


class Fussy(StatevectorSampler):  # type: ignore[misc]
    def _run_pub(self, pub: Any) -> Any:
        warnings.warn(FussyWarning("mind", " this"), stacklevel=1)
        return super()._run_pub(pub)


def meet(folder: str, number: int, of: int) -> None:
    Path(folder, f"here{number}").touch()
    while len(list(Path(folder).glob("here*"))) < of:
        time.sleep(0.005)


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[JobPool, JobPool]]:
    """With one worker and with two, which all have started; no test may cost them one."""
    made = [JobPool(n, preload=PRELOAD, idle_timeout=None, spare_workers=0) for n in (1, 2)]
    for pool, count in zip(made, (1, 2), strict=True):
        folder = str(tmp_path_factory.mktemp("meeting"))
        for job in [pool.submit(meet, folder, n, count) for n in range(count)]:
            job.result(PATIENCE)
    AerSimulator().run(bell(), shots=1).result()  # starts a thread that lives as long as we do
    yield made[0], made[1]
    for pool in made:
        pool.shutdown(cancel=True)


@pytest.fixture
def one(pools: tuple[JobPool, JobPool]) -> JobPool:
    return pools[0]


@pytest.fixture
def two(pools: tuple[JobPool, JobPool]) -> JobPool:
    return pools[1]


@pytest.fixture
def own() -> Iterator[JobPool]:
    """A pool whose workers may be killed."""
    with JobPool(2, preload=PRELOAD[:1], spare_workers=0) as pool:
        yield pool
        pool.cancel_all()


# --- results, and seeds -------------------------------------------------------------------------

NOISY = {"noise_info": True, "seed": 1, "basis_gates": ["h", "ry", "cx"]}
SAMPLERS: dict[str, Callable[[], Any]] = {
    "statevector": lambda: StatevectorSampler(seed=5),
    "backend": lambda: BackendSamplerV2(backend=AerSimulator(), options={"seed_simulator": 5}),
    "seed of the backend": lambda: BackendSamplerV2(backend=AerSimulator(seed_simulator=5)),
    "aer": lambda: aer.SamplerV2(seed=5),
    "the last seed of aer": lambda: aer.SamplerV2(seed=2**63 - 1),
    "one's own aer": lambda: BackendSamplerV2(backend=OwnAer(), options={"seed_simulator": 5}),
    "aer on a backend": lambda: aer.SamplerV2.from_backend(AerSimulator(seed_simulator=5)),
}
SIMILAR_SAMPLERS: dict[str, Callable[[], Any]] = {
    "generator": lambda: StatevectorSampler(seed=np.random.default_rng(5)),
    "own generator": lambda: OwnGenerator(np.random.default_rng(5)),
    "own random state": lambda: OwnGenerator(np.random.RandomState(5)),
    "generic backend": lambda: BackendSamplerV2(
        backend=GenericBackendV2(3, **NOISY), options={"seed_simulator": 5}
    ),
}
ESTIMATORS: dict[str, Callable[[], Any]] = {
    "statevector": lambda: StatevectorEstimator(seed=5, default_precision=0.1),
    "aer": lambda: aer.EstimatorV2(
        options={"default_precision": 0.1, "run_options": {"seed_simulator": 5}}
    ),
}
SIMILAR_ESTIMATORS: dict[str, Callable[[], Any]] = {
    "generator": lambda: StatevectorEstimator(seed=np.random.default_rng(5), default_precision=0.1),
    "backend": lambda: BackendEstimatorV2(
        backend=AerSimulator(), options={"seed_simulator": 5, "default_precision": 0.05}
    ),
}


def same_metadata(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Aer's tells times, too, which are never the same."""
    timed = "simulator_metadata"
    return one.keys() == other.keys() and all(one[k] == other[k] for k in one if k != timed)


def check_alike(wrapped: Any, serial: Any, results: Sequence[Any], data: Any) -> None:
    assert data(results[0]) == data(results[1])
    for result in results:
        assert type(result) is PrimitiveResult
        assert result.metadata == serial.metadata
        for mine, theirs in zip(result, serial, strict=True):
            assert type(mine) is type(theirs)
            assert mine.data.shape == theirs.data.shape
            assert same_metadata(mine.metadata, theirs.metadata)


@pytest.mark.parametrize("name", [*SAMPLERS, *SIMILAR_SAMPLERS])
def test_samples_do_not_depend_on_the_number_of_workers(
    name: str, pools: tuple[JobPool, JobPool]
) -> None:
    make = {**SAMPLERS, **SIMILAR_SAMPLERS}[name]
    serial = make().run(sampler_pubs(), shots=40).result()
    jobs = [PooledSampler(make(), pool).run(sampler_pubs(), shots=40) for pool in pools]
    results = [job.result(PATIENCE) for job in jobs]
    check_alike(make(), serial, results, bits)
    assert results[0][2].metadata["shots"] == 77
    if name in SAMPLERS:
        assert bits(results[0]) == bits(serial)
    if name == "generic backend":
        assert bits(results[0])[0] == bits(serial)[0]
    assert jobs[0].result() is results[0]


@pytest.mark.parametrize("name", [*ESTIMATORS, *SIMILAR_ESTIMATORS])
def test_estimates_do_not_depend_on_the_number_of_workers(
    name: str, pools: tuple[JobPool, JobPool]
) -> None:
    make = {**ESTIMATORS, **SIMILAR_ESTIMATORS}[name]
    pubs = estimator_pubs()
    serial = make().run(pubs).result()
    results = [PooledEstimator(make(), pool).run(pubs).result(PATIENCE) for pool in pools]
    check_alike(make(), serial, results, values)
    assert results[0][1].data.evs.shape == (2, 4)
    if name in ESTIMATORS:
        assert values(results[0]) == values(serial)
    if name == "backend":
        assert values(results[0])[0] == values(serial)[0]
    finer = PooledEstimator(make(), pools[1]).run(pubs, precision=0.25).result(PATIENCE)
    found = [one.metadata["target_precision"] for one in finer]
    assert found == [0.25, 0.25, 0.2, 0.25]


@pytest.mark.parametrize(
    "make",
    [
        StatevectorSampler,
        lambda: StatevectorSampler(seed=np.random.default_rng()),
        lambda: StatevectorSampler(seed=np.random.PCG64(1)),
        lambda: StatevectorSampler(seed=np.random.default_rng(np.random.MT19937(1))),
        lambda: OwnGenerator(np.random.default_rng(5)),
        lambda: OwnGenerator(np.random.RandomState(5)),
        lambda: BackendSamplerV2(backend=AerSimulator()),
        aer.SamplerV2,
        SAMPLERS["aer"],
        SAMPLERS["backend"],
        SAMPLERS["seed of the backend"],
        SIMILAR_SAMPLERS["generic backend"],
    ],
)
def test_no_two_pubs_have_the_same_stream(make: Callable[[], Any], two: JobPool) -> None:
    """128 random bits each: the chance that two are equal by accident is nil."""
    circuit = QuantumCircuit(1)
    circuit.h(0)
    circuit.measure_all()
    sampler = PooledSampler(make(), two)
    jobs = [sampler.run([circuit] * 8, shots=128)]
    found = bits(jobs[0].result(PATIENCE))
    if not isinstance(sampler.seed if hasattr(sampler, "seed") else 5, int):
        found += bits(sampler.run([circuit] * 8, shots=128).result(PATIENCE))
    assert len(set(found)) == len(found)


def test_a_generator_moves_on(two: JobPool) -> None:
    generator = np.random.default_rng(5)
    before = copy.deepcopy(generator.bit_generator.state)
    sampler = PooledSampler(StatevectorSampler(seed=generator), two)
    first, second = (bits(sampler.run([bell()] * 2).result(PATIENCE)) for _ in range(2))
    generator.bit_generator.state = before
    assert first != second
    assert bits(sampler.run([bell()] * 2).result(PATIENCE)) == first


def test_numbers_made_from_a_seed() -> None:
    assert list(seeds._numbers_from(7, 1, bits=31)) == [7]
    few, many = (list(seeds._numbers_from(7, n, bits=31)) for n in (3, 300))
    assert few == many[:3]
    assert len(set(many)) == 300
    assert all(0 <= number < 2**31 for number in many)
    assert max(seeds._numbers_from(-7, 50, bits=63)) > 2**61
    assert set(seeds._numbers_from(-7, 50, bits=63)).isdisjoint(seeds._numbers_from(7, 50, bits=63))
    assert len(set(seeds._numbers_from(0, 9, bits=4))) == 9  # also where they are drawn twice


def test_no_pubs_and_pubs_from_a_generator(two: JobPool) -> None:
    sampler = PooledSampler(StatevectorSampler(seed=1), two)
    empty = sampler.run([])
    assert list(empty.result(PATIENCE)) == []
    assert empty.result().metadata == {"version": 2}
    assert empty.status() is QiskitStatus.DONE
    result = sampler.run(bell() for _ in range(3)).result(PATIENCE)
    assert bits(result) == bits(StatevectorSampler(seed=1).run([bell()] * 3).result())


def test_runs_of_several_threads_at_the_same_time(two: JobPool) -> None:
    sampler = PooledSampler(StatevectorSampler(seed=1), two)
    pubs = sampler_pubs()
    wanted = bits(StatevectorSampler(seed=1).run(pubs).result())
    found: list[list[bytes]] = []
    threads = [
        threading.Thread(target=lambda: found.append(bits(sampler.run(pubs).result(PATIENCE))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [wanted] * 4


# --- what goes wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pub",
    [
        (ansatz(measured=True), [1.0]),
        (ansatz(measured=True), (x for x in (1.0, 2.0, 3.0))),
        (bell(), None, -1),
        (bell(), None, 1, 1),
        "no circuit",
    ],
)
def test_a_bad_pub_raises_at_once_what_the_original_raises(pub: Any, two: JobPool) -> None:
    with pytest.raises(Exception) as theirs:
        StatevectorSampler().run([bell(), pub])
    with pytest.raises(theirs.type) as mine:
        PooledSampler(StatevectorSampler(), two).run([bell(), pub])
    assert str(mine.value) == str(theirs.value)
    assert two.jobs() == []


def test_what_a_backend_estimator_refuses_is_refused_at_once(two: JobPool) -> None:
    estimator = PooledEstimator(BackendEstimatorV2(backend=AerSimulator()), two)
    with pytest.raises(ValueError, match="The 1-th pub has precision less than or equal to 0"):
        estimator.run([(bell(), "ZZ"), (bell(), "ZZ", None, 0.0)])


def test_an_error_of_a_pub_arrives_as_itself_and_cancels_the_others(
    own: JobPool, marks: Path
) -> None:
    names = ["hold-1", "fail", "hold-2", "never"]
    sampler = PooledSampler(Obedient(marks, after="hold-1"), alone(own))
    job = sampler.run([bell(name) for name in names])
    with pytest.raises(FutureWarning):  # one that came before the error, an error itself here
        job.result(PATIENCE)
    with pytest.raises(Trouble) as caught:
        job.result(PATIENCE)
    assert caught.value.args == ("fail",)
    assert "raise Trouble(name)" in str(caught.value.__cause__)
    assert job.status() is QiskitStatus.ERROR
    assert not job.cancel()
    walks = [part.status().name for part in job.parts]
    assert walks == ["CANCELLED", "ERROR", "CANCELLED", "CANCELLED"]
    until(lambda: not own.jobs(), "the end of the others")
    assert gone(begun(marks, "hold-1"))
    assert not (marks / "never").exists()
    with pytest.raises(Trouble):
        pickle.loads(pickle.dumps(job)).result()
    assert own.jobs() == []


def test_many_parts_are_cancelled_by_the_first_that_fails(own: JobPool, marks: Path) -> None:
    """However many: the stack does not grow with them."""
    pubs = [bell("fail"), *[bell("pass")] * 1500]
    job = PooledSampler(Obedient(marks), alone(own)).run(pubs)
    job.wait_for_final_state(PATIENCE)
    assert job.status() is QiskitStatus.ERROR
    assert sum(part.cancelled() for part in job.parts) > 1000


def test_a_worker_that_is_killed(own: JobPool, marks: Path) -> None:
    job = PooledSampler(Obedient(marks), alone(own)).run([bell("hold"), bell("die")])
    with pytest.raises(WorkerDiedError) as caught:
        job.result(PATIENCE)
    assert caught.value.signal is signal.SIGKILL
    assert job.in_final_state()
    assert not job.done()


def test_a_limit_is_for_each_pub(own: JobPool, marks: Path) -> None:
    view = own.options(timeout=0.5, name="bells", metadata={"n": 2})
    job = PooledSampler(Obedient(marks), view).run([bell("hold"), bell("pass")])
    assert [part.name for part in job.parts] == ["bells[0:1]", "bells[1:2]"]
    assert (job.name, job.metadata) == ("bells", {"n": 2})
    with pytest.raises(JobTimeoutError, match=r"bells\[0:1\]"):
        job.result(PATIENCE)


def test_what_cannot_be_serialized_is_named(two: JobPool) -> None:
    class Unfit(StatevectorSampler):  # type: ignore[misc]
        def __getstate__(self) -> object:
            raise ValueError("not me")

    with pytest.raises(SerializationError, match=r"the wrapped Unfit cannot be sent.*not me"):
        PooledSampler(Unfit(), two).run([bell()])
    circuit = bell()
    circuit.metadata = {"lock": threading.Lock()}
    with pytest.raises(SerializationError, match="the circuit of pub 1 cannot be sent"):
        PooledSampler(StatevectorSampler(), two).run([bell(), circuit])
    assert two.jobs() == []


def test_a_pool_that_was_shut_down(marks: Path) -> None:
    pool = JobPool(1)
    sampler = PooledSampler(StatevectorSampler(), pool)
    pool.shutdown()
    with pytest.raises(PoolClosedError):
        sampler.run([bell()])


def test_wrong_things_to_wrap() -> None:
    wrong: Any
    for wrong in (StatevectorEstimator(), AerSimulator(), None):
        with pytest.raises(TypeError, match="PooledSampler wraps a BaseSamplerV2, not a "):
            PooledSampler(wrong)
    with pytest.raises(TypeError, match="PooledEstimator wraps a BaseEstimatorV2, not a "):
        PooledEstimator(StatevectorSampler())
    with pytest.raises(TypeError, match=r"pool must be a JobPool, a JobPool.options.* not int"):
        PooledSampler(StatevectorSampler(), 2)  # type: ignore[arg-type]


# --- status and cancel --------------------------------------------------------------------------


def expected(statuses: Sequence[JobStatus]) -> JobStatus:
    """Written down apart from the code under test."""
    names = [status.name for status in statuses]
    if all(name in ("DONE", "CANCELLED", "ERROR") for name in names):
        return JobStatus[next(n for n in ("ERROR", "CANCELLED", "DONE") if n in names)]
    if any(name in ("RUNNING", "DONE", "CANCELLED", "ERROR") for name in names):
        return JobStatus.RUNNING
    if all(name == names[0] for name in names):
        return JobStatus[names[0]]
    return JobStatus.VALIDATING


def test_the_status_of_every_combination() -> None:
    seen = set()
    for count in (1, 2, 3, 4):
        for statuses in itertools.product(JobStatus, repeat=count):
            assert combined_status(statuses) is expected(statuses)
            seen.add(combined_status(statuses))
    assert seen == set(JobStatus)


def test_walks_of_parts_end_once() -> None:
    draw = random.Random(7)
    for _ in range(300):
        parts = [JobStatus.INITIALIZING] * draw.randint(1, 5)
        before = combined_status(parts)
        while before not in FINAL_STATES:
            place = draw.choice([n for n, part in enumerate(parts) if TRANSITIONS[part]])
            parts[place] = draw.choice(sorted(TRANSITIONS[parts[place]], key=lambda s: s.name))
            before = combined_status(parts)
            assert (before in FINAL_STATES) is all(part in FINAL_STATES for part in parts)


class Spy(int):
    """A number of shots that looks at its job, or does worse, while it is serialized."""

    look: Callable[[], None] = staticmethod(lambda: None)

    def __reduce__(self) -> Any:
        type(self).look()
        return int, (int(self),)


def test_every_status_is_seen(own: JobPool, marks: Path) -> None:
    own.resize(1)
    sampler = PooledSampler(Obedient(marks), alone(own))
    seen = []
    job = sampler._prepare([SamplerPub.coerce((bell("hold"), None, Spy(8)))])
    seen.append(job.status())
    Spy.look = staticmethod(lambda: seen.append(job.status()))
    job._submit()
    with pytest.raises(JobError, match="was submitted before"):
        job._submit()
    begun(marks, "hold")
    seen.append(job.status())
    assert job.running()
    behind = sampler.run([bell("never"), bell("never")])
    seen.append(behind.status())
    assert behind.cancel()
    seen.append(behind.status())
    (marks / "release").touch()
    job.result(PATIENCE)
    seen.append(job.status())
    failing = sampler.run([bell("fail")])
    failing.wait_for_final_state(PATIENCE)
    seen.append(failing.status())
    wanted = "INITIALIZING VALIDATING RUNNING QUEUED CANCELLED DONE ERROR"
    assert [status.name for status in seen] == wanted.split()
    assert all(type(status) is QiskitStatus for status in seen)
    assert not (marks / "never").exists()
    assert (job.done(), job.running(), job.cancelled()) == (True, False, False)
    assert not job.cancel()
    assert "'Obedient' DONE 1 of 1 parts" in repr(job)


def test_a_running_job_is_cancelled_for_real(own: JobPool, marks: Path) -> None:
    names = ["pass", "hold-1", "hold-2", "never"]
    job = PooledSampler(Obedient(marks), alone(own)).run([bell(name) for name in names])
    assert isinstance(job, BasePrimitiveJob)
    pids = [begun(marks, name) for name in ("hold-1", "hold-2")]
    with pytest.raises(ResultTimeoutError, match=r"job Obedient is RUNNING after 0\.01 s"):
        job.result(timeout=0.01)
    assert not job.wait(0)
    with pytest.raises(ValueError, match="grace"):
        job.cancel(grace=-1)
    assert job.cancel()
    assert all(gone(pid) for pid in pids)
    assert job.status() is QiskitStatus.CANCELLED
    assert job.cancelled()
    assert job.cancel()
    assert [part.status().name for part in job.parts] == ["DONE", *["CANCELLED"] * 3]
    assert not (marks / "never").exists()
    for one in (job, pickle.loads(pickle.dumps(job))):
        with pytest.raises(JobCancelledError, match="job Obedient was cancelled"):
            one.result()
        assert one.status() is QiskitStatus.CANCELLED
    # The pool goes on.
    again = PooledSampler(StatevectorSampler(), own).run([bell()] * 3)
    assert len(again.result(PATIENCE)) == 3


def test_a_part_that_is_cancelled_takes_the_others_along(own: JobPool, marks: Path) -> None:
    job = PooledSampler(Obedient(marks), alone(own)).run([bell("hold-1"), bell("hold-2")])
    begun(marks, "hold-2")
    assert job.parts[0].cancel()
    assert job.wait(PATIENCE)
    assert job.cancelled()


def test_cancelled_before_it_was_submitted(two: JobPool) -> None:
    job = PooledSampler(StatevectorSampler(), two)._prepare([SamplerPub.coerce(bell(), 1)] * 2)
    assert job.cancel()
    job._submit()
    assert job.cancelled()
    assert two.jobs() == []


def test_cancelled_while_it_is_serialized(two: JobPool) -> None:
    pubs = [SamplerPub.coerce((bell(), None, Spy(8))) for _ in range(3)]
    job = PooledSampler(StatevectorSampler(), alone(two))._prepare(pubs)
    looks = []
    Spy.look = staticmethod(lambda: looks.append(job.cancel()))
    job._submit()
    assert looks == [True]
    assert job.cancelled()


def test_cancelled_in_the_moment_in_which_it_is_submitted(
    own: JobPool, marks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the first part, which has failed by now."""
    submit = PrimitiveJob.submit

    def late(part: Any, *given: Any, **options: Any) -> Any:
        if part.status() is JobStatus.INITIALIZING and (marks / "fail").exists():
            until(part.cancelled, "the cancel")
        submit(part, *given, **options)
        begun(marks, "fail")

    monkeypatch.setattr(PrimitiveJob, "submit", late)
    job = PooledSampler(Obedient(marks), alone(own)).run([bell("fail"), bell("never")])
    with pytest.warns(FutureWarning), pytest.raises(Trouble):
        job.result(PATIENCE)
    assert [part.status().name for part in job.parts] == ["ERROR", "CANCELLED"]


def test_an_interrupt_of_run_leaves_nothing_running(own: JobPool, marks: Path) -> None:
    calls: list[None] = []

    def interrupt() -> None:
        calls.append(None)
        if len(calls) == 2:
            begun(marks, "hold")
            raise KeyboardInterrupt

    Spy.look = staticmethod(interrupt)
    pubs = [(bell(name), None, Spy(8)) for name in ("hold", "never", "never")]
    with pytest.raises(KeyboardInterrupt):
        PooledSampler(Obedient(marks), alone(own)).run(pubs)
    until(lambda: not own.jobs(), "the end of the first part")
    assert gone(begun(marks, "hold"))


def interrupt_at(place: int, call: Callable[[], object]) -> int:
    """Make a call with a KeyboardInterrupt at one of the places where the package may get one.

    Returns:
        How many places it came by.
    """
    count = 0

    def step(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal count
        ours = frame.f_globals.get("__name__", "").startswith("primitive_jobs")
        if not ours or frame.f_code.co_name == "__del__":
            return None
        # No signal is looked for between a function's last call and its return, only by whoever
        # called it: and that is the test.
        if event != "return" or frame.f_code.co_name != "run":
            count += 1
            if count == place:
                raise KeyboardInterrupt
        return step

    call_traced(call, step)
    return count


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@sampled(61)
def test_an_interrupt_anywhere_in_run_leaves_nothing_queued(
    own: JobPool, marks: Path, stride: int
) -> None:
    sampler = PooledSampler(Obedient(marks), alone(own))
    busy = sampler.run([bell("hold-1"), bell("hold-2")])
    until(lambda: all(part.running() for part in busy.parts), "the two that hold the workers")
    whole: list[PooledJob] = []

    def run() -> None:
        whole.append(sampler.run([bell("never")] * 3))

    places = interrupt_at(0, run)
    assert whole.pop().cancel()
    assert places > 300
    for place in [*range(1, places, stride), *range(places - 10, places + 1)]:
        interrupt_at(place, run)
        assert all(job.cancel() for job in whole)  # it came by fewer places this time
        until(lambda: own.jobs() == list(busy.parts), f"the end of what {place} interrupted")
    (marks / "release").touch()
    assert len(busy.result(PATIENCE)) == 2
    assert not (marks / "never").exists()


def test_an_interrupt_of_result_cancels_nothing(two: JobPool, marks: Path) -> None:
    job = PooledSampler(Obedient(marks), alone(two)).run([bell("hold"), bell("pass")])

    def interrupt() -> None:
        begun(marks, "hold")
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - it may come before the second line
        thread.start()
        job.result(PATIENCE)
    thread.join()
    assert job.running()
    (marks / "release").touch()
    assert len(job.result(PATIENCE)) == 2


def test_pickling_waits_for_the_end(two: JobPool, marks: Path) -> None:
    view = two.options(timeout=4 * PATIENCE, metadata={"why": "a test"})
    job = PooledSampler(Obedient(marks), view).run([bell("hold"), bell("warn")])
    pickled: list[bytes] = []
    thread = threading.Thread(target=lambda: pickled.append(pickle.dumps(job)))
    thread.start()
    begun(marks, "hold")
    assert not pickled
    (marks / "release").touch()
    thread.join(PATIENCE)
    other = pickle.loads(pickled[0])
    assert type(other) is PooledJob
    assert (other.job_id(), other.metadata) == (job.job_id(), {"why": "a test"})
    assert other.status() is QiskitStatus.DONE
    for one in (job, other):
        with pytest.warns(FutureWarning, match="mind this"):
            one.result(PATIENCE)
    assert bits(other.result()) == bits(job.result())


# --- warnings -----------------------------------------------------------------------------------


def test_warnings_of_the_workers_are_given_again_once(two: JobPool, marks: Path) -> None:
    job = PooledSampler(Obedient(marks), alone(two)).run([bell(f"warn-{n}") for n in range(3)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        job.wait(PATIENCE)
        assert not caught
        job.result(PATIENCE)
        job.result(PATIENCE)
    assert [(one.category, str(one.message)) for one in caught] == [(FutureWarning, "mind this")]
    assert caught[0].filename == __file__
    again = PooledSampler(Obedient(marks), two).run([bell("warn")])
    with pytest.raises(FutureWarning):  # where warnings are errors, as here
        again.result(PATIENCE)
    assert len(again.result()) == 1


def test_a_warning_that_cannot_travel_still_tells_its_text() -> None:
    class Stubborn(UserWarning):
        def __reduce__(self) -> Any:
            raise ValueError

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.warn(Stubborn("as it is"), stacklevel=1)
    carried = remote._on_its_way(caught[0])
    message, category = pickle.loads(carried.pickled)
    assert (str(message), category, carried.module) == ("as it is", UserWarning, __name__)


def test_a_warning_that_cannot_be_unpickled_costs_no_result(two: JobPool) -> None:
    job = PooledSampler(Fussy(), two).run([bell()])
    with pytest.warns(UserWarning, match="mind this"):
        assert len(job.result(PATIENCE)) == 1


def test_circuits_without_a_result(two: JobPool) -> None:
    silent = QuantumCircuit(1)
    job = PooledSampler(StatevectorSampler(), two).run([silent] * 2)
    with pytest.warns(UserWarning, match="no output classical registers"):
        job.result(PATIENCE)
    with pytest.warns(UserWarning, match="The 1-th pub's circuit has no output"):
        checked = PooledSampler(aer.SamplerV2(), two).run([bell(), silent])
    assert len(checked.result(PATIENCE)) == 2


# --- the wrapped primitive's attributes ---------------------------------------------------------


def test_attributes_are_those_of_the_wrapped() -> None:
    sampler = PooledSampler(StatevectorSampler(seed=3, default_shots=9))
    assert (sampler.seed, sampler.default_shots) == (3, 9)
    with pytest.raises(AttributeError):
        sampler.seed = 4
    with pytest.raises(AttributeError, match="nothing"):
        _ = sampler.nothing
    backend = AerSimulator()
    estimator = PooledEstimator(BackendEstimatorV2(backend=backend))
    assert estimator.backend is backend
    estimator.options.default_precision = 0.5
    estimator.note = "set on the wrapped one"
    assert estimator._primitive.options.default_precision == 0.5
    assert estimator._primitive.note == "set on the wrapped one"
    assert {"run", "options", "backend"} <= set(dir(estimator))
    assert "BackendEstimatorV2" in repr(estimator)
    assert isinstance(sampler, BaseSamplerV2)
    assert isinstance(estimator, BaseEstimatorV2)


def test_what_is_wrapped_twice_is_wrapped_once(one: JobPool, two: JobPool) -> None:
    inner = PooledSampler(StatevectorSampler(seed=5), two)
    assert PooledSampler(inner)._pool is two
    outer = PooledSampler(inner, one)
    assert outer._pool is one
    assert type(outer._primitive) is StatevectorSampler
    estimator = PooledEstimator(PooledEstimator(StatevectorEstimator()))
    assert type(estimator._primitive) is StatevectorEstimator


def test_a_wrapper_can_be_copied_and_pickled() -> None:
    sampler = PooledSampler(StatevectorSampler(seed=3))
    for other in (copy.copy(sampler), copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):
        assert type(other) is PooledSampler
        assert other.seed == 3


def test_shots_come_from_pub_run_and_sampler_in_this_order(two: JobPool) -> None:
    sampler = PooledSampler(aer.SamplerV2(default_shots=9), two)
    pubs = [(bell(), None, 5), bell()]
    given = sampler.run(pubs, shots=7).result(PATIENCE)
    assert [one.metadata["shots"] for one in given] == [5, 7]
    default = sampler.run(pubs).result(PATIENCE)
    assert [one.metadata["shots"] for one in default] == [5, 9]


# --- parts --------------------------------------------------------------------------------------


def test_short_pubs_share_a_part_and_long_ones_do_not() -> None:
    def sizes(seconds: Sequence[float], workers: int, *, together: bool = True) -> list[int]:
        parts = packing.split(seconds, workers, together=together)
        assert [place for part in parts for place in part] == list(range(len(seconds)))
        return [len(part) for part in parts]

    assert sizes([], 2) == [0]
    assert sizes([1.0] * 5, 2) == [1] * 5
    assert sizes([0.004] * 64, 2) == [5] * 12 + [4]
    assert sizes([0.004] * 64, 2, together=False) == [1] * 64
    assert sizes([0.004] * 8, 2) == [1] * 8
    assert sizes([0.001] * 32, 2) == [4] * 8
    assert sizes([0.001, 1.0, 0.001, 0.001, 0.001], 1) == [1, 1, 3]
    assert packing.seconds_of(SamplerPub.coerce(bell(), 1)) < 0.01
    heavy = QuantumCircuit(16)
    heavy.h(range(16))
    assert packing.seconds_of(SamplerPub.coerce(heavy, 1)) > 0.05


def test_a_circuit_is_sent_once(two: JobPool) -> None:
    block = packing._Block()
    circuit = bell()
    assert block.add(circuit, "it") == block.add(circuit, "it") != block.add(bell(), "another")
    job = PooledSampler(StatevectorSampler(seed=1), two).run([(circuit, None, n) for n in (1, 2)])
    assert [one.data.meas.num_shots for one in job.result(PATIENCE)] == [1, 2]


@pytest.mark.skipif(not HAVE_PACKETS, reason="nothing is held in files here")
def test_runs_that_wait_hold_few_descriptors(
    one: JobPool, marks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many: the program needs some itself."""
    monkeypatch.setattr(packing, "file_limit", lambda: 2)
    sampler = PooledSampler(Obedient(marks), alone(one))
    first = sampler.run([bell("hold")])
    begun(marks, "hold")
    before = descriptors()
    small = [sampler.run([bell(f"{n}"), bell()]) for n in range(4)]
    assert descriptors() == before
    heavy = bell()
    heavy.metadata = {"much": os.urandom(600_000)}
    large = [sampler.run([heavy, heavy]) for _ in range(4)]
    held = descriptors() - before
    monkeypatch.undo()
    (marks / "release").touch()
    results = [job.result(PATIENCE) for job in (first, *small, *large)]
    assert {tuple(bits(one)) for one in results[1:]} == {tuple(bits(results[1]))}
    # Two blocks; and what is too long for a message is in a file of its pool's.
    assert held == 2 + 2 * 2


# --- PrimitiveJob where Qiskit has its own ------------------------------------------------------


def test_our_status_equals_theirs() -> None:
    for mine, theirs in itertools.product(JobStatus, QiskitStatus):
        same = mine.name == theirs.name
        assert (mine == theirs) is (theirs == mine) is same
        assert ({mine: 1}.get(theirs) == 1) is ({theirs: 1}.get(mine) == 1) is same
    assert {mine.name: mine.value for mine in JobStatus} == {s.name: s.value for s in QiskitStatus}


@pytest.mark.skipif("__setattr__" in vars(DataBin), reason="its results cannot be unpickled")
def test_qiskits_primitives_run_with_our_job(two: JobPool, monkeypatch: pytest.MonkeyPatch) -> None:
    from primitive_jobs import pool

    monkeypatch.setattr(pool, "default_pool", lambda: two)
    monkeypatch.setattr(qiskit.primitives.statevector_sampler, "PrimitiveJob", PrimitiveJob)
    job = StatevectorSampler(seed=1).run(sampler_pubs())
    assert type(job) is PrimitiveJob
    result = job.result(PATIENCE)
    monkeypatch.undo()
    assert bits(result) == bits(StatevectorSampler(seed=1).run(sampler_pubs()).result())
    assert (job.status(), job.metadata) == (QiskitStatus.DONE, {})


def test_aer_with_an_executor(two: JobPool) -> None:
    """Aer takes the option, whether it uses it or not; an `AerJob` uses it."""
    circuits = [bell(f"bell {n}") for n in range(4)]
    options = {"shots": 50, "seed_simulator": 5}
    wanted = AerSimulator().run(circuits, **options).result().get_counts()
    with JobExecutor(pool=two) as executor:
        for backend in (
            AerSimulator(executor=executor),
            AerSimulator(executor=executor, max_job_size=1),
        ):
            found = backend.run(circuits, **options).result()
            assert [found.get_counts(circuit.name) for circuit in circuits] == wanted
        simulator = AerSimulator()
        job = AerJob(
            simulator,
            "an id",
            simulator._execute_circuits_job,
            circuits=circuits,
            run_options=options,
            executor=executor,
        )
        job.submit()
        assert job.result(PATIENCE).get_counts() == wanted
        assert job.status() is QiskitStatus.DONE
        assert job._future.job.done()
