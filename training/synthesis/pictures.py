"""Pictures of the small world: pages of text, signs, bar charts, scenes of shapes, frames of events.

Every picture knows what lies where in it, so that the same drawing serves twice: as a question with an answer
(`samples.py`) and as dense targets for the vision tower (`dense.py`).
"""

import math
import random
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import font_caladea
import font_fredoka_one
import font_hanken_grotesk
import font_manrope
import font_roboto
import font_source_sans_pro
import font_source_serif_pro
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from training.synthesis.world import WORDS
from training.synthesis.world import split as split_of

CROP = 336  # pixels on a side of one crop, as in the image processor

_MATPLOTLIB = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
_FACES = {
    "roboto": (font_roboto.font_directory, "Roboto-Regular.ttf", "Roboto-Bold.ttf", "Roboto-Italic.ttf"),
    "source sans": (font_source_sans_pro.font_directory, "SourceSansPro-Regular.ttf", "SourceSansPro-Bold.ttf"),
    "source serif": (font_source_serif_pro.font_directory, "SourceSerifPro-Regular.ttf", "SourceSerifPro-Bold.ttf"),
    "manrope": (font_manrope.font_directory, "Manrope-Regular.ttf", "Manrope-Bold.ttf"),
    "fredoka": (font_fredoka_one.font_directory, "FredokaOne-Regular.ttf"),
    "dejavu sans": (_MATPLOTLIB, "DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSans-Oblique.ttf"),
    "dejavu serif": (_MATPLOTLIB, "DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf"),
    "dejavu mono": (_MATPLOTLIB, "DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf"),
    "stix": (_MATPLOTLIB, "STIXGeneral.ttf", "STIXGeneralBol.ttf"),
    "hanken": (font_hanken_grotesk.font_directory, "HankenGrotesk-Regular.otf", "HankenGrotesk-Bold.otf"),
    "caladea": (font_caladea.font_directory, "Caladea-Regular.ttf", "Caladea-Bold.ttf"),
}
HELD_OUT_FONTS = ("hanken", "caladea")  # one without serifs, one with; never drawn in training
FONTS = {
    "train": tuple(name for name in _FACES if name not in HELD_OUT_FONTS),
    "test": tuple(_FACES),
}

