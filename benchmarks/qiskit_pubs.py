"""From how many pubs, and how large, does it pay to spread those of Qiskit over two workers?

Circuits of 4 and of 16 qubits; 1, 8 and 64 pubs, each with a circuit of its own. The original runs
one pub after the other in a thread; `run` called once for each pub gives each a thread, all bound
by one GIL. Workers and originals are warm; with 1 pub there is nothing to spread, only what the
journey costs.

The asides are other primitives, each with its original: the estimator, and Aer's sampler, which
simulates in C++ on all cores by itself.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import (
    OURS,
    Contender,
    Counts,
    Figures,
    Goal,
    Metric,
    Question,
    Scale,
    expect,
    repeat,
)

WORKERS = 2
BUDGET = 2.0  # s, for the repetitions of one case

Run = Callable[[list[Any]], Any]
"""Run pubs and return their pub results."""


def make_pubs(kind: str, count: int, qubits: int, layers: int) -> list[Any]:
    from qiskit import QuantumCircuit
    from qiskit.quantum_info import SparsePauliOp

    neighbours = [("ZZ", [qubit, qubit + 1], 1.0) for qubit in range(qubits - 1)]
    energy = SparsePauliOp.from_sparse_list(neighbours, qubits)
    made: list[Any] = []
    for number in range(count):
        circuit = QuantumCircuit(qubits)
        for layer in range(layers):
            for qubit in range(qubits):
                circuit.ry(0.1 + 0.01 * number + 0.2 * layer + 0.3 * qubit, qubit)
            for qubit in range(qubits - 1):
                circuit.cx(qubit, qubit + 1)
        if kind == "estimator":
            made.append((circuit, energy))
        else:
            circuit.measure_all()
            made.append((circuit,))
    return made


def primitive(kind: str) -> Any:
    if kind == "aer":
        from qiskit_aer.primitives import SamplerV2

        return SamplerV2(seed=1)
    from qiskit.primitives import StatevectorEstimator, StatevectorSampler

    return StatevectorEstimator(seed=1) if kind == "estimator" else StatevectorSampler(seed=1)


def check(kind: str, pubs: list[Any], results: list[Any]) -> None:
    """Hold the last one's energy, or how often its first qubit is 1, against the exact value."""
    from qiskit.quantum_info import Statevector

    expect(len(results), len(pubs), "number of results")
    circuit, data = pubs[-1][0], results[-1].data
    if kind == "estimator":
        exact = float(Statevector(circuit).expectation_value(pubs[-1][1]).real)
        expect(math.isclose(data.evs, exact, abs_tol=1e-6), True, f"energy {data.evs}, not {exact}")
        return
    expect(data.meas.num_bits, circuit.num_qubits, "number of bits")
    state = Statevector(circuit.remove_final_measurements(inplace=False))
    exact, shots = float(state.probabilities([0])[1]), data.meas.num_shots
    found = data.meas.slice_bits([0]).get_int_counts().get(1, 0) / shots
    error = math.sqrt(exact * (1 - exact) / shots)
    expect(abs(found - exact) < 5 * error, True, f"first qubit: {found}, not {exact}")


def original(kind: str) -> AbstractContextManager[Run]:
    wrapped = primitive(kind)
    return nullcontext(lambda pubs: list(wrapped.run(pubs).result()))


def thread_for_each(kind: str) -> AbstractContextManager[Run]:
    wrapped = primitive(kind)

    def run(pubs: list[Any]) -> list[Any]:
        jobs = [wrapped.run([pub]) for pub in pubs]
        return [job.result()[0] for job in jobs]

    return nullcontext(run)


@contextmanager
def pooled(kind: str) -> Iterator[Run]:
    from primitive_jobs import JobPool
    from primitive_jobs.qiskit import PooledEstimator, PooledSampler

    with JobPool(WORKERS) as pool:
        wrap: Any = PooledEstimator if kind == "estimator" else PooledSampler
        wrapped = wrap(primitive(kind), pool)
        yield lambda pubs: list(wrapped.run(pubs).result())


def measure(start: Callable[[str], AbstractContextManager[Run]], kind: str, c: Counts) -> Figures:
    figures = {}
    with start(kind) as run:
        # All have started, and imported what they need, after this.
        run(make_pubs(kind, 4 * WORKERS, 2, 1))
        for size, qubits in (("small", c["small"]), ("large", c["large"])):
            for amount, count in (("one", 1), ("some", c["some"]), ("many", c["many"])):
                pubs = make_pubs(kind, count, qubits, c["layers"])
                times = []
                for _ in repeat(c["repeats"], BUDGET, least=1):
                    started = time.perf_counter()
                    results = run(pubs)
                    times.append(time.perf_counter() - started)
                check(kind, pubs, results)
                figures[f"{size}_{amount}"] = 1000 * statistics.median(times)
    return figures


QISKIT = ("qiskit",)
AER = ("qiskit", "qiskit-aer")
ORIGINAL = "StatevectorSampler"
ESTIMATOR = "StatevectorEstimator"

QUESTION = Question(
    name="qiskit_pubs",
    title="Qiskit's StatevectorSampler, two workers",
    metrics=(
        Metric("small_one", "1 pub, 4 qubits", "ms", headline=False),
        Metric("small_some", "8 pubs, 4 qubits", "ms", headline=False),
        Metric("small_many", "64 pubs, 4 qubits", "ms"),
        Metric("large_one", "1 pub, 16 qubits", "ms", headline=False),
        Metric("large_some", "8 pubs, 16 qubits", "ms", headline=False),
        Metric("large_many", "64 pubs, 16 qubits", "ms"),
    ),
    contenders=(
        Contender(OURS, "ours", partial(measure, pooled, "statevector"), QISKIT),
        Contender(ORIGINAL, "peer", partial(measure, original, "statevector"), QISKIT),
        Contender(
            f"{ORIGINAL}, run() for each pub",
            "peer",
            partial(measure, thread_for_each, "statevector"),
            QISKIT,
        ),
        Contender(ESTIMATOR, "aside", partial(measure, original, "estimator"), QISKIT),
        Contender(f"{ESTIMATOR}, pooled", "aside", partial(measure, pooled, "estimator"), QISKIT),
        Contender("Aer's SamplerV2", "aside", partial(measure, original, "aer"), AER),
        Contender("Aer's SamplerV2, pooled", "aside", partial(measure, pooled, "aer"), AER),
    ),
    goals=(
        Goal("small_many", ORIGINAL, at_most=0.7),
        Goal("large_some", ORIGINAL, at_most=0.6),
        Goal("large_many", ORIGINAL, at_most=0.6),
    ),
    full=Scale(
        rounds=3,
        limit=200,
        counts={"small": 4, "large": 16, "some": 8, "many": 64, "layers": 2, "repeats": 5},
    ),
    quick=Scale(
        rounds=1,
        limit=120,
        counts={"small": 4, "large": 16, "some": 8, "many": 64, "layers": 1, "repeats": 3},
    ),
    smoke=Scale(
        rounds=1,
        limit=40,
        counts={"small": 2, "large": 3, "some": 2, "many": 4, "layers": 1, "repeats": 1},
    ),
)

if __name__ == "__main__":
    from benchmarks.cli import main

    sys.exit(main(question=QUESTION.name))
