"""Each script's updates against the paper's pseudocode, from what the environments saw."""

import contextlib
import importlib
import itertools
import math
import os
import random
import subprocess
import sys
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import ROOT, VALUE_METHODS, checkpoint, same, train
from torch import multiprocessing as mp
from toy_envs import Count

import a2c
import a3c
import nstep_q_async
import onestep_q_async
import sarsa_async

# The paper's initial weights give policies that are not uniform.
FLAGS = {"init": "paper", "learning_rate": 0.01, "rms_eps": 1e-3, "max_grad_norm": 1e9}
FLAGS |= {"rms_alpha": 0.9}
VALUE_FLAGS = {"target_interval": 12, "exploration_steps": 30}
ACTOR_CRITIC_FLAGS = {"ent_coef": 0.1, "vf_coef": 0.3}
ASYNCHRONOUS = [onestep_q_async, sarsa_async, nstep_q_async, a3c]
TOYS = [f"toy_envs:{kind}-v0" for kind in ("Terminates", "Truncates", "LosesLives", "Square")]


class RecordSteps(gym.Wrapper):
    """Keeps the steps since the last update: what it was told and what it answered."""

    def __init__(self, env):
        super().__init__(env)
        self.steps, self.seeds = [], []

    def reset(self, *, seed=None, options=None):
        self.seeds.append(seed)
        obs, info = self.env.reset(seed=seed, options=options)
        self.obs = np.array(obs)
        return obs, info

    def step(self, action):
        before = self.obs
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.obs = np.array(obs)
        step = SimpleNamespace(obs=before, action=action, reward=reward, next_obs=self.obs)
        step.terminal = terminated or info.get("life_lost", False)
        step.ended = terminated or truncated
        self.steps.append(step)
        return obs, reward, terminated, truncated, info


class FakeEnvironments:
    """What a2c.Environments does, without processes."""

    def __init__(self, envs, seed):
        self.envs = envs
        self.stop = torch.zeros(1, dtype=torch.bool)
        space = envs[0].observation_space
        buffers = a2c.Buffers(space.shape, space.dtype, len(envs))
        self.obs, self.rewards = buffers.obs.numpy(), buffers.rewards.numpy()
        self.terminal, self.over = buffers.terminal.numpy(), buffers.over.numpy()
        for rank, env in enumerate(envs):
            self.obs[rank], _ = env.reset(seed=seed + rank)

    def receive(self):
        return []

    def step(self, actions):
        episodes = []
        for rank, action in actions.items():
            if action == a2c.Buffers.RESET:
                assert self.over[rank]
                self.obs[rank], _ = self.envs[rank].reset()
                self.over[rank] = False
            else:
                assert not self.over[rank]
                step = self.envs[rank].step(action)
                self.obs[rank], self.rewards[rank], terminated, truncated, info = step
                self.terminal[rank] = terminated or info.get("life_lost", False)
                self.over[rank] = terminated or truncated
                episodes += [info["episode"]] if self.over[rank] else []
        return episodes


class FakePipe(list):
    """A worker's pipe to main, or the recorder of a2c: a list of what was sent."""

    send = log = list.append

    def progress(self, step):
        pass

    def save_if_due(self):
        pass


