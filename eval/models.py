"""What the harness asks of a model, and EAGLE in PyTorch as the one that answers.

A further backend (fake-quantized weights, llama.cpp) is another class with the methods of `Model`.
"""

import copy
import hashlib
import io
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import av
import psutil
import soundfile
import torch
from PIL import Image
from transformers import AutoModelForMultimodalLM, AutoProcessor, LogitsProcessor
from transformers.utils.hub import cached_file

from eval.task import Request
from export.formats import read_plan
from training import qat

WEIGHTS = ("*.safetensors", "*.bin")
SETTINGS = ("*.json", "*.jinja", "*_eagle.py", "tokenizer/*")
MAX_NEW_TOKENS = 128  # where a task does not say
KEPT_CROPS = 512  # encoded crops that are remembered; at full size 0.4 GB


@dataclass(frozen=True)
class Size:
    """What a request costs: prompt tokens (with the longest choice), how many of them are media's, picture crops, 30 s
    windows of sound, and rows of a batch: of a multiple choice, as many as there are different beginnings."""

    tokens: int
    media_tokens: int = 0
    crops: int = 0
    windows: int = 0
    rows: int = 1


@dataclass(frozen=True)
class Answer:
    """text: what was generated (special tokens kept), or None. logprobs: (log-likelihood, is_greedy) of each choice, or None."""

    text: str | None
    logprobs: list[tuple[float, bool]] | None
    new_tokens: int


class Model(Protocol):
    """The interface between the harness and a model.

    `prepare` may run in another thread while `answer` works on the batch before. All requests of a batch have equal
    `generation_kwargs`, and either all or none have choices.
    """

    info: dict[str, Any]  # for the manifest: path, weights_sha256, config_sha256, dtype, quantization, ...
    context_length: int

    def render(self, request: Request) -> str: ...
    def size(self, request: Request) -> Size: ...
    def memory_needed(self, sizes: list[Size], new_tokens: int) -> int: ...
    def memory_free(self) -> int: ...
    def prepare(self, requests: list[Request]) -> Any: ...
    def answer(self, requests: list[Request], prepared: Any) -> list[Answer]: ...


