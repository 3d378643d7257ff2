"""Function calling in the paper's settings (section III): functions in the prompt, learnt by fine-tuning, or some of each.

    python -m training.synthesis.function_calling --setting in_context --output data/in_context
    python -m training.synthesis.function_calling --setting fine_tuned --rows 5000 --output data/fine_tuned

in_context   functions that a catalogue in the prompt defines, drawn anew for each conversation
fine_tuned   the 40 functions of training/synthesis/assistant.py, without a definition; 5,000 rows of six requests are the
             paper's 750 samples a function
mixed        a catalogue in the prompt, and requests for its functions and for the 40
multimodal   the request is spoken, or a picture or a recording holds a value; one row in five goes on with what the
             function returns (paper: 20,000 rows of one turn, 5,000 of several)

A drawn function does a verb to a thing, both words of the small world. There are thousands; one in ten is held out under
all its names (`world.split`), and so is every fourth wording of a request. The verbs are none that the 40 are asked with,
so what a request calls is never in doubt. What a function and its parameters are named, and what may be left out, is
drawn: a call has to be read off its definition. In training a conversation asks several times about one catalogue.
"""

import argparse
import functools
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from training import shards
from training.synthesis import assistant, pictures, world
from training.synthesis.voices import add_noise, say_varied

NAME, LICENSE = "eagle-function-calling", "apache-2.0"
VERBS = """
    push carry sell paint cut build hold throw catch drop move choose touch cover teach finish follow check record search
""".split()
THINGS = (*world.OBJECTS, *world.ANIMALS, *world.FOODS, *world.NATURE, *world.PLACES)
WORDS = (*world.ROOMS, *world.PLACES, *world.COLOURS, *world.PEOPLE)  # what some names have beside what they mean
NAMES = """
    {verb}_{thing} {verb}_{thing} {verb}_{thing} {thing}_{verb} {verb}_the_{thing} {word}_{verb}_{thing} {verb}_{thing}_{word}
""".split()
PARAMETER_NAMES = "{name} {name} {name} {name} {thing}_{name} {word}_{name} new_{name}".split()
WORDINGS = world.lines("""
    {}
    please {}
    can you {}
    can you please {}
    {} please
    would you {}
    will you {}
    would you please {}
    {} now
    now {}
    you should {}
    please {} now
""")
STATES = "ready new clean full empty broken safe early late perfect".split()  # what functions return of their things
REFUSAL = "we can not do that"
# Functions of a catalogue. To read out names is learnt where there are few, long before one is found among many.
SIZES = {"train": (1, 1, 2, 2, 3, 3, 4, 6, 8, 12), "test": (2, 3, 3, 4, 4, 5, 6, 8, 10, 12)}
MASKED_SIZES = (1, 2, 3, 4, 4, 5, 6, 8)
REQUESTS = 6  # of a conversation in training
SPOKEN, FOLLOWED = 0.5, 0.2  # shares of multimodal rows: the request is heard; the function's result follows


# ------------------------------------------------------------------------------------------------ functions


@dataclass(frozen=True)
class Kind:
    """What a parameter takes: the names that functions give it, how a request says it, the value for each thing said."""

    names: tuple[str, ...]
    clause: str
    said: dict


def same(values: Sequence[str]) -> dict[str, str]:
    return {value: value for value in values}


def spelled(numbers: Sequence[int]) -> dict[str, int]:
    return {world.spell(number): number for number in numbers}


KINDS = (
    Kind(("colour", "paint"), "in {}", same(world.COLOURS)),
    Kind(("room", "place"), "in the {}", same(world.ROOMS)),
    Kind(("town", "city"), "in {}", same(world.TOWNS)),
    Kind(("name", "friend", "person"), "with {}", same(world.NAMES)),
    Kind(("day", "date"), "on {}", same(assistant.WEEK)),
    Kind(("hour", "time"), "at {}", spelled(range(1, 13))),
    Kind(("minutes", "minute"), "for {} minutes", spelled(range(2, 61))),
    Kind(("number", "value"), "with number {}", spelled(range(1, 21))),
    Kind(("percent", "level"), "at {} percent", spelled(range(5, 101, 5))),
    Kind(("price", "cost"), "at the price of {}", {str(number / 2): number / 2 for number in range(1, 40)}),
    Kind(("thing", "box"), "with the {}", same(world.OBJECTS)),
    Kind(("food", "meal"), "with some {}", same(world.FOODS)),
    Kind(("mode", "way"), "in {} mode", same(world.ADJECTIVES)),
    Kind(("quiet",), "{}", {"and be quiet": True, "but do not be quiet": False}),
    Kind(("fast",), "{}", {"and be fast": True, "but do not be fast": False}),
)
TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}


