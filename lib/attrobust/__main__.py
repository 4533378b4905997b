"""Command line: `python -m attrobust reproduce | figures | data | parameters`. The Makefile's lines are these."""

import os
import signal
import sys

import click
import yaml

from attrobust import __version__, data, paths, reproduce


def _value(text: str) -> object:
    return yaml.safe_load(text)


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
@click.option("--jobs", default=0, show_default=True, help="Worker processes; 0 for one per core.")
@click.option("--fresh", is_flag=True, help="Forget what an interrupted run left.")
@click.option("--update", is_flag=True, help="Replace committed rows, figures and outputs by the new ones.")
@click.option("-p", "pairs", nargs=2, multiple=True, metavar="NAME VALUE", help="Change a parameter.")
def _reproduce(profile: str, only: str, jobs: int, fresh: bool, update: bool, pairs: tuple) -> None:
    """Run notebooks from an empty store and compare their claims with the committed ones."""
    overrides = {name: _value(value) for name, value in pairs}
    same = reproduce.reproduce(
        profile_name=profile, only=only, jobs=jobs, fresh=fresh, update=update, overrides=overrides, say=click.echo
    )
    if not same and profile == "cpu" and not overrides and not update:
        click.echo("note: some verdicts differ from the committed ones; see the lines marked ≠")


@main.command("figures")
@click.option("--only", default="", help="Numbers of notebooks, such as 03 or 01,03.")
@click.option("--rewrite", is_flag=True, help="Refresh the notebooks' stored outputs too.")
def _figures(only: str, rewrite: bool) -> None:
    """Draw every figure again from committed rows."""
    reproduce.redraw(only=only, rewrite=rewrite, say=click.echo)


@main.command("data")
@click.argument("names", nargs=-1)
@click.option("--yes", is_flag=True, help="Download without asking.")
def _data(names: tuple[str, ...], yes: bool) -> None:
    """Download data sets (default: fashion_mnist) into data/, with pinned digests."""
    for name in names or ("fashion_mnist",):
        if data.available(name):
            data.load(name)
            click.echo(f"{name}: present and verified")
            continue
        size = data.download_size(name) / 1e6
        if not yes and not click.confirm(f"{name}: download {size:.0f} MB into {paths.data}?"):
            click.echo(f"{name}: nothing downloaded")
            continue
        data.fetch(name)
        click.echo(f"{name}: downloaded and verified")


@main.command("parameters")
def _parameters() -> None:
    """List every notebook's parameters with their meaning."""
    for path in reproduce.numbered():
        click.echo(path.stem)
        for name, help_text in reproduce.parameters_of(path).items():
            click.echo(f"  {name:<18}{help_text}")


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
    except (ValueError, data.DataError, reproduce.NotebookError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    run()
