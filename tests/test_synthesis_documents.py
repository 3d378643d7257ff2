"""Drawn documents and conversations about them: answers agree with records and pixels, splits never meet, models rewrite."""

import copy
import functools
import io
import json
import random
import re
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from training import shards
from training.synthesis import (
    charts,
    diagrams,
    documents,
    interleaved,
    letters,
    pictures,
    real_base,
    receipts,
    rendered_text,
    screens,
    world,
)
from training.synthesis.pictures import COLOURS

ROOT = Path(__file__).resolve().parent.parent
DRAWS = {"rendered text": functools.partial(rendered_text.draw, texts=None), "interleaved": interleaved.draw}
DRAWS |= {kind: functools.partial(documents.draw, kinds=(kind,)) for kind in documents.KINDS}
ORDINALS = "first second third fourth".split()


def meta_of(row: dict) -> dict:
    return json.loads(row["meta"])


def turns_of(row: dict) -> list[tuple[str, str]]:
    """(question, answer), without what is shown."""
    texts = ["".join(part["text"] or "" for part in message["content"]) for message in row["messages"]]
    return list(zip(texts[::2], texts[1::2], strict=True))


def drawn(module, seed: int):
    """A record, the sheet, and its questions in all phrasings."""
    rng = random.Random(seed)
    record = module.new_record(rng)
    sheet = module.draw(rng, record, "train")
    return record, sheet, [(text, answer) for texts, answer in module.questions(rng, record) for text in texts.split("|")]


def answers(questions: list[tuple[str, str]], pattern: str) -> list[tuple[str, ...]]:
    """Of the questions of this form, what stands in the pattern's groups, and the answer."""
    return [(*match.groups(), answer) for text, answer in questions if (match := re.fullmatch(pattern, text))]


# ------------------------------------------------------------------------------------------------ all that is drawn


@pytest.mark.parametrize("name", DRAWS)
def test_a_number_is_a_row(name):
    def draw_all():
        return [DRAWS[name](seed=seed, split="train", index=index) for seed in (1, 2) for index in range(3)]

    rows = draw_all()
    assert rows == draw_all()
    assert len({row["id"] for row in rows}) == len({row["images"][0]["bytes"] for row in rows}) == 6
    for row in rows:
        shards.check_row(row)
        assert all(question.strip() and answer.strip() for question, answer in turns_of(row))


@pytest.mark.parametrize("name", DRAWS)
def test_train_and_test_share_nothing(name):
    def combinations(split):
        metas = [meta_of(DRAWS[name](seed=0, split=split, index=index)) for index in range(20)]
        if name == "rendered text":
            return [("rendered text", *(line["text"] for line in meta["lines"])) for meta in metas]
        shown = [picture for meta in metas for picture in meta.get("pictures", [meta])]
        return [(f"document {picture['kind']}", picture["record"]) for picture in shown if "record" in picture]

    for split in ("train", "test"):
        assert {world.split(*values) for values in combinations(split)} == {split}


@pytest.mark.parametrize("module", [rendered_text, documents, interleaved])
def test_scripts_write_shards(module, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script", "--rows", "3", "--seed", "7", "--output", str(tmp_path / "out")])
    module.main()
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["source"], manifest["license"], manifest["rows"]) == (module.NAME, "apache-2.0", 3)
    assert [row["id"] for row in shards.read_rows(tmp_path / "out")] == [f"{module.NAME}/train/7/{i}" for i in range(3)]


@pytest.fixture(scope="module")
def processor():
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(str(ROOT), trust_remote_code=True)


@pytest.mark.parametrize("name", DRAWS)
def test_rows_reach_the_model(name, processor):
    """The answers of a batch, and nothing else, are its labels."""
    from training.collator import EagleCollator

    rows = [DRAWS[name](seed=5, split="test", index=index) for index in range(2)]
    batch = EagleCollator(processor)(rows)
    for labels, row in zip(batch["labels"], rows, strict=True):
        said = processor.decode(labels[labels >= 0]).removesuffix("<|end|>").split("<|end|>")
        assert said == [answer for _, answer in turns_of(row)]


# ------------------------------------------------------------------------------------------------ rendered text


