"""What the pages show works: links lead somewhere, and commands and Python code run as they stand.

A command runs in a copy of the repository, with a flag that shortens it where it takes long. If a
command cannot run here, its flags are passed to the script's own parser.
"""

import dataclasses
import functools
import importlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import tyro
from conftest import ROOT, SCRIPTS, Run, train

sys.path += [str(ROOT / "benchmark"), str(ROOT / "benchmark" / "studies")]
import curve
import dead_units
import variants

# What is added to the commands that begin so, to shorten them. The first that fits counts.
RUN = {
    r"python \w+\.py --help": "",
    r"python \w+\.py .*--evaluate": "--eval-episodes 1",
    r"python \w+\.py": "--total-timesteps {soon}",  # 200 steps later
    r"python benchmark/(curve|gif|plot)\.py": "",
    r"python benchmark/evaluate\.py": "--eval-episodes 1",
    r"python benchmark/studies/screening\.py": "--run defaults --stop-after 100",
    r"python -m pytest": "--collect-only tests/test_copies.py",
    r"tensorboard --logdir": "--inspect",  # instead of serving
    r"git diff --no-index": "",
    r"(cp|mkdir) ": "",
}
# Why others do not run. Their flags, and the files that they name, are checked.
CHECK = {
    r"(pip install|git clone)": "needs the network",
    r"uv run": "needs uv and the network",
    r"(ruff|mypy) ": "CI runs them",
    r"python benchmark/(speed|processes)\.py": "needs an idle machine",
    r"python benchmark/studies/(?!screening)\w+\.py": "the same",
    r"python benchmark/cartpole\.py": "trains fifteen times",
    r"\w+\.py --": "a script's flags, such as those for a GPU",
}
NEEDS_PACKAGE = {r"python benchmark/plot\.py": "matplotlib", r"python benchmark/gif\.py": "PIL"}
NEEDS_COMMAND = {r"python benchmark/gif\.py": "python a3c.py --evaluate runs/NAME --capture-video"}
# What the capitals stand for. NAME is as in benchmark/README.md, and a script's small run.
NAME = "CartPole-v1__{script}__1"
PLACEHOLDERS = {
    "SCRIPT": "{script}",
    "NAME": NAME,
    "FLAGS": "--env-id CartPole-v1",
    "PATH": shlex.quote(sys.executable),
    "VIDEO": f"runs/{NAME}/videos/rl-video-episode-0",
    "GAME": "cartpole",
}
# The same for Python code.
SHORTER = {
    "class Corridor(gym.Env): ...": "from toy_envs import Count as Corridor",
    "total_timesteps=100_000": "total_timesteps=1000",
    'Args(env_id="CartPole-v1")': 'Args("CartPole-v1", num_workers=2, total_timesteps=200)',
    "NAME": NAME.format(script="a3c"),
}
FLAGS_OF_OTHERS = {
    "--check": "benchmark/plot.py",
    "--cpus": "docker run",
    "--cpuset-cpus": "docker run",
    "--depth": "git clone",
    "--shm-size": "docker run",
    "--use-proper-time-limits": "ikostrikov/pytorch-a2c-ppo-acktr-gail",
}

PAGES = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "benchmark/README.md"]
PAGES += sorted(page.relative_to(ROOT).as_posix() for page in ROOT.glob("docs/**/*.md"))
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?<=\n\n)(?: {4}.*\n)+")
SHELLS = "", "sh", "bash", "shell", "console"
IN_A_SENTENCE = re.compile(
    r"(python3?|pip3?|pytest|uvx?|git|tensorboard|ruff|mypy|cp|mkdir|docker) |\w+\.py --"
)


def fenced(page: str) -> list[tuple[str, str]]:
    """Language and text of the blocks between backticks."""
    return FENCED.findall((ROOT / page).read_text())


def unfenced(page: str) -> str:
    return FENCED.sub("", (ROOT / page).read_text())


def prose(page: str) -> str:
    return INDENTED.sub("", unfenced(page))


