"""Ablations of eagle-tiny: what its choices are worth, each arm from the same checkpoint, with intervals over items and seeds.

    python -m training.ablations --study resampler --output runs/ablations
    python -m training.ablations --study all --seeds 0 1 2 --count 100
    python -m training.ablations --study mipha --seeds 0 --steps 4 --count 4 --output runs/try    # does it run?

resampler  a fresh image projector: the resampler's local start, its random start, or an MLP over pooled patches
audio      a fresh audio projector over stacked encoder frames, or over the states of a fresh two-layer decoder
mipha      vision tower and language model frozen or tuned
bunny      the language model tuned whole or by LoRA, without and with text-only data

Two arms run at a time, on a core each. An arm takes 15 to 20 minutes of a core (8 to 10 of both), its scores 1 or 2 more; the
fresh decoder is trained 20 minutes before its arm begins. All 13 arms with 3 seeds: about 6.5 hours of two cores.
Writes OUTPUT/<study>/<arm>/seed-<n>/result.json, then OUTPUT/<study>/table.md and scores.png. What has its result is not
run again, and a killed arm goes on from its last checkpoint.
"""

import argparse
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from math import isqrt
from pathlib import Path

import jiwer
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import AutoModelForMultimodalLM, AutoProcessor, AutoTokenizer, PreTrainedModel, set_seed
from transformers.trainer_utils import get_last_checkpoint
from trl import TrlParser

from eval import skills
from eval.samples import write_beside
from eval.statistics import DRAWS, SEED, bootstrap, drawn_clusters, percentiles
from training import sft
from training.collator import EagleCollator, with_media
from training.optimizer import MuonAdamW
from training.parts import sha256
from training.settings import keep
from training.synthesis import samples
from training.synthesis.voices import SAMPLING_RATE, synthesize

# What the fresh decoder learns from. 800 windows were too few: it knew them by heart, with 72 % word errors on others; these: 51 %.
DECODER_WINDOWS, DECODER_STEPS, DECODER_RATE = 2400, 2400, 2e-3
BATCH = 8  # of that, and of scoring

# (voice of eSpeak NG, the same dozen sentences)
LANGUAGES = {
    "English": ("en-us", "Good morning, how are you today? The train to the city leaves at half past seven. Please turn on the "
                "light in the kitchen. My sister has bought three red apples. It has been raining since yesterday evening. Where "
                "is the nearest pharmacy? The children are playing in the garden behind the house. I would like a cup of tea "
                "without sugar. We will meet again next week at the station. He forgot his keys on the table. The book on the "
                "shelf belongs to my grandfather. Tomorrow I have to get up early."),
    "German": ("de", "Guten Morgen, wie geht es Ihnen heute? Der Zug in die Stadt fährt um halb acht ab. Bitte mach das Licht in "
               "der Küche an. Meine Schwester hat drei rote Äpfel gekauft. Es regnet seit gestern Abend. Wo ist die nächste "
               "Apotheke? Die Kinder spielen im Garten hinter dem Haus. Ich hätte gern eine Tasse Tee ohne Zucker. Wir treffen "
               "uns nächste Woche wieder am Bahnhof. Er hat seine Schlüssel auf dem Tisch vergessen. Das Buch im Regal gehört "
               "meinem Großvater. Morgen muss ich früh aufstehen."),
    "Spanish": ("es", "Buenos días, ¿cómo está usted hoy? El tren a la ciudad sale a las siete y media. Por favor, enciende la luz "
                "de la cocina. Mi hermana ha comprado tres manzanas rojas. Llueve desde ayer por la noche. ¿Dónde está la farmacia "
                "más cercana? Los niños juegan en el jardín detrás de la casa. Quisiera una taza de té sin azúcar. Nos vemos otra "
                "vez la próxima semana en la estación. Olvidó sus llaves en la mesa. El libro del estante es de mi abuelo. Mañana "
                "tengo que levantarme temprano."),
    "Slovak": ("sk", "Dobré ráno, ako sa dnes máte? Vlak do mesta odchádza o pol ôsmej. Zapni, prosím, svetlo v kuchyni. Moja "
               "sestra kúpila tri červené jablká. Od včera večera prší. Kde je najbližšia lekáreň? Deti sa hrajú v záhrade za "
               "domom. Dal by som si šálku čaju bez cukru. Na budúci týždeň sa opäť stretneme na stanici. Zabudol si kľúče na "
               "stole. Kniha na poličke patrí môjmu starému otcovi. Zajtra musím vstávať skoro."),
}  # fmt: skip

