"""The five files share their text: what is the same is the same to the byte, and neighbours differ by the algorithm."""

import ast
import itertools
import subprocess

import pytest
from conftest import ROOT, SCRIPTS

# Where a definition is not the same in all files that have it: its groups of equal copies, in reading order.
ONE_STEP, VALUE_METHODS = {"onestep_q_async", "sarsa_async"}, {"onestep_q_async", "sarsa_async", "nstep_q_async"}
DIFFERENT = {
    "docstring": [{name} for name in SCRIPTS],
    "Args": [ONE_STEP, {"nstep_q_async"}, {"a3c"}, {"a2c"}],
    "Network": [VALUE_METHODS, {"a3c"}, {"a2c"}],
    "Shared": [VALUE_METHODS, {"a3c", "a2c"}],
    "worker": [{name} for name in SCRIPTS],
    "check": [{*SCRIPTS} - {"a2c"}, {"a2c"}],
    "main": [{*SCRIPTS} - {"a2c"}, {"a2c"}],
}
ORDER = (
    "docstring, Args, Atari, make_env, Network, convolve, Shared, n_step_returns, worker, learner, bad_input, check, "
)
ORDER = f"{ORDER}load_checkpoint, evaluate, main".split(", ")
# Lines that git counts as added or removed, at most.
BUDGETS = {
    ("onestep_q_async", "sarsa_async"): 30,
    ("sarsa_async", "nstep_q_async"): 60,
    ("nstep_q_async", "a3c"): 95,
    ("a3c", "a2c"): 135,
}


def definitions(name: str) -> dict[str, str]:
    """The text of a file by top-level name; what has none (imports, constants, the guard) is one entry."""
    lines = (ROOT / f"{name}.py").read_text().splitlines(keepends=True)
    texts, rest = {}, []
    for index, node in enumerate(ast.parse("".join(lines)).body):
        start = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        key = "docstring" if index == 0 else getattr(node, "name", None)
        text = "".join(lines[start - 1 : node.end_lineno])
        texts |= {key: text} if key else {}
        rest += [] if key else [text]
    return {**texts, "rest": "".join(rest), "header": "".join(itertools.takewhile(lambda line: line[0] == "#", lines))}


def test_what_is_the_same_is_the_same_to_the_byte():
    files = {name: definitions(name) for name in SCRIPTS}
    for key in {key for texts in files.values() for key in texts}:
        groups = {}
        for name, texts in files.items():
            groups.setdefault(texts.get(key), set()).add(name)
        groups.pop(None, None)
        assert len(groups) == 1 or [*groups.values()] == DIFFERENT[key], key


def test_the_files_have_the_same_order():
    for name in SCRIPTS:
        keys = [key for key in definitions(name) if key not in ("rest", "header")]
        assert keys == [key for key in ORDER if key in keys]


@pytest.mark.parametrize("pair", [*itertools.pairwise(SCRIPTS)])
def test_neighbours_differ_by_few_lines(pair):
    command = ["git", "diff", "--no-index", "--numstat", *(ROOT / f"{name}.py" for name in pair)]
    added, removed, *_ = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    assert 0 < int(added) + int(removed) <= BUDGETS[pair]
    assert f"| {added} + {removed} |" in (ROOT / "README.md").read_text()  # as its table says


def test_readme_counts_the_lines():
    readme = (ROOT / "README.md").read_text()
    for name in SCRIPTS:
        lines = len((ROOT / f"{name}.py").read_text().splitlines())
        assert any(f"[{name}.py]" in line and f"| {lines} |" in line for line in readme.splitlines())
