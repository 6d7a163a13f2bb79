"""PFRL's A3C on the work of a3c.py: same game and network. For speed.py.

The preprocessing is Gymnasium's. As in a3c.py, a lost life ends the segment, but not the game.

    python benchmark/peers/pfrl_a3c.py PROCESSES

Prints "agent steps, seconds of the monotonic clock" for every tenth step until it is stopped.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # as in PFRL's own example: a core to a process

import sys
import time

import ale_py
import gymnasium as gym
import numpy as np
import pfrl
from torch import nn

gym.register_envs(ale_py)


class FourValues(gym.Wrapper):
    """What PFRL expects: step returns four values, reset one; rewards are clipped."""

    over = True

    def reset(self):
        if self.over:
            self.obs, info = self.env.reset()
            self.lives = info["lives"]
        return self.obs

    def step(self, action):
        self.obs, reward, terminated, truncated, info = self.env.step(int(action))
        self.over = terminated or truncated
        terminated = terminated or info["lives"] < self.lives
        self.lives = info["lives"]
        return self.obs, float(np.sign(reward)), terminated, {**info, "needs_reset": truncated}


def make_env(rank: int, test: bool):
    # Without obs_type, the emulator would draw an RGB screen beside the gray one.
    env = gym.make("BreakoutNoFrameskip-v4", obs_type="grayscale")
    env = gym.wrappers.AtariPreprocessing(env)
    env = gym.wrappers.FrameStackObservation(env, 4)
    env.reset(seed=rank)
    return FourValues(env)


def report(env, agent, step: int) -> None:
    if step % 10 == 0:
        print(step, time.monotonic(), flush=True)


def main(processes: int) -> None:
    num_actions = int(make_env(0, False).action_space.n)
    heads = pfrl.nn.Branched(
        nn.Sequential(nn.Linear(256, num_actions), pfrl.policies.SoftmaxCategoricalHead()),
        nn.Linear(256, 1),
    )
    body = [
        nn.Conv2d(4, 16, 8, 4),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2592, 256),
    ]
    model = nn.Sequential(*body, nn.ReLU(), heads)
    optimizer = pfrl.optimizers.SharedRMSpropEpsInsideSqrt(
        model.parameters(), lr=7e-4, eps=0.1, alpha=0.99
    )
    agent = pfrl.agents.a3c.A3C(
        model, optimizer, t_max=5, gamma=0.99, beta=0.01, max_grad_norm=40.0,
        phi=lambda obs: np.asarray(obs, np.float32) / 255,
    )  # fmt: skip
    pfrl.experiments.train_agent_async(
        agent=agent, outdir=".", processes=processes, make_env=make_env, steps=10**9,
        eval_interval=None, random_seeds=[*range(processes)], global_step_hooks=[report],
    )  # fmt: skip


if __name__ == "__main__":
    main(int(sys.argv[1]))
