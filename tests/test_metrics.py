"""The metrics against golden cases, worked out by hand from the rules of the reference implementations."""

import json
import math

import evaluate
import pytest

from eval.metrics.anls.anls import anls
from eval.metrics.cider.cider import cider, tokenize
from eval.metrics.circular_accuracy.circular_accuracy import circular_accuracy, group_of
from eval.metrics.exact_match.exact_match import is_exact_match
from eval.metrics.function_calling.function_calling import failure
from eval.metrics.mme import mme
from eval.metrics.mmmu import mmmu
from eval.metrics.multiple_choice import multiple_choice
from eval.metrics.pope import pope
from eval.metrics.relaxed_accuracy.relaxed_accuracy import is_relaxed_match
from eval.metrics.vqa_accuracy.vqa_accuracy import normalize, vqa_accuracy
from eval.metrics.word_error_rate.word_error_rate import (
    normalize_basic,
    normalize_english,
    word_error_rate,
    word_errors,
)
from tests.conftest import ROOT

# ------------------------------------------------------------------------------------------------ text answers


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("105", "100", True),
        ("105.01", "100", False),
        ("95", "100", True),
        ("94.99", "100", False),
        ("-102", "-100", True),
        ("100", "-100", False),
        ("1e3", "1000", True),
        ("5%", "0.05", True),
        ("5%", "5%", True),
        ("5.2 %", "5%", True),
        ("5%", "5", False),  # 0.05 is not 5
        ("5", "5%", False),
        ("1,000", "1000", False),  # no number to float()
        ("1,000", "1,000", True),
        ("0", "0", True),
        ("0.0", "0", False),  # nothing is within 5 % of 0
        ("0.001", "0", False),
        ("nan", "1", False),
        ("Yes", "yes", True),
        ("Yes.", "yes", False),
        (" yes\n", "Yes", True),
        ("ÉTÉ", "été", True),
        ("", "0", False),
        ("", "", True),
        ("%", "5", False),
    ],
)
def test_relaxed_accuracy(answer, reference, right):
    assert is_relaxed_match(answer, reference) is right


@pytest.mark.parametrize(
    ("answer", "references", "score"),
    [
        ("hello", ["hello"], 1.0),
        ("helo", ["hello"], 0.8),
        ("  HE  llo ", ["he llo"], 1.0),
        ("abcd", ["ab"], 0.5),  # the threshold itself counts
        ("abcde", ["ab"], 0.0),
        ("helo", ["x", "hello", "helo there"], 0.8),  # the nearest
        ("", ["hello"], 0.0),
        ("", [""], 1.0),
        ("cat" + " " * 100, ["dog"], 0.0),  # space is no length
        ("naïve", ["naive"], 0.8),
    ],
)
def test_anls(answer, references, score):
    assert anls(answer, references) == pytest.approx(score)


def test_anls_needs_a_reference():
    with pytest.raises(ValueError, match="at least one reference"):
        anls("a", [])


@pytest.mark.parametrize(
    ("answer", "reference", "options", "right"),
    [
        ("Yes", "yes", {}, False),
        ("Yes", "yes", {"ignore_case": True}, True),
        ("Yes.", "yes", {"ignore_case": True}, False),
        ("Yes.", "yes", {"ignore_case": True, "ignore_punctuation": True}, True),
        ("yes .", "yes", {"ignore_punctuation": True}, True),
        ("T-shirt", "t shirt", {"ignore_case": True, "ignore_punctuation": True}, False),
        ("«oui»", "oui", {"ignore_punctuation": True}, False),  # ASCII only
        (" yes\n", "yes", {}, True),
        ("", "yes", {}, False),
        ("", "", {}, True),
        ("!", "", {"ignore_punctuation": True}, True),
    ],
)
def test_exact_match(answer, reference, options, right):
    assert is_exact_match(answer, reference, **options) is right


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Two Dogs", "2 dogs"),
        ("none", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("1,000", "1000"),
        ("red, white", "red white"),
        ("red,white", "redwhite"),
        ("Yes.", "yes"),
        ("3.5", "3.5"),
        ("3.", "3"),
        ("a.m.", "am"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("thats", "that's"),
        ("that's", "that 's"),  # the server parts it, and so it is not "thats"
        ("lets", "lets"),
        ("t-shirt", "t shirt"),  # between letters: a space
        ("t- shirt", "t shirt"),  # beside a space: nothing
        ("black/white and black /white", "blackwhite and black white"),
        ("(left)", "left"),
        ("10:30", "10:30"),
        ("50%", "50%"),
        ("an", ""),
        ("new\nline\ttab", "new line tab"),
        ("Café", "café"),
        ("", ""),
    ],
)
def test_vqa_normalisation(text, normal):
    assert normalize(text) == normal


