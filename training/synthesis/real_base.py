"""Conversations about a folder of your own files: the paper's data on a real base (section II.C).

    python -m training.synthesis.real_base --folder papers --source our-papers --license cc-by-4.0 --output data/papers
    python -m training.synthesis.real_base --folder papers --source our-papers --license cc-by-4.0 \\
        --model Qwen/Qwen3-VL-4B-Instruct --output data/papers-asked

Every file of the folder, at any depth, is read by its suffix:

* .pdf: each page becomes a picture; the answers are taken from its text layer.
* .png, .jpg, .webp: with the files of the same name beside it: a caption in .txt; {"caption": "...", "turns": [{"question":
  "...", "answer": "..."}]} in .json; of a chart, its table of label, value in .csv (a line of titles, then the rows).
* .jsonl ({"messages": [{"role": "...", "content": "..."}]} a line), and .parquet (rows of training/shards.py):
  conversations, whose user turns are spoken. `--say module:function` names an engine: function(text, seed) returns
  (mono samples, sampling rate), and the same seed is the same speaker; without it eSpeak NG speaks English.

With `--model`, an image-text model of transformers asks a question about each page and picture and answers it.
Files that cannot be read and what gives no conversation (a page without text and model, say) are left out: the first
are named, all are counted in the manifest.
"""

import argparse
import csv
import functools
import hashlib
import json
import random
import re
import sys
from pathlib import Path

import numpy as np
import pypdfium2
import soxr
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from training import shards
from training.synthesis import sheets, turns, voices

SIDE = 1008  # pixels of a page's longer side: three crops
LONGEST_PAGE, LONGEST_SPOKEN = 4000, 400  # characters of a page that is read out, and of a turn that is spoken
NOISY = 0.3  # share of spoken conversations with noise
MAX_NEW_TOKENS = 128
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
READ = ("Read the page.", "What does the page say?", "Transcribe this page.", "Write down the text of the page.")
DESCRIBE = ("Describe the picture.", "What does the picture show?", "What can you see?", "Write a caption.")
ASK = "Ask one short question that the picture answers. Write the question only."
Turns = list[tuple[str, str]]


# ------------------------------------------------------------------------------------------------ files


@functools.lru_cache(maxsize=1)
def find_items(folder: str) -> tuple[list[tuple[str, str, int]], list[str]]:
    """The (kind, path, number) of every page, picture and conversation, by path; and the PDF files that are damaged."""
    items, damaged = [], []
    for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
        kind = {".pdf": "page", ".jsonl": "speech", ".parquet": "speech"}.get(path.suffix.lower())
        if path.suffix.lower() in PICTURES:
            items.append(("picture", str(path), 0))
        elif kind:
            try:
                items += [(kind, str(path), number) for number in range(len(open_file(str(path))))]
            except pypdfium2.PdfiumError:
                damaged.append(str(path.relative_to(folder)))
    return items, damaged


@functools.lru_cache(maxsize=1)
def open_file(path: str):
    """The pages of a PDF or the conversations of another file."""
    if path.lower().endswith(".pdf"):
        return pypdfium2.PdfDocument(path)
    if path.lower().endswith(".parquet"):
        return shards.Rows(path)
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]