def spans(page: str) -> list[str]:
    """The code in sentences and tables."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def commands(page: str) -> Iterator[tuple[str, list[str]]]:
    """Each command, and those before it in its block. Redirections are left out."""
    blocks = [text for language, text in fenced(page) if language in SHELLS]
    blocks += INDENTED.findall(unfenced(page))
    blocks += [span for span in spans(page) if IN_A_SENTENCE.match(span)]
    for block in blocks:
        parts = re.split(r"&&|\n", block.replace("\\\n", " "))
        parts = [re.sub(r" (>|# ).*", "", part).strip() for part in parts if part.strip()]
        yield from ((part, parts[:index]) for index, part in enumerate(parts))


def all_commands() -> dict[str, tuple[str, list[str]]]:
    """Each command once, with the page that has it first, and those before it in its block."""
    found = {}
    for page in PAGES:
        for command, before in commands(page):
            found.setdefault(command, (page, before))
    return found


def programs_and_excerpts() -> tuple[list, list]:
    """Code that imports is a program of its own, other code an excerpt of a script."""
    programs, excerpts = [], []
    for page in PAGES:
        for language, code in fenced(page):
            if language == "python" and "gym.register(" not in code:
                param = pytest.param(code, id=f"{page}: {code.splitlines()[0]}")
                (programs if "import " in code else excerpts).append(param)
    return programs, excerpts


def shortened(code: str) -> str:
    return functools.reduce(lambda code, item: code.replace(*item), SHORTER.items(), code)


def filled(command: str, script: str) -> str:
    """The command with what its capitals stand for."""
    capitals = "|".join(PLACEHOLDERS)
    text = re.sub(rf"\b({capitals})\b", lambda match: PLACEHOLDERS[match[1]], command)
    return text.format(script=script)


def first_match(table: dict[str, str], command: str) -> str | None:
    return next((value for start, value in table.items() if re.match(start, command)), None)


COMMANDS = all_commands()
PROGRAMS, EXCERPTS = programs_and_excerpts()
MY_ENVS = "\n".join(code for _, code in fenced("docs/environments.md") if "gym.register(" in code)


class Command(Run):
    """`python file flags` in cwd, forked as Run is."""

    def __init__(self, file: str, flags: list[str], cwd: Path):
        super().__init__(SimpleNamespace(__file__=str(cwd / file)), flags, cwd, None, False)

    def run(self, background: bool) -> None:
        # Modules come from the copy, not from the repository.
        folders = {str(ROOT), str(ROOT / "benchmark"), str(ROOT / "benchmark" / "studies")}
        sys.path = [path for path in sys.path if path not in folders]
        sys.path.insert(0, str(Path(self.argv[0]).parent))
        for name, module in [*sys.modules.items()]:
            if os.path.dirname(getattr(module, "__file__", None) or "") in folders:
                del sys.modules[name]
        super().run(background)


def run(words: list[str], cwd: Path) -> str:
    """What a command prints; it has to succeed."""
    if words[0] == "python" and words[1].endswith(".py"):
        command = Command(words[1], words[2:], cwd)
        try:
            code, out, err = command.ends(300)
        finally:
            if not command.ended:
                os.killpg(command.pid, signal.SIGKILL)
    else:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        env = {**os.environ, "PATH": path}
        done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
        code, out, err = done.returncode, done.stdout, done.stderr
    if words[0] == "git":
        assert out and code == 1, err  # it has found differences
    else:
        assert code == 0, f"{shlex.join(words)}\n{out}{err}"
    return out


def check(words: list[str]) -> None:
    """Files exist, a script's parser takes its flags, and a version is that of requirements.txt."""
    pins = (ROOT / "requirements.txt").read_text().split()
    for index, word in enumerate(words):
        assert not word.endswith((".py", ".txt")) or (ROOT / word).exists(), word
        assert "==" not in word or word in pins, word
        if word.endswith(".py"):
            args = getattr(importlib.import_module(Path(word).stem), "Args", None)
            flags = words[index + 1 :]
            assert tyro.cli(args, args=flags) if args else not flags


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """Gives the folder of a script's short run, which has two checkpoints."""

    @functools.cache
    def make(name: str) -> Path:
        script, folder = importlib.import_module(name), tmp_path_factory.mktemp(name)
        run_dir = train(script, folder, env_id="CartPole-v1", total_timesteps=600)
        train(script, folder, env_id="CartPole-v1", total_timesteps=1000, resume=str(run_dir))
        return run_dir

    return make


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A fresh copy of the repository without the trained networks, and with a reader's my_envs."""
    ignored = shutil.ignore_patterns("__pycache__", "checkpoint.pt", "*.gif")
    for name in "benchmark", "docs", "tests":
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    for pattern in "*.py", "*.md", "*.txt", "*.toml":
        for file in ROOT.glob(pattern):
            shutil.copy(file, tmp_path)
    (tmp_path / "my_envs.py").write_text(shortened(MY_ENVS))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [pytest.param(text, id=f"{page}: {text}") for text, (page, _) in COMMANDS.items()]
)
def test_a_command_runs_as_it_stands(command, checkout, small_run):
    script = next((name for name in SCRIPTS if f"{name}.py" in command), "a3c")
    if first_match(RUN, command) is None:
        assert first_match(CHECK, command), "a new kind of command: add it to RUN or to CHECK"
        check(shlex.split(filled(command, script)))
        return
    if package := first_match(NEEDS_PACKAGE, command):
        pytest.importorskip(package)

    _, before = COMMANDS[command]
    copies = [line for line in before if line.startswith(("cp ", "mkdir "))]
    needed = [line for start, line in NEEDS_COMMAND.items() if re.match(start, command)]
    for folder in ["benchmark/results"] if copies else ["benchmark/results", "runs"]:
        shutil.copytree(small_run(script), checkout / folder / NAME.format(script=script))
    for line in [*copies, *needed, command]:
        for network in ROOT.glob("benchmark/results/**/checkpoint.pt"):
            if network.parent.name in line:
                shutil.copy(network, checkout / network.parent.relative_to(ROOT))
        words, steps = shlex.split(filled(line, script)), 0
        if "--resume" in words:
            path = checkout / words[words.index("--resume") + 1]
            checkpoint, _ = importlib.import_module(script).load_checkpoint(str(path))
            steps = int(checkpoint["steps"].sum())
        added = first_match(RUN, line).format(soon=steps + 200)
        run([*words, *added.split()], checkout)


