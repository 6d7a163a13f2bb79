"""Trains a3c.py on CartPole-v1 with two values of ε and eight seeds.

    python benchmark/studies/cartpole_eps.py >benchmark/results/cartpole_eps.csv

Each row has the mean return of 100 evaluated episodes, and the last entropy that the run logged. A
run that collapses ends with an entropy of 0; a policy that draws both actions alike has log 2 =
0.69. It needs an otherwise idle machine, since busy cores change how the workers interleave.
"""

import re
import sys
import tempfile
from pathlib import Path

import tyro
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.append(str(ROOT / "benchmark"))
from cartpole import run
from provenance import header


def train_and_evaluate(eps: float, seed: int) -> tuple[str, str]:
    """The mean return of a run's trained network, and the last entropy that the run logged."""
    with tempfile.TemporaryDirectory() as folder:
        flags = "--env-id", "CartPole-v1", "--rms-eps", eps, "--seed", seed, "--log-dir", folder
        run("a3c.py", *flags)
        (run_dir,) = Path(folder).iterdir()
        out = run("a3c.py", "--evaluate", run_dir, "--eval-episodes", 100)
        events = EventAccumulator(str(run_dir))
        events.Reload()
    (mean,) = re.findall(r"return ([\d.]+) ±", out)
    return mean, f"{events.Scalars('losses/entropy')[-1].value:.3f}"


def main() -> None:
    command = "python a3c.py --env-id CartPole-v1 --rms-eps EPS --seed SEED"
    print(header(command, written_by="python benchmark/studies/cartpole_eps.py"), end="")
    print("eps,seed,mean_return,entropy")
    for eps in (0.01, 0.1):
        for seed in range(1, 9):
            print(eps, seed, *train_and_evaluate(eps, seed), sep=",", flush=True)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
