"""How fast speech is made: the full-size decoder beside transformers' VITS of OpenVoice's size, and a whole model's first sound.

    python -m eval.benchmark_speech decoder                 # 113 M parameters, random
    python -m eval.benchmark_speech decoder --rounds 1 --seconds 2          # does it run?
    python -m eval.benchmark_speech model --model . --question lamp.wav

`decoder`: rounds of one-shot synthesis of the same length by both, in turns, the next round the other way about; the ratio is
taken within a round. The first chunk is a state's first 24 frames after its first segment of four words. `model`: from a spoken
question to the first sound; and whether a player that starts with the first chunk of a minute of speech ever waits.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from math import log

import torch
from transformers import AutoModelForMultimodalLM, AutoProcessor, VitsConfig, VitsModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from training.assemble import ROOT

FRAMES_A_CHARACTER = 5.7  # 15 characters a second at 86 frames a second
SEGMENT, FIRST = 60, 18  # characters in a segment of 16 tokens, and in the first one of 4
CHUNK = 24  # frames: 0.28 s


# ------------------------------------------------------------------------------------------------ the decoder


def full_decoder() -> torch.nn.Module:
    """EAGLE-A's speech decoder with random weights, whose characters last FRAMES_A_CHARACTER."""
    decoder_class = get_class_from_dynamic_module("speech_eagle.EagleSpeechDecoder", str(ROOT))
    decoder = decoder_class(decoder_class.config_class()).eval()
    torch.nn.init.zeros_(decoder.duration_predictor.proj.weight)
    torch.nn.init.constant_(decoder.duration_predictor.proj.bias, log(FRAMES_A_CHARACTER))
    return decoder


def openvoice_sized() -> VitsModel:
    """OpenVoice's base speaker: 22,050 Hz, hop 256, voices of 256 numbers. Its stochastic durations are left out."""
    config = VitsConfig(
        vocab_size=260, speaker_embedding_size=256, num_speakers=7, sampling_rate=22_050, use_stochastic_duration_prediction=False
    )
    model = VitsModel(config).eval()
    torch.nn.init.zeros_(model.duration_predictor.proj.weight)
    torch.nn.init.constant_(model.duration_predictor.proj.bias, log(FRAMES_A_CHARACTER - 0.5))  # it rounds up
    return model


