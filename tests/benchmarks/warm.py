"""Products a warm start saves: the top eigenvalue along a training run, from the last eigenvector and from nothing."""

from collections.abc import Iterator

from attrobust import curvature

from benchmarks import setting

TOLERANCES = (1e-3, 3e-2)
EVERY = (1, 4, 12)  # SGD steps between two checkpoints; 28 are a pass over the images


def rows(*, checkpoints: int = 40) -> Iterator[dict]:
    """One row per distance of the checkpoints, checkpoint and tolerance; both searches share one graph."""
    for every in EVERY:
        for row in _along_a_run(every, checkpoints):
            yield {"every": every} | row


def _along_a_run(every: int, checkpoints: int) -> Iterator[dict]:
    model = setting.dense().eval()
    x, y = (part[: setting.IMAGES] for part in setting.digits())
    last = {}
    training = setting.epochs(model, 99, step_size=0.003, every=every)
    for checkpoint, steps in zip(range(checkpoints), training, strict=False):
        hessian = curvature.ParameterHessian(model, setting.loss, x, y)
        for tolerance in TOLERANCES:
            how = {"generator": setting.seeded(checkpoint), "tolerance": tolerance}
            cold = curvature.sharpness(hessian, **how)
            warm = curvature.sharpness(hessian, **how, start=last.get(tolerance))
            last[tolerance] = warm.vector
            yield {
                "checkpoint": checkpoint,
                "steps": steps,
                "tolerance": tolerance,
                "sharpness": cold.value,
                "cold": cold.products,
                "warm": warm.products,
                "difference": abs(warm.value - cold.value) / abs(cold.value),
            }
