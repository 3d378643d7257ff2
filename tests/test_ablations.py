"""Ablations: every arm trains and is scored for real, on a small checkpoint; intervals from known numbers; a killed driver."""

import argparse
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForMultimodalLM, AutoProcessor

from eval.statistics import DRAWS, paired_bootstrap
from training import ablations
from training.collator import EagleCollator
from training.synthesis import samples

ROOT = Path(__file__).parents[1]
STUDIES = ablations.STUDIES
TRAINED = {  # modules of EagleModel, by arm or study
    "resampler": {"multi_modal_projector", "language_model"},
    "audio": {"audio_projector", "language_model"},
    "bunny": {"multi_modal_projector", "language_model"},
    "frozen": {"multi_modal_projector"},
    "vision": {"multi_modal_projector", "vision_tower"},
    "language": {"multi_modal_projector", "language_model"},
    "both": {"multi_modal_projector", "vision_tower", "language_model"},
}


@pytest.fixture
def begin(small_checkpoint, tmp_path, monkeypatch):
    """Begins an arm, with batches of 2 and a decoder of two steps; returns its folder."""
    for study in STUDIES.values():
        monkeypatch.setitem(study["recipe"], "per_device_train_batch_size", 2)
    monkeypatch.setattr(ablations, "DECODER_WINDOWS", 2)
    monkeypatch.setattr(ablations, "DECODER_STEPS", 2)
    return lambda study, arm, steps=2, output="out": ablations.begin(
        study, arm, 0, options(small_checkpoint, tmp_path / output, steps)
    )


def options(model, output, steps):
    return argparse.Namespace(model=str(model), output=output, steps=steps, count=2, seeds=[0], tokenizers=[])


def train(folder):
    return ablations.train_arm(json.loads((folder / "settings.json").read_text()), folder)


@pytest.fixture
def load(small_checkpoint):
    """The factory of (model, processor), frozen and in float32, before an arm gets at them."""

    def make():
        model = AutoModelForMultimodalLM.from_pretrained(small_checkpoint, trust_remote_code=True, dtype=torch.float32)
        return model.requires_grad_(False), AutoProcessor.from_pretrained(small_checkpoint, trust_remote_code=True)

    return make


# --- what trains ----------------------------------------------------------------------------------------------------------


def check_trained(study, arm, model, start):
    """The arm's modules changed, and nothing else did."""
    trained = TRAINED.get(arm) or TRAINED[study]
    old, new = ({name: weight.bfloat16() for name, weight in m.named_parameters()} for m in (start, model))
    kept = {name for name in old.keys() & new.keys() if torch.equal(old[name], new[name])}
    frozen = {name for name in old.keys() & new.keys() if name.removeprefix("model.").split(".")[0] not in trained}
    assert frozen <= kept and len(frozen) > 20, arm
    for module in trained:
        assert any(name.startswith(f"model.{module}.") and name not in kept for name in new), (arm, module)
    if STUDIES[study]["arms"][arm][1]:  # begins anew: further off than two steps can bring it
        projector = "audio_projector" if study == "audio" else "multi_modal_projector"
        both = [name for name in old.keys() & new.keys() if projector in name and name.endswith("proj.weight")]
        assert all(old[name].shape != new[name].shape or (old[name] - new[name]).abs().mean() > 0.005 for name in both), arm
    if arm.startswith("lora"):
        layers = {name for name in old if "language_model.layers" in name and "proj" in name}
        assert {name for name in old if "language_model" in name} - layers <= kept and not layers & kept


