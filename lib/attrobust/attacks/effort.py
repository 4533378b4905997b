"""How hard the suite tries, and what that costs: counted on paper, to the pass."""

from dataclasses import dataclass

from attrobust import checks


@dataclass(frozen=True)
class Effort:
    """How hard `auto` tries. Defaults are our choice; notebook 01 shows what more would buy.

    Args:
        steps: gradient steps of each ascent; 0 leaves the gradient parts out.
        restarts: random starts of each ascent, side by side.
        draws: one-shot perturbations of full size; 0 leaves the noise part out.
        walk: steps of the random-sign walk; 0 leaves it out.
        eot: fresh draws a stochastic map's objective is averaged over, at each gradient step.
        relative_step: first gradient step over the radius; annealed to zero by a half cosine.

    Raises:
        ValueError: for a number out of range, or if nothing would be tried.
    """

    steps: int = 20
    restarts: int = 2
    draws: int = 20
    walk: int = 20
    eot: int = 1
    relative_step: float = 0.5

    def __post_init__(self) -> None:
        for name in ("steps", "draws", "walk"):
            checks.count(name, getattr(self, name), least=0)
        for name in ("restarts", "eot"):
            checks.count(name, getattr(self, name))
        checks.positive("relative_step", self.relative_step)
        if not self.steps + self.draws + self.walk:
            raise ValueError("steps, draws and walk are all 0; one of them must be at least 1")


@dataclass(frozen=True)
class Passes:
    """Images sent through a network and gradients sent back to its pixels, each counted per image."""

    forward: int
    backward: int


def passes(
    effort: Effort,
    *,
    images: int,
    objectives: int = 5,
    twins: int = 0,
    built: bool = False,
    stochastic: bool = False,
    starts: int = 0,
    forward: int = 1,
    backward: int = 1,
) -> Passes:
    """What `auto` spends on `images` images if none is broken early, exactly; with a goal, at most that.

    A map costs `forward` and `backward` passes, its gradient in the pixels `forward` backward passes more. Judging an
    iterate costs a map and a prediction, and on a climb one backward pass for the way back to the prediction; the map
    is the one just climbed where the attack climbs on the judged network itself and the map is deterministic.

    Args:
        effort: how hard the suite tries.
        images: in the batch.
        objectives: climbed; five, and one more with a wanted map.
        twins: networks climbed in place of the judged one; 0 if it has no kinks.
        built: whether `auto` builds the twins itself (it then looks once for kinks of the network).
        stochastic: whether the map takes a generator.
        starts: sets of starts that are judged.
        forward: images per map sent through the network: 1 for saliency, `steps` or `samples` for an average.
        backward: gradients per map sent back to the pixels: as many; 0 for attention itself.

    Example:
        >>> passes(Effort(steps=2, restarts=1, draws=0, walk=0), images=1, objectives=1)
        Passes(forward=9, backward=8)
    """
    rows, networks = images * effort.restarts, twins or 1
    climbs = objectives * networks * rows if effort.steps else 0
    fresh = effort.eot if stochastic else 1
    shared = not (twins or stochastic)
    judged = images * (effort.draws + effort.walk + starts) + climbs * (effort.steps + 1)
    maps = images + judged + (0 if shared else climbs * effort.steps * fresh)
    looks = (twins + built if twins else 1) if effort.steps else 0
    return Passes(
        forward=maps * forward + judged + images + looks,
        backward=maps * backward + climbs * effort.steps * (1 + fresh * forward),
    )
