"""Text rendered into pictures, and conversations that read it: the paper's RenderedText (section II.C).

    python -m training.synthesis.rendered_text --rows 100000 --output data/rendered-text
    python -m training.synthesis.rendered_text --rows 100000 --texts wiki.txt --output data/rendered-text-wiki

One to six lines, each in its own typeface, size, colour and rotation, on flat, shaded, striped or grainy grounds. The
answer is what stands there, letter by letter. `meta` holds `lines`, from top to bottom, as {"text", "box"}: the corners
of the text, clockwise from where it begins, in pixels, y down. Words, sentences, codes, prices, dates and times are the
small world's, or lines of a file (UTF-8) are drawn. Typefaces that test pictures alone use, and the combinations of
lines that `world.split` gives to the test, never occur in training.
"""

import argparse
import functools
import hashlib
import math
import random
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from training import shards
from training.synthesis import pictures, sheets, turns, world

NAME, LICENSE = "eagle-rendered-text", "apache-2.0"
READ = ("Read the text.", "What does the picture say?", "What is written here?", "Transcribe the text in this picture.",
        "Please read out what you see.", "Write down all the text, line by line.")  # fmt: skip
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
LONGEST, SMALLEST, LARGEST = 60, 12, 72  # characters of a line; font sizes in pixels
MARGIN = 8


# ------------------------------------------------------------------------------------------------ what to write


def draw_text(rng: random.Random, split: str) -> str:
    """A line of text of the small world."""
    kind = rng.choice(("words", "words", "sentence", "sentence", "code", "price", "date", "time"))
    if kind == "words":
        return pictures.random_case(rng, " ".join(rng.choice(world.WORDS) for _ in range(rng.randint(1, 4))))
    if kind == "sentence":
        return world.written(world.sentence(rng, split))
    if kind == "code":
        return "".join(rng.choice(pictures.CODE_CHARACTERS) for _ in range(rng.randint(4, 10)))
    if kind == "price":
        return rng.choice("$€£") + f"{rng.randint(1, 999)}.{rng.randint(0, 99):02d}"
    if kind == "date":
        return sheets.write_date(sheets.random_day(rng))
    return f"{rng.randint(0, 23)}:{rng.randint(0, 59):02d}"


def draw_lines(rng: random.Random, split: str, texts: tuple[str, ...]) -> tuple[str, ...]:
    """1 to 6 lines of the split, of the small world or of `texts`."""

    def draw_one():
        count = rng.choice((1, 1, 2, 3, 4, 5, 6))
        lines = [rng.choice(texts) if texts else draw_text(rng, split) for _ in range(count)]
        return tuple(textwrap.shorten(line, LONGEST, placeholder="") or line[:LONGEST] for line in lines)

    return pictures.drawn("rendered text", split, draw_one)


# ------------------------------------------------------------------------------------------------ how it looks


def draw_angle(rng: random.Random, lines: tuple[str, ...]) -> float:
    """Degrees counter-clockwise: half the lines are level; alone, a line may lean far or stand upright."""
    if rng.random() < 0.5:
        return 0
    if len(lines) > 1:
        return rng.uniform(-6, 6)
    return rng.choice((rng.uniform(-35, 35), rng.uniform(-12, 12), 90, -90))


def rotated_text(text: str, font, stroke: int, angle: float) -> tuple[Image.Image, np.ndarray]:
    """A mask (mode L) with `text` turned by `angle`, and the corners (4, 2) of its box in it."""
    left, top, right, bottom = font.getbbox(text, stroke_width=stroke)
    width, height = math.ceil(right - left), math.ceil(bottom - top)
    level = Image.new("L", (width + 2, height + 2))
    ImageDraw.Draw(level).text((1 - left, 1 - top), text, fill=255, font=font, stroke_width=stroke)
    mask = level.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    corners = np.array([(-width, -height), (width, -height), (width, height), (-width, height)]) / 2
    turned = corners @ np.array([(cos, -sin), (sin, cos)])  # y points down
    return mask, np.add(turned, (mask.width / 2, mask.height / 2))


