"""Laws of what an audit is given: a classifier of the reader's own, with its weights, and pictures of their own."""

import os
import pickle
import random
import struct
import sys
import types
import zipfile
import zlib
from collections import OrderedDict
from functools import partial
from pathlib import Path

import cases
import numpy as np
import pytest
import torch
from attrobust import audit, data
from attrobust.audit import images
from attrobust.audit.images import load_images
from attrobust.audit.model import Classifier, check_classes, load_model
from attrobust.audit.weights import TORCH
from attrobust.models import watched
from PIL import Image
from safetensors.torch import save_file
from torch import nn

SIZES = {"inputs": 12, "classes": 3}
CODE = """
import torch
from torch import nn

class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(12, 3)
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x):
        return self.scale * self.head(x.flatten(1))

def build():
    return Small().train()
"""


def written(folder: Path, code: str = CODE, name: str = "own.py") -> str:
    """A file of the reader's own; its path."""
    (folder / name).write_text(code)
    return str(folder / name)


def built(folder: Path, code: str = CODE, name: str = "own.py") -> str:
    return written(folder, code, name) + ":build"


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights of the network in `CODE`."""
    draw = cases.generator(seed)
    weights = {"head.weight": torch.randn(3, 12, generator=draw), "head.bias": torch.randn(3, generator=draw)}
    return weights | {"scale": torch.full((1,), 2.0)}


def x(n: int = 2, channels: int = 3, side: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, channels, side, side, generator=cases.generator(seed))


def by_hand(weights: dict[str, torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
    """What the network in `CODE` says, without it."""
    return weights["scale"] * (pixels.flatten(1) @ weights["head.weight"].T + weights["head.bias"])


def refusal(function, *arguments, error=ValueError, **options) -> str:
    """The sentence of a refusal; one line, which ends with no full stop but may hold some."""
    with pytest.raises(error) as caught:
        function(*arguments, **options)
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 700
    return said


# ------------------------------------------------------------------ where a model comes from


def test_a_function_in_a_file_gives_a_fixed_network_in_eval_mode(tmp_path):
    loaded = load_model(built(tmp_path))
    assert not any(module.training for module in loaded.modules())
    assert not any(p.requires_grad for p in loaded.parameters())
    assert loaded(x()).shape == (2, 3)


def test_a_function_in_a_module_is_found_by_its_name(monkeypatch):
    module = types.ModuleType("own_package_of_tests")
    module.build = lambda: cases.Called(lambda pixels: pixels.flatten(1))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert torch.equal(load_model("own_package_of_tests:build")(x()), x().flatten(1))


def test_loading_moves_no_random_numbers_and_draws_missing_weights_the_same_way_every_time(tmp_path, unchecked):
    code = CODE + "\nimport random\nimport numpy\nnoise = random.random() + numpy.random.rand()\n"
    code += "def build():\n    net = Small()\n    net.scale.fill_(noise)\n    return net\n"
    answers = []
    for seed in (1, 2):
        with watched.untouched(nn.Flatten()):  # from where random numbers come back; nor does beartype draw any
            torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)  # noqa: NPY002
            before = watched.drawn(nn.Flatten())
            answers.append(load_model(built(tmp_path, code))(x()))
            assert watched.drawn(nn.Flatten()) == before
    assert torch.equal(*answers)


def test_a_file_finds_its_neighbours_while_it_is_loaded_and_leaves_no_trace_in_the_path_or_the_folder(
    tmp_path, monkeypatch
):
    code = "from torch import nn\nimport helpers_of_tests\ndef build():\n    import later_of_tests\n"
    code += "    return helpers_of_tests.Net(later_of_tests.FACTOR)\n"
    net = "from torch import nn\nclass Net(nn.Module):\n    def __init__(self, factor):\n        super().__init__()\n"
    net += "        self.factor = factor\n    def forward(self, x):\n        return self.factor * x.flatten(1)\n"
    before = list(sys.path)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    for factor in (2, 3):
        folder = tmp_path / str(factor)
        folder.mkdir()
        written(folder, net, "helpers_of_tests.py")
        written(folder, f"FACTOR = {factor}\n", "later_of_tests.py")
        assert torch.equal(load_model(built(folder, code))(x()), factor * x().flatten(1))
        assert sorted(path.name for path in folder.iterdir()) == ["helpers_of_tests.py", "later_of_tests.py", "own.py"]
    assert sys.path == before
    assert not sys.dont_write_bytecode


def test_a_file_that_was_changed_is_read_anew(tmp_path):
    code = "from torch import nn\ndef build():\n    return nn.{}()\n"
    assert isinstance(load_model(built(tmp_path, code.format("Flatten"))).model, nn.Flatten)
    assert isinstance(load_model(built(tmp_path, code.format("Sigmoid"))).model, nn.Sigmoid)


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("def other(): pass", r"there is no 'build'; it has 'other'"),
        ("build = 3", "which is a int; it must be a function that returns an nn.Module"),
        ("from torch import nn\nbuild = nn.Flatten()", "which is a Flatten; it must be a function"),
        ("def build(width, *, depth, heads=2): pass", r"needs arguments \('width', 'depth'\)"),
        ("def build(): return 'net'", "returned a str; it must return an nn.Module"),
        ("def build(): raise OSError('disk\\nfull')", "raises OSError: disk"),
        ("raise KeyError('width')", "raises KeyError: 'width'"),
        ("def build(:", "raises SyntaxError: invalid syntax"),
        ("import sys\nsys.exit(2)", "raises SystemExit: 2"),
        ("from . import other", "raises ImportError: attempted relative import"),
        ("from torch import nn\ndef build(): return nn.LazyLinear(3)", "'weight' holds no numbers yet"),
        ("from torch import nn\ndef build(): return nn.Linear(2, 3, device='meta')", "'weight' holds no numbers yet"),
    ],
)
def test_code_that_gives_no_network_is_refused_with_its_own_error(tmp_path, recwarn, code, cause):
    source = built(tmp_path, code)
    with pytest.raises(ValueError, match=cause) as caught:
        load_model(source)
    assert str(caught.value).startswith(f"source is {source!r}")
    assert "\n" not in str(caught.value)


def test_a_package_that_code_needs_and_that_lacks_is_named(tmp_path):
    for code in ("import lacking_of_tests", "def build():\n    import lacking_of_tests"):
        said = refusal(load_model, built(tmp_path, code), error=ImportError)
        assert "needs a package that is not installed: No module named 'lacking_of_tests'" in said


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("", "source is ''; it must be package.module:function"),
        ("google/vit-base-patch16-224", "nothing is downloaded"),
        ("torch.nn", "it must be package.module:function"),
        ("torch.nn:", "it must be package.module:function"),
        ("torch.nn:a b", "it must be package.module:function"),
        ("no_such_package.models:build", "there is no module 'no_such_package'"),
        ("torch.no_such_module:build", "there is no module 'torch.no_such_module'"),
        ("torch.nn:build_it", "there is no 'build_it'"),
        ("no_such_file.py:build", "there is no file no_such_file.py"),
        ("no/such/file.py:build", "there is no file no/such/file.py"),
        ("no/such/file.txt:build", "is no module's name and no .py file"),
        ("torch.nn:Linear", "needs arguments"),
    ],
)
def test_a_source_that_names_no_function_is_refused(source, cause):
    assert cause in refusal(load_model, source)


def test_a_folder_without_a_configuration_is_refused(tmp_path):
    assert "a folder without config.json" in refusal(load_model, str(tmp_path))


def test_bad_arguments_are_refused_before_any_code_runs(tmp_path, unchecked):
    mark = tmp_path / "ran"
    source = built(tmp_path, f"import os\nos.mkdir({str(mark)!r})\n" + CODE)
    assert "source is a int" in refusal(load_model, 3)
    for device in ("meta", "cuda:99", "toaster", 3.5):
        assert f"device is {device!r}, which cannot be used" in refusal(load_model, source, device=device)
    assert "weights is a NoneType" in refusal(load_model, source, weights=None)
    assert "weights is 'none.pt', which is no file" in refusal(load_model, source, weights="none.pt")
    assert not mark.exists()
    load_model(source)
    assert mark.exists()


# ------------------------------------------------------------------ weights


@pytest.mark.parametrize("suffix", ["pt", "pth", "bin", "PT"])
@pytest.mark.parametrize("nested", ["", "state_dict", "model_state_dict", "model"])
def test_weights_are_those_in_the_file_however_they_are_nested(tmp_path, suffix, nested):
    path = tmp_path / f"w.{suffix}"
    torch.save({nested: state(), "epoch": 3} if nested else state(), path)
    assert torch.allclose(load_model(built(tmp_path), weights=str(path))(x()), by_hand(state(), x()))


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_names_that_wrappers_gave_are_understood(tmp_path, prefix):
    path = tmp_path / "w.safetensors"
    save_file({prefix + name: t for name, t in state().items()}, path)
    assert torch.allclose(load_model(built(tmp_path), weights=str(path))(x()), by_hand(state(), x()))


def test_a_model_whose_own_names_begin_with_module_keeps_them(tmp_path):
    code = CODE + "\nclass Holder(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
    code += "        self.module = Small()\n    def forward(self, x):\n        return self.module(x)\nbuild = Holder\n"
    path = tmp_path / "w.pt"
    torch.save({"module." + name: t for name, t in state().items()}, path)
    assert torch.allclose(load_model(built(tmp_path, code), weights=str(path))(x()), by_hand(state(), x()))


def test_a_parallel_wrapper_around_the_model_is_taken_off(tmp_path):
    path, code = tmp_path / "w.pt", CODE + "\ndef build():\n    return nn.DataParallel(Small())\n"
    torch.save(state(), path)
    loaded = load_model(built(tmp_path, code), weights=str(path))
    assert type(loaded.model).__name__ == "Small"
    assert torch.allclose(loaded(x()), by_hand(state(), x()))


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"head.bias": None}, "it lacks 'head.bias'"),
        ({"extra": torch.ones(1)}, "it has 'extra', which the model has not"),
        ({"head.bias": torch.ones(4)}, r"its head.bias has shape \(4,\), the model's \(3,\)"),
        (
            {"head.bias": None, "a": torch.ones(1), "scale": torch.ones(2)},
            "lacks .*; it has 'a'.*; its scale has shape",
        ),
        ({f"e{i}": torch.ones(1) for i in range(5)}, "it has 'e0', 'e1', 'e2' and 2 more, which the model has not"),
        ({"head.bias": 3}, r"entries that are no tensors \('head.bias'\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path, change, cause):
    path = tmp_path / "w.pt"
    torch.save({name: t for name, t in (state() | change).items() if t is not None}, path)
    with pytest.raises(ValueError, match=cause) as caught:
        load_model(built(tmp_path), weights=str(path))
    assert str(caught.value).startswith(f"weights is {str(path)!r}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64], ids=str)
def test_weights_of_another_kind_of_number_are_refused_and_floats_are_rounded(tmp_path, dtype, suffix):
    path, weights = tmp_path / f"w.{suffix}", state()
    save = save_file if suffix == "safetensors" else torch.save
    save({name: t.to(dtype) for name, t in weights.items()}, path)
    said = refusal(load_model, built(tmp_path), weights=str(path))
    assert f"its head.weight has dtype {dtype}, the model's torch.float32" in said
    for rounded in (torch.float16, torch.bfloat16, torch.float64):
        save({name: t.to(rounded) for name, t in weights.items()}, path)
        expected = by_hand({name: t.to(rounded).float() for name, t in weights.items()}, x())
        assert torch.allclose(load_model(built(tmp_path), weights=str(path))(x()), expected)


def test_a_counter_may_come_as_a_float_that_is_whole(tmp_path):
    path, norm = tmp_path / "w.pt", nn.BatchNorm2d(3).state_dict()
    source = built(tmp_path, "from torch import nn\ndef build():\n    return nn.BatchNorm2d(3)\n")
    torch.save(norm | {"num_batches_tracked": torch.tensor(7.0)}, path)
    assert load_model(source, weights=str(path)).model.num_batches_tracked == 7
    torch.save(norm | {"num_batches_tracked": torch.tensor(7.5)}, path)
    said = "its num_batches_tracked has dtype torch.float32, the model's torch.int64"
    assert said in refusal(load_model, source, weights=str(path))


def test_one_changed_bit_of_a_file_of_torch_is_found(tmp_path):
    path, weights = tmp_path / "w.pt", state()
    torch.save(weights, path)
    raw = bytearray(path.read_bytes())
    raw[raw.find(weights["head.weight"].numpy().tobytes()) + 3] ^= 0x40
    path.write_bytes(raw)
    assert "which is damaged or no file of weights" in refusal(load_model, built(tmp_path), weights=str(path))
    torch.save(weights, path, _use_new_zipfile_serialization=False)
    assert torch.allclose(load_model(built(tmp_path), weights=str(path))(x()), by_hand(weights, x()))
    torch.serialization.set_crc32_options(False)  # checksums that were never computed say nothing
    try:
        torch.save(weights, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.allclose(load_model(built(tmp_path), weights=str(path))(x()), by_hand(weights, x()))


@pytest.mark.parametrize(
    ("name", "kind", "value"),
    [
        ("head.weight", "parameter", float("nan")),
        ("head.weight", "parameter", -float("inf")),
        ("scale", "buffer", float("nan")),
        ("scale", "buffer", float("inf")),
    ],
)
def test_a_weight_that_is_not_finite_is_refused_by_name(tmp_path, name, kind, value):
    broken, path = state(), tmp_path / "w.pt"
    broken[name].view(-1)[0] = value
    torch.save(broken, path)
    said = refusal(load_model, built(tmp_path), weights=str(path))
    assert f"whose {kind} {name!r} holds 1 of {broken[name].numel()} entries that are NaN or infinite" in said


def test_weights_that_the_code_itself_leaves_infinite_are_refused_too(tmp_path):
    code = CODE + "\ndef build():\n    net = Small()\n    net.scale[0] = float('nan')\n    return net\n"
    assert "source is" in (said := refusal(load_model, built(tmp_path, code)))
    assert "'scale' holds 1 of 1 entries" in said


def test_a_causal_mask_among_the_buffers_is_no_broken_weight(tmp_path):
    code = CODE + "\ndef build():\n    net = Small()\n"
    code += "    net.register_buffer('mask', torch.zeros(3, 3).masked_fill(torch.eye(3) > 0, {}))\n    return net\n"
    load_model(built(tmp_path, code.format("-torch.inf")))
    assert "'mask'" in refusal(load_model, built(tmp_path, code.format("torch.inf")))


def saved(value: object, folder: Path, name: str = "w.pt", **options) -> Path:
    torch.save(value, folder / name, **options)
    return folder / name


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_weights_that_are_cut_off_empty_or_something_else_are_refused(tmp_path, suffix):
    whole = tmp_path / f"whole.{suffix}"
    save_file(state(), whole) if suffix == "safetensors" else torch.save(state(), whole)
    raw, path = whole.read_bytes(), tmp_path / f"w.{suffix}"
    path.write_bytes(b"")
    assert "which is empty (0 bytes)" in refusal(load_model, built(tmp_path), weights=str(path))
    for content in (raw[: len(raw) // 2], raw[:-1], b"hello, this is no checkpoint", bytes(range(256)) * 8, b"PK"):
        path.write_bytes(content)
        said = refusal(load_model, built(tmp_path), weights=str(path))
        assert "damaged" in said or "does not fit" in said, content[:20]


def test_weights_of_another_suffix_or_in_a_folder_are_refused(tmp_path):
    path = tmp_path / "w.ckpt"
    torch.save(state(), path)
    assert "of suffix '.ckpt'; it must be a file .safetensors, .pt" in refusal(
        load_model, built(tmp_path), weights=str(path)
    )
    assert "which is no file" in refusal(load_model, built(tmp_path), weights=str(tmp_path))


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    for value, cause in (([1, 2], "holds a list"), (torch.ones(2), "holds a Tensor"), ({}, "holds no tensor")):
        assert cause in refusal(load_model, built(tmp_path), weights=str(saved(value, tmp_path)))
    for value, cause in (({"epoch": 3}, "no tensors ('epoch')"), ({"model": 3}, "no tensors ('model')")):
        assert cause in refusal(load_model, built(tmp_path), weights=str(saved(value, tmp_path)))


class Marking:
    """Unpickling it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def pickled(folder: Path, mark: Path) -> list[Path]:
    """Checkpoints that execute code when they are unpickled, in every way that torch writes or reads."""
    evil = {"head.weight": torch.ones(3, 12), "head.bias": Marking(mark)}
    paths = [saved(evil, folder, "a.pt"), saved(evil, folder, "b.pt", _use_new_zipfile_serialization=False)]
    for protocol in (0, 2, 4):
        paths.append(folder / f"p{protocol}.bin")
        paths[-1].write_bytes(pickle.dumps(evil, protocol=protocol))
    return paths


