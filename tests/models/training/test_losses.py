"""What nobody drew is unknown: the objective neither rewards nor punishes it."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the extra [train]")

from models.training.losses import (  # noqa: E402
    FOCAL_GAMMA,
    Objective,
    anatomy_loss,
    dice_loss,
    marginal_probabilities,
    voxel_loss,
)

SHAPE = (4, 6, 5)
WEIGHTS = torch.tensor([2.0, 1.0, 1.5])
OBJECTIVE = Objective(voxel_weight=0.5)


def logits_for(labels: torch.Tensor, sure: float) -> torch.Tensor:
    return sure * torch.nn.functional.one_hot(labels.long(), 3).movedim(-1, 1).float()


def drawn() -> torch.Tensor:
    labels = torch.zeros(1, *SHAPE, dtype=torch.uint8)
    labels[:, :, 1:3, 1:3] = 1
    labels[:, :, 4:, 3:] = 2
    return labels


def test_marginals_add_up_to_one_and_an_unknown_structure_counts_as_background() -> None:
    logits = torch.randn(1, 3, *SHAPE, generator=torch.Generator().manual_seed(1))
    annotated = torch.tensor([[True, False, True]])
    plain, marginal = logits.softmax(1), marginal_probabilities(logits, annotated)
    torch.testing.assert_close(marginal.sum(1), torch.ones(1, *SHAPE))
    torch.testing.assert_close(marginal[:, 0], plain[:, 0] + plain[:, 1])
    assert (marginal[:, 1] == 0).all()


def test_moving_mass_between_background_and_an_unknown_structure_changes_nothing() -> None:
    labels = drawn()
    labels[labels == 1] = 0  # not drawn: background in the label map
    annotated = torch.tensor([[True, False, True]])
    as_background = logits_for(labels, 30.0)
    as_structure = logits_for(drawn(), 30.0)
    losses = [
        anatomy_loss(logits, labels, annotated, WEIGHTS, OBJECTIVE)
        for logits in (as_background, as_structure)
    ]
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-5)
    punished = anatomy_loss(as_structure, labels, torch.ones(1, 3, dtype=torch.bool), WEIGHTS, OBJECTIVE)
    assert punished > losses[0] + 0.1


def test_the_gradient_of_an_unknown_structure_never_pulls_it_from_the_background() -> None:
    labels = torch.zeros(1, *SHAPE, dtype=torch.uint8)
    logits = torch.zeros(1, 3, *SHAPE, requires_grad=True)
    loss = anatomy_loss(logits, labels, torch.tensor([[True, False, True]]), WEIGHTS, OBJECTIVE)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient[:, 0], gradient[:, 1])


def test_perfect_is_nought_and_wrong_is_the_worst() -> None:
    labels, all_known = drawn(), torch.ones(1, 3, dtype=torch.bool)
    assert anatomy_loss(logits_for(labels, 40.0), labels, all_known, WEIGHTS, OBJECTIVE) < 1e-4
    wrong = marginal_probabilities(logits_for((labels + 1) % 3, 40.0), all_known)
    one_hot = logits_for(labels, 1.0)
    assert dice_loss(wrong, one_hot, all_known, WEIGHTS) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    ("gamma", "expected"),
    [(FOCAL_GAMMA, 0.8**2 * 1.6094379), (0.0, 1.6094379)],
    ids=["focal", "cross-entropy"],
)
def test_the_voxel_terms_are_the_papers_formulas(gamma: float, expected: float) -> None:
    probabilities = torch.tensor([0.7, 0.2, 0.1]).reshape(1, 3, 1, 1, 1)
    labels = torch.ones(1, 1, 1, 1, dtype=torch.uint8)
    assert voxel_loss(probabilities, labels, WEIGHTS, gamma).item() == pytest.approx(expected)


def test_each_objective_adds_its_own_term_to_the_dice() -> None:
    logits = torch.randn(1, 3, *SHAPE, generator=torch.Generator().manual_seed(2))
    labels, known = drawn(), torch.ones(1, 3, dtype=torch.bool)
    none, focal, entropy = (
        anatomy_loss(logits, labels, known, WEIGHTS, Objective(term)).item()  # type: ignore[arg-type]
        for term in ("none", "focal", "cross_entropy")
    )
    assert none < focal < entropy


def test_a_rare_structure_weighs_more_up_to_a_bound() -> None:
    weights = Objective(background_weight=2.0, largest_weight=3.0).class_weights([150, 75, 5])
    assert weights == [2.0, 1.0, 2.0, 3.0]