def fitting_text(rng: random.Random, text: str, split: str, angle: float, width: int) -> tuple[Image.Image, np.ndarray]:
    """The mask and corners of `text` in a random typeface, as large as drawn or as fits into `width` pixels."""
    size = pictures.random_size(rng, SMALLEST, LARGEST)
    while True:
        _, font = pictures.choose_font(rng, split, size)
        stroke = rng.random() < 0.1 and size >= 24
        mask, corners = rotated_text(text, font, int(stroke), angle)
        if max(mask.size) <= width or size == SMALLEST:
            return mask, corners
        size = max(SMALLEST, round(size * 0.85))


def readable_ink(rng: random.Random, ground: Image.Image) -> tuple[int, int, int]:
    """A colour that stands out from this part of the ground."""
    mean = np.asarray(ground, np.float32).mean((0, 1))
    while True:
        ink = tuple(rng.randrange(256) for _ in range(3))
        if abs(pictures.luminance(mean) - pictures.luminance(ink)) > 0.4:
            return ink


def render(rng: random.Random, lines: tuple[str, ...], split: str) -> tuple[Image.Image, list[dict]]:
    """A picture of the lines, one below the other, and what `meta` says of them."""
    width = rng.randint(200, 640)
    angle = draw_angle(rng, lines)
    texts = [fitting_text(rng, line, split, angle, width - 2 * MARGIN) for line in lines]
    width = max(width, *(mask.width + 2 * MARGIN for mask, _ in texts))  # the smallest size may need more
    gaps = [MARGIN + rng.uniform(0, 24) for _ in texts]
    height = round(sum(mask.height for mask, _ in texts) + sum(gaps) + MARGIN + rng.uniform(0, 40))
    paper, _ = pictures.random_colours(rng)
    image = pictures.background(rng, width, height, paper)
    y, placed = 0, []
    for line, (mask, corners), gap in zip(lines, texts, gaps, strict=True):
        x, y = rng.randint(MARGIN, width - mask.width - MARGIN), round(y + gap)
        box = (x, y, x + mask.width, y + mask.height)
        image.paste(readable_ink(rng, image.crop(box)), box, mask)
        placed.append({"text": line, "box": np.add(corners, (x, y)).round(1).tolist()})
        y += mask.height
    return pictures.soften(rng, image), placed


# ------------------------------------------------------------------------------------------------ rows


def questions(rng: random.Random, lines: tuple[str, ...]) -> list[tuple[str, str]]:
    """Read everything; of several lines, sometimes one of them as well."""
    asked = [(rng.choice(READ), "\n".join(lines))]
    if len(lines) > 1 and rng.random() < 0.5:
        number = rng.randrange(len(lines))
        asked.append((f"What does the {ORDINALS[number]} line say?", lines[number]))
    if len(set(lines)) == len(lines) > 1 and rng.random() < 0.3:
        number = rng.randrange(len(lines) - 1)
        asked.append((f'What stands below "{lines[number]}"?', lines[number + 1]))
    return asked


@functools.lru_cache(maxsize=1)
def read_texts(path: Path | None) -> tuple[str, ...]:
    """The lines of a file that hold anything, their blanks made single."""
    return tuple(" ".join(line.split()) for line in path.open(encoding="utf-8") if line.strip()) if path else ()


def draw(seed: int, split: str, texts: Path | None, index: int) -> dict:
    """The row of that number."""
    rng = random.Random(f"rendered text/{split}/{seed}/{index}")
    lines = draw_lines(rng, split, read_texts(texts))
    image, placed = render(rng, lines, split)
    sample = turns.about(("image", image), questions(rng, lines), skill="rendered_text", split=split, lines=placed)
    return shards.encode_row(sample, f"{NAME}/{split}/{seed}/{index}", NAME, LICENSE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shards.add_arguments(parser)
    parser.add_argument("--split", choices=("train", "test"), default="train")
    parser.add_argument("--texts", type=Path, help="a file to draw lines from, instead of the small world's")
    args = parser.parse_args()
    if args.texts and not args.texts.is_file():
        parser.error(f"--texts: there is no file {args.texts}")
    texts = args.texts and {"file": args.texts.name, "sha256": hashlib.sha256(args.texts.read_bytes()).hexdigest()}
    options = {"split": args.split, "texts": texts}
    draw_row = functools.partial(draw, args.seed, args.split, args.texts)
    shards.write_shards(draw_row, source=NAME, license=LICENSE, options=options, **shards.arguments(args))


if __name__ == "__main__":
    main()
