# /// script
# requires-python = ">=3.10"
# dependencies = [
#   "torch>=2.6", "numpy>=1.26", "gymnasium>=1.1", "ale-py>=0.11", "opencv-python-headless>=4.10",
#   "tyro>=0.9.1", "tensorboard>=2.18", "tqdm>=4.66", "moviepy>=2.1", "pygame-ce>=2.5",
# ]
# ///
"""A3C, asynchronous advantage actor-critic (Algorithm S3 of Mnih et al. 2016).

Every worker is a process with its own environment. It repeats, without waiting for the others:

    Snapshot   θ' ← θ
    Act        a segment of t steps with π(a|s; θ'): t_max, or fewer if the episode ends
    Learn      R_i = r_i + γR_{i+1} from i = t-1 to 0,
               with R_t = 0 (terminal) or V(s_t; θ') (otherwise)
               Δθ = ∇_θ' Σ_i [-log π(a_i|s_i) (R_i - V(s_i)) - β H(π(s_i)) + c ½(R_i - V(s_i))²]
               with R_i, and V(s_i) in the first term, held constant
    Update     g ← αg + (1-α)Δθ²;  θ ← θ - ηΔθ/√(g+ε), with η decaying linearly to 0
               (Δθ is first scaled down to a norm of at most --max-grad-norm)

    python a3c.py --env-id BreakoutNoFrameskip-v4 --num-workers 16
    python a3c.py --evaluate runs/NAME --capture-video

Explained, with its results, in docs/algorithms/a3c.md.

Where this file differs from the paper, or seems to:
- g starts at 1; the paper does not say where. By default, initial weights are orthogonal, and for
  images ε and η are smaller and α is larger, so that Breakout and Pong are learned within 10M steps
  (docs/learning.md). The authors' settings, as far as known, are --init paper --learning-rate 7e-4
  --rms-eps 0.1 --rms-alpha 0.99 --vf-coef 1 --total-timesteps 80000000.
- The median of each image, over its four screens, is subtracted from it. Without this, a bright
  background, as in Pong, kills most channels of the first layer (docs/learning.md).
- One batched pass over a segment gives the gradient that Algorithm S3 accumulates step by step,
  because θ' does not change within a segment.
- The entropy bonus is from section 4; Algorithm S3 leaves it out.
- The value loss is c ½(R - V)² with c = 0.5, as in several reproductions. S3 has (R - V)²,
  which is c = 2; the authors, in an e-mail, halve its gradient, which is c = 1.
- A time limit bootstraps from V of the last observation. A lost life in Atari ends the segment with
  R_t = 0, but the game goes on.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import json
import logging
import math
import os
import random
import shlex
import shutil
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, NoReturn, TextIO

import ale_py
import cv2
import gymnasium as gym
import numpy as np
import torch
import torch.multiprocessing as mp
import tyro
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

if sys.platform != "win32":
    import fcntl

SCRIPT = Path(__file__)  # checkpoints hold its name, and other scripts' are refused
torch.set_num_threads(1)  # one core per process; a thread pool would not survive a fork
cv2.setNumThreads(0)
tqdm.set_lock(threading.RLock())  # tqdm's own would set multiprocessing's start method
torch.set_flush_denormal(True)  # the g of unused weights decays to denormals, which are slow
# NumPy before 2.4 warns that they are flushed.
warnings.filterwarnings("ignore", "The value of the smallest subnormal")


# Arguments


@dataclass
class Args:
    """The flags of the command line. tyro shows their comments as help.

    An agent step is one action, which Atari repeats for four frames.
    """

    # Run
    env_id: str = "BreakoutNoFrameskip-v4"  # any Gymnasium id; module:Name-v0 for your own
    num_workers: int = 16  # number of actor-learner processes
    total_timesteps: int = 0  # agent steps of all workers (T_max); 0: 10M for images, else 300,000
    seed: int = 1  # seeds everything; with one worker a run repeats bit for bit
    log_dir: str = "runs"  # every run makes its own folder in here

    # Algorithm
    num_steps: int = 5  # longest segment between two updates, in agent steps (t_max)
    gamma: float = 0.99  # discount per agent step (γ)
    ent_coef: float = 0.01  # weight of the entropy bonus (β)
    vf_coef: float = 0.5  # weight of the value loss ½(R - V)² (c)
    init: Literal["orthogonal", "paper"] = "orthogonal"  # initial weights; paper: ±1/√fan_in

    # Optimizer
    learning_rate: float = 0.0  # initial η, decays to zero; 0: 1.75e-4 for images, else 2e-3
    rms_alpha: float = 0.0  # decay of RMSProp's mean square g (α); 0: 0.9994 for images, else 0.99
    rms_eps: float = 0.0  # added under RMSProp's root (ε); 0: 6e-7 for images, else 0.1
    max_grad_norm: float = 40.0  # larger gradients are scaled down to this global norm

    # Checkpoints and evaluation
    checkpoint_interval: float = 60.0  # seconds between checkpoints; a run also ends with one
    resume: str = ""  # run folder or checkpoint to continue; flags given override the run's own
    evaluate: str = ""  # run folder or checkpoint to play full episodes with, without training
    eval_episodes: int = 10  # number of episodes to play with --evaluate
    capture_video: bool = False  # with --evaluate, record an .mp4 per episode into the run folder


def choose_defaults(args: Args, images: bool) -> Args:
    """Replaces arguments that are 0 with the defaults for images, or for other observations."""
    return replace(
        args,
        total_timesteps=args.total_timesteps or (10_000_000 if images else 300_000),
        learning_rate=args.learning_rate or (1.75e-4 if images else 2e-3),
        rms_alpha=args.rms_alpha or (0.9994 if images else 0.99),
        rms_eps=args.rms_eps or (6e-7 if images else 0.1),
    )


# Environment


class UnsupportedEnvironment(Exception):
    """An environment that this script cannot train on, or cannot record."""


class Atari(gym.Wrapper):
    """The paper's preprocessing: action repeat 4, maximum of two screens, 84×84, stack of 4.

    It wraps a game that returns a grayscale screen for every frame. A reset plays 0 to 30 no-ops,
    as in DQN. Observations are uint8 (84, 84, 4), the newest last; info["life_lost"] is added.
    """

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.ale = env.get_wrapper_attr("ale")
        self.observation_space = gym.spaces.Box(0, 255, (84, 84, 4), np.uint8)
        self.metadata = {**env.metadata, "render_fps": 15}  # 60 frames per second, four per step

    def reset(self, *, seed=None, options=None):
        screen, info = self.env.reset(seed=seed, options=options)
        for _ in range(self.unwrapped.np_random.integers(31)):
            screen, *_, info = self.env.step(0)

        self.stack = deque([resize(screen)] * 4, maxlen=4)
        return cv2.merge([*self.stack]), info

    def step(self, action):
        lives = self.ale.lives()
        total_reward = 0.0
        screens = []
        for _ in range(4):
            screen, reward, terminated, truncated, info = self.env.step(action)
            total_reward += float(reward)
            screens.append(np.array(screen))  # a copy: a wrapper may reuse its array
            if terminated or truncated:
                break

        # Some games draw their sprites only in every other frame.
        self.stack.append(resize(np.max(screens[-2:], axis=0)))
        info["life_lost"] = self.ale.lives() < lives
        return cv2.merge([*self.stack]), total_reward, terminated, truncated, info


def resize(screen: np.ndarray) -> np.ndarray:
    return cv2.resize(screen, (84, 84), interpolation=cv2.INTER_AREA)


def is_image(space: gym.spaces.Box) -> bool:
    """Whether observations are images: uint8, 0 to 255, sides of at least 32.

    Raises UnsupportedEnvironment if an image's channels come first, or if it is neither gray nor
    RGB.
    """
    shape = space.shape
    if space.dtype != np.uint8 or len(shape) not in (2, 3):
        return False
    if space.low.any() or (space.high != 255).any():
        return False
    if len(shape) == 3 and shape[0] < 32 <= min(shape[1:]):
        raise UnsupportedEnvironment(f"an image needs its channels last, not {shape}")
    if min(shape[:2]) < 32:
        return False
    if shape[2:] not in [(), (1,), (3,)]:
        raise UnsupportedEnvironment(f"an image needs 1 or 3 channels, not {shape}")
    return True


def make_env(env_id: str, video: bool = False) -> gym.Env:
    """Makes an environment. Images come out as uint8 of shape (84, 84, 4), anything else as it is.

    Observations that already have that shape count as preprocessed and are not changed, whatever
    their type. For Atari, the paper's preprocessing applies, whatever the id's frame skip, and
    rewards are clipped to their sign. Raises UnsupportedEnvironment, ImportError, or what Gymnasium
    or the environment raises.
    """
    module, _, name = env_id.rpartition(":")
    if env_id.startswith((".", ":")):
        raise UnsupportedEnvironment("give the module's name, not its path: my_envs:Name-v0")
    if module:
        importlib.import_module(module)  # registers the environment, which is looked up next
    spec = gym.registry.get(name)
    atari = spec is not None and spec.entry_point == "ale_py.env:AtariEnv"
    kwargs: dict[str, Any] = {"frameskip": 1, "obs_type": "grayscale"} if atari else {}
    if video:
        kwargs["render_mode"] = "rgb_array"
    try:
        env = gym.make(env_id, **kwargs)
    except TypeError as error:
        if "unexpected keyword argument 'render_mode'" not in str(error):
            raise
        raise UnsupportedEnvironment("to record it, give its constructor a render_mode") from error
    try:
        return preprocess(env, video)
    except BaseException:
        env.close()  # what it has started would keep Python from exiting
        raise


def preprocess(env: gym.Env, video: bool) -> gym.Env:
    """Checks an environment, and wraps it as make_env says. Raises UnsupportedEnvironment."""
    space, actions = env.observation_space, env.action_space
    if not isinstance(space, gym.spaces.Box):
        raise UnsupportedEnvironment(f"observations must be a Box, not {space}")
    if not isinstance(actions, gym.spaces.Discrete) or actions.start != 0:
        raise UnsupportedEnvironment(f"actions must be Discrete and start at 0, not {actions}")
    if video and "rgb_array" not in env.metadata.get("render_modes", []):
        raise UnsupportedEnvironment("it renders no images: leave out --capture-video")

    if isinstance(env.unwrapped, ale_py.AtariEnv):
        # A custom id for an Atari game did not get make_env's kwargs.
        if space.shape != env.unwrapped.ale.getScreenDims() or env.unwrapped._frameskip != 1:
            raise UnsupportedEnvironment(
                "an Atari id needs its version, as in ALE/Pong-v5; "
                'an id of your own needs frameskip=1 and obs_type="grayscale"'
            )
        env = gym.wrappers.RecordEpisodeStatistics(Atari(env))  # of unclipped rewards
        return gym.wrappers.TransformReward(env, lambda reward: float(np.sign(float(reward))))

    if space.shape != (84, 84, 4) and is_image(space):
        if space.shape[2:] == (3,):
            env = gym.wrappers.GrayscaleObservation(env)
        # Not ResizeObservation, which fails with one channel before Gymnasium 1.4.
        small = gym.spaces.Box(0, 255, (84, 84), np.uint8)
        env = gym.wrappers.TransformObservation(env, resize, small)
        env = gym.wrappers.FrameStackObservation(env, 4)
        space = gym.spaces.Box(0, 255, (84, 84, 4), np.uint8)
        env = gym.wrappers.TransformObservation(env, lambda obs: cv2.merge([*obs]), space)
    return gym.wrappers.RecordEpisodeStatistics(env)


# Networks


class ImageNetwork(nn.Module):
    """π(a|s; θ) and V(s; θ) for images: section 8's network, shared up to its two outputs."""

    def __init__(self, num_actions: int):
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(4, 16, kernel_size=8, stride=4),
            nn.ReLU(inplace=True),
            nn.Conv2d(16, 32, kernel_size=4, stride=2),
            nn.ReLU(inplace=True),
        )
        self.hidden = nn.Sequential(nn.Linear(9 * 9 * 32, 256), nn.ReLU())
        self.policy = nn.Linear(256, num_actions)
        self.value = nn.Linear(256, 1)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        x = obs.permute(0, 3, 1, 2).float()  # (B, 4, 84, 84)
        if obs.dtype == torch.uint8:  # floats are taken as they are
            x /= 255  # in place, since float() has made a copy
            # A bright background, as in Pong, would kill units. For the median, every fourth row
            # and column is enough.
            background = x[:, :, ::4, ::4].flatten(1).median(1).values  # (B,)
            x -= background.reshape(-1, 1, 1, 1)
        x = self.convs(x)  # (B, 32, 9, 9)
        # No copy, since make_network stores the convolutions channels last.
        x = x.permute(0, 2, 3, 1).flatten(1)  # (B, 9·9·32)
        x = self.hidden(x)  # (B, 256)
        return self.policy(x), self.value(x).squeeze(1)  # (B, num_actions), (B,)


