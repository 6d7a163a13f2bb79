# /// script
# requires-python = ">=3.10"
# dependencies = [
#   "torch==2.13.0", "gymnasium==1.4.0", "ale-py==0.12.1", "opencv-python-headless==5.0.0.93",
#   "tyro==1.0.17", "tensorboard==2.21.0", "tqdm==4.70.1", "moviepy==2.2.1", "pygame==2.6.1",
# ]
# ///
"""A3C, asynchronous advantage actor-critic (Mnih et al. 2016, Algorithm S3).

Several worker processes play their own copy of the environment and train one shared network,
without a lock. Each repeats, until the steps of all workers together reach T_max:

    Snapshot   θ' ← θ
    Act        up to t_max steps with π(a|s; θ'), or until the episode ends
    Learn      R ← r_i + γR, backwards from R = 0 (terminal) or V(s_t; θ') (else)
               Δθ = ∇_θ' Σ_i [-log π(a_i|s_i) (R_i - V(s_i)) - β H(π(s_i)) + c ½(R_i - V(s_i))²]
    Update     g ← αg + (1-α)Δθ²;  θ ← θ - ηΔθ/√(g+ε), η going linearly to 0

    python a3c.py --env-id BreakoutNoFrameskip-v4 --num-workers 16
    python a3c.py --evaluate runs/NAME --capture-video

Where this file departs from the paper, or decides what the paper leaves open:
- One batched pass over the segment gives the gradient. θ' is constant within a segment, so it is
  the sum that Algorithm S3 accumulates step by step.
- The advantage R - V is a constant for the policy. The value gradient is c(R - V)∇V with c = 0.5;
  --vf-coef 1 is the literal ∂(R - V)²/∂θ_v, halved as the authors say they halved it.
- ε = 0.1 under the root and the limit 40 for the norm come from the authors' e-mails.
- A time limit bootstraps from V of the last observation; only termination makes R = 0.
- Atari: a lost life ends a segment with R = 0, but not the game; up to 30 no-ops start a game.
"""

import contextlib
import json
import math
import multiprocessing
import os
import random
import re
import signal
import sys
import threading
import time
from collections import deque
from dataclasses import asdict, dataclass
from multiprocessing import connection
from pathlib import Path
from typing import NoReturn

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

gym.register_envs(ale_py)
cv2.setNumThreads(0)  # OpenCV's threads do not survive a fork
SCRIPT = Path(__file__)
START_METHOD = "fork" if sys.platform == "linux" else "spawn"
LOSSES = "losses/policy_loss", "losses/value_loss", "losses/entropy", "losses/grad_norm"
STATS = *LOSSES, "charts/learning_rate", "async/policy_lag"


@dataclass
class Args:
    env_id: str = "BreakoutNoFrameskip-v4"
    """environment: any Gymnasium id, module:Name-v0 for one's own; discrete actions"""
    num_workers: int = 16
    """number of actor-learner processes"""
    total_timesteps: int = 10_000_000
    """agent steps of all workers together (T_max; an Atari step is 4 frames)"""
    seed: int = 1
    """seed of everything; a run with --num-workers 1 can be repeated bit for bit"""
    num_steps: int = 5
    """longest segment between two updates of a worker, in agent steps (t_max)"""
    gamma: float = 0.99
    """discount per agent step (γ)"""
    learning_rate: float = 7e-4
    """learning rate at the start; it goes linearly to 0 at --total-timesteps (η)"""
    rms_alpha: float = 0.99
    """decay of RMSProp's mean square, per update (α)"""
    rms_eps: float = 0.1
    """constant under RMSProp's root (ε)"""
    max_grad_norm: float = 40.0
    """largest norm of a segment's gradient; a longer one is scaled down to it"""
    ent_coef: float = 0.01
    """weight of the entropy bonus (β)"""
    vf_coef: float = 0.5
    """weight of the value loss ½(R - V)² (c)"""
    log_dir: str = "runs"
    """folder in which every run makes a folder of its own"""
    checkpoint_interval: float = 60.0
    """seconds between two checkpoints; one more is written whenever a run ends or stops"""
    resume: str = ""
    """run folder or checkpoint.pt to go on with, by its own flags but for those given"""
    evaluate: str = ""
    """run folder or checkpoint.pt whose policy plays whole episodes, without training"""
    eval_episodes: int = 10
    """number of episodes that --evaluate plays"""
    capture_video: bool = False
    """leave an .mp4 of every episode that --evaluate plays, in the run's folder"""