def folder_sha256(folder: str) -> str:
    """Of the names and contents of all files."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    lines = [f"{path.relative_to(folder)} {shards.file_sha256(path)}\n" for path in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


# ------------------------------------------------------------------------------------------------ pages


def page(rng: random.Random, path: str, number: int, model: str | None, say: str | None) -> dict | None:
    pdf_page = open_file(path)[number]
    image = pdf_page.render(scale=SIDE / max(pdf_page.get_size())).to_pil().convert("RGB")
    text = pdf_page.get_textpage().get_text_bounded().replace("\r\n", "\n").strip()
    asked = page_questions(rng, text)
    asked = rng.sample(asked, min(len(asked), rng.randint(1, 4)))
    if model:
        asked += ask(rng, model, image, f"The page says:\n{text[:LONGEST_PAGE]}\n\n" if text else "")
    return turns.about(("image", image), asked, page=number + 1) if asked else None


def page_questions(rng: random.Random, text: str) -> Turns:
    """What a text layer answers: the whole text, its first line, what follows a label, how a sentence goes on."""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    if not lines:
        return []
    asked = [("What is the first line of the page?", lines[0])]
    if len(text) <= LONGEST_PAGE:
        asked.append((rng.choice(READ), "\n".join(lines)))
    labelled = [match.groups() for line in lines if (match := re.fullmatch(r"([^:]{2,40}): (\S.{0,80})", line))]
    labels = [label for label, _ in labelled]
    asked += [(f'What stands after "{label}:"?', value) for label, value in labelled if labels.count(label) == 1]
    # Five words on one line: fewer are a title more often than the begin of a sentence.
    sentences = re.findall(r"(?:^|(?<=[.!?] ))((?:[^\s.!?:]+ ){5})([^.!?:]{20,200}[.!?])", "\n".join(lines), re.MULTILINE)
    for start, rest in rng.sample(sentences, min(2, len(sentences))):
        if "\n".join(lines).count(start) == 1 and start[0].isupper():
            question = f'How does the sentence that begins with "{start.strip()}" go on?'
            asked.append((question, " ".join(rest.split())))
    return asked


# ------------------------------------------------------------------------------------------------ pictures


def picture(rng: random.Random, path: str, number: int, model: str | None, say: str | None) -> dict | None:
    try:
        with Image.open(path) as image:
            image.load()
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        tqdm.write(f"left out: {path}: {error}", file=sys.stderr)
        return None
    asked = beside(rng, Path(path))
    asked += ask(rng, model, image.convert("RGB"), "") if model else []
    return turns.about(("image", Path(path).read_bytes()), asked) if asked else None


def beside(rng: random.Random, path: Path) -> Turns:
    """What the files beside a picture say of it. Raises ValueError for one that is not of its form."""
    asked = []
    if (caption := path.with_suffix(".txt")).exists():
        asked.append((rng.choice(DESCRIBE), caption.read_text(encoding="utf-8").strip()))
    if (sidecar := path.with_suffix(".json")).exists():
        said = json.loads(sidecar.read_text(encoding="utf-8"))
        if not isinstance(said, dict) or not said or set(said) - {"caption", "turns"}:
            raise ValueError(f'{sidecar} must hold {{"caption": "...", "turns": [...]}}, or one of the two')
        asked += [(rng.choice(DESCRIBE), said["caption"])] if "caption" in said else []
        asked += [(turn["question"], turn["answer"]) for turn in said.get("turns", ())]
    if (table := path.with_suffix(".csv")).exists():
        asked += chart_questions(rng, table)
    return asked


def chart_questions(rng: random.Random, path: Path) -> Turns:
    """Values of up to three labels, and the largest and smallest of all."""
    with path.open(encoding="utf-8", newline="") as file:
        _, *rows = [row for row in csv.reader(file) if row]
    if not rows or any(len(row) != 2 for row in rows):
        raise ValueError(f"{path} must hold a line of titles and then lines of label, value")
    labels, values = ([cell.strip() for cell in column] for column in zip(*rows, strict=True))
    asked = [(f"What is the value of {labels[i]}?", values[i]) for i in rng.sample(range(len(rows)), min(3, len(rows)))]
    numbers = [float(value) for value in values]
    for extreme, sign in (("highest", 1), ("lowest", -1)):
        if best := sheets.only_largest(labels, [sign * number for number in numbers]):
            asked.append((f"What has the {extreme} value?", best))
    return asked


# ------------------------------------------------------------------------------------------------ a model that asks


@functools.lru_cache(maxsize=1)
def load(model: str):
    """The model and its processor, once a process."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    on_gpu = torch.cuda.is_available()
    dtype = "auto" if on_gpu else torch.float32
    loaded = AutoModelForImageTextToText.from_pretrained(model, trust_remote_code=True, dtype=dtype)
    processor = AutoProcessor.from_pretrained(model, trust_remote_code=True)
    return loaded.to("cuda" if on_gpu else "cpu").eval(), processor


def ask(rng: random.Random, model: str, image: Image.Image, context: str) -> Turns:
    """A question of the model about the picture, and its answer; none where it finds no end."""
    question = answer_of(rng, model, image, context + ASK, sample=True)
    answer = question and answer_of(rng, model, image, context + question, sample=False)
    return [(question, answer)] if answer else []


def answer_of(rng: random.Random, model: str, image: Image.Image, text: str, sample: bool) -> str:
    """What the model says, empty where that does not end in time."""
    import torch

    loaded, processor = load(model)
    messages = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}]
    form = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template(messages, **form).to(loaded.device)
    torch.manual_seed(rng.getrandbits(63))
    with torch.inference_mode():
        ids = loaded.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=sample)
    new = ids[0, inputs["input_ids"].shape[1] :]
    return processor.decode(new, skip_special_tokens=True).strip() if len(new) < MAX_NEW_TOKENS else ""


