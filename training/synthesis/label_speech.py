"""The labelling model of the paper (II.C): a recogniser whose text carries emotion, speed, volume and non-verbal sounds.

    python -m training.synthesis.label_speech train --data data/expressive --output runs/labels
    python -m training.synthesis.label_speech evaluate --model runs/labels --data data/expressive-test
    python -m training.synthesis.label_speech label --model runs/labels --input recordings --output data/labelled \\
        --source "My recordings" --license CC-BY-4.0

`--data` are shards of transcripts (training/synthesis/expressive_speech.py --style transcript, or rows of real speech in
the same form). Training starts from the audio tower of an EAGLE checkpoint; a killed run goes on from its last checkpoint
with the same losses. `label` takes a folder of sound files of any length, cuts them at pauses into windows of at most 30 s,
and writes each as a conversation with what was heard; `meta` holds labels, sounds and how sure the model is of each.
"""

import argparse
import functools
import hashlib
import io
import itertools
import json
import os
import random
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import soundfile
import torch
from safetensors.torch import load_file, save_file
from scipy.special import softmax
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import AutoModelForMultimodalLM, WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder, WhisperEncoderLayer

from eval.metrics.word_error_rate.word_error_rate import word_error_rate, word_errors
from eval.statistics import bootstrap, wilson
from media_eagle import read_audio, resample
from training import attention, shards
from training.optimizer import MuonAdamW
from training.synthesis.expressive_speech import LABELS, TRANSCRIBE, read_transcript, token_of
from training.synthesis.nonverbal import SOUNDS
from training.synthesis.samples import row
from training.synthesis.voices import HELD_OUT_VOICES, SAMPLING_RATE

CHARACTERS = " 'abcdefghijklmnopqrstuvwxyz"
SYMBOLS = ["", *CHARACTERS, *SOUNDS]  # what the model can write frame by frame, by id; the first is CTC's blank
IDS = {symbol: number for number, symbol in enumerate(SYMBOLS)}
CLASSES = {label: list(classes) for label, classes in LABELS.items()}  # what it can say of the whole recording
SIZES = [len(classes) for classes in CLASSES.values()]

WIDTH, LAYERS, HEADS = 256, 2, 4  # of what stands on the audio tower
RATE, TOWER_RATE, WEIGHT_DECAY = 1e-3, 3e-4, 0.01
FROZEN_FRACTION = 0.07  # of the steps, in which the tower stands still: the gradients of new layers would undo what it knows
WARMUP_FRACTION, DECAY_FRACTION = 0.03, 0.4
HOP, FRAME = 320, 1024  # samples from one output frame to the next, and of those in which pitch is looked for
PITCHES = np.geomspace(60, 500, 64)  # Hz
OCTAVE_COST = 0.06
LONGEST, LOOK_BACK = 30 * SAMPLING_RATE, 8 * SAMPLING_RATE  # of a window, and where before its end a pause is looked for
CHECKPOINT = "checkpoint.pt"
SUFFIXES = (".wav", ".flac", ".mp3", ".ogg")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


# ------------------------------------------------------------------------------------------------ model