COLOURS = {
    "red": (214, 40, 40), "green": (44, 150, 60), "blue": (40, 80, 210), "yellow": (245, 210, 30),
    "purple": (130, 50, 160), "orange": (245, 130, 20), "pink": (250, 130, 180), "brown": (120, 72, 30),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star", "cross")
CODE_CHARACTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ0123456789"  # without I and O, which many typefaces draw as 1 and 0
CHART_LEVELS = 20  # bars end on twentieths of the axis


@dataclass
class Glyph:
    """One drawn character and the box it fills (pixels, y down)."""

    character: str
    left: float
    top: float
    right: float
    bottom: float
    ends: str = ""  # what an answer that reads on says here: the word that this character is the last of, or itself


@dataclass
class Item:
    """One drawn shape, its centre and radius in pixels."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float


@dataclass
class Bar:
    """One bar of a chart: its label, its height in twentieths of the axis, its box in pixels."""

    label: str
    level: int
    left: float
    top: float
    right: float
    bottom: float


@dataclass
class Picture:
    image: Image.Image
    glyphs: list[Glyph] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    facts: dict = field(default_factory=dict)  # what else a question may need: font, text, axis maximum


# ------------------------------------------------------------------------------------------------ what to draw


def drawn(kind: str, split: str, draw_one):
    """The first of the values that `draw_one()` draws which `world.split` assigns to `split`."""
    while True:
        values = draw_one()
        if split_of(kind, *values) == split:
            return values


def random_words(rng: random.Random, split: str) -> tuple[str, ...]:
    """1 to 4 words for a sign."""
    return drawn("words", split, lambda: tuple(rng.choice(WORDS) for _ in range(rng.randint(1, 4))))


def random_code(rng: random.Random, split: str) -> str:
    """4 to 8 letters and digits."""
    return drawn("code", split, lambda: ("".join(rng.choice(CODE_CHARACTERS) for _ in range(rng.randint(4, 8))),))[0]


def random_kinds(rng: random.Random, split: str, count: int | None = None) -> tuple[tuple[str, str], ...]:
    """The (shape, colour) kinds of a scene of 1 to 9 things, some of them alike; the combination decides the split."""

    def draw_one():
        few = [(rng.choice(SHAPES), rng.choice(list(COLOURS))) for _ in range(rng.randint(1, 5))]
        return tuple(sorted(rng.choice(few) for _ in range(count or rng.randint(1, 9))))

    return drawn("scene", split, draw_one)


def random_bars(rng: random.Random, split: str) -> tuple[tuple[str, int], ...]:
    """3 to 8 (label, level) bars of a chart, levels in twentieths of the axis."""

    def draw_one():
        return tuple((label, rng.randint(2, CHART_LEVELS)) for label in rng.sample(WORDS, rng.randint(3, 8)))

    return drawn("chart", split, draw_one)


# ------------------------------------------------------------------------------------------------ drawing


@lru_cache(maxsize=2048)
def load_font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


def choose_font(rng: random.Random, split: str, size: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """A typeface of the split and one of its cuts at `size` pixels."""
    name = rng.choice(FONTS[split])
    folder, *files = _FACES[name]
    return name, load_font(str(Path(folder) / rng.choice(files)), size)


def random_size(rng: random.Random, low: int = 14, high: int = 64) -> int:
    """A font size in pixels, log-uniform: as many small texts as large ones."""
    return round(math.exp(rng.uniform(math.log(low), math.log(high))))


def draw_text(draw: ImageDraw.ImageDraw, x: float, y: float, text: str, font, fill) -> list[Glyph]:
    """Draws `text` with its line's top left at (x, y); returns its visible characters."""
    draw.text((x, y), text, font=font, fill=fill)
    ascent, descent = font.getmetrics()
    edges = [x + font.getlength(text[:i]) for i in range(len(text) + 1)]
    ends = [end for piece in text.split(" ") for end in (*word_ends(piece), "")]
    return [
        Glyph(character, edges[i], y, edges[i + 1], y + ascent + descent, ends[i])
        for i, character in enumerate(text)
        if character != " "
    ]


def word_ends(piece: str) -> list[str]:
    """For each character what ends with it: words of the world are read as one, codes and numbers by character."""
    if piece.lower() in WORDS:
        return [""] * (len(piece) - 1) + [f" {piece.lower()}"]
    return list(piece.upper())


def luminance(colour: tuple[int, int, int]) -> float:
    return (0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]) / 255


def random_colours(rng: random.Random) -> tuple[tuple, tuple]:
    """Background and ink, far enough apart to be read; light on dark as often as dark on light."""
    while True:
        paper, ink = (tuple(rng.randrange(256) for _ in range(3)) for _ in range(2))
        if abs(luminance(paper) - luminance(ink)) > 0.4:
            return paper, ink


def background(rng: random.Random, width: int, height: int, paper: tuple) -> Image.Image:
    """A flat, shaded, striped or grainy ground around the colour `paper`."""
    kind = rng.choice(("flat", "flat", "gradient", "stripes", "grain"))
    base = np.broadcast_to(np.array(paper, np.float32), (height, width, 3)).copy()
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    if kind == "gradient":
        angle = rng.uniform(0, 2 * math.pi)
        ramp = (x / width - 0.5) * math.cos(angle) + (y / height - 0.5) * math.sin(angle)
        base += ramp[..., None] * np.array([rng.uniform(-70, 70) for _ in range(3)], np.float32)
    elif kind == "stripes":
        angle, period = rng.uniform(0, math.pi), rng.uniform(12, 80)
        wave = np.sin(2 * math.pi * (x * math.cos(angle) + y * math.sin(angle)) / period)
        base += np.sign(wave)[..., None] * rng.uniform(3, 16)
    elif kind == "grain":
        noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(3, 14), (height, width, 1))
        base += noise.astype(np.float32)
    return Image.fromarray(base.clip(0, 255).astype(np.uint8))


