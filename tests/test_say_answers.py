"""training.synthesis.say_answers: conversations get speech, by engines of one's own and by eSpeak NG."""

import io
import json
import sys

import numpy as np
import pytest
import soundfile

from training import shards
from training.synthesis import expressive_speech, say_answers, speaking
from training.synthesis.voices import VOICES, say

SAID = []


def beep(text, voice, emotion, speed, volume):
    SAID.append((text, voice, emotion, speed, volume))
    return volume * np.sin(np.arange(24_000) / 20) / 4, 24_000


def lower(waveform, sampling_rate, voice):
    return waveform / 2, sampling_rate


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Writes the samples as shards, and runs the script on them; returns the rows it wrote."""

    def run(samples, *options, output="said"):
        rows = [shards.encode_row(sample, f"row-{i}", "test", "mit") for i, sample in enumerate(samples)]
        form = {"source": "test", "license": "mit", "seed": 0, "options": {}, "processes": 1}
        shards.write_shards(lambda index: rows[index], len(rows), tmp_path / f"{output}-rows", **form)
        arguments = ["--shards", str(tmp_path / f"{output}-rows"), "--output", str(tmp_path / output), *options]
        monkeypatch.setattr(sys, "argv", ["say_answers", *arguments])
        say_answers.main()
        return list(shards.read_rows(tmp_path / output))

    return run


def sample(answer, **more):
    return {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": answer}]} | more


def test_answers_are_spoken_and_others_left_out(run):
    call = json.dumps([{"type": "function", "function": {"name": "open", "arguments": {}}}])
    called = {"messages": [{"role": "user", "content": "open"}, {"role": "assistant", "content": "Well.", "tool_calls": call}]}
    asked = {"messages": [{"role": "user", "content": "hello"}]}
    others = [sample(text) for text in ("So:\n```\nprint(1)\n```", "?!", "東京 is a town.", "[laugh] No.", "")]
    last = sample("It is red.", meta={"skill": "scene", "words": [["It", 0.0, 0.1]]})
    rows = run([sample("The lamp costs $3."), called, asked, *others, last])
    assert [row["id"] for row in rows] == ["row-0/said", "row-8/said"]
    for row in rows:
        meta = json.loads(row["meta"])
        assert meta["voice"] in VOICES and {"emotion", "speed", "volume"} < meta.keys()
        waveform, rate = soundfile.read(io.BytesIO(row["speech"]["bytes"]))
        assert rate == 16_000 and len(waveform) > 4_000 and np.abs(waveform).max() > 0.02
    meta = json.loads(rows[1]["meta"])
    assert meta["skill"] == "scene" and "words" not in meta


@pytest.mark.parametrize("text", ["“Hello,” she said.", "— Yes, yes.", "• One lamp", "It's red, isn't it? (No.)", "at 3:30, in the café"])
def test_nothing_of_an_answer_gets_lost(text):
    """Words are told apart where eSpeak NG tells when they begin, whatever stands around them."""
    said = say_answers.answer_of(sample_row(text))
    waveform, rate = say_answers.say_english(said, voice="Emma", emotion="neutral", speed=1.0, volume=1.0)
    utterance = say(said, "Emma", round(speaking.WORDS_A_MINUTE))
    assert len(expressive_speech.cut(said, utterance)) == len(utterance.words)
    whole = utterance.words[-1][2]
    assert len(waveform) / rate == pytest.approx(whole, rel=0.3)


def sample_row(text):
    return shards.encode_row(sample(text), "0", "test", "mit")


def test_speech_needs_an_answer_that_it_says():
    row = shards.encode_row(sample("Red.", speech=np.zeros(800, np.float32)), "7", "test", "mit")
    shards.check_row(row)
    with pytest.raises(ValueError, match="'7' has speech, but its last message, of role user"):
        shards.check_row(row | {"messages": row["messages"][:1]})
    row["messages"][-1]["content"] = []
    with pytest.raises(ValueError, match="of role assistant, is no answer that says something"):
        shards.check_row(row)


def test_an_engine_of_ones_own(run):
    SAID.clear()
    rows = run([sample(f"Lamp {i}.") for i in range(3)], "--say", f"{__name__}:beep", "--voices", "Ann", "Ben")
    assert [text for text, *_ in SAID] == ["Lamp zero.", "Lamp one.", "Lamp two."]
    for row, (_, voice, emotion, speed, volume) in zip(rows, SAID, strict=True):
        assert json.loads(row["meta"]) == {"voice": voice, "emotion": emotion, "speed": speed, "volume": volume}
        assert voice in ("Ann", "Ben")
        waveform, rate = soundfile.read(io.BytesIO(row["speech"]["bytes"]))
        assert rate == 24_000 and np.abs(waveform).max() == pytest.approx(volume / 4, abs=0.01)


def test_speech_to_speech(run):
    speech = np.sin(np.arange(8_000) / 20).astype(np.float32) / 2
    rows = run([sample("Red."), sample("Blue.", speech=speech, meta={"speaker": 7})], "--convert", f"{__name__}:lower")
    assert [row["id"] for row in rows] == ["row-1/said"]
    meta = json.loads(rows[0]["meta"])
    assert meta.keys() == {"speaker", "voice"} and meta["voice"] in VOICES
    waveform, _ = soundfile.read(io.BytesIO(rows[0]["speech"]["bytes"]))
    np.testing.assert_allclose(waveform, speech / 2, atol=1e-3)


@pytest.mark.parametrize("name", ["my_speech", "json:nothing", "no_such_module_at_all:say", ":say"])
def test_functions_that_are_not_there(run, name):
    with pytest.raises(ValueError, match=f"no function '{name}' .*; expected module:function"):
        run([sample("Red.")], "--say", name)