@pytest.mark.parametrize(
    ("answer", "agreeing", "score"),
    [
        ("two", 0, 0.0),
        ("two", 1, 0.3),
        ("two", 2, 0.6),
        ("two", 3, 0.9),
        ("two", 4, 1.0),
        ("2.", 10, 1.0),
        ("", 9, 0.0),
    ],
)
def test_vqa_accuracy_leaves_each_person_out_in_turn(answer, agreeing, score):
    assert vqa_accuracy(answer, ["2"] * agreeing + ["three"] * (10 - agreeing)) == pytest.approx(score)


def test_vqa_accuracy_needs_ten_answers():
    with pytest.raises(ValueError, match="10 answers by people, found 3"):
        vqa_accuracy("two", ["2"] * 3)


# ------------------------------------------------------------------------------------------------ letters


@pytest.mark.parametrize(
    ("rule", "response", "letter"),
    [
        ("alone_or_prefix", "B", "B"),
        ("alone_or_prefix", " b\n", "B"),
        ("alone_or_prefix", "B. a cat", "B"),
        ("alone_or_prefix", "b. a cat", None),  # only the capital opens
        ("alone_or_prefix", "(B)", None),
        ("alone_or_prefix", "B a cat", None),
        ("alone_or_prefix", "E", None),
        ("alone_or_prefix", "", None),
        ("first_character", "Because", "B"),
        ("first_character", "b)", "B"),
        ("first_character", "(B)", None),
        ("first_character", "", None),
        ("standalone", "B", "B"),
        ("standalone", "(b).", "B"),
        ("standalone", "**B**", "B"),
        ("standalone", "The best answer is C: two birds", "C"),
        ("standalone", "Because of B, not C.", "B"),
        ("standalone", "答案是D。", "D"),
        ("standalone", "Because", None),
        ("standalone", "E", None),
        ("standalone", "", None),
    ],
)
def test_letter_of_a_response(rule, response, letter):
    assert multiple_choice.RULES[rule](response, "ABCD") == letter


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("Answer: (C).", "C"),
        ("A", "A"),
        ("A dog", "A"),  # up to three words A is the letter
        ("A picture of two birds", "C"),  # an article; the text tells
        ("A or B", None),
        ("So C: it is (C)", "C"),
        ("B or C:", "B"),  # a word without marks comes first
        ("it is a DOG", "B"),
        ("a dog and a cat", None),
        ("b", None),
        ("", None),
    ],
)
def test_option_of_mmbench(response, letter):
    assert multiple_choice.option(response, {"A": "a cat", "B": "a dog", "C": "Two birds"}) == letter


def test_multiple_choice_refuses_a_reference_outside_the_letters():
    metric = multiple_choice.MultipleChoice()
    with pytest.raises(ValueError, match="'E'"):
        metric.compute(predictions=["A"], references=["E"], rule="standalone")


def test_circular_accuracy_asks_for_every_row_of_a_group():
    rows = [(7, True), (1_000_007, True), (2_000_007, True), (8, True), (1_000_008, False), (9, False)]
    assert circular_accuracy([{"group": group_of(index), "right": right} for index, right in rows]) == pytest.approx(
        1 / 3
    )


