"""Pages that the kinds of training/synthesis/documents.py draw on, and what they write there: dates, times, amounts."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, timedelta

from PIL import Image, ImageDraw, ImageFont

from training.synthesis import pictures

MONTHS = "January February March April May June July August September October November December".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
Questions = list[tuple[str, str]]  # alternatives of a question, separated by "|", and the answer


@dataclass
class Sheet:
    """A page to draw on: its colours, its two typefaces, and what it remembers of where things lie."""

    width: int
    height: int
    paper: tuple[int, int, int]
    ink: tuple[int, int, int]
    body: Callable[[int], ImageFont.FreeTypeFont]
    heading: Callable[[int], ImageFont.FreeTypeFont]
    boxes: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self):
        self.image = Image.new("RGB", (self.width, self.height), self.paper)
        self.draw = ImageDraw.Draw(self.image)

    @property
    def faint(self) -> tuple[int, ...]:
        """Between paper and ink: for grids and frames."""
        return tuple((3 * a + b) // 4 for a, b in zip(self.paper, self.ink, strict=True))

    def text(self, x: float, y: float, text: str, font, anchor="la", name: str | None = None, clear=False) -> None:
        """Writes at (x, y), an anchor of Pillow's, on cleared paper if so asked; remembers the box under `name`."""
        box = self.draw.textbbox((x, y), text, font, anchor)
        if clear:
            self.draw.rectangle(box, self.paper)
        self.draw.text((x, y), text, self.ink, font, anchor)
        if name:
            self.remember(name, box)

    def crop(self, width: float, height: float) -> None:
        """Cuts off what nothing was drawn on."""
        self.image = self.image.crop((0, 0, round(width), round(height)))

    def remember(self, name: str, box: tuple) -> None:
        self.boxes[name] = [round(side) for side in box]


def new_sheet(rng: random.Random, split: str, width: int, height: int, dark: float = 0.2) -> Sheet:
    """A page; a share `dark` of them is light on dark."""
    is_dark = rng.random() < dark
    paper = tuple(rng.randint(15, 45) if is_dark else rng.randint(232, 255) for _ in range(3))
    ink = tuple(rng.randint(215, 255) if is_dark else rng.randint(0, 60) for _ in range(3))
    return Sheet(width, height, paper, ink, new_font(rng, split), new_font(rng, split))


def new_font(rng: random.Random, split: str) -> Callable[[int], ImageFont.FreeTypeFont]:
    """A typeface and cut of the split, at any size: the same number always chooses the same."""
    face = rng.random()
    return lambda size: pictures.choose_font(random.Random(face), split, size)[1]


def amount(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02d}"


def random_day(rng: random.Random) -> date:
    return date(1990, 1, 1) + timedelta(rng.randrange(50 * 365))


def write_date(day: date) -> str:
    return f"{day.day} {MONTHS[day.month - 1]} {day.year}"


def random_time(rng: random.Random) -> str:
    return f"{rng.randint(6, 22)}:{rng.choice((0, 15, 20, 30, 40, 45)):02d}"


def only_largest(names: list[str], values: list[float]) -> str | None:
    """The name of the largest value, None where two are equally large."""
    return names[values.index(max(values))] if values.count(max(values)) == 1 else None
