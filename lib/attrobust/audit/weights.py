"""Weights from a file, read as data: pickled code in a checkpoint is refused and never executed."""

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from attrobust import checks, swap
from attrobust.audit.functions import TOLD, names, told
from attrobust.models import watched

#: What a file of weights may be called: data alone, or what torch.save wrote.
DATA, TORCH = ".safetensors", (".pt", ".pth", ".bin")
#: Where a checkpoint may keep its state dict, and what wrappers put before every name in it.
NESTED, PREFIXES = ("state_dict", "model_state_dict", "model"), ("module.", "_orig_mod.")


def weights_file(weights: str) -> Path | None:
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


def state_dict(path: Path, said: str) -> Mapping[str, Tensor]:
    """The state dict in a file, read as data; without what wrappers put around it."""
    held = _read(path, said)
    if isinstance(held, Mapping):
        held = next((held[name] for name in NESTED if isinstance(held.get(name), Mapping)), held)
    if not isinstance(held, Mapping) or not all(isinstance(name, str) for name in held):
        raise ValueError(f"{said}, which holds a {type(held).__name__}; it must hold a state dict, as of {_SAVE}")
    others = [name for name, t in held.items() if not isinstance(t, Tensor) and not name.endswith("_extra_state")]
    if not held or others:
        kept = f"entries that are no tensors ({names(others)})" if others else "no tensor"
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
            held = torch.load(path, weights_only=True, map_location="cpu")
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # whose checksums torch writes, unless told not to, and never reads
                if any(part.CRC for part in archive.infolist()) and (bad := archive.testzip()):
                    raise zipfile.BadZipFile(f"its {bad} is not what its checksum says")
        return held
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


def fill(model: nn.Module, state: Mapping[str, Tensor], said: str) -> None:
    """Load a state dict, every name and shape of which must fit."""
    model = model.model if isinstance(model, swap.ImageClassifier) else model
    own = model.state_dict()
    while prefix := next((p for p in PREFIXES if _wrapped(p, state, own)), ""):
        state = {name.removeprefix(prefix): t for name, t in state.items()}
    both = [name for name, t in state.items() if isinstance(t, Tensor) and isinstance(own.get(name), Tensor)]
    sizes = {name: (tuple(state[name].shape), tuple(own[name].shape)) for name in both if not is_lazy(own[name])}
    wrong = {name: pair for name, pair in sizes.items() if pair[0] != pair[1]}
    other = [name for name in both if not _holds(own[name].dtype, state[name])]
    bad = {*wrong, *other}
    fitting = {name: t for name, t in state.items() if name not in bad} if bad else state
    with told(f"{said}, loading"):
        missing, unexpected = model.load_state_dict(fitting, strict=False)
    missing = [name for name in missing if name not in bad]
    parts = [f"it lacks {names(missing)}"] * bool(missing)
    parts += [f"it has {names(unexpected)}, which the model has not"] * bool(unexpected)
    parts += [f"its {name} has shape {held}, the model's {asked}" for name, (held, asked) in [*wrong.items()][:TOLD]]
    parts += [f"{len(wrong) - TOLD} more have other shapes"] * (len(wrong) > TOLD)
    parts += [f"its {name} has dtype {state[name].dtype}, the model's {own[name].dtype}" for name in other[:TOLD]]
    if parts:
        raise ValueError(f"{said}, which does not fit the model: {'; '.join(parts)}")


def _holds(own: torch.dtype, held: Tensor) -> bool:
    """Whether a dtype is of a tensor's kind: floating-point ones up to rounding; whole numbers may come as others."""
    if own.is_floating_point or own.is_complex or held.dtype.is_complex:
        return (held.dtype.is_floating_point, held.dtype.is_complex) == (own.is_floating_point, own.is_complex)
    return bool((held.to(own).double() == held.double()).all())


def _wrapped(prefix: str, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    """Whether a wrapper put a prefix before every name of a state dict, which the model's own names do not have."""
    return all(name.startswith(prefix) for name in state) and not any(name.startswith(prefix) for name in own)


def sound(model: nn.Module, said: str) -> None:
    """Every weight must hold finite numbers; a mask of 0 and -inf among the buffers is none."""
    for kind, named in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, tensor in named:
            if is_lazy(tensor) or tensor.is_meta:
                raise ValueError(f"{said}, whose {kind} {name!r} holds no numbers yet; give every layer its sizes")
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