# ------------------------------------------------------------------------------------------------ MMMU

OPTIONS = ["a red cat", "the dog", "$5", "two birds"]
GUESSES = list("CBCDADDB")  # of validation_Art_1 to 8


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("\nB\n", "B"),
        ("(B)", "B"),
        ("B) the dog", None),
        ("A: no, (B) or (C)", "C"),  # brackets first, the last of them
        ("(C) or (B)", "B"),
        ("Not A but B I think", "B"),
        ("A. no. B. yes", "B"),
        ("B. yes. A. no", "A"),
        ("See NASA", "A"),  # the rule's "A " may end a word
        ("the dog", None),  # five words or fewer: a letter is needed
        ("I would say it is the DOG", "B"),
        ("not the dog, it must be two birds", "D"),
        ("two birds and not the dog, I think", "B"),
        ("E", None),
        ("b", None),
        ("", None),
    ],
)
def test_mmmu_letter(response, letter):
    assert mmmu.parse_letter(response, OPTIONS) == letter


@pytest.mark.parametrize(
    ("response", "answer", "right"),
    [
        ("5", "5", True),
        ("5.001", "5", True),  # two places
        ("5.01", "5", False),
        ("1,000", "1000", True),
        ("The answer is $7,243,000 in all.", "7243000", True),
        ("It costs 1e3.", "1000", True),
        ("x = 2 + 3 = 5", "5", True),
        ("It is 4.\nSo it is 5.", "4", True),  # each line counts
        ("The final answer is a Cat", "cat", True),
        ("The cat is a dog", "cat", False),  # after the cue
        ("the dog", "the big dog", False),
        ("a", "a", True),
        ("cat", "a", False),  # one letter has to be a word
        ("it is 24/7", "['24/7', '3.429']", True),
        ("it is 3.43", "['24/7', '3.429']", True),
        ("it is 3", "['24/7', '3.429']", False),
        ("", "5", False),
    ],
)
def test_mmmu_open_question(response, answer, right):
    row = {"id": "validation_Math_1", "question_type": "open", "options": [], "answer": answer}
    assert mmmu.mmmu(response, row) == {"right": right, "right_with_guess": right, "parsed": True}


def test_mmmu_guesses_by_the_id_and_never_counts_the_guess_as_right():
    letters = [mmmu.guess(f"validation_Art_{i}", OPTIONS) for i in range(1, 9)]
    assert letters == GUESSES
    rows = [
        {"id": f"validation_Art_{i}", "question_type": "multiple-choice", "options": OPTIONS, "answer": letter}
        for i, letter in enumerate(letters, 1)
    ]
    assert [mmmu.mmmu("?", row) for row in rows] == [{"right": False, "right_with_guess": True, "parsed": False}] * 8


def test_mmmu_refuses_an_answer_outside_the_options():
    row = {"id": "validation_Art_1", "question_type": "multiple-choice", "options": OPTIONS, "answer": "E"}
    with pytest.raises(ValueError, match="validation_Art_1: the answer 'E' is none of the letters 'ABCD'"):
        mmmu.mmmu("A", row)


# ------------------------------------------------------------------------------------------------ yes or no


def test_pope_counts():
    pairs = [
        ("yes", "yes"),
        ("yes", "yes"),
        ("no", "yes"),
        ("Yes.", "yes"),
        ("YES ", "no"),
        ("no", "no"),
        ("", "no"),
        ("No", "no"),
    ]
    scores = pope.scores([{"answer": pope.parse(answer), "target": target} for answer, target in pairs])
    # of 3 said 2 are there, of 4 there 2 are found: "Yes." is no answer, and yet missed
    assert scores == {
        "accuracy": 4 / 8,
        "precision": pytest.approx(2 / 3),
        "recall": 2 / 4,
        "f1": pytest.approx(4 / 7),
        "yes_ratio": 3 / 8,
    }