# --- what arms do to the model before training ----------------------------------------------------------------------------


def fresh(model, name: str, *sizes: int) -> nn.Module:
    """A new module of a class in the checkpoint's own code, initialised as that says."""
    module_class = getattr(sys.modules[type(model).__module__], name)
    return module_class(model.config, *sizes).apply(model._init_weights).to(model.device)


def start_local(model, processor, folder: Path) -> None:
    config = model.config
    model.model.multi_modal_projector = fresh(model, "EagleResampler", config.vision_config.hidden_size, config.patches_per_side)


def start_random(model, processor, folder: Path) -> None:
    """Matrices and queries normal, as in Qwen-VL and MiniCPM-V: at first every query pools everything."""
    start_local(model, processor, folder)
    model.model.multi_modal_projector.apply(lambda module: PreTrainedModel._init_weights(model, module))
    nn.init.normal_(model.model.multi_modal_projector.query, std=model.config.text_config.initializer_range)


class PooledMlp(nn.Module):
    """Averages the patches of each cell of the resampler's grid, then `mlp`: (N, patches, width) -> (N, tokens, D)."""

    def __init__(self, mlp: nn.Module, tokens: int):
        super().__init__()
        self.mlp, rows = mlp, isqrt(tokens // 2)  # half as many as columns
        self.grid = rows, tokens // rows

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        side = isqrt(features.shape[1])
        cells = F.adaptive_avg_pool2d(features.transpose(1, 2).unflatten(2, (side, side)), self.grid)
        return self.mlp(cells.flatten(2).transpose(1, 2))


def start_pooled(model, processor, folder: Path) -> None:
    mlp = fresh(model, "EagleMlpProjector", model.config.vision_config.hidden_size)
    model.model.multi_modal_projector = PooledMlp(mlp, model.config.num_image_tokens)


def start_audio(model, processor, folder: Path) -> None:
    model.model.audio_projector = fresh(model, "EagleAudioProjector")


def start_decoder(model, processor, folder: Path) -> None:
    """Decoder mode: a decoder of two layers learns to write what the encoder hears, then stands still as the encoder does.

    Its tokenizer is the language model's. It is kept in `folder`, so that a killed arm does not train it again.
    """
    processor.audio_token_source = model.config.audio_token_source = "decoder"
    processor.audio_stack_factor = model.config.audio_stack_factor = 1
    processor.transcript_tokenizer = tokenizer = processor.tokenizer
    audio, encoder = model.config.audio_config, model.model.audio_tower.encoder
    audio.decoder_layers, audio.decoder_attention_heads = 2, audio.encoder_attention_heads
    audio.decoder_ffn_dim, audio.vocab_size = audio.encoder_ffn_dim, model.config.text_config.vocab_size
    audio.decoder_start_token_id, audio.eos_token_id, audio.pad_token_id = tokenizer.bos_token_id, *[tokenizer.eos_token_id] * 2
    tower = model.model.audio_tower = fresh(model, "EagleAudioTower")
    tower.encoder = encoder
    start_audio(model, processor, folder)
    learnt = folder / "decoder.safetensors"
    if not learnt.exists():
        train_decoder(tower, EagleCollator(processor))
        save_file(tower.decoder.state_dict(), learnt.with_suffix(".part"))
        os.replace(learnt.with_suffix(".part"), learnt)
    tower.decoder.load_state_dict(load_file(learnt))
    tower.requires_grad_(False)


def train_decoder(tower, collator: EagleCollator) -> None:
    """Minimises the cross-entropy of transcripts of sentences and dictations, each of which the encoder hears once."""
    windows, seed = [], torch.initial_seed()
    for i in tqdm(range(DECODER_WINDOWS), desc="windows"):
        row = collator.features(samples.make("dictation" if i % 4 else "sentence", "train", f"decoder/{seed}/{i}"))
        with torch.no_grad(), torch.autocast(tower.device.type, torch.bfloat16):
            states = tower.encoder(row["input_features"].to(tower.device)).last_hidden_state[0].bfloat16()
        windows.append((states, row["audio_transcript_ids"][0].to(tower.device)))
    optimizer = MuonAdamW([(list(tower.decoder.named_parameters()), DECODER_RATE)], weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 50, 1 - step / DECODER_STEPS))
    for _ in (bar := tqdm(range(DECODER_STEPS), desc="decoder")):
        states, transcripts = zip(*(windows[i] for i in torch.randint(len(windows), (BATCH,))))
        with torch.autocast(tower.device.type, torch.bfloat16):
            loss = transcript_loss(tower, torch.stack(states), transcripts)
        loss.backward()
        nn.utils.clip_grad_norm_(tower.decoder.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


def transcript_loss(tower, states: torch.Tensor, transcripts: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Of transcripts (L,) and the end token after each, given encoder states (B, 1500, width)."""
    ended = [F.pad(ids, (0, 1), value=tower.config.eos_token_id) for ids in transcripts]
    targets = pad_sequence(ended, True, -100)
    ids = torch.cat([tower.prompt(states), targets[:, :-1].clamp(min=0)], 1)
    decoded = tower.decoder(input_ids=ids, encoder_hidden_states=states, use_cache=False).last_hidden_state
    return F.cross_entropy(tower.logits(decoded).flatten(0, 1).float(), targets.flatten())


# --- the studies ----------------------------------------------------------------------------------------------------------


def mix(**weights: float) -> dict:
    return {skill: {"path": f"world:{skill}", "weight": weight} for skill, weight in weights.items()}


BASE = {
    "per_device_train_batch_size": 8, "lr_scheduler_type": "cosine", "warmup_steps": 0.05, "max_grad_norm": 1.0, "bf16": True,
    "activation_checkpointing": False, "logging_steps": 0.05, "save_steps": 0.1, "save_total_limit": 1, "report_to": "none",
    "phone_layouts": 0,
}  # fmt: skip
PICTURES = mix(page=0.2, sign=0.2, code=0.2, bars=0.05, things=0.05, chart=0.15, scene=0.15)
TEXTED = {"data": PICTURES | mix(fact=0.2, request=0.2)}
READING = ["sign", "code", "chart", "scene"]
FRESH, TUNED = 1e-3, 2e-4  # learning rates of what starts at random, and of what goes on
PROJECTOR, VISION, LANGUAGE = ({name: TUNED} for name in ("multi_modal_projector", "vision_tower", "language_model"))
# An adapter's rate is higher, in Bunny ten times. Here five: at this width the same rate moves the sum of weights further.
LORA = {"lora": {"r": 128, "alpha": 256, "dropout": 0.05}, "rates": PROJECTOR | {"language_model": 5 * TUNED}}
# Of each study: the recipe (training/sft.py), its steps, the skills that are scored, and the arms: what they change in the
# recipe, and what they do before training. All are compared to the first.
STUDIES = {
    "resampler": {
        "recipe": BASE | {"data": PICTURES, "rates": LANGUAGE | {"multi_modal_projector": FRESH}}, "steps": 600, "skills": READING,
        "arms": {"local": ({}, start_local), "random": ({}, start_random), "pooled-mlp": ({}, start_pooled)},
    },
    "audio": {
        "recipe": BASE | {"data": mix(sentence=0.5, dictation=0.5), "rates": LANGUAGE | {"audio_projector": FRESH}}, "steps": 450,
        "skills": ["sentence"], "arms": {"encoder": ({}, start_audio), "decoder": ({}, start_decoder)},
    },
    "mipha": {
        "recipe": BASE | {"data": PICTURES, "rates": PROJECTOR}, "steps": 500, "skills": READING,
        "arms": {"frozen": ({}, None), "vision": ({"rates": PROJECTOR | VISION}, None),
                 "language": ({"rates": PROJECTOR | LANGUAGE}, None), "both": ({"rates": PROJECTOR | VISION | LANGUAGE}, None)},
    },
    "bunny": {
        "recipe": BASE | {"data": PICTURES, "rates": PROJECTOR | LANGUAGE}, "steps": 600, "skills": [*READING, "fact", "request"],
        "arms": {"full": ({}, None), "full-text": (TEXTED, None), "lora": (LORA, None), "lora-text": (LORA | TEXTED, None)},
    },
}  # fmt: skip


# --- one arm --------------------------------------------------------------------------------------------------------------


def begin(study: str, arm: str, seed: int, args: argparse.Namespace) -> Path:
    """The arm's folder, with all that its result depends on in settings.json; ValueError where it was begun with other ones."""
    folder = args.output / study / arm / f"seed-{seed}"
    recipe = STUDIES[study]["recipe"] | STUDIES[study]["arms"][arm][0]
    recipe |= {"model": args.model, "output_dir": str(folder), "max_steps": args.steps or STUDIES[study]["steps"], "seed": seed}
    settings = {"study": study, "arm": arm, "count": args.count, "skills": STUDIES[study]["skills"], "recipe": recipe}
    settings["weights"] = sha256(Path(args.model, "model.safetensors"))
    keep(folder, settings)
    return folder


def run_arm(folder: Path) -> None:
    """Trains and scores what the folder's settings say; waits where a process that was left over is still at it."""
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / "result.json").exists():
            return
        settings = json.loads((folder / "settings.json").read_text())
        model, processor, result = train_arm(settings, folder)
        asked = {skill: skills.ask_skill(model, processor, skill, settings["count"], BATCH, False) for skill in settings["skills"]}
        result["items"] = {skill: [[item[key] for key in ("target", "answer", "right")] for item in asked[skill]] for skill in asked}
        if processor.audio_token_source == "decoder":
            result |= measure_decoder(model, processor, settings)
        write_beside(folder / "result.json", json.dumps(result))
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)