class FlatNetwork(nn.Module):
    """π(a|s; θ) and V(s; θ) for all other observations: two separate MLPs."""

    def __init__(self, num_inputs: int, num_actions: int):
        super().__init__()
        self.policy_hidden = nn.Sequential(nn.Linear(num_inputs, 256), nn.Tanh())
        self.policy = nn.Linear(256, num_actions)
        self.value_hidden = nn.Sequential(nn.Linear(num_inputs, 256), nn.Tanh())
        self.value = nn.Linear(256, 1)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        x = obs.float().reshape(len(obs), -1)  # (B, num_inputs)
        logits = self.policy(self.policy_hidden(x))  # (B, num_actions)
        values = self.value(self.value_hidden(x)).squeeze(1)  # (B,)
        return logits, values


Network = ImageNetwork | FlatNetwork


def make_network(env: gym.Env, init: str) -> Network:
    """A network for the environment's observations, with initial weights as --init says."""
    num_actions = gym.spaces.flatdim(env.action_space)
    network: Network
    if env.observation_space.shape == (84, 84, 4):
        network = ImageNetwork(num_actions)
    else:
        network = FlatNetwork(gym.spaces.flatdim(env.observation_space), num_actions)

    if init == "orthogonal":  # else PyTorch's default, as in the authors' Torch
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.orthogonal_(layer.weight, gain=2**0.5)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        nn.init.orthogonal_(network.policy.weight, gain=0.01)  # so that π starts nearly uniform
        nn.init.orthogonal_(network.value.weight, gain=1.0)
    # Channels last, as in the observations, so that convolutions need not copy their input.
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


