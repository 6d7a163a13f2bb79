"""What can't work ends with exit code 2 and one line that says why, before anything is started."""

import math
import os
import random
import re
import shutil
import sys
from dataclasses import fields

import numpy as np
import pytest
import torch
import toy_envs
import tyro
from conftest import OF_FEW, OF_ONE, ROOT, VALUE_METHODS, checkpoint, train

import a2c


def refuses(script, capsys, monkeypatch, **flags) -> str:
    """The one line with which main refuses these flags."""

    def start(*args, **kwargs):
        pytest.fail("workers were started")

    monkeypatch.setattr(script.mp, "start_processes", start)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        script.main(script.Args(**flags))
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{script.SCRIPT.name}: error: ")
    return line


@OF_FEW
@pytest.mark.parametrize(
    "flags, told",
    [
        ({"num_workers": 0}, "--num-workers"),
        ({"total_timesteps": -1}, "--total-timesteps"),
        ({"num_steps": -5}, "--num-steps"),
        ({"eval_episodes": 0}, "--eval-episodes"),
        ({"gamma": 1.5}, "--gamma"),
        ({"gamma": math.nan}, "--gamma"),
        ({"rms_alpha": -0.1}, "--rms-alpha"),
        ({"rms_alpha": 1.5}, "--rms-alpha"),
        ({"learning_rate": -1.0}, "--learning-rate"),
        ({"learning_rate": math.nan}, "--learning-rate"),
        ({"learning_rate": math.inf}, "--learning-rate"),
        ({"rms_eps": -1.0}, "--rms-eps"),
        ({"max_grad_norm": 0.0}, "--max-grad-norm must be from 1e-06 to inf, not 0.0"),
        ({"init": "xavier"}, "--init must be orthogonal or paper, not xavier"),
        ({"capture_video": True}, "--capture-video needs --evaluate"),
        ({"resume": "here", "evaluate": "there"}, "--resume and --evaluate exclude each other"),
        ({"checkpoint_interval": -1.0}, "--checkpoint-interval"),
        ({"seed": -1}, "--seed"),
        ({"env_id": "Nonsense-v0"}, "Nonsense"),
        ({"env_id": "CartPole-v99"}, "CartPole-v99"),
        ({"env_id": "no_such_module:Env-v0"}, "no_such_module"),
        ({"env_id": "toy_envs:Nonsense-v0"}, "Nonsense"),
        ({"env_id": "./toy_envs:Nonsense-v0"}, "not its path"),
        ({"env_id": ":Nonsense-v0"}, "not its path"),
        ({"env_id": "Pendulum-v1"}, "Discrete"),
        ({"env_id": "FrozenLake-v1"}, "Box"),
        ({"env_id": "toy_envs:FromOne-v0"}, "start at 0"),
        ({"env_id": "toy_envs:Dict-v0"}, "Box"),
        ({"env_id": "toy_envs:ChannelsFirst-v0"}, "channels last, not (3, 84, 84)"),
        ({"env_id": "toy_envs:ChannelsFirstStack-v0"}, "channels last, not (12, 84, 84)"),
        ({"env_id": "toy_envs:RGBA-v0"}, "1 or 3 channels, not (90, 80, 4)"),
        ({"env_id": "ALE/Breakout"}, "needs its version"),
        ({"env_id": "toy_envs:AtariSkips-v0"}, 'frameskip=1 and obs_type="grayscale"'),
        ({"env_id": "toy_envs:AtariColour-v0"}, 'frameskip=1 and obs_type="grayscale"'),
    ],
)
def test_flags_and_environments_that_cannot_work_are_refused(
    script, capsys, monkeypatch, tmp_path, flags, told
):
    flags = {"env_id": "CartPole-v1", "log_dir": str(tmp_path / "runs"), **flags}
    assert told in refuses(script, capsys, monkeypatch, **flags)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "script, flags, told",
    [
        *((name, {"target_interval": -1}, "--target-interval") for name in VALUE_METHODS),
        *((name, {"exploration_steps": -1}, "--exploration-steps") for name in VALUE_METHODS),
        ("a3c", {"ent_coef": -0.1}, "--ent-coef must be from 0 to 1000000.0, not -0.1"),
        ("a2c", {"vf_coef": -1.0}, "--vf-coef"),
        ("a2c", {"device": "tpu"}, "--device"),
        ("a2c", {"device": "cuda"}, "finds no GPU"),
        ("a2c", {"device": "cuda:99"}, "--device"),
    ],
    indirect=["script"],
)
def test_flags_of_one_script_that_cannot_work_are_refused(
    script, capsys, monkeypatch, tmp_path, flags, told
):
    flags = {"env_id": "CartPole-v1", "log_dir": str(tmp_path / "runs"), **flags}
    assert told in refuses(script, capsys, monkeypatch, **flags)


