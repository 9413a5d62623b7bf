"""How fast, at what price, is a batch of samplings with Qiskit; and what does half of it cost?

16 circuits of 16 qubits, a job of a second or so each (less with --quick), by a StatevectorSampler
in each job. Qiskit has threads of its own for some gates, so that a loop uses more than one core.
(`PooledSampler`, which does the spreading by itself, is in qiskit_pubs.py.)
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.batches import GOALS, METRICS, contenders
from benchmarks.harness import Question, Scale
from benchmarks.simulations import SAMPLING

QUESTION = Question(
    name="sampling_batch",
    title="Qiskit sampling batch, two workers",
    metrics=METRICS,
    contenders=contenders(SAMPLING, "qiskit"),
    goals=GOALS,
    full=Scale(rounds=3, limit=240, counts={"jobs": 16, "qubits": 16, "layers": 10, "shots": 4096}),
    quick=Scale(rounds=1, limit=90, counts={"jobs": 8, "qubits": 14, "layers": 8, "shots": 4096}),
    smoke=Scale(rounds=1, limit=40, counts={"jobs": 4, "qubits": 4, "layers": 3, "shots": 64}),
)

if __name__ == "__main__":
    from benchmarks.cli import main

    sys.exit(main(question=QUESTION.name))