def test_a_checkpoint_that_would_execute_code_is_refused_and_executes_none(tmp_path):
    mark = tmp_path / "executed"
    paths = pickled(tmp_path, mark)
    for path in paths:
        said = refusal(load_model, built(tmp_path), weights=str(path))
        assert "pickled" in said
        assert "torch.save(model.state_dict(), file)" in said
        assert not mark.exists()
    pickle.loads(paths[-1].read_bytes())  # it would have
    assert mark.exists()


def test_a_whole_network_that_was_pickled_is_refused_with_the_remedy(tmp_path):
    said = refusal(load_model, built(tmp_path), weights=str(saved(cases.linear(), tmp_path)))
    assert "needs pickled code (torch.nn.modules.container.Sequential)" in said
    assert "torch.save(model.state_dict(), file)" in said


# ------------------------------------------------------------------ what a model returns


class Ours(OrderedDict):
    """An output of transformers in short: a dict that also has attributes."""

    @property
    def logits(self):
        return self["logits"]


LOGITS = torch.tensor([[1.0, -2.0, 1e-9], [3.0, 0.1, 1e9]])


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        (LOGITS, "features"),
        [LOGITS],
        {"loss": None, "logits": LOGITS},
        types.SimpleNamespace(logits=LOGITS),
        Ours(loss=torch.zeros(()), logits=LOGITS),
    ],
    ids=lambda value: type(value).__name__,
)
def test_logits_come_out_as_the_very_tensor_that_the_model_returned(output):
    assert Classifier(cases.Called(lambda pixels: output))(x()) is LOGITS