action_rng = random.Random()  # not the module's, which an environment may seed


@torch.inference_mode()
def act(network: Network, obs: np.ndarray) -> int:
    """Draws an action from π(·|s). Raises FloatingPointError if π is NaN."""
    logits, _ = network(torch.as_tensor(obs)[None])  # (1, num_actions)
    probs = logits[0].softmax(0).tolist()
    if math.isnan(probs[0]):  # one NaN makes all of them NaN
        raise FloatingPointError("π is NaN: look for NaN or huge values in observations")
    return action_rng.choices(range(len(probs)), probs)[0]


# Shared state


class Shared:
    """The state of a run, in memory that all processes share. A checkpoint is a copy of it.

    There is no lock: workers overwrite each other's updates of θ and g now and then (Hogwild). But
    no count is lost, since every counter has a single writer.
    """

    def __init__(self, network: Network, num_workers: int):
        params = {name: param.detach().clone() for name, param in network.named_parameters()}
        self.theta = share(params)  # θ
        self.square_avg = share({name: torch.ones_like(p) for name, p in params.items()})  # g
        self.steps = torch.zeros(num_workers, dtype=torch.int64).share_memory_()  # T is their sum
        self.updates = torch.zeros(num_workers, dtype=torch.int64).share_memory_()
        self.stop = torch.zeros(1, dtype=torch.bool).share_memory_()  # set by main

    def rmsprop_update(self, grads: Sequence[Tensor], lr: float, alpha: float, eps: float) -> None:
        """Equations 8 and 9, RMSProp without centring: g ← αg + (1-α)Δθ²;  θ ← θ - ηΔθ/√(g+ε)."""
        params, square_avg = self.theta.values(), self.square_avg.values()
        for param, g, grad in zip(params, square_avg, grads, strict=True):
            g.mul_(alpha).addcmul_(grad, grad, value=1 - alpha)
            param.addcdiv_(grad, (g + eps).sqrt_(), value=-lr)

    def state(self) -> dict[str, Any]:
        """A copy of what a checkpoint holds."""
        return copy.deepcopy(
            {
                "params": self.theta,
                "square_avg": self.square_avg,
                "steps": self.steps,
                "updates": self.updates,
            }
        )

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Restores all but θ, which __init__ has copied from the loaded network.

        Worker 0 takes over the sums of the counters, as the number of workers may differ.
        """
        for name, tensor in self.square_avg.items():
            tensor.copy_(checkpoint["square_avg"][name])
        self.steps[0] = checkpoint["steps"].sum()
        self.updates[0] = checkpoint["updates"].sum()


def share(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.share_memory_() for name, tensor in tensors.items()}


# Algorithm


def n_step_returns(rewards: list[float], bootstrap: float, gamma: float) -> list[float]:
    """R_i = r_i + γ R_{i+1} for each step of a segment, backwards from R_t, the bootstrap."""
    returns = []
    R = bootstrap
    for reward in reversed(rewards):
        R = reward + gamma * R
        returns.append(R)
    return returns[::-1]


def actor_critic_loss(
    logits: Tensor,
    values: Tensor,
    actions: Tensor,
    returns: Tensor,
    ent_coef: float,
    vf_coef: float,
) -> tuple[Tensor, dict[str, float]]:
    """Σ_i [-log π(a_i|s_i) (R_i - V(s_i)) - β H(π(s_i)) + c ½(R_i - V(s_i))²], and statistics.

    logits: (t, num_actions); values, actions and returns: (t,). The policy's term takes the
    advantages R - V as constants. The loss is a sum, the statistics are means per step.
    """
    logprobs = logits.log_softmax(1)  # (t, num_actions)
    action_logprobs = logprobs.gather(1, actions[:, None]).squeeze(1)  # log π(a_i|s_i), (t,)
    advantages = returns - values  # (t,)

    policy_loss = -(action_logprobs * advantages.detach()).sum()
    value_loss = 0.5 * advantages.square().sum()
    entropy = -(logprobs.exp() * logprobs).sum()
    loss = policy_loss - ent_coef * entropy + vf_coef * value_loss

    t = len(actions)
    stats = {
        "losses/policy_loss": policy_loss.item() / t,
        "losses/value_loss": value_loss.item() / t,
        "losses/entropy": entropy.item() / t,
    }
    return loss, stats


def clip_grads(grads: tuple[Tensor, ...], max_norm: float) -> tuple[tuple[Tensor, ...], float]:
    """Scales gradients down to a global norm of at most max_norm; returns them and the norm before.

    Raises FloatingPointError if that norm is not finite, so that such gradients never reach θ.
    """
    norm = nn.utils.get_total_norm(grads).item()
    if not math.isfinite(norm):
        raise FloatingPointError(
            f"the gradient's norm is {norm}: look for NaN or huge values in rewards and "
            "observations, or lower --learning-rate"
        )
    if norm > max_norm:
        grads = tuple(grad * (max_norm / norm) for grad in grads)
    return grads, norm


def worker(rank: int, args: Args, seed: int, env: gym.Env, shared: Shared, log: WorkerLog) -> None:
    """Actor-learner number `rank` (Algorithm S3).

    `seed` seeds its environment. `step` is T at the snapshot, `t` the length of the segment. The
    log uses `step + t`: T at the update, not counting what other workers did in the meantime.
    """
    network = make_network(env, args.init)  # for θ', which is this worker's own
    obs, _ = env.reset(seed=seed)

    while (step := int(shared.steps.sum())) < args.total_timesteps and not shared.stop:
        # Snapshot: θ' ← θ
        network.load_state_dict(shared.theta)
        updates_before = int(shared.updates.sum())

        # Act: t_max steps with π(a|s; θ'), or fewer if the episode or a life ends
        observations = [np.array(obs)]  # copies: an environment may reuse its array
        actions: list[int] = []
        rewards: list[float] = []
        terminated = truncated = life_lost = False
        while len(actions) < args.num_steps and not (terminated or truncated or life_lost):
            action = act(network, observations[-1])
            obs, reward, terminated, truncated, info = env.step(action)
            life_lost = info.get("life_lost", False)  # ends the segment, but not the game
            observations.append(np.array(obs))
            actions.append(action)
            rewards.append(float(reward))
        t = len(actions)
        terminal = terminated or life_lost  # so R_t = 0

        # Learn: Δθ from one pass over the segment and the state to bootstrap from
        states = torch.as_tensor(np.stack(observations))  # (t+1, ...)
        logits, values = network(states)  # (t+1, num_actions), (t+1,)
        bootstrap = 0.0 if terminal else values[t].item()
        returns = torch.tensor(n_step_returns(rewards, bootstrap, args.gamma))  # (t,)
        loss, stats = actor_critic_loss(
            logits[:t], values[:t], torch.tensor(actions), returns, args.ent_coef, args.vf_coef
        )
        grads = torch.autograd.grad(loss, list(network.parameters()))
        grads, grad_norm = clip_grads(grads, args.max_grad_norm)

        # Update: the shared θ and g, without a lock
        policy_lag = int(shared.updates.sum()) - updates_before  # updates by the others
        learning_rate = args.learning_rate * (1 - step / args.total_timesteps)
        shared.rmsprop_update(grads, learning_rate, args.rms_alpha, args.rms_eps)
        shared.updates[rank] += 1
        shared.steps[rank] += t

        # Log, and begin a new episode if one has ended
        stats |= {
            "losses/grad_norm": grad_norm,
            "async/policy_lag": policy_lag,
            "charts/learning_rate": learning_rate,
        }
        log.update(step + t, stats, values[:t], returns)
        if terminated or truncated:
            log.episode(step + t, info["episode"])
            obs, _ = env.reset()


# Running it


def seed_generators(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    action_rng.seed(seed)


def interrupt(signum: int, frame: object) -> None:
    """Raises KeyboardInterrupt, and ignores further SIGINTs, which would cut close() short."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def prepare_worker(seed: int) -> None:
    """Seeds a worker, and replaces the signal handlers that a fork copies from main."""
    seed_generators(seed)
    # SIGINT comes from Ctrl-C. When main dies, Linux sends it too, perhaps repeatedly: PyTorch asks
    # for that (in vain under forkserver, where main is not the parent).
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # how PyTorch ends the others if one is lost
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # main lets the workers end their segments


