"""Small Parquet files with the rows of each benchmark: its field names and types, and the folders of its Hub repository.

    python -m tests.benchmark_rows DATA_ROOT        # writes all of them; then: python -m eval.run --data-root DATA_ROOT ...

Twenty rows a split. What the rows say is made up; pictures, sounds and videos are blank and tiny.
"""

import argparse
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
from datasets import Audio, ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as PILImage

ROWS = 20
TEXT, TEXTS = Value("string"), List(Value("string"))
LETTERS = "ABCD"

# MVBench's sub-tasks, and the folders that their videos lie in.
MVBENCH = {
    "action_antonym": "ssv2_video_mp4",
    "action_count": "perception/videos",
    "action_localization": "sta/sta_video_segment",
    "action_prediction": "star/Charades_segment",
    "action_sequence": "star/Charades_segment",
    "character_order": "perception/videos",
    "counterfactual_inference": "clevrer/video_validation",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/video_fps3_hq_segment",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "fine_grained_pose": "nturgbd_convert",
    "moving_attribute": "clevrer/video_validation",
    "moving_count": "clevrer/video_validation",
    "moving_direction": "clevrer/video_validation",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_segment",
    "object_shuffle": "perception/videos",
    "scene_transition": "scene_qa/video",
    "state_change": "perception/videos",
    "unexpected_action": "FunQA_test/test",
}


# ------------------------------------------------------------------------------------------------ media


def picture(number: int = 0) -> dict[str, Any]:
    """A PNG of one grey, as an Image column stores it."""
    file = io.BytesIO()
    PILImage.new("RGB", (24, 16), (number * 12 % 256,) * 3).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": f"{number}.png"}


