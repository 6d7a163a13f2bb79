"""The algorithm of a3c.py, against sums written out and against Algorithm S3 step by step."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import checkpoint, train
from torch import nn

import a3c


class Pipe:
    def __init__(self):
        self.sent = []

    def send(self, message):
        self.sent.append(message)


def play(monkeypatch, env_id, **flags):
    """Runs a worker in this process; returns what it made of each segment, its environment and its pipe."""
    args = a3c.Args(env_id=env_id, num_workers=1, **flags)
    torch.manual_seed(1)
    env, pipe, segments = a3c.make_env(env_id), Pipe(), []
    shared = a3c.Shared(a3c.flatten(a3c.ActorCritic(env))[0], 1)
    forward, losses, update = a3c.ActorCritic.forward, a3c.a3c_losses, a3c.Shared.rmsprop_update

    def recorded_forward(model, obs):
        if not torch.is_inference_mode_enabled():
            segments.append(SimpleNamespace(obs=obs, params=shared.params.clone()))
        return forward(model, obs)

    def recorded_returns(rewards, bootstrap, gamma, n_step_returns=a3c.n_step_returns):
        segments[-1].rewards, segments[-1].bootstrap = rewards, bootstrap
        return n_step_returns(rewards, bootstrap, gamma)

    def recorded_losses(logits, values, actions, returns):
        segments[-1].actions = actions
        return losses(logits, values, actions, returns)

    def recorded_update(shared, grads, lr, alpha, eps):
        segments[-1].grads, segments[-1].lr = grads.clone(), lr
        update(shared, grads, lr, alpha, eps)

    with monkeypatch.context() as patch:
        patch.setattr(a3c, "make_env", lambda env_id: env)
        patch.setattr(a3c.ActorCritic, "forward", recorded_forward)
        patch.setattr(a3c, "n_step_returns", recorded_returns)
        patch.setattr(a3c, "a3c_losses", recorded_losses)
        patch.setattr(a3c.Shared, "rmsprop_update", recorded_update)
        a3c.worker(0, args, [1], shared, [pipe])
    assert int(shared.steps) == sum(len(segment.actions) for segment in segments)
    return args, env, segments, pipe


def network(env, params):
    model = a3c.ActorCritic(env)
    a3c.flatten(model)[0].copy_(params)
    return model


def algorithm_s3(model, segment, args):
    """The gradient of one segment, accumulated step by step from the last to the first."""
    grads, R = 0.0, segment.bootstrap
    for i in reversed(range(len(segment.actions))):
        logits, value = model(segment.obs[i : i + 1])
        logprobs = logits.log_softmax(1)[0]
        R = segment.rewards[i] + args.gamma * R
        policy_term = -logprobs[segment.actions[i]] * (R - value.item())
        entropy = -(logprobs.exp() * logprobs).sum()
        loss = policy_term - args.ent_coef * entropy + args.vf_coef * 0.5 * (R - value[0]) ** 2
        grads = grads + torch.cat([p.flatten() for p in torch.autograd.grad(loss, model.parameters())])
    return grads


def as_parameters(model, grads):
    """A flat vector, in the memory order of the parameters, in their logical order."""
    pieces = grads.split([p.numel() for p in model.parameters()])
    return torch.cat([torch.as_strided(g, p.shape, p.stride(), g.storage_offset()).flatten() for g, p in
                      zip(pieces, model.parameters(), strict=True)])  # fmt: skip


def test_returns_of_a_terminal_segment():
    returns = a3c.n_step_returns([1.0, 2.0, 3.0], 0.0, 0.5)
    assert returns.tolist() == [1 + 0.5 * 2 + 0.25 * 3, 2 + 0.5 * 3, 3]


def test_returns_of_a_bootstrapped_segment():
    returns = a3c.n_step_returns([1.0, 2.0, 3.0], 8.0, 0.5)
    assert returns.tolist() == [1 + 0.5 * 2 + 0.25 * 3 + 0.125 * 8, 2 + 0.5 * 3 + 0.25 * 8, 3 + 0.5 * 8]


@pytest.mark.parametrize("num_steps", [1, 5])
@pytest.mark.parametrize("env_id", ["Terminates", "Truncates", "LosesLives", "Square"])
def test_a_segments_gradient_is_that_of_algorithm_s3(monkeypatch, env_id, num_steps):
    flags = dict(num_steps=num_steps, total_timesteps=21, max_grad_norm=1e9, ent_coef=0.1, vf_coef=0.3, rms_eps=1e-3)
    args, env, segments, _ = play(monkeypatch, f"toy_envs:{env_id}-v0", **flags)
    errors, sizes = [], []
    for segment in segments:
        model = network(env, segment.params)
        expected = algorithm_s3(model, segment, args)
        errors.append((as_parameters(model, segment.grads) - expected).abs().max())
        sizes.append(expected.abs().max())
    assert max(errors) < 1e-4 * max(sizes)
    steps = np.cumsum([0, *(len(segment.actions) for segment in segments)])[:-1]
    assert [segment.lr for segment in segments] == pytest.approx(args.learning_rate * (1 - steps / 21))


def test_a_long_gradient_is_scaled_down_to_the_norm(monkeypatch):
    gradients = [play(monkeypatch, "toy_envs:Terminates-v0", total_timesteps=5, max_grad_norm=norm)[2][0].grads
                 for norm in (1e9, 0.5)]  # fmt: skip
    assert gradients[0].norm() > 1
    torch.testing.assert_close(gradients[1], 0.5 * gradients[0] / gradients[0].norm())


@pytest.mark.parametrize(
    "env_id, episode",
    [
        ("Terminates", [(5, True), (2, False)]),  # (steps, does it bootstrap?)
        ("Truncates", [(5, True), (2, True)]),
        ("LosesLives", [(3, False), (3, False), (3, False), (1, False)]),
    ],
)
def test_how_a_segment_ends(monkeypatch, env_id, episode):
    length = sum(steps for steps, _ in episode)
    _, env, segments, pipe = play(monkeypatch, f"toy_envs:{env_id}-v0", total_timesteps=3 * length)
    t = 0
    for segment, (steps, bootstraps) in zip(segments, 3 * episode, strict=True):
        assert segment.rewards == [*range(t + 1, t + steps + 1)]
        _, values = network(env, segment.params)(torch.full((1, 2), float(t + steps)))
        assert segment.bootstrap == (pytest.approx(values.item(), abs=1e-5) if bootstraps else 0.0)
        t = (t + steps) % length
    assert env.unwrapped.resets == 1 + 3  # the start, and each end of an episode
    assert [value for tag, value, _ in pipe.sent if tag == "charts/episodic_length"] == [length] * 3
    assert [value for tag, value, _ in pipe.sent if tag == "charts/episodic_return"] == [sum(range(length + 1))] * 3


def test_one_image_goes_through_the_network_as_in_a_batch():
    torch.manual_seed(1)
    x, conv = torch.randn(1, 20, 20, 4), nn.Conv2d(4, 8, 8, stride=4)
    expected = conv(x.permute(0, 3, 1, 2)).relu().permute(0, 2, 3, 1)
    for batch in x, x.repeat(2, 1, 1, 1):
        torch.testing.assert_close(a3c.convolve(batch, conv)[:1], expected)


def test_act_draws_from_the_policy():
    model = a3c.ActorCritic(a3c.make_env("toy_envs:Square-v0"))
    obs = np.zeros((84, 84, 4), np.uint8)
    with torch.no_grad():
        model.policy.weight.zero_()
        model.policy.bias.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]).log())
    counts = np.bincount([model.act(obs) for _ in range(4000)], minlength=4)
    assert counts / 4000 == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.05)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("env_id, value", [("Worth10", 1 / (1 - 0.9)), ("Worth1", 1), ("Worth1PerLife", 1)])
def test_value_of_a_state_under_each_ending(tmp_path, env_id, value, seed):
    env_id = f"toy_envs:{env_id}-v0"
    flags = dict(total_timesteps=2500, gamma=0.9, learning_rate=1e-2, seed=seed)
    run_dir = train(a3c, tmp_path, env_id=env_id, **flags)
    _, values = network(a3c.make_env(env_id), checkpoint(run_dir)["params"])(torch.ones(1, 2))
    assert values.item() == pytest.approx(value, rel=0.05)
