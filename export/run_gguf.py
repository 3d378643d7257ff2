"""Answers through unpatched llama.cpp, inside this process: pictures, sound and text in, text out as it is written.

    python -m export.run_gguf --gguf export/out/eagle-tiny/eagle-tiny-q8_0.gguf                          # the demo's five questions
    python -m export.run_gguf --gguf ... --image my.png --text "What does the sign say?"
    python -m export.run_gguf --gguf ... --audio question.wav --image-layout grid

Pictures are cut up as llama.cpp does it by itself ("overview"), or beforehand as the checkpoint's processor does ("grid"). Other
programs that run llama.cpp can use the same files: they read the chat template in them, and should put `<audio>` and `</audio>`
around sound, which only a prompt of their own can.
"""

import argparse
import base64
import io
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import soundfile
import xllamacpp
from PIL import Image
from transformers import AutoProcessor

import demo
from export.gguf_prompt import MARKER, prepare

# The prompt is rendered by the processor, special tokens and all; llama.cpp hands it through.
AS_IS = "{{- messages[0].content -}}"


class Chat:
    """llama.cpp's server with a model.

    Args:
        model, mmproj: the files; without mmproj it neither sees nor hears.
        context: tokens of a conversation and its answer. With a longrope, llama.cpp takes the long factors above 4096.

    Raises ValueError for a damaged file, and where llama.cpp cannot load the model.
    """

    def __init__(self, model: Path, mmproj: Path | None = None, context: int = 4096, threads: int = 2):
        for file in filter(None, (model, mmproj)):
            check_whole(file)
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(model)
        parameters.mmproj.path = str(mmproj or "")
        parameters.n_ctx, parameters.n_parallel = context, 1
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
        parameters.n_gpu_layers, parameters.mmproj_use_gpu, parameters.fit_params = 0, False, False
        parameters.chat_template, parameters.use_jinja = AS_IS, True
        parameters.warmup, parameters.verbosity = False, 0
        try:
            self.server = xllamacpp.Server(parameters)
        except RuntimeError as error:
            raise ValueError(f"llama.cpp cannot load {model}: {error}") from error

    def answer(
        self, prompt: str, media: list[np.ndarray], write: Callable[[str], None] = lambda text: None, max_tokens: int = 64
    ) -> str:
        """The greedy answer to a prompt of `export.gguf_prompt.prepare`; `write` gets its text piece by piece.

        Raises ValueError where llama.cpp refuses the request, for one that is too long.
        """
        pieces, errors = [], []

        def take(event: dict) -> None:
            errors.extend([event["error"]] if "error" in event else [])
            for choice in event.get("choices", []):
                if text := choice["delta"].get("content"):
                    pieces.append(text)
                    write(text)

        messages = [{"role": "user", "content": contents(prompt, media)}]
        request = {"messages": messages, "max_tokens": max_tokens, "temperature": 0, "stream": True, "cache_prompt": False}
        self.server.handle_chat_completions(request, take)
        if errors:
            raise ValueError(f"llama.cpp refuses the request: {errors[0].get('message', errors[0])}")
        return "".join(pieces)


def check_whole(file: Path) -> None:
    """Raises FileNotFoundError for a file that is missing, ValueError for one that is no GGUF or ends early."""
    if not file.is_file():
        raise FileNotFoundError(f"no such file: {file}; python -m export.gguf writes one")
    try:
        gguf.GGUFReader(file)
    except (ValueError, IndexError) as error:
        raise ValueError(f"{file} is no GGUF file, or cut off ({file.stat().st_size:,} bytes are there): {error}") from error


def contents(prompt: str, media: list[np.ndarray]) -> list[dict]:
    """The prompt's text and media as parts of a message; llama.cpp joins them without anything between."""
    parts: list[dict] = []
    for text, medium in zip(prompt.split(MARKER), [*media, None], strict=True):
        parts += [{"type": "text", "text": text}] if text else []
        parts += [] if medium is None else [encoded(medium)]
    return parts


def encoded(medium: np.ndarray) -> dict:
    """A picture as PNG, or a sound as WAV of float32."""
    file = io.BytesIO()
    if medium.dtype == np.uint8:
        Image.fromarray(medium).save(file, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        return {"type": "image_url", "image_url": {"url": url}}
    soundfile.write(file, medium, 16_000, format="WAV", subtype="FLOAT")
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(file.getvalue()).decode(), "format": "wav"}}


def ask(chat: Chat, processor, content: list[dict], image_layout: str, write: Callable[[str], None] = lambda text: None) -> str:
    """The greedy answer to one user message, as the demo asks it."""
    return chat.answer(*prepare(processor, [{"role": "user", "content": content}], image_layout), write).strip()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, required=True, help="NAME-FORMAT.gguf; mmproj-NAME-FORMAT.gguf is taken from beside it")
    parser.add_argument("--model", default=str(demo.ROOT), help="checkpoint whose processor prepares the prompt (default: the root's)")
    parser.add_argument("--image", type=demo.existing_file, action="append", default=[], help="a picture; may be repeated")
    parser.add_argument("--video", type=demo.existing_file, action="append", default=[], help="a video; may be repeated")
    parser.add_argument("--audio", type=demo.existing_file, action="append", default=[], help="sound; may be repeated")
    parser.add_argument("--text", help="a question or request in writing")
    parser.add_argument("--image-layout", choices=("overview", "grid"), help="(default: the checkpoint's)")
    parser.add_argument("--context", type=int, default=4096, help="tokens of conversation and answer (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="(default: %(default)s)")
    args = parser.parse_args()
    if args.image + args.video and not (args.audio or args.text):
        parser.error("a picture or a video alone asks nothing: add --text or --audio")
    return args


def main() -> None:
    args = parse()
    is_own = bool(args.image or args.video or args.audio or args.text)
    tasks = [demo.own_task(args.image, args.video, args.audio, args.text)] if is_own else demo.asset_tasks()
    mmproj = args.gguf.with_name(f"mmproj-{args.gguf.name}")
    try:
        chat = Chat(args.gguf, mmproj if mmproj.is_file() else None, args.context, args.threads)
        processor = AutoProcessor.from_pretrained(args.model, trust_remote_code=True)
        layout = args.image_layout or processor.image_processor.image_layout
        for task in tasks:
            print("\n".join(f"{part['type']:8}{demo.shown(part)}" for part in task["content"]))
            print("answer  ", end="", flush=True)
            answer = ask(chat, processor, task["content"], layout, lambda text: print(text, end="", flush=True))
            print("" if task["answer"] is None else f"   [expected: {task['answer']}]" * (answer != task["answer"]), end="\n\n")
    except (ValueError, OSError) as error:
        sys.exit(f"export.run_gguf: {error}")


if __name__ == "__main__":
    main()
