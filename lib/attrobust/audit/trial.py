"""Advice is a claim: what does following it bring on pictures that the audit did not see?

A network of an experiment is audited as a user's would be. What the advice says to use, another map or further
training, is used, and both networks or maps are attacked on as many pictures again, none of which the advice rests on.
"""

from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch import nn

from attrobust import attacks
from attrobust.audit.advice import advise, stays
from attrobust.audit.batches import audited
from attrobust.audit.maps import maps_of
from attrobust.audit.measured import worth
from attrobust.audit.retraining import ALIGNED, BEFORE, DECAY, retrained
from attrobust.experiments import Experiment, measure
from attrobust.experiments.experiment import RADII
from attrobust.precision import whole_products
from attrobust.versions import versioned

#: The map in use, the further training, and the share of pixels that counts as leading.
IN_USE, EPOCHS, STEP_SIZE, LEADING = "saliency", 10, 0.05, 0.1
#: What `use` says where an audit advises nothing; and the columns of a trial.
ABSTAINED, COLUMNS = "abstained", ("image", "before", "after", "about", "said", "use")


@versioned(1)
@whole_products()
def followed(
    experiment: Experiment, n_pictures: int, effort: attacks.Effort, *, maps: Sequence[str] = (),
    network: Callable[[Experiment], nn.Module] = measure.trained_anew,
) -> pd.DataFrame:  # fmt: skip
    """What stays under attack on pictures that an audit did not see, before and after its advice is followed.

    Args:
        experiment: how the network is trained that stands for a user's; copies are trained on with its own images.
        n_pictures: test images that are audited, and as many others on which the advice is tried.
        effort: of the attack, in the linf ball whose radius pilots fixed for saliency of such networks (`RADII`).
        maps: beside saliency, which is in use; none for the usual ones, as in `maps_of`.
        network: from an experiment to its trained network.

    Returns:
        For each piece of advice that may name something to use (`about` "map" or "training") a row per picture: `use`,
        `image`, and `before` and `after`, the share of leading pixels that stays under attack beyond what two pictures
        share, as in `advice.stays`, NaN where one was not attacked; `said` is the gain that the audit told. Where it
        abstains one row, whose `use` is "abstained".

    How alike maps of different pictures are is told of neighbours: the last audited one has an unseen one beside it.
    """
    model, both = network(experiment).eval().requires_grad_(False), measure.shown(experiment, 2 * n_pictures)
    order = torch.randperm(2 * n_pictures, generator=torch.Generator().manual_seed(experiment.seed))
    x, seen = both.x[order], both.x[order[:n_pictures]]
    known, _ = maps_of(model, seen, (IN_USE, *maps) if maps else ())
    seed, radius = experiment.seed, RADII[experiment.architecture, experiment.dataset, IN_USE]
    under = {"radius": radius / 255, "leading": LEADING, "effort": effort, "seed": seed}
    how = {"epochs": EPOCHS, "step_size": STEP_SIZE, "batch_size": experiment.batch_size, "ways": (DECAY, ALIGNED)}
    own = measure.dataset(experiment.dataset, experiment.side, experiment.n_train, None, "cpu").train
    how |= {"name": IN_USE, "readout": "logit", "train": own.x, "labels": own.y, "y": both.y[order]}
    copies = retrained(model, x, {}, **how, **under)  # on all pictures, of which the advice is shown those seen
    advice = advise(
        audited(model, seen, known, **under).table, worth=worth(model, seen, known, seed=seed),
        retrained=copies[~(copies["image"] >= n_pictures)],
    )  # fmt: skip
    parts = []
    for piece in (piece for piece in advice if piece.about in ("map", "training")):
        line = {"about": piece.about, "said": piece.value}
        if not piece.use:
            parts.append(pd.DataFrame([line | {"use": ABSTAINED}]))
            continue
        pairs = ((BEFORE, copies[copies["way"] == BEFORE]), (piece.use, copies[copies["way"] == piece.use]))
        if piece.about == "map":
            found = audited(model, x, {name: known[name] for name in (IN_USE, piece.use)}, **under).table
            pairs = ((name, found[found["map"] == name]) for name in (IN_USE, piece.use))
        before, after = (stays(told.assign(map=name), name) for name, told in pairs)
        told = pd.DataFrame({"before": before, "after": after}).rename_axis("image").reset_index()
        parts.append(told[told["image"] >= n_pictures].assign(**line, use=piece.use))
    return pd.concat(parts, ignore_index=True).reindex(columns=[*COLUMNS])
