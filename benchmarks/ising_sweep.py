"""How fast, at what price, is a sweep of the 2-D Ising model; and what does half of it cost?

16 temperatures, a job of a second or so each (less with --quick), in numpy on a lattice of
256 x 256 spins: many short numpy calls, between which threads wait for one another.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.batches import GOALS, METRICS, contenders
from benchmarks.harness import Question, Scale
from benchmarks.simulations import ISING

QUESTION = Question(
    name="ising_sweep",
    title="2-D Ising sweep, two workers",
    metrics=METRICS,
    contenders=contenders(ISING, "numpy"),
    goals=GOALS,
    full=Scale(rounds=3, limit=180, counts={"jobs": 16, "side": 256, "sweeps": 1000}),
    quick=Scale(rounds=1, limit=60, counts={"jobs": 8, "side": 128, "sweeps": 800}),
    smoke=Scale(rounds=1, limit=40, counts={"jobs": 4, "side": 16, "sweeps": 100}),
)

if __name__ == "__main__":
    from benchmarks.cli import main

    sys.exit(main(question=QUESTION.name))
