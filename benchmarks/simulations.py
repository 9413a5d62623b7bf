"""Three heavy simulations: what a job of each computes, what is in a batch, what has to come out.

The workers import the functions from here, so this imports nothing of any pool; numpy and Qiskit
come with the first call. A job's numbers depend on its input alone, which holds its seed.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.harness import SEED, Counts, expect


@dataclasses.dataclass(frozen=True)
class Simulation:
    """A batch of jobs of one kind."""

    function: Callable[[Any], Any]
    inputs: Callable[[Counts], list[Any]]
    """One for each job."""
    check: Callable[[list[Any], list[Any]], None]
    """Of inputs and results; raises where these are not the physics or the market's mathematics."""


# --- the Ising model of a square lattice, one temperature a job ---------------------------------

CRITICAL = 2 / math.log(1 + math.sqrt(2))  # Onsager 1944, in units of the coupling
TEMPERATURES = (1.4, 3.8)  # from, to: both phases


class Lattice(NamedTuple):
    """One job of the sweep."""

    temperature: float
    side: int
    sweeps: int
    seed: int


def ising_inputs(counts: Counts) -> list[Lattice]:
    low, high = TEMPERATURES
    jobs = counts["jobs"]
    step = (high - low) / jobs
    return [
        Lattice(low + step * number, counts["side"], counts["sweeps"], SEED + number)
        for number in range(jobs)
    ]


def magnetization(lattice: Lattice) -> float:
    """Return the mean of |M| per spin: Metropolis, one half of the checkerboard after the other."""
    import numpy as np

    generator = np.random.default_rng(lattice.seed)
    shape = (lattice.side, lattice.side)
    spins = np.ones(shape, dtype=np.int8)
    black = np.indices(shape).sum(axis=0) % 2 == 0
    # A flip costs the energy 2h, h = spin * (sum of its neighbours) from -4 to 4.
    accept = np.exp(-2 / lattice.temperature * np.arange(-4, 5))
    samples = []
    for sweep in range(lattice.sweeps):
        for half in (black, ~black):
            around = np.roll(spins, 1, 0) + np.roll(spins, -1, 0)
            around += np.roll(spins, 1, 1) + np.roll(spins, -1, 1)
            flip = half & (generator.random(shape) < accept[spins * around + 4])
            spins[flip] *= -1
        if sweep >= lattice.sweeps // 4:
            samples.append(abs(float(spins.mean())))
    return statistics.fmean(samples)


def check_magnetization(lattices: list[Any], found: list[Any]) -> None:
    """Hold it against Onsager's and Yang's, except near the critical temperature."""
    for lattice, value in zip(lattices, found, strict=True):
        temperature = lattice.temperature
        if temperature < 0.85 * CRITICAL:
            exact = (1 - math.sinh(2 / temperature) ** -4) ** 0.125
            expect(abs(value - exact) < 0.02, True, f"magnetization at T = {temperature}: {value}")
        elif temperature > 1.4 * CRITICAL:
            # Of a finite lattice something is left, the less the larger it is.
            expect(value < 4 / lattice.side, True, f"magnetization at T = {temperature}: {value}")


ISING = Simulation(magnetization, ising_inputs, check_magnetization)


# --- the price of an Asian option, one stream of paths a job ------------------------------------

SPOT, STRIKE, RATE, VOLATILITY, YEARS = 100.0, 105.0, 0.03, 0.25, 1.0


class Stream(NamedTuple):
    """One job of the pricing."""

    paths: int
    steps: int
    seed: int


class Prices(NamedTuple):
    """Of one stream: means of the discounted payoffs."""

    arithmetic: float
    geometric: float
    error: float
    """Standard error of the geometric one."""


def option_inputs(counts: Counts) -> list[Stream]:
    return [
        Stream(counts["paths"], counts["steps"], SEED + number) for number in range(counts["jobs"])
    ]


