"""Writes a run's learning curve, from its TensorBoard events, as CSV to standard output.

    python benchmark/curve.py runs/NAME [--commit REV ...] >benchmark/results/NAME.csv

A comment block heads it: the commit, command and seed of the run, and the machine and versions that
this command is run with, so use it on the run's machine. A row is the mean over --bin agent steps.
The last steps, which do not fill a row, are left out. Where a run was killed and resumed from an
older checkpoint, the steps taken twice count once. --earlier takes the rows before a resume from
the CSV of the run's earlier part, whose events are no longer there.
"""

import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tyro
from provenance import commit, machine, read, versions
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


@dataclass
class Args:
    run_dir: tyro.conf.Positional[Path]
    """a run's folder"""
    commit: list[str] = field(default_factory=list)
    """commits that the run was made with, in order (default: the working tree's)"""
    bin: int = 50_000
    """agent steps to a row"""
    earlier: Path | None = None
    """CSV of the run up to where its events begin"""


def command(script: str, run_args: dict) -> str:
    """The command line that starts such a run."""
    flags = {
        f"--{name.replace('_', '-')}": value
        for name, value in run_args.items()
        if name not in ("resume", "log_dir")
    }
    words = [
        word
        for flag, value in flags.items()
        if value != "" and value is not False
        for word in (flag, str(value))
    ]
    return shlex.join(["python", f"{script}.py", *words])


def main(args: Args) -> None:
    run_args = json.loads((args.run_dir / "args.json").read_text())
    script = args.run_dir.name.split("__")[1]
    events = EventAccumulator(str(args.run_dir), size_guidance={"scalars": 0})
    events.Reload()
    # ε has a tag per worker, which would be sixteen columns.
    tags = [tag for tag in sorted(events.Tags()["scalars"]) if not tag.startswith("charts/epsilon")]
    columns = {tag: np.array([(e.step, e.value) for e in events.Scalars(tag)]) for tag in tags}

    first = int(min(column[0, 0] for column in columns.values()))
    begun = first // args.bin * args.bin
    header = {
        "machine": machine(),
        "versions": versions(),
        "commit": " then ".join(args.commit or [commit()]),
        "command": command(script, run_args) + f"; resumed at agent step {begun:,}" * bool(begun),
        "seed": run_args["seed"],
        "written by": f"python benchmark/curve.py runs/NAME --bin {args.bin}",
    }
    rows_before = []
    if args.earlier:
        before, rows_before = read(args.earlier)
        header["command"] = before["command"]
        for name in "machine", "versions", "commit":
            if header[name] not in before[name].split(" then "):
                header[name] = f"{before[name]} then {header[name]}"
            else:
                header[name] = before[name]
        header["written by"] += " --earlier curve.csv"

    for name, value in header.items():
        print(f"# {name}: {value}")
    print("step,episodes," + ",".join(tags))
    for row in rows_before:
        if int(row["step"]) <= begun:
            print(",".join(row.get(name, "") for name in ("step", "episodes", *tags)))
    end = int(max(column[-1, 0] for column in columns.values()))
    for low in range(begun, end - args.bin + 1, args.bin):
        rows = {
            tag: c[(c[:, 0] > low) & (c[:, 0] <= low + args.bin), 1] for tag, c in columns.items()
        }
        means = (f"{values.mean():.6g}" if len(values) else "" for values in rows.values())
        print(f"{low + args.bin},{len(rows['charts/episodic_return'])},{','.join(means)}")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
