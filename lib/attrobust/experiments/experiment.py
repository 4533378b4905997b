"""An experiment is a table row: one network, trained one way, measured one way. Nothing is hidden elsewhere."""

import dataclasses
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field

from attrobust import attacks, checks, data, models, regularizers, training
from attrobust import attention as kernels
from attrobust.experiments.explanations import AVERAGED, READOUTS, of_pixels, on_the_patch_grid
from attrobust.versions import since

#: Attributions of a transformer that notebook 06 attacks.
MAPS = ("saliency", "raw_attention", "rollout", "gradient_attention", "relevance")

#: Transformers: fields of an Experiment.
VITS: dict[str, dict[str, object]] = {
    "digits": {"dataset": "digits", "patch": 2, "dim": 32, "depth": 2},
    "mnist": {"dataset": "mnist", "patch": 7, "dim": 48, "depth": 2},
    "fashion_mnist": {"dataset": "fashion_mnist", "patch": 7, "dim": 48, "depth": 2},
    "fashion_mnist_deep": {"dataset": "fashion_mnist", "patch": 4, "dim": 64, "depth": 4},
    "cifar10_4k": {"dataset": "cifar10_4k", "patch": 8, "dim": 48, "depth": 2},
    "cifar10_deep": {"dataset": "cifar10", "patch": 4, "dim": 128, "depth": 6},
}

#: Height and width, after pooling, of the images that other networks see; data sets without one are seen as they are.
SIDES = {"mnist": 14, "two_digits": 14, "fashion_mnist": 14, "cifar10_4k": 16}

#: Radius of the attack, in 1/255, by architecture, data set and map: of 1, 2, 4, 8, 16, 24 the one at which pilots
#: (seeds 100 to 102, matched loss, step 0.0134, wide, softmax, the logit's map) stood nearest to a Spearman of 0.6.
#: Fixed before the runs that are judged; both readouts, all recipes and kernels share it.
RADII: dict[tuple[str, str, str], float] = {
    (architecture, dataset, name): radius
    for (architecture, dataset), radii in {
        ("mlp", "fashion_mnist"): {"saliency": 8, "input_x_gradient": 16, "deep_lift": 24},
        ("mlp", "digits"): {"saliency": 16, "input_x_gradient": 16, "deep_lift": 24},
        ("mlp", "mnist"): {"saliency": 8, "input_x_gradient": 4},
        ("mlp", "cifar10_4k"): {"saliency": 4, "input_x_gradient": 4},
        ("convnet", "two_digits"): {"saliency": 8},
        ("convnet", "fashion_mnist"): {"saliency": 16, "input_x_gradient": 8, "grad_cam": 4, "deep_lift": 16},
        ("convnet", "digits"): {"saliency": 24, "input_x_gradient": 16, "grad_cam": 8, "deep_lift": 24},
        ("convnet", "mnist"): {"saliency": 16, "input_x_gradient": 4, "grad_cam": 8},
        ("convnet", "cifar10_4k"): {"saliency": 8, "input_x_gradient": 8, "grad_cam": 2},
        ("convnet_bn", "fashion_mnist"): {"saliency": 8, "input_x_gradient": 8, "grad_cam": 4},
        ("convnet_bn", "digits"): {"saliency": 24, "input_x_gradient": 16, "grad_cam": 8},
        ("resnet", "fashion_mnist"): {"saliency": 4, "input_x_gradient": 4, "grad_cam": 4},
        ("resnet", "digits"): {"saliency": 8, "input_x_gradient": 8, "grad_cam": 8},
        ("vit", "digits"): {"saliency": 4, "input_x_gradient": 8, "raw_attention": 16, "rollout": 24},
        ("vit", "fashion_mnist"): {"saliency": 2, "raw_attention": 4, "rollout": 4},
    }.items()
    for name, radius in radii.items()
}

