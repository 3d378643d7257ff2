"""Whether llama.cpp computes with an exported model what torch computes: used by export.gguf, which refuses files that fail.

    python -m export.gguf_check --model . --gguf export/out/eagle-tiny/eagle-tiny-q8_0.gguf

Compared are the demo's questions (assets/): the ids that both make of them, the logits over them as text alone, and the embeddings
of their pictures and sounds. torch computes in float32 with the weights as the file holds them, so that what differs is
arithmetic: llama.cpp rounds what it multiplies by a quantized matrix, too. The distance from the checkpoint as it is gets
measured beside.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import AutoModelForMultimodalLM, AutoProcessor

from export import gguf_tensors
from export.gguf_prompt import prepare
from export.gguf_tokenizer import strip_swallowed
from export.llama_cpp import Runtime

ROOT = Path(__file__).parents[1]
# Largest relative errors |a - b| / |b|. Activations are rounded to float16 beside float16 matrices, to bfloat16 beside bfloat16
# ones, and to blocks of 8 bits beside quantized ones.
BOUNDS = {"f32": 1e-3, "f16": 2e-3, "bf16": 1e-2} | dict.fromkeys(["q8_0", "q5_0", "q4_1", "q4_0"], 4e-2)
LAYOUTS = {"images_kwargs": {"image_layout": "overview"}, "audio_kwargs": {"audio_layout": "padded"}}  # llama.cpp's own


def check(folder: Path, format_name: str, model_file: Path, media_file: Path | None = None) -> dict[str, float]:
    """Relative errors by what was compared, and beside them the relative distances from the checkpoint as it is.

    Raises ValueError where an error is above the format's bound, or where the two make other ids of the same question.
    """
    bound = BOUNDS.get(format_name, BOUNDS["q4_0"])  # of a plan, as of each of its formats
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForMultimodalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    questions, text = demo_questions(model.config), conversation(processor)
    with Runtime(model_file, media_file, torch.get_num_threads()) as runtime:
        ids = runtime.tokenize(strip_swallowed(processor.tokenizer, text))
        check_ids("the conversation", ids, processor.tokenizer(text).input_ids)
        theirs = {"text": runtime.logits(ids)}
        if media_file is not None:
            theirs |= media_embeddings(processor, runtime, questions)
    inputs = [processor(text=text), *(processed(processor, question) for question in questions)]
    original = reference(model, inputs, theirs)
    load_stored(model, model_file, media_file)
    stored = reference(model, inputs, theirs)
    errors = {name: relative_error(theirs[name], stored[name]) for name in theirs}
    for name, error in errors.items():
        if not error <= bound:  # NaN is no less
            raise ValueError(
                f"{model_file.name}: llama.cpp's {name} differs from torch's by {error:.2e} (relative), more than the "
                f"{bound:.0e} that {format_name} may"
            )
    return errors | {f"{name} from the checkpoint's": relative_error(theirs[name], original[name]) for name in theirs}


def relative_error(found: np.ndarray, right: np.ndarray) -> float:
    return float(np.linalg.norm(found.astype(np.float64) - right) / np.linalg.norm(right.astype(np.float64)))


# --- what is asked ------------------------------------------------------------------------------------------------------


def demo_questions(config) -> list[list[dict]]:
    """The demo's questions whose media the model takes, as conversations of one message."""
    assets = ROOT / "assets"
    towers = {"text": True, "image": config.vision_config, "video": config.vision_config, "audio": config.audio_config}
    tasks = json.loads((assets / "questions.json").read_text(encoding="utf-8"))
    tasks = [task for task in tasks if all(towers[part["type"]] for part in task["content"])]
    for part in (part for task in tasks for part in task["content"] if part["type"] != "text"):
        part[part["type"]] = str(assets / part[part["type"]])
    return [[{"role": "user", "content": task["content"]}] for task in tasks]


def conversation(processor) -> str:
    """The demo's questions, in writing, and their answers as one conversation."""
    tasks, messages = json.loads((ROOT / "assets" / "questions.json").read_text(encoding="utf-8")), []
    for task in tasks:
        messages += [{"role": "user", "content": task["meta"]["question"]}, {"role": "assistant", "content": task["answer"]}]
    return processor.apply_chat_template(messages)


