"""The five files share their text: what is the same is the same to the byte, in the same order.

Neighbours differ by little more than the algorithm.
"""

import ast
import itertools
import subprocess

import pytest
from conftest import ROOT, SCRIPTS

# Where a definition is not the same in all files that have it: its groups of equal copies, in
# reading order.
ONE_STEP, VALUES = {"onestep_q_async", "sarsa_async"}, {*SCRIPTS[:3]}
EACH = [{name} for name in SCRIPTS]
BY_OUTPUTS = [VALUES, {"a3c", "a2c"}]
BUT_A2C = [{*SCRIPTS} - {"a2c"}, {"a2c"}]
BY_METHOD = [VALUES, {"a3c"}, {"a2c"}]
DIFFERENT = {
    "docstring": EACH,
    "rest": BUT_A2C,
    "header": BUT_A2C,
    "Args": [ONE_STEP, {"nstep_q_async"}, {"a3c"}, {"a2c"}],
    "ImageNetwork": BY_OUTPUTS,
    "FlatNetwork": BY_OUTPUTS,
    "make_network": BY_OUTPUTS,
    "act": BY_METHOD,
    "Shared": BY_METHOD,
    "run_worker": BUT_A2C,
    "worker": [{"onestep_q_async"}, {"sarsa_async"}, {"nstep_q_async"}, {"a3c"}],
    "evaluate": BUT_A2C,
    "BOUNDS": BY_METHOD,
    "validate_args": BUT_A2C,
    "choose_defaults": BY_METHOD,
    "start_workers": BUT_A2C,
    "main": BUT_A2C,
}
ORDER = """
docstring SCRIPT Args choose_defaults
UnsupportedEnvironment Atari resize is_image make_env preprocess
ImageNetwork FlatNetwork Network make_network action_rng act
Shared share Buffers step_environments WorkerLost Environments
sample_final_epsilon anneal_epsilon
one_step_targets n_step_returns q_loss actor_critic_loss clip_grads
worker Segment play_segments coordinator
seed_generators interrupt prepare_worker end_children limit_cleanup run_worker
WorkerLog Recorder StopSignals save_checkpoint load_checkpoint evaluate
show warn flush_output bad_input BOUNDS validate_args prepare_run
start_run claim_run lock load_params make_buffers start_workers watch num_cores finish_run main
""".split()
# Lines that git counts as added or removed, at most.
BUDGETS = {
    ("onestep_q_async", "sarsa_async"): 40,
    ("sarsa_async", "nstep_q_async"): 70,
    ("nstep_q_async", "a3c"): 195,
    ("a3c", "a2c"): 490,
}


def definitions(name: str) -> dict[str, str]:
    """The text of a file by top-level name; statements without a name are one entry."""
    lines = (ROOT / f"{name}.py").read_text().splitlines(keepends=True)
    texts, rest = {}, []
    for index, node in enumerate(ast.parse("".join(lines)).body):
        start = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        key = "docstring" if index == 0 else getattr(node, "name", None)
        if isinstance(node, ast.Assign):
            key = ast.unparse(node.targets[0])
        text = "".join(lines[start - 1 : node.end_lineno])
        texts |= {key: text} if key else {}
        rest += [] if key else [text]
    header = "".join(line for line in lines if line[0] == "#")
    return {**texts, "rest": "".join(rest), "header": header}


def test_what_is_the_same_is_the_same_to_the_byte():
    files = {name: definitions(name) for name in SCRIPTS}
    wrong = []
    for key in sorted({key for texts in files.values() for key in texts}):
        groups = {}
        for name, texts in files.items():
            groups.setdefault(texts.get(key), set()).add(name)
        groups.pop(None, None)
        same = [set().union(*groups.values())]
        if [*groups.values()] != DIFFERENT.get(key, same):
            wrong.append(key)
    assert not wrong


def test_the_files_have_the_same_order():
    for name in SCRIPTS:
        keys = [key for key in definitions(name) if key not in ("rest", "header")]
        assert keys == [key for key in ORDER if key in keys]


@pytest.mark.parametrize("pair", [*itertools.pairwise(SCRIPTS)])
def test_neighbours_differ_by_few_lines(pair):
    files = [ROOT / f"{name}.py" for name in pair]
    command = ["git", "diff", "--no-index", "--numstat", *files]
    added, removed, *_ = subprocess.run(command, capture_output=True, text=True).stdout.split()
    assert 0 < int(added) + int(removed) <= BUDGETS[pair]