@OF_ONE
def test_a_refused_environment_is_closed(script):
    before = toy_envs.Dict.closed
    with pytest.raises(script.UnsupportedEnvironment):
        script.make_env("toy_envs:Dict-v0")
    assert toy_envs.Dict.closed == before + 1


@OF_ONE
@pytest.mark.parametrize(
    "kind, told",
    [
        ("Terminates", "render_mode"),
        ("NoImages", "it renders no images"),
        ("ForgetsRenderMode", "Render mode is None"),
    ],
)
def test_video_of_an_environment_without_images(script, capsys, monkeypatch, trained, kind, told):
    flags = {"env_id": f"toy_envs:{kind}-v0", "evaluate": str(trained), "capture_video": True}
    assert told in refuses(script, capsys, monkeypatch, **flags)
    assert not (trained / "videos").exists()


@OF_ONE
def test_a_video_that_cannot_be_written(script, capsys, monkeypatch, trained, tmp_path):
    run_dir = shutil.copytree(trained, tmp_path / "run")
    (run_dir / "videos").write_text("where the folder should be")
    flags = {"env_id": "toy_envs:Images-v0", "evaluate": str(run_dir), "capture_video": True}
    assert "--capture-video: " in refuses(script, capsys, monkeypatch, **flags)


@OF_ONE
def test_every_episode_is_recorded(script, trained, tmp_path):
    run_dir = shutil.copytree(trained, tmp_path / "run")
    flags = dict(env_id="toy_envs:Images-v0", evaluate=str(run_dir), capture_video=True)
    script.main(script.Args(**flags, eval_episodes=3))
    assert len([*run_dir.glob("videos/*.mp4")]) == 3


@OF_ONE
def test_a_video_without_its_packages(script, capsys, monkeypatch, trained, tmp_path):
    monkeypatch.setitem(sys.modules, "moviepy", None)
    run_dir = str(shutil.copytree(trained, tmp_path / "run"))  # a folder for videos is made in it
    flags = {"env_id": "toy_envs:Images-v0", "evaluate": run_dir, "capture_video": True}
    assert "--capture-video: MoviePy is not installed" in refuses(
        script, capsys, monkeypatch, **flags
    )


@OF_ONE
def test_a_bug_in_an_environment_keeps_its_traceback(script, tmp_path):
    with pytest.raises(AttributeError, match="the toy has no such thing"):
        train(script, tmp_path, env_id="toy_envs:BrokenInit-v0")
    with pytest.raises(TypeError, match="the toy has a wrong type"):
        script.make_env("toy_envs:BrokenVideo-v0", video=True)


@OF_ONE
def test_ctrl_c_ends_an_evaluation(script, trained, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "act", interrupted)
    with pytest.raises(SystemExit) as stop:
        script.main(script.Args(env_id="toy_envs:Terminates-v0", evaluate=str(trained)))
    assert stop.value.code == 130


@OF_ONE
def test_an_episode_without_end_is_given_up(script, capsys, monkeypatch, trained):
    make, envs = script.make_env, []

    def made(*args):
        envs.append(make(*args))
        return envs[-1]

    closed = []
    monkeypatch.setattr(script, "make_env", made)
    monkeypatch.setattr(toy_envs.Count, "close", lambda env: closed.append(env))
    monkeypatch.setattr(script, "act", lambda network, obs: 0)
    flags = {"evaluate": str(trained), "eval_episodes": 1}
    told = refuses(script, capsys, monkeypatch, env_id="toy_envs:Endless-v0", **flags)
    assert "an episode has not ended within 100000 steps" in told
    assert closed == [env.unwrapped for env in envs]
    args = script.Args(env_id="toy_envs:LimitedLater-v0", **flags)
    assert script.main(args) == [sum(range(1, 100_002))]
    args = script.Args(env_id="toy_envs:ThreeGames-v0", **flags)
    assert script.main(args) == [3 * sum(range(1, 6))]