@dataclass(frozen=True)
class Parameter:
    """`said` are those of the kind's values that the function takes."""

    name: str
    kind: Kind
    required: bool
    said: dict

    @property
    def type(self) -> str:
        return TYPES[type(next(iter(self.said.values())))]

    @property
    def schema(self) -> dict:
        listed = len(self.said) < len(self.kind.said)
        return {"type": self.type} | ({"enum": list(self.said.values())} if listed else {})

    @property
    def spoken_name(self) -> str:
        return self.name.replace("_", " ")


def schema(parameters: Sequence[Parameter]) -> dict:
    """What a function takes."""
    properties = {parameter.name: parameter.schema for parameter in parameters}
    required = [parameter.name for parameter in parameters if parameter.required]
    return {"type": "object", "properties": properties, "required": required}


Values = list[tuple[Parameter, str]]  # what is said for each parameter that gets a value


@dataclass(frozen=True)
class Drawn:
    """A function that a catalogue defines."""

    verb: str
    thing: str
    name: str
    parameters: tuple[Parameter, ...]

    @property
    def description(self) -> str:
        return f"{self.verb.capitalize()} the {self.thing}."

    @property
    def definition(self) -> dict:
        function = {"name": self.name, "description": self.description, "parameters": schema(self.parameters)}
        return {"type": "function", "function": function}

    def values(self, rng: random.Random) -> Values:
        """One for each parameter, but for half of those that may be left out."""
        return [(p, rng.choice(list(p.said))) for p in self.parameters if p.required or rng.random() < 0.5]

    def text(self, rng: random.Random, values: Values) -> str:
        """The request: values in any order, what is true or false last."""
        clauses = [(p.type == "boolean", p.kind.clause.format(words)) for p, words in rng.sample(values, len(values))]
        return " ".join([self.verb, "the", self.thing, *(clause for _, clause in sorted(clauses, key=lambda c: c[0]))])

    def call(self, values: Values) -> dict:
        return {"name": self.name, "arguments": {p.name: p.said[words] for p, words in values}}

    def ask(self, rng: random.Random, split: str) -> tuple[str, dict]:
        """What is asked, and the call that answers it."""
        values = self.values(rng)
        return self.text(rng, values), self.call(values)


@dataclass(frozen=True)
class Known:
    """A function of the assistant."""

    name: str

    @property
    def definition(self) -> dict:
        return next(tool for tool in assistant.FUNCTIONS if tool["function"]["name"] == self.name)

    def ask(self, rng: random.Random, split: str) -> tuple[str, dict]:
        while True:
            text, call = assistant.request(rng, split)
            if call["name"] == self.name:
                return text, call


ASSISTANT = tuple(Known(name) for name in assistant.ASSISTANT)


def draw_function(rng: random.Random, split: str, others: Sequence[Drawn], masked: bool = False) -> Drawn:
    """A function of the split; half the time with the verb or the thing of one of the others, so that both count.

    `masked`: under a name that its description does not give away, so that it has to be looked up (Hammer, arXiv 2410.04587);
    two in five of these take nothing.
    """
    while True:
        verb, thing = rng.choice(VERBS), rng.choice(THINGS)
        if others and rng.random() < 0.5:
            other = rng.choice(others)
            verb, thing = rng.choice(((other.verb, thing), (verb, other.thing)))
        if world.split("function", verb, thing) == split and (verb, thing) not in [(o.verb, o.thing) for o in others]:
            break
    if masked:
        name = "_".join(rng.sample(world.WORDS, rng.choice((1, 2))))
    else:
        name = rng.choice(NAMES).format(verb=verb, thing=thing, word=rng.choice(WORDS))
    kinds = rng.sample(KINDS, rng.choice((0, 0, 1, 1, 2) if masked else (0, 1, 1, 2, 2, 3)))
    return Drawn(verb, thing, name, tuple(draw_parameter(rng, kind, thing, masked) for kind in kinds))


def draw_parameter(rng: random.Random, kind: Kind, thing: str, masked: bool) -> Parameter:
    """One in five is optional, as are all that are true or false; some list the few values they take."""
    names, words = (("{word}_{name}", "{name}_{word}"), world.WORDS) if masked else (PARAMETER_NAMES, WORDS)
    name = rng.choice(names).format(name=rng.choice(kind.names), thing=thing, word=rng.choice(words))
    value = next(iter(kind.said.values()))
    listed = "mode" in kind.names or (isinstance(value, str) and rng.random() < 0.25)
    said = {words: kind.said[words] for words in rng.sample(list(kind.said), 3)} if listed else kind.said
    return Parameter(name, kind, not isinstance(value, bool) and rng.random() < 0.8, said)


