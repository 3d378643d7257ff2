"""The processor: placeholders, order, masks, sound, video, tool calls, saving, and what is refused."""

import base64
import io
import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import av
import numpy as np
import pytest
import soundfile
import soxr
import torch
from eagle import media_eagle
from eagle.image_processing_eagle import EagleImageProcessor
from eagle.processing_eagle import EagleProcessor
from huggingface_hub import HfApi, RepoUrl
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoTokenizer, WhisperFeatureExtractor

ROOT = Path(__file__).resolve().parent.parent
IMAGE, AUDIO, VIDEO = "<|image_pad|>", "<|audio_pad|>", "<|video_pad|>"
CROP = f"<image>{IMAGE * 128}</image>"
ASK = {"type": "text", "text": "what is it?"}


def build(**options):
    tokenizer = AutoTokenizer.from_pretrained(ROOT)
    parts = EagleImageProcessor(), WhisperFeatureExtractor(), tokenizer
    return EagleProcessor(*parts, chat_template=tokenizer.chat_template, **options)


PROCESSOR = build()
TOKENIZER = PROCESSOR.tokenizer


def tone(seconds, rate=16000, pitch=440.0):
    return (0.3 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def picture(height=100, width=100, value=90):
    return np.full((height, width, 3), value, np.uint8)


def chat(messages, **kwargs):
    return PROCESSOR.apply_chat_template(messages, tokenize=True, return_dict=True, **kwargs)


def user(*content):
    return [{"role": "user", "content": list(content)}]


def audio_span(*counts):
    return "".join(f"<audio>{AUDIO * count}</audio>" for count in counts)


def wav(samples, rate, **options):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=options.pop("format", "WAV"), **options)
    return buffer.getvalue()


