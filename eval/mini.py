"""The mini suite's data: the benchmarks' own rows, made of the small world's held-out side.

    python -m eval.mini --rows 100 --output build/mini        # eval.run does it by itself

A task file with `drawn_rows` names a function here in its `dataset_path` ("mini/chartqa"). Row i is a function of i alone.
Only what no training run ever drew is used: the samples' "test" split, see training/synthesis/world.py.
"""

import argparse
import hashlib
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import soundfile
from datasets import Audio, Dataset
from tqdm import tqdm

from eval.task import TaskError
from training.synthesis import assistant, function_calling, pictures, samples, world
from training.synthesis.expressive_speech import expressive
from training.synthesis.make_assets import write_video
from training.synthesis.pictures import COLOURS, SHAPES
from training.synthesis.voices import SAMPLING_RATE

BUILD = Path(__file__).parents[1] / "build" / "mini"
LETTERS = "ABCD"
ROWS_PER_ITEM = {"audiocaps": 5}  # one a caption
KNOWN = function_calling.ASSISTANT
HELD_OUT = function_calling.catalogue(random.Random("held out"), "test", len(KNOWN))  # never defined in training
POOLS = {  # what the wrong choices of a question are taken from
    "count": [str(number) for number in range(1, 10)],
    "count colour": [str(number) for number in range(10)],
    "count shape": [str(number) for number in range(10)],
    "colour": list(COLOURS),
    "shape": list(SHAPES),
    "place": list(samples.PLACES),
}


# ------------------------------------------------------------------------------------------------ parts of rows


def png(image) -> dict[str, Any]:
    file = io.BytesIO()
    image.save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def flac(waveform) -> dict[str, Any]:
    file = io.BytesIO()
    soundfile.write(file, waveform, SAMPLING_RATE, format="FLAC")
    return {"bytes": file.getvalue(), "path": None}


def drawn(skill: str, index: int) -> tuple[dict, str, str]:
    """A held-out sample, its written question, and its answer."""
    sample = samples.make(skill, "test", f"mini/{index}")
    (question,) = [part["text"] for part in sample["messages"][0]["content"] if part["type"] == "text"]
    content = sample["messages"][1]["content"]
    return sample, question, content[0]["text"] if content else ""


def scene(task: str, index: int) -> tuple[random.Random, pictures.Picture]:
    """A picture of shapes, which held-out questions can be asked about."""
    rng = random.Random(f"{task}/test/{index}")
    return rng, pictures.scene(rng, pictures.random_kinds(rng, "test"))


def question_about(rng: random.Random, picture: pictures.Picture, kinds=tuple(POOLS)) -> tuple[str, str, str]:
    """(kind, question, answer), the kind one of `kinds`."""
    questions = [asked for asked in samples.scene_questions(rng, picture) if asked[0] in kinds]
    kind, question, answer = rng.choice(questions)
    return kind, world.written(question), answer


def options(rng: random.Random, answer: str, pool: list[str]) -> list[str]:
    """Four choices in random order, one of them right."""
    wrong = rng.sample([other for other in pool if other != answer], 3)
    return rng.sample([answer, *wrong], 4)


def choice_about(task: str, index: int) -> tuple[pictures.Picture, str, str, list[str], str]:
    """A picture, and the kind, text, four choices and right letter of a question about it."""
    rng, picture = scene(task, index)
    kind, question, answer = question_about(rng, picture)
    choices = options(rng, answer, POOLS[kind])
    return picture, kind, question, choices, LETTERS[choices.index(answer)]


def ten(answer: str) -> list[str]:
    """What ten people say who agree."""
    return [answer] * 10


def presence(picture: pictures.Picture, rng: random.Random, there: bool) -> tuple[str, str]:
    """A (colour, shape) that is in the picture, or one that is not."""
    kinds = [(item.colour, item.shape) for item in picture.items]
    absent = [(colour, shape) for colour in COLOURS for shape in SHAPES if (colour, shape) not in kinds]
    return rng.choice(kinds if there else absent)


# ------------------------------------------------------------------------------------------------ rows of each benchmark


def chartqa(index: int) -> dict[str, Any]:
    sample, question, answer = drawn("chart", index)
    return {"type": "augmented_test", "question": question, "answer": answer, "image": png(sample["images"][0])}


