"""training.speech: rows to tensors, the objective, and whole runs."""

import functools
import json
import os
import socket
import sys
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from accelerate.utils import DistributedType
from conftest import DECODER_MODE, ROOT, make_config, write_small_checkpoint
from eagle.configuration_eagle import EagleSpeechConfig
from eagle.generation_eagle import Speaker
from eagle.modeling_eagle import EagleForConditionalGeneration
from eagle.speech_eagle import EagleSpeechDecoder, EagleSpeechProjector
from safetensors.torch import load_file
from test_distributed import launch_environment, meet, shard_by_accelerate
from test_speech_eagle import TINY
from transformers import AutoProcessor

from training import speech
from training.discriminators import Discriminator, feature_loss, judges_loss, pleasing_loss
from training.shards import SCHEMA, encode_audio, read_rows
from training.synthesis import speaking
from training.synthesis.expressive_speech import LABELS
from training.synthesis.voices import VOICES

PROCESSOR = AutoProcessor.from_pretrained(ROOT, trust_remote_code=True)
SPEECH = TINY | {"sampling_rate": 16_000, "duration_predictor_dropout": 0.0, "hidden_dropout": 0.0, "attention_dropout": 0.0}
SETTINGS = {
    "data": {"speaking": {"path": "world:speaking", "weight": 2}, "fact": {"path": "world:fact", "weight": 1}},
    "rates": {"speech_decoder": 0.001, "speech_projector": 0.001, "language_model": 0.001},
    "max_steps": 4, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "bf16": False,
    "activation_checkpointing": False, "logging_steps": 1, "save_steps": 2, "report_to": "none", "slice_frames": 16,
    "lr_scheduler_type": "constant",
}  # fmt: skip
RECIPES = sorted((ROOT / "training" / "recipes" / "speech").glob("*.yaml"))


def collator(**changes):
    return speech.SpeechCollator(PROCESSOR, EagleSpeechConfig(**SPEECH | changes))


def batch_of(vocoder_type, count=3):
    return collator(vocoder_type=vocoder_type)([speaking.make("train", i) for i in range(count)])


@pytest.fixture(params=["hifigan", "istft"])
def parts(request):
    """Decoder, projector and one batch with hidden states for it."""
    torch.manual_seed(0)
    config = EagleSpeechConfig(**SPEECH, vocoder_type=request.param)
    batch = batch_of(request.param)
    return EagleSpeechDecoder(config), EagleSpeechProjector(24, config), torch.randn(*batch["input_ids"].shape, 24), batch


# Rows to tensors


class Recorder:
    """Stands where a model stands for a Speaker, and keeps what is to be said."""

    config = EagleSpeechConfig()

    def __init__(self):
        self.said = []

    def speech_projector(self, states):
        return states

    @property
    def speech_decoder(self):
        return self

    def extend(self, state, states, characters, is_last):
        self.said.append((states.flatten().tolist(), characters.tolist()))

    def render(self, state, frames):
        return None


@pytest.mark.parametrize("text", [
    "the code is K7 4Q, and the price $3.50 for the old lamp. " * 3,
    "[laugh] yes", "", "no",
    'well <|tool_call|>{"name": "open", "arguments": {"door": "hall"}}<|/tool_call|>', "😀",
])  # fmt: skip
def test_training_hears_what_speaking_says(text):
    tokens = [*PROCESSOR.tokenizer(text, add_special_tokens=False).input_ids, PROCESSOR.tokenizer.eos_token_id]
    recorder = Recorder()
    speaker = Speaker(recorder, {"voice": torch.zeros(1)}, PROCESSOR.tokenizer, None)
    for number, token in enumerate(tokens):
        list(speaker.add(token, torch.tensor([float(number)])))
    list(speaker.finish())
    characters, owners, segments = collator().characters(tokens)
    assert characters == [c for _, part in recorder.said for c in part]
    assert owners == [int(o) for part, _ in recorder.said for o in part]
    assert segments == [i for i, (_, part) in enumerate(recorder.said) for _ in part]


def test_positions_are_those_that_predict_the_tokens():
    features = collator().features(speaking.make("train", 0))
    tokens = features["input_ids"][features["speech_positions"] + 1]
    assert (features["labels"][features["speech_positions"] + 1] != -100).all()
    words = PROCESSOR.tokenizer.decode(tokens.unique_consecutive())
    assert words.replace("<|end|>", "").strip() == speaking.make("train", 0)["messages"][-1]["content"][0]["text"]
    assert len(features["speech_waveform"]) % 64 == 0


def test_other_rates_are_resampled():
    row = speaking.make("train", 0)
    fast = row | {"speech": {"bytes": encode_audio(np.repeat(row["speech"], 2), 32_000), "path": None}}
    a, b = (collator().features(each)["speech_waveform"] for each in (row, fast))
    assert abs(len(a) - len(b)) <= 64


def test_shards_hold_what_the_skill_draws(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["speaking", "--rows", "3", "--processes", "1", "--output", str(tmp_path / "rows")])
    speaking.main()
    rows = list(read_rows(tmp_path / "rows"))
    assert len(rows) == 3
    for i, row in enumerate(rows):
        drawn, read = (collator().features(each) for each in (speaking.make("train", f"0/{i}"), row))
        assert drawn.keys() == read.keys()
        for name, tensor in drawn.items():
            torch.testing.assert_close(read[name], tensor, atol=1e-4, rtol=0)  # FLAC of 16 bits


@pytest.mark.parametrize(
    "meta, message",
    [
        ({"voice": "Bob"}, "unknown voice 'Bob'; known: Chris"),
        ({"voice": "Mia", "emotion": "angry"}, "unknown emotion 'angry'; known: neutral"),
    ],
)
def test_rows_that_cannot_be(meta, message):
    with pytest.raises(ValueError, match=message):
        collator().features(speaking.make("train", 0) | {"meta": meta})
    silent = speaking.make("train", 0)
    silent["messages"][-1]["content"][0]["text"] = "?!"
    with pytest.raises(ValueError, match="nothing to say, but the row has speech"):
        collator().features(silent)
    with pytest.raises(ValueError, match="characters are said in 3 frames"):
        collator().features(speaking.make("train", 0) | {"speech": np.ones(64 * 3, np.float32)})


def test_what_meta_leaves_out():
    assert collator().choice({}) == [-1, 0, 1, 1]
    assert collator().choice({"voice": "Emma", "emotion": "sad", "speed": 1.25, "volume": 0.4}) == [3, 2, 2, 0]


# The objective


def test_segments_are_read_as_when_speaking(parts):
    decoder, projector, hidden, batch = parts
    decoder.eval()
    voice, style = decoder.voice_emb.weight[:3], decoder.style_emb.weight[:3]
    states = projector(hidden[batch["speech_rows"][:, None], batch["speech_positions"]])
    mean, _, durations = speech.prior_of_segments(decoder, states, batch, voice, style)
    decoder.config.noise_scale = 0.0
    for i in range(3):
        state = decoder.start(voice[i]) | {"style": style[i : i + 1]}
        length = int(batch["speech_lengths"][i])
        segments = batch["speech_segments"][i, :length]
        for segment in segments.unique():
            chosen = segments == segment
            begin = state["prior"].shape[2]
            decoder.extend(state, states[i, :length][chosen], batch["speech_characters"][i, :length][chosen])
            ends = durations[i, :length][chosen].exp().cumsum(0).round().long().clamp(min=1)
            expected = mean[i, :length][chosen].repeat_interleave(ends.diff(prepend=ends.new_zeros(1)), dim=0)
            torch.testing.assert_close(state["prior"][0, :, begin:].T, expected, atol=1e-4, rtol=1e-4)


def test_the_alignment_finds_who_says_what():
    generator = torch.Generator().manual_seed(0)
    mean = 3 * torch.randn(2, 5, 8, generator=generator)
    durations = torch.tensor([[3, 1, 4, 2, 6], [2, 5, 1, 0, 0]])
    contents = [mean[i].repeat_interleave(durations[i], dim=0) for i in range(2)]
    content = torch.nn.utils.rnn.pad_sequence(contents, batch_first=True).mT
    content = content + 0.1 * torch.randn(content.shape, generator=generator)
    path = speech.alignment(content, mean, torch.zeros_like(mean), torch.tensor([5, 3]), durations.sum(1))
    assert torch.equal(path.sum(-1).long(), durations)


def test_losses_fall(parts):
    decoder, projector, hidden, batch = parts
    decoder.train()
    optimizer = torch.optim.Adam([*decoder.parameters(), *projector.parameters()], 2e-3)
    history = []
    for _ in range(12):
        losses = speech.speak(decoder, projector, hidden, batch, slice_frames=16).losses
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({name: loss.item() for name, loss in losses.items()})
    for name in history[0]:
        first, last = (np.mean([entry[name] for entry in part]) for part in (history[:3], history[-3:]))
        assert last < first, name


def test_padding_of_speech_changes_nothing(parts):
    """But for the samples around an answer's end, which the last window sees."""
    decoder, projector, hidden, batch = parts
    decoder.eval()
    rows = [speaking.make("train", i) for i in range(3)]
    kind = decoder.config.vocoder_type
    alone = collator(vocoder_type=kind)(rows[:1])
    choice = torch.tensor([[0, 0, 1, 1]])
    results = []
    for part in (batch, alone):
        waveform = part["speech_waveform"][:1]
        states = projector(hidden[part["speech_rows"][:1, None], part["speech_positions"][:1]])
        inputs = {name: part[name][:1] for name in ("speech_segments", "speech_lengths", "speech_characters")}
        prior = speech.prior_of_segments(decoder, states, inputs, decoder.voice_emb(choice[:, 0]), decoder.style(*choice[:, 1:].T))
        results.append([x[:, : int(part["speech_lengths"][0])] for x in prior] + [waveform[:, : len(alone["speech_waveform"][0])]])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_the_judges_learn_to_tell_and_to_be_pleased():
    """Their size as HiFi-GAN's, and one step of each side at full size."""
    torch.manual_seed(0)
    judges, real, fake = Discriminator(), 0.1 * torch.randn(1, 1, 512), torch.zeros(1, 1, 512, requires_grad=True)
    assert sum(p.numel() for p in judges.parameters()) == 46_747_132
    optimizer, losses = torch.optim.AdamW(judges.parameters(), 1e-4), []
    for _ in range(3):
        losses.append(judges_loss(judges(real), judges(fake.detach())))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    scores = [torch.stack([features[-1].mean() for features in judges(x)]) for x in (real, fake)]
    assert (scores[0] > scores[1]).all()
    loss = pleasing_loss(judges(fake)) + feature_loss(judges(real), judges(fake))
    loss.backward()
    better = fake.detach() - 1e-3 * fake.grad.sign()
    assert pleasing_loss(judges(better)) + feature_loss(judges(real), judges(better)) < loss
    assert feature_loss(judges(real), judges(real)) == 0


def test_the_decoder_knows_what_the_small_world_speaks_with():
    config = EagleSpeechConfig()
    assert list(config.voices) == list(VOICES) and list(config.emotions) == list(LABELS["emotion"])
    assert (config.speeds, config.volumes) == (speaking.SPEEDS, speaking.VOLUMES)


def test_slices():
    x = torch.arange(20.0).reshape(2, 1, 10)
    assert speech.sliced(x, torch.tensor([2, 8]), 4).tolist() == [[[2, 3, 4, 5]], [[18, 19, 0, 0]]]


# Whole runs


