"""Recipes with a name: what ends a run, and what it runs under.

| name         | ends                     | weight decay        | question                            |
|--------------|--------------------------|---------------------|-------------------------------------|
| `matched`    | training loss below 0.01 | none                | the minimum, at the same fit        |
| `plateau`    | fixed budget, annealed   | none                | what if training goes on?           |
| `standard`   | as plateau               | 5e-4                | what does a practitioner get?       |
| `decay_held` | as plateau               | step x decay = 3e-5 | how much of `standard` is the step? |

In `standard` a larger step also means more decay per update; in `decay_held` it does not. Used by notebooks 01, 03, 06
and 07.
"""

from attrobust import checks
from attrobust.training.recipe import Recipe

#: What each name fixes; the rest is the caller's.
RECIPES: dict[str, dict[str, object]] = {
    "matched": {"momentum": 0.9, "stop_loss": 0.01, "patience": 5},
    "plateau": {"momentum": 0.9, "schedule": "cosine"},
    "standard": {"momentum": 0.9, "schedule": "cosine", "weight_decay": 5e-4},
    "decay_held": {"momentum": 0.9, "schedule": "cosine", "step_x_decay": 3e-5},
}


def named(name: str, *, step_size: float, batch_size: int, epochs: int, **changes: object) -> Recipe:
    """A recipe of `RECIPES`.

    Args:
        name: one of `RECIPES`.
        step_size: of SGD (the peak, where it is annealed).
        batch_size: images per update.
        epochs: passes over the images; a `matched` run may take five times as many.
        **changes: other fields of a Recipe, which win over what the name fixes.

    Returns:
        The recipe.

    Raises:
        ValueError: for an unknown name, or a value that a Recipe refuses.

    Example:
        >>> named("decay_held", step_size=0.06, batch_size=64, epochs=400).decay
        0.0005
    """
    checks.one_of("recipe", name, RECIPES)
    return Recipe(**{"step_size": step_size, "batch_size": batch_size, "epochs": epochs} | RECIPES[name] | changes)