# Placeholders


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 1400), st.integers(1, 1000)), min_size=1, max_size=3))
def test_pictures_take_the_papers_number_of_tokens(sizes):
    images = [picture(*size) for size in sizes]
    inputs = PROCESSOR(text=[IMAGE * len(images) + " what?"], images=images)
    counts = [math.ceil(height / 336) * math.ceil(width / 336) * 128 for height, width in sizes]
    assert (inputs.input_ids == PROCESSOR.image_token_id).sum() == sum(counts)
    assert len(inputs.pixel_values) * 128 == sum(counts)
    announced = PROCESSOR._get_num_multimodal_tokens(image_sizes=sizes)
    assert announced.num_image_tokens == counts
    assert announced.num_image_patches == [count // 128 for count in counts]


@settings(max_examples=40)
@given(st.lists(st.integers(1, 1_600_000), min_size=1, max_size=3), st.sampled_from(["trimmed", "padded"]))
def test_sounds_take_tokens_for_the_frames_that_hold_sound(lengths, layout):
    inputs = PROCESSOR(text=AUDIO * len(lengths), audio=[np.ones(n, np.float32) for n in lengths], audio_layout=layout)
    windows = [min(480000, n - start) for n in lengths for start in range(0, n, 480000)]
    frames = [math.ceil(math.ceil(n / 160) / 2) if layout == "trimmed" else 1500 for n in windows]
    counts = [math.ceil(count / 16) for count in frames]
    assert (inputs.input_ids == PROCESSOR.audio_token_id).sum() == sum(counts)
    assert inputs.input_features.shape == (len(windows), 80, 3000)
    # the model counts by this rule, from the mask alone
    assert ((inputs.input_features_mask.sum(-1) + 1) // 2 + 15).div(16, rounding_mode="floor").tolist() == counts
    announced = PROCESSOR._get_num_multimodal_tokens(audio_lengths=lengths, audio_layout=layout)
    assert sum(announced.num_audio_tokens) == sum(counts)


@pytest.mark.parametrize(
    "seconds, counts", [(3, [10]), (30, [94]), (31, [94, 4]), (95, [94, 94, 94, 16]), (0.001, [1])]
)
def test_sound_of_any_length_is_split_into_windows(seconds, counts):
    inputs = PROCESSOR(text=AUDIO, audio=tone(seconds))
    assert TOKENIZER.decode(inputs.input_ids[0]) == audio_span(*counts)


def test_spans_of_both_layouts():
    images = [picture(672, 500), picture(10, 10)]
    inputs = PROCESSOR(text=f"a{IMAGE}b{IMAGE}", images=images)
    assert TOKENIZER.decode(inputs.input_ids[0]) == f"a{CROP}{CROP}\n{CROP}{CROP}b{CROP}"
    inputs = PROCESSOR(text=f"a{IMAGE}b{IMAGE}", images=images, image_layout="overview")
    row = CROP.replace("image>", "slice>") * 2
    assert TOKENIZER.decode(inputs.input_ids[0]) == f"a{CROP}{row}\n{row}b{CROP}"
    assert inputs.pixel_values.shape[0] == 6
    inputs = PROCESSOR(text="a" + IMAGE, images=images[0], max_crops=1)
    assert TOKENIZER.decode(inputs.input_ids[0]) == f"a{CROP}"


def test_decoder_mode_takes_one_placeholder_a_window_or_one_a_transcript_token():
    processor = build(audio_token_source="decoder", audio_stack_factor=1)
    inputs = processor(text=f"{AUDIO} and {AUDIO}", audio=[tone(31), tone(1)])
    assert TOKENIZER.decode(inputs.input_ids[0]) == audio_span(1, 1) + " and " + audio_span(1)
    processor.transcript_tokenizer = TOKENIZER
    said = [["open the door", "now"], "yes please"]
    inputs = processor(text=f"{AUDIO} and {AUDIO}", audio=[tone(31), tone(1)], audio_transcripts=said)
    assert TOKENIZER.decode(inputs.input_ids[0]) == audio_span(3, 1) + " and " + audio_span(2)
    assert inputs.audio_transcript_mask.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    written = [" open the door", " now<|end|><|end|>", " yes please<|end|>"]
    assert TOKENIZER.batch_decode(inputs.audio_transcript_ids) == written
    silent = processor(text=f"{AUDIO} hm", audio=tone(1), audio_transcripts=[""])
    assert silent.audio_transcript_ids.shape == (1, 0) and AUDIO not in TOKENIZER.decode(silent.input_ids[0])
    assert processor.get_num_audio_tokens(480000) == 1
    with pytest.raises(ValueError, match=r"\[1\] strings for sounds of \[2\] windows"):
        processor(text=AUDIO, audio=tone(31), audio_transcripts=["one"])
    with pytest.raises(ValueError, match="decoder"):
        PROCESSOR(text=AUDIO, audio=tone(1), audio_transcripts=["one"])


# Conversations


def test_a_conversation_with_everything(tmp_path):
    Image.fromarray(picture(value=10)).save(tmp_path / "sign.png")
    soundfile.write(tmp_path / "question.wav", tone(1), 16000)
    messages = [
        {"role": "system", "content": "be kind"},
        *user(
            {"type": "image", "image": str(tmp_path / "sign.png")},
            {"type": "text", "text": "and "},
            {"type": "audio", "path": str(tmp_path / "question.wav")},
            {"type": "image", "image": Image.fromarray(picture(500, 300, 20))},
            {"type": "video", "video": [picture(value=30), picture(value=40)]},
        ),
        {"role": "assistant", "content": "a door"},
        *user(
            {"type": "audio", "audio": tone(2, 8000), "sampling_rate": 8000},
            {"type": "image", "image": picture(value=50)},
        ),
    ]
    inputs = chat(messages, add_generation_prompt=True)
    assert TOKENIZER.decode(inputs.input_ids[0]) == (
        f"<|system|>\nbe kind<|end|>\n<|user|>\n{CROP}and {audio_span(4)}{CROP}\n{CROP}0.5s {CROP}1.5s {CROP}<|end|>\n"
        f"<|assistant|>\na door<|end|>\n<|user|>\n{audio_span(7)}{CROP}<|end|>\n<|assistant|>\n"
    )
    assert inputs.image_sizes.tolist() == [[100, 100], [500, 300], [336, 336], [336, 336], [100, 100]]
    centre = inputs.pixel_values[:, 0, 168, 168] * 0.26862954 + 0.48145466
    assert (centre * 255).round().tolist() == [10, 20, 20, 30, 40, 50]
    assert set(inputs) == set(PROCESSOR.model_input_names)
    assert str(tmp_path / "sign.png") in str(messages)  # the caller's messages stay as they were


def test_a_batch_is_left_padded_and_equals_its_rows():
    conversations = [
        user({"type": "image", "image": picture(400, 100)}, ASK),
        user(ASK),
        user({"type": "audio", "audio": tone(1)}, {"type": "image", "image": picture(10, 10, 200)}),
    ]
    batch = chat(conversations, add_generation_prompt=True)
    rows = [chat(conversation, add_generation_prompt=True) for conversation in conversations]
    for ids, mask, row in zip(batch.input_ids, batch.attention_mask, rows):
        assert torch.equal(ids[mask.bool()], row.input_ids[0])
        assert mask.tolist() == sorted(mask.tolist())
    assert torch.equal(batch.pixel_values, torch.cat([rows[0].pixel_values, rows[2].pixel_values]))
    assert torch.equal(batch.input_features, rows[2].input_features)


def test_rendering_alone_and_then_processing_is_the_same():
    media = {"images": [picture(400, 400)], "audio": [tone(1)], "videos": [[picture(value=5)] * 3]}
    parts = [{"type": kind[:-1] if kind != "audio" else kind} for kind in media]
    rendered = PROCESSOR.apply_chat_template(user(*parts, ASK), add_generation_prompt=True)
    assert rendered == f"<|user|>\n{IMAGE}{AUDIO}{VIDEO}what is it?<|end|>\n<|assistant|>\n"
    apart = PROCESSOR(text=rendered, **media)
    filled = [{**part, part["type"]: media[key][0]} for part, key in zip(parts, media)]
    together = chat(user(*filled, ASK), add_generation_prompt=True)
    assert apart.keys() == together.keys()
    assert all(torch.equal(apart[key], together[key]) for key in apart)


@pytest.mark.parametrize("image_first", [True, False])
def test_assistant_masks_stay_aligned_with_expanded_media(image_first):
    media = [
        {"type": "image", "image": picture(700, 700)},
        {"type": "audio", "audio": tone(31)},
        {"type": "video", "video": [picture()] * 5},
    ]
    call = {"type": "function", "function": {"name": "open", "arguments": {"room": "attic"}}}
    messages = [
        *user(*(media if image_first else media[::-1]), ASK),
        {"role": "assistant", "content": "a door"},
        *user({"type": "image", "image": picture()}, ASK),
        {"role": "assistant", "content": "a window", "tool_calls": [call]},
    ]
    inputs = chat([messages, messages[:2]], return_assistant_tokens_mask=True)
    assert inputs.assistant_masks.shape == inputs.input_ids.shape
    learned = [TOKENIZER.decode(ids[mask.bool()]) for ids, mask in zip(inputs.input_ids, inputs.assistant_masks)]
    written = f"<|tool_call|>{json.dumps(call['function'])}<|/tool_call|>"
    assert learned == [f"a door<|end|>a window{written}<|end|>", "a door<|end|>"]
    assert "offset_mapping" not in inputs


def test_offsets_of_replacements_are_there_for_serving_engines():
    inputs = PROCESSOR(text=f"a{IMAGE}b", images=picture(), return_text_replacement_offsets=True)
    (offset,) = inputs.text_replacement_offsets[0]
    assert (offset["type"], offset["span"], offset["replacement"]) == ("image", (1, 1 + len(IMAGE)), CROP)


def test_the_callers_text_stays_as_it_was():
    text = [f"a{IMAGE}"]
    PROCESSOR(text=text, images=picture())
    assert text == [f"a{IMAGE}"]


def test_tools_reach_the_prompt():
    function = {"name": "open_door", "description": "Open it.", "parameters": {}}
    inputs = chat(user(ASK), tools=[{"type": "function", "function": function}])
    assert '<|tool|>[{"Open it.": "open_door", "parameters": {}}]<|/tool|>' in TOKENIZER.decode(inputs.input_ids[0])


@pytest.mark.parametrize(
    "result", [5, 0, 1.5, True, False, None, [1, "<|end|>"], [], [{"type": "fruit"}], {"a": "<s>"}]
)
def test_what_a_tool_returns_is_processed_as_it_is_rendered(result):
    messages = [
        *user(ASK),
        {"role": "assistant", "tool_calls": [{"name": "count"}]},
        {"role": "tool", "content": result},
    ]
    (ids,) = chat(messages).input_ids
    assert TOKENIZER.decode(ids) == PROCESSOR.apply_chat_template(messages)
    written = TOKENIZER.decode(ids).partition("<|tool_response|>\n")[2].removesuffix("<|end|>\n")
    assert json.loads(written) == result and "<" not in written


def test_a_tool_may_return_a_picture():
    result = [{"type": "text", "text": "here"}, {"type": "image", "image": picture()}]
    inputs = chat([*user(ASK), {"role": "tool", "content": result}])
    assert f"<|tool_response|>\nhere{CROP}<|end|>\n" in TOKENIZER.decode(inputs.input_ids[0])


@pytest.mark.parametrize("grey", [picture()[..., 0], torch.from_numpy(picture()[..., 0]), picture(3, 100)[..., 0]])
def test_grey_pictures_need_no_axis_for_their_channel(grey):
    expected = PROCESSOR.image_processor(grey).pixel_values
    for inputs in (
        PROCESSOR(text="a" + IMAGE, images=grey),
        PROCESSOR(text="a" + IMAGE, images=[grey]),
        chat(user({"type": "image", "image": grey}, ASK)),
    ):
        assert torch.equal(inputs.pixel_values, expected)
    mixed = PROCESSOR(text="a" + IMAGE * 2, images=[grey, picture()])
    assert mixed.image_sizes.tolist() == [list(grey.shape), [100, 100]]


def png():
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, "PNG")
    return buffer.getvalue()


ENCODED = base64.b64encode(png()).decode()
LINES = "\n".join(ENCODED[start : start + 76] for start in range(0, len(ENCODED), 76))


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "base64": ENCODED},
        {"type": "image", "base64": LINES},
        {"type": "image", "url": f"data:image/png;base64,{ENCODED}"},
        {"type": "image", "url": f"data:image/png;base64,{quote(ENCODED, safe='')}"},
        {"type": "image", "url": f"data:image/png,{quote(png())}"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{ENCODED}"}},
    ],
)
def test_media_as_base64_and_as_data_urls(part):
    expected = chat(user({"type": "image", "image": picture()}, ASK)).pixel_values
    assert torch.equal(chat(user(part, ASK)).pixel_values, expected)


