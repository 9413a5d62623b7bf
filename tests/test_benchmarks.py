"""The benchmarks: what the harness makes of figures and of contenders; and that each question runs.

No test looks at a speed. The peers of the extra `bench` take no part: they need not be installed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks import batches, cli, harness, pools, qiskit_pubs, report, simulations
from benchmarks.harness import (
    EVERY_PEER,
    FLOOR,
    OURS,
    Contender,
    ContenderError,
    Counts,
    Figures,
    Goal,
    Metric,
    Question,
    Report,
    Scale,
    absent,
    judge,
)
from primitive_jobs._wire.parcel import HAVE_PACKETS

ROOT = Path(__file__).resolve().parent.parent
TRACE = (
    "BENCHMARK_TEST_TRACE"  # the environment's name of the file in which a contender leaves pids
)


# --- a question of our own, whose contenders find it in this module -----------------------------


def fine(counts: Counts) -> Figures:
    print("a library that prints must not spoil the figures")
    return {"time": float(counts["size"])}


def failing(_: Counts) -> Figures:
    raise RuntimeError("it does not work")


def infinite(_: Counts) -> Figures:
    return {"time": float("inf")}


def stuck(_: Counts) -> Figures:
    """Ignore SIGTERM, and so does a child in a session of its own."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", SLEEP], start_new_session=True)
    trace = Path(os.environ[TRACE])
    draft = trace.with_suffix(".draft")
    draft.write_text(f"{os.getpid()} {child.pid}", encoding="ascii")
    draft.rename(trace)
    time.sleep(60)
    return {}


def untidy(_: Counts) -> Figures:
    """Leave a process behind that has nothing to do with this one any more."""
    child = subprocess.Popen([sys.executable, "-c", SLEEP], start_new_session=True)
    Path(os.environ[TRACE]).write_text(str(child.pid), encoding="ascii")
    return {"time": 1.0}


SLEEP = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
SCALE = Scale(rounds=2, limit=20, counts={"size": 3})
QUESTION = Question(
    name=Path(__file__).stem,
    package="tests",
    title="a question",
    metrics=(Metric("time", "time", "ms"), Metric("rate", "rate", "jobs/s", "higher")),
    contenders=(
        Contender(OURS, "ours", fine),
        Contender("bare", "floor", fine),
        Contender("failing", "peer", failing),
        Contender("infinite", "peer", infinite),
        Contender("stuck", "peer", stuck),
        Contender("untidy", "peer", untidy),
        Contender("aside", "aside", fine),
        Contender("elsewhere", "peer", fine, ("no-such-distribution-at-all",)),
        absent("unable", "it cannot do that"),
    ),
    goals=(
        Goal("time", FLOOR, at_most=1.2),
        Goal("time", EVERY_PEER, at_most=1.0),
        Goal("time", at_most=5),
        Goal("rate", EVERY_PEER, at_least=1.0, but=("failing",)),
    ),
    full=SCALE,
    quick=SCALE,
    smoke=SCALE,
)


# --- figures ------------------------------------------------------------------------------------


def report_of(**samples: list[Figures | None]) -> Report:
    """A report with these figures, round by round; None: no sample in that round."""
    found = Report(QUESTION, SCALE)
    for name, rounds in samples.items():
        for number, figures in enumerate(rounds, 1):
            if figures is not None:
                where = OURS if name == "ours" else name
                found.samples.setdefault(where, {})[number] = figures
    return found


def test_ratios_are_of_the_same_round() -> None:
    found = report_of(
        ours=[{"time": 2}, {"time": 30}, None, {"time": 8}],
        bare=[{"time": 1}, {"time": 10}, {"time": 5}, {"time": 2}],
    )
    assert found.ratios("time", "bare") == [2, 3, 4]
    assert found.ratio("time", "bare") == 3
    assert found.median("bare", "time") == 3.5
    assert found.median("failing", "time") is None
    assert found.ratio("time", "failing") is None


def test_a_zero_or_a_missing_figure_gives_no_ratio() -> None:
    found = report_of(ours=[{"time": 2}, {"time": 3}], bare=[{"time": 0}, {"rate": 1}])
    assert found.ratios("time", "bare") == []


def test_the_best_peer_is_the_one_that_ours_compares_worst_with() -> None:
    found = report_of(
        ours=[{"time": 2, "rate": 2}],
        bare=[{"time": 0.1, "rate": 99}],
        failing=[{"time": 1, "rate": 1}],
        untidy=[{"time": 3, "rate": 3}],
        aside=[{"time": 0.1, "rate": 99}],
    )
    assert found.best_peer("time") == "failing"
    assert found.best_peer("time", but=["failing"]) == "untidy"
    assert found.best_peer("rate") == "untidy"
    assert report_of(ours=[{"time": 1}]).best_peer("time") is None


