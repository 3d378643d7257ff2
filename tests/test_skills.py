"""Scores of the held-out skills: verdicts, intervals, blanking, one run over a model that has learnt nothing."""

import json

import numpy as np
import pytest

from eval import skills
from training.synthesis import samples


@pytest.mark.parametrize(
    ("answer", "target", "right"),
    [("Open Market ", "open market", True), ("open", "open market", False), ("", "x", False), ("AB12", "ab12", True)],
)
def test_exact_ignores_case_and_outer_space(answer, target, right):
    assert skills.is_exact(answer, target) is right


@pytest.mark.parametrize(
    ("answer", "target", "right"),
    [("95", "100", True), ("105", "100", True), ("94.9", "100", False), ("tea", "tea", True), ("tea", "5", False)],
)
def test_close_allows_five_per_cent(answer, target, right):
    assert skills.is_close(answer, target) is right


def test_word_error_rate_counts_words_of_the_corpus():
    items = [{"target": "one two three four", "answer": "one two tree four"}, {"target": "five", "answer": "five"}]
    value = skills.score("sentence", items)
    assert value["score"] == pytest.approx(1 / 5) and value["interval"][0] <= 0.2 <= value["interval"][1]


@pytest.mark.parametrize("skill", skills.SKILLS)
def test_blanking_takes_away_what_the_answer_needs(skill):
    row, blanked = samples.make(skill, "test", 0), skills.blank(samples.make(skill, "test", 0))
    assert skills.expected(row) == skills.expected(blanked)
    shown = blanked["images"] + blanked["videos"] or blanked["audios"]
    assert all(len(np.unique(np.asarray(medium))) == 1 for medium in shown)
    if not shown:
        assert blanked["messages"][0]["content"] == [{"type": "text", "text": "?"}]
    for before, after in zip(row["images"] + row["videos"], blanked["images"] + blanked["videos"], strict=True):
        assert np.asarray(before).shape == np.asarray(after).shape


def test_function_calls_are_compared_as_json():
    target = json.loads(skills.expected(samples.make("request", "test", 0)))
    assert set(target[0]) == {"name", "arguments"}


def test_held_out_fonts_and_voices_are_told_apart():
    rows = [samples.make("sign", "test", i) for i in range(60)]
    assert 0 < sum(skills.is_held_out(row) for row in rows) < 30
