"""An image classifier from a folder in which transformers saved it; nothing is downloaded."""

import json
import math
from pathlib import Path

import torch
from torch import nn

from attrobust import checks, swap
from attrobust.audit.functions import FORMS, names, told
from attrobust.audit.weights import DATA
from attrobust.models import watched


def classifier_in(folder: Path, said: str, *, own: bool) -> tuple[nn.Module, list[float], list[float]]:
    """The image classifier of a folder, with its own weights or drawn ones, and its pixels' mean and std."""
    config, pixels = _json(folder / "config.json", said), folder / "preprocessor_config.json"
    if "model_type" not in config:
        raise ValueError(f"{said}, whose config.json names no model_type; {FORMS}")
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
    with told(said):
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
            f"{said}, whose files lack {names(sorted(found['missing_keys']))}: it was saved without a head, or as"
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
