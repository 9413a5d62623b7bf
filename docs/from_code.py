"""An extension of Sphinx: tables and signatures that are made from the code.

Directives::

    {options} job | pool | cluster   a table of options with their defaults
    {thread-variables}         the environment variables that a pool sets in its workers
    {command-line}             what the commands print for --help
    {coming-from} PEER         the rows of one peer; without: the table of all peers
    {page-plot} NAME.svg       the figure that the code of this page saves under this name
"""

from __future__ import annotations

import argparse
import html
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.ext.autodoc.mock import mock
from sphinx.util.docutils import SphinxDirective

from docs.coming_from_rows import PEERS, comparison, page
from docs.options_of_code import Option, cluster_options, handed_on, job_options, pool_options
from docs.plots import plot_of
from primitive_jobs.__main__ import _parser
from primitive_jobs._common.thread_variables import THREAD_VARIABLES

_TABLES = {"job": job_options, "pool": pool_options, "cluster": cluster_options}
_OPTIONS = {
    r"\*\*options: [\w.~]*Unpack\[[^\]]*\]": job_options,
    r"\*\*pool_options: [\w.~]*Unpack\[[^\]]*\]": handed_on,
}
# How Sphinx writes a ParamSpec, and how a reader would.
_PARAMETERS = (
    (r"\[\[(~?P|\.\.\.)\], ", "[..., "),
    (r"\*args: [\w.~]*P\b", "*args"),
    (r"\*\*kwargs: [\w.~]*P\b", "**kwargs"),
)


class _FromCode(SphinxDirective):
    """A directive whose content is Markdown that is made here."""

    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(self.markdown(*self.arguments))

    def markdown(self, *arguments: str) -> str:
        raise NotImplementedError


class _Options(_FromCode):
    required_arguments, optional_arguments = 1, 0

    def markdown(self, *arguments: str) -> str:
        lines = ["| option | type | default | |", "|---|---|---|---|"]
        with mock(self.config.autodoc_mock_imports):
            options = _TABLES[arguments[0]]()
        for one in options:
            summary = re.sub(r"``(.+?)``|`(.+?)`", r"`\1\2`", one.summary)
            kind = one.type.replace("|", r"\|")
            default = f"`{one.default}`" if one.default else "(needed)"
            lines.append(f"| `{one.name}` | `{kind}` | {default} | {summary} |")
        return "\n".join(lines)


class _ThreadVariables(_FromCode):
    def markdown(self, *arguments: str) -> str:
        return ", ".join(f"`{name}`" for name in THREAD_VARIABLES) + "."


class _CommandLine(_FromCode):
    def markdown(self, *arguments: str) -> str:
        os.environ["COLUMNS"] = "80"  # the same text on every terminal
        return "\n\n".join(f"```text\n{one.format_help()}```" for one in _parsers(_parser()))


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield a parser, and those of its commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action.choices, dict):
            for one in action.choices.values():
                yield from _parsers(one)


class _ComingFrom(_FromCode):
    def markdown(self, *arguments: str) -> str:
        return page(PEERS[arguments[0]]) if arguments else comparison()


class _PagePlot(SphinxDirective):
    """A figure in the colours of the page; the content tells those who cannot see it."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        page = Path(self.env.doc2path(self.env.docname))
        picture = plot_of(page.read_text("utf-8"), self.arguments[0])
        told = html.escape(" ".join(self.content), quote=True)
        markup = f'<div class="plot" role="img" aria-label="{told}">{picture}</div>'
        return [nodes.raw("", markup, format="html")]


def _spell_out(signature: str) -> str:
    """Put the options in the place of ``**options``."""
    for short, options in _OPTIONS.items():
        given = ", ".join(f"{one.name}: {one.type} = {one.default}" for one in options())
        star = "" if "*, " in signature else "*, "
        signature = re.sub(short, star + given, signature)
    for long, plain in _PARAMETERS:
        signature = re.sub(long, plain, signature)
    return signature


def _signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str
) -> tuple[str, str] | None:
    return None if signature is None else (_spell_out(signature), returns)


def _docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Tell of each option where the docstring only says whose they are."""
    told = {"**options: See `JobOptions`.": job_options}
    told["**pool_options: Further arguments of `JobPool`."] = handed_on
    for place, line in enumerate(lines):
        which = told.get(line.strip())
        if which is not None:
            indent = line[: len(line) - len(line.lstrip())]
            lines[place : place + 1] = [f"{indent}{_entry(one)}" for one in which()]
            return


def _entry(option: Option) -> str:
    return f"{option.name}: {option.text}"


def setup(app: Sphinx) -> dict[str, Any]:
    """Register all of it."""
    app.add_directive("options", _Options)
    app.add_directive("thread-variables", _ThreadVariables)
    app.add_directive("command-line", _CommandLine)
    app.add_directive("coming-from", _ComingFrom)
    app.add_directive("page-plot", _PagePlot)
    app.connect("autodoc-process-signature", _signature)
    app.connect("autodoc-process-docstring", _docstring, priority=100)  # before napoleon
    return {"version": "1", "parallel_read_safe": True}
