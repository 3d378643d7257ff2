"""How well a model speaks, by the ears of a small network of its own that learnt from real speech of other sentences.

    python -m eval.judge_speech train --output runs/judge
    python -m eval.judge_speech score --judge runs/judge --model . --output out/speech

Real speech is eSpeak NG's, as training/synthesis/speaking.py has it: seven voices, four emotions, three speeds, three volumes. The
judge writes down what it hears and says whose voice it is and how the speaker feels; it shares nothing with the model. `score`
plays it held-out answers, once real and once spoken by the model in the same way, and compares both: words, voices, emotions, and
how long and how loud they are. Writes results.json, the waveforms of the first answers, and spectrograms.png.
"""

import argparse
import functools
import json
import os
import re
from pathlib import Path

import numpy as np
import soundfile
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import AutoModelForMultimodalLM, AutoProcessor
from transformers.audio_utils import mel_filter_bank

from eval.metrics.word_error_rate.word_error_rate import word_error_rate, word_errors
from eval.statistics import bootstrap, wilson
from media_eagle import resample
from speech_text_eagle import LEARNT, folded
from speech_text_eagle import spoken as as_spoken
from training.synthesis import speaking
from training.synthesis.expressive_speech import LABELS
from training.synthesis.voices import SAMPLING_RATE, VOICES

SYMBOLS = ["", *sorted(LEARNT)]  # the first is CTC's blank
CLASSES = {"voice": list(VOICES), "emotion": list(LABELS["emotion"])}
SIZES = [len(names) for names in CLASSES.values()]
BINS, WINDOW, HOP, WIDTH = 80, 400, 160, 192
SHOWN = 4  # answers of which waveforms and spectrograms are kept


# ------------------------------------------------------------------------------------------------ the judge


