"""The attack's radii are literals that were fixed by pilots; the pilots can be run again."""

import numpy as np
import pytest
from attrobust import data, experiments
from attrobust.experiments import measure

CHOICES = (1, 2, 4, 8, 16, 24)


def pilot(architecture, dataset, name, seed):
    """Spearman under attack of one pilot network, at the middle step, radius by radius."""
    size = experiments.VITS[dataset] if architecture == "vit" else {"dataset": dataset}
    if architecture == "mlp" and dataset != "digits":
        size |= {"side": 14}
    how = {"architecture": architecture, "step_size": 0.0134, "batch_size": 64, "epochs": 400, "seed": seed}
    networks, fits = measure.train([experiments.Experiment(**size, **how)])
    share = 0.25 if architecture == "vit" else 0.1
    measurement = experiments.Measurement(
        radii=CHOICES, maps=(name,), readouts=("logit",), curvature=False, k_share=share
    )
    _, table = measure.measure(experiments.Experiment(**size, **how), measurement, networks[0], fits[0])
    told = table[(table["attack"] == "worst") & (table["metric"] == "spearman") & (table["map"] == name)]
    return told.set_index("radius")["value"].reindex(map(float, CHOICES)).to_numpy()


@pytest.mark.slow
@pytest.mark.parametrize("place", experiments.RADII, ids=" ".join)
def test_every_radius_is_the_one_at_which_its_pilots_stand_nearest_to_six_tenths(place):
    if not data.available(place[1]):
        pytest.skip(f"data set {place[1]} is not on this machine")
    levels = np.mean([pilot(*place, seed) for seed in (100, 101, 102)], axis=0)
    off = np.abs(levels - 0.6)
    best = CHOICES[int(np.argmin(off.round(9)))]  # of two as near, the smaller
    literal = CHOICES.index(experiments.RADII[place])
    # Another processor trains other pilots: where two radii are as good up to their scatter, either may be the literal.
    assert best == experiments.RADII[place] or off[literal] < off.min() + 0.05