class Atari(gym.Wrapper):
    """An ALE game as the paper plays it: each action is repeated for 4 frames; the maximum of the
    last two screens (sprites flicker), grey and 84×84, and its three predecessors are the
    observation, 84×84×4. It drives the emulator itself: env.step() would draw every screen.
    """

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.ale, self.actions = env.unwrapped.ale, env.unwrapped.ale.getMinimalActionSet()
        self.screens = np.zeros((2, *self.ale.getScreenDims()), np.uint8)
        self.observation_space = gym.spaces.Box(0, 255, (84, 84, 4), np.uint8)
        self.metadata = {**env.metadata, "render_fps": 15}

    def reset(self, **kwargs):
        _, info = self.env.reset(**kwargs)
        for _ in range(self.unwrapped.np_random.integers(31)):
            self.ale.act(0)
        for screen in self.screens:
            self.ale.getScreenGrayscale(screen)
        self.stack = deque([self.grey()] * 4, maxlen=4)
        return cv2.merge(list(self.stack)), info

    def step(self, action):
        reward, lives = 0.0, self.ale.lives()
        for frame in range(4):
            reward += self.ale.act(self.actions[action])
            if frame >= 2:
                self.ale.getScreenGrayscale(self.screens[frame - 2])
        self.stack.append(self.grey())
        terminated = self.ale.game_over(with_truncation=False)
        info = {"life_lost": self.ale.lives() < lives}
        return cv2.merge(list(self.stack)), reward, terminated, self.ale.game_truncated(), info

    def grey(self) -> np.ndarray:
        return cv2.resize(np.maximum(*self.screens), (84, 84), interpolation=cv2.INTER_AREA)


def make_env(env_id: str, render_mode: str | None = None) -> gym.Env:
    """One environment. Atari is preprocessed as in the paper, whatever the id's frame skip (a -v5
    id keeps its sticky actions); other images (uint8, H×W, H×W×1 or H×W×3) become grey, 84×84×4.
    """
    env = gym.make(env_id, render_mode=render_mode)
    if isinstance(env.unwrapped, ale_py.AtariEnv):
        return Atari(env)
    space = env.observation_space
    if space.dtype == np.uint8 and (len(space.shape) == 2 or space.shape[2:] in [(1,), (3,)]):
        if space.shape[2:] == (3,):
            env = gym.wrappers.GrayscaleObservation(env)
        env = gym.wrappers.FrameStackObservation(gym.wrappers.ResizeObservation(env, (84, 84)), 4)
        to_hwc, space = lambda obs: cv2.merge([*obs]), gym.spaces.Box(0, 255, (84, 84, 4), np.uint8)
        env = gym.wrappers.TransformObservation(env, to_hwc, space)
    return env


