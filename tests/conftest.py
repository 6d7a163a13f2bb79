"""What the tests share: the scripts, a run in this process, and a run as a process of its own.

It imports the packages of requirements.txt only where they are used: test_copies.py needs none.
"""

import contextlib
import importlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

os.environ.setdefault("GOMP_SPINCOUNT", "0")  # tests run beside others
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # with a GPU, PyTorch forbids a fork after autograd

TESTS = Path(__file__).parent
ROOT = TESTS.parent
VALUE_METHODS = ["onestep_q_async", "sarsa_async", "nstep_q_async"]
SCRIPTS = [*VALUE_METHODS, "a3c", "a2c"]  # in reading order
# Slow tests of code that all files share (test_copies.py) run with these scripts only.
FEW = ["nstep_q_async", "a3c", "a2c"]
OF_FEW = pytest.mark.parametrize("script", FEW, indirect=True)
OF_TWO = pytest.mark.parametrize("script", ["a3c", "a2c"], indirect=True)
OF_ONE = pytest.mark.parametrize("script", ["a3c"], indirect=True)
SPAWNED = [
    pytest.param(name, method, marks=pytest.mark.slow)
    for name in ("a3c", "a2c")
    for method in ("spawn", "forkserver")
]
PROCESSES = [(name, "fork") for name in FEW] + SPAWNED
# Under spawn, __main__ would be imported again: a command has none to import.
WITH_METHOD = """import multiprocessing, sys, tyro, {0} as script
multiprocessing.set_start_method(sys.argv.pop(1))
script.main(tyro.cli(script.Args))"""

sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session", params=SCRIPTS)
def script(request):
    return importlib.import_module(request.param)


def train(script, log_dir, code=0, env_id="toy_envs:Terminates-v0", num_workers=2, **flags) -> Path:
    """Trains in this process, which saves the imports; returns the only run folder in log_dir."""
    ended = 0
    try:
        script.main(
            script.Args(env_id=env_id, num_workers=num_workers, log_dir=str(log_dir), **flags)
        )
    except SystemExit as stop:
        ended = stop.code
    assert ended == code
    (run_dir,) = Path(log_dir).iterdir()
    return run_dir


@pytest.fixture(scope="session")
def trained(script, tmp_path_factory) -> Path:
    """The folder of a finished run: copy it before you change it."""
    flags = {"target_interval": 500} if script.__name__ in VALUE_METHODS else {}
    return train(
        script, tmp_path_factory.mktemp("trained"), total_timesteps=4000, gamma=0.9, **flags
    )


def checkpoint(run_dir: Path, name: str = "checkpoint.pt") -> dict:
    import torch

    return torch.load(run_dir / name, weights_only=True)


def same(one: dict, other: dict) -> bool:
    """Whether two dicts of tensors are equal bit for bit."""
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def scalars(run_dir: Path, tag: str) -> list[tuple[int, float]]:
    """What TensorBoard shows of a tag: its own reader hides what precedes a restart."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(run_dir), {"tensors": 0}).Reload()
    return [(event.step, make_ndarray(event.tensor_proto).item()) for event in events.Tensors(tag)]


def wait_for(condition, seconds: float = 120):
    """What the condition returns, once that is true."""
    end = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < end, f"not true within {seconds} seconds"
        time.sleep(0.02)
    return result


class Run:
    """A script that runs in cwd, in a process group of its own, with its workers.

    It is forked from this process, which saves the imports, unless another start method is wanted.
    """

    ended = False

    def __init__(self, script, flags: list[str], cwd: Path, method: str | None, background: bool):
        self.cwd, self.started, self.argv = cwd, cwd / "started", [script.__file__, *flags]
        self.started.mkdir(exist_ok=True)
        self.out, self.err = (cwd / f"{time.monotonic_ns()}.{name}" for name in ("out", "err"))
        self.out.touch()
        self.err.touch()
        if method in ("spawn", "forkserver"):
            path = os.pathsep.join([str(ROOT), str(TESTS)])
            env = {**os.environ, "PYTHONPATH": path, "TOY_DIR": str(self.started)}
            command = [sys.executable, "-c", WITH_METHOD.format(script.__name__), method, *flags]
            with self.out.open("w") as out, self.err.open("w") as err:
                self.process = subprocess.Popen(
                    command, cwd=cwd, env=env, stdout=out, stderr=err, start_new_session=True
                )
        else:
            context = multiprocessing.get_context("fork")
            self.process = context.Process(target=self.run, args=(background,))
            self.process.start()
        self.pid = self.process.pid

    def run(self, background: bool) -> None:
        """In the child: what `python script.py flags` does after the imports.

        With background, what a shell does that ignores SIGINT in commands that end with &.
        """
        import torch

        torch.set_num_threads(1)
        torch.set_num_threads = lambda number: None  # a thread pool does not survive a fork
        os.setsid()
        if background:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.chdir(self.cwd)
        os.environ["TOY_DIR"] = str(self.started)
        for number, file in (1, self.out), (2, self.err):
            os.dup2(os.open(file, os.O_WRONLY), number)
        sys.stdin, sys.stdout, sys.stderr = open(os.devnull), open(1, "w"), open(2, "w")
        sys.argv = self.argv
        runpy.run_path(self.argv[0], run_name="__main__")

    @property
    def returncode(self) -> int | None:
        if isinstance(self.process, subprocess.Popen):
            return self.process.poll()
        return self.process.exitcode

    def workers(self, number: int = 2) -> list[int]:
        """Process ids of the workers, once all of them have reported, by a file, that they play."""
        if self.argv[0].endswith("a2c.py"):
            number = min(number, len(os.sched_getaffinity(0)))
        wait_for(lambda: len(list(self.started.iterdir())) == number or self.returncode is not None)
        assert self.returncode is None, self.err.read_text()
        return [int(file.name) for file in self.started.iterdir()]

    def ends(self, seconds: float = 120) -> tuple[int, str, str]:
        """Exit code, stdout and stderr, once no process of the group is left."""
        wait_for(lambda: self.returncode is not None, seconds)
        wait_for(lambda: not self.alive(), 10)
        self.ended = True
        return self.returncode, self.out.read_text(), self.err.read_text()

    def alive(self) -> list[int]:
        """The processes of the group, which a worker does not leave when its parent dies."""
        pids = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
                pids += [int(stat.parent.name)] if int(group) == self.pid and state != "Z" else []
        return pids

    @property
    def run_dir(self) -> Path:
        (run_dir,) = (self.cwd / "runs").iterdir()
        return run_dir


@pytest.fixture
def launch(tmp_path):
    """Starts a script as a process; kills what a failed test leaves of it."""
    runs = []

    def start(script, *flags, method=None, background=False):
        runs.append(Run(script, [*map(str, flags)], tmp_path, method, background))
        return runs[-1]

    yield start
    for run in (run for run in runs if not run.ended):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
