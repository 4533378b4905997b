"""What has no curvature is refused, each in its own sentence, and what has passes."""

import cases
import pytest
import torch
from attrobust.curvature import guards
from torch import nn


def test_a_batch_that_is_none_is_refused(unchecked):
    model, x, y = cases.mlp(), cases.images(3), cases.labels(3)
    usable = guards.usable
    usable(model, x, y, chunk=2)
    usable(model, x, chunk=2)
    for given, sentence in (
        ((model, 3), "x is a int; it must be a torch tensor"),
        ((model, x, [0, 1, 2]), "y is a list; it must be a torch tensor"),
        ((model, torch.tensor(1.0)), r"x has shape \(\); it must be a batch"),
        ((model, x, torch.tensor(1)), r"y has shape \(\); it must be a batch"),
        ((model, x[:0]), r"x has shape \(0, 2, 3, 3\); it must be a batch and not empty"),
        ((model, x[:, :0]), r"x has shape \(3, 0, 3, 3\); it must be a batch and not empty"),
        ((model, x, y[:2]), "y has 2 entries for 3 examples; give one label per example"),
        ((model, x[:1], y[:2]), "y has 2 entries for 1 examples"),
        ((model, x, y.half()), "y has dtype torch.float16; curvature needs float32 or float64"),
        ((model, x.half()), "x has dtype torch.float16"),
        ((model, x.to("meta")), "x is on meta and x on meta; both must hold numbers on one device"),
        ((model, x, y.to("meta")), "y is on meta and x on cpu; both must hold numbers on one device"),
        ((model, x.to_sparse()), "x "),
        ((lambda at: at, x), "model is a function; curvature needs a torch module"),
    ):
        with pytest.raises(ValueError, match=f"^{sentence}"):
            usable(*given, chunk=2)
    broken = x.clone()
    broken[0, 0, 0, 0], broken[1, 0, 0, 0], broken[2, 0, 0, 0] = float("nan"), float("inf"), -float("inf")
    with pytest.raises(ValueError, match=r"^x holds 3 values that are NaN or infinite$"):
        usable(model, broken, chunk=2)


def test_weights_and_buffers_of_low_precision_elsewhere_or_of_inference_are_refused_by_name():
    x = cases.images(3)
    for change, sentence in (
        (lambda t: t.half(), "has dtype torch.float16; curvature needs float32 or float64, as of model.float"),
        (lambda t: t.bfloat16(), "has dtype torch.bfloat16"),
        (lambda t: t.to("meta"), "is on meta and x on cpu"),
    ):
        model = cases.mlp()
        model.register_buffer("kept", change(torch.ones(2)))
        with pytest.raises(ValueError, match=f"^kept {sentence}"):
            guards.usable(model, x, chunk=3)
        model = cases.mlp()
        model.spare = nn.Parameter(change(torch.ones(2)))
        with pytest.raises(ValueError, match=f"^spare {sentence}"):
            guards.usable(model, x, chunk=3)
    model = cases.mlp()
    model.register_buffer("steps", torch.ones(2, dtype=torch.int16))  # whole numbers of any size are fine
    model.register_buffer("single", torch.ones(2))
    guards.usable(model, x, chunk=3)
    with torch.inference_mode():
        made = torch.ones(2)
    model.register_buffer("made", made)
    with pytest.raises(ValueError, match=r"^made was made under torch.inference_mode and has no derivative"):
        guards.usable(model, x, chunk=3)


def test_a_large_batch_is_compared_a_chunk_at_a_time_and_precision_asked_of_one_image():
    model, seen = cases.mlp(), []
    model.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    guards.usable(model, cases.images(40), chunk=5)
    assert max(seen) < 40
    assert seen[-1] == 1


def test_precision_is_noted_wherever_it_is_lost():
    x = cases.images(2)
    for dtype in (torch.float16, torch.bfloat16):
        lossy = nn.Sequential(cases.Called(lambda z, dtype=dtype: z.to(dtype=dtype).to(z.dtype)), cases.mlp())
        with pytest.raises(ValueError, match=f"^model computes in {dtype}; curvature needs float32 or better"):
            guards.usable(lossy, x, chunk=2)
        whole = nn.Sequential(cases.Called(lambda z: (z.float() > 0).to(torch.int8).to(z.dtype) + z), cases.mlp())
        guards.usable(whole, x, chunk=2)
        with guards._Precision() as noted:
            torch.ones(4, dtype=dtype).chunk(2)
            torch.ones(2)
        assert noted.low == dtype
    with guards._Precision() as noted:
        torch.ones(2, dtype=torch.float32).max(0)
    assert noted.low is None


def test_numbers_are_one_finite_float_per_example(unchecked):
    x, numbers = cases.images(3), torch.tensor([1.0, 2.0, 3.0])
    assert guards.values("f", numbers, x) is numbers
    for wrong, sentence in (
        (numbers.long(), "f gives a torch.int64; it must give a tensor of floating-point numbers, one per example"),
        ([1.0, 2.0, 3.0], "f gives a list; it must give a tensor"),
        (numbers[:2], r"f has shape \(2,\); it must be one number per example; a loss such as F.cross_entropy does so"),
        (numbers[:, None], r"f has shape \(3, 1\)"),
        (torch.tensor([1.0, float("inf"), float("nan")]), r"f is inf on an example; curvature needs a finite f$"),
        (torch.tensor([1.0, float("nan"), float("inf")]), "f is nan on an example"),
        (torch.tensor([1.0, 2.0, -float("inf")]), "f is -inf on an example"),
    ):
        with pytest.raises(ValueError, match=f"^{sentence}"):
            guards.values("f", wrong, x)
    with pytest.raises(ValueError, match=r"^loss does not run on what the model returns and y, torch.int64: "):
        guards.losses(lambda z, y: z.nowhere, x, cases.labels(3), x)
    with pytest.raises(ValueError, match=r"^loss has shape \(\)"):
        guards.losses(lambda z, y: z.sum(), x, cases.labels(3), x)
    found = guards.losses(lambda z, y: z.flatten(1).sum(1) * y, x, cases.labels(3), x)
    assert torch.equal(found, x.flatten(1).sum(1) * cases.labels(3))
