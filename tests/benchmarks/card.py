"""Time a graphics card: ensembles of small networks beside one after another, and how much of its peak they use.

`make gpu-check` prints the table. On a machine without a card it runs on the processor, which says nothing of cards.
"""

import time
from collections.abc import Callable, Iterator

import click
import pandas as pd
import torch
from attrobust import data, experiments, models, training
from torch.utils.flop_counter import FlopCounterMode

#: Networks that train together, and updates that are timed.
TOGETHER, UPDATES = 64, 200

#: Side of the square matrices whose product gives the peak.
SIDE = 8192


def _seconds(run: Callable[[], object], device: str) -> float:
    """Wall-clock seconds of one call, the card's work included."""
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def peak(device: str, *, side: int = SIDE) -> float:
    """TFLOP/s of a product of float32 matrices, no short mantissas; the best of five."""
    a, b = torch.rand(2, side, side, device=device)
    return 2 * side**3 / min(_seconds(lambda: a @ b, device) for _ in range(5)) / 1e12


def rows(*, device: str, together: int = TOGETHER, updates: int = UPDATES) -> Iterator[dict[str, object]]:
    """A row per architecture: seconds per update of one network, alone and in an ensemble."""
    for name, how in {"mlp": {"side": 14}, "vit": {}}.items():
        dataset = "fashion_mnist" if data.available("fashion_mnist") and name == "mlp" else "digits"
        n = 64 * (updates if dataset == "fashion_mnist" else 10)
        epochs = max(1, updates * 64 // n)
        images = experiments.dataset(dataset, how.get("side"), n, None, device).train
        recipe = training.Recipe(step_size=0.003, batch_size=64, epochs=epochs)

        def fit(many: int, *, name: str = name, images: data.Examples = images, recipe: object = recipe) -> int:
            shape = tuple(images.x.shape[1:])
            nets = [models.build(name, input_shape=shape, classes=10, seed=s).to(images.x.device) for s in range(many)]
            draws = [torch.Generator().manual_seed(s) for s in range(many)]
            return training.fit(nets, *images, recipe, generators=draws)[0].steps

        steps = fit(2)  # warm
        alone, ensemble = _seconds(lambda: fit(1), device), _seconds(lambda: fit(together), device)
        net = models.build(name, input_shape=tuple(images.x.shape[1:]), classes=10, seed=0).to(device)
        with FlopCounterMode(display=False) as counter:
            net(images.x[:64]).sum().backward()
        yield {
            "network": f"{name} on {dataset}",
            "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
            "updates": steps,
            "one_ms": 1000 * alone / steps,
            "ensemble_ms": 1000 * ensemble / steps / together,
            "ratio": alone * together / ensemble,
            "tflops": counter.get_total_flops() * steps * together / ensemble / 1e12,
        }


@click.command()
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--together", default=TOGETHER, show_default=True, help="Networks in an ensemble.")
def main(device: str, together: int) -> None:
    """Print the table."""
    best = peak(device, side=SIDE if device == "cuda" else 1024)
    table = pd.DataFrame(rows(device=device, together=together))
    table["of_peak"] = table["tflops"] / best
    click.echo(f"float32 product: {best:.1f} TFLOP/s")
    click.echo(table.to_string(index=False, float_format="{:.4g}".format))


if __name__ == "__main__":
    main()