@pytest.mark.parametrize(
    ("output", "cause"),
    [
        (None, "returned a NoneType"),
        ((), "returned a tuple"),
        (("features", LOGITS), "returned a tuple"),
        ({"out": LOGITS, "aux": None}, "returned a dict of 'out', 'aux'"),
        ({"logits": [1, 2]}, "returned a dict of 'logits'"),
        (types.SimpleNamespace(logits=None), "returned a SimpleNamespace"),
    ],
)
def test_what_holds_no_logits_is_refused_when_it_comes(output, cause):
    wrapped = Classifier(cases.Called(lambda pixels: output))
    said = refusal(wrapped, x())
    assert cause in said
    assert "it must return a tensor of logits" in said
    assert refusal(check_classes, wrapped, x()) == said


def test_what_comes_out_is_decided_at_every_call():
    outputs = iter([LOGITS, (2 * LOGITS,), {"logits": 3 * LOGITS}])
    wrapped = Classifier(cases.Called(lambda pixels: next(outputs)))
    assert [float(wrapped(x())[0, 0]) for _ in range(3)] == [1.0, 2.0, 3.0]


def test_a_gradient_passes_through_to_the_pixels():
    own, wrapped = cases.mlp(), Classifier(cases.mlp())
    (ours,), (theirs,) = (
        torch.autograd.grad(f(pixels).sum(), pixels)
        for f in (wrapped, own)
        for pixels in [cases.images().requires_grad_()]
    )
    assert torch.equal(ours, theirs)


def test_attention_maps_stay_in_reach_and_are_missing_where_there_are_none():
    pixels = cases.images(2, shape=cases.VIT_SHAPE)
    ours, theirs = Classifier(cases.vit()).attend(pixels), cases.vit().attend(pixels)
    assert torch.equal(ours[0], theirs[0])
    assert all(torch.equal(a, b) for a, b in zip(ours[1], theirs[1], strict=True))
    assert not hasattr(Classifier(cases.mlp()), "attend")


# ------------------------------------------------------------------ folders of transformers


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="folders need pip install attrobust[hf]")


SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
SMALL |= {"image_size": 8, "patch_size": 4, "num_labels": 3}
SWIN = {"image_size": 8, "patch_size": 2, "embed_dim": 4, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2}
NEXT = {"num_stages": 2, "hidden_sizes": [4, 8], "depths": [1, 1], "patch_size": 2, "num_labels": 3}
FAMILIES = {"ViT": SMALL, "DeiT": SMALL, "Swin": SWIN | {"num_labels": 3}, "ConvNext": NEXT}


