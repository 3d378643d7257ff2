"""Receipts of a record (a kind of training/synthesis/documents.py)."""

import random

from training.synthesis import sheets, world
from training.synthesis.sheets import Sheet


def new_record(rng: random.Random) -> dict:
    names = rng.sample(world.FOODS + world.OBJECTS, rng.randint(2, 7))
    counts = (1, 1, 1, 2, 3, 4)
    items = [{"name": name.title(), "count": rng.choice(counts), "price": 5 * rng.randint(5, 1200)} for name in names]
    total = sum(item["count"] * item["price"] for item in items)
    cash = rng.random() < 0.6
    note = rng.choice((500, 1000, 2000))
    paid = -(-total // note) * note if cash else total
    return {
        "shop": f"{rng.choice(world.NAMES).title()}'s {rng.choice(('Shop', 'Market', 'Bakery', 'Pharmacy', 'Factory'))}",
        "town": rng.choice(world.TOWNS).title(),
        "date": sheets.write_date(sheets.random_day(rng)),
        "time": sheets.random_time(rng),
        "number": str(rng.randint(100, 9999)),
        "items": items,
        "total": total,
        "paid": paid,
        "change": paid - total,
        "by": "Cash" if cash else "Card",
    }


def draw(rng: random.Random, record: dict, split: str) -> Sheet:
    """A strip: shop, items with their prices, total, what was paid."""
    sheet = sheets.new_sheet(rng, split, rng.randint(260, 360), 900, dark=0)
    size, margin = rng.randint(13, 17), rng.randint(10, 24)
    font, line, middle, right = sheet.body(size), size * rng.uniform(1.35, 1.7), sheet.width / 2, sheet.width - margin
    y = margin
    sheet.text(middle, y, record["shop"], sheet.heading(size + 5), "ma", name="shop")
    y += 1.6 * line
    for text in (record["town"], f"{record['date']}  {record['time']}", f"Receipt {record['number']}"):
        sheet.text(middle, y, text, font, "ma")
        y += line

    def entry(name: str, cents: int, font) -> None:
        sheet.text(margin, y, name, font)
        sheet.text(right, y, sheets.amount(cents), font, "ra", name=name)

    y += line / 2
    for item in record["items"]:
        entry(item["name"], item["count"] * item["price"], font)
        y += line
        if item["count"] > 1:
            sheet.text(margin + 12, y, f"{item['count']} x {sheets.amount(item['price'])}", font)
            y += line
    sheet.draw.line((margin, y, right, y), sheet.ink)
    y += line / 2
    for name, cents, cut in (("Total", record["total"], sheet.heading(size + 2)), (record["by"], record["paid"], font),
                             ("Change", record["change"], font)):  # fmt: skip
        entry(name, cents, cut)
        y += 1.25 * line
    sheet.text(middle, y + line / 2, rng.choice(("Thank you!", "Please come again", "Goodbye")), font, "ma")
    sheet.crop(sheet.width, y + 2 * line + margin)
    return sheet


def questions(rng: random.Random, record: dict) -> sheets.Questions:
    items = record["items"]
    asked = [
        ("What is the total?|How much was it in all?|How much did everything cost?", sheets.amount(record["total"])),
        ("What is the name of the shop?|Where was this bought?", record["shop"]),
        ("On which date was this bought?|What is the date on the receipt?", record["date"]),
        ("At what time was this bought?|What time does the receipt say?", record["time"]),
        ("What is the number of the receipt?", record["number"]),
        ("How many different articles were bought?", str(len(items))),
        ("Was it paid in cash or by card?|How was it paid?", f"{record['by']}."),
        ("How much change was given back?|How much is the change?", sheets.amount(record["change"])),
    ]
    for item in rng.sample(items, 2):
        name = item["name"].lower()
        asked.append((f"How many times was {name} bought?|How many pieces of {name} were bought?", str(item["count"])))
        price = sheets.amount(item["price"])
        asked.append((f"What does one piece of {name} cost?|What is the price of one {name}?", price))
    sums = [item["count"] * item["price"] for item in items]
    if dearest := sheets.only_largest([item["name"] for item in items], sums):
        asked.append(("On which article was most money spent?", dearest))
    return asked
