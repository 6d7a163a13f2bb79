"""Checks that today's scripts compute what the scripts of the published runs computed.

    python benchmark/studies/commits.py

The runs in benchmark/results were made with earlier commits, which the headers of their curves
name. Each of these scripts is run again, with the flags of its run but one worker (two environments
for a2c.py) and 1,000 steps, and today's script as well. In the value methods, ε is annealed over
500 of these steps, and the target network is refreshed every 200. Writes
benchmark/results/commits.csv: for each run and commit, the largest difference
between the two networks' parameters, and for scale the largest change of a parameter after the
first update. Needs the repository's history. Takes five minutes.
"""

import csv
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import tyro

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.append(str(ROOT / "benchmark"))
from provenance import RESULTS, header, output, read

STEPS = 1000


def train(script: Path, flags: list[str], steps: int) -> torch.Tensor:
    """Trains for some steps; returns all parameters of the network as one vector."""
    with tempfile.TemporaryDirectory() as runs:
        command = [sys.executable, script, *flags, "--total-timesteps", steps, "--log-dir", runs]
        subprocess.run([str(word) for word in command], check=True, capture_output=True)
        (file,) = Path(runs).glob("*/checkpoint.pt")
        params = torch.load(file, weights_only=True)["params"]
    return torch.cat([param.flatten() for param in params.values()])


def main() -> None:
    with (RESULTS / "commits.csv").open("w", newline="") as file:
        file.write(header("python benchmark/studies/commits.py"))
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("run", "commit", "largest_difference", "largest_change"))
        for curve in sorted(RESULTS.glob("*/curve.csv")):
            run, (curve_header, _) = curve.parent.name, read(curve)
            _, name, *flags = curve_header["command"].split()
            flags += ["--num-workers", "2" if name == "a2c.py" else "1"]
            if "--target-interval" in flags:
                flags += ["--exploration-steps", "500", "--target-interval", "200"]
            today = train(ROOT / name, flags, STEPS)
            change = (today - train(ROOT / name, flags, 5)).abs().max()

            for commit in curve_header["commit"].split(" then "):
                with tempfile.TemporaryDirectory() as folder:
                    script = Path(folder) / name
                    script.write_text(output("git", "show", f"{commit}:{name}"))
                    difference = (today - train(script, flags, STEPS)).abs().max()
                row = run, commit[:7], f"{difference:.2g}", f"{change:.2g}"
                writer.writerow(row)
                file.flush()
                print(*row)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