def play(
    monkeypatch, script, envs, rank=0, start=0, others=0, meddle=0.0, seed=1, worker_seed=1, **flags
):
    """Runs one worker, or a2c's coordinator, here; returns its updates and their segments.

    After each update the other workers seem to have made `others` steps. Whenever the worker draws
    an action, they seem to make an update, which adds `meddle` to θ.
    """
    value_method = script.__name__ in VALUE_METHODS
    flags = FLAGS | (VALUE_FLAGS if value_method else ACTOR_CRITIC_FLAGS) | flags
    envs = [RecordSteps(script.make_env(env) if isinstance(env, str) else env) for env in envs]
    num_workers = len(envs) + rank + bool(others)
    args = script.Args(num_workers=num_workers, seed=seed, **flags)
    torch.manual_seed(seed)
    network = script.make_network(envs[0], args.init)
    shared = script.Shared(network, num_workers)
    shared.steps[rank] = start
    if value_method:  # a target network that differs from θ
        shared.refresh_target(0, script.make_network(envs[0], "paper").state_dict())
    act, update = script.act, script.Shared.rmsprop_update
    prepare = script.prepare_worker
    updates, acts, seeds, pipe = [], [], [], FakePipe()
    snapshot = {}

    def recorded_act(network, obs, *epsilon):
        if not acts:  # the first of a segment
            snapshot.update(clone(shared.theta))
        assert all(torch.equal(p, snapshot[name]) for name, p in network.named_parameters())
        if meddle:
            for param in shared.theta.values():
                param += meddle
            shared.updates[-1] += 1
        action = act(network, obs, *epsilon)
        pairs = zip(obs.numpy(), action, strict=True) if script is a2c else [(obs, action)]
        acts.extend((np.array(one), chosen, *epsilon) for one, chosen in pairs)
        return action

    def recorded_update(shared, grads, lr, alpha, eps):
        assert (alpha, eps) == (args.rms_alpha, args.rms_eps)
        tensors = {"theta": clone(snapshot), "target": clone(getattr(shared, "target", {}))}
        segments = [env.steps for env in envs]
        grads = [grad.clone() for grad in grads]
        updates.append(
            SimpleNamespace(segments=segments, acts=[*acts], grads=flat(grads), lr=lr, **tensors)
        )
        acts.clear()
        for env in envs:
            env.steps = []
        update(shared, grads, lr, alpha, eps)
        shared.steps[-1] += others

    def recorded_prepare(seed):
        seeds.append(seed)
        prepare(seed)

    with monkeypatch.context() as patch:
        patch.setattr(script, "make_env", lambda env_id: envs[0])
        patch.setattr(script, "act", recorded_act)
        patch.setattr(script.Shared, "rmsprop_update", recorded_update)
        patch.setattr(script.signal, "signal", lambda *arguments: None)
        patch.setattr(script, "prepare_worker", recorded_prepare)
        if script is a2c:
            fake = FakeEnvironments(envs, worker_seed)
            a2c.coordinator(args, shared, network, fake, worker_seed, pipe)
        else:
            worker_seeds = [*range(worker_seed, worker_seed + num_workers)]
            script.run_worker(rank, args, worker_seeds, shared, [pipe] * num_workers)
            assert seeds == [worker_seeds[rank]]
    expected = [sum(len(u.segments[n]) for u in updates) for n in range(len(envs))]
    expected[0] += start
    expected = [0] * rank + expected + [others * len(updates)] * bool(others)
    assert shared.steps.tolist() == expected
    if not meddle:
        assert shared.updates.tolist() == [len(updates) * (n == rank) for n in range(num_workers)]
    return SimpleNamespace(args=args, envs=envs, updates=updates, shared=shared, sent=pipe)


def clone(tensors):
    return {name: tensor.clone() for name, tensor in tensors.items()}


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


def make_network(script, env, params):
    network = script.make_network(env, "paper")
    network.load_state_dict(params)
    return network


def batch(obs):
    return torch.as_tensor(obs)[None]


def algorithm_1(network, target, segment, next_action, args):
    """One-step Q-learning, or Sarsa if there is a next action: ½(y - Q(s, a))² for each step."""
    for i, step in enumerate(segment):
        values = target(batch(step.next_obs))[0].detach()
        if next_action is None:
            value = values.max()
        else:
            value = values[segment[i + 1].action if i + 1 < len(segment) else next_action]
        y = step.reward if step.terminal else step.reward + args.gamma * value
        yield 0.5 * (y - network(batch(step.obs))[0, step.action]) ** 2


def algorithm_s2(network, target, segment, args):
    R = 0.0 if segment[-1].terminal else target(batch(segment[-1].next_obs)).max().item()
    for step in reversed(segment):
        R = step.reward + args.gamma * R
        yield 0.5 * (R - network(batch(step.obs))[0, step.action]) ** 2


def algorithm_s3(network, segment, args):
    R = 0.0 if segment[-1].terminal else network(batch(segment[-1].next_obs))[1].item()
    for step in reversed(segment):
        logits, value = network(batch(step.obs))
        logprobs = logits.log_softmax(1)[0]
        R = step.reward + args.gamma * R
        policy_term = -logprobs[step.action] * (R - value.item())
        entropy = -(logprobs.exp() * logprobs).sum()
        yield policy_term - args.ent_coef * entropy + args.vf_coef * 0.5 * (R - value[0]) ** 2


