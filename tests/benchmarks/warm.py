"""Products a warm start saves: the top eigenvalue along a training run, from the last eigenvector and from nothing."""

from collections.abc import Iterator

from attrobust import curvature

from benchmarks import setting


def rows(*, checkpoints: int = 28) -> Iterator[dict]:
    """One row per checkpoint, twelve SGD steps apart; both searches share one graph and one tolerance."""
    model = setting.strided().eval()
    x, y = (part[: setting.IMAGES] for part in setting.digits())
    last = None
    for checkpoint, steps in zip(range(checkpoints), setting.epochs(model, 99), strict=False):
        hessian = curvature.ParameterHessian(model, setting.loss, x, y)
        how = {"generator": setting.seeded(checkpoint), "hessian": hessian}
        cold = curvature.sharpness(model, setting.loss, x, y, **how)
        warm = curvature.sharpness(model, setting.loss, x, y, **how, start=last)
        last = warm.vector
        yield {
            "checkpoint": checkpoint,
            "steps": steps,
            "sharpness": cold.value,
            "cold": cold.products,
            "warm": warm.products,
            "difference": abs(warm.value - cold.value) / abs(cold.value),
        }