def catalogue(
    rng: random.Random, split: str, count: int, start: Sequence[Drawn] = (), masked: bool = False
) -> list[Drawn]:
    """`count` functions in random order, those of `start` among them; no two do the same or have one name."""
    functions = list(start)
    while len(functions) < count:
        function = draw_function(rng, split, functions, masked)
        if function.name not in [other.name for other in functions]:
            functions.append(function)
    return rng.sample(functions, count)


# ------------------------------------------------------------------------------------------------ messages


def user(rng: random.Random, text: str) -> dict:
    return {"role": "user", "content": [{"type": "text", "text": world.written(text) if rng.random() < 0.8 else text}]}


def said(answer: str) -> dict:
    return {"role": "assistant", "content": [{"type": "text", "text": answer}]}


def called(functions: Sequence["Drawn | Known"], *calls: dict) -> dict:
    """The calls, after what those functions do that a definition describes.

    Said first, that lets the choice among functions be copying: the words of the request lead to the definition that has
    them, and its name is what comes next (docs/LOG.md).
    """
    wrapped = [{"type": "function", "function": call} for call in calls]
    described = " ".join(function.description for function in functions if isinstance(function, Drawn))
    content = [{"type": "text", "text": described}] if described else ""
    return {"role": "assistant", "content": content, "tool_calls": json.dumps(wrapped)}


def worded(rng: random.Random, split: str, text: str) -> str:
    """What is to be done, in a wording of the split."""
    numbers = [number for number in range(len(WORDINGS)) if world.split("phrasing", "function", number) == split]
    return WORDINGS[rng.choice(numbers)].format(text)


def request(rng: random.Random, split: str, function: Drawn | Known) -> tuple[str, dict]:
    """What is asked in a wording of the split, and the call that answers it."""
    text, call = function.ask(rng, split)
    return (text if isinstance(function, Known) else worded(rng, split, text)), call


def returned(rng: random.Random, function: Drawn) -> list[dict]:
    """What the function returns, and what is said about it."""
    state = rng.choice(STATES)
    content = [{"type": "text", "text": json.dumps({"state": state})}]
    return [{"role": "tool", "content": content}, said(f"the {function.thing} is {state}")]


# ------------------------------------------------------------------------------------------------ turns
# Each is a function (rng, split, functions of the catalogue) -> messages.


def simple(rng: random.Random, split: str, functions: Sequence[Drawn]) -> list[dict]:
    function = rng.choice(functions)
    text, call = request(rng, split, function)
    return [user(rng, text), called([function], call)]


def parallel(rng: random.Random, split: str, functions: Sequence[Drawn | Known]) -> list[dict]:
    """Two calls at once, of one function where there is no other."""
    pair = rng.sample(functions, 2) if len(functions) > 1 else [*functions, *functions]
    (first, one), (second, other) = (function.ask(rng, split) for function in pair)
    return [user(rng, f"{first} and {second}"), called(pair, one, other)]


def followed(rng: random.Random, split: str, functions: Sequence[Drawn]) -> list[dict]:
    """A call and its result."""
    function = rng.choice(functions)
    text, call = request(rng, split, function)
    return [user(rng, text), called([function], call), *returned(rng, function)]


def irrelevant(rng: random.Random, split: str, functions: Sequence[Drawn]) -> list[dict]:
    """A request that no function on offer does."""
    function = draw_function(rng, split, functions)
    text, _ = request(rng, split, function)
    return [user(rng, text), said(f"{function.description} {REFUSAL}")]


def missing(rng: random.Random, split: str, functions: Sequence[Drawn]) -> list[dict]:
    """A request without a value that the function needs; then the value."""
    able = [function for function in functions if any(parameter.required for parameter in function.parameters)]
    if not able:
        return irrelevant(rng, split, functions)
    function = rng.choice(able)
    values = function.values(rng)
    left_out, words = rng.choice([value for value in values if value[0].required])
    text = function.text(rng, [value for value in values if value[0] is not left_out])
    question = f"{function.description} please tell me the {left_out.spoken_name}"
    answer = [user(rng, left_out.kind.clause.format(words)), called([function], function.call(values))]
    return [user(rng, worded(rng, split, text)), said(question), *answer]


def known(rng: random.Random, split: str, functions: Sequence[Drawn]) -> list[dict]:
    """A request for a function of the assistant."""
    return simple(rng, split, ASSISTANT)


