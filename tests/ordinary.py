"""Forty networks such as people bring them, small: the families of the last decades, written out or from transformers.

Each is `NETWORKS[name]()`: a classifier of 3 x 32 x 32 pixels in five classes, in eval mode and double precision, with
weights of its own draw and running statistics that are not the initial ones. Those of transformers need that package.
"""

from collections.abc import Callable

import cases
import torch
from attrobust import models, swap
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

SHAPE, CLASSES = (3, 32, 32), 5


class Residual(nn.Module):
    """x + f(x), the skip brought to size where needed; activated after the sum or not."""

    def __init__(self, body: nn.Module, skip: nn.Module | None = None, after: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.skip, self.after = body, skip or nn.Identity(), after or nn.Identity()

    def forward(self, x):
        return self.after(self.skip(x) + self.body(x))


class Beside(nn.Module):
    """Branches whose channels stand side by side."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x):
        return torch.cat([branch(x) for branch in self.branches], 1)


class Excite(nn.Module):
    """Squeeze and excitation: channels weighed by what the whole image holds."""

    def __init__(self, channels: int, gate: nn.Module | None = None) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)
        self.gate = gate or nn.Sigmoid()

    def forward(self, x):
        return x * self.gate(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))


class Shuffle(nn.Module):
    """Channels of two groups, taken by turns."""

    def forward(self, x):
        return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


class Mixer(nn.Module):
    """A block of MLP-Mixer: over tokens, then over channels."""

    def __init__(self, tokens: int, dim: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.tokens = nn.Sequential(nn.Linear(tokens, 8), nn.GELU(), nn.Linear(8, tokens))
        self.channels = nn.Sequential(nn.Linear(dim, 8), nn.GELU(), nn.Linear(8, dim))

    def forward(self, x):
        x = x + self.tokens(self.first(x).mT).mT
        return x + self.channels(self.second(x))


class SpatialGate(nn.Module):
    """A block of gMLP: half of the channels gate the other half."""

    def __init__(self, tokens: int, dim: int) -> None:
        super().__init__()
        self.norm, self.up, self.mix = nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.Linear(tokens, tokens)
        self.down = nn.Linear(dim, dim)

    def forward(self, x):
        u, v = F.gelu(self.up(self.norm(x))).chunk(2, -1)
        return x + self.down(u * self.mix(v.mT).mT)


class Tokens(nn.Module):
    """Patches of 8 x 8 pixels as tokens of a width, in reading order."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, dim, 8, 8)

    def forward(self, x):
        return self.embed(x).flatten(2).mT


class Mean(nn.Module):
    """The average of all tokens."""

    def forward(self, x):
        return x.mean(1)


def normed(inside: int, out: int, kernel: int = 3, stride: int = 1, act: nn.Module | None = None, groups: int = 1):
    act = nn.ReLU() if act is None else act
    conv = nn.Conv2d(inside, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), act)


def headed(*body: nn.Module, width: int) -> nn.Module:
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES))


def lenet():
    body = [nn.Conv2d(3, 6, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 8, 5), nn.Tanh(), nn.AvgPool2d(2)]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(200, 16), nn.Tanh(), nn.Linear(16, CLASSES))


def alexnet():
    body = [nn.Conv2d(3, 8, 5, 2), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(inplace=True)]
    head = [nn.Dropout(), nn.Linear(200, 12), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(12, CLASSES)]
    return nn.Sequential(*body, nn.Flatten(), *head)


def vgg():
    stages = [normed(3, 8), normed(8, 8), nn.MaxPool2d(2), normed(8, 12), nn.MaxPool2d(2)]
    return nn.Sequential(*stages, nn.Flatten(), nn.Linear(768, CLASSES))


def resnet(groups: int = 1, width: int = 8, excite: bool = False):
    blocks = []
    for stride, inside in ((1, width), (2, width)):
        out = width * stride
        body = [normed(inside, out, stride=stride), normed(out, out, act=nn.Identity(), groups=groups)]
        body += [Excite(out)] if excite else []
        skip = normed(inside, out, 1, stride, act=nn.Identity()) if stride > 1 else None
        blocks.append(Residual(nn.Sequential(*body), skip, nn.ReLU()))
    return headed(normed(3, width, 7, 2), nn.MaxPool2d(3, 2, 1), *blocks, width=2 * width)