def test_pope_means_categories_and_not_items():
    items = [{"answer": "yes", "target": "yes", "category": "random"}] * 3
    items += [{"answer": "no", "target": "yes", "category": "popular"}]
    scores = pope.by_category(items)
    assert (scores["random"]["f1"], scores["popular"]["f1"], scores["mean"]["f1"]) == (1.0, 0.0, 0.5)


def test_pope_without_any_yes_is_zero():
    assert pope.scores([{"answer": "no", "target": "no"}])["f1"] == 0.0


@pytest.mark.parametrize(
    ("response", "word"),
    [
        ("Yes.", "yes"),
        ("YES, it is", "yes"),
        ("no", "no"),
        (" Not at all", "no"),
        ("y", None),
        ("The answer is yes", None),
        ("", None),
    ],
)
def test_mme_answer(response, word):
    assert mme.parse(response) == word


def test_mme_adds_accuracy_and_that_of_pictures():
    rights = {"1": (True, True), "2": (True, False), "3": (False, False), "4": (True, True)}
    items = [{"category": "count", "group": f"count/{p}", "right": r} for p, pair in rights.items() for r in pair]
    items += [{"category": "OCR", "group": "OCR/1", "right": True}] * 2
    assert mme.category_scores(items) == {"OCR": 200.0, "count": pytest.approx(100 * (5 / 8 + 2 / 4))}
    assert mme.total(items) == pytest.approx(312.5)
    with pytest.raises(ValueError, match="2 questions on each picture; OCR/1 has 1"):
        mme.total(items[:-1])


def test_mme_at_its_best():
    everything = [(category, "1.jpg") for category in mme.PERCEPTION + mme.COGNITION for _ in range(2)]
    categories, images = zip(*everything, strict=True)
    answers = ["Yes", "No"] * 14
    scores = mme.MME().compute(predictions=answers, references=answers, categories=categories, images=images)
    assert (scores["perception"], scores["cognition"]) == (2000.0, 800.0)


# ------------------------------------------------------------------------------------------------ speech


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("MISTER SMITH", "mister smith"),
        ("Mr. Smith", "mister smith"),
        ("I can't, it's the colour!", "i can not it is the color"),
        ("uh, twenty-one [laughs] (off)", "21"),
        ("$20 million, or five per cent", "$20000000 or 5%"),
        ("Café", "cafe"),
        ("Hello...", "hello"),
        ("...", ""),
        ("", ""),
    ],
)
def test_english_normaliser(text, normal):
    assert normalize_english(text) == normal


@pytest.mark.parametrize(
    ("text", "normal"), [("Ça va, [rire] très bien?", "ça va très bien"), ("Über-Straße", "über straße"), ("", "")]
)
def test_basic_normaliser(text, normal):
    assert normalize_basic(text) == normal


@pytest.mark.parametrize(
    ("answer", "reference", "counts"),
    [
        ("the cat sat", "The cat sat.", [0, 3]),
        ("the bat sat down", "the cat sat", [2, 3]),
        ("", "the cat sat", [3, 3]),
        ("hello there", "", [2, 0]),
        ("", "", [0, 0]),
        ("it is 5 percent", "It's five per cent.", [0, 3]),
    ],
)
def test_word_errors(answer, reference, counts):
    assert word_errors(answer, reference) == counts


def test_word_error_rate_is_of_the_corpus():
    assert word_error_rate([[1, 1], [0, 9], [2, 0]]) == pytest.approx(3 / 10)
    with pytest.raises(ValueError, match="the 2 references have no words"):
        word_error_rate([[0, 0], [2, 0]])