@pytest.mark.parametrize("angle", [0, 20, -35, 90, -90])
def test_boxes_hold_their_text(angle):
    """All ink lies within the turned box, and reaches its four sides."""
    _, font = pictures.choose_font(random.Random(0), "train", 40)
    mask, corners = rendered_text.rotated_text("Hamburg", font, 0, angle)
    ink = np.argwhere(np.asarray(mask) > 128)[:, ::-1] + 0.5
    start, across, down = corners[0], corners[1] - corners[0], corners[3] - corners[0]
    for axis in (across, down):
        along = (ink - start) @ axis / np.linalg.norm(axis)
        assert -1.5 <= along.min() <= 2.5 and -2.5 <= along.max() - np.linalg.norm(axis) <= 1.5
    assert (corners[1] - corners[0])[0] * np.cos(np.radians(angle)) >= 0  # it begins where reading does
    assert (corners[1] - corners[0])[1] * -np.sin(np.radians(angle)) >= 0


def test_lines_stand_below_each_other_and_out_from_the_ground():
    for index in range(20):
        row = DRAWS["rendered text"](seed=2, split="train", index=index)
        grey = Image.open(io.BytesIO(row["images"][0]["bytes"])).convert("L")
        lines, bottom = meta_of(row)["lines"], 0
        assert turns_of(row)[0][1] == "\n".join(line["text"] for line in lines)
        for line in lines:
            x, y = np.array(line["box"]).T
            assert x.min() >= 0 and y.min() >= bottom and x.max() <= grey.width and y.max() <= grey.height
            bottom = y.max()
            region = np.asarray(grey.crop((x.min(), y.min(), x.max(), y.max())), np.float32)
            assert np.ptp(region) > 0.3 * 255


