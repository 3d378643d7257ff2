"""The voice benchmark on real speech (eSpeak NG), on damaged copies of it, and with recognisers that really listen.

The independent recogniser is PocketSphinx with a grammar of the sentences below; it is no part of EAGLE.
"""

import io
import json
import re
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
import soundfile
import torch
from datasets import Audio, Dataset
from PIL import Image
from pocketsphinx import Decoder

from eval.metrics.prosody import prosody
from eval.metrics.speaker_similarity.speaker_similarity import embed, equal_error_rate
from eval.metrics.speech_health import speech_health
from eval.metrics.speech_latency.speech_latency import latency
from eval.metrics.spoken_answer.spoken_answer import character_errors, is_heard, repeated_phrases
from eval.voice import AUDIO, FACTS, Judges, Recordings, VoiceError, load_judges, main, measure, run
from eval.voice_results import figure_of, identified, verification
from training.synthesis.voices import SAMPLING_RATE, VOICES, say

ROOT = Path(__file__).resolve().parent.parent
SENTENCES = (
    "please open the window and close the door",
    "my brother found seven coins under the table",
    "she wants to buy bread and butter",
    "tomorrow morning the doctor will arrive",
)
SPEAKERS = ("Mia", "Tom", "Lucy")  # whom the recogniser understands without an error
STYLES = {
    "fast": ({"speed": "fast"}, {"rate": 230}, 1.0),
    "slow": ({"speed": "slow"}, {"rate": 130}, 1.0),
    "loud": ({"volume": "loud"}, {}, 1.5),
    "quiet": ({"volume": "quiet"}, {}, 0.3),
    "cheerful": ({"emotion": "cheerful"}, {"rate": 200, "pitch": 68, "pitch_range": 90}, 1.4),
    "sad": ({"emotion": "sad"}, {"rate": 140, "pitch": 35, "pitch_range": 20}, 0.6),
    "sarcastic": ({"emotion": "sarcastic"}, {"rate": 150, "pitch": 38, "pitch_range": 25}, 1.0),
}  # the style asked for, how eSpeak NG is made to speak so, and the volume


def grammar() -> str:
    """One or two of the sentences, each whole or broken off after its second word or a later one."""

    def opened(words):
        return words[0] + (f" [ {opened(words[1:])} ]" if words[1:] else "")

    sentences = " | ".join(f"{first} {opened(others)}" for first, *others in map(str.split, SENTENCES))
    return f"#JSGF V1.0; grammar speech; public <answer> = <sentence> [ <sentence> ]; <sentence> = {sentences};"


