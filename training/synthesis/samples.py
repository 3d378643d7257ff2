"""Questions and answers about the small world in every modality: one function a skill, one row a sample.

    python -m training.synthesis.samples chart --split test --count 4 --output out/samples

A row is a conversation (columns as TRL names them): `messages`, the media in order of appearance in `images` (PIL),
`audios` (mono float32 at 16 kHz) and `videos` (frames (T, H, W, 3) uint8, one a second), `meta`: the skill, and what
scores are split by, and where one was drawn the `picture` with what lies where in it. In training some have several
turns, where one picture or little text answers many questions. Everything follows from (skill, split, seed);
`world.split` keeps train and test apart.
"""

import argparse
import itertools
import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import ImageDraw

from training.synthesis import assistant, function_calling, pictures, world
from training.synthesis.pictures import CHART_LEVELS, COLOURS, SHAPES, Item, Picture
from training.synthesis.voices import SAMPLING_RATE, add_noise, say_varied

SIGN_QUESTIONS = ("what does the sign say", "what is on the sign", "tell me what the sign says", "read the sign")
CODE_QUESTIONS = ("what is the code", "read the code", "tell me the code on the sign", "which code do you see")
VALUE_QUESTIONS = ("what is the value of {}", "tell me the value of {}", "how much is {}", "what value has {}")
TRANSCRIBE = ("Write down what you hear.", "What is said?", "Transcribe the speech.")
LONGEST_DICTATION = 29  # seconds; one window of the audio tower holds 30
ECHO = "say again:"
# Of words in a form: what stands before them, between them by turns, and after them.
FORMS = {
    "words": ("", [" "], ""),
    "a row": ("", [", "], ""),
    "lines": ("", ["\n"], ""),
    "a name": ("", ["_"], ""),
    "a list": ('["', ['", "'], '"]'),
    "pairs": ("", [": ", "\n"], ""),
    "an object": ('{"', ['": "', '", "'], '"}'),
    "functions": ('[{"description": "', ['.", "name": "', '"}, {"description": "'], '"}]'),
    "calls": ("", ['. {"name": "', '"}\n'], '"}'),
}
COUNT_ALL = "how many shapes are there"
PLACES = ("top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right")


def row(rng: random.Random, user: list[tuple[str, object]], answer: str, **meta) -> dict:
    """A one-turn conversation of parts such as ("text", str) or ("image", PIL image), and its answer."""
    content = [{"type": kind, "text": value} if kind == "text" else {"type": kind} for kind, value in user]
    return {
        "messages": [{"role": "user", "content": content}, said(answer)],
        "images": [value for kind, value in user if kind == "image"],
        "audios": [value for kind, value in user if kind == "audio"],
        "videos": [value for kind, value in user if kind == "video"],
        "meta": meta,
    }


def more_turns(rng: random.Random, sample: dict, turns: list[tuple[str, dict]]) -> dict:
    """The row with further written questions and their answers (messages), about the media that are there already."""
    for question, answer in turns:
        text = world.written(question) if rng.random() < 0.8 else question
        sample["messages"] += [{"role": "user", "content": [{"type": "text", "text": text}]}, answer]
    return sample


def said(answer: str) -> dict:
    """The message of the assistant that says it."""
    return {"role": "assistant", "content": [{"type": "text", "text": answer}]}


def ask(rng: random.Random, split: str, medium: tuple[str, object], question: str, answer: str, spoken: bool, **meta):
    """A row that asks about a medium, in writing or aloud, before or after it."""
    if spoken:
        waveform, sound = speech(rng, split, question)
        part, meta = ("audio", waveform), meta | sound
    else:
        part = ("text", world.written(question) if rng.random() < 0.8 else question)
    parts = [medium, part] if rng.random() < 0.8 else [part, medium]
    return row(rng, parts, answer, question=question, **meta)


def speech(rng: random.Random, split: str, text: str) -> tuple[np.ndarray, dict]:
    """`text` spoken, half the time over noise; the waveform and {"voice", "noisy", "transcripts"}."""
    utterance, voice = say_varied(rng, text, split)
    noisy = rng.random() < 0.5
    level = rng.uniform(0.3, 1.5)
    waveform = add_noise(rng, utterance.waveform * level) if noisy else (utterance.waveform * level).clip(-1, 1)
    return waveform.astype(np.float32), {"voice": voice, "noisy": noisy, "transcripts": [text]}


