"""Media files to arrays: where a medium lies, sound of any rate and format to mono, sampled frames of a video."""

import base64
import io
import os
import re
import urllib.parse
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

    `source` is a path, `bytes`, an http(s) URL, a `data:` URL, or a dict with "bytes" or "path" (a row's column).
    Raises `FileNotFoundError` for a path that is none, `ValueError` for a malformed `data:` URL, `TypeError` for
    anything else.
    """
    if isinstance(source, dict):
        return read_source(source.get("path") if source.get("bytes") is None else source["bytes"])
    if isinstance(source, (bytes, bytearray)):
        return io.BytesIO(source), f"<{len(source)} bytes>"
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        with urllib.request.urlopen(source, timeout=10) as response:
            return io.BytesIO(response.read()), source
    if isinstance(source, str) and source.startswith("data:"):
        return io.BytesIO(read_data_url(source)), source[:40]
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"Expected a path, bytes, a URL or a dict with 'bytes' or 'path', got {type(source).__name__}.")
    if not os.path.isfile(source):
        raise FileNotFoundError(f"No such file: {os.fspath(source)!r}.")
    return os.fspath(source), os.fspath(source)


def read_data_url(url):
    """The bytes of "data:<type>;base64,<base64>" or, percent-encoded, of "data:<type>,<text>"."""
    header, comma, data = url.partition(",")
    if not comma:
        raise ValueError(f"Data URL {url[:40]!r} has no comma: expected data:<type>;base64,<data>.")
    data = urllib.parse.unquote_to_bytes(data)
    return decode_base64(data, f"Data URL {header[:40]!r}") if header.lower().endswith(";base64") else data


def decode_base64(data, name="The medium given as base64"):
    """Bytes of base64 text; line breaks in it do not matter. Raises `ValueError` for anything else."""
    data = data.encode() if isinstance(data, str) else data
    try:
        return base64.b64decode(b"".join(data.split()), validate=True)
    except ValueError as error:
        raise ValueError(f"{name} is malformed: {error}. Expected base64: A-Z a-z 0-9 + /, padded with =.") from error


def read_bytes(file, start, count):
    """Some bytes of a file as `read_source` returns it; the position of one in memory stays."""
    if isinstance(file, io.BytesIO):
        return file.getvalue()[start : start + count]
    with open(file, "rb") as opened:
        opened.seek(start)
        return opened.read(count)


def is_source(medium):
    """Whether a medium still has to be read, rather than being an array or picture."""
    return isinstance(medium, (str, os.PathLike, bytes, bytearray, dict))


def read_audio(source):
    """Decode a sound file to mono. Returns (float32 (samples,), sampling rate, name).

    soundfile reads WAV, FLAC, OGG and MP3; for other files (M4A, WebM, the sound of a video) PyAV is asked. Raises
    `ValueError` for what is no sound, is damaged, or ends before its header says.
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
        if sound.frames == 2**63 - 1:  # a FLAC that was streamed
            return *read_compressed_audio(file, name, ValueError("Its header states no length.")), name
        waveform = read_samples(sound, name)
        is_guess = sound.format == "MP3" and not states_length(file)
        if is_guess and av is not None and len(waveform) == sound.frames:  # soundfile reads no further than it guesses
            return *read_compressed_audio(file, name), name
        if not is_guess and sound.frames - len(waveform) > 0.1 * sound.samplerate:  # an encoder's padding may miss
            raise ValueError(f"Sound {name} is cut off: {len(waveform)} of {sound.frames} samples are there.")
        return waveform, sound.samplerate, name


def check_complete(sound, name):
    """Refuse a WAV, AIFF or AU that ends before its header says, and an OGG that ends within a page.

    Sizes from 0x7FFFF000 on mean "unknown": streams write them. An OGG states no length, and a stream that was recorded
    lacks the mark of a last page; a piece of a page after that is what an interrupted download leaves.
    """
    sizes = re.search(r"(?:data|SSND|Data Size) +: (\d+) \(should be (\d+)\)", sound.extra_info)
    if sizes and int(sizes[2]) < int(sizes[1]) < 0x7FFFF000:
        raise ValueError(f"Sound {name} is cut off: {sizes[2]} of {sizes[1]} bytes are there.")
    if all(re.search(f"Ogg ?: {sign}", sound.extra_info) for sign in ("Last page lacks", "Junk after")):
        raise ValueError(f"Sound {name} is cut off: it ends within a page.")


def states_length(file):
    """Whether an MP3 opens, after its ID3 tag, with a Xing or Info frame, which holds its length."""
    head = read_bytes(file, 0, 10)
    tag = 10 + sum((byte & 127) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0)))
    return re.search(rb"Xing|Info", read_bytes(file, tag if head.startswith(b"ID3") else 0, 64)) is not None