@pytest.fixture(scope="module")
def recogniser():
    decoder = Decoder(samprate=SAMPLING_RATE, lm=None, cmn="batch", loglevel="FATAL")
    decoder.add_jsgf_string("speech", grammar())
    decoder.activate_search("speech")

    def recognise(waveform):
        samples = np.clip(np.pad(waveform, SAMPLING_RATE // 4), -1, 1) * 32767
        decoder.start_utt()
        decoder.process_raw(samples.astype("<i2").tobytes(), full_utt=True)
        decoder.end_utt()
        return decoder.hyp().hypstr if decoder.hyp() else ""

    return recognise


def named(recogniser) -> Judges:
    return Judges(recogniser, info={"recogniser": "PocketSphinx", "own_ears": None, "speaker": "spectral statistics"})


@pytest.fixture(scope="module")
def judges(recogniser):
    return named(recogniser)


def wav(waveform: np.ndarray, sampling_rate: int = SAMPLING_RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, waveform, sampling_rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def copy_synthesis(waveform: np.ndarray) -> np.ndarray:
    """The waveform through a vocoder: magnitudes of its spectrum alone, phases found by Griffin and Lim's iteration."""
    sound, window = torch.from_numpy(waveform), torch.hann_window(512)
    magnitudes = torch.stft(sound, 512, 128, window=window, return_complex=True).abs()
    phases = torch.zeros_like(magnitudes)
    for _ in range(24):
        estimate = torch.istft(torch.polar(magnitudes, phases), 512, 128, window=window, length=len(sound))
        phases = torch.stft(estimate, 512, 128, window=window, return_complex=True).angle()
    return torch.istft(torch.polar(magnitudes, phases), 512, 128, window=window, length=len(sound)).numpy()


def spoken(sentence: str, voice: str, **row) -> dict:
    return {
        "id": f"{voice}-{sentence[:6]}",
        "text": sentence,
        "voice": voice,
        "audio": wav(say(sentence, voice).waveform),
        **row,
    }


def write_folder(folder: Path, rows: list[dict]) -> Path:
    """metadata.jsonl with the rows' sound in files beside it."""
    folder.mkdir(parents=True)
    with (folder / "metadata.jsonl").open("w") as file:
        for row in rows:
            sounds = {key: value for key, value in row.items() if isinstance(value, bytes)}
            for key, value in sounds.items():
                (folder / f"{row['id']}.{key}.wav").write_bytes(value)
            file.write(json.dumps(row | {key: f"{row['id']}.{key}.wav" for key in sounds}) + "\n")
    return folder


def write_parquet(path: Path, rows: list[dict]) -> Path:
    """As `datasets` writes it, with the sound in the file."""
    rows = [row | {"audio": {"bytes": row["audio"], "path": None}} for row in rows]
    Dataset.from_list(rows).cast_column("audio", Audio()).to_parquet(path)
    return path


@pytest.fixture(scope="module")
def rows():
    """Each sentence by each speaker, with real speech, its copy, and times of a stream that stalls once for Tom."""
    found = []
    for voice in SPEAKERS:
        for number, sentence in enumerate(SENTENCES):
            real = say(sentence, voice, rate=165).waveform
            row = spoken(sentence, voice, reference_audio=wav(real), copy_audio=wav(copy_synthesis(real)))
            row |= {
                "speaker_audio": wav(say(SENTENCES[number - 1], voice, rate=160).waveform),
                "answer": sentence.split(" the ")[-1],
            }
            times = [0.5, 0.8, 2.5 if voice == "Tom" else 1.0]
            found.append(row | {"time_to_first_text": 0.2, "chunk_times": times, "chunk_seconds": [0.5, 0.5, 1.0]})
    return found


@pytest.fixture(scope="module")
def styled(rows):
    """Two sentences by one speaker in each style."""
    found = []
    for name, (style, voice, volume) in STYLES.items():
        for sentence in SENTENCES[:2]:
            waveform = say(sentence, "Mia", **voice).waveform * volume
            facts = {"id": f"{name}-{sentence[:6]}", "text": sentence, "voice": "Mia", "neutral": f"Mia-{sentence[:6]}"}
            found.append(facts | style | {"audio": wav(waveform)})
    return found


@pytest.fixture(scope="module")
def results(rows, styled, judges, tmp_path_factory):
    """Of all rows, from a folder; with OUTPUT's path."""
    folder = tmp_path_factory.mktemp("voice")
    recordings = Recordings(write_folder(folder / "rows", rows + styled))
    return run(recordings, judges, folder / "out"), folder / "out"


def value(results: dict, part: str, metric: str) -> float:
    return results["tasks"][f"voice_{part}"]["metrics"][metric]["value"]


# ------------------------------------------------------------------------------------------------ good speech


def test_good_speech_scores_well(results):
    results, _ = results
    assert value(results, "intelligibility", "word_error_rate/real_speech") < 0.05
    assert value(results, "intelligibility", "word_error_rate") < 0.1
    assert value(results, "content", "answer_heard") > 0.8
    assert value(results, "health", "defective") == 0
    assert value(results, "speaker", "voice_identity") > 0.9
    assert value(results, "speaker", "equal_error_rate") < 0.25
    assert value(results, "speaker", "cosine/same_voice") > value(results, "speaker", "cosine/different_voice") + 0.05
    assert value(results, "speaker", "cloning_similarity") > 0.85
    assert value(results, "health", "duration_to_reference/median") == pytest.approx(165 / 175, abs=0.08)


def test_every_control_is_seen_to_be_followed(results):
    results, _ = results
    metrics = results["tasks"]["voice_prosody"]["metrics"]
    assert metrics["sign_accuracy"]["value"] > 0.9
    for name in ("speed/rate", "volume/level", "emotion/pitch", "emotion/pitch_range", "emotion/rate", "emotion/level"):
        assert metrics[f"sign_accuracy/{name}"]["value"] > 0.8, name
        assert metrics[f"spearman/{name}"]["value"] > 0.7, name
    assert metrics["shift/speed/fast/rate"]["value"] == pytest.approx(100 * (230 / 175 - 1), abs=12)
    assert metrics["shift/volume/quiet/level"]["value"] == pytest.approx(20 * np.log10(0.3), abs=0.5)


def test_times_of_streams_are_summed_up(results):
    results, _ = results
    assert value(results, "latency", "time_to_first_audio/median") == 0.5
    assert value(results, "latency", "time_to_first_text/p95") == 0.2
    assert value(results, "latency", "answers_with_underruns") == pytest.approx(1 / 3)
    assert value(results, "latency", "stalled/p95") == pytest.approx(1.0)
    assert value(results, "latency", "real_time_factor/median") == pytest.approx((1.0 - 0.2) / 2.0)


def test_every_figure_has_an_interval_around_it(results):
    for part in results[0]["tasks"].values():
        for name, figure in (part["metrics"] | part.get("categories", {})).items():
            low, high = figure["interval"]
            assert low <= figure["value"] + 1e-9 and figure["value"] <= high + 1e-9, name
            assert figure["items"] > 0


def test_report_shows_all_parts_and_the_floors(results):
    results, output = results
    text = (output / "report.md").read_text()
    for part in ("Intelligibility", "Content", "Latency", "Speaker", "Prosody", "Health"):
        assert f"## {part}" in text
    assert re.search(r"\| word error rate, independent recogniser \| [\d.]+ % \| [\d.]+ to [\d.]+ % \| 26 \|", text)
    for floor in ("real speech", "copy synthesis"):
        assert f"| word error rate, {floor} |" in text
    assert "own ears" not in text.split("N/A")[0]
    assert Image.open(output / "report.png").size == (1320, 432)


# ------------------------------------------------------------------------------------------------ damaged speech


def damaged(waveform: np.ndarray, damage: str) -> np.ndarray:
    second = SAMPLING_RATE
    return {
        "none": waveform,
        "clipped": np.clip(3 * waveform, -0.6, 0.6),
        "truncated": waveform[: round(0.65 * len(waveform))],
        "silent": np.zeros_like(waveform),
        "pause": np.concatenate([waveform[:second], np.zeros(2 * second, np.float32), waveform[second:]]),
        "late": np.concatenate([np.zeros(2 * second, np.float32), waveform]),
        "repeated": np.tile(waveform, 3),
        "swapped": say(SENTENCES[1], "Tom").waveform,
        "slowed": say(SENTENCES[1], "Mia", rate=110).waveform,
        "quiet": 0.05 * waveform,
        "other words": say(SENTENCES[0], "Mia").waveform,
    }[damage]


SEEN = {
    "none": set(),
    "clipped": {"clipped"},
    "truncated": {"words", "truncated", "rate"},
    "silent": {"words", "silent", "no voice"},
    "pause": {"long_silence", "rate"},
    "late": {"long_silence"},
    "repeated": {"words", "repeated", "phrases", "duration_off", "rate"},
    "swapped": {"pitch", "voice"},
    "slowed": {"rate"},
    "quiet": {"level"},
    "other words": {"words"},
}


@pytest.fixture(scope="module")
def verdict(judges):
    """What the metrics blame in a waveform that should be SENTENCES[1] as Mia says it."""
    good = say(SENTENCES[1], "Mia").waveform
    neutral = prosody.measure(good, SAMPLING_RATE, SENTENCES[1])
    centres = {
        voice: np.mean([embed(say(text, voice).waveform) for text in SENTENCES[2:]], axis=0) for voice in SPEAKERS
    }
    row = dict.fromkeys((*FACTS, *AUDIO))

    def blamed(waveform):
        sample = measure(row | {"id": "a", "text": SENTENCES[1], "audio": wav(waveform)}, judges)
        found = {name for name, wrong in sample["health"]["defects"].items() if wrong}
        found |= {"words"} if sample["response"] != SENTENCES[1] else set()
        found |= {"phrases"} if repeated_phrases(sample["response"], SENTENCES[1]) else set()
        if sample["prosody"] is None:
            return found | {"no voice"}
        moved = prosody.shifts(sample["prosody"], neutral)
        limits = {"pitch": 3, "rate": 15, "level": 12}
        found |= {feature for feature, limit in limits.items() if abs(moved[feature]) > limit}
        nearest = max(centres, key=lambda voice: centres[voice] @ np.array(sample["voices"]["audio"]))
        return found | ({"voice"} if nearest != "Mia" else set())

    return blamed


@pytest.mark.parametrize("damage", SEEN)
def test_each_damage_is_seen_by_its_own_metric_and_by_no_other(verdict, damage):
    assert verdict(damaged(say(SENTENCES[1], "Mia").waveform, damage)) == SEEN[damage]


def test_swapped_voices_are_seen(rows, tmp_path):
    """One by the system's other recordings; all of two voices only where real speech of the voices is given."""
    rows = [{key: row[key] for key in ("id", "text", "voice", "audio", "reference_audio")} for row in rows]
    by_id = {row["id"]: row["audio"] for row in rows}

    def score(name, swap, count, columns):
        found = [
            row | {"audio": by_id[f"{swap.get(row['voice'], row['voice'])}-{row['text'][:6]}"]} for row in rows[:count]
        ]
        found = [{key: row[key] for key in columns} for row in found + rows[count:]]
        return run(Recordings(write_folder(tmp_path / name / "rows", found)), Judges(), tmp_path / name / "out")

    alone = ("id", "text", "voice", "audio")
    both = {"Mia": "Tom", "Tom": "Mia"}
    one = score("one", both, 1, alone)
    assert value(one, "speaker", "voice_identity") == pytest.approx(11 / 12)
    unseen = score("unseen", both, 12, alone)
    assert value(unseen, "speaker", "voice_identity") == 1
    seen = score("seen", both, 12, (*alone, "reference_audio"))
    assert value(seen, "speaker", "voice_identity") == pytest.approx(4 / 12)  # Lucy's
    assert seen["tasks"]["voice_speaker"]["templates"] == "reference_audio"


# ------------------------------------------------------------------------------------------------ judges


def test_without_a_recogniser_the_headline_is_not_available(rows, tmp_path):
    results = run(
        Recordings(write_folder(tmp_path / "rows", rows[:2])), load_judges(None, None, None), tmp_path / "out"
    )
    for part in ("voice_intelligibility", "voice_content"):
        assert results["tasks"][part]["status"] == "n/a" and "--recogniser" in results["tasks"][part]["reason"]
        assert results["tasks"][part]["metrics"] == {}
    assert results["tasks"]["voice_prosody"]["status"] == "n/a"
    assert results["tasks"]["voice_health"]["status"] == "ok"
    assert "N/A: no independent recogniser was given" in (tmp_path / "out/report.md").read_text()


def test_own_ears_stand_beside_and_are_never_the_headline(rows, tmp_path):
    results = run(
        Recordings(write_folder(tmp_path / "rows", rows[:2])), load_judges(None, str(ROOT), None), tmp_path / "out"
    )
    part = results["tasks"]["voice_intelligibility"]
    assert part["status"] == "n/a" and set(part["metrics"]) == {
        "word_error_rate/own_ears",
        "character_error_rate/own_ears",
    }
    assert "by the model's own ears (not independent)" in (tmp_path / "out/report.md").read_text()
    samples = [json.loads(line) for line in (tmp_path / "out/samples.jsonl").read_text().splitlines()]
    assert all(sample["heard"]["own_ears"] and sample["response"] is None for sample in samples)


def test_the_model_itself_is_no_independent_recogniser(recogniser, tmp_path):
    with pytest.raises(ValueError, match="expected a name"):
        Judges(recogniser)
    with pytest.raises(VoiceError, match="is the model that speaks"):
        load_judges(str(ROOT), None, None)
    (tmp_path / "config.json").write_text('{"model_type": "whisper"}')
    with pytest.raises(VoiceError, match="is the model that speaks"):
        load_judges(str(tmp_path), str(tmp_path), None)


@pytest.fixture
def listener(tmp_path):
    """A recogniser as a program: PocketSphinx with one sentence to tell from another."""
    script = tmp_path / "listen.py"
    script.write_text(f"""
import sys, soundfile
from pocketsphinx import Decoder
decoder = Decoder(samprate=16000, lm=None, loglevel="FATAL")
decoder.add_jsgf_string("a", "#JSGF V1.0; grammar a; public <a> = {SENTENCES[0]} | {SENTENCES[1]};")
decoder.activate_search("a")
decoder.start_utt()
decoder.process_raw(soundfile.read(sys.argv[1], dtype="int16")[0].tobytes(), full_utt=True)
decoder.end_utt()
print(decoder.hyp().hypstr)
""")
    return f"{sys.executable} {script}"


def test_the_command_with_a_recogniser_that_is_a_program(listener, tmp_path, monkeypatch, capsys):
    rows = write_parquet(tmp_path / "rows.parquet", [spoken(sentence, "Mia") for sentence in SENTENCES[:2]])
    arguments = ["--waveforms", str(rows), "--recogniser", listener, "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["eval.voice", *arguments])
    main()
    assert "# Voice output" in capsys.readouterr().out
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert value(results, "intelligibility", "word_error_rate") == 0
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["judges"]["recogniser"] == listener and manifest["versions"]["praat-parselmouth"]


def test_a_program_that_fails_is_named(tmp_path):
    judges = load_judges(f'{sys.executable} -c "import sys; sys.exit(1)"', None, None)
    with pytest.raises(VoiceError, match="failed with exit code 1"):
        run(Recordings(write_folder(tmp_path / "rows", [spoken(SENTENCES[0], "Mia")])), judges, tmp_path / "out")


def test_models_of_transformers_as_judges(rows, tmp_path):
    """Untrained ones: a recogniser understands nothing, and a speaker model gives vectors of its own size."""
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
        WavLMConfig,
        WavLMForXVector,
    )  # fmt: skip

    torch.manual_seed(0)
    small = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
        "conv_dim": (8, 8), "conv_kernel": (10, 8), "conv_stride": (8, 8), "num_feat_extract_layers": 2,
        "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
    }  # fmt: skip
    vocabulary = tmp_path / "vocab.json"
    vocabulary.write_text(json.dumps({token: number for number, token in enumerate(["<pad>", "<unk>", "|", "A", "B"])}))
    ctc = {
        "bos_token": None,
        "eos_token": None,
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "word_delimiter_token": "|",
    }
    recogniser, speaker = tmp_path / "recogniser", tmp_path / "speaker"
    for model in (Wav2Vec2ForCTC(Wav2Vec2Config(vocab_size=5, pad_token_id=0, **small)), Wav2Vec2FeatureExtractor(),
                  Wav2Vec2CTCTokenizer(str(vocabulary), **ctc)):  # fmt: skip
        model.save_pretrained(recogniser)
    WavLMForXVector(WavLMConfig(tdnn_dim=(16, 16), tdnn_kernel=(3, 1), tdnn_dilation=(1, 1), xvector_output_dim=12,
                                num_ctc_classes=5, **small)).save_pretrained(speaker)  # fmt: skip
    Wav2Vec2FeatureExtractor().save_pretrained(speaker)
    judges = load_judges(str(recogniser), None, str(speaker))
    results = run(Recordings(write_folder(tmp_path / "rows", rows[:2])), judges, tmp_path / "out")
    assert value(results, "intelligibility", "word_error_rate") > 0.5
    sample = json.loads((tmp_path / "out/samples.jsonl").read_text().splitlines()[0])
    assert len(sample["voices"]["audio"]) == 12
    facts = json.loads((tmp_path / "out/manifest.json").read_text())["judges"]
    assert len(facts["recogniser"]["weights_sha256"]) == 64 and facts["speaker"]["path"] == str(speaker)


# ------------------------------------------------------------------------------------------------ resume


def test_a_killed_run_goes_on_and_only_what_changed_is_heard_again(rows, recogniser, tmp_path):
    calls = []

    def counting(waveform):
        calls.append(len(waveform))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return recogniser(waveform)

    some = [{key: row[key] for key in ("id", "text", "voice", "audio")} for row in rows[:4]]
    folder = write_folder(tmp_path / "rows", some)
    with pytest.raises(KeyboardInterrupt):
        run(Recordings(folder), named(counting), tmp_path / "out")
    with (tmp_path / "out/samples.jsonl").open("a") as file:
        file.write('{"task": "voice", "ind')  # as a kill leaves it
    whole = run(Recordings(folder), named(counting), tmp_path / "out")
    assert len(calls) == 3 + 2
    (folder / f"{some[0]['id']}.audio.wav").write_bytes(wav(say(some[0]["text"], "Tom").waveform))
    run(Recordings(folder), named(counting), tmp_path / "out")
    assert len(calls) == 3 + 2 + 1
    fresh = run(Recordings(write_folder(tmp_path / "again", some)), named(recogniser), tmp_path / "fresh")
    assert whole["tasks"] == fresh["tasks"]


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texts": "hello"}, "unknown column 'texts'; did you mean 'text'"),
        ({"text": "..."}, "has no words"),
        ({"answer": "?"}, "answer '.' has no words"),
        ({"neutral": "nobody"}, "'nobody' is no row's id"),
        ({"speed": "swift"}, "speed 'swift' is unknown; expected one of speed: slow, normal, fast"),
        ({"chunk_times": [1.0, 0.5], "chunk_seconds": [1.0, 1.0]}, "none before the one it follows"),
        ({"chunk_times": [1.0]}, "1 chunk_times and 0 chunk_seconds"),
        ({"time_to_first_text": 0.1}, "0 chunk_times"),
        ({"audio": "missing.wav"}, "row a: .*missing.wav"),
        ({"audio": None}, "row a has no audio"),
        ({"reference_audio": b"no sound"}, "row a: reference_audio cannot be read"),
    ],
)
def test_bad_rows_are_named(change, message, judges, tmp_path):
    row = {"id": "a", "text": SENTENCES[0], "audio": wav(np.zeros(1600, np.float32))} | change
    with pytest.raises(VoiceError, match=message):
        run(Recordings(write_folder(tmp_path / "rows", [row])), judges, tmp_path / "out")