# ------------------------------------------------------------------------------------------------ captions


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A dog barks, then rain.", "a dog barks then rain"),
        ("A man's voice and birds' chirps (far away)", "a man 's voice and birds chirps far away"),
        ("It doesn't start - or can't", "it does n't start or ca n't"),
        ('A high-pitched beep... "hello"!', "a high-pitched beep hello"),
        ("A man and/or woman at 10:30 a.m. for $5.00", "a man and/or woman at 10:30 a.m. for $ 5.00"),
        ("50% off, 1,000 times", "50 % off 1,000 times"),
        ("They\u2019re gonna wait, you cannot", "they 're gon na wait you can not"),
        ("five o'clock", "five o'clock"),
        ("  ", ""),
    ],
)
def test_caption_words(caption, words):
    assert tokenize(caption) == words.split()


def test_cider_by_hand():
    references = [["a dog barks"], ["rain falls"]]
    # One to three words the same, no four: 3 of 4 orders. Part of one order, a word short. "rain" twice counts once.
    assert cider(["a dog barks", ""], references) == pytest.approx([7.5, 0])
    assert cider(["", "rain"], references)[1] == pytest.approx(10 / 4 / math.sqrt(2) * math.exp(-1 / 72))
    assert cider(["", "rain rain"], references)[1] == pytest.approx(10 / 4 / (2 * math.sqrt(2)))
    # What every item says is no merit: "a" weighs nothing, so only "dog" and what contains it is left.
    assert cider(["a", "a"], [["a dog"], ["a cat"]]) == pytest.approx([0, 0])
    assert cider(["a dog"], [["a dog"]]) == [0]


def test_cider_as_pycocoevalcap_computes_it():
    captions = ["A dog barks twice while a man laughs", "Rain falls on a tin roof", "A bell rings", "People talk", ""]
    references = [
        ["a dog barks while a man laughs", "a man laughs and a dog barks twice"],
        ["heavy rain falls on a roof", "rain is falling"],
        ["an engine runs", "a bell rings loudly as a train passes"],
        ["a crowd of people talk and cheer", "people are talking"],
        ["a bird sings", "birds sing"],
    ]
    assert cider(captions, references) == pytest.approx([5.900973, 3.076491, 1.342739, 1.405264, 0], abs=1e-6)


def test_cider_needs_references():
    with pytest.raises(ValueError, match="item 1 has none"):
        cider(["a", "b"], [["a"], []])


# ------------------------------------------------------------------------------------------------ function calling


def tool(name, required=(), **types):
    schemas = {key: value if isinstance(value, dict) else {"type": value} for key, value in types.items()}
    return {"name": name, "parameters": {"type": "dict", "properties": schemas, "required": list(required)}}


TOOLS = [
    tool("weather", ["city"], city="string", days="integer", unit="string"),
    tool("area", ["base"], base="float", height="float"),
    tool(
        "plot",
        [],
        points={"type": "array", "items": {"type": "float"}},
        labels={"type": "array", "items": {"type": "string"}},
    ),
    tool("order", [], dish="dict", dishes={"type": "array", "items": {"type": "dict"}}, now="boolean", note="any"),
]
CITY = {"city": ["New York, NY", "New York"], "days": [3, ""], "unit": ["", "celsius"]}


