"""Letters of a record: invitations, reminders, orders, complaints (a kind of training/synthesis/documents.py)."""

import random
from datetime import timedelta

from training.synthesis import sheets, world
from training.synthesis.sheets import Sheet

SURNAMES = world.PEOPLE[world.PEOPLE.index("farmer") :]
SHOPS = [place for place, *_ in world.PLACE_HOURS]

# Kind of letter: its subject, its body, and questions with the slot that answers each.
LETTERS = {
    "invitation": (
        "Invitation to the {event}",
        "We would like to invite you to the {event} of our {place}. It takes place on {weekday}, {later}, and begins at "
        "{time}. Please bring your {thing} along. Tell us soon if you can come.",
        {"When does the event begin?|At what time does it begin?": "time", "On which date is the event?": "later",
         "What should be brought along?": "thing", "On which day of the week is the event?": "weekday"},
    ),
    "reminder": (
        "Invoice {number}",
        "Our invoice {number} of {earlier} has not been paid yet. You bought a {thing} from us for {money} coins. Please pay "
        "by {day} of next week. If you have paid already, please forget this letter.",
        {"How much is to be paid?|What is the amount of the invoice?": "money", "What was bought?": "thing",
         "What is the number of the invoice?": "number", "On which date was the invoice written?": "earlier",
         "By which day of next week must it be paid?": "day"},
    ),
    "order": (
        "Our order",
        "We would like to order {count} pieces of the article {thing}, number {number} in your catalogue, at {money} coins "
        "each. Please send them to our {place} by {later}. Call us on {day} if that will not do.",
        {"How many pieces are ordered?": "count", "Which article is ordered?": "thing",
         "What does one piece cost?|What is the price of one piece?": "money",
         "By which date should the goods be sent?": "later", "Where should the goods be sent?": "place"},
    ),
    "complaint": (
        "The broken {thing}",
        "The {thing} that I bought in your {place} on {earlier} is broken. It cost {money} coins. I would like to have my "
        "money back, or a new one. You can reach me every {day} after {time}.",
        {"What is broken?|What is the complaint about?": "thing", "When was it bought?": "earlier",
         "How much did it cost?": "money", "After which time can the sender be reached?": "time",
         "Where was it bought?": "place"},
    ),
}  # fmt: skip


def new_record(rng: random.Random) -> dict:
    day = sheets.random_day(rng)
    later = day + timedelta(rng.randint(5, 120))
    slots = {
        "event": rng.choice(("summer party", "winter market", "evening concert", "open day", "garden fair")),
        "place": rng.choice(SHOPS),
        "day": rng.choice(sheets.DAYS),
        "earlier": sheets.write_date(day - timedelta(rng.randint(5, 120))),
        "later": sheets.write_date(later),
        "weekday": sheets.DAYS[later.weekday()],
        "time": sheets.random_time(rng),
        "thing": rng.choice(world.OBJECTS),
        "number": str(rng.randint(1000, 99999)),
        "money": sheets.amount(rng.randint(100, 99999)),
        "count": str(rng.randint(2, 99)),
    }
    kind = rng.choice(list(LETTERS))
    used = {slot: value for slot, value in slots.items() if f"{{{slot}}}" in LETTERS[kind][0] + LETTERS[kind][1]}
    names = zip(rng.sample(world.NAMES, 2), rng.sample(SURNAMES, 2), strict=True)
    people = [f"{first.title()} {last.title()}" for first, last in names]
    places = [f"{rng.randint(10000, 99999)} {town.title()}" for town in rng.sample(world.TOWNS, 2)]
    parties = dict(zip(("sender", "recipient", "from", "to"), people + places, strict=True))
    return {"type": kind, "date": sheets.write_date(day)} | parties | used


def draw(rng: random.Random, record: dict, split: str) -> Sheet:
    """Sender, recipient, date, subject, body and name, each below the other."""
    subject, body, _ = LETTERS[record["type"]]
    sheet = sheets.new_sheet(rng, split, rng.randint(420, 640), 1200, dark=0)
    size, margin = rng.randint(14, 18), rng.randint(24, 48)
    font, line, right = sheet.body(size), size * rng.uniform(1.3, 1.6), sheet.width - margin
    y = margin
    for key in ("sender", "from"):
        sheet.text(right, y, record[key], font, "ra", name=key)
        y += line
    for key in ("recipient", "to"):
        sheet.text(margin, y, record[key], font, name=key)
        y += line
    sheet.text(right, y + line / 2, record["date"], font, "ra", name="date")
    y += 2.5 * line
    sheet.text(margin, y, subject.format(**record), sheet.heading(size + 2), name="subject")
    y += 2 * line
    for text in (f"Dear {record['recipient']},", None, *wrap(font, body.format(**record), right - margin), None,
                 "Yours", record["sender"]):  # fmt: skip
        if text:
            sheet.text(margin, y, text, font)
        y += line if text else line / 2
    sheet.crop(sheet.width, y + margin)
    return sheet


def wrap(font, text: str, width: float) -> list[str]:
    """The words in lines of at most `width` pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def questions(rng: random.Random, record: dict) -> sheets.Questions:
    subject, _, questions = LETTERS[record["type"]]
    return [
        ("Who wrote the letter?|Who is the sender of the letter?|From whom is the letter?", record["sender"]),
        ("Who is the letter to?|Who gets the letter?|Who is the recipient of the letter?", record["recipient"]),
        ("What is the date of the letter?|When was the letter written?", record["date"]),
        ("What is the subject of the letter?|What does the subject line say?", subject.format(**record)),
        ("What is the address of the sender?", record["from"]),
        *((question, record[slot]) for question, slot in questions.items()),
    ]