def by_hand(script, played, index):
    """The gradient of an update, accumulated step by step."""
    update, env, args = played.updates[index], played.envs[0], played.args
    network, total = make_network(script, env, update.theta), 0.0
    target = make_network(script, env, update.target) if update.target else None
    for segment in update.segments:
        if script is onestep_q_async:
            losses = algorithm_1(network, target, segment, None, args)
        elif script is sarsa_async:
            next_action = update.acts[-1][1]  # after a time limit it is never made
            if not segment[-1].ended and index + 1 < len(played.updates):
                next_action = played.updates[index + 1].segments[0][0].action
            losses = algorithm_1(network, target, segment, next_action, args)
        elif script is nstep_q_async:
            losses = algorithm_s2(network, target, segment, args)
        else:
            losses = algorithm_s3(network, segment, args)
        for loss in losses:
            total = total + flat(torch.autograd.grad(loss, network.parameters()))
    return total


def compare_with_hand(script, played):
    assert len(played.updates) > 3
    for index, update in enumerate(played.updates):
        expected = by_hand(script, played, index)
        error = (update.grads - expected).abs().max()
        assert error < 1e-4 * expected.abs().max() + 1e-7, f"update {index}"


@pytest.mark.parametrize("num_steps", [1, 5])
@pytest.mark.parametrize("env_id", TOYS)
def test_an_updates_gradient_is_the_papers(script, monkeypatch, env_id, num_steps):
    flags = dict(num_steps=num_steps, total_timesteps=31)
    played = play(monkeypatch, script, [env_id], **flags)
    compare_with_hand(script, played)
    steps = np.cumsum([0, *(len(update.segments[0]) for update in played.updates)])[:-1]
    rates = 0.01 * (1 - steps / 31)
    assert [update.lr for update in played.updates] == pytest.approx(rates)


@pytest.mark.parametrize("script", ASYNCHRONOUS)
def test_a_segment_is_played_and_learned_with_its_snapshot(script, monkeypatch):
    played = play(monkeypatch, script, TOYS[:1], meddle=1e-3, total_timesteps=31)
    compare_with_hand(script, played)


@pytest.mark.parametrize("script", ASYNCHRONOUS)
def test_the_learning_rate_decays_with_the_steps_of_all_workers(script, monkeypatch):
    played = play(monkeypatch, script, TOYS[:1], others=6, total_timesteps=100)
    step = 0
    for update in played.updates:
        assert update.lr == pytest.approx(0.01 * (1 - step / 100))
        step += len(update.segments[0]) + 6


@pytest.mark.parametrize("script", ASYNCHRONOUS)
def test_only_the_first_reset_gets_the_workers_seed(script, monkeypatch):
    played = play(monkeypatch, script, TOYS[:1], rank=1, worker_seed=5, total_timesteps=31)
    first, *rest = played.envs[0].seeds
    assert first == 6 and rest and set(rest) == {None}


@pytest.mark.parametrize("script", [onestep_q_async, nstep_q_async, a3c, a2c])
def test_the_actions_made_are_those_drawn_for_what_was_seen(script, monkeypatch):
    played = play(monkeypatch, script, ["toy_envs:LosesLives-v0"], total_timesteps=50)
    for update in played.updates:
        for step, (obs, action, *_) in zip(update.segments[0], update.acts, strict=True):
            assert step.action == action and np.array_equal(step.obs, obs)


@pytest.mark.parametrize("env_id", TOYS[:3])
def test_sarsa_makes_the_actions_that_stand_in_its_targets(monkeypatch, env_id):
    flags = dict(total_timesteps=100, exploration_steps=10**9)
    played = play(monkeypatch, sarsa_async, [env_id], **flags)
    made = [step for update in played.updates for step in update.segments[0]]
    drawn = iter([drawn for update in played.updates for drawn in update.acts])
    for step in made:
        obs, action, _ = next(drawn)
        assert step.action == action and np.array_equal(step.obs, obs)
        if step.ended:
            next(drawn)  # the action in the target of an episode's last step is never made
    assert len({step.action for step in made}) == 2
    assert len([*drawn]) <= 1  # drawn for a segment that is not begun any more


@pytest.mark.parametrize("end, life", [("terminated", None), ("truncated", None), (None, 3)])
def test_a2c_sums_up_the_gradients_of_its_segments(monkeypatch, end, life):
    envs = [Count(length=3 + 2 * rank, end=end, life=life and life + rank) for rank in range(3)]
    envs = [gym.wrappers.RecordEpisodeStatistics(env) for env in envs]
    played = play(monkeypatch, a2c, envs, total_timesteps=120)
    compare_with_hand(a2c, played)
    lengths = [[len(segment) for segment in update.segments] for update in played.updates]
    expected = [[3, 5, 5], [3, 5, 2]] if end else [[3, 4, 5], [3, 4, 5]]
    assert lengths[:2] == expected
    step = 0
    for update, of_update in zip(played.updates, lengths, strict=True):
        assert update.lr == pytest.approx(0.01 * (1 - step / 120))
        step += sum(of_update)


