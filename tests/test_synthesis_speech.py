"""Expressive speech, its labels and the model that hears them: measured on the waveforms, by other means than made them."""

import functools
import io
import itertools
import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import parselmouth
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from scipy.ndimage import gaussian_filter1d
from scipy.signal import find_peaks

from eval.metrics.prosody.prosody import directions, follows, measure, shifts
from training import shards
from training.synthesis import expressive_speech, label_speech, nonverbal, spoken_trivia, world
from training.synthesis.expressive_speech import LABELS, QUESTIONS, expressive, read_transcript, speak, spoken
from training.synthesis.label_speech import SYMBOLS, find_windows, heard, inputs_of, start_from, to_ids, windows_of
from training.synthesis.voices import HELD_OUT_VOICES, SAMPLING_RATE, VOICES, say

ROOT = Path(__file__).resolve().parent.parent
TEXT = "my brother found seven golden coins under the table"
RECORDINGS = 40


# --- non-verbal sounds --------------------------------------------------------------------------------------------------


def envelope(sound, seconds=0.01):
    return gaussian_filter1d(np.abs(sound), seconds * SAMPLING_RATE)


def voiced(sound):
    """The fundamental frequencies in Hz that Praat hears, and the share of frames in which it hears one."""
    pitch = parselmouth.Sound(sound.astype(np.float64), SAMPLING_RATE).to_pitch_ac(pitch_floor=75, pitch_ceiling=700)
    hertz = pitch.selected_array["frequency"]
    return hertz[hertz > 0], float((hertz > 0).mean())


@pytest.mark.parametrize("name", nonverbal.SOUNDS)
def test_a_sound_is_as_long_as_asked_the_same_for_a_seed_and_of_another_speaker_for_another(name):
    make = nonverbal.SOUNDS[name]
    drawn = [make(random.Random(seed), 0.9) for seed in range(8)]
    assert all(len(sound) == 0.9 * SAMPLING_RATE and sound.dtype == np.float32 for sound in drawn)
    assert all(np.abs(sound).max() == 1 for sound in drawn)
    assert np.array_equal(drawn[3], make(random.Random(3), 0.9))
    centroids = [np.average(np.arange(len(s)), weights=s) for s in (np.abs(np.fft.rfft(sound)) for sound in drawn)]
    assert len(set(np.round(centroids, 3))) == 8


def test_coughs_start_at_once_and_breaths_swell_without_a_voice():
    for seed in range(12):
        cough, breath = (nonverbal.random_sound(random.Random(seed), name) for name in ("cough", "breath"))
        loudness = envelope(cough, 0.002)
        assert np.argmax(loudness > 0.5 * loudness.max()) < 0.02 * SAMPLING_RATE
        assert np.argmax(envelope(breath, 0.03)) > 0.3 * len(breath)
        assert voiced(breath)[1] < 0.1
        spectrum = np.abs(np.fft.rfft(breath)) ** 2
        hertz = np.fft.rfftfreq(len(breath), 1 / SAMPLING_RATE)
        assert 800 < np.average(hertz, weights=spectrum) < 3000


def test_laughs_are_voiced_calls_four_to_six_a_second_whose_pitch_falls():
    for seed in range(12):
        laugh = nonverbal.laugh(random.Random(seed), 1.5)
        calls, _ = find_peaks(envelope(laugh, 0.02), height=0.05, distance=0.1 * SAMPLING_RATE)
        assert 4 <= len(calls) / 1.5 <= 6.5
        hertz, share = voiced(laugh)
        assert share > 0.4
        third = len(hertz) // 3
        assert np.median(hertz[-third:]) < 0.9 * np.median(hertz[:third])


# --- labels that can be heard -------------------------------------------------------------------------------------------


def apart(first, second):
    return first[1] < second[0] or second[1] < first[0]