@cases.isolated
def hugging_face(transformers, family="ViT", kind="ForImageClassification"):
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family])
    return cases.filled(getattr(transformers, family + kind)(config), seed=1).float()


@pytest.fixture
def vit(transformers, tmp_path):
    """A folder with a ViT, and the ViT."""
    own = hugging_face(transformers)
    own.save_pretrained(tmp_path / "vit")
    return tmp_path / "vit", own


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_of_transformers_answers_as_the_model_that_was_saved(transformers, tmp_path, family):
    own = hugging_face(transformers, family)
    own.save_pretrained(tmp_path)
    loaded, pixels = load_model(str(tmp_path)), x(2, side=8)
    with torch.no_grad():
        expected = own(pixels).logits
    assert torch.allclose(loaded(pixels), expected, rtol=1e-4, atol=1e-5)
    assert check_classes(loaded, pixels, torch.tensor([0, 2])) == 3
    assert not any(module.training for module in loaded.modules())
    assert not any(p.requires_grad for p in loaded.parameters())


def test_a_folder_gives_its_attention_matrices(vit):
    folder, _ = vit
    _, maps = load_model(str(folder)).attend(x(2, side=8))
    assert [tuple(m.shape) for m in maps] == [(2, 2, 5, 5)]
    assert torch.allclose(maps[0].sum(-1), torch.ones(2, 2, 5))


def settings(folder: Path, **values) -> None:
    import json

    (folder / "preprocessor_config.json").write_text(json.dumps(values))


def test_pixels_are_standardised_as_the_folder_says_channel_by_channel(vit):
    folder, own = vit
    pixels, mean, std = x(2, side=8), [0.1, 0.2, 0.3], [0.5, 0.25, 0.75]
    settings(folder, image_mean=mean, image_std=std, do_rescale=True, rescale_factor=0.00392156862745098)
    by_channel = torch.stack([(pixels[:, c] - mean[c]) / std[c] for c in range(3)], 1)
    loaded = load_model(str(folder))
    with torch.no_grad():
        assert torch.allclose(loaded(pixels), own(by_channel).logits, rtol=1e-4, atol=1e-5)
        assert torch.allclose(loaded.attend(pixels)[0], own(by_channel).logits, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(loaded(pixels), own(pixels).logits, rtol=1e-2, atol=1e-2)
    assert "x has 1 channels; the model's own mean and std are of 3" in refusal(check_classes, loaded, x(2, 1, 8))
    settings(folder, image_mean=mean, image_std=std, do_normalize=False)
    with torch.no_grad():
        assert torch.allclose(load_model(str(folder))(pixels), own(pixels).logits, rtol=1e-4, atol=1e-5)


def test_a_folder_that_standardises_is_not_standardised_once_more(vit, tmp_path):
    folder, own = vit
    pixels, mean, std = x(4, side=8), [0.1, 0.2, 0.3], [0.5, 0.25, 0.75]
    np.savez(tmp_path / "pictures.npz", x=pixels.numpy())
    opened = partial(audit.opened, str(folder), pictures=str(tmp_path / "pictures.npz"), n=4)
    by_channel = torch.stack([(pixels[:, c] - mean[c]) / std[c] for c in range(3)], 1)
    with torch.no_grad():
        expected = own(by_channel).logits
        assert torch.allclose(opened(mean=mean, std=std).model(pixels), expected, rtol=1e-4, atol=1e-5)
        settings(folder, image_mean=mean, image_std=std)
        assert torch.allclose(opened().model(pixels), expected, rtol=1e-4, atol=1e-5)
        settings(folder, image_mean=[0.25] * 3, image_std=std)
    said = "mean is [0.5, 0.5, 0.5], beside that of preprocessor_config.json, [0.25, 0.25, 0.25]; pixels are"
    assert said in refusal(opened, mean=[0.5] * 3, std=[0.5] * 3)


@pytest.mark.parametrize(
    ("mean", "std", "cause"),
    [
        (["a"], [1.0], "mean is 'a'; it must be a finite number"),
        ([float("nan")], [1.0], "mean is nan; it must be a finite number"),
        ([0.5], ["a"], "std is 'a'; it must be a finite number above 0"),
        ([0.5], [0.0], "std is 0.0; it must be a finite number above 0"),
    ],
)
def test_a_mean_and_std_that_are_no_numbers_are_refused_before_anything_is_read(unchecked, mean, std, cause):
    assert cause in refusal(audit.opened, "no:where", pictures="none.npz", mean=mean, std=std)


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        ({"image_mean": [0.5], "image_std": [0.0]}, "those of image_std above 0"),
        ({"image_mean": [0.5, 0.5], "image_std": [0.5]}, "both must be finite numbers, one a channel"),
        ({"image_mean": "grey", "image_std": [0.5]}, "image_mean 'grey'"),
        ({"image_mean": [float("nan")], "image_std": [0.5]}, "both must be finite numbers"),
        ({"image_mean": [0.5], "image_std": [0.5], "do_rescale": False}, "do_rescale False"),
        ({"image_mean": [0.5], "image_std": [0.5], "rescale_factor": 0.0078}, "rescale_factor 0.0078"),
    ],
)
def test_a_standardisation_that_is_not_understood_is_refused(vit, values, cause):
    settings(vit[0], **values)
    assert cause in refusal(load_model, str(vit[0]))


def test_a_folder_may_take_its_weights_from_another_file(vit, tmp_path):
    folder, own = vit
    path = saved({"state_dict": {"module." + name: t for name, t in own.state_dict().items()}}, tmp_path)
    (folder / "model.safetensors").unlink()
    assert "holds no .safetensors file" in refusal(load_model, str(folder))
    with torch.no_grad():
        assert torch.allclose(
            load_model(str(folder), weights=str(path))(x(2, side=8)), own(x(2, side=8)).logits, rtol=1e-4, atol=1e-5
        )
    lacking = saved({name: t for name, t in own.state_dict().items() if "classifier" not in name}, tmp_path)
    assert "it lacks 'classifier.weight', 'classifier.bias'" in refusal(load_model, str(folder), weights=str(lacking))


def test_a_folder_whose_head_would_be_drawn_at_random_is_refused(transformers, tmp_path):
    hugging_face(transformers, kind="Model").save_pretrained(tmp_path)
    assert "whose files lack 'classifier.bias', 'classifier.weight'" in refusal(load_model, str(tmp_path))


def test_a_folder_is_never_read_by_pickle_nor_by_code_of_its_own(vit, tmp_path):
    folder, _ = vit
    mark, config = tmp_path / "executed", folder / "config.json"
    (folder / "model.safetensors").unlink()
    saved({"classifier.bias": Marking(mark)}, folder, "pytorch_model.bin")
    assert "holds no .safetensors file" in refusal(load_model, str(folder))
    save_file({"a": torch.ones(1)}, folder / "model.safetensors")
    config.write_text(
        '{"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForImageClassification": "own.Net"}}'
    )
    written(folder, f"import os\nos.mkdir({str(mark)!r})\n")
    assert "raises ValueError" in refusal(load_model, str(folder))
    assert not mark.exists()