def end_children() -> None:
    """Kills the processes that an environment has left: Python would wait for them at exit."""
    for process in mp.active_children():
        process.kill()


@contextlib.contextmanager
def limit_cleanup() -> Iterator[None]:
    """Once the block has raised, gives the process some seconds to clean up, and then ends it.

    Otherwise, a close() or a thread that hangs would keep the traceback from main forever.
    """
    try:
        yield
    except BaseException as error:  # sys.exit() and KeyboardInterrupt as well
        text = traceback.format_exc()
        # After a Ctrl-C, wait longer than main, which kills hanging workers within 10 seconds.
        seconds = 15 if isinstance(error, KeyboardInterrupt) else 10

        def end() -> None:
            try:
                end_children()
                print(text, file=sys.stderr, flush=True)
            finally:  # even if nobody reads stderr any more
                os._exit(1)

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        raise


def run_worker(
    rank: int, args: Args, seeds: list[int], shared: Shared, pipes: list[Connection]
) -> None:
    """What a worker's process runs. Closes the environment even if the worker raises."""
    prepare_worker(seeds[rank])
    with contextlib.ExitStack() as stack:
        stack.callback(flush_output)  # last: multiprocessing's own flush would fail the worker
        stack.callback(end_children)  # after the environment has been closed
        with limit_cleanup():
            env = stack.enter_context(make_env(args.env_id))
            worker(rank, args, seeds[rank], env, shared, WorkerLog(pipes[rank].send))