@pytest.mark.slow
@pytest.mark.parametrize("env_id", re.findall(r'gym\.register\("([^"]+)"', MY_ENVS))
def test_own_environment(env_id, checkout):
    flags = ["--env-id", f"my_envs:{env_id}", "--num-workers", "2", "--total-timesteps", "100"]
    run(["python", "a3c.py", *flags], checkout)


@pytest.mark.slow
@pytest.mark.parametrize("code", PROGRAMS)
def test_a_program_prints_what_the_page_says(code, checkout, small_run):
    shutil.copytree(small_run("a3c"), checkout / "runs" / NAME.format(script="a3c"))
    (checkout / "program.py").write_text(shortened(code))
    printed = run([sys.executable, "program.py"], checkout)  # not forked: it sets how to start
    for expected in re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE):
        assert expected in printed.splitlines()


@pytest.mark.parametrize("code", EXCERPTS)
def test_excerpt_is_in_a_script(code):
    lines = [line.strip() for line in code.splitlines() if line.strip()]
    for name in SCRIPTS:
        source = [line.strip() for line in (ROOT / f"{name}.py").open() if line.strip()]
        starts = range(len(source) - len(lines) + 1)
        if any(source[start : start + len(lines)] == lines for start in starts):
            return
    pytest.fail("no script has these lines in this order")


def flags_of(script: str) -> set[str]:
    args = importlib.import_module(script).Args
    return {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(args)}


def accepts(script: str, words: list[str]) -> bool:
    try:
        return bool(tyro.cli(importlib.import_module(script).Args, args=words))
    except SystemExit:
        return False


@pytest.mark.parametrize("page", PAGES)
def test_every_flag_on_a_page_exists(page):
    """A flag in a sentence or table is one of a script, which takes its value, if that is shown."""
    scripts = [*SCRIPTS, "curve", "evaluate", "gif", "processes", "screening", "speed"]
    for words in (span.split() for span in spans(page) if span.startswith("--")):
        flag = words[0].partition("=")[0]
        if flag not in FLAGS_OF_OTHERS:
            having = [script for script in scripts if flag in flags_of(script)]
            assert having, flag
            assert len(words) == 1 or any(accepts(script, words) for script in having), words


def test_hyperparameters_has_every_flag():
    listed = {span for span in spans("docs/hyperparameters.md") if span.startswith("--")}
    assert set().union(*map(flags_of, SCRIPTS)) <= listed


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    for link in re.findall(r'(?:\]\(|src=")([^)"\s]+)', prose(page)):
        path, _, anchor = link.partition("#")
        if "://" not in link:
            target = (ROOT / page).parent / path if path else ROOT / page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("variant", variants.VARIANTS, ids=lambda variant: variant[2])
def test_every_variant_fits_the_script(variant):
    """variants.py replaces texts of the scripts, which may have changed since."""
    script, _, _, replacements = variant
    compile(variants.rewrite(script, replacements), script, "exec")


def test_what_dead_units_replaces_is_there():
    for script, *_ in dead_units.RUNS:
        text = (ROOT / f"{script}.py").read_text()
        assert text.count(dead_units.SCALED) == 1
        assert text.count(dead_units.BACKGROUND) == 1
        assert text.count(dead_units.GAIN) == (script != "a3c")


def test_the_command_in_the_header_of_a_curve_starts_the_same_run(script):
    args = script.Args("CartPole-v1", seed=0, checkpoint_interval=0.0, rms_alpha=0.5)
    _, file, *words = shlex.split(curve.command(script.__name__, dataclasses.asdict(args)))
    assert file == f"{script.__name__}.py"
    assert tyro.cli(script.Args, args=words) == dataclasses.replace(args, log_dir="runs")
