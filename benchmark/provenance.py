"""The header of a CSV in benchmark/results: the machine, versions and commit it was made with."""

import csv
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmark" / "results"
PACKAGES = "torch", "gymnasium", "ale-py", "opencv-python-headless", "numpy"


def output(*command: str) -> str:
    """What a command prints when it runs in the repository's root. Raises if it fails."""
    pipe = subprocess.PIPE
    return subprocess.run(command, stdout=pipe, text=True, cwd=ROOT, check=True).stdout.strip()


def machine() -> str:
    """The processor, its cores and the memory."""
    cpuinfo = Path("/proc/cpuinfo")
    models = (
        [line.split(":")[1].strip() for line in cpuinfo.open() if "model name" in line]
        if cpuinfo.exists()
        else []
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    model = models[0] if models else platform.processor()
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, {sys.platform}"


def versions() -> str:
    packages = [f"{package} {version(package)}" for package in PACKAGES]
    return ", ".join([f"python {platform.python_version()}", *packages])


def commit() -> str:
    """The commit of the working tree, with "-dirty" if a Python file differs from it."""
    try:
        changed = output("git", "status", "--porcelain", "--", "*.py")
        return output("git", "rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (FileNotFoundError, subprocess.CalledProcessError):  # a copy without its history
        return "unknown"


def header(command: str, **more: object) -> str:
    """The header's lines, one for each name; `more` adds lines or replaces them."""
    values = {"machine": machine(), "versions": versions(), "commit": commit(), "command": command}
    values |= more
    return "".join(f"# {name.replace('_', ' ')}: {value}\n" for name, value in values.items())


def read(path: Path) -> tuple[dict[str, str], list[dict[str, str]]]:
    """The header and the rows of a CSV."""
    lines = path.read_text().splitlines()
    values = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
    return values, list(csv.DictReader(line for line in lines if not line.startswith("#")))
