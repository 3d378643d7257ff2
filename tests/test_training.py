"""Training of the small world: what is drawn, what is asked of towers, attention, the optimizer, stages of towers."""

import copy
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoImageProcessor

from training import attention
from training.optimizer import MuonAdamW
from training.synthesis import dense, pictures, samples
from training.synthesis.voices import HELD_OUT_VOICES, SAMPLING_RATE, VOICES, add_noise, say

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tiny_preset():
    """The configuration of eagle-tiny with the fewest layers."""
    config = json.loads((ROOT / "configs" / "eagle-tiny.json").read_text())
    config["text_config"] |= {"num_hidden_layers": 1}
    config["vision_config"] |= {"num_hidden_layers": 1}
    config["audio_config"] |= {"encoder_layers": 1}
    return config


# --- what is drawn ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skill", samples.SKILLS)
def test_same_seed_gives_the_same_row_and_training_avoids_held_out_fonts_and_voices(skill):
    first, again = samples.make(skill, "train", 7), samples.make(skill, "train", 7)
    assert first["messages"] == again["messages"]
    for kind in ("images", "audios", "videos"):
        for a, b in zip(first[kind], again[kind], strict=True):
            assert np.array_equal(np.asarray(a), np.asarray(b))
    for row in (samples.make(skill, "train", i) for i in range(40)):
        assert row["meta"].get("font") not in pictures.HELD_OUT_FONTS
        assert row["meta"].get("voice") not in HELD_OUT_VOICES


@pytest.mark.parametrize(
    "draw",
    [
        pictures.random_words,
        lambda rng, split: (pictures.random_code(rng, split),),
        pictures.random_kinds,
        pictures.random_bars,
        samples.random_order,
    ],
)
def test_no_combination_is_drawn_for_both_splits(draw):
    rng = random.Random(0)
    train, test = ({draw(rng, split) for _ in range(3000)} for split in ("train", "test"))
    assert len(test) > 100 and not train & test


def test_held_out_fonts_and_voices_do_occur_in_the_test_split():
    fonts = {samples.make("sign", "test", i)["meta"]["font"] for i in range(80)}
    voices = {samples.make("sentence", "test", i)["meta"]["voice"] for i in range(60)}
    assert set(pictures.HELD_OUT_FONTS) <= fonts and set(HELD_OUT_VOICES) <= voices
    assert len(fonts) >= 8 and len(voices) == 8


def test_a_third_of_the_signs_takes_several_crops():
    sizes = [samples.make("sign", "train", i)["images"][0].size for i in range(300)]
    several = sum(max(size) > pictures.CROP for size in sizes) / len(sizes)
    assert 0.22 < several < 0.38


def test_noise_lies_between_10_and_20_decibels():
    speech = say("the lamp is in the kitchen", "Emma").waveform * 0.5
    for seed in range(12):
        noise = add_noise(random.Random(seed), speech) - speech
        ratio = 10 * np.log10(np.mean(speech**2) / np.mean(noise**2))
        assert 9.5 < ratio < 20.5


def test_voices_are_told_apart_by_their_sound_and_name_their_words():
    spoken = {voice: say("open the door", voice) for voice in (*VOICES, *HELD_OUT_VOICES)}
    for utterance in spoken.values():
        assert [word for word, _, _ in utterance.words] == ["open", "the", "door"]
        assert 0.3 < len(utterance.waveform) / SAMPLING_RATE < 2
    sounds = {utterance.waveform.tobytes() for utterance in spoken.values()}
    assert len(sounds) == 8 and np.array_equal(say("open the door", "Emma").waveform, spoken["Emma"].waveform)
    with pytest.raises(ValueError, match="unknown voice 'Bob'"):
        say("open", "Bob")
    with pytest.raises(ValueError, match="nothing to say"):
        say("  ", "Emma")


# --- dense targets ------------------------------------------------------------------------------------------------------


def test_targets_lie_where_the_picture_shows_them():
    glyph = pictures.Glyph("R", left=100, top=50, right=121, bottom=92)
    item = pictures.Item("star", "blue", 300, 200, 20)
    picture = pictures.Picture(None, [glyph], [item], [pictures.Bar("tea", 5, 40, 250, 60, 300)])
    targets = dense.crop_targets(picture)
    letter = dense.CHARACTERS.index("r") + 1
    rows, columns, halves = np.nonzero(targets["patch_character"] == letter)
    assert set(rows) == {4, 5, 6} and {2 * c + h for c, h in zip(columns, halves, strict=True)} == {14, 15, 16}
    assert np.argwhere(targets["token_character"]).tolist() == [[1, 5, 3 + 0]]  # centre (110.5, 71): lower half, left
    assert targets["token_shape"][4, 14] == pictures.SHAPES.index("star") + 1
    assert targets["token_colour"][4, 14] == list(pictures.COLOURS).index("blue") + 1
    assert targets["patch_level"][19, 3] == 5 and targets["token_level"][7, 2] == 5


def test_dense_crops_are_those_of_the_image_processor():
    image_processor = AutoImageProcessor.from_pretrained(ROOT, trust_remote_code=True)
    rng = random.Random(1)
    picture = pictures.sign(rng, ("open", "garden"), "train")
    while max(picture.image.size) <= pictures.CROP:
        picture = pictures.sign(rng, ("open", "garden"), "train")

    class Grid(random.Random):
        def random(self):
            return 0.9  # neither softened nor the overview

    crops = np.stack([np.asarray(image) for image, _ in dense.picture_crops(Grid(), picture)])
    expected = image_processor(picture.image, return_tensors="np")["pixel_values"]
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (image_processor.image_mean, image_processor.image_std))
    difference = np.abs(crops.transpose(0, 3, 1, 2) - (expected * std + mean) * 255)
    assert crops.shape[0] == expected.shape[0] > 1
    assert difference.max() <= 3  # two implementations of bicubic resizing


