"""Each script's update against the paper's pseudocode, step by step, from what its environment saw."""

import itertools
import threading
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import VALUE_METHODS, checkpoint, train

import a2c
import a3c
import nstep_q_async
import onestep_q_async
import sarsa_async

FLAGS = {"rms_eps": 1e-3, "max_grad_norm": 1e9}
VALUE_FLAGS, ACTOR_CRITIC_FLAGS = {"target_interval": 12, "exploration_steps": 30}, {"ent_coef": 0.1, "vf_coef": 0.3}


class Pipe:
    """The end of a pipe to main."""

    def __init__(self):
        self.sent = []

    def send(self, message):
        self.sent.append(message)


class Recorder(gym.Wrapper):
    """Keeps what the environment was told and what it answered, in pieces that end where an update begins."""

    def reset(self, **kwargs):
        obs, info = self.env.reset(**kwargs)
        self.obs = np.array(obs)
        return obs, info

    def step(self, action):
        before = self.obs
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.obs, terminal = np.array(obs), terminated or info.get("life_lost", False)
        self.steps.append(SimpleNamespace(obs=before, action=action, reward=reward, terminal=terminal,
                                          ended=terminated or truncated, next_obs=self.obs))  # fmt: skip
        return obs, reward, terminated, truncated, info


def play(monkeypatch, script, env_id, num_workers=1, rank=0, start=0, seed=1, worker_seed=1, **flags):
    """Runs workers in this process; returns each update with the segments that it was made from."""
    flags = FLAGS | (VALUE_FLAGS if script.__name__ in VALUE_METHODS else ACTOR_CRITIC_FLAGS) | flags
    args = script.Args(env_id=env_id, num_workers=num_workers, seed=seed, **flags)
    torch.manual_seed(seed)
    envs = [Recorder(script.make_env(env_id)) for _ in range(num_workers)]
    model, updates, acts = script.Network(envs[0]), [], []
    shared, update, act = (
        script.Shared(model.params, num_workers + rank),
        script.Shared.rmsprop_update,
        script.Network.act,
    )
    shared.steps[0] = start
    if script.__name__ in VALUE_METHODS:
        torch.nn.init.normal_(shared.target, std=0.1)  # a target network that differs from θ
    for env in envs:
        env.steps = []

    def recorded_update(shared, grads, lr, alpha, eps):
        vectors = {name: getattr(shared, name).clone() for name in ("params", "target") if hasattr(shared, name)}
        segments = [env.steps for env in envs]
        updates.append(SimpleNamespace(segments=segments, acts=acts[:], grads=grads.clone(), lr=lr, **vectors))
        acts.clear()
        for env in envs:
            env.steps = []
        update(shared, grads, lr, alpha, eps)

    def recorded_act(model, obs, *epsilon):
        acts.append((act(model, obs, *epsilon), *epsilon))
        return acts[-1][0]

    def env_of_this_worker(env_id):
        name = threading.current_thread().name
        return envs[int(name)] if name.isdigit() else envs[0]

    with monkeypatch.context() as patch:
        patch.setattr(script, "make_env", env_of_this_worker)
        patch.setattr(script.Network, "act", recorded_act)
        patch.setattr(script.Shared, "rmsprop_update", recorded_update)
        if script.__name__ == "a2c":
            pipes = [torch.multiprocessing.Pipe() for _ in envs]
            main, players, theirs = Pipe(), [player for player, _ in pipes], [pipe for _, pipe in pipes]
            common, pipes = (args, [*range(worker_seed, worker_seed + num_workers)], shared), [*theirs, main]
            threads = [
                threading.Thread(None, script.worker, str(n), (n, *common, [], pipes)) for n in range(num_workers)
            ]
            for thread in threads:
                thread.start()
            script.worker(num_workers, *common, players, pipes)
            for thread in threads:
                thread.join()
        else:
            main = Pipe()
            script.worker(rank, args, [worker_seed] * (rank + 1), shared, [main] * (rank + 1))
    assert int(shared.steps.sum()) == start + sum(len(segment) for u in updates for segment in u.segments)
    assert int(shared.updates.sum()) == len(updates)
    return SimpleNamespace(args=args, envs=envs, updates=updates, shared=shared, sent=main.sent)


