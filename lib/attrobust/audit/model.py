"""A classifier of the reader's own, ready to be audited: in eval mode, its weights fixed, one tensor of logits out.

It comes from a function in a module or a file (the reader's own code, which runs), or from a folder in which
transformers saved an image classifier; weights come as data, and no code in a checkpoint is ever executed.
"""

import hashlib
import importlib
import importlib.util
import inspect
import json
import math
import pickle
import random
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from attrobust import checks, swap
from attrobust.models import watched
from attrobust.shapes import Images, Labels

#: What a file of weights may be called: data alone, or what torch.save wrote.
DATA, TORCH = ".safetensors", (".pt", ".pth", ".bin")
#: Where a checkpoint may keep its state dict, and what wrappers put before every name in it.
NESTED, PREFIXES = ("state_dict", "model_state_dict", "model"), ("module.", "_orig_mod.")
#: Names that a sentence tells before it counts the rest.
TOLD = 3

_FORMS = (
    "it must be package.module:function, path/to/file.py:function, or a folder in which transformers saved an image"
    " classifier (config.json)"
)

#: Modules that files of readers imported from their own folders.
_BROUGHT: set[str] = set()


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
    found, path, place = _source(source), _weights(weights), _device(device)
    said, mean, std = f"source is {source!r}", (), ()
    with _undisturbed(place):
        if isinstance(found, Path):
            model, mean, std = _hugging_face(found, said, own=path is None)
        else:
            model = _called(*found, said)
    if path is not None:
        said = f"weights is {weights!r}"
        _fill(model, _state(path, said), said)
    _sound(model, said)
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
        raise ValueError(
            "model returns probabilities, each row sums to 1; it must return logits: leave its softmax out"
        )
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
        parts = f" of {_names(map(str, output))}" if isinstance(output, Mapping) else ""
        raise UnknownOutputError(
            f"model returned a {type(output).__name__}{parts}, in which no logits are found; it must return a tensor of"
            " logits (batch, classes), a tuple whose first entry they are, or a dict or object with `logits`"
        )
    return found


# ------------------------------------------------------------------ what is asked for, before anything heavy


def _source(source: str) -> Path | tuple[str | Path, str]:
    """The folder of a model of transformers; or a module's name or a file's path, and a function's name."""
    checks.kind("source", source, str)
    said = f"source is {checks.short(source)}"
    if source and Path(source).is_dir():
        if not (Path(source) / "config.json").is_file():
            raise ValueError(f"{said}, a folder without config.json; {_FORMS}")
        return Path(source)
    place, _, function = source.rpartition(":")
    if not place or not function.isidentifier():
        raise ValueError(f"{said}; {_FORMS}; nothing is downloaded")
    if all(part.isidentifier() for part in place.split(".")) and not Path(place).is_file():
        if place.endswith(".py"):
            raise ValueError(f"{said}, but there is no file {place}; {_FORMS}")
        return place, function
    if not place.endswith(".py"):
        raise ValueError(f"{said}, but {place!r} is no module's name and no .py file; {_FORMS}")
    if not Path(place).is_file():
        raise ValueError(f"{said}, but there is no file {place}; {_FORMS}")
    return Path(place).resolve(), function


def _weights(weights: str) -> Path | None:
    """The file that holds the weights; None where none is asked for."""
    checks.kind("weights", weights, str)
    if not weights:
        return None
    path, accepted = Path(weights), f"a file {', '.join((DATA, *TORCH))} of a state dict, or empty"
    if not path.is_file():
        raise ValueError(f"weights is {weights!r}, which is no file; it must be {accepted}")
    if path.suffix.lower() not in (DATA, *TORCH):
        raise ValueError(f"weights is {weights!r}, of suffix {path.suffix!r}; it must be {accepted}")
    if not path.stat().st_size:
        raise ValueError(f"weights is {weights!r}, which is empty (0 bytes); it must be {accepted}")
    return path


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


# ------------------------------------------------------------------ functions of the reader's own


