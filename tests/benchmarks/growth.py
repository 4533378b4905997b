"""How cost grows with images, parameters and outputs, in seconds and in gradients, beside the count on paper.

The unit is one gradient of the same network, images and variable, timed in the same breath. On paper a backward
pass to weights and activations costs two forward passes, one to the pixels alone about one:

    product, graph kept         2           product, graph built again    3
    Gauss-Newton trace, exact   (1 + 2 C) / 3     Jacobian in the pixels  (1 + C) / 2     for C outputs
"""

import time
from collections.abc import Callable, Iterator

import torch
from attrobust import curvature
from torch import Tensor, nn

from benchmarks import setting

AXES = {"images": (100, 200, 400, 800, 1600), "parameters": (8, 16, 32, 64), "outputs": (2, 5, 10, 20, 40)}


def rows(*, repetitions: int) -> Iterator[dict]:
    """One row per axis, value, quantity and repetition."""
    for axis, values in AXES.items():
        for value in values:
            count = value if axis == "images" else setting.PIXELS_OF
            width = value if axis == "parameters" else 16
            classes = value if axis == "outputs" else 10
            model = setting.strided(width=width, classes=classes).eval()
            x, y = (part[:count] for part in setting.digits())
            y = y % classes
            at = sum(p.numel() for p in model.parameters()) if axis == "parameters" else value
            jobs = _jobs(model, x, y, classes)
            for repetition in range(repetitions):
                spent = {name: _seconds(job) for name, (job, _, _) in jobs.items()}
                for name, (_, unit, predicted) in jobs.items():
                    yield {
                        "axis": axis,
                        "value": at,
                        "quantity": name,
                        "repetition": repetition,
                        "seconds": spent[name],
                        "gradients": spent[name] / spent[unit],
                        "predicted": predicted,
                    }


def _jobs(model: nn.Module, x: Tensor, y: Tensor, classes: int) -> dict[str, tuple[Callable, str, float]]:
    kept = curvature.ParameterHessian(model, setting.loss, x, y, keep_graph=True)
    again = curvature.ParameterHessian(model, setting.loss, x, y, keep_graph=False)
    pixels = curvature.InputHessian(model, x, y, keep_graph=True)
    draw = setting.seeded()
    v = torch.randn(1, kept.size, generator=draw)
    w = torch.randn(len(x), x[0].numel(), generator=draw)
    parameters = list(model.parameters())

    def gradient():
        for a, b in zip(x.split(256), y.split(256), strict=True):
            torch.autograd.grad(setting.loss(model(a), b).sum(), parameters)

    def input_gradient():
        curvature.input_jacobian(_OneOutput(model), x)

    weights, inputs = "gradient", "gradient in the pixels"
    return {
        weights: (gradient, weights, 1),
        "product, graph kept": (lambda: kept.matvec(v), weights, 2),
        "product, graph built again": (lambda: again.matvec(v), weights, 3),
        "Gauss-Newton trace, exact": (
            lambda: curvature.gauss_newton_trace(curvature.GaussNewton(model, x)),
            weights,
            (1 + 2 * classes) / 3,
        ),
        inputs: (input_gradient, inputs, 1),
        "product in the pixels, graph kept": (lambda: pixels.matvec(w), inputs, 2),
        "Jacobian in the pixels": (lambda: curvature.input_jacobian(model, x), inputs, (1 + classes) / 2),
    }


class _OneOutput(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)[:, :1]


def _seconds(job: Callable[[], object]) -> float:
    begin = time.process_time()
    job()
    return time.process_time() - begin
