"""Watches how many units stay alive on Pong if the network subtracts the mean of every image.

    python benchmark/studies/centred_images.py

Trains the value methods with the settings in RUNS, as dead_units.py does, whose columns it writes
to benchmark/results/centred_images.csv. Takes three to six minutes for each run on two cores.
"""

import csv

import torch
import tyro
from dead_units import MEASURED, SETTINGS, watch
from provenance import RESULTS, header

RUNS = [
    ("nstep_q_async", "Pong", "1.75e-4", "0.9994", "6e-7", "0.01"),
    ("onestep_q_async", "Pong", "1.75e-4", "0.9994", "6e-7", "0.01"),
    ("sarsa_async", "Pong", "1.75e-4", "0.9994", "6e-7", "0.01"),
]


def main() -> None:
    top = header("python benchmark/studies/centred_images.py")
    rows = [row for run in RUNS for row in watch(run, centred=True)]
    with (RESULTS / "centred_images.csv").open("w", newline="") as file:
        file.write(top)
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((*SETTINGS, *MEASURED))
        writer.writerows(rows)


if __name__ == "__main__":
    torch.set_num_threads(1)
    tyro.cli(main, description=__doc__)