def bottleneck():
    body = nn.Sequential(normed(16, 4, 1), normed(4, 4), normed(4, 16, 1, act=nn.Identity()))
    return headed(normed(3, 16, 3, 2), Residual(body, after=nn.ReLU()), width=16)


def preactivated():
    body = [nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU()]
    return headed(nn.Conv2d(3, 8, 3, 2, 1), Residual(nn.Sequential(*body, nn.Conv2d(8, 8, 3, 1, 1))), width=8)


def group_normed():
    body = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.GroupNorm(2, 8), nn.ReLU())
    return headed(nn.Conv2d(3, 8, 3, 2, 1), nn.InstanceNorm2d(8, affine=True), nn.ReLU(), Residual(body), width=8)


def densenet():
    def layer(inside: int) -> nn.Module:
        grown = nn.Sequential(nn.BatchNorm2d(inside), nn.ReLU(), nn.Conv2d(inside, 4, 3, 1, 1))
        return Beside(nn.Identity(), grown)

    return headed(nn.Conv2d(3, 8, 3, 2, 1), layer(8), layer(12), nn.AvgPool2d(2), layer(16), width=20)


def inception():
    pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), normed(8, 4, 1))
    block = Beside(normed(8, 4, 1), nn.Sequential(normed(8, 4, 1), normed(4, 4)), normed(8, 4, 5), pooled)
    return headed(normed(3, 8, 3, 2), block, width=16)


def squeezenet():
    fire = nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU(), Beside(nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 3, 1, 1)), nn.ReLU())
    return headed(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.MaxPool2d(2), fire, width=16)


def inverted(act: Callable[[], nn.Module], excite: nn.Module | None = None):
    body = [normed(8, 24, 1, act=act()), normed(24, 24, groups=24, act=act())]
    body += [excite] if excite else []
    return Residual(nn.Sequential(*body, normed(24, 8, 1, act=nn.Identity())))


def mobilenet_v1():
    return headed(normed(3, 8, 3, 2), normed(8, 8, groups=8), normed(8, 16, 1), width=16)


def mobilenet_v2():
    return headed(normed(3, 8, 3, 2, act=nn.ReLU6()), inverted(nn.ReLU6), width=8)


def mobilenet_v3():
    excited = inverted(nn.Hardswish, Excite(24, nn.Hardsigmoid()))
    return headed(normed(3, 8, 3, 2, act=nn.Hardswish()), excited, width=8)


def efficientnet():
    return headed(normed(3, 8, 3, 2, act=nn.SiLU()), inverted(nn.SiLU, Excite(24)), width=8)


def efficientnet_lite():
    return headed(normed(3, 8, 3, 2, act=nn.ReLU6()), inverted(nn.ReLU6), inverted(nn.ReLU6), width=8)


def shufflenet():
    body = [normed(8, 8, 1, groups=2), Shuffle(), normed(8, 8, groups=8, act=nn.Identity())]
    return headed(normed(3, 8, 3, 2), Residual(nn.Sequential(*body), after=nn.ReLU()), width=8)


def convnext():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix, self.norm = nn.Conv2d(8, 8, 7, 1, 3, groups=8), nn.LayerNorm(8)
            self.up, self.down, self.scale = nn.Linear(8, 16), nn.Linear(16, 8), nn.Parameter(torch.ones(8))

        def forward(self, x):
            h = self.norm(self.mix(x).permute(0, 2, 3, 1))
            return x + (self.scale * self.down(F.gelu(self.up(h)))).permute(0, 3, 1, 2)

    return headed(nn.Conv2d(3, 8, 4, 4), Block(), width=8)


def convmixer():
    block = Residual(nn.Sequential(nn.Conv2d(8, 8, 5, 1, 2, groups=8), nn.GELU(), nn.BatchNorm2d(8)))
    return headed(nn.Conv2d(3, 8, 4, 4), nn.GELU(), nn.BatchNorm2d(8), block, nn.Conv2d(8, 8, 1), nn.GELU(), width=8)


