"""The demo on the checkpoint at the root: its five answers, its page, the user's own files, and what it refuses."""

import base64
import json
import re
import subprocess
import sys
import wave
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile
from conftest import IN_TRAINING, ROOT, write_small_checkpoint
from PIL import Image
from test_speech_eagle import TINY as SPEECH

import demo
from training.synthesis import make_assets, world
from training.synthesis.voices import VOICES

QUESTIONS = json.loads((ROOT / "assets" / "questions.json").read_text())


@pytest.fixture(scope="module")
def checkpoint():
    return demo.load(str(ROOT))


def run(*arguments):
    return subprocess.run([sys.executable, "demo.py", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)


class Sources(HTMLParser):
    """Collects what a page refers to, and the tags it does so with."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.found = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.found += [value for name, value in attributes if name in ("src", "href", "srcset", "poster", "action")]


# ------------------------------------------------------------------------------------------------ as a user runs it


@pytest.fixture(scope="module")
def demonstration(tmp_path_factory):
    """The demo run once as `make demo` runs it: the process and the page it wrote."""
    output = tmp_path_factory.mktemp("out")
    return run("--output", output), (output / "demo.html").read_text()


def test_five_tasks_are_shown(demonstration):
    process, _ = demonstration
    assert process.returncode == 0, process.stderr
    assert all(task["title"] in process.stdout for task in QUESTIONS)
    assert re.search(r"\d of 5 right", process.stdout)


@IN_TRAINING
def test_all_five_answers_are_right(demonstration):
    process, _ = demonstration
    assert "5 of 5 right" in process.stdout
    for task in QUESTIONS:
        assert f"{task['answer']}   [right]" in process.stdout


def test_every_task_shows_its_numbers(demonstration):
    numbers = r"tokens in text \d+(, (image|video) \d+)?(, audio \d+)?\n +speed +first token after \d+\.\d\d s"
    assert len(re.findall(numbers, demonstration[0].stdout)) == 5


def test_the_page_holds_its_media_in_itself(demonstration):
    _, page = demonstration
    sources = Sources(page)
    assert [sources.tags.count(tag) for tag in ("img", "audio", "video", "svg")] == [3, 2, 1, 2]
    media = {base64.b64encode((ROOT / "assets" / name).read_bytes()).decode() for name in media_names()}
    assert {source.partition(";base64,")[2] for source in sources.found} == media
    assert all(source.startswith("data:") for source in sources.found)
    assert not {"script", "link", "iframe"} & set(sources.tags)
    assert not re.search(r"url\(|@import", page)


def media_names():
    return {part[part["type"]] for task in QUESTIONS for part in task["content"] if part["type"] != "text"}


@pytest.mark.slow
def test_own_files_in_a_fresh_process(tmp_path):
    process = run("--image", "assets/chart.png", "--text", "What is the value of thirsty?", "--output", tmp_path)
    assert process.returncode == 0, process.stderr
    assert "right" not in process.stdout and "wrong" not in process.stdout  # nobody knows the answer to the user's question
    assert (tmp_path / "demo.html").is_file()


# ------------------------------------------------------------------------------------------------ its pieces


def test_tokens_are_counted_by_modality(checkpoint):
    task = next(task for task in demo.asset_tasks() if task["meta"]["skill"] == "spoken_picture")
    answer = demo.ask(*checkpoint, task["content"])
    with wave.open(task["content"][1]["audio"]) as sound:
        frames = sound.getnframes() / 320  # of 20 ms
    assert answer.tokens["image"] == 128
    assert answer.tokens["audio"] == -(-frames // 16)
    assert 0 < answer.seconds_to_first < 60


def test_the_users_own_video_and_sound(checkpoint):
    model, processor = checkpoint
    folder = ROOT / "assets"
    task = demo.own_task([], [folder / "clip.mp4"], [folder / "spoken_fact.wav"], None)
    answer = demo.ask(model, processor, task["content"])
    assert answer.tokens["video"] == 5 * 128  # one picture a second
    assert demo.is_right(task, answer) is None
    assert Sources(demo.page(processor, model, [task], [answer])).tags.count("video") == 1


def test_spoken_questions_are_answered_aloud_in_every_voice(tmp_path):
    decoder = {"model_type": "eagle_speech", **SPEECH, "vocoder_type": "istft", "sampling_rate": 16_000}
    write_small_checkpoint(tmp_path / "model", decoder)
    process = run("--model", tmp_path / "model", "--output", tmp_path / "out", "--audio", "assets/spoken_fact.wav")
    assert process.returncode == 0, process.stderr
    files = sorted((tmp_path / "out").glob("*.wav"))
    assert [file.name for file in files] == sorted(f"answer-1-{voice}.wav" for voice in VOICES)
    assert "answer-1-Chris.wav, in 7 voices" in process.stdout
    assert all(soundfile.info(file).samplerate == 16_000 and soundfile.info(file).frames > 0 for file in files)
    sources = Sources((tmp_path / "out" / "demo.html").read_text())
    assert sources.tags.count("audio") == 8 and all(source.startswith("data:audio/") for source in sources.found)
    written = run("--model", tmp_path / "model", "--output", tmp_path / "written", "--text", "hello")
    assert written.returncode == 0 and not list((tmp_path / "written").glob("*.wav"))


def test_markup_in_what_the_user_writes_stays_text(checkpoint):
    model, processor = checkpoint
    task = demo.own_task([], [], [], "<script>alert(1)</script>")
    page = demo.page(processor, model, [task], [demo.Answer("<b>$", {"text": 9}, 0.1, None)])
    assert "<script" not in page and "<b>" not in page
    assert "&lt;script&gt;" in page and "&lt;b&gt;$" in page


def test_a_wrong_answer_is_marked():
    task = QUESTIONS[0]
    wrong, right = (demo.Answer(text, {"text": 9}, 0.1, None) for text in ("no", task["answer"].upper()))
    assert "[wrong]" in demo.report(1, task, wrong) and task["answer"] in demo.report(1, task, wrong)
    assert "[right]" in demo.report(1, task, right)


def test_the_waveform_is_as_high_as_the_sound_is_loud():
    heights = [float(h) for h in re.findall(r"v([\d.]+)", demo.waveform(np.linspace(0, 0.5, 16_000), bars=4))]
    assert heights == pytest.approx([10.5, 20, 29.5, 39], abs=0.2)


def test_fresh_tasks_are_new_and_held_out(tmp_path):
    first, again, other = (demo.fresh_tasks(seed, tmp_path / name) for seed, name in ((1, "a"), (1, "b"), (2, "c")))
    assert [task["meta"] for task in first] == [task["meta"] for task in again]
    assert not {str(task["meta"]) for task in first} & {str(task["meta"]) for task in other}
    assert [task["meta"]["skill"] for task in first] == list(demo.FRESH_SKILLS)
    assert {task["meta"]["split"] for task in first} == {"test"}
    for part in (part for task in first for part in task["content"] if part["type"] != "text"):
        assert (tmp_path / "a").joinpath(part[part["type"]]).stat().st_size > 0


@IN_TRAINING
@pytest.mark.slow
def test_four_of_five_fresh_answers_are_right(checkpoint, tmp_path):
    """Over seeds 1 to 20."""
    right = 0
    for seed in range(1, 21):
        for task in demo.fresh_tasks(seed, tmp_path / str(seed)):
            right += demo.is_right(task, demo.ask(*checkpoint, task["content"]))
    assert right >= 80, f"{right} of 100"


# ------------------------------------------------------------------------------------------------ what it refuses


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--image", "assets/sign.png"], "a picture or a video alone asks nothing: add --text or --audio"),
        (["--image", "no-such.png", "--text", "hello"], "no such file: no-such.png"),
        (["--fresh", "1", "--text", "hello"], "--fresh draws its own questions"),
        (["--fresh", "one"], "invalid int value: 'one'"),
    ],
)
def test_arguments_that_make_no_sense(arguments, message, capsys):
    with pytest.raises(SystemExit):
        demo.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_file_of_another_kind(tmp_path):
    process = run("--image", "README.md", "--text", "what is this", "--output", tmp_path)
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1].startswith("demo.py: ")
    assert not (tmp_path / "demo.html").exists()


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        demo.load(str(tmp_path))


# ------------------------------------------------------------------------------------------------ the files in assets/


def test_assets_are_small():
    assert all(path.stat().st_size < 200_000 for path in (ROOT / "assets").iterdir())


def test_assets_are_what_their_script_draws(tmp_path):
    assert make_assets.write_tasks(make_assets.SEEDS, tmp_path) == QUESTIONS
    for name in media_names():
        ours, drawn = ROOT / "assets" / name, tmp_path / name
        if name.endswith(".png"):
            assert np.array_equal(Image.open(ours), Image.open(drawn))
        elif name.endswith(".wav"):
            assert np.abs(samples_of(ours) - samples_of(drawn)).max() <= 1  # the last bit may round otherwise
        else:
            assert ours.stat().st_size == pytest.approx(drawn.stat().st_size, rel=0.2)


def samples_of(path):
    with wave.open(str(path)) as sound:
        return np.frombuffer(sound.readframes(sound.getnframes()), np.int16).astype(int)


def test_assets_are_held_out():
    by_skill = {task["meta"]["skill"]: task for task in QUESTIONS}
    assert world.split("words", *by_skill["sign"]["answer"].split()) == "test"
    order = [tuple(name.split()) for name in by_skill["clip"]["answer"].split(", ")]
    assert world.split("clip", *order) == "test"
    asked = by_skill["spoken_fact"]["meta"]["question"]
    assert asked not in training_questions()


def training_questions():
    """All that training may ask about facts."""
    return {
        world.question(fact, index)
        for fact in world.FACTS
        for index in range(len(world.PHRASINGS[fact[1]]))
        if world.split("phrasing", fact[1], index) == "train"
    }