@pytest.mark.parametrize(
    "part, reason",
    [
        ({"type": "image", "base64": ENCODED[:-1]}, "given as base64 is malformed: .*padding.*Expected base64"),
        ({"type": "image", "base64": "?" + ENCODED}, "given as base64 is malformed"),
        ({"type": "image", "url": f"data:image/png;base64,{ENCODED[:-3]}"}, "Data URL 'data:image/png;base64' is malf"),
        (
            {"type": "image", "url": f"data:image/png;base64,?{ENCODED}"},
            "Data URL 'data:image/png;base64' is malformed",
        ),
        ({"type": "image", "url": "data:image/png;base64"}, "no comma: expected data:<type>;base64,<data>"),
        ({"type": "audio", "url": "data:audio/wav;base64,abc"}, "Data URL 'data:audio/wav;base64' is malformed"),
    ],
)
def test_malformed_base64_says_so(part, reason):
    with pytest.raises(ValueError, match=reason):
        chat(user(part, ASK))


# Sound


def test_features_are_exactly_whispers():
    rng = np.random.default_rng(0)
    for seconds in (0.01, 0.1, 3.337, 12, 29.99, 30):
        sound = (rng.standard_normal(round(seconds * 16000)) * 0.1).astype(np.float32)
        inputs = PROCESSOR(text=AUDIO, audio=sound)
        whisper = WhisperFeatureExtractor()(sound, sampling_rate=16000, return_tensors="pt", return_attention_mask=True)
        torch.testing.assert_close(inputs.input_features, whisper.input_features, atol=1e-6, rtol=0)
        assert torch.equal(inputs.input_features_mask, whisper.attention_mask.long())


