"""Command line: `python -m attrobust audit | reproduce | merge | figures | data | parameters`, as the Makefile has it.

What a command works with is imported when it runs, so that help and a misspelt option are answered at once.
"""

import os
import signal
import sys
from collections.abc import Sequence

import click

from attrobust import __version__

#: Networks to try an audit on; what `audit.EXAMPLES` holds, which is imported when it runs.
EXAMPLES = ("digits", "photo", "vit", "vit-swapped")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Recompute, redraw and inspect the notebooks of attrobust."""
    for name in ("OMP_NUM_THREADS", "JUPYTER_PREFER_ENV_PATH", "JUPYTER_PLATFORM_DIRS"):
        os.environ.setdefault(name, "1")


@main.command("audit")
@click.option("--example", type=click.Choice(EXAMPLES), help="A network with pictures of its own, to try an audit on.")
@click.option("--model", default="", help="package.module:function, file.py:function, a folder of transformers.")
@click.option("--weights", default="", help="Checkpoint of it, .safetensors or a state dict .pt; read as data.")
@click.option("--pictures", default="", help="A file .npz, a folder of pictures, or one folder per class.")
@click.option("--train", default="", help="Training pictures with labels, to see whether training differently helps.")
@click.option("--out", default="audit", show_default=True, help="Folder for the report.")
@click.option("-p", "pairs", nargs=2, multiple=True, metavar="NAME VALUE", help="Change a parameter of the notebook.")
def _audit(*, example: str | None, out: str, pairs: Sequence[tuple[str, str]], **named: str) -> None:
    """Audit a classifier: how easily are its explanations manipulated? Without options, that of the digits."""
    from attrobust.audit import examples
    from attrobust.notebook import reproduce

    given = _parameters_of(pairs) | {name: value for name, value in named.items() if value}
    if example and "model" in given:
        raise ValueError(f"example is {example!r} beside model {given['model']!r}; an audit is of one: leave one out")
    given = examples.SUITED.get(example, {}) | given | ({"model": f"example:{example}"} if example else {})
    reproduce.audit(out=out, overrides=given, say=click.echo)


def _parameters_of(pairs: Sequence[tuple[str, str]]) -> dict[str, object]:
    """Parameters as `-p NAME VALUE` gives them; a ValueError where one is given twice."""
    from attrobust.notebook import reproduce

    if twice := {name for name, _ in pairs if [n for n, _ in pairs].count(name) > 1}:
        raise ValueError(f"parameter {min(twice)!r} is given twice; give it once")
    return {name: reproduce.parsed(name, value) for name, value in pairs}


@main.command("reproduce")
@click.option("--profile", default="cpu", show_default=True, help="smoke, cpu, full, gpu or headline.")
@click.option("--only", default="", help="Numbers of notebooks, such as 03 or 01,03.")
@click.option("--jobs", default=0, show_default=True, help="Worker processes; 0 for the profile's, or one per core.")
@click.option("--cluster", default="", help="A Dask scheduler, or ray: whose workers take the place of own ones.")
@click.option("--shard", default="", metavar="I/N", help="Compute part I of N, of machines without a common folder.")
@click.option("--fresh", is_flag=True, help="Forget what an interrupted run left.")
@click.option("--update", is_flag=True, help="Replace committed rows, figures and outputs by the new ones.")
@click.option("-p", "pairs", nargs=2, multiple=True, metavar="NAME VALUE", help="Change a parameter.")
def _reproduce(
    *, profile: str, cluster: str, shard: str, update: bool, pairs: Sequence[tuple[str, str]], **options: object
) -> None:
    """Run notebooks from an empty store and compare their claims with the committed ones."""
    from attrobust.experiments.shards import SHARD
    from attrobust.experiments.workers import CLUSTER
    from attrobust.notebook import reproduce

    # The notebooks run in processes of their own, which read these.
    os.environ |= {name: value for name, value in ((CLUSTER, cluster), (SHARD, shard)) if value}
    options |= {"overrides": _parameters_of(pairs), "update": update}
    same = reproduce.reproduce(profile_name=profile, **options, say=click.echo)
    if not same and profile == "cpu" and not pairs and not update:
        click.echo("note: some claims differ from the committed ones; see the lines marked ≠")


@main.command("merge")
@click.argument("folders", nargs=-1)
@click.option("--profile", default="cpu", show_default=True, help="Of which reproduction they are parts.")
def _merge(folders: tuple[str, ...], *, profile: str) -> None:
    """Bring together what shards left in FOLDERS, each a build/reproduce/PROFILE of another machine."""
    from attrobust.notebook import merging

    merging.merge(folders, profile_name=profile, say=click.echo)


@main.command("figures")
@click.option("--only", default="", help="Numbers of notebooks, such as 03 or 01,03.")
@click.option("--rewrite", is_flag=True, help="Refresh the notebooks' stored outputs too.")
def _figures(**options: object) -> None:
    """Draw every figure again from committed rows."""
    from attrobust.notebook import reproduce

    reproduce.redraw(**options, say=click.echo)


@main.command("data")
@click.argument("names", nargs=-1)
@click.option("--yes", is_flag=True, help="Download without asking.")
def _data(names: tuple[str, ...], yes: bool) -> None:
    """Download data sets (default: fashion_mnist) into data/, with pinned digests."""
    from attrobust import data, paths

    for name in names or ("fashion_mnist",):
        if data.available(name):
            data.load(name)
            said = "present and verified"
        elif yes or click.confirm(f"{name}: download {data.download_size(name) / 1e6:.0f} MB into {paths.data}?"):
            data.fetch(name)
            said = "downloaded and verified"
        else:
            said = "nothing downloaded"
        click.echo(f"{name}: {said}")


@main.command("parameters")
def _parameters() -> None:
    """List every notebook's parameters with their type and meaning."""
    from attrobust.notebook import reproduce

    for path in reproduce.numbered():
        click.echo(path.stem)
        for name, (kind, meaning) in reproduce.parameters_of(path).items():
            click.echo(f"  {name:<22}{kind:<13}{meaning}")


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
    except Exception as error:
        from attrobust import data
        from attrobust.notebook import reproduce, sentence

        if not isinstance(error, ValueError | OSError | data.DataError | reproduce.NotebookError):
            raise
        sys.exit(f"error: {sentence(error)}")


if __name__ == "__main__":
    run()