def segments(decoder, characters: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    whole, rest = divmod(max(0, characters - FIRST), SEGMENT)
    sizes = [FIRST] + [SEGMENT] * whole + [rest] * (rest > 0)
    return [(torch.randn(size, decoder.config.projector_size), torch.randint(97, 123, (size,))) for size in sizes]


@torch.inference_mode()
def say_whole(decoder, parts) -> float:
    """Speaks; returns the seconds of sound."""
    state, samples, frames = decoder.start("Emma"), 0, sys.modules[type(decoder).__module__].WHOLE_CHUNK
    for number, part in enumerate(parts):
        decoder.extend(state, *part, is_last=number == len(parts) - 1)
        while (chunk := decoder.render(state, frames)) is not None:
            samples += len(chunk)
    return samples / decoder.config.sampling_rate


@torch.inference_mode()
def say_first_chunk(decoder, parts) -> float:
    state = decoder.start("Emma")
    decoder.extend(state, *parts[0])
    return len(decoder.render(state, CHUNK)) / decoder.config.sampling_rate


@torch.inference_mode()
def say_with_vits(vits: VitsModel, characters: int) -> float:
    waveform = vits(torch.randint(97, 123, (1, characters)), speaker_id=3).waveform
    return waveform.shape[1] / vits.config.sampling_rate


def timed(speak: Callable[[], float]) -> tuple[float, float, float]:
    """(seconds of sound, of the clock, of all cores)."""
    wall, cpu = time.perf_counter(), time.process_time()
    sound = speak()
    return sound, time.perf_counter() - wall, time.process_time() - cpu


def benchmark_decoder(seconds: float, rounds: int) -> None:
    torch.manual_seed(0)
    decoder, vits = full_decoder(), openvoice_sized()
    characters = round(seconds * decoder.config.sampling_rate / decoder.config.hop_length / FRAMES_A_CHARACTER)
    parts = segments(decoder, characters)
    ways = {
        "EAGLE-A's decoder": lambda: say_whole(decoder, parts),
        "VitsModel of OpenVoice's size": lambda: say_with_vits(vits, sum(len(part[1]) for part in parts)),
        "first chunk": lambda: say_first_chunk(decoder, parts),
    }
    for speak in ways.values():
        speak()  # the first run is slower than all others
    found = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways)[:: -1 if number % 2 else 1]:
            found[name].append(timed(ways[name]))
    print(f"torch threads: {torch.get_num_threads()}; {rounds} rounds; median (lowest to highest)\n")
    print("| | parameters | sound, s | real-time factor | CPU-seconds a second of sound |")
    print("|---|---|---|---|---|")
    for name, model in (("EAGLE-A's decoder", decoder), ("VitsModel of OpenVoice's size", vits)):
        factors = [wall / sound for sound, wall, _ in found[name]]
        costs = [cpu / sound for sound, _, cpu in found[name]]
        count = sum(p.numel() for p in model.parameters())
        print(f"| {name} | {count:,} | {found[name][0][0]:.1f} | {spread(factors)} | {spread(costs)} |")
    ours, theirs = found["EAGLE-A's decoder"], found["VitsModel of OpenVoice's size"]
    ratios = [(cpu / sound) / (their_cpu / their_sound) for (sound, _, cpu), (their_sound, _, their_cpu) in zip(ours, theirs, strict=True)]
    first = [cpu for _, _, cpu in found["first chunk"]]
    print(f"\nratio of CPU-seconds: {spread(ratios)}; first chunk of {found['first chunk'][0][0]:.2f} s: {spread(first)} CPU-seconds")


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


# ------------------------------------------------------------------------------------------------ a whole model


@torch.inference_mode()
def benchmark_model(path: str, question: str, rounds: int, minutes: float) -> None:
    processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)
    model = AutoModelForMultimodalLM.from_pretrained(path, trust_remote_code=True, dtype=torch.float32).eval()
    messages = [{"role": "user", "content": [{"type": "audio", "audio": question}]}]

    def first_sound() -> float:
        inputs = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
        stream = model.stream(**inputs, max_new_tokens=64)
        event = next(event for event in stream if event.audio is not None)
        stream.close()
        return event.end - event.start

    first_sound()
    print(f"from a spoken question to the first sound: {spread([timed(first_sound)[1] for _ in range(rounds)])} s")
    inputs = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
    waits, started, heard = [], None, 0.0
    for event in model.stream(**inputs, max_new_tokens=4096, min_new_tokens=4096):
        if event.audio is None:
            continue
        now = time.perf_counter()
        started = started if started is not None else now
        waits.append(max(0.0, now - started - heard))
        started += waits[-1]
        heard = event.end
        if heard > 60 * minutes:
            break
    print(f"{heard:.0f} s of speech: {sum(wait > 0 for wait in waits)} waits in {len(waits)} chunks, {sum(waits):.2f} s in all")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    decoder = commands.add_parser("decoder", help="the full-size decoder, random, beside VitsModel")
    decoder.add_argument("--seconds", type=float, default=10.0, help="of sound (default: %(default)s)")
    model = commands.add_parser("model", help="a checkpoint that speaks")
    model.add_argument("--model", default=".", help="folder or repository (default: %(default)s)")
    model.add_argument("--question", required=True, help="a sound file")
    model.add_argument("--minutes", type=float, default=1.0, help="of speech that a player must not run out of")
    for command in (decoder, model):
        command.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if args.command == "decoder":
        benchmark_decoder(args.seconds, args.rounds)
    else:
        benchmark_model(args.model, args.question, args.rounds, args.minutes)


if __name__ == "__main__":
    main()
