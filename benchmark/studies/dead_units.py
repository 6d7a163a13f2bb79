"""Watches how many units of a network stay alive in the first steps of a run, by ε.

    python benchmark/studies/dead_units.py

Trains with the scripts' defaults but for --rms-eps, seed 1, and 16 workers. For each checkpoint, it
measures on 200 screens of random play which share of each layer's units varies: a unit is an output
channel of a convolution, or one of the hidden layer's outputs. Writes
benchmark/results/dead_units.csv, with these columns:

    step                  agent steps of all workers
    conv1, conv2, hidden  share of units whose output differs between the screens
    spread                standard deviation of Q over the screens, mean of all actions; of V in a3c.py

A run that has rows in the file is not made again. Takes three minutes for each run on two cores.
"""

import csv
import importlib
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path += [str(ROOT), str(ROOT / "benchmark")]
from curve import PACKAGES, machine, version
from speed import output

OUT = ROOT / "benchmark" / "results" / "dead_units.csv"
COLUMNS = "script", "game", "rms_eps", "step", "conv1", "conv2", "hidden", "spread"
STOP_AFTER = 150_000  # agent steps
RUNS = [
    *(("nstep_q_async", "Pong", eps) for eps in ("6e-7", "1e-4", "1e-3", "1e-2")),
    *(("nstep_q_async", "Breakout", eps) for eps in ("6e-7", "1e-3")),
    *(("onestep_q_async", "Pong", eps) for eps in ("6e-7", "1e-3")),
    ("a3c", "Pong", "6e-7"),
]


def screens(script, env_id: str) -> torch.Tensor:
    """200 observations of random play, (200, 84, 84, 4)."""
    kept = []
    with script.make_env(env_id) as env:
        env.action_space.seed(1)
        obs, _ = env.reset(seed=1)
        for step in range(1000):
            obs, _, terminated, truncated, _ = env.step(env.action_space.sample())
            if step % 5 == 0:
                kept.append(np.array(obs))
            if terminated or truncated:
                obs, _ = env.reset()
    return torch.from_numpy(np.stack(kept))


@torch.inference_mode()
def measure(network: nn.Module, states: torch.Tensor) -> list[float]:
    """The shares of units that vary, and the spread of the output."""
    outputs = []
    hooks = [
        module.register_forward_hook(lambda module, args, result: outputs.append(result))
        for module in network.modules()
        if isinstance(module, nn.ReLU)
    ]
    result = network(states)
    for hook in hooks:
        hook.remove()

    shares = []
    for of_layer in outputs:
        deviations = of_layer.std(0).flatten(1) if of_layer.ndim == 4 else of_layer.std(0)[:, None]
        shares.append((deviations.amax(1) > 1e-3).float().mean().item())
    values = result if isinstance(result, torch.Tensor) else result[1]
    return [*shares, values.std(0).mean().item()]


def watch(name: str, game: str, rms_eps: str, writer) -> None:
    """Makes one run, and writes a row for each of its checkpoints."""
    script = importlib.import_module(name)
    env_id = f"{game}NoFrameskip-v4"
    states = screens(script, env_id)
    with script.make_env(env_id) as env:
        network = script.make_network(env, "orthogonal")
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--env-id", env_id, "--rms-eps", rms_eps, "--checkpoint-interval", "5"]
        command = [sys.executable, str(ROOT / f"{name}.py"), *flags, "--log-dir", folder]
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        step = seen = 0
        try:
            while step < STOP_AFTER:
                assert run.poll() is None, f"{name}.py has ended"
                time.sleep(1)
                for path in Path(folder).glob("*/checkpoint.pt"):
                    if path.stat().st_mtime == seen:
                        continue
                    seen = path.stat().st_mtime
                    checkpoint = torch.load(path, weights_only=True)
                    step = int(checkpoint["steps"].sum())
                    network.load_state_dict(checkpoint["params"])
                    figures = [f"{figure:.4f}" for figure in measure(network, states)]
                    writer.writerow((name, game, rms_eps, step, *figures))
        finally:
            run.send_signal(signal.SIGINT)
            run.wait()


def main() -> None:
    done = set()
    if OUT.exists():
        lines = [line for line in OUT.read_text().splitlines() if not line.startswith("#")]
        done = {(row["script"], row["game"], row["rms_eps"]) for row in csv.DictReader(lines)}
    with OUT.open("a", newline="") as file:
        writer = csv.writer(file)
        if not done:
            packages = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
            print(f"# machine: {machine()}", file=file)
            print(f"# versions: python {platform.python_version()}, {packages}", file=file)
            print(f"# commit: {output('git', 'rev-parse', 'HEAD')}", file=file)
            print("# command: python benchmark/studies/dead_units.py", file=file)
            writer.writerow(COLUMNS)
        for run in RUNS:
            if run not in done:
                watch(*run, writer)
                file.flush()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
