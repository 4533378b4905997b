"""How hard an attack tries, and its price on paper."""

import itertools

import pytest
from attrobust import attacks
from attrobust.attacks import Effort, Passes, passes


def test_an_effort_needs_one_of_its_three_parts(unchecked):
    for steps, draws, walk in itertools.product((0, 1, 20), repeat=3):
        if steps or draws or walk:
            assert Effort(steps=steps, draws=draws, walk=walk).walk == walk
        else:
            with pytest.raises(ValueError, match="steps, draws and walk are all 0"):
                Effort(steps=steps, draws=draws, walk=walk)
    assert Effort(momentum=0).momentum == 0
    assert Effort(objectives=["cosine"], betas=[3, 7.0]).betas == (3, 7)
    assert Effort(betas=()).betas == ()


@pytest.mark.parametrize(("name", "value"), [("eot", 0), ("draws", -1), ("walk", -1), ("momentum", -0.1)])
def test_a_part_out_of_range_is_refused_by_name(name, value, unchecked):
    with pytest.raises(ValueError, match=rf"{name} is {value}"):
        Effort(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("steps", 0), ("starts", 0)])
def test_the_heavy_attack_steps_from_somewhere(name, value):
    assert getattr(attacks.Heavy(**{name: 1}), name) == 1
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be a whole number of at least 1"):
        attacks.Heavy(**{name: value})


def by_hand(effort, n, *, wanted, twins, built, stochastic, starts, lost, logits, forward, backward):
    """The passes of an attack on n images, told one after the other."""
    made = gradients = predicted = 0  # maps, their gradients, predictions
    made, predicted = n, n  # of the clean images
    audited = (twins or 1) + built if effort.steps else 0
    made, gradients = made + 5 * n * audited, gradients + 2 * n * audited
    judged = n * (effort.draws + effort.walk + starts)
    for _ in range((len(effort.objectives) + wanted) * (twins or 1) * effort.restarts if effort.steps else 0):
        for step in range(effort.steps + 1):
            judged += n
            if step < effort.steps:
                draws = effort.eot if stochastic else 1
                gradients += n * draws
                made += n * draws if twins or stochastic else 0  # else the map that is judged is climbed
    predicted += 0 if logits and not stochastic else judged
    forwards, backwards = (made + judged) * forward + predicted, (made + judged) * backward + gradients * forward
    tried = 1 if built and effort.steps else 0  # to see kinks, and to try a twin
    return Passes(forwards + lost + 9 * n * tried, backwards + lost + n * tried)


@pytest.mark.parametrize(
    "effort", [Effort(), Effort(steps=0, draws=3, walk=1), Effort(steps=2, restarts=3, draws=0, walk=0, eot=4)]
)
@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize(("twins", "built"), [(0, False), (1, False), (3, True)])
def test_the_price_of_an_attack_is_counted_map_by_map(effort, wanted, logits, stochastic, twins, built):
    how = {"wanted": wanted, "twins": twins, "built": built, "stochastic": stochastic, "logits": logits}
    for rest in ({}, {"starts": 2, "lost": 7, "forward": 3, "backward": 5}):
        full = {"starts": 0, "lost": 0, "forward": 1, "backward": 1} | rest
        assert passes(effort, images=3, **how, **rest) == by_hand(effort, 3, **how, **full)
    with pytest.raises(ValueError, match="images is 0"):
        passes(effort, images=0)
