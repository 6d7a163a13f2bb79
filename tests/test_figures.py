"""The figures of README and docs are drawn from the data in the repository, and are not older."""

import subprocess
import sys

from conftest import ROOT


def test_figures_are_drawn_from_the_data_as_it_is():
    command = [sys.executable, "benchmark/plot.py", "--check"]
    check = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert check.returncode == 0, check.stderr
