"""training.sft for real: what trains, kills, faults, LoRA, the report. On a checkpoint that takes a second a step."""

import base64
import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForMultimodalLM, AutoProcessor
from transformers.trainer_pt_utils import LabelSmoother
from trl import TrlParser

from training import qat, sft
from training.collator import EagleCollator
from training.encode import encode_source
from training.merge import merge
from training.shards import SCHEMA, encode_row
from training.synthesis import samples
from training.trainer import check_machine

ROOT = Path(__file__).parents[1]
RATES = {"language_model": 0.01, "multi_modal_projector": 0.01, "audio_projector": 0.01}


@pytest.fixture
def recipe(small_checkpoint, tmp_path):
    """The factory of recipe files: a short run of two skills, changed by the given fields."""

    def write(**fields):
        settings = {
            "model": str(small_checkpoint),
            "output_dir": str(tmp_path / "run"),
            "data": {"spoken_picture": {"path": "world:spoken_picture", "weight": 1}, "fact": {"path": "world:fact", "weight": 1}},
            "rates": RATES,
            "max_steps": 4,
            "per_device_train_batch_size": 2,
            "bf16": True,
            "activation_checkpointing": False,
            "logging_steps": 1,
            "save_steps": 2,
            "save_total_limit": 2,
            "report_to": "none",
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(settings | fields))
        return path

    return write


@pytest.fixture
def train(recipe, monkeypatch, tmp_path):
    """Runs training.sft in this process; returns the folder of the run."""

    def run(*arguments, **fields):
        monkeypatch.setattr(sys, "argv", ["sft", "--config", str(recipe(**fields)), *arguments])
        sft.main()
        return tmp_path / "run"

    return run


def losses(folder):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: (entry["loss"], entry["grad_norm"]) for entry in history if "loss" in entry}


def weights(folder):
    return load_file(folder / "model.safetensors")


def changed_modules(before, after):
    return {".".join(name.split(".")[1:3]) for name in before if not torch.equal(before[name], after[name])}


# --- what trains ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("muon", [True, False])
def test_the_named_modules_train_at_their_rates_and_nothing_else(muon, train, small_checkpoint):
    rates = {"language_model": 0.01, "language_model.embed_tokens": 0.0, "audio_projector": 0.01}
    data = {"spoken_picture": {"path": "world:spoken_picture", "weight": 1}}
    run = train(rates=rates, muon=muon, data=data, max_steps=2)
    assert weights(run).keys() == weights(small_checkpoint).keys()  # a tied head is not written beside the embedding
    changed = changed_modules(weights(small_checkpoint), weights(run))
    assert changed == {"language_model.layers", "language_model.norm", "audio_projector.linear_1", "audio_projector.linear_2"} | {
        f"audio_projector.{name}" for name in ("ln_pre", "ln_mid") if f"audio_projector.{name}" in changed
    }
    loaded = AutoModelForMultimodalLM.from_pretrained(run, trust_remote_code=True)
    assert loaded.dtype == torch.bfloat16 and AutoProcessor.from_pretrained(run, trust_remote_code=True)


def test_all_that_trains_gets_a_gradient(small_checkpoint):
    model = AutoModelForMultimodalLM.from_pretrained(small_checkpoint, trust_remote_code=True, dtype=torch.float32)
    parts = ("vision_tower", "audio_tower", "multi_modal_projector", "audio_projector", "language_model")
    sft.freeze(model, dict.fromkeys(parts, 0.1))
    collator = EagleCollator(AutoProcessor.from_pretrained(small_checkpoint, trust_remote_code=True))
    row = next(r for r in (samples.make("spoken_picture", "train", i) for i in range(9)) if len(r["images"]) == 1)
    model(**collator([row])).loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == trained
    assert {name.split(".")[1] for name in trained} == set(parts)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_models_own_over_the_labelled_tokens(smoothing, recipe):
    path = recipe(bf16=False, label_smoothing_factor=smoothing)
    arguments, config = TrlParser((sft.EagleArguments, sft.EagleSFTConfig)).parse_args_and_config(["--config", str(path)])
    collator, mixture = sft.load_data(arguments, config)
    trainer = sft.load_trainer(arguments, config, collator, mixture.rows)
    trainer.model.train()
    batch = collator(mixture.batch(0))
    outputs = trainer.model(**batch)
    logits, labels = outputs.logits[:, :-1], batch["labels"][:, 1:]
    expected = outputs.loss.item() if not smoothing else LabelSmoother(smoothing)({"logits": logits}, labels).item()
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(expected, rel=1e-5)
    right = (logits.argmax(-1) == labels)[labels != -100].float().mean().item()
    assert trainer._metrics["train"]["mean_token_accuracy"] == [pytest.approx(right)]
    assert trainer._metrics["train"]["num_tokens"] == [batch["attention_mask"].sum()]