class Judge(nn.Module):
    """Log-mel spectrogram to characters, a frame each 20 ms, for CTC, and to voice and emotion of the whole."""

    def __init__(self):
        super().__init__()
        self.conv_1 = nn.Conv1d(BINS, WIDTH, 5, padding=2)
        self.conv_2 = nn.Conv1d(WIDTH, WIDTH, 5, stride=2, padding=2)
        self.gru = nn.GRU(WIDTH, WIDTH, num_layers=2, batch_first=True, bidirectional=True)
        self.symbols = nn.Linear(2 * WIDTH, len(SYMBOLS))
        self.classes = nn.Sequential(nn.Linear(4 * WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, sum(SIZES)))

    def forward(self, mel: torch.Tensor, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """mel (N, 80, 2T), frames (N,) of the T that hold sound -> log-probabilities of SYMBOLS (N, T, symbols) and scores
        of all classes of CLASSES (N, classes)."""
        states = F.gelu(self.conv_2(F.gelu(self.conv_1(mel)))).transpose(1, 2)
        inside = (torch.arange(states.shape[1]) < frames[:, None])[..., None]
        low = states * inside
        states = self.gru(low)[0]
        pooled = [(part * inside).sum(1) / frames[:, None] for part in (states, states**2)]
        return self.symbols(states).log_softmax(-1), self.classes(torch.cat(pooled, -1))


def inputs_of(waveforms: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-mel spectrograms of recordings (mono float32, 16 kHz) of one level: volume is measured, not judged."""
    frames = [max(1, len(waveform) // (2 * HOP)) for waveform in waveforms]
    padded = torch.zeros(len(waveforms), 2 * HOP * max(frames) + WINDOW)
    for row, waveform in zip(padded, waveforms, strict=True):
        level = np.sqrt(np.mean(np.square(waveform))) + 1e-6
        row[: len(waveform)] = torch.from_numpy(waveform / level)[: len(row)]
    spectrum = torch.stft(padded, WINDOW, HOP, window=torch.hann_window(WINDOW), return_complex=True).abs()
    mel = (mel_bank().T @ spectrum).clamp(min=1e-3).log()[..., : 2 * max(frames)]
    return mel, torch.tensor(frames)


@functools.cache
def mel_bank() -> torch.Tensor:
    return torch.from_numpy(mel_filter_bank(WINDOW // 2 + 1, BINS, 0, SAMPLING_RATE / 2, SAMPLING_RATE, "slaney", "slaney")).float()


def words_of(row: dict) -> str:
    """What is said in a row, as the judge writes it: spoken form, without coughs and the like."""
    text = re.sub(r"\[\w+\]", " ", row["messages"][-1]["content"][0]["text"])
    return " ".join(folded(as_spoken(text)).replace("-", " ").split())


def loss_of(judge: Judge, rows: list[dict]) -> torch.Tensor:
    mel, frames = inputs_of([row["speech"] for row in rows])
    symbols, scores = judge(mel, frames)
    targets = [torch.tensor([SYMBOLS.index(character) for character in words_of(row)]) for row in rows]
    lengths = torch.tensor([len(target) for target in targets])
    loss = F.ctc_loss(symbols.transpose(0, 1), pad_sequence(targets, batch_first=True), frames, lengths, zero_infinity=True)
    for label, part in zip(CLASSES, scores.split(SIZES, -1), strict=True):
        loss = loss + F.cross_entropy(part, torch.tensor([CLASSES[label].index(row["meta"][label]) for row in rows]))
    return loss


@torch.inference_mode()
def listen(judge: Judge, waveform: np.ndarray) -> dict[str, str]:
    """{"words", "voice", "emotion"} that the judge hears."""
    symbols, scores = judge(*inputs_of([waveform]))
    ids = symbols[0].argmax(-1).unique_consecutive().tolist()
    heard = {label: CLASSES[label][part.argmax()] for label, part in zip(CLASSES, scores[0].split(SIZES), strict=True)}
    return heard | {"words": " ".join("".join(SYMBOLS[i] for i in ids).split())}


def train(output: Path, steps: int, batch_size: int, seed: int) -> None:
    torch.manual_seed(seed)
    judge = Judge().train()
    optimizer = torch.optim.AdamW(judge.parameters(), 2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.05)
    losses = []
    for step in (bar := tqdm(range(steps))):
        loss = loss_of(judge, [speaking.make("train", f"judge/{seed}/{step}/{i}") for i in range(batch_size)])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        bar.set_postfix(loss=f"{np.mean(losses[-50:]):.3f}")
    output.mkdir(parents=True, exist_ok=True)
    save_file(judge.state_dict(), part := output / "model.safetensors.part")
    os.replace(part, output / "model.safetensors")


# ------------------------------------------------------------------------------------------------ the score


def load_judge(folder: Path) -> Judge:
    judge = Judge()
    judge.load_state_dict(load_file(folder / "model.safetensors"))
    return judge.eval()


def say(model, processor, row: dict) -> np.ndarray:
    """The row's answer as the model speaks it in the row's way, at 16 kHz."""
    inputs = processor.apply_chat_template(
        row["messages"], tokenize=True, return_dict=True, return_tensors="pt", return_assistant_tokens_mask=True
    )
    way = {name: row["meta"][name] for name in ("voice", "emotion", "speed", "volume")}
    waveform = model.speak(**inputs, tokenizer=processor.tokenizer, **way)
    return resample(waveform.cpu().numpy(), model.config.sampling_rate, SAMPLING_RATE)


def compare(judge: Judge, model, processor, rows: list[dict]) -> tuple[list[dict], list[tuple[np.ndarray, np.ndarray]]]:
    """For each row what was heard of real speech and of the model's, and how both compare in length and level."""
    found, waveforms = [], []
    for row in tqdm(rows, unit="answer"):
        real, ours = row["speech"], say(model, processor, row)
        waveforms.append((real, ours))
        entry = {"words": words_of(row)} | {name: row["meta"][name] for name in ("voice", "emotion", "speed", "volume")}
        entry |= {"real": listen(judge, real), "ours": listen(judge, ours)}
        entry["longer"] = len(ours) / len(real)
        entry["louder"] = float(np.sqrt(np.mean(np.square(ours)) / np.mean(np.square(real))))
        found.append(entry)
    return found, waveforms


def results_of(found: list[dict]) -> dict[str, dict]:
    """Figures with their 95 % intervals: {name: {value, low, high}}."""
    results = {}
    for whose in ("real", "ours"):
        errors = [word_errors(entry[whose]["words"], entry["words"], str.strip) for entry in found]
        low, high = bootstrap(errors, aggregate=word_error_rate)
        results[f"{whose}: word error rate"] = {"value": word_error_rate(errors), "low": low, "high": high}
        for label in CLASSES:
            right = sum(entry[whose][label] == entry[label] for entry in found)
            low, high = wilson(right, len(found))
            results[f"{whose}: {label} recognised"] = {"value": right / len(found), "low": low, "high": high}
    for what, classes in (("longer", "speed"), ("louder", "volume")):
        for value in sorted({entry[classes] for entry in found}):
            ratios = np.array([entry[what] for entry in found if entry[classes] == value])
            low, high = np.percentile(ratios, [2.5, 97.5])
            results[f"{what} than real at {classes} {value:g}"] = {"value": float(np.median(ratios)), "low": float(low), "high": float(high)}
    return results


def plot(path: Path, waveforms: list[tuple[np.ndarray, np.ndarray]], titles: list[str]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 2.6 * len(waveforms)), layout="constrained")
    for row, (pair, title) in enumerate(zip(waveforms, titles, strict=True)):
        for column, (waveform, whose) in enumerate(zip(pair, ("real", "ours"), strict=True)):
            axes = figure.add_subplot(len(waveforms), 2, 2 * row + column + 1)
            axes.imshow(inputs_of([waveform])[0][0].numpy(), origin="lower", aspect="auto", extent=(0, len(waveform) / SAMPLING_RATE, 0, BINS))
            axes.set_title(f"{whose}: {title}"[:70], fontsize=8)
    figure.savefig(path, dpi=100)


def score(judge_folder: Path, model_path: str, output: Path, count: int, seed: str) -> dict[str, dict]:
    judge = load_judge(judge_folder)
    processor = AutoProcessor.from_pretrained(model_path, trust_remote_code=True)
    model = AutoModelForMultimodalLM.from_pretrained(model_path, trust_remote_code=True, dtype=torch.float32).eval()
    rows = [speaking.make("test", f"{seed}/{i}") for i in range(count)]
    found, waveforms = compare(judge, model, processor, rows)
    results = results_of(found)
    output.mkdir(parents=True, exist_ok=True)
    for number, pair in enumerate(waveforms[:SHOWN]):
        for whose, waveform in zip(("real", "ours"), pair, strict=True):
            soundfile.write(output / f"{number}-{whose}.wav", waveform, SAMPLING_RATE)
    plot(output / "spectrograms.png", waveforms[:SHOWN], [entry["words"] for entry in found[:SHOWN]])
    (output / "results.json").write_text(json.dumps({"results": results, "answers": found}, indent=1))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="the judge")
    training.add_argument("--steps", type=int, default=3000)
    training.add_argument("--batch-size", type=int, default=16)
    training.add_argument("--seed", type=int, default=0)
    scoring = commands.add_parser("score", help="a model, by the judge")
    scoring.add_argument("--judge", type=Path, required=True)
    scoring.add_argument("--model", default=".", help="folder or repository (default: %(default)s)")
    scoring.add_argument("--count", type=int, default=300)
    scoring.add_argument("--seed", default="judged", help="of the answers (default: %(default)s)")
    for command in (training, scoring):
        command.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    if args.command == "train":
        train(args.output, args.steps, args.batch_size, args.seed)
        return
    for name, entry in score(args.judge, args.model, args.output, args.count, args.seed).items():
        print(f"{name:<34} {entry['value']:8.3f}   {entry['low']:.3f} to {entry['high']:.3f}")


if __name__ == "__main__":
    main()