def test_bad_files_are_named(tmp_path):
    with pytest.raises(VoiceError, match="metadata.jsonl: expected one JSON object a line"):
        Recordings(tmp_path)
    with pytest.raises(VoiceError, match="neither a folder nor a .parquet file"):
        Recordings(tmp_path / "rows.csv")
    with pytest.raises(VoiceError, match="2 rows have 1 ids"):
        Recordings(write_folder(tmp_path / "twice", 2 * [spoken(SENTENCES[0], "Mia")]))
    (tmp_path / "twice/metadata.jsonl").write_text('{"id": "a"')
    with pytest.raises(VoiceError, match="line 1 is no JSON"):
        Recordings(tmp_path / "twice")


@pytest.mark.parametrize("defect", ["no sound", "not a number"])
def test_an_unreadable_recording_counts_as_silence(judges, rows, defect, tmp_path):
    file = io.BytesIO()
    soundfile.write(file, np.full(16_000, np.nan), SAMPLING_RATE, format="WAV", subtype="FLOAT")
    broken = b"no sound" if defect == "no sound" else file.getvalue()
    some = [row | {"audio": broken} if row is rows[1] else row for row in rows[:2]]
    results = run(Recordings(write_folder(tmp_path / "rows", some)), judges, tmp_path / "out")
    part = results["tasks"]["voice_intelligibility"]
    assert part["errors"] == 1 and part["items"] == 2
    assert value(results, "health", "silent") == 0.5
    assert part["metrics"]["word_error_rate"]["value"] == pytest.approx(8 / 16)


