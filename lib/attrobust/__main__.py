"""Command line: `python -m attrobust reproduce | figures | data | parameters`. The Makefile's lines are these.

Here stand the options and their help; what a command does stands in `commands`, which is imported when one runs:
help, a misspelt option and a shell's completion need neither torch nor the machinery of notebooks.
"""

import os
import signal
import sys

import click

from attrobust import __version__


def _run(command: str, **options: object) -> None:
    from attrobust import commands

    try:
        getattr(commands, command)(**options, say=click.echo)
    except commands.ERRORS as error:
        sys.exit(f"error: {error}")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Recompute, redraw and inspect the notebooks of attrobust."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")
    os.environ.setdefault("JUPYTER_PLATFORM_DIRS", "1")


@main.command("reproduce")
@click.option("--profile", default="cpu", show_default=True, help="smoke, cpu, full or gpu.")
@click.option("--only", default="", help="Numbers of notebooks, such as 03 or 01,03.")
@click.option("--jobs", default=0, show_default=True, help="Worker processes; 0 for the profile's, or one per core.")
@click.option("--fresh", is_flag=True, help="Forget what an interrupted run left.")
@click.option("--update", is_flag=True, help="Replace committed rows, figures and outputs by the new ones.")
@click.option("-p", "pairs", nargs=2, multiple=True, metavar="NAME VALUE", help="Change a parameter.")
def _reproduce(**options: object) -> None:
    """Run notebooks from an empty store and compare their claims with the committed ones."""
    _run("recompute", **options)


@main.command("figures")
@click.option("--only", default="", help="Numbers of notebooks, such as 03 or 01,03.")
@click.option("--rewrite", is_flag=True, help="Refresh the notebooks' stored outputs too.")
def _figures(**options: object) -> None:
    """Draw every figure again from committed rows."""
    _run("redraw", **options)


@main.command("data")
@click.argument("names", nargs=-1)
@click.option("--yes", is_flag=True, help="Download without asking.")
def _data(**options: object) -> None:
    """Download data sets (default: fashion_mnist) into data/, with pinned digests."""
    _run("download", ask=click.confirm, **options)


@main.command("parameters")
def _parameters() -> None:
    """List every notebook's parameters with their type and meaning."""
    _run("parameters")


def _stop(number: int, _: object) -> None:
    """Leave at once: kernels and workers notice that they are alone, and what they finish meanwhile is kept."""
    click.echo("interrupted; the same command resumes where it stopped", err=True)
    os._exit(128 + number)


def run() -> None:
    """Entry point: errors of ours end in one sentence and exit status 1, without a traceback."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        main(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit("stopped")
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)


if __name__ == "__main__":
    run()
