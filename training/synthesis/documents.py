"""Documents made up from records, and conversations about them: the paper's double-synthetic data (section II.C).

    python -m training.synthesis.documents --rows 100000 --output data/documents
    python -m training.synthesis.documents --rows 1000 --kinds chart receipt --output data/papers

Charts (bars, lines, pies), letters, receipts, diagrams of boxes and arrows, and screens of programs. Each is drawn from
a small record, and its 2 to 5 questions are answered from that record, so that every answer is exact. `meta` holds the
`record` and `boxes`, where things lie: [left, top, right, bottom] in pixels, y down. Records that `world.split` gives to
the test never occur in training.
"""

import argparse
import functools
import json
import random

from training import shards
from training.synthesis import charts, diagrams, letters, pictures, receipts, screens, turns
from training.synthesis.sheets import Sheet

NAME, LICENSE = "eagle-documents", "apache-2.0"
KINDS = {"chart": charts, "letter": letters, "receipt": receipts, "diagram": diagrams, "screen": screens}


def make(rng: random.Random, kind: str, split: str) -> tuple[Sheet, dict, list[tuple[str, str]]]:
    """A drawn document, its record, and all questions, each in one of its phrasings, that the record answers."""

    def new_record() -> tuple[dict]:  # keys in the order in which `meta` has them, on which the split depends
        return (json.loads(shards.to_json(KINDS[kind].new_record(rng))),)

    (record,) = pictures.drawn(f"document {kind}", split, new_record)
    sheet = KINDS[kind].draw(rng, record, split)
    asked = KINDS[kind].questions(rng, record)
    return sheet, record, [(rng.choice(alternatives.split("|")), answer) for alternatives, answer in asked]


def draw(seed: int, split: str, kinds: tuple[str, ...], index: int) -> dict:
    """The row of that number."""
    rng = random.Random(f"documents/{split}/{seed}/{index}")
    kind = rng.choice(kinds)
    sheet, record, questions = make(rng, kind, split)
    asked = rng.sample(questions, rng.randint(2, 5))
    meta = {"skill": "documents", "split": split, "kind": kind, "record": record, "boxes": sheet.boxes}
    sample = turns.about(("image", pictures.soften(rng, sheet.image)), asked, **meta)
    return shards.encode_row(sample, f"{NAME}/{split}/{seed}/{index}", NAME, LICENSE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shards.add_arguments(parser)
    parser.add_argument("--split", choices=("train", "test"), default="train")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="(default: all)")
    args = parser.parse_args()
    options = {"split": args.split, "kinds": args.kinds}
    draw_row = functools.partial(draw, args.seed, args.split, tuple(args.kinds))
    written = {"source": NAME, "license": LICENSE, "options": options, "labels": ("kind",)}
    shards.write_shards(draw_row, **written, **shards.arguments(args))


if __name__ == "__main__":
    main()