# ------------------------------------------------------------------------------------------------ the metrics alone


def test_health_is_blind_to_volume_and_sampling_rate():
    waveform = say(SENTENCES[0], "Emma").waveform
    for changed, rate in ((0.05 * waveform, 16_000), (np.repeat(waveform, 3), 48_000)):
        assert not any(speech_health.defects(changed, rate, SENTENCES[0]).values())
        for name, seconds in speech_health.silences(changed, rate).items():
            assert seconds == pytest.approx(speech_health.silences(waveform, 16_000)[name], abs=0.02)


@pytest.mark.parametrize("voice", VOICES)
def test_no_voice_is_blamed_and_its_cuts_are_found(voice):
    waveforms = [say(sentence, voice).waveform for sentence in SENTENCES]
    for sentence, waveform in zip(SENTENCES, waveforms, strict=True):
        assert not any(speech_health.defects(waveform, SAMPLING_RATE, sentence).values())
    cuts = [waveform[: round(share * len(waveform))] for waveform in waveforms for share in np.linspace(0.3, 0.8, 6)]
    assert np.mean([speech_health.ends_abruptly(cut, SAMPLING_RATE) for cut in cuts]) > 0.5


def test_silence_and_no_sound_at_all_are_silent():
    for waveform in (np.zeros(0, np.float32), np.zeros(16_000, np.float32), np.full(16_000, 1e-4, np.float32)):
        assert speech_health.defects(waveform, SAMPLING_RATE, "hello")["silent"]
        assert embed(waveform) is None and prosody.measure(waveform, SAMPLING_RATE, "hello") is None