def test_features_do_not_depend_on_the_batch():
    sounds = [tone(0.5), tone(31, pitch=300), tone(4, pitch=800)]
    together = PROCESSOR(text=AUDIO * 3, audio=sounds).input_features
    alone = torch.cat([PROCESSOR(text=AUDIO, audio=sound).input_features for sound in sounds])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_any_rate_and_channel_count(rate, tmp_path):
    left, right = tone(1, rate), tone(1, rate, 200)
    expected = soxr.resample((left + right) / 2, rate, 16000)
    stereo = np.stack([left, right], 1)
    soundfile.write(tmp_path / "stereo.wav", stereo, rate, subtype="FLOAT")
    for source in (stereo, stereo.T, torch.from_numpy(stereo), {"array": stereo, "sampling_rate": rate}):
        np.testing.assert_allclose(PROCESSOR.load_audio(source, rate), expected, atol=1e-6)
    for source in (tmp_path / "stereo.wav", (tmp_path / "stereo.wav").read_bytes()):
        np.testing.assert_allclose(PROCESSOR.load_audio(source), expected, atol=1e-6)
    inputs = PROCESSOR(text=AUDIO, audio=stereo, sampling_rate=rate)
    assert torch.equal(inputs.input_features, PROCESSOR(text=AUDIO, audio=expected).input_features)


def test_the_rate_of_arrays_in_a_conversation_may_be_given_in_each_place():
    sound = tone(1, 8000)
    expected = PROCESSOR(text=AUDIO, audio=sound, sampling_rate=8000).input_features
    messages = user({"type": "audio", "audio": sound})
    options = {"sampling_rate": 8000}
    assert torch.equal(PROCESSOR(text=AUDIO, audio=sound, audio_kwargs=options).input_features, expected)
    assert torch.equal(chat(messages, processor_kwargs=options).input_features, expected)
    assert torch.equal(chat(messages, processor_kwargs={"audio_kwargs": options}).input_features, expected)
    assert torch.equal(chat(user({"type": "audio", "audio": sound, **options})).input_features, expected)


@pytest.mark.parametrize("format", ["FLAC", "OGG", "MP3"])
def test_compressed_sound(format):
    decoded = PROCESSOR.load_audio(wav(tone(2), 16000, format=format))
    assert len(decoded) == pytest.approx(32000, abs=2400)
    assert np.abs(np.fft.rfft(decoded[8000:24000])).argmax() == 440


@pytest.mark.parametrize("dtype, loudest", [(np.int16, 2**15), (np.int32, 2**31), (np.uint8, 2**7)])
def test_integer_samples_are_scaled_by_their_type(dtype, loudest):
    middle = loudest if dtype == np.uint8 else 0
    samples = (tone(1) * loudest + middle).astype(dtype)
    np.testing.assert_allclose(PROCESSOR.load_audio(samples), tone(1), atol=1.1 / loudest + 1e-6)


def test_silent_and_clipped_sound_work():
    for sound in (np.zeros(16000, np.float32), np.sign(tone(1)), 1000 * tone(1)):
        features = PROCESSOR(text=AUDIO, audio=sound).input_features
        assert torch.isfinite(features).all()


@pytest.mark.parametrize(
    "sound, reason",
    [
        (np.zeros(0, np.float32), "no samples"),
        (np.array([0.1, np.nan], np.float32), "NaN"),
        (np.array([0.1, np.inf], np.float32), "NaN or infinite"),
        (np.zeros((2, 3, 4), np.float32), "1 or 2 axes"),
        (wav(np.zeros(0, np.float32), 16000), "no samples"),
        (np.zeros((0, 2), np.float32), "no samples"),
        (np.zeros((2, 0), np.float32), "no samples"),
        (b"hello, I am a text", "Cannot read"),
        (b"", "Cannot read"),
    ],
)
def test_sound_that_is_none_says_why(sound, reason):
    with pytest.raises(ValueError, match=reason):
        PROCESSOR(text=AUDIO, audio=sound)
    with pytest.raises(ValueError, match=reason):
        chat(user({"type": "audio", "audio": sound}))


def test_a_missing_file_and_an_impossible_rate_are_named():
    with pytest.raises(FileNotFoundError, match="nowhere.wav"):
        PROCESSOR(text=AUDIO, audio="nowhere.wav")
    with pytest.raises(ValueError, match="sampling_rate"):
        PROCESSOR.load_audio(tone(1), -8000)


def test_sound_of_which_nothing_is_left_at_the_models_rate_is_refused():
    with pytest.raises(ValueError, match="too short: its 1 samples at 48000 Hz are none at 16000 Hz"):
        PROCESSOR(text=AUDIO, audio=np.ones(1, np.float32), sampling_rate=48000)


NOISE = (np.random.default_rng(0).standard_normal(5 * 48000) * 0.1).astype(np.float32)  # of little use to compression
SOUND_FORMATS = ["WAV", "AIFF", "AU", "FLAC", "OGG/VORBIS", "OGG/OPUS", "MP3", "WebM"]