class WorkerLog:
    """Passes on (T, {tag: value}): the means of every 100 updates, and every episode."""

    def __init__(self, send: Callable[[Any], None]):
        self.send = send
        self.updates: list[tuple[dict[str, float], Tensor, Tensor]] = []

    def update(
        self, step: int, stats: dict[str, float], estimates: Tensor, targets: Tensor
    ) -> None:
        """Adds an update. Estimates of V or Q and their targets, (t,), give explained variance."""
        self.updates.append((stats, estimates.detach(), targets))
        if len(self.updates) < 100:
            return

        stats_list, estimates_list, targets_list = zip(*self.updates, strict=True)
        self.updates.clear()
        means = {tag: float(np.mean([update[tag] for update in stats_list])) for tag in stats}
        all_targets = torch.cat(targets_list)
        errors = all_targets - torch.cat(estimates_list)
        if all_targets.var() > 0:
            means["losses/explained_variance"] = 1 - float(errors.var() / all_targets.var())
        self.send((step, means))

    def episode(self, step: int, episode: dict[str, Any]) -> None:
        """Passes on the return ("r", unclipped) and the length ("l", in steps) of an episode."""
        stats = {
            "charts/episodic_return": float(episode["r"]),
            "charts/episodic_length": float(episode["l"]),
        }
        self.send((step, stats))


class Recorder:
    """Writes the log and checkpoints of a run, and shows its progress, as a bar or in lines."""

    def __init__(self, shared: Shared, args: Args, run_dir: Path, start: int):
        """Opens the log, and the bar at the current T. `start` is T before the workers started."""
        self.shared = shared
        self.args = args
        self.run_dir = run_dir
        # purge_step: in a resumed run, TensorBoard hides what was logged after the checkpoint (in
        # some versions only when the tag has a new point).
        self.writer = SummaryWriter(run_dir, purge_step=start + 1, flush_secs=5)
        table = "\n".join(f"|{name}|{value}|" for name, value in asdict(args).items())
        self.writer.add_text("arguments", f"|flag|value|\n|-|-|\n{table}", start)
        self.on_terminal = sys.stderr is not None and sys.stderr.isatty()
        self.bar = tqdm(
            total=args.total_timesteps,
            initial=min(int(shared.steps.sum()), args.total_timesteps),
            unit=" steps",
            smoothing=0.05,
            ascii=None if self.on_terminal else True,  # a file may have any encoding
            disable=False,  # TQDM_DISABLE would also stop the measurement of the speed
            file=sys.stderr if self.on_terminal else open(os.devnull, "w"),
        )
        self.log_failed = False
        self.next_steps: dict[str, int] = {}  # the lowest step that each tag may still log
        self.returns: deque[float] = deque(maxlen=100)
        self.last_report = self.last_save = time.monotonic()

    def log(self, message: tuple[int, dict[str, float]]) -> None:
        """Writes what a WorkerLog has sent. Within a tag, each step is higher than the last."""
        step, stats = message
        if "charts/episodic_return" in stats:
            self.returns.append(stats["charts/episodic_return"])
        try:
            for tag, value in stats.items():
                # TensorBoard drops a point if a later one of its tag has no higher step.
                logged_step = max(step, self.next_steps.get(tag, 0))
                self.writer.add_scalar(tag, value, logged_step)
                self.next_steps[tag] = logged_step + 1
        except Exception as error:  # a full disk (TensorFlow, if installed, has its own errors)
            if not self.log_failed:
                what = "cannot write the log until the next checkpoint (disk full?)"
                warn(f"{SCRIPT.name}: {what}: {error}")
            self.log_failed = True

    def progress(self, step: int, last: bool = False) -> None:
        """Moves the bar to the step; every 10 seconds, and at the last call, reports the speed."""
        if self.returns:
            self.bar.set_postfix_str(f"return {np.mean(self.returns):.1f}", refresh=False)
        self.bar.update(min(step, self.bar.total) - self.bar.n)
        if not last and time.monotonic() < self.last_report + 10:
            return

        self.last_report = time.monotonic()
        if rate := self.bar.format_dict["rate"]:
            self.log((step, {"charts/SPS": rate}))
        if not self.on_terminal:
            with contextlib.suppress(OSError):  # nobody reads the output any more
                print(self.bar, flush=True)

    def save_if_due(self) -> None:
        """Saves a checkpoint if the last one is older than --checkpoint-interval."""
        if time.monotonic() > self.last_save + self.args.checkpoint_interval:
            saved = save_checkpoint(self.shared, self.args, self.run_dir)
            self.last_save = time.monotonic()
            if saved and self.log_failed:  # TensorBoard's writer does not recover by itself
                with contextlib.suppress(Exception):
                    self.writer = SummaryWriter(self.run_dir, flush_secs=5)
                    self.log_failed = False

    def close(self) -> None:
        self.progress(int(self.shared.steps.sum()), last=True)
        with contextlib.suppress(Exception):
            self.writer.close()
        with contextlib.suppress(OSError):
            self.bar.close()
            if not self.on_terminal:
                self.bar.fp.close()