def test_decay_leaves_norms_and_embeddings_alone(train):
    run = train(rates={"language_model": 0.001}, weight_decay=0.5, max_steps=2)
    groups = torch.load(run / "checkpoint-2" / "optimizer.pt", weights_only=True)["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]
    assert [len(group["params"]) for group in groups] == [4, 4]  # qkv, o, gate_up, down; embedding and three norms


def test_the_loss_hears_the_sound_and_sees_the_picture(train):
    run = train(max_steps=2, rates={"audio_projector": 0.01, "multi_modal_projector": 0.01}, data={
        "spoken_picture": {"path": "world:spoken_picture", "weight": 1}})  # fmt: skip
    assert all(norm > 0 for _, norm in losses(run / "checkpoint-2").values())
    state = torch.load(run / "checkpoint-2" / "optimizer.pt", weights_only=True)["state"]
    trained = [name for name in weights(run) if "projector" in name]
    assert len(state) == len(trained) and all(entry["exp_avg"].abs().sum() > 0 for entry in state.values())


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"rates": {"vision_towel": 0.1}}, "trains 'vision_towel', but the model has vision_tower, multi_modal_projector"),
        ({"rates": {"lm_head": 0.1}}, "lm_head is tied to language_model.embed_tokens"),
        ({"max_steps": -1}, "max_steps is -1; a mixture has no end"),
        ({"quantization": "int3"}, "unknown format 'int3'"),
        ({"lora": {"rank": 8}}, r"`lora` has the fields \['rank'\]; it takes r, alpha and dropout"),
        ({"load_in_4bit": True}, "nothing would train; give `lora`"),
        ({"data": {"d": {"path": "none/", "weight": 1}}}, "no Parquet file at 'none/'"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_said_at_once(fields, message, train):
    with pytest.raises(ValueError, match=message):
        train(**fields)


def test_unknown_fields_are_errors_and_the_command_line_overrides(train, tmp_path):
    with pytest.raises((ValueError, SystemExit)):
        train(wamup_steps=3)
    with pytest.raises((ValueError, SystemExit)):
        train("--wamup_steps", "3")
    data = {"fact": {"path": "world:fact", "weight": 1}}
    run = train("--max_steps", "2", "--data", json.dumps(data), "--rates", '{"language_model.norm": 0.1}')
    assert max(losses(run / "checkpoint-2")) == 2
    card = yaml.safe_load((run / "README.md").read_text().split("```")[1].removeprefix("yaml"))
    assert card["data"] == data and card["rates"] == {"language_model.norm": 0.1}


# --- kills and faults -----------------------------------------------------------------------------------------------------


def sft_process(path, environment=None, **options):
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {})
    command = [sys.executable, "-m", "training.sft", "--config", str(path)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_losses(recipe, tmp_path):
    options = {"max_steps": 9, "save_steps": 3, "muon": True}
    whole = sft_process(recipe(**options, output_dir=str(tmp_path / "whole")))
    assert whole.wait(300) == 0, whole.stderr.read()[-3000:]
    path = recipe(**options)
    for wanted in (3, 6):  # killed once after each checkpoint, while it writes or computes
        process = sft_process(path)
        while not (tmp_path / "run" / f"checkpoint-{wanted}").exists() and process.poll() is None:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        (tmp_path / "run" / ".unfinished" / "checkpoint-7").mkdir(parents=True, exist_ok=True)  # as one killed while saving
    last = sft_process(path)
    assert last.wait(300) == 0, last.stderr.read()[-3000:]
    expected, got = (losses(tmp_path / name / "checkpoint-9") for name in ("whole", "run"))
    # Equal to the last bit as a rule, but kernels round by where their memory lies; another batch is another loss altogether.
    assert set(got) == set(range(1, 10)) and all(got[step] == pytest.approx(expected[step], rel=1e-3) for step in got)
    assert not (tmp_path / "run" / ".unfinished").exists()
    whole = weights(tmp_path / "whole")
    assert all(torch.allclose(w.float(), whole[name].float(), atol=1e-2) for name, w in weights(tmp_path / "run").items())


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(train, small_checkpoint, tmp_path):
    rates = {"language_model": 1e30}  # of which the first step of the warm-up takes nothing
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step \d; the last good checkpoint is .*checkpoint-\d"):
        train(max_steps=6, rates=rates, lr_scheduler_type="constant_with_warmup", warmup_steps=1, save_steps=1)
    start = weights(small_checkpoint)
    assert all(torch.equal(w, start[name]) for name, w in weights(tmp_path / "run" / "checkpoint-1").items())
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_weights_that_are_no_numbers_are_not_saved(train, tmp_path):
    with pytest.raises(FloatingPointError, match=r"holds NaN or infinite values after step 1; not saved"):
        train(rates={"language_model": math.inf}, save_steps=1)
    assert not list((tmp_path / "run").glob("checkpoint-*"))


@pytest.mark.slow
def test_a_disk_that_fills_up_leaves_nothing_half_written(recipe, tmp_path):
    size = (Path(yaml.safe_load(recipe().read_text())["model"]) / "model.safetensors").stat().st_size

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

    process = sft_process(recipe(), preexec_fn=limit)
    assert process.wait(300) != 0 and "File too large" in process.stderr.read()
    assert not list((tmp_path / "run").glob("checkpoint-*")) and not (tmp_path / "run" / "model.safetensors").exists()


def test_too_little_room_on_the_disk_is_said_before_training(train):
    with pytest.raises(OSError, match=r"GB free, but 1000000001 checkpoints take .* GB; make room"):
        train(save_total_limit=10**9)


def test_a_run_goes_on_longer_but_not_with_other_settings(train):
    run = train(max_steps=2)
    with pytest.raises(ValueError, match=r"begun with other settings: rates.language_model 0.01, now 0.02; seed 42, now 1"):
        train(max_steps=3, rates=RATES | {"language_model": 0.02}, seed=1)
    (run / "settings.json").write_text((run / "settings.json").read_text().replace('"model.safetensors": "', '"model.safetensors": "0'))
    with pytest.raises(ValueError, match=r"begun with other settings: files.model.safetensors '0"):
        train(max_steps=3)
    (run / "settings.json").unlink()
    history = json.loads((run / "checkpoint-2" / "trainer_state.json").read_text())
    history["log_history"][-1]["seconds"] += 3600
    (run / "checkpoint-2" / "trainer_state.json").write_text(json.dumps(history))
    train(max_steps=3)
    entry = json.loads((run / "checkpoint-3" / "trainer_state.json").read_text())["log_history"][-1]
    assert entry["step"] == 3 and 3600 <= entry["seconds"] < 7200


def test_an_earlier_stage_that_is_missing_is_named(train):
    with pytest.raises(FileNotFoundError, match="no checkpoint at 'runs/nowhere', which an earlier stage writes"):
        train(model="runs/nowhere")


def parameters(count: float) -> torch.nn.Module:
    """A model of so many trained parameters, of which none takes memory."""
    return torch.nn.Linear(int(count), 1, bias=False, device="meta")


def test_a_run_that_goes_on_needs_no_more_room_for_the_checkpoints_it_has(tmp_path):
    args = sft.EagleSFTConfig(str(tmp_path), max_steps=1, save_total_limit=2)
    model = parameters(shutil.disk_usage(tmp_path).free / 2 / 4).requires_grad_(False)  # a checkpoint takes half of the room
    with pytest.raises(OSError, match="3 checkpoints take"):
        check_machine(model, args, sharded=False)
    for step in (1, 2):
        (tmp_path / f"checkpoint-{step}").mkdir()
    check_machine(model, args, sharded=False)


def test_too_little_memory_is_said_before_training(tmp_path, monkeypatch):
    args = sft.EagleSFTConfig(str(tmp_path), max_steps=1, save_strategy="no")
    model = parameters(psutil.virtual_memory().available * 0.7 / 12)
    check_machine(model, args, sharded=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # as torchrun sets it for two processes of a machine: both read it like this
    with pytest.raises(MemoryError, match="GB of memory are free, but gradients and optimizer"):
        check_machine(model, args, sharded=False)


def test_bad_rows_are_reported(train, tmp_path):
    rows = [encode_row(samples.make("sign", "train", i), str(i), "world", "apache-2.0") for i in range(4)]
    rows[1]["images"][0]["bytes"] = b"no picture"
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), tmp_path / "d.parquet")
    data = {"d": {"path": str(tmp_path / "d.parquet"), "weight": 1}}
    with pytest.raises(ValueError, match="bad rows: 1, but max_bad_rows is 0"):
        train(data=data)
    run = train(data=data, max_bad_rows=1)
    assert "Rows that could not be read: 1." in (run / "README.md").read_text()