def train_arm(settings: dict, folder: Path) -> tuple[nn.Module, object, dict]:
    """The trained model in bfloat16, its processor, and figures of the training; seconds are of the processor."""
    arguments, config = TrlParser((sft.EagleArguments, sft.EagleSFTConfig)).parse_dict(settings["recipe"])
    collator, mixture = sft.load_data(arguments, config)
    set_seed(config.seed)  # for fresh weights
    trainer = sft.load_trainer(arguments, config, collator, mixture.rows)
    clock = [time.process_time()]
    if prepare := STUDIES[settings["study"]]["arms"][settings["arm"]][1]:
        prepare(trainer.model, collator.processor, folder)
    clock.append(time.process_time())
    last = get_last_checkpoint(folder)
    done = int(last.rpartition("-")[2]) if last else 0
    trainer.train(resume_from_checkpoint=last)
    clock.append(time.process_time())
    result = {
        "trained_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "resumed_at": done,
        "prepare_seconds": clock[1] - clock[0],
        "step_seconds": (clock[2] - clock[1]) / max(1, config.max_steps - done),
        "losses": {entry["step"]: float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry},
    }
    model = trainer.model.merge_and_unload() if arguments.lora else trainer.model
    model.set_attn_implementation("sdpa")
    return model.bfloat16().eval(), collator.processor, result