def random_case(rng: random.Random, text: str) -> str:
    return rng.choice((str.lower, str.upper, str.title))(text)


def page(rng: random.Random, texts: list[str], vivid: float, largest: int) -> Picture:
    """A crop full of text lines, 14 to `largest` pixels, in mixed typefaces (training fonts only): a tower's first diet.

    `texts` are cycled through until the page is full. A share `vivid` of the pages is coloured like signs, the others
    are black on white or white on black. A third is drawn at another size and resized to the crop, as the image
    processor will do with pictures that do not measure 336 pixels.
    """
    side = round(CROP / rng.choice((1, 1, rng.uniform(0.7, 2.0))))
    if rng.random() < vivid:
        paper, ink = random_colours(rng)
        picture = Picture(background(rng, side, side, paper))
    else:
        paper, ink = rng.choice((((255,) * 3, (0,) * 3), ((0,) * 3, (255,) * 3)))
        picture = Picture(Image.new("RGB", (side, side), paper))
    draw = ImageDraw.Draw(picture.image)
    y, line = rng.uniform(-4, 10), 0
    while y < side:
        size = random_size(rng, high=largest)
        _, font = choose_font(rng, "train", size)
        x = rng.uniform(-10, 30)
        while x < side:
            text = texts[line % len(texts)]
            picture.glyphs += draw_text(draw, x, y, text, font, ink)
            x += font.getlength(text) + size * rng.uniform(0.25, 0.9)
            line += 1
        y += size * rng.uniform(1.15, 1.5)
    return resize(picture, CROP, CROP)


def resize(picture: Picture, width: int, height: int) -> Picture:
    """The picture scaled to `width` x `height`, glyph boxes with it (pages hold no items or bars)."""
    sx, sy = width / picture.image.width, height / picture.image.height
    if (sx, sy) == (1, 1):
        return picture
    glyphs = [
        replace(g, left=g.left * sx, top=g.top * sy, right=g.right * sx, bottom=g.bottom * sy) for g in picture.glyphs
    ]
    return Picture(picture.image.resize((width, height), Image.Resampling.BICUBIC), glyphs)


def sign_size(rng: random.Random) -> tuple[int, int]:
    """Width and height of a sign: 70 % within one crop, 30 % over two or four."""
    if rng.random() < 0.7:
        return rng.randint(200, CROP), rng.randint(120, CROP)
    wide, high = rng.choice(((True, False), (False, True), (True, True)))
    return (
        rng.randint(CROP + 1, 2 * CROP) if wide else rng.randint(200, CROP),
        rng.randint(CROP + 1, 2 * CROP) if high else rng.randint(120, CROP),
    )


def sign(rng: random.Random, words: tuple[str, ...], split: str) -> Picture:
    """The words, in reading order on one or several lines, somewhere on a varied ground.

    Font sizes are 14 to 64 pixels, smaller than drawn by chance where the words would not fit.
    """
    width, height = sign_size(rng)
    lines = [" ".join(group) for group in split_lines(rng, words)]
    size = random_size(rng)
    while True:
        font_name, font = choose_font(rng, split, size)
        spacing = rng.uniform(1.15, 1.6) * size
        spare_x = width - 8 - max(font.getlength(line) for line in lines)
        spare_y = height - 8 - spacing * len(lines)
        if spare_x >= 0 and spare_y >= 0:
            break
        size = max(14, round(size * 0.85))
        if size == 14:
            width, height = max(width, 300), max(height, 120)
    paper, ink = random_colours(rng)
    picture = Picture(background(rng, width, height, paper), facts={"font": font_name, "size": size})
    draw = ImageDraw.Draw(picture.image)
    left, top = 4 + rng.uniform(0, spare_x), 4 + rng.uniform(0, spare_y)
    centred = rng.random() < 0.5
    longest = max(font.getlength(line) for line in lines)
    for i, line in enumerate(lines):
        x = left + (longest - font.getlength(line)) / 2 * centred
        picture.glyphs += draw_text(draw, x, top + i * spacing, line, font, ink)
    return picture