# ------------------------------------------------------------------------------------------------ skills


def page(rng: random.Random, split: str) -> dict:
    """Everything that a picture says, line by line: up to 64 words and codes.

    Training only: many answered tokens for one picture.
    """
    lines = []
    while not lines:
        texts = [pictures.random_code(rng, split) if rng.random() < 0.15 else rng.choice(world.WORDS) for _ in range(64)]
        picture, lines = pictures.poster(rng, [pictures.random_case(rng, text) for text in texts], split)
    texts = iter(texts)  # in the case of answers: words in lower, codes in upper
    answer = "\n".join(" ".join(next(texts) for _ in line) for line in lines)
    return ask_about(rng, split, picture, "read the page", answer, spoken=False)


def sign(rng: random.Random, split: str, spoken: bool = False) -> dict:
    """Text in pictures: 1 to 4 words of the world, answered in lower case."""
    words = pictures.random_words(rng, split)
    picture = pictures.sign(rng, tuple(pictures.random_case(rng, word) for word in words), split)
    return ask_about(rng, split, picture, rng.choice(SIGN_QUESTIONS[:1] if spoken else SIGN_QUESTIONS), " ".join(words), spoken)


def code(rng: random.Random, split: str, spoken: bool = False) -> dict:
    """Codes in pictures: 4 to 8 random letters and digits."""
    text = pictures.random_code(rng, split)
    picture = pictures.sign(rng, (text,), split)
    return ask_about(rng, split, picture, rng.choice(SIGN_QUESTIONS[:1] if spoken else CODE_QUESTIONS), text, spoken)


def ask_about(rng, split: str, picture: Picture, question: str, answer: str, spoken: bool, **meta) -> dict:
    image = pictures.soften(rng, picture.image)
    return ask(rng, split, ("image", image), question, answer, spoken, **picture.facts, **meta) | {"picture": picture}


def chart(rng: random.Random, split: str, spoken: bool = False) -> dict:
    """Bar charts: the value of a bar (three in four), or the label of the tallest or shortest.

    In training, up to 5 questions about each.
    """
    bars = pictures.random_bars(rng, split)
    picture = pictures.chart(rng, bars, split)
    unit = picture.facts["maximum"] // CHART_LEVELS
    levels = sorted(level for _, level in bars)
    extreme = rng.choice(("highest", "lowest"))
    unique = levels[-1] != levels[-2] if extreme == "highest" else levels[0] != levels[1]
    if split == "train" and unique and rng.random() < 0.25:
        best = max(bars, key=lambda bar: bar[1] if extreme == "highest" else -bar[1])
        return ask_about(rng, split, picture, f"which bar is the {extreme}", best[0], spoken)
    label, level = rng.choice(bars)
    question = rng.choice(VALUE_QUESTIONS[:1] if split == "test" or spoken else VALUE_QUESTIONS).format(label)
    sample = ask_about(rng, split, picture, question, str(level * unit), spoken)
    if split == "test" or spoken:
        return sample
    others = rng.sample([bar for bar in bars if bar[0] != label], min(4, len(bars) - 1))
    turns = [(rng.choice(VALUE_QUESTIONS).format(other), said(str(level * unit))) for other, level in others]
    return more_turns(rng, sample, turns)


def bars(rng: random.Random, split: str) -> dict:
    """Every bar of a chart, from left to right: "label value, label value". Training only."""
    picture = pictures.chart(rng, pictures.random_bars(rng, split), split)
    unit = picture.facts["maximum"] // CHART_LEVELS
    answer = ", ".join(f"{bar.label} {bar.level * unit}" for bar in picture.bars)
    return ask_about(rng, split, picture, "list the bars", answer, spoken=False)


def scene(rng: random.Random, split: str, spoken: bool = False) -> dict:
    """Counting and shapes: how many of what, which colour, which shape, where, whether there is any.

    In training, 5 questions about each.
    """
    picture = pictures.scene(rng, pictures.random_kinds(rng, split))
    kind, question, answer = rng.choice(scene_questions(rng, picture))
    sample = ask_about(rng, split, picture, question, answer, spoken, kind=kind)
    if split == "test" or spoken:
        return sample
    others = [rng.choice(scene_questions(rng, picture)) for _ in range(4)]
    return more_turns(rng, sample, [(question, said(answer)) for _, question, answer in others])


