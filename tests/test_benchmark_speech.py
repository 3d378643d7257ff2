"""eval.benchmark_speech runs; its figures are for a quiet machine."""

import re
import sys

import pytest
import soundfile
from conftest import write_small_checkpoint
from test_speech_eagle import TINY as SPEECH

from eval import benchmark_speech
from training.synthesis.voices import SAMPLING_RATE, say


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["benchmark_speech", *map(str, arguments)])
    benchmark_speech.main()


@pytest.mark.slow
def test_the_decoder_beside_vits(monkeypatch, capsys):
    run(monkeypatch, "decoder", "--rounds", 1, "--seconds", 2)
    out = capsys.readouterr().out
    seconds = [float(found) for found in re.findall(r"\| [\d,]+ \| (\d+\.\d) \|", out)]
    assert len(seconds) == 2 and seconds == pytest.approx([2, 2], rel=0.1), out  # both say as much
    assert "| EAGLE-A's decoder | 113,098,915 |" in out and re.search(r"first chunk of 0.28 s: \d", out)


def test_a_model_from_question_to_sound(monkeypatch, capsys, tmp_path):
    model = write_small_checkpoint(tmp_path / "model", {"model_type": "eagle_speech", **SPEECH})
    soundfile.write(tmp_path / "question.wav", say("where is the lamp", "Emma").waveform, SAMPLING_RATE)
    run(monkeypatch, "model", "--model", model, "--question", tmp_path / "question.wav", "--minutes", 0.01, "--rounds", 1)
    assert re.search(r"to the first sound: \d.*\n\d+ s of speech: \d+ waits in \d+ chunks", capsys.readouterr().out)
