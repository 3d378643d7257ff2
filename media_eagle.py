"""Media files to arrays: where a medium lies, sound of any rate and format to mono, sampled frames of a video."""

import base64
import io
import os
import re
import urllib.request

import numpy as np
import torch

try:
    import soundfile
except ImportError:  # arrays still work
    soundfile = None
try:
    import soxr
except ImportError:  # sound of 16 kHz still works
    soxr = None
try:
    import av
except ImportError:  # everything but video files and compressed sound still works
    av = None


def read_source(source):
    """Resolve where a medium lies. Returns (file, name): a path or an `io.BytesIO`, and a name for error messages.

    `source` is a path, `bytes`, an http(s) URL, a base64 `data:` URI, or a dict with "bytes" or "path" (a row's
    column). Raises `FileNotFoundError` for a path that is none, `TypeError` for anything else.
    """
    if isinstance(source, dict):
        return read_source(source.get("path") if source.get("bytes") is None else source["bytes"])
    if isinstance(source, (bytes, bytearray)):
        return io.BytesIO(source), f"<{len(source)} bytes>"
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        with urllib.request.urlopen(source, timeout=10) as response:
            return io.BytesIO(response.read()), source
    if isinstance(source, str) and source.startswith("data:"):
        return io.BytesIO(base64.b64decode(source.partition(",")[2])), source[:40]
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"Expected a path, bytes, a URL or a dict with 'bytes' or 'path', got {type(source).__name__}.")
    if not os.path.isfile(source):
        raise FileNotFoundError(f"No such file: {os.fspath(source)!r}.")
    return os.fspath(source), os.fspath(source)


def is_source(medium):
    """Whether a medium still has to be read, rather than being an array or picture."""
    return isinstance(medium, (str, os.PathLike, bytes, bytearray, dict))


def read_audio(source):
    """Decode a sound file to mono. Returns (float32 (samples,), sampling rate, name).

    soundfile reads WAV, FLAC, OGG and MP3; for other files (M4A, WebM, the sound of a video) PyAV is asked.
    """
    if soundfile is None:
        raise ImportError("Reading sound files needs soundfile: pip install soundfile.")
    file, name = read_source(source)
    try:
        sound = soundfile.SoundFile(file)
    except soundfile.SoundFileError as error:
        return *read_compressed_audio(file, name, error), name
    with sound:
        check_complete(sound, name)
        try:
            return sound.read(dtype="float32", always_2d=True).mean(1), sound.samplerate, name
        except soundfile.SoundFileError as error:
            raise ValueError(f"Sound {name} is damaged: {error}") from error


def check_complete(sound, name):
    """Refuse a WAV that ends before its header says. Sizes from 0x7FFFF000 on mean "unknown": streams write them."""
    sizes = re.search(r"data : (\d+) \(should be (\d+)\)", sound.extra_info)
    if sizes and int(sizes[2]) < int(sizes[1]) < 0x7FFFF000:
        raise ValueError(f"Sound {name} is cut off: {sizes[2]} of {sizes[1]} bytes are there.")


def read_compressed_audio(file, name, error):
    """Decode what soundfile cannot. Returns (waveform, rate)."""
    if av is None:
        raise ValueError(f"Cannot read {name} as sound: {error} More formats need PyAV: pip install av.") from error
    if hasattr(file, "seek"):
        file.seek(0)
    try:
        with av.open(file) as container:
            track = read_track(container)
    except av.FFmpegError as failure:
        raise ValueError(f"Cannot read {name} as sound: {failure}") from failure
    if track is None:
        raise ValueError(f"{name} holds no sound.")
    return track


def audio_to_float(source):
    """Samples as mono float32: integers are scaled by their type; of two axes the shorter one is channels."""
    waveform = source.detach().cpu().numpy() if isinstance(source, torch.Tensor) else np.asarray(source)
    if waveform.ndim not in (1, 2):
        raise ValueError(f"Sound has 1 or 2 axes, got an array of shape {waveform.shape}.")
    if np.issubdtype(waveform.dtype, np.integer):
        limits = np.iinfo(waveform.dtype)
        middle = 0 if limits.min < 0 else (limits.max + 1) // 2
        waveform = (waveform.astype(np.float32) - middle) / (limits.max - middle + 1)
    waveform = waveform.astype(np.float32)
    return waveform if waveform.ndim == 1 else waveform.mean(int(np.argmin(waveform.shape)))