@pytest.mark.parametrize(
    ("goal", "value", "reached", "text"),
    [
        (Goal("time", FLOOR, at_most=1.3), 2, False, "<= 1.3 x the floor: NOT reached, 2"),
        (Goal("time", "bare", at_most=2), 2, True, "<= 2 x bare: reached, 2"),
        (
            Goal("time", EVERY_PEER, at_most=1.0),
            4,
            False,
            "below every peer: NOT reached, 4 (failing)",
        ),
        (
            Goal("time", EVERY_PEER, at_most=0.5, but=("failing",)),
            0.5,
            True,
            "<= 0.5 x every other peer: reached, 0.5 (untidy)",
        ),
        (Goal("time", at_most=5), 4, True, "<= 5 ms: reached, 4"),
        (Goal("time", at_least=5), 4, False, ">= 5 ms: NOT reached, 4"),
        (Goal("time", "stuck", at_most=1.0), None, None, "<= 1 x stuck: not measured"),
        (Goal("rate", at_least=1.0), None, None, ">= 1 jobs/s: not measured"),
    ],
)
def test_goals(goal: Goal, value: float | None, reached: bool | None, text: str) -> None:
    found = report_of(
        ours=[{"time": 4}], bare=[{"time": 2}], failing=[{"time": 1}], untidy=[{"time": 8}]
    )
    verdict = judge(goal, found)
    assert (verdict.value, verdict.reached) == (value, reached)
    assert report.outcome(verdict, QUESTION.metric(goal.metric)) == text


def test_without_a_floor_or_peers_a_goal_is_not_measured() -> None:
    found = report_of(ours=[{"time": 4}])
    assert [judge(goal, found).reached for goal in QUESTION.goals] == [None, None, True, None]


def test_numbers_have_three_digits() -> None:
    shown = [report.number(value) for value in (None, 0, 0.01234, 1.234, 123.4, 12345.6)]
    assert shown == ["-", "0", "0.0123", "1.23", "123", "12,346"]


def test_repeat_stops_at_its_budget_but_not_before_the_least() -> None:
    assert list(harness.repeat(5, budget=60)) == [0, 1, 2, 3, 4]
    assert list(harness.repeat(5, budget=-1)) == [0, 1]
    assert list(harness.repeat(5, budget=-1, least=4)) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="wrong result: 1, not 2"):
        harness.expect(1, 2)


# --- contenders ---------------------------------------------------------------------------------


def measure(name: str, limit: float = 20, found: Report | None = None) -> Figures:
    scale = Scale(rounds=1, limit=limit, counts={"size": 3})
    return harness.measure_in_fresh_process(QUESTION, name, scale, found)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_failing_contender_is_left_out_and_the_others_go_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = [OURS, "bare", "failing", "infinite", "elsewhere", "unable"]
    found = harness.run_rounds(QUESTION, SCALE, names)
    assert found.samples == {name: {1: {"time": 3.0}, 2: {"time": 3.0}} for name in (OURS, "bare")}
    assert found.failed == {"failing", "infinite"}
    assert found.left_out == {
        "failing": "failed in round 1: RuntimeError: it does not work",
        "infinite": "failed in round 1: ValueError: time is inf",
        "elsewhere": "not installed",
        "unable": "it cannot do that",
    }
    text = "\n".join(report.as_text(found))
    for part in [*found.left_out.values(), "time <= 1.2 x the floor: reached, 1"]:
        assert part in text
    assert "failing FAILED" in capsys.readouterr().err
    rows = list(report.as_markdown([found]))
    assert [row.count("|") for row in rows] == [8] * 4
    assert json.loads(json.dumps(report.as_json([found])))["questions"][QUESTION.name]


def test_a_stuck_contender_is_ended_with_all_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = tmp_path / "pids"
    monkeypatch.setenv(TRACE, str(trace))
    monkeypatch.setattr(harness, "TERM_GRACE", 0.2)
    monkeypatch.setattr(harness, "SETTLE", 0.2)
    ended_within = harness.ended_within

    def ended_once_stuck(process: subprocess.Popen[bytes], seconds: float) -> bool:
        """The time begins when it is stuck, however long its imports take."""
        end = time.monotonic() + 30
        while not trace.exists() and time.monotonic() < end:
            time.sleep(0.01)
        return ended_within(process, seconds)

    monkeypatch.setattr(harness, "ended_within", ended_once_stuck)
    with pytest.raises(ContenderError, match="stuck: not done in 1 s"):
        measure("stuck", limit=1)
    pids = [int(pid) for pid in trace.read_text(encoding="ascii").split()]
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)


def test_what_a_contender_leaves_behind_is_counted_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = tmp_path / "pid"
    monkeypatch.setenv(TRACE, str(trace))
    monkeypatch.setattr(harness, "SETTLE", 0.2)
    found = Report(QUESTION, SCALE)
    assert measure("untidy", found=found) == {"time": 1.0}
    assert found.left_behind == {"untidy": 1}
    assert gone(int(trace.read_text(encoding="ascii")))


# --- the real questions -------------------------------------------------------------------------


@pytest.mark.parametrize("name", cli.QUESTIONS)
def test_every_question_is_sound(name: str) -> None:
    question = harness.load(f"benchmarks.{name}")
    assert question.name == name
    names = [one.name for one in question.contenders]
    assert len(set(names)) == len(names)
    roles = [one.role for one in question.contenders]
    assert (roles.count("ours"), roles.count("floor") <= 1) == (1, True)
    for goal in question.goals:
        assert goal.metric in [metric.key for metric in question.metrics]
        assert goal.against in (*names, "", EVERY_PEER, FLOOR)
        assert goal.against != FLOOR or "floor" in roles
        assert set(goal.but) <= set(names)


