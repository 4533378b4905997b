"""Would training differently help? Copies of a network are trained on for a few epochs, and audited as it was.

Further training alone changes maps, so that plain SGD is among the ways. How strongly a way acts is found on training
images held out of the training: a ladder is climbed while at most 0.02 of plain SGD's accuracy on them is lost.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attrobust import attacks, checks, regularizers, swap, training
from attrobust.attacks.streams import stochastic
from attrobust.audit.batches import answers_of, audited, remembered
from attrobust.audit.maps import maps_of
from attrobust.audit.measured import ATTACK, FEW, NOISE
from attrobust.audit.opened import Opened
from attrobust.experiments.store import Store
from attrobust.models.readouts import cross_entropy, predictions
from attrobust.shapes import Attribution, Images, Labels
from attrobust.versions import versioned

#: What copies are trained with. The first is the one that the others are held against.
PLAIN, DECAY, ALIGNED, PENALTY, SWAPPED = (
    "plain SGD", "weight decay", "gradient alignment", "input gradient", "swapped attention",
)  # fmt: skip
WAYS = (PLAIN, DECAY, ALIGNED, PENALTY, SWAPPED)
#: Ways that are penalties: how `regularizers.PENALTIES` and a recipe call them.
PENALTIES = {ALIGNED: "l2_cosine", PENALTY: "input_gradient"}
#: The network before.
BEFORE = "as it is"
#: One in so many training images is held out; and how much accuracy on these a rung may cost.
HELD, COST = 5, 0.02
#: Rungs, free of units: the share of the weights that decay alone would leave at the end; and the penalty in units of
#: the loss, as both are on held out images before training.
LEFT, BESIDE = (0.9, 0.7, 0.5, 0.3), (0.1, 1.0, 10.0, 100.0)


@dataclass(frozen=True)
class Retrained:
    """A copy that was trained on, or why there is none.

    Example:
        >>> Retrained("weight decay", None, why="no rung kept the accuracy").model is None
        True
    """

    way: str
    model: nn.Module | None
    strength: float = math.nan  # of the rung: `Recipe.weight_decay`, or the penalty's factor; 0 where there is no rung
    accuracy: float = math.nan  # on the held out training images
    why: str = ""


def retrain(
    model: nn.Module, x: Images, y: Labels, *, ways: Sequence[str], epochs: int, step_size: float, batch_size: int,
    seed: int, say: Callable[[str], None] = lambda line: None,
) -> Iterator[Retrained]:  # fmt: skip
    """Copies of a classifier, each trained on in its own way on the same images in the same order; it stays as it is.

    Args:
        model: a classifier in eval mode. In its copies dropout is off, whose gradients would be random otherwise, and
            BatchNorm keeps its running statistics, so that each image is seen by itself.
        x, y: training images in [0, 1] with labels, enough for a batch beside those held out.
        ways: out of `WAYS`; plain SGD comes first whether it is named or not.
        epochs, step_size, batch_size: of the further training.
        seed: decides what is held out, and the order.
        say: takes a line a training.

    A way that the network cannot be trained in (attention where there is none to swap), or of which the lowest rung
    costs too much, comes without a model and with the reason.

    Raises:
        ValueError: for an unknown way, too few images, and a network that cannot be trained on by plain SGD.

    Example:
        >>> from attrobust import models
        >>> model = models.build("mlp", input_shape=(1, 2, 2), classes=2, seed=0, width=8).eval()
        >>> x, y = torch.rand(20, 1, 2, 2, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 2
        >>> how = {"epochs": 1, "step_size": 0.1, "batch_size": 8, "seed": 0}
        >>> [found.way for found in retrain(model, x, y, ways=["weight decay"], **how)]
        ['plain SGD', 'weight decay']
    """
    for way in ways:
        checks.one_of("a way of ways", way, WAYS)
    checks.labels("y", y, batch=len(checks.images("x", x)), classes=answers_of(model, x[:1]).shape[1])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
    held, kept = order[: len(x) // HELD], order[len(x) // HELD :]
    if not len(held) or len(kept) < batch_size:
        raise ValueError(f"x holds {len(x)} training images; {HELD * batch_size // (HELD - 1) + 1} or more are needed")
    updates, plain = epochs * (len(kept) // batch_size), math.nan
    for way in dict.fromkeys((PLAIN, *ways)):
        found = Retrained(way, None)
        try:
            begun = swap.attention(model, "gaussian") if way == SWAPPED else model
            for strength, beyond in _rungs(way, model, x[held], y[held], 1 / (step_size * updates), seed):
                recipe = training.Recipe(step_size=step_size, batch_size=batch_size, epochs=epochs, **beyond)
                one = _trained(begun, x[kept], y[kept], recipe, seed)
                accuracy = float((predictions(one, x[held]) == y[held]).double().mean())
                say(f"{way}, strength {strength:.3g}: accuracy {accuracy:.3f} on held out images")
                if way == PLAIN:
                    plain = accuracy
                if accuracy < plain - COST:
                    lost = f"at its least it has accuracy {accuracy:.3f} on held out images, {PLAIN} {plain:.3f}"
                    found = found if found.model else Retrained(way, None, strength, accuracy, lost)
                    break
                found = Retrained(way, one, strength, accuracy)
        except (ValueError, RuntimeError) as error:
            if way == PLAIN:
                raise
            found = Retrained(way, None, why=str(error))
        yield found


def after_training(
    store: Store, opened: Opened, x: Images, name: str, *, seed: int, **how: object
) -> tuple[pd.DataFrame, str]:
    """`retrained` of what was opened, computed once, and ""; where no copy can be trained no row, and the reason.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from attrobust.audit.images import Pictures
        >>> x = torch.zeros(2, 1, 2, 2)
        >>> none = Opened(nn.Flatten(), Pictures(x, None, ["a", "b"], None), "")
        >>> with TemporaryDirectory() as out:
        ...     store = Store("mine", out=f"{out}/mine", committed=False)
        ...     after_training(store, none, x, "saliency", seed=0)[1]
        'no training images are here; `train` names some, with their labels'
    """
    if opened.training is None:
        return pd.DataFrame(), "no training images are here; `train` names some, with their labels"
    y = None if opened.pictures.y is None else opened.pictures.y[: len(x)]
    own = {"train": opened.training.x, "labels": opened.training.y, "y": y, "name": name}
    try:
        return remembered(store, retrained, opened.model, x, {}, named=opened.named, seed=seed, **own, **how), ""
    except (ValueError, RuntimeError) as error:
        return pd.DataFrame(), str(error)


def ways_compared(table: pd.DataFrame) -> pd.DataFrame:
    """A row per way of `retrained`: strength, accuracies, and what stays of the map under attack and under noise.

    Example:
        >>> table = pd.DataFrame({"compared": [ATTACK, NOISE], "top_k": [0.5, 0.75], "zero": 0, "way": BEFORE})
        >>> ways_compared(table.assign(strength=0.0, held_out=math.nan, accuracy=0.9))[["attack", "noise"]]
           attack  noise
        0     0.5   0.75
    """
    lines = []
    for way, part in table.groupby("way", sort=False):
        told = part[part["zero"] == 0] if "zero" in part else part.iloc[:0]
        line = {"way": way, **{name: part[name].iloc[0] for name in ("strength", "held_out", "accuracy")}}
        for name, compared in (("attack", ATTACK), ("noise", NOISE)):
            line[name] = told.loc[told["compared"] == compared, "top_k"].mean()
        lines.append(line | {"pictures": int((told["compared"] == ATTACK).sum())})
    return pd.DataFrame(lines)


@versioned(2)
def retrained(
    model: nn.Module, x: Images, maps: dict[str, Attribution], *, name: str, readout: str,
    train: Float[Tensor, "others channels height width"], labels: Int[Tensor, "others"],
    y: Labels | None, ways: Sequence[str], epochs: int, step_size: float, batch_size: int, radius: float,
    leading: float, effort: attacks.Effort, seed: int, say: Callable[[str], None] = lambda line: None,
) -> pd.DataFrame:  # fmt: skip
    """One map of a network and of its copies under the same attack on the same pictures.

    Args:
        model, x, name, readout: a classifier, pictures, and the map, as in `maps_of`; `maps` is not read.
        y: labels of the pictures, None if unknown.
        train, labels, ways, epochs, step_size, batch_size, seed, say: as in `retrain`.
        radius, leading, effort: as in `audited`, whose rule for pictures that cannot be climbed holds here, too.

    Returns:
        Rows of `attacked` with `way` (first `BEFORE`, the network itself), `map`, `strength`, `held_out` (accuracy on
        held out training images), `accuracy` (on the pictures, NaN without labels) and `why` (empty); of a way that
        could not be taken one row, with the reason.

    Raises:
        ValueError: an unknown name, readout or way; of a way that cannot be taken the reason stands in its row.
    """
    how = {"ways": ways, "epochs": epochs, "step_size": step_size, "batch_size": batch_size, "seed": seed}
    copies, parts = retrain(model, train, labels, say=say, **how), []
    for found in chain([Retrained(BEFORE, model, 0.0)], copies):  # one copy at a time is held
        line = {"way": found.way, "map": name, "strength": found.strength, "held_out": found.accuracy}
        try:
            if found.model is None:
                raise ValueError(found.why)
            attribution = maps_of(found.model, x, [name], readout=readout)[0][name]
            under = {"radius": radius, "leading": leading, "effort": effort, "seed": seed}
            attack = audited(found.model, x, {name: attribution}, **under)
            if attack.refused:
                raise ValueError(attack.refused[name])
        except ValueError as error:
            parts.append(pd.DataFrame([line | {"why": str(error)}]))
            continue
        right = math.nan if y is None else float((predictions(found.model, x) == y).double().mean())
        parts.append(attack.table.drop(columns=["map", "radius"]).assign(**line, accuracy=right, why=""))
        say(f"{found.way}: audited")
    return pd.concat(parts, ignore_index=True)


def _rungs(
    way: str, model: nn.Module, x: Images, y: Labels, scale: float, seed: int
) -> Iterator[tuple[float, dict[str, object]]]:
    """Strength and what the recipe says beyond plain SGD, the weakest first."""
    if way == DECAY:  # w <- (1 - step * decay) w leaves exp(-step * updates * decay)
        for strength in (-math.log(left) * scale for left in LEFT):
            yield strength, {"weight_decay": strength}
    elif way in PENALTIES:
        penalty, parts = regularizers.PENALTIES[PENALTIES[way]], list(zip(x.split(FEW), y.split(FEW), strict=True))
        drawn = {"generator": torch.Generator().manual_seed(seed)} if stochastic(penalty) else {}
        with torch.no_grad():
            loss = torch.cat([cross_entropy(model, *part) for part in parts]).mean()
        unit = float(loss / torch.cat([penalty(model, *part, **drawn).detach() for part in parts]).mean())
        if not 0 < unit < math.inf:
            raise ValueError(f"the penalty of {way} is zero or not finite on the held out images")
        for strength in (times * unit for times in BESIDE):
            yield strength, {"penalty": PENALTIES[way], "strength": strength}
    else:
        yield 0.0, {}


def _trained(model: nn.Module, x: Images, y: Labels, recipe: training.Recipe, seed: int) -> nn.Module:
    """A copy, trained on, in eval mode."""
    found = copy.deepcopy(model)
    for module in found.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    trained = copy.deepcopy(found)
    for module in trained.modules():
        if type(module) in NORMS and module.track_running_stats:
            module.__class__ = Settled  # with all that it holds
    trained.requires_grad_(True)
    training.fit([trained], x, y, recipe, generators=[torch.Generator().manual_seed(seed)])
    found.load_state_dict(trained.state_dict())
    return found.eval().requires_grad_(False)


#: Kinds of BatchNorm that in eval mode compute what `Settled` does; one that is derived from them may not.
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class Settled(nn.Module):
    """BatchNorm by its running statistics, which stay as they are while its weights train: of each image by itself."""

    def forward(self, x: Tensor) -> Tensor:
        """By torch's own formula, as in eval mode."""
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )
