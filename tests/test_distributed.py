"""Training on several processes: each passes every module, shards equal the whole, the real script, the launch files.

The processes talk over gloo on this machine. What waits for a process that never comes fails after LIMIT seconds.
"""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from collections import Counter
from datetime import timedelta
from unittest.mock import patch

import pytest
import torch
import yaml
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from accelerate.utils.fsdp_utils import fsdp2_apply_ac, fsdp2_prepare_model
from accelerate.utils.launch import prepare_multi_gpu_env
from conftest import DECODER_MODE, ROOT, make_config
from eagle.configuration_eagle import EagleConfig
from eagle.modeling_eagle import EagleForConditionalGeneration
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from training import qat
from training.optimizer import MuonAdamW

LIMIT = 120
LAUNCH = ROOT / "training" / "launch"
IMAGE, AUDIO = 16, 17
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]

# --- a tiny model, and a batch for each of two processes ----------------------------------------------------------------

CASES = (
    "pictures and sound beside text", "sound beside pictures", "decoder mode", "decoder mode, checkpointed",
    "projectors alone", "encoded rows", "quantized",
)  # fmt: skip


def build(case):
    torch.manual_seed(0)
    mode = DECODER_MODE if "decoder" in case else {}
    config = make_config(**mode, vision_feature_layer=-1, audio_config={"max_source_positions": 100})
    model = EagleForConditionalGeneration(config).train()
    if case == "quantized":
        qat.quantize(model, "q4_0")
    if "checkpointed" in case:
        model.gradient_checkpointing_enable()
    trained = {"projectors alone": "projector", "encoded rows": "language_model"}.get(case, "")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained in name)
    return model


def batches(case):
    torch.manual_seed(1)
    text = {"input_ids": torch.tensor([[30, 50, 51, 52, 53, 31]])}
    pictures = {"input_ids": torch.tensor([[30, 10, *[IMAGE] * 8, 11, 50, 51, 31]]), "pixel_values": torch.randn(1, 3, 56, 56)}
    sound = {"input_ids": torch.tensor([[30, 14, *[AUDIO] * 3, 15, 50, 51, 31]]), "input_features": torch.randn(1, 80, 200)}
    if "decoder" in case:
        sound |= {"audio_transcript_ids": torch.tensor([[7, 8, 9]]), "audio_transcript_mask": torch.ones(1, 3).long()}
    else:
        sound["input_features_mask"] = (torch.arange(200) < 96).long()[None]
    if case == "encoded rows":
        pictures = {"input_ids": pictures["input_ids"], "image_hidden_states": torch.randn(8, 128)}
    both = pictures | sound | {"input_ids": torch.cat([pictures["input_ids"], sound["input_ids"]], dim=1)}
    pair = {"encoded rows": (pictures, text), "sound beside pictures": (sound, pictures)}.get(case, (both, text))
    return [batch | {"labels": batch["input_ids"]} for batch in pair]


def alone(case):
    """What one process makes of both batches: the model, each loss, the gradients of their mean."""
    model = build(case)
    losses = [model(**batch).loss for batch in batches(case)]
    (sum(losses) / 2).backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for parameter in model.parameters():  # DDP takes no parameter that never gets a gradient, such as a last norm
        parameter.requires_grad_(parameter.grad is not None)
    model.zero_grad()
    return model, losses, expected


def assert_equal(case, rank, model, loss, losses, expected):
    torch.testing.assert_close(loss, losses[rank], msg=lambda text: f"{case}: {text}")
    gradients = {name.replace("_checkpoint_wrapped_module.", ""): p.grad for name, p in model.named_parameters()}
    for name, gradient in expected.items():
        got = gradients[name].full_tensor() if hasattr(gradients[name], "full_tensor") else gradients[name]
        torch.testing.assert_close(got, gradient, atol=1e-6, rtol=1e-4, msg=lambda text, name=name: f"{case}, {name}: {text}")


def meet(rank, folder):
    options = {"rank": rank, "world_size": 2, "timeout": timedelta(seconds=LIMIT)}
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", **options)