def test_each_environment_of_a2c_has_its_own_seed(monkeypatch):
    args, seeds = a2c.Args(env_id="CartPole-v1", num_workers=4), [5, 6, 7, 8]
    buffers = a2c.make_buffers(args)
    pipe = SimpleNamespace(recv=lambda: False, send=lambda episodes: None)
    monkeypatch.setattr(a2c.signal, "signal", lambda *arguments: None)
    for index in range(2):
        a2c.run_worker(index, args, seeds, buffers, [pipe, pipe])
    expected = [gym.make("CartPole-v1").reset(seed=seed)[0] for seed in seeds]
    assert np.array_equal(buffers.obs.numpy(), expected)


def test_a2c_shows_its_progress_after_each_update(monkeypatch):
    shown = []
    monkeypatch.setattr(FakePipe, "progress", lambda pipe, step: shown.append(step))
    play(monkeypatch, a2c, TOYS[:1], total_timesteps=14)
    assert shown == [5, 7, 12, 14]


def test_a_signal_ends_the_segments_of_a2c_early():
    args = a2c.Args(num_workers=2, num_steps=1000)
    envs = FakeEnvironments([gym.wrappers.RecordEpisodeStatistics(Count()) for _ in range(2)], 0)
    network = a2c.make_network(envs.envs[0], "paper")
    step = envs.step

    def signalled_step(actions):
        envs.stop.fill_(bool(envs.obs[0][0] == 2))
        return step(actions)

    envs.step = signalled_step
    segments, _ = a2c.play_segments(args, network, envs)
    assert [len(segment) for segment in segments] == [3, 3]


def test_an_a2c_worker_steps_its_share_of_the_environments(monkeypatch):
    """Environments 1 and 3 of 4 are those of the second of two processes."""
    args = a2c.Args(env_id="toy_envs:Terminates-v0", num_workers=4)
    buffers = a2c.make_buffers(args)
    sit_out, reset = a2c.Buffers.SIT_OUT, a2c.Buffers.RESET
    orders = [[0, 0, 0, sit_out]] * 6 + [[0, 0, 0, 1], [0, reset, 0, 1]]
    answers = []

    def receive():
        if len(answers) > len(orders):
            return False
        buffers.actions.copy_(torch.tensor(orders[len(answers) - 1]))
        return True

    def send(episodes):
        seen = buffers.obs[:, 0], buffers.rewards, buffers.over
        answers.append((*(tensor.tolist() for tensor in seen), len(episodes)))

    monkeypatch.setattr(a2c.signal, "signal", lambda *arguments: None)
    a2c.run_worker(1, args, [1] * 4, buffers, [None, SimpleNamespace(recv=receive, send=send)])
    nobody, first = [False] * 4, [False, True, False, False]
    expected = [([0, t, 0, 0], [0, t, 0, 0], nobody, 0) for t in range(7)]
    expected += [([0, 7, 0, 1], [0, 7, 0, 1], first, 1), ([0, 0, 0, 2], [0, 7, 0, 2], nobody, 0)]
    assert answers == expected


def test_a_long_gradient_is_scaled_down_to_the_norm(script, monkeypatch):
    flags = dict(total_timesteps=5)
    long, short = (
        play(monkeypatch, script, TOYS[:1], max_grad_norm=norm, **flags).updates[0].grads
        for norm in (1e9, 0.5)
    )
    assert long.norm() > 1
    torch.testing.assert_close(short, 0.5 * long / long.norm())


@pytest.mark.parametrize(
    "env_id, segments", [(TOYS[0], [5, 2]), (TOYS[1], [5, 2]), (TOYS[2], [3, 3, 3, 1])]
)
def test_how_segments_end(script, monkeypatch, env_id, segments):
    length = sum(segments)
    played = play(monkeypatch, script, [env_id], total_timesteps=3 * length)
    assert [len(update.segments[0]) for update in played.updates] == 3 * segments
    rewards = [step.reward for update in played.updates for step in update.segments[0]]
    assert rewards == 3 * [*range(1, length + 1)]
    ends = 2 if script is a2c else 3  # a2c.py does not reset after the last segment
    assert played.envs[0].unwrapped.resets == 1 + ends
    sent = [message for message in played.sent if "charts/episodic_return" in message[1]]
    assert [step for step, _ in sent] == [length, 2 * length, 3 * length]
    assert [stats["charts/episodic_length"] for _, stats in sent] == [length] * 3
    assert [stats["charts/episodic_return"] for _, stats in sent] == [sum(range(length + 1))] * 3


