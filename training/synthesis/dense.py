"""Dense targets: what lies in each patch of a picture and in each frame of a recording.

They stand in for the image-text pairs and the 680,000 hours of speech behind the CLIP and Whisper weights that a
full-size EAGLE starts from: a small tower learns from them in an hour what it would not learn from answers alone.
A target of 0 means "nothing here"; -100 means "not asked".

Per crop: `patch_*` on the 24 x 24 patches of 14 pixels, `token_*` on the 8 rows x 16 columns of cells whose features
the 128 queries of the resampler pool at first. Per 30 s window: `frame_*` on the 1,500 encoder frames of 20 ms,
`token_word` on the 94 stacked tokens of 320 ms.
"""

import math
import random
from dataclasses import replace

import numpy as np
from PIL import Image

from training.synthesis.assistant import request
from training.synthesis.pictures import (
    CHART_LEVELS,
    COLOURS,
    CROP,
    SHAPES,
    Bar,
    Glyph,
    Item,
    Picture,
    chart,
    drawn,
    page,
    random_bars,
    random_case,
    random_code,
    random_kinds,
    random_words,
    scene,
    sign,
    soften,
)
from training.synthesis.voices import SAMPLING_RATE, add_noise, say_varied
from training.synthesis.world import WORDS, fact_question, sentence