def replicated(rank, folder):
    prepared = {case: alone(case) for case in CASES}
    meet(rank, folder)
    for case, (model, losses, expected) in prepared.items():
        towers = Counter()
        for name in ("vision_tower", "audio_tower"):
            getattr(model.model, name).register_forward_hook(lambda *_, name=name, towers=towers: towers.update([name]))
        ddp = DistributedDataParallel(model)
        for _ in range(2):  # the second raises where the first left a parameter out
            ddp.zero_grad()
            loss = ddp(**batches(case)[rank]).loss
            loss.backward()
        assert_equal(case, rank, model, loss, losses, expected)
        # Behind encoded rows the towers stand still: nobody waits in them.
        assert towers == ({} if case == "encoded rows" else {"vision_tower": 2, "audio_tower": 2}), case


def without_pass(rank, folder):
    """The pass belongs to training, so that a backbone in evaluation mode shows what happens without it."""
    case = CASES[0]
    model, _, _ = alone(case)
    meet(rank, folder)
    model.model.training = False
    ddp = DistributedDataParallel(model)
    for _ in range(2):
        ddp(**batches(case)[rank]).loss.backward()


def launch_environment(file="fsdp2.yaml"):
    """What `accelerate launch` with a file of ours hands to the processes that it starts."""
    args = launch_command_parser().parse_args(["--config_file", str(LAUNCH / file), "-m", "training.sft"])
    args, _, _ = _validate_launch_command(args)
    return {name: value for name, value in prepare_multi_gpu_env(args).items() if name.startswith("FSDP_")}


def shard_by_accelerate(model):
    """As accelerate shards by our file. It refuses to do so on a CPU, but the code that does it runs there."""
    accelerator = Accelerator(cpu=True)
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
    accelerator.state.fsdp_plugin.set_auto_wrap_policy(model)
    if accelerator.state.fsdp_plugin.activation_checkpointing:
        model = fsdp2_apply_ac(accelerator, model)
    return fsdp2_prepare_model(accelerator, model)


def shard(model):
    classes = launch_environment()["FSDP_TRANSFORMER_CLS_TO_WRAP"].split(",")
    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    for module in [*[m for m in model.modules() if type(m).__name__ in classes], model]:
        fully_shard(module, mesh=mesh)
    return model


def sharded(rank, folder):
    prepared = {case: alone(case) for case in CASES}
    meet(rank, folder)
    os.environ |= launch_environment() | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    for case, (model, losses, expected) in prepared.items():
        keys = list(model.state_dict())
        model = (shard_by_accelerate if case == "decoder mode" else shard)(model)
        assert list(model.state_dict()) == keys
        assert all(hasattr(parameter, "full_tensor") for parameter in model.parameters())
        loss = model(**batches(case)[rank]).loss
        loss.backward()
        assert_equal(case, rank, model, loss, losses, expected)


def optimized(rank, folder):
    """Weights and state after three steps: those of a process on its own, to the last bit, in both of the two."""

    def run():
        torch.manual_seed(0)
        model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([torch.nn.Linear(8, 8) for _ in range(3)]), "head": torch.nn.Linear(8, 1)})
        optimizer = MuonAdamW([(list(model["layers"].named_parameters("layers")), 0.1), (list(model["head"].named_parameters()), 0.2)], 0.1)
        for _ in range(3):
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
        return list(model.parameters()), [part["state"] for part in optimizer.state_dict()["parts"]]

    expected = run()
    meet(rank, folder)
    with patch.object(torch.optim._muon, "_zeropower_via_newtonschulz", wraps=torch.optim._muon._zeropower_via_newtonschulz) as work:
        torch.testing.assert_close(run(), expected, atol=0, rtol=0)
    assert work.call_count == 3 * (2 - rank)  # of three matrices a process has two, the other one


@pytest.mark.slow
@pytest.mark.parametrize("work", [replicated, sharded, optimized])
def test_two_processes_do_as_one_does(work, tmp_path):
    torch.multiprocessing.spawn(work, (tmp_path,), nprocs=2)