def things(rng: random.Random, split: str) -> dict:
    """Every thing of a scene, from top to bottom: "colour shape, colour shape". Training only."""
    picture = pictures.scene(rng, pictures.random_kinds(rng, split))
    items = sorted(picture.items, key=lambda item: item.y)
    answer = ", ".join(f"{item.colour} {item.shape}" for item in items)
    return ask_about(rng, split, picture, "list the shapes", answer, spoken=False)


def scene_questions(rng: random.Random, picture: Picture) -> list[tuple[str, str, str]]:
    """One (kind, question, answer) of each kind of question that this picture answers without doubt."""
    items = picture.items
    item, shape, colour = rng.choice(items), rng.choice(SHAPES), rng.choice(list(COLOURS))
    if rng.random() < 0.8:  # mostly about what is there
        shape, colour = item.shape, item.colour
    found = [
        ("count", COUNT_ALL, str(len(items))),
        ("count", COUNT_ALL, str(len(items))),
        ("count colour", f"how many {colour} shapes are there", str(sum(o.colour == colour for o in items))),
        ("count shape", f"how many {plural(shape)} are there", str(sum(o.shape == shape for o in items))),
    ]
    other = rng.choice(SHAPES), rng.choice(list(COLOURS))
    asked = rng.choice(((item.shape, item.colour), other))
    there = any((o.shape, o.colour) == asked for o in items)
    found.append(("presence", f"is there any {asked[1]} {asked[0]}", "yes" if there else "no"))
    if sum(o.shape == item.shape for o in items) == 1:
        found.append(("colour", f"what colour is the {item.shape}", item.colour))
    if sum(o.colour == item.colour for o in items) == 1:
        found.append(("shape", f"which shape is {item.colour}", item.shape))
    place = place_of(item, picture.image.size)
    if place and sum((o.shape, o.colour) == (item.shape, item.colour) for o in items) == 1:
        found.append(("place", f"where is the {item.colour} {item.shape}", place))
    return found


def plural(shape: str) -> str:
    return shape + ("es" if shape == "cross" else "s")


def place_of(item: Item, size: tuple[int, int]) -> str | None:
    """The ninth of the picture in which the item's middle lies, None within 4 % of a border between two."""
    across, down = item.x / size[0] * 3, item.y / size[1] * 3
    if any(abs(v - border) < 0.12 for v in (across, down) for border in (1, 2)):
        return None
    return PLACES[int(down) * 3 + int(across)]


def clip(rng: random.Random, split: str, spoken: bool = False) -> dict:
    """Video: 2 to 4 different things appear one after the other; their order is asked."""
    order = random_order(rng, split)
    things = [f"{colour} {shape}" for colour, shape in order]
    i = rng.randrange(len(things))
    questions = [("which shape is first", things[0]), ("which shape is last", things[-1])]
    questions += [("in what order are the shapes", ", ".join(things))] * 2
    if i:
        questions += [(f"which shape is after the {things[i - 1]}", things[i])]
        questions += [(f"which shape is before the {things[i]}", things[i - 1])]
    question, answer = rng.choice(questions)
    return ask(rng, split, ("video", clip_frames(rng, order)), question, answer, spoken)


def random_order(rng: random.Random, split: str) -> tuple[tuple[str, str], ...]:
    """2 to 4 different (colour, shape) things, in the order in which they appear."""
    names = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    return pictures.drawn("clip", split, lambda: tuple(rng.sample(names, rng.randint(2, 4))))


def clip_frames(rng: random.Random, order: tuple[tuple[str, str], ...]) -> np.ndarray:
    """Frames (T, H, W, 3) uint8, one a second: each thing stays for one or two, drifting; now and then an empty one."""
    width, height = rng.randint(200, 400), rng.randint(160, 336)
    ground = pictures.pale_ground(rng, width, height)
    frames = [ground] if rng.random() < 0.3 else []
    for colour, shape in order:
        item = pictures.place_items(rng, ((shape, colour),), width, height)[0]
        drift = rng.uniform(-15, 15)
        for _ in range(rng.choice((1, 1, 2))):
            frame = ground.copy()
            pictures.draw_shape(ImageDraw.Draw(frame), item)
            frames.append(frame)
            item = Item(shape, colour, item.x + drift, item.y, item.radius)
    return np.stack([np.asarray(frame) for frame in frames])


