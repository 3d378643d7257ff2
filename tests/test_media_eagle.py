"""What people give as media: pictures, sound and video in any form, whole or cut off, and what is refused."""

import base64
import io
import struct
from urllib.parse import quote

import av
import numpy as np
import pytest
import soundfile
import soxr
import torch
from eagle import media_eagle
from media import (
    ASK,
    AUDIO,
    CROP,
    IMAGE,
    PROCESSOR,
    TOKENIZER,
    VIDEO,
    audio_span,
    build,
    chat,
    picture,
    tone,
    user,
    wav,
)
from PIL import Image
from transformers import WhisperFeatureExtractor


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