@torch.inference_mode()
def measure_decoder(model, processor, settings: dict) -> dict:
    """Errors and words of the tower's own transcripts, and ratios of the time to the first token to the encoder's."""
    start = settings["recipe"]["model"]
    encoder = AutoModelForMultimodalLM.from_pretrained(start, trust_remote_code=True, dtype=torch.bfloat16)
    systems = [(encoder.eval().to(model.device), AutoProcessor.from_pretrained(start, trust_remote_code=True)), (model, processor)]
    result = {"transcripts": [], "first_token_ratios": []}
    for i in range(settings["count"]):
        row, seconds, outputs = samples.make("sentence", "test", i), [0.0, 0.0], [None, None]
        for k in (i % 2, 1 - i % 2):  # in pairs, and in turned order by turns: the machine may be shared
            started = time.perf_counter()
            inputs = systems[k][1].apply_chat_template(
                [with_media(row)[:1]], add_generation_prompt=True, tokenize=True, return_dict=True
            ).to(model.device)
            outputs[k] = systems[k][0].generate(**inputs, max_new_tokens=1, do_sample=False, return_transcript=k == 1)
            seconds[k] = time.perf_counter() - started
        heard = processor.tokenizer.decode(outputs[1][1][0], skip_special_tokens=True).strip()
        result["transcripts"].append(word_errors(skills.expected(row), heard))
        result["first_token_ratios"].append(seconds[1] / seconds[0])
    return result