def test_ranges_of_the_classes_of_a_label_do_not_touch():
    for label, classes in LABELS.items():
        for a, b in itertools.combinations(classes.values(), 2):
            assert all(apart(a[name], b[name]) for name in set(a) & set(b)), (label, a, b)
    paces = [recipe["pace"] for recipe in LABELS["emotion"].values()]
    slowest, fastest = min(low for low, _ in paces), max(high for _, high in paces)
    spoken_at = [(low * slowest, high * fastest) for low, high in (r["wpm"] for r in LABELS["speed"].values())]
    assert all(apart(a, b) for a, b in itertools.combinations(spoken_at, 2))


def styled(voice, **chosen):
    """TEXT in one voice: the middle of each range of the chosen classes, and of the neutral and normal ones."""
    names = {"emotion": "neutral", "speed": "normal", "volume": "normal"} | chosen
    style = {key: sum(ends) / 2 for label, name in names.items() for key, ends in LABELS[label][name].items()}
    waveform = np.concatenate([waveform[: -expressive_speech.JOINT] for _, waveform in spoken(TEXT, voice, style)])
    return waveform / expressive_speech.rms(waveform) * 10 ** (style["level"] / 20)


@pytest.mark.parametrize("voice", VOICES)
def test_every_label_moves_the_voice_as_the_prosody_metric_asks(voice):
    neutral = measure(styled(voice), SAMPLING_RATE, TEXT)
    for label, classes in LABELS.items():
        for name in classes:
            moved = shifts(measure(styled(voice, **{label: name}), SAMPLING_RATE, TEXT), neutral)
            for feature, (_, sign) in directions({label: name}).items():
                if (label, feature) != ("emotion", "level"):  # volume is a label of its own
                    assert follows(moved[feature], sign), (label, name, feature, moved)


@pytest.mark.parametrize("voice", ["Chris", "Lucy"])
def test_emotions_are_told_apart_by_pitch_its_range_and_the_word_drawn_out(voice):
    heard = {name: measure(styled(voice, emotion=name), SAMPLING_RATE, TEXT) for name in LABELS["emotion"]}
    pitches = [heard[name]["pitch"] for name in ("sad", "sarcastic", "neutral", "cheerful")]
    assert all(high > 1.06 * low for low, high in itertools.pairwise(pitches))
    ranges = [heard[name]["pitch_range"] for name in ("sarcastic", "sad", "neutral", "cheerful")]
    assert all(high > low + 0.5 for low, high in itertools.pairwise(ranges))
    longest = {}
    for name in ("sad", "sarcastic"):
        style = {key: sum(ends) / 2 for recipe in (LABELS["emotion"][name], LABELS["speed"]["normal"]) for key, ends in recipe.items()}
        lengths = [len(waveform) for _, waveform in spoken(TEXT, voice, style | {"tilt": 0})]
        longest[name] = max(lengths) / np.median(lengths)
    assert longest["sarcastic"] > 1.4 * longest["sad"]


@pytest.fixture(scope="module")
def recorded():
    return [speak(random.Random(seed), "train") for seed in range(RECORDINGS)]


def stretch(waveform, start, end):
    return waveform[round(start * SAMPLING_RATE) : round(end * SAMPLING_RATE)]


def decibels(waveform):
    return 20 * np.log10(expressive_speech.rms(waveform))


def test_volume_stands_in_the_level_of_the_words_whatever_the_noise(recorded):
    for waveform, meta in recorded:
        level = decibels(np.concatenate([stretch(waveform, start, end) for _, start, end in meta["words"]]))
        assert ("quiet", "normal", "loud")[int(level > -33.5) + int(level > -23.5)] == meta["volume"]


def test_noise_of_the_level_in_meta_lies_under_everything(recorded):
    assert np.ptp([meta["noise"] for _, meta in recorded]) > 15
    for waveform, meta in recorded:
        first = min(start for _, start, _ in [*meta["words"], *meta["sounds"]])
        assert abs(decibels(stretch(waveform, 0, first - 0.02)) - meta["noise"]) < 4  # as much as a tenth of a second tells


