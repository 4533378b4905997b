"""How a network is trained, as one value: every number that its weights depend on, beside the data and the network.

    g <- gradient of mean(loss + strength * penalty) + decay w
    v <- momentum v + g,    w <- w - step_size schedule(t) (v, or g + momentum v with Nesterov's)
    W <- W |W_0| / |W|      for the weight W of every dense or convolutional layer, which started as W_0, if pinned

A schedule says by how much the step size of an update t, counted from 0, is multiplied.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from attrobust import checks
from attrobust.attributions.importance import unwrapped
from attrobust.regularizers import MOVING, PENALTIES, Penalty
from attrobust.shapes import PerImage
from attrobust.training.ingredients import AROUND, AUGMENTATIONS, LOSSES, TRAINERS, Objective
from attrobust.versions import since, versioned


@versioned(1)
def constant(recipe: "Recipe", update: int, per_epoch: int) -> float:
    """The same step throughout."""
    return 1.0


@versioned(1)
def warmup_constant(recipe: "Recipe", update: int, per_epoch: int) -> float:
    """Linear warm-up over `warmup_epochs`, then the same step."""
    return _warm(update, recipe.warmup_epochs * per_epoch)


@versioned(1)
def cosine(recipe: "Recipe", update: int, per_epoch: int) -> float:
    """Linear warm-up over a share of the T updates, times (1 + cos(pi t / T)) / 2.

    Reference: Loshchilov and Hutter 2017, "SGDR", eq. 5, without restarts.
    """
    budget = recipe.most_epochs * per_epoch
    return _warm(update, recipe.warmup_share * budget) * 0.5 * (1 + math.cos(math.pi * update / budget))


def _warm(update: int, updates: float) -> float:
    return min(1.0, (update + 1) / max(1.0, updates))


SCHEDULES: dict[str, Callable[["Recipe", int, int], float]]
SCHEDULES = {"constant": constant, "cosine": cosine, "warmup-constant": warmup_constant}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How `fit` trains; a value outside its range, or one that no other choice reads, is a ValueError.

    Example:
        >>> Recipe(step_size=0.1, batch_size=4, epochs=3, step_x_decay=3e-5).decay
        0.0003
    """

    step_size: float  # above 0; the largest one, where the schedule changes it
    batch_size: int  # images per update; a last incomplete batch of an epoch is left out
    epochs: int  # passes over the images
    stop_loss: float | None = None  # a network stops when its loss on the whole training set falls below this level
    stop_within: float = 1.0  # in (0, 1]; one that lands further below the level goes back, with half the step
    patience: int = 1  # a run with `stop_loss` may take this many times the epochs
    momentum: float = 0.0  # in [0, 1)
    nesterov: bool = False  # whether the momentum is Nesterov's
    weight_decay: float = 0.0  # coupled L2 decay of every parameter, biases and those of BatchNorm too; at least 0
    step_x_decay: float = 0.0  # the same told by its product with the step size; at most one of the two is given
    pinned: bool = field(default=False, metadata=since(False))  # whether layers' weights keep their first norms
    schedule: str = "constant"  # one of `SCHEDULES`
    warmup_share: float = 0.02  # of schedule "cosine": share of the updates with a linear warm-up, in [0, 1]
    warmup_epochs: float = 5.0  # of schedule "warmup-constant": epochs of linear warm-up, at least 0
    loss: str = "cross_entropy"  # one of `LOSSES`
    label_smoothing: float = 0.0  # share of a label spread evenly over all classes, in [0, 1)
    label_noise: float = 0.0  # share of the labels that are replaced by another class before training, in [0, 1]
    augmentation: str = "none"  # one of `AUGMENTATIONS`
    shift_pixels: int = 1  # of augmentation "shift": how far at most, in pixels
    penalty: str | Penalty = "none"  # one of `regularizers.PENALTIES`, or (model, x, y) -> one number per example
    strength: float = 0.0  # what the penalty is multiplied by, at least 0
    trainer: str = "sgd"  # one of `TRAINERS`
    radius: float = 0.0  # of trainers that look around (in weights or in pixels), at least 0; "sgd" does not

    def __post_init__(self) -> None:
        checks.positive("step_size", self.step_size)
        if self.stop_loss is not None:
            checks.positive("stop_loss", self.stop_loss)
        for name in ("batch_size", "epochs", "patience", "shift_pixels"):
            checks.count(name, getattr(self, name))
        for name in ("momentum", "weight_decay", "step_x_decay", "warmup_epochs", "strength", "radius"):
            checks.at_least(name, getattr(self, name), 0)
        for name in ("label_smoothing", "label_noise", "warmup_share", "stop_within"):
            checks.share(name, getattr(self, name))
        if not self.stop_within:
            raise ValueError(f"stop_within is {self.stop_within!r}; it must be above 0")
        for name in ("momentum", "label_smoothing"):
            if getattr(self, name) >= 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be below 1")
        for name in ("nesterov", "pinned"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be True or False")
        registries = {"schedule": SCHEDULES, "loss": LOSSES, "augmentation": AUGMENTATIONS, "trainer": TRAINERS}
        for name, accepted in (registries | ({} if callable(self.penalty) else {"penalty": PENALTIES})).items():
            checks.one_of(name, getattr(self, name), accepted)
        self._check_company()
        for f in dataclasses.fields(self):  # 1 and 1.0 are one recipe
            value = getattr(self, f.name)
            if value is not None and (isinstance(f.default, float) or f.name in ("step_size", "stop_loss")):
                object.__setattr__(self, f.name, float(value))

    @property
    def decay(self) -> float:
        """The weight decay, however it was told."""
        return self.weight_decay or self.step_x_decay / self.step_size

    @property
    def most_epochs(self) -> int:
        """The most epochs that a run may take."""
        return self.epochs * self.patience

    @property
    def per_example_loss(self) -> Callable[[Tensor, Tensor], PerImage]:
        """Loss of each example, without the penalty; smoothed labels: Szegedy et al. 2016, Inception, section 7."""
        return partial(LOSSES[self.loss], label_smoothing=self.label_smoothing)

    @property
    def penalises(self) -> Penalty | None:
        """The penalty as a function, whatever its strength; None if there is none."""
        return self.penalty if callable(self.penalty) else PENALTIES[self.penalty]

    @property
    def objective(self) -> Objective:
        """What a trainer differentiates: the loss, and the penalty if it has any strength."""
        return Objective(self.per_example_loss, self.penalises if self.strength else None, self.strength)

    @property
    def plain(self) -> bool:
        """Whether every gradient is that of the loss alone, where the network is."""
        return not self.strength and (self.trainer == "sgd" or (self.trainer in AROUND and not self.radius))

    def step(self, update: int, *, per_epoch: int) -> float:
        """Step size of an update, counted from 0, given the updates of an epoch."""
        return self.step_size * SCHEDULES[self.schedule](self, update, per_epoch)

    def _check_company(self) -> None:
        if self.weight_decay and self.step_x_decay:
            both = f"weight_decay is {self.weight_decay!r} and step_x_decay {self.step_x_decay!r}"
            raise ValueError(f"{both}; give one of the two")
        schedule, augmentation = f"takes it, not {self.schedule!r}", f"takes it, not {self.augmentation!r}"
        for name, taken, sentence in (
            ("nesterov", self.momentum > 0, "it needs a momentum above 0"),
            ("patience", self.stop_loss is not None, "only a recipe with a stop_loss takes it"),
            ("stop_within", self.stop_loss is not None, "only a recipe with a stop_loss takes it"),
            ("strength", self.penalty != "none", "only a recipe with a penalty takes it"),
            ("radius", self.trainer != "sgd", "trainer 'sgd' takes none"),
            ("warmup_share", self.schedule == "cosine", f"only schedule 'cosine' {schedule}"),
            ("warmup_epochs", self.schedule == "warmup-constant", f"only schedule 'warmup-constant' {schedule}"),
            ("shift_pixels", self.augmentation == "shift", f"only augmentation 'shift' {augmentation}"),
        ):
            value = getattr(self, name)
            if value != type(self).__dataclass_fields__[name].default and not taken:
                raise ValueError(f"{name} is {value!r}; {sentence}")
        moving = self.penalises is not None and unwrapped(self.penalises) in MOVING
        if moving and (self.loss != "cross_entropy" or self.label_smoothing):
            loss = f"loss {self.loss!r} with labels smoothed by {self.label_smoothing:g}"
            raise ValueError(f"penalty is {self.penalty!r}; it moves cross-entropy alone, not {loss}")


#: What each name fixes; the rest is the caller's.
#:   matched     ends at a training loss below 0.01, and at most a quarter below: the minimum, at the same fit
#:   plateau     a fixed budget, annealed: what if training goes on?
#:   standard    as plateau, with decay: what does a practitioner get? A larger step also means more decay per update.
#:   decay_held  as plateau, step x decay held: how much of `standard` is the step?
#: Each of the others differs from one of these in a single thing (notebook 04):
#:   early, late      as matched, at ten times and at a tenth of its loss: time after the fit
#:   pinned           as matched, every layer's weight kept at its first norm: directions, biases, gains are learned
#:   squared          as plateau, with the squared loss
#:   smoothed         as plateau, a tenth of each label spread over all classes
#:   noisy            as plateau, a tenth of the labels wrong
#:   augmented        as plateau, images moved by up to a pixel
#:   constant         as plateau, the step constant after five epochs of warm-up
#:   constant_moved   as constant, images moved by up to a pixel
#:   budget           as plateau, and a network that fits less within its budget stays comparable (notebook 05)
_LEVEL = {"momentum": 0.9, "stop_within": 0.25, "patience": 5}
_BUDGET = {"momentum": 0.9, "schedule": "cosine"}
RECIPES: dict[str, dict[str, object]] = {
    "matched": _LEVEL | {"stop_loss": 0.01},
    "plateau": _BUDGET,
    "standard": _BUDGET | {"weight_decay": 5e-4},
    "decay_held": _BUDGET | {"step_x_decay": 3e-5},
    "early": _LEVEL | {"stop_loss": 0.1},
    "late": _LEVEL | {"stop_loss": 0.001},
    "pinned": _LEVEL | {"stop_loss": 0.01, "pinned": True},
    "squared": _BUDGET | {"loss": "squared"},
    "smoothed": _BUDGET | {"label_smoothing": 0.1},
    "noisy": _BUDGET | {"label_noise": 0.1},
    "augmented": _BUDGET | {"augmentation": "shift"},
    "budget": _BUDGET,
    "constant": {"momentum": 0.9, "schedule": "warmup-constant"},
    "constant_moved": {"momentum": 0.9, "schedule": "warmup-constant", "augmentation": "shift"},
}


def named(name: str, **fields: object) -> Recipe:
    """A recipe of `RECIPES`, with further fields of a Recipe, which win over what its name fixes."""
    return Recipe(**RECIPES[checks.one_of("recipe", name, RECIPES)] | fields)
