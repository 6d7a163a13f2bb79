"""Small environments, each for one thing that can go wrong. Use them as toy_envs:Name-v0."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import ClassVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete


class Count(gym.Env):
    """Observes how many steps were taken, and gives that as the reward."""

    observation_space, action_space = Box(0, 100, (2,), np.float32), Discrete(2)

    def __init__(self, length=7, end="terminated", life=None):
        self.length, self.end, self.life, self.resets = length, end, life, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.resets = 0, self.resets + 1
        return self.observe(), {}

    def step(self, action):
        self.t += 1
        over = self.t == self.length
        terminated, truncated = over and self.end == "terminated", over and self.end == "truncated"
        info = {"life_lost": self.t % self.life == 0} if self.life else {}
        return self.observe(), self.reward(action), terminated, truncated, info

    def observe(self):
        return np.full(self.observation_space.shape, self.t, self.observation_space.dtype)

    def reward(self, action):
        return float(self.t)


class Ones(Count):
    """Nothing to see, 1 to get: a state's value depends on the endings alone."""

    def observe(self):
        return np.ones(2, np.float32)

    def reward(self, action):
        return 1.0


class ThreeGames(gym.Wrapper):
    """An episode of three games, each with a time limit, which the spec shows."""

    def reset(self, *, seed=None, options=None):
        self.left = 3
        return self.env.reset(seed=seed, options=options)

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.left -= terminated or truncated
        if self.left and (terminated or truncated):
            obs, info = self.env.reset()
        return obs, reward, terminated and not self.left, truncated and not self.left, info


class InPlace(Count):
    """Returns the same array at each step, overwritten."""

    seen = np.zeros(2, np.float32)

    def observe(self):
        self.seen[:] = self.t
        return self.seen


class Matrix(Count):
    observation_space = Box(0, 100, (2, 3), np.float32)


class Board(Count):
    """As large as an image, but of zeros and ones."""

    observation_space = Box(0, 1, (40, 40), np.uint8)

    def observe(self):
        return np.full((40, 40), self.t % 2, np.uint8)


class SmallBoard(Count):
    """Has an image's bounds, but is too small for one."""

    observation_space = Box(0, 255, (8, 8), np.uint8)


class Emulator(Count):
    """What a script's Atari wraps: screens and lives, and no step after its end."""

    observation_space = Box(0, 255, (210, 160), np.uint8)

    @property
    def ale(self):
        return self

    def lives(self):
        return 1

    def step(self, action):
        assert self.t < self.length
        return super().step(action)


class FadingEmulator(Emulator):
    """Its screen darkens with each frame, in the same array."""

    def __init__(self):
        super().__init__(length=100)
        self.screen = np.zeros(self.observation_space.shape, np.uint8)

    def observe(self):
        self.screen[:] = 200 - self.t
        return self.screen


class CountsEpisodes(Count):
    """Its reset tells the number of the episode."""

    def reset(self, *, seed=None, options=None):
        obs, _ = super().reset(seed=seed)
        return obs, {"episode": self.resets}


class Told(Count):
    """Leaves a file named after its process when that has taken 600 steps, then may hang."""

    hangs = False
    steps = 0

    def reward(self, action):
        self.steps += 1
        if self.steps == 600:
            Path(os.environ["TOY_DIR"], str(os.getpid())).touch()
            time.sleep(3600 if self.hangs else 0)
        return 1.0


class Hangs(Told):
    hangs = True


class OneHangs(Count):
    """The first of all processes to take 300 steps hangs, the others go on."""

    steps = 0

    def reward(self, action):
        self.steps += 1
        if self.steps == 300:
            with contextlib.suppress(FileExistsError):
                Path(os.environ["TOY_DIR"], "hangs").touch(exist_ok=False)
                time.sleep(3600)
        return 1.0


class Picky(Count):
    """Takes Python's own integers only; its observations are views that run backwards."""

    def observe(self):
        return super().observe()[::-1]

    def reward(self, action):
        assert type(action) is int
        return 1.0


class Exits(Count):
    steps = 0

    def reward(self, action):
        self.steps += 1
        if self.steps == 600:
            sys.exit(0)
        return 1.0


class Scalar(Count):
    observation_space = Box(0, 100, (), np.float32)


class Crashes(Count):
    def reward(self, action):
        raise ArithmeticError("the toy is broken")


class CrashesAtClose(Count):
    """Only after a step, so that the environments that main makes first can be closed."""

    def close(self):
        if self.resets and self.t:
            raise ArithmeticError("the toy cannot be closed")


