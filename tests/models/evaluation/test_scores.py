"""Tables of scores and what they say.

Owns the format of `scores.csv`, the statistics, goals, ranks and the words of the report.
Speaks scores made by hand.
Never runs the product.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("trimesh", reason="the extra [train] is not installed")

from models.evaluation.goals import GOALS, verdict
from models.evaluation.metrics import Agreement
from models.evaluation.references import Standing
from models.evaluation.report import Facts, write
from models.evaluation.score_summary import (
    best_and_worst,
    compare_runs,
    confidence_correlation,
    spread,
    summarise,
    write_summary,
)
from models.evaluation.scores import Run, Score, ScoresError, in_order, read_scores, write_scores

RUN = Run("anatomynet-test", "1.2.3", "ab" * 32, "anatomynode 0.1.0", "clinical", "native")


def score(patient: str, structure: str, dice: float | None, **changes: object) -> Score:
    """A score; Dice None is a structure that was missed."""
    agreement = Agreement(0, 0, None, None, -100) if dice is None else Agreement(dice, dice, 5.5, 1.25, 10)
    plain = Score(patient, structure, Standing.INSIDE, "", 1.0, 25.0, 35.0, 27.5, agreement, 0.8)
    return replace(plain, **changes)  # type: ignore[arg-type]


TABLE = (
    score("pt_2", "Parotid_L", None, found_cm3=0.0, confidence=None),
    score("pt_2", "Brainstem", 0.9),
    score("pt_1", "Parotid_L", 0.7, flags=("small", "cut_by_model_extent")),
    score("pt_1", "Brainstem", 0.8, standing=Standing.CUT, fraction_inside=0.5),
    score("pt_3", "Parotid_L", None, refusal="a slice is missing"),
    score("pt_3", "SpinalCord", 0.1, standing=Standing.LEFT_OUT, fault="volume", drawn_cm3=477.7),
)


def test_a_table_is_read_as_it_was_written_and_rewritten_to_the_byte(tmp_path: Path) -> None:
    write_scores(tmp_path / "a.csv", TABLE, RUN)
    scores, runs = read_scores(tmp_path / "a.csv")
    assert (scores, runs) == (in_order(TABLE), {RUN})
    assert [one.patient for one in scores] == ["pt_1", "pt_1", "pt_2", "pt_2", "pt_3", "pt_3"]
    write_scores(tmp_path / "b.csv", reversed(scores), RUN)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_a_damaged_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("patient,dice\npt_1,0.9\n")
    with pytest.raises(ScoresError, match=r"a\.csv"):
        read_scores(tmp_path / "a.csv")


def test_a_missed_structure_counts_as_zero_and_has_no_distances() -> None:
    parotid = summarise(TABLE)[2]
    assert (parotid.structure, parotid.patients, parotid.missed) == ("Parotid_L", 3, 2)
    assert parotid.dice.mean == pytest.approx(0.7 / 3)
    assert parotid.hd95_mm.mean == 5.5
    assert [one.patient for one in parotid.scores] == ["pt_2", "pt_3", "pt_1"]


def test_a_spread_over_patients_is_that_of_a_sample() -> None:
    values = spread([0.1, 0.2, 0.3, 0.4, 1.0])
    assert (values.mean, values.median, values.least, values.most) == pytest.approx((0.4, 0.3, 0.1, 1.0))
    assert values.sd == pytest.approx(math.sqrt(0.5 / 4))
    assert (values.low, values.high) == pytest.approx((0.12, 0.88))


@pytest.mark.parametrize(
    ("mean", "words"),
    [(0.84, "met (+0.000)"), (0.8395, "met"), (0.8394, "missed by 0.001"), (0.9, "met (+0.060)")],
)
def test_a_goal_is_judged_by_the_mean_as_it_is_shown(mean: float, words: str) -> None:
    assert words in verdict("Brainstem", mean)
    assert verdict("Eye_L", mean) == "–"


def test_the_best_and_the_worst_patients_have_enough_structures_and_are_not_the_same() -> None:
    names = ("Brainstem", "Parotid_L", "Parotid_R", "SpinalCord")
    scores = [score(f"pt_{n}", name, n / 10) for n in range(1, 6) for name in names]
    scores.append(score("pt_9", "Brainstem", 1.0))
    assert best_and_worst(scores) == (["pt_5", "pt_4", "pt_3"], ["pt_1", "pt_2"])


def test_two_runs_are_compared_patient_by_patient() -> None:
    here = [score("pt_1", "Brainstem", 0.8), score("pt_2", "Brainstem", 0.5), score("pt_3", "Brainstem", 0.1)]
    there = [
        score("pt_1", "Brainstem", 0.81),
        score("pt_2", "Brainstem", 0.6),
        score("pt_4", "Brainstem", 1.0),
    ]
    (change,) = compare_runs(here, there)
    assert (change.patients, change.most_lost_patient) == (2, "pt_2")
    assert change.lost == pytest.approx(0.055)


def test_confidence_is_correlated_by_rank_over_what_has_one() -> None:
    scores = [score(f"pt_{n}", "Brainstem", n / 10, confidence=n**3 / 1000) for n in range(1, 5)]
    assert confidence_correlation([*scores, score("pt_5", "Brainstem", None, confidence=None)]) == (4, 1.0)


def test_the_report_names_goals_worst_cases_and_everything_that_does_not_count(tmp_path: Path) -> None:
    facts = Facts(
        run=RUN,
        command="anatomynode models evaluate --data x",
        data="x",
        structures=("Brainstem", "Parotid_L", "SpinalCord"),
        drawn={"Brainstem": 2, "Parotid_L": 3, "SpinalCord": 1, "Larynx": 7},
        observers=(score("pt_1", "Brainstem", 0.84),),
        other=((score("pt_2", "Brainstem", 0.95),), replace(RUN, grid="512 dressed")),
    )
    text = write(facts, in_order(TABLE))
    for expected in (
        RUN.sha256,
        "3 of `x`, 1 of them refused",
        "| Brainstem | 1 | 0 | 0.900 |",
        "| Parotid_L | 3 | 2 | 0.233 ± 0.404 |",
        "0.80: **missed by 0.567**",
        "| Parotid_L | pt_2: Dice 0.000, **missed** | 0.0 cm³ found, 25.0 cm³ drawn |",
        "| pt_3 | SpinalCord | 477.7 | 35 | volume | 0.100 |",
        "- pt_3: a slice is missing",
        "Larynx (7, goal 0.70 not met)",
        "(-0.050): **more than** the 0.02",
        "| Brainstem | 1 | 0.840 |",
    ):
        assert expected in text
    assert "| Brainstem | 2 | 0 | 0.850 ± 0.071 |" in text.partition("All plausible")[2]
    write_summary(tmp_path / "summary.csv", TABLE)
    assert "inside,Parotid_L,3,2,0.2333" in (tmp_path / "summary.csv").read_text()


def test_every_goal_of_the_paper_or_ours_is_a_share() -> None:
    assert all(0 < value < 1 for goal in GOALS.values() for value in vars(goal).values() if value is not None)