def _called(place: str | Path, function: str, said: str) -> nn.Module:
    """What the function of a module, or of a file, returns: a network."""
    with _beside(place):
        return _returned(_imported(place, said), function, said)


def _returned(module: ModuleType, name: str, said: str) -> nn.Module:
    try:
        build = getattr(module, name)
    except AttributeError as error:
        own = [other for other, value in vars(module).items() if callable(value) and not other.startswith("_")]
        found = f"it has {_names(own)}" if own else "it has no function"
        raise ValueError(f"{said}, in which there is no {name!r}; {found}") from error
    if isinstance(build, nn.Module) or not callable(build):
        raise ValueError(f"{said}, which is a {type(build).__name__}; it must be a function that returns an nn.Module")
    try:
        takes = inspect.signature(build).parameters.values()
    except (TypeError, ValueError):  # some builtins do not tell
        takes = ()
    needed = [p.name for p in takes if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if needed:
        raise ValueError(f"{said}, which needs arguments ({_names(needed)}); it must be callable without any")
    with _told(said):
        model = build()
    if not isinstance(model, nn.Module):
        raise ValueError(f"{said}, which returned a {type(model).__name__}; it must return an nn.Module")
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    return model.module if isinstance(model, parallel) else model


def _imported(place: str | Path, said: str) -> ModuleType:
    """A module by its name, or a file as one."""
    if isinstance(place, str):
        try:
            with _told(said):
                return importlib.import_module(place)
        except ImportError as error:
            lacks = getattr(error.__cause__, "name", None)
            if lacks and f"{place}.".startswith(f"{lacks}."):
                raise ValueError(f"{said}, but there is no module {lacks!r}; {_FORMS}") from error
            raise
    name = f"audited_{hashlib.sha256(str(place).encode()).hexdigest()[:8]}_{place.stem}"
    spec = importlib.util.spec_from_file_location(name, place)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        with _told(said):
            spec.loader.exec_module(module)
    except (ImportError, ValueError):
        del sys.modules[name]
        raise
    return module


@contextmanager
def _beside(place: str | Path) -> Iterator[None]:
    """Within, a file finds its neighbours: not those that another file brought, by the same names; leaves no caches."""
    if isinstance(place, str):
        yield
        return
    folder, known, quiet = place.parent, set(sys.modules), sys.dont_write_bytecode
    importlib.invalidate_caches()
    for name in [name for name in _BROUGHT if any(path.exists() for path in _neighbours(folder, name))]:
        sys.modules.pop(name, None)
        _BROUGHT.discard(name)
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = quiet
        if str(folder) in sys.path:
            sys.path.remove(str(folder))
        for name, module in [(name, module) for name, module in sys.modules.items() if name not in known]:
            file = Path(getattr(module, "__file__", None) or "")
            if any(file.is_relative_to(path) for path in _neighbours(folder, name)):
                _BROUGHT.add(name)


def _neighbours(folder: Path, name: str) -> tuple[Path, Path]:
    """Where a module, or the package that holds it, lies if it lies in a folder."""
    top = name.partition(".")[0]
    return folder / f"{top}.py", folder / top


@contextmanager
def _told(said: str) -> Iterator[None]:
    """What code of the reader's own raises, in one sentence."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImportError(f"{said}, which needs a package that is not installed: {watched.said(error)}") from error
    except SystemExit as error:  # a script that parses its arguments, say
        raise ValueError(f"{said}, which raises SystemExit: {error}") from error
    except Exception as error:
        raise ValueError(f"{said}, which raises {type(error).__name__}: {watched.said(error)}") from error


@contextmanager
def _undisturbed(place: torch.device) -> Iterator[None]:
    """Within, random numbers start from the same seed; the states of all generators come back as they were."""
    numbers, plain = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        cards = range(torch.cuda.device_count()) if place.type == "cuda" else ()
        with torch.random.fork_rng(devices=cards):
            torch.manual_seed(0)
            np.random.seed(0)  # noqa: NPY002
            random.seed(0)
            yield
    finally:
        np.random.set_state(numbers)  # noqa: NPY002
        random.setstate(plain)


# ------------------------------------------------------------------ folders of transformers


def _hugging_face(folder: Path, said: str, *, own: bool) -> tuple[nn.Module, list[float], list[float]]:
    """The image classifier of a folder, with its own weights or drawn ones, and its pixels' mean and std."""
    config, pixels = _json(folder / "config.json", said), folder / "preprocessor_config.json"
    if "model_type" not in config:
        raise ValueError(f"{said}, whose config.json names no model_type; {_FORMS}")
    mean, std = _pixels(_json(pixels, said), said) if pixels.is_file() else ([], [])
    if own and not any(folder.glob(f"*{DATA}")):
        raise ValueError(
            f"{said}, which holds no {DATA} file; save the model by save_pretrained, which writes one, as a pickled"
            " checkpoint is not read from a folder"
        )
    try:
        from transformers import AutoConfig, AutoModelForImageClassification
    except ImportError as error:
        raise ImportError(f"{said}, which needs transformers; install it by pip install attrobust[hf]") from error
    local = {"local_files_only": True, "trust_remote_code": False}
    with _told(said):
        if own:
            model, found = AutoModelForImageClassification.from_pretrained(
                folder, **local, use_safetensors=True, attn_implementation="eager", dtype=torch.float32,
                output_loading_info=True,
            )  # fmt: skip
        else:
            known = AutoConfig.from_pretrained(folder, **local)
            model = AutoModelForImageClassification.from_config(
                known, trust_remote_code=False, attn_implementation="eager", dtype=torch.float32
            )
            found = {"missing_keys": ()}
    if found["missing_keys"]:
        raise ValueError(
            f"{said}, whose files lack {_names(sorted(found['missing_keys']))}: it was saved without a head, or as"
            " another kind of model; it must be an image classifier"
        )
    return swap.ImageClassifier(model), mean, std


def _json(path: Path, said: str) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{said}, whose {path.name} is damaged: {watched.said(error)}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{said}, whose {path.name} holds a {type(found).__name__}; it must hold a dict")
    return found


def _pixels(settings: dict, said: str) -> tuple[list[float], list[float]]:
    """Mean and std, one a channel, by which a folder's preprocessor standardises pixels in [0, 1], if it does."""
    if not settings.get("do_normalize", True) or not {"image_mean", "image_std"} <= set(settings):
        return [], []
    mean, std = settings["image_mean"], settings["image_std"]
    numbers = all(
        isinstance(part, list) and part and all(isinstance(v, int | float) and math.isfinite(v) for v in part)
        for part in (mean, std)
    )
    if not numbers or len(mean) != len(std) or min(std) <= 0:
        raise ValueError(
            f"{said}, whose preprocessor_config.json has image_mean {checks.short(mean)} and image_std"
            f" {checks.short(std)}; both must be finite numbers, one a channel, those of image_std above 0"
        )
    rescaled, factor = settings.get("do_rescale", True), settings.get("rescale_factor", 1 / 255)
    if not rescaled or not isinstance(factor, float) or abs(255 * factor - 1) > 1e-3:
        raise ValueError(
            f"{said}, whose preprocessor_config.json has do_rescale {rescaled} and rescale_factor"
            f" {checks.short(factor)}, so its image_mean is of other pixels than those in [0, 1]; wrap the model in a"
            " function of your own"
        )
    return [float(v) for v in mean], [float(v) for v in std]


# ------------------------------------------------------------------ weights


def _state(path: Path, said: str) -> Mapping[str, Tensor]:
    """The state dict in a file, read as data; without what wrappers put around it."""
    held = _read(path, said)
    for name in NESTED:
        if isinstance(held, Mapping) and isinstance(held.get(name), Mapping):
            held = held[name]
            break
    if not isinstance(held, Mapping) or not all(isinstance(name, str) for name in held):
        raise ValueError(f"{said}, which holds a {type(held).__name__}; it must hold a state dict, as of {_SAVE}")
    others = [name for name, t in held.items() if not isinstance(t, Tensor) and not name.endswith("_extra_state")]
    if not held or others:
        kept = f"entries that are no tensors ({_names(others)})" if others else "no tensor"
        raise ValueError(f"{said}, which holds {kept}; it must hold a state dict, as of {_SAVE}")
    return held


_SAVE = "torch.save(model.state_dict(), file) or safetensors.torch.save_model(model, file)"


def _read(path: Path, said: str) -> object:
    """What a file of weights holds; pickled code in it is refused, not executed."""
    try:
        if path.suffix.lower() == DATA:
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other protocols and of archives, which are refused where they matter
            return torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        needs = re.search(r"GLOBAL:? (\S+)", str(error))
        what = (
            f"needs pickled code ({needs[1]})" if needs else "holds pickled objects other than tensors, or is damaged"
        )
        raise ValueError(
            f"{said}, which {what}; that could do anything when it is read, so save the tensors alone by {_SAVE}"
        ) from error
    except Exception as error:  # readers of damaged files raise whatever their format ends in
        if "TorchScript" in str(error):
            raise ValueError(
                f"{said}, which is a TorchScript archive, thus code; save the tensors by {_SAVE}"
            ) from error
        raise ValueError(
            f"{said}, which is damaged or no file of weights ({type(error).__name__}: {watched.said(error)}); copy it"
            f" anew, or save it by {_SAVE}"
        ) from error


def _fill(model: nn.Module, state: Mapping[str, Tensor], said: str) -> None:
    """Load a state dict, every name and shape of which must fit."""
    model = model.model if isinstance(model, swap.ImageClassifier) else model
    own = model.state_dict()
    while prefix := next((p for p in PREFIXES if _wrapped(p, state, own)), ""):
        state = {name.removeprefix(prefix): t for name, t in state.items()}
    sizes = {
        name: (tuple(t.shape), tuple(own[name].shape))
        for name, t in state.items()
        if isinstance(t, Tensor) and isinstance(own.get(name), Tensor) and not is_lazy(own[name])
    }
    wrong = {name: pair for name, pair in sizes.items() if pair[0] != pair[1]}
    fitting = {name: t for name, t in state.items() if name not in wrong} if wrong else state
    with _told(f"{said}, loading"):
        missing, unexpected = model.load_state_dict(fitting, strict=False)
    missing = [name for name in missing if name not in wrong]
    parts = [f"it lacks {_names(missing)}"] * bool(missing)
    parts += [f"it has {_names(unexpected)}, which the model has not"] * bool(unexpected)
    parts += [f"its {name} has shape {held}, the model's {asked}" for name, (held, asked) in [*wrong.items()][:TOLD]]
    parts += [f"{len(wrong) - TOLD} more have other shapes"] * (len(wrong) > TOLD)
    if parts:
        raise ValueError(f"{said}, which does not fit the model: {'; '.join(parts)}")


def _wrapped(prefix: str, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    """Whether a wrapper put a prefix before every name of a state dict, which the model's own names do not have."""
    return all(name.startswith(prefix) for name in state) and not any(name.startswith(prefix) for name in own)


def _sound(model: nn.Module, said: str) -> None:
    """Every weight must hold finite numbers; a mask of 0 and -inf among the buffers is none."""
    for kind, named in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, tensor in named:
            if is_lazy(tensor) or tensor.is_meta:
                raise ValueError(
                    f"{said}, whose {kind} {name!r} holds no numbers yet; give every layer its sizes, and load weights"
                )
            if not (tensor.is_floating_point() or tensor.is_complex()):
                continue
            bad = ~tensor.isfinite()
            mask = (
                kind == "buffer" and tensor.is_floating_point() and bool(((tensor == 0) | (tensor == -torch.inf)).all())
            )
            if bool(bad.any()) and not mask:
                raise ValueError(
                    f"{said}, whose {kind} {name!r} holds {int(bad.sum())} of {bad.numel()} entries that are NaN or"
                    " infinite; every weight must be finite"
                )


def _names(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = [str(name) for name in names]
    rest = f" and {len(names) - TOLD} more" if len(names) > TOLD else ""
    return ", ".join(map(repr, names[:TOLD])) + rest