class CrashesAndHangs(Count):
    """Crashes in a step, and then hangs in close(), as a client of a dead server might."""

    def step(self, action):
        if self.resets == 3:
            raise ArithmeticError("the toy is broken")
        return super().step(action)

    def close(self):
        if self.resets == 3:
            time.sleep(3600)


class IgnoresSignals(Told):
    def __init__(self):
        super().__init__()
        for signum in signal.SIGINT, signal.SIGTERM:
            signal.signal(signum, lambda *_: None)


class CrashesWithThread(Crashes):
    """Its thread waits until it is closed."""

    def __init__(self):
        super().__init__()
        self.closed = threading.Event()
        threading.Thread(target=self.closed.wait).start()

    def close(self):
        self.closed.set()


class CrashesWhenMade(Count):
    """Crashes in a worker as it is made, while its thread goes on; main can make it."""

    def __init__(self):
        super().__init__()
        if os.getpgrp() != os.getpid():
            threading.Thread(target=time.sleep, args=(3600,)).start()
            raise ArithmeticError("the toy is broken")


class ExitsWithThread(Count):
    def reward(self, action):
        threading.Thread(target=time.sleep, args=(3600,)).start()
        sys.exit("the toy is broken")


class ClosesSlowly(Told):
    """The first of all processes takes half a second to close, the others take three."""

    def close(self):
        if self.steps:
            try:
                Path(os.environ["TOY_DIR"], "first").touch(exist_ok=False)
                time.sleep(0.5)
            except FileExistsError:
                time.sleep(3)
            Path(os.environ["TOY_DIR"], f"{os.getpid()} is closed").touch()


class PrintsAtClose(Count):
    def close(self):
        print("the toy is closed")


class SeedsPyTorch(Count):
    def __init__(self):
        super().__init__()
        torch.manual_seed(7)


class WrongShape(Count):
    """Its first observation has two numbers, as declared, the others one."""

    def observe(self):
        return super().observe()[: 1 if self.t else 2]


class Halves(Count):
    """Observes whole numbers at first, as its space declares, but then 0.5, 1.0, 1.5 and so on."""

    observation_space = Box(0, 100, (2,), np.uint8)

    def observe(self):
        return np.full(2, self.t / 2) if self.t else np.zeros(2, np.uint8)


class BrokenInit(Count):
    def __init__(self):
        raise AttributeError("the toy has no such thing")


class BrokenVideo(Count):
    def __init__(self, render_mode):
        raise TypeError("the toy has a wrong type")


class StartsProcess(Count):
    """Starts a process of its own."""

    def __init__(self):
        super().__init__()
        process = multiprocessing.get_context("fork").Process(target=int)
        process.start()
        process.join()
        assert process.exitcode == 0


class LeavesProcess(Told):
    """Starts a process at its first step, which lives on until main has ended."""

    def reward(self, action):
        if self.steps == 0:
            context = multiprocessing.get_context("fork")
            context.Process(target=wait_for_the_end, args=(os.getppid(),)).start()
        return super().reward(action)


class CrashesBesideProcess(LeavesProcess):
    def reward(self, action):
        if self.steps == 4:
            raise ArithmeticError("the toy is broken")
        return super().reward(action)


def wait_for_the_end(pid):
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.kill(pid, 0)
            time.sleep(0.1)


class Spoilt(Count):
    """Gives NaN or infinity in its 30th episode."""

    def __init__(self, reward=1.0, seen=1.0):
        super().__init__()
        self.bad_reward, self.bad_seen = reward, seen

    def observe(self):
        return super().observe() * np.float32(self.bad_seen if self.resets == 30 else 1)

    def reward(self, action):
        return self.bad_reward if self.resets == 30 else 1.0

    def close(self):
        if self.resets == 30:
            Path(os.environ["TOY_DIR"], f"{os.getpid()} is closed").touch()


class Image(Count):
    """Noise, which pays for action 2 of 4."""

    action_space = Discrete(4)

    def __init__(self, *shape, in_place=False, declared=np.uint8):
        super().__init__(length=10)
        self.observation_space, self.in_place = Box(0, 255, shape, declared), in_place
        self.seen = np.zeros(shape, np.uint8)

    def observe(self):
        self.seen[:] = self.np_random.integers(0, 256, self.seen.shape)
        return self.seen if self.in_place else self.seen.copy()

    def reward(self, action):
        return float(action == 2)


