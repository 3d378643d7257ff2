"""Documents in which text and several pictures take turns, and conversations about them (paper, section II.C).

    python -m training.synthesis.interleaved --rows 100000 --output data/interleaved

A document is two to four sections of a heading, a picture and a sentence, now and then followed by one more picture in a
later turn. Half the documents show pictures of one kind only, so that a question is answered by the right picture and no
other. `meta` holds `pictures`, what each shows, and `asked`, for each turn the number of the picture that it is about.
"""

import argparse
import functools
import random
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from training import shards
from training.synthesis import documents, pictures, samples, sheets, turns, world

NAME, LICENSE = "eagle-interleaved", "apache-2.0"
ORDINALS = ("first", "second", "third", "fourth", "fifth")
HEADINGS = (sheets.DAYS, sheets.MONTHS, [name.title() for name in world.NAMES], [town.title() for town in world.TOWNS])
MORE = ("Here is one more picture.", "Look at this one as well.", "I found another picture.")


@dataclass
class Section:
    """A heading, a picture with the questions that it answers, what it shows, and a sentence below it."""

    heading: str
    sentence: str
    kind: str
    image: Image.Image
    questions: list[tuple[str, str]]
    facts: dict


# ------------------------------------------------------------------------------------------------ pictures


def sign(rng: random.Random, split: str) -> tuple[Image.Image, list[tuple[str, str]], dict]:
    words = pictures.random_words(rng, split) if rng.random() < 0.5 else (pictures.random_code(rng, split),)
    text = pictures.random_case(rng, " ".join(words)) if len(words) > 1 else words[0]
    picture = pictures.sign(rng, tuple(text.split()), split)
    return picture.image, [("What does the sign say?", text)], {"text": text}


def shapes(rng: random.Random, split: str) -> tuple[Image.Image, list[tuple[str, str]], dict]:
    picture = pictures.scene(rng, pictures.random_kinds(rng, split))
    asked = [(world.written(question), answer) for _, question, answer in samples.scene_questions(rng, picture)]
    return picture.image, asked, {"items": [[item.colour, item.shape] for item in picture.items]}


def document(kind: str, rng: random.Random, split: str) -> tuple[Image.Image, list[tuple[str, str]], dict]:
    sheet, record, questions = documents.make(rng, kind, split)
    return sheet.image, questions, {"record": record}


KINDS: dict[str, Callable] = {"sign": sign, "shapes": shapes}
KINDS |= {kind: functools.partial(document, kind) for kind in documents.KINDS}
ARTICLES = {kind: "shapes" if kind == "shapes" else f"a {kind}" for kind in KINDS}


def new_sections(rng: random.Random, split: str, count: int) -> list[Section]:
    """Of one kind of picture, or of several."""
    kinds = [rng.choice(list(KINDS))] * count if rng.random() < 0.5 else rng.choices(list(KINDS), k=count)
    sections = []
    for heading, kind in zip(rng.sample(rng.choice(HEADINGS), count), kinds, strict=True):
        sentence = world.written(world.sentence(rng, split))
        sections.append(Section(heading, sentence, kind, *KINDS[kind](rng, split)))
    return sections


# ------------------------------------------------------------------------------------------------ questions


def about_one(rng: random.Random, sections: list[Section], number: int) -> tuple[str, str]:
    """A question about the picture of that number, named by its place or its heading."""
    question, answer = rng.choice(sections[number].questions)
    names = [f"In the {ORDINALS[number]} picture", f'In the picture under "{sections[number].heading}"']
    if number == len(sections) - 1:
        names.append("In the last picture")
    return f"{rng.choice(names)}: {question}", answer


def about_all(rng: random.Random, sections: list[Section]) -> tuple[str, str]:
    """A question that is answered by how text and pictures stand together."""
    kinds = [section.kind for section in sections]
    number = rng.randrange(len(sections))
    asked = [
        ("How many pictures are there?", str(len(sections))),
        (f"Under which heading is the {ORDINALS[number]} picture?", sections[number].heading),
        (f"Which sentence stands below the {ORDINALS[number]} picture?", sections[number].sentence),
    ]
    if kinds.count(kinds[number]) == 1:
        answer = f"The {ORDINALS[number]}."
        asked.append((f"Which picture shows {ARTICLES[kinds[number]]}?", answer))
    return rng.choice(asked)


def draw(seed: int, split: str, index: int) -> dict:
    """The row of that number."""
    rng = random.Random(f"interleaved/{split}/{seed}/{index}")
    sections = new_sections(rng, split, rng.randint(2, 4))
    more = sections.pop() if len(sections) > 2 and rng.random() < 0.4 else None
    parts = []
    for section in sections:
        parts += [("text", f"{section.heading}\n"), ("image", section.image), ("text", f"\n{section.sentence}\n\n")]
    conversation, asked = [], []
    for turn in range(rng.randint(2, 4)):
        if turn and rng.random() < 0.3:
            number, (question, answer) = None, about_all(rng, sections)
        else:
            number = rng.randrange(len(sections))
            question, answer = about_one(rng, sections, number)
        conversation.append(([*parts, ("text", question)], answer))
        asked.append(number)
        parts = []
    if more:
        question, answer = rng.choice(more.questions)
        conversation.append(([("text", f"{rng.choice(MORE)}\n"), ("image", more.image), ("text", f"\n{question}")], answer))
        asked.append(len(sections))
    shown = [{"heading": s.heading, "kind": s.kind} | s.facts for s in [*sections, *([more] if more else [])]]
    meta = {"skill": "interleaved", "split": split, "pictures": shown, "asked": asked}
    return shards.encode_row(turns.conversation(conversation, **meta), f"{NAME}/{split}/{seed}/{index}", NAME, LICENSE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shards.add_arguments(parser)
    parser.add_argument("--split", choices=("train", "test"), default="train")
    args = parser.parse_args()
    draw_row = functools.partial(draw, args.seed, args.split)
    written = {"source": NAME, "license": LICENSE, "options": {"split": args.split}}
    shards.write_shards(draw_row, **written, **shards.arguments(args))


if __name__ == "__main__":
    main()