def test_a_text_that_repeats_itself_may_be_said_so():
    waveform = say(SENTENCES[0], "Jim").waveform
    twice = np.concatenate([waveform, waveform])
    assert speech_health.repeated_seconds(twice, SAMPLING_RATE) > 1.5
    assert speech_health.defects(twice, SAMPLING_RATE, SENTENCES[0])["repeated"]
    assert not speech_health.defects(twice, SAMPLING_RATE, 2 * (SENTENCES[0] + " "))["repeated"]


def test_a_short_sound_after_a_pause_is_no_repetition():
    waveform = say("yes", "Mia").waveform
    pause = np.zeros(SAMPLING_RATE, np.float32)
    assert speech_health.repeated_seconds(np.concatenate([waveform, pause, waveform, pause]), SAMPLING_RATE) == 0


def test_clipped_share_counts_flat_tops_only():
    time = np.arange(16_000) / 16_000
    sine = (0.8 * np.sin(2 * np.pi * 100 * time)).astype(np.float32)
    assert speech_health.clipped_share(sine) == 0
    assert speech_health.clipped_share(np.clip(sine, -0.4, 0.4)) == pytest.approx(2 / 3, abs=0.02)  # |sin| > 1/2
    assert speech_health.clipped_share(0.5 * np.clip(sine, -1, 0.4)) == pytest.approx(1 / 3, abs=0.02)
    assert speech_health.clipped_share(2.5 * sine) == pytest.approx(2 / 3, abs=0.02)  # beyond full scale


