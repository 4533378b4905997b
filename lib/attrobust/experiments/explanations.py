"""The explanations of one network: how each holds under attack, what it is like, and what a transformer's rows are.

A map is told by its name and the readout that it explains; a transformer's live on its grid of patches.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from attrobust import attention, attributions, curvature, robustness, similarity
from attrobust.attacks import Effort, Heavy, Streams, explain
from attrobust.attacks.streams import stochastic
from attrobust.balls import Ball
from attrobust.models.readouts import Readout, log_probability, logit
from attrobust.rows import DECIDING
from attrobust.shapes import Attribution, Images, Labels, Maps, OnePlane
from attrobust.theory import entropy
from attrobust.versions import versioned

HeadRows = Float[Tensor, "batch heads keys"]

#: What a map may explain; both are asked everywhere.
READOUTS: dict[str, Readout] = {"logit": logit, "log_probability": log_probability}

#: Maps made of attention weights alone: they explain no readout.
ATTENTION_ALONE = ("raw_attention", "even_heads", "rollout", "plain_rollout")

#: Maps of a network with convolutions, and of any network, that explain the logit alone.
OF_CONVOLUTIONS, OF_LOGIT = ("grad_cam",), ("lrp", "deep_lift")

#: Maps that average gradients, and their settings (our choice), which enter keys: steps of the path from black, noise
#: in units of the pixel range, half-width of the box, samples.
AVERAGED = ("integrated_gradients", "smooth_grad", "uniform_grad")
PATH_STEPS, SIGMA, BOX, SAMPLES = 16, 0.1, 8 / 255, 16

#: Images on which they are attacked: of a plain network, and where residual blocks make each gradient dearer.
FEW, FEWEST = 32, 16

#: Side of the patches that are covered in turn where a network has none of its own.
COVERED = 2

#: What a map is like, whatever attacks it.
CONTROLS = ("between", "contrast", "entropy", "occlusion")


def on_the_patch_grid(patch: int, readout: Readout = logit) -> dict[str, Attribution]:
    """The compared attributions of a transformer by name; those of pixels are pooled to patches first.

    Example:
        >>> list(on_the_patch_grid(2))[-3:]
        ['plain_rollout', 'gradient_attention', 'relevance']
    """
    names = ("saliency", "input_x_gradient", "integrated_gradients", "smooth_grad", "uniform_grad")
    pooled = {name: of_pixels(readout)[name] for name in names}
    how = {n: attributions.drawn_on_patches if stochastic(of) else attributions.on_patches for n, of in pooled.items()}
    return {
        **{n: partial(how[n], attribution=of, patch=patch) for n, of in pooled.items()},
        "raw_attention": attributions.raw_attention,
        "even_heads": partial(attributions.raw_attention, even=True),
        "rollout": attributions.rollout,
        "plain_rollout": partial(attributions.rollout, renormalise=False),
        "gradient_attention": partial(attributions.gradient_attention, readout=readout),
        "relevance": partial(attributions.relevance, readout=readout),
    }


def of_pixels(readout: Readout = logit) -> dict[str, Attribution]:
    """The compared attributions of any network by name, pixel by pixel; LRP and DeepLIFT explain the logit alone.

    Example:
        >>> list(of_pixels())[:3]
        ['saliency', 'input_x_gradient', 'integrated_gradients']
    """
    return {
        "saliency": partial(attributions.saliency, readout=readout),
        "input_x_gradient": partial(attributions.input_x_gradient, readout=readout),
        "integrated_gradients": partial(attributions.integrated_gradients, steps=PATH_STEPS, readout=readout),
        "smooth_grad": partial(attributions.smooth_grad, sigma=SIGMA, samples=SAMPLES, readout=readout),
        "uniform_grad": partial(attributions.uniform_grad, ball=Ball("linf", BOX), samples=SAMPLES, readout=readout),
        "grad_cam": partial(last_maps, readout=readout),
        "lrp": attributions.lrp,
        "deep_lift": attributions.deep_lift,
    }


@versioned(2)
def last_maps(model: nn.Module, x: Images, target: Labels, *, readout: Readout = logit) -> OnePlane:
    """Grad-CAM of the last feature maps of a network of ours, or of its smooth twin; a ValueError if it has none."""
    layer = getattr(getattr(model, "stands_for", model), "last_maps", None)
    if layer is None:
        raise ValueError(f"model is a {type(model).__name__} without feature maps; Grad-CAM needs such a layer")
    return attributions.grad_cam(model, x, target, layer=layer, readout=readout)


def explaining(architecture: str, names: Iterable[str]) -> list[str]:
    """Those of the maps that a network of this architecture has.

    Example:
        >>> explaining("mlp", ["saliency", "rollout", "grad_cam"]), explaining("vit", ["saliency", "rollout"])
        (['saliency'], ['saliency', 'rollout'])
    """
    there = on_the_patch_grid(1) if architecture == "vit" else of_pixels()
    absent = OF_CONVOLUTIONS if architecture == "mlp" else ()
    return [name for name in names if name in there and name not in absent]


def affordable(architecture: str, name: str, n: int) -> int:
    """How many of n images a map of a network is attacked on: fewer of maps that average gradients.

    Example:
        >>> affordable("mlp", "saliency", 64), affordable("mlp", "smooth_grad", 64)
        (64, 32)
    """
    if name not in AVERAGED:
        return n
    return min(n, FEWEST if architecture.startswith("resnet") else FEW)


def compared(
    patch: int | None, names: Sequence[str], readouts: Sequence[str] = ("logit",)
) -> dict[tuple[str, str], Attribution]:
    """Attributions by map and readout, "none" for attention alone; on the grid of patches, if there are any.

    Example:
        >>> list(compared(2, ["saliency", "rollout"], ["logit", "log_probability"]))
        [('saliency', 'logit'), ('saliency', 'log_probability'), ('rollout', 'none')]
    """
    found: dict[tuple[str, str], Attribution] = {}
    for name in names:
        for readout in ("none",) if name in ATTENTION_ALONE else ("logit",) if name in OF_LOGIT else readouts:
            asked = READOUTS.get(readout, logit)
            found[name, readout] = (on_the_patch_grid(patch, asked) if patch else of_pixels(asked))[name]
    return found


@versioned(3)
def under_attack(
    model: nn.Module, x: Images, *, maps: Mapping[tuple[str, str], Attribution], k: int, radius: float,
    effort: Effort | Heavy, seed: int, held: float | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Mean similarity of clean and attacked maps, one row per map, readout and attack (noise, worst).

    Means over the images that were attacked, NaN where their number `n` is 0; `zero_maps` counts clean maps that are
    zero everywhere, `images` holds the deciding metric of the worst case image by image. The radius is that of the linf
    ball, in 1/255 of the pixel range; k pixels or patches are compared by the top-k intersection; `held` is as in
    `attacks.auto`.

    Example:
        >>> from attrobust import models
        >>> model = models.build("mlp", input_shape=(1, 4, 4), classes=3, seed=0, width=8).eval()
        >>> x, maps = torch.linspace(0.1, 0.9, 32).view(2, 1, 4, 4), {("saliency", "logit"): attributions.saliency}
        >>> effort = Effort(steps=2, restarts=1, objectives=("cosine",))
        >>> under_attack(model, x, maps=maps, k=4, radius=8, effort=effort, seed=0)["attack"].tolist()
        ['noise', 'worst']
    """
    rows, how = [], {"ball": Ball("linf", radius / 255), "k": k, "effort": effort, "refuse": False, "held": held}
    with torch.no_grad():
        target = model(x).argmax(1)
    for (name, readout), attribution in maps.items():
        empty = attributions.zero_maps(clean_maps(attribution, model, x, target, seed))
        draw = torch.Generator().manual_seed(seed)
        table = robustness.attribution_robustness(model, x, attributions={name: attribution}, generator=draw, **how)
        by_attack = table.drop(columns=["image", "attribution"]).groupby("attack")
        means, attacked = (t.reindex(["noise", "worst"]) for t in (by_attack.mean(), by_attack["spearman"].count()))
        counts = {"zero_maps": int(empty.sum()), "n": attacked.fillna(0).astype(int)}
        deciding = table.loc[table["attack"] == DECIDING["attack"], DECIDING["metric"]]
        told = {"map": name, "readout": readout, "images": ["", " ".join(f"{value:.4f}" for value in deciding)]}
        rows.append(means.where(attacked > 0).assign(**told, **counts).reset_index())
    return pd.concat(rows, ignore_index=True)


