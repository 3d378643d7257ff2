"""The small world: its words are many, distinct and speakable; its splits never meet; its calls fit their schemas."""

import _ctypes
import ctypes
import random
import re
from collections import Counter

import pytest

from training.synthesis import assistant, world
from training.synthesis.voices import say
from training.synthesis.world import FACTS, WORDS, fact_question, question, sentence, spell, split, written

SAID_ONLY = {"a", "an", "to", "for"}  # in questions and requests, but not in `WORDS`: "to" sounds like "two"


def draw(function, part, count=4000):
    rng = random.Random(f"{function.__name__} {part}")
    return [function(rng, part) for _ in range(count)]


def test_words_are_many_distinct_and_plain():
    assert 800 <= len(WORDS) <= 900
    assert [word for word, count in Counter(WORDS).items() if count > 1] == []
    assert [word for word in WORDS if not re.fullmatch("[a-z]{2,11}", word)] == []


def test_words_contain_what_pictures_need():
    colours = {"red", "green", "blue", "yellow", "purple", "orange", "black", "white", "pink", "brown"}
    assert colours <= set(world.COLOURS)
    assert {"circle", "square", "triangle", "star", "cross"} <= set(world.SHAPES)
    assert len(world.NUMBERS) == 20 and world.NUMBERS[0] == "one" and world.NUMBERS[-1] == "twenty"


@pytest.fixture
def espeak():
    """eSpeak NG's library, unloaded again: training/synthesis/voices.py wants it fresh for every text."""
    loader = pytest.importorskip("espeakng_loader")
    library = ctypes.CDLL(loader.get_library_path())
    library.espeak_Initialize(2, 0, loader.get_data_path().encode(), 0)
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    yield library
    library.espeak_Terminate()
    _ctypes.dlclose(library._handle)


@pytest.mark.parametrize("voice", ["en-us", "en-gb-x-rp", "en-gb-scotland"])
def test_no_two_words_sound_alike(voice, espeak):
    assert espeak.espeak_SetVoiceByName(voice.encode()) == 0
    sounds = {}
    for word in WORDS:
        text = ctypes.c_char_p(word.encode())
        phonemes = espeak.espeak_TextToPhonemes(ctypes.byref(text), 1, 0x02).decode()  # UTF-8 in, IPA out
        sounds.setdefault(re.sub("[ˈˌ]", "", phonemes), []).append(word)
    assert [words for words in sounds.values() if len(words) > 1] == []


def test_a_library_that_other_code_has_loaded_is_refused(espeak):
    with pytest.raises(RuntimeError, match="already loaded"):
        say("the lamp", "Emma")


def test_one_combination_in_ten_is_held_out_and_order_counts():
    splits = [split("code", f"{number:06d}") for number in range(10_000)]
    assert 0.09 < splits.count("test") / len(splits) < 0.11
    pairs = [(first, second) for first in WORDS[:60] for second in WORDS[60:120]]
    assert any(split("words", first, second) != split("words", second, first) for first, second in pairs)
    # Fixed for good: shipped weights were trained on this split.
    words = ("red", "green", "castle", "elephant")
    assert [split("words", word) for word in words] == ["train", "train", "train", "test"]


@pytest.mark.parametrize("function", [sentence, fact_question, assistant.request])
def test_draws_repeat_with_their_seed_and_leave_the_global_generator_alone(function):
    state = random.getstate()
    assert draw(function, "train", 50) == draw(function, "train", 50)
    assert draw(function, "train", 50) != draw(function, "test", 50)
    assert random.getstate() == state


def test_no_sentence_is_in_both_splits():
    train, test = set(draw(sentence, "train")), set(draw(sentence, "test"))
    assert len(train) > 3950 and len(test) > 3950
    assert not train & test
    assert {split("sentence", text) for text in test} == {"test"}


def test_sentences_reach_every_word_at_every_length():
    sentences = [text.split() for text in draw(sentence, "train", 40_000)]
    counts = Counter(word for words in sentences for word in words)
    assert set(counts) == set(WORDS)
    assert min(counts.values()) > 50
    assert set(map(len, sentences)) == set(range(3, 11))


def test_facts_are_two_hundred_and_each_has_one_answer():
    assert len(FACTS) == 200
    assert len({(subject, relation) for subject, relation, _ in FACTS}) == 200
    assert {relation for _, relation, _ in FACTS} == set(world.PHRASINGS)


