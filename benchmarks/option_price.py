"""How fast, at what price, is a Monte Carlo option price; and what does half of it cost?

16 streams of paths, a job of a second or so each (less with --quick), in numpy on arrays of
250 MB: few long numpy calls, most of which release the GIL, so that threads do well here.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.batches import GOALS, METRICS, contenders
from benchmarks.harness import Question, Scale
from benchmarks.simulations import OPTION

QUESTION = Question(
    name="option_price",
    title="Monte Carlo option price, two workers",
    metrics=METRICS,
    contenders=contenders(OPTION, "numpy"),
    goals=GOALS,
    full=Scale(rounds=3, limit=180, counts={"jobs": 16, "paths": 250_000, "steps": 128}),
    quick=Scale(rounds=1, limit=60, counts={"jobs": 8, "paths": 100_000, "steps": 128}),
    smoke=Scale(rounds=1, limit=40, counts={"jobs": 4, "paths": 1000, "steps": 8}),
)

if __name__ == "__main__":
    from benchmarks.cli import main

    sys.exit(main(question=QUESTION.name))
