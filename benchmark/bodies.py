"""Compares a hidden layer each for policy and value, as a3c.py has for observations that are not images, with one that
both share: mean return of 100 evaluation episodes on CartPole-v1 with the default hyperparameters.

    python benchmark/bodies.py >benchmark/results/bodies.csv
"""

import contextlib
import io
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from curve import PACKAGES, machine, version
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import a3c

STEPS = 300_000


class OneBody(a3c.ActorCritic):
    def __init__(self, env):
        super().__init__(env)
        self.hidden = nn.Sequential(nn.Linear(int(np.prod(env.observation_space.shape)), 256), nn.Tanh())
        self.policy, self.value = nn.Linear(256, int(env.action_space.n)), nn.Linear(256, 1)


def main() -> None:
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(f"# machine: {machine()}")
    print(f"# versions: {platform.python_version()}, " + ", ".join(f"{p} {version(p)}" for p in PACKAGES))
    print(f"# commit: {head}")
    print(f"# command: python benchmark/bodies.py; CartPole-v1, 2 workers, {STEPS} steps, other flags as they are")
    print("bodies,seed,mean_return")
    separate = a3c.ActorCritic
    for seed in (1, 2, 3):
        for bodies, network in (("separate", separate), ("shared", OneBody)):
            a3c.ActorCritic = network  # forked workers inherit it
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
                run = {"env_id": "CartPole-v1", "seed": seed, "log_dir": folder, "num_workers": 2}
                a3c.main(a3c.Args(**run, total_timesteps=STEPS))
                run_dir = str(next(Path(folder).iterdir()))
                returns = a3c.main(a3c.Args(**run, evaluate=run_dir, eval_episodes=100))
            print(f"{bodies},{seed},{np.mean(returns):.1f}", flush=True)


if __name__ == "__main__":
    main()