def test_what_0_stands_for(script):
    names = ["total_timesteps", "learning_rate", "rms_eps"]
    if script.__name__ in VALUE_METHODS:
        names += ["exploration_steps", "target_interval"]
    if script.__name__ != "a2c":
        names += ["rms_alpha"]
    chosen = [
        script.prepare_run(script.Args(env_id=env_id))[0]
        for env_id in ("CartPole-v1", "toy_envs:Square-v0")
    ]
    for args, images in zip(chosen, (False, True), strict=True):
        assert args == script.choose_defaults(script.Args(env_id=args.env_id), images)
    for name in names:
        assert getattr(script.Args(), name) == 0
        flat, image = (getattr(args, name) for args in chosen)
        assert 0 < flat != image > 0
        given = 0.7 if name == "rms_alpha" else 7
        kept = script.prepare_run(script.Args(env_id="CartPole-v1", **{name: given}))[0]
        assert getattr(kept, name) == given


def test_a_run_on_a_gpu_can_be_evaluated_without_one():
    args = a2c.Args(device="cuda", evaluate="runs/NAME")
    assert a2c.validate_args(args) == args


COLUMNS = {"a3c": "a3c.py", "a2c": "a2c.py"}


def test_what_0_stands_for_is_in_the_docs(script):
    """A cell holds the value for images and the one for other observations, or one for both."""
    page = (ROOT / "docs/hyperparameters.md").read_text(encoding="utf-8")
    section = page.split("\n## What 0 means\n")[1].split("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")]
    header, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table)
    args = script.Args()
    compared = set()
    for row in rows:
        name = row[0].strip("`-").replace("-", "_")
        cell = row[header.index(COLUMNS.get(script.__name__, "value methods"))]
        if not cell:
            assert not hasattr(args, name)
            continue
        values = [float(value.replace(",", "")) for value in cell.split(" or ")]
        chosen = [getattr(script.choose_defaults(args, images), name) for images in (True, False)]
        assert chosen == [values[0], values[-1]], name
        compared.add(name)
    changed = {k for k, v in vars(script.choose_defaults(args, True)).items() if v != vars(args)[k]}
    assert changed and changed <= compared


@pytest.mark.parametrize("of_main", [True, False])
def test_all_generators_are_seeded(script, monkeypatch, of_main):
    monkeypatch.setattr(script.signal, "signal", lambda *arguments: None)
    drawn = []
    for seed in (1, 1, 2):
        args = script.Args(env_id="CartPole-v1", seed=seed)
        script.prepare_run(args) if of_main else script.prepare_worker(seed)
        own = script.action_rng.random()
        drawn.append((torch.rand(1).item(), np.random.rand(), random.random(), own))
    assert drawn[0] == drawn[1]
    assert not set(drawn[0]) & set(drawn[2])


def test_whole_numbers_are_accepted_for_fractions(script, tmp_path):
    train(script, tmp_path, total_timesteps=10, learning_rate=1, gamma=1, checkpoint_interval=0)


@OF_ONE
def test_numpys_types_are_accepted(script, tmp_path):
    numbers = {"total_timesteps": np.int64(10), "learning_rate": np.float32(1e-3)}
    run_dir = train(script, tmp_path, env_id=np.str_("CartPole-v1"), **numbers)
    args = script.load_checkpoint(str(run_dir))[0]["args"]
    assert (args.env_id, args.total_timesteps) == ("CartPole-v1", 10)


@OF_ONE
def test_none_stands_for_no_checkpoint(script, tmp_path):
    train(script, tmp_path, total_timesteps=10, resume=None, evaluate=None)


@OF_ONE
@pytest.mark.parametrize("log_dir", ["file", "file/below"])
def test_log_dir_cannot_be_created(script, capsys, monkeypatch, tmp_path, log_dir):
    (tmp_path / "file").write_text("here")
    flags = {"env_id": "CartPole-v1", "log_dir": str(tmp_path / log_dir)}
    assert "file" in refuses(script, capsys, monkeypatch, **flags)
    assert (tmp_path / "file").read_text() == "here"


def spoil(file, damage):
    """Makes a good checkpoint a bad one."""
    saved = checkpoint(file.parent)
    if damage == "missing":
        file.unlink()
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "text":
        file.write_text("not\na checkpoint\n" * 9)
    elif damage == "cut off":
        file.write_bytes(file.read_bytes()[:-2000])
    elif damage == "a state_dict":
        torch.save({"weight": torch.zeros(3)}, file)
    elif damage == "of another script":
        torch.save({**saved, "script": "another"}, file)
    elif damage == "other flags":
        torch.save({**saved, "args": {**saved["args"], "frobnicate": 1}}, file)


