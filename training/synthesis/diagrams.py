"""Diagrams of a record: boxes and arrows (a kind of training/synthesis/documents.py)."""

import itertools
import random

import numpy as np

from training.synthesis import sheets, world
from training.synthesis.pictures import COLOURS
from training.synthesis.sheets import Sheet


def new_record(rng: random.Random) -> dict:
    """A flow of 3 to 5 rows of boxes, 1 to 3 a row, with arrows from each row to the next that do not cross."""
    counts = [1, *(rng.choice((1, 1, 2, 2, 3)) for _ in range(rng.randint(2, 4)))]
    verbs, things = rng.sample(world.VERBS, sum(counts)), rng.sample(world.OBJECTS, sum(counts))
    labels = iter([f"{verb.title()} {thing}" for verb, thing in zip(verbs, things, strict=True)])
    rows = [[next(labels) for _ in range(count)] for count in counts]
    arrows = []
    for above, below in itertools.pairwise(rows):
        most = max(len(above), len(below))
        arrows += [[above[i * len(above) // most], below[i * len(below) // most]] for i in range(most)]
    return {
        "title": f"{rng.choice(('Plan', 'Steps', 'Path', 'Work'))} of {rng.choice(world.NAMES).title()}",
        "rows": rows,
        "arrows": arrows,
        "down": len(rows) > 3 or rng.random() < 0.5,
    }


def draw(rng: random.Random, record: dict, split: str) -> Sheet:
    """Boxes row by row, downwards or to the right; of two arrows from one box, the first says Yes, the second No."""
    sheet = sheets.new_sheet(rng, split, 900, 900)
    rows, font, radius = record["rows"], sheet.body(rng.randint(13, 17)), rng.choice((0, 6, 18))
    across, along = max(map(len, rows)), len(rows)
    wide, high = max(font.getlength(label) for row in rows for label in row) + 24, font.size * 2.4
    if record["down"]:
        width, height = across * (wide + rng.randint(20, 40)), along * (high + rng.randint(36, 56))
    else:
        width, height = along * (wide + rng.randint(50, 70)), across * (high + rng.randint(24, 48))
    colour = COLOURS[rng.choice(list(COLOURS))]
    fill = tuple((2 * a + b) // 3 for a, b in zip(sheet.paper, colour, strict=True))
    top, centres = 50, {}
    sheet.text(12, 12, record["title"], sheet.heading(20), name="title")
    for i, row in enumerate(rows):
        for j, label in enumerate(row):
            place = (j + 0.5) / len(row), (i + 0.5) / along
            x, y = place if record["down"] else reversed(place)
            x, y = x * width, top + y * height
            box = (x - wide / 2, y - high / 2, x + wide / 2, y + high / 2)
            sheet.draw.rounded_rectangle(box, radius, fill, sheet.ink)
            sheet.text(x, y, label, font, "mm")
            sheet.remember(label, box)
            centres[label] = x, y
    half = (0, high / 2) if record["down"] else (wide / 2, 0)
    for start, end in record["arrows"]:
        line = np.add(centres[start], half), np.subtract(centres[end], half)
        draw_arrow(sheet, *line, condition(record, start, end), font)
    sheet.crop(max(width, 260), top + height)
    return sheet


def draw_arrow(sheet: Sheet, start: np.ndarray, end: np.ndarray, label: str, font) -> None:
    direction = (end - start) / np.hypot(*(end - start))
    side = np.array([-direction[1], direction[0]])
    base = end - 9 * direction
    sheet.draw.line((*start, *base), sheet.ink, 2)
    sheet.draw.polygon([tuple(end), tuple(base + 5 * side), tuple(base - 5 * side)], sheet.ink)
    if label:
        sheet.text(*(start + end) / 2, label, font, "mm", clear=True)


def followers(record: dict, label: str) -> list[str]:
    return [end for start, end in record["arrows"] if start == label]


def condition(record: dict, start: str, end: str) -> str:
    """What stands on an arrow."""
    ends = followers(record, start)
    return ("Yes", "No")[ends.index(end)] if len(ends) == 2 else ""


def questions(rng: random.Random, record: dict) -> sheets.Questions:
    rows, arrows = record["rows"], record["arrows"]
    boxes = [label for row in rows for label in row]
    asked = [
        ("What is the title of the diagram?", record["title"]),
        ("How many boxes are there?|How many boxes does the diagram have?", str(len(boxes))),
        ("Which box comes first?|With which box does it begin?", boxes[0]),
        ("How many arrows are there?", str(len(arrows))),
    ]
    if len(rows[-1]) == 1:
        asked.append(("Which box comes last?|With which box does it end?", boxes[-1]))
    for label in rng.sample(boxes, 3):
        after, before = followers(record, label), [start for start, end in arrows if end == label]
        if len(after) == 1:
            asked.append((f'Which box follows "{label}"?|What comes after "{label}"?', after[0]))
        elif after:
            asked.append((f'Which boxes follow "{label}"?|Where do the arrows from "{label}" lead?', ", ".join(after)))
        if len(before) == 1:
            asked.append((f'Which box comes before "{label}"?|From where does an arrow lead to "{label}"?', before[0]))
        if len(after) == 2:
            end = rng.choice(after)
            asked.append((f'What comes after "{label}" if the answer is {condition(record, label, end).lower()}?', end))
    start, end = rng.sample(boxes, 2) if rng.random() < 0.5 else rng.choice(arrows)
    there = "Yes." if [start, end] in arrows else "No."
    return [*asked, (f'Does an arrow lead from "{start}" to "{end}"?', there)]
