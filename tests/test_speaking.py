"""Answers as speech: at once, streamed, in batches; voices of recordings."""

import threading
from itertools import pairwise, zip_longest

import numpy as np
import pytest
import torch
from conftest import ROOT
from test_speech_eagle import TINY
from transformers import PreTrainedTokenizerFast

TOKENIZER = PreTrainedTokenizerFast.from_pretrained(ROOT)
PROMPT = torch.tensor([[2, 40, 41, 42, 3]])
GREEDY = {"do_sample": False, "max_new_tokens": 40, "min_new_tokens": 40, "tokenizer": TOKENIZER}


@pytest.fixture(params=["hifigan", "istft"])
def model(request, tiny_model):
    model = tiny_model(speech_config=TINY | {"vocoder_type": request.param}, text_config={"vocab_size": len(TOKENIZER)})
    model.speech_decoder.duration_predictor.proj.bias.data.fill_(1.2)  # about three frames a character
    return model


@pytest.fixture
def speaking(tiny_model):
    model = tiny_model(speech_config=TINY | {"vocoder_type": "istft"}, text_config={"vocab_size": len(TOKENIZER)})
    model.speech_decoder.duration_predictor.proj.bias.data.fill_(1.2)
    return model


def test_an_answer_is_written_as_without_speech(model):
    ids, (waveform,) = model.generate(PROMPT, generation_mode="audio", voice="Emma", emotion="sad", **GREEDY)
    assert torch.equal(ids, model.generate(PROMPT, **GREEDY))
    assert waveform.dtype == torch.float32 and waveform.ndim == 1
    assert len(waveform) > 40 * 64 and waveform.abs().max() <= 1 and waveform.std() > 0


@pytest.mark.parametrize("frames", [1, 24, 1000])
def test_a_stream_is_the_answer(model, frames):
    ids, (whole,) = model.generate(PROMPT, generation_mode="audio", voice="Emma", speed=1.1, **GREEDY)
    events = list(model.stream(PROMPT, voice="Emma", speed=1.1, chunk_frames=frames, **GREEDY))
    assert "".join(event.text for event in events) == TOKENIZER.decode(ids[0, PROMPT.shape[1] :], skip_special_tokens=True)
    chunks = [event for event in events if event.audio is not None]
    torch.testing.assert_close(torch.cat([chunk.audio for chunk in chunks]), whole, atol=1e-4, rtol=0)
    assert chunks[0].start == 0 and chunks[-1].end == len(whole) / model.config.sampling_rate
    assert all(one.end == next_one.start for one, next_one in pairwise(chunks))
    if frames == 24:
        texts = [i for i, event in enumerate(events) if event.text]
        assert events.index(chunks[0]) < texts[-1], "sound comes while text is still being written"


def test_a_batch_says_what_each_alone_says(speaking):
    prompts = torch.cat([PROMPT, PROMPT.flip(1)])
    _, waveforms = speaking.generate(prompts, generation_mode="audio", **GREEDY)
    for prompt, waveform in zip(prompts, waveforms):
        _, (alone,) = speaking.generate(prompt[None], generation_mode="audio", **GREEDY)
        torch.testing.assert_close(waveform, alone, atol=1e-4, rtol=0)


def test_sampled_answers_are_spoken(speaking):
    choices = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 12, "tokenizer": TOKENIZER}
    ids, waveforms = speaking.generate(PROMPT, generation_mode="audio", **choices)
    assert len(ids) == len(waveforms) == 3


def test_what_pipelines_ask_for(speaking):
    outputs = speaking.generate(PROMPT, generation_mode="audio", return_dict_in_generate=True, **GREEDY)
    assert outputs["sampling_rate"] == speaking.config.sampling_rate == 22_050
    assert len(outputs["audio"]) == 1 and outputs["sequences"].shape == (1, 45)
    assert speaking.output_modalities == ("text", "audio")


def test_a_written_answer_is_spoken_as_a_new_one(speaking):
    ids, (waveform,) = speaking.generate(PROMPT, generation_mode="audio", voice="Tom", **GREEDY)
    mask = torch.zeros_like(ids)
    mask[:, PROMPT.shape[1] :] = 1
    mask[:, 1] = 1  # an earlier answer
    spoken = speaking.speak(ids, mask, TOKENIZER, voice="Tom")
    torch.testing.assert_close(spoken, waveform, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="no answer to speak"):
        speaking.speak(ids, torch.zeros_like(ids), TOKENIZER)


@pytest.mark.parametrize("text", ["", "?!", "😀", "東京", "```\nprint(1)\n```"])
def test_an_answer_with_nothing_to_say_is_a_frame_of_silence(speaking, text):
    ids = torch.tensor([[2, *TOKENIZER(text, add_special_tokens=False).input_ids, 3]])
    mask = torch.ones_like(ids)
    mask[:, 0] = 0
    assert torch.equal(speaking.speak(ids, mask, TOKENIZER), torch.zeros(64))