#: Of integrated gradients, SmoothGrad and the uniform gradient, by pilots on as many images as are `affordable`.
RADII |= {
    (*network, name): radius
    for network, radii in {
        ("mlp", "fashion_mnist"): (24, 8, 8),
        ("mlp", "digits"): (24, 24, 16),
        ("convnet", "fashion_mnist"): (16, 16, 16),
        ("convnet", "digits"): (24, 24, 24),
        ("convnet_bn", "fashion_mnist"): (16, 16, 8),
        ("convnet_bn", "digits"): (24, 24, 24),
        ("resnet", "fashion_mnist"): (8, 8, 4),
        ("resnet", "digits"): (16, 16, 16),
        ("vit", "digits"): (24, 8, 8),
    }.items()
    for name, radius in zip(AVERAGED, radii, strict=True)
}

#: Those of profile gpu are our choice: no pilots were run there.
CHOSEN: dict[tuple[str, str, str], float] = {
    ("resnet18", "cifar10", "saliency"): 2, ("vit", "cifar10_deep", "saliency"): 2,
}  # fmt: skip
RADII |= CHOSEN

#: Fields that say something of a transformer only; elsewhere they stay at their default and are no columns.
TRANSFORMER = {"attention": "softmax", "patch": 2, "dim": 32, "depth": 2}

#: Fields that are one name out of several.
_NAMED = {"dataset": data.NAMES, "protocol": training.recipes.RECIPES, "architecture": models.ARCHITECTURES}
_NAMED |= {"activation": models.ACTIVATIONS, "initial": models.INITIAL, "attention": kernels.KERNELS}
_NAMED |= {"penalty": regularizers.PENALTIES, "wanted": ("none", *regularizers.WANTED)}
_NAMED |= dict.fromkeys(("trainer", "teacher_trainer"), training.TRAINERS)

#: What is added to a network's seed to make that of its teacher.
TEACHER = 1_000_000


