"""How hard the suite tries, and what that costs: counted on paper, to the pass."""

from dataclasses import dataclass

from attrobust import checks
from attrobust.attacks import objectives

#: Sharpness of the smooth twins that a network with kinks is climbed through; the worst counts.
BETAS = (5.0, 10.0, 50.0)
#: What can be climbed, by name.
CLIMBABLE = {
    "top_k": objectives.shift_topk, "unseat": objectives.unseat_topk, "center": objectives.shift_center,
    "spearman": objectives.lower_spearman, "cosine": objectives.lower_cosine, "pearson": objectives.lower_pearson,
}  # fmt: skip
#: What is climbed unless something else is said; with a wanted map "match" too.
OBJECTIVES = ("unseat", "spearman", "cosine", "pearson")
#: Directions along which a derivative is audited.
DIRECTIONS = 2


@dataclass(frozen=True)
class Effort:
    """How hard `auto` tries. Defaults are our choice; notebook 01 shows what more would buy.

    Raises:
        ValueError: a count, step, momentum or sharpness out of range, an objective that is not of `CLIMBABLE`, or
            nothing to do.

    Example:
        >>> Effort(steps=10, objectives=("cosine",)).objectives
        ('cosine',)
    """

    steps: int = 40  # gradient steps of each ascent; 0 leaves the gradient parts out
    restarts: int = 2  # random starts of each ascent, side by side: inside the ball and on its boundary by turns
    draws: int = 20  # one-shot perturbations of full size; 0 leaves the noise part out
    walk: int = 20  # steps of the random-sign walk; 0 leaves it out
    eot: int = 1  # fresh draws a stochastic map's objective is averaged over, at each gradient step
    relative_step: float = 0.5  # first gradient step over the radius; annealed to zero by a half cosine
    momentum: float = 0.75  # share of the last direction that is kept, below 1; 0 for plain projected gradient ascent
    objectives: tuple[str, ...] = OBJECTIVES  # what is climbed, names out of `CLIMBABLE`
    betas: tuple[float, ...] = BETAS  # sharpness of the twins that are built for a network with kinks; () to build none

    def __post_init__(self) -> None:
        for name in ("steps", "draws", "walk"):
            checks.count(name, getattr(self, name), least=0)
        for name in ("restarts", "eot"):
            checks.count(name, getattr(self, name))
        checks.positive("relative_step", self.relative_step)
        if checks.at_least("momentum", self.momentum, 0) >= 1:
            raise ValueError(f"momentum is {self.momentum!r}; it must be below 1")
        for name in ("objectives", "betas"):
            checks.kind(name, getattr(self, name), tuple, list)
        object.__setattr__(self, "objectives", tuple(self.objectives))
        object.__setattr__(self, "betas", tuple(checks.positive("beta", beta) for beta in self.betas))
        for name in self.objectives:
            checks.one_of("objective", name, CLIMBABLE)
        if not self.steps + self.draws + self.walk:
            raise ValueError("steps, draws and walk are all 0; one of them must be at least 1")


@dataclass(frozen=True)
class Heavy:
    """How hard `heavy` tries.

    Raises:
        ValueError: `steps` or `starts` below 1.

    Example:
        >>> Heavy(starts=2)
        Heavy(steps=300, starts=2)
    """

    steps: int = 300  # gradient steps of each ascent
    starts: int = 10  # random starts of each objective

    def __post_init__(self) -> None:
        for name in ("steps", "starts"):
            checks.count(name, getattr(self, name))


#: The attack of this project's first results, kept for comparison at the same number of gradients as `Effort()`.
FIRST_VERSION = Effort(steps=20, restarts=4, momentum=0, objectives=("top_k", "center", "cosine", "pearson"))


@dataclass(frozen=True)
class Passes:
    """Images sent through a network and gradients sent back to its pixels, each counted per image.

    Example:
        >>> Passes(forward=10, backward=13).backward
        13
    """

    forward: int
    backward: int


def passes(
    effort: Effort, *, images: int, wanted: bool = False, twins: int = 0, built: bool = False, stochastic: bool = False,
    starts: int = 0, lost: int = 0, logits: bool = False, forward: int = 1, backward: int = 1,
) -> Passes:  # fmt: skip
    """What `auto` spends on `images` images if none is broken early, exactly; with a goal, at most that.

    A map costs `forward` and `backward` passes, its gradient in the pixels `forward` backward passes more. Judging an
    iterate costs a map (the one just climbed, where that is deterministic and of the judged network itself), and a
    prediction unless the map brings its logits along. An iterate that lost its prediction costs one pass each way for
    the way back. Before that, the derivative is audited: five maps and two gradients of one on each network; and where
    twins are built, the images pass 9 times, once back, to see the network's kinks and to try a twin (where no map
    moved in the audit, up to 10 maps across the ball and one pass each way first say whether any does). A network that
    is met for the first time is looked at before all that, once (`models.guards`: 66 images forward and 8 back as a
    rule; a batch larger than any before passes once more, and some ten maps are made of an image and a drawn one).

    Args:
        effort, images: how hard the suite tries, and on how many images; all of them pass the audit.
        wanted: whether a map is wanted, one objective more.
        twins: networks climbed in place of the judged one; 0 if the judged one is climbed.
        built: whether `auto` builds the twins itself, after the judged network failed the audit.
        stochastic: whether the map takes a generator.
        starts: sets of starts that are judged.
        lost: iterates that lost their prediction, over all parts (`Found.lost`).
        logits: whether the map `brings_logits`, as saliency does, which saves every prediction of an iterate.
        forward: images per map sent through the network: 1 for saliency, `steps` or `samples` for an average.
        backward: gradients per map sent back to the pixels: as many; 0 for attention itself.

    Raises:
        ValueError: an `effort` that is no Effort, or `images` below 1.

    Example:
        >>> effort = Effort(steps=2, restarts=1, draws=0, walk=0, objectives=("cosine",))
        >>> passes(effort, images=1, logits=True)  # 1 + 5 + 3 maps, 1 prediction; gradients of 4 maps
        Passes(forward=10, backward=13)
    """
    checks.kind("effort", effort, Effort)
    checks.count("images", images)
    rows, networks = images * effort.restarts, twins or 1
    climbs = (len(effort.objectives) + wanted) * networks * rows if effort.steps else 0
    fresh = effort.eot if stochastic else 1
    shared = not (twins or stochastic)
    judged = images * (effort.draws + effort.walk + starts) + climbs * (effort.steps + 1)
    audits = images * (networks + built) if effort.steps else 0
    maps = images + judged + audits * (2 * DIRECTIONS + 1) + (0 if shared else climbs * effort.steps * fresh)
    gradients = audits * DIRECTIONS + climbs * effort.steps * fresh
    tried = images if built and effort.steps else 0
    predictions = images + (0 if logits and not stochastic else judged) + lost
    return Passes(maps * forward + predictions + 9 * tried, maps * backward + gradients * forward + tried + lost)
