"""transformers' own common model tests, run on EAGLE's classes. `make conformance`, or

    python -m pytest tests/conformance.py -q

The tests lie only in transformers' source archive, which pip fetches into build/conformance on the first run (10 MB; the
one step that needs the network). The archive leaves out two modules the tests import, the exporters' and generation's; they
are stubbed by empty classes, and what they would test has tests of our own in test_modeling_eagle.py.
"""

import importlib
import subprocess
import sys
import tarfile
import unittest
from types import ModuleType

import torch
import transformers
from conftest import ROOT, make_config
from eagle.configuration_eagle import EagleConfig
from eagle.modeling_eagle import EagleForConditionalGeneration, EagleModel
from transformers import AutoConfig, AutoModel
from transformers.models.auto import modeling_auto

CACHE = ROOT / "build" / "conformance"
ARCHIVE = f"transformers-{transformers.__version__}"

# Tests that do not apply, each with its reason. (What needs an accelerator, Flash Attention, DeepSpeed, MPS, sparse experts or
# a conversion of old keys skips itself, and says so with pytest's -rs.)
ROPE = "feeds more tokens than max_position_embeddings, which we refuse; longrope is in test_modeling_eagle.py"
SKIPPED = {
    "test_generation_tester_mixin_inheritance": "the archive has no generation tests; ours: test_modeling_eagle.py",
    "test_model_rope_scaling_from_config_0_linear": ROPE,
    "test_model_rope_scaling_from_config_1_dynamic": ROPE,
    "test_model_rope_scaling_from_config_2_yarn": ROPE,
}


def fetch_common_tests():
    """The folder of transformers' tests, from the source archive of the installed version."""
    tests = CACHE / ARCHIVE / "tests"
    if tests.is_dir():
        return tests
    CACHE.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "--quiet"]
    wanted = f"transformers=={transformers.__version__}"
    subprocess.run([*pip, "download", "--no-deps", "--no-binary", "transformers", "-d", CACHE, wanted], check=True)
    subprocess.run([*pip, "install", "--no-deps", "--target", CACHE / "packages", "parameterized"], check=True)
    with tarfile.open(next(CACHE.glob("*.tar.gz"))) as archive:
        archive.extractall(CACHE, [m for m in archive if "/tests/" in m.name], filter="data")
    return tests


def load_mixin():
    """transformers' ModelTesterMixin, imported from the archive's folder as package `common_tests`."""
    folder = fetch_common_tests()
    sys.path.append(str(CACHE / "packages"))
    package = ModuleType("common_tests")
    package.__path__ = [str(folder)]
    sys.modules["common_tests"] = package
    for name, mixin in (
        ("exporters.test_export", "ExportTesterMixin"),
        ("generation.test_utils", "GenerationTesterMixin"),
    ):
        parent, stub = ModuleType(f"common_tests.{name.split('.')[0]}"), ModuleType(f"common_tests.{name}")
        setattr(stub, mixin, type(mixin, (), {}))
        sys.modules |= {parent.__name__: parent, stub.__name__: stub}
    common = importlib.import_module("common_tests.test_modeling_common")
    common.set_config_for_less_flaky_test = steady_norms
    register_as_native()
    return common.ModelTesterMixin


def steady_norms(config):
    """transformers' version sets seven names on every configuration, most of which a strict one refuses to load again."""
    for part in (config.text_config, config.vision_config):
        for name in {"rms_norm_eps", "layer_norm_eps"} & set(part):
            setattr(part, name, 1.0)


def register_as_native():
    """The tests look in the lists of built-in models to learn which class computes a loss."""
    AutoConfig.register(EagleConfig.model_type, EagleConfig)
    AutoModel.register(EagleConfig, EagleModel)
    modeling_auto.MODEL_MAPPING_NAMES[EagleConfig.model_type] = EagleModel.__name__
    generator = EagleForConditionalGeneration.__name__
    modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[EagleConfig.model_type] = generator


class EagleModelTester:
    """A tiny configuration and a batch of three samples, each with a crop and a window of 2 s; or of text alone."""

    def __init__(self, with_media: bool):
        self.with_media = with_media

    batch_size, seq_length, is_training = 3, 40, True
    audio_tokens, num_image_tokens = 7, 8
    hidden_size, num_hidden_layers, num_attention_heads = 128, 2, 2
    image_size, patch_size = 56, 14

    def get_config(self):
        return make_config(audio_config={"max_source_positions": 100})

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        ids = torch.randint(20, config.text_config.vocab_size, (self.batch_size, self.seq_length))
        if not self.with_media:
            return config, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        ids[:, 1 : 1 + self.num_image_tokens] = config.image_token_id
        ids[:, 20 : 20 + self.audio_tokens] = config.audio_token_id
        return config, {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": torch.randn(self.batch_size, 3, self.image_size, self.image_size),
            "input_features": torch.randn(self.batch_size, 80, 200),
            "input_features_mask": torch.ones(self.batch_size, 200, dtype=torch.long),
        }


class TestConformance(load_mixin(), unittest.TestCase):
    all_model_classes = (EagleModel, EagleForConditionalGeneration)
    _is_composite = True
    # CLIP's class token and what follows the feature layer get none; test_modeling_eagle.py names them, to the last one.
    test_all_params_have_gradient = False

    def setUp(self):
        if reason := SKIPPED.get(self._testMethodName):
            self.skipTest(reason)
        # These feed the text without its media, which our model refuses; test_modeling_eagle.py has both attentions with media.
        self.model_tester = EagleModelTester(with_media="eager_matches_sdpa_inference" not in self._testMethodName)