def test_latency_golden_cases():
    smooth = latency([0.4, 0.6, 0.9], [0.5, 0.5, 0.5])
    assert smooth["time_to_first_audio"] == 0.4 and smooth["underruns"] == 0 and smooth["stalled"] == 0
    assert smooth["real_time_factor"] == pytest.approx(0.9 / 1.5)
    late = latency([0.5, 2.0, 2.1, 4.0], [1.0, 0.5, 0.5, 1.0], 0.1)  # heard until 1.5; 2.0 to 3.0; 4.0 to 5.0
    assert late["underruns"] == 2 and late["stalled"] == pytest.approx(0.5 + 1.0)
    assert late["real_time_factor"] == pytest.approx((4.0 - 0.1) / 3.0)
    assert latency([1.5], [3.0])["real_time_factor"] == 0.5


def test_spoken_answer_golden_cases():
    assert is_heard("It's in the Kitchen, I think.", "the kitchen")
    assert is_heard("there are twenty three", "23")
    assert not is_heard("the big kitchen", "the kitchen") and not is_heard("", "kitchen")
    with pytest.raises(ValueError, match="no words"):
        is_heard("kitchen", "!")
    assert character_errors("the kitten", "the kitchen") == [2, 11]
    assert character_errors("", "cat") == [3, 3]
    assert repeated_phrases("red green blue and red green blue", "red green blue") == 1
    assert repeated_phrases("red green blue and red green blue", "red green blue and red green blue") == 0
    assert repeated_phrases("a b a b", "a b a b c") == 0