def sentence(rng: random.Random, split: str) -> dict:
    """Spoken sentences, written down word for word."""
    text = world.sentence(rng, split)
    waveform, sound = speech(rng, split, text)
    parts = [("audio", waveform), ("text", TRANSCRIBE[0] if split == "test" else rng.choice(TRANSCRIBE))]
    return row(rng, parts, text, **sound)


def dictation(rng: random.Random, split: str) -> dict:
    """Several sentences in one recording of up to 30 s, written down line by line.

    Training only: many answered tokens for one recording.
    """
    waveforms, texts, samples = [], [], 0
    while True:
        text = world.sentence(rng, split)
        waveform, _ = speech(rng, split, text)
        pause = np.zeros(int(rng.uniform(0.1, 0.6) * SAMPLING_RATE), np.float32)
        samples += len(pause) + len(waveform)
        if samples > LONGEST_DICTATION * SAMPLING_RATE:
            break
        waveforms += [pause, waveform]
        texts.append(text)
    parts = [("audio", np.concatenate(waveforms)), ("text", rng.choice(TRANSCRIBE))]
    return row(rng, parts, "\n".join(texts), transcripts=["\n".join(texts)])


def fact(rng: random.Random, split: str, spoken: bool = False) -> dict:
    """Facts of the world, asked in writing, in training 10 in a row, or aloud."""
    question, answer = world.fact_question(rng, split)
    if spoken:
        waveform, sound = speech(rng, split, question)
        return row(rng, [("audio", waveform)], answer, question=question, **sound)
    text = world.written(question) if rng.random() < 0.8 else question
    sample = row(rng, [("text", text)], answer, question=question)
    others = [world.fact_question(rng, split) for _ in range(9 if split == "train" else 0)]
    return more_turns(rng, sample, [(question, said(answer)) for question, answer in others])


def echo(rng: random.Random, split: str) -> dict:
    """Words in writing, said again word for word, 4 times in a row: looking up what stands in the conversation.

    Training only.
    """
    texts = [" ".join(rng.choices(world.WORDS, k=rng.randint(4, 24))) for _ in range(4)]
    sample = row(rng, [("text", f"{ECHO} {texts[0]}")], texts[0])
    return more_turns(rng, sample, [(f"{ECHO} {text}", said(text)) for text in texts[1:]])


def respell(rng: random.Random, split: str) -> dict:
    """Words in writing, 4 times in a row, told again in another form: other signs between them, as function calls have them.

    Training only.
    """
    turns = []
    for _ in range(4):
        words = rng.sample(world.WORDS, 2 * rng.randint(1, 6))
        written, wanted = rng.choice(list(FORMS)), rng.choice(list(FORMS))
        turns.append((f"as {wanted}: {in_form(written, words)}", in_form(wanted, words)))
    sample = row(rng, [("text", turns[0][0])], turns[0][1])
    return more_turns(rng, sample, [(question, said(answer)) for question, answer in turns[1:]])


def in_form(form: str, words: list[str]) -> str:
    start, signs, end = FORMS[form]
    between = itertools.islice(itertools.cycle(signs), len(words) - 1)
    return start + "".join(word + sign for word, sign in zip(words, [*between, end], strict=True))


def draw_thing(rng: random.Random, others: list[str]) -> str:
    """Two words, none that a held-out function goes by: what a function does, or any, half the time one of another thing's."""
    if rng.random() < 0.5:
        function = function_calling.draw_function(rng, "train", ())
        return f"{function.verb} the {function.thing}"
    while True:
        words = rng.sample(world.WORDS, 2)
        if others and rng.random() < 0.5:
            other = rng.choice(others).split()
            words = rng.choice(([other[0], words[1]], [words[0], other[-1]]))
        if world.split("function", *words) == "train":
            return rng.choice(("{} {}", "{} the {}")).format(*words)