DAMAGES = ["missing", "empty", "text", "cut off", "a state_dict"]
DAMAGES += ["of another script", "other flags", "of another network"]


@OF_ONE
@pytest.mark.parametrize("flag", ["resume", "evaluate"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_that_cannot_be_used_is_refused(
    script, capsys, monkeypatch, trained, tmp_path, flag, damage
):
    run_dir = shutil.copytree(trained, tmp_path / "run")
    spoil(run_dir / "checkpoint.pt", damage)
    before = {file: file.read_bytes() for file in run_dir.iterdir()}
    env_id = "CartPole-v1" if damage == "of another network" else "toy_envs:Terminates-v0"
    line = refuses(script, capsys, monkeypatch, **{"env_id": env_id, flag: str(run_dir)})
    assert str(run_dir) in line and ("another.py" in line) == (damage == "of another script")
    unreadable = damage in ("empty", "text", "cut off", "a state_dict")
    assert ("try checkpoint.prev.pt" in line) == unreadable and "weights_only" not in line
    assert {file: file.read_bytes() for file in run_dir.iterdir()} == before


@OF_ONE
@pytest.mark.parametrize("flag", ["resume", "evaluate"])
def test_a_path_that_cannot_be_is_refused(script, capsys, monkeypatch, flag):
    line = refuses(script, capsys, monkeypatch, **{flag: "a" * 300})
    assert "is no checkpoint" in line


@OF_ONE
@pytest.mark.parametrize("flag", ["resume", "evaluate"])
def test_a_checkpoint_cannot_run_code(script, capsys, monkeypatch, trained, tmp_path, flag):
    class Code:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    run_dir = shutil.copytree(trained, tmp_path / "run")
    torch.save({**checkpoint(run_dir), "code": Code()}, run_dir / "checkpoint.pt")
    flags = {"env_id": "toy_envs:Terminates-v0", flag: str(run_dir)}
    assert "is damaged" in refuses(script, capsys, monkeypatch, **flags)
    assert not (tmp_path / "made").exists()


@OF_ONE
def test_a_checkpoint_of_another_user_is_refused(script, capsys, monkeypatch, trained):
    def load(file, weights_only):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(torch, "load", load)
    line = refuses(script, capsys, monkeypatch, resume=str(trained))
    assert "cannot read" in line and "Permission denied" in line and "damaged" not in line


@OF_ONE
@pytest.mark.parametrize(
    "flags, told",
    [
        (["--frobnicate", 1], "--frobnicate"),
        (["--num-workers", "two"], "--num-workers"),
        (["--env-id", "CartPole-v99"], "a3c.py: error: --env-id CartPole-v99"),
        (["--resume", "nowhere"], "a3c.py: error: nowhere"),
        (["--evaluate", "nowhere"], "a3c.py: error: nowhere"),
    ],
)
def test_a_command_line_that_cannot_work_makes_no_run(script, launch, flags, told):
    run = launch(script, *flags)
    code, out, err = run.ends()
    assert code == 2 and told in err
    assert not (run.cwd / "runs").exists() and "Traceback" not in out + err
    if "error: " in told:
        assert len(err.splitlines()) == 1


def test_help_of_every_flag_is_its_own(script, capsys):
    """A comment that ruff has moved from its field's line would be the section's above."""
    with pytest.raises(SystemExit):
        tyro.cli(script.Args, args=["--help"])
    text = " ".join(capsys.readouterr().out.replace("│", "").split())
    assert "(default: 5)" in text
    assert not re.search(r"(Run|Algorithm|Optimizer|Checkpoints and evaluation) \(default", text)


def test_every_flag_has_a_help(script, capsys):
    """tyro does not find a comment that ruff has moved into parentheses."""
    with pytest.raises(SystemExit):
        tyro.cli(script.Args, args=["--help"])
    text = " ".join(capsys.readouterr().out.replace("│", "").split())
    flags = re.findall(r"--[\w-]+ (?:STR|INT|FLOAT|\{[\w,]+\}) (.{9})", text)
    assert len(flags) >= len(fields(script.Args)) - 1  # --capture-video takes no value
    assert "(default:" not in flags