@versioned(1)
def controls(
    model: nn.Module, x: Images, *, maps: Mapping[tuple[str, str], Attribution], patch: int | None
) -> pd.DataFrame:
    """What the clean maps are like, one row per map and readout: means over the images whose map is not zero.

    `between` (rank correlation with the maps of other images: near 1 for a map that is always the same), `contrast`
    (standard deviation of the importances over their mean), `entropy` (of the importances as a distribution, over its
    largest), `occlusion` (rank correlation of the importances, on patches, with what covering a patch changes of the
    readout, of the logit where a map has none), and the number `n` of maps.

    Example:
        >>> from attrobust import models
        >>> model = models.build("mlp", input_shape=(1, 4, 4), classes=3, seed=0, width=8).eval()
        >>> x = torch.linspace(0.1, 0.9, 32).view(2, 1, 4, 4)
        >>> controls(model, x, maps={("saliency", "logit"): attributions.saliency}, patch=None)["n"].tolist()
        [2]
    """
    rows, changes = [], {}
    with torch.no_grad():
        target = model(x).argmax(1)
    for (name, readout), attribution in maps.items():
        asked = READOUTS.get(readout, logit)
        with torch.no_grad():
            found, side = clean_maps(attribution, model, x, target, 0), patch or COVERED
            if asked not in changes:
                changes[asked] = attributions.occlusion(model, x, target, patch=side, readout=asked)[:, 0].abs()
        told = ~attributions.zero_maps(found)
        importances = attributions.pixelwise(found)[told]
        coarse = importances if patch else attributions.patches(importances[:, None], patch=side)[:, 0]
        flat = importances.flatten(1).double()
        values = {
            "between": similarity.between(importances),
            "contrast": similarity.centred(flat).norm(dim=1) / flat.shape[1] ** 0.5 / flat.mean(1),
            "entropy": entropy.row_entropy(flat) / np.log(flat.shape[1]),
            "occlusion": similarity.spearman(coarse, changes[asked][told]),
        }
        means = {name: float(value.double().mean()) for name, value in values.items()}
        rows.append({"map": name, "readout": readout, **means, "n": int(told.sum())})
    return pd.DataFrame(rows)


