"""The checks of this repository, each in an environment of its own.

``nox`` runs those that have to hold before a change goes in, ``nox -s tests-3.13 -- -k cancel`` a
part of the suite on one interpreter, ``nox -l`` lists all.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nox

PACKAGE = "primitive_jobs"
# In the order in which they run: the one of daily work, the oldest, the newest, the others.
VERSIONS = ("3.13", "3.10", "3.14", "3.12", "3.11")

# What is not the core's suite: what sees into jobs and keeps what they had done, what keeps their
# results, what shows the library (pages, demo and benchmarks), and what is for other packages. The
# session `around` has the first three, on the interpreter of daily work and on the oldest; so the
# whole stays within the time of `.ci/run`. `python -m pytest` runs them with all the others.
INSIGHT = (
    "attempts",
    "checkpoint",
    "forward_logs",
    "monitor",
    "output",
    "output_cluster",
    "report",
    "stack",
    "timeline",
    "timeline_pictures",
    "top",
    "usage",
)
STORE = ("store", "store_command", "store_files", "store_kill", "store_races")
SHOWN = ("benchmarks", "coming_from", "demo", "docs", "notebook", "readme")
ADAPTERS = (
    "joblib",
    "joblib_arrays",
    "joblib_tasks",
    "libraries",
    "multiprocessing",
    "multiprocessing_peer",
    "qiskit",
)
FOR_THEIR_POOL = "pool_libraries"  # a session of its own, since it installs many
TENSORS = "tensors"  # of the same, since torch is large


def find_interpreter(version: str) -> Path | None:
    """A Python of this version that runs.

    A name on PATH proves nothing: a version manager's shim may stand there for a Python that is not
    installed. What pyenv has installed, but not switched on, serves as well.
    """
    name = f"python{version}"
    candidates = [Path(folder, name) for folder in os.get_exec_path()]
    if shutil.which("pyenv"):
        root = subprocess.run(["pyenv", "root"], capture_output=True, text=True, check=True)
        candidates += sorted(Path(root.stdout.strip()).glob(f"versions/{version}.*/bin/{name}"))
    for candidate in candidates:
        if os.access(candidate, os.X_OK):
            ask = [candidate, "-c", "import sys, venv; print(sys.executable)"]
            told = subprocess.run(ask, capture_output=True, text=True, check=False)
            if told.returncode == 0:
                return Path(told.stdout.strip())
    return None


INTERPRETERS = {version: path for version in VERSIONS if (path := find_interpreter(version))}
if not INTERPRETERS:
    sys.exit(f"none of Python {', '.join(VERSIONS)} was found")
# Where nox looks for them.
os.environ["PATH"] = os.pathsep.join(
    [*(str(path.parent) for path in INTERPRETERS.values()), *os.get_exec_path()]
)
# An interpreter that is missing is no reason to load one from somewhere.
os.environ["UV_PYTHON_DOWNLOADS"] = "never"
# The installations are editable, so that nobody has compiled the package: with this variable each
# worker process would do so again, which takes a third of the suite's time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ["UV_COMPILE_BYTECODE"] = "1"

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "uv|virtualenv"
# Those of `.ci/run`, which begins with one of each kind, in the order of this file, and goes on
# with the second of each. What it leaves out where its time is over is what ran elsewhere before.
nox.options.sessions = ["lint", "types", "wheel", "docs", "tests", "cluster", "around"]

PROJECT = nox.project.load_toml("pyproject.toml")["project"]

# In the order of their numbers.
BY_AGE = sorted(INTERPRETERS, key=lambda version: int(version.partition(".")[2]))
# The one of daily work, and the oldest.
DAILY_AND_OLDEST = list(dict.fromkeys([next(iter(INTERPRETERS)), BY_AGE[0]]))
# The suites that any pool has to pass; `tests/test_makers.py` has the list.
SUITES = re.findall(
    r'^    "(test_\w+)",$',
    Path("tests/test_makers.py").read_text("utf-8").partition("SUITES = [")[2].partition("]")[0],
    re.MULTILINE,
)


def file_of(name: str) -> str:
    """The test module of this name."""
    return f"tests/test_{name}.py"


def install(session: nox.Session, extras: str) -> None:
    """Install the package with these extras, editable.

    The tests and every process they start, in whatever folder, then see the same tree: beside a
    copy in site-packages one process would have the tree and the next one the copy.
    """
    session.install("--editable", f".[{extras}]")


def requirement(extra: str, name: str) -> str:
    """What an extra asks for of one of its packages."""
    asked: list[str] = PROJECT["optional-dependencies"][extra]
    (found,) = (one for one in asked if one.startswith(name))
    return found


@nox.session
def lint(session: nox.Session) -> None:
    """Lint, and check the format."""
    session.install(requirement("test", "ruff"))
    session.run("ruff", "check", "--no-cache", ".")
    session.run("ruff", "format", "--no-cache", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types, those of the public interface by each checker for each version."""
    install(session, "test")
    session.install("exceptiongroup")  # which the package needs on 3.10 alone
    mypy = ["mypy", "--strict", "--cache-dir", session.create_tmp()]
    session.run(*mypy, PACKAGE, "tests")
    session.run(*mypy, "benchmarks")
    session.run("python", "-m", "pytest", "-m", "checkers", "tests/test_typing.py")