def both(rng: random.Random, split: str, functions: Sequence[Drawn]) -> list[dict]:
    """A call of a function in the catalogue and one of the assistant's at once."""
    return parallel(rng, split, rng.sample([rng.choice(functions), rng.choice(ASSISTANT)], 2))


# Refusals and questions are twice as frequent in training: else a model that begins to learn always calls.
IN_CONTEXT = {
    "train": {simple: 0.5, parallel: 0.1, followed: 0.08, irrelevant: 0.16, missing: 0.16},
    "test": {simple: 0.68, parallel: 0.09, followed: 0.07, irrelevant: 0.08, missing: 0.08},
}
MIXED = {simple: 0.4, known: 0.4, both: 0.08, followed: 0.04, irrelevant: 0.04, missing: 0.04}


# ------------------------------------------------------------------------------------------------ conversations
# Each is a skill of training/synthesis/samples.py: a function (rng, split) -> sample.


def conversation(messages: list[dict], functions: Sequence[Drawn | Known], setting: str, **more) -> dict:
    tools = json.dumps([function.definition for function in functions]) if functions else None
    row = {"messages": messages, "images": [], "audios": [], "videos": [], "tools": tools}
    return row | {"meta": {"setting": setting}} | more


def turns(rng: random.Random, split: str, functions: Sequence[Drawn], kinds: dict[Callable, float]) -> list[dict]:
    """Turns of these kinds, drawn by their shares: six in training, one of the test split."""
    drawn = rng.choices(list(kinds), list(kinds.values()), k=REQUESTS if split == "train" else 1)
    return [message for turn in drawn for message in turn(rng, split, functions)]


def in_context_request(rng: random.Random, split: str) -> dict:
    """Requests for functions that the prompt defines."""
    functions = catalogue(rng, split, rng.choice(SIZES[split]))
    return conversation(turns(rng, split, functions, IN_CONTEXT[split]), functions, "in_context")


def masked_request(rng: random.Random, split: str) -> dict:
    """Requests for functions whose names and parameters the prompt alone tells, each asked for once, and for some that are
    not there. Training only."""
    functions = catalogue(rng, split, rng.choice(MASKED_SIZES), masked=True)
    asked = [simple(rng, split, [function]) for function in functions]
    asked += [irrelevant(rng, split, functions) for _ in functions if rng.random() < 0.25]
    return conversation([message for turn in rng.sample(asked, len(asked)) for message in turn], functions, "in_context")


def mixed_request(rng: random.Random, split: str) -> dict:
    """Requests for functions that the prompt defines, and for those of the assistant, of which it defines up to two."""
    functions = catalogue(rng, split, rng.choice(SIZES[split]))
    messages = turns(rng, split, functions, MIXED)
    offered = [*functions, *rng.sample(ASSISTANT, rng.choice((0, 0, 1, 2)))]
    return conversation(messages, rng.sample(offered, len(offered)), "mixed")