def test_questions_and_answers_are_made_of_the_words():
    for fact in FACTS:
        assert set(fact[2].split()) <= set(WORDS) and len(fact[2].split()) <= 4
        for phrasing in range(len(world.PHRASINGS[fact[1]])):
            assert set(question(fact, phrasing).split()) <= {*WORDS, *SAID_ONLY}
    assert question(("lamp", "price", "ten coins"), 0) == "what does the lamp cost"


@pytest.mark.parametrize(
    ("phrasings", "least", "held_out"), [(world.PHRASINGS, 12, 3), (assistant.PHRASINGS, 8, 2)], ids=["facts", "requests"]
)
def test_every_fourth_phrasing_is_held_out_and_uses_known_words(phrasings, least, held_out):
    parts = {"train": [], "test": []}
    for name, frames in phrasings.items():
        assert len(set(frames)) == len(frames) >= least
        names = [split("phrasing", name, index) for index in range(len(frames))]
        assert names.count("test") >= held_out
        assert [index for index, part in enumerate(names) if part == "test"] == list(range(3, len(frames), 4))
        for part, frame in zip(names, frames, strict=True):
            parts[part].append(frame)
    known = {word for frame in parts["train"] for word in frame.split()}
    assert {word for frame in parts["test"] for word in frame.split()} <= known
    assert not set(parts["train"]) & set(parts["test"])


def test_no_question_or_request_is_in_both_splits():
    assert not {text for text, _ in draw(fact_question, "train")} & {text for text, _ in draw(fact_question, "test")}
    requests = [{text for text, _ in draw(assistant.request, part)} for part in ("train", "test")]
    assert not requests[0] & requests[1]


def test_drawn_questions_cover_all_facts_with_their_answers():
    for part in ("train", "test"):
        expected = {
            (question(fact, index), fact[2])
            for fact in FACTS
            for index in range(len(world.PHRASINGS[fact[1]]))
            if split("phrasing", fact[1], index) == part
        }
        drawn = set(draw(fact_question, part, 30_000))
        assert drawn <= expected
        assert len(drawn) > 0.95 * len(expected)


def check_value(value, schema):
    if schema["type"] == "integer":
        assert type(value) is int and schema["minimum"] <= value <= schema["maximum"]
    else:
        assert type(value) is str and value in schema.get("enum", [value])


def test_every_call_fits_the_schema_of_its_function():
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in assistant.FUNCTIONS}
    assert len(schemas) == len(assistant.FUNCTIONS) == 40
    called = set()
    for text, call in draw(assistant.request, "train") + draw(assistant.request, "test"):
        schema = schemas[call["name"]]
        called.add(call["name"])
        assert list(call["arguments"]) == list(schema["properties"]) == schema["required"]
        for kind, value in call["arguments"].items():
            check_value(value, schema["properties"][kind])
        assert set(text.split()) <= {*WORDS, *SAID_ONLY}
    assert called == set(schemas)


def test_all_phrasings_of_a_function_take_the_same_parameters():
    for frames in assistant.PHRASINGS.values():
        assert len({tuple(assistant.parameters(frame)) for frame in frames}) == 1


def test_requests_say_the_values_they_pass():
    for text, call in draw(assistant.request, "test"):
        for kind, value in call["arguments"].items():
            said = [spoken for spoken, passed in assistant.KINDS[kind][1].items() if passed == value]
            assert len(said) == 1 and f" {said[0]} " in f" {text} "
    times = assistant.KINDS["time"][1]
    assert times["seven in the morning"] == "07:00" and times["seven in the evening"] == "19:00"
    assert times["one in the afternoon"] == "13:00" and times["noon"] == "12:00"


def test_spell():
    assert [spell(number) for number in (0, 1, 20, 21, 40, 99, 100)] == [
        "zero", "one", "twenty", "twenty one", "forty", "ninety nine", "one hundred"
    ]  # fmt: skip
    assert all(set(spell(number).split()) <= set(WORDS) for number in range(101))
    with pytest.raises(ValueError, match="cannot spell 101"):
        spell(101)


@pytest.mark.parametrize(
    ("spoken", "expected"),
    [
        ("where does anna live", "Where does Anna live?"),
        ("at what time does the bakery open", "At what time does the bakery open?"),
        ("please tell me the time in riverton", "Please tell me the time in Riverton."),
        ("do not wake me on monday", "Do not wake me on Monday."),
        ("stop", "Stop."),
    ],
)
def test_written(spoken, expected):
    assert written(spoken) == expected