def textvqa(index: int) -> dict[str, Any]:
    """Signs and codes in turn."""
    skill = ("sign", "code")[index % 2]
    sample, question, answer = drawn(skill, index)
    image = sample["images"][0]
    facts = {"image_id": str(index), "question_id": index, "question_tokens": question.lower().split(), "set_name": "test"}
    size = {"image_width": image.width, "image_height": image.height}
    more = {"flickr_original_url": "", "flickr_300k_url": "", "image_classes": [skill], "ocr_tokens": answer.split()}
    return facts | size | more | {"question": question, "answers": ten(answer), "image": png(image)}


def vqav2(index: int) -> dict[str, Any]:
    rng, picture = scene("vqav2", index)
    kind, question, answer = question_about(rng, picture, (*POOLS, "presence"))
    said = [{"answer": text, "answer_confidence": "yes", "answer_id": place + 1} for place, text in enumerate(ten(answer))]
    return {
        "question_type": kind,
        "multiple_choice_answer": answer,
        "answers": said,
        "image_id": index,
        "answer_type": "yes/no" if kind == "presence" else "number" if kind.startswith("count") else "other",
        "question_id": index,
        "question": question,
        "image": png(picture.image),
    }


def gqa(index: int) -> dict[str, Any]:
    rng, picture = scene("gqa", index)
    kind, question, answer = question_about(rng, picture, ("presence", "colour", "shape", "place"))
    types = {"semantic": kind, "structural": "verify" if kind == "presence" else "query", "detailed": kind}
    row = {"id": str(index), "imageId": str(index), "question": question, "answer": answer, "fullAnswer": answer}
    return row | {"isBalanced": True, "types": types, "image": png(picture.image)}


def vizwiz(index: int) -> dict[str, Any]:
    """Every fourth picture shows nothing."""
    rng, picture = scene("vizwiz", index)
    _, question, answer = question_about(rng, picture)
    blank = index % 4 == 3
    image = pictures.pale_ground(rng, *picture.image.size) if blank else picture.image
    category, answer = ("unanswerable", "unanswerable") if blank else ("other", answer)
    row = {"question_id": f"{index}.png", "question": question, "answers": ten(answer), "category": category}
    return row | {"image": png(image)}