def test_ten_thousand_characters(speaking):
    ids = torch.tensor([[2, *TOKENIZER("the lamp costs 3 😀 東京. " * 450, add_special_tokens=False).input_ids]])
    mask = torch.ones_like(ids)
    mask[:, 0] = 0
    speaking.config.text_config.max_position_embeddings = ids.shape[1]
    spoken = speaking.speak(ids, mask, TOKENIZER)
    assert len(spoken) > 10_000 * 64 and spoken.isfinite().all() and spoken.abs().max() <= 1


def test_embeddings_instead_of_ids(speaking):
    embeds = speaking.get_input_embeddings()(PROMPT)
    ids, (waveform,) = speaking.generate(inputs_embeds=embeds, generation_mode="audio", **GREEDY)
    _, (expected,) = speaking.generate(PROMPT, generation_mode="audio", **GREEDY)
    assert ids.shape == (1, 40)
    torch.testing.assert_close(waveform, expected, atol=1e-4, rtol=0)


def test_a_stream_can_be_left(speaking):
    threads = threading.active_count()
    stream = speaking.stream(PROMPT, **GREEDY | {"max_new_tokens": 500, "min_new_tokens": 500})
    next(stream)
    stream.close()
    assert threading.active_count() == threads
    assert not speaking.model._forward_hooks


def test_two_streams_at_a_time(speaking):
    alone = [list(speaking.stream(PROMPT, voice=voice, **GREEDY)) for voice in ("Mia", "Tom")]
    streams = [speaking.stream(PROMPT, voice=voice, **GREEDY) for voice in ("Mia", "Tom")]
    together = list(zip_longest(*streams))
    for i in range(2):
        for event, expected in zip((events[i] for events in together if events[i]), alone[i], strict=True):
            assert event.text == expected.text
            if expected.audio is not None:
                torch.testing.assert_close(event.audio, expected.audio, atol=1e-4, rtol=0)


def test_what_goes_wrong_while_writing_reaches_the_caller(speaking):
    picture = torch.zeros(1, 3, 56, 56)
    with pytest.raises(ValueError, match="0 image placeholders"):
        list(speaking.stream(PROMPT, pixel_values=picture, **GREEDY))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"voice": "Bob"}, "unknown voice 'Bob'; known: Chris"),
        ({"emotion": "angry"}, "unknown emotion 'angry'; known: neutral"),
        ({"speed": 0}, "speed is 0; it must lie between"),
    ],
)
@pytest.mark.parametrize("way", ["generate", "stream"])
def test_unknown_ways_to_speak(speaking, way, options, message):
    mode = {"generation_mode": "audio"} if way == "generate" else {}
    with pytest.raises(ValueError, match=message):
        getattr(speaking, way)(PROMPT, **mode, **options, **GREEDY)


def test_what_speech_cannot_do(speaking, tiny_model):
    with pytest.raises(ValueError, match="no beams"):
        speaking.generate(PROMPT, generation_mode="audio", num_beams=2, **GREEDY)
    with pytest.raises(ValueError, match="voice: only speech has these"):
        speaking.generate(PROMPT, voice="Emma", **GREEDY)
    with pytest.raises(ValueError, match="generation_mode is 'image'"):
        speaking.generate(PROMPT, generation_mode="image", **GREEDY)
    with pytest.raises(ValueError, match="stream.. got 2 requests"):
        speaking.stream(PROMPT.repeat(2, 1), **GREEDY)
    with pytest.raises(ValueError, match="chunk_frames is 0"):
        speaking.stream(PROMPT, chunk_frames=0, **GREEDY)
    with pytest.raises(ValueError, match="holds no tokenizer; pass tokenizer="):
        speaking.generate(PROMPT, generation_mode="audio", max_new_tokens=3)
    mute = tiny_model()
    assert mute.output_modalities == ("text",) and mute.config.sampling_rate is None
    for speak in (mute.stream, lambda *args, **kwargs: mute.generate(*args, generation_mode="audio", **kwargs)):
        with pytest.raises(ValueError, match="no speech decoder"):
            speak(PROMPT, **GREEDY)


# Voices of recordings


def test_a_cloned_voice_speaks(model):
    speaking = model
    reference = np.random.default_rng(0).normal(0, 0.1, 22_050)
    voice = speaking.embed_voice(reference)
    assert voice.shape == (32,)
    _, (cloned,) = speaking.generate(PROMPT, generation_mode="audio", voice=voice, **GREEDY)
    _, (own,) = speaking.generate(PROMPT, generation_mode="audio", voice="Chris", **GREEDY)
    assert len(cloned) != len(own) or not torch.equal(cloned, own)
    for target in (reference, voice, "Emma"):
        converted = speaking.convert_voice(reference[:9_999], target)
        assert converted.shape == (9_999,) and torch.equal(converted, speaking.convert_voice(reference[:9_999], target))


@pytest.mark.parametrize(
    "recording, message",
    [
        (np.zeros(4_410), "reference is 0.20 s long; it must be at least 0.50 s at 22050 Hz"),
        (np.zeros(22_050), "reference is silent"),
        (np.full(22_050, np.nan), "reference holds samples that are not finite"),
        (np.zeros((2, 22_050)), r"reference has shape \(2, 22050\); it must be mono"),
    ],
)
def test_recordings_that_tell_no_voice(speaking, recording, message):
    with pytest.raises(ValueError, match=message):
        speaking.embed_voice(recording)
