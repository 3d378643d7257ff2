"""Asks EAGLE five questions about pictures, sound and video, prints the answers and writes them as a page.

    make demo                                                  # the files in assets/
    make demo ARGS="--fresh 7"                                 # five new items that no training run ever drew
    make demo ARGS="--image my.png --text 'What does the sign say?'"
    python demo.py --model runs/instruct --output out/try      # another checkpoint

Each question is the content of one user message, as the chat template takes it. Where the checkpoint has a speech decoder,
answers to spoken questions are spoken too, in each of its voices (OUTPUT/answer-1-Emma.wav and so on). The page,
OUTPUT/demo.html, holds its media in itself and loads nothing from elsewhere.
"""

import argparse
import base64
import html
import json
import mimetypes
import time
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

ROOT = Path(__file__).resolve().parent
ASSETS = ROOT / "assets"
FRESH_SKILLS = ("sign", "spoken_fact", "spoken_picture", "clip", "chart")
MEDIA = ("image", "video", "audio")
GREEDY = {"do_sample": False, "max_new_tokens": 64}


@dataclass
class Answer:
    """What the model said, and what it took.

    `tokens` counts the prompt's tokens by modality. `seconds_to_first` runs from the files to the first token: reading
    and preparing them, the towers, and the language model over the prompt. `tokens_per_second` is the rate of the
    tokens after the first, None if there is none. `speech` has the sound files of the answer, by their voices.
    """

    text: str
    tokens: dict[str, int]
    seconds_to_first: float
    tokens_per_second: float | None
    speech: dict[str, Path] = field(default_factory=dict)


class Stopwatch:
    """A streamer for `generate` that only notes when tokens come: the whole prompt first, then one by one."""

    def __init__(self):
        self.times = []

    def put(self, tokens):
        self.times.append(time.perf_counter())

    def end(self):
        pass


# ------------------------------------------------------------------------------------------------ the model


def load(folder: str):
    """Loads a checkpoint (a folder, or a repository on the Hub) with its processor, on the GPU if there is one."""
    print("Loading torch and transformers ...", flush=True)
    import torch  # here, so that --help and a wrong argument need not wait for it
    from transformers import AutoModelForMultimodalLM, AutoProcessor

    if Path(folder).is_dir() and not list(Path(folder).glob("*.safetensors")):
        raise FileNotFoundError(f"{folder} holds no weights (*.safetensors); train some with `make train-tiny`")
    print(f"Loading the model from {folder} ...", flush=True)
    started = time.perf_counter()
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    model = AutoModelForMultimodalLM.from_pretrained(folder, trust_remote_code=True, dtype=dtype).to(device).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    print(f"{describe(model)}, loaded in {time.perf_counter() - started:.1f} s", flush=True)
    return model, processor


def describe(model) -> str:
    """Size and place of a model: "12.9 M parameters, cpu, threads: 2"."""
    import torch

    threads = f", threads: {torch.get_num_threads()}" if model.device.type == "cpu" else ""
    return f"{model.num_parameters() / 1e6:,.1f} M parameters, {model.device.type}{threads}"


def ask(model, processor, content: list[dict]) -> Answer:
    """Answers one user message greedily, in at most 64 tokens."""
    started = time.perf_counter()
    inputs, watch = prompt_of(processor, content), Stopwatch()
    prompt = inputs["input_ids"][0]
    ids = model.generate(**inputs.to(model.device), streamer=watch, **GREEDY)[0, len(prompt) :]
    first, last = watch.times[1], watch.times[-1]
    return Answer(
        text=processor.decode(ids, skip_special_tokens=True).strip(),
        tokens=count_tokens(processor, prompt, {part["type"] for part in content}),
        seconds_to_first=first - started,
        tokens_per_second=(len(ids) - 1) / (last - first) if len(ids) > 1 else None,
    )


def prompt_of(processor, content: list[dict]):
    messages = [{"role": "user", "content": content}]
    return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)


def speak(model, processor, content: list[dict], stem: Path) -> dict[str, Path]:
    """Answers one user message as `ask` does, so with the same words, in each voice: writes `stem`-VOICE.wav; paths by voice."""
    import soundfile

    inputs, files = prompt_of(processor, content).to(model.device), {}
    for voice in model.config.speech_config.voices:
        said = model.generate(**inputs, generation_mode="audio", voice=voice, **GREEDY)
        (waveform,) = processor.post_process_multimodal_output(said, generation_mode="audio")
        files[voice] = stem.with_name(f"{stem.name}-{voice}.wav")
        soundfile.write(files[voice], waveform, model.config.sampling_rate)
    return files


