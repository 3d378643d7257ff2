"""eval.judge_speech: the judge learns, and compares a model's speech with real speech."""

import json
import sys

import numpy as np
import pytest
import torch
from conftest import write_small_checkpoint
from test_speech_eagle import TINY as SPEECH

from eval import judge_speech
from training.synthesis import speaking

ROWS = [speaking.make("train", f"judged/{i}") for i in range(4)]


def test_the_judge_learns():
    torch.manual_seed(0)
    judge = judge_speech.Judge()
    optimizer = torch.optim.AdamW(judge.parameters(), 2e-3)
    losses = []
    for _ in range(8):
        loss = judge_speech.loss_of(judge, ROWS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_loudness_and_what_follows_a_recording_are_no_clue():
    torch.manual_seed(0)
    judge = judge_speech.Judge().eval()
    waveform = ROWS[0]["speech"]
    with torch.inference_mode():
        alone = judge(*judge_speech.inputs_of([waveform]))[1]
        quiet = judge(*judge_speech.inputs_of([waveform / 8]))[1]
    torch.testing.assert_close(alone, quiet, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "text, words",
    [("the code is K7", "the code is k seven"), ("well [cough] yes", "well yes"), ("forty-two", "forty two"), ("17", "seventeen")],
)
def test_words_of_a_row(text, words):
    assert judge_speech.words_of({"messages": [{"content": [{"text": text}]}]}) == words


def test_results():
    heard = {"voice": "Mia", "emotion": "sad", "words": "the lamp"}
    entry = {"words": "the lamp", "voice": "Mia", "emotion": "sad", "speed": 1.0, "volume": 0.5, "longer": 1.1, "louder": 0.9}
    found = [entry | {"real": heard, "ours": heard}, entry | {"real": heard, "ours": heard | {"words": "the cat", "voice": "Tom"}}]
    results = judge_speech.results_of(found)
    assert results["real: word error rate"]["value"] == 0 and results["ours: word error rate"]["value"] == 0.25
    assert results["ours: voice recognised"]["value"] == 0.5 and results["ours: emotion recognised"]["value"] == 1
    assert results["longer than real at speed 1"]["value"] == pytest.approx(1.1)
    assert results["louder than real at volume 0.5"]["value"] == pytest.approx(0.9)


def test_whole_runs(tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["judge_speech", *map(str, arguments)])
        judge_speech.main()

    model = write_small_checkpoint(tmp_path / "model", {"model_type": "eagle_speech", **SPEECH, "sampling_rate": 16_000})
    run("train", "--steps", 2, "--batch-size", 2, "--output", tmp_path / "judge")
    run("score", "--judge", tmp_path / "judge", "--model", model, "--count", 3, "--output", tmp_path / "out")
    assert "ours: word error rate" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(found["answers"]) == 3 and set(found["answers"][0]["ours"]) == {"words", "voice", "emotion"}
    assert (tmp_path / "out" / "spectrograms.png").stat().st_size > 10_000
    assert np.isfinite([entry["value"] for entry in found["results"].values()]).all()