PATCH, PATCHES = 14, 24
TOKEN_ROWS, TOKEN_COLUMNS = 8, 16  # cells of 42 x 21 pixels
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
WINDOW_SECONDS, FRAMES, STACK = 30, 1500, 16
TOKENS = -(-FRAMES // STACK)
WORD_SLOTS = 4  # words told apart within one stacked token, by the quarter their middle falls into
PHONEMES = tuple(
    """
    0 3 3: @ @L A: A@ D E I IR N O O: O@ OI S T U U@ V VR Z a aI aI@ aU aa b d dZ e@ eI f g h i i: i@ j k l m n oU o@
    p r s t tS u: v w z ; ?
    """.split()
)
SPOKEN = (*WORDS, "a", "an", "to", "for", "any", "shapes")  # the last few occur in questions and requests only

CLASSES = {
    "patch_character": len(CHARACTERS) + 1, "patch_shape": len(SHAPES) + 1, "patch_colour": len(COLOURS) + 1,
    "patch_level": CHART_LEVELS + 1, "token_character": len(CHARACTERS) + 1, "token_shape": len(SHAPES) + 1,
    "token_colour": len(COLOURS) + 1, "token_level": CHART_LEVELS + 1, "frame_phoneme": len(PHONEMES) + 1,
    "frame_word": len(SPOKEN) + 1, "token_word": len(SPOKEN) + 1,
}  # fmt: skip
SLOTS = {"patch_character": 2, "token_character": 6, "token_word": WORD_SLOTS}  # predictions per position, else one

_CHARACTER = {c: i + 1 for i, c in enumerate(CHARACTERS)}
_SHAPE = {s: i + 1 for i, s in enumerate(SHAPES)}
_COLOUR = {c: i + 1 for i, c in enumerate(COLOURS)}
_PHONEME = {p: i + 1 for i, p in enumerate(PHONEMES)}
_WORD = {w: i + 1 for i, w in enumerate(SPOKEN)}


# ------------------------------------------------------------------------------------------------ pictures


def random_picture(rng: random.Random, difficulty: float) -> Picture:
    """A picture of the training split, from difficulty 0 to 1.

    At 0 all are pages of small text in black and white, whose characters fill about a patch each; large text and
    colours have come in fully at 0.5, signs, scenes and charts make up 70 % at 1.
    """
    kind = rng.choices(("sign", "scene", "chart"), (0.3, 0.3, 0.4))[0]
    if rng.random() > 0.7 * difficulty:
        texts = [random_text(rng) for _ in range(60)]
        return page(rng, texts, vivid=2 * difficulty, largest=round(min(64, 20 + 88 * difficulty)))
    if kind == "sign":
        words = random_words(rng, "train") if rng.random() < 0.5 else (random_code(rng, "train"),)
        return sign(rng, tuple(random_case(rng, word) for word in words), "train")
    if kind == "scene":
        return scene(rng, random_kinds(rng, "train"))
    return chart(rng, random_bars(rng, "train"), "train")


def random_text(rng: random.Random) -> str:
    """A word of the world in any case, or a code, as a stretch of characters to recognise one by one."""
    return random_code(rng, "train") if rng.random() < 0.5 else random_case(rng, rng.choice(WORDS))


def picture_crops(rng: random.Random, picture: Picture) -> list[tuple[Image.Image, dict[str, np.ndarray]]]:
    """The crops that the image processor makes of a picture, each with its targets.

    Three quarters in the "grid" layout (scaled to fit a canvas of whole crops, centred on black), one quarter as the
    stretched overview crop of the "overview" layout.
    """
    picture = replace(picture, image=soften(rng, picture.image))
    canvas = stretched(picture) if rng.random() < 0.25 else tiled(picture)
    columns, rows = (side // CROP for side in canvas.image.size)
    boxes = [(x * CROP, y * CROP, (x + 1) * CROP, (y + 1) * CROP) for y in range(rows) for x in range(columns)]
    return [
        (canvas.image.crop(box), crop_targets(move(canvas, canvas.image, left=-box[0], top=-box[1]))) for box in boxes
    ]


def stretched(picture: Picture) -> Picture:
    """The picture as one crop, its sides scaled each for itself: the overview of the "overview" layout."""
    width, height = picture.image.size
    return move(picture, picture.image.resize((CROP, CROP), Image.Resampling.BICUBIC), CROP / width, CROP / height)


def tiled(picture: Picture) -> Picture:
    """The picture scaled to fit a canvas of whole crops, centred on black: the "grid" layout."""
    width, height = picture.image.size
    columns, rows = -(-width // CROP), -(-height // CROP)
    scale = min(columns * CROP / width, rows * CROP / height)
    size = min(math.ceil(width * scale), columns * CROP), min(math.ceil(height * scale), rows * CROP)
    left, top = (columns * CROP - size[0]) // 2, (rows * CROP - size[1]) // 2
    image = Image.new("RGB", (columns * CROP, rows * CROP))
    image.paste(picture.image.resize(size, Image.Resampling.BICUBIC), (left, top))
    return move(picture, image, size[0] / width, size[1] / height, left, top)


def move(picture: Picture, image: Image.Image, sx: float = 1, sy: float = 1, left: float = 0, top: float = 0) -> Picture:
    """What lies in the picture, scaled by (sx, sy) and moved by (left, top) pixels, now lying in `image`."""

    def box(o: Glyph | Bar) -> dict[str, float]:
        return {
            "left": o.left * sx + left, "right": o.right * sx + left,
            "top": o.top * sy + top, "bottom": o.bottom * sy + top,
        }  # fmt: skip

    def moved(item: Item) -> Item:
        return replace(item, x=item.x * sx + left, y=item.y * sy + top, radius=item.radius * min(sx, sy))

    return Picture(
        image,
        [replace(g, **box(g)) for g in picture.glyphs],
        [moved(item) for item in picture.items],
        [replace(b, **box(b)) for b in picture.bars],
    )


def crop_targets(picture: Picture) -> dict[str, np.ndarray]:
    """Targets of one crop from what lies in it, int64: patch_* (24, 24[, 2]) and token_* (8, 16[, 6])."""
    patch_character = np.zeros((PATCHES, 2 * PATCHES), np.int64)  # halves of patches
    token_character = np.zeros((2 * TOKEN_ROWS, 3 * TOKEN_COLUMNS), np.int64)  # sixths of cells
    for g in picture.glyphs:
        if g.character.lower() not in _CHARACTER:
            continue
        target = _CHARACTER[g.character.lower()]
        fill(patch_character, target, g.left, g.top, g.right, g.bottom)
        put(token_character, target, (g.left + g.right) / 2, (g.top + g.bottom) / 2)
    grid, cells = np.zeros((3, PATCHES, PATCHES), np.int64), np.zeros((3, TOKEN_ROWS, TOKEN_COLUMNS), np.int64)
    for bar in picture.bars:
        fill(grid[2], bar.level, bar.left, bar.top, bar.right, bar.bottom)
        fill(cells[2], bar.level, bar.left, bar.top, bar.right, CROP)  # down to the label under the bar
    for item in picture.items:
        side = 0.8 * item.radius
        for layer, target in enumerate((_SHAPE[item.shape], _COLOUR[item.colour])):
            fill(grid[layer], target, item.x - side, item.y - side, item.x + side, item.y + side)
            put(cells[layer], target, item.x, item.y)
    sixths = token_character.reshape(TOKEN_ROWS, 2, TOKEN_COLUMNS, 3).transpose(0, 2, 1, 3)
    return {
        "patch_character": patch_character.reshape(PATCHES, PATCHES, 2),
        "token_character": sixths.reshape(TOKEN_ROWS, TOKEN_COLUMNS, 6),
        "patch_shape": grid[0], "patch_colour": grid[1], "patch_level": grid[2],
        "token_shape": cells[0], "token_colour": cells[1], "token_level": cells[2],
    }  # fmt: skip


def cell_words(picture: Picture, layout: str) -> list[str]:
    """What a picture of one crop says in each of its 128 cells, in the order of the tokens, as answers spell it.

    The word (after a space, but for the picture's first) whose last character lies in the cell, or the last of a code's
    or number's characters there; once more in the next cell, if nothing ends there, or else "". The language model learns
    to say it at the cell's token, see training/collator.py. Of a picture with several crops nothing is said: "".
    """
    cells = np.full((TOKEN_ROWS, TOKEN_COLUMNS), "", object)
    if max(picture.image.size) <= CROP:
        ends = [g for g in (stretched if layout == "overview" else tiled)(picture).glyphs if g.ends]
        for g in ends:
            put(cells, g.ends.lstrip() if g is ends[0] else g.ends, (g.left + g.right) / 2, (g.top + g.bottom) / 2)
    cells = cells.flatten().tolist()
    return [word or previous for word, previous in zip(cells, ["", *cells[:-1]], strict=True)]


def fill(grid: np.ndarray, target: int, left: float, top: float, right: float, bottom: float) -> None:
    """Sets the cells of `grid`, which is laid over the crop, whose middles lie in the box."""
    down, across = CROP / grid.shape[0], CROP / grid.shape[1]
    rows = slice(max(0, round(top / down)), max(0, round(bottom / down)))
    grid[rows, max(0, round(left / across)) : max(0, round(right / across))] = target


def put(grid: np.ndarray, target: int | str, x: float, y: float) -> None:
    """Sets the one cell of `grid` in which the point lies, if it lies in the crop."""
    if 0 <= x < CROP and 0 <= y < CROP:
        grid[int(y * grid.shape[0] / CROP), int(x * grid.shape[1] / CROP)] = target


# ------------------------------------------------------------------------------------------------ recordings


def random_recording(rng: random.Random) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A 30 s window of training speech (float32, 16 kHz) and its targets.

    Three in four are full of utterances one after another, for the most to learn in a window; the fourth holds one
    utterance and silence, as most questions do.
    """
    waveform = np.zeros(WINDOW_SECONDS * SAMPLING_RATE, np.float32)
    targets = {"frame_phoneme": np.zeros(FRAMES, np.int64), "frame_word": np.zeros(FRAMES, np.int64)}
    targets["token_word"] = np.zeros((TOKENS, WORD_SLOTS), np.int64)
    start = rng.uniform(0, 0.6)
    full = rng.random() < 0.75
    while True:
        utterance, _ = say_varied(rng, random_sentence(rng), "train")
        speech = utterance.waveform * rng.uniform(0.3, 1.5)
        first = int(start * SAMPLING_RATE)
        if first + len(speech) > len(waveform):
            return waveform, targets
        waveform[first : first + len(speech)] = add_noise(rng, speech) if rng.random() < 0.5 else speech.clip(-1, 1)
        mark(targets, utterance, start)
        if not full:
            return waveform, targets
        start += len(speech) / SAMPLING_RATE + rng.uniform(0.1, 0.6)


def random_sentence(rng: random.Random) -> str:
    """A sentence, question or request of the world; every other time loose words, so that each is known by itself."""
    kind = rng.choice(("sentence", "question", "request", "words", "words", "words"))
    if kind == "sentence":
        return sentence(rng, "train")
    if kind == "question":
        return fact_question(rng, "train")[0]
    if kind == "request":
        return request(rng, "train")[0]
    return drawn("sentence", "train", lambda: (" ".join(rng.choice(SPOKEN) for _ in range(rng.randint(3, 10))),))[0]


def mark(targets: dict[str, np.ndarray], utterance, start: float) -> None:
    """Writes what is said when into the targets of a window in which the utterance begins at `start` seconds."""
    rate = FRAMES / WINDOW_SECONDS
    for phoneme, begin, end in utterance.phonemes:
        target = _PHONEME.get(base_phoneme(phoneme), 0)
        targets["frame_phoneme"][round((start + begin) * rate) : round((start + end) * rate)] = target
    for word, begin, end in utterance.words:
        target = _WORD.get(word, -100)
        targets["frame_word"][round((start + begin) * rate) : round((start + end) * rate)] = target
        slot = int((start + (begin + end) / 2) * rate * WORD_SLOTS / STACK)
        targets["token_word"].reshape(-1)[slot] = target


def base_phoneme(name: str) -> str:
    """eSpeak's phoneme without stress marks and variants: "'aI3" and ",aI" are both "aI"."""
    name = name.lstrip("',")
    return name if name in ("3", "0") else name.rstrip("2345#-") or name