def network(script, env, params):
    model = script.Network(env)
    model.params.copy_(params)
    return model


def tensor(obs):
    return torch.as_tensor(obs)[None]


def algorithm_1(model, target, segment, next_action, args):
    """One-step Q-learning, or Sarsa if there is a next action: (y - Q(s, a))² / 2 for each step."""
    for i, step in enumerate(segment):
        values = target(tensor(step.next_obs))[0].detach()
        if next_action is None:
            value = values.max()
        else:
            value = values[segment[i + 1].action if i + 1 < len(segment) else next_action]
        y = step.reward if step.terminal else step.reward + args.gamma * value
        yield 0.5 * (y - model(tensor(step.obs))[0, step.action]) ** 2


def algorithm_s2(model, target, segment, args):
    R = 0.0 if segment[-1].terminal else target(tensor(segment[-1].next_obs)).max().item()
    for step in reversed(segment):
        R = step.reward + args.gamma * R
        yield 0.5 * (R - model(tensor(step.obs))[0, step.action]) ** 2


def algorithm_s3(model, segment, args):
    R = 0.0 if segment[-1].terminal else model(tensor(segment[-1].next_obs))[1].item()
    for step in reversed(segment):
        logits, value = model(tensor(step.obs))
        logprobs = logits.log_softmax(1)[0]
        R = step.reward + args.gamma * R
        policy_term = -logprobs[step.action] * (R - value.item())
        entropy = -(logprobs.exp() * logprobs).sum()
        yield policy_term - args.ent_coef * entropy + args.vf_coef * 0.5 * (R - value[0]) ** 2


def by_hand(script, played, index):
    """The gradient of an update, accumulated step by step."""
    update, env, args = played.updates[index], played.envs[0], played.args
    model, total = network(script, env, update.params), 0.0
    for segment in update.segments:
        if script.__name__ in VALUE_METHODS:
            target = network(script, env, update.target)
        if script.__name__ == "onestep_q_async":
            losses = algorithm_1(model, target, segment, None, args)
        elif script.__name__ == "sarsa_async":
            drawn = update.acts[-1][0]  # at a time limit it is never made: the episode is over
            after = played.updates[index + 1].segments[0][0].action if index + 1 < len(played.updates) else drawn
            losses = algorithm_1(model, target, segment, drawn if segment[-1].ended else after, args)
        elif script.__name__ == "nstep_q_async":
            losses = algorithm_s2(model, target, segment, args)
        else:
            losses = algorithm_s3(model, segment, args)
        for loss in losses:
            grads = torch.autograd.grad(loss, model.parameters())
            total = total + torch.cat([g.flatten() for g in grads])
    return total


def as_parameters(model, grads):
    """A flat vector, in the memory order of the parameters, in their logical order."""
    pieces = grads.split([p.numel() for p in model.parameters()])
    return torch.cat([torch.as_strided(g, p.shape, p.stride(), g.storage_offset()).flatten() for g, p in
                      zip(pieces, model.parameters(), strict=True)])  # fmt: skip


def compare_with_hand(script, played):
    model = script.Network(played.envs[0])
    expected = [by_hand(script, played, index) for index in range(len(played.updates))]
    errors = [(as_parameters(model, u.grads) - e).abs().max() for u, e in zip(played.updates, expected, strict=True)]
    assert max(errors) < 1e-4 * max(e.abs().max() for e in expected)


@pytest.mark.parametrize("num_steps", [1, 5])
@pytest.mark.parametrize("env_id", ["Terminates", "Truncates", "LosesLives", "Square"])
def test_an_updates_gradient_is_the_papers(script, monkeypatch, env_id, num_steps):
    flags = dict(num_steps=num_steps, total_timesteps=41)
    played = play(monkeypatch, script, f"toy_envs:{env_id}-v0", **flags)
    compare_with_hand(script, played)
    steps = np.cumsum([0, *(len(update.segments[0]) for update in played.updates)])[:-1]
    rates = played.args.learning_rate * (1 - steps / 41)
    assert [update.lr for update in played.updates] == pytest.approx(rates)