class ActorCritic(nn.Module):
    """π(a|s; θ) and V(s; θ_v): for images the network of §8, shared up to the two output layers;
    for other observations an MLP each.
    """

    def __init__(self, env: gym.Env):
        super().__init__()
        shape, num_actions = env.observation_space.shape, int(env.action_space.n)
        self.is_image = shape == (84, 84, 4)
        if self.is_image:
            self.conv1, self.conv2 = nn.Conv2d(4, 16, 8, stride=4), nn.Conv2d(16, 32, 4, stride=2)
            self.hidden = nn.Linear(9 * 9 * 32, 256)
            self.policy, self.value = nn.Linear(256, num_actions), nn.Linear(256, 1)
            self.to(memory_format=torch.channels_last)  # as the observations are
        else:
            self.policy, self.value = mlp(math.prod(shape), num_actions), mlp(math.prod(shape), 1)

    def features(self, obs: Tensor) -> Tensor:
        x = obs.float().div_(255) if obs.dtype == torch.uint8 else obs.float()  # (B, *shape)
        if self.is_image and len(x) == 1:
            x = convolve_one(convolve_one(x[0], self.conv1), self.conv2)[None]  # (1, 9, 9, 32)
        elif self.is_image:
            x = self.conv2(self.conv1(x.permute(0, 3, 1, 2)).relu_()).relu_()  # (B, 32, 9, 9)
            x = x.permute(0, 2, 3, 1)  # (B, 9, 9, 32)
        x = x.flatten(1)
        return self.hidden(x).relu_() if self.is_image else x  # (B, 256 or inputs)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        x = self.features(obs)
        return self.policy(x), self.value(x).squeeze(1)  # (B, num_actions), (B,)

    @torch.inference_mode()
    def act(self, obs: np.ndarray) -> int:
        """Draws an action from π(·|s) for one observation."""
        logits = self.policy(self.features(torch.as_tensor(obs)[None]))[0]  # (num_actions,)
        return random.choices(range(len(logits)), logits.softmax(0).tolist())[0]