# --- the report -----------------------------------------------------------------------------------------------------------


def word_errors(target: str, answer: str) -> tuple[int, int]:
    """Errors, and words of the target."""
    found = jiwer.process_words(target, answer)
    return found.substitutions + found.deletions + found.insertions, found.hits + found.substitutions + found.deletions


def rate(values: np.ndarray) -> float:
    """Sum of the numerators over the sum of the denominators of (seeds, items, 2)."""
    return float(values[..., 0].sum() / values[..., 1].sum())


def resampled(values: np.ndarray) -> np.ndarray:
    """(draws,) rates of seeds and items, each drawn with replacement (Owen 2007, "The pigeonhole bootstrap").

    Values of the same shape are drawn alike, so that differences are paired.
    """
    items, seeds = (drawn_clusters(values.shape[axis], DRAWS, SEED + 1 - axis) for axis in (1, 0))
    return np.array([rate(values[s][:, i]) for s, i in zip(seeds, items)])


def estimate(values: np.ndarray, reference: np.ndarray | None = None) -> tuple[float, float, float]:
    """(rate, low, high), or of the difference to the reference."""
    if reference is None:
        return rate(values), *percentiles(resampled(values))
    return rate(values) - rate(reference), *percentiles(resampled(values) - resampled(reference))


def cell(figures: tuple[float, float, float], scale: float = 100, sign: str = "") -> str:
    value, low, high = (scale * figure for figure in figures)
    return f"{value:{sign}.1f} ({low:{sign}.1f} to {high:{sign}.1f})"


def report(study: str, args: argparse.Namespace) -> str:
    """Writes the study's table.md and scores.png; returns the table."""
    folder, arms = args.output / study, list(STUDIES[study]["arms"])
    found = {arm: [json.loads((folder / arm / f"seed-{seed}" / "result.json").read_text()) for seed in args.seeds] for arm in arms}
    lines = [f"Per cent, mean of seeds {args.seeds}; 95 % intervals by a bootstrap over items and seeds (few seeds: too narrow).", ""]
    lines += [f"| skill | arm | score | difference to {arms[0]} |", "|---|---|---|---|"]
    values = {}
    for skill in STUDIES[study]["skills"]:
        count = word_errors if skill == "sentence" else None
        values[skill if not count else "word error rate"] = own = {
            arm: np.array([[count(t, a) if count else (right, 1) for t, a, right in r["items"][skill]] for r in found[arm]])
            for arm in arms
        }
        for arm in arms:
            difference = cell(estimate(own[arm], own[arms[0]]), sign="+") if arm != arms[0] else ""
            lines.append(f"| {list(values)[-1]} | {arm} | {cell(estimate(own[arm]))} | {difference} |")
    lines += ["", "| arm | trained parameters | seconds before training | seconds a step | last loss |", "|---|---|---|---|---|"]
    for arm in arms:
        before = max(r["prepare_seconds"] for r in found[arm])  # one that was killed since has none
        step, loss = np.mean([(r["step_seconds"], list(r["losses"].values())[-1]) for r in found[arm]], 0)
        lines.append(f"| {arm} | {found[arm][0]['trained_parameters']:,} | {before:.0f} | {step:.2f} | {loss:.3f} |")
    if study == "audio":
        lines += ["", *audio_lines(found["decoder"], args)]
    plot(folder / "scores.png", values)
    write_beside(folder / "table.md", "\n".join(lines) + "\n")
    return "\n".join(lines)


