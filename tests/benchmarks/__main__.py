"""`python -m benchmarks`: measure everything, store the rows, write table and figures."""

from pathlib import Path

import click
import pandas as pd
import torch
from attrobust import paths
from tqdm import tqdm

from benchmarks import growth, memory, report, speed, stability, suite, sweeps, warm

PARTS = {
    "speed": speed.rows,
    "warm": warm.rows,
    "memory": memory.rows,
    "growth": growth.rows,
    "attacks": suite.rows,
    "stability": stability.rows,
    "sweeps": sweeps.rows,
}


@click.group(invoke_without_command=True, help=__doc__)
@click.option(
    "--only",
    default="",
    help="Measure these parts only, comma-separated: speed, warm, memory, growth, attacks, stability, sweeps.",
)
@click.option("--repetitions", default=3, show_default=True, help="Of every timing.")
@click.option("--out", default=None, type=click.Path(path_type=Path), help="Folder; figures/benchmarks by default.")
@click.pass_context
def main(context: click.Context, only: str, repetitions: int, out: Path | None) -> None:
    """Measure, store, draw."""
    if context.invoked_subcommand:
        return
    torch.set_num_threads(1)
    out = out or paths.figures / "benchmarks"
    out.mkdir(parents=True, exist_ok=True)
    for part, measure in PARTS.items():
        if only and part not in only.split(","):
            continue
        options = {"repetitions": repetitions} if part in ("speed", "growth", "attacks", "stability", "sweeps") else {}
        rows = []
        for row in tqdm(measure(**options), desc=part, unit=" rows"):
            rows.append(row)  # stored as they come: a run takes a while
            pd.DataFrame(rows).to_csv(out / f"rows_{part}.csv", index=False, float_format="%.6g", lineterminator="\n")
    report.write(out, {part: pd.read_csv(out / f"rows_{part}.csv") for part in PARTS})
    click.echo((out / "table.md").read_text())


@main.command()
@click.argument("network")
@click.argument("route")
def peak(network: str, route: str) -> None:
    """Print the MiB that one run of a route adds to this process."""
    torch.set_num_threads(1)
    click.echo(f"{memory.peak(network, route):.1f}")


if __name__ == "__main__":
    main()
