"""Screens of a record: a window with tabs, fields, switches and buttons (a kind of training/synthesis/documents.py)."""

import random

from training.synthesis import sheets, world
from training.synthesis.pictures import COLOURS
from training.synthesis.sheets import Sheet

BUTTONS = ("OK", "Cancel", "Save", "Send", "Close", "Back", "Next", "Help", "Delete")
WORDS = [word for word in world.HOUSE + world.TALK if word.title() not in BUTTONS]


def new_record(rng: random.Random) -> dict:
    words = [word.title() for word in rng.sample(WORDS, 12)]
    values = [
        *(rng.choice(names).title() for names in (world.NAMES, world.TOWNS, world.COLOURS)), sheets.random_time(rng),
        sheets.write_date(sheets.random_day(rng)), str(rng.randint(0, 9999)), f"{rng.randint(0, 100)} %",
    ]  # fmt: skip
    fields, switches = rng.randint(1, 4), rng.randint(1, 4)
    tabs = words[:3] if rng.random() < 0.6 else []
    return {
        "title": f"{words[3]} {rng.choice(('settings', 'window', 'page', 'manager'))}",
        "tabs": tabs,
        "open": rng.choice(tabs) if tabs else None,
        "fields": [{"label": words[4 + i], "value": value} for i, value in enumerate(rng.sample(values, fields))],
        "switches": [{"label": words[8 + i], "on": rng.random() < 0.5} for i in range(switches)],
        "buttons": rng.sample(BUTTONS, rng.randint(1, 3)),
    }


def draw(rng: random.Random, record: dict, split: str) -> Sheet:
    """A window: title bar, tabs, fields to fill in, switches, buttons."""
    sheet = sheets.new_sheet(rng, split, rng.randint(340, 560), 700, dark=0.35)
    font, accent, margin = sheet.body(rng.randint(13, 17)), COLOURS[rng.choice(list(COLOURS))], rng.randint(14, 26)
    line, right = font.size * rng.uniform(2.1, 2.5), sheet.width - margin
    sheet.draw.rectangle((0, 0, sheet.width, line), sheet.faint)
    sheet.text(sheet.width / 2, line / 2, record["title"], sheet.heading(font.size + 1), "mm", name="title")
    for i, name in enumerate(("red", "yellow", "green")):
        x = 14 + 16 * i
        sheet.draw.ellipse((x - 5, line / 2 - 5, x + 5, line / 2 + 5), COLOURS[name])
    y = draw_tabs(sheet, record, font, accent, margin, line) if record["tabs"] else 1.4 * line
    split_at = margin + max(font.getlength(part["label"]) for part in record["fields"] + record["switches"]) + 16
    for part in record["fields"]:
        sheet.text(margin, y + line / 2, part["label"], font, "lm")
        box = (split_at, y + 3, right, y + line - 3)
        sheet.draw.rectangle(box, outline=sheet.ink)
        sheet.text(split_at + 8, y + line / 2, part["value"], font, "lm")
        sheet.remember(part["label"], box)
        y += line
    y += line / 4
    for part in record["switches"]:
        sheet.text(margin, y + line / 2, part["label"], font, "lm")
        draw_switch(sheet, part, split_at, y + line / 2, accent)
        y += line
    y += line / 2
    x = right
    for label in reversed(record["buttons"]):
        width = font.getlength(label) + 28
        box = (x - width, y, x, y + line)
        sheet.draw.rounded_rectangle(box, 5, sheet.faint, sheet.ink)
        sheet.text(x - width / 2, y + line / 2, label, font, "mm")
        sheet.remember(label, box)
        x -= width + 10
    sheet.crop(sheet.width, y + line + margin)
    return sheet


def draw_tabs(sheet: Sheet, record: dict, font, accent: tuple, margin: int, line: float) -> float:
    """A row of tabs, the open one underlined; returns where what is below them begins."""
    y, slot = 1.2 * line, (sheet.width - 2 * margin) / len(record["tabs"])
    for i, label in enumerate(record["tabs"]):
        x = margin + i * slot
        sheet.text(x + slot / 2, y + line / 2, label, font, "mm", name=label)
        thickness, colour = (4, accent) if label == record["open"] else (1, sheet.faint)
        sheet.draw.rectangle((x, y + line - thickness, x + slot - 4, y + line), colour)
    return 2.5 * line


def draw_switch(sheet: Sheet, part: dict, x: float, y: float, accent: tuple) -> None:
    """A knob on the right of a coloured track is on, on the left of an empty one off."""
    box = (x, y - 9, x + 34, y + 9)
    sheet.draw.rounded_rectangle(box, 9, accent if part["on"] else None, sheet.ink)
    left = x + 18 if part["on"] else x + 2
    sheet.draw.ellipse((left, y - 7, left + 14, y + 7), sheet.paper if part["on"] else sheet.ink)
    sheet.remember(part["label"], box)


def questions(rng: random.Random, record: dict) -> sheets.Questions:
    buttons, switches = record["buttons"], record["switches"]
    on = [part["label"] for part in switches if part["on"]]
    asked = [
        ("What is the title of the window?|What stands in the title bar?", record["title"]),
        ("How many buttons are there at the bottom?", str(len(buttons))),
        ("What does the button at the bottom right say?|Which button is on the very right?", buttons[-1]),
        ("Which switches are on?|What is switched on?", ", ".join(on) or "None."),
        ("How many switches are off?", str(len(switches) - len(on))),
    ]
    if len(buttons) > 1:
        asked.append(("What does the button on the left say?|Which button is on the very left?", buttons[0]))
    if record["tabs"]:
        asked.append(("Which tab is open?|Which tab is selected?", record["open"]))
    label, is_on = rng.choice([(part["label"], part["on"]) for part in switches])
    asked.append((f"Is {label} switched on?|Is the switch {label} on?", "Yes." if is_on else "No."))
    fields = [(part["label"], part["value"]) for part in record["fields"]]
    return asked + [(f"What is entered as {name}?|What stands in the field {name}?", value) for name, value in fields]
