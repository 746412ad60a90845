import numpy as np
import pytest

from operators.judge_scores import JudgeScores
from operators.separator import SegmentStems
from pipeline.facts import Facts, merge


def test_scores_of_an_item_are_weighted_by_duration_and_spans_join_at_cuts():
    first = Facts(30.0, ((1.0, 2.0), (28.0, 30.0)), (4.0, 4.0, 4.0, 4.0), 1, 5, 1)
    last = Facts(10.0, ((30.0, 31.5), (35.0, 36.0)), (2.0, 1.0, 4.0, 3.0), 3, 2, 0)
    item = merge([first, last])
    assert item.scores == pytest.approx((3.5, 3.25, 4.0, 3.75))
    assert item.spans == ((1.0, 2.0), (28.0, 31.5), (35.0, 36.0))
    assert (item.seconds, item.candidates, item.windows, item.windows_skipped) == (40.0, 3, 7, 1)


def test_what_one_segment_does_not_know_the_item_does_not():
    item = merge([Facts(1.0, ((0.0, 1.0),), (1.0, 2.0, 3.0, 4.0)), Facts(1.0)])
    assert item.scores is None and item.spans is None
    assert item.spans_json is None
    assert set(item.score_columns.values()) == {None}


def test_facts_survive_the_trip_through_json():
    silence = np.zeros((1, 4), np.float32)
    stems = SegmentStems(silence, silence, ((0.5, 1.0),), JudgeScores(1.0, 2.0, 3.0, 4.0), 2, 5, 3)
    facts = Facts.of(stems, 12.0)
    assert Facts.from_json(facts.to_json()) == facts
    assert facts.score_columns["judge_faithfulness"] == 4.0
    assert facts.spans_json == "[[0.5, 1.0]]"
    assert Facts.from_json(Facts(1.0, ()).to_json()).spans_json == "[]"