def test_the_log_gets_outputs_as_estimates_and_constants_as_targets(script, monkeypatch):
    computed_with_gradients = set()

    def update(log, step, stats, estimates, targets):
        computed_with_gradients.add((estimates.requires_grad, targets.requires_grad))

    monkeypatch.setattr(script.WorkerLog, "update", update)
    play(monkeypatch, script, TOYS[:1], total_timesteps=31)
    assert computed_with_gradients == {(True, False)}


@pytest.mark.parametrize("script", ASYNCHRONOUS)
def test_the_lag_counts_the_updates_of_others_since_the_snapshot(script, monkeypatch):
    played = play(monkeypatch, script, TOYS[:1], meddle=1e-6, total_timesteps=410)
    (_, stats), *_ = [message for message in played.sent if "async/policy_lag" in message[1]]
    acts = [len(update.acts) for update in played.updates[:100]]
    assert stats["async/policy_lag"] == pytest.approx(np.mean(acts))


def test_every_100_updates_send_their_means(script, monkeypatch):
    played = play(monkeypatch, script, TOYS[:1], total_timesteps=210, num_steps=1)
    sent = [message for message in played.sent if "charts/learning_rate" in message[1]]
    assert [step for step, _ in sent] == [100, 200]
    for (_, stats), start in zip(sent, (0, 100), strict=True):
        updates = played.updates[start : start + 100]
        means = {
            "charts/learning_rate": np.mean([update.lr for update in updates]),
            "losses/grad_norm": np.mean([update.grads.norm() for update in updates]),
        }
        if script.__name__ in VALUE_METHODS:
            means["charts/epsilon/0"] = np.mean([update.acts[0][2] for update in updates])
            chosen = [
                make_network(script, played.envs[0], update.theta)(batch(step.obs))[0, step.action]
                for update in updates
                for step in update.segments[0]
            ]
            means["losses/q_values"] = np.mean([q.item() for q in chosen])
        assert {tag: stats[tag] for tag in means} == pytest.approx(means)


@pytest.mark.parametrize("env_id", ["CartPole-v1", *TOYS[2:]])
def test_n_step_q_with_one_step_is_one_step_q(tmp_path, env_id):
    flags = dict(env_id=env_id, num_workers=1, num_steps=1, total_timesteps=100)
    flags |= dict(target_interval=30, exploration_steps=50)
    n_step, one_step = (
        checkpoint(train(script, tmp_path / script.__name__, **flags))
        for script in (nstep_q_async, onestep_q_async)
    )
    assert not same(n_step["target"], n_step["params"])
    for name in "params", "target", "square_avg":
        torch.testing.assert_close(n_step[name], one_step[name])


@pytest.mark.parametrize("env_id", ["CartPole-v1", *TOYS[1:], "toy_envs:DeclaresFloats-v0"])
def test_a2c_with_one_worker_is_a3c_with_one_worker(tmp_path, env_id):
    flags = dict(env_id=env_id, num_workers=1, total_timesteps=150)
    flags |= dict(learning_rate=1e-3, rms_alpha=0.99, rms_eps=1e-3)
    one, other = (checkpoint(train(s, tmp_path / s.__name__, **flags)) for s in (a3c, a2c))
    assert same(one["params"], other["params"]) and same(one["square_avg"], other["square_avg"])
    assert int(one["updates"].sum()) == int(other["updates"].sum()) >= 30


def test_a2c_takes_answers_in_the_order_of_its_processes():
    pipes = [mp.Pipe() for _ in range(3)]
    workers = SimpleNamespace(processes=[SimpleNamespace(exitcode=None)] * 3)
    buffers = a2c.Buffers((4,), np.dtype(np.float32), 3)
    stop = torch.zeros(1, dtype=torch.bool)
    envs = a2c.Environments(workers, [ours for ours, _ in pipes], buffers, stop)
    for index in (2, 0, 1):
        pipes[index][1].send([index])
    assert envs.receive() == [0, 1, 2]