def encode_sound(samples, format, **options):
    """A file of samples at 48 kHz; WebM by PyAV, as browsers record it."""
    if format != "WebM":
        return wav(samples, 48000, format=format.partition("/")[0], subtype=format.partition("/")[2] or None, **options)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="webm") as container:
        track = container.add_stream("libopus", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray((samples[None] * 32767).astype(np.int16), format="s16", layout="mono")
        frame.sample_rate = 48000
        container.mux(track.encode(frame))
        container.mux(track.encode())
    return buffer.getvalue()


@pytest.mark.parametrize("format", SOUND_FORMATS)
def test_sound_cut_off_anywhere_is_refused(format, tmp_path):
    data = encode_sound(NOISE, format)
    assert len(PROCESSOR.load_audio(data)) == pytest.approx(80000, abs=1600)
    for part in (0.5, 0.7, 0.9):
        cut = tmp_path / "cut"
        cut.write_bytes(data[: int(part * len(data))])
        for source in (cut, cut.read_bytes()):
            with pytest.raises(ValueError, match="cut off"):
                PROCESSOR.load_audio(source)


def without_length(format, samples=NOISE):
    """Sound as a stream leaves it: complete, but nothing in its header, or at its end, says how long it is."""
    data = encode_sound(samples, format, **({"bitrate_mode": "VARIABLE"} if format == "MP3" else {}))
    if format == "WAV":
        size = data.index(b"data") + 4
        return data[:size] + b"\xff" * 4 + data[size + 4 :]
    if format == "FLAC":  # the last 36 bits of these 8 bytes
        return data[:18] + (int.from_bytes(data[18:26]) >> 36 << 36).to_bytes(8) + data[26:]
    if format == "MP3":  # the first frame holds nothing but the length
        return data[data.index(data[:2], 160) :]
    return data[: data.rindex(b"OggS")]


@pytest.mark.parametrize("format", ["WAV", "FLAC", "MP3", "OGG/VORBIS", "OGG/OPUS"])
def test_streams_without_a_length_are_read_to_their_end(format):
    least = 48000 if format.startswith("OGG") else 80000  # of 80000 samples: `without_length` takes an OGG's last page
    loud_and_quiet = NOISE * np.repeat([1, 1e-4], len(NOISE) // 2).astype(np.float32)  # the rate of an MP3 follows
    for samples in (loud_and_quiet, loud_and_quiet[::-1]):
        assert least <= len(PROCESSOR.load_audio(without_length(format, samples))) <= 82000


def test_without_pyav_what_needs_it_says_so(monkeypatch):
    monkeypatch.setattr(media_eagle, "av", None)  # what its guarded import leaves where PyAV is not installed
    webm = b"\x1a\x45\xdf\xa3" + bytes(100)
    for data, reason in ((without_length("FLAC"), "Its header states no length"), (webm, "Format not recognised")):
        with pytest.raises(ValueError, match=f"{reason}.*pip install av"):
            PROCESSOR.load_audio(data)
    assert len(PROCESSOR.load_audio(without_length("WAV"))) == 80000


def test_a_tag_after_the_last_page_is_no_cut():
    data = wav(NOISE, 48000, format="OGG")
    assert len(PROCESSOR.load_audio(data + b"TAG".ljust(128, b"\0"))) == 80000


def test_a_length_that_cannot_be_is_not_believed():
    data = encode_sound(NOISE, "FLAC")
    claim = (int.from_bytes(data[18:26]) | 2**36 - 1).to_bytes(8)
    with pytest.raises(ValueError, match=f"cut off before its {2**36 - 1} samples"):
        PROCESSOR.load_audio(data[:18] + claim + data[26:])


# Video


def write_video(path, colours, fps=10, seconds_each=1.0, sound=None, codec="mpeg4"):
    """A film of plain colours, and optionally a sound track at 16 kHz."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 96, 64, "yuv420p", 20
        track = container.add_stream("aac", rate=16000, layout="mono") if sound is not None else None
        for colour in colours:
            image = np.full((64, 96, 3), colour, np.uint8)
            for _ in range(round(fps * seconds_each)):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
        if track is not None:
            frame = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
            frame.sample_rate = 16000
            container.mux(track.encode(frame))
            container.mux(track.encode())
    return path


RED, GREEN, BLUE, WHITE = (220, 30, 30), (30, 220, 30), (30, 30, 220), (240, 240, 240)


def colours_of(inputs):
    """The colour in the middle of each crop, 0..255."""
    std, mean = torch.tensor([0.26862954, 0.26130258, 0.27577711]), torch.tensor([0.48145466, 0.4578275, 0.40821073])
    return ((inputs.pixel_values[:, :, 168, 168] * std + mean) * 255).numpy()


def test_video_is_timed_frames_and_then_its_sound(tmp_path):
    path = write_video(tmp_path / "clip.mp4", [RED, GREEN, BLUE, WHITE], sound=tone(4))
    inputs = chat(user({"type": "video", "video": str(path)}, ASK))
    text = TOKENIZER.decode(inputs.input_ids[0])
    frames = "".join(f"{time}s {CROP}" for time in (0.5, 1.5, 2.5, 3.5))
    sound = audio_span(text.count(AUDIO))
    assert 12 <= text.count(AUDIO) <= 14
    assert text == f"<|user|>\n{frames}{sound}what is it?<|end|>\n"
    assert inputs.image_sizes.tolist() == [[336, 336]] * 4
    np.testing.assert_allclose(colours_of(inputs), [RED, GREEN, BLUE, WHITE], atol=12)
    sound = PROCESSOR.load_video(path)[2]
    peak = np.abs(np.fft.rfft(sound[8000:24000])).argmax()
    assert peak == 440


def test_video_frames_are_letter_boxed(tmp_path):
    path = write_video(tmp_path / "clip.mp4", [WHITE])
    (crop,) = PROCESSOR(text="a" + VIDEO, videos=path).pixel_values
    rows = crop.mean((0, 2))
    assert (rows[:55] < -1).all() and (rows[60:276] > 1).all() and (rows[282:] < -1).all()


def test_video_media_keep_the_order_of_the_text(tmp_path):
    path = write_video(tmp_path / "clip.mp4", [RED, GREEN], sound=tone(2, pitch=500))
    text = [f"{IMAGE}{AUDIO}{VIDEO}{IMAGE} hm", f"{VIDEO}{AUDIO}"]
    images = [np.full((50, 50, 3), BLUE, np.uint8), np.full((50, 50, 3), WHITE, np.uint8)]
    inputs = PROCESSOR(text=text, images=images, videos=[path, path], audio=[tone(1), tone(9)])
    np.testing.assert_allclose(colours_of(inputs), [BLUE, RED, GREEN, WHITE, RED, GREEN], atol=12)
    assert [round(seconds) for seconds in (inputs.input_features_mask.sum(-1) / 100).tolist()] == [1, 2, 2, 9]
    second = TOKENIZER.decode(inputs.input_ids[1][inputs.attention_mask[1].bool()])
    assert second.startswith(f"0.5s {CROP}1.5s {CROP}<audio>")


def test_long_videos_are_sampled_uniformly_by_seeking(tmp_path):
    shades = [(6 * index, 6 * index, 6 * index) for index in range(40)]
    path = write_video(tmp_path / "long.mp4", shades, fps=2, seconds_each=10)
    processor = build(max_frames=8)
    frames, times, track = processor.load_video(path)
    assert times == [25 + 50 * index for index in range(8)] and track is None
    assert [frame[168, 168, 0] for frame in frames] == pytest.approx([6 * int(time // 10) for time in times], abs=4)
    frames, times, _ = build(video_fps=0.25).load_video(path)
    assert len(times) == 32 and times[1] - times[0] == 12.5


def test_videos_of_a_turned_phone_are_turned_upright(tmp_path):
    quarters = np.zeros((64, 96, 3), np.uint8)
    quarters[:32, :48], quarters[:32, 48:], quarters[32:, :48] = RED, GREEN, BLUE
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        frames = [av.VideoFrame.from_ndarray(quarters, format="rgb24") for _ in range(10)]
        container.mux([packet for frame in [*frames, None] for packet in stream.encode(frame)])
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 44  # in the track's header: nine numbers, here those of a quarter turn to the right
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 64 << 16, 0, 1 << 30)
    (frame,), _, _ = PROCESSOR.load_video(bytes(data))
    corners = frame[100, 100], frame[100, 230], frame[230, 230]
    np.testing.assert_allclose(corners, [BLUE, RED, GREEN], atol=12)


def test_arrays_and_lists_of_pictures_are_videos_at_the_sampling_rate():
    film = np.stack([picture(64, 64, value) for value in range(100, 140)])
    for video in (film, list(film), torch.from_numpy(film), [Image.fromarray(frame) for frame in film]):
        frames, times, track = PROCESSOR.load_video(video)
        assert len(frames) == 32 and times[0] == 0.625 and track is None
        assert frames[-1].max() == 139
    inputs = PROCESSOR(text=f"{VIDEO}{VIDEO} hm", videos=[film[:2], film[:3]])
    assert inputs.image_sizes.tolist() == [[336, 336]] * 5


def test_files_that_are_no_video_say_why(tmp_path):
    clip = write_video(tmp_path / "clip.mp4", [RED, GREEN, BLUE], sound=tone(3)).read_bytes()
    for data, reason in (
        (clip[: len(clip) // 2], "cut off"),
        (b"hello, I am a text", "Cannot read"),
        (b"", "Cannot read"),
        (b"FLV", "cut off"),
        (wav(tone(1), 16000), "no pictures"),
    ):
        with pytest.raises(ValueError, match=reason):
            chat(user({"type": "video", "video": data}, ASK))
    with pytest.raises(FileNotFoundError, match="nowhere.mp4"):
        PROCESSOR(text=VIDEO, videos="nowhere.mp4")


VIDEO_FORMATS = [
    ("mkv", "mpeg4"),
    ("webm", "libvpx"),
    ("flv", "flv1"),
    ("avi", "mpeg4"),
    ("mp4", "mpeg4"),
    ("ismv", "mpeg4"),
]


@pytest.mark.parametrize("suffix, codec", VIDEO_FORMATS)
@pytest.mark.parametrize("max_frames", [32, 2])  # two frames 12 s apart are found by seeking
def test_a_video_cut_off_anywhere_is_refused(suffix, codec, max_frames, tmp_path):
    path = write_video(tmp_path / f"clip.{suffix}", [RED, GREEN, BLUE, WHITE], fps=2, seconds_each=6, codec=codec)
    processor = build(max_frames=max_frames)
    frames, _, _ = processor.load_video(path)
    assert len(frames) == min(24, max_frames)
    np.testing.assert_allclose(frames[-1][168, 168], WHITE, atol=12)
    data = path.read_bytes()
    for part in (0.3, 0.5, 0.8):
        path.write_bytes(data[: int(part * len(data))])
        for source in (path, path.read_bytes()):
            with pytest.raises(ValueError, match="cut off"):
                processor.load_video(source)


@pytest.mark.parametrize("suffix, codec", VIDEO_FORMATS)
def test_a_last_picture_shown_for_long_is_no_cut(suffix, codec, tmp_path):
    path = tmp_path / f"slides.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        frames = [av.VideoFrame.from_ndarray(picture(64, 96, 50 * index), format="rgb24") for index in range(4)]
        for index, frame in enumerate(frames):
            frame.pts = 10 * index
        packets = [packet for frame in [*frames, None] for packet in stream.encode(frame)]
        packets[-1].duration = round(9 / packets[-1].time_base)
        container.mux(packets)
    frames, times, _ = PROCESSOR.load_video(path)
    assert [round(frame[168, 168, 0] / 50) for frame in frames] == [min(int(time), 3) for time in times]


@pytest.mark.parametrize("suffix, codec", [("mkv", "mpeg4"), ("flv", "flv1"), ("avi", "mpeg4"), ("mp4", "mpeg4")])
def test_sound_that_goes_on_after_the_pictures_is_no_cut(suffix, codec, tmp_path):
    path = write_video(tmp_path / f"clip.{suffix}", [RED], sound=tone(10), codec=codec)
    _, _, track = PROCESSOR.load_video(path)
    assert len(track) == pytest.approx(160000, abs=3000)
    assert len(PROCESSOR.load_audio(path)) == len(track)


def test_a_streamed_matroska_does_not_state_its_size(tmp_path):
    data = write_video(tmp_path / "clip.mkv", [RED, GREEN]).read_bytes()
    size = data.index(b"\x18\x53\x80\x67") + 4
    frames, _, _ = PROCESSOR.load_video(data[:size] + b"\x01" + b"\xff" * 7 + data[size + 8 :])
    assert len(frames) == 2


@pytest.mark.parametrize("video", [[], np.zeros((0, 64, 96, 3), np.uint8)])
def test_a_video_without_pictures_is_refused(video):
    with pytest.raises(ValueError, match="holds no pictures: expected a file, or an array or list of at least one"):
        chat(user({"type": "video", "video": video}, ASK))
    with pytest.raises(ValueError, match="holds no pictures"):
        PROCESSOR(text=f"a{VIDEO}", videos=[video])


def test_huge_videos_are_refused_before_decoding(tmp_path):
    path = write_video(tmp_path / "clip.mp4", [RED])
    processor = build()
    processor.image_processor.max_pixels = 1000
    with pytest.raises(ValueError, match="96x64, above max_pixels = 1000"):
        processor.load_video(path)


# What is refused


@pytest.mark.parametrize(
    "text, media, counts",
    [
        (f"a{IMAGE}", {}, "1"),
        (f"a{IMAGE}{IMAGE}", {"images": [picture()]}, "2.*1"),
        ("a", {"images": [picture()]}, "0.*1"),
        (f"a{AUDIO}", {}, "1"),
        (f"a{AUDIO}", {"audio": [tone(1), tone(1)]}, "1.*2"),
        ("a", {"audio": tone(1)}, "0.*1"),
        (f"a{VIDEO}{VIDEO}", {"videos": [[picture()]]}, "2.*1"),
        ("a", {"videos": [[picture()]]}, "0.*1"),
        (f"a{VIDEO}", {}, "1"),
        (None, {"videos": [[picture()]]}, "0.*1"),
    ],
)
def test_counts_of_placeholders_and_media_that_differ(text, media, counts):
    with pytest.raises(ValueError, match=counts):
        PROCESSOR(text=text, **media)


@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "be kind"}]])
def test_a_picture_without_text_or_sound_is_refused(system):
    image, silent = {"type": "image", "image": picture()}, {"type": "video", "video": [picture()] * 2}
    for content in ([image], [image, {"type": "text", "text": " \n"}], [silent]):
        with pytest.raises(ValueError, match="alone asks nothing"):
            chat([*system, *user(*content)], add_generation_prompt=True)
    chat([*system, *user(image, {"type": "audio", "audio": tone(1)})], add_generation_prompt=True)
    chat([*system, *user(image, ASK)], add_generation_prompt=True)


def test_a_conversation_over_the_context_length_is_refused():
    with pytest.raises(ValueError, match=r"8206 tokens long, more than the 8192"):
        chat(user({"type": "text", "text": " door" * 8200}), add_generation_prompt=True)
    with pytest.raises(ValueError, match="more than the 8192"):
        chat(user(*[{"type": "image", "image": picture(1300, 1300)}] * 4, ASK))


def test_options_that_do_not_exist_are_named():
    with pytest.raises(ValueError, match="audio_layout is 'loose'"):
        build(audio_layout="loose")
    with pytest.raises(ValueError, match="audio_token_source is 'ears'"):
        build(audio_token_source="ears")
    with pytest.raises(ValueError, match="audio_layout is 'loose'"):
        PROCESSOR(text=AUDIO, audio=tone(1), audio_layout="loose")
    with pytest.raises(ValueError, match="max_crops is 0; expected at least 1"):
        PROCESSOR(text="a" + IMAGE, images=picture(), max_crops=0)


# Answers


def test_tool_calls_are_read_in_order_and_malformed_ones_reported_in_place():
    text = (
        'well<|tool_call|>{"name": "open", "arguments": {"room": "\\u003cattic>"}}<|/tool_call|>'
        '<|tool_call|>{"name": "open", "arguments": {<|/tool_call|>'
        '<|tool_call|>["open"]<|/tool_call|>'
        '<|tool_call|>{"name": "open", "arguments": "attic"}<|/tool_call|>'
        '<|tool_call|>{"name": "open", "arguments": {}}'
        '<|tool_call|>{"name": "close", "arguments": {}}<|/tool_call|><|tool_call|>{"name"'
    )
    calls = PROCESSOR.parse_tool_calls(text)
    assert calls[0] == {"name": "open", "arguments": {"room": "<attic>"}}
    assert [call["name"] for call in calls] == ["open", None, None, None, None, "close", None]
    assert all(call["error"] and call["arguments"] is None for call in calls if call["name"] is None)
    assert calls[1]["text"] == '{"name": "open", "arguments": {'
    assert PROCESSOR.parse_tool_calls("no call here") == []


def test_absurd_tool_calls_are_reported_too():
    for body in ("[" * 100000, "9" * 5000, ""):
        (call,) = PROCESSOR.parse_tool_calls(f"<|tool_call|>{body}<|/tool_call|>")
        assert call["name"] is None and call["text"] == body


@given(st.dictionaries(st.text(), st.recursive(st.text() | st.integers(), st.lists, max_leaves=4)), st.text())
def test_what_the_template_writes_is_what_is_read(arguments, name):
    call = {"name": name, "arguments": arguments}
    rendered = PROCESSOR.apply_chat_template([{"role": "assistant", "tool_calls": [{"function": call}] * 2}])
    assert PROCESSOR.parse_tool_calls(rendered) == [call, call]


def test_output_becomes_text_without_marks():
    ids = torch.tensor([TOKENIZER("a door<|end|>").input_ids])
    assert PROCESSOR.post_process_multimodal_output(ids) == ["a door"]
    waves = PROCESSOR.post_process_multimodal_output((ids, [torch.zeros(5)]), generation_mode="audio")
    assert [(wave.shape, wave.dtype) for wave in waves] == [((5,), np.float32)]


# Files


LOAD_AND_SAVE = """
import sys
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoProcessor, AutoTokenizer
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(AutoImageProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)).__name__ == "EagleImageProcessor"
assert type(AutoFeatureExtractor.from_pretrained(sys.argv[1])).__name__ == "WhisperFeatureExtractor"
# transformers reads the config first and asks about its code; the tokenizer itself is stock, so declining is fine.
assert AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=False).get_vocab() == processor.tokenizer.get_vocab()
print(processor.apply_chat_template([{"role": "user", "content": "open"}], tokenize=True)[0].tolist())
processor.save_pretrained(sys.argv[2])
"""


def run_fresh(script, *arguments, home):
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=home, check=True, stdout=subprocess.PIPE, text=True).stdout


def test_loads_saves_and_loads_again_in_fresh_processes(tmp_path):
    first = run_fresh(LOAD_AND_SAVE, ROOT, tmp_path / "one", home=tmp_path)
    second = run_fresh(LOAD_AND_SAVE, tmp_path / "one", tmp_path / "two", home=tmp_path)
    assert first == second
    for name in ("processor_config.json", "image_processing_eagle.py", "processing_eagle.py", "chat_template.jinja"):
        assert (tmp_path / "two" / name).read_bytes() == (ROOT / name).read_bytes()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "two" / "tokenizer" / name).read_bytes()


def test_settings_and_the_transcript_tokenizer_survive_saving(tmp_path):
    processor = build(audio_token_source="decoder", audio_stack_factor=1, num_image_tokens=64, max_frames=4)
    processor.transcript_tokenizer = TOKENIZER
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert (saved["audio_token_source"], saved["num_image_tokens"], saved["max_frames"]) == ("decoder", 64, 4)
    loaded = run_fresh(
        "import sys; from transformers import AutoProcessor\n"
        "processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "print(processor.audio_token_source, processor.transcript_tokenizer.tokenize('open the door'))",
        tmp_path,
        home=tmp_path,
    )
    assert loaded.strip() == "decoder ['open', 'Ġthe', 'Ġdoor']"


def test_a_push_uploads_the_whole_folder(tmp_path, monkeypatch):
    processor = build(audio_token_source="decoder", audio_stack_factor=1)
    processor.transcript_tokenizer = TOKENIZER
    uploads = []  # the two calls that reach the network are caught; what they are given is real
    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **options: RepoUrl(f"https://hf.co/{repo_id}"))
    monkeypatch.setattr(HfApi, "create_commit", lambda self, **options: uploads.append(options["operations"]))
    for _ in range(2):  # the second time into a folder that is there
        processor.save_pretrained(tmp_path, push_to_hub=True, repo_id="someone/eagle")
    here = {str(file.relative_to(tmp_path)): file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert {"tokenizer/tokenizer.json", "transcript_tokenizer/tokenizer.json", "processor_config.json"} <= set(here)
    for operations in uploads:
        assert {operation.path_in_repo for operation in operations} == set(here)
