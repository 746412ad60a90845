"""Prompts as people write them, on command lines and in manifests, and what their stems are called."""

import json
import math

import pyarrow as pa
import pytest

from pipeline.prompts import Anchor, Prompt, parse_prompts, slug
from pipeline.schema import MANIFEST_SCHEMA, ManifestRow


@pytest.mark.parametrize(
    "given",
    [
        ["dog=dog barking"],
        "dog=dog barking",
        [{"name": "dog", "description": " dog barking "}],
        [{"name": "dog", "description": "dog barking", "anchors": None, "mask_uri": None, "residual_name": None}],
        '[{"name": "dog", "description": "dog barking"}]',
        '{"name": "dog", "description": "dog barking"}',
        ['{"name": "dog", "description": "dog barking"}'],
    ],
)
def test_prompt_can_be_written_in_many_ways(given):
    assert parse_prompts(given) == (Prompt(name="dog", description="dog barking"),)


def test_description_alone_is_a_prompt_and_may_hold_commas_and_equals_signs():
    assert parse_prompts("Rain, on a window") == (Prompt(description="Rain, on a window"),)
    assert parse_prompts(["A = B"]) == (Prompt(description="A = B"),)


@pytest.mark.parametrize(
    ("prompt", "labels"),
    [
        (Prompt(description="Man speaking!"), ("man_speaking", "man_speaking_residual")),
        (Prompt(name="dog", description="dog barking"), ("dog", "dog_residual")),
        (Prompt(name="dog", residual_name="rest", description="x"), ("dog", "rest")),
        (Prompt(anchors=[["+", 1, 2]]), ("target", "residual")),
        (Prompt(description="犬"), ("target", "residual")),
    ],
)
def test_stems_are_named_after_their_prompt(prompt, labels):
    assert prompt.labels() == labels


def test_names_of_the_job_count_for_prompts_without_their_own():
    assert Prompt(description="speech").labels("dialogue", "rest") == ("dialogue", "rest")
    assert Prompt(name="dog", description="x").labels("dialogue", "rest") == ("dog", "dog_residual")


def test_labels_of_long_descriptions_are_short_and_differ():
    target, residual = Prompt(description="a very " * 40).labels()
    assert len(target) <= 64 and len(residual) <= 64 and target != residual
    assert slug("--- ... ---") == ""


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([""], "empty prompt"),
        ([{"name": "dog"}], "empty prompt"),
        (["dog", "dog"], "repeated prompt"),
        (["dog=a", "dog=b"], "two prompts are called 'dog'"),
        ([{"name": "../x", "description": "a"}], "label"),
        ([{"descripton": "a"}], "descripton"),
        ([{"description": "a", "anchors": [["+", 2, 1]]}], "0 <= start < end"),
        ([{"description": "a", "anchors": [["+", math.nan, 1]]}], "0 <= start < end"),
        ([7], "a prompt is a description"),
        (7, "must be a list"),
    ],
)
def test_bad_prompts_are_refused_with_a_reason(given, said):
    with pytest.raises(ValueError, match=said):
        parse_prompts(given)


def test_prompts_survive_a_parquet_column():
    prompts = [{"name": "dog", "description": "dog barking", "anchors": [{"token": "+", "start": 1.0, "end": 2.0}]}]
    table = pa.Table.from_pylist([{"asset_id": "a", "uri": "/a.wav", "prompts": prompts}], schema=MANIFEST_SCHEMA)
    row = ManifestRow.from_record(table.to_pylist()[0])
    assert row.prompts == (Prompt(name="dog", description="dog barking", anchors=(Anchor("+", 1.0, 2.0),)),)
    again = pa.Table.from_pylist([row.record()], schema=MANIFEST_SCHEMA)
    assert ManifestRow.from_record(again.to_pylist()[0]) == row
    assert ManifestRow.from_record({"asset_id": "a", "uri": "/a", "prompts": json.dumps(["x"])}).prompts is not None
    # A plain list of descriptions is a column that people have.
    listed = pa.table({"asset_id": ["a"], "uri": ["/a"], "prompts": [["dog", "rain"]]}).to_pylist()[0]
    assert [p.description for p in ManifestRow.from_record(listed).prompts] == ["dog", "rain"]
