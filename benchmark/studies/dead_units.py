"""Watches how many units of a network stay alive at the beginning of a run, by its settings.

    python benchmark/studies/dead_units.py

Trains with seed 1, 16 workers and the settings in RUNS, and with images as they are. For each
checkpoint, it measures on 200 screens of random play which share of each layer's units varies: a
unit is an output channel of a convolution, or one of the hidden layer's outputs. Writes
benchmark/results/dead_units.csv, with these columns:

    q_gain                of the initial weights of Q; empty where there is no Q
    step                  agent steps of all workers
    conv1, conv2, hidden  share of units whose output differs between the screens
    spread                standard deviation of Q (or π's logits) over the screens, mean of all actions

A run that has rows in the file is not made again. Takes three minutes for each run on two cores.

The trained networks of benchmark/results are measured in the same way, on screens of their game,
for benchmark/results/trained_units.csv.
"""

import csv
import importlib
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import nn

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path += [str(ROOT), str(ROOT / "benchmark")]
from provenance import RESULTS, header, read

OUT = RESULTS / "dead_units.csv"
SETTINGS = "script", "game", "learning_rate", "rms_alpha", "rms_eps", "q_gain"
MEASURED = "step", "conv1", "conv2", "hidden", "spread"
STOP_AFTER = 150_000  # agent steps
GAIN = "q.weight, gain=0.01"
SCALED = "            x /= 255  # in place, since float() has made a copy\n"
CENTRED = SCALED + "            x -= x.mean((1, 2, 3), keepdim=True)\n"
BACKGROUND = "            x -= background.reshape(-1, 1, 1, 1)\n"
RUNS = [
    ("nstep_q_async", "Pong", "1.75e-4", "0.9994", "6e-7", "0.01"),
    ("nstep_q_async", "Pong", "5e-5", "0.9994", "6e-7", "0.01"),
    ("nstep_q_async", "Pong", "5e-5", "0.9994", "6e-7", "1.0"),
    ("nstep_q_async", "Pong", "1.75e-4", "0.9994", "6e-7", "1.0"),
    ("onestep_q_async", "Pong", "1.75e-4", "0.9994", "6e-7", "0.01"),
    ("onestep_q_async", "Pong", "5e-5", "0.9994", "6e-7", "1.0"),
    ("a3c", "Pong", "1.75e-4", "0.9994", "6e-7", ""),
    ("nstep_q_async", "Pong", "1.75e-4", "0.9994", "1e-3", "0.01"),
    ("nstep_q_async", "Pong", "1.75e-4", "0.99", "6e-7", "0.01"),
    ("nstep_q_async", "Pong", "1.75e-4", "0.998", "6e-7", "0.01"),
    ("onestep_q_async", "Pong", "1.75e-4", "0.99", "6e-7", "0.01"),
    ("sarsa_async", "Pong", "1.75e-4", "0.9994", "6e-7", "0.01"),
    ("sarsa_async", "Pong", "1.75e-4", "0.99", "6e-7", "0.01"),
    ("sarsa_async", "Pong", "1.75e-4", "0.9994", "6e-7", "1.0"),
    ("nstep_q_async", "Pong", "1e-4", "0.998", "6e-7", "0.01"),
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
    """The shares of units that vary, and the spread of Q, or of π's logits."""
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
    per_action = result[0] if isinstance(result, tuple) else result  # (200, num_actions)
    return [*shares, per_action.std(0).mean().item()]


def network_and_screens(name: str, env_id: str) -> tuple[nn.Module, torch.Tensor]:
    script = importlib.import_module(name)
    with script.make_env(env_id) as env:
        network = script.make_network(env, "orthogonal")
    return network, screens(script, env_id)


def measure_trained() -> None:
    """Writes a row for each trained network on Atari."""
    with (RESULTS / "trained_units.csv").open("w", newline="") as file:
        file.write(header("python benchmark/studies/dead_units.py"))
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("script", "env_id", *MEASURED))
        for path in sorted(RESULTS.glob("*NoFrameskip*/checkpoint.pt")):
            checkpoint = torch.load(path, weights_only=True)
            name, env_id = checkpoint["script"], checkpoint["args"]["env_id"]
            network, states = network_and_screens(name, env_id)
            network.load_state_dict(checkpoint["params"])
            figures = [f"{figure:.4f}" for figure in measure(network, states)]
            writer.writerow((name, env_id, int(checkpoint["steps"].sum()), *figures))


def watch(run_settings: tuple[str, ...], centred: bool = False) -> list[tuple]:
    """Makes one run, and returns a row for each of its checkpoints.

    centred: whether the network subtracts the mean of every image from it.
    """
    rows: list[tuple] = []
    name, game, learning_rate, rms_alpha, rms_eps, q_gain = run_settings
    env_id = f"{game}NoFrameskip-v4"
    network, states = network_and_screens(name, env_id)
    states = states / 255  # floats, which a network takes as they are
    if centred:
        states = states - states.mean((1, 2, 3), keepdim=True)
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--env-id", env_id, "--checkpoint-interval", "5"]
        flags += ["--learning-rate", learning_rate, "--rms-alpha", rms_alpha, "--rms-eps", rms_eps]
        text = (ROOT / f"{name}.py").read_text()
        if q_gain:
            assert text.count(GAIN) == 1, f"{name}.py has changed: {GAIN!r} is not in it"
            text = text.replace(GAIN, f"q.weight, gain={q_gain}")
        assert text.count(BACKGROUND) == 1, f"{name}.py has changed: {BACKGROUND!r} is not in it"
        text = text.replace(BACKGROUND, "")
        if centred:
            assert text.count(SCALED) == 1, f"{name}.py has changed: {SCALED!r} is not in it"
            text = text.replace(SCALED, CENTRED)
        copy = Path(folder) / f"{name}.py"
        copy.write_text(text)
        command = [sys.executable, str(copy), *flags, "--log-dir", folder]
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
                    rows.append((*run_settings, step, *figures))
        finally:
            run.send_signal(signal.SIGINT)
            run.wait()
    return rows


def main() -> None:
    measure_trained()
    done = set()
    if OUT.exists():
        done = {tuple(row[name] for name in SETTINGS) for row in read(OUT)[1]}
    with OUT.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if not done:
            file.write(header("python benchmark/studies/dead_units.py"))
            writer.writerow((*SETTINGS, *MEASURED))
        for run in RUNS:
            if run not in done:
                writer.writerows(watch(run))  # at its end: an interrupted run is made again
                file.flush()


if __name__ == "__main__":
    torch.set_num_threads(1)
    tyro.cli(main, description=__doc__)