def test_an_arm_trains_what_it_names_and_the_rest_stays(begin, load):
    model, _, result = train(begin("resampler", "pooled-mlp"))
    assert isinstance(model.model.multi_modal_projector, ablations.PooledMlp)
    check_trained("resampler", "pooled-mlp", model, load()[0])
    assert set(result["losses"]) == {1, 2} and all(map(math.isfinite, result["losses"].values()))


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES)
def test_every_arm_of_a_study_is_trained_scored_and_reported(study, begin, load, small_checkpoint, tmp_path):
    start = load()[0]
    for arm in STUDIES[study]["arms"]:
        folder = begin(study, arm)
        check_trained(study, arm, train(folder)[0], start)
        ablations.run_arm(folder)  # from the last checkpoint on, as one that was killed while it was scored
        result = json.loads((folder / "result.json").read_text())
        assert {skill: len(items) for skill, items in result["items"].items()} == dict.fromkeys(STUDIES[study]["skills"], 2)
        assert result["resumed_at"] == 2 and not list(folder.glob("checkpoint-*"))
    table = ablations.report(study, options(small_checkpoint, tmp_path / "out", 2))
    assert table.count(" | +0.0 ") == (len(STUDIES[study]["arms"]) - 1) * len(STUDIES[study]["skills"])  # nothing learnt yet
    assert (tmp_path / "out" / study / "table.md").read_text() == f"{table}\n"
    assert (tmp_path / "out" / study / "scores.png").read_bytes().startswith(b"\x89PNG")
    if study == "audio":
        german = next(line for line in table.splitlines() if line.startswith("| German"))
        encoder, decoder = (float(cell.split()[0]) for cell in german.split("|")[2:4])
        assert 3.1 < encoder < 3.6 and decoder > 4  # at most a token a sentence above 3.125; pieces of words it does not know


@pytest.mark.slow
@pytest.mark.parametrize("study, arm, name", [
    ("resampler", "pooled-mlp", "multi_modal_projector.mlp.linear_1.weight"),
    ("audio", "decoder", "audio_projector.linear_1.weight"),
])  # fmt: skip
def test_what_is_fresh_is_trained_too(study, arm, name, begin):
    # The first step of the warm-up has a rate of zero: one step leaves what the arm began with.
    folders = [begin(study, arm, steps, output) for steps, output in ((1, "one"), (1, "again"), (2, "two"))]
    one, again, two = (train(folder)[0].get_parameter(f"model.{name}") for folder in folders)
    assert torch.equal(one, again) and not torch.equal(one, two)


def test_local_queries_look_at_their_places_and_random_ones_at_everything(load):
    peaks = {}
    for start in (ablations.start_local, ablations.start_random):
        model, processor = load()
        start(model, processor, None)
        projector = model.model.multi_modal_projector
        q, k, _ = projector.attention_inputs(torch.randn(1, 576, 32))
        peaks[start] = 576 * (q @ k.transpose(-1, -2) / 128**0.5).softmax(-1).amax(-1).mean()  # 1: the same everywhere
        assert any(p.requires_grad for p in projector.parameters())
    assert peaks[ablations.start_local] > 10 and peaks[ablations.start_random] < 3


def test_the_pooled_projector_averages_cells_of_the_resamplers_grid():
    rows, columns = (torch.arange(576) // 24).float(), (torch.arange(576) % 24).float()
    pooled = ablations.PooledMlp(nn.Identity(), 128)(torch.stack([rows, columns], -1)[None])
    assert pooled.shape == (1, 128, 2)
    cells = pooled.unflatten(1, (8, 16))
    assert torch.equal(cells[0, :, 0, 0], torch.arange(8) * 3 + 1.0)
    assert torch.equal(cells[0, 0, ::2, 1], torch.arange(8) * 3 + 0.5)  # 24 columns on 16: two patches wide, some shared


def test_the_fresh_decoder_learns_transcripts_and_is_kept(load, tmp_path, monkeypatch):
    monkeypatch.setattr(ablations, "DECODER_WINDOWS", 1)
    monkeypatch.setattr(ablations, "DECODER_STEPS", 60)
    monkeypatch.setattr(ablations, "DECODER_RATE", 0.02)
    monkeypatch.setattr(ablations, "BATCH", 1)
    model, processor = load()
    torch.manual_seed(0)
    ablations.start_decoder(model, processor, tmp_path)
    row = samples.make("sentence", "train", "decoder/0/0")
    features = EagleCollator(processor).features(row)
    transcript = features["audio_transcript_ids"]
    assert (features["input_ids"] == processor.audio_token_id).sum() == transcript.numel() > 3
    question = [[{"role": "user", "content": [{"type": "audio", "audio": row["audios"][0]}]}]]
    inputs = processor.apply_chat_template(question, add_generation_prompt=True, tokenize=True, return_dict=True)
    _, heard = model.generate(**inputs, max_new_tokens=1, return_transcript=True)
    assert torch.equal(heard, transcript)  # and it knew where to end
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if "audio_projector" in name}
    monkeypatch.setattr(ablations, "DECODER_WINDOWS", 0)  # from which nothing could be learnt
    again, processor = load()
    ablations.start_decoder(again, processor, tmp_path)
    learnt, loaded = (m.model.audio_tower.decoder.state_dict() for m in (model, again))
    assert all(torch.equal(weight, loaded[name]) for name, weight in learnt.items())


