"""Stable-Baselines3's A2C on the work of a2c.py: same game and network. For speed.py.

The preprocessing is Stable-Baselines3's own, which converts RGB screens to gray.

    python benchmark/peers/sb3_a2c.py ENVIRONMENTS dummy|subproc

Prints a line "agent steps, seconds of the monotonic clock" for every update until it is stopped.
"""

import sys
import time

import ale_py
import gymnasium as gym
from stable_baselines3 import A2C
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack
from torch import nn

gym.register_envs(ale_py)


class Paper(BaseFeaturesExtractor):
    """The network of Mnih et al. 2016, which is smaller than the default."""

    def __init__(self, observation_space):
        super().__init__(observation_space, 256)
        convs = [nn.Conv2d(4, 16, 8, 4), nn.ReLU(), nn.Conv2d(16, 32, 4, 2), nn.ReLU()]
        self.layers = nn.Sequential(*convs, nn.Flatten(), nn.Linear(2592, 256), nn.ReLU())

    def forward(self, obs):
        return self.layers(obs)


class Report(BaseCallback):
    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        print(self.num_timesteps, time.monotonic(), flush=True)


def main(environments: int, kind: str) -> None:
    vec_env = {"dummy": DummyVecEnv, "subproc": SubprocVecEnv}[kind]
    env = VecFrameStack(
        make_atari_env("BreakoutNoFrameskip-v4", environments, seed=1, vec_env_cls=vec_env), 4
    )
    # By default, SB3 adds two layers of 64 units each to an extractor of one's own.
    network = {"features_extractor_class": Paper, "net_arch": []}
    A2C("CnnPolicy", env, device="cpu", policy_kwargs=network).learn(10**9, Report())


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