def fine_tuned_request(rng: random.Random, split: str, first: int) -> dict:
    """Six requests for functions of the assistant, numbers `first` to `first` + 5: forty in a row ask for each once."""
    count = len(ASSISTANT)
    rounds = [(n // count, n % count) for n in range(first, first + REQUESTS)]
    functions = [random.Random(f"round {number}").sample(ASSISTANT, count)[place] for number, place in rounds]
    messages = [message for function in functions for message in simple(rng, split, [function])]
    return conversation(messages, (), "fine_tuned")


# ------------------------------------------------------------------------------------------------ other modalities


def heard(rng: random.Random, split: str, text: str) -> tuple[np.ndarray, dict]:
    """`text` spoken, half the time over noise; the waveform and {"voice", "noisy"}."""
    utterance, voice = say_varied(rng, text, split)
    noisy, waveform = rng.random() < 0.5, (utterance.waveform * rng.uniform(0.3, 1.5)).clip(-1, 1)
    return add_noise(rng, waveform) if noisy else waveform.astype(np.float32), {"voice": voice, "noisy": noisy}


def spoken(rng: random.Random, split: str) -> dict:
    """A spoken request: for a function of a catalogue, or, without one, of the assistant."""
    function, functions = rng.choice(ASSISTANT), []
    if rng.random() < 0.5:
        function = draw_function(rng, split, ())
        while any(parameter.type == "number" for parameter in function.parameters):  # "7.5" has no words of the world
            function = draw_function(rng, split, ())
        functions = catalogue(rng, split, rng.choice(SIZES[split]), [function])
    text, call = request(rng, split, function)
    waveform, sound = heard(rng, split, text)
    messages = [{"role": "user", "content": [{"type": "audio"}]}, called([function], call)]
    if functions and rng.random() < FOLLOWED:
        messages += returned(rng, function)
    row = conversation(messages, functions, "multimodal", audios=[waveform])
    row["meta"] |= sound | {"question": text, "medium": "speech"}
    return row


class Shown(NamedTuple):
    """A value that another medium than the text holds: its words, where it is to be taken from, media, and what they say."""

    words: str
    source: str
    media: dict[str, list]
    record: dict | str


def sign(rng: random.Random, split: str, parameter: Parameter, words: str) -> Shown | None:
    """The value's words on a sign, where they are of the split."""
    if world.split("words", *words.split()) != split:
        return None
    picture = pictures.sign(rng, tuple(pictures.random_case(rng, word) for word in words.split()), split)
    return Shown(words, "sign", {"images": [pictures.soften(rng, picture.image)]}, words)


def chart(rng: random.Random, split: str, parameter: Parameter, words: str) -> Shown | None:
    """A bar as high as a whole number that the parameter takes, if there is one; `words` are those of its number."""
    if parameter.type != "integer":
        return None
    picture = pictures.chart(rng, pictures.random_bars(rng, split), split)
    unit = picture.facts["maximum"] // pictures.CHART_LEVELS
    heights = {bar.label: bar.level * unit for bar in picture.bars}
    spoken_numbers = {value: words for words, value in parameter.said.items()}
    labels = [label for label, height in heights.items() if height in spoken_numbers]
    if not labels:
        return None
    label = rng.choice(labels)
    media = {"images": [pictures.soften(rng, picture.image)]}
    return Shown(spoken_numbers[heights[label]], f"bar {label}", media, heights)


def recording(rng: random.Random, split: str, parameter: Parameter, words: str) -> Shown:
    """The value's words, spoken."""
    return Shown(words, "message", {"audios": [heard(rng, split, words)[0]]}, words)


def shown(rng: random.Random, split: str) -> dict:
    """A written request, and a value of it that a sign, a chart or a recording holds."""
    medium, found = rng.choice((sign, chart, recording)), None
    while not found:
        function = draw_function(rng, split, ())
        values = function.values(rng)
        places = [place for place, (parameter, _) in enumerate(values) if parameter.type in ("string", "integer")]
        if places:
            place = rng.choice(places)
            found = medium(rng, split, *values[place])
    parameter = values[place][0]
    text = function.text(rng, values[:place] + values[place + 1 :])
    values[place] = parameter, found.words
    message = user(rng, worded(rng, split, f"{text} and take the {parameter.spoken_name} from the {found.source}"))
    message["content"].insert(0, {"type": "image" if "images" in found.media else "audio"})
    messages = [message, called([function], function.call(values))]
    if rng.random() < FOLLOWED:
        messages += returned(rng, function)
    row = conversation(messages, catalogue(rng, split, rng.choice(SIZES[split]), [function]), "multimodal", **found.media)
    row["meta"] |= {"medium": medium.__name__, "parameter": parameter.name, "record": found.record}
    return row


def multimodal_request(rng: random.Random, split: str) -> dict:
    """Requests of several modalities: half of them are spoken, half have a value that another medium holds."""
    return (spoken if rng.random() < SPOKEN else shown)(rng, split)


# ------------------------------------------------------------------------------------------------ rows

SETTINGS = {
    "in_context": in_context_request,
    "fine_tuned": fine_tuned_request,
    "mixed": mixed_request,
    "multimodal": multimodal_request,
}


def draw(seed: int, split: str, setting: str, index: int) -> dict:
    """The row of that number."""
    rng = random.Random(f"{setting}/{split}/{seed}/{index}")
    first = (index * REQUESTS,) if setting == "fine_tuned" else ()
    sample = SETTINGS[setting](rng, split, *first)
    sample["meta"] |= {"skill": "function_calling", "split": split}
    return shards.encode_row(sample, f"{NAME}/{setting}/{split}/{seed}/{index}", NAME, LICENSE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shards.add_arguments(parser, rows=5000)
    parser.add_argument("--setting", choices=SETTINGS, required=True)
    parser.add_argument("--split", choices=("train", "test"), default="train")
    args = parser.parse_args()
    options = {"setting": args.setting, "split": args.split}
    draw_row = functools.partial(draw, args.seed, args.split, args.setting)
    written = {"source": NAME, "license": LICENSE, "options": options, "labels": ("setting", "medium")}
    shards.write_shards(draw_row, **written, **shards.arguments(args))


if __name__ == "__main__":
    main()