def clean_maps(attribution: Attribution, model: nn.Module, x: Images, target: Labels, seed: int) -> Maps:
    """Maps of the images as they are; stochastic ones under draws of each image's own."""
    streams = Streams(x, generator=torch.Generator().manual_seed(seed))
    return explain(attribution, model, x, target, streams.common()).detach()


def cls_rows(model: nn.Module, x: Images) -> tuple[HeadRows, HeadRows]:
    """Scores and attention weights of the CLS query in the last block, head by head, CLS key included.

    Example:
        >>> from attrobust import models
        >>> size = {"input_shape": (1, 4, 4), "classes": 2, "patch": 2, "dim": 4, "heads": 2, "depth": 1}
        >>> scores, weights = cls_rows(models.build("vit", seed=0, **size).eval(), torch.zeros(1, 1, 4, 4))
        >>> tuple(weights.shape)  # image, head, key
        (1, 2, 5)
    """
    return model.scores(x)[-1][:, :, 0], model.attend(x)[1][-1][:, :, 0]


@versioned(1)
def inside(model: nn.Module, x: Images, *, patch: int, k: int) -> dict[str, float]:
    """What the attention rows behind the maps look like, averaged over images (and heads).

    `entropy` (of a CLS row divided by its mass, over its largest), `norm` (of the row's Jacobian in its scores; not
    where rows share columns), `margin` (gap of the scores after the k-th patch), and for scores, raw attention and
    saliency how fast they move with the pixels: `..._sensitivity` (Frobenius norm of the Jacobian) and `..._relative`
    (of its centred part, over the contrast of what moves: the rate at which R_s of notebook 06 grows). For a kernel
    other than softmax also `mass` (of a row) and `empty` (share of rows without any); where a number does not exist, it
    is then left out of its mean.

    Example:
        >>> from attrobust import models
        >>> size = {"input_shape": (1, 4, 4), "classes": 2, "patch": 2, "dim": 4, "heads": 2, "depth": 1}
        >>> model = models.build("vit", seed=0, **size).eval()
        >>> found = inside(model, torch.linspace(0, 1, 16).view(1, 1, 4, 4), patch=2, k=1)
        >>> 0 < found["entropy"] <= 1
        True
    """
    kernel, softmax, maps = model.blocks[-1].attention.kernel, _is_softmax(model), on_the_patch_grid(patch)
    with torch.no_grad():
        scores, weights = cls_rows(model, x)
        target = model(x).argmax(1)
        found = {"entropy": entropy.row_entropy(weights) / entropy.row_entropy(torch.ones_like(weights[0, 0]))}
        if softmax:
            found["norm"] = entropy.softmax_jacobian_norm(weights)
        elif kernel.norm != "rows_and_columns":
            found["norm"] = entropy.row_jacobian_norm(lambda rows: kernel.weights(rows[None, None])[0, 0], scores)
        found["margin"] = entropy.topk_gap(scores[:, :, 1:], k=k)
        if not softmax:
            found |= {"mass": entropy.row_mass(weights), "empty": (weights.sum(-1) == 0).double()}
    found |= _sensitivity("score", lambda at: cls_rows(model, at)[0], x, heads=scores.shape[1])
    for name, attribution in (("map", maps["raw_attention"]), ("saliency", maps["saliency"])):
        found |= _sensitivity(name, partial(attribution, model, target=target), x)
    return {name: float((value if softmax else value[~value.isnan()]).double().mean()) for name, value in found.items()}


