"""Conversations with text, pictures, sound and video, made into the inputs of EAGLE.

    processor = AutoProcessor.from_pretrained(repository, trust_remote_code=True)
    content = [{"type": "image", "image": "sign.png"}, {"type": "text", "text": "what does the sign say?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True)

In the rendered text a picture is one `<|image_pad|>`, a sound one `<|audio_pad|>`; here each becomes the span it takes
in the model: `<image>` 128 placeholders `</image>` a crop, `<audio>` N placeholders `</audio>` a window of 30 s. A
video is its frames as pictures, each after its time, and then its sound track.
"""

import json
import math
import os
import re
import shutil
from typing import Literal

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer
from transformers.processing_utils import AudioKwargs, ImagesKwargs, MultiModalData, ProcessingKwargs, ProcessorMixin

from .image_processing_eagle import fit, flatten
from .media_eagle import audio_to_float, decode_base64, frame_times, is_source, read_audio, read_video, resample
from .tool_calls_eagle import ToolCallLogitsProcessor, parse_tool_calls

IMAGE_TOKEN = "<|image_pad|>"
AUDIO_TOKEN = "<|audio_pad|>"
VIDEO_TOKEN = "<|video_pad|>"  # stands in rendered text only: it is spliced into pictures and sound, never tokenized
# llama.cpp takes the logarithm of at least 2^-24, where Whisper takes that of 1e-10; then both raise what is 8 below the
# loudest. Quiet sound so has a louder silence there. The value is scaled as Whisper scales the logarithm.
LLAMA_CPP_SILENCE = (math.log10(2**-24) + 4) / 4
PART_TYPES = ("text", "image", "image_url", "audio", "video")  # of a message's content; the base resolves "image_url"


class EagleImagesKwargs(ImagesKwargs, total=False):
    image_layout: Literal["grid", "overview"] | None
    max_crops: int | None


class EagleAudioKwargs(AudioKwargs, total=False):
    audio_layout: Literal["trimmed", "padded"] | None
    audio_transcripts: list | None


class EagleProcessorKwargs(ProcessingKwargs, total=False):
    images_kwargs: EagleImagesKwargs
    audio_kwargs: EagleAudioKwargs
    _defaults = {  # noqa: RUF012  (the base class reads it from here)
        "common_kwargs": {"return_tensors": "pt"},
        "text_kwargs": {"padding": True},
    }