def test_recordings_name_their_words_and_phonemes():
    waveform, targets = dense.random_recording(random.Random(5))
    assert waveform.shape == (480_000,) and np.abs(waveform).max() <= 1
    assert targets["frame_word"].shape == (1500,) and targets["token_word"].shape == (94, 4)
    said = set(targets["frame_word"][targets["frame_word"] > 0])
    assert said and set(targets["token_word"][targets["token_word"] > 0]) <= said
    silent = targets["frame_word"] == 0
    assert np.abs(waveform.reshape(1500, 320)).max(1)[silent].mean() < np.abs(waveform.reshape(1500, 320)).max(1)[~silent].mean()


# --- attention, optimizer and towers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
def test_attention_equals_torch(masked):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 7, 8) for _ in range(3))
    mask = torch.zeros(2, 1, 7, 7).masked_fill(torch.rand(2, 1, 7, 7) < 0.3, -1e9) if masked else None
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=0.5).transpose(1, 2)
    got, _ = attention.matmul_attention(None, query, key, value, mask, scaling=0.5)
    torch.testing.assert_close(got, expected)
    with torch.autocast("cpu", torch.bfloat16):
        got, _ = attention.matmul_attention(None, query, key, value.bfloat16(), mask, scaling=0.5)
    assert got.dtype == torch.bfloat16 and (got - expected).abs().max() < 0.05


def test_optimizer_learns_saves_and_resumes():
    def build():
        torch.manual_seed(0)
        layer = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([torch.nn.Linear(8, 8)]), "head": torch.nn.Linear(8, 1)})
        return layer, MuonAdamW([(list(layer.named_parameters()), 0.01)], 0.0)

    def steps(layer, optimizer, count):
        x = torch.linspace(-1, 1, 64).reshape(8, 8)
        for _ in range(count):
            loss = (layer["head"](layer["layers"][0](x)) - x.sum(1, keepdim=True)).pow(2).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return loss.item()

    layer, optimizer = build()
    first = steps(layer, optimizer, 1)
    assert steps(layer, optimizer, 200) < 0.2 * first
    state, weights = copy.deepcopy((optimizer.state_dict(), layer.state_dict()))
    expected = steps(layer, optimizer, 5)
    resumed, fresh = build()
    resumed.load_state_dict(weights)
    fresh.load_state_dict(state)
    assert steps(resumed, fresh, 5) == expected
    fresh.param_groups[0]["lr"] = 0.5
    assert fresh.parts[0].param_groups[0]["lr"] == 0.5


def run(command):
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("tower", ["vision", "audio"])
def test_a_killed_tower_training_goes_on_where_it_stood(tower, tiny_preset, tmp_path):
    (tmp_path / "preset.json").write_text(json.dumps(tiny_preset))
    recipe = {"tower": tower, "preset": str(tmp_path / "preset.json"), "steps": 8, "frozen_steps": 1, "batch_size": 1}
    recipe["warmup_steps"] = 1

    def command(name):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(recipe | {"output_dir": str(tmp_path / name), "save_steps": 2}))
        return [sys.executable, "-m", "training.towers", "--config", str(path)]

    run(command("whole"))
    checkpoint = tmp_path / "killed" / "checkpoint.pt"
    with subprocess.Popen(command("killed"), cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        while not checkpoint.exists() and process.poll() is None:
            time.sleep(0.02)
        process.kill()
    run(command("killed"))
    whole, resumed = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "killed"))
    assert resumed["step"] == 8
    # Kernels round by where their memory lies, and the optimizer blows some of that up; a step that is missing or repeated
    # changes every weight by about 1e-3.
    difference = torch.cat([(resumed["model"][name] - w).flatten() for name, w in whole["model"].items()])
    assert difference.abs().mean() < 1e-4


@pytest.mark.slow
def test_a_tower_starts_from_an_earlier_stage_and_stands_still_at_first(tiny_preset, tmp_path):
    (tmp_path / "preset.json").write_text(json.dumps(tiny_preset))
    recipe = {"tower": "vision", "preset": str(tmp_path / "preset.json"), "batch_size": 1, "steps": 2}
    stages = {"first": {"quadrants": True}, "second": {"start_from": str(tmp_path / "first"), "frozen_steps": 2}}
    for name, options in stages.items():
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(recipe | options | {"output_dir": str(tmp_path / name)}))
        run([sys.executable, "-m", "training.towers", "--config", str(path)])
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in stages)
    changed = {name.split(".")[0] for name in first if not torch.equal(first[name], second[name])}
    assert changed == {"multi_modal_projector"}


@pytest.mark.slow
def test_a_tower_goes_on_at_another_rate(tiny_preset, tmp_path):
    (tmp_path / "preset.json").write_text(json.dumps(tiny_preset))
    recipe = {"tower": "vision", "preset": str(tmp_path / "preset.json"), "batch_size": 1, "output_dir": str(tmp_path / "run")}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    rates = []
    for steps, rate in ((1, 0.002), (2, 0.001)):
        command = [sys.executable, "-m", "training.towers", "--config", str(tmp_path / "recipe.yaml")]
        run([*command, "--steps", str(steps), "--learning_rate", str(rate)])
        saved = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
        rates.append(max(saved["scheduler"]["base_lrs"]))
    assert rates[1] == rates[0] / 2
