"""Every recipe runs a step as it stands, but for the model, the number of rows and what lies in its folders of data."""

import json
import re
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.torch import load_file

from training import sft, towers
from training.shards import SCHEMA, encode_image, encode_row
from training.synthesis import samples

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "training" / "recipes").glob("*/*.yaml"))
TOWERS = [path for path in RECIPES if path.parent.name == "towers"]
SPEECH = [path for path in RECIPES if path.parent.name == "speech"]  # training.speech runs them: tests/test_speech_training.py
STAGES = [path for path in RECIPES if path not in TOWERS + SPEECH]
OF_THE_HUB = ("copy", "respell", "look-up", "in-context", "language")  # what the full-size model has learnt before


def names(paths):
    return [f"{path.parent.name}/{path.stem}" for path in paths]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """The folder of one shard of conversations of every skill, and one of the rows that each adapter in use reads."""
    folder = tmp_path_factory.mktemp("shards")
    drawn = [samples.make(skill, "train", 1) for skill in ("sign", "sentence", "clip", "request")]
    rows = [encode_row(sample, str(i), "world", "apache-2.0") for i, sample in enumerate(drawn)]
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), folder / "conversations.parquet")
    picture = {"bytes": encode_image(drawn[0]["images"][0]), "path": None}
    texts = [{"user": "What does the sign say?", "assistant": "open", "source": "sign"}]
    pq.write_table(pa.Table.from_pylist([{"images": [picture], "texts": texts}] * 2), folder / "cauldron.parquet")
    return folder


def local(source, shards):
    """The source, or if it is not of the small world a small file with rows of its schema."""
    if str(source["path"]).startswith("world:"):
        return source
    return source | {"path": str(shards / f"{source.get('adapter', 'conversations')}.parquet")}


@pytest.mark.parametrize("path", STAGES, ids=names(STAGES))
def test_a_recipe_runs_a_step(path, small_checkpoint, small_untied_checkpoint, shards, tmp_path, monkeypatch):
    recipe = yaml.safe_load(path.read_text())
    model = small_untied_checkpoint if "lm_head" in recipe["rates"] else small_checkpoint
    recipe["data"] = {name: local(source, shards) for name, source in recipe["data"].items()}
    recipe |= {"model": str(model), "output_dir": str(tmp_path / "run"), "max_steps": 1, "save_steps": 1}
    recipe |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "dataloader_num_workers": 0}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.setattr(sys, "argv", ["sft", "--config", str(tmp_path / "recipe.yaml")])
    sft.main()
    saved = "adapter_model.safetensors" if recipe.get("lora") else "model.safetensors"
    assert all(weight.isfinite().all() for weight in load_file(tmp_path / "run" / saved).values())


@pytest.mark.parametrize("path", TOWERS, ids=names(TOWERS))
def test_a_recipe_of_a_tower_runs_a_step(path, tmp_path):
    config = json.loads((ROOT / "configs" / "eagle-tiny.json").read_text())
    config["vision_config"]["num_hidden_layers"] = config["audio_config"]["encoder_layers"] = 1
    (tmp_path / "preset.json").write_text(json.dumps(config))
    recipe = yaml.safe_load(path.read_text()) | {"preset": str(tmp_path / "preset.json"), "output_dir": str(tmp_path / "run")}
    towers.train(towers.TowerConfig(**recipe | {"start_from": None, "steps": 1, "batch_size": 1}))
    assert all(weight.isfinite().all() for weight in load_file(tmp_path / "run" / "model.safetensors").values())


@pytest.mark.parametrize("path", RECIPES, ids=names(RECIPES))
def test_a_recipe_says_what_it_is(path):
    """A recipe opens with comments: the stage, then what it takes and gives, each under its name."""
    head = re.match(r"(# .*\n)+", path.read_text())[0]
    assert {"data", "score", "time", "hardware"} <= set(re.findall(r"^# (\w+) +\S", head, re.MULTILINE))
    recipe = yaml.safe_load(path.read_text())
    assert recipe["output_dir"].startswith("runs/")


@pytest.mark.parametrize("variant", ["tiny", "full"])
def test_no_stage_draws_the_rows_of_an_earlier_one(variant):
    """Stages that start from one another have seeds of their own: rows follow from seed, skill and place in the recipe."""
    recipes = {path.parent.name: yaml.safe_load(path.read_text()) for path in STAGES if path.stem == variant}
    for stage, recipe in recipes.items():
        seeds = [recipe["seed"]]
        while (before := recipe["model"].removeprefix("runs/").removesuffix("-full")) in recipes:
            recipe = recipes[before]
            seeds.append(recipe["seed"])
        assert len(set(seeds)) == len(seeds), (stage, seeds)


def test_every_stage_has_a_tiny_and_a_full_recipe():
    for stage in {path.parent for path in STAGES + SPEECH if path.parent.name not in OF_THE_HUB}:
        assert {path.stem for path in stage.glob("*.yaml")} == {"tiny", "full"}, stage.name