def sound(number: int = 0, rate: int = 16000) -> dict[str, Any]:
    """A FLAC of a quarter of a second, as an Audio column stores it."""
    file = io.BytesIO()
    soundfile.write(file, np.full(rate // 4, number / 100, np.float32), rate, format="FLAC")
    return {"bytes": file.getvalue(), "path": f"{number}.flac"}


def video() -> bytes:
    """An MP4 of three seconds, one frame a second."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for grey in (0, 100, 200):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), grey, np.uint8))))
        container.mux(stream.encode())
    return file.getvalue()


# ------------------------------------------------------------------------------------------------ files


def write(root: Path, file: str, features: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """ROOT/FILE-00000-of-00001.parquet. Audio columns are cast last: `datasets` would encode them by a further package."""
    stored = {key: {"bytes": Value("binary"), "path": TEXT} if isinstance(item, Audio) else item for key, item in features.items()}
    path = root / f"{file}-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows, features=Features(stored)).cast(Features(features)).to_parquet(str(path))


def write_file(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def rows_of(row: Callable[[int], dict[str, Any]], count: int = ROWS) -> list[dict[str, Any]]:
    return [row(number) for number in range(count)]


# ------------------------------------------------------------------------------------------------ benchmarks


def mmmu(root: Path) -> None:
    """Validation has answers, test has none; every fifth question is open, every fourth has two pictures."""
    images = {f"image_{number}": Image() for number in range(1, 8)}
    texts = "id question options explanation img_type answer topic_difficulty question_type subfield".split()

    def row(number: int, split: str) -> dict[str, Any]:
        is_open, has_two = number % 5 == 4, number % 4 == 3
        options = [] if is_open else ["$6", "$7", "$8", "<image 2>" if has_two else "$9"]
        return {
            "id": f"{split}_{['Accounting', 'Art_Theory'][number % 2]}_{number + 1}",
            "question": f"<image 1> shows the sales of {number} days. What is the mean?",
            "options": str(options),
            "explanation": "",
            **dict.fromkeys(images),
            "image_1": picture(number),
            "image_2": picture(number + 1) if has_two else None,
            "img_type": "['Tables']",
            "answer": "?" if split == "test" else "7.5" if is_open else "B",
            "topic_difficulty": "Easy",
            "question_type": "open" if is_open else "multiple-choice",
            "subfield": "Managerial Accounting",
        }

    for split in ("validation", "test"):
        rows = rows_of(lambda number, split=split: row(number, split))
        write(root, f"lmms-lab-encoder/MMMU/data/{split}", dict.fromkeys(texts, TEXT) | images, rows)


def scienceqa(root: Path) -> None:
    """FULL has questions without a picture or a hint, IMG has neither."""
    texts = "hint task grade subject topic category skill lecture solution".split()
    features = {"image": Image(), "question": TEXT, "choices": TEXTS, "answer": Value("int8"), **dict.fromkeys(texts, TEXT)}

    def row(number: int, has_all: bool) -> dict[str, Any]:
        return {
            "image": picture(number) if has_all or number % 2 else None,
            "question": f"Which of these is {number} metres long?",
            "choices": ["a pencil", "a bus", "a river"][: 2 + number % 2],
            "answer": number % 2,
            "hint": "A bus has many seats." if has_all or number % 3 else "",
            "task": "closed choice",
            "grade": f"grade{2 + number % 3}",
            "subject": ["natural science", "social science"][number % 2],
            "topic": "units-and-measurement",
            "category": "Length",
            "skill": "Estimate lengths",
            "lecture": "",
            "solution": "",
        }

    for name, has_all in (("FULL", False), ("IMG", True)):
        rows = rows_of(lambda number, has_all=has_all: row(number, has_all))
        write(root, f"lmms-lab-encoder/ScienceQA/ScienceQA-{name}/test", features, rows)


def mmlu(root: Path) -> None:
    """Two subjects; their dev rows, five each, lie interleaved."""
    features = {"question": TEXT, "subject": TEXT, "choices": TEXTS, "answer": ClassLabel(names=list(LETTERS))}

    def row(number: int) -> dict[str, Any]:
        subject = ["high_school_physics", "anatomy"][number % 2]
        choices = [f"{number + offset}" for offset in range(4)]
        return {"question": f"What is {number} plus 2? ", "subject": subject, "choices": choices, "answer": 2}

    write(root, "cais/mmlu/all/test", features, rows_of(row))
    write(root, "cais/mmlu/all/dev", features, [row(number) | {"answer": number % 4} for number in range(100, 110)])


def chartqa(root: Path) -> None:
    features = {"type": TEXT, "question": TEXT, "answer": TEXT, "image": Image()}

    def row(number: int) -> dict[str, Any]:
        kind = "human_test" if number < ROWS // 2 else "augmented_test"
        return {"type": kind, "question": f"What was sold in {2000 + number}?", "answer": str(100 + number), "image": picture(number)}

    write(root, "lmms-lab-encoder/ChartQA/data/test", features, rows_of(row))


def mmbench(root: Path) -> None:
    """Ten questions, each once more a million higher with its options turned by one; "nan" is what is missing."""
    texts = "question hint answer A B C D category source L2-category comment split".split()
    features = {"index": Value("int64"), **dict.fromkeys(texts, TEXT), "image": Image()}
    says = {
        "en": ("How many dots are here?", "Count them.", ["one", "two", "three"]),
        "cn": ("这里有几个点？", "数一数。", ["一个", "两个", "三个"]),  # noqa: RUF001
    }

    def row(number: int, language: str, split: str) -> dict[str, Any]:
        question, turn = divmod(number, 2)
        text, hint, options = says[language]
        options = options[turn:] + options[:turn]
        return {
            "index": 241 + question + 1_000_000 * turn,
            "question": text,
            "hint": "nan" if question % 2 else hint,
            "answer": "nan" if split == "test" else "BA"[turn],
            **dict(zip(LETTERS, [*options, "nan"], strict=True)),
            "category": ["object_localization", "attribute_recognition"][question % 2],
            "image": picture(question),
            "source": "made",
            "L2-category": "finegrained_perception (instance-level)",
            "comment": "nan",
            "split": split,
        }

    for language in says:
        for split in ("dev", "test"):
            rows = rows_of(lambda number, language=language, split=split: row(number, language, split))
            write(root, f"lmms-lab-encoder/MMBench/{language}/{split}", features, rows)


def vqav2(root: Path) -> None:
    """Two questions a picture; test-dev has no answers."""
    answers = List({"answer": TEXT, "answer_confidence": TEXT, "answer_id": Value("int64")})
    texts = dict.fromkeys("question_type multiple_choice_answer answer_type question".split(), TEXT)
    features = texts | {"answers": answers, "image_id": Value("int64"), "question_id": Value("int64"), "image": Image()}

    def row(number: int, split: str) -> dict[str, Any]:
        said = ["2"] * 3 + ["two"] * 2 + ["3"] * 4 + ["many"]
        answers = [{"answer": text, "answer_confidence": "yes", "answer_id": place + 1} for place, text in enumerate(said)]
        return {
            "question_type": "how many",
            "multiple_choice_answer": None if split == "testdev" else "2",
            "answers": None if split == "testdev" else answers,
            "image_id": 393_225 + number // 2,
            "answer_type": ["number", "other"][number % 2],
            "question_id": 393_225_000 + number,
            "question": f"How many birds are on roof {number}?",
            "image": picture(number // 2),
        }

    for split in ("validation", "testdev"):
        write(root, f"lmms-lab-encoder/VQAv2/data/{split}", features, rows_of(lambda number, split=split: row(number, split)))


def vizwiz(root: Path) -> None:
    features = {"question_id": TEXT, "image": Image(), "question": TEXT, "answers": TEXTS, "category": TEXT}

    def row(number: int) -> dict[str, Any]:
        is_clear = number % 2 == 0
        return {
            "question_id": f"VizWiz_val_{number:08d}.jpg",
            "image": picture(number),
            "question": "what Can is this?",
            "answers": ["beans"] * 9 + ["unanswerable"] if is_clear else ["unanswerable"] * 10,
            "category": "other" if is_clear else "unanswerable",
        }

    write(root, "lmms-lab-encoder/VizWiz-VQA/data/val", features, rows_of(row))


def textvqa(root: Path) -> None:
    """Two questions a picture."""
    features = {
        **dict.fromkeys("image_id question flickr_original_url flickr_300k_url set_name".split(), TEXT),
        **dict.fromkeys("question_tokens answers image_classes ocr_tokens".split(), TEXTS),
        **dict.fromkeys("question_id image_width image_height".split(), Value("int32")),
        "image": Image(),
    }

    def row(number: int) -> dict[str, Any]:
        return {
            "image_id": f"003a8ae2ef43b9{number // 2:02d}",
            "question_id": 34602 + number,
            "question": "what is the Brand of this camera?",
            "question_tokens": "what is the brand of this camera".split(),
            "image": picture(number // 2),
            "image_width": 24,
            "image_height": 16,
            "flickr_original_url": "",
            "flickr_300k_url": "",
            "answers": ["dakota"] * 8 + ["dakota digital"] * 2,
            "image_classes": ["Camera"],
            "set_name": "val",
            "ocr_tokens": ["DAKOTA"],
        }

    write(root, "lmms-lab-encoder/textvqa/data/validation", features, rows_of(row))


def gqa(root: Path) -> None:
    """Questions in one part, pictures in another: four questions a picture."""
    link = List({"objectId": TEXT, "value": TEXT})
    features = {
        **dict.fromkeys("id imageId question answer fullAnswer entailed equivalent semanticStr".split(), TEXT),
        "isBalanced": Value("bool"),
        "groups": {"global": TEXT, "local": TEXT},
        "types": {"semantic": TEXT, "structural": TEXT, "detailed": TEXT},
        "annotations": {"question": link, "answer": link, "fullAnswer": link},
        "semantic": List({"operation": TEXT, "argument": TEXT, "dependencies": List(Value("int32"))}),
    }

    def row(number: int) -> dict[str, Any]:
        return {
            "id": f"2010680{number:02d}",
            "imageId": f"n{161313 + number // 4}",
            "question": "Is it overcast?",
            "answer": ["no", "yes"][number % 2],
            "fullAnswer": "No, it is clear.",
            "entailed": "",
            "equivalent": "",
            "semanticStr": "select: scene->verify weather: overcast",
            "isBalanced": True,
            "groups": {"global": "", "local": "13-weather_overcast"},
            "types": {"semantic": "global", "structural": ["verify", "query"][number % 2], "detailed": "weatherVerify"},
            "annotations": {"question": [], "answer": [], "fullAnswer": []},
            "semantic": [{"operation": "select", "argument": "scene", "dependencies": []}],
        }

    images = rows_of(lambda number: {"id": f"n{161313 + number}", "image": picture(number)}, ROWS // 4)
    write(root, "lmms-lab-encoder/GQA/testdev_balanced_instructions/testdev", features, rows_of(row))
    write(root, "lmms-lab-encoder/GQA/testdev_balanced_images/testdev", {"id": TEXT, "image": Image()}, images)


def pope(root: Path) -> None:
    """Three categories, each with its pictures asked about twice."""
    features = dict.fromkeys("id question_id question answer image_source".split(), TEXT) | {"image": Image(), "category": TEXT}

    def row(number: int) -> dict[str, Any]:
        place = number % 8
        return {
            "id": str(number),
            "question_id": str(place + 1),
            "question": f"Is there a {'snowboard' if place % 2 else 'car'} in the image?",
            "answer": "no" if place % 2 else "yes",
            "image_source": f"COCO_val2014_{place // 2:012d}",
            "image": picture(place // 2),
            "category": ["adversarial", "popular", "random"][number // 8],
        }

    write(root, "lmms-lab-encoder/POPE/data/test", features, rows_of(row, 24))


def mme(root: Path) -> None:
    """Two questions a picture; five pictures of a perception and five of a cognition category."""
    features = {"question_id": TEXT, "image": Image(), "question": TEXT, "answer": TEXT, "category": TEXT}

    def row(number: int) -> dict[str, Any]:
        category, place = ["OCR", "code_reasoning"][number // 10], number // 2
        return {
            "question_id": f"{category}/{place:04d}.png",
            "image": picture(place),
            "question": f"Is the word in the picture \"{['sale', 'tale'][number % 2]}\"? Please answer yes or no.",
            "answer": ["Yes", "No"][number % 2],
            "category": category,
        }

    write(root, "lmms-lab-encoder/MME/data/test", features, rows_of(row))


def seedbench(root: Path) -> None:
    """Every fourth row is of a video, whose frames are its pictures."""
    texts = "answer choice_a choice_b choice_c choice_d data_id data_type question question_id".split()
    features = dict.fromkeys(texts, TEXT) | {"question_type_id": Value("int16"), "image": List(Image()), "segment": List(Value("int64"))}

    def row(number: int) -> dict[str, Any]:
        is_video = number % 4 == 3
        return {
            "answer": LETTERS[number % 4],
            **{f"choice_{letter.lower()}": f"{place + 1} towels" for place, letter in enumerate(LETTERS)},
            "data_id": f"454426_{number // 8}",
            "data_type": "video" if is_video else "image",
            "question": "How many towels are in the image?",
            "question_id": str(101_669 + number),
            "question_type_id": 10 if is_video else 5,
            "image": [picture(number + frame) for frame in range(8 if is_video else 1)],
            "segment": [0, 8] if is_video else [],
        }

    write(root, "lmms-lab-encoder/SEED-Bench/data/test", features, rows_of(row))


def mmvet(root: Path) -> None:
    features = dict.fromkeys("question_id question answer image_source capability".split(), TEXT) | {"image": Image()}

    def row(number: int) -> dict[str, Any]:
        return {
            "question_id": f"v1_{number}",
            "question": "What is x in the equation?",
            "answer": "-1<AND>-5",
            "image_source": "made",
            "capability": ["ocr,math", "rec"][number % 2],
            "image": picture(number),
        }

    write(root, "lmms-lab-encoder/MMVet/data/test", features, rows_of(row))


def librispeech(root: Path) -> None:
    features = {"audio": Audio(sampling_rate=16000), "gt": TEXT, "source": TEXT, "task": TEXT}

    def row(number: int, split: str) -> dict[str, Any]:
        return {"audio": sound(number), "gt": "mister brown has twenty two hens", "source": split, "task": "ASR_en"}

    for split in ("librispeech_test_clean", "librispeech_test_other"):
        rows = rows_of(lambda number, split=split: row(number, split))
        write(root, f"lmms-lab-audio/librispeech/{split}/{split}", features, rows)


def audiocaps(root: Path) -> None:
    """A row a caption, five captions a clip; one video gives two clips."""
    features = {
        "audiocap_id": Value("int64"),
        "youtube_id": TEXT,
        "start_time": Value("int64"),
        "caption": TEXT,
        "audio": Audio(sampling_rate=44100),
    }
    clips = [("Y7fmOlUlwoNg", 0, "a train horn sounds"), ("Y7fmOlUlwoNg", 30, "a dog barks at birds")]
    clips += [("6BJ455B1aAs", 20, "rain falls on a tin roof"), ("GOD8Bt5LfDE", 100, "people clap and cheer")]

    def row(number: int) -> dict[str, Any]:
        youtube_id, start, caption = clips[number % 4]
        said = f"{caption} {['', 'loudly', 'nearby', 'twice', 'far away'][number // 4]}".strip()
        audio = sound(number % 4, rate=44100)
        return {"audiocap_id": 103_549 + number, "youtube_id": youtube_id, "start_time": start, "caption": said, "audio": audio}

    write(root, "OpenSound/AudioCaps/data/test", features, rows_of(row))


def videomme(root: Path) -> None:
    """Three questions a video; the videos lie in data/, as their archives hold them."""
    texts = "video_id duration domain sub_category url videoID question_id task_type question answer".split()
    features = dict.fromkeys(texts, TEXT) | {"options": TEXTS}

    def row(number: int) -> dict[str, Any]:
        place = number // 3
        return {
            "video_id": f"{place + 1:03d}",
            "duration": ["short", "medium", "long"][place % 3],
            "domain": "Knowledge",
            "sub_category": "Humanity & History",
            "url": f"https://www.youtube.com/watch?v=made{place:07d}",
            "videoID": f"made{place:07d}",
            "question_id": f"{place + 1:03d}-{number % 3 + 1}",
            "task_type": "Counting Problem",
            "question": "How many flags are in the video?",
            "options": ["A. One.", "B. Two.", "C. Three.", "D. None."],
            "answer": LETTERS[number % 4],
        }

    folder, clip = root / "lmms-eval/Video-MME", video()
    write(root, "lmms-eval/Video-MME/videomme/test", features, rows_of(row))
    for number in range(0, ROWS, 3):
        write_file(folder / "data" / f"{row(number)['videoID']}.mp4", clip)


def mvbench(root: Path) -> None:
    """Each sub-task is a part of its own; two questions a video; the videos lie in video/, as their archives hold them."""
    features = {"video": TEXT, "question": TEXT, "candidates": TEXTS, "answer": TEXT}

    def row(number: int) -> dict[str, Any]:
        candidates = ["Threw it.", "Took it.", "Opened it.", "Put it down."]
        return {
            "video": f"clip_{number // 2}.mp4",
            "question": "What did the person do with the box?",
            "candidates": candidates,
            "answer": candidates[number % 4],
        }

    clip = video()
    for name, folder in MVBENCH.items():
        write(root, f"OpenGVLab/MVBench/{name}/train", features, rows_of(row))
        for number in range(0, ROWS, 2):
            write_file(root / "OpenGVLab/MVBench/video" / folder / row(number)["video"], clip)


def function_calling(root: Path) -> None:
    """BFCL's fields, JSON in a string where its form is free, and two of ours: what was trained, and the kind of case."""
    messages = List(List({"role": TEXT, "content": TEXT}))
    features = {"id": TEXT, "question": messages, "function": TEXT, "ground_truth": TEXT, "trained_function": TEXT, "category": TEXT}
    light = {
        "name": "set_light",
        "description": "Sets the light of a room.",
        "parameters": {
            "type": "dict",
            "properties": {
                "room": {"type": "string", "description": "The room.", "enum": ["kitchen", "hall"]},
                "level": {"type": "float", "description": "Brightness in 0..1."},
                "colours": {"type": "array", "items": {"type": "string"}, "description": "Colours to mix."},
            },
            "required": ["room", "level"],
        },
    }
    timer = {
        "name": "set_timer",
        "description": "Starts a timer.",
        "parameters": {"type": "dict", "properties": {"minutes": {"type": "integer"}}, "required": ["minutes"]},
    }
    lit = {"set_light": {"room": ["kitchen"], "level": [0.5], "colours": ["", ["red"]]}}
    timed = {"set_timer": {"minutes": [5]}}
    both = "Set the kitchen light to half and start a timer of 5 minutes."
    cases = {  # question, functions in the prompt, right calls, trained functions, category
        "in_context": [("Set the kitchen light to half.", [light, timer], [lit], [], "simple")],
        "fine_tuned": [("Set the kitchen light to half.", [], [lit], [light, timer], "simple")],
        "mixed": [
            ("Start a timer of 5 minutes.", [timer], [timed], [light], "in context"),
            ("Set the kitchen light to half.", [timer], [lit], [light], "fine-tuned"),
            (both, [timer], [lit, timed], [light], "both"),
        ],
        "irrelevance": [
            ("Who wrote Hamlet?", [light, timer], [], [], "irrelevance"),
            ("Set the light to half.", [light, timer], [], [], "missing argument"),
        ],
        "parallel": [(both, [light, timer], [lit, timed], [], "parallel")],
    }

    def row(number: int, name: str) -> dict[str, Any]:
        text, functions, calls, trained, category = cases[name][number % len(cases[name])]
        return {
            "id": f"{name}_{number}",
            "question": [[{"role": "user", "content": text}]],
            "function": json.dumps(functions),
            "ground_truth": json.dumps(calls),
            "trained_function": json.dumps(trained),
            "category": category,
        }

    for name in cases:
        write(root, f"function_calling/{name}/test", features, rows_of(lambda number, name=name: row(number, name)))


BENCHMARKS = (
    mmmu, scienceqa, mmlu, chartqa, mmbench, vqav2, vizwiz, textvqa, gqa, pope, mme, seedbench, mmvet, librispeech, audiocaps,
    videomme, mvbench, function_calling,
)  # fmt: skip


def write_all(root: Path) -> Iterator[str]:
    """Write every benchmark's files under the data root; gives the names as they are done."""
    for benchmark in BENCHMARKS:
        benchmark(root)
        yield benchmark.__name__


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_root", type=Path)
    for written in write_all(parser.parse_args().data_root):
        print(written)
