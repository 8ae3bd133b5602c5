"""AnatomyNet and its relatives: 3D U-Nets of one plan, told apart by an `Architecture`.

Owns the networks as Zhu et al. (Medical Physics 2019, section II.B and the ablations of III) drew them.
Speaks torch tensors of shape (batch, channels, slices, rows, columns).
Never reads files and never knows which structure a channel stands for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

LEAKY_SLOPE = 0.01
ENCODER_REDUCTION = 15
DECODER_REDUCTION = 16
_UP_CHANNELS = 14

Block = Literal["plain", "residual", "se_residual"]
Merge = Literal["concatenate", "sum"]


@dataclass(frozen=True)
class Architecture:
    """What the paper's ablations vary; the default is AnatomyNet itself.

    Attributes:
        block: pairs of convolutions as in a plain U-Net, with a shortcut, or with a shortcut and
            squeeze-and-excitation (section II.B).
        merge: how the encoder's features join the decoder's: AnatomyNet concatenates, the paper's
            "3D Res UNet" and "3D SE Res UNet" without "(Concat)" add.
        down_samplings: how often the resolution is halved, 1 to 4; the paper's "Pool 1" to "Pool 4".
        widths: channels after the stem and after each of the three encoder stages.
        finish: channels of the last block, which works at the resolution of the input; 14 in the paper.
        detail: channels of a branch that sees the input at its own resolution, beside the whole plan, and
            joins it in the last block; 0 as in the paper, whose features are all at half the resolution.
            For grids so coarse that half of it loses an organ's border.
    """

    block: Block = "se_residual"
    merge: Merge = "concatenate"
    down_samplings: Literal[1, 2, 3, 4] = 1
    widths: tuple[int, int, int, int] = (28, 30, 32, 34)
    finish: int = 14
    detail: int = 0

    @property
    def multiple_of(self) -> int:
        """Each extent of the input must be a multiple of this."""
        return 2**self.down_samplings


def _conv3(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv3d:
    return nn.Conv3d(channels_in, channels_out, kernel_size=3, stride=stride, padding=1, bias=False)


def _normed(convolution: nn.Module, channels: int) -> nn.Sequential:
    return nn.Sequential(convolution, nn.BatchNorm3d(channels), nn.LeakyReLU(LEAKY_SLOPE))


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
        """Scale each channel of `features` by its gate in 0..1; the shape stays.

        The sum over a whole CT has more terms than float16 can count, so it is taken in float32.
        """
        means = features.float().mean(dim=(2, 3, 4), keepdim=True)
        gates: Tensor = self.gate(means.to(features.dtype))
        return features * gates


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions with batch norm, an optional SE gate, and an optional shortcut.

    The shortcut is the identity where width and resolution stay, and otherwise a projection whose
    kernel is 1x1x1 (3x3x3 in the network's last block).

    Args:
        reduction: of the SE gate; None leaves it out.
        stride: of the first convolution.
        shortcut: False makes it the plain pair of a U-Net.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        reduction: int | None,
        stride: int = 1,
        shortcut: bool = True,
        projection_kernel: int = 1,
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv3(channels_in, channels_out, stride),
            nn.BatchNorm3d(channels_out),
            nn.LeakyReLU(LEAKY_SLOPE),
            _conv3(channels_out, channels_out),
            nn.BatchNorm3d(channels_out),
        )
        self.excite: nn.Module = (
            nn.Identity() if reduction is None else SqueezeExcitation(channels_out, reduction)
        )
        self.shortcut: nn.Module | None = None
        if shortcut:
            self.shortcut = _projection(channels_in, channels_out, stride, projection_kernel)
        self.activation = nn.LeakyReLU(LEAKY_SLOPE)

    def forward(self, features: Tensor) -> Tensor:
        """Map (batch, channels_in, ...) to (batch, channels_out, ...), each extent divided by the stride."""
        out: Tensor = self.excite(self.body(features))
        if self.shortcut is not None:
            out = out + self.shortcut(features)
        activated: Tensor = self.activation(out)
        return activated


def _projection(channels_in: int, channels_out: int, stride: int, kernel: int) -> nn.Module:
    if channels_in == channels_out and stride == 1:
        return nn.Identity()
    convolution = nn.Conv3d(channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm3d(channels_out))


class _Join(nn.Module):
    """Decoder features brought to the encoder's resolution, and the encoder's features beside or on them."""

    def __init__(self, deep: int, skip: int, stride: int, merge: Merge) -> None:
        super().__init__()
        self.up: nn.Module = nn.Identity()
        if stride > 1:
            self.up = _normed(nn.ConvTranspose3d(deep, deep, stride, stride, bias=False), deep)
        self.fit: nn.Module | None = None if merge == "concatenate" else nn.Conv3d(skip, deep, kernel_size=1)
        self.channels = deep + skip if merge == "concatenate" else deep

    def forward(self, deep: Tensor, skip: Tensor) -> Tensor:
        """(batch, `channels`, ...) at the resolution of `skip`."""
        raised: Tensor = self.up(deep)
        if self.fit is None:
            return torch.cat((raised, skip), dim=1)
        added: Tensor = raised + self.fit(skip)
        return added


class AnatomyNet(nn.Module):
    """The whole network: image in, one logit per class and voxel out.

    Args:
        classes: number of structures plus one; channel 0 is the background.
        architecture: AnatomyNet itself, or one of the networks that the paper compares it with.

    Input (batch, 1, slices, rows, columns), windowed to 0..1; each extent must be a multiple of
    `architecture.multiple_of`, because the deep features are brought back by stride-2 transposed
    convolutions and merged with the shallow ones, in the end with the image itself.
    """

    def __init__(self, classes: int, architecture: Architecture | None = None) -> None:
        super().__init__()
        plan = architecture or Architecture()
        stem, first, second, third = plan.widths
        strides = [2 if plan.down_samplings > stage else 1 for stage in (1, 2, 3)]

        def stage(channels_in: int, channels_out: int, reduction: int, stride: int = 1) -> nn.Sequential:
            gate = reduction if plan.block == "se_residual" else None
            shortcut = plan.block != "plain"
            return nn.Sequential(
                ResidualBlock(channels_in, channels_out, gate, stride, shortcut),
                ResidualBlock(channels_out, channels_out, gate, shortcut=shortcut),
            )

        self.stem = _normed(_conv3(1, stem, stride=2), stem)
        self.encode1 = stage(stem, first, ENCODER_REDUCTION, strides[0])
        self.encode2 = stage(first, second, ENCODER_REDUCTION, strides[1])
        self.encode3 = stage(second, third, ENCODER_REDUCTION, strides[2])
        self.join3 = _Join(third, second, strides[2], plan.merge)
        self.decode3 = stage(self.join3.channels, second, DECODER_REDUCTION)
        self.join2 = _Join(second, first, strides[1], plan.merge)
        self.decode2 = stage(self.join2.channels, first, DECODER_REDUCTION)
        self.join1 = _Join(first, stem, strides[0], plan.merge)
        self.decode1 = stage(self.join1.channels, stem, DECODER_REDUCTION)
        self.up = _normed(
            nn.ConvTranspose3d(stem, _UP_CHANNELS, kernel_size=2, stride=2, bias=False), _UP_CHANNELS
        )
        shortcut = plan.block != "plain"
        self.detail: nn.Module | None = None
        if plan.detail:
            self.detail = nn.Sequential(
                _normed(_conv3(1, plan.detail), plan.detail),
                ResidualBlock(plan.detail, plan.detail, None, shortcut=shortcut),
            )
        self.refine = ResidualBlock(
            _UP_CHANNELS + 1 + plan.detail, plan.finish, None, shortcut=shortcut, projection_kernel=3
        )
        self.head = nn.Conv3d(plan.finish, classes, kernel_size=3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (batch, classes, slices, rows, columns); softmax over dim 1 gives probabilities."""
        half = self.stem(image)
        first = self.encode1(half)
        second = self.encode2(first)
        third = self.encode3(second)
        up = self.decode3(self.join3(third, second))
        up = self.decode2(self.join2(up, first))
        up = self.decode1(self.join1(up, half))
        seen = (self.up(up), image) if self.detail is None else (self.up(up), image, self.detail(image))
        logits: Tensor = self.head(self.refine(torch.cat(seen, dim=1)))
        return logits
