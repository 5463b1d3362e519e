"""Not installed, for what tests start: see conftest.py."""

raise ImportError("The tests leave it out.")
