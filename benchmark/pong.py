"""Looks into networks that were trained on Pong, which plays at random long before it shows that it learns.

    python benchmark/pong.py runs/NAME ... >benchmark/results/pong.csv

Plays --steps agent steps with each checkpoint, and with the initial network of its seed ("agent_steps" 0). The columns:

    hidden_on     hidden units that are above 0 in at least one observation
    hidden_vary   those that are above 0 in some observations and not in others: the rest is linear, or dead
    value_std     standard deviation of V over the observations
    explained     1 - Var(R - V) / Var(R), R being the discounted return that followed
    up_std        standard deviation over the observations of P(up) - P(down)
    up_ball       correlation of P(up) - P(down) with the ball's height, while the ball is on the screen
    mean_reward   points per agent step
    large_g       share of the parameters whose g is above a tenth of ε, so that RMSProp does more than scale by 1/√ε
"""

import platform
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from curve import PACKAGES, machine, version

ROOT = Path(__file__).resolve().parent.parent
UP, DOWN = [2, 4], [3, 5]  # RIGHT and LEFT, with and without FIRE


@dataclass
class Args:
    runs: tyro.conf.Positional[list[Path]]
    """folders or checkpoints of a3c.py or a2c.py on Pong"""
    steps: int = 8000
    """agent steps to play with each"""


def ball_height(obs: np.ndarray) -> float:
    """Rows above the lower wall, of an (84, 84, 4) observation; NaN if there is no ball between the paddles."""
    field = obs[14:77, 14:70, 3].astype(int)  # (rows, columns)
    rows, _ = np.nonzero(abs(field - 87) > 20)  # 87: the background
    return 63 - rows.mean() if 0 < len(rows) < 12 else np.nan


def look(a3c, params: torch.Tensor, steps: int) -> dict[str, float]:
    """Plays, and describes what the network made of what it saw."""
    torch.manual_seed(0)
    random.seed(0)
    env = a3c.make_env("PongNoFrameskip-v4")
    model = a3c.Network(env)
    model.params.copy_(params)
    obs, _ = env.reset(seed=0)
    seen, rewards, ends = [], [], []
    for _ in range(steps):
        seen.append(obs)
        obs, reward, terminated, truncated, _ = env.step(model.act(obs))
        rewards.append(float(reward))
        ends.append(terminated or truncated)
        if ends[-1]:
            obs, _ = env.reset()
    if not any(ends):
        sys.exit("pong.py: no game came to its end: give more --steps")
    hidden = []
    model.hidden.register_forward_hook(lambda module, inputs, output: hidden.append(output > 0))
    with torch.no_grad():
        outputs = [model(torch.as_tensor(np.stack(seen[i : i + 500]))) for i in range(0, steps, 500)]
    probs, values = (torch.cat(output).numpy() for output in zip(*((p.softmax(1), v) for p, v in outputs), strict=True))
    on = torch.cat(hidden).float().mean(0)  # (256,)
    returns = np.zeros(steps + 1)
    for i in reversed(range(steps)):
        returns[i] = rewards[i] + 0.99 * returns[i + 1] * (not ends[i])
    whole = slice(0, np.flatnonzero(ends)[-1] + 1)  # what follows is not known to its end
    rest = (returns[:-1] - values)[whole]
    up, ball = probs[:, UP].sum(1) - probs[:, DOWN].sum(1), np.array([ball_height(obs) for obs in seen])
    there = ~np.isnan(ball)
    return {
        "hidden_on": int((on > 0).sum()),
        "hidden_vary": int(((on > 0) & (on < 1)).sum()),
        "value_std": values.std(),
        "explained": 1 - rest.var() / returns[whole].var(),
        "up_std": up.std(),
        "up_ball": np.corrcoef(up[there], ball[there])[0, 1] if up.std() > 1e-6 else np.nan,
        "mean_reward": np.mean(rewards),
    }


def main(args: Args) -> None:
    sys.path.insert(0, str(ROOT))
    import a3c

    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT).stdout.strip()
    print(f"# machine: {machine()}")
    print(f"# versions: python {platform.python_version()}, " + ", ".join(f"{p} {version(p)}" for p in PACKAGES))
    print(f"# commit: {head}")
    print(f"# command: python benchmark/pong.py {' '.join(map(str, args.runs))} --steps {args.steps}")
    flags_shown = "num_workers", "learning_rate", "total_timesteps"
    columns = "hidden_on", "hidden_vary", "value_std", "explained", "up_std", "up_ball", "mean_reward", "large_g"
    print(",".join(["script", "seed", *flags_shown, "agent_steps", *columns]))
    shown = set()
    for run in args.runs:
        checkpoint = torch.load(run / "checkpoint.pt" if run.is_dir() else run, weights_only=True)
        flags = checkpoint["args"]
        torch.manual_seed(flags["seed"])
        with a3c.make_env("PongNoFrameskip-v4") as env:
            initial = a3c.Network(env).params
        now = checkpoint["params"], checkpoint["square_avg"], int(checkpoint["steps"].sum())
        for params, g, at in ((initial, torch.zeros_like(initial), 0), now):
            if (flags["seed"], at) in shown:
                continue
            shown |= {(flags["seed"], 0)}
            name = checkpoint["script"] if at else "initial"
            words = [name, flags["seed"], *(flags[flag] if at else "" for flag in flags_shown), at]
            numbers = look(a3c, params, args.steps) | {"large_g": (g > flags["rms_eps"] / 10).float().mean().item()}
            print(",".join([*map(str, words), *(f"{numbers[column]:.3g}" for column in columns)]), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
