# /// script
# requires-python = ">=3.10"
# dependencies = ["torch==2.13.0", "gymnasium==1.4.0", "ale-py==0.12.1", "opencv-python-headless==5.0.0.93",
#                 "tyro==1.0.17", "tensorboard==2.21.0", "tqdm==4.70.1", "moviepy==2.2.1", "pygame-ce==2.5.8"]
# ///
"""A3C, asynchronous advantage actor-critic (Mnih et al. 2016, Algorithm S3).

Workers play a copy of the environment each, and train one shared network without a lock until T_max steps are made:

    Snapshot   θ' ← θ
    Act        up to t_max steps with π(a|s; θ'), or until the episode ends
    Learn      R ← r_i + γR, backwards from R = 0 (terminal) or V(s_t; θ') (else)
               Δθ = ∇_θ' Σ_i [-log π(a_i|s_i) (R_i - V(s_i)) - β H(π(s_i)) + c ½(R_i - V(s_i))²]
    Update     g ← αg + (1-α)Δθ²;  θ ← θ - ηΔθ/√(g+ε), η going linearly to 0

    python a3c.py --env-id BreakoutNoFrameskip-v4 --num-workers 16
    python a3c.py --evaluate runs/NAME --capture-video

Where this file departs from the paper, or decides what the paper leaves open:
- One batched pass over a segment gives the gradient that Algorithm S3 sums up step by step: θ' does not change in it.
- The entropy bonus is from section 4; Algorithm S3 leaves it out.
- The value gradient is c(R - V)∇V with c = 0.5, as in most reproductions; --vf-coef 1 is half of S3's ∂(R - V)²/∂θ_v.
- A time limit bootstraps from V of the last observation. A lost life in Atari makes R = 0, but the game goes on.
"""

import contextlib
import json
import logging
import os
import random
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

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

SCRIPT = Path(__file__)
torch.set_num_threads(1)  # one core to a process; more threads would not survive a fork
cv2.setNumThreads(0)


@dataclass
class Args:
    env_id: str = "BreakoutNoFrameskip-v4"  # any Gymnasium id; module:Name-v0 for one's own
    num_workers: int = 16  # number of actor-learner processes
    total_timesteps: int = 10_000_000  # agent steps of all workers (T_max); 4 Atari frames each
    seed: int = 1  # seed of everything; with --num-workers 1 a run repeats bit for bit
    num_steps: int = 5  # longest segment between two updates, in agent steps (t_max)
    gamma: float = 0.99  # discount per agent step (γ)
    learning_rate: float = 1.75e-4  # at the start; goes linearly to 0 at --total-timesteps (η)
    rms_alpha: float = 0.99  # decay per update of RMSProp's mean square (α)
    rms_eps: float = 6e-7  # constant under RMSProp's root (the ε of g+ε; the authors' is 0.1)
    max_grad_norm: float = 40.0  # a longer gradient is scaled down to this norm (from the authors)
    ent_coef: float = 0.01  # weight of the entropy bonus (β)
    vf_coef: float = 0.5  # weight of the value loss ½(R - V)² (c)
    log_dir: str = "runs"  # folder in which every run makes a folder of its own
    checkpoint_interval: float = 60.0  # seconds between checkpoints; a run also ends with one
    resume: str = ""  # run folder or checkpoint.pt to go on with; flags given override its own
    evaluate: str = ""  # run folder or checkpoint.pt to play whole episodes with, without training
    eval_episodes: int = 10  # number of episodes to play with --evaluate
    capture_video: bool = False  # with --evaluate, leave an .mp4 per episode in the run folder


class Atari(gym.Wrapper):
    """Up to 30 no-ops, action repeat 4, maximum of 2 screens, grey, 84×84, stack of 4; draws no screen in vain."""

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
        self.screens[:] = self.ale.getScreenGrayscale()
        self.stack = [self.grey()] * 4
        return cv2.merge(self.stack), info

    def step(self, action):
        reward, lives = 0.0, self.ale.lives()
        for frame in range(4):
            reward += self.ale.act(self.actions[action])
            if frame >= 2:
                self.ale.getScreenGrayscale(self.screens[frame - 2])
        self.stack = [*self.stack[1:], self.grey()]
        terminated, info = self.ale.game_over(with_truncation=False), {"life_lost": self.ale.lives() < lives}
        return cv2.merge(self.stack), reward, terminated, self.ale.game_truncated(), info

    def grey(self) -> np.ndarray:
        return cv2.resize(np.maximum(*self.screens), (84, 84), interpolation=cv2.INTER_AREA)


