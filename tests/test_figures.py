"""The figures and the tables show the data in the repository."""

import csv
import importlib
import json
import re
import subprocess
import sys

import numpy as np
from conftest import ROOT

SCREENING = ROOT / "benchmark" / "results" / "screening"


def test_figures_are_drawn_from_the_data_as_it_is():
    command = [sys.executable, "benchmark/plot.py", "--check"]
    check = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert check.returncode == 0, check.stderr


def returns(game, run):
    """The returns of a run with seed 1, as the table in docs/learning.md writes them."""
    text = (SCREENING / f"{game}_{run}_1.csv").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    by_step = {int(row["step"]): float(row["return"]) for row in csv.DictReader(lines)}
    steps = (500_000, 1_000_000, 1_500_000)
    return [f"{by_step[step]:.1f}".replace("-", "−") for step in steps]


def test_the_table_of_the_screening_is_that_of_its_files():
    text = (ROOT / "docs" / "learning.md").read_text()
    rows = re.findall(r"^\| \[.*/Breakout_(.*)_1\.csv\) \| (.*) \|$", text, re.MULTILINE)
    assert len(rows) == 12
    for run, cells in rows:
        assert cells.split(" | ") == returns("Breakout", run) + returns("Pong", run)


def units_at_the_end(name):
    """The cells of each run's last row, by its settings, as docs/value_methods.md writes them."""
    lines = (ROOT / "benchmark" / "results" / name).read_text().splitlines()
    last = {}
    for row in csv.DictReader(line for line in lines if not line.startswith("#")):
        *settings, _, conv1, conv2, hidden, spread = row.values()
        shares = [f"{100 * float(share):.0f} %" for share in (conv1, conv2, hidden)]
        last[tuple(settings)] = [*shares, f"{float(spread):.2f}"]
    return last


def test_the_table_of_centred_images_is_that_of_its_files():
    raw, centred = units_at_the_end("dead_units.csv"), units_at_the_end("centred_images.csv")
    expected = []
    for settings, measured in centred.items():
        for image, cells in ("as it is", raw[settings]), ("without its mean", measured):
            expected.append(f"| {' | '.join([settings[0] + '.py', image, *cells])} |")
    text = (ROOT / "docs" / "value_methods.md").read_text()
    assert re.findall(r"^.* \| (?:as it is|without its mean) \| .*", text, re.MULTILINE) == expected


def test_the_table_of_dead_units_is_that_of_its_file():
    last = units_at_the_end("dead_units.csv")
    expected = []
    for (script, _, *settings), measured in sorted(last.items(), key=lambda item: item[0][0]):
        expected.append(f"| {' | '.join([f'{script}.py', *settings, *measured])} |")

    text = (ROOT / "docs" / "value_methods.md").read_text()
    assert re.findall(r"^\| \w+\.py \| [\d.]+e.*", text, re.MULTILINE) == expected


def test_the_table_of_healthy_runs_is_that_of_their_curves():
    text = (ROOT / "docs" / "running.md").read_text()
    rows = re.findall(
        r"^\| \[(\w+)\.py, .*\]\(\.\./(.*curve\.csv)\) \| (.*) \|$", text, re.MULTILINE
    )
    assert {path for _, path, _ in rows} == {
        str(file.relative_to(ROOT)) for file in ROOT.glob("benchmark/results/*/curve.csv")
    }
    for script, path, cells in rows:
        lines = [line for line in (ROOT / path).open() if not line.startswith("#")]
        by_step = {row["step"]: row["charts/episodic_return"] for row in csv.DictReader(lines)}
        values = [by_step.get(f"{step}0000") for step in (25, 50, 100, 150, 200, 300)]
        expected = [f"{float(value):.1f}".replace("-", "−") if value else "" for value in values]
        assert script in path and cells.split(" | ") == expected


def stays_above(returns, level):
    """The step in millions from which on all returns, by step, are above the level."""
    below = [index for index, value in enumerate(returns.values()) if value <= level]
    return f"{int([*returns][below[-1] + 1]) / 1e6:g}"


def test_the_table_of_images_without_their_median_is_that_of_the_curves():
    text = (ROOT / "docs" / "learning.md").read_text()
    rows = re.findall(
        r"^\| (a[23]c)\.py, .*\]\(\.\./(.*\.csv)\) \| (.*) \| (.*) \| (.*) \|$", text, re.MULTILINE
    )
    files = [
        file
        for pattern in ("images_as_they_are/pong_*.csv", "PongNoFrameskip-v4__a?c__*/curve.csv")
        for file in ROOT.glob(f"benchmark/results/{pattern}")
    ]
    assert {path for _, path, *_ in rows} == {str(file.relative_to(ROOT)) for file in files}
    for script, path, *cells in rows:
        lines = [line for line in (ROOT / path).read_text().splitlines() if line[0] != "#"]
        returns = {
            row["step"]: float(row["charts/episodic_return"])
            for row in csv.DictReader(lines)
            if row["charts/episodic_return"]
        }
        after_1M = f"{returns['1000000']:.1f}".replace("-", "−")
        assert script in path
        assert cells == [after_1M, stays_above(returns, 0), stays_above(returns, 10)]


def test_the_table_of_the_runs_on_qbert_is_that_of_their_curves():
    text = (ROOT / "docs" / "learning.md").read_text()
    header, table = re.search(r"^(\| \| images as they are .*)\n((?:\|.*\n)+)", text, re.M).groups()
    paths = re.findall(r"\]\(\.\./(.*?\.csv)\)", header)
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()]
    assert len(paths) == 2
    for column, path in enumerate(paths, start=1):
        lines = [line for line in (ROOT / path).open() if not line.startswith("#")]
        returns = {
            int(row["step"]): float(row["charts/episodic_return"])
            for row in csv.DictReader(lines)
            if row["charts/episodic_return"]
        }
        last_million = [value for step, value in returns.items() if step > 9_000_000]
        expected = [f"{returns[step]:,.0f}" for step in (3_000_000, 5_000_000, 7_000_000)]
        expected.append(f"{sum(last_million) / len(last_million):,.0f}")
        expected.append(f"{stays_above(returns, 3882)} million")
        assert [row[column] for row in rows[1:6]] == expected


def test_the_results_in_the_readme_are_those_of_the_evaluation():
    lines = (ROOT / "benchmark" / "results" / "evaluation.csv").read_text().splitlines()
    expected = {}
    for row in csv.DictReader(line for line in lines if not line.startswith("#")):
        env_id, script, seed = row["run"].split("__")
        name = f"{script}.py, {env_id.removesuffix('NoFrameskip-v4')}"
        name += "" if seed == "1" else f", seed {seed}"
        module = importlib.import_module(script)
        args = json.loads((ROOT / "benchmark" / "results" / row["run"] / "args.json").read_text())
        if args["rms_alpha"] != module.choose_defaults(module.Args(), images=True).rms_alpha:
            name += f", `--rms-alpha {args['rms_alpha']}`"
        returns = np.array(row["returns"].split(), dtype=float)
        digits = 1 if env_id.startswith("Pong") else 0
        mean, std = f"{returns.mean():.{digits}f}", f"{returns.std():.{digits}f}"
        expected[name] = [f"{int(row['steps']) / 1e6:.2f}M", f"{mean} ± {std}"]

    text = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| (\w+\.py, .*?) \| (.*?) \| (.*?) \|", text, re.MULTILINE)
    assert {name: cells for name, *cells in rows} == expected
