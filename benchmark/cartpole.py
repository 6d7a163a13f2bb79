"""Trains CartPole-v1 by README's commands, several seeds of each; writes the mean and standard deviation of 100
evaluation episodes after each.

    python benchmark/cartpole.py >benchmark/results/cartpole.csv
"""

import platform
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from curve import PACKAGES, machine, version

ROOT = Path(__file__).resolve().parent.parent
SEEDS = 1, 2, 3


def run(*command: object) -> str:
    return subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True).stdout


def main() -> None:
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    print(f"# machine: {machine()}")
    print(f"# versions: {platform.python_version()}, " + ", ".join(f"{p} {version(p)}" for p in PACKAGES))
    print(f"# commit: {head}")
    print("# command: python benchmark/cartpole.py; README's commands for CartPole, with --seed")
    print("script,seed,mean_return,standard_deviation", flush=True)
    readme = (ROOT / "README.md").read_text()
    for script, flags in re.findall(r"^ +python (\w+)\.py (--env-id CartPole-v1 .*)$", readme, re.M):
        for seed in SEEDS:
            with tempfile.TemporaryDirectory() as folder:
                run(f"{script}.py", *shlex.split(flags), "--seed", seed, "--log-dir", folder)
                (run_dir,) = Path(folder).iterdir()
                out = run(f"{script}.py", "--evaluate", run_dir, "--eval-episodes", 100)
            print(",".join([script, str(seed), *re.search(r"return ([\d.]+) ± ([\d.]+)", out).groups()]), flush=True)


if __name__ == "__main__":
    main()