def test_equal_error_rate_golden_cases():
    assert equal_error_rate(np.array([0.9, 0.8, 0.2, 0.1]), np.array([True, True, False, False])) == 0
    assert equal_error_rate(np.array([0.1, 0.2, 0.8, 0.9]), np.array([True, True, False, False])) == 1
    assert equal_error_rate(np.array([0.9, 0.4, 0.6, 0.1]), np.array([True, True, False, False])) == 0.5
    assert (
        equal_error_rate(np.full(4, 0.5), np.array([True, True, False, False])) == 0.5
    )  # ties: no threshold tells them
    weighted = equal_error_rate(
        np.array([0.9, 0.4, 0.6, 0.1]), np.array([True, True, False, False]), np.array([3, 1, 1, 3])
    )
    assert weighted == 0.25
    with pytest.raises(ValueError, match="expected some of both"):
        equal_error_rate(np.array([0.5]), np.array([True]))


def test_one_voice_alone_has_no_equal_error_rate():
    samples = [{"id": text, "category": "Mia", "cluster": text, "voices": {"audio": [1.0, 0.0]}} for text in "abc"]
    assert set(verification(samples).values()) == {None}
    assert set(verification([]).values()) == {None}
    assert figure_of(samples, lambda sample: None) is None


def test_recordings_of_one_text_tell_no_voices_apart():
    """Two voices that say the same are alike by what they say."""
    vectors = {"Mia": [1.0, 0.0], "Tom": [0.0, 1.0]}
    samples = [
        {"id": text + voice, "category": voice, "cluster": text, "voices": {"audio": vectors[voice]}}
        for text in "ab"
        for voice in vectors
    ]
    assert identified(samples, "audio") == [True] * 4
    assert identified(samples[:2], "audio") == [None] * 2
    assert verification(samples)["cosine/different_voice"]["value"] == 0
    assert set(verification([*samples[:2], samples[0] | {"id": "again"}]).values()) == {None}