def test_speed_stands_in_the_times_of_the_words(recorded):
    rates = {name: [] for name in LABELS["speed"]}
    for _, meta in recorded:
        letters = sum(character.isalpha() for text, _, _ in meta["words"] for character in text)
        rates[meta["speed"]].append(letters / sum(end - start for _, start, end in meta["words"]))
    slow, normal, fast = (np.median(rates[name]) for name in ("slow", "normal", "fast"))
    assert 1.3 * slow < normal and 1.3 * normal < fast


def test_sounds_and_words_are_at_their_times_and_pauses_between_them(recorded):
    names = set()
    for waveform, meta in recorded:
        spans = sorted([*meta["words"], *meta["sounds"]], key=lambda span: span[1])
        assert all(end <= start for (_, _, end), (_, start, _) in itertools.pairwise(spans))
        assert spans[-1][2] < len(waveform) / SAMPLING_RATE
        for name, start, end in meta["sounds"]:
            sound = stretch(waveform, start, end)
            assert decibels(sound) > meta["noise"] + 6
            before, after = stretch(waveform, start - 0.02, start), stretch(waveform, start, start + 0.1)
            assert decibels(before) < meta["noise"] + 8 and (name != "cough" or decibels(after) > decibels(before) + 10)
            names.add(name)
    assert names == set(nonverbal.SOUNDS)


def test_words_that_ran_on_are_joined_as_espeak_said_them():
    utterance = say(TEXT, "Emma")
    parts = expressive_speech.cut(TEXT, utterance)
    waveform, spans = expressive_speech.joined(random.Random(0), parts)
    inner = utterance.waveform[expressive_speech.JOINT : -expressive_speech.JOINT]
    first = round(spans[0][1] * SAMPLING_RATE) + expressive_speech.JOINT  # to the millisecond
    starts = range(first - 16, first + 17)
    assert any(np.allclose(waveform[start : start + len(inner)], inner, atol=1e-6) for start in starts)
    assert " ".join(text for text, _, _ in spans) == TEXT


def test_log_mel_keeps_the_level():
    speech = say(TEXT, "Mia").waveform
    loud, quiet = (inputs_of([speech * gain])[0].max().item() for gain in (1, 0.1))
    assert loud - quiet == pytest.approx(0.5, abs=0.01)  # 20 dB