def all_convolutional():
    return headed(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.LeakyReLU(0.1), width=8)


def mlp_mixer():
    return nn.Sequential(Tokens(8), Mixer(16, 8), nn.LayerNorm(8), Mean(), nn.Linear(8, CLASSES))


def gated_mlp():
    return nn.Sequential(Tokens(8), SpatialGate(16, 8), nn.LayerNorm(8), Mean(), nn.Linear(8, CLASSES))


class Encoder(nn.TransformerEncoderLayer):
    """With attention that torch can differentiate twice."""

    def forward(self, x):
        with sdpa_kernel(SDPBackend.MATH):
            return super().forward(x)


def encoder():
    layer = Encoder(8, 2, 16, batch_first=True, norm_first=True, activation="gelu")
    return nn.Sequential(Tokens(8), layer, nn.LayerNorm(8), Mean(), nn.Linear(8, CLASSES))


def ours(architecture: str, **options):
    return models.build(architecture, input_shape=SHAPE, classes=CLASSES, seed=0, **options)


WRITTEN = {
    "LeNet": lenet, "AlexNet": alexnet, "VGG": vgg, "ResNet": resnet, "ResNet bottleneck": bottleneck,
    "ResNet preactivated": preactivated, "ResNeXt": lambda: resnet(groups=4), "Wide ResNet": lambda: resnet(width=16),
    "SE-ResNet": lambda: resnet(excite=True), "ResNet group norm": group_normed, "DenseNet": densenet,
    "Inception": inception, "SqueezeNet": squeezenet, "MobileNetV1": mobilenet_v1, "MobileNetV2": mobilenet_v2,
    "EfficientNet": efficientnet, "EfficientNet-Lite": efficientnet_lite,
    "ShuffleNet": shufflenet, "ConvNeXt": convnext, "ConvMixer": convmixer, "All-CNN": all_convolutional,
    "MLP-Mixer": mlp_mixer, "gMLP": gated_mlp, "Transformer encoder": encoder, "our MLP": lambda: ours("mlp"),
    "our CNN": lambda: ours("convnet"), "our ViT": lambda: ours("vit"),
    "our CNN with BatchNorm": lambda: ours("convnet_bn"), "our ResNet": lambda: ours("resnet"),
    "our ResNet of ReLUs": lambda: ours("resnet", activation="relu"),
}  # fmt: skip

_VIT = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "patch_size": 8}
_SWIN = {"patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}

#: Family in transformers, and what makes it small.
HUGGING_FACE = {
    "ViT": _VIT, "DeiT": _VIT, "Beit": _VIT, "Dinov2": _VIT, "ViTMSN": _VIT, "IJepa": _VIT,
    "Swin": _SWIN, "Swinv2": _SWIN,
    "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
    "RegNet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 8},
    "ConvNext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    "ConvNextV2": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    "PoolFormer": {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]},
    "MobileNetV2": {"depth_multiplier": 0.1, "finegrained_output": False},
}  # fmt: skip


def hugging_face(family: str):
    import transformers

    shared = {"image_size": SHAPE[1], "num_channels": 3, "num_labels": CLASSES, "attn_implementation": "eager"}
    config = getattr(transformers, f"{family}Config")(**shared | HUGGING_FACE[family])
    return swap.ImageClassifier(getattr(transformers, f"{family}ForImageClassification")(config))


def drawn(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Built without moving the global generator; weights near their initial size, statistics of a trained network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make().double().eval()
    draw = cases.generator(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean += 0.1 * torch.randn(module.running_mean.shape, generator=draw)
                module.running_var *= 0.2 + torch.rand(module.running_var.shape, generator=draw)
    return model


NETWORKS = {name: lambda make=make, i=i: drawn(make, i) for i, (name, make) in enumerate(WRITTEN.items())} | {
    f"{name} of transformers": lambda name=name, i=i: drawn(lambda: hugging_face(name), 50 + i)
    for i, name in enumerate(HUGGING_FACE)
}

#: Those with a softmax in single precision whatever they are given.
SINGLE = {f"{name} of transformers" for name in ("ViT", "DeiT", "Beit", "Dinov2", "ViTMSN", "IJepa", "Swin", "Swinv2")}