@pytest.mark.slow
def test_without_the_pass_a_process_without_media_ends_the_training(tmp_path):
    errors = torch.multiprocessing.ProcessRaisedException, torch.multiprocessing.ProcessExitedException
    # One process finds its reduction unfinished; the other loses its peer, and may be the first to be noticed.
    with pytest.raises(errors, match="finished reduction|Connection|SIGABRT"):
        torch.multiprocessing.spawn(without_pass, (tmp_path,), nprocs=2)


def test_a_single_process_passes_only_what_its_batch_needs():
    model = build(CASES[0])
    text = batches(CASES[0])[1]
    model(**text).loss.backward()
    assert {name.split(".")[1] for name, p in model.named_parameters() if p.grad is not None} == {"language_model", "weight"}


# --- the real script ----------------------------------------------------------------------------------------------------


def start(command):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(*processes):
    """Exit codes and outputs; all are ended where one takes longer than LIMIT."""
    try:
        outputs = [process.communicate(timeout=LIMIT)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], outputs


def losses_of(folder):
    state = json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


@pytest.fixture(scope="module")
def recipe(small_checkpoint, tmp_path_factory):
    """Pictures and text, so that the two processes have different media; lanes are what keeps the rows the same."""
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    rates = {"language_model": 0.1, "multi_modal_projector": 0.1, "audio_projector": 0.1}
    data = {name: {"path": f"world:{name}", "weight": 0.5} for name in ("sign", "fact")}
    settings = {"model": str(small_checkpoint), "data": data, "rates": rates, "lanes": 2, "together": 1}
    settings |= {"max_steps": 4, "save_steps": 4, "per_device_train_batch_size": 1, "logging_steps": 1}
    settings |= {"bf16": False, "activation_checkpointing": False}
    settings |= {"optim": "sgd", "lr_scheduler_type": "constant"}  # Adam would blow up what rounding leaves of gradients of 0
    path.write_text(yaml.safe_dump(settings | {"ddp_find_unused_parameters": False, "report_to": "none", "seed": 3}))
    return path


