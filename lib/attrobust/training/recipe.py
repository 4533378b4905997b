"""How a network is trained, as one value: every number that its weights depend on, beside the data and the network.

    g <- gradient of mean(loss + strength * penalty) + decay w
    v <- momentum v + g,    w <- w - step_size schedule(t) (v, or g + momentum v with Nesterov's)

Where training starts is the network's own: `models.build(..., initial="wide" or "narrow")`. Used by all notebooks that
train; notebooks 04, 05 and 10 add entries to the registries, one file each.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from attrobust import checks
from attrobust.regularizers import PENALTIES, Penalty
from attrobust.training.augmentation import AUGMENTATIONS
from attrobust.training.losses import LOSSES, smoothed
from attrobust.training.schedules import SCHEDULES
from attrobust.training.trainers import TRAINERS

#: Fields that only one choice reads: field, whose choice, and which.
_ONLY_WITH = (
    ("warmup_share", "schedule", "cosine"),
    ("warmup_epochs", "schedule", "warmup-constant"),
    ("shift_pixels", "augmentation", "shift"),
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How `fit` trains.

    Attributes:
        step_size: of SGD, above 0; the largest one, where the schedule changes it.
        batch_size: images per update; a last incomplete batch of an epoch is left out.
        epochs: passes over the images.
        stop_loss: a network stops when its loss on the whole training set falls below this level; None for never.
        patience: a run with `stop_loss` may take this many times the epochs.
        momentum: in [0, 1).
        nesterov: whether the momentum is Nesterov's.
        weight_decay: coupled L2 decay, at least 0.
        step_x_decay: the same told by its product with the step size, weight_decay = step_x_decay / step_size; of the
            two at most one is given.
        schedule: one of `SCHEDULES`: "constant", "cosine", "warmup-constant".
        warmup_share: of schedule "cosine": share of the updates with a linear warm-up, in [0, 1].
        warmup_epochs: of schedule "warmup-constant": epochs of linear warm-up, at least 0.
        loss: one of `LOSSES`.
        label_smoothing: share of a label spread evenly over all classes, in [0, 1).
        label_noise: share of the labels that are replaced by another class before training, in [0, 1].
        augmentation: one of `AUGMENTATIONS`.
        shift_pixels: of augmentation "shift": how far at most, in pixels.
        penalty: one of `regularizers.PENALTIES`, or a function of (model, x, y) to one number per example.
        strength: what the penalty is multiplied by, at least 0.
        trainer: one of `TRAINERS`.
        radius: of trainers that look around (in weights or in pixels), at least 0; "sgd" does not.

    Raises:
        ValueError: for any value outside its range, or one that no other choice reads.

    Example:
        >>> Recipe(step_size=0.1, batch_size=4, epochs=3, step_x_decay=3e-5).decay
        0.0003
    """

    step_size: float
    batch_size: int
    epochs: int
    stop_loss: float | None = None
    patience: int = 1
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    step_x_decay: float = 0.0
    schedule: str = "constant"
    warmup_share: float = 0.02
    warmup_epochs: float = 5.0
    loss: str = "cross_entropy"
    label_smoothing: float = 0.0
    label_noise: float = 0.0
    augmentation: str = "none"
    shift_pixels: int = 1
    penalty: str | Penalty = "none"
    strength: float = 0.0
    trainer: str = "sgd"
    radius: float = 0.0

    def __post_init__(self) -> None:
        self._check_numbers()
        checks.one_of("schedule", self.schedule, SCHEDULES)
        checks.one_of("loss", self.loss, LOSSES)
        checks.one_of("augmentation", self.augmentation, AUGMENTATIONS)
        checks.one_of("trainer", self.trainer, TRAINERS)
        if not callable(self.penalty):
            checks.one_of("penalty", self.penalty, PENALTIES)
        self._check_company()
        for field in dataclasses.fields(self):  # 1 and 1.0 are one recipe
            if isinstance(field.default, float) or field.name in ("step_size", "stop_loss"):
                value = getattr(self, field.name)
                object.__setattr__(self, field.name, None if value is None else float(value))

    @property
    def decay(self) -> float:
        """The weight decay, however it was told."""
        return self.weight_decay or self.step_x_decay / self.step_size

    @property
    def most_epochs(self) -> int:
        """The most epochs that a run may take."""
        return self.epochs * self.patience

    @property
    def per_example_loss(self) -> Callable[[Tensor, Tensor], Float[Tensor, " batch"]]:
        """From logits and labels to the loss of each example, without the penalty."""
        return smoothed(self.loss, self.label_smoothing)

    def step(self, update: int, *, per_epoch: int) -> float:
        """Step size of an update, counted from 0, given the updates of an epoch.

        Example:
            >>> recipe = Recipe(step_size=0.1, batch_size=4, epochs=2, schedule="warmup-constant", warmup_epochs=1)
            >>> [recipe.step(t, per_epoch=2) for t in range(4)]
            [0.05, 0.1, 0.1, 0.1]
        """
        return self.step_size * SCHEDULES[self.schedule](self, update, per_epoch)

    def _check_numbers(self) -> None:
        checks.positive("step_size", self.step_size)
        for name in ("batch_size", "epochs", "patience", "shift_pixels"):
            checks.count(name, getattr(self, name))
        if self.stop_loss is not None:
            checks.positive("stop_loss", self.stop_loss)
        for name in ("momentum", "weight_decay", "step_x_decay", "warmup_epochs", "strength", "radius"):
            checks.at_least(name, getattr(self, name), 0)
        for name in ("label_smoothing", "label_noise", "warmup_share"):
            checks.share(name, getattr(self, name))
        for name in ("momentum", "label_smoothing"):
            if getattr(self, name) >= 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be below 1")
        if not isinstance(self.nesterov, bool):
            raise ValueError(f"nesterov is {self.nesterov!r}; it must be True or False")

    def _check_company(self) -> None:
        if self.weight_decay and self.step_x_decay:
            raise ValueError(
                f"weight_decay is {self.weight_decay!r} and step_x_decay {self.step_x_decay!r}; give one of the two"
            )
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov is True; it needs a momentum above 0")
        if self.patience > 1 and self.stop_loss is None:
            raise ValueError(f"patience is {self.patience}; only a recipe with a stop_loss takes it")
        if self.strength and self.penalty == "none":
            raise ValueError(f"strength is {self.strength!r}; only a recipe with a penalty takes it")
        if self.radius and self.trainer == "sgd":
            raise ValueError(f"radius is {self.radius!r}; trainer 'sgd' takes none")
        for name, choice, accepted in _ONLY_WITH:
            value, chosen = getattr(self, name), getattr(self, choice)
            if value != type(self).__dataclass_fields__[name].default and chosen != accepted:
                raise ValueError(f"{name} is {value!r}; only {choice} {accepted!r} takes it, not {chosen!r}")