def make_env(env_id: str, video: bool = False) -> gym.Env:
    """Atari as in the paper, whatever the id's frame skip; other uint8 images grey, 84×84×4; anything else as it is."""
    env = gym.make(env_id, **{"render_mode": "rgb_array"} if video else {})  # one's own may not take a render_mode
    space, actions = env.observation_space, env.action_space
    if not isinstance(space, gym.spaces.Box) or not isinstance(actions, gym.spaces.Discrete) or actions.start:
        raise ValueError(f"a Box and Discrete actions from 0 are needed; it has {space} and {actions}")
    if video and "rgb_array" not in env.metadata.get("render_modes", []):
        raise ValueError("it renders no images: leave out --capture-video")
    if isinstance(env.unwrapped, ale_py.AtariEnv):
        return gym.wrappers.TransformReward(gym.wrappers.RecordEpisodeStatistics(Atari(env)), np.sign)
    if space.dtype == np.uint8 and len(space.shape) > 1 and space.shape[2:] in [(), (1,), (3,)]:
        env = gym.wrappers.GrayscaleObservation(env) if space.shape[2:] == (3,) else env
        env = gym.wrappers.FrameStackObservation(gym.wrappers.ResizeObservation(env, (84, 84)), 4)
        space = gym.spaces.Box(0, 255, (84, 84, 4), np.uint8)
        env = gym.wrappers.TransformObservation(env, lambda obs: cv2.merge([*obs]), space)
    return gym.wrappers.RecordEpisodeStatistics(env)


class Network(nn.Module):
    """π(a|s; θ) and V(s; θ_v): for images the network of §8, which shares all but its two outputs; else an MLP each."""

    def __init__(self, env: gym.Env):
        super().__init__()
        shape, num_actions = env.observation_space.shape, int(env.action_space.n)
        self.convs, self.hidden = nn.ModuleList(), nn.Identity()
        if shape == (84, 84, 4):
            self.convs.extend([nn.Conv2d(4, 16, 8, stride=4), nn.Conv2d(16, 32, 4, stride=2)])
            self.convs.to(memory_format=torch.channels_last)
            self.hidden = nn.Sequential(nn.Linear(9 * 9 * 32, 256), nn.ReLU())
            self.policy, self.value = nn.Linear(256, num_actions), nn.Linear(256, 1)
        else:
            size = int(np.prod(shape))
            mlps = [nn.Sequential(nn.Linear(size, 256), nn.Tanh(), nn.Linear(256, n)) for n in (num_actions, 1)]
            self.policy, self.value = mlps
        for module in self.modules():  # the paper's small uniform weights learn several times slower
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.data.copy_(nn.init.orthogonal_(torch.empty(module.weight.shape), 2**0.5))
                module.bias.data.zero_()
        for head, gain in (self.policy, 0.01), (self.value, 1.0):
            layer = head[-1] if isinstance(head, nn.Sequential) else head
            nn.init.orthogonal_(layer.weight, gain)
        flat = torch.cat([p.data.as_strided([p.numel()], [1]) for p in self.parameters()])  # in the order of memory
        self.params, self.grads, offset = flat, torch.zeros_like(flat), 0
        for p in self.parameters():  # becomes a view of params, and its gradient one of grads
            view = p.shape, p.stride(), offset
            p.data, p.grad = self.params.as_strided(*view), self.grads.as_strided(*view)
            offset += p.numel()
        self.kernels = [conv.weight.data.permute(0, 2, 3, 1).flatten(1) for conv in self.convs]  # (out, k·k·in), views

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        x = obs.float().div_(255) if obs.dtype == torch.uint8 else obs.float()  # (B, *shape)
        for conv in self.convs:
            x = conv(x.permute(0, 3, 1, 2)).relu_().permute(0, 2, 3, 1)  # (B, 20, 20, 16), (B, 9, 9, 32)
        x = self.hidden(x.reshape(len(x), -1))  # (B, 256)
        return self.policy(x), self.value(x).squeeze(1)  # (B, num_actions), (B,)

    @torch.inference_mode()
    def act(self, obs: np.ndarray) -> int:
        """Draws an action from π(·|s)."""
        x = torch.as_tensor(obs)  # shape
        x = x.float().div_(255) if x.dtype == torch.uint8 else x.float()
        for conv, kernel in zip(self.convs, self.kernels, strict=True):  # a matrix product: conv() is slow on one image
            k, s = conv.kernel_size[0], conv.stride[0]
            patches = x.unfold(0, k, s).unfold(1, k, s).permute(0, 1, 3, 4, 2).flatten(2)  # (n, n, k·k·in)
            x = nn.functional.linear(patches, kernel, conv.bias).relu_()  # (n, n, out)
        probs = self.policy(self.hidden(x.flatten())).softmax(0).tolist()  # (num_actions,)
        return random.choices(range(len(probs)), probs)[0]


