"""The trained network as one `.onnx` file, and the proof that it answers as torch does.

Owns the graph: softmax and the choice of channels stand inside, so that only what is drawn is copied out.
Speaks a network in, a file out: `image` (1, 1, D, H, W) to `probabilities` (1, channels, D, H, W), float32.
Never leaves a file behind whose answers differ from the network's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from inference.session import Session
from models.training.anatomynet import AnatomyNet

LARGEST_DIFFERENCE = 1e-4
LARGEST_HALF_DIFFERENCE = 2e-2
"""In float16 a probability near the boundary moves by about a hundredth; labels hardly change."""

_PROOF_EXTENTS = ((16, 32, 16), (32, 16, 48))


class Probabilities(nn.Module):
    """The network with what follows it: softmax over all classes, then only the channels that are wanted.

    Args:
        network: in eval mode.
        channels: the classes to give out, in this order.
        half: whether the convolutions run in float16; squeeze-and-excitation still pools in float32
            (`SqueezeExcitation`), and the softmax is float32.
    """

    def __init__(self, network: AnatomyNet, channels: Sequence[int], half: bool = False) -> None:
        super().__init__()
        self.network = network.half() if half else network
        self.half_precision = half
        self.register_buffer("channels", torch.tensor(list(channels)), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """(1, 1, D, H, W) in 0..1 -> (1, channels, D, H, W)."""
        logits: Tensor = self.network(image.half() if self.half_precision else image)
        return logits.float().softmax(dim=1).index_select(1, self.get_buffer("channels"))


def write_onnx(probabilities: Probabilities, path: Path, multiple_of: int) -> float:
    """Write one self-contained file with dynamic extents; the largest difference to torch that was seen.

    Args:
        probabilities: in eval mode.
        path: the `.onnx`.
        multiple_of: what each extent is a multiple of.

    Raises:
        ValueError: the file's answers differ from torch's by more than rounding; it is removed.
    """
    extents = {2 + axis: multiple_of * torch.export.Dim(name, min=2) for axis, name in enumerate("dhw")}
    program = torch.onnx.export(
        probabilities,
        (torch.rand(1, 1, *_PROOF_EXTENTS[0]),),
        dynamo=True,
        verbose=False,
        input_names=["image"],
        output_names=["probabilities"],
        dynamic_shapes=(extents,),
    )
    assert program is not None  # only `dynamo=False` returns nothing
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces, with the paths of the machine that exported
    program.save(path, external_data=False)
    difference = largest_difference(probabilities, path)
    limit = LARGEST_HALF_DIFFERENCE if probabilities.half_precision else LARGEST_DIFFERENCE
    if difference >= limit:
        path.unlink()
        raise ValueError(f"{path.name} differs from torch by {difference:.1e}, more than {limit:.0e}")
    return difference


def largest_difference(probabilities: nn.Module, path: Path) -> float:
    """Between torch and the product's own session on the CPU, over images of several extents."""
    session = Session(path, device="cpu", allow_cpu=True, threads=1)
    rng = np.random.default_rng(0)
    worst = 0.0
    for extents in _PROOF_EXTENTS:
        image = rng.random((1, 1, *extents), dtype=np.float32)
        with torch.no_grad():
            expected = probabilities(torch.from_numpy(image)).numpy()
        worst = max(worst, float(np.abs(session.run(image) - expected).max()))
    return worst