@pytest.mark.parametrize(
    ("config", "cause"),
    [("", "config.json is damaged"), ("[1]", "holds a list"), ("{}", "names no model_type"), ("{", "is damaged")],
)
def test_a_damaged_configuration_is_refused(tmp_path, config, cause):
    (tmp_path / "config.json").write_text(config)
    assert cause in refusal(load_model, str(tmp_path))


def test_damaged_weights_of_a_folder_are_refused(vit):
    path = vit[0] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    assert "raises SafetensorError" in refusal(load_model, str(vit[0]))


def test_without_transformers_the_extra_is_named(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    monkeypatch.setitem(sys.modules, "transformers", None)
    said = refusal(load_model, str(tmp_path), error=ImportError)
    assert "needs transformers; install it by pip install attrobust[hf]" in said


# ------------------------------------------------------------------ a model on pictures


def test_classes_are_counted_and_nothing_of_the_model_is_changed():
    own = cases.conv().float()
    before = {name: t.clone() for name, t in own.state_dict().items()}
    assert check_classes(own, x(4, 2, 3), torch.tensor([0, 3, 1, 2])) == cases.CLASSES
    assert check_classes(own, x(1, 2, 3)) == cases.CLASSES
    assert all(torch.equal(t, before[name]) for name, t in own.state_dict().items())


@pytest.mark.parametrize(
    ("function", "cause"),
    [
        (lambda pixels: pixels.mean((1, 2, 3)), "one logit an image.*models.TwoLogits"),
        (lambda pixels: pixels.mean((1, 2, 3))[:, None], "one logit an image.*models.TwoLogits"),
        (lambda pixels: pixels, r"returned shape \(2, 3, 2, 2\)"),
        (lambda pixels: pixels.flatten(1).argmax(1)[:, None].repeat(1, 3), "dtype torch.int64"),
        (lambda pixels: pixels[:1].flatten(1), r"returned shape \(1, 12\)"),
        (lambda pixels: pixels.flatten(1) / 0 * 0, "logits that are NaN or infinite"),
        (lambda pixels: (pixels.flatten(1) + 1).log() / 0, "logits that are NaN or infinite"),
        (cases.failing, r"does not run on images of shape \(3, 2, 2\).*: on purpose"),
    ],
)
def test_a_model_without_logits_for_the_pictures_is_refused(function, cause):
    with pytest.raises(ValueError, match=cause) as caught:
        check_classes(Classifier(cases.Called(function)), x())
    assert "\n" not in str(caught.value)


def test_a_wrong_number_of_channels_or_a_wrong_size_is_told_with_the_shape_of_the_pictures():
    own = cases.conv().float()
    for pixels in (x(2, 1, 3), x(2, 2, 9)):
        said = refusal(check_classes, own, pixels)
        assert f"does not run on images of shape {tuple(pixels.shape[1:])}" in said


def test_labels_beyond_the_classes_are_refused(unchecked):
    own = Classifier(cases.Called(lambda pixels: pixels.flatten(1)))
    said = refusal(check_classes, own, x(3), torch.tensor([0, 12, 1]))
    assert "y spans [0, 12]; class indices must lie in [0, 11]" in said
    assert "y has shape (2,)" in refusal(check_classes, own, x(3), torch.tensor([0, 1]))


# ------------------------------------------------------------------ pictures in folders


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def draw(path: Path, array: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


@pytest.fixture
def classes(tmp_path):
    """Three classes of 5, 2 and 4 pictures, written in another order than that of their names."""
    for name, count in (("dog", 4), ("ant", 5), ("cat", 2)):
        for i in reversed(range(count)):
            draw(tmp_path / "pictures" / name / f"{i}.png", pixels(4, 5, 3, seed=10 * count + i))
    return tmp_path / "pictures"


def test_one_folder_a_class_gives_labels_by_sorted_names_and_exact_pixels(classes):
    found = load_images(str(classes), n=100)
    assert found.classes == ["ant", "cat", "dog"]
    assert found.names == [f"{c}/{i}.png" for c, count in (("ant", 5), ("cat", 2), ("dog", 4)) for i in range(count)]
    assert found.y.tolist() == [0] * 5 + [1] * 2 + [2] * 4
    assert (found.x.dtype, found.x.shape, found.y.dtype) == (torch.float32, (11, 3, 4, 5), torch.int64)
    for image, name in zip(found.x, found.names, strict=True):
        with Image.open(classes / name) as opened:
            assert np.array_equal((255 * image).round().byte().permute(1, 2, 0).numpy(), np.array(opened))
    assert float(found.x.min()) >= 0
    assert float(found.x.max()) <= 1


def test_pictures_are_drawn_class_balanced_without_replacement_and_by_the_seed_alone(classes):
    draws = [load_images(str(classes), n=6, seed=seed) for seed in (*range(6), 0)]
    for found in draws:
        assert found.y.bincount().tolist() == [2, 2, 2]
        assert len(set(found.names)) == 6
        assert found.names == sorted(found.names)
    assert draws[0].names == draws[-1].names
    assert torch.equal(draws[0].x, draws[-1].x)
    assert len({tuple(found.names) for found in draws}) > 1
    assert load_images(str(classes), n=8).y.bincount().tolist() == [3, 2, 3]


def test_pictures_without_labels_have_none(classes):
    found = load_images(str(classes / "ant"), n=3, seed=1)
    assert (found.y, found.classes) == (None, None)
    assert len(set(found.names)) == 3
    assert len({tuple(load_images(str(classes / "ant"), n=3, seed=seed).names) for seed in range(8)}) > 1


def test_hidden_files_and_other_files_are_passed_over(classes):
    before = load_images(str(classes), n=100).names
    (classes / "notes.txt").write_text("notes")
    (classes / "ant" / "Thumbs.db").write_bytes(b"db")
    (classes / "ant" / "._1.png").write_bytes(b"of a Mac")
    (classes / ".git").mkdir()
    (classes / "ant" / ".cache").mkdir()
    assert load_images(str(classes), n=100).names == before


def folder(tmp_path: Path, case: str) -> Path:
    """A folder that cannot be told what it is."""
    root = tmp_path / "root"
    root.mkdir()
    if case == "mixed":
        draw(root / "a.png", pixels(2, 2)), draw(root / "cat" / "a.png", pixels(2, 2))
    elif case == "empty class":
        draw(root / "a" / "a.png", pixels(2, 2)), (root / "b").mkdir()
    elif case == "deeper":
        draw(root / "train" / "a" / "a.png", pixels(2, 2)), draw(root / "val" / "a" / "a.png", pixels(2, 2))
    elif case == "one":
        draw(root / "a" / "a.png", pixels(2, 2))
    elif case == "hidden":
        draw(root / ".a.png", pixels(2, 2))
    return root


@pytest.mark.parametrize(
    ("case", "cause"),
    [
        ("empty", "holds no pictures (.png, .jpg"),
        ("hidden", "holds no pictures (.png, .jpg"),
        ("mixed", "holds pictures (a.png) and folders (cat)"),
        ("empty class", "in which 'b' holds no pictures"),
        ("deeper", "in which 'train' holds a folder, 'a'"),
        ("one", "holds one folder, 'a'"),
    ],
)
def test_a_folder_that_may_mean_two_things_or_nothing_is_refused(tmp_path, case, cause):
    assert cause in refusal(load_images, str(folder(tmp_path, case)), n=2)


@pytest.mark.parametrize("target", ["file", "folder", "nothing", "loop"])
def test_a_link_that_leaves_the_folder_or_leads_nowhere_is_refused(classes, tmp_path, target):
    outside = draw(tmp_path / "outside" / "secret.png", pixels(4, 5, 3))
    link = classes / "ant" / "link.png" if target != "folder" else classes / "link"
    link.symlink_to({"file": outside, "folder": outside.parent, "nothing": "no.png", "loop": "link.png"}[target])
    said = refusal(load_images, str(classes), n=100)
    assert str(link) in said
    assert "a link to a folder, to what lies outside" in said


def test_a_link_within_the_folder_and_a_link_to_the_folder_are_followed(classes, tmp_path):
    (classes / "cat" / "2.png").symlink_to(classes / "cat" / "1.png")
    (tmp_path / "link").symlink_to(classes)
    found = load_images(str(tmp_path / "link"), n=100)
    assert torch.equal(found.x[found.names.index("cat/2.png")], found.x[found.names.index("cat/1.png")])


# ------------------------------------------------------------------ picture files


@pytest.mark.parametrize("suffix", ["png", "PNG", "jpg", "jpeg", "bmp", "webp", "tif", "tiff", "gif"])
def test_every_format_is_read_as_pillow_reads_it(tmp_path, suffix):
    smooth = np.linspace(0, 255, 8 * 9 * 3).reshape(8, 9, 3).astype(np.uint8)
    path = draw(tmp_path / f"a.{suffix}", smooth)
    with Image.open(path) as opened:
        expected = torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1) / 255
    assert torch.equal(load_images(str(tmp_path), n=1).x[0], expected)


def test_of_an_animation_the_first_frame_is_taken(tmp_path):
    frames = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (51, 204)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert torch.allclose(load_images(str(tmp_path), n=1).x, torch.tensor(0.2))


def test_a_picture_stands_upright_as_its_camera_says(tmp_path):
    plain = pixels(4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter, clockwise
    draw(tmp_path / "a.png", plain, exif=exif)
    found = load_images(str(tmp_path), n=1).x[0]
    assert np.array_equal((255 * found).round().byte().permute(1, 2, 0).numpy(), np.rot90(plain, -1))


def test_grey_stays_grey_unless_a_picture_is_coloured(tmp_path):
    grey, colour = pixels(3, 3), pixels(3, 3, 3)
    draw(tmp_path / "a.png", grey)
    assert load_images(str(tmp_path), n=2).x.shape == (1, 1, 3, 3)
    draw(tmp_path / "b.png", colour)
    both = load_images(str(tmp_path), n=2).x
    assert both.shape == (2, 3, 3, 3)
    assert all(torch.equal(both[0, c], torch.from_numpy(grey) / 255) for c in range(3))


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_are_those_of_pillow_whatever_the_pictures_have(tmp_path, channels):
    arrays = {"a.png": pixels(3, 4), "b.png": pixels(3, 4, 3)}
    for name, array in arrays.items():
        draw(tmp_path / name, array)
    found = load_images(str(tmp_path), n=2, channels=channels)
    for image, array in zip(found.x, arrays.values(), strict=True):
        expected = np.array(Image.fromarray(array).convert({1: "L", 3: "RGB"}[channels])).reshape(3, 4, channels)
        assert image.shape == (channels, 3, 4)
        assert np.abs(255 * image.permute(1, 2, 0).numpy() - expected).max() <= 1  # Pillow rounds


def test_palettes_sixteen_bits_and_bilevel_pictures_are_read_for_what_they_show(tmp_path):
    colour = Image.fromarray(np.repeat(np.arange(0, 240, 60, dtype=np.uint8), 12).reshape(4, 4, 3))
    colour.quantize(16).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.mode == "P"
        expected = torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1) / 255
    assert torch.equal(load_images(str(tmp_path), n=1).x[0], expected)
    deep = np.array([[0, 1], [32768, 65535]], np.uint16)
    draw(tmp_path / "a.png", deep)
    assert torch.allclose(load_images(str(tmp_path), n=1).x[0, 0].double(), torch.from_numpy(deep / 65535))
    draw(tmp_path / "a.png", np.array([[True, False], [False, True]]))
    assert load_images(str(tmp_path), n=1).x[0, 0].tolist() == [[1, 0], [0, 1]]


def tiff(bits: int, raw: bytes, photometric: int) -> bytes:
    """A TIFF of two grey pixels beside each other, written by hand."""
    tags = {256: 2, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 122, 277: 1, 278: 1, 279: len(raw)}
    told = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + told + bytes(4) + raw


@pytest.mark.parametrize(
    ("bits", "raw", "photometric", "said"),
    [
        (12, b"\xff\xf0\x00", 1, "has grey of 12 bits, photometric 1"),
        (16, b"\xff\xff\0\0", 0, "has grey of 16 bits, photometric 0"),
    ],
)
def test_deep_grey_of_another_range_or_turned_round_is_refused(tmp_path, bits, raw, photometric, said):
    for known in (tiff(16, b"\xff\xff\0\0", 1), tiff(8, b"\xff\0", 1), tiff(8, b"\0\xff", 0)):
        (tmp_path / "a.tif").write_bytes(known)
        assert load_images(str(tmp_path), n=1).x.flatten().tolist() == [1, 0]
    (tmp_path / "a.tif").write_bytes(tiff(bits, raw, photometric))
    assert said in refusal(load_images, str(tmp_path), n=1)


def test_opaque_pictures_lose_their_alpha_and_transparent_ones_are_refused(tmp_path):
    colour = np.concatenate([pixels(3, 3, 3), np.full((3, 3, 1), 255, np.uint8)], -1)
    path = draw(tmp_path / "a.png", colour)
    expected = torch.from_numpy(colour[..., :3].copy()).permute(2, 0, 1) / 255
    assert torch.equal(load_images(str(tmp_path), n=1).x[0], expected)
    colour[1, 1, 3] = 254
    draw(path, colour)
    assert f"picture {path} has transparent pixels" in refusal(load_images, str(tmp_path), n=1)
    Image.fromarray(pixels(3, 3)).quantize(4).save(path, transparency=0)
    assert f"picture {path} has transparent pixels" in refusal(load_images, str(tmp_path), n=1)


@pytest.mark.parametrize("array", [np.ones((2, 2), np.float32), np.ones((2, 2), np.int32)], ids=str)
def test_pixels_of_unknown_range_are_refused(tmp_path, array):
    draw(tmp_path / "a.tiff", array)
    assert "whose range is not known" in refusal(load_images, str(tmp_path), n=1)


def test_damaged_empty_and_foreign_files_are_refused_by_name(tmp_path):
    whole = draw(tmp_path / "a.png", pixels(32, 32, 3)).read_bytes()
    path = tmp_path / "a.png"
    spoilt = whole[:60] + bytes(40) + whole[100:]
    svg, postscript = b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    for content in (whole[:-200], whole[:20], spoilt, b"\x89PNG\r\n\x1a\n", svg, postscript, bytes(100)):
        path.write_bytes(content)
        assert f"picture {path} cannot be read as PNG, JPEG" in refusal(load_images, str(tmp_path), n=1)
    path.write_bytes(b"")
    assert f"picture {path} is empty (0 bytes)" in refusal(load_images, str(tmp_path), n=1)


def test_a_format_that_is_not_listed_is_not_opened_under_the_name_of_another(tmp_path):
    Image.fromarray(pixels(4, 4, 3)).save(tmp_path / "a.png", format="PPM")
    assert "cannot be read as" in refusal(load_images, str(tmp_path), n=1)
    Image.fromarray(pixels(4, 4, 3)).save(tmp_path / "a.png", format="BMP")
    assert load_images(str(tmp_path), n=1).x.shape == (1, 3, 4, 4)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize(
    ("side", "sentence"), [(7100, "7100 x 7100 pixels"), (10_000, "more than"), (60_000, "more than")]
)
def test_a_picture_that_would_fill_the_memory_is_refused_before_it_is_decoded(tmp_path, monkeypatch, side, sentence):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(1000)))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b""))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("it was decoded"))
    said = refusal(load_images, str(tmp_path), n=1)
    assert sentence in said
    assert "50,000,000" in said