@nox.session
def wheel(session: nox.Session) -> None:
    """Build what is shipped: the package, complete with type marker and pages, and no more."""
    session.install("build")
    folder = Path(session.create_tmp()).resolve()
    for old in folder.glob("*.whl"):
        old.unlink()
    session.run("python", "-m", "build", "--wheel", "--outdir", str(folder))
    (built,) = folder.glob("*.whl")
    names = zipfile.ZipFile(built).namelist()
    shipped = {name for name in names if ".dist-info/" not in name}
    files = [*Path(PACKAGE).rglob("*.py"), *Path(PACKAGE).rglob("*.html")]
    in_tree = {path.as_posix() for path in files} | {f"{PACKAGE}/py.typed"}
    if shipped != in_tree:
        missing, surplus = sorted(in_tree - shipped), sorted(shipped - in_tree)
        session.error(f"{built.name} lacks {missing} and should not have {surplus}")
    session.log(f"{built.name}: {len(shipped)} files")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning is an error."""
    install(session, "docs")
    session.run("python", "-m", "sphinx", "-W", "-b", "html", "docs", session.create_tmp())


@nox.session(python=list(INTERPRETERS))
def tests(session: nox.Session) -> None:
    """Run the core's suite on each interpreter found, then what is for other packages.

    Arguments go to pytest, in the place of the files.
    """
    install(session, "test,qiskit")
    pytest = ["python", "-m", "pytest"]
    if session.posargs:
        session.run(*pytest, *session.posargs)
        return
    elsewhere = map(file_of, (*INSIGHT, *STORE, *SHOWN, *ADAPTERS, FOR_THEIR_POOL, TENSORS))
    session.run(*pytest, *(f"--ignore={file}" for file in elsewhere))
    session.run(*pytest, *map(file_of, ADAPTERS))


@nox.session
@nox.parametrize(
    ("python", "release"),
    [(BY_AGE[-1], ""), (BY_AGE[0], "==2024.8.*")],
    ids=["newest", "lowest"],
)
def cluster(session: nox.Session, release: str) -> None:
    """Run what needs Dask, with the lowest and the newest release that are supported."""
    install(session, "test,dask")
    # cryptography makes the certificates of a page's example.
    session.install("--upgrade", f"distributed{release}", f"dask{release}", "cryptography")
    # Each test has a cluster of several processes, and frozen nodes are known by their lateness.
    pytest = ["python", "-m", "pytest", "-n", "2"]
    if session.posargs:
        session.run(*pytest, *session.posargs)
        return
    files = sorted(map(str, Path("tests").glob("test_cluster*.py")))
    session.run(*pytest, *files, *map(file_of, ("line", "output_cluster", "docs")))
    others = [f"tests/{name}.py" for name in SUITES]
    marks = "not local and not soak and not checkers"
    session.run(*pytest, "--pool", "clusters:make", "-m", marks, *others)
    if not release:  # the page names that one
        session.run(*pytest, "tests/test_coming_from.py", "-k", "Dask")


@nox.session(python=DAILY_AND_OLDEST)
def around(session: nox.Session) -> None:
    """Run the tests of what is around the core, but for those of the cluster."""
    install(session, "test,qiskit")
    files = map(file_of, (*INSIGHT, *STORE, *SHOWN))
    session.run("python", "-m", "pytest", *(session.posargs or files))


@nox.session
def libraries(session: nox.Session) -> None:
    """Run what is written for `multiprocessing.Pool`, unchanged, with ours; and torch's tensors."""
    install(session, "test,libraries")
    session.run(
        "python", "-m", "pytest", *(session.posargs or map(file_of, (FOR_THEIR_POOL, TENSORS)))
    )


@nox.session
def soak(session: nox.Session) -> None:
    """Run what is too long for every change: repetition under load, every place of a sample."""
    install(session, "test,qiskit")
    session.run("python", "-m", "pytest", "-m", "soak", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Run the benchmarks; arguments go to them."""
    install(session, "bench,qiskit")
    session.run("python", "-m", "benchmarks", *session.posargs)