def read_samples(sound, name):
    """The samples of an open sound as mono float32, block by block: the length in a header may be anything."""
    blocks = [np.zeros(0, np.float32)]
    try:
        while (block := sound.read(2**16, dtype="float32", always_2d=True)).size:
            blocks.append(block.mean(1))
    except soundfile.SoundFileError as error:
        raise ValueError(f"Sound {name} is damaged or cut off before its {sound.frames} samples: {error}") from error
    return np.concatenate(blocks)


def read_compressed_audio(file, name, error=None):
    """Decode what soundfile cannot. Returns (waveform, rate)."""
    if av is None:
        raise ValueError(f"Cannot read {name} as sound: {error} More formats need PyAV: pip install av.") from error
    try:
        check_length(file, f"Sound {name}")
        with open_media(file) as container:
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
    if waveform.ndim == 1 or not waveform.size:
        return waveform.reshape(-1)
    return waveform.mean(int(np.argmin(waveform.shape)))


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
        check_length(file, f"Video {name}")
        with open_media(file) as container:
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


def open_media(file):
    """PyAV's container of a file as `read_source` returns it, from its start."""
    if isinstance(file, io.BytesIO):
        file.seek(0)
    return av.open(file)


def check_length(file, name):
    """Refuse a video or sound file that ends before its header says, in the formats that say where they end.

    Numbers of pictures and seconds would not do: AVI counts pauses as pictures, a last picture may be shown for longer
    than it says itself, sound may go on after the pictures, and many formats' seconds are derived from the file's end.
    """
    size = len(file.getbuffer()) if isinstance(file, io.BytesIO) else os.path.getsize(file)
    stated = stated_end(file, size)
    if size < stated:
        raise ValueError(f"{name} is cut off: {size} of {stated} bytes are there.")
    if read_bytes(file, 0, 3) == b"FLV" and not ends_with_tag(file, size):
        raise ValueError(f"{name} is cut off: it ends within a picture or a piece of sound.")


def stated_end(file, size):
    """Where a Matroska file (MKV, WebM), AVI or MP4 ends by its headers, in bytes; 0 for others and where none says."""
    head = read_bytes(file, 0, 12)
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return segment_end(file)
    if head[:4] == b"RIFF" and head[8:] == b"AVI ":
        length = int.from_bytes(head[4:8], "little")
        return 8 + length if length < 0x7FFFF000 else 0
    return boxes_end(file, size) if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip") else 0


def segment_end(file):
    """The end of a Matroska file's one Segment."""
    length = re.search(rb"\x18\x53\x80\x67(.{8})", read_bytes(file, 0, 4096), re.DOTALL)  # after its id
    if length is None:
        return 0
    width = 9 - length[1][0].bit_length()  # leading zeros tell how many bytes the number takes
    unknown = (1 << 7 * width) - 1
    value = int.from_bytes(length[1][:width]) & unknown
    return 0 if value == unknown else length.start(1) + width + value


def boxes_end(file, size):
    """The end of the last box of an MP4 that holds media or their index; what else follows may be anything."""
    start, end = 0, 0
    while start < size:
        head = read_bytes(file, start, 16)
        length = int.from_bytes(head[8:] if head[:4] == b"\0\0\0\1" else head[:4])
        if length < 8:  # 0 means "up to the end"
            return end
        start += length
        end = start if head[4:8] in (b"mdat", b"moof", b"moov") else end
    return end


def ends_with_tag(file, size):
    """Whether the last tag of an FLV is whole: its type and length, and after it its size, 11 more than the length."""
    last = int.from_bytes(read_bytes(file, max(size - 4, 0), 4))
    tag = read_bytes(file, max(size - 4 - last, 0), 4)
    return tag[:1] in (b"\x08", b"\x09", b"\x12") and int.from_bytes(tag[1:]) + 11 == last


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
        frames += shown_at([start + time for time in group], container.decode(stream), name)
    return frames


def shown_at(times, decoded, name):
    """From decoded frames in order, the last one at or before each time."""
    frames, shown = [], None
    for frame in decoded:
        while shown is not None and len(frames) < len(times) and frame.time > times[len(frames)]:
            frames.append(upright(shown))
        if len(frames) == len(times):
            return frames
        shown = frame
    if shown is None:
        raise ValueError(f"Video {name} is damaged: no picture can be decoded.")
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