@pytest.mark.parametrize("env_id", ["Terminates", "LosesLives", "Square"])
def test_a2c_sums_up_the_gradients_of_its_workers(monkeypatch, env_id):
    played = play(monkeypatch, a2c, f"toy_envs:{env_id}-v0", num_workers=3, total_timesteps=100)
    compare_with_hand(a2c, played)
    # Segments of the three may differ in length, but none waits beyond an update.
    assert all(1 <= len(segment) <= 5 for update in played.updates for segment in update.segments)


def test_a_long_gradient_is_scaled_down_to_the_norm(script, monkeypatch):
    gradients = [play(monkeypatch, script, "toy_envs:Terminates-v0", total_timesteps=5, max_grad_norm=norm)
                 .updates[0].grads for norm in (1e9, 0.5)]  # fmt: skip
    assert gradients[0].norm() > 1
    torch.testing.assert_close(gradients[1], 0.5 * gradients[0] / gradients[0].norm())


@pytest.mark.parametrize(
    "env_id, episode", [("Terminates", [5, 2]), ("Truncates", [5, 2]), ("LosesLives", [3, 3, 3, 1])]
)
def test_how_segments_end(script, monkeypatch, env_id, episode):
    length = sum(episode)
    played = play(monkeypatch, script, f"toy_envs:{env_id}-v0", total_timesteps=3 * length)
    assert [len(update.segments[0]) for update in played.updates] == 3 * episode
    rewards = [step.reward for update in played.updates for step in update.segments[0]]
    assert rewards == 3 * [*range(1, length + 1)]
    assert played.envs[0].unwrapped.resets == 1 + 3  # the start, and each end of an episode
    at, logged = zip(*[message for message in played.sent if "charts/episodic_return" in message[1]], strict=True)
    assert at == (length, 2 * length, 3 * length)
    assert [message["charts/episodic_length"] for message in logged] == [length] * 3
    assert [message["charts/episodic_return"] for message in logged] == [sum(range(length + 1))] * 3


def test_sarsa_makes_the_actions_that_stand_in_its_targets(monkeypatch):
    for env_id in "Terminates", "Truncates", "LosesLives":
        played = play(monkeypatch, sarsa_async, f"toy_envs:{env_id}-v0", total_timesteps=200, exploration_steps=10**9)
        made = [step for update in played.updates for step in update.segments[0]]
        drawn = iter([action for update in played.updates for action, _ in update.acts])
        for step in made:
            assert step.action == next(drawn)
            if step.ended:
                next(drawn)  # the action in the target of an episode's last step has no state to be made in
        assert len({step.action for step in made}) == 2
        assert len([*drawn]) <= 1  # drawn for a segment that is not begun any more


@pytest.mark.parametrize("env_id", ["CartPole-v1", "toy_envs:LosesLives-v0", "toy_envs:Square-v0"])
def test_n_step_q_with_one_step_is_one_step_q(tmp_path, env_id):
    flags = dict(env_id=env_id, num_workers=1, num_steps=1, total_timesteps=400)
    flags |= dict(target_interval=50, exploration_steps=200)
    saved = [checkpoint(train(s, tmp_path / s.__name__, **flags)) for s in (nstep_q_async, onestep_q_async)]
    assert torch.equal(saved[0]["params"], saved[1]["params"])
    assert torch.equal(saved[0]["target"], saved[1]["target"])


@pytest.mark.parametrize(
    "env_id", ["CartPole-v1", *(f"toy_envs:{kind}-v0" for kind in ("LosesLives", "Truncates", "Square"))]
)
def test_a2c_with_one_worker_is_a3c_with_one_worker(tmp_path, env_id):
    flags = dict(env_id=env_id, num_workers=1, total_timesteps=600)
    saved = [checkpoint(train(s, tmp_path / s.__name__, **flags)) for s in (a3c, a2c)]
    assert torch.equal(saved[0]["params"], saved[1]["params"])
    assert torch.equal(saved[0]["square_avg"], saved[1]["square_avg"])