@pytest.mark.parametrize("name", cli.QUESTIONS)
def test_every_question_yields_figures(name: str) -> None:
    question = harness.load(f"benchmarks.{name}")
    if any(harness.version_of(needed) is None for needed in question.contender(OURS).needs):
        pytest.skip("it asks about what is not installed")
    if name in ("large_array", "shared_array") and not HAVE_PACKETS:
        pytest.skip("its floor writes into memfds, which are not to be had here")
    names = [one.name for one in question.contenders if one.role in ("ours", "floor")]
    found = harness.run_rounds(question, question.smoke, names)
    assert not found.left_out
    assert not found.left_behind
    for metric in question.metrics:
        assert found.median(OURS, metric.key) is not None
    assert (floor := found.floor()) is None or found.samples[floor]
    written = json.loads(json.dumps(report.as_json([found])))["questions"][name]
    assert written["contenders"][OURS]["rounds"]["1"]
    assert len(written["goals"]) == len(question.goals)


# --- the heavy simulations ----------------------------------------------------------------------

SMALL = {"jobs": 6, "side": 32, "sweeps": 200, "paths": 2000, "steps": 8}


def test_wrong_magnetizations_are_noticed() -> None:
    lattices = simulations.ISING.inputs(SMALL)
    found = [simulations.ISING.function(one) for one in lattices]
    simulations.ISING.check(lattices, found)
    for wrong in ([found[-1], *found[1:]], [*found[:-1], found[0]]):
        with pytest.raises(ValueError, match="wrong magnetization"):
            simulations.ISING.check(lattices, wrong)


def test_wrong_prices_are_noticed() -> None:
    streams = simulations.OPTION.inputs(SMALL)
    found = [simulations.OPTION.function(one) for one in streams]
    simulations.OPTION.check(streams, found)
    wrong = [one._replace(geometric=one.geometric + 1) for one in found]
    with pytest.raises(ValueError, match="wrong price"):
        simulations.OPTION.check(streams, wrong)


@pytest.mark.parametrize("kind", ["statevector", "estimator"])
def test_wrong_results_of_pubs_are_noticed(kind: str) -> None:
    pytest.importorskip("qiskit")
    pubs = qiskit_pubs.make_pubs(kind, 64, 3, 1)
    with qiskit_pubs.original(kind) as run:
        found = run(pubs)
    qiskit_pubs.check(kind, pubs, found)
    with pytest.raises(ValueError, match=r"wrong (energy|first qubit)"):
        qiskit_pubs.check(kind, pubs, found[::-1])


def test_a_change_of_mind_keeps_the_others() -> None:
    kept = batches.pooled_half(pools.ours, abs, list(range(-8, 0)))
    assert kept.results == [8, 6, 4, 2]
    assert batches.anew_half(abs, list(range(-8, 0))).results == [8, 6, 4, 2]


JOBLIB_HALF = """
import sys, threading, time
from pathlib import Path
from benchmarks import batches

marks = Path(sys.argv[1])

def hold_and_tell(number):
    # However late the decision is, it counts before the last ones are sent.
    while number >= 16 and not (marks / "decided").exists():
        time.sleep(0.01)
    (marks / str(number)).touch()
    return number

def decide(take, count):
    for number in range(count // 4):
        take(number)
    threading.Timer(1.0, (marks / "decided").touch).start()

batches.decide = decide
print(batches.joblib_half(hold_and_tell, list(range(64))).results == list(range(0, 64, 2)))
"""


def test_joblib_is_sent_no_more_of_what_is_not_wanted(marks: Path) -> None:
    pytest.importorskip("joblib")
    command = [sys.executable, "-c", JOBLIB_HALF, str(marks)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
    assert not (marks / "63").exists()


def test_the_memory_of_children_is_watched() -> None:
    hold = "import sys; data = b'x' * 80_000_000; print(flush=True); sys.stdin.read(1)"
    with batches.watched_memory() as peak:
        child = subprocess.Popen(
            [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        child.stdout.readline()
    child.communicate(b"x")
    assert 80_000_000 < peak() < 1_000_000_000


def test_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks", "--smoke", "--json", str(path), "--only"]
    done = subprocess.run(
        [*command, "import_time", "round_trip"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "round_trip: round 1/1" in done.stderr
    assert done.stdout.startswith("python: CPython")
    assert "| question | ours | floor | best peer |" in done.stdout
    assert set(json.loads(path.read_text(encoding="utf-8"))["questions"]) == {
        "import_time",
        "round_trip",
    }


def test_a_file_runs_by_itself() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "round_trip.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True)
    assert "--json FILE" in done.stdout


def test_a_plot_needs_matplotlib(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "version_of", lambda _: None)
    with pytest.raises(SystemExit):
        cli.main(["--plot", "figures.svg"])
    assert "--plot needs matplotlib" in capsys.readouterr().err