class EagleProcessor(ProcessorMixin):
    """One processor for text, pictures, sound and video.

    Args:
        image_processor: an `EagleImageProcessor`.
        feature_extractor: a `WhisperFeatureExtractor` of 30 s windows.
        tokenizer: any with EAGLE's special tokens (tokenizer/build.py).
        num_image_tokens: placeholders a crop; the resampler's queries.
        audio_token_source: "encoder", or "decoder": then a window is one placeholder, which `generate` expands once the
            transcript is known, or as many as the transcript given in `audio_transcripts` has tokens.
        audio_layout: "trimmed" (tokens for the frames that hold sound) or "padded" (a full window each, as llama.cpp hears it).
        audio_stack_factor: encoder frames of 20 ms a token.
        video_fps, max_frames: frames a second taken from a video, and at most in all.
    """

    _auto_class = "AutoProcessor"  # saving takes this code along, so that the copy loads too
    valid_processor_kwargs = EagleProcessorKwargs
    tokenizer_folder = "tokenizer"
    transcript_tokenizer_folder = "transcript_tokenizer"

    def __init__(
        self,
        image_processor=None,
        feature_extractor=None,
        tokenizer=None,
        chat_template=None,
        num_image_tokens=128,
        audio_token_source="encoder",
        audio_layout="trimmed",
        audio_stack_factor=16,
        video_fps=1.0,
        max_frames=32,
    ):
        check_choice("audio_token_source", audio_token_source, ("encoder", "decoder"))
        check_choice("audio_layout", audio_layout, ("trimmed", "padded"))
        self.num_image_tokens = num_image_tokens
        self.audio_token_source = audio_token_source
        self.audio_layout = audio_layout
        self.audio_stack_factor = audio_stack_factor
        self.video_fps = video_fps
        self.max_frames = max_frames
        self.image_token, self.audio_token, self.video_token = IMAGE_TOKEN, AUDIO_TOKEN, VIDEO_TOKEN
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        self.audio_token_id = tokenizer.convert_tokens_to_ids(AUDIO_TOKEN)
        self.transcript_tokenizer = None  # decoder mode: the audio tower's own, see `from_pretrained`
        feature_extractor.model_input_names = ["input_features", "input_features_mask"]
        feature_extractor.padding_side = tokenizer.padding_side  # or pipelines refuse batches; `extract_features` pads
        super().__init__(image_processor, feature_extractor, tokenizer, chat_template=chat_template)

    # From messages and media to inputs

    def apply_chat_template(self, conversation, *args, tokenize=False, processor_kwargs=None, **kwargs):
        """Render a conversation, or a list of them, and with `tokenize=True` process its media too.

        Media stand in the parts of a message's content: {"type": "image", "image": ...}, {"type": "audio", "audio":
        ...} (arrays with "sampling_rate", else 16 kHz), {"type": "video", "video": ...}, each a path, URL, bytes, dict
        with "bytes" or "path", array or PIL picture. Further arguments and returns are transformers'; the mask of
        `return_assistant_tokens_mask` is aligned with `input_ids`.
        """
        if not tokenize:
            return super().apply_chat_template(conversation, *args, tokenize=False, **kwargs)
        processor_kwargs = dict(processor_kwargs or {})
        audio_kwargs = dict(processor_kwargs.pop("audio_kwargs", {}))
        rates = [options.pop("sampling_rate", None) for options in (kwargs, processor_kwargs, audio_kwargs)]
        rate = next(filter(None, rates), None)  # of the arrays given; from here on all sound is at the model's
        outputs = super().apply_chat_template(
            self.load_media(conversation, rate),
            *args,
            tokenize=True,
            processor_kwargs={**processor_kwargs, "audio_kwargs": audio_kwargs},
            **kwargs,
        )
        if kwargs.get("return_assistant_tokens_mask") and isinstance(outputs["input_ids"], torch.Tensor):
            outputs["assistant_masks"] = torch.as_tensor(outputs["assistant_masks"])
        return outputs

    def load_media(self, conversation, sampling_rate=None):
        """Copy a conversation with its sound decoded to 16 kHz and its videos spliced into text, pictures and sound."""
        if isinstance(conversation[0], (list, tuple)):
            return [self.load_media(turns, sampling_rate) for turns in conversation]
        loaded = []
        for message in getattr(conversation, "messages", conversation):
            content = message.get("content")
            if message.get("role") == "tool" and not isinstance(content, str) and not is_parts(content):
                content = to_json(content)  # the base class looks for media in whatever is no string
            elif isinstance(content, (list, tuple)):
                content = [part for given in content for part in self.load_part(given, sampling_rate)]
            loaded.append({**message, "content": content})
        return loaded

    def load_part(self, part, sampling_rate=None):
        """The parts that one part of a message's content becomes: itself, or what a video is made of."""
        kind = part["type"]
        medium = next((part[key] for key in (kind, "url", "path") if part.get(key) is not None), None)
        if part.get("base64") is not None:
            medium = decode_base64(part["base64"])
        if medium is None or kind not in ("image", "audio", "video"):
            return [part]
        if kind == "image":
            return [{"type": "image", "image": medium}]
        if kind == "audio":
            return [{"type": "audio", "audio": self.load_audio(medium, part.get("sampling_rate") or sampling_rate)}]
        frames, times, track = self.load_video(medium)
        parts = []
        for frame, time in zip(frames, times):
            parts += [{"type": "text", "text": f"{time:.1f}s "}, {"type": "image", "image": frame}]
        return parts if track is None else [*parts, {"type": "audio", "audio": track}]

    def __call__(self, images=None, text=None, videos=None, audio=None, **kwargs):
        """Make model inputs of text in which every medium is one placeholder, and of the media in order of appearance.

        Args:
            text: a string or a list; pictures stand in it as `<|image_pad|>`, sounds as `<|audio_pad|>`, videos as
                `<|video_pad|>`.
            images, videos, audio: one medium or a (nested) list, as in `apply_chat_template`.
            sampling_rate: of the arrays in `audio`, Hz; 16,000 if not given.
            audio_transcripts: decoder mode: what each sound says, a string or a list of one a window.
            audio_layout, image_layout, max_crops: override the processor's own.

        Returns a `BatchFeature`: `input_ids` and `attention_mask` (batch, tokens), left-padded; with pictures
        `pixel_values` and `image_sizes`; with sound `input_features` float32 (windows, 80, 3000) and
        `input_features_mask` int64 (windows, 3000), 1 where a frame of 10 ms holds sound; with transcripts
        `audio_transcript_ids` and `audio_transcript_mask` int64 (windows, longest).

        Raises `ValueError` for damaged media, counts of placeholders and media that differ, a picture without text or
        sound, and a text longer than the model reads.
        """
        outputs = super().__call__(images=images, text=text, videos=videos, audio=audio, **kwargs)
        if text is not None:
            self.check_length(outputs["input_ids"])
        return outputs

    def prepare_inputs_layout(self, images=None, text=None, videos=None, audio=None, **kwargs):
        """Load every medium, into flat lists in order of appearance, and splice the videos in. Called by the base."""
        text = [text] if isinstance(text, str) else text and list(text)  # a copy: the base class writes into it
        if images is not None:
            images = [with_channel(image) for image in flatten(self.image_processor.fetch_images(images))]
        if audio is not None:
            rate = kwargs.get("sampling_rate") or kwargs.get("audio_kwargs", {}).get("sampling_rate")
            audio = [self.load_audio(sound, rate) for sound in flat_audio(audio)]
        videos = None if videos is None else flat_videos(videos)
        check_counts(text, {IMAGE_TOKEN: images, AUDIO_TOKEN: audio, VIDEO_TOKEN: videos})
        if videos:
            text, images, audio = self.splice_videos(text, images or [], videos, audio or [])
        return images or None, text, None, audio or None

    def splice_videos(self, text, images, videos, audio):
        """Replace each `<|video_pad|>` by its frames' times and pictures and its sound; media end up in text order."""
        pending = {IMAGE_TOKEN: iter(images), AUDIO_TOKEN: iter(audio), VIDEO_TOKEN: iter(videos)}
        placed = {IMAGE_TOKEN: [], AUDIO_TOKEN: []}

        def place(match):
            token = match.group()
            medium = next(pending[token])
            if token != VIDEO_TOKEN:
                placed[token].append(medium)
                return token
            frames, times, track = self.load_video(medium)
            placed[IMAGE_TOKEN] += frames
            placed[AUDIO_TOKEN] += [] if track is None else [track]
            return "".join(f"{time:.1f}s {IMAGE_TOKEN}" for time in times) + (AUDIO_TOKEN if track is not None else "")

        tokens = "|".join(map(re.escape, pending))
        text = [re.sub(tokens, place, sample) for sample in text]
        return text, placed[IMAGE_TOKEN], placed[AUDIO_TOKEN]

    def validate_inputs(self, images=None, text=None, videos=None, audio=None, **kwargs):
        """Check that no conversation is a picture alone, besides what the base class checks."""
        super().validate_inputs(images=images, text=text, videos=videos, audio=audio, **kwargs)
        for sample in text or []:
            if "<|user|>" not in sample or IMAGE_TOKEN not in sample:
                continue  # serving engines measure bare placeholders
            said = re.sub(r"<\|system\|>.*?<\|end\|>", "", sample, flags=re.DOTALL)
            said = re.sub(r"(\d+\.\ds )?<\|image_pad\|>|<\|(?!audio_pad)[a-z_/]+\|>", "", said)
            if not said.strip():
                raise ValueError("A picture alone asks nothing: give text or sound with it.")

    def check_length(self, input_ids):
        longest = max(len(ids) for ids in input_ids)
        if longest > self.tokenizer.model_max_length:
            raise ValueError(
                f"The conversation is {longest} tokens long, more than the {self.tokenizer.model_max_length} the model "
                "reads (model_max_length): shorten the text, or give fewer or smaller pictures, frames or sounds."
            )

    # Placeholders

    def replace_image_token(self, image_inputs, image_idx, image_layout=None, max_crops=None, **kwargs):
        """The span of one picture; rows of crops are joined with a newline."""
        height, width = (int(side) for side in image_inputs["image_sizes"][image_idx])
        rows, columns = self.image_processor.get_crop_grid(height, width, image_layout, max_crops)
        pads = IMAGE_TOKEN * self.num_image_tokens
        if (image_layout or self.image_processor.image_layout) == "grid":
            return "\n".join([f"<image>{pads}</image>" * columns] * rows)
        return f"<image>{pads}</image>" + "\n".join([f"<slice>{pads}</slice>" * columns] * rows)

    def replace_audio_token(self, audio_inputs, audio_idx, **kwargs):
        """The span of one sound, window after window."""
        first = sum(audio_inputs["audio_num_windows"][:audio_idx])
        counts = audio_inputs["audio_num_tokens"][first : first + audio_inputs["audio_num_windows"][audio_idx]]
        return "".join(f"<audio>{AUDIO_TOKEN * count}</audio>" for count in counts)

    @property
    def unused_input_names(self):
        """What `replace_audio_token` needs and the model does not."""
        return ["audio_num_windows", "audio_num_tokens"]

    @property
    def model_input_names(self):
        names = super().model_input_names
        return [*names, "audio_transcript_ids", "audio_transcript_mask"] if self.transcript_tokenizer else names

    def get_num_audio_tokens(self, num_samples, audio_layout=None):
        """Placeholders of a window with this many samples at 16 kHz: ceil(frames / stack), frames of 20 ms."""
        if self.audio_token_source == "decoder":
            return 1
        if (audio_layout or self.audio_layout) == "padded":
            num_samples = self.feature_extractor.n_samples
        return math.ceil(num_samples / (2 * self.feature_extractor.hop_length * self.audio_stack_factor))

    def _get_num_multimodal_tokens(self, image_sizes=None, audio_lengths=None, **kwargs):
        """Count placeholders (the markers around them not counted) without processing anything: serving engines ask.

        Args:
            image_sizes: list of (height, width).
            audio_lengths: list of numbers of samples at 16 kHz.
        """
        counts = {}
        if image_sizes is not None:
            crops = [self.image_processor.get_number_of_image_patches(*size, kwargs) for size in image_sizes]
            counts["num_image_patches"] = crops
            counts["num_image_tokens"] = [self.num_image_tokens * number for number in crops]
        if audio_lengths is not None:
            layout = kwargs.get("audio_layout")
            window = self.feature_extractor.n_samples
            counts["num_audio_tokens"] = [
                sum(self.get_num_audio_tokens(min(window, n - start), layout) for start in range(0, n, window))
                for n in audio_lengths
            ]
        return MultiModalData(**counts)

    # Sound

    def load_audio(self, source, sampling_rate=None):
        """One sound as float32 (samples,) at 16 kHz, channels averaged.

        `source` is a path, URL, bytes, {"array", "sampling_rate"}, or at `sampling_rate` an array (samples,) or with a
        second, shorter axis of channels. Raises `ValueError` for empty, too short or damaged sound and for NaN.
        """
        name = "given"
        if isinstance(source, dict) and source.get("array") is not None:
            source, sampling_rate = source["array"], source["sampling_rate"]
        if is_source(source):
            waveform, sampling_rate, name = read_audio(source)
        else:
            waveform = audio_to_float(source)
        if not waveform.size:
            raise ValueError(f"Sound {name} holds no samples.")
        if not np.isfinite(waveform).all():
            raise ValueError(f"Sound {name} holds NaN or infinite samples.")
        target = self.feature_extractor.sampling_rate
        resampled = resample(waveform, sampling_rate, target)
        if not resampled.size:
            raise ValueError(
                f"Sound {name} is too short: its {waveform.size} samples at {sampling_rate} Hz are none at {target} Hz."
            )
        return resampled

    def _process_audio(self, audio, audio_layout=None, audio_transcripts=None, **kwargs):
        """Log-mel windows of every sound, and the spans that stand for them. Called by the base."""
        length = self.feature_extractor.n_samples
        windows = [[sound[start : start + length] for start in range(0, len(sound), length)] for sound in audio]
        inputs = self.extract_features([window for sound in windows for window in sound], audio_layout)
        inputs["audio_num_windows"] = [len(sound) for sound in windows]
        if audio_transcripts is not None:
            inputs.update(self.encode_transcripts(audio_transcripts, inputs["audio_num_windows"]))
            inputs["audio_num_tokens"] = inputs["audio_transcript_mask"].sum(-1).tolist()
        return inputs, [self.replace_audio_token(inputs, index) for index in range(len(audio))]

    def extract_features(self, windows, audio_layout=None):
        """Whisper's log-mel of windows of at most 30 s.

        Only as many frames are computed as the longest window needs: three hops after its end a frame sees nothing but
        silence, and all later ones are equal to it.
        """
        extractor = self.feature_extractor
        check_choice("audio_layout", audio_layout or self.audio_layout, ("trimmed", "padded"))
        frames = [math.ceil(len(window) / extractor.hop_length) for window in windows]
        computed = min(max(frames) + 3, extractor.nb_max_frames)
        length = computed * extractor.hop_length
        mel = extractor(
            [np.pad(window, (0, length - len(window))) for window in windows],
            max_length=length,
            sampling_rate=extractor.sampling_rate,
            return_tensors="pt",
        )["input_features"]
        silence = mel[..., -1:].expand(-1, -1, extractor.nb_max_frames - computed)
        features = torch.cat([mel, silence], -1)
        if (audio_layout or self.audio_layout) == "padded":
            frames, features = [extractor.nb_max_frames] * len(windows), features.clamp(min=LLAMA_CPP_SILENCE)
        mask = torch.arange(extractor.nb_max_frames) < torch.tensor(frames)[:, None]
        return {
            "input_features": features,
            "input_features_mask": mask.long(),
            "audio_num_tokens": [self.get_num_audio_tokens(len(window), audio_layout) for window in windows],
        }

    def encode_transcripts(self, transcripts, num_windows):
        """Token ids of what each window says, right-padded, and their mask; Whisper writes a space first, so we do."""
        if self.transcript_tokenizer is None:
            raise ValueError("audio_transcripts need audio_token_source 'decoder' and a transcript_tokenizer.")
        transcripts = [[said] if isinstance(said, str) else list(said) for said in transcripts]
        given = [len(said) for said in transcripts]
        if given != num_windows:
            raise ValueError(
                f"audio_transcripts has {given} strings for sounds of {num_windows} windows of 30 s: give one a window."
            )
        lines = [f" {line.strip()}" if line.strip() else "" for said in transcripts for line in said]
        ids = [torch.tensor(line) for line in self.transcript_tokenizer(lines, add_special_tokens=False).input_ids]
        padded = pad_sequence(ids, True, self.transcript_tokenizer.eos_token_id).long()
        mask = torch.arange(padded.shape[1]) < torch.tensor([len(line) for line in ids])[:, None]
        return {"audio_transcript_ids": padded, "audio_transcript_mask": mask.long()}

    # Video

    def load_video(self, source):
        """Frames, times and sound of one video.

        `source` is a path, URL or bytes, or an array (frames, h, w, 3) or list of pictures, one each 1 / `video_fps` s.
        Returns a list of uint8 (336, 336, 3) letter-boxed frames, their times in seconds, and the sound track as
        float32 (samples,) at 16 kHz or None. Raises `ValueError` for what is no video, is empty, damaged or cut off.
        """
        if is_source(source):
            frames, times, track = read_video(source, self.video_fps, self.max_frames, self.image_processor.max_pixels)
        elif not len(source):
            raise ValueError("Video given holds no pictures: expected a file, or an array or list of at least one.")
        else:
            times = frame_times(len(source) / self.video_fps, self.video_fps, self.max_frames)
            frames, track = [source[int(time * self.video_fps)] for time in times], None
        size = self.image_processor.crop_size
        frames = [fit(self.image_processor.to_rgb(frame), size, size) for frame in frames]
        return frames, times, None if track is None else resample(*track, self.feature_extractor.sampling_rate)

    # From output to text

    def post_process_multimodal_output(
        self, generated_outputs, skip_special_tokens=True, generation_mode=None, **kwargs
    ):
        """Generated ids to text; in mode "audio" the waveforms of (ids, waveforms), as pipelines ask for them."""
        if generation_mode == "audio":
            return [torch.as_tensor(waveform).float().cpu().numpy() for waveform in generated_outputs[1]]
        return super().post_process_multimodal_output(
            generated_outputs, skip_special_tokens=skip_special_tokens, generation_mode=generation_mode, **kwargs
        )

    def parse_tool_calls(self, text):
        """Read the calls in an answer, in their order.

        Returns a list of {"name": str, "arguments": dict}. A malformed call stays in its place as {"name": None,
        "arguments": None, "error": why, "text": what was written}.
        """
        return parse_tool_calls(text)

    def constrain_tool_calls(self, tools):
        """A logits processor with which `generate` writes only calls of these tools, with arguments that fit their schemas.

        tools: as given to `apply_chat_template`; for a batch of conversations with tools of their own a list of such, None
        for one without. Needs llguidance. Beams (`num_beams=4`) find better calls than greedy search.
        """
        return ToolCallLogitsProcessor(self.tokenizer, tools)

    # Files

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """Load a processor; in decoder mode its transcript tokenizer too, from `transcript_tokenizer/`."""
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        if processor.audio_token_source == "decoder":
            hub = ("cache_dir", "force_download", "local_files_only", "token", "revision")
            processor.transcript_tokenizer = AutoTokenizer.from_pretrained(
                pretrained_model_name_or_path,
                subfolder=os.path.join(kwargs.get("subfolder", ""), cls.transcript_tokenizer_folder),
                **{key: kwargs[key] for key in hub if key in kwargs},
            )
        return processor

    @classmethod
    def _load_tokenizer_from_pretrained(cls, sub_processor_type, pretrained_model_name_or_path, subfolder="", **kwargs):
        """The tokenizer lies in `tokenizer/`; the base class knows the root only, where other readers find copies."""
        try:
            folder = os.path.join(subfolder, cls.tokenizer_folder)
            return AutoTokenizer.from_pretrained(pretrained_model_name_or_path, subfolder=folder, **kwargs)
        except (OSError, ValueError):
            return AutoTokenizer.from_pretrained(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)

    def save_pretrained(self, save_directory, **kwargs):
        """Save the processor, its tokenizer in `tokenizer/` and, identical, at the root."""
        saved = super().save_pretrained(os.fspath(save_directory), **kwargs)
        self.save_tokenizers(save_directory)
        return saved

    def _upload_modified_files(self, working_dir, *args, **kwargs):
        """Called by the base class at the end of its `save_pretrained(push_to_hub=True)`: ours has to come first."""
        self.save_tokenizers(working_dir)
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    def save_tokenizers(self, save_directory):
        """Write the folders with tokenizers beside what the base class has saved."""
        folder = os.path.join(save_directory, self.tokenizer_folder)
        self.tokenizer.save_pretrained(folder)
        for name in ("tokenizer_config.json", "chat_template.jinja"):  # the base class adds entries at the root
            shutil.copyfile(os.path.join(save_directory, name), os.path.join(folder, name))
        os.utime(folder)  # files written again leave its time as it was, and the upload goes by that
        if self.transcript_tokenizer is not None:
            folder = os.path.join(save_directory, self.transcript_tokenizer_folder)
            self.transcript_tokenizer.save_pretrained(folder)
            os.utime(folder)