def asian_call(stream: Stream) -> Prices:
    """Price calls on the mean of the stock's prices, by geometric Brownian motion."""
    import numpy as np

    generator = np.random.default_rng(stream.seed)
    step = YEARS / stream.steps
    logs = generator.standard_normal((stream.steps, stream.paths))
    logs *= VOLATILITY * math.sqrt(step)
    logs += (RATE - VOLATILITY**2 / 2) * step
    np.cumsum(logs, axis=0, out=logs)
    geometric = SPOT * np.exp(logs.mean(axis=0))
    np.exp(logs, out=logs)
    arithmetic = SPOT * logs.mean(axis=0)
    discount = math.exp(-RATE * YEARS)
    payoff = discount * np.maximum(geometric - STRIKE, 0)
    return Prices(
        float(discount * np.maximum(arithmetic - STRIKE, 0).mean()),
        float(payoff.mean()),
        float(payoff.std() / math.sqrt(stream.paths)),
    )


def check_prices(streams: list[Any], found: list[Any]) -> None:
    """Hold the geometric price against its closed form (Kemna and Vorst 1990)."""
    steps = streams[0].steps
    price = statistics.fmean(one.geometric for one in found)
    error = math.sqrt(sum(one.error**2 for one in found)) / len(found)
    exact = _geometric_call(steps)
    expect(abs(price - exact) < 4 * error, True, f"price: {price}, exactly {exact}")
    arithmetic = statistics.fmean(one.arithmetic for one in found)
    expect(arithmetic > price, True, f"order of the prices: {arithmetic}, {price}")


def _geometric_call(steps: int) -> float:
    """Return the price where the mean is that of the logarithms at so many equal steps."""
    normal = statistics.NormalDist()
    mean = math.log(SPOT) + (RATE - VOLATILITY**2 / 2) * YEARS * (steps + 1) / (2 * steps)
    variance = VOLATILITY**2 * YEARS * (steps + 1) * (2 * steps + 1) / (6 * steps**2)
    deviation = math.sqrt(variance)
    upper = (mean - math.log(STRIKE) + variance) / deviation
    forward = math.exp(mean + variance / 2)
    gain = forward * normal.cdf(upper) - STRIKE * normal.cdf(upper - deviation)
    return math.exp(-RATE * YEARS) * gain


OPTION = Simulation(asian_call, option_inputs, check_prices)


# --- sampling from state vectors of Qiskit, one circuit a job -----------------------------------


class Sampling(NamedTuple):
    """One job of the batch."""

    circuit: Any
    shots: int
    parity: int
    """What the exclusive or of all bits is, in each shot."""
    seed: int


def sampling_inputs(counts: Counts) -> list[Sampling]:
    qubits, layers, shots = counts["qubits"], counts["layers"], counts["shots"]
    return [
        Sampling(_circuit(qubits, layers, number), shots, number % 2, SEED + number)
        for number in range(counts["jobs"])
    ]


def _circuit(qubits: int, layers: int, number: int) -> Any:
    """Return a circuit that mixes all states of one parity: even, or odd for an odd number."""
    from qiskit import QuantumCircuit

    circuit = QuantumCircuit(qubits)
    if number % 2:
        circuit.x(0)
    for layer in range(layers):
        for qubit in range(layer % 2, qubits - 1, 2):
            circuit.rxx(0.3 + 0.01 * number + 0.02 * layer, qubit, qubit + 1)
            circuit.rz(0.1 + 0.02 * qubit, qubit)
    circuit.measure_all()
    return circuit


def sample(job: Sampling) -> dict[str, int]:
    """Return the counts."""
    from qiskit.primitives import StatevectorSampler

    sampler = StatevectorSampler(default_shots=job.shots, seed=job.seed)
    counts: dict[str, int] = sampler.run([job.circuit]).result()[0].data.meas.get_counts()
    return counts


def check_counts(jobs: list[Any], found: list[Any]) -> None:
    """Each circuit conserves the parity, and spreads over many states."""
    for job, counts in zip(jobs, found, strict=True):
        expect(sum(counts.values()), job.shots, "number of shots")
        expect({bits.count("1") % 2 for bits in counts}, {job.parity}, "parity")
        expect(len(counts) > 1, True, "spread")


SAMPLING = Simulation(sample, sampling_inputs, check_counts)