@pytest.fixture(scope="module")
def losses(recipe):
    """Of one process, which takes two batches a step where two take one each."""
    folder = recipe.parent / "one"
    command = [sys.executable, "-m", "training.sft", "--config", str(recipe), "--output_dir", str(folder)]
    codes, outputs = finish(start([*command, "--gradient_accumulation_steps", "2"]))
    assert codes == [0], outputs[0][-3000:]
    return losses_of(folder)


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 2])
def test_the_script_on_two_processes_has_the_losses_of_one(nodes, recipe, losses, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    where = ["--nnodes", str(nodes), "--nproc-per-node", str(2 // nodes), "--local-addr", "127.0.0.1"]
    where += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}"]
    script = ["-m", "training.sft", "--config", str(recipe), "--output_dir", str(tmp_path)]
    codes, outputs = finish(*[start([*TORCHRUN, *where, *script]) for _ in range(nodes)])
    assert codes == [0] * nodes, outputs[0][-3000:]
    assert len(losses) == 4 and losses_of(tmp_path) == pytest.approx(losses, rel=1e-4)
    assert "2 processes" in (tmp_path / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "module, options", [("training.launch.engine", []), ("training.sft", ["--config", "RECIPE", "--output_dir", "OUTPUT"])]
)
def test_an_engine_that_is_not_to_be_had_is_an_error(module, options, recipe, tmp_path):
    options = [option.replace("RECIPE", str(recipe)).replace("OUTPUT", str(tmp_path)) for option in options]
    where = ["--config_file", str(LAUNCH / "fsdp2.yaml"), "--num_machines", "1", "--num_processes", "2"]
    codes, outputs = finish(start([*ACCELERATE, *where, "-m", module, *options]))
    assert codes != [0] and "asked for FSDP2 on 2 processes, but DDP on 2 is what runs, on cpu" in outputs[0], outputs[0][-3000:]
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.slow
def test_the_engine_that_was_asked_for_is_named():
    codes, outputs = finish(start([*TORCHRUN, "--standalone", "--nproc-per-node", "2", "-m", "training.launch.engine"]))
    assert codes == [0] and "DDP on 2 processes" in outputs[0]
    codes, outputs = finish(start([*ACCELERATE, "--cpu", "--num_processes", "2", "-m", "training.launch.engine"]))
    assert codes != [0] and "asked for DDP on several processes, but no engine on 1 is what runs" in outputs[0]


# --- launch files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, engine", [("fsdp2", "FSDP"), ("speech", "FSDP"), ("zero3", "DEEPSPEED")])
def test_launch_files_are_what_accelerate_reads(name, engine):
    config = load_config_from_file(str(LAUNCH / f"{name}.yaml"))
    assert config.distributed_type == engine and config.num_processes == 256 and config.num_machines == 32
    if name == "zero3":
        assert HfDeepSpeedConfig(str(ROOT / config.deepspeed_config["deepspeed_config_file"])).is_zero3()


@pytest.mark.parametrize("file, more", [("fsdp2.yaml", set()), ("speech.yaml", {"EagleSpeechProjector", "EagleSpeechDecoder"})])
def test_the_sharded_classes_are_the_layers_and_projectors_of_eagle(file, more):
    with torch.device("meta"):
        model = EagleForConditionalGeneration(EagleConfig.from_json_file(ROOT / "configs" / "eagle.json"))
    repeated = {type(m[0]).__name__ for m in model.modules() if isinstance(m, torch.nn.ModuleList)}
    classes = launch_environment(file)["FSDP_TRANSFORMER_CLS_TO_WRAP"].split(",")
    assert set(classes) == repeated | {"EagleResampler", "EagleAudioProjector"} | more


def dry_run(*arguments, **environment):
    command = ["bash", str(LAUNCH / "slurm.sh"), *arguments]
    environment = os.environ | {"DRY_RUN": "1"} | environment
    return subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True, timeout=LIMIT)


@pytest.mark.parametrize("engine", ["fsdp2", "zero3"])
def test_the_slurm_script_starts_what_accelerate_understands(engine):
    machines = {"SLURM_JOB_NUM_NODES": "4", "SLURM_JOB_ID": "70123", "VENV": ".venv"}
    done = dry_run("recipe.yaml", "--output_dir", "runs/a b", ENGINE=engine, **machines)
    srun, _, _, _, launch = shlex.split(done.stdout)
    assert srun == "srun" and "--machine_rank $SLURM_NODEID" in launch
    python, *command = shlex.split(launch.replace("$SLURM_NODEID", "3"))
    assert python == ".venv/bin/python" and command[:2] == ["-m", "accelerate.commands.launch"]
    args = launch_command_parser().parse_args(command[2:])
    assert (args.num_machines, args.num_processes, args.machine_rank, args.main_process_port) == (4, 32, 3, 20123)
    assert args.config_file == f"training/launch/{engine}.yaml" and args.main_process_ip == socket.gethostname()
    assert args.log_dir == "runs/slurm/70123/machine-3" and args.training_script == "training.sft" and args.module
    expected = ["--config", "recipe.yaml", "--output_dir", "runs/a b"]
    assert args.training_script_args == expected + ["--activation_checkpointing", "false"] * (engine == "fsdp2")


def test_the_slurm_script_asks_for_a_recipe_and_is_sound_bash():
    assert re.search("give a recipe", dry_run().stderr)
    assert dry_run(MODULE="training.launch.engine").stdout.rstrip().endswith("-m training.launch.engine'")
    speech = dry_run("recipe.yaml", MODULE="training.speech", ENGINE="speech").stdout
    assert "launch/speech.yaml" in speech and "-m training.speech" in speech and speech.count("--config ") == 0
    subprocess.run(["bash", "-n", str(LAUNCH / "slurm.sh")], check=True, timeout=LIMIT)