def test_the_pitch_of_a_voice_is_found_and_none_in_noise():
    for pitch in (90, 160, 310):
        scores = label_speech.pitches_of(nonverbal.voice(np.full(SAMPLING_RATE // 2, float(pitch))))[5:-5]
        assert scores.shape == (15, len(label_speech.PITCHES)) and scores.sum(1).min() > 0.9
        found = label_speech.PITCHES[scores.argmax(1)]
        assert np.abs(np.log2(found / pitch)).max() < 0.1
    noise = np.random.default_rng(0).normal(0, 0.1, SAMPLING_RATE)
    assert np.median(label_speech.pitches_of(noise).sum(1)) < 0.2


# --- conversations ------------------------------------------------------------------------------------------------------


def test_transcripts_read_back_to_labels_words_and_sounds(recorded):
    for _, meta in recorded:
        labels, words, sounds = read_transcript(meta["transcript"])
        assert labels == {label: meta[label] for label in LABELS}
        assert words == " ".join(text for text, _, _ in meta["words"])
        assert sounds == [name for name, _, _ in meta["sounds"]]
    assert read_transcript("[happy] [fast] [loud] the [hiccup] lamp") == ({"speed": "fast", "volume": "loud"}, "the lamp", [])


def test_questions_are_answered_from_the_labels_and_phrasings_are_split():
    asked = {"train": set(), "test": set()}
    for split, seed in itertools.product(asked, range(12)):
        sample = expressive(random.Random(f"{split}{seed}"), split, "questions")
        meta, turns = sample["meta"], sample["messages"]
        assert len(turns) == (8 if split == "train" else 2) and (meta["voice"] in VOICES or split == "test")
        for question, answer in zip(turns[::2], turns[1::2], strict=True):
            text = question["content"][-1]["text"]
            kind, phrasing = next((k, p) for k, ps in QUESTIONS.items() for p in ps if world.written(p) == world.written(text.lower().rstrip("?.")))
            asked[split].add(phrasing)
            names = [name for name, _, _ in meta["sounds"]]
            expected = meta[kind] if kind != "sounds" else " and ".join(names) or "none"
            assert answer["content"][0]["text"] == expected
    assert not asked["train"] & asked["test"]


def test_the_same_number_gives_the_same_bytes_and_the_other_split_another_voice():
    rows = [expressive_speech.make("both", "train", 7, index) for index in range(10)]
    assert rows == [expressive_speech.make("both", "train", 7, index) for index in range(9, -1, -1)][::-1]
    assert len({row["audios"][0]["bytes"] for row in rows}) == len({row["id"] for row in rows}) == 10
    assert {json.loads(row["meta"])["emotion"] for row in rows} == set(LABELS["emotion"])
    voices = {speak(random.Random(seed), "test")[1]["voice"] for seed in range(20)}
    assert voices & set(HELD_OUT_VOICES) and voices & set(VOICES)


# --- spoken trivia ------------------------------------------------------------------------------------------------------

ENTRY = {"question": "Which lake is the deepest?", "answer": {"value": "Lake Baikal", "aliases": ["Baikal"]}}
NAMED_AS_TRIVIAQA = {"Question": ENTRY["question"], "Answer": {"Value": "Lake Baikal", "Aliases": ["Baikal"]}, "QuestionId": "q1"}
WITHOUT_ANSWER = {"Question": "Who?", "QuestionId": "q2"}


@pytest.mark.parametrize("name", ["own.json", "list.json", "lines.json", "hub.parquet"])
def test_trivia_of_every_form_is_asked_aloud(name, tmp_path):
    path = tmp_path / name
    if name == "hub.parquet":
        hidden = ENTRY | {"answer": {"value": "<unk>", "aliases": []}}
        pq.write_table(pa.Table.from_pylist([ENTRY | {"question_id": "1"}, hidden | {"question_id": "2"}]), path)
    else:
        forms = {
            "own.json": json.dumps({"Data": [NAMED_AS_TRIVIAQA, WITHOUT_ANSWER], "Domain": "Web"}, indent=1),
            "list.json": json.dumps([ENTRY]),
            "lines.json": f"{json.dumps(ENTRY)}\n{json.dumps(ENTRY)}\n",
        }
        path.write_text(forms[name])
    questions = spoken_trivia.read_trivia(str(path))
    assert set(map(str, questions)) == {str((ENTRY["question"], "Lake Baikal", ["Baikal"]))}
    row = spoken_trivia.make(str(path), "training.synthesis.spoken_trivia:say", "TriviaQA", "unknown", 0, 5)
    assert [part["type"] for part in row["messages"][0]["content"]] == ["audio"]
    assert row["messages"][1]["content"][0]["text"] == "Lake Baikal" and row["source"] == "TriviaQA"
    waveform, rate = soundfile.read(io.BytesIO(row["audios"][0]["bytes"]))
    assert rate == SAMPLING_RATE and 1 < len(waveform) / rate < 4


def beep(text, seed):
    return np.full(len(text) * 100, 0.25, np.float32)


def test_another_speaker_can_be_named_and_facts_are_asked_without_a_file():
    rows = [spoken_trivia.make(None, f"{__name__}:beep", "world", "apache-2.0", 3, index) for index in range(6)]
    answers = {value for _, _, value in world.FACTS}
    for row in rows:
        meta = json.loads(row["meta"])
        assert soundfile.info(io.BytesIO(row["audios"][0]["bytes"])).frames == 100 * len(meta["question"])
        assert row["messages"][1]["content"][0]["text"] in answers
    with pytest.raises(ValueError, match="expected module:function"):
        spoken_trivia.load_speaker("no.such.module:say")


def test_a_file_that_is_no_trivia_is_refused(tmp_path):
    path = tmp_path / "other.json"
    path.write_text('[{"prompt": "Who?"}]')
    with pytest.raises(ValueError, match=r"entry 0 of .*other.json has the keys \['prompt'\]; expected question, answer"):
        spoken_trivia.read_trivia(str(path))


# --- the labelling model ------------------------------------------------------------------------------------------------


def test_what_is_written_as_symbols_is_heard_back(recorded):
    for _, meta in recorded[:10]:
        symbols, classes = to_ids(meta["transcript"])
        frames = [number for symbol in symbols for number in (symbol, symbol, 0)]
        logits = torch.full((len(frames), len(SYMBOLS)), -9.0)
        logits[torch.arange(len(frames)), frames] = 9.0
        sizes = [len(names) for names in LABELS.values()]
        scores = torch.cat([9.0 * torch.eye(size)[number] for size, number in zip(sizes, classes, strict=True)])
        answer = heard(logits.log_softmax(-1), scores)
        assert answer["transcript"] == meta["transcript"] and min(answer["confidence"].values()) > 0.99
    with pytest.raises(ValueError, match="has no volume"):
        to_ids("[sad] [fast] the lamp")
    with pytest.raises(ValueError, match="holds '7'"):
        to_ids("[sad] [fast] [loud] 7 lamps")


def test_a_recording_is_heard_the_same_in_a_batch_as_alone(small_checkpoint):
    torch.manual_seed(0)
    model = start_from(str(small_checkpoint)).eval()
    short, long = say("open the door", "Mia").waveform, say(TEXT, "Tom").waveform
    with torch.inference_mode():
        alone, together = model(*inputs_of([short])), model(*inputs_of([long, short]))
    torch.testing.assert_close(together[0][1, : alone[0].shape[1]], alone[0][0], atol=0.02, rtol=0.02)
    torch.testing.assert_close(together[1][1], alone[1][0], atol=0.02, rtol=0.02)


def test_the_tower_states_are_those_of_whispers_encoder_on_a_full_window(small_checkpoint):
    model = start_from(str(small_checkpoint)).eval()
    features = torch.randn(1, 80, 3000, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model.encoder(features).last_hidden_state
        states = model.tower_states(features, torch.zeros(1, 1, 1, 1500))
    torch.testing.assert_close(states[-1], expected, atol=1e-4, rtol=1e-4)
    assert len(states) == 1 + model.encoder.config.encoder_layers


@pytest.fixture(scope="module")
def transcripts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transcripts")
    draw = functools.partial(expressive_speech.make, "transcript", "train", 0)
    shards.write_shards(draw, 16, folder, source="s", license="l", seed=0, options={}, row_group=4, processes=1)
    return folder


def test_training_learns_and_its_result_is_evaluated(transcripts, small_checkpoint, tmp_path):
    losses = label_speech.train([transcripts], str(small_checkpoint), tmp_path / "a", 12, batch_size=4)
    assert len(losses) == 12 and np.mean(losses[-3:]) < 0.6 * losses[0]
    with pytest.raises(ValueError, match="is of a run with steps 12, now it is 13"):
        label_speech.train([transcripts], str(small_checkpoint), tmp_path / "a", 13, batch_size=4)
    judgements = label_speech.evaluate(str(tmp_path / "a"), [transcripts])
    assert len(judgements) == 16 and "| emotion | 16 |" in label_speech.table(judgements)


def test_the_loss_counts_every_label_beside_the_words(transcripts, small_checkpoint):
    torch.manual_seed(0)
    model = start_from(str(small_checkpoint))
    batch = label_speech.batch_of(label_speech.row_groups([transcripts]), 1, 0, 0)
    _, classes = to_ids(batch[0][1])
    with torch.no_grad():
        model.classes.weight.zero_()
        model.classes.bias.zero_()
        undecided = label_speech.loss_of(model, batch)
        for part, number in zip(model.classes.bias.split([len(names) for names in LABELS.values()]), classes, strict=True):
            part[number] = 30
        right = label_speech.loss_of(model, batch)
    assert undecided - right == pytest.approx(np.log(4 * 3 * 3), abs=0.02)


def test_each_epoch_reads_every_recording_once_in_another_order(transcripts):
    groups = label_speech.row_groups([transcripts])
    epochs = [[transcript for step in steps for _, transcript, _ in label_speech.batch_of(groups, 3, 0, step)] for steps in (range(8), range(8, 16), range(16, 24))]
    assert all(len(epoch) == 16 and set(epoch) == set(epochs[0]) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_recording_longer_than_thirty_seconds_is_named(tmp_path):
    sample = {"messages": [{"role": "user", "content": [{"type": "audio"}]}], "audios": [np.zeros(31 * SAMPLING_RATE, np.float32)]}
    write = functools.partial(shards.write_shards, source="s", license="l", seed=0, options={}, processes=1)
    write(functools.partial(numbered, sample), 1, tmp_path / "long")
    with pytest.raises(ValueError, match=r"row 'recording-0' lasts 31.0 s; the tower hears 30 s"):
        label_speech.evaluate("none", [tmp_path / "long"])


def numbered(sample, index):
    return shards.encode_row(sample, f"recording-{index}", "s", "l")


KILLED = """
import os, signal, sys
from training.synthesis import label_speech
save = label_speech.save
def save_and_die(*args):
    save(*args)
    if len(args[-1]) == 6:
        os.kill(os.getpid(), signal.SIGKILL)
label_speech.save = save_and_die
label_speech.main()
"""


@pytest.mark.slow
def test_a_killed_training_goes_on_with_the_same_losses(transcripts, small_checkpoint, tmp_path):
    def command(name):
        options = {"--data": transcripts, "--tower": small_checkpoint, "--output": tmp_path / name, "--steps": 10}
        options |= {"--batch-size": 4, "--save-steps": 3}
        return ["train", *(str(part) for option in options.items() for part in option)]

    run = functools.partial(subprocess.run, cwd=ROOT, capture_output=True, text=True)
    killed = run([sys.executable, "-c", KILLED, *command("killed")])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    module = [sys.executable, "-m", "training.synthesis.label_speech"]
    resumed, whole = run([*module, *command("killed")]), run([*module, *command("whole")])
    assert "6/10" in resumed.stderr and resumed.returncode == whole.returncode == 0, resumed.stderr
    losses = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["losses"] for name in ("killed", "whole")]
    # Kernels round by where their memory lies; a step that is missing or repeated changes the loss by far more.
    assert losses[0] == pytest.approx(losses[1], rel=2e-3) and len(losses[0]) == 10


def test_a_loss_that_is_no_number_stops_and_leaves_the_last_checkpoint(transcripts, small_checkpoint, tmp_path):
    output = tmp_path / "run"
    label_speech.train([transcripts], str(small_checkpoint), output, 2, batch_size=4)
    saved = torch.load(output / "checkpoint.pt", weights_only=True)
    saved["model"]["symbols.weight"][0, 0] = float("nan")
    saved["losses"] = saved["losses"][:1]
    torch.save(saved, output / "checkpoint.pt")
    before = (output / "checkpoint.pt").read_bytes()
    with pytest.raises(FloatingPointError, match="the loss of step 1 is nan"):
        label_speech.train([transcripts], str(small_checkpoint), output, 2, batch_size=4)
    assert (output / "checkpoint.pt").read_bytes() == before


# --- labelling a folder -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def untrained(small_checkpoint, tmp_path_factory):
    """A labeller that writes something everywhere: its layers are as they start."""
    folder = tmp_path_factory.mktemp("untrained")
    torch.manual_seed(0)
    model = start_from(str(small_checkpoint))
    optimizer = label_speech.make_optimizer(model)
    label_speech.save(folder, {}, model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0), [])
    return folder


@pytest.fixture
def folder(tmp_path):
    """A long WAV of two channels at 48 kHz, a FLAC and an MP3 in a folder below, and a WAV that was cut off."""
    sentences = [say(f"{TEXT} {word}", "Mia").waveform for word in world.ANIMALS[:14]]
    pause = np.zeros(SAMPLING_RATE // 2, np.float32)
    long = np.concatenate([part for sentence in sentences for part in (sentence, pause)]) * 0.5
    recordings = tmp_path / "recordings"
    (recordings / "more").mkdir(parents=True)
    soundfile.write(recordings / "long.wav", np.repeat(np.stack([long, long], 1), 3, axis=0), 48_000)
    soundfile.write(recordings / "more" / "one.flac", sentences[0], SAMPLING_RATE)
    soundfile.write(recordings / "more" / "two.MP3", sentences[1], SAMPLING_RATE, format="MP3")
    whole = (recordings / "more" / "three.wav", sentences[2])
    soundfile.write(*whole, SAMPLING_RATE)
    whole[0].write_bytes(whole[0].read_bytes()[:20_000])
    (recordings / "notes.txt").write_text("no sound")
    return recordings


@pytest.fixture
def label(folder, untrained, monkeypatch):
    """Runs the command on `folder`."""

    def run(output, max_bad_files):
        arguments = ["--model", untrained, "--input", folder, "--output", output, "--source", "mine", "--license", "CC0-1.0"]
        arguments += ["--processes", "1", "--max-bad-files", max_bad_files]
        monkeypatch.setattr(sys, "argv", ["label_speech", "label", *map(str, arguments)])
        label_speech.main()

    return run


def test_long_recordings_are_cut_in_pauses(folder):
    waveform = label_speech.read(folder / "long.wav")
    windows = windows_of(waveform)
    assert windows[0][0] == 0 and windows[-1][1] == len(waveform) > 45 * SAMPLING_RATE
    assert all(a[1] == b[0] for a, b in itertools.pairwise(windows))
    assert all(end - start <= 30 * SAMPLING_RATE for start, end in windows)
    for _, end in windows[:-1]:
        assert np.abs(waveform[end - 1600 : end + 1600]).max() < 1e-3


def test_files_that_cannot_be_read_are_named_and_counted(folder):
    windows, bad = find_windows(folder, max_bad_files=1)
    assert bad == ["more/three.wav"]
    assert {name for name, _, _ in windows} == {"long.wav", "more/one.flac", "more/two.MP3"}
    with pytest.raises(ValueError, match="1 files cannot be read, --max-bad-files is 0: more/three.wav"):
        find_windows(folder, max_bad_files=0)
    with pytest.raises(ValueError, match="has no readable sound file"):
        find_windows(folder / "none", max_bad_files=0)


def test_a_folder_becomes_conversations(label, folder, tmp_path, capsys):
    label(tmp_path / "out", max_bad_files=1)
    assert "three.wav is cut off" in capsys.readouterr().err
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["options"]["bad_files"] == ["more/three.wav"]
    rows = list(shards.read_rows(tmp_path / "out"))
    assert len(rows) == manifest["rows"] == len(find_windows(folder, 1)[0]) == 4
    for row in rows:
        meta, text = json.loads(row["meta"]), row["messages"][1]["content"][0]["text"]
        assert read_transcript(text)[0] == {label: meta[label] for label in LABELS} and row["source"] == "mine"
        assert set(meta["confidence"]) == {*LABELS, "text"} and all(0 < value <= 1 for value in meta["confidence"].values())
        samples = soundfile.info(io.BytesIO(row["audios"][0]["bytes"])).frames
        assert samples == pytest.approx((meta["end"] - meta["start"]) * SAMPLING_RATE)
    with pytest.raises(ValueError, match="three.wav"):
        label(tmp_path / "none", max_bad_files=0)
    assert not (tmp_path / "none").exists()


def test_a_model_of_other_labels_is_refused(untrained, tmp_path):
    config = json.loads((untrained / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"symbols": ["", "a"]}))
    with pytest.raises(ValueError, match="was trained with the symbols"):
        label_speech.load(str(tmp_path))
    assert not label_speech.load(str(untrained)).training
