"""Charts of a record: bars, a line or slices of a pie (a kind of training/synthesis/documents.py)."""

import random

from training.synthesis import sheets, world
from training.synthesis.pictures import COLOURS
from training.synthesis.sheets import Sheet


def new_record(rng: random.Random) -> dict:
    """Bars and lines rise by halves of the grid's step, slices are twentieths: values can be read without print."""
    kind, count = rng.choice(("bar", "line", "pie")), rng.randint(3, 7)
    record = {"type": kind, "printed": rng.random() < 0.5}
    if kind == "pie":
        cuts = sorted(rng.sample(range(1, 20), count - 1))
        values = [5 * (b - a) for a, b in zip([0, *cuts], [*cuts, 20], strict=True)]
    else:
        record["step"], record["lines"] = rng.choice((2, 4, 10, 20, 50, 100, 200)), rng.randint(4, 6)
        values = [rng.randint(1, 2 * record["lines"]) * record["step"] // 2 for _ in range(count)]
    labels = [label.title() for label in rng.sample(world.OBJECTS + world.FOODS, count)]
    if kind == "line":
        first = rng.randint(0, 12 - count)
        labels = [month[:3] for month in sheets.MONTHS[first : first + count]]
    colours = rng.sample(list(COLOURS), count) if kind == "pie" or rng.random() < 0.5 else [rng.choice(list(COLOURS))]
    topic = rng.choice(("Sold in", "Made in", "Found in", "Lost in"))
    return record | {
        "title": f"{topic} {rng.choice(world.TOWNS).title()}, {rng.randint(1990, 2039)}",
        "labels": labels,
        "values": values,
        "colours": colours if kind != "line" else colours[:1],
    }


def draw(rng: random.Random, record: dict, split: str) -> Sheet:
    """The title, and below it bars, points or slices; boxes of bars, points, and labels of slices."""
    sheet = sheets.new_sheet(rng, split, rng.randint(380, 640), rng.randint(300, 440))
    font = sheet.body(rng.randint(13, 17))
    sheet.text(sheet.width / 2, 8, record["title"], sheet.heading(rng.randint(16, 20)), "ma", name="title")
    if record["type"] == "pie":
        draw_pie(rng, sheet, record, font)
    else:
        draw_axes(sheet, record, font)
    return sheet


def draw_pie(rng: random.Random, sheet: Sheet, record: dict, font) -> None:
    """The slices clockwise, and a legend beside them."""
    size = min(sheet.height - 60, sheet.width - 200)
    left, top, angle = rng.randint(10, 24), 44, rng.uniform(0, 360)
    line = min(font.size * 1.8, size / len(record["labels"]))
    for i, (label, value, colour) in enumerate(zip(*(record[k] for k in ("labels", "values", "colours")), strict=True)):
        end = angle + 3.6 * value
        sheet.draw.pieslice((left, top, left + size, top + size), angle, end, COLOURS[colour], sheet.paper)
        angle, x, y = end, left + size + 20, top + (i + 0.5) * line
        sheet.draw.rectangle((x, y - 6, x + 12, y + 6), COLOURS[colour])
        sheet.text(x + 20, y, f"{label} {value} %" if record["printed"] else label, font, "lm", name=label)


def draw_axes(sheet: Sheet, record: dict, font) -> None:
    """A grid with its numbers, the bars or the line, labels below, on two rows where they would meet."""
    step, lines, labels = record["step"], record["lines"], record["labels"]
    left, right, top, bottom = 18 + font.getlength(str(step * lines)), sheet.width - 12, 60, sheet.height - 46
    for i in range(lines + 1):
        y = bottom - (bottom - top) * i / lines
        sheet.draw.line((left, y, right, y), sheet.faint if i else sheet.ink)
        sheet.text(left - 6, y, str(step * i), font, "rm")
    slot = (right - left) / len(labels)
    crowded = max(map(font.getlength, labels)) > 0.92 * slot
    points = []
    for i, (label, value) in enumerate(zip(labels, record["values"], strict=True)):
        x, y = left + (i + 0.5) * slot, bottom - (bottom - top) * value / (step * lines)
        points.append((x, y))
        if record["type"] == "bar":
            box = (x - 0.35 * slot, y, x + 0.35 * slot, bottom - 1)
            sheet.draw.rectangle(box, COLOURS[record["colours"][i % len(record["colours"])]])
            sheet.remember(label, box)
        sheet.text(x, bottom + 5 + (font.size + 2) * (crowded and i % 2), label, font, "ma")
    if record["type"] == "line":
        draw_line(sheet, points, labels, COLOURS[record["colours"][0]])
    for (x, y), value in zip(points, record["values"] if record["printed"] else (), strict=False):
        sheet.text(x, y - 7, str(value), font, "mb", clear=True)


def draw_line(sheet: Sheet, points: list[tuple], labels: list[str], colour: tuple) -> None:
    sheet.draw.line(points, colour, 3, "curve")
    for (x, y), label in zip(points, labels, strict=True):
        sheet.draw.ellipse((x - 4, y - 4, x + 4, y + 4), colour)
        sheet.remember(label, (x - 4, y - 4, x + 4, y + 4))


def questions(rng: random.Random, record: dict) -> sheets.Questions:
    labels, values, unit = record["labels"], record["values"], " %" if record["type"] == "pie" else ""
    thing = {"bar": "bar", "line": "point", "pie": "slice"}[record["type"]]
    asked = [
        ("What is the title of the chart?|What is written above the chart?", record["title"]),
        (f"How many {thing}s does the chart have?|How many {thing}s are there?", str(len(labels))),
        ("What kind of chart is this?", f"{record['type']} chart"),
    ]
    if record["printed"] or record["type"] != "pie":
        for label, value in rng.sample(list(zip(labels, values, strict=True)), 3):
            question = f"What is the value of {label}?|How much is {label}?|Which value does {label} have?"
            asked.append((question, f"{value}{unit}"))
        (a, more), (b, less) = sorted(rng.sample(list(zip(labels, values, strict=True)), 2), key=lambda pair: -pair[1])
        asked.append((f"How much is the difference between {a} and {b}?", f"{more - less}{unit}"))
        if not unit and len(labels) <= 4:
            asked.append(("What do all values add up to?|What is the sum of the values?", str(sum(values))))
    for extreme, sign in ((("smallest" if unit else "lowest"), -1), (("largest" if unit else "highest"), 1)):
        if best := sheets.only_largest(labels, [sign * value for value in values]):
            asked.append((f"Which {thing} is the {extreme}?", best))
    if record["type"] == "line":
        i = rng.randrange(len(labels) - 1)
        change = ("fell", "stayed the same", "rose")[(values[i + 1] > values[i]) - (values[i + 1] < values[i]) + 1]
        asked.append((f"Did the value rise or fall from {labels[i]} to {labels[i + 1]}?", f"It {change}."))
    elif len(record["colours"]) > 1:
        i = rng.randrange(len(labels))
        asked.append((f"Which {thing} is {record['colours'][i]}?", labels[i]))
        asked.append((f"Which colour has the {thing} of {labels[i]}?", record["colours"][i]))
    return asked
