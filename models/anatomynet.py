"""AnatomyNet: a squeeze-and-excitation residual 3D U-Net with a single down-sampling.

Owns the network as Zhu et al. (Medical Physics 2019, section 2.2 and table 1) drew it.
Speaks torch tensors of shape (batch, channels, slices, rows, columns).
Never reads files and never knows which structure a channel stands for.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEAKY_SLOPE = 0.01
ENCODER_REDUCTION = 15
DECODER_REDUCTION = 16


def _conv3(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv3d:
    return nn.Conv3d(channels_in, channels_out, kernel_size=3, stride=stride, padding=1, bias=False)


class SqueezeExcitation(nn.Module):
    """Channel attention: global average, bottleneck of `channels // reduction`, sigmoid gates.

    The average runs over the whole input, so a prediction depends on the extent of the crop
    that is fed in; inference must therefore bound that extent as the model package says.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.gate = nn.Sequential(
            nn.Conv3d(channels, hidden, kernel_size=1),
            nn.LeakyReLU(LEAKY_SLOPE),
            nn.Conv3d(hidden, channels, kernel_size=1),
            nn.Sigmoid(),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Scale each channel of `features` by its gate in 0..1; the shape stays."""
        gates: Tensor = self.gate(features.mean(dim=(2, 3, 4), keepdim=True))
        return features * gates


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions with batch norm, an optional SE gate, and a shortcut.

    The shortcut is the identity where the widths agree and otherwise a projection whose kernel
    is 1x1x1 (3x3x3 in the network's last block).
    """

    def __init__(
        self, channels_in: int, channels_out: int, reduction: int | None, projection_kernel: int = 1
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv3(channels_in, channels_out),
            nn.BatchNorm3d(channels_out),
            nn.LeakyReLU(LEAKY_SLOPE),
            _conv3(channels_out, channels_out),
            nn.BatchNorm3d(channels_out),
        )
        self.excite: nn.Module = (
            nn.Identity() if reduction is None else SqueezeExcitation(channels_out, reduction)
        )
        self.shortcut: nn.Module = nn.Identity()
        if channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv3d(
                    channels_in,
                    channels_out,
                    kernel_size=projection_kernel,
                    padding=projection_kernel // 2,
                    bias=False,
                ),
                nn.BatchNorm3d(channels_out),
            )
        self.activation = nn.LeakyReLU(LEAKY_SLOPE)

    def forward(self, features: Tensor) -> Tensor:
        """Map (batch, channels_in, ...) to (batch, channels_out, ...) at the same resolution."""
        out: Tensor = self.activation(self.excite(self.body(features)) + self.shortcut(features))
        return out


def _stage(channels_in: int, channels_out: int, reduction: int) -> nn.Sequential:
    return nn.Sequential(
        ResidualBlock(channels_in, channels_out, reduction),
        ResidualBlock(channels_out, channels_out, reduction),
    )


class AnatomyNet(nn.Module):
    """The whole network: image in, one logit per class and voxel out.

    Args:
        classes: number of structures plus one; channel 0 is the background.

    Input (batch, 1, slices, rows, columns), windowed to 0..1; the three extents must be even,
    because the half-resolution features are brought back by a stride-2 transposed convolution
    and concatenated with the image itself.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv3(1, 28, stride=2), nn.BatchNorm3d(28), nn.LeakyReLU(LEAKY_SLOPE))
        self.encode1 = _stage(28, 30, ENCODER_REDUCTION)
        self.encode2 = _stage(30, 32, ENCODER_REDUCTION)
        self.encode3 = _stage(32, 34, ENCODER_REDUCTION)
        self.decode3 = _stage(34 + 32, 32, DECODER_REDUCTION)
        self.decode2 = _stage(32 + 30, 30, DECODER_REDUCTION)
        self.decode1 = _stage(30 + 28, 28, DECODER_REDUCTION)
        self.up = nn.Sequential(
            nn.ConvTranspose3d(28, 14, kernel_size=2, stride=2, bias=False),
            nn.BatchNorm3d(14),
            nn.LeakyReLU(LEAKY_SLOPE),
        )
        self.refine = ResidualBlock(14 + 1, 14, reduction=None, projection_kernel=3)
        self.head = nn.Conv3d(14, classes, kernel_size=3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (batch, classes, slices, rows, columns); softmax over dim 1 gives probabilities."""
        half = self.stem(image)
        first = self.encode1(half)
        second = self.encode2(first)
        third = self.encode3(second)
        up = self.decode3(torch.cat((third, second), dim=1))
        up = self.decode2(torch.cat((up, first), dim=1))
        up = self.decode1(torch.cat((up, half), dim=1))
        logits: Tensor = self.head(self.refine(torch.cat((self.up(up), image), dim=1)))
        return logits