# --- LoRA, encoded rows, the report ---------------------------------------------------------------------------------------


def test_lora_saves_reloads_and_merges(train, small_checkpoint, tmp_path):
    run = train(lora={"r": 8, "alpha": 16, "dropout": 0.0}, muon=False)
    saved = load_file(run / "adapter_model.safetensors")
    for part in ("multi_modal_projector", "audio_projector", "qkv_proj.lora_A", "down_proj.lora_B"):
        assert any(part in name for name in saved), part
    assert not any("tower" in name or "lm_head" in name for name in saved)
    merge(run, tmp_path / "merged")
    base = AutoModelForMultimodalLM.from_pretrained(small_checkpoint, trust_remote_code=True, dtype=torch.float32)
    reloaded = PeftModel.from_pretrained(base, run).eval()
    merged = AutoModelForMultimodalLM.from_pretrained(tmp_path / "merged", trust_remote_code=True, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(tmp_path / "merged", trust_remote_code=True)
    batch = EagleCollator(processor)([samples.make("spoken_picture", "train", 1)])
    with torch.inference_mode():
        with reloaded.disable_adapter():
            untrained = reloaded(**batch).logits
        expected, got = reloaded(**batch).logits, merged(**batch).logits
    assert (expected - untrained).abs().max() > 10 * (got - expected).abs().max()
    torch.testing.assert_close(got, expected, rtol=0.02, atol=0.05)  # the merged weights are bfloat16


def test_quantization_is_seen_and_the_masters_are_saved_whole(train, small_checkpoint):
    """The first loss is that of the rounded model; bfloat16 would be rounded to other weights."""
    run = train(quantization="q4_0", bf16=False, max_steps=2, save_steps=1)
    model = AutoModelForMultimodalLM.from_pretrained(small_checkpoint, trust_remote_code=True, dtype=torch.float32)
    qat.quantize(model, "q4_0")
    arguments, config = TrlParser((sft.EagleArguments, sft.EagleSFTConfig)).parse_args_and_config(["--config", str(run.parent / "recipe.yaml")])
    collator, mixture = sft.load_data(arguments, config)
    with torch.no_grad():
        expected = model(**collator(mixture.batch(0))).loss.item()
    assert losses(run / "checkpoint-1")[1][0] == pytest.approx(expected, rel=1e-5)
    saved = weights(run)
    assert {w.dtype for w in saved.values()} == {torch.float32}
    assert any((w != w.bfloat16()).any() for w in saved.values())


def test_quantized_adapters_are_merged_into_what_was_trained(train, small_checkpoint, tmp_path):
    run = train(lora={"r": 8, "alpha": 16, "dropout": 0.0}, muon=False, quantization="q4_0")
    merge(run, tmp_path / "merged")
    base, merged = (
        AutoModelForMultimodalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
        for folder in (small_checkpoint, tmp_path / "merged")
    )
    for model in (base, merged):
        qat.quantize(model, "q4_0")
    trained = PeftModel.from_pretrained(base, run, config=qat.adapt(PeftConfig.from_pretrained(run))).eval()
    batch = EagleCollator(AutoProcessor.from_pretrained(run, trust_remote_code=True))([samples.make("spoken_picture", "train", 1)])
    with torch.inference_mode():
        assert torch.equal(trained(**batch).logits, merged(**batch).logits)


def test_encoded_rows_train_the_language_model_alone(train, small_checkpoint, tmp_path):
    model = AutoModelForMultimodalLM.from_pretrained(small_checkpoint, trust_remote_code=True, dtype=torch.float32)
    collator = EagleCollator(AutoProcessor.from_pretrained(small_checkpoint, trust_remote_code=True))
    encode_source(model, collator, "world:sentence", 1, 0, tmp_path / "encoded")
    data = {"sentence": {"path": str(tmp_path / "encoded"), "weight": 1}}
    run = train(data=data, rates={"language_model": 0.01}, max_steps=2)
    assert {name.split(".")[0] for name in changed_modules(weights(small_checkpoint), weights(run))} == {"language_model"}
    with pytest.raises(ValueError, match="trains 'audio_projector', which the encoded rows of data.sentence have behind them"):
        train(data=data, rates={"audio_projector": 0.01})
    with pytest.raises(ValueError, match=r"rounds towers and projectors \(`quantization`\), which the encoded rows of data.sentence"):
        train(data=data, rates={"language_model": 0.01}, quantization="q4_0")


def test_the_run_has_curves_and_a_card(train, tmp_path):
    run = train(report_to="tensorboard")
    card = (run / "README.md").read_text()
    assert "step 4 of 4" in card and re.search(r"1 processes, \d+\.\d minutes", card) and "path: world:fact" in card and "](curves.png)" in card
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    first, _, last = (line for line in card.splitlines() if line.startswith("| ") and line[2].isdigit())
    assert math.isclose(float(first.split("|")[2]), losses(run / "checkpoint-4")[1][0], abs_tol=0.001) and last.startswith("| 4 ")
    assert list(run.rglob("events.out.tfevents*"))


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub's interface as a commit of files takes: it keeps them in `files`."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self.path.endswith("/repos/create"):
            return self.answer({"url": f"http://{self.headers['Host']}/someone/eagle-run"})
        if "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            return self.answer({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]})
        if self.path.endswith("/validate-yaml"):
            return self.answer({"warnings": [], "errors": []})
        self.server.files.append({})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.server.files[-1][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        self.answer({"commitUrl": f"http://{self.headers['Host']}/someone/eagle-run/commit/0", "commitOid": "0" * 40, "success": True})

    def do_GET(self):
        self.answer({"id": "someone/eagle-run", "sha": "0" * 40, "siblings": []})

    def answer(self, content):
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@pytest.mark.slow
def test_checkpoints_and_the_result_are_pushed_to_the_hub(recipe, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}
    fields = {"push_to_hub": True, "hub_model_id": "someone/eagle-run", "hub_token": "hf_none", "hub_always_push": True}
    process = sft_process(recipe(**fields), environment)
    assert process.wait(300) == 0, process.stderr.read()[-3000:]
    server.shutdown()
    assert len(server.files) == 3  # two checkpoints and the result
    for commit in server.files:
        assert {"config.json", "modeling_eagle.py", "model.safetensors", "tokenizer/tokenizer.json", "README.md"} <= set(commit)
    last = server.files[-1]
    assert b"step 4 of 4" in last["README.md"] and not any("optimizer" in name for name in last)
    assert last["model.safetensors"] == (tmp_path / "run" / "model.safetensors").read_bytes()