@pytest.mark.parametrize(
    ("name", "arguments", "allowed", "reason"),
    [
        ("weather", {"city": "new york"}, CITY, None),
        ("weather", {"city": "New_York-NY.", "days": 3, "unit": "Celsius"}, CITY, None),
        ("weather", {"city": "Boston"}, CITY, "'city' is 'Boston', expected one of ['New York, NY', 'New York']"),
        ("weather", {"days": 3}, CITY, "missing 'city'"),
        ("weather", {"city": "New York", "country": "US"}, CITY, "unexpected 'country'"),
        ("weather", {"city": "New York", "days": "3"}, CITY, "'days' is '3', expected type integer"),
        ("weather", {"city": "New York", "days": 3.0}, CITY, "'days' is 3.0, expected type integer"),
        ("weather", {"city": "New York", "days": True}, {**CITY, "days": [1]}, "'days' is True, expected type integer"),
        (
            "weather",
            {"city": "New York", "days": None},
            {**CITY, "days": ["", None]},
            None,
        ),  # where data and schema differ
        ("weather", {"city": "New York", "unit": ""}, CITY, None),
        ("weather", {"city": "x"}, {"city": ["x"], "days": [3]}, "missing 'days'"),  # not required, but asked for
        ("weather", {"city": "l'été"}, {"city": ['L"ÉTÉ']}, None),
        ("weather", {}, {}, "missing 'city'"),
        ("area", {"base": 5}, {"base": [5.0]}, None),
        ("area", {"base": 5.0}, {"base": [5]}, None),
        ("area", {"base": "5"}, {"base": [5.0]}, "'base' is '5', expected type float"),
        ("plot", {"points": [1, 2.5]}, {"points": [[1.0, 2.5]]}, None),
        ("plot", {"points": [2.5, 1]}, {"points": [[1.0, 2.5]]}, "'points' is [2.5, 1], expected one of [[1.0, 2.5]]"),
        ("plot", {"points": [1]}, {"points": [[1.0, 2.5]]}, "'points' is [1], expected one of [[1.0, 2.5]]"),
        ("plot", {"points": ["1"]}, {"points": [[1.0]]}, "'points' is ['1'], expected type array"),
        ("plot", {"labels": ["New York", "b"]}, {"labels": [["x"], ["new-york", "B"]]}, None),
        ("plot", {}, {"points": ["", [1.0]]}, None),
        ("order", {"dish": {"name": "Soup"}}, {"dish": [{"name": ["soup"], "size": ["", 2]}]}, None),
        ("order", {"dish": {"size": 2}}, {"dish": [{"name": ["soup"], "size": [2]}]}, "expected one of"),
        ("order", {"dish": {"at": {"x": 1.5}}}, {"dish": [{"at": [{"x": 1.5}]}]}, None),
        ("order", {"dish": {"at": {}}}, {"dish": [{"at": [{"x": 1.5}]}]}, "expected one of"),
        ("order", {"dish": {"at": {}}}, {"dish": [{"at": [{"x": "left"}]}]}, "expected one of"),
        (
            "order",
            {"dishes": [{"name": "a"}, {"name": "b"}]},
            {"dishes": [[{"name": ["a"]}, {"name": ["b", "c"]}]]},
            None,
        ),
        (
            "order",
            {"dishes": [{"name": "b"}, {"name": "a"}]},
            {"dishes": [[{"name": ["a"]}, {"name": ["b"]}]]},
            "expected one of",
        ),
        ("order", {"dish": {"n": 1}}, {"dish": [{"n": [True]}]}, "expected one of"),
        ("order", {"now": 1}, {"now": [True]}, "'now' is 1, expected type boolean"),
        ("order", {"note": [1, {"a": 2}]}, {"note": [[1, {"a": [2]}]]}, None),
    ],
)
def test_one_call(name, arguments, allowed, reason):
    found = failure([{"name": name, "arguments": arguments}], [{name: allowed}], TOOLS)
    assert found is None if reason is None else reason in found


def test_parallel_calls_have_no_order_and_each_answer_its_own_call():
    both = {"name": "area", "arguments": {"base": 1}}
    first = {"name": "area", "arguments": {"base": 2}}
    answers = [{"area": {"base": [1, 2]}}, {"area": {"base": [1]}}]
    # Whoever takes the first call that fits the first answer leaves none for the second.
    assert failure([both, first], answers, TOOLS) is None
    assert failure([first, both], answers, TOOLS) is None
    assert failure([first, first], answers, TOOLS) == "'base' is 2, expected one of [1]"
    assert failure([both], answers, TOOLS) == "number of calls is 1, expected 2"
    assert failure([], answers, TOOLS) == "number of calls is 0, expected 2"
    other = {"name": "weather", "arguments": {"city": "x"}}
    assert failure([other, both], answers, TOOLS) == "called 'weather', expected 'area'"


