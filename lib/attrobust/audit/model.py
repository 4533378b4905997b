"""A classifier of the reader's own, ready to be audited: in eval mode, its weights fixed, one tensor of logits out.

It comes from a function in a module or a file (the reader's own code, which runs), or from a folder in which
transformers saved an image classifier; weights come as data, and no code in a checkpoint is ever executed.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attrobust import checks
from attrobust.audit.folders import classifier_in
from attrobust.audit.functions import FORMS, called, names, undisturbed
from attrobust.audit.weights import fill, sound, state_dict, weights_file
from attrobust.models import watched
from attrobust.shapes import Images, Labels


def load_model(source: str, *, weights: str = "", device: str = "cpu") -> nn.Module:
    """The classifier that `source` names: images (n, C, H, W) -> logits (n, classes), in eval mode, weights fixed.

    `source` is "package.module:function" or "path/to/file.py:function", a function that is called without arguments
    and returns an nn.Module, or the folder of an image classifier of transformers (extra: pip install attrobust[hf]).
    Of such a folder the pixels are standardised first, by the mean and std of its preprocessor_config.json if that says
    so; any other model gets the pixels as they are, in [0, 1]. `weights` is a file of its state dict, read as data:
    .safetensors, or .pt, .pth, .bin of torch.save, plain or under "state_dict", "model_state_dict" or "model"; every
    name and shape must fit. Weights that are not loaded are drawn from the same seed every time.

    Raises:
        ValueError: in one sentence, for a `source` that is not found, needs arguments, raises, or returns anything but
            a network; for `weights` that are missing, damaged, pickled code, that do not fit, or are not finite; for a
            `device` that is not there. What the model returns is judged when it runs, see `Classifier`.
        ImportError: for a package that `source` needs and that is not installed.

    Example:
        >>> load_model("torch.nn:Flatten")(torch.ones(2, 1, 1, 3)).shape
        torch.Size([2, 3])
    """
    found, path, place = _source(source), weights_file(weights), _device(device)
    said, mean, std = f"source is {source!r}", (), ()
    with undisturbed(place):
        if isinstance(found, Path):
            model, mean, std = classifier_in(found, said, own=path is None)
        else:
            model = called(*found, said)
    if path is not None:
        said = f"weights is {weights!r}"
        fill(model, state_dict(path, said), said)
    sound(model, said)
    return Classifier(model, mean=mean, std=std).to(place).eval().requires_grad_(False)


def check_classes(model: nn.Module, x: Images, y: Labels | None = None) -> int:
    """How many classes the model tells apart, seen from the first and the last of the images x, in [0, 1].

    Raises:
        ValueError: in one sentence, for a model that does not run on such images (of other channels, or of another
            size), that returns anything but two or more finite logits an image (probabilities, say, which lose in
            rounding what a map would explain), or knows fewer classes than y does.

    Example:
        >>> check_classes(nn.Flatten(), torch.zeros(5, 1, 1, 3), torch.tensor([0, 1, 2, 0, 1]))
        3
    """
    checks.kind("model", model, nn.Module)
    ends = checks.images("x", x)[[0, -1]]
    with watched.untouched(model), torch.no_grad():
        try:
            output = model(ends)
        except Exception as error:  # whatever a network of the reader's own raises
            if isinstance(error, UnknownOutputError):
                raise
            raise ValueError(
                f"model does not run on images of shape {tuple(x.shape[1:])} (channels, height, width) and dtype"
                f" {x.dtype}: {watched.said(error)}"
            ) from error
    logits = checks.logits("model", output, batch=len(ends), least=2)
    if not bool(logits.isfinite().all()):
        raise ValueError(f"model returns logits that are NaN or infinite for images of shape {tuple(x.shape[1:])}")
    if logits.min() >= 0 and (logits.sum(1) - 1).abs().max() < 1e-3:
        raise ValueError("model returns probabilities, rows sum to 1; it must return logits: leave its softmax out")
    if y is not None:
        checks.labels("y", y, batch=len(x), classes=logits.shape[1])
    return logits.shape[1]


class UnknownOutputError(ValueError):
    """A model returned something in which no logits are found."""


class Classifier(nn.Module):
    """One tensor of logits from a model that may return them in company; numbers are passed on as they are.

    They are what the model returns, if that is a tensor; or its `logits` (an attribute, or an entry of a dict); or the
    first entry of a tuple or list. A ValueError in `forward` says what else came. Where `mean` and `std` are given, one
    a channel, the pixels are standardised first.

    Example:
        >>> class Pair(nn.Module):
        ...     def forward(self, x):
        ...         return x.flatten(1), "features"
        >>> Classifier(Pair())(torch.ones(1, 1, 1, 2))
        tensor([[1., 1.]])
    """

    model: nn.Module
    training: bool

    def __init__(self, model: nn.Module, *, mean: Iterable[float] = (), std: Iterable[float] = ()) -> None:
        super().__init__()
        self.model = checks.kind("model", model, nn.Module)
        self.register_buffer("mean", torch.tensor([*mean])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor([*std])[:, None, None], persistent=False)
        self.training = watched.training(model)

    def forward(self, x: Images) -> Tensor:
        """Logits of each image."""
        return _logits(self.model(self._standardised(x)))

    @property
    def attend(self) -> Callable:
        """`attend` of the model (logits and attention maps); missing where the model has none."""
        own = self.model.attend

        def attend(x: Images) -> tuple[Tensor, list[Tensor]]:
            logits, maps = own(self._standardised(x))
            return _logits(logits), maps

        return attend

    def _standardised(self, x: Images) -> Float[Tensor, "batch channels height width"]:
        if not len(self.mean):
            return x
        if x.shape[1] != len(self.mean):
            raise ValueError(f"x has {x.shape[1]} channels; the model's own mean and std are of {len(self.mean)}")
        return (x - self.mean.to(x)) / self.std.to(x)


def _logits(output: object) -> Tensor:
    """The tensor of logits in what a model returned."""
    found = output
    if not isinstance(output, Tensor):
        found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
        if found is None and isinstance(output, tuple | list) and output:
            found = output[0]
    if not isinstance(found, Tensor):
        parts = f" of {names(map(str, output))}" if isinstance(output, Mapping) else ""
        raise UnknownOutputError(
            f"model returned a {type(output).__name__}{parts}, in which no logits are found; it must return a tensor of"
            " logits (batch, classes), a tuple whose first entry they are, or a dict or object with `logits`"
        )
    return found


def _source(source: str) -> Path | tuple[str | Path, str]:
    """The folder of a model of transformers; or a module's name or a file's path, and a function's name."""
    checks.kind("source", source, str)
    said = f"source is {checks.short(source)}"
    if source and Path(source).is_dir():
        if not (Path(source) / "config.json").is_file():
            raise ValueError(f"{said}, a folder without config.json; {FORMS}")
        return Path(source)
    place, _, function = source.rpartition(":")
    if not place or not function.isidentifier():
        raise ValueError(f"{said}; {FORMS}; nothing is downloaded")
    if all(part.isidentifier() for part in place.split(".")) and not Path(place).is_file():
        if place.endswith(".py"):
            raise ValueError(f"{said}, but there is no file {place}; {FORMS}")
        return place, function
    if not place.endswith(".py"):
        raise ValueError(f"{said}, but {place!r} is no module's name and no .py file; {FORMS}")
    if not Path(place).is_file():
        raise ValueError(f"{said}, but there is no file {place}; {FORMS}")
    return Path(place).resolve(), function


def _device(device: str) -> torch.device:
    try:
        found = torch.device(device)
        if found.type != "meta":
            torch.empty(0, device=found)
            return found
        cause = "it holds no numbers"
    except Exception as error:  # torch raises a kind of its own for every backend
        cause = watched.said(error)
    raise ValueError(f"device is {device!r}, which cannot be used ({cause}); it must be cpu, or cuda where a GPU is")