def processed(processor, messages: list[dict]) -> dict:
    """Inputs of the model for an answer, media laid out as llama.cpp does it by itself."""
    return processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, processor_kwargs=LAYOUTS
    )


# --- what llama.cpp makes of it -----------------------------------------------------------------------------------------


def check_ids(name: str, found: list[int], right: list[int]) -> None:
    for place, pair in enumerate(itertools.zip_longest(found, right)):
        if pair[0] != pair[1]:
            raise ValueError(f"llama.cpp reads {name} otherwise: token {place} is {pair[0]}, but {pair[1]} by the processor")


def media_embeddings(processor, runtime: Runtime, questions: list[list[dict]]) -> dict[str, np.ndarray]:
    """Embeddings (tokens, width) of all "image" and "audio" tokens of the questions, which must be laid out as the processor does."""
    pads = {"image": processor.image_token_id, "audio": processor.audio_token_id}
    found = {kind: [] for kind in pads}
    for messages in questions:
        prompt, media = prepare(processor, messages, "overview")
        right = processed(processor, messages)["input_ids"][0].tolist()
        ids: list[int] = []
        for piece in runtime.encode(prompt, media):
            if isinstance(piece, np.ndarray):
                kind = "image" if right[len(ids)] == pads["image"] else "audio"
                found[kind].append(piece)
                piece = [pads[kind]] * len(piece)
            ids += piece
        check_ids(f"the question {messages[0]['content']}", ids, right)
    return {kind: np.concatenate(pieces) for kind, pieces in found.items() if pieces}


# --- what torch makes of it ---------------------------------------------------------------------------------------------


@torch.no_grad()
def reference(model, inputs: list[dict], wanted: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same from torch: logits over the first of `inputs`, embeddings of the media of the others."""
    right = {"text": model(input_ids=inputs[0]["input_ids"]).logits[0]}
    pictures = [given["pixel_values"] for given in inputs if "pixel_values" in given]
    sounds = [(given["input_features"], given["input_features_mask"]) for given in inputs if "input_features" in given]
    if "image" in wanted:
        right["image"] = torch.cat([model.get_image_features(crops).pooler_output.flatten(0, 1) for crops in pictures])
    if "audio" in wanted:
        right["audio"] = torch.cat([model.get_audio_features(*sound).pooler_output for sound in sounds])
    return {name: values.numpy() for name, values in right.items()}


@torch.no_grad()
def load_stored(model, model_file: Path, media_file: Path | None) -> None:
    """Puts what the files hold as matrices into the model, read back to float32."""
    model.merge_factors()
    tensors = [*gguf_tensors.text_tensors(model.config), *gguf_tensors.media_tensors(model.config)]
    sources = {tensor.name: tensor.source for tensor in tensors if tensor.kind == "matrix"}
    for file in filter(None, (model_file, media_file)):
        for stored in gguf.GGUFReader(file).tensors:
            if stored.name in sources:
                values = torch.from_numpy(gguf.dequantize(stored.data, stored.tensor_type).copy())
                model.get_parameter(sources[stored.name]).copy_(values)


def report(measured: dict[str, float]) -> str:
    return "relative errors: " + ", ".join(f"{name} {error:.2e}" for name, error in measured.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("."), help="folder of the checkpoint (default: %(default)s)")
    parser.add_argument("--gguf", type=Path, required=True, help="NAME-FORMAT.gguf, with mmproj-NAME-FORMAT.gguf beside it")
    parser.add_argument("--format", help="whose bound holds (default: as the file's name says)")
    args = parser.parse_args()
    media_file = args.gguf.with_name(f"mmproj-{args.gguf.name}")
    try:
        format_name = args.format or args.gguf.stem.rpartition("-")[2]
        print(report(check(args.model, format_name, args.gguf, media_file if media_file.is_file() else None)))
    except (ValueError, OSError) as error:
        sys.exit(f"export.gguf_check: {error}")


if __name__ == "__main__":
    main()
