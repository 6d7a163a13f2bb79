"""Compares the speed of a3c.py and a2c.py with that of their first edition.

    python benchmark/studies/editions.py

The first edition is taken from the repository's history. Both play Breakout in turns of one second,
as in benchmark/speed.py. All are launched several times, because two launches of the same script
differ. Writes benchmark/results/editions.csv and prints a table of medians. It needs an otherwise
idle Linux machine, and takes seven minutes.
"""

import csv
import subprocess
import sys
import tempfile
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.append(str(ROOT / "benchmark"))
from provenance import commit, header
from speed import spread, take_turns, train

FIRST_EDITION = "40b9e66"
LAUNCHES = 5
ROUNDS = 5


def main() -> None:
    file = (ROOT / "benchmark" / "results" / "editions.csv").open("w", newline="")
    with file, tempfile.TemporaryDirectory() as first:
        commits = f"{FIRST_EDITION} (first), {commit()} (second)"
        file.write(header("python benchmark/studies/editions.py", commit=commits))
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("script", "workers", "edition", "launch", "round", "steps_per_second"))
        for script, workers in ("a3c", 1), ("a3c", 16), ("a2c", 16):
            with (Path(first) / f"{script}.py").open("wb") as old:
                show = ["git", "show", f"{FIRST_EDITION}:{script}.py"]
                subprocess.run(show, cwd=ROOT, stdout=old, check=True)
            commands = {}
            for edition, folder in ("first", Path(first)), ("second", ROOT):
                commands[edition] = train(script, workers, folder)
            rates: dict[str, list[float]] = {edition: [] for edition in commands}
            for launch in range(LAUNCHES):
                of_launch = take_turns(commands, ROUNDS, seconds=1.0)
                for edition, of_edition in of_launch.items():
                    rates[edition] += of_edition
                    for turn, rate in enumerate(of_edition):
                        row = f"{script}.py", workers, edition, launch, turn, f"{rate:.1f}"
                        writer.writerow(row)

            pairs = zip(rates["second"], rates["first"], strict=True)
            ratio = spread([second / one for second, one in pairs], 2)
            medians = spread(rates["first"], 0), spread(rates["second"], 0)
            print(f"| {script}.py | {workers} | {medians[0]} | {medians[1]} | {ratio} |")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