def audio_lines(results: list[dict], args: argparse.Namespace) -> list[str]:
    """Of the decoder: its transcripts, the time to the first token; and a second's tokens of eSpeak NG at its own pace."""
    errors = cell(estimate(np.array([result["transcripts"] for result in results])))
    ratios = np.array([result["first_token_ratios"] for result in results])
    spread = bootstrap(ratios.ravel(), np.indices(ratios.shape)[1].ravel(), np.median)
    processor = AutoProcessor.from_pretrained(args.model, trust_remote_code=True)
    tokenizers = {"decoder, our tokenizer": processor.tokenizer}
    tokenizers |= {f"decoder, {Path(name).name}": AutoTokenizer.from_pretrained(name) for name in args.tokenizers}
    lines = [
        f"Word error rate of the decoder's own transcripts: {errors} %. Time to the first token, decoder's to encoder's: "
        f"{cell((np.median(ratios), *spread), 1)} (median of pairs).", "",
        f"| tokens a second | encoder | {' | '.join(tokenizers)} |", "|---|---|" + "---|" * len(tokenizers),
    ]  # fmt: skip
    for language, (voice, text) in LANGUAGES.items():
        sentences = re.split(r"(?<=[.?]) ", text)
        seconds = [len(waveform) / sampled for waveform, _, sampled in (synthesize(said, voice, {}) for said in sentences)]
        counts = [[processor.get_num_audio_tokens(round(length * SAMPLING_RATE)) for length in seconds]]
        counts += [[len(t(f" {said}", add_special_tokens=False).input_ids) for said in sentences] for t in tokenizers.values()]
        cells = [cell(estimate(np.array([list(zip(tokens, seconds))])), 1) for tokens in counts]
        lines.append(f"| {language} | {' | '.join(cells)} |")
    return lines


def plot(path: Path, values: dict[str, dict[str, np.ndarray]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 + 1.5 * len(values), 4), layout="constrained")
    axes = figure.subplots()
    arms = list(next(iter(values.values())))
    for k, arm in enumerate(arms):
        points = 100 * np.array([estimate(own[arm]) for own in values.values()])
        places = np.arange(len(values)) + 0.6 * ((k + 0.5) / len(arms) - 0.5)
        axes.errorbar(places, points[:, 0], np.abs(points[:, 1:] - points[:, :1]).T, fmt="o", capsize=3, label=arm)
    axes.set_xticks(range(len(values)), list(values))
    axes.set_ylabel("per cent, 95 % intervals")
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


# --- the driver -----------------------------------------------------------------------------------------------------------


def run_process(folder: Path) -> None:
    """One arm on one core; what it prints goes to its log.txt. Raises RuntimeError if it fails."""
    with (folder / "log.txt").open("a") as log:
        command = [sys.executable, "-m", "training.ablations", "--run", str(folder)]
        code = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=log, stderr=log).returncode
    if code:
        raise RuntimeError(f"{folder} ended with code {code}: {(folder / 'log.txt').read_text()[-2000:]}")


def run_study(study: str, args: argparse.Namespace) -> None:
    """All arms and seeds without a result, seed after seed: a study that is cut short has whole ones."""
    folders = [begin(study, arm, seed, args) for seed in args.seeds for arm in STUDIES[study]["arms"]]
    left = [folder for folder in folders if not (folder / "result.json").exists()]
    with ThreadPoolExecutor(args.jobs) as pool, tqdm(desc=study, initial=len(folders) - len(left), total=len(folders)) as bar:
        runs = [pool.submit(run_process, folder) for folder in left]
        try:
            for run in runs:
                run.result()
                bar.update()
        finally:
            pool.shutdown(cancel_futures=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", choices=[*STUDIES, "all"], default="all")
    parser.add_argument("--model", default=".", help="folder of the checkpoint that every arm starts from")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the data's order and of fresh weights")
    parser.add_argument("--steps", type=int, help="of every arm, in place of the study's own number")
    parser.add_argument("--count", type=int, default=100, help="held-out items a skill")
    parser.add_argument("--jobs", type=int, default=2, help="arms at a time")
    parser.add_argument("--tokenizers", nargs="*", default=[], help="folders or names of the Hub: count a second's tokens with them too")
    parser.add_argument("--output", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--run", type=Path, help="only the arm whose settings lie in this folder, in this process")
    args = parser.parse_args()
    if args.run:
        run_arm(args.run)
        return
    for study in STUDIES if args.study == "all" else [args.study]:
        run_study(study, args)
        print(f"{study}\n\n{report(study, args)}\n")


if __name__ == "__main__":
    main()
