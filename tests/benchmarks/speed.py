"""Time and error of every route: all routes of a question in turn, again and again, in one process."""

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks import references, routes, setting


def rows(*, repetitions: int, networks: tuple[str, ...] = tuple(setting.NETWORKS)) -> Iterator[dict]:
    """One row per network, question, route and repetition; seconds of this process's CPU time."""
    for network in networks:
        for question, make in routes.QUESTIONS.items():
            ways, reference = make(network), references.OF[question](network)
            names = list(ways)
            for repetition in range(repetitions):
                shift = repetition % len(names)
                for name in names[shift:] + names[:shift]:
                    begin = time.process_time()
                    value, products = ways[name]()
                    seconds = time.process_time() - begin
                    yield {
                        "network": network,
                        "question": question,
                        "route": name,
                        "repetition": repetition,
                        "seconds": seconds,
                        "products": products,
                        "error": error(value, reference),
                    }


def error(value: Tensor | float, reference: Tensor | float) -> float:
    """Relative error; over images the median, each relative to the larger end of its spectrum."""
    if isinstance(reference, float):
        return abs(float(value) - reference) / abs(reference)
    value = value[: len(reference)].double()
    scale = reference.abs().amax(1, keepdim=True) if reference.ndim > 1 else reference.abs()
    return float(((value - reference).abs() / scale.clamp_min(torch.finfo(torch.float64).tiny)).median())