def look_up(rng: random.Random, split: str) -> dict:
    """Names in a table or of functions, each asked for by what it stands for, then all: what a function call does, bare.

    Training only.
    """
    names = {}
    for _ in range(rng.choice(function_calling.MASKED_SIZES)):
        names[draw_thing(rng, list(names))] = "_".join(rng.sample(world.WORDS, rng.randint(1, 2)))
    written = rng.choice((str, str.capitalize))
    descriptions = {thing: f"{written(thing)}." for thing in names}
    lines = {thing: said(f"{thing}: {name}") for thing, name in names.items()}
    calls = {
        thing: called({"name": name, "arguments": {}}) | {"content": said(descriptions[thing])["content"]}
        for thing, name in names.items()
    }
    answers, worded = rng.choice((lines, calls, calls)), rng.random() < 0.5
    things = rng.sample(list(names), len(names))
    turns = [(function_calling.worded(rng, split, thing) if worded else f"say {thing}", answers[thing]) for thing in things]
    listed = "\n".join(f"{thing}: {name}" for thing, name in names.items())
    turns.append(("say all", said(listed)))  # last: before, the answers could be copied from here
    (question, answer), *others = turns
    table = rng.choice((f"{listed}\n", f"{json.dumps(names)}\n", "", "", ""))
    sample = row(rng, [("text", f"{table}{question}")], "")
    sample["messages"][1] = answer
    if not table:
        functions = with_schemas(rng, [{"name": name, "description": descriptions[thing]} for thing, name in names.items()])
        sample["tools"] = json.dumps([{"type": "function", "function": function} for function in functions])
    return more_turns(rng, sample, others)


def with_schemas(rng: random.Random, functions: list[dict]) -> list[dict]:
    """The functions without a schema, with one that takes nothing, or with parameters that may be left out."""
    form = rng.choice(("without", "nothing", "parameters"))
    if form == "without":
        return functions
    taken = [rng.sample(function_calling.KINDS, rng.randint(0, 2) if form == "parameters" else 0) for _ in functions]
    drawn = [[function_calling.draw_parameter(rng, kind, "", masked=True) for kind in kinds] for kinds in taken]
    schemas = [function_calling.schema([replace(p, required=False) for p in parameters]) for parameters in drawn]
    return [function | {"parameters": schema} for function, schema in zip(functions, schemas, strict=True)]


def request(rng: random.Random, split: str) -> dict:
    """Requests in writing, in training 4 in a row, answered with a function call."""
    text, call = assistant.request(rng, split)
    sample = row(rng, [("text", world.written(text) if rng.random() < 0.8 else text)], "", question=text)
    sample["messages"][1] = called(call)
    others = [assistant.request(rng, split) for _ in range(3 if split == "train" else 0)]
    return more_turns(rng, sample, [(text, called(call)) for text, call in others])


def called(call: dict) -> dict:
    """The message of the assistant that calls the function."""
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": json.dumps([{"type": "function", "function": call}]),
    }


def spoken_picture(rng: random.Random, split: str) -> dict:
    """A spoken question about a picture, of all the kinds above."""
    return rng.choice((sign, code, chart, scene))(rng, split, spoken=True)


def spoken_fact(rng: random.Random, split: str) -> dict:
    """A spoken question about the world, nothing else."""
    return fact(rng, split, spoken=True)


SKILLS = {
    function.__name__: function
    for function in (
        *(sign, code, sentence, chart, scene, clip, spoken_picture, fact, spoken_fact, request),
        *(page, bars, things, dictation, echo, respell, look_up),
        *(function_calling.masked_request, function_calling.in_context_request),
        *(function_calling.mixed_request, function_calling.multimodal_request),
    )
}


def make(skill: str, split: str, seed: int | str) -> dict:
    """The sample of that number: the same (skill, split, seed) gives the same row on any machine."""
    if skill not in SKILLS:
        raise ValueError(f"unknown skill {skill!r}; known: {', '.join(SKILLS)}")
    sample = SKILLS[skill](random.Random(f"{skill}/{split}/{seed}"), split)
    sample["meta"] |= {"skill": skill, "split": split}
    return sample


def main() -> None:
    import soundfile
    from PIL import Image

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("skill", choices=SKILLS)
    parser.add_argument("--split", choices=("train", "test"), default="train")
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--output", type=Path, help="folder for the media; without it only the texts are printed")
    args = parser.parse_args()
    for i in range(args.count):
        sample = make(args.skill, args.split, i)
        print(json.dumps({"messages": sample["messages"], "meta": sample["meta"]}))
        if args.output:
            args.output.mkdir(parents=True, exist_ok=True)
            for image in (*sample["images"], *(Image.fromarray(f) for video in sample["videos"] for f in video)):
                image.save(args.output / f"{args.skill}-{i}-{len(list(args.output.iterdir()))}.png")
            for waveform in sample["audios"]:
                soundfile.write(args.output / f"{args.skill}-{i}.wav", waveform, SAMPLING_RATE)


if __name__ == "__main__":
    main()
