"""Compares a hidden layer each for policy and value, as a3c.py has for observations that are not images, with one that
both share: mean return of 100 evaluation episodes on CartPole-v1 with the default hyperparameters.

    python benchmark/bodies.py >benchmark/results/bodies.csv
"""

import contextlib
import importlib.util
import io
import platform
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from curve import PACKAGES, machine, version

STEPS = 300_000
SEPARATE = """\
            mlps = [nn.Sequential(nn.Linear(size, 256), nn.Tanh(), nn.Linear(256, n)) for n in (num_actions, 1)]
            self.policy, self.value = mlps
"""
SHARED = """\
            self.hidden = nn.Sequential(nn.Linear(size, 256), nn.Tanh())
            self.policy, self.value = nn.Linear(256, num_actions), nn.Linear(256, 1)
"""


def script(folder: str, bodies: str):
    """a3c.py with one or the other."""
    source = (Path(__file__).resolve().parent.parent / "a3c.py").read_text()
    assert source.count(SEPARATE) == 1
    file = Path(folder, f"{bodies}.py")
    file.write_text(source.replace(SEPARATE, SEPARATE if bodies == "separate" else SHARED))
    spec = importlib.util.spec_from_file_location(bodies, file)
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


def main() -> None:
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(f"# machine: {machine()}")
    print(f"# versions: {platform.python_version()}, " + ", ".join(f"{p} {version(p)}" for p in PACKAGES))
    print(f"# commit: {head}")
    print(f"# command: python benchmark/bodies.py; CartPole-v1, 2 workers, {STEPS} steps, other flags as they are")
    print("bodies,seed,mean_return")
    for seed in (1, 2, 3):
        for bodies in ("separate", "shared"):
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
                a3c = script(folder, bodies)
                run = {"env_id": "CartPole-v1", "seed": seed, "log_dir": f"{folder}/runs", "num_workers": 2}
                a3c.main(a3c.Args(**run, total_timesteps=STEPS))
                run_dir = str(next(Path(folder, "runs").iterdir()))
                returns = a3c.main(a3c.Args(**run, evaluate=run_dir, eval_episodes=100))
            print(f"{bodies},{seed},{np.mean(returns):.1f}", flush=True)


if __name__ == "__main__":
    main()