class Labeller(nn.Module):
    """Log-mel and pitch to symbols, one frame each 20 ms, for CTC (Graves et al. 2006), and to the labels of a recording.

    Two transformer layers see the states of all layers of the audio tower, not the last alone, which was made for words
    (as Yang et al. 2021, "SUPERB", weigh them). Pitch comes beside them: from the tower alone no emotion was learnt.
    """

    def __init__(self, tower: WhisperConfig):
        super().__init__()
        if DEVICE == "cpu":
            tower._attn_implementation = attention.NAME
        own = WhisperConfig(d_model=WIDTH, encoder_attention_heads=HEADS, encoder_ffn_dim=4 * WIDTH)
        own._attn_implementation = tower._attn_implementation
        self.encoder = WhisperEncoder(tower)
        self.mix = nn.Linear(tower.d_model * (tower.encoder_layers + 1), WIDTH)
        self.pitch = nn.Parameter(torch.randn(len(PITCHES), WIDTH))  # as large as what comes from the tower, or it drowns
        self.layers = nn.ModuleList(WhisperEncoderLayer(own) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.symbols, self.classes = nn.Linear(WIDTH, len(SYMBOLS)), nn.Linear(WIDTH, sum(SIZES))

    def forward(
        self, input_features: torch.Tensor, pitches: torch.Tensor, frames: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """input_features (N, 80, 2T), pitches (N, T, 64), frames (N,) of the T that hold sound -> log-probabilities of
        SYMBOLS (N, T, symbols) and scores of all classes of CLASSES (N, classes), both float32."""
        empty = torch.arange(input_features.shape[2] // 2, device=frames.device) >= frames[:, None]
        mask = torch.zeros(empty.shape, device=empty.device).masked_fill(empty, torch.finfo(torch.float32).min)[:, None, None]
        states = self.mix(torch.cat(self.tower_states(input_features, mask), -1)) + pitches @ self.pitch
        for layer in self.layers:
            states = layer(states, mask)
        states = self.norm(states)
        mean = states.masked_fill(empty[:, :, None], 0).sum(1) / frames[:, None]
        return self.symbols(states).float().log_softmax(-1), self.classes(mean).float()

    def tower_states(self, input_features: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
        """The states (N, T, D) of WhisperEncoder, of recordings shorter than its 30 s: before its layers, and normalised
        after each."""
        states = F.gelu(self.encoder.conv2(F.gelu(self.encoder.conv1(input_features)))).transpose(1, 2)
        states = states + self.encoder.embed_positions.weight[: states.shape[1]]
        outputs = [states]
        for layer in self.encoder.layers:
            states = layer(states, mask)
            outputs.append(F.layer_norm(states, states.shape[-1:]))
        return [*outputs[:-1], self.encoder.layer_norm(states)]


def start_from(checkpoint: str) -> Labeller:
    """A labeller with the audio tower of an EAGLE checkpoint."""
    eagle = AutoModelForMultimodalLM.from_pretrained(checkpoint, trust_remote_code=True, dtype=torch.float32)
    model = Labeller(eagle.config.audio_config)
    model.encoder.load_state_dict(eagle.model.audio_tower.encoder.state_dict())
    return model


@functools.cache
def load(folder: str) -> Labeller:
    """The labeller that `train` wrote. Raises ValueError for one of other labels."""
    config = json.loads((Path(folder) / "config.json").read_text())
    written = {"symbols": SYMBOLS, "classes": CLASSES}
    for name, value in written.items():
        if config[name] != value:
            raise ValueError(f"{folder} was trained with the {name} {config[name]}, but they are now {value}")
    model = Labeller(WhisperConfig(**config["tower"]))
    model.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return model.eval().to(DEVICE)


def inputs_of(waveforms: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What `Labeller` takes of recordings (mono float32 at 16 kHz), silence after the shorter ones.

    Whisper's log-mel keeps the level: 20 dB are 0.5 in each feature that is within 80 dB of the recording's loudest.
    """
    frames = [-(-len(waveform) // HOP) for waveform in waveforms]
    length = max(frames) * HOP
    padded = [np.pad(waveform, (0, length - len(waveform))) for waveform in waveforms]
    extractor = WhisperFeatureExtractor()
    mel = extractor(padded, max_length=length, sampling_rate=SAMPLING_RATE, return_tensors="pt").input_features
    pitches = torch.from_numpy(np.stack([pitches_of(waveform) for waveform in padded]))
    return mel.to(DEVICE), pitches.to(DEVICE), torch.tensor(frames, device=DEVICE)


def pitches_of(waveform: np.ndarray) -> np.ndarray:
    """How likely each of PITCHES is in each frame: (samples / HOP, 64) float32, all near 0 where there is no voice.

    From the autocorrelation of a windowed frame over that of the window, where lower octaves cost a little, as a voice
    repeats itself at each multiple of its period (Boersma 1993).
    """
    padded, window = np.pad(waveform, FRAME // 2), np.hanning(FRAME)
    cut = np.lib.stride_tricks.sliding_window_view(padded, FRAME)[::HOP][: len(waveform) // HOP]
    power = np.abs(np.fft.rfft(np.concatenate([cut * window, window[None]]), 2 * FRAME)) ** 2
    *correlations, of_window = np.fft.irfft(power)[:, :FRAME]
    scaled = np.array(correlations) / of_window
    scaled /= scaled[:, :1] + 1e-10
    lags = SAMPLING_RATE / PITCHES
    whole, part = lags.astype(int), lags % 1
    scores = scaled[:, whole] * (1 - part) + scaled[:, whole + 1] * part
    voiced = np.clip((scores.max(1, keepdims=True) - 0.4) / 0.4, 0, 1)
    return (voiced * softmax(25 * (scores + OCTAVE_COST * np.log2(PITCHES)), axis=1)).astype(np.float32)


# ------------------------------------------------------------------------------------------------ text


def to_ids(transcript: str) -> tuple[list[int], list[int]]:
    """The symbols of a transcript's words and sounds, and the class of each label.

    Raises ValueError for a label that is missing, or a character that is none of CHARACTERS.
    """
    labels, _, _ = read_transcript(transcript)
    if missing := set(CLASSES) - set(labels):
        raise ValueError(f"the transcript {transcript!r} has no {missing.pop()}; expected [emotion] [speed] [volume] first")
    words = [[word[1:-1]] if word.startswith("[") else list(word) for word in transcript.split()[len(CLASSES) :]]
    symbols = [symbol for number, word in enumerate(words) for symbol in ([" "] if number else []) + word]
    if unknown := set(symbols) - set(IDS):
        raise ValueError(f"the transcript {transcript!r} holds {unknown.pop()!r}; expected {CHARACTERS!r} and known sounds")
    return [IDS[symbol] for symbol in symbols], [CLASSES[label].index(name) for label, name in labels.items()]


def heard(log_probabilities: torch.Tensor, scores: torch.Tensor) -> dict:
    """What is heard in one recording: {"transcript", "labels", "sounds", "confidence"}.

    log_probabilities (T, symbols): each frame's best symbol, repetitions and blanks left out. scores (classes,): the best
    class of each label. Confidences, 0 to 1: of a label's class; of words and sounds ("text") the mean over symbols.
    """
    labels, confidence = {}, {}
    for (label, names), part in zip(CLASSES.items(), scores.split(SIZES), strict=True):
        best = part.softmax(0).max(0)
        labels[label], confidence[label] = names[best.indices], round(best.values.item(), 4)
    likeliest, ids = log_probabilities.max(1)
    kept = (ids != 0) & (ids != F.pad(ids, (1, 0), value=0)[:-1])
    symbols = [SYMBOLS[number] for number in ids[kept].tolist()]
    words = "".join(f" {token_of(symbol)} " if symbol in SOUNDS else symbol for symbol in symbols).split()
    confidence["text"] = round(likeliest[kept].exp().mean().item(), 4) if symbols else 0.0
    return {
        "transcript": " ".join([*map(token_of, labels.values()), *words]),
        "labels": labels, "sounds": [symbol for symbol in symbols if symbol in SOUNDS], "confidence": confidence,
    }  # fmt: skip


@torch.inference_mode()
def listen(model: Labeller, waveforms: list[np.ndarray]) -> list[dict]:
    """`heard` of each recording (mono float32 at 16 kHz, at most 30 s)."""
    inputs = inputs_of(waveforms)
    outputs, scores = model(*inputs)
    frames = inputs[-1].tolist()
    return [heard(output[:count], score) for output, count, score in zip(outputs, frames, scores, strict=True)]


# ------------------------------------------------------------------------------------------------ train


def row_groups(folders: list[Path]) -> list[tuple[str, int, int]]:
    """(file, number, rows) of each row group of the shards."""
    files = [file for folder in folders for file in shards.shard_files(folder)]
    tables = [(file, pq.read_metadata(file)) for file in files]
    return [(file, i, table.row_group(i).num_rows) for file, table in tables for i in range(table.num_row_groups)]


@functools.lru_cache(maxsize=1)
def recordings(file: str, group: int) -> list[tuple[np.ndarray, str, dict]]:
    """(waveform, transcript, meta) of each row of a row group, the shortest first, so that a batch has little padding."""
    found = []
    for stored in pq.ParquetFile(file).read_row_group(group).to_pylist():
        waveform, _ = soundfile.read(io.BytesIO(stored["audios"][0]["bytes"]), dtype="float32")
        if len(waveform) > LONGEST:
            raise ValueError(f"row {stored['id']!r} lasts {len(waveform) / SAMPLING_RATE:.1f} s; the tower hears 30 s")
        found.append((waveform, stored["messages"][-1]["content"][0]["text"], json.loads(stored["meta"])))
    return sorted(found, key=lambda recording: len(recording[0]))


def batch_of(groups: list[tuple[str, int, int]], size: int, seed: int, step: int) -> list[tuple[np.ndarray, str, dict]]:
    """The recordings of a step: row groups come in random order, each epoch in another."""
    epoch, step = divmod(step, sum(-(-rows // size) for _, _, rows in groups))
    for file, group, rows in random.Random(f"{seed}/{epoch}").sample(groups, len(groups)):
        if step * size < rows:
            return recordings(file, group)[step * size : (step + 1) * size]
        step -= -(-rows // size)


def loss_of(model: Labeller, batch: list[tuple[np.ndarray, str, dict]]) -> torch.Tensor:
    """CTC's loss of words and sounds, and the cross-entropy of each label."""
    waveforms, transcripts, _ = zip(*batch, strict=True)
    inputs = inputs_of(list(waveforms))
    symbols, classes = zip(*map(to_ids, transcripts), strict=True)
    with torch.autocast(DEVICE, torch.bfloat16):
        outputs, scores = model(*inputs)
    lengths = torch.tensor([len(target) for target in symbols], device=DEVICE)
    targets = pad_sequence([torch.tensor(target) for target in symbols], batch_first=True).to(DEVICE)
    loss = F.ctc_loss(outputs.transpose(0, 1), targets, inputs[-1], lengths, zero_infinity=True)
    labels = zip(scores.split(SIZES, -1), torch.tensor(classes, device=DEVICE).T, strict=True)
    return loss + sum(F.cross_entropy(part, target) for part, target in labels)


def schedule(steps: int, step: int) -> float:
    """Factor on the learning rates: linear warm-up, constant, linear decay to zero."""
    return min(1.0, (step + 1) / (WARMUP_FRACTION * steps), (steps - step) / (DECAY_FRACTION * steps))


def make_optimizer(model: Labeller) -> MuonAdamW:
    tower = [(name, parameter) for name, parameter in model.named_parameters() if name.startswith("encoder.")]
    others = [(name, parameter) for name, parameter in model.named_parameters() if not name.startswith("encoder.")]
    return MuonAdamW([(others, RATE), (tower, TOWER_RATE)], WEIGHT_DECAY)


def train(
    data: list[Path], tower: str, output: Path, steps: int, batch_size: int = 8, seed: int = 0, save_steps: int = 50
) -> list[float]:
    """Trains up to `steps`, from the checkpoint in `output` if there is one; returns the losses of all steps so far.

    Raises ValueError for a checkpoint of other arguments, FloatingPointError where the loss is no number any more.
    """
    groups = row_groups(data)
    options = {"steps": steps, "batch_size": batch_size, "seed": seed, "rows": sum(rows for _, _, rows in groups)}
    torch.manual_seed(seed)
    model = start_from(tower).train().to(DEVICE)
    optimizer = make_optimizer(model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, functools.partial(schedule, steps))
    losses = restore(output / CHECKPOINT, options, model, optimizer, scheduler)
    output.mkdir(parents=True, exist_ok=True)
    bar = tqdm(range(len(losses), steps), initial=len(losses), total=steps)
    for step in bar:
        model.encoder.requires_grad_(step >= FROZEN_FRACTION * steps)
        loss = loss_of(model, batch_of(groups, batch_size, seed, step))
        if not loss.isfinite():
            raise FloatingPointError(f"the loss of step {step} is {loss.item()}; the last checkpoint in {output} is before it")
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        bar.set_postfix(loss=f"{np.mean(losses[-20:]):.3f}")
        if (step + 1) % save_steps == 0 or step + 1 == steps:
            save(output, options, model, optimizer, scheduler, losses)
    return losses


def restore(path: Path, options: dict, model: Labeller, optimizer, scheduler) -> list[float]:
    """Loads a checkpoint, if it is there; returns its losses. Raises ValueError for one of other options."""
    if not path.exists():
        return []
    saved = torch.load(path, weights_only=True, map_location=DEVICE)
    for key, value in options.items():
        if saved["options"][key] != value:
            raise ValueError(f"{path} is of a run with {key} {saved['options'][key]}, now it is {value}; name another folder")
    for part, name in ((model, "model"), (optimizer, "optimizer"), (scheduler, "scheduler")):
        part.load_state_dict(saved[name])
    return saved["losses"]


def save(output: Path, options: dict, model: Labeller, optimizer, scheduler, losses: list[float]) -> None:
    """The checkpoint, and what `load` reads; each beside, then renamed."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    config = {"symbols": SYMBOLS, "classes": CLASSES, "tower": model.encoder.config.to_dict()}
    writers = {
        CHECKPOINT: lambda path: torch.save(state | {"options": options, "losses": losses}, path),
        "model.safetensors": lambda path: save_file(model.state_dict(), path),
        "config.json": lambda path: path.write_text(json.dumps(config, indent=2)),
    }
    for name, write in writers.items():
        part = output / f"{name}.part"
        write(part)
        os.replace(part, output / name)


# ------------------------------------------------------------------------------------------------ evaluate


def judged(truth: dict, meta: dict, answer: dict) -> dict:
    """Whether each thing about a recording was heard right, and its word errors."""
    labels, words, sounds = truth
    right = {label: answer["labels"][label] == name for label, name in labels.items()}
    right["sarcastic or not"] = (answer["labels"]["emotion"] == "sarcastic") == (labels["emotion"] == "sarcastic")
    right |= {f"{sound} or not": (sound in answer["sounds"]) == (sound in sounds) for sound in SOUNDS}
    right["all sounds in order"] = answer["sounds"] == sounds
    _, said, _ = read_transcript(answer["transcript"])
    return {"right": right, "errors": word_errors(said, words, normalize=str), "new voice": meta.get("voice") in HELD_OUT_VOICES}


def evaluate(folder: str, data: list[Path], batch_size: int = 16) -> list[dict]:
    """`judged` for each row of the shards."""
    groups = row_groups(data)
    found, bar = [], tqdm(total=sum(rows for _, _, rows in groups), unit="row")
    for file, group, _ in groups:
        rows = recordings(file, group)
        for first in range(0, len(rows), batch_size):
            waveforms, transcripts, metas = zip(*rows[first : first + batch_size], strict=True)
            answers = listen(load(folder), list(waveforms))
            truths = map(read_transcript, transcripts)
            found += [judged(*item) for item in zip(truths, metas, answers, strict=True)]
            bar.update(len(answers))
    return found


def table(judgements: list[dict]) -> str:
    """A line for each label: accuracy in percent with its 95 % interval; and the word error rate."""
    lines = ["| what | items | % | 95 % |", "|---|---|---|---|"]
    for name in judgements[0]["right"]:
        right, total = sum(judgement["right"][name] for judgement in judgements), len(judgements)
        low, high = wilson(right, total)
        lines.append(f"| {name} | {total} | {100 * right / total:.1f} | {100 * low:.1f}-{100 * high:.1f} |")
    errors = [judgement["errors"] for judgement in judgements]
    low, high = bootstrap(errors, aggregate=word_error_rate)
    lines.append(f"| word error rate | {len(errors)} | {100 * word_error_rate(errors):.1f} | {100 * low:.1f}-{100 * high:.1f} |")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------ label


@functools.lru_cache(maxsize=1)
def read(path: Path) -> np.ndarray:
    """A sound file as mono float32 at 16 kHz. Raises ValueError for one that is damaged or empty."""
    waveform, rate, _ = read_audio(path)
    waveform = resample(waveform, rate, SAMPLING_RATE)
    if not len(waveform):
        raise ValueError(f"{path} holds no sound")
    return waveform


def windows_of(waveform: np.ndarray) -> list[tuple[int, int]]:
    """(start, end) in samples of windows of at most 30 s, cut where the last seconds of each are quietest."""
    cuts, frame = [0], SAMPLING_RATE // 5
    while len(waveform) - cuts[-1] > LONGEST:
        first = cuts[-1] + LONGEST - LOOK_BACK
        power = np.convolve(waveform[first : first + LOOK_BACK] ** 2, np.ones(frame), "valid")
        cuts.append(first + int(power.argmin()) + frame // 2)
    return list(itertools.pairwise([*cuts, len(waveform)]))


def find_windows(folder: Path, max_bad_files: int) -> tuple[list[tuple[str, int, int]], list[str]]:
    """(file, start, end) of all windows of a folder's sound files, and the files that cannot be read, as paths in it.

    Raises ValueError where there are more of these than max_bad_files, or no file at all.
    """
    windows, bad = [], []
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    for path in tqdm(files, unit="file", desc=str(folder)):
        name = path.relative_to(folder).as_posix()
        try:
            windows += [(name, start, end) for start, end in windows_of(read(path))]
        except (ValueError, OSError) as error:
            bad.append(name)
            tqdm.write(f"left out: {error}", file=sys.stderr)
    if len(bad) > max_bad_files:
        raise ValueError(f"{len(bad)} files cannot be read, --max-bad-files is {max_bad_files}: {', '.join(bad[:20])}")
    if not windows:
        raise ValueError(f"{folder} has no readable sound file; expected files ending in {', '.join(SUFFIXES)}")
    return windows, bad


def labelled(
    model: str, folder: Path, windows: list[tuple[str, int, int]], source: str, license: str, index: int
) -> dict | None:
    """The row of a window; None where nothing is heard in it."""
    name, start, end = windows[index]
    waveform = read(folder / name)[start:end]
    answer = listen(load(model), [waveform])[0]
    if not answer["confidence"]["text"]:
        return None
    facts = {"file": name, "start": start / SAMPLING_RATE, "end": end / SAMPLING_RATE, "sounds": answer["sounds"]}
    sample = row(random.Random(index), [("audio", waveform), ("text", TRANSCRIBE[0])], answer["transcript"])
    sample["meta"] = facts | answer["labels"] | {"confidence": answer["confidence"]}
    return shards.encode_row(sample, f"{name}/{start}", source, license)


def label(args: argparse.Namespace) -> None:
    """Labels the recordings of a folder."""
    windows, bad = find_windows(args.input, args.max_bad_files)
    weights = hashlib.sha256((args.model / "model.safetensors").read_bytes()).hexdigest()
    found = hashlib.sha256(json.dumps(windows).encode()).hexdigest()
    shards.write_shards(
        functools.partial(labelled, str(args.model), args.input, windows, args.source, args.license),
        source=args.source,
        license=args.license,
        options={"script": "label_speech", "model": weights, "windows": found, "bad_files": bad},
        labels=list(LABELS),
        **shards.arguments(args) | {"count": min(args.rows or len(windows), len(windows))},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("train", help="train on transcripts with labels")
    command.add_argument("--data", type=Path, nargs="+", required=True, help="folders of shards")
    command.add_argument("--tower", default=".", help="EAGLE checkpoint whose audio tower to start from (default: .)")
    command.add_argument("--output", type=Path, required=True)
    command.add_argument("--steps", type=int, default=1500)
    command.add_argument("--batch-size", type=int, default=8)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--save-steps", type=int, default=50, help="steps between checkpoints (default: 50)")
    command = commands.add_parser("evaluate", help="accuracy of each label on shards of transcripts")
    command.add_argument("--model", type=Path, required=True)
    command.add_argument("--data", type=Path, nargs="+", required=True, help="folders of shards, of the test split")
    command = commands.add_parser("label", help="label a folder of sound files")
    command.add_argument("--model", type=Path, required=True)
    command.add_argument("--input", type=Path, required=True, help=f"folder, searched for {', '.join(SUFFIXES)}")
    command.add_argument("--source", required=True, help="where the recordings are from")
    command.add_argument("--license", required=True, help="of the recordings")
    command.add_argument("--max-bad-files", type=int, default=100, help="unreadable files that are left out (default: 100)")
    shards.add_arguments(command, rows=None, rows_help="windows to label")
    args = parser.parse_args()
    if args.command == "train":
        train(args.data, args.tower, args.output, args.steps, args.batch_size, args.seed, args.save_steps)
    elif args.command == "label":
        label(args)
    else:
        judgements = evaluate(str(args.model), args.data)
        print(table(judgements))
        if others := [judgement for judgement in judgements if judgement["new voice"]]:
            print(f"\nin a voice that was not in training:\n{table(others)}")


if __name__ == "__main__":
    main()
