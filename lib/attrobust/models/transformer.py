"""A vision transformer, small enough to read at a glance, whose attention maps are ordinary outputs.

    z_0 = [cls; E patches] + position
    z  <- z + attention(norm(z)),   z <- z + mlp(norm(z))        (norm first: Xiong et al. 2020)
    logits = head(norm(z_L[cls]))

No dropout and nothing fused. Used by notebooks 06 and 07.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attrobust import attention as kernels
from attrobust import checks
from attrobust.models.layers import ACTIVATIONS, Standardize
from attrobust.shapes import Images, Logits

Tokens = Float[Tensor, "batch tokens dim"]
Maps = list[Float[Tensor, "batch heads tokens tokens"]]

#: Of the first position embeddings, where tokens of standardised pixels have 1: our choice. At the 0.02 of large
#: transformers the place of a patch is at first not heard, and digits are learned more slowly and less well.
POSITION_STD = 0.5
NARROW_POSITION_STD = 0.02


class Block(nn.Module):
    """Attention, then a dense layer of twice the width, each on normalised tokens and added to them."""

    def __init__(self, dim: int, heads: int, *, kernel: kernels.Kernel, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.before_attention = nn.LayerNorm(dim)
        self.attention = kernels.Attention(dim, heads, kernel=kernel)
        self.before_mlp = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), activation(), nn.Linear(2 * dim, dim))

    def attend(
        self, tokens: Tokens, *, read: int | None = None
    ) -> tuple[Float[Tensor, "batch read dim"], Float[Tensor, "batch heads tokens tokens"]]:
        """New tokens (the `read` first ones, or all) and the block's attention matrix."""
        mixed, weights = self.attention.attend(self.before_attention(tokens), read=read)
        tokens = tokens[:, :read] + mixed
        return tokens + self.mlp(self.before_mlp(tokens)), weights

    def forward(self, tokens: Tokens) -> Tokens:
        """New tokens."""
        return self.attend(tokens)[0]


class Patches(nn.Module):
    """One token per patch of the image: its pixels times a weight that all patches share, row by row."""

    def __init__(self, channels: int, patch: int, dim: int) -> None:
        super().__init__()
        self.patch = patch
        self.weight = nn.Parameter(torch.empty(dim, channels * patch**2))
        self.bias = nn.Parameter(torch.zeros(dim))
        nn.init.kaiming_normal_(self.weight, nonlinearity="linear")

    @torch.no_grad()
    def narrow(self) -> None:
        """Start as a dense layer of torch does: weights and biases uniform within 1 / sqrt(fan-in)."""
        within = self.weight.shape[1] ** -0.5
        for parameter in (self.weight, self.bias):
            parameter.uniform_(-within, within)

    def forward(self, x: Images) -> Tokens:
        """Tokens of each image, in reading order."""
        p = self.patch
        batch, channels, height, width = x.shape
        tiles = x.reshape(batch, channels, height // p, p, width // p, p).permute(0, 2, 4, 1, 3, 5)
        return nn.functional.linear(tiles.flatten(3).flatten(1, 2), self.weight, self.bias)


class ViT(nn.Module):
    """Vision transformer: standardise, embed patches, `depth` blocks, read the class from the CLS token.

    Args:
        input_shape: channels, height, width of one image.
        classes: number of logits.
        activation: one of `ACTIVATIONS`, in the blocks' dense layers.
        attention: one of `attention.KERNELS`.
        patch: side of a patch in pixels; must divide height and width.
        dim: length of a token.
        depth: number of blocks.
        heads: attention heads of a block; must divide `dim`.
        mean: of the training pixels.
        std: of the training pixels.

    Raises:
        ValueError: for a number out of range or an unknown kernel.

    Example:
        >>> model = ViT((1, 8, 8), 10, patch=4, dim=8, depth=3, heads=2)
        >>> logits, maps = model.attend(torch.rand(5, 1, 8, 8))
        >>> logits.shape, len(maps), maps[-1].shape
        (torch.Size([5, 10]), 3, torch.Size([5, 2, 5, 5]))

    Reference: Dosovitskiy et al. 2021, "An image is worth 16x16 words", eqs. 1-4.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        classes: int,
        *,
        activation: str = "gelu",
        attention: str = "softmax",
        patch: int = 2,
        dim: int = 32,
        depth: int = 2,
        heads: int = 4,
        mean: float = 0.0,
        std: float = 1.0,
    ) -> None:
        super().__init__()
        channels, height, width = input_shape
        for name, value in (("patch", patch), ("dim", dim), ("depth", depth)):
            checks.count(name, value)
        if height % patch or width % patch:
            raise ValueError(f"patch is {patch}; it must divide the image's height and width, {height} and {width}")
        tokens = 1 + (height // patch) * (width // patch)
        self.standardize = Standardize(mean, std)
        self.patches = Patches(channels, patch, dim)
        self.cls = nn.Parameter(torch.zeros(1, dim))
        self.position = nn.Parameter(POSITION_STD * torch.randn(tokens, dim))
        self.blocks = nn.ModuleList(
            Block(dim, heads, kernel=kernels.kernel(attention), activation=ACTIVATIONS[activation])
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)

    @torch.no_grad()
    def narrow(self) -> None:
        """Start with the positions of large transformers."""
        self.position.mul_(NARROW_POSITION_STD / POSITION_STD)

    def forward(self, x: Images) -> Logits:
        """Logits of each image."""
        return self.attend(x)[0]

    def attend(self, x: Images) -> tuple[Logits, Maps]:
        """Logits, and the attention matrix of every block, first block first; live, token 0 is CLS."""
        tokens, maps = self._embed(x), []
        for block in self.blocks:
            tokens, weights = block.attend(tokens, read=1 if block is self.blocks[-1] else None)
            maps.append(weights)
        return self.head(self.norm(tokens[:, 0])), maps

    def scores(self, x: Images) -> Maps:
        """Scores from which every block's kernel makes its attention matrix; live."""
        tokens, scores = self._embed(x), []
        for block in self.blocks:
            scores.append(block.attention.scores(block.before_attention(tokens)))
            tokens = block(tokens)
        return scores

    def _embed(self, x: Images) -> Tokens:
        patches = self.patches(self.standardize(x))
        return torch.cat([self.cls.expand(len(x), 1, -1), patches], dim=1) + self.position