def test_lines_of_a_file(tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("Straße nach Žilina\n\n" + "sehr " * 40 + "lang\n", encoding="utf-8")
    rows = [rendered_text.draw(0, "train", texts, index) for index in range(12)]
    written = {line["text"] for row in rows for line in meta_of(row)["lines"]}
    assert written == {"Straße nach Žilina", ("sehr " * 12).strip()}


# ------------------------------------------------------------------------------------------------ kinds of documents


def grid_rows(sheet) -> list[int]:
    """Heights at which the chart's lines meet its right side, from the top."""
    column = np.asarray(sheet.image)[:, sheet.width - 13].astype(int)
    return [int(y) for y in np.flatnonzero(np.abs(column - sheet.paper).sum(1) > 20)]


def test_bars_and_lines_are_as_high_as_their_values():
    checked = 0
    for seed in range(40):
        record, sheet, _ = drawn(charts, seed)
        if record["type"] == "pie":
            continue
        rows = grid_rows(sheet)
        assert len(rows) == record["lines"] + 1
        a_step = (rows[-1] - rows[0]) / record["lines"]
        pixels = np.asarray(sheet.image).astype(int)
        for i, (label, value) in enumerate(zip(record["labels"], record["values"], strict=True)):
            left, top, right, bottom = sheet.boxes[label]
            column = pixels[:, (left + right) // 2]
            filled = np.flatnonzero((column == COLOURS[record["colours"][i % len(record["colours"])]]).all(1))
            at = filled.min() if record["type"] == "bar" else (top + bottom) / 2
            assert abs((rows[-1] - at) / a_step * record["step"] - value) < 2.5 / a_step * record["step"]
            assert filled.size
            checked += 1
    assert checked > 50


def test_slices_are_as_large_as_their_shares():
    checked = 0
    for seed in range(40):
        record, sheet, _ = drawn(charts, seed)
        if record["type"] != "pie":
            continue
        diameter = min(sheet.height - 60, sheet.width - 200)
        pixels = np.asarray(sheet.image)[:, : diameter + 30]  # without the legend
        counts = np.array([(pixels == COLOURS[colour]).all(-1).sum() for colour in record["colours"]])
        assert np.abs(100 * counts / (np.pi / 4 * diameter**2) - record["values"]).max() < 1.5
        checked += 1
    assert checked > 5


def test_questions_about_charts():
    for seed in range(60):
        record, _, questions = drawn(charts, seed)
        values = dict(zip(record["labels"], record["values"], strict=True))
        unit = " %" if record["type"] == "pie" else ""
        assert not unit or sum(values.values()) == 100
        for label, answer in answers(questions, r"What is the value of (\w+)\?"):
            assert answer == f"{values[label]}{unit}" and (record["printed"] or not unit)
        for a, b, answer in answers(questions, r"How much is the difference between (\w+) and (\w+)\?"):
            assert answer == f"{abs(values[a] - values[b])}{unit}"
        for word, answer in answers(questions, r"Which \w+ is the (\w+)\?"):
            best = (max if word in ("highest", "largest") else min)(values.values())
            assert [label for label, value in values.items() if value == best] == [answer]
        for (answer,) in answers(questions, r"What do all values add up to\?"):
            assert int(answer) == sum(values.values())
        for a, b, answer in answers(questions, r"Did the value rise or fall from (\w+) to (\w+)\?"):
            assert ("rose" in answer, "fell" in answer) == (values[b] > values[a], values[b] < values[a])
        for colour, answer in answers(questions, r"Which \w+ is (red|green|blue|yellow|purple|orange|pink|brown)\?"):
            assert record["labels"][record["colours"].index(colour)] == answer


def test_questions_about_letters():
    for seed in range(60):
        record, sheet, questions = drawn(letters, seed)
        subject, body, _ = letters.LETTERS[record["type"]]
        text = "\n".join([*record.values(), subject.format(**record), body.format(**record)])
        assert all(answer in text for _, answer in questions)
        assert set(answers(questions, r"Who (?:wrote the letter|gets the letter)\?")) == {(record["sender"],), (record["recipient"],)}
        sent = datetime.strptime(record["date"], "%d %B %Y")
        if "later" in record:
            assert datetime.strptime(record["later"], "%d %B %Y") > sent
        if "weekday" in record:
            assert datetime.strptime(record["later"], "%d %B %Y").strftime("%A") == record["weekday"]
        if "earlier" in record:
            assert datetime.strptime(record["earlier"], "%d %B %Y") < sent
        assert all(written_in(sheet, box) for box in sheet.boxes.values())


def written_in(sheet, box: list[int]) -> bool:
    """Whether there is ink in the box, and the box within the picture."""
    inside = box[0] >= 0 and box[1] >= 0 and box[2] <= sheet.image.width and box[3] <= sheet.image.height
    return inside and (np.asarray(sheet.image.crop(box)) != sheet.paper).any()


def test_questions_about_receipts():
    def cents(text):
        return round(100 * float(text))

    for seed in range(60):
        record, sheet, questions = drawn(receipts, seed)
        items = {item["name"].lower(): item for item in record["items"]}
        sums = {name: item["count"] * item["price"] for name, item in items.items()}
        ((total,),) = answers(questions, r"What is the total\?")
        ((change,),) = answers(questions, r"How much is the change\?")
        assert cents(total) == sum(sums.values()) and cents(change) == record["paid"] - cents(total) >= 0
        for name, answer in answers(questions, r"How many times was (\w+) bought\?"):
            assert int(answer) == items[name]["count"]
        for name, answer in answers(questions, r"What does one piece of (\w+) cost\?"):
            assert cents(answer) == items[name]["price"]
        for (name,) in answers(questions, r"On which article was most money spent\?"):
            assert [other for other in sums if sums[other] == max(sums.values())] == [name.lower()]
        assert answers(questions, r"How many different articles were bought\?") == [(str(len(items)),)]
        assert all(written_in(sheet, box) for box in sheet.boxes.values())


def test_questions_about_diagrams():
    for seed in range(60):
        record, _, questions = drawn(diagrams, seed)
        after = {label: [b for a, b in record["arrows"] if a == label] for row in record["rows"] for label in row}
        before = {label: [a for a, b in record["arrows"] if b == label] for label in after}
        assert [label for label in after if not before[label]] == record["rows"][0]
        assert [label for label in after if not after[label]] == record["rows"][-1]
        for label, answer in answers(questions, r'Which box(?:es)? follows? "(.+)"\?'):
            assert answer.split(", ") == after[label]
        for label, answer in answers(questions, r'Which box comes before "(.+)"\?'):
            assert [answer] == before[label]
        for label, word, answer in answers(questions, r'What comes after "(.+)" if the answer is (yes|no)\?'):
            assert answer == after[label][word == "no"] and len(after[label]) == 2
        for a, b, answer in answers(questions, r'Does an arrow lead from "(.+)" to "(.+)"\?'):
            assert answer == ("Yes." if b in after[a] else "No.")
        assert answers(questions, r"How many boxes are there\?") == [(str(len(after)),)]


def test_arrows_end_at_their_boxes():
    """There is a head before each box but the first, and none before that."""
    for seed in range(20):
        record, sheet, _ = drawn(diagrams, seed)
        for row in record["rows"]:
            for label in row:
                left, top, right, bottom = sheet.boxes[label]
                x, y = (left + right) // 2, (top + bottom) // 2
                box = (x - 10, top - 8, x + 10, top - 1) if record["down"] else (left - 8, y - 10, left - 1, y + 10)
                before = np.asarray(sheet.image.crop(box))
                assert (before == sheet.ink).all(-1).any() == (label not in record["rows"][0])


def test_questions_about_screens():
    for seed in range(60):
        record, sheet, questions = drawn(screens, seed)
        values = {part["label"]: part["value"] for part in record["fields"]}
        on = {part["label"]: part["on"] for part in record["switches"]}
        for label, answer in answers(questions, r"What is entered as (\w+)\?"):
            assert answer == values[label]
        for label, answer in answers(questions, r"Is (\w+) switched on\?"):
            assert answer == ("Yes." if on[label] else "No.")
        ((shown,),) = answers(questions, r"Which switches are on\?")
        assert shown == (", ".join(label for label in on if on[label]) or "None.")
        for label, is_on in on.items():  # the knob is at the right, over a coloured track, or at the left
            left, top, _, bottom = sheet.boxes[label]
            assert (sheet.image.getpixel((left + 9, (top + bottom) // 2)) in COLOURS.values()) == is_on
        buttons = sorted(record["buttons"], key=lambda label: sheet.boxes[label][0])
        assert answers(questions, r"Which button is on the very right\?") == [(buttons[-1],)]
        if record["tabs"]:
            _, _, _, bottom = sheet.boxes[record["open"]]
            x = sum(sheet.boxes[record["open"]][::2]) // 2
            below = [sheet.image.getpixel((x, y)) for y in range(bottom, bottom + 20)]
            assert any(colour in COLOURS.values() for colour in below)


# ------------------------------------------------------------------------------------------------ interleaved


def test_questions_are_about_the_right_picture():
    signs, counts = 0, 0
    for index in range(80):
        row = interleaved.draw(4, "train", index)
        meta, asked = meta_of(row), turns_of(row)
        shown = meta["pictures"]
        assert len(row["images"]) == len(shown) and len(asked) == len(meta["asked"])
        for (question, answer), number in zip(asked, meta["asked"], strict=True):
            picture = {} if number is None else shown[number]
            if named := re.search(r"In the (?:(\w+) picture|picture under \"(\w+)\"): ", question):
                assert named[1] in (None, "last", ORDINALS[number]) and named[2] in (None, picture["heading"])
            if question.endswith("What does the sign say?"):
                assert answer == picture["text"]
                signs += 1
            if question.endswith("How many shapes are there?"):
                assert int(answer) == len(picture["items"])
                counts += 1
            if match := re.search(r"Which sentence stands below the (\w+) picture\?$", question):
                headings_and_sentences = asked[0][0].split("\n\n")
                assert headings_and_sentences[2 * ORDINALS.index(match[1]) + 1] == answer
    assert signs > 10 and counts > 10


def test_pictures_stand_in_order():
    """A picture of shapes has the colours of the shapes that its place in `meta` says, and no others."""
    checked = 0
    for index in range(30):
        row = interleaved.draw(4, "train", index)
        for file, picture in zip(row["images"], meta_of(row)["pictures"], strict=True):
            if "items" in picture:
                pixels = np.asarray(Image.open(io.BytesIO(file["bytes"])))
                seen = {name for name, rgb in COLOURS.items() if (pixels == rgb).all(-1).sum() > 20}
                assert seen == {colour for colour, _ in picture["items"]}
                checked += 1
    assert checked > 5


# ------------------------------------------------------------------------------------------------ real base


LINES = ["Harbour report", "Author: Clara Sailor", "Date: 3 May 2021",
         "The sailor from Norvale brought nine wooden boxes into the harbour today."]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """Two pages with text, one without, a damaged file, pictures with and without words, two conversations."""
    from matplotlib.backends.backend_pdf import PdfPages
    from matplotlib.figure import Figure

    with PdfPages(tmp_path / "report.pdf") as pdf:
        for lines in (LINES, LINES[::-1], []):
            figure = Figure((6, 8))
            for i, line in enumerate(lines):
                figure.text(0.1, 0.9 - 0.08 * i, line)
            pdf.savefig(figure)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "damaged.pdf").write_bytes((tmp_path / "report.pdf").read_bytes()[:200])
    for name, colour in (("captioned", "red"), ("asked", "blue"), ("chart", "white"), ("silent", "black")):
        Image.new("RGB", (64, 48), colour).save(tmp_path / f"{name}.png")
    (tmp_path / "captioned.txt").write_text("A red wall.\n")
    (tmp_path / "asked.json").write_text('{"turns": [{"question": "Which colour?", "answer": "Blue."}]}')
    (tmp_path / "chart.csv").write_text("thing,number\nLamp,12\nSofa,7.5\nHat,9\n")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    spoken = [{"role": "user", "content": "Where is the lamp?"}, {"role": "assistant", "content": "In the bedroom."},
              {"role": "user", "content": "And 4711?"}, {"role": "assistant", "content": "Nowhere."}]  # fmt: skip
    silent = [{"role": "user", "content": "4711"}, {"role": "assistant", "content": "Yes."}]
    lines = [json.dumps({"messages": messages}) for messages in (spoken, silent)]
    (tmp_path / "talks.jsonl").write_text("\n".join(lines))
    return tmp_path


def write_real_base(monkeypatch, folder: Path, output: Path, *more: str) -> tuple[dict, dict[str, dict]]:
    """The manifest, and the rows by file and page."""
    arguments = ["--folder", folder, "--source", "mine", "--license", "cc-by-4.0", "--output", output, *more]
    monkeypatch.setattr(sys, "argv", ["real_base", *map(str, arguments)])
    real_base.main()
    rows = {row["id"].removeprefix("mine/0/"): row for row in shards.read_rows(output)}
    return json.loads((output / "manifest.json").read_text()), rows


def test_real_files_become_conversations(folder, tmp_path_factory, monkeypatch, capsys):
    manifest, rows = write_real_base(monkeypatch, folder, tmp_path_factory.mktemp("out") / "rows")
    assert sorted(rows) == ["asked.png/0", "captioned.png/0", "chart.png/0", "report.pdf/0", "report.pdf/1", "talks.jsonl/0"]
    assert (manifest["rows"], manifest["left_out"]) == (6, 4) and manifest["options"]["damaged"] == ["deep/damaged.pdf"]
    assert manifest["labels"] == {"kind": {"page": 2, "picture": 3, "speech": 1}}
    assert "damaged.pdf is no PDF" in (said := capsys.readouterr().err) and "broken.png" in said
    for row in rows.values():
        assert (row["source"], row["license"]) == ("mine", "cc-by-4.0")
    assert turns_of(rows["asked.png/0"]) == [("Which colour?", "Blue.")]
    assert turns_of(rows["captioned.png/0"])[0][1] == "A red wall."
    assert rows["captioned.png/0"]["images"][0]["bytes"] == (folder / "captioned.png").read_bytes()
    chart = dict(turns_of(rows["chart.png/0"]))
    assert chart["What is the value of Sofa?"] == "7.5"
    assert (chart["What has the highest value?"], chart["What has the lowest value?"]) == ("Lamp", "Sofa")


def test_answers_are_what_the_page_says(folder):
    asked = {}
    for seed in range(12):  # each asks some of the questions
        row = real_base.draw(str(folder), "mine", "mit", None, None, seed, page_number(folder))
        asked |= dict(turns_of(row))
        image = Image.open(io.BytesIO(row["images"][0]["bytes"]))
        assert max(image.size) == real_base.SIDE and np.ptp(np.asarray(image.convert("L"))) > 200
    assert asked["What is the first line of the page?"] == LINES[0]
    assert asked['What stands after "Author:"?'] == "Clara Sailor"
    assert asked["Read the page."] == "\n".join(LINES)
    start = "The sailor from Norvale brought"
    assert asked[f'How does the sentence that begins with "{start}" go on?'] == LINES[3].removeprefix(start).strip()


def page_number(folder: Path) -> int:
    return [item[:2] for item in real_base.find_items(str(folder))[0]].index(("page", str(folder / "report.pdf")))


def test_conversations_are_spoken(folder):
    items = real_base.find_items(str(folder))[0]
    index = items.index(("speech", str(folder / "talks.jsonl"), 0))
    rows = [real_base.draw(str(folder), "mine", "mit", None, None, seed, index) for seed in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2]
    row = rows[0]
    assert [[part["type"] for part in message["content"]] for message in row["messages"]] == [["audio"], ["text"]] * 2
    assert meta_of(row)["spoken"] == ["Where is the lamp?", "And 4711?"]
    seconds = [soundfile.info(io.BytesIO(audio["bytes"])).duration for audio in row["audios"]]
    assert len(seconds) == 2 and all(0.5 < second < 4 for second in seconds)
    assert real_base.draw(str(folder), "mine", "mit", None, None, 0, index + 1) is None  # nothing but a number


def test_conversations_of_shards_keep_their_pictures(tmp_path):
    written = {"source": "test", "license": "mit", "seed": 0, "options": {}, "processes": 1}
    (old,) = rows = [interleaved.draw(2, "train", 0)]
    shards.write_shards(functools.partial(list.__getitem__, rows), 1, tmp_path / "rows", **written)
    new = real_base.draw(str(tmp_path), "mine", "mit", None, None, 0, 0)
    shards.check_row(new)
    assert new["images"] == old["images"] and len(new["audios"]) == len(meta_of(new)["spoken"]) >= 4
    for before, after in zip(old["messages"], new["messages"], strict=True):
        kinds = ["audio" if part["text"] and before["role"] == "user" else part["type"] for part in before["content"]]
        assert [part["type"] for part in after["content"]] == kinds


def beep(text: str, seed: int) -> tuple[np.ndarray, int]:
    """An engine of one's own: a tone of a second at 8 kHz."""
    return np.sin(np.arange(8000) * (seed % 7 + 1) / 10), 8000


def test_speech_of_an_engine_of_ones_own(folder):
    index = real_base.find_items(str(folder))[0].index(("speech", str(folder / "talks.jsonl"), 0))
    row = real_base.draw(str(folder), "mine", "mit", None, f"{__name__}:beep", 0, index)
    for audio in row["audios"]:
        info = soundfile.info(io.BytesIO(audio["bytes"]))
        assert (info.samplerate, round(info.duration, 2)) == (16_000, 1)


def test_files_beside_pictures_must_be_of_their_form(folder):
    for name, text, message in (
        ("asked.json", '{"captoin": "x"}', "must hold"),
        ("chart.csv", "thing,number\nLamp,12,3\n", "lines of label, value"),
    ):
        (folder / name).write_text(text)
        index = real_base.find_items(str(folder))[0].index(("picture", str(folder / name.split(".")[0]) + ".png", 0))
        with pytest.raises(ValueError, match=message) as failure:
            real_base.draw(str(folder), "mine", "mit", None, None, 0, index)
        assert name.split(".")[0] in failure.value.__notes__[0]


@pytest.mark.slow
def test_a_model_asks_and_answers(folder):
    """The checkpoint's questions are poor; that they follow the others, and come again with the same seed, is not."""
    index = page_number(folder)
    without = real_base.draw(str(folder), "mine", "mit", None, None, 3, index)
    rows = [real_base.draw(str(folder), "mine", "mit", str(ROOT), None, 3, index) for _ in range(2)]
    assert rows[0] == rows[1]
    count = len(without["messages"])
    assert rows[0]["messages"][:count] == without["messages"] and len(rows[0]["messages"]) == count + 2
    shards.check_row(rows[0])


# ------------------------------------------------------------------------------------------------ rephrased


@pytest.fixture(scope="module")
def conversations(tmp_path_factory):
    """A row with pictures, one with a call and its result, one of numbers only."""
    output = tmp_path_factory.mktemp("rows") / "rows"
    call = json.dumps([{"type": "function", "function": {"name": "get_time", "arguments": {"town": "foxley"}}}])
    called = {
        "messages": [
            {"role": "system", "content": "You are kind."},
            {"role": "user", "content": [{"type": "text", "text": "  What time is it?\n"}]},
            {"role": "assistant", "content": "", "tool_calls": call},
            {"role": "tool", "content": '{"time": "9:15"}'},
            {"role": "assistant", "content": "It is a quarter past nine."},
        ],
        "tools": [{"type": "function", "function": {"name": "get_time"}}],
        "meta": {"skill": "request"},
    }
    numbers = {"messages": [{"role": "user", "content": "12 + 30"}, {"role": "assistant", "content": "42"}]}
    rows = [interleaved.draw(1, "train", 1)]
    rows += [shards.encode_row(sample, name, "test", "mit") for name, sample in (("called", called), ("numbers", numbers))]
    draw = functools.partial(list.__getitem__, rows)
    shards.write_shards(draw, 3, output, source="test", license="mit", seed=0, options={}, processes=1)
    return output


def skeleton(row: dict) -> dict:
    """The row without the texts of user and assistant and without `meta` and `id`."""
    row = copy.deepcopy(row) | {"id": None, "meta": None}
    for message in row["messages"]:
        for part in message["content"] if message["role"] in ("user", "assistant") else ():
            part["text"] = part["text"] and re.fullmatch(r"(\s*).*?(\s*)", part["text"], re.DOTALL).groups()
    return row


@pytest.mark.slow
def test_a_model_rewrites_texts_and_nothing_else(conversations, tmp_path, monkeypatch):
    from training.synthesis import rephrase

    for output in ("one", "two"):
        arguments = ["--shards", conversations, "--model", ROOT, "--task", "translate", "--language", "German"]
        monkeypatch.setattr(sys, "argv", ["rephrase", *map(str, [*arguments, "--output", tmp_path / output])])
        rephrase.main()
    rows = list(shards.read_rows(tmp_path / "one"))
    assert rows == list(shards.read_rows(tmp_path / "two"))
    changed = 0
    for old, new in zip(shards.read_rows(conversations), rows, strict=True):
        assert skeleton(old) == skeleton(new)
        assert new["id"] == f"{old['id']}/translate/German"
        meta = meta_of(new)
        assert meta_of(old).items() <= meta.items() and (meta["task"], meta["language"]) == ("translate", "German")
        texts = [
            (a["text"], b["text"])
            for before, after in zip(old["messages"], new["messages"], strict=True)
            for a, b in zip(before["content"], after["content"], strict=True)
        ]
        changed += sum(a != b for a, b in texts)
        assert meta["kept"] + sum(a != b for a, b in texts) <= meta["texts"]
    assert changed > 2
    manifest = json.loads((tmp_path / "one" / "manifest.json").read_text())
    assert manifest["license"] == "apache-2.0, mit" and manifest["labels"]["language"] == {"German": 3}
    assert rows[2]["messages"] == list(shards.read_rows(conversations))[2]["messages"]


@pytest.mark.slow
def test_empty_and_endless_answers_keep_the_text(conversations, monkeypatch):
    from training.synthesis import rephrase

    def rewrite():
        old = list(shards.read_rows(conversations))[1]
        new = rephrase.draw((str(conversations / "shard-00000.parquet"),), str(ROOT), "rephrase", "English", 0, 1)
        assert new["messages"] == old["messages"]
        return meta_of(new)

    model, _ = rephrase.load(str(ROOT))
    monkeypatch.setattr(model.generation_config, "sequence_bias", [[[model.generation_config.eos_token_id], 1e4]])
    assert (rewrite()["texts"], rewrite()["kept"]) == (2, 2)  # it ends at once: empty
    monkeypatch.setattr(model.generation_config, "sequence_bias", [[[model.generation_config.eos_token_id], -1e4]])
    assert rewrite()["kept"] == 2  # it never ends
