"""transformers' pipelines on the checkpoint at the root: they say what `generate` says, alone and in batches."""

import json

import numpy as np
import pytest
from conftest import ROOT, write_small_checkpoint
from test_speech_eagle import TINY as SPEECH
from transformers import pipeline

CHAT_TASKS = ["any-to-any", "image-text-to-text"]
THREE = {"min_new_tokens": 3, "max_new_tokens": 3, "do_sample": False}  # text-generation draws lots by default
SIGN, CHART, CLIP = (str(ROOT / "assets" / name) for name in ("sign.png", "chart.png", "clip.mp4"))
FACT, QUESTION = (str(ROOT / "assets" / name) for name in ("spoken_fact.wav", "spoken_picture.wav"))


def text(said):
    return {"type": "text", "text": said}


def picture(path):
    return {"type": "image", "image": path}


def sound(path):
    return {"type": "audio", "audio": path}


def user(*content):
    return {"role": "user", "content": list(content)}


def assistant(said):
    return {"role": "assistant", "content": [text(said)]}


CHATS = {
    "text": [user(text("Please lock the kitchen door."))],
    "plain text": [{"role": "user", "content": "Please lock the kitchen door."}],
    "picture": [user(picture(SIGN), text("What does the sign say?"))],
    "sound": [user(sound(FACT))],
    "video": [user({"type": "video", "video": CLIP}, text("In what order are the shapes?"))],
    "picture and sound": [user(picture(CHART), sound(QUESTION))],
    "turns": [
        {"role": "system", "content": "be kind"},
        user(picture(SIGN), text("What does the sign say?")),
        assistant("know"),
        user(sound(FACT)),
        assistant("in kingsbury"),
        user(text("What is the value of thirsty?"), picture(CHART)),
    ],
}


@pytest.fixture(scope="module")
def load():
    """Pipelines as a user makes them, each once; in float32, where a batch adds up to what its rows do."""
    loaded = {}

    def make(task):
        if task not in loaded:
            loaded[task] = pipeline(task, model=str(ROOT), trust_remote_code=True, dtype="float32")
        return loaded[task]

    return make


@pytest.fixture(scope="module")
def answer(load):
    """What the model adds to a conversation, without a pipeline's help."""
    model, processor, known = load("any-to-any").model, load("any-to-any").processor, {}

    def generate(chat):
        has_begun = chat[-1]["role"] == "assistant"
        options = {"add_generation_prompt": not has_begun, "continue_final_message": has_begun}
        inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, **options).to(model.device)
        ids = model.generate(**inputs, **THREE)[0, inputs["input_ids"].shape[1] :]
        return processor.decode(ids, skip_special_tokens=True)

    def look_up(chat):
        key = json.dumps(chat)
        if key not in known:
            known[key] = generate(chat)
        return known[key]

    return look_up


def ask(pipe, chat, **options):
    return pipe(text=chat, generate_kwargs=dict(THREE), **options)


@pytest.mark.parametrize("kind", CHATS)
@pytest.mark.parametrize("task", CHAT_TASKS)
def test_a_chat_is_answered_as_by_generate(load, answer, task, kind):
    (said,) = ask(load(task), CHATS[kind], return_full_text=False)
    assert said["generated_text"] == answer(CHATS[kind])


@pytest.mark.parametrize("task", CHAT_TASKS)
def test_the_answer_is_the_last_message_of_the_conversation(load, answer, task):
    (said,) = ask(load(task), CHATS["turns"])
    assert said["generated_text"] == [*CHATS["turns"], {"role": "assistant", "content": answer(CHATS["turns"])}]


@pytest.mark.parametrize("task", CHAT_TASKS)
def test_an_answer_that_has_begun_is_continued(load, answer, task):
    chat = [*CHATS["picture"], assistant("know")]
    (said,) = ask(load(task), chat)
    assert said["generated_text"] == [*CHATS["picture"], assistant("know" + answer(chat))]


BATCHES = {
    "text": [CHATS["text"], [user(text("lock it"))], CHATS["text"]],
    "picture": [CHATS["picture"], [user(picture(CHART), text("What?"))], CHATS["picture"]],
    "sound": [CHATS["sound"], [user(sound(QUESTION), text("What is it?"))], CHATS["sound"]],
}


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("task", CHAT_TASKS)
def test_a_batch_is_answered_as_its_rows(load, answer, task, kind):
    rows = ask(load(task), BATCHES[kind], batch_size=2, return_full_text=False)
    assert [said["generated_text"] for (said,) in rows] == list(map(answer, BATCHES[kind]))


@pytest.mark.parametrize("key, part", [("images", "picture"), ("audio", "sound"), ("videos", "video")])
def test_media_may_be_given_beside_a_text_that_marks_their_places(load, answer, key, part):
    chat = CHATS[part]
    medium = chat[0]["content"][0]
    prompt = load("any-to-any").processor.apply_chat_template(chat, add_generation_prompt=True)
    (said,) = ask(load("any-to-any"), prompt, **{key: medium[medium["type"]]}, return_full_text=False)
    assert said["generated_text"] == answer(chat)


def test_text_generation_continues_a_text(load, answer):
    prompt = "<|user|>\nPlease lock the kitchen door.<|end|>\n<|assistant|>\n"
    (said,) = load("text-generation")(prompt, **THREE)
    assert said["generated_text"] == prompt + answer(CHATS["text"])


def test_text_generation_answers_chats_alone_and_in_batches(load, answer):
    turns = [user(text("Where is it?")), assistant("in the attic"), {"role": "user", "content": "Please open it."}]
    chats = [CHATS["plain text"], turns, CHATS["text"]]
    expected = [[*chat, {"role": "assistant", "content": answer(chat)}] for chat in chats]
    for size in (1, 2):
        rows = load("text-generation")(chats, batch_size=size, **THREE)
        assert [said["generated_text"] for (said,) in rows] == expected


# Speech


@pytest.fixture(scope="module")
def speaking_checkpoint(tmp_path_factory):
    return write_small_checkpoint(tmp_path_factory.mktemp("speaking"), {"model_type": "eagle_speech", **SPEECH})


def test_any_to_any_speaks(speaking_checkpoint):
    pipe = pipeline("any-to-any", model=str(speaking_checkpoint), trust_remote_code=True)
    options = {"voice": "Emma", "speed": 1.1, "max_new_tokens": 8, "do_sample": False}
    for chat in (CHATS["sound"], CHATS["picture"]):
        (answer,) = pipe(text=chat, generation_mode="audio", generate_kwargs=dict(options))
        waveform = answer["generated_audio"]
        assert waveform.dtype == np.float32 and waveform.ndim == 1 and len(waveform) and np.abs(waveform).max() <= 1
        inputs = pipe.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True)
        _, (expected,) = pipe.model.generate(**inputs.to(pipe.model.dtype), generation_mode="audio", **options)
        np.testing.assert_allclose(waveform, expected.numpy(), atol=1e-3)


def test_text_to_audio_speaks(speaking_checkpoint):
    pipe = pipeline("text-to-audio", model=str(speaking_checkpoint), trust_remote_code=True)
    answer = pipe(CHATS["text"], generate_kwargs={"max_new_tokens": 8, "do_sample": False, "voice": "Tom"})
    assert answer["sampling_rate"] == pipe.model.config.speech_config.sampling_rate
    assert answer["audio"].ndim == 1 and answer["audio"].dtype == np.float32 and len(answer["audio"])