def inside_names(kernel: str) -> list[str]:
    """What `inside` tells of a transformer with this attention, one of `attention.KERNELS`."""
    words = attention.KERNELS[kernel]
    rows = ["entropy", *(["norm"] if words["norm"] != "rows_and_columns" else []), "margin"]
    if words != attention.KERNELS["softmax"]:
        rows += ["mass", "empty"]
    return rows + [f"{name}_{rate}" for name in ("score", "map", "saliency") for rate in ("sensitivity", "relative")]


def _is_softmax(model: nn.Module) -> bool:
    kernel = model.blocks[-1].attention.kernel
    return {word: getattr(kernel, word) for word in ("score", "link", "norm")} == attention.KERNELS["softmax"]


def _sensitivity(name: str, function: Callable[[Images], Tensor], x: Images, *, heads: int = 1) -> dict[str, Tensor]:
    at = x.detach().requires_grad_()
    outputs = function(at).flatten(1)
    jacobian = curvature.jacobian_of(outputs, at).unflatten(1, (heads, -1))
    contrast = entropy.centred_norm(outputs.detach().unflatten(1, (heads, -1)))
    turning = (jacobian - jacobian.mean(2, keepdim=True)).flatten(2).norm(dim=2)
    return {f"{name}_sensitivity": jacobian.flatten(2).norm(dim=2), f"{name}_relative": turning / contrast}


@versioned(1)
def margins(model: nn.Module, x: Images, *, k: int) -> pd.DataFrame:
    """One row per image and head: everything that the statements about softmax rows (of no other kernel) speak of.

    Raises:
        ValueError: a model whose last block attends by another kernel than softmax.

    Example:
        >>> from attrobust import models
        >>> size = {"input_shape": (1, 4, 4), "classes": 2, "patch": 2, "dim": 4, "heads": 2, "depth": 1}
        >>> table = margins(models.build("vit", seed=0, **size).eval(), torch.zeros(1, 1, 4, 4), k=1)
        >>> len(table), bool((table["floor"] <= table["entropy"]).all())
        (2, True)
    """
    if not _is_softmax(model):
        raise ValueError(f"model attends by {model.blocks[-1].attention.kernel}; the statements are about softmax rows")
    with torch.no_grad():
        scores, weights = (part.double() for part in cls_rows(model, x))
        patches = scores[:, :, 1:]
        lower, upper = entropy.jacobian_bounds(weights)
        columns = {
            "entropy": entropy.row_entropy(weights),
            "norm": entropy.softmax_jacobian_norm(weights),
            "norm_below": lower,
            "norm_above": upper,
            "floor": entropy.entropy_floor(entropy.centred_norm(scores), keys=scores.shape[-1]),
            "gap": entropy.topk_gap(patches, k=k),
            "ceiling": entropy.margin_ceiling(entropy.softmax_entropy(patches), keys=patches.shape[-1], k=k),
        }
    return pd.DataFrame({name: values.flatten().cpu().numpy() for name, values in columns.items()})
