"""Five measures of how stable a map is: ours beside Quantus, on the same perturbed images and with the same maps."""

import time
from collections.abc import Callable, Iterator

import numpy as np
import quantus
import torch
from attrobust import attacks, attributions, balls, sensitivity
from torch import Tensor, nn

from benchmarks import setting

IMAGES, DRAWS, BALL = 64, 10, balls.Ball("linf", 0.02)
THEIRS = {
    "max_sensitivity": quantus.MaxSensitivity,
    "avg_sensitivity": quantus.AvgSensitivity,
    "lipschitz": quantus.LocalLipschitzEstimate,
    "ris": quantus.RelativeInputStability,
    "ros": quantus.RelativeOutputStability,
}


def rows(*, repetitions: int, networks: tuple[str, ...] = ("dense", "strided")) -> Iterator[dict]:
    """One row per network, measure and repetition: theirs beside ours, which are made together, after each other.

    Seconds are of this process's CPU time; ours are those of all five measures. `difference` is the largest relative
    one over images, `left out` counts those of which theirs is NaN because a draw lost the prediction.
    """
    x = 0.05 + 0.9 * setting.digits()[0][:IMAGES]  # no pixel is black or white, where perturbations would be cut
    for network in networks:
        model = setting.trained(network)
        target = model(x).argmax(1)
        for repetition in range(-1, repetitions):  # the first is for acquaintance
            begin = time.process_time()
            ours = sensitivity.sensitivities(
                model, attributions.saliency, x, ball=BALL, draws=DRAWS, generator=setting.seeded()
            )
            seconds = time.process_time() - begin
            streams = attacks.Streams(x, generator=setting.seeded())
            moved = sensitivity.perturbed(x, BALL, DRAWS, streams).numpy()
            for name in THEIRS:
                begin = time.process_time()
                theirs = measured(name, model, x, target, moved)
                own, lost = ours[name].to_numpy(), np.isnan(theirs)
                row = {
                    "network": network,
                    "measure": name,
                    "repetition": repetition,
                    "images": IMAGES,
                    "draws": DRAWS,
                    "Quantus": time.process_time() - begin,
                    "attrobust, all five": seconds,
                    "difference": np.abs(theirs / own - 1)[~lost].max(),
                    "left out": int(lost.sum()),
                    "ours left out": int(np.isnan(own).sum()),
                }
                if repetition >= 0:
                    yield row


def measured(name: str, model: nn.Module, x: Tensor, target: Tensor, moved: np.ndarray) -> np.ndarray:
    """A measure of theirs on given perturbed images, without normalisation over the batch."""
    quiet = {"abs": False, "normalise": False, "disable_warnings": True, "display_progressbar": False}
    metric = THEIRS[name](nr_samples=DRAWS, perturb_func=given(moved), **quiet)
    how = {"explain_func": explained, "device": "cpu", "channel_first": True, "softmax": False, "batch_size": IMAGES}
    return np.array(metric(model=model, x_batch=x.numpy(), y_batch=target.numpy(), **how))


def given(moved: np.ndarray) -> Callable:
    """A function that perturbs as it is told, one draw after the other."""
    waiting = iter(range(moved.shape[1]))
    return lambda arr, **options: moved[:, next(waiting)].reshape(arr.shape).copy()


def explained(model: nn.Module, inputs: np.ndarray, targets: np.ndarray, **options: object) -> np.ndarray:
    """The same maps."""
    found = attributions.saliency(model, torch.as_tensor(inputs), torch.as_tensor(targets))
    return found.detach().numpy()
