"""The demo: its physics against exact results, its output on a pipe and on a terminal."""

from __future__ import annotations

import errno
import fcntl
import io
import itertools
import math
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from statistics import fmean, stdev

import pytest

from primitive_jobs.__main__ import main
from primitive_jobs.demo import (
    BINS,
    CRITICAL_TEMPERATURE,
    HIDE_CURSOR,
    PLOT_HEIGHT,
    SHOW_CURSOR,
    TEMPERATURES,
    Magnetization,
    Point,
    Scale,
    binned,
    exact_magnetization,
    job_seed,
    magnetization_plot,
    run_demo,
    simulate,
)

ARGUMENTS = ["demo", "--quick", "--seed", "1"]
COMMAND = [sys.executable, "-m", "primitive_jobs", *ARGUMENTS]
# The same with less physics, for what is not about it.
LESS = """
import sys
from primitive_jobs import __main__, demo
demo.QUICK = demo.Scale(side=15, warm_up=20, sweeps=300, endless=0.3)
sys.exit(__main__.main(sys.argv[1:]))
"""
SMALLER = [sys.executable, "-c", LESS, *ARGUMENTS]
CLOSING_LINE = "12 DONE, 1 CANCELLED, 1 ERROR"
PATIENCE = 150  # s, for a machine that is busy with other things
ROWS = len(TEMPERATURES) + 2


# --- physics ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("temperature", "magnetization"),
    [(1.5, 0.986499), (2.0, 0.911319), (2.2, 0.784755), (2.27, 0.0), (3.5, 0.0)],
)
def test_exact_magnetization(temperature: float, magnetization: float) -> None:
    assert exact_magnetization(temperature) == pytest.approx(magnetization, abs=1e-6)


def test_exact_magnetization_agrees_with_its_low_temperature_series() -> None:
    u = math.exp(-4 / 0.8)
    series = 1 - 2 * u**2 - 8 * u**3 - 34 * u**4 - 152 * u**5 - 714 * u**6
    assert exact_magnetization(0.8) == pytest.approx(series, abs=1e-11)


def test_exact_magnetization_is_real_at_the_critical_temperature() -> None:
    assert pytest.approx(2.269185, abs=1e-6) == CRITICAL_TEMPERATURE
    assert exact_magnetization(CRITICAL_TEMPERATURE) == 0.0
    temperature = CRITICAL_TEMPERATURE
    for _ in range(50):
        temperature = math.nextafter(temperature, 0.0)
        assert 0.0 <= exact_magnetization(temperature) < 0.05


def enumerated_magnetization(side: int, temperature: float) -> float:
    """<|M|> from the sum over all states of the ring with bonds i to i + 1 and i to i + side."""
    sites = side * (side + 1)
    weight_sum = magnetization_sum = 0.0
    for spins in itertools.product((-1, 1), repeat=sites):
        bonds = sum(
            spin * (spins[(i + 1) % sites] + spins[(i + side) % sites])
            for i, spin in enumerate(spins)
        )
        weight = math.exp(bonds / temperature)
        weight_sum += weight
        magnetization_sum += weight * abs(sum(spins)) / sites
    return magnetization_sum / weight_sum


@pytest.mark.parametrize("temperature", [1.5, 2.5, 4.0])
def test_simulation_agrees_with_the_sum_over_all_states(temperature: float) -> None:
    scale = Scale(side=3, warm_up=100, sweeps=20_000, endless=0.0)
    measured = simulate(temperature, scale, seed=1)
    assert measured.error < 0.01
    exact = enumerated_magnetization(scale.side, temperature)
    assert abs(measured.mean - exact) < 4 * measured.error


def test_small_lattice_agrees_with_the_exact_curve_well_below_the_critical_temperature() -> None:
    measured = simulate(1.5, Scale(side=15, warm_up=50, sweeps=600, endless=0.0), seed=1)
    assert measured.mean == pytest.approx(exact_magnetization(1.5), abs=0.003)


def test_a_seed_fixes_the_result() -> None:
    scale = Scale(side=7, warm_up=10, sweeps=100, endless=0.0)
    assert simulate(2.2, scale, seed=5) == simulate(2.2, scale, seed=5)
    assert simulate(2.2, scale, seed=5) != simulate(2.2, scale, seed=6)


def test_the_warm_up_is_not_measured() -> None:
    def mean(warm_up: int, sweeps: int) -> float:
        return simulate(3.0, Scale(side=7, warm_up=warm_up, sweeps=sweeps, endless=0.0), 1).mean

    first, second, both = mean(0, BINS), mean(BINS, BINS), mean(0, 2 * BINS)
    assert first > second  # it starts with all spins up
    assert both == pytest.approx((first + second) / 2)