def count_tokens(processor, prompt, kinds: set[str]) -> dict[str, int]:
    """Tokens of a prompt (ids) by modality; a video's frames and pictures share placeholders, so they share a count."""
    seen = int((prompt == processor.image_token_id).sum())
    heard = int((prompt == processor.audio_token_id).sum())
    pictures = " and ".join(kind for kind in ("image", "video") if kind in kinds)
    counts = {"text": len(prompt) - seen - heard, pictures: seen, "audio": heard}
    return {name: count for name, count in counts.items() if count}


# ------------------------------------------------------------------------------------------------ the questions


def asset_tasks() -> list[dict]:
    """The five tasks of assets/questions.json (made, and described, by training/synthesis/make_assets.py)."""
    return locate(json.loads((ASSETS / "questions.json").read_text()), ASSETS)


def fresh_tasks(seed: int, folder: Path) -> list[dict]:
    """Five new tasks of the same kinds, drawn from the test split; their media are written to `folder`."""
    from training.synthesis.make_assets import write_tasks

    return locate(write_tasks(dict.fromkeys(FRESH_SKILLS, seed), folder), folder)


def own_task(images: list[Path], videos: list[Path], audios: list[Path], text: str | None) -> dict:
    """The user's own files and text as one task, whose answer is not known."""
    content = [
        {"type": kind, kind: str(path)}
        for kind, paths in zip(MEDIA, (images, videos, audios), strict=True)
        for path in paths
    ]
    content += [{"type": "text", "text": text}] if text else []
    return {"title": "Your question", "content": content, "answer": None, "meta": {}}


def locate(tasks: list[dict], folder: Path) -> list[dict]:
    """The tasks with the names of their media as paths in `folder`."""
    for part in (part for task in tasks for part in task["content"]):
        if part["type"] in MEDIA:
            part[part["type"]] = str(folder / part[part["type"]])
    return tasks


def is_right(task: dict, answer: Answer) -> bool | None:
    """Whether the answer is the expected one (a chart's value: within 5 %); None if none is expected."""
    if task["answer"] is None:
        return None
    from eval import skills

    return skills.is_right(task, task["answer"], answer.text)


# ------------------------------------------------------------------------------------------------ in the terminal


VERDICTS = {True: "right", False: "wrong", None: ""}


def report(number: int, task: dict, answer: Answer) -> str:
    """One task and its answer as lines of text."""
    rows = [(part["type"], shown(part)) for part in task["content"]]
    if is_spoken(task) and "question" in task["meta"]:
        rows.append(("said", task["meta"]["question"]))
    rows.append(("answer", f"{answer.text}   [{VERDICTS[is_right(task, answer)]}]".removesuffix("   []")))
    if is_right(task, answer) is False:
        rows.append(("expected", task["answer"]))
    rows.append(("tokens in", ", ".join(f"{name} {count}" for name, count in answer.tokens.items())))
    rows.append(("speed", speed(answer)))
    if answer.speech:
        rows.append(("aloud", f"{shown_path(next(iter(answer.speech.values())))}, in {len(answer.speech)} voices"))
    return "\n".join([f"\n{number}. {task['title']}", *(f"   {name:10}{value}" for name, value in rows)])


def shown(part: dict) -> str:
    """A part of a message as one reads it: its text, or the path of its file."""
    if part["type"] == "text":
        return part["text"]
    return shown_path(Path(part[part["type"]]))


def shown_path(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def speed(answer: Answer) -> str:
    rate = f", then {answer.tokens_per_second:.0f} tokens/s" if answer.tokens_per_second else ""
    return f"first token after {answer.seconds_to_first:.2f} s{rate}"


def is_spoken(task: dict) -> bool:
    return any(part["type"] == "audio" for part in task["content"])


# ------------------------------------------------------------------------------------------------ as a page


def page(processor, model, tasks: list[dict], answers: list[Answer]) -> str:
    """The whole page, from assets/page.html."""
    cards = [card(processor, task, answer) for task, answer in zip(tasks, answers, strict=True)]
    return Template((ASSETS / "page.html").read_text()).substitute(model=describe(model), cards="\n".join(cards))


def card(processor, task: dict, answer: Answer) -> str:
    """One task as an article of the page: its media on one side, question, answer and numbers on the other."""
    media = "\n".join(player(processor, part) for part in task["content"] if part["type"] != "text")
    question = " ".join(part["text"] for part in task["content"] if part["type"] == "text")
    asked = f"<blockquote>{html.escape(question)}</blockquote>" if question else ""
    if is_spoken(task) and "question" in task["meta"]:
        asked += f"<blockquote>{html.escape(task['meta']['question'])} <small>(spoken)</small></blockquote>"
    verdict = VERDICTS[is_right(task, answer)]
    mark = f'<span class="verdict {verdict}">{verdict}</span>' if verdict else ""
    expected = f"<p>Expected: {html.escape(task['answer'])}</p>" if verdict == "wrong" else ""
    numbers = [(f"{name} tokens", count) for name, count in answer.tokens.items()]
    numbers.append(("first token", f"{answer.seconds_to_first:.2f} s"))
    if answer.tokens_per_second:
        numbers.append(("speed", f"{answer.tokens_per_second:.0f} tokens/s"))
    figures = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in numbers)
    return f"""<article>
<h2>{html.escape(task["title"])}</h2>
<div class="media">{media}</div>
<div class="talk">{asked}<p class="answer">{html.escape(answer.text) or "(nothing)"}{mark}</p>{expected}{voices(answer)}
<dl>{figures}</dl></div>
</article>"""