def poster(rng: random.Random, texts: list[str], split: str) -> tuple[Picture, list[list[str]]]:
    """As many of the texts as find room in one crop, in lines of one size and typeface; and these lines."""
    width, height, size = rng.randint(220, CROP), rng.randint(160, CROP), random_size(rng, high=rng.choice((20, 48)))
    font_name, font = choose_font(rng, split, size)
    paper, ink = random_colours(rng)
    picture = Picture(background(rng, width, height, paper), facts={"font": font_name, "size": size})
    draw = ImageDraw.Draw(picture.image)
    left, spacing, gap = rng.uniform(4, 20), rng.uniform(1.15, 1.6) * size, rng.uniform(0.3, 0.8) * size
    x, y, lines = left, rng.uniform(2, 20), [[]]
    for text in texts:
        if x > left and (x + font.getlength(text) > width - 4 or rng.random() < 0.1):
            x, y = left, y + spacing
            lines.append([])
        if x + font.getlength(text) > width - 4 or y + spacing > height:
            break
        picture.glyphs += draw_text(draw, x, y, text, font, ink)
        lines[-1].append(text)
        x += font.getlength(text) + gap
    return picture, [line for line in lines if line]


def split_lines(rng: random.Random, words: tuple[str, ...]) -> list[list[str]]:
    """The words cut into consecutive lines, each cut made by the toss of a coin."""
    lines = [[words[0]]]
    for word in words[1:]:
        if rng.random() < 0.5:
            lines.append([])
        lines[-1].append(word)
    return lines


def draw_shape(draw: ImageDraw.ImageDraw, item: Item) -> None:
    x, y, r, fill = item.x, item.y, item.radius, COLOURS[item.colour]
    if item.shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    elif item.shape == "square":
        draw.rectangle((x - 0.85 * r, y - 0.85 * r, x + 0.85 * r, y + 0.85 * r), fill=fill)
    elif item.shape == "triangle":
        draw.polygon([(x, y - r), (x + 0.95 * r, y + 0.75 * r), (x - 0.95 * r, y + 0.75 * r)], fill=fill)
    elif item.shape == "star":
        radii = [r if i % 2 == 0 else 0.42 * r for i in range(10)]
        points = [(q * math.sin(math.pi * i / 5), -q * math.cos(math.pi * i / 5)) for i, q in enumerate(radii)]
        draw.polygon([(x + dx, y + dy) for dx, dy in points], fill=fill)
    elif item.shape == "cross":
        draw.rectangle((x - r, y - 0.33 * r, x + r, y + 0.33 * r), fill=fill)
        draw.rectangle((x - 0.33 * r, y - r, x + 0.33 * r, y + r), fill=fill)
    else:
        raise ValueError(f"unknown shape {item.shape!r}; known: {', '.join(SHAPES)}")


def place_items(rng: random.Random, kinds: tuple[tuple[str, str], ...], width: int, height: int) -> list[Item]:
    """Shapes of the given (shape, colour) kinds at places where none overlaps another."""
    radius_high = 44 if len(kinds) <= 5 else 30
    while True:
        items = []
        for shape, colour in kinds:
            for _ in range(60):
                r = rng.uniform(16, radius_high)
                x, y = rng.uniform(r + 2, width - r - 2), rng.uniform(r + 2, height - r - 2)
                if all(math.hypot(x - o.x, y - o.y) > r + o.radius + 6 for o in items):
                    items.append(Item(shape, colour, x, y, r))
                    break
        if len(items) == len(kinds):
            return items


def pale_ground(rng: random.Random, width: int, height: int) -> Image.Image:
    """A ground on which each of COLOURS stands out: nearly white, grey-dark or nearly black."""
    shade = rng.choice((rng.randint(225, 255), rng.randint(225, 255), rng.randint(0, 35)))
    return background(rng, width, height, tuple(shade + rng.randint(-4, 4) for _ in range(3)))


