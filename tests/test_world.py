"""The small world: its words are many, distinct and speakable; its splits never meet; its calls fit their schemas."""

import re
from collections import Counter

from training.synthesis.world import COLOURS, NUMBERS, SHAPES, WORDS, split


def test_words_are_many_distinct_and_plain():
    assert 800 <= len(WORDS) <= 900
    assert [word for word, count in Counter(WORDS).items() if count > 1] == []
    assert [word for word in WORDS if not re.fullmatch("[a-z]{2,11}", word)] == []


def test_words_contain_what_pictures_need():
    assert {"red", "green", "blue", "yellow", "purple", "orange", "black", "white", "pink", "brown"} <= set(COLOURS)
    assert {"circle", "square", "triangle", "star", "cross"} <= set(SHAPES)
    assert len(NUMBERS) == 20 and NUMBERS[0] == "one" and NUMBERS[-1] == "twenty"


def test_one_combination_in_ten_is_held_out_and_order_counts():
    splits = [split("code", f"{number:06d}") for number in range(10_000)]
    assert 0.09 < splits.count("test") / len(splits) < 0.11
    pairs = [(first, second) for first in WORDS[:60] for second in WORDS[60:120]]
    assert any(split("words", first, second) != split("words", second, first) for first, second in pairs)
    # Fixed for good: shipped weights were trained on this split.
    assert [split("words", word) for word in ("red", "green", "castle", "elephant")] == ["train", "train", "train", "test"]