def pope(index: int) -> dict[str, Any]:
    """Two questions a picture, the second about what is not there."""
    rng, picture = scene("pope", index // 2)
    there = index % 2 == 0
    colour, shape = presence(picture, rng, there)
    return {
        "id": str(index),
        "question_id": str(index),
        "question": f"Is there any {colour} {shape}?",
        "answer": "yes" if there else "no",
        "image_source": str(index // 2),
        "image": png(picture.image),
        "category": ("adversarial", "popular", "random")[index // 2 % 3],
    }


def mme(index: int) -> dict[str, Any]:
    """Two questions a picture, one for each answer."""
    rng, picture = scene("mme", index // 2)
    category, kind = (("existence", "presence"), ("count", "count"))[index // 2 % 2]
    right = index % 2 == 0
    if kind == "presence":
        asked = "Is there a {} {} in the picture?".format(*presence(picture, rng, right))
    else:
        count = len(picture.items)
        asked = f"Are there {count if right else count % 9 + 1} shapes in the picture?"
    row = {"question_id": f"{category}/{index // 2}.png", "question": f"{asked} Please answer yes or no."}
    return row | {"answer": "Yes" if right else "No", "category": category, "image": png(picture.image)}


def mmbench(index: int, language: str) -> dict[str, Any]:
    """Four rows a question, the choices turned by one in each."""
    number, turn = divmod(index, 4)
    picture, kind, question, choices, letter = choice_about("mmbench", number)
    if language == "cn":
        rng, kind, question, answer = random.Random(number), "count", "图中有几个形状？", str(len(picture.items))  # noqa: RUF001
        choices = options(rng, answer, POOLS["count"])
        letter = LETTERS[choices.index(answer)]
    choices, place = choices[turn:] + choices[:turn], (LETTERS.index(letter) - turn) % 4
    row = {"index": number + 1_000_000 * turn, "question": question, "hint": "nan", "answer": LETTERS[place], "category": kind}
    row |= dict(zip(LETTERS, choices)) | {"source": "eagle", "L2-category": kind, "comment": "nan", "split": "test"}
    return row | {"image": png(picture.image)}


def mmbench_en(index: int) -> dict[str, Any]:
    return mmbench(index, "en")


def mmbench_cn(index: int) -> dict[str, Any]:
    return mmbench(index, "cn")


def seedbench(index: int) -> dict[str, Any]:
    picture, kind, question, choices, letter = choice_about("seedbench", index)
    row = {"answer": letter, **{f"choice_{name.lower()}": text for name, text in zip(LETTERS, choices)}}
    row |= {"data_id": str(index), "data_type": "image", "question": question, "question_id": str(index)}
    return row | {"question_type_id": list(POOLS).index(kind) + 1, "segment": [], "image": [png(picture.image)]}


def fact_choice(task: str, index: int, split: str = "test") -> tuple[str, str, list[str], int]:
    """(relation, question, four choices, index of the right one) of a fact of the world."""
    rng = random.Random(f"{task}/{split}/{index}")
    relation = rng.choice(sorted({relation for _, relation, _ in world.FACTS}))
    return relation, *fact_of(rng, relation, split)


def fact_of(rng: random.Random, relation: str, split: str) -> tuple[str, list[str], int]:
    fact = rng.choice([fact for fact in world.FACTS if fact[1] == relation])
    wordings = [number for number in range(len(world.PHRASINGS[relation])) if world.split("phrasing", relation, number) == split]
    others = sorted({value for _, other, value in world.FACTS if other == relation} | set(world.COLOURS))
    choices = options(rng, fact[2], others)
    return world.written(world.question(fact, rng.choice(wordings))), choices, choices.index(fact[2])


def mmlu(index: int, split: str = "test") -> dict[str, Any]:
    subject, question, choices, answer = fact_choice("mmlu", index, split)
    return {"question": question, "subject": subject, "choices": choices, "answer": answer}


def mmlu_dev() -> list[dict[str, Any]]:
    """Five examples a subject, in the phrasings of training."""
    rows = []
    for subject in sorted({relation for _, relation, _ in world.FACTS}):
        for number in range(5):
            question, choices, answer = fact_of(random.Random(f"mmlu/dev/{subject}/{number}"), subject, "train")
            rows.append({"question": question, "subject": subject, "choices": choices, "answer": answer})
    return rows


def scienceqa(index: int) -> dict[str, Any]:
    """Questions about pictures, and about the world without one, in turn."""
    if index % 2:
        topic, question, choices, answer = fact_choice("scienceqa", index)
        image = None
    else:
        picture, topic, question, choices, letter = choice_about("scienceqa", index)
        image, answer = png(picture.image), LETTERS.index(letter)
    row = {"question": question, "choices": choices, "answer": answer, "hint": "", "task": "closed choice", "grade": "grade1"}
    subject = "natural science" if image else "social science"
    return row | {"subject": subject, "topic": topic, "category": topic, "skill": "", "lecture": "", "solution": "", "image": image}


def mmmu(index: int) -> dict[str, Any]:
    """Every fourth question is open."""
    if index % 4 == 3:
        sample, question, answer = drawn("chart", index)
        image, choices, kind = sample["images"][0], [], "open"
    else:
        picture, _, question, choices, answer = choice_about("mmmu", index)
        image, kind = picture.image, "multiple-choice"
    subject = "Charts" if kind == "open" else "Shapes"
    row = {"id": f"validation_{subject}_{index}", "question": f"<image 1> {question}", "options": str(choices), "answer": answer}
    row |= {"explanation": "", "img_type": "['Diagrams']", "topic_difficulty": "Easy", "question_type": kind, "subfield": subject}
    return row | {"image_1": png(image), **{f"image_{number}": None for number in range(2, 8)}}


def librispeech(index: int) -> dict[str, Any]:
    sample = samples.make("sentence", "test", f"mini/{index}")
    text = sample["messages"][1]["content"][0]["text"]
    return {"audio": flac(sample["audios"][0]), "gt": text, "source": "world", "task": "ASR_en"}


def audiocaps(index: int) -> dict[str, Any]:
    """Five captions a sound, one a row: who speaks, how, and whether there is noise."""
    number, wording = divmod(index, 5)
    sample = samples.make("sentence", "test", f"mini/audiocaps/{number}")
    who = "woman" if sample["meta"]["voice"] in ("Mia", "Emma", "Lucy") else "man"
    where = "over noise" if sample["meta"]["noisy"] else "in a quiet room"
    captions = ("a {} speaks {}", "a {} is talking {}", "speech of a {} {}", "a {} says something {}", "one {} talks {}")
    row = {"audiocap_id": index, "youtube_id": str(number), "start_time": 0, "caption": captions[wording].format(who, where)}
    return row | {"audio": flac(sample["audios"][0])}


def expressive_speech(index: int) -> dict[str, Any]:
    """How something is said: emotion, speed, volume or sounds."""
    sample = expressive(random.Random(f"expressive_speech/test/{index}"), "test", "questions")
    (question,) = [part["text"] for part in sample["messages"][0]["content"] if part["type"] == "text"]
    answer = sample["messages"][1]["content"][0]["text"]
    return {"audio": flac(sample["audios"][0]), "question": question, "answer": answer, "asked": sample["meta"]["asked"]}


def ordered_clip(task: str, index: int) -> tuple[Any, str, list[str], str]:
    """Frames, a question about the order of what they show, four choices, and the right one."""
    rng = random.Random(f"{task}/test/{index}")
    order = samples.random_order(rng, "test")
    things = [f"{colour} {shape}" for colour, shape in order]
    word, answer = rng.choice((("first", things[0]), ("last", things[-1])))
    pool = things + [f"{colour} {shape}" for colour, shape in rng.sample([(c, s) for c in COLOURS for s in SHAPES], 8)]
    return samples.clip_frames(rng, order), f"Which shape is {word}?", options(rng, answer, sorted(set(pool))), answer


def videomme(index: int) -> dict[str, Any]:
    frames, question, choices, answer = ordered_clip("videomme", index)
    lettered = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices)]
    row = {"video_id": str(index), "duration": "short", "domain": "world", "sub_category": "order", "url": "", "videoID": str(index)}
    row |= {"question_id": str(index), "task_type": "order", "question": question, "options": lettered}
    return row | {"answer": LETTERS[choices.index(answer)], "frames": ("data", frames)}


def mvbench(index: int) -> dict[str, Any]:
    frames, question, choices, answer = ordered_clip("mvbench", index)
    row = {"video": f"{index}.mp4", "question": question, "candidates": choices, "answer": answer}
    return row | {"frames": ("video/order", frames)}


def function_rows(calls: list[dict], functions: list[dict], trained: list[dict], question: str, index: int, kind: str):
    """A row in the form of the Berkeley leaderboard; its `parameters` are of type "dict"."""

    def bfcl(definitions: list[dict]) -> str:
        inner = [definition["function"] for definition in definitions]
        return json.dumps([item | {"parameters": item["parameters"] | {"type": "dict"}} for item in inner])

    truth = [{call["name"]: {name: [value] for name, value in call["arguments"].items()}} for call in calls]
    return {
        "id": f"{kind}_{index}",
        "question": [[{"role": "user", "content": question}]],
        "function": bfcl(functions),
        "ground_truth": json.dumps(truth),
        "trained_function": bfcl(trained),
        "category": kind,
    }


def definitions(functions: list) -> list[dict]:
    return [function.definition for function in functions]


def call_of(message: dict) -> list[dict]:
    """The calls in a message of the assistant, none in one that says something."""
    return [call["function"] for call in json.loads(message.get("tool_calls") or "[]")]


def fine_tuned(index: int) -> dict[str, Any]:
    """A request without any definition: the functions were learnt. All 40 in turn."""
    rng = random.Random(f"fine_tuned/test/{index}")
    text, call = function_calling.request(rng, "test", KNOWN[index % len(KNOWN)])
    return function_rows([call], [], assistant.FUNCTIONS, world.written(text), index, "simple")


def held_out_catalogue(task: str, index: int) -> tuple[random.Random, function_calling.Drawn, list[function_calling.Drawn]]:
    """One of HELD_OUT, all in turn, and the functions that the prompt defines: it and others that no training run defined."""
    rng, function = random.Random(f"{task}/test/{index}"), HELD_OUT[index % len(HELD_OUT)]
    return rng, function, function_calling.catalogue(rng, "test", rng.choice(function_calling.SIZES["test"]), [function])


def in_context(index: int) -> dict[str, Any]:
    rng, function, functions = held_out_catalogue("in_context", index)
    text, call = function_calling.request(rng, "test", function)
    return function_rows([call], definitions(functions), [], world.written(text), index, "simple")


def mixed(index: int) -> dict[str, Any]:
    """A request for a function in the prompt, or for one that was learnt; the prompt defines the former alone."""
    rng, function, functions = held_out_catalogue("mixed", index)
    in_prompt = index // len(HELD_OUT) % 2 == 0
    text, call = function_calling.request(rng, "test", function if in_prompt else KNOWN[index % len(KNOWN)])
    category = "in_context" if in_prompt else "fine_tuned"
    return function_rows([call], definitions(functions), assistant.FUNCTIONS, world.written(text), index, category)


def asked(task: str, turn: Callable, index: int) -> dict[str, Any]:
    """The first request of a held-out turn, about a catalogue, and what is called then."""
    rng, _, functions = held_out_catalogue(task, index)
    question, answer = turn(rng, "test", functions)[:2]
    text = question["content"][0]["text"]
    return function_rows(call_of(answer), definitions(functions), [], text, index, turn.__name__)


def irrelevance(index: int) -> dict[str, Any]:
    """No function on offer does what is asked, or a value is missing."""
    return asked("irrelevance", (function_calling.irrelevant, function_calling.missing)[index % 2], index)


def parallel(index: int) -> dict[str, Any]:
    return asked("parallel", function_calling.parallel, index)


ROWS = (
    chartqa, textvqa, vqav2, gqa, vizwiz, pope, mme, mmbench_en, mmbench_cn, seedbench, scienceqa, mmlu, mmmu,
    librispeech, audiocaps, expressive_speech, videomme, mvbench, fine_tuned, in_context, mixed, irrelevance, parallel,
)  # fmt: skip


# ------------------------------------------------------------------------------------------------ files


def folder(rows: int) -> Path:
    """The data root of suites with so many rows a task; another when the code that draws them is another."""
    sources = [Path(__file__), *sorted(Path(samples.__file__).parent.glob("*.py"))]
    digest = hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()
    return BUILD / f"{rows}-{digest[:8]}"


def write(dataset_path: str, rows: int, root: Path | None = None) -> None:
    """Draws the rows of so many items of a task into ROOT/mini/NAME/test.parquet, unless they lie there."""
    name = dataset_path.removeprefix("mini/")
    make = {function.__name__: function for function in ROWS}.get(name)
    if make is None:
        raise TaskError(f"dataset_path {dataset_path!r} has drawn_rows, but eval/mini.py defines no {name!r}")
    place = (root or folder(rows)) / "mini" / name
    if (place / "test.parquet").exists():
        return
    place.mkdir(parents=True, exist_ok=True)
    made = [make(index) for index in tqdm(range(rows * ROWS_PER_ITEM.get(name, 1)), desc=f"drawing {name}", leave=False)]
    for index, row in enumerate(made):
        if "frames" in row:
            kind, frames = row.pop("frames")
            (place / kind).mkdir(parents=True, exist_ok=True)
            write_video(place / kind / f"{index}.mp4", frames)
    if name == "mmlu":
        Dataset.from_list(mmlu_dev()).to_parquet(place / "dev.parquet")
    dataset = Dataset.from_list(made)
    if "audio" in dataset.features:
        dataset = dataset.cast_column("audio", Audio())
    dataset.to_parquet(place / "test.parquet.part")
    (place / "test.parquet.part").replace(place / "test.parquet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100, help="items of each task")
    parser.add_argument("--output", type=Path, help="data root (default: build/mini/...)")
    args = parser.parse_args()
    for function in ROWS:
        write(function.__name__, args.rows, args.output)


if __name__ == "__main__":
    main()