@pytest.fixture(scope="module", params=["hifigan", "istft"])
def checkpoint(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return write_small_checkpoint(folder, {"model_type": "eagle_speech", **SPEECH, "vocoder_type": request.param})


@pytest.fixture
def train(checkpoint, tmp_path, monkeypatch):
    """Runs training.speech; returns the folder of the run."""
    monkeypatch.setattr(speech, "Discriminator", small_judges)  # real, but one of six: see there

    def run(name="run", **fields):
        settings = SETTINGS | {"model": str(checkpoint), "output_dir": str(tmp_path / name)} | fields
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
        monkeypatch.setattr(sys, "argv", ["speech", "--config", str(tmp_path / "recipe.yaml")])
        speech.main()
        return tmp_path / name

    return run


def small_judges():
    """One of the judges: a checkpoint of all six is 560 MB, and a run here writes several. All six: the test before."""
    judges = Discriminator()
    del judges[1:]
    return judges


def logged(folder):
    state = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))[-1] / "trainer_state.json"
    return {entry["step"]: entry["loss"] for entry in json.loads(state.read_text())["log_history"] if "loss" in entry}


def test_a_run_that_goes_on_is_the_run(train):
    whole = train("whole")
    train("parts", max_steps=2, save_steps=2)
    parts = train("parts")
    assert logged(parts) == pytest.approx(logged(whole), rel=1e-3)
    a, b = (load_file(folder / "model.safetensors") for folder in (whole, parts))
    assert a.keys() == b.keys() and any(name.startswith("speech_decoder.") for name in a)
    for name, weight in a.items():
        torch.testing.assert_close(weight, b[name], atol=2e-3, rtol=1e-2)
    is_judged = json.loads((whole / "config.json").read_text())["speech_config"]["vocoder_type"] == "hifigan"
    judges = [folder / "checkpoint-4" / "discriminator.pt" for folder in (whole, parts)]
    assert [file.exists() for file in judges] == [is_judged] * 2
    if is_judged:
        a, b = (torch.load(file, weights_only=True)[0] for file in judges)
        assert max((weight - b[name]).abs().mean() for name, weight in a.items()) < 1e-6, "their optimizer goes on too"


def test_in_bfloat16(train):
    folder = train(bf16=True, max_steps=2)
    assert all(np.isfinite(loss) for loss in logged(folder).values())


def test_a_model_without_a_decoder(small_checkpoint, tmp_path, monkeypatch):
    arguments = ["--config", str(RECIPES[-1]), "--model", str(small_checkpoint), "--output_dir", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["speech", *arguments])
    with pytest.raises(ValueError, match="has no speech decoder; training/assemble.py gives it one"):
        speech.main()


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_a_recipe_runs_a_step(path, tmp_path, monkeypatch):
    """As it stands, but for the model, the number of rows and what lies in its folders of data."""
    monkeypatch.setattr(speech, "Discriminator", small_judges)
    recipe = yaml.safe_load(path.read_text())
    rows = [speaking.draw("train", 0, i) for i in range(2)]
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), tmp_path / "said.parquet")
    for source in recipe["data"].values():
        source["path"] = source["path"] if source["path"].startswith("world:") else str(tmp_path / "said.parquet")
    kind = {"tiny": "istft", "full": "hifigan"}[path.stem]
    decoder = {"model_type": "eagle_speech", **SPEECH, "vocoder_type": kind}
    model = write_small_checkpoint(tmp_path / "model", decoder, tie_word_embeddings="lm_head" not in recipe["rates"])
    recipe |= {"model": str(model), "output_dir": str(tmp_path / "run"), "max_steps": 1, "save_steps": 1, "report_to": "none"}
    recipe |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "dataloader_num_workers": 0}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.setattr(sys, "argv", ["speech", "--config", str(tmp_path / "recipe.yaml")])
    speech.main()
    assert all(weight.isfinite().all() for weight in load_file(tmp_path / "run" / "model.safetensors").values())


# Several processes


def test_a_batch_without_speech_asks_the_decoder_for_nothing(train, monkeypatch):
    monkeypatch.setattr(speech, "speak", lambda *_: pytest.fail("the decoder was asked"))
    folder = train(data={"fact": {"path": "world:fact", "weight": 1}}, max_steps=1, save_steps=1)
    assert np.isfinite(list(logged(folder).values())).all()