def test_a2c_waits_five_seconds_in_all_after_a_signal(monkeypatch):
    class SlowPipe:
        def __init__(self):
            self.answers_at = [4.0]  # and never again

        def send(self, message):
            pass

        def poll(self, timeout):
            clock.now += timeout
            return bool(self.answers_at) and clock.now > self.answers_at[0]

        def recv(self):
            self.answers_at.pop()
            return []

    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(a2c, "time", clock)
    workers = SimpleNamespace(processes=[SimpleNamespace(exitcode=None)])
    buffers = a2c.Buffers((1,), np.dtype(np.float32), 1)
    envs = a2c.Environments(workers, [SlowPipe()], buffers, torch.ones(1, dtype=torch.bool))
    envs.step({0: a2c.Buffers.RESET})
    with pytest.raises(a2c.WorkerLost):
        envs.step({0: 1})
    assert clock.now == pytest.approx(5, abs=0.5)


@pytest.mark.parametrize(
    "signal_at, closed_at, given_up_at",
    [(None, 50, None), (None, math.inf, 60), (10, 14, None), (10, math.inf, 15), (58, 70, 60)],
)
def test_a2c_waits_a_minute_for_environments_to_close(
    monkeypatch, signal_at, closed_at, given_up_at
):
    class Process:
        @property
        def exitcode(self):
            return 0 if clock.now >= closed_at else None

    def sleep(seconds):
        clock.now += seconds
        if signal_at and clock.now >= signal_at:
            stop.fill_(True)

    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now, sleep=sleep)
    monkeypatch.setattr(a2c, "time", clock)
    stop = torch.zeros(1, dtype=torch.bool)
    workers = SimpleNamespace(processes=[Process()], join=lambda timeout: False)
    envs = a2c.Environments(workers, [], a2c.Buffers((1,), np.dtype(np.float32), 1), stop)
    with pytest.raises(a2c.WorkerLost) if given_up_at else contextlib.nullcontext():
        envs.close()
    assert clock.now == pytest.approx(given_up_at or closed_at, abs=0.1)
    assert not given_up_at or envs.why_lost() == "does its environment hang?"


def test_an_a2c_environment_without_an_action_sits_out():
    workers = SimpleNamespace(processes=[])
    buffers = a2c.Buffers((1,), np.dtype(np.float32), 3)
    stop = torch.zeros(1, dtype=torch.bool)
    envs = a2c.Environments(workers, [], buffers, stop)
    envs.step({0: 1, 1: 1, 2: 1})
    envs.step({1: 1})
    sit_out = a2c.Buffers.SIT_OUT
    assert envs.actions.tolist() == [sit_out, 1, sit_out]


@pytest.mark.parametrize("env_id", ["CartPole-v1", TOYS[3]])
def test_a2c_repeats_whatever_the_number_of_processes(tmp_path, monkeypatch, env_id):
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    processes, saved = [], []
    start = torch.multiprocessing.start_processes

    def counted_start(*args, nprocs, **kwargs):
        processes.append(nprocs)
        return start(*args, nprocs=nprocs, **kwargs)

    monkeypatch.setattr(a2c.mp, "start_processes", counted_start)
    for run, (cores, seed) in enumerate([(1, 1), (2, 1), (4, 1), (2, 2)]):
        monkeypatch.setattr(a2c, "num_cores", lambda cores=cores: cores)
        flags = dict(env_id=env_id, num_workers=4, total_timesteps=150, seed=seed)
        saved.append(checkpoint(train(a2c, tmp_path / str(run), **flags)))
    assert processes == [1, 2, 4, 2]
    for again in saved[1:3]:
        assert same(saved[0]["params"], again["params"])
        assert torch.equal(saved[0]["steps"], again["steps"])
    assert not same(saved[0]["params"], saved[3]["params"])


@pytest.mark.parametrize("env_id", ["CartPole-v1", TOYS[3]])
def test_a2c_repeats_a_run_of_four_workers_bit_for_bit(tmp_path, env_id):
    flags = dict(env_id=env_id, num_workers=4, total_timesteps=150)
    first, again = (checkpoint(train(a2c, tmp_path / name, **flags)) for name in ("1", "2"))
    assert same(first["params"], again["params"])
    assert torch.equal(first["steps"], again["steps"])


def test_a2c_learns_with_a_thread_for_each_core_and_leaves_one(tmp_path, monkeypatch):
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5})
    train(a2c, tmp_path, num_workers=4, total_timesteps=10)
    assert threads == [2, 1]


