"""The classifiers, small enough to read at a glance: dense, convolutional, residual, a transformer; their builder.

With BatchNorm a network is a function of each image in eval mode alone: there it is affine, by its running statistics.
In train mode it normalises by the batch, and moves these (Ioffe and Szegedy 2015, "Batch normalization", algorithm 2).
The transformer's attention maps are ordinary outputs, with no dropout and nothing fused (notebooks 06 and 07):

    z_0 = [cls; E patches] + position
    z  <- z + attention(norm(z)),   z <- z + mlp(norm(z))        (norm first: Xiong et al. 2020)
    logits = head(norm(z_L[cls]))
"""

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attrobust import attention as kernels
from attrobust import checks
from attrobust.attention import Attention, Matrix, Tokens
from attrobust.shapes import Images, Logits

Shape = tuple[int, int, int]
ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "softplus": nn.Softplus, "tanh": nn.Tanh}

#: Of the first position embeddings, where tokens of standardised pixels have 1: our choice, and that of large
#: transformers, with which the place of a patch is at first not heard: digits are learned more slowly and less well.
POSITION_STD, NARROW_POSITION_STD = 0.5, 0.02


class Standardize(nn.Module):
    """(x - mean) / std with one constant each, of the training pixels: attack radii keep meaning pixel units.

    Raises:
        ValueError: a `mean` that is not finite, or a `std` that is not above 0.

    Example:
        >>> Standardize(mean=0.5, std=0.25)(torch.ones(1, 1, 1, 1)).item()
        2.0
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(float(checks.number("mean", mean))))
        self.register_buffer("std", torch.tensor(float(checks.positive("std", std))))

    def forward(self, x: Images) -> Images:
        """Standardise the pixels."""
        return (x - self.mean) / self.std


class _Layered(nn.Module):
    """Layers one after the other, of which the first standardises the pixels by their mean and std."""

    layers: nn.Sequential

    def __init__(self, pixels: dict[str, float], *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(Standardize(**pixels), *layers)

    def forward(self, x: Images) -> Logits:
        """Logits of each image."""
        return self.layers(x)


class MLP(_Layered):
    """Dense network: standardise, flatten, `depth` hidden layers of `width` units, one logit per class.

    Example:
        >>> MLP((1, 4, 4), 3, width=8, depth=1)(torch.zeros(2, 1, 4, 4)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self, inputs: Shape, classes: int, *, activation: str = "gelu", width: int = 64, depth: int = 3, **pixels: float
    ) -> None:
        sizes = [math.prod(inputs), *[width] * depth, classes]
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in, fan_out in pairwise(sizes[:-1]):
            layers += [nn.Linear(fan_in, fan_out), ACTIVATIONS[activation]()]
        super().__init__(pixels, *layers, nn.Linear(*sizes[-2:]))


class _Convolutional(_Layered):
    """A network that ends its feature maps by pooling or flattening them."""

    @property
    def last_maps(self) -> nn.Module:
        """The layer that returns the last feature maps, (batch, channels, rows, columns): Grad-CAM's, as a rule."""
        ends = nn.AdaptiveAvgPool2d | nn.Flatten
        return next(layer for layer, after in pairwise(self.layers) if isinstance(after, ends))


class ConvNet(_Convolutional):
    """Convolutional network: two strided 3 x 3 convolutions, then one hidden dense layer.

    With `batch_norm`, one stands behind each convolution.

    Example:
        >>> [type(layer).__name__ for layer in ConvNet((1, 8, 8), 10, batch_norm=True).layers][:4]
        ['Standardize', 'Conv2d', 'BatchNorm2d', 'GELU']
    """

    def __init__(
        self, inputs: Shape, classes: int, *, activation: str = "gelu", width: int = 16, batch_norm: bool = False,
        **pixels: float,
    ) -> None:  # fmt: skip
        channels, rows, columns = inputs
        act, flat = ACTIVATIONS[activation], 2 * width * math.ceil(rows / 4) * math.ceil(columns / 4)
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise((channels, width, 2 * width)):
            layers += [*_convolution(fan_in, fan_out, stride=2, batch_norm=batch_norm), act()]
        layers += [nn.Flatten(), nn.Linear(flat, 4 * width), act(), nn.Linear(4 * width, classes)]
        super().__init__(pixels, *layers)