def convolve_one(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """ReLU of a convolution of one H×W×C observation, as a matrix product: at this size oneDNN,
    behind conv(x), takes longer to set up than to compute.
    """
    (h, w, c), k, s = x.shape, conv.kernel_size[0], conv.stride[0]
    n = (h - k) // s + 1
    patches = x.as_strided((n, n, k, k * c), (s * w * c, s * c, w * c, 1)).reshape(n * n, -1)
    weight = conv.weight.permute(0, 2, 3, 1).flatten(1)  # (out, k·k·c)
    return nn.functional.linear(patches, weight, conv.bias).relu_().view(n, n, -1)


def mlp(num_inputs: int, num_outputs: int) -> nn.Sequential:
    hidden = [nn.Linear(num_inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh()]
    return nn.Sequential(*hidden, nn.Linear(64, num_outputs))


def flatten(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Moves the model's parameters into one vector and its gradients into another, and returns
    them. What the model has are views: a snapshot is one copy, the update two lines.
    """
    num_params = sum(p.numel() for p in model.parameters())
    params, grads, offset = torch.zeros(num_params), torch.zeros(num_params), 0
    for p in model.parameters():
        view = p.shape, p.stride(), offset
        params.as_strided(*view).copy_(p.data)
        p.data, p.grad = params.as_strided(*view), grads.as_strided(*view)
        offset += p.numel()
    return params, grads


class Shared:
    """All that the processes share, in shared memory, and all that a run has to remember.

    There is no lock: θ and g are updated Hogwild, and every counter has a single writer, so a
    worker killed at any instruction leaves nothing locked.
    """

    def __init__(self, num_params: int, num_workers: int):
        self.params = torch.zeros(num_params)  # θ
        self.square_avg = torch.zeros(num_params)  # g
        self.steps = torch.zeros(num_workers, dtype=torch.int64)  # T is their sum
        self.updates = torch.zeros(num_workers, dtype=torch.int64)
        self.stop = torch.zeros(1, dtype=torch.bool)  # set by main
        for tensor in vars(self).values():
            tensor.share_memory_()


def n_step_returns(rewards: list[float], bootstrap: float, gamma: float) -> Tensor:
    """R ← r_i + γR, backwards from R = bootstrap; (t,)."""
    returns = []
    for reward in reversed(rewards):
        bootstrap = reward + gamma * bootstrap
        returns.append(bootstrap)
    return torch.tensor(returns[::-1])


def segment_losses(logits: Tensor, values: Tensor, actions: Tensor, returns: Tensor):
    """Policy loss, value loss and entropy, each a sum over the segment."""
    logprobs = logits.log_softmax(1)  # (t, num_actions)
    advantages = returns - values  # (t,)
    policy_loss = -(logprobs.gather(1, actions[:, None])[:, 0] * advantages.detach()).sum()
    entropy = -(logprobs.exp() * logprobs).sum()
    return policy_loss, 0.5 * advantages.square().sum(), entropy


def rmsprop_update(params: Tensor, square_avg: Tensor, grads: Tensor, lr: float, args: Args):
    """Equations 8 and 9, in place: RMSProp, not centred, with ε under the root."""
    # g ← αg + (1-α)Δθ²
    square_avg.mul_(args.rms_alpha).addcmul_(grads, grads, value=1 - args.rms_alpha)
    # θ ← θ - ηΔθ/√(g+ε)
    params.addcmul_(grads, (square_avg + args.rms_eps).rsqrt_(), value=-lr)


def worker(rank: int, seed: int, args: Args, shared: Shared, pipe: connection.Connection) -> None:
    """One actor-learner (Algorithm S3). Tells main (T, {tag: value}) through its pipe."""
    prepare_process(seed)
    env = make_env(args.env_id)
    obs, _ = env.reset(seed=seed)
    model = ActorCritic(env)
    params, grads = flatten(model)  # θ', Δθ
    reward_limit = 1.0 if isinstance(env, Atari) else math.inf
    episodic_return, length, stats = 0.0, 0, []

    while (step := int(shared.steps.sum())) < args.total_timesteps and not shared.stop:
        # Snapshot: θ' ← θ
        params.copy_(shared.params)
        updates = int(shared.updates.sum())

        # Act: up to t_max steps with π(a|s; θ'), or until the episode ends
        segment, actions, rewards = [np.array(obs)], [], []
        terminal = truncated = False
        while len(rewards) < args.num_steps and not (terminal or truncated):
            actions.append(model.act(obs))
            obs, reward, terminated, truncated, info = env.step(
                actions[-1] + env.action_space.start
            )
            terminal = terminated or info.get("life_lost", False)
            segment.append(np.array(obs))  # a copy: an environment may write into its own
            rewards.append(max(-reward_limit, min(reward_limit, float(reward))))
            episodic_return += float(reward)
            length += 1
        t = len(rewards)

        # Learn: Δθ from one pass over the segment, and over the state to bootstrap from
        batch = torch.as_tensor(np.stack(segment[: t if terminal else t + 1]))
        logits, values = model(batch)  # (t or t+1, num_actions), (t or t+1,)
        returns = n_step_returns(rewards, 0.0 if terminal else values[t].item(), args.gamma)  # (t,)
        policy_loss, value_loss, entropy = segment_losses(
            logits[:t], values[:t], torch.tensor(actions), returns
        )
        grads.zero_()
        (policy_loss - args.ent_coef * entropy + args.vf_coef * value_loss).backward()
        grad_norm = grads.norm().item()
        if not math.isfinite(grad_norm):
            raise FloatingPointError("the gradient is not finite: try a lower --learning-rate")
        if grad_norm > args.max_grad_norm:
            grads.mul_(args.max_grad_norm / grad_norm)

        # Update: θ and g of all workers, without a lock
        policy_lag = int(shared.updates.sum()) - updates
        lr = args.learning_rate * (1 - step / args.total_timesteps)
        rmsprop_update(shared.params, shared.square_avg, grads, lr, args)
        shared.updates[rank] += 1
        shared.steps[rank] += t

        losses = policy_loss.item() / t, value_loss.item() / t, entropy.item() / t, grad_norm
        stats.append((*losses, lr, policy_lag))
        if len(stats) == 100:
            pipe.send((step + t, dict(zip(STATS, np.mean(stats, axis=0).tolist(), strict=True))))
            stats.clear()
        if terminated or truncated:
            episode = {"charts/episodic_return": episodic_return, "charts/episodic_length": length}
            pipe.send((step + t, episode))
            episodic_return, length = 0.0, 0
            obs, _ = env.reset()


def prepare_process(seed: int) -> None:
    """Gives a worker one thread, its own seeds, and an end when main ends, however that happens."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; main decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    main_process = multiprocessing.parent_process()
    exit_with_main = lambda: (main_process.join(), os._exit(1))  # noqa: E731
    threading.Thread(target=exit_with_main, daemon=True).start()
    torch.set_num_threads(1)
    for set_seed in (torch.manual_seed, np.random.seed, random.seed):
        set_seed(seed)


def bad_input(message: str) -> NoReturn:
    print(f"{SCRIPT.name}: error: {message}", file=sys.stderr)
    sys.exit(2)


def check(args: Args) -> ActorCritic:
    """Ends the program with one line and code 2 if it can't work; returns the initial network."""
    for name, value in asdict(args).items():
        low = 1 if isinstance(value, int) and name != "seed" else 0
        high = 1 if name in ("gamma", "rms_alpha") else math.inf
        if not isinstance(value, bool | str) and not low <= value <= high:
            bad_input(f"--{name.replace('_', '-')} must be from {low} to {high}, not {value}")
    if args.resume and args.evaluate:
        bad_input("--resume and --evaluate exclude each other: give one of them")
    try:
        env = make_env(args.env_id)
    except Exception as error:
        bad_input(f"can't make {args.env_id}: {' '.join(str(error).split())}")
    if not isinstance(env.action_space, gym.spaces.Discrete):
        bad_input(f"{args.env_id} has actions {env.action_space}; they must be Discrete")
    if not isinstance(env.observation_space, gym.spaces.Box):
        bad_input(f"{args.env_id} has observations {env.observation_space}; they must be a Box")
    torch.manual_seed(args.seed)
    model = ActorCritic(env)
    env.close()
    return model


def save_checkpoint(path: Path, args: Args, shared: Shared) -> bool:
    """Writes all that a resume needs. A reader finds the old file or the new one, never a part."""
    state = {name: tensor.clone() for name, tensor in vars(shared).items() if name != "stop"}
    part = path.with_suffix(".part")
    try:
        with open(part, "wb") as file:
            torch.save({"script": SCRIPT.stem, "args": asdict(args), **state}, file)
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # a full disk: the run goes on, the old file stays
        print(f"{SCRIPT.name}: can't write {path}: {error}", file=sys.stderr)
    return not part.exists()


def load_checkpoint(path: str) -> tuple[Path, dict]:
    """The folder of a run and its checkpoint, given the path of either."""
    file = Path(path) / "checkpoint.pt" if Path(path).is_dir() else Path(path)
    try:
        checkpoint = torch.load(file, weights_only=True)
        if checkpoint["script"] != SCRIPT.stem:
            bad_input(f"{file} was written by {checkpoint['script']}.py: use that")
        checkpoint["args"] = Args(**{**checkpoint["args"], "resume": ""})
    except Exception as error:
        bad_input(f"can't read {file} as a checkpoint: {str(error).splitlines()[0]}")
    return file.parent, checkpoint


def restore(params: Tensor, checkpoint: dict, args: Args) -> None:
    if params.shape != checkpoint["params"].shape:
        bad_input(f"the checkpoint's network does not fit {args.env_id}")
    params.copy_(checkpoint["params"])


def evaluate(args: Args, model: ActorCritic) -> None:
    """Plays whole episodes by the policy, and prints their returns, of unclipped rewards."""
    run_dir, checkpoint = load_checkpoint(args.evaluate)
    restore(flatten(model)[0], checkpoint, args)
    env = make_env(args.env_id, "rgb_array" if args.capture_video else None)
    if args.capture_video:
        env = gym.wrappers.RecordVideo(env, str(run_dir / "videos"), lambda episode: True)
    returns = []
    for episode in range(args.eval_episodes):
        obs, _ = env.reset(seed=args.seed + episode)
        returns.append(0.0)
        terminated = truncated = False
        while not (terminated or truncated):
            action = model.act(obs)
            obs, reward, terminated, truncated, _ = env.step(action + env.action_space.start)
            returns[-1] += float(reward)
        print(f"episode {episode + 1}: return {returns[-1]:g}", flush=True)
    env.close()
    print(f"{args.env_id}, {len(returns)} episodes: {np.mean(returns):.2f} ± {np.std(returns):.2f}")


def main(args: Args) -> None:
    """Does what the command line does: trains, or evaluates."""
    torch.set_num_threads(1)  # before anything runs: threads do not survive a fork
    model = check(args)
    if args.evaluate:
        return evaluate(args, model)
    params, _ = flatten(model)
    shared = Shared(len(params), args.num_workers)
    shared.params.copy_(params)
    if args.resume:
        run_dir, checkpoint = load_checkpoint(args.resume)
        restore(shared.params, checkpoint, args)
        shared.square_avg.copy_(checkpoint["square_avg"])
        shared.steps[0], shared.updates[0] = checkpoint["steps"].sum(), checkpoint["updates"].sum()
    else:
        name = f"{args.env_id}__{SCRIPT.stem}__{args.seed}__{time.strftime('%Y%m%d-%H%M%S')}"
        run_dir = Path(args.log_dir) / re.sub(r"[^\w.-]", "_", name)
        run_dir.mkdir(parents=True)
    (run_dir / "args.json").write_text(json.dumps(asdict(args), indent=2) + "\n")

    start, signals = int(shared.steps.sum()), []
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(
            signum, lambda signum, frame: (signals.append(signum), shared.stop.fill_(True))
        )
    ctx = mp.get_context(mp.get_start_method(allow_none=True) or START_METHOD)
    seeds = np.random.SeedSequence([args.seed, start]).generate_state(args.num_workers).tolist()
    running = {}
    for rank, seed in enumerate(seeds):
        receiver, sender = ctx.Pipe(duplex=False)
        process = ctx.Process(target=worker, args=(rank, seed, args, shared, sender), daemon=True)
        process.start()
        sender.close()
        running[process] = receiver

    writer = SummaryWriter(run_dir, purge_step=start or None, flush_secs=5)
    bar = tqdm(total=args.total_timesteps, initial=start, unit=" steps", disable=None)
    returns, lost, deadline = deque(maxlen=100), "", math.inf
    saved = reported = time.monotonic()
    reported_step = start
    try:
        while running:
            connection.wait([process.sentinel for process in running], timeout=0.2)
            now, step = time.monotonic(), int(shared.steps.sum())
            for process, pipe in list(running.items()):
                exitcode = process.exitcode  # asked before the pipe is drained: nothing comes later
                with contextlib.suppress(EOFError, OSError):  # closed, or killed while writing
                    while pipe.poll():
                        at, scalars = pipe.recv()
                        for tag, value in scalars.items():
                            writer.add_scalar(tag, value, at)
                        if "charts/episodic_return" in scalars:
                            returns.append(scalars["charts/episodic_return"])
                if exitcode is not None:
                    del running[process]
                    if exitcode and not shared.stop:
                        lost = f"{process.name} was lost with exit code {exitcode}"
                        shared.stop.fill_(True)
            if shared.stop:
                deadline = min(deadline, now + 10)
                if now > deadline:  # an environment that takes so long will not end its segment
                    for process in running:
                        process.kill()
            bar.update(step - bar.n)
            bar.set_postfix_str(f"return {np.mean(returns):.1f}" if returns else "")
            if now - reported >= 10:
                sps = (step - reported_step) / (now - reported)
                writer.add_scalar("charts/SPS", sps, step)
                if bar.disable:
                    mean, left = np.mean(returns or [math.nan]), (args.total_timesteps - step) / sps
                    print(
                        f"{step:,} steps, {sps:,.0f}/s, return {mean:.1f}, {left / 60:,.0f} min left",
                        flush=True,
                    )
                reported, reported_step = now, step
            if now - saved >= args.checkpoint_interval:
                save_checkpoint(run_dir / "checkpoint.pt", args, shared)
                saved = now
    finally:
        shared.stop.fill_(True)
        bar.close()
        writer.close()
        ok = save_checkpoint(run_dir / "checkpoint.pt", args, shared)
    if lost or signals:
        print(f"{lost or 'stopped'}; go on with: python {SCRIPT.name} --resume {run_dir}")
    sys.exit(1 if lost or not ok else 128 + signals[0] if signals else 0)


def parse_args() -> Args:
    options = {"description": __doc__.splitlines()[0], "config": (tyro.conf.FlagCreatePairsOff,)}
    args = tyro.cli(Args, **options)
    if path := args.resume or args.evaluate:
        args = tyro.cli(Args, default=load_checkpoint(path)[1]["args"], **options)
    return args


if __name__ == "__main__":
    main(parse_args())