def resample(waveform, sampling_rate, target):
    """Resample mono float32 to `target` Hz; no rate given means it has it already."""
    if sampling_rate in (None, target):
        return waveform
    if soxr is None:
        raise ImportError(f"Resampling sound from {sampling_rate} to {target} Hz needs soxr: pip install soxr.")
    if not sampling_rate > 0:
        raise ValueError(f"sampling_rate is {sampling_rate}; expected a positive number of Hz.")
    return soxr.resample(waveform, sampling_rate, target)


def frame_times(duration, fps, max_frames):
    """Middles of equal parts of the video, `fps` a second and at most `max_frames`."""
    count = int(min(max(round(duration * fps), 1), max_frames))
    return [(index + 0.5) * duration / count for index in range(count)]


def read_video(source, fps, max_frames, max_pixels):
    """Decode the sampled frames and the sound of a video file. Returns (frames, times, None or (waveform, rate))."""
    if av is None:
        raise ImportError("Reading video files needs PyAV: pip install av.")
    file, name = read_source(source)
    try:
        with av.open(file) as container:
            if not container.streams.video:
                raise ValueError(f"{name} holds no pictures: not a video.")
            stream = container.streams.video[0]
            if stream.width * stream.height > max_pixels:
                raise ValueError(f"Video {name} is {stream.width}x{stream.height}, above max_pixels = {max_pixels}.")
            times = frame_times(video_duration(container, stream), fps, max_frames)
            frames = pick_frames(container, stream, times, name)
            return frames, times, read_track(container)
    except av.FFmpegError as error:
        raise ValueError(f"Cannot read {name} as a video: {error}") from error


def video_duration(container, stream):
    """Length in seconds, from the pictures' stream or else the file."""
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None:
        return container.duration / av.time_base
    raise ValueError("A video without a length in its header cannot be sampled: convert it to MP4.")


def pick_frames(container, stream, times, name):
    """The picture shown at each time, uint8 (h, w, 3). Distant ones are found by seeking, near ones by decoding on."""
    start = float((stream.start_time or 0) * stream.time_base)
    is_sparse = len(times) > 1 and times[1] - times[0] > 10
    frames = []
    for group in [[time] for time in times] if is_sparse else [times]:
        if is_sparse:
            container.seek(int((start + group[0]) / stream.time_base), stream=stream)
        frames += shown_at([start + time for time in group], container.decode(stream), stream, name)
    return frames


def shown_at(times, decoded, stream, name):
    """From decoded frames in order, the last one at or before each time."""
    frames, shown, count = [], None, 0
    for frame in decoded:
        while shown is not None and len(frames) < len(times) and frame.time > times[len(frames)]:
            frames.append(upright(shown))
        if len(frames) == len(times):
            return frames
        shown, count = frame, count + 1
    if shown is None:
        raise ValueError(f"Video {name} is damaged: no picture can be decoded.")
    if len(times) > 1 and count < 0.9 * stream.frames:
        raise ValueError(f"Video {name} is cut off: {count} of {stream.frames} pictures are there.")
    return frames + [upright(shown)] * (len(times) - len(frames))


def upright(frame):
    """A decoded frame as uint8 (h, w, 3), turned as its file asks: a phone films upright by a note in the header."""
    return np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))


def read_track(container):
    """Decode the first sound track to mono. Returns (float32 (samples,), rate), or None where there is no sound."""
    if not container.streams.audio:
        return None
    container.seek(0)
    planar = av.AudioResampler(format="fltp")
    chunks = [part.to_ndarray().mean(0) for frame in container.decode(audio=0) for part in planar.resample(frame)]
    return (np.concatenate(chunks), container.streams.audio[0].rate) if chunks else None