# ------------------------------------------------------------------ one size


def test_without_a_size_pictures_of_several_shapes_are_refused(tmp_path):
    draw(tmp_path / "a.png", pixels(4, 4)), draw(tmp_path / "b.png", pixels(4, 6))
    said = refusal(load_images, str(tmp_path), n=2)
    assert "size is None" in said
    assert "a.png 4 x 4, b.png 4 x 6" in said
    assert "give a size" in said
    assert load_images(str(tmp_path), n=2, size=4).x.shape == (2, 1, 4, 4)


@pytest.mark.parametrize(("height", "width"), [(40, 61), (61, 40), (50, 50)])
def test_a_side_asks_for_the_centred_square_resized_as_pillow_does(tmp_path, height, width):
    array = 64 + pixels(height, width, 3) // 2  # no overshoot that Pillow would cut off on the way
    draw(tmp_path / "a.png", array)
    edge = min(height, width)
    left, top = (width - edge) // 2, (height - edge) // 2
    square = Image.fromarray(array).crop((left, top, left + edge, top + edge))
    expected = np.array(square.resize((20, 20), Image.Resampling.BICUBIC))
    found = load_images(str(tmp_path), n=1, size=20).x[0].permute(1, 2, 0).numpy()
    assert np.abs(255 * found - expected).max() <= 1.25  # Pillow rounds after each direction