def test_asked_directions():
    assert prosody.directions({"speed": "fast", "volume": "normal"}) == {"rate": ("speed", 1)}
    both = prosody.directions({"emotion": "sad", "speed": "fast"})  # what is asked in so many words comes first
    assert both == {
        "pitch": ("emotion", -1),
        "pitch_range": ("emotion", -1),
        "rate": ("speed", 1),
        "level": ("emotion", -1),
    }
    with pytest.raises(ValueError, match="emotion 'angry' is unknown"):
        prosody.directions({"emotion": "angry"})
    assert prosody.follows(-2.0, -1) and not prosody.follows(0.0, 1)
    assert prosody.spearman([1, 1, -1, -1], [3.0, 2.0, -1.0, -5.0]) == pytest.approx(0.894, abs=1e-3)
    assert prosody.spearman([1, 1], [3.0, 2.0]) is None


def test_pitch_of_a_known_tone():
    time = np.arange(16_000) / 16_000
    tone = sum(np.sin(2 * np.pi * 150 * k * time) / k for k in range(1, 6)).astype(np.float32) * 0.1
    found = prosody.measure(tone, 16_000, "x" * 10)
    assert found["pitch"] == pytest.approx(150, abs=1) and found["pitch_range"] < 0.2
    assert found["rate"] == pytest.approx(10, abs=0.2)
    assert found["level"] == pytest.approx(10 * np.log10(np.mean(tone**2)), abs=0.1)


def test_metrics_are_evaluate_modules():
    good, other = say(SENTENCES[0], "Mia").waveform, say(SENTENCES[1], "Tom").waveform

    def load(name):
        return evaluate.load(str(ROOT / "eval/metrics" / name))

    found = load("speech_health").compute(
        predictions=[good, good[:9000]], references=SENTENCES[:1] * 2, sampling_rate=SAMPLING_RATE
    )
    assert found["clipped"] == 0 and found["defective"] == found["truncated"] == 0.5
    found = load("speech_latency").compute(chunk_times=[[0.5, 1.2]], chunk_seconds=[[0.4, 0.6]])
    assert found["underruns_median"] == 1 and found["time_to_first_audio_p95"] == 0.5
    found = load("spoken_answer").compute(predictions=["it is in the kitchen"], references=["the kitchen"])
    assert found == {"answer_heard": 1.0, "character_error_rate": pytest.approx(9 / 11)}
    found = load("speaker_similarity").compute(predictions=[good, good], references=[good, other])
    assert 0.5 < found["cosine"] < 0.99
    fast = say(SENTENCES[0], "Mia", rate=230).waveform
    found = load("prosody").compute(
        predictions=[fast, fast], references=[good, good], texts=SENTENCES[:1] * 2, controls=["speed", "speed"],
        asked=["fast", "slow"], sampling_rate=SAMPLING_RATE,
    )  # fmt: skip
    assert found == {"sign_accuracy": 0.5}


def test_the_command_says_what_is_wrong_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["eval.voice", "--waveforms", str(tmp_path)])
    with pytest.raises(SystemExit, match="eval.voice: there is no .*metadata.jsonl"):
        main()