@pytest.mark.parametrize("env_id", ["CartPole-v1", "toy_envs:Square-v0"])
def test_a2c_repeats_a_run_of_four_workers_bit_for_bit(tmp_path, env_id):
    flags = dict(env_id=env_id, num_workers=4, total_timesteps=800)
    saved = [checkpoint(train(a2c, tmp_path / name, **flags)) for name in ("first", "again")]
    assert torch.equal(saved[0]["params"], saved[1]["params"])
    assert torch.equal(saved[0]["steps"], saved[1]["steps"])


@pytest.fixture(params=VALUE_METHODS)
def value_method(request):
    return __import__(request.param)


def test_epsilon_goes_from_1_to_a_last_value(value_method, monkeypatch):
    flags = dict(total_timesteps=60, exploration_steps=40, num_steps=4)
    played = play(monkeypatch, value_method, "toy_envs:Square-v0", **flags)
    last = played.updates[-1].acts[-1][1]
    assert last in (0.1, 0.01, 0.5)
    step = 0
    for update in played.updates:
        expected = max(last, 1 - (1 - last) * step / 40)
        assert [epsilon for _, epsilon in update.acts] == pytest.approx([expected] * len(update.acts))
        step += len(update.segments[0])


def last_epsilon(monkeypatch, script, **flags):
    flags = dict(start=100, total_timesteps=101, exploration_steps=1) | flags
    return play(monkeypatch, script, "toy_envs:Terminates-v0", **flags).updates[0].acts[0][1]


def test_last_epsilons_have_the_papers_frequencies(value_method, monkeypatch):
    last = [last_epsilon(monkeypatch, value_method, seed=seed) for seed in range(1000)]
    for epsilon, probability in (0.1, 0.4), (0.01, 0.3), (0.5, 0.3):
        assert last.count(epsilon) / len(last) == pytest.approx(probability, abs=0.04)


def test_the_last_epsilon_is_of_seed_and_rank_alone(value_method, monkeypatch):
    """A resumed run has other steps and other seeds for its workers."""
    by_rank = [last_epsilon(monkeypatch, value_method, rank=rank) for rank in range(8)]
    flags = dict(start=500, total_timesteps=501, worker_seed=7)
    assert by_rank == [last_epsilon(monkeypatch, value_method, rank=rank, **flags) for rank in range(8)]
    assert len({*by_rank}) > 1


def test_act_is_greedy_but_for_epsilon(value_method):
    model = value_method.Network(value_method.make_env("toy_envs:Square-v0"))
    obs = np.zeros((84, 84, 4), np.uint8)
    with torch.no_grad():
        model.q.weight.zero_()
        model.q.bias.copy_(torch.tensor([1.0, 2.0, 4.0, 3.0]))
    for epsilon, best in (0.0, 1.0), (0.4, 0.7), (1.0, 0.25):
        counts = np.bincount([model.act(obs, epsilon) for _ in range(2000)], minlength=4) / 2000
        assert counts == pytest.approx([(1 - best) / 3] * 2 + [best] + [(1 - best) / 3], abs=0.05)
    assert np.mean([model.act(obs) == 2 for _ in range(2000)]) == pytest.approx(1 - 0.05 * 3 / 4, abs=0.02)


def test_the_target_network_becomes_theta_at_a_multiple_and_only_there(value_method, monkeypatch):
    played = play(monkeypatch, value_method, "toy_envs:Terminates-v0", total_timesteps=60)
    step = 0
    for before, after in itertools.pairwise(played.updates):
        start, step = step, step + len(before.segments[0])
        crossed = step // 12 > start // 12
        assert torch.equal(after.target, after.params if crossed else before.target)
    played = play(monkeypatch, value_method, "toy_envs:Terminates-v0", total_timesteps=60, rank=1)
    assert all(torch.equal(update.target, played.updates[0].target) for update in played.updates)