def test_a_height_and_a_width_ask_for_the_largest_centred_part_of_that_aspect(tmp_path):
    array = np.zeros((30, 30), np.uint8)
    array[10:20] = 255
    draw(tmp_path / "a.png", array)
    assert load_images(str(tmp_path), n=1, size=(10, 30)).x.min() == 1
    assert load_images(str(tmp_path), n=1, size=(30, 10)).x[0, 0, :, 0].tolist() == [0] * 10 + [1] * 10 + [0] * 10


def test_pictures_of_the_asked_size_keep_their_pixels(classes):
    assert torch.equal(load_images(str(classes), n=9, size=(4, 5)).x, load_images(str(classes), n=9).x)


def test_resized_pixels_stay_in_the_range(tmp_path):
    draw(tmp_path / "a.png", np.kron(np.eye(8, dtype=np.uint8) * 255, np.ones((2, 2), np.uint8)))
    found = load_images(str(tmp_path), n=1, size=45).x
    assert (float(found.min()), float(found.max())) == (0, 1)


# ------------------------------------------------------------------ arrays


def stored(folder: Path, **arrays) -> str:
    np.savez(folder / "a.npz", **arrays)
    return str(folder / "a.npz")


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("last", [True, False])
def test_both_layouts_of_an_array_give_the_same_pictures(tmp_path, channels, last):
    array, y = pixels(7, 5, 6, channels), np.arange(7) % 3
    found = load_images(stored(tmp_path, x=array if last else array.transpose(0, 3, 1, 2), y=y), n=50)
    assert torch.equal(found.x, torch.from_numpy(array).permute(0, 3, 1, 2) / 255)
    assert (found.y.tolist(), found.classes, found.names) == (y.tolist(), None, [str(i) for i in range(7)])


def test_an_array_without_channels_is_grey(tmp_path):
    array = pixels(7, 5, 6)
    found = load_images(stored(tmp_path, x=array), n=50)
    assert torch.equal(found.x, torch.from_numpy(array)[:, None] / 255)
    assert found.y is None


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_floating_point_pixels_are_taken_as_they_are(tmp_path, dtype):
    array = (pixels(3, 5, 6, 3) / 255).astype(dtype)
    found = load_images(stored(tmp_path, x=array), n=50)
    assert torch.equal(found.x, torch.from_numpy(array.astype(np.float32)).permute(0, 3, 1, 2))


def test_drawn_arrays_keep_pixels_labels_and_names_together(tmp_path):
    array, y = np.arange(40, dtype=np.uint8)[:, None, None] * np.ones((1, 5, 5), np.uint8), np.arange(40) % 4
    found = load_images(stored(tmp_path, x=array, y=y.astype(np.uint8)), n=12, seed=3)
    assert [round(255 * float(image.mean())) for image in found.x] == [*map(int, found.names)]
    assert [int(name) % 4 for name in found.names] == found.y.tolist()
    assert found.y.bincount().tolist() == [3, 3, 3, 3]
    assert found.y.dtype == torch.int64


@pytest.mark.parametrize(
    ("x", "cause"),
    [
        (np.zeros((5, 3, 4, 3), np.uint8), "axis 1 or 3 may be the channels"),
        (np.zeros((5, 1, 8, 1), np.uint8), "axis 1 or 3 may be the channels"),
        (np.zeros((5, 2, 8, 8), np.uint8), "with 1, 3 or 4 channels nowhere"),
        (np.zeros((8, 8, 3), np.uint8), "may be grey pictures or one of 3 channels"),
        (np.zeros((8, 8), np.uint8), "whose x has shape (8, 8)"),
        (np.zeros((0, 8, 8), np.uint8), "and not empty"),
        (np.zeros((), np.uint8), "whose x has shape ()"),
        (np.zeros((5, 8, 8), np.int64), "dtype int64; it must be uint8, or floating-point"),
        (np.zeros((5, 8, 8), bool), "dtype bool"),
        (np.zeros((5, 8, 8), complex), "dtype complex128"),
        (np.full((5, 8, 8), 255.0), "spans [255, 255]"),
        (np.full((5, 8, 8), -0.1), "spans [-0.1, -0.1]"),
        (np.full((5, 8, 8), np.nan), "spans [nan, nan]"),
    ],
)
def test_an_array_that_may_mean_two_things_or_holds_no_pixels_is_refused(tmp_path, x, cause):
    assert cause in refusal(load_images, stored(tmp_path, x=x), n=2)