@dataclass(frozen=True)
class Experiment:
    """How one network is trained; what a value may be is checked.

    Raises:
        ValueError: a field out of range, or a name that no registry holds.

    Example:
        >>> Experiment(dataset="digits", step_size=0.1, batch_size=64, epochs=10, seed=0).recipe.step_size
        0.1
    """

    dataset: str
    step_size: float  # of SGD (the peak, where it is annealed)
    batch_size: int
    epochs: int  # of a plateau run; a matched one has more patience, see `training.recipes`
    seed: int  # of initial weights and batch order
    protocol: str = "matched"  # how training ends and under what, see `training.recipes`
    side: int | None = None  # height and width after average pooling; None keeps the images
    n_train: int = 1000  # training images, class-balanced
    architecture: str = "mlp"
    activation: str = "gelu"
    initial: str = "wide"  # size of the initial weights, see `models.INITIAL`
    momentum: float = 0.9
    attention: str = TRANSFORMER["attention"]  # a transformer's kernel,
    patch: int = TRANSFORMER["patch"]  # side of its patches in pixels,
    dim: int = TRANSFORMER["dim"]  # length of its tokens,
    depth: int = TRANSFORMER["depth"]  # number of its blocks
    weight_decay: float | None = field(default=None, metadata=since(None))  # None: what the protocol says
    penalty: str = field(default="none", metadata=since("none"))  # one of `regularizers.PENALTIES`,
    strength: float = field(default=0.0, metadata=since(0.0))  # what it is multiplied by
    trainer: str = field(default="sgd", metadata=since("sgd"))  # one of `training.TRAINERS`,
    around: float = field(default=0.0, metadata=since(0.0))  # its radius, in weights ("sam") or in 1/255 of the pixels
    wanted: str = field(default="none", metadata=since("none"))  # one of `regularizers.WANTED`: maps of a teacher,
    teacher_trainer: str = field(default="sgd", metadata=since("sgd"))  # which this trainer made,
    teacher_around: float = field(default=0.0, metadata=since(0.0))  # with this radius

    def __post_init__(self) -> None:
        for name, accepted in _NAMED.items():
            checks.one_of(name, getattr(self, name), accepted)
        checks.positive("step_size", self.step_size)
        checks.count("batch_size", self.batch_size, most=checks.count("n_train", self.n_train))
        checks.count("seed", self.seed, least=0)
        for name in ("epochs", "patch", "dim", "depth"):
            checks.count(name, getattr(self, name))
        for name, default in TRANSFORMER.items():
            if self.architecture != "vit" and (value := getattr(self, name)) != default:
                raise ValueError(f"{name} is {value!r}; a network of architecture {self.architecture!r} has none")
        for name in ("strength", "around", "teacher_around"):
            checks.at_least(name, getattr(self, name), 0)
        for name in ("step_size", "momentum", "strength", "around", "teacher_around"):  # runs.csv holds 1.0, never 1
            object.__setattr__(self, name, float(getattr(self, name)))
        if self.weight_decay is not None:
            object.__setattr__(self, "weight_decay", float(checks.at_least("weight_decay", self.weight_decay, 0)))
        if self.around and self.trainer == "sgd":
            raise ValueError(f"around is {self.around!r}; trainer 'sgd' takes none")
        if (self.wanted != "none") != (self.penalty == "interpretation"):
            raise ValueError(
                f"wanted is {self.wanted!r} beside penalty {self.penalty!r}; 'interpretation' alone needs maps"
            )
        if self.wanted == "none" and (self.teacher_trainer, self.teacher_around) != ("sgd", 0):
            raise ValueError(f"teacher_trainer is {self.teacher_trainer!r}; without wanted maps there is no teacher")
        _ = self.teacher
        _ = self.recipe  # refuses what else does not go together

    @property
    def recipe(self) -> training.Recipe:
        """How `training.fit` trains it: everything its weights depend on beside the data and the untrained network."""
        words = ("step_size", "batch_size", "epochs", "momentum", "penalty", "strength", "trainer")
        fields = {name: getattr(self, name) for name in words}
        fields["radius"] = self.around / 255 if self.trainer in training.IN_PIXELS else self.around
        if self.weight_decay is not None:
            fields |= {"weight_decay": self.weight_decay, "step_x_decay": 0.0}
        return training.recipes.named(self.protocol, **fields)

    @property
    def teacher(self) -> "Experiment | None":
        """The network whose maps it is drawn to: of the same recipe, but for penalty and trainer, and another seed."""
        if self.wanted == "none":
            return None
        plain = {"penalty": "none", "strength": 0.0, "wanted": "none", "teacher_trainer": "sgd", "teacher_around": 0.0}
        own = {"trainer": self.teacher_trainer, "around": self.teacher_around, "seed": self.seed + TEACHER}
        return dataclasses.replace(self, **plain, **own)


