"""Preprocessing: Atari, compared with an emulator driven by hand; other images; other boxes."""

import itertools

import cv2
import gymnasium as gym
import numpy as np
import pytest
import toy_envs
from conftest import OF_FEW, OF_ONE, OF_TWO, checkpoint, scalars, train

GAMES = ["BreakoutNoFrameskip-v4", "ALE/Breakout-v5", "ALE/SpaceInvaders-v5"]


def emulators(script, env_id, seed=1):
    """The script's environment, its first observation, and an emulator in the same state."""
    env, hand = script.make_env(env_id), gym.make(env_id)
    obs, _ = env.reset(seed=seed)
    hand.reset(seed=seed)
    ale = hand.unwrapped.ale
    while ale.getEpisodeFrameNumber() < env.unwrapped.ale.getEpisodeFrameNumber():
        ale.act(0)  # as many no-ops as were drawn
    env.action_space.seed(seed)
    return env, obs, ale


def shrink(screen):
    return cv2.resize(screen, (84, 84), interpolation=cv2.INTER_AREA)


@OF_ONE
@pytest.mark.parametrize("env_id", GAMES)
def test_atari_observations(script, env_id):
    env, obs, ale = emulators(script, env_id)
    assert ale.getFloat("repeat_action_probability") == (0.25 if env_id.startswith("ALE/") else 0)
    stack, flickers = [shrink(ale.getScreenGrayscale())] * 4, False
    assert obs.shape == (84, 84, 4) and obs.dtype == np.uint8
    assert env.observation_space.contains(obs)
    np.testing.assert_array_equal(obs, np.dstack(stack))
    for _ in range(60):
        before, action = ale.getEpisodeFrameNumber(), env.action_space.sample()
        obs, *_ = env.step(action)
        screens = []
        for _ in range(4):
            ale.act(ale.getMinimalActionSet()[action])
            screens.append(ale.getScreenGrayscale())
        frames = env.unwrapped.ale.getEpisodeFrameNumber()
        assert frames == ale.getEpisodeFrameNumber() == before + 4
        stack = [*stack[1:], shrink(np.maximum(screens[2], screens[3]))]  # the oldest first
        np.testing.assert_array_equal(obs, np.dstack(stack))
        flickers |= bool((screens[2] > screens[3]).any())
    assert flickers


@OF_ONE
def test_the_no_ops_are_those_of_the_seed(script):
    env = script.Atari(toy_envs.Emulator(length=40))
    played = []
    for seed in 1, 2, 3, 1, 2, 3:
        env.reset(seed=seed)
        played.append(env.unwrapped.t)
    assert played[:3] == played[3:] and len({*played}) > 1


@OF_ONE
def test_videos_of_atari_show_15_observations_per_second(script):
    env = script.make_env("BreakoutNoFrameskip-v4", video=True)  # 60 frames, one of four shown
    assert env.metadata["render_fps"] == 15


@OF_ONE
def test_an_image_that_is_ready_stays_as_it_is(script):
    env = script.make_env("toy_envs:Ready-v0")
    for answer in (lambda: env.reset(seed=1), lambda: env.step(0)):
        obs = answer()[0]
        assert env.observation_space.contains(obs)
        assert np.array_equal(obs, env.unwrapped.seen)


@OF_ONE
def test_an_image_has_sides_of_at_least_32(script):
    shapes = [(32, 32), (32, 31, 3), (31, 32, 1)]
    spaces = [gym.spaces.Box(0, 255, shape, np.uint8) for shape in shapes]
    assert [*map(script.is_image, spaces)] == [True, False, False]
    assert not script.is_image(gym.spaces.Box(0, 255, (84, 84), np.float32))


@OF_ONE
def test_atari_rewards_are_clipped_but_not_in_the_log(script):
    env, _, ale = emulators(script, "ALE/SpaceInvaders-v5")
    rewards, by_hand, info = [], 0.0, {}
    while "episode" not in info:
        action = env.action_space.sample()
        _, reward, terminated, truncated, info = env.step(action)
        rewards.append(reward)
        by_hand += sum(ale.act(ale.getMinimalActionSet()[action]) for _ in range(4))
    assert terminated and not truncated and ale.game_over()
    assert set(rewards) == {0, 1}
    assert info["episode"]["r"] == by_hand > sum(rewards)


@OF_ONE
def test_a_lost_life_is_reported_and_the_game_goes_on(script):
    env, _, _ = emulators(script, "BreakoutNoFrameskip-v4")
    lives, terminated, frames = [5], False, 0
    while not terminated:
        _, _, terminated, _, info = env.step(env.action_space.sample())
        lives.append(env.unwrapped.ale.lives())
        assert info["life_lost"] == (lives[-1] < lives[-2])
        assert terminated == (lives[-1] == 0)
        assert env.unwrapped.ale.getEpisodeFrameNumber() > frames
        frames = env.unwrapped.ale.getEpisodeFrameNumber()
    assert {*lives} == {5, 4, 3, 2, 1, 0} and lives == sorted(lives, reverse=True)


@OF_ONE
def test_a_reset_plays_0_to_30_no_ops(script):
    env = script.Atari(toy_envs.Emulator(length=40))
    env.reset(seed=1)
    played = set()
    for _ in range(500):
        env.reset()
        played.add(env.unwrapped.t)
    assert played == {*range(31)}