@pytest.mark.parametrize(
    ("y", "cause"),
    [
        (np.zeros(4, int), "it must hold 5 whole numbers"),
        (np.zeros((5, 1), int), "it must hold 5 whole numbers"),
        (np.zeros(5), "dtype float64"),
        (np.array(list("abcde")), "dtype <U1"),
        (np.array([0, 1, -1, 2, 3]), "y spans [-1, 3]"),
    ],
)
def test_labels_that_are_no_class_indices_are_refused(tmp_path, y, cause):
    assert cause in refusal(load_images, stored(tmp_path, x=np.zeros((5, 8, 8), np.uint8), y=y), n=2)


@pytest.mark.parametrize("name", ["x", "y"])
def test_an_array_of_objects_is_refused_and_executes_nothing(tmp_path, name, monkeypatch):
    mark, array = tmp_path / "executed", np.zeros((1, 8, 8), np.uint8)
    evil = np.empty(1, object)
    evil[0] = Marking(mark)
    source = stored(tmp_path, **({"x": array} | {name: evil}))
    assert f"whose {name} is an array of pickled objects" in refusal(load_images, source, n=1)
    assert not mark.exists()
    monkeypatch.setattr(images, "_promised", lambda *arguments: None)  # nor does the reader itself
    assert "which is damaged: Object arrays cannot be loaded" in refusal(load_images, source, n=1)
    assert not mark.exists()
    monkeypatch.undo()
    Path(source).write_bytes(pickle.dumps(Marking(mark)))
    assert "is damaged or no .npz file" in refusal(load_images, source, n=1)
    assert not mark.exists()


def test_damaged_empty_and_foreign_archives_are_refused(tmp_path):
    source = stored(tmp_path, x=pixels(5, 32, 32))
    path = Path(source)
    whole = path.read_bytes()
    for content in (whole[:-30], whole[:100], b"PK", whole[:2000] + bytes(500) + whole[2500:]):
        path.write_bytes(content)
        assert "is damaged" in refusal(load_images, source, n=1)
    path.write_bytes(b"")
    assert "is empty (0 bytes)" in refusal(load_images, source, n=1)
    assert "which holds 'images'; it must hold an array x" in refusal(
        load_images, stored(tmp_path, images=pixels(5, 8, 8)), n=1
    )
    assert "which holds nothing" in refusal(load_images, stored(tmp_path), n=1)


@pytest.mark.parametrize(
    ("shape", "cause"), [((10**6, 1000, 1000), "at most"), ((50, 8, 8), "is damaged: its x has 64")]
)
def test_an_array_that_promises_more_than_it_holds_is_refused_before_memory_is_taken(tmp_path, shape, cause):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, archive.open("x.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        file.write(bytes(64))
    assert cause in refusal(load_images, str(tmp_path / "a.npz"), n=1)


def test_what_was_looked_at_is_what_is_read_where_a_member_has_no_suffix(tmp_path):
    source = stored(tmp_path, x=pixels(5, 8, 8))
    with zipfile.ZipFile(source, "a") as archive, archive.open("x", "w") as file:
        np.lib.format.write_array(file, np.zeros((5, 8, 8), np.uint8))
    assert torch.equal(load_images(source, n=5).x, torch.from_numpy(pixels(5, 8, 8))[:, None] / 255)


# ------------------------------------------------------------------ our data sets, and bad arguments


def test_a_known_data_set_gives_test_images_that_load_gives():
    found, known = load_images("digits", n=30, seed=2), data.load("digits", n_train=1)
    places = [*map(int, found.names)]
    assert torch.equal(found.x, known.test.x[places])
    assert torch.equal(found.y, known.test.y[places])
    assert set(places) == {
        int((known.test.x == image).flatten(1).all(1).nonzero()[0])
        for image in data.load("digits", n_train=1, n_test=30, seed=2).test.x
    }
    assert found.classes == [str(i) for i in range(10)]
    assert len(load_images("digits", n=10_000).names) == 797


def test_a_data_set_that_is_also_a_folder_here_is_refused(tmp_path, monkeypatch):
    draw(tmp_path / "digits" / "a.png", pixels(3, 3))
    monkeypatch.chdir(tmp_path)
    assert "write ./digits for the file" in refusal(load_images, "digits", n=3)
    assert load_images("./digits", n=3).names == ["a.png"]


def test_a_source_that_is_nothing_is_refused(tmp_path):
    assert "source is 'digts', which is not found" in (said := refusal(load_images, "digts", n=3))
    assert "did you mean 'digits'?" in said
    path = draw(tmp_path / "a.png", pixels(3, 3))
    assert "which is no folder and no .npz file" in refusal(load_images, str(path), n=3)
    assert "which is not found" in refusal(load_images, "", n=3)
    assert "which is not found" in refusal(load_images, str(tmp_path / "b.npz"), n=3)


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"n": 0}, "n is 0"),
        ({"n": 2.5}, "n is 2.5"),
        ({"seed": -1}, "seed is -1"),
        ({"size": 0}, "size is 0"),
        ({"size": (4, 4, 4)}, "size is (4, 4, 4); it must be one side, or height and width"),
        ({"size": (4, -1)}, "size is -1"),
        ({"size": 10_000}, "at most 50,000,000 pixels"),
        ({"channels": 2}, "channels is 2; it must be 1 (grey), 3 (colour) or None"),
        ({"channels": True}, "channels is True"),
        ({"source": 3}, "source is a int"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_read(unchecked, monkeypatch, options, cause):
    monkeypatch.setattr(data, "load", lambda *arguments, **options: pytest.fail("it was read"))
    options = {"source": "digits", "n": 3} | options
    assert cause in refusal(load_images, **options)


def test_a_fourth_channel_is_kept_or_refused_never_dropped(tmp_path):
    source = stored(tmp_path, x=pixels(3, 8, 8, 4))
    assert load_images(source, n=3).x.shape == (3, 4, 8, 8)
    assert "channels is 3, but pictures" in refusal(load_images, source, n=3, channels=3)


def test_nothing_is_written_beside_the_pictures(classes, tmp_path):
    stored(tmp_path, x=pixels(5, 8, 8))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    load_images(str(classes), n=4, size=3, channels=1)
    load_images(str(tmp_path / "a.npz"), n=4, size=3, channels=3)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_every_limit_is_a_named_number():
    assert images.PIXELS == 50_000_000
    assert set(TORCH) == {".pt", ".pth", ".bin"}