class StopSignals:
    """While entered, Ctrl-C, SIGTERM and SIGHUP ask the run to stop; a further Ctrl-C exits.

    `signum` is the signal that came first, or 0.
    """

    def __init__(self, stop: Tensor):
        self.stop = stop
        self.signum = 0

    def __enter__(self):
        signums = [signal.SIGINT, signal.SIGTERM]
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signums.append(signal.SIGHUP)  # under nohup it stays ignored
        if threading.current_thread() is not threading.main_thread():
            signums = []  # Python lets only the main thread handle signals
        self.handlers = {signum: signal.signal(signum, self.handle) for signum in signums}
        return self

    def handle(self, signum: int, frame: object) -> None:
        if not self.signum:
            self.signum = signum
            self.stop.fill_(True)
        elif signum == signal.SIGINT:
            sys.exit(128 + signum)

    def ignore(self) -> None:
        """Ignores further signals, so that none cuts the last checkpoint short."""
        for signum in self.handlers:
            signal.signal(signum, signal.SIG_IGN)

    def __exit__(self, *exception: object) -> None:
        for signum, handler in self.handlers.items():
            signal.signal(signum, handler)


# Checkpoints and evaluation


def save_checkpoint(shared: Shared, args: Args, run_dir: Path) -> bool:
    """Replaces checkpoint.pt atomically, and keeps the one before it as checkpoint.prev.pt.

    Returns False if it cannot be written. In the asynchronous scripts, workers go on with their
    updates during the milliseconds that the copy of θ, g and the counters takes.
    """
    file, part = run_dir / "checkpoint.pt", run_dir / "checkpoint.part"
    state = shared.state()
    try:
        with part.open("wb") as stream:
            torch.save({"script": SCRIPT.stem, "args": asdict(args), **state}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        if file.exists():
            previous = run_dir / "checkpoint.prev.part"
            with contextlib.suppress(OSError):  # no space for both: the newest counts
                shutil.copyfile(file, previous)
                os.replace(previous, run_dir / "checkpoint.prev.pt")
        os.replace(part, file)
    except (OSError, RuntimeError) as error:  # a full disk: the run goes on, the old file stays
        warn(f"{SCRIPT.name}: cannot write {file} (disk full, or in use?): {error}")
        return False
    return True


def load_checkpoint(path: str) -> tuple[dict[str, Any], Path]:
    """Loads a checkpoint, given its path or its run's folder; returns it and the folder."""
    file = Path(path) / "checkpoint.pt" if os.path.isdir(path) else Path(path)  # is_dir may raise
    try:
        checkpoint = torch.load(file, weights_only=True)
        script, flags = checkpoint["script"], checkpoint["args"]
    except FileNotFoundError:
        bad_input(f"{file} does not exist")
    except PermissionError as error:
        bad_input(f"cannot read {file}: {error}")
    except Exception as error:  # whatever PyTorch raises on a damaged file
        what = f"{file} is damaged, or is no checkpoint ({type(error).__name__})"
        bad_input(f"{what}: try checkpoint.prev.pt beside it")
    if script != SCRIPT.stem:
        bad_input(f"{file} was written by {script}.py: use that script")

    try:
        checkpoint["args"] = Args(**{**flags, "resume": ""})  # --resume belongs to the command
    except TypeError as error:
        bad_input(f"{file} is from another version of {SCRIPT.name}: {error}")
    return checkpoint, file.parent


def evaluate(args: Args, network: Network, run_dir: Path) -> list[float]:
    """Plays full episodes with act(); prints and returns their unclipped returns."""
    env = make_env(args.env_id, args.capture_video)
    # An episode might never end: it gets 100,000 steps, or the environment's own limit if longer.
    own_limit = env.spec.max_episode_steps if env.spec else None
    limit = max(100_000, own_limit or 0)
    if args.capture_video:
        try:
            env = gym.wrappers.RecordVideo(env, str(run_dir / "videos"), lambda episode: True)
        except (OSError, ValueError, gym.error.DependencyNotInstalled) as error:
            env.close()
            bad_input(f"--capture-video: {error}")

    returns = []
    with env:
        for episode in range(args.eval_episodes):
            obs, _ = env.reset(seed=args.seed + episode)
            terminated = truncated = False
            steps = 0
            while not (terminated or truncated):
                if steps == limit:
                    what = f"{args.env_id}: an episode has not ended within {limit} steps"
                    bad_input(f"{what}: register the environment with max_episode_steps")
                obs, _, terminated, truncated, info = env.step(act(network, np.array(obs)))
                steps += 1
            returns.append(float(info["episode"]["r"]))
            show(f"episode {episode + 1}: return {returns[-1]:.10g}")
    mean, std = np.mean(returns), np.std(returns)
    show(f"{args.env_id}, {len(returns)} episodes: return {mean:.2f} ± {std:.2f}")
    return returns


# Main


def show(message: str) -> None:
    """Prints to stdout, whatever its encoding, even if a reader such as `head` has gone away."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    with contextlib.suppress(OSError):
        print(message.encode(encoding, "replace").decode(encoding), flush=True)


def warn(message: str) -> None:
    """Prints to stderr, above the bar. A full disk or a closed terminal does not end the run."""
    with contextlib.suppress(OSError):
        tqdm.write(message, file=sys.stderr)


def flush_output() -> None:
    """Flushes stdout and stderr. Drops what nobody reads, or Python would exit with code 120."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def bad_input(message: str) -> NoReturn:
    """Prints the message as one line to stderr, and exits with code 2."""
    warn(f"{SCRIPT.name}: error: {' '.join(message.split())}")
    sys.exit(2)


BOUNDS = {  # the smallest and the largest value of each number among the arguments
    "num_workers": (1, 60 if sys.platform == "win32" else 10_000),  # Windows: at most 63 handles
    "total_timesteps": (0, 10**15),
    "seed": (0, 2**32 - 1),
    "num_steps": (1, 10**6),
    "gamma": (0, 1),
    "ent_coef": (0, 1e6),
    "vf_coef": (0, 1e6),
    "learning_rate": (0, 1e6),
    "rms_alpha": (0, 1),
    "rms_eps": (0, 1e6),
    "max_grad_norm": (1e-6, math.inf),
    "checkpoint_interval": (0, math.inf),
    "eval_episodes": (1, 10**6),
}


def validate_args(args: Args) -> Args:
    """Checks the arguments, and gives them Python's own types."""
    for name, (low, high) in BOUNDS.items():
        value = getattr(args, name)
        if not low <= value <= high:
            bad_input(f"--{name.replace('_', '-')} must be from {low} to {high}, not {value}")
    if args.init not in ("orthogonal", "paper"):
        bad_input(f"--init must be orthogonal or paper, not {args.init}")
    if args.resume and args.evaluate:
        bad_input("--resume and --evaluate exclude each other: leave one out")
    if args.capture_video and not args.evaluate:
        bad_input("--capture-video needs --evaluate: train first, then record")

    # NumPy's types would make checkpoints that torch.load refuses.
    values = {
        name: type(default)(getattr(args, name))
        for name, default in asdict(Args()).items()
        if default is not None and getattr(args, name) is not None
    }
    return replace(args, **values)


def prepare_run(args: Args) -> tuple[Args, Network]:
    """Seeds all generators, makes the initial network, and fills in the arguments that are 0."""
    try:
        with make_env(args.env_id, args.capture_video) as env:
            seed_generators(args.seed)  # not before make_env, which may draw numbers, or seed
            network = make_network(env, args.init)
            images = env.observation_space.shape == (84, 84, 4)
    except (gym.error.Error, ImportError, UnsupportedEnvironment) as error:
        bad_input(f"--env-id {args.env_id}: {error}")
    return choose_defaults(args, images), network


def start_run(args: Args, network: Network) -> tuple[Shared, Path]:
    """Makes the shared state and the folder of a run, or takes those of the run to resume."""
    checkpoint = None
    if args.resume:
        checkpoint, run_dir = load_checkpoint(args.resume)
        load_params(network, checkpoint, args.resume)
    else:
        now = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        name = f"{args.env_id}__{SCRIPT.stem}__{args.seed}__{now}"
        run_dir = Path(args.log_dir) / name.replace("/", "-").replace(":", "-")
    try:
        shared = Shared(network, args.num_workers)
        if checkpoint:
            shared.restore(checkpoint)
        run_dir.mkdir(parents=True, exist_ok=bool(args.resume))
    except (OSError, RuntimeError) as error:
        bad_input(f"cannot start a run in {run_dir}: {error}")
    show(f"{SCRIPT.name}: run folder {run_dir}")
    return shared, run_dir


def claim_run(args: Args, run_dir: Path, start: int) -> TextIO:
    """Writes the run's args.json, and returns the file, which is locked until it is closed.

    Refuses a run that another process is training (not on Windows, which has no fcntl). Refuses it
    also if its checkpoint is no longer at T = `start`, as it was when it was loaded.
    """
    try:
        file = (run_dir / "args.json").open("a")
        lock(file)
        if args.resume and load_checkpoint(args.resume)[0]["steps"].sum() != start:
            bad_input(f"another process has just trained the run in {run_dir}: try again")
        file.truncate(0)
        print(json.dumps(asdict(args), indent=2), file=file, flush=True)
    except BlockingIOError:
        bad_input(f"another process is training the run in {run_dir}: stop it first")
    except OSError as error:
        bad_input(f"cannot start a run in {run_dir}: {error}")
    return file


def lock(file: TextIO) -> None:
    """Locks the file. Raises BlockingIOError if another process has done so."""
    if sys.platform == "win32":
        return
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks
        pass


def load_params(network: Network, checkpoint: dict[str, Any], path: str) -> None:
    """Loads θ into the network. It is bad input if the shapes differ."""
    try:
        network.load_state_dict(checkpoint["params"])
    except (RuntimeError, TypeError):
        bad_input(f"{path} does not fit this network: did the code change, or is --env-id wrong?")


def start_workers(args: Args, shared: Shared) -> tuple[mp.ProcessContext, list[Connection]]:
    """Starts the workers; returns them and main's ends of their pipes."""
    method = mp.get_start_method(allow_none=True)
    if method is None:  # the calling program has chosen none
        # Forking is the fastest, and safe because PyTorch still has one thread (docs/running.md).
        method = "fork" if sys.platform == "linux" else "spawn"
    T = int(shared.steps.sum())  # part of the seed, so that a resumed run gets new seeds
    seeds = np.random.SeedSequence([args.seed, T]).generate_state(args.num_workers).tolist()
    # When one worker is lost, PyTorch ends the others, with a warning for each.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    others = mp.active_children()  # those of a program that calls main must stay
    try:
        flush_output()  # multiprocessing flushes, too, and fails if nobody reads the output
        pipes = [mp.get_context(method).Pipe(duplex=False) for _ in range(args.num_workers)]
        receivers, senders = [pipe[0] for pipe in pipes], [pipe[1] for pipe in pipes]
        workers = mp.start_processes(
            run_worker,
            (args, seeds, shared, senders),
            nprocs=args.num_workers,
            join=False,
            start_method=method,
        )
    except BaseException as error:  # the workers that have started must not stay
        for process in {*mp.active_children()} - {*others}:
            process.kill()
        if isinstance(error, OSError):  # too many files or processes
            advice = "if there are too many, lower --num-workers"
            bad_input(f"cannot start {args.num_workers} workers: {error}: {advice}")
        raise
    return workers, receivers


def watch(
    workers: mp.ProcessContext,
    receivers: list[Connection],
    shared: Shared,
    recorder: Recorder,
    signals: StopSignals,
) -> bool:
    """Records the run until all workers have ended; returns whether one was lost.

    A worker counts as lost if it exits before the end of the run, or has not ended 60 seconds after
    the last step, or 10 seconds after a signal.
    """
    deadline = math.inf  # by which the workers must have ended, once it is set
    while True:
        exit_codes = [process.exitcode for process in workers.processes]
        failures = [f"exit code {code}" for code in exit_codes if code]
        try:
            # join does not see that a worker has ended while a process that it started is alive.
            all_ended = workers.join(timeout=0.2) or None not in exit_codes
        except Exception as error:  # with the worker's traceback, or its signal
            failures = [str(error)]

        messages = []
        for receiver in receivers:
            with contextlib.suppress(EOFError, BrokenPipeError):  # its worker has ended
                while receiver.poll():
                    messages.append(receiver.recv())
        for message in sorted(messages, key=lambda message: message[0]):  # by T
            recorder.log(message)

        step = int(shared.steps.sum())
        recorder.progress(step)

        if failures:
            if not signals.signum:
                warn(f"{SCRIPT.name}: a worker was lost: {failures[0]}")
            return True
        if signals.signum or step >= recorder.args.total_timesteps:
            patience = 10 if signals.signum else 60  # seconds for the last segment and close()
            deadline = min(deadline, time.monotonic() + patience)
        elif all_ended or 0 in exit_codes:
            # The exit codes were read before T, so this worker has not ended because of T_max.
            warn(f"{SCRIPT.name}: a worker has exited: does its environment call exit()?")
            return True
        if all_ended:
            return False
        if time.monotonic() > deadline:
            warn(f"{SCRIPT.name}: a worker does not end (does its environment hang?): it is killed")
            return True
        recorder.save_if_due()


def finish_run(shared: Shared, args: Args, run_dir: Path) -> bool:
    """Saves the last checkpoint; returns whether the run is complete, or else says how to go on."""
    saved = save_checkpoint(shared, args, run_dir)
    if saved and int(shared.steps.sum()) >= args.total_timesteps:
        return True
    if (run_dir / "checkpoint.pt").exists():
        # Slashes: shlex would put single quotes around backslashes, which cmd.exe does not know.
        command = ["python", SCRIPT.as_posix(), "--resume", run_dir.as_posix()]
        warn(f"to continue: {shlex.join(command)}")
    return False


def main(args: Args) -> list[float] | None:
    """Trains, or with args.evaluate plays episodes and returns a list of their returns.

    From Python, pass the run's own arguments along with resume or evaluate: only the command line
    takes them from the checkpoint. Exits with code 2 for bad input, 128 + n if signal n stopped the
    run, and 1 if a worker was lost or the run is not complete for another reason.
    """
    args, network = prepare_run(validate_args(args))
    if args.evaluate:
        checkpoint, run_dir = load_checkpoint(args.evaluate)
        load_params(network, checkpoint, args.evaluate)
        try:
            return evaluate(args, network, run_dir)
        except gym.error.DependencyNotInstalled as error:
            bad_input(f"--capture-video: {error}")
        except KeyboardInterrupt:
            sys.exit(128 + signal.SIGINT)

    shared, run_dir = start_run(args, network)
    start = int(shared.steps.sum())
    if start >= args.total_timesteps:
        warn(f"{SCRIPT.name}: the run is complete: raise --total-timesteps to continue it")
        return None

    lost = True  # unless watch says otherwise
    with claim_run(args, run_dir, start), StopSignals(shared.stop) as signals:
        workers, receivers = start_workers(args, shared)
        try:
            with contextlib.closing(Recorder(shared, args, run_dir, start)) as recorder:
                lost = watch(workers, receivers, shared, recorder, signals)
        finally:
            signals.ignore()
            for process in workers.processes:
                process.kill()
            complete = finish_run(shared, args, run_dir)

    if lost or not complete:
        sys.exit(128 + signals.signum if signals.signum else 1)
    return None


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # its encoding may have no θ
    args = tyro.cli(Args, description=__doc__)
    if path := args.resume or args.evaluate:
        # Once more, with the flags of the run as the defaults.
        args = tyro.cli(Args, description=__doc__, default=load_checkpoint(path)[0]["args"])
    try:
        main(args)
    finally:
        flush_output()