# --- figures --------------------------------------------------------------------------------------------------------------


def right(*seeds):
    """(seeds, items, 2) of right and wrong answers."""
    return np.array([[(value, 1) for value in seed] for seed in seeds])


def test_of_one_seed_the_difference_is_the_paired_bootstrap():
    rng = np.random.default_rng(0)
    a, b = rng.random(80) < 0.4, rng.random(80) < 0.6
    names = [f"{i:02}" for i in range(80)]
    expected = paired_bootstrap(a, b, names, draws=DRAWS)[:3]
    np.testing.assert_allclose(ablations.estimate(right(b), right(a)), expected)
    assert expected[1] < b.mean() - a.mean() < expected[2]


def test_seeds_are_drawn_as_well():
    # Items are alike, so that only seeds differ: 0, 0.5 and 1. All three draws the same: once in 27 at either end.
    values = right([0] * 8, [0, 1] * 4, [1] * 8)
    value, low, high = ablations.estimate(values)
    assert value == 0.5 and (low, high) == (0, 1)
    assert ablations.estimate(values, values) == (0, 0, 0)  # drawn alike


def test_long_sentences_weigh_more():
    values = np.array([[ablations.word_errors("a b c d e f g h", "a b c d e f g"), ablations.word_errors("a b", "")]])
    assert values.tolist() == [[[1, 8], [2, 2]]] and ablations.rate(values) == 0.3
    assert ablations.cell((0.3, 0.125, 1)) == "30.0 (12.5 to 100.0)"


def test_each_language_has_a_dozen_sentences():
    for language, (_, text) in ablations.LANGUAGES.items():
        assert len(re.split(r"(?<=[.?]) ", text)) == 12, language


# --- the driver -----------------------------------------------------------------------------------------------------------


def test_other_settings_are_not_mixed(begin, monkeypatch):
    folder = begin("mipha", "both")
    assert begin("mipha", "both") == folder
    monkeypatch.setitem(STUDIES["mipha"]["recipe"], "warmup_steps", 0.5)
    with pytest.raises(ValueError, match="was begun with other settings: recipe.warmup_steps 0.05, now 0.5. Remove it"):
        begin("mipha", "both")


@pytest.mark.slow
def test_a_killed_driver_goes_on_and_repeats_nothing(small_checkpoint, tmp_path):
    def drive():
        command = [sys.executable, "-m", "training.ablations", "--study", "resampler", "--model", str(small_checkpoint)]
        command += ["--seeds", "0", "--steps", "5", "--count", "2", "--jobs", "1", "--output", str(tmp_path / "killed")]
        return subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    done, cut_short = (tmp_path / "killed" / "resampler" / arm / "seed-0" for arm in ("local", "random"))
    process = drive()
    while not (cut_short / "checkpoint-2").exists() and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)  # the driver and the arm that it runs
    process.wait()
    before = {name: (done / name).stat().st_mtime_ns for name in ("result.json", "log.txt")}
    assert not (cut_short / "result.json").exists()
    process = drive()
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed[-3000:]
    assert before == {name: (done / name).stat().st_mtime_ns for name in before}
    whole = ablations.begin("resampler", "random", 0, options(small_checkpoint, tmp_path / "whole", 5))
    ablations.run_process(whole)
    killed, whole = (json.loads((folder / "result.json").read_text()) for folder in (cut_short, whole))
    assert killed["resumed_at"] >= 2 and whole["resumed_at"] == 0
    assert killed["losses"] == pytest.approx(whole["losses"], rel=1e-3)  # kernels may round otherwise in another process
    assert [len(items) for items in killed["items"].values()] == [2] * 4
    assert "| sign | random |" in (tmp_path / "killed" / "resampler" / "table.md").read_text()


@pytest.mark.slow
def test_an_arm_that_fails_is_named_with_its_error(begin):
    folder = begin("bunny", "full")
    settings = json.loads((folder / "settings.json").read_text())
    settings["recipe"]["rates"] = {"vision_towel": 0.1}
    (folder / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(RuntimeError, match=r"seed-0 ended with code 1: (.|\n)*the recipe trains 'vision_towel'"):
        ablations.run_process(folder)
    assert not (folder / "result.json").exists()
