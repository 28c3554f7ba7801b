"""Tests mirror the packages: `tests/router` tests `r2_serve/router`; `tests/support` holds their helpers."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
"""The checkout."""
DATA = Path(__file__).parent / "data"
EMBEDDED = ROOT / "r2_serve" / "embedded"
"""The shipped models."""