class TorchModel:
    """EAGLE through transformers.

    path: a folder or a Hub repository. dtype: "float32", "bfloat16", "float16" or "auto". device: as torch names it.
    image_layout: "grid" or "overview"; None: as the processor has it. quantization: what the weights are rounded to,
    as `training.qat.quantize` takes it; None: as they are. constrain_calls: calls keep to the tools that a request defines.
    num_beams: in place of what a task asks for.
    """

    def __init__(
        self,
        path: str,
        dtype: str = "auto",
        device: str = "cpu",
        image_layout: str | None = None,
        quantization: str | None = None,
        constrain_calls: bool = False,
        num_beams: int | None = None,
    ):
        self.model = AutoModelForMultimodalLM.from_pretrained(path, trust_remote_code=True, dtype=dtype).eval().to(device)
        if quantization:
            qat.quantize(self.model, quantization)
        self.processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)
        self.decoder = copy.deepcopy(self.processor.tokenizer)  # tokenizers break when two threads use one: see `Model`
        self.constrain_calls, self.num_beams = constrain_calls, num_beams
        self.layout = {"image_layout": image_layout} if image_layout else {}
        self.crops = OrderedDict()  # digest of a crop's pixels -> its tokens
        self.config = self.model.config
        text = self.config.get_text_config()
        self.context_length = text.max_position_embeddings
        eos = self.model.generation_config.eos_token_id
        self.eos_token_ids = set(eos if isinstance(eos, list) else [eos])
        folder = model_folder(path)
        self.info = {
            "path": str(path),
            "weights_sha256": files_sha256(folder, WEIGHTS),
            "config_sha256": files_sha256(folder, SETTINGS),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "quantization": quantization,
            "plan": read_plan(Path(quantization)) if (quantization or "").endswith(".json") else None,
            "constrain_calls": constrain_calls,
            "num_beams": num_beams,
            "image_layout": image_layout or self.processor.image_processor.image_layout,
            "parameters": self.model.num_parameters(),
        }

    # Prompts

    def render(self, request: Request) -> str:
        """The prompt as text, each medium one placeholder."""
        if isinstance(request.prompt, str):
            return request.prompt
        return self.processor.apply_chat_template(
            request.prompt, tools=request.tools, add_generation_prompt=True, tokenize=False
        )

    def size(self, request: Request) -> Size:
        """What the request will cost, without decoding any medium; a damaged one counts nothing here."""
        text_tokens = len(self.processor.tokenizer(self.render(request)).input_ids)
        pictures, seconds = [], []
        for part in media_parts(request):
            if part["type"] == "image":
                pictures.append(image_size(part["image"]))
            elif part["type"] == "audio":
                seconds.append(audio_seconds(part["audio"]))
            else:
                duration = video_seconds(part["video"])
                frames = min(self.processor.max_frames, max(1, round(duration * self.processor.video_fps)))
                side = self.processor.image_processor.crop_size
                pictures += [(side, side)] * frames
                seconds.append(duration)
        rate = self.processor.feature_extractor.sampling_rate
        counts = self.processor._get_num_multimodal_tokens(
            image_sizes=pictures, audio_lengths=[int(second * rate) for second in seconds], **self.layout
        )
        crops, windows = sum(counts["num_image_patches"]), sum(int(second // 30) + 1 for second in seconds)
        markers = 3 * crops + 2 * windows
        media_tokens = sum(counts["num_image_tokens"]) + sum(counts["num_audio_tokens"]) + markers
        choices = [self.choice_ids(choice) for choice in request.choices or []]
        longest = max(map(len, choices), default=0)
        rows = len({tuple(ids[:-1]) for ids in choices}) or 1
        return Size(text_tokens + media_tokens + longest, media_tokens, crops, windows, rows)

    def choice_ids(self, choice: str) -> list[int]:
        return self.processor.tokenizer(choice, add_special_tokens=False).input_ids

    # Memory

    def memory_needed(self, sizes: list[Size], new_tokens: int) -> int:
        """Bytes that a batch takes beyond the weights: cache, and the largest activations of towers and language model."""
        text, vision = self.config.get_text_config(), self.config.vision_config
        tokens = sum(size.rows for size in sizes) * (max(size.tokens for size in sizes) + new_tokens)
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        cache = 2 * text.num_hidden_layers * text.num_key_value_heads * head_dim * tokens
        layer = (6 * text.hidden_size + 3 * text.intermediate_size) * tokens
        patches = sum(size.rows * size.crops for size in sizes) * (vision.image_size // vision.patch_size) ** 2 if vision else 0
        towers = patches * (6 * vision.hidden_size + 2 * vision.intermediate_size) if vision else 0
        audio = self.config.audio_config
        towers += sum(size.rows * size.windows for size in sizes) * 1500 * 12 * audio.d_model if audio else 0
        return (cache + max(layer, towers)) * self.model.dtype.itemsize

    def memory_free(self) -> int:
        if self.model.device.type == "cuda":
            return torch.cuda.mem_get_info(self.model.device)[0]
        return psutil.virtual_memory().available

    # Answers

    def prepare(self, requests: list[Request]):
        """The processor's inputs for a batch; of multiple choices, those of every prefix whose next token is asked for."""
        if requests[0].choices is None:
            return self.inputs(requests)
        tokenizer = self.processor.tokenizer
        asked, rows = [], {}  # rows: (request, all tokens of a choice but the last) -> row of the batch
        for number, request in enumerate(requests):
            choices = [self.choice_ids(choice) for choice in request.choices]
            asked.append([(rows.setdefault((number, *ids[:-1]), len(rows)), ids) for ids in choices])
        inputs = self.inputs([requests[number] for number, *_ in rows])
        prompts = [ids[mask.bool()].tolist() for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
        extended = [prompt + list(suffix) for prompt, (_, *suffix) in zip(prompts, rows, strict=True)]
        inputs |= dict(tokenizer.pad({"input_ids": extended}, padding_side="left", return_tensors="pt"))
        return inputs, asked

    def inputs(self, requests: list[Request]) -> dict[str, torch.Tensor]:
        conversations = [request.prompt for request in requests]
        loaded = [prompt if isinstance(prompt, str) else self.processor.load_media(prompt) for prompt in conversations]
        loaded = [Request(prompt, request.tools) for prompt, request in zip(loaded, requests, strict=True)]
        parts = [part for request in loaded for part in media_parts(request)]
        return dict(
            self.processor(
                text=[self.render(request) for request in loaded],
                images=[part["image"] for part in parts if part["type"] == "image"] or None,
                audio=[part["audio"] for part in parts if part["type"] == "audio"] or None,
                return_tensors="pt",
                padding=True,
                **self.layout,
            )
        )

    @torch.inference_mode()
    def answer(self, requests: list[Request], prepared) -> list[Answer]:
        """Greedy answers, whatever sampling the task's file asks for; or the log-likelihood of each choice."""
        if requests[0].choices is not None:
            return self.log_likelihoods(*prepared)
        kwargs, inputs = requests[0].generation_kwargs, self.encoded(prepared)
        ids = self.model.generate(
            **inputs,
            max_new_tokens=kwargs.get("max_new_tokens", MAX_NEW_TOKENS),
            num_beams=self.num_beams or kwargs.get("num_beams", 1),
            do_sample=False,
            logits_processor=self.constraint(requests),
        )
        until = kwargs.get("until") or []
        return [self.read(row, [until] if isinstance(until, str) else until) for row in ids[:, inputs["input_ids"].shape[1] :].tolist()]

    def constraint(self, requests: list[Request]) -> list[LogitsProcessor] | None:
        tools = [request.tools for request in requests]
        return [self.processor.constrain_tool_calls(tools)] if self.constrain_calls and any(tools) else None

    def encoded(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The inputs on the model's device, with the tokens of pictures in place of their pixels.

        A crop is encoded once however often it is asked about: benchmarks have several questions on a picture, and the
        vision tower takes more than half of the time that a short answer takes.
        """
        inputs = dict(inputs)
        if (pixels := inputs.pop("pixel_values", None)) is not None:
            digests = [hashlib.sha256(crop.numpy().data).digest() for crop in pixels]
            missing = {digest: crop for digest, crop in zip(digests, pixels, strict=True) if digest not in self.crops}
            if missing:
                crops = torch.stack(list(missing.values())).to(self.model.device, self.model.dtype)
                tokens = self.model.get_image_features(crops, return_dict=True).pooler_output
                self.crops |= dict(zip(missing, tokens, strict=True))
            inputs["image_hidden_states"] = torch.cat([self.crops[digest] for digest in digests])
            while len(self.crops) > KEPT_CROPS:
                self.crops.popitem(last=False)
        inputs.pop("image_sizes", None)
        return {name: tensor.to(self.model.device) for name, tensor in inputs.items()}

    def read(self, ids: list[int], until: list[str]) -> Answer:
        """The answer in generated ids, up to the end of the turn or the first of the strings that end it."""
        length = next((place for place, token in enumerate(ids) if token in self.eos_token_ids), len(ids))
        text = self.decoder.decode(ids[:length], skip_special_tokens=False)
        for end in filter(None, until):
            text = text.split(end)[0]
        return Answer(text.strip(), None, length)

    def log_likelihoods(self, inputs: dict[str, torch.Tensor], asked: list[list[tuple[int, list[int]]]]) -> list[Answer]:
        """Sums of the log-probabilities of each choice's tokens, natural logarithm."""
        longest = max(len(ids) for choices in asked for _, ids in choices)
        logits = self.model(**self.encoded(inputs), logits_to_keep=longest).logits
        logprobs = logits.float().log_softmax(-1).cpu()  # (rows, longest, vocabulary)
        answers = []
        for choices in asked:
            scored = [self.log_likelihood(logprobs[row, longest - len(ids) :], ids) for row, ids in choices]
            answers.append(Answer(None, scored, 0))
        return answers

    def log_likelihood(self, logprobs: torch.Tensor, ids: list[int]) -> tuple[float, bool]:
        chosen = logprobs.gather(1, torch.tensor(ids)[:, None]).sum().item()
        return chosen, logprobs.argmax(-1).tolist() == ids


# ------------------------------------------------------------------------------------------------ files and media


def model_folder(path: str) -> Path:
    """Where the files of a folder or of a Hub repository lie."""
    return Path(path) if Path(path).is_dir() else Path(cached_file(path, "config.json")).parent


def files_sha256(folder: Path, patterns: tuple[str, ...]) -> str:
    """SHA-256 of the names and contents of all files that match."""
    digest = hashlib.sha256()
    for file in sorted(file for pattern in patterns for file in folder.glob(pattern) if file.is_file()):
        digest.update(str(file.relative_to(folder)).encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def media_parts(request: Request) -> list[dict[str, Any]]:
    """The parts of a conversation that are no text, in order."""
    if isinstance(request.prompt, str):
        return []
    contents = [message["content"] for message in request.prompt if not isinstance(message["content"], str)]
    return [part for content in contents for part in content if part["type"] != "text"]


def image_size(image) -> tuple[int, int]:
    """(height, width) of a PIL picture or a file, which need not be decoded for it."""
    width, height = (image if isinstance(image, Image.Image) else Image.open(image)).size
    return height, width


def audio_seconds(audio) -> float:
    """Length of {"array", "sampling_rate"}, or of a file's bytes or path; 0 if it cannot be read."""
    if isinstance(audio, dict):
        return len(audio["array"]) / audio["sampling_rate"]
    try:
        return soundfile.info(io.BytesIO(audio) if isinstance(audio, bytes) else str(audio)).duration
    except soundfile.LibsndfileError:
        return 0.0


def video_seconds(video) -> float:
    """Length of a video, given as a path or bytes; 0 if it cannot be read."""
    try:
        with av.open(io.BytesIO(video) if isinstance(video, bytes) else str(video)) as container:
            return (container.duration or 0) / av.time_base
    except (av.FFmpegError, OSError):
        return 0.0