@dataclass(frozen=True)
class Measurement:
    """What is measured on a trained network, and how hard it is attacked; lists are kept in order.

    Raises:
        ValueError: a radius, share or count out of range, or the name of a map or readout that is not known.

    Example:
        >>> Measurement(radii=(8,), maps=("saliency",)).radii
        (8,)
    """

    radii: tuple[float, ...] = (4, 8)  # of the linf ball, in 1/255 of the pixel range: of every map,
    radii_of: tuple[tuple[str, float], ...] = ()  # and further ones of single maps, (map, radius)
    effort: attacks.Effort | attacks.Heavy = field(default_factory=attacks.Effort)  # of the attack `auto`, or `heavy`
    held: float | None = None  # largest change of a probability under attack; None holds the predicted class alone
    n_attacked: int = 64  # test images attacked and measured, each seed's own draw
    k_share: float = 0.1  # share of pixels compared by the top-k intersection
    trace_products: int = 30  # budget of the trace estimate
    curvature: bool = True  # whether flatness and the input side are measured too
    maps: tuple[str, ...] = MAPS  # that are attacked, those of them that the network has (`explanations.explaining`)
    readouts: tuple[str, ...] = tuple(READOUTS)  # that gradients are taken of

    def __post_init__(self) -> None:
        for radius in (*self.radii, *(radius for _, radius in self.radii_of)):
            checks.at_least("radius", radius, 0)
        for name, _ in self.radii_of:
            checks.one_of("a map of radii_of", name, self.maps)
        checks.kind("effort", self.effort, attacks.Effort, attacks.Heavy)
        if self.held is not None:
            checks.positive("held", self.held)
        checks.count("effort.steps", self.effort.steps)
        checks.count("n_attacked", self.n_attacked)
        if not 0 < self.k_share <= 1:
            raise ValueError(f"k_share is {self.k_share!r}; it must lie in (0, 1]")
        known = on_the_patch_grid(1) | of_pixels()
        for name in self.maps:
            checks.one_of("map", name, known)
        for name in self.readouts:
            checks.one_of("readout", name, READOUTS)
        object.__setattr__(self, "radii", tuple(sorted({_plain(r) for r in self.radii})))
        object.__setattr__(self, "radii_of", tuple(sorted({(name, _plain(r)) for name, r in self.radii_of})))
        for name in ("maps", "readouts"):
            object.__setattr__(self, name, tuple(sorted(set(getattr(self, name)))))

    def asked(self, maps: Iterable[str]) -> dict[float, list[str]]:
        """Which of the maps are attacked at each radius, the smallest first."""
        maps, own = list(maps), {radius for _, radius in self.radii_of}
        return {
            radius: [name for name in maps if radius in self.radii or (name, radius) in self.radii_of]
            for radius in sorted({*self.radii, *own})
        }


def sized(architecture: str, dataset: str) -> dict[str, object]:
    """Fields of an Experiment that say how large its network and its images are, by one rule for all notebooks.

    Raises:
        ValueError: an unknown architecture or data set.

    Example:
        >>> sized("convnet", "fashion_mnist"), sized("vit", "digits")["patch"]
        ({'architecture': 'convnet', 'dataset': 'fashion_mnist', 'side': 14}, 2)
    """
    checks.one_of("architecture", architecture, models.ARCHITECTURES)
    if architecture == "vit":
        return {"architecture": "vit", **VITS[checks.one_of("dataset", dataset, VITS)]}
    checks.one_of("dataset", dataset, data.NAMES)
    return {"architecture": architecture, "dataset": dataset, "side": SIDES.get(dataset)}


def calibrated(architecture: str, dataset: str, maps: Iterable[str]) -> tuple[tuple[str, float], ...]:
    """Maps with the radius of each, as `Measurement.radii_of` takes them; a ValueError where pilots fixed none.

    Example:
        >>> calibrated("mlp", "digits", ["saliency"])
        (('saliency', 16),)
    """
    for name in maps:
        if (architecture, dataset, name) not in RADII:
            there = ", ".join(n for a, d, n in RADII if (a, d) == (architecture, dataset)) or "none"
            raise ValueError(f"map is {name!r}; {architecture!r} on {dataset!r} has a radius, by pilots, for {there}")
    return tuple((name, RADII[architecture, dataset, name]) for name in maps)


def _plain(radius: float) -> float:
    return int(radius) if radius == int(radius) else radius


def grid(**axes: object) -> list[Experiment]:
    """All combinations of the given axes; a value that is not a list is held fixed.

    Raises:
        ValueError: an axis that is no field of Experiment.

    Example:
        >>> len(grid(dataset="digits", step_size=[0.01, 0.1], batch_size=64, epochs=10, seed=[0, 1, 2]))
        6
    """
    for name in axes:
        checks.one_of("axis", name, [f.name for f in dataclasses.fields(Experiment)])
    lists = [list(v) if isinstance(v, list | tuple) else [v] for v in axes.values()]
    return [Experiment(**dict(zip(axes, values, strict=True))) for values in itertools.product(*lists)]