class Shared:
    """What a checkpoint holds, shared by all processes. There is no lock: each counter has one writer."""

    def __init__(self, params: Tensor, num_workers: int):
        self.params = params.clone().share_memory_()  # θ
        self.square_avg = torch.ones_like(params).share_memory_()  # g, from 1 as in TensorFlow: small first steps
        self.steps = torch.zeros(num_workers, dtype=torch.int64).share_memory_()  # T is their sum
        self.updates = torch.zeros(num_workers, dtype=torch.int64).share_memory_()
        self.stop = torch.zeros(1, dtype=torch.bool).share_memory_()  # set by main

    def rmsprop_update(self, grads: Tensor, lr: float, alpha: float, eps: float) -> None:
        """Equations 8 and 9, RMSProp without centring: g ← αg + (1-α)Δθ², θ ← θ - ηΔθ/√(g+ε)."""
        self.square_avg.mul_(alpha).addcmul_(grads, grads, value=1 - alpha)
        self.params.addcmul_(grads, (self.square_avg + eps).rsqrt_(), value=-lr)

    def save(self, run_dir: Path, args: Args) -> bool:
        """A reader of checkpoint.pt finds the old file or the new one, never a part."""
        part = run_dir / "checkpoint.part"
        try:
            torch.save({"script": SCRIPT.stem, "args": asdict(args), **vars(self)}, part)
            os.replace(part, run_dir / "checkpoint.pt")
            return True
        except (OSError, RuntimeError) as error:  # a full disk: the run goes on, the old file stays
            print(f"{SCRIPT.name}: can't write {part} (disk full?): {error}", file=sys.stderr)
            return False


def n_step_returns(rewards: list[float], bootstrap: float, gamma: float) -> Tensor:
    """R ← r_i + γR, backwards from R = bootstrap; (t,)."""
    returns = [bootstrap]
    for reward in reversed(rewards):
        returns.insert(0, reward + gamma * returns[0])
    return torch.tensor(returns[:-1])


def worker(rank: int, args: Args, seeds: list[int], shared: Shared, pipes: tuple) -> None:
    """One actor-learner (Algorithm S3). It sends main (T, {tag: value}) to log."""
    for set_seed in (torch.manual_seed, np.random.seed, random.seed):
        set_seed(seeds[rank])
    env, pipe = make_env(args.env_id), pipes[rank]
    model = Network(env)  # θ' is model.params, Δθ is model.grads
    obs, _ = env.reset(seed=seeds[rank])

    while (step := int(shared.steps.sum())) < args.total_timesteps and not shared.stop:
        # Snapshot: θ' ← θ
        model.params.copy_(shared.params)
        updates_before = int(shared.updates.sum())

        # Act: up to t_max steps with π(a|s; θ'), or until the episode ends
        segment, actions, rewards, terminal, truncated = [np.array(obs)], [], [], False, False
        while len(actions) < args.num_steps and not (terminal or truncated):
            actions.append(model.act(obs))
            obs, reward, terminated, truncated, info = env.step(actions[-1])
            terminal = terminated or info.get("life_lost", False)
            segment.append(np.array(obs))  # a copy: an environment may reuse its own
            rewards.append(float(reward))
        t = len(actions)

        # Learn: Δθ from one pass over the segment, and over the state to bootstrap from
        logits, values = model(torch.as_tensor(np.stack(segment)))  # (t+1, num_actions), (t+1,)
        returns = n_step_returns(rewards, 0.0 if terminal else values[t].item(), args.gamma)  # (t,)
        logprobs, chosen = logits[:t].log_softmax(1), torch.tensor(actions)[:, None]  # (t, num_actions), (t, 1)
        advantages = returns - values[:t]  # (t,)
        policy_loss = -(logprobs.gather(1, chosen)[:, 0] * advantages.detach()).sum()
        value_loss = 0.5 * advantages.square().sum()
        entropy = -(logprobs.exp() * logprobs).sum()
        model.grads.zero_()
        (policy_loss - args.ent_coef * entropy + args.vf_coef * value_loss).backward()
        grad_norm = model.grads.dot(model.grads).sqrt().item()
        assert grad_norm < np.inf, f"the gradient's norm is {grad_norm}: look for NaN in rewards and observations"
        if grad_norm > args.max_grad_norm:
            model.grads.mul_(args.max_grad_norm / grad_norm)

        # Update: θ and g of all workers, without a lock
        policy_lag = int(shared.updates.sum()) - updates_before
        lr = args.learning_rate * (1 - step / args.total_timesteps)
        shared.rmsprop_update(model.grads, lr, args.rms_alpha, args.rms_eps)
        shared.updates[rank] += 1
        shared.steps[rank] += t
        if int(shared.updates[rank]) % 100 == 0:
            stats = {"losses/policy_loss": policy_loss.item() / t, "losses/value_loss": value_loss.item() / t}
            stats["losses/entropy"] = entropy.item() / t
            stats |= {"losses/grad_norm": grad_norm, "async/policy_lag": policy_lag, "charts/learning_rate": lr}
            pipe.send((step + t, stats))
        if terminated or truncated:
            episode = {"charts/episodic_return": info["episode"]["r"], "charts/episodic_length": info["episode"]["l"]}
            pipe.send((step + t, episode))
            obs, _ = env.reset()
    env.close()