class Quadrants(Image):
    """One quadrant of the screen is bright in an episode. Its number is the action that pays."""

    def observe(self):
        if self.t == 0:
            self.bright = int(self.np_random.integers(4))
        height, width = self.seen.shape
        row, column = divmod(self.bright, 2)
        screen = np.zeros((2, height // 2, 2, width // 2), np.uint8)
        screen[row, :, column] = 255
        return screen.reshape(height, width)

    def reward(self, action):
        return float(action == self.bright)


class FromOne(Count):
    action_space = Discrete(2, start=1)


class Dict(Count):
    observation_space = gym.spaces.Dict({"count": Box(0, 100, (2,), np.float32)})
    closed = 0

    def observe(self):
        return {"count": super().observe()}

    def close(self):
        Dict.closed += 1


def minus_breakout():
    """Breakout that costs 1 in every frame."""
    env = gym.make("ALE/Breakout-v5", frameskip=1, obs_type="grayscale")
    return gym.wrappers.TransformReward(env, lambda reward: -1.0)


def register(name, env, *args, **kwargs):
    # There is no render_mode, as an environment of one's own may have none.
    gym.register(f"{name}-v0", lambda: env(*args, **kwargs))


def register_breakout(name, max_episode_steps=None, **kwargs):
    """Registers Breakout as Gymnasium's own ids do."""
    gym.register(
        f"{name}-v0",
        "ale_py.env:AtariEnv",
        max_episode_steps=max_episode_steps,
        kwargs={"game": "breakout", **kwargs},
    )


for kind in Told, Hangs, OneHangs, Picky, Exits, Crashes, CrashesWithThread, InPlace, BrokenInit:
    register(kind.__name__, kind)
for kind in Matrix, Board, SmallBoard, Scalar, FromOne, Dict, Halves, WrongShape:
    register(kind.__name__, kind)
register("StartsProcess", StartsProcess)
register("CrashesAndHangs", CrashesAndHangs)
register("CrashesWhenMade", CrashesWhenMade)
register("ExitsWithThread", ExitsWithThread)
register("ClosesSlowly", ClosesSlowly)
register("IgnoresSignals", IgnoresSignals)
register("LeavesProcess", LeavesProcess)
register("CrashesBesideProcess", CrashesBesideProcess)
register("CountsEpisodes", CountsEpisodes)
register("PrintsAtClose", PrintsAtClose)
register("SeedsPyTorch", SeedsPyTorch)
register("CrashesAtClose", CrashesAtClose, end="never")
register("Terminates", Count)
register("Truncates", Count, end="truncated")
register("Endless", Count, end="never")
register("LosesLives", Count, length=10, life=3)
register("Worth10", Ones, length=5, end="truncated")
register("Worth1", Ones, length=1)
register("Worth1PerLife", Ones, length=5, end="truncated", life=1)
register("RewardNaN", Spoilt, reward=np.nan)
register("RewardInf", Spoilt, reward=np.inf)
register("SeenNaN", Spoilt, seen=np.nan)
register("Colour", Image, 90, 80, 3)
register("Grey", Image, 90, 80)
register("GreyChannel", Image, 90, 80, 1)
register("Square", Image, 84, 84)
register("Quadrants", Quadrants, 90, 80)
register("Ready", Image, 84, 84, 4)
register("SquareInPlace", Image, 84, 84, in_place=True)
register("DeclaresFloats", Image, 84, 84, 4, declared=np.float32)
register("ChannelsFirst", Image, 3, 84, 84)
register("ChannelsFirstStack", Image, 12, 84, 84)
register("RGBA", Image, 90, 80, 4)
register("AtariMinus", minus_breakout)
register("AtariSkips", gym.make, "ALE/Breakout-v5", obs_type="grayscale")
register("AtariColour", gym.make, "ALE/Breakout-v5", frameskip=1)
register_breakout("AtariShort", max_episode_steps=100)
register_breakout("AtariFull", full_action_space=True)
gym.register("LimitedLater-v0", lambda: Count(end="never"), max_episode_steps=100_001)
gym.register("Limited-v0", lambda: Count(end="never"), max_episode_steps=5)
gym.register("ThreeGames-v0", lambda: ThreeGames(gym.make("Limited-v0")))
gym.register("BrokenVideo-v0", BrokenVideo)
gym.register("NoImages-v0", lambda render_mode: Count())


class Images(Count):
    """Renders images."""

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 15}

    def __init__(self, render_mode=None):
        super().__init__()
        self.render_mode = render_mode

    def render(self):
        return np.zeros((32, 32, 3), np.uint8)


class ForgetsRenderMode(Images):
    def __init__(self, render_mode=None):
        super().__init__()


gym.register("Images-v0", Images)
gym.register("ForgetsRenderMode-v0", ForgetsRenderMode)