def test_every_temperature_has_a_seed_of_its_own() -> None:
    pairs = list(itertools.product(range(20), range(len(TEMPERATURES))))
    assert len({job_seed(seed, index) for seed, index in pairs}) == len(pairs)


def test_the_error_is_that_of_the_bins() -> None:
    means = [float(k % 4) for k in range(BINS)]
    samples = [mean for mean in means for _ in range(50)]
    assert binned(samples) == Magnetization(fmean(means), stdev(means) / math.sqrt(BINS))


def test_the_plot_puts_points_and_curve_in_their_places() -> None:
    points = [Point(1.0, Magnetization(0.5, 0.0)), Point(3.6, Magnetization(1.0, 0.0))]
    lines = magnetization_plot(points, width=27)  # one column for each 0.1
    grid = [line[6:].ljust(27) for line in lines[1 : PLOT_HEIGHT + 1]]
    assert grid[PLOT_HEIGHT // 2][0] == "o"
    assert grid[0][26] == "o"
    assert sum(row.count("o") for row in grid) == len(points)
    assert grid[0][1:8] == "......."  # up to T = 1.7, where M = 0.971
    assert "".join(row[13] for row in grid[4:]).strip("o") == "." * (PLOT_HEIGHT - 4)  # the drop
    assert grid[-1].strip() == "." * 14  # T = 2.3 and above
    assert lines[-1].index("1.5") == 6 + 5 - 1  # centred below its column


# --- the whole demo, in this process ---------------------------------------------------------

TINY = Scale(side=3, warm_up=5, sweeps=40, endless=0.05)


def result_lines(text: str) -> list[str]:
    return re.findall(r"^\d\.\d\d +\d\.\d{5} .*$", text, re.MULTILINE)


def demo_output(workers: int, seed: int) -> str:
    stream = io.StringIO()
    assert run_demo(workers, seed, TINY, stream) == 0
    return stream.getvalue()


def test_results_depend_on_the_seed_and_not_on_the_workers() -> None:
    one = result_lines(demo_output(workers=1, seed=1))
    assert len(one) == len(TEMPERATURES)
    assert result_lines(demo_output(workers=3, seed=1)) == one
    assert result_lines(demo_output(workers=2, seed=2)) != one


def test_a_job_that_ends_otherwise_than_planned_is_told_by_the_exit_status(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("primitive_jobs.demo.simulate", math.gamma)  # four arguments: TypeError
    stream = io.StringIO()
    assert run_demo(2, 1, TINY, stream) == 1
    assert stream.getvalue().endswith("\n0 DONE, 1 CANCELLED, 13 ERROR\n")


# --- the command line ------------------------------------------------------------------------


def test_no_command_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "demo" in capsys.readouterr().out


@pytest.mark.parametrize("workers", ["0", "-1", "two"])
def test_bad_workers_are_refused(workers: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["demo", f"--workers={workers}"])
    assert exit_info.value.code == 2
    captured = capsys.readouterr()
    assert "argument --workers: " in captured.err
    assert captured.out == ""


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["--version"])
    assert exit_info.value.code == 0
    version = r"primitive_jobs (\d+\.\d+\S*|\(not installed\))\n"
    assert re.fullmatch(version, capsys.readouterr().out)


# --- on a pipe -------------------------------------------------------------------------------


@pytest.mark.timeout(PATIENCE + 20)
def test_demo_on_a_pipe() -> None:
    process = subprocess.run(COMMAND, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert process.stderr == ""
    assert process.returncode == 0
    lines = process.stdout.splitlines()
    assert lines[-1] == CLOSING_LINE
    assert "\x1b" not in process.stdout

    changes = [line.partition("] ")[2] for line in lines if line.startswith("[")]
    (cancelled,) = [line for line in changes if "-> CANCELLED" in line]
    assert cancelled.startswith("never ends  RUNNING -> CANCELLED  killed by cancel() in ")
    (failed,) = [line for line in changes if "-> ERROR" in line]
    assert failed == "segfault  RUNNING -> ERROR  WorkerDiedError: SIGSEGV"
    assert sum(line.startswith("segfault: WorkerDiedError: ") for line in lines) == 1
    done = [line for line in changes if "RUNNING -> DONE  |M| = 0." in line]
    assert {line.partition("  ")[0] for line in done} == {f"T={t:.2f}" for t in TEMPERATURES}
    for name in ("never ends", "segfault", "T=1.20"):
        walk = [re.split(r" {2}| -> ", line)[1:3] for line in changes if line.startswith(name)]
        assert walk[0][0] == "INITIALIZING"
        assert all(before[1] == after[0] for before, after in itertools.pairwise(walk))

    for line in result_lines(process.stdout):
        temperature, measured, error, exact, difference = map(float, line.split())
        assert exact == pytest.approx(exact_magnetization(temperature), abs=1e-5)
        assert difference == pytest.approx(measured - exact, abs=2e-5)
        if abs(temperature - CRITICAL_TEMPERATURE) > 0.15 and exact > 0:
            assert abs(difference) < 5 * error + 1e-5
    assert len(result_lines(process.stdout)) == len(TEMPERATURES)


@pytest.mark.timeout(PATIENCE + 20)
def test_a_reader_that_goes_away_ends_the_demo_quietly() -> None:
    process = subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    with process, process.stderr:
        assert process.stdout.readline().startswith("2-D Ising model")
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(PATIENCE) == 1


# --- on a terminal ---------------------------------------------------------------------------


def read_terminal(parent: int) -> bytes:
    """What there is to read; b"" once no process holds the other side."""
    try:
        return os.read(parent, 65536)
    except OSError as error:
        if error.errno == errno.EIO:  # Linux has no end of file here
            return b""
        raise


# Makes standard output the controlling terminal: a Ctrl-C there goes to the whole process group.
TAKE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(1, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def run_on_terminal(
    size: tuple[int, int],
    demo: list[str] = COMMAND,
    env: Mapping[str, str] | None = None,
    type_after: tuple[str, bytes] = ("", b""),
) -> tuple[int, str]:
    """Run the demo on a terminal of (lines, columns), where keys are typed once some text has
    appeared; return the exit status and all that was written.
    """
    parent, child = pty.openpty()
    try:
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        environment = {k: v for k, v in os.environ.items() if k not in {"COLUMNS", "LINES"}}
        environment |= {"TERM": "xterm", **(env or {})}
        command = [sys.executable, "-c", TAKE_TERMINAL, *demo]
        process = subprocess.Popen(
            command, stdout=child, stderr=child, env=environment, start_new_session=True
        )
    finally:
        os.close(child)
    text = ""
    awaited, keys = type_after
    try:
        while chunk := read_terminal(parent):
            text += chunk.decode("ascii")
            if keys and awaited in text:
                os.write(parent, keys)
                keys = b""
        return process.wait(PATIENCE), text.replace("\r\n", "\n")
    finally:
        process.kill()
        process.wait()
        os.close(parent)


def without_escapes(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.mark.timeout(PATIENCE + 20)
def test_the_table_is_redrawn_in_place() -> None:
    status, text = run_on_terminal((24, 64), SMALLER)
    assert status == 0
    assert text.endswith(f"\n{CLOSING_LINE}\n")
    assert text.count(HIDE_CURSOR) == text.count(SHOW_CURSOR) == 1
    assert text.index(HIDE_CURSOR) < text.index(SHOW_CURSOR)
    assert " -> " not in text

    table = text[text.index(HIDE_CURSOR) + len(HIDE_CURSOR) : text.index(SHOW_CURSOR)]
    first, *frames = re.split(r"\x1b\[(\d+)A", table)
    assert len(frames) > 2
    for up, frame in zip(frames[::2], [first, *frames[1::2]], strict=False):
        assert int(up) == frame.count("\n") == ROWS + 2
    assert all(len(line) < 64 for line in without_escapes(table).replace("\r", "\n").split("\n"))
    last = without_escapes(frames[-1])
    assert re.search(r"never ends +CANCELLED .* killed by cancel", last)
    assert re.search(r"segfault +ERROR .* WorkerDiedError: SIGSEGV", last)
    assert last.count("DONE  ") == len(TEMPERATURES)
    assert "\x1b[32mDONE" in frames[-1]


@pytest.mark.timeout(PATIENCE + 20)
@pytest.mark.parametrize(
    ("lines", "env", "in_place"),
    [(24, {"NO_COLOR": "1"}, True), (24, {"TERM": "dumb"}, False), (ROWS + 2, {}, False)],
    ids=["no-color", "dumb", "too-short"],
)
def test_ctrl_c_leaves_a_clean_terminal(lines: int, env: dict[str, str], in_place: bool) -> None:
    status, text = run_on_terminal((lines, 80), env=env, type_after=("RUNNING", b"\x03"))
    assert status == 130
    assert without_escapes(text).endswith("\nInterrupted: every job was cancelled.\n")
    assert "Traceback" not in text
    assert CLOSING_LINE not in text
    assert "\x1b[3" not in text  # no colour
    if in_place:
        assert text.index(HIDE_CURSOR) < text.index(SHOW_CURSOR)
        assert re.search(r"never ends +CANCELLED", text[text.rindex("\x1b[16A") :])
    else:
        assert "\x1b" not in text
        assert re.search(r"never ends  \w+ -> CANCELLED", text)