@pytest.mark.parametrize("env_id", ["CartPole-v1", "BreakoutNoFrameskip-v4"])
def test_a2c_learns_on_a_gpu_what_it_learns_on_a_cpu(tmp_path, env_id):
    environment = {name: value for name, value in os.environ.items() if "CUDA" not in name}
    params = {}
    for device in "cuda", "cpu":
        flags = ["--env-id", env_id, "--device", device, "--log-dir", str(tmp_path / device)]
        flags += ["--num-workers", "4", "--total-timesteps", "100"]
        command = [sys.executable, str(ROOT / "a2c.py"), *flags]
        run = subprocess.run(command, env=environment, capture_output=True, text=True)
        if "PyTorch finds no GPU" in run.stderr:
            pytest.skip("needs a GPU")
        assert run.returncode == 0, run.stderr
        (run_dir,) = (tmp_path / device).iterdir()
        params[device] = checkpoint(run_dir)["params"]
    _, network = a2c.prepare_run(a2c.Args(env_id=env_id))
    for name, before in network.named_parameters():
        of_cpu = params["cpu"][name]
        difference = (params["cuda"][name] - of_cpu).abs().max()
        assert difference < 0.1 * (of_cpu - before).abs().max()


@pytest.fixture(params=VALUE_METHODS)
def value_method(request):
    return importlib.import_module(request.param)


@pytest.mark.parametrize("others", [0, 6])
def test_epsilon_goes_from_1_to_its_final_value(value_method, monkeypatch, others):
    flags = dict(total_timesteps=60, exploration_steps=40, num_steps=4, others=others)
    played = play(monkeypatch, value_method, TOYS[:1], **flags)
    last = round(played.updates[-1].acts[-1][2], 6)
    assert last in (0.1, 0.01, 0.5)
    step = 0
    for update in played.updates:
        expected = max(last, 1 - (1 - last) * step / 40)
        assert [drawn[2] for drawn in update.acts] == pytest.approx([expected] * len(update.acts))
        step += len(update.segments[0]) + others


def test_final_epsilons_have_the_papers_frequencies(value_method):
    drawn = [value_method.sample_final_epsilon(seed, 0) for seed in range(2000)]
    for epsilon, probability in (0.1, 0.4), (0.01, 0.3), (0.5, 0.3):
        assert drawn.count(epsilon) / len(drawn) == pytest.approx(probability, abs=0.03)


def test_the_final_epsilon_is_of_seed_and_rank_alone(value_method, monkeypatch):
    """A resumed run has other steps and other seeds for its workers."""

    def played(rank, **flags):
        flags = dict(total_timesteps=flags["start"] + 1, exploration_steps=1) | flags
        return play(monkeypatch, value_method, TOYS[:1], rank, **flags).updates[0].acts[0][2]

    for seed in (1, 2):
        new = [played(rank, start=100, seed=seed) for rank in range(8)]
        resumed = [played(rank, start=500, seed=seed, worker_seed=7) for rank in range(8)]
        drawn = [value_method.sample_final_epsilon(seed, rank) for rank in range(8)]
        assert new == resumed == pytest.approx(drawn) and len({*new}) > 1


def test_act_is_greedy_but_for_epsilon(value_method):
    network = value_method.make_network(value_method.make_env("CartPole-v1"), "paper")
    obs = np.zeros(4, np.float32)
    with torch.no_grad():
        network.q = torch.nn.Linear(256, 4)
        network.q.weight.zero_()
        network.q.bias.copy_(torch.tensor([1.0, 2.0, 4.0, 3.0]))
    value_method.action_rng.seed(1)
    for epsilon, best in ((0.0,), 1.0), ((0.4,), 0.7), ((1.0,), 0.25), ((), 1 - 0.05 * 3 / 4):
        drawn = [value_method.act(network, obs, *epsilon) for _ in range(2000)]
        rest = (1 - best) / 3
        frequencies = np.bincount(drawn, minlength=4) / 2000
        assert frequencies == pytest.approx([rest, rest, best, rest], abs=0.03)


@pytest.mark.parametrize("script", [a3c, a2c])
def test_act_draws_from_the_policy(script):
    network = script.make_network(script.make_env("CartPole-v1"), "paper")
    with torch.no_grad():
        network.policy = torch.nn.Linear(256, 4)
        network.policy.weight.zero_()
        network.policy.bias.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]).log())
    script.action_rng.seed(1)
    if script is a2c:
        drawn = script.act(network, torch.zeros(4000, 4))
    else:
        drawn = [script.act(network, np.zeros(4, np.float32)) for _ in range(4000)]
    frequencies = np.bincount(drawn, minlength=4) / 4000
    assert frequencies == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.03)