def test_irrelevance_is_right_if_nothing_decodes():
    broken = {"name": None, "arguments": None, "error": "no JSON", "text": "{"}
    assert failure([], [], TOOLS) is None
    assert failure([broken], [], TOOLS) is None
    assert failure([{"name": "area", "arguments": {}}], [], TOOLS) == "called 'area', expected no call"
    assert failure([broken], [{"area": {"base": [1]}}], TOOLS) == "called None, expected 'area'"


def test_answers_have_to_be_on_offer():
    with pytest.raises(ValueError, match=r"the answer calls \['fly'\], but the tools on offer are \['area'"):
        failure([], [{"fly": {}}], TOOLS)


# ------------------------------------------------------------------------------------------------ as evaluate modules

ART = {"id": "validation_Art_1", "question_type": "multiple-choice", "options": OPTIONS, "answer": "B"}
MATH = {"id": "validation_Math_1", "question_type": "open", "options": [], "answer": "5"}
CALLS = [json.dumps([{"name": "area", "arguments": {"base": base}}]) for base in (1, 2)]
ANSWER = json.dumps({"tools": TOOLS, "answers": [{"area": {"base": [1]}}]})
HALVES = {
    "relaxed_accuracy": {"predictions": ["104", "no"], "references": ["100", "yes"]},
    "anls": {"predictions": ["hi", "no"], "references": [["hello", "hi"], ["yes"]]},
    "vqa_accuracy": {"predictions": ["two", "no"], "references": [["2"] * 10, ["yes"] * 10]},
    "exact_match": {
        "predictions": ["Yes.", "no"],
        "references": ["yes"] * 2,
        "ignore_case": True,
        "ignore_punctuation": True,
    },
    "mmmu": {"predictions": ["(B)", "6"], "references": [ART, MATH]},
    "circular_accuracy": {"predictions": list("ABAC"), "references": list("ABAB"), "indices": [7, 1000007, 8, 1000008]},
    "word_error_rate": {"predictions": ["It's 5%", "a"], "references": ["it is five percent", "b c d"]},
    "function_calling": {"predictions": CALLS, "references": [ANSWER] * 2},
}


@pytest.mark.parametrize("name", HALVES)
def test_loads_as_an_evaluate_module(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert evaluate.load(f"eval/metrics/{name}").compute(**HALVES[name])[name] == pytest.approx(0.5)


def test_loads_as_an_evaluate_module_with_several_figures(monkeypatch):
    monkeypatch.chdir(ROOT)
    letters = evaluate.load("eval/metrics/multiple_choice")
    found = letters.compute(predictions=["(B)", "?"], references=["B", "B"], rule="standalone")
    assert found == {"accuracy": 0.5, "parse_failures": 0.5}
    questions = {"predictions": ["yes", "no"], "references": ["yes", "yes"], "categories": ["random", "popular"]}
    assert evaluate.load("eval/metrics/pope").compute(**questions)["mean"]["f1"] == 0.5
    pictures = {
        "predictions": ["Yes", "No"],
        "references": ["Yes", "Yes"],
        "categories": ["OCR"] * 2,
        "images": ["1"] * 2,
    }
    assert evaluate.load("eval/metrics/mme").compute(**pictures)["perception"] == 50.0
    captions = {"predictions": ["a dog barks", ""], "references": [["a dog barks"], ["rain falls"]]}
    assert evaluate.load("eval/metrics/cider").compute(**captions)["cider"] == pytest.approx(7.5 / 2)


@pytest.mark.parametrize("name", ["pope", "mme"])
def test_yes_or_no_references_are_checked(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    columns = {"categories": ["random"], "images": ["1"]} if name == "mme" else {"categories": ["random"]}
    with pytest.raises(ValueError, match="references have to be yes or no, found 'maybe'"):
        evaluate.load(f"eval/metrics/{name}").compute(predictions=["yes"], references=["maybe"], **columns)
