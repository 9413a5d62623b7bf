"""The pages of docs/: their code runs and prints what they say, and the reference is complete."""

from __future__ import annotations

import re
from dataclasses import fields
from inspect import Parameter, signature
from pathlib import Path

import pytest
from helpers import ROOT
from pages import assert_printed, run_page

import primitive_jobs
from docs.make_picture import PICTURE, draw, screen, words
from docs.options_of_code import Option, cluster_options, handed_on, job_options, pool_options
from primitive_jobs import JobOptions, JobPool

DOCS = ROOT / "docs"
PAGES = {path.relative_to(DOCS).as_posix(): path.read_text("utf-8") for path in DOCS.rglob("*.md")}
NEEDS = {
    "qiskit": "qiskit",
    "import ClusterPool": "distributed",
    "security=True": "cryptography",
    "import matplotlib": "matplotlib",
    "to_pandas": "pandas",
}
WITH_CODE = sorted(name for name, text in PAGES.items() if "\n```python\n" in text)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", WITH_CODE)
def test_the_blocks_run_and_print_what_the_page_says(name: str, tmp_path: Path) -> None:
    # Extras that are not that for the tests.
    for wanted, module in NEEDS.items():
        if wanted in PAGES[name]:
            pytest.importorskip(module)
    for printed, expected in run_page(PAGES[name], tmp_path):
        if expected is not None:
            assert_printed(printed, expected)


def test_an_output_that_differs_is_seen() -> None:
    assert_printed("a 1\nb\n", "a ...\nb\n")
    assert_printed("a\nb\nc\nd", "a\n...\nd")
    for printed in ("a 1\nc\n", "a 1\n", "a 1\n2\nb"):
        with pytest.raises(AssertionError):
            assert_printed(printed, "a ...\nb\n")


def test_there_is_no_python_that_nobody_runs() -> None:
    kinds = {
        kind for text in PAGES.values() for kind in re.findall(r"^```(\S+)$", text, re.MULTILINE)
    }
    known = {"python", "output", "text", "sh", "{toctree}", "{eval-rst}", "{coming-from}"}
    known |= {"{thread-variables}", "{command-line}"}
    assert kinds <= known


def test_the_picture_shows_what_the_sweep_prints() -> None:
    assert words(draw(screen())) == words(PICTURE.read_text(encoding="utf-8"))


# --- the reference -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", primitive_jobs.__all__)
def test_the_reference_has_every_public_name(name: str) -> None:
    directive = re.compile(rf"^\.\. auto\w+:: primitive_jobs\.{name}(\(.*\))?$", re.MULTILINE)
    pages = [page for page, text in PAGES.items() if directive.search(text)]
    assert len(pages) == 1
    assert pages[0].startswith("reference/")


def test_the_reference_has_every_option_with_its_default() -> None:
    assert [(one.name, one.default) for one in job_options()] == [
        (field.name, repr(field.default)) for field in fields(JobOptions)
    ]
    parameters = list(signature(JobPool.__init__).parameters.values())[1:]
    assert [(one.name, one.default) for one in pool_options()] == [
        (parameter.name, repr(parameter.default)) for parameter in parameters
    ]
    given_by_name = {"max_workers", "initializer", "initargs"}
    assert {one.name for one in handed_on()} == {p.name for p in parameters} - given_by_name
    check_summaries([*job_options(), *pool_options()])


def test_the_reference_has_every_option_of_a_cluster() -> None:
    pytest.importorskip("distributed")
    from primitive_jobs.cluster import ClusterPool

    parameters = list(signature(ClusterPool.__init__).parameters.values())[1:]
    # In the order of the docstring, which has the most wanted first.
    assert {(one.name, one.default) for one in cluster_options()} == {
        (one.name, "" if one.default is Parameter.empty else repr(one.default))
        for one in parameters
    }
    check_summaries(cluster_options())


def check_summaries(options: list[Option]) -> None:
    for one in options:
        assert 3 < len(one.summary) < 250
        assert one.summary[0].isupper()


def test_every_page_can_be_reached() -> None:
    for name in PAGES:
        if name != "index.md":
            page = Path(name)
            owner = page.parent if page.stem != "index" else page.parent.parent
            entry = page.relative_to(owner).with_suffix("").as_posix()
            toctree = PAGES[(owner / "index.md").as_posix()].split("```{toctree}")[1:]
            assert any(entry in tree.split("```")[0].split() for tree in toctree), name
