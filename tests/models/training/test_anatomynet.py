"""The network is the paper's, and so are its relatives."""

from __future__ import annotations

import itertools

import pytest

torch = pytest.importorskip("torch", reason="needs the extra [train]")

from models.training.anatomynet import AnatomyNet, Architecture, SqueezeExcitation  # noqa: E402


def parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_the_default_is_the_papers_network_of_three_quarters_of_a_million_weights() -> None:
    assert 0.72e6 < parameters(AnatomyNet(10)) < 0.74e6


@pytest.mark.parametrize(
    ("block", "merge", "down_samplings"),
    list(itertools.product(("plain", "residual", "se_residual"), ("concatenate", "sum"), (1, 2, 3, 4))),
)
def test_every_network_of_the_ablation_gives_a_logit_for_each_class_and_voxel_and_learns(
    block: str, merge: str, down_samplings: int
) -> None:
    network = AnatomyNet(3, Architecture(block, merge, down_samplings, (4, 5, 6, 7)))  # type: ignore[arg-type]
    logits = network(torch.rand(2, 1, 16, 32, 16))
    assert logits.shape == (2, 3, 16, 32, 16)
    logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("block", ["plain", "residual", "se_residual"])
def test_a_detail_branch_sees_the_input_at_its_own_resolution_and_learns(block: str) -> None:
    network = AnatomyNet(3, Architecture(block, widths=(4, 5, 6, 7), finish=6, detail=5))  # type: ignore[arg-type]
    assert network.detail is not None
    seen: list[tuple[int, ...]] = []
    network.detail.register_forward_hook(lambda _module, _given, out: seen.append(tuple(out.shape)))
    logits = network(torch.rand(2, 1, 8, 16, 12))
    assert seen == [(2, 5, 8, 16, 12)]
    assert logits.shape == (2, 3, 8, 16, 12)
    logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_gates_and_shortcuts_are_what_tells_the_blocks_apart() -> None:
    names = {
        block: "".join(name for name, _ in AnatomyNet(3, Architecture(block=block)).named_parameters())  # type: ignore[arg-type]
        for block in ("plain", "residual", "se_residual")
    }
    assert ["excite" in names[block] for block in names] == [False, False, True]
    assert ["shortcut" in names[block] for block in names] == [False, True, True]


def test_each_down_sampling_halves_the_deepest_features() -> None:
    for times in (1, 2, 3, 4):
        seen: list[int] = []
        network = AnatomyNet(2, Architecture(down_samplings=times, widths=(4, 4, 4, 4)))  # type: ignore[arg-type]
        network.encode3.register_forward_hook(
            lambda _module, _given, out, seen=seen: seen.append(out.shape[2])
        )
        network(torch.rand(1, 1, 32, 32, 32))
        assert seen == [32 // 2**times]


def test_squeeze_and_excitation_pools_in_float32_where_float16_would_overflow() -> None:
    gate = SqueezeExcitation(4, 2).half()
    features = torch.full((1, 4, 20, 20, 20), 60.0, dtype=torch.float16)  # their sum is 480,000
    assert torch.isfinite(gate(features)).all()