def scene(rng: random.Random, kinds: tuple[tuple[str, str], ...]) -> Picture:
    """One crop with the given (shape, colour) kinds scattered over it."""
    width, height = rng.randint(260, CROP), rng.randint(260, CROP)
    picture = Picture(pale_ground(rng, width, height), items=place_items(rng, kinds, width, height))
    draw = ImageDraw.Draw(picture.image)
    for item in picture.items:
        draw_shape(draw, item)
    return picture


AXIS_MAXIMA = (20, 40, 60, 100, 200)


def chart(rng: random.Random, bars: tuple[tuple[str, int], ...], split: str) -> Picture:
    """A chart of the (label, level) bars with ticks on its axis and no printed values.

    Levels are twentieths of the axis, which ends at one of AXIS_MAXIMA (facts["maximum"]): every value is whole.
    """
    width, height = rng.randint(320, CROP), rng.randint(300, CROP)
    dark = rng.random() < 0.25
    paper = tuple(rng.randint(10, 40) if dark else rng.randint(228, 255) for _ in range(3))
    ink = tuple(rng.randint(215, 255) if dark else rng.randint(0, 50) for _ in range(3))
    maximum = rng.choice(AXIS_MAXIMA)
    picture = Picture(Image.new("RGB", (width, height), paper), facts={"maximum": maximum})
    draw = ImageDraw.Draw(picture.image)
    left, right = rng.randint(36, 50), width - rng.randint(6, 14)
    top, bottom = rng.randint(26, 40), height - rng.randint(34, 46)
    _, font = choose_font(rng, split, rng.randint(13, 15))
    draw_axis(draw, picture, (left, top, right, bottom), maximum, font, ink)
    if rng.random() < 0.5:
        title = rng.choice(WORDS).title()
        picture.glyphs += draw_text(draw, (width - font.getlength(title)) / 2, 4, title, font, ink)
    slot = (right - left) / len(bars)
    longest = max(font.getlength(label) for label, _ in bars)
    thickness = slot * rng.uniform(0.5, 0.8)
    one_colour = rng.choice(list(COLOURS)) if rng.random() < 0.4 else None
    for i, (label, level) in enumerate(bars):
        middle = left + (i + 0.5) * slot
        bar_top = bottom - (bottom - top) * level / CHART_LEVELS
        bar = Bar(label, level, middle - thickness / 2, bar_top, middle + thickness / 2, bottom)
        draw.rectangle((bar.left, bar.top, bar.right, bar.bottom), fill=COLOURS[one_colour or rng.choice(list(COLOURS))])
        picture.bars.append(bar)
        # Neighbouring labels take turns on two rows where they would run into each other.
        drop = 15 * (i % 2) if slot < 1.15 * longest else 0
        picture.glyphs += draw_text(draw, middle - font.getlength(label) / 2, bottom + 3 + drop, label, font, ink)
    return picture


def draw_axis(draw, picture: Picture, plot: tuple, maximum: int, font, ink) -> None:
    """Axis lines, and five ticks with their numbers, of the plot area (left, top, right, bottom)."""
    left, top, right, bottom = plot
    draw.line((left, top, left, bottom), fill=ink)
    draw.line((left, bottom, right, bottom), fill=ink)
    grid = tuple((3 * a + b) // 4 for a, b in zip(picture.image.getpixel((0, 0)), ink, strict=True))
    for tick in range(5):
        y = bottom - (bottom - top) * tick / 4
        if tick:
            draw.line((left + 1, y, right, y), fill=grid)
        number = str(maximum * tick // 4)
        picture.glyphs += draw_text(draw, left - 5 - font.getlength(number), y - 9, number, font, ink)


def soften(rng: random.Random, image: Image.Image) -> Image.Image:
    """Now and then the blur and grain that a camera or a JPEG file adds."""
    if rng.random() < 0.15:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.8)))
    if rng.random() < 0.15:
        noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(2, 8), (image.height, image.width, 3))
        image = Image.fromarray((np.asarray(image, np.float32) + noise).clip(0, 255).astype(np.uint8))
    return image