def bad_input(message: str):
    print(f"{SCRIPT.name}: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def check(args: Args) -> Network:
    """Makes the initial network, or ends the program if the arguments can't work."""
    for name, value in asdict(args).items():
        low = {"seed": 0, "rms_eps": 1e-12}.get(name, int(isinstance(getattr(Args, name), int)))
        high = {"seed": 2**32 - 1, "gamma": 1, "rms_alpha": 1}.get(name, np.inf)
        if not isinstance(value, bool | str) and not low <= value <= high:
            bad_input(f"--{name.replace('_', '-')} must be from {low} to {high}, not {value}")
    torch.manual_seed(args.seed)
    random.seed(args.seed)
    try:
        with make_env(args.env_id, bool(args.evaluate and args.capture_video)) as env:
            return Network(env)
    except Exception as error:
        bad_input(f"--env-id {args.env_id}: {error}")


def load_checkpoint(path: str) -> tuple[dict, Path]:
    """A checkpoint and the folder of its run, given the path of either."""
    file = Path(path) / "checkpoint.pt" if Path(path).is_dir() else Path(path)
    try:
        checkpoint = torch.load(file, weights_only=True)
        if checkpoint["script"] != SCRIPT.stem:
            raise ValueError(f"it is of {checkpoint['script']}.py: use that script")
        checkpoint["args"] = Args(**checkpoint["args"])
    except Exception as error:
        bad_input(f"{file} can't be used as a checkpoint: {error}")
    return checkpoint, file.parent


def evaluate(args: Args, model: Network, run_dir: Path) -> list[float]:
    """Plays whole episodes by the policy; prints and returns their returns, rewards unclipped."""
    env = make_env(args.env_id, args.capture_video)
    if args.capture_video:
        env = gym.wrappers.RecordVideo(env, str(run_dir / "videos"), lambda episode: True)
    returns = []
    for episode in range(args.eval_episodes):
        obs, info = env.reset(seed=args.seed + episode)
        while "episode" not in info:  # which RecordEpisodeStatistics adds at its end
            obs, _, _, _, info = env.step(model.act(obs))
        returns.append(info["episode"]["r"])
        print(f"episode {episode + 1}: return {returns[-1]:g}", flush=True)
    env.close()
    print(f"{args.env_id}, {len(returns)} episodes: return {np.mean(returns):.2f} ± {np.std(returns):.2f}")
    return returns


def main(args: Args) -> list[float] | None:
    """Trains, or evaluates and returns the episodes' returns. Only the command line takes flags from a checkpoint."""
    model = check(args)
    if path := args.evaluate or args.resume:
        checkpoint, run_dir = load_checkpoint(path)
        if len(model.params) != len(checkpoint["params"]):
            bad_input(f"the network in {path} does not fit {args.env_id}")
        model.params.copy_(checkpoint["params"])
    if args.evaluate:
        return evaluate(args, model, run_dir)
    name = f"{args.env_id}__{SCRIPT.stem}__{args.seed}__{time.strftime('%Y%m%d-%H%M%S')}".replace("/", "-")
    run_dir = run_dir if args.resume else Path(args.log_dir) / name.replace(":", "-")
    try:
        shared = Shared(model.params, args.num_workers)
        run_dir.mkdir(parents=True, exist_ok=bool(args.resume))
        (run_dir / "args.json").write_text(json.dumps(asdict(args), indent=2) + "\n")
    except (OSError, RuntimeError) as error:
        bad_input(f"can't start a run in {run_dir}: {error}")
    if args.resume:
        for name in vars(shared).keys() - {"steps", "updates", "stop"}:
            getattr(shared, name).copy_(checkpoint[name])
        shared.steps[0], shared.updates[0] = checkpoint["steps"].sum(), checkpoint["updates"].sum()
    print(f"{SCRIPT.name}: run folder {run_dir}", flush=True)
    start, signals = int(shared.steps.sum()), []
    method = mp.get_start_method(True) or ("fork" if sys.platform == "linux" else "spawn")
    receivers, senders = zip(*[mp.get_context(method).Pipe(False) for _ in range(args.num_workers)], strict=True)
    seeds = np.random.SeedSequence([args.seed, start]).generate_state(args.num_workers).tolist()
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # it tells every worker it stops
    handlers = {signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler)}  # a shell's & has it ignored
    workers = mp.start_processes(worker, (args, seeds, shared, senders), args.num_workers, False, True, method)
    stop = lambda signum, _: (signals.append((signum, time.monotonic())), shared.stop.fill_(True))  # noqa: E731
    handlers = {signum: signal.signal(signum, stop) for signum in (signal.SIGINT, signal.SIGTERM)} | handlers
    writer = SummaryWriter(run_dir, purge_step=start or None, flush_secs=5)
    out = sys.stderr if sys.stderr.isatty() else open(os.devnull, "w")
    bar = tqdm(None, None, args.total_timesteps, initial=start, file=out, unit=" steps", smoothing=0.05)
    returns, ended, lost, last_save, last_report = [], False, False, time.monotonic(), time.monotonic()
    while not ended:
        try:
            ended = workers.join(timeout=0.2)
        except Exception as error:
            print(f"{SCRIPT.name}: a worker {'stopped' if signals else 'was lost'}: {error}", file=sys.stderr)
            ended = lost = True
        for receiver in receivers:
            while receiver.poll():
                at, stats = receiver.recv()
                returns += [value for tag, value in stats.items() if tag == "charts/episodic_return"]
                for tag, value in stats.items():
                    with contextlib.suppress(OSError):  # a full disk: the run goes on, without its log
                        writer.add_scalar(tag, value, at)
        left = any(process.exitcode == 0 for process in workers.processes)  # read before T: at T_max they may leave
        now, step = time.monotonic(), int(shared.steps.sum())
        bar.set_postfix_str(f"return {np.mean(returns[-100:]):.1f}" if returns else "", refresh=False)
        bar.update(step - bar.n)
        if now - last_report >= 10:
            last_report = now
            with contextlib.suppress(OSError):  # as above, or nobody reads the output any more
                writer.add_scalar("charts/SPS", bar.format_dict["rate"] or 0.0, step)
                if out is not sys.stderr:
                    print(bar, flush=True)
        if (now > signals[0][1] + 10) if signals else (left and step < args.total_timesteps):
            print(f"{SCRIPT.name}: an environment hangs, or has ended its worker", file=sys.stderr)
            for process in workers.processes:
                process.kill()
        if ended or now - last_save >= args.checkpoint_interval:
            saved, last_save = shared.save(run_dir, args), now
    bar.close()
    with contextlib.suppress(OSError):
        writer.close()
    for signum, handler in handlers.items():
        signal.signal(signum, handler)
    if signals or lost or not saved or step < args.total_timesteps:
        print(f"to go on: python {SCRIPT.name} --resume {run_dir}", file=sys.stderr)
        sys.exit(128 + signals[0][0] if signals else 1)


if __name__ == "__main__":
    args = tyro.cli(Args, description=__doc__)
    if path := args.evaluate or args.resume:
        args = tyro.cli(Args, default=load_checkpoint(path)[0]["args"])
    main(args)