# ------------------------------------------------------------------------------------------------ speech


def speech(rng: random.Random, path: str, number: int, model: str | None, say: str | None) -> dict | None:
    """The conversation with what the user wrote spoken; None for one with sound already, and where nothing can be."""
    row = open_file(path)[number]
    if row.get("audios") or row.get("videos"):
        return None
    engine, speaker, is_noisy = find_engine(say), rng.getrandbits(32), rng.random() < NOISY
    messages, audios, spoken = [], [], []
    for message in row["messages"]:
        message = shards.encode_message(message)
        for part in message["content"] if message["role"] == "user" else ():
            if part["type"] == "text" and is_speakable(part["text"]):
                waveform, rate = engine(part["text"], speaker)
                waveform = soxr.resample(np.asarray(waveform, np.float32), rate, shards.SAMPLING_RATE)
                audios.append(voices.add_noise(rng, waveform) if is_noisy else waveform)
                spoken.append(part["text"])
                part |= {"type": "audio", "text": None}
        messages.append(message)
    media = {"images": [image["bytes"] for image in row.get("images") or ()], "audios": audios}
    meta = {"spoken": spoken, "speaker": speaker, "noisy": is_noisy}
    return {"messages": messages, **media, "tools": row.get("tools"), "meta": meta} if spoken else None


def is_speakable(text: str) -> bool:
    """Whether it has a word and is no longer than one says at once."""
    return len(text) <= LONGEST_SPOKEN and re.search(r"[^\W\d_]{2}", text) is not None


def find_engine(say: str | None):
    """The function named "module:function"; without a name eSpeak NG's."""
    return say_english if say is None else shards.find_function(say)


def say_english(text: str, seed: int) -> tuple[np.ndarray, int]:
    """eSpeak NG's; the seed is the speaker."""
    rng = random.Random(seed)
    voice, rate, pitch = rng.choice(list(voices.VOICES)), rng.randint(140, 210), rng.randint(35, 65)
    return voices.say(text, voice, rate, pitch).waveform, voices.SAMPLING_RATE


# ------------------------------------------------------------------------------------------------ rows

KINDS = {"page": page, "picture": picture, "speech": speech}


def draw(folder: str, source: str, license: str, model: str | None, say: str | None, seed: int, index: int) -> dict | None:
    """The row of that number."""
    kind, path, number = find_items(folder)[0][index]
    name = f"{Path(path).relative_to(folder)}/{number}"
    try:
        sample = KINDS[kind](random.Random(f"real base/{seed}/{name}"), path, number, model, say)
    except Exception as error:
        error.add_note(f"This was {path}, {kind} {number + 1}.")
        raise
    if sample is None:
        return None
    sample["meta"] |= {"skill": "real_base", "kind": kind, "file": str(Path(path).relative_to(folder)), "model": model}
    return shards.encode_row(sample, f"{source}/{seed}/{name}", source, license)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shards.add_arguments(parser, rows=None, rows_help="pages, pictures and conversations to use, from the first on")
    parser.add_argument("--folder", required=True, help="your files")
    parser.add_argument("--source", required=True, help="name of this data, for the rows and the manifest")
    parser.add_argument("--license", required=True, help="of your files, such as cc-by-4.0")
    parser.add_argument("--model", help="an image-text model that asks and answers (default: none)")
    parser.add_argument("--say", help="module:function that speaks (default: eSpeak NG)")
    args = parser.parse_args()
    items, damaged = find_items(args.folder)
    for name in damaged:
        print(f"left out: {name} is no PDF file that can be read", file=sys.stderr)
    if not items:
        parser.error(f"--folder: {args.folder} holds no .pdf, {', '.join(PICTURES)}, .jsonl or .parquet file")
    args.rows = min(args.rows or len(items), len(items))
    args.processes = args.processes or (1 if args.model else None)  # each holds the model
    options = {"files": folder_sha256(args.folder), "model": args.model, "say": args.say, "damaged": damaged}
    written = {"source": args.source, "license": args.license, "options": options, "labels": ("kind",)}
    draw_row = functools.partial(draw, args.folder, args.source, args.license, args.model, args.say, args.seed)
    shards.write_shards(draw_row, **written, **shards.arguments(args))


if __name__ == "__main__":
    main()