@OF_ONE
def test_an_emulator_may_reuse_its_screen(script):
    env = script.Atari(toy_envs.FadingEmulator())
    env.reset(seed=1)
    obs, *_ = env.step(0)
    assert {*obs[..., -1].flat} == {200 - (env.unwrapped.t - 1)}  # the brighter of the last two


@OF_ONE
@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_the_action_repeat_ends_with_the_episode(script, end):
    for length in range(40, 44):  # the end falls on each of the four repeats
        env = script.Atari(toy_envs.Emulator(length, end))
        env.reset(seed=1)
        start, rewards, over = env.unwrapped.t, 0.0, (False, False)
        while not any(over):
            _, reward, *over, _ = env.step(0)
            rewards += reward
        assert over == [end == "terminated", end == "truncated"]
        assert rewards == sum(range(start + 1, length + 1))


@OF_ONE
def test_a_wrapper_registered_around_atari_is_kept(script):
    env = script.make_env("toy_envs:AtariMinus-v0")
    assert env.reset(seed=1)[0].shape == (84, 84, 4)
    steps, info = 0, {}
    while "episode" not in info:
        _, reward, _, _, info = env.step(env.action_space.sample())
        steps += 1
        assert reward == -1
    assert -4 * steps <= info["episode"]["r"] <= -4 * (steps - 1)  # each frame costs 1, unclipped


@OF_ONE
def test_max_episode_steps_of_atari_truncates(script):
    env = script.make_env("toy_envs:AtariShort-v0")
    env.reset(seed=1)
    steps, terminated, truncated = 0, False, False
    while not (terminated or truncated):
        _, _, terminated, truncated, info = env.step(0)
        steps += 1
    assert truncated and not terminated and info["episode"]["l"] == steps
    assert (100 - 30) / 4 <= steps <= 100 / 4  # 100 frames, of which the reset played up to 30


@OF_ONE
def test_atari_with_all_actions(script):
    env = script.make_env("toy_envs:AtariFull-v0")
    env.reset(seed=1)
    assert env.action_space.n == 18
    assert env.step(17)[0].shape == (84, 84, 4)
    assert script.make_network(env, "paper").policy.out_features == 18


@OF_FEW
def test_atari_from_training_to_video(script, tmp_path, capsys):
    flags = dict(env_id="BreakoutNoFrameskip-v4", num_workers=4)
    run_dir = train(script, tmp_path, total_timesteps=3000, **flags)
    episodes = scalars(run_dir, "charts/episodic_return")
    assert episodes and all(value == int(value) >= 0 for _, value in episodes)
    assert (checkpoint(run_dir)["steps"] > 0).all()
    evaluation = script.Args(evaluate=str(run_dir), eval_episodes=1, capture_video=True, **flags)
    (score,) = script.main(evaluation)
    assert f"1 episodes: return {score:.2f} ± 0.00" in capsys.readouterr().out
    (file,) = run_dir.glob("**/*.mp4")
    video, frames = cv2.VideoCapture(str(file)), []
    while (read := video.read())[0]:
        frames.append(read[1])
    assert len(frames) > 100 and frames[0].shape == (210, 160, 3)
    assert (frames[0] != frames[-1]).any()


@OF_TWO
def test_evaluated_rewards_are_not_clipped(script, monkeypatch, tmp_path):
    args = script.Args("toy_envs:AtariMinus-v0", eval_episodes=1)
    args, network = script.prepare_run(args)
    actions, act = [], script.act

    def recorded(*args):
        actions.append(act(*args))
        return actions[-1]

    monkeypatch.setattr(script, "act", recorded)
    (score,) = script.evaluate(args, network, tmp_path)  # each of four frames costs 1
    assert -4 * len(actions) <= score <= -4 * (len(actions) - 1)


@OF_ONE
@pytest.mark.parametrize("kind", ["Colour", "Grey", "GreyChannel", "Square"])
def test_images_that_are_not_atari(script, tmp_path, kind):
    env = script.make_env(f"toy_envs:{kind}-v0")
    stack = [env.reset(seed=1)[0]] + [env.step(0)[0] for _ in range(4)]
    for obs in stack:
        assert obs.shape == (84, 84, 4) and obs.dtype == np.uint8
        assert env.observation_space.contains(obs)
    assert (stack[0] == stack[0][..., :1]).all()
    for older, newer in itertools.pairwise(stack):
        np.testing.assert_array_equal(older[..., 1:], newer[..., :3])  # the oldest first
        assert (newer[..., 2] != newer[..., 3]).any()
    screen = env.unwrapped.seen
    if kind == "Colour":
        screen = (screen @ [0.2125, 0.7154, 0.0721]).astype(np.uint8)
    np.testing.assert_allclose(obs[..., 3].astype(int), shrink(screen).astype(int), atol=1)
    train(script, tmp_path, env_id=f"toy_envs:{kind}-v0", total_timesteps=100)


@OF_FEW
@pytest.mark.parametrize(
    "kind, inputs", [("Matrix", 2 * 3), ("Board", 40 * 40), ("SmallBoard", 8 * 8), ("Scalar", 1)]
)
def test_what_is_no_image_is_flattened(script, tmp_path, kind, inputs):
    run_dir = train(script, tmp_path, env_id=f"toy_envs:{kind}-v0", total_timesteps=100)
    params = checkpoint(run_dir)["params"]
    assert {len(weight[0]) for name, weight in params.items() if "hidden.0.weight" in name} == {
        inputs
    }