def test_an_environment_that_seeds_python_does_not_choose_the_actions(script):
    network = script.make_network(script.make_env("CartPole-v1"), "paper")
    epsilon = (1.0,) if script.__name__ in VALUE_METHODS else ()
    drawn = []
    for _ in range(50):
        random.seed(1)
        if script is a2c:
            drawn += script.act(network, torch.zeros(1, 4))
        else:
            drawn.append(script.act(network, np.zeros(4, np.float32), *epsilon))
    assert len({*drawn}) == 2


def test_a2c_takes_observations_of_another_type_than_declared():
    args = a2c.Args("toy_envs:Halves-v0", num_workers=2)
    buffers = a2c.make_buffers(args)
    envs = a2c.start_workers(args, [1, 2], buffers, torch.zeros(1, dtype=torch.bool))
    envs.receive()
    envs.step({0: 1, 1: 1})
    assert (envs.obs == 0.5).all()
    envs.close()


def test_the_target_network_becomes_theta_at_a_multiple_and_only_there(value_method, monkeypatch):
    played = play(monkeypatch, value_method, TOYS[:1], total_timesteps=60)
    step = 0
    for before, after in itertools.pairwise(played.updates):
        start, step = step, step + len(before.segments[0])
        crossed = step // 12 > start // 12
        assert same(after.target, after.theta if crossed else before.target)
    played = play(monkeypatch, value_method, TOYS[:1], total_timesteps=60, rank=1)
    assert all(same(update.target, played.updates[0].target) for update in played.updates)


def test_the_target_network_is_refreshed_once_for_each_multiple(value_method, monkeypatch):
    """Other workers make 6 steps for every update of worker 0, which refreshes."""
    refreshes, refresh = [], value_method.Shared.refresh_target

    def recorded_refresh(shared, step, params):
        refreshes.append(step)
        refresh(shared, step, params)

    monkeypatch.setattr(value_method.Shared, "refresh_target", recorded_refresh)
    flags = dict(others=6, total_timesteps=300, target_interval=30)
    played = play(monkeypatch, value_method, TOYS[:1], **flags)
    assert refreshes.pop(0) == 0  # of play()
    assert [step // 30 for step in refreshes] == [*range(1, len(refreshes) + 1)]
    assert len(refreshes) >= 9 and all(step % 30 < 5 + 6 + 5 for step in refreshes)
    assert int(played.shared.refreshed) == refreshes[-1]


@pytest.mark.parametrize("script", [nstep_q_async, a3c, a2c])
def test_returns(script):
    terminal, bootstrapped = (
        script.n_step_returns([1.0, 2.0, 3.0], bootstrap, 0.5) for bootstrap in (0.0, 8.0)
    )
    assert terminal == [1 + 0.5 * 2 + 0.25 * 3, 2 + 0.5 * 3, 3]
    assert bootstrapped == [1 + 1 + 0.75 + 0.125 * 8, 2 + 1.5 + 0.25 * 8, 3 + 0.5 * 8]


@pytest.mark.parametrize("script", [onestep_q_async, sarsa_async])
def test_one_step_targets(script):
    rewards, values = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 20.0, 30.0])
    targets = [script.one_step_targets(rewards, values, end, 0.5).tolist() for end in (True, False)]
    assert targets == [[6, 12, 3], [6, 12, 18]]


@pytest.mark.parametrize(
    "kind, value, steps", [("Worth10", 10, 5000), ("Worth1", 1, 1500), ("Worth1PerLife", 1, 1500)]
)
def test_value_of_a_state_under_each_ending(script, tmp_path, kind, value, steps):
    """With γ = 0.9 and a reward of 1 per step: 1 / (1 - γ) if only a time limit ends the game."""
    flags = dict(env_id=f"toy_envs:{kind}-v0", num_workers=1, total_timesteps=steps, gamma=0.9)
    flags |= dict(learning_rate=1e-2, rms_eps=1e-2)
    if script.__name__ in VALUE_METHODS:
        flags |= dict(target_interval=50, exploration_steps=1000)
    params = checkpoint(train(script, tmp_path, **flags))["params"]
    output = make_network(script, script.make_env(flags["env_id"]), params)(torch.ones(1, 2))
    values = output[0] if script.__name__ in VALUE_METHODS else output[1]
    assert values.detach().numpy() == pytest.approx(value, rel=0.05)
