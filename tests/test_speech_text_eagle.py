"""What the speech decoder says of a text, segment by segment."""

import pytest
from conftest import ROOT
from eagle.speech_text_eagle import BLANK, SpokenText, spoken
from transformers import PreTrainedTokenizerFast

TOKENIZER = PreTrainedTokenizerFast.from_pretrained(ROOT)


def said(text):
    """The segments of a text without the blanks around it, as strings; cues as <number>."""
    speech, tokens = SpokenText(TOKENIZER), TOKENIZER(text, add_special_tokens=False).input_ids
    parts = [part for token in tokens if (part := speech.add(token))] + speech.finish()
    for characters, owners in parts:
        assert len(characters) == len(owners) and owners == sorted(owners)
        assert all(0 <= owner < max(len(tokens), 1) for owner in owners)
    blanks = [(i, c) for i, (characters, _) in enumerate(parts) for c in characters if c == BLANK]
    assert blanks == ([(0, BLANK), (len(parts) - 1, BLANK)] if parts else [])
    strings = ["".join(chr(c) if c < 256 else f"<{c}>" for c in characters if c != BLANK) for characters, _ in parts]
    return strings[:-1]


@pytest.mark.parametrize(
    "text, words",
    [
        ("It costs $3.50 for 2 kg.", "it costs three dollars and fifty cents for two kilograms."),
        ("on 2026-11-11 at 3:30", "on november eleventh, twenty twenty-six at three thirty"),
        ("the code is K7 4Q", "the code is k seven four q"),
        ("see https://example.org/a, or write to a.b@c.de", "see example dot org slash a, or write to a dot b at c dot de"),
        ("**open** the `door`", "open the door"),
        ("naïve café 東京 😀 ok", "naive cafe ok"),
        ("the NASA and the USA", "the nasa and the u s a"),
        ("a\nb", "a b"),
        ("before ```python\nprint(1)\n``` after", "before after"),
        ("[laugh] well [cough][breath] yes", f"{'<257>' * 8} well {'<258>' * 8}{'<259>' * 8} yes"),
        ("", ""),
        ("😀", ""),
        ("?! ...", ""),
        ("... well", "well"),
    ],
)
def test_what_is_said(text, words):
    assert " ".join("".join(said(text)).split()) == words


def test_long_code_is_left_out_across_segments():
    text = "look: ```" + "x = call(1, 2)\n" * 60 + "``` done"
    assert len(TOKENIZER(text).input_ids) > 3 * 64, "more than a segment holds"
    assert " ".join("".join(said(text)).split()) == "look: done"


def test_calls_of_functions_are_not_said():
    text = 'well <|tool_call|>{"name": "open", "arguments": {"door": "hall"}}<|/tool_call|> done'
    assert " ".join("".join(said(text)).split()) == "well done"


def test_segments_follow_the_rule():
    text = "the lamp is in the old kitchen, and the small green door is open; " + "red " * 40
    parts = said(text)
    assert parts[:3] == ["the lamp is in", " the old kitchen,", " and the small green door is open;"]
    assert {len(part.split()) for part in parts[3:-1]} == {16}


@pytest.mark.parametrize("number", ["1234567890" * 2, "3.50", "10:30"])
def test_no_number_is_cut(number):
    text = f"it is now {number} and so on"
    assert any(spoken(number) in part for part in said(text))


def test_characters_keep_their_token():
    tokens = TOKENIZER("it costs $3 for the lamp", add_special_tokens=False).input_ids
    characters, owners = SpokenText(TOKENIZER).characters([TOKENIZER.decode(token).encode() for token in tokens])
    words = {}
    for character, owner in zip(characters, owners):
        words[owner] = words.get(owner, "") + chr(character)
    assert words[0] == "it" and words[len(tokens) - 1] == " lamp"
    money = [words[i] for i, token in enumerate(tokens) if i in words and TOKENIZER.decode(token).strip() in ("$", "3", "$3", "")]
    assert "".join(money) == " three dollars"


def test_ten_thousand_characters():
    text = "The lamp is in the kitchen. " * 400
    assert "".join(said(text)).split() == text.lower().split()
