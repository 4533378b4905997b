"""An experiment is a table row: one network, trained one way, measured one way. Nothing is hidden elsewhere."""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from attrobust import attacks, checks, data, models, training
from attrobust import attention as kernels
from attrobust.experiments.explanations import on_the_patch_grid

#: Attributions of a transformer that notebook 06 attacks.
MAPS = ("saliency", "raw_attention", "rollout", "gradient_attention", "relevance")

#: Transformers of notebooks 06 and 07: fields of an Experiment.
VITS: dict[str, dict[str, object]] = {
    "digits": {"dataset": "digits", "patch": 2, "dim": 32, "depth": 2},
    "fashion_mnist": {"dataset": "fashion_mnist", "patch": 7, "dim": 48, "depth": 2},
    "fashion_mnist_deep": {"dataset": "fashion_mnist", "patch": 4, "dim": 64, "depth": 4},
    "cifar10_deep": {"dataset": "cifar10", "patch": 4, "dim": 128, "depth": 6},
}

#: Fields that say something of a transformer only; elsewhere they stay at their default and are no columns.
TRANSFORMER = ("attention", "patch", "dim", "depth")


@dataclass(frozen=True)
class Experiment:
    """How one network is trained.

    Attributes:
        dataset: one of `data.NAMES`.
        side: height and width after average pooling; None keeps the images.
        n_train: training images, class-balanced.
        architecture: one of `models.ARCHITECTURES`.
        activation: one of `models.ACTIVATIONS`.
        initial: size of the initial weights, one of `models.INITIAL`.
        protocol: how training ends and under what, one of `training.recipes.RECIPES`.
        step_size: of SGD (the peak, where it is annealed).
        batch_size: images per update.
        epochs: of a plateau run; a matched one has more patience, see `training.recipes`.
        momentum: of SGD.
        seed: of initial weights and batch order.
        attention: of a ViT, one of `attention.KERNELS`.
        patch: of a ViT, side of a patch in pixels.
        dim: of a ViT, length of a token.
        depth: of a ViT, number of blocks.
    """

    dataset: str
    step_size: float
    batch_size: int
    epochs: int
    seed: int
    protocol: str = "matched"
    side: int | None = None
    n_train: int = 1000
    architecture: str = "mlp"
    activation: str = "gelu"
    initial: str = "wide"
    momentum: float = 0.9
    attention: str = "softmax"
    patch: int = 2
    dim: int = 32
    depth: int = 2

    def __post_init__(self) -> None:
        checks.one_of("dataset", self.dataset, data.NAMES)
        checks.one_of("protocol", self.protocol, training.recipes.RECIPES)
        checks.one_of("architecture", self.architecture, models.ARCHITECTURES)
        checks.one_of("activation", self.activation, models.ACTIVATIONS)
        checks.one_of("initial", self.initial, models.INITIAL)
        checks.positive("step_size", self.step_size)
        checks.count("n_train", self.n_train)
        checks.count("batch_size", self.batch_size, most=self.n_train)
        checks.count("epochs", self.epochs)
        checks.count("seed", self.seed, least=0)
        checks.one_of("attention", self.attention, kernels.KERNELS)
        for name in ("patch", "dim", "depth"):
            checks.count(name, getattr(self, name))
        for name, default in ((f.name, f.default) for f in dataclasses.fields(self) if f.name in TRANSFORMER):
            if self.architecture != "vit" and getattr(self, name) != default:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; a network of architecture {self.architecture!r} has none"
                )
        for name in ("step_size", "momentum"):  # a column of runs.csv holds 1.0, never 1
            object.__setattr__(self, name, float(getattr(self, name)))

    @property
    def model_options(self) -> dict[str, object]:
        """Options of `models.build` that only this architecture has."""
        return {name: getattr(self, name) for name in TRANSFORMER} if self.architecture == "vit" else {}

    @property
    def recipe(self) -> training.Recipe:
        """How `training.fit` trains it: everything its weights depend on beside the data and the untrained network."""
        return training.recipes.named(
            self.protocol,
            step_size=self.step_size,
            batch_size=self.batch_size,
            epochs=self.epochs,
            momentum=self.momentum,
        )


@dataclass(frozen=True)
class Measurement:
    """What is measured on a trained network, and how hard it is attacked.

    Attributes:
        radii: of the linf ball, in 1/255 of the pixel range; kept in ascending order.
        effort: how hard the attack tries, its smooth twins included.
        n_attacked: test images attacked and measured.
        k_share: share of pixels compared by the top-k intersection.
        trace_products: budget of the trace estimate.
        curvature: whether flatness and input curvature are measured too.
        maps: of a transformer, the attributions that are attacked, out of those of `on_the_patch_grid`.
    """

    radii: tuple[float, ...] = (4, 8)
    effort: attacks.Effort = field(default_factory=attacks.Effort)
    n_attacked: int = 128
    k_share: float = 0.1
    trace_products: int = 30
    curvature: bool = True
    maps: tuple[str, ...] = MAPS

    def __post_init__(self) -> None:
        for radius in self.radii:
            checks.at_least("radius", radius, 0)
        checks.count("effort.steps", self.effort.steps)
        object.__setattr__(self, "radii", tuple(sorted({int(r) if r == int(r) else r for r in self.radii})))
        checks.count("n_attacked", self.n_attacked)
        if not 0 < self.k_share <= 1:
            raise ValueError(f"k_share is {self.k_share!r}; it must lie in (0, 1]")
        for name in self.maps:
            checks.one_of("map", name, on_the_patch_grid(1))
        object.__setattr__(self, "maps", tuple(sorted(set(self.maps))))


def grid(**axes: Sequence | object) -> list[Experiment]:
    """All combinations of the given axes; a value that is not a list is held fixed.

    Raises:
        ValueError: for an unknown axis, or a value outside its range.

    Example:
        >>> len(grid(dataset="digits", step_size=[0.01, 0.1], batch_size=64, epochs=10, seed=[0, 1, 2]))
        6
    """
    for name in axes:
        checks.one_of("axis", name, [f.name for f in dataclasses.fields(Experiment)])
    lists = [list(v) if isinstance(v, list | tuple) else [v] for v in axes.values()]
    return [Experiment(**dict(zip(axes, values, strict=True))) for values in itertools.product(*lists)]