def check_choice(name, value, choices):
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; use {' or '.join(map(repr, choices))}.")


def is_parts(content):
    """Whether a message's content is a list of parts; a tool may return any other list as its result."""
    is_list = isinstance(content, (list, tuple)) and bool(content)
    return is_list and isinstance(content[0], dict) and content[0].get("type") in PART_TYPES


def to_json(value):
    """JSON as the chat template writes it: what a tool returns must never become a special token."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")


def with_channel(image):
    """A picture as the base class counts them: grey arrays (h, w) get an axis for their one channel."""
    if getattr(image, "ndim", None) != 2:
        return image
    return image[None] if isinstance(image, torch.Tensor) else image[..., None]


def check_counts(text, media):
    """Refuse media without a placeholder and placeholders without a medium; text may be missing where no video is."""
    for token, given in media.items():
        found = sum(sample.count(token) for sample in text or [])
        if found != len(given or []) and (text is not None or token == VIDEO_TOKEN):
            raise ValueError(f"The text holds {found} {token}, but {len(given or [])} such media were given.")


def flat_audio(audio):
    """Flat list of sounds; an array or a list of numbers is one sound."""
    if not isinstance(audio, (list, tuple)) or (audio and isinstance(audio[0], (int, float))):
        return [audio]
    return [sound for entry in audio for sound in flat_audio(entry)]


def flat_videos(videos):
    """Flat list of videos; an array with four axes or a list of pictures is one video."""
    is_list = isinstance(videos, (list, tuple)) and bool(videos)
    if not is_list or not (is_source(videos[0]) or isinstance(videos[0], (list, tuple)) or np.ndim(videos[0]) == 4):
        return [videos]
    return [video for entry in videos for video in flat_videos(entry)]


__all__ = ["EagleProcessor"]