class Compared(speech.SpeechTrainer):
    """Says, once trained, whether both processes hold the same weights, and how many batches had speech."""

    spoken = 0

    def compute_loss(self, model, inputs, *args, **kwargs):
        self.spoken += "speech_rows" in inputs
        return super().compute_loss(model, inputs, *args, **kwargs)

    def save_result(self):
        for module in filter(None, (self.model, self.judges)):
            for weight in module.parameters():
                both = self.accelerator.gather(weight.data[None])
                assert torch.equal(both[0], both[1])
        counts = self.accelerator.gather(torch.tensor([self.spoken])).tolist()
        assert max(counts) > min(counts), "in some step one process had speech and the other none"
        super().save_result()


def in_two(rank, recipe, port):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    speech.SpeechTrainer, speech.Discriminator = Compared, small_judges
    sys.argv = ["speech", "--config", recipe]
    speech.main()


@pytest.mark.slow
def test_two_processes_keep_the_same_weights(checkpoint, tmp_path):
    data = {"speaking": {"path": "world:speaking", "weight": 1}, "fact": {"path": "world:fact", "weight": 1}}
    settings = SETTINGS | {"model": str(checkpoint), "output_dir": str(tmp_path / "run"), "data": data, "save_steps": 3}
    settings |= {"lanes": 2, "together": 1}  # so that each draws sources of its own
    for steps in (3, 6):  # the second run goes on
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings | {"max_steps": steps}))
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        torch.multiprocessing.spawn(in_two, (str(tmp_path / "recipe.yaml"), port), nprocs=2)
    entries = json.loads((tmp_path / "run" / "checkpoint-6" / "trainer_state.json").read_text())["log_history"]
    assert sum("likelihood_loss" in entry for entry in entries) > 1 and all(np.isfinite(e["loss"]) for e in entries if "loss" in e)


def speaking_model(kind):
    torch.manual_seed(0)
    config = make_config(**DECODER_MODE, speech_config={"model_type": "eagle_speech", **SPEECH, "vocoder_type": kind})
    model = EagleForConditionalGeneration(config).train()
    model.speech_decoder.forward = functools.partial(speech.speak, model.speech_decoder)
    return model


def spoken_loss(model, batch, number):
    hidden = model(input_ids=batch["input_ids"], output_hidden_states=True).hidden_states[-1]
    torch.manual_seed(number)  # of the slices
    speech_batch = {name: value for name, value in batch.items() if name.startswith("speech_")}
    return sum(model.speech_decoder(model.speech_projector, hidden, speech_batch, 16).losses.values())


def sharded(rank, kind, folder):
    batches = [batch_of(kind, 1), collator(vocoder_type=kind)([speaking.make("train", 9)])]
    batches = [batch | {"input_ids": batch["input_ids"] % 10 + 50} for batch in batches]
    model = speaking_model(kind)
    losses = [spoken_loss(model, batch, i) for i, batch in enumerate(batches)]
    (sum(losses) / 2).backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    meet(rank, folder)
    os.environ |= launch_environment("speech.yaml")
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    model = shard_by_accelerate(speaking_model(kind))
    assert all(hasattr(parameter, "full_tensor") for parameter in model.parameters())
    loss = spoken_loss(model, batches[rank], rank)
    torch.testing.assert_close(loss, losses[rank])
    loss.backward()
    for name, parameter in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad.full_tensor(), expected[name], atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("checkpointing, precision", [(True, "no"), (False, "bf16")])
def test_shards_on_which_the_objective_would_be_wrong(checkpointing, precision):
    plugin = SimpleNamespace(activation_checkpointing=checkpointing)
    state = {"distributed_type": DistributedType.FSDP, "mixed_precision": precision, "state": SimpleNamespace(fsdp_plugin=plugin)}
    with pytest.raises(ValueError, match=f"training/launch/speech.yaml.*found activation checkpointing {checkpointing}, .* {precision}"):
        speech.check_engine(SimpleNamespace(**state))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hifigan", "istft"])
def test_the_objective_on_shards_is_the_objective(kind, tmp_path):
    torch.multiprocessing.spawn(sharded, (kind, tmp_path), nprocs=2)
