"""The configuration of Sphinx; `python -m sphinx -W -b html docs OUT` builds the pages.

Nothing here needs a network: no inventory of another project is read.
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

# The extension beside this file, and the package of this tree.
sys.path[:0] = [str(Path(__file__).parent.parent)]

project = "primitive_jobs"
author = "the primitive_jobs developers"
try:
    release = importlib.metadata.version(project)
except importlib.metadata.PackageNotFoundError:  # a source tree
    release = ""

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "docs.from_code",
]
exclude_patterns = ["_build"]

# --- docstrings

default_role = "py:obj"  # what stands in single backticks in a docstring is a name
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_mock_imports = [
    "distributed",
    "joblib",
    "qiskit",
]  # their types are not needed to read the docstrings
maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_display_short_literal_types = True
python_use_unqualified_type_names = True

# --- pages

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_title = "primitive_jobs"
html_static_path = ["_static"]
html_css_files = ["extra.css"]
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