class Residual(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut: the input, or a 1 x 1 convolution where the shape changes.

    h -> a(N(W_2 a(N(W_1 h))) + s(h)),   N BatchNorm,   s(h) = h or N(W_s h)   (He et al. 2016, eqs. 1 and 2)
    """

    shortcut: nn.Sequential
    body: nn.Sequential
    activation: nn.Module

    def __init__(self, fan_in: int, fan_out: int, *, stride: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        stays = stride == 1 and fan_in == fan_out
        shortcut = () if stays else _convolution(fan_in, fan_out, size=1, stride=stride, batch_norm=True)
        first = _convolution(fan_in, fan_out, stride=stride, batch_norm=True)
        self.shortcut = nn.Sequential(*shortcut)
        self.body = nn.Sequential(*first, activation(), *_convolution(fan_out, fan_out, batch_norm=True))
        self.activation = activation()

    def forward(
        self, x: Float[Tensor, "batch channels rows columns"]
    ) -> Float[Tensor, "batch features newrows newcolumns"]:
        """New feature maps, of which a stride of 2 halves the sides, rounded up."""
        return self.activation(self.body(x) + self.shortcut(x))


class ResNet(_Convolutional):
    """Residual network: a 3 x 3 stem, stages of blocks with `width`, twice, four times as many channels, and so on.

    `stages` is how many blocks each stage has; from the second on, the first block of a stage halves the sides. With
    BatchNorm behind each convolution; the pooled channels of the last block go through one dense layer. Images may have
    any sides. (He et al. 2016, "Deep residual learning for image recognition". The default is that of section 4.2 with
    n = 1, eight layers deep; there the width is 16, and shortcuts are padded, not convolved. With stages (2, 2, 2, 2)
    and width 64 it is the ResNet-18 of table 1 behind a stem for small images.)

    Example:
        >>> net = ResNet((3, 14, 14), 10, width=4).eval()
        >>> net(torch.rand(2, 3, 14, 14)).shape, sum(p.numel() for p in net.parameters())
        (torch.Size([2, 10]), 5214)
    """

    def __init__(
        self, inputs: Shape, classes: int, *, activation: str = "gelu", width: int = 8,
        stages: tuple[int, ...] = (1, 1, 1), **pixels: float,
    ) -> None:  # fmt: skip
        act = ACTIVATIONS[activation]
        blocks, fan_in = [], width
        for stage, depth in enumerate(stages):
            for place in range(depth):
                stride, fan_out = 1 + (stage > 0 and place == 0), width * 2**stage
                blocks.append(Residual(fan_in, fan_out, stride=stride, activation=act))
                fan_in = fan_out
        stem = [*_convolution(inputs[0], width, batch_norm=True), act()]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(fan_in, classes)]
        super().__init__(pixels, *stem, *blocks, *head)


def _convolution(fan_in: int, fan_out: int, *, size: int = 3, stride: int = 1, batch_norm: bool) -> list[nn.Module]:
    """A padded convolution, and what normalises it; BatchNorm takes its bias away and brings one of its own."""
    convolution = nn.Conv2d(fan_in, fan_out, size, stride=stride, padding=size // 2, bias=not batch_norm)
    return [convolution, *([nn.BatchNorm2d(fan_out)] if batch_norm else [])]


class Block(nn.Module):
    """Attention, then a dense layer of twice the width, each on normalised tokens and added to them."""

    before_attention: nn.LayerNorm
    attention: Attention
    before_mlp: nn.LayerNorm
    mlp: nn.Sequential

    def __init__(self, dim: int, heads: int, *, kernel: str, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.before_attention = nn.LayerNorm(dim)
        self.attention = kernels.Attention(dim, heads, kernel=kernels.kernel(kernel))
        self.before_mlp = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), activation(), nn.Linear(2 * dim, dim))

    def forward(self, tokens: Tokens, *, read: int | None = None) -> tuple[Float[Tensor, "batch read dim"], Matrix]:
        """New tokens (the `read` first ones, or all) and the block's attention matrix."""
        mixed, weights = self.attention.attend(self.before_attention(tokens), read=read)
        tokens = tokens[:, :read] + mixed
        return tokens + self.mlp(self.before_mlp(tokens)), weights


class Patches(nn.Module):
    """One token per patch of the image: its pixels times a weight that all patches share, row by row."""

    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(self, channels: int, patch: int, dim: int) -> None:
        super().__init__()
        self.patch = patch
        self.weight = nn.Parameter(torch.empty(dim, channels * patch**2))
        self.bias = nn.Parameter(torch.zeros(dim))
        nn.init.kaiming_normal_(self.weight, nonlinearity="linear")

    def forward(self, x: Images) -> Tokens:
        """Tokens of each image, in reading order."""
        if any(side % self.patch for side in x.shape[-2:]):
            raise ValueError(f"x has images of {tuple(x.shape[-2:])}; patch {self.patch} must divide height and width")
        tiles = nn.functional.unfold(x, self.patch, stride=self.patch).mT.contiguous()
        return nn.functional.linear(tiles, self.weight, self.bias)


class ViT(nn.Module):
    """Vision transformer: standardise, embed patches, `depth` blocks, read the class from the CLS token.

    `attention` is one of `attention.KERNELS`, `patch` the side of a patch in pixels, `dim` the length of a token
    (Dosovitskiy et al. 2021, "An image is worth 16x16 words", eqs. 1-4). A ValueError refuses a patch that does not
    divide height and width, and heads that do not divide `dim`.

    Example:
        >>> logits, maps = ViT((1, 8, 8), 10, patch=4, dim=8, depth=3, heads=2).attend(torch.rand(5, 1, 8, 8))
        >>> logits.shape, len(maps), maps[-1].shape
        (torch.Size([5, 10]), 3, torch.Size([5, 2, 5, 5]))
    """

    standardize: Standardize
    patches: Patches
    cls: nn.Parameter
    position: nn.Parameter
    blocks: nn.ModuleList
    norm: nn.LayerNorm
    head: nn.Linear

    def __init__(
        self, inputs: Shape, classes: int, *, activation: str = "gelu", attention: str = "softmax", patch: int = 2,
        dim: int = 32, depth: int = 2, heads: int = 4, **pixels: float,
    ) -> None:  # fmt: skip
        super().__init__()
        channels, height, width = inputs
        for name, value in (("patch", patch), ("dim", dim), ("depth", depth)):
            checks.count(name, value)
        if height % patch or width % patch:
            raise ValueError(f"patch is {patch}; it must divide the image's height and width, {height} and {width}")
        tokens = 1 + (height // patch) * (width // patch)
        self.standardize = Standardize(**pixels)
        self.patches = Patches(channels, patch, dim)
        self.cls = nn.Parameter(torch.zeros(1, dim))
        self.position = nn.Parameter(POSITION_STD * torch.randn(tokens, dim))
        how = {"kernel": attention, "activation": ACTIVATIONS[activation]}
        self.blocks = nn.ModuleList(Block(dim, heads, **how) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Images) -> Logits:
        """Logits of each image."""
        return self.attend(x)[0]

    def attend(self, x: Images) -> tuple[Logits, list[Matrix]]:
        """Logits, and the attention matrix of every block, first block first; live, token 0 is CLS."""
        tokens, maps = self._embed(x), []
        for block in self.blocks:
            tokens, weights = block(tokens, read=1 if block is self.blocks[-1] else None)
            maps.append(weights)
        return self.head(self.norm(tokens[:, 0])), maps

    def scores(self, x: Images) -> list[Matrix]:
        """Scores from which every block's kernel makes its attention matrix; live."""
        tokens, scores = self._embed(x), []
        for block in self.blocks:
            scores.append(block.attention.scores(block.before_attention(tokens)))
            tokens, _ = block(tokens)
        return scores

    def _embed(self, x: Images) -> Tokens:
        return torch.cat([self.cls.expand(len(x), 1, -1), self.patches(self.standardize(x))], dim=1) + self.position


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "mlp": MLP, "convnet": ConvNet, "convnet_bn": partial(ConvNet, batch_norm=True), "resnet": ResNet,
    "resnet18": partial(ResNet, width=64, stages=(2, 2, 2, 2)), "vit": ViT,
}  # fmt: skip
INITIAL = ("wide", "narrow")


def _options(architecture: str) -> list[str]:
    """Names of the options that `build` takes; what the name of an architecture fixes, but for its width, is none."""
    network = ARCHITECTURES[architecture]
    fixed = {"inputs", "classes", "pixels", *getattr(network, "keywords", {})} - {"width"}
    return [name for name in inspect.signature(network).parameters if name not in fixed] + ["mean", "std"]


def build(
    architecture: str, *, input_shape: Shape, classes: int, seed: int, initial: str = "wide",
    **options: float | str | Sequence[int],
) -> nn.Module:  # fmt: skip
    """Build one of `ARCHITECTURES`, with weights that depend on `seed` alone; the global random state is left as found.

    The network is in train mode, on the CPU, in float32. `input_shape`: (channels, height, width) of an image. Options
    are the activation, one of `ACTIVATIONS` ("gelu"); mean and std of the training pixels; width, of all but a ViT;
    depth of an MLP; stages of a "resnet"; attention, patch, dim, depth, heads of a ViT; any other is a ValueError.

    Initial weights are "narrow" as torch's own dense and convolutional layers (uniform, variance 1 / (3 fan-in), biases
    too), with positions of a ViT at 0.02; or "wide" (He et al. 2015, "Delving deep into rectifiers", eq. 10; a ViT's
    dense layers read normalised tokens and start at variance 1 / fan-in, LeCun et al. 1998, so that first scores have
    unit variance). BatchNorm starts at weight 1 and bias 0 either way; behind it a convolution's first size tells in
    train mode through its gradient alone, which is inversely proportional.

    Example:
        >>> build("mlp", input_shape=(1, 8, 8), classes=10, seed=0, width=16)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    checks.one_of("architecture", architecture, ARCHITECTURES)
    checks.one_of("activation", options.get("activation", "gelu"), ACTIVATIONS)
    checks.one_of("initial", initial, INITIAL)
    checks.count("classes", classes, least=2)
    checks.kind("seed", seed, int)
    if len(checks.kind("input_shape", input_shape, tuple, list)) != 3:
        raise ValueError(f"input_shape is {checks.short(input_shape)}; it must be (channels, height, width)")
    for side in input_shape:
        checks.count("a side of input_shape", side)
    accepted = _options(architecture)
    for name, value in options.items():
        if name not in accepted:
            raise ValueError(f"{name} is {value!r}; architecture {architecture!r} takes {', '.join(accepted)}")
    if not checks.kind("stages", options.get("stages", (1,)), tuple, list):
        raise ValueError("stages is empty; it must be numbers of blocks, one per stage")
    for blocks in options.get("stages", ()):
        checks.count("a stage of stages", blocks)
    for name in {"width", "depth"} & set(options):
        checks.count(name, options[name], least=int(name == "width"))
    gain = "linear" if architecture == "vit" else "relu"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ARCHITECTURES[architecture](input_shape, classes, **options)
        for layer in model.modules():
            if initial == "wide" and isinstance(layer, nn.Linear | nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity=gain)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
            if initial == "narrow" and isinstance(layer, Patches):
                within = layer.weight.shape[1] ** -0.5
                for parameter in (layer.weight, layer.bias):
                    nn.init.uniform_(parameter, -within, within)
            if initial == "narrow" and isinstance(layer, ViT):
                layer.position.data.mul_(NARROW_POSITION_STD / POSITION_STD)
    return model
