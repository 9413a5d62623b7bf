"""`python -m benchmarks`: every question, and a table of them all at the end."""

from __future__ import annotations

import sys

from benchmarks.cli import main

if __name__ == "__main__":
    sys.exit(main())