def test_the_target_network_is_refreshed_once_for_each_multiple(value_method, monkeypatch, tmp_path):
    refreshes, instances, stop = [], [], threading.Event()
    init = value_method.Shared.__init__

    def recorded_init(shared, *args):
        init(shared, *args)
        instances.append(shared)

    def watch():
        while not stop.wait(0.0005):
            if instances and (at := int(instances[0].refreshed)) != (refreshes[-1] if refreshes else 0):
                refreshes.append(at)

    monkeypatch.setattr(value_method.Shared, "__init__", recorded_init)
    watcher = threading.Thread(target=watch)
    watcher.start()
    flags = dict(num_workers=3, total_timesteps=11000, target_interval=2000)  # goes on after the last refresh
    run_dir = train(value_method, tmp_path, **flags)
    stop.set()
    watcher.join()
    assert [at // 2000 for at in refreshes] == [*range(1, len(refreshes) + 1)] and len(refreshes) >= 4
    saved = checkpoint(run_dir)
    assert int(saved["refreshed"]) == refreshes[-1] and not torch.equal(saved["target"], saved["params"])


@pytest.mark.parametrize("env_id", ["CartPole-v1", "toy_envs:Square-v0"])
def test_act_computes_what_forward_does(script, env_id):
    env = script.make_env(env_id)
    model = script.Network(env)
    model.params.normal_(std=0.05)  # act() must not remember other parameters
    obs, outputs = [env.reset(seed=1)[0], env.step(0)[0]], []
    (model.q if hasattr(model, "q") else model.policy).register_forward_hook(lambda *call: outputs.append(call[2]))
    model(torch.as_tensor(np.stack(obs)))
    for one in obs:
        model.act(one, *([0.0] if hasattr(model, "q") else []))
    torch.testing.assert_close(outputs[0], torch.stack([outputs[1].flatten(), outputs[2].flatten()]))


@pytest.mark.parametrize("name", ["a3c", "a2c"])
def test_act_draws_from_the_policy(name):
    script = __import__(name)
    model = script.Network(script.make_env("toy_envs:Square-v0"))
    obs = np.zeros((84, 84, 4), np.uint8)
    with torch.no_grad():
        model.policy.weight.zero_()
        model.policy.bias.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]).log())
    drawn = [model.act(obs) for _ in range(4000)]
    assert np.bincount(drawn, minlength=4) / 4000 == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.05)


@pytest.mark.parametrize("name", ["nstep_q_async", "a3c", "a2c"])
def test_returns(name):
    n_step_returns = __import__(name).n_step_returns
    terminal, bootstrapped = (n_step_returns([1.0, 2.0, 3.0], bootstrap, 0.5).tolist() for bootstrap in (0.0, 8.0))
    assert terminal == [1 + 0.5 * 2 + 0.25 * 3, 2 + 0.5 * 3, 3]
    assert bootstrapped == [1 + 0.5 * 2 + 0.25 * 3 + 0.125 * 8, 2 + 0.5 * 3 + 0.25 * 8, 3 + 0.5 * 8]


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("env_id, value", [("Worth10", 1 / (1 - 0.9)), ("Worth1", 1), ("Worth1PerLife", 1)])
def test_value_of_a_state_under_each_ending(script, tmp_path, env_id, value, seed):
    env_id = f"toy_envs:{env_id}-v0"
    flags = dict(total_timesteps=2500, gamma=0.9, learning_rate=1e-2, seed=seed)
    if script.__name__ in VALUE_METHODS:
        flags |= dict(total_timesteps=6000, target_interval=50, exploration_steps=1000)
    run_dir = train(script, tmp_path, env_id=env_id, **flags)
    output = network(script, script.make_env(env_id), checkpoint(run_dir)["params"])(torch.ones(1, 2))
    values = output[0] if script.__name__ in VALUE_METHODS else output[1]
    assert values.detach().numpy() == pytest.approx(value, rel=0.05)