def voices(answer: Answer) -> str:
    """Players of a spoken answer: the first voice's, the others' behind a line to open."""
    players = [
        f'<label class="voice">{html.escape(voice)}<audio src="{embedded(path, "audio/wav")}" controls></audio></label>'
        for voice, path in answer.speech.items()
    ]
    others = "".join(players[1:])
    return "".join(players[:1]) + (f"<details><summary>Other voices</summary>{others}</details>" if others else "")


def embedded(path: Path, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(path.read_bytes()).decode()}"


def player(processor, part: dict) -> str:
    """A picture, or a player of sound (under its waveform) or video, with the file inside."""
    kind, path = part["type"], Path(part[part["type"]])
    name = html.escape(path.name)
    source = embedded(path, mimetypes.guess_type(path)[0] or f"{kind}/*")
    if kind == "image":
        return f'<img src="{source}" alt="{name}">'
    if kind == "video":
        return f'<video src="{source}" controls loop muted playsinline aria-label="{name}"></video>'
    return f'{waveform(processor.load_audio(str(path)))}<audio src="{source}" controls aria-label="{name}"></audio>'


def waveform(samples, bars: int = 96) -> str:
    """A drawing of the loudness of sound (samples,) over time: one bar for each equal part, as high as its peak."""
    import numpy as np

    peaks = np.array([abs(chunk).max(initial=0.0) for chunk in np.array_split(samples, bars)])
    heights = 38 * peaks / max(peaks.max(), 1e-6) + 1
    strokes = "".join(f"M{4 * i + 2} {20 - height / 2:.1f}v{height:.1f}" for i, height in enumerate(heights))
    return f'<svg class="wave" viewBox="0 0 {4 * bars} 40" aria-hidden="true"><path d="{strokes}"/></svg>'


# ------------------------------------------------------------------------------------------------ the command


def existing_file(value: str) -> Path:
    if not Path(value).is_file():
        raise argparse.ArgumentTypeError(f"no such file: {value}")
    return Path(value)


def parse(arguments: list[str] | None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    own = parser.add_argument_group("your own question (any of them; a picture or a video needs text or sound with it)")
    own.add_argument("--image", type=existing_file, action="append", default=[], help="a picture; may be repeated")
    own.add_argument("--video", type=existing_file, action="append", default=[], help="a video; may be repeated")
    own.add_argument("--audio", type=existing_file, action="append", default=[], help="sound; may be repeated")
    own.add_argument("--text", help="a question or request in writing")
    parser.add_argument("--fresh", type=int, metavar="SEED", help="five new held-out items, drawn from this seed")
    parser.add_argument("--model", default=str(ROOT), help="checkpoint folder or Hub repository, whose code is run")
    parser.add_argument("--output", type=Path, default=ROOT / "out", help="folder for demo.html (default: out/)")
    args = parser.parse_args(arguments)
    is_own = bool(args.image or args.video or args.audio or args.text)
    if is_own and args.fresh is not None:
        parser.error("--fresh draws its own questions: give either it or --image, --video, --audio, --text")
    if args.image + args.video and not (args.audio or args.text):
        parser.error("a picture or a video alone asks nothing: add --text or --audio")
    return args, is_own


def main(arguments: list[str] | None = None) -> None:
    args, is_own = parse(arguments)
    if is_own:
        tasks = [own_task(args.image, args.video, args.audio, args.text)]
    elif args.fresh is not None:
        tasks = fresh_tasks(args.fresh, args.output / f"fresh-{args.fresh}")
    else:
        tasks = asset_tasks()
    model, processor = load(args.model)
    args.output.mkdir(parents=True, exist_ok=True)
    answers = []
    for number, task in enumerate(tasks, 1):
        answers.append(ask(model, processor, task["content"]))
        if model.config.speech_config and is_spoken(task):
            answers[-1].speech = speak(model, processor, task["content"], args.output / f"answer-{number}")
        print(report(number, task, answers[-1]), flush=True)
    verdicts = [is_right(task, answer) for task, answer in zip(tasks, answers, strict=True)]
    if not is_own:
        print(f"\n{sum(verdicts)} of {len(verdicts)} right")
    (args.output / "demo.html").write_text(page(processor, model, tasks, answers))
    print(f"\nThe same with pictures and sound: {args.output / 'demo.html'}")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        raise SystemExit(f"demo.py: {error}") from error
