"""OpenVoice's tone-colour converter as our speech decoder: the same sound from the same weights, and errors for other files.

The converter stands here as a small one of our own writing, with OpenVoice's names and arithmetic.
"""

import copy
import json
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, make_config
from eagle.speech_eagle import EagleSpeechDecoder, frame_noise
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_speech_eagle import BOXES, count
from test_speech_eagle import TINY as SPEECH
from torch import nn
from torch.nn.utils import parametrizations

from training.assemble import empty_model, own_weights
from training.convert_openvoice import MODULES, NEW_PAIR, OLD_PAIR, convert, layout, speech_decoder

TINY = {
    "data": {"sampling_rate": 22_050, "filter_length": 256, "hop_length": 64, "win_length": 256, "n_speakers": 0},
    "model": {
        "inter_channels": 20, "hidden_channels": 32, "gin_channels": 32, "resblock": "1", "resblock_kernel_sizes": [3, 7, 11],
        "resblock_dilation_sizes": [[1, 3, 5]] * 3, "upsample_rates": [8, 8], "upsample_kernel_sizes": [16, 16],
        "upsample_initial_channel": 32,
    },
}  # fmt: skip
TINY_DEPTH = {"filters": [4, 8], "gru": 16, "couplings": 2, "coupling_layers": 2, "posterior_layers": 2}
# As V2's config.json, with what V2's text encoder would have had; V1's has no zero_g.
FULL = {
    "_version_": "v2",
    "data": {"sampling_rate": 22_050, "filter_length": 1024, "hop_length": 256, "win_length": 1024, "n_speakers": 0},
    "model": {
        "zero_g": True, "inter_channels": 192, "hidden_channels": 192, "filter_channels": 768, "n_heads": 2, "n_layers": 6,
        "kernel_size": 3, "p_dropout": 0.1, "resblock": "1", "resblock_kernel_sizes": [3, 7, 11],
        "resblock_dilation_sizes": [[1, 3, 5]] * 3, "upsample_rates": [8, 8, 2, 2], "upsample_initial_channel": 512,
        "upsample_kernel_sizes": [16, 16, 4, 4], "gin_channels": 256, "contentvec_final_proj": False,
    },
}  # fmt: skip
FULL_DEPTH = {"filters": [32, 32, 64, 64, 128, 128], "gru": 128, "couplings": 4, "coupling_layers": 4, "posterior_layers": 16}


# --- a converter ----------------------------------------------------------------------------------------------------------


class WaveNet(nn.Module):
    def __init__(self, width, layers, voice, norm):
        super().__init__()
        self.width = width
        self.in_layers = nn.ModuleList(norm(nn.Conv1d(width, 2 * width, 5, padding=2)) for _ in range(layers))
        self.res_skip_layers = nn.ModuleList(
            norm(nn.Conv1d(width, width if last else 2 * width, 1)) for last in [False] * (layers - 1) + [True]
        )
        self.cond_layer = norm(nn.Conv1d(voice, 2 * width * layers, 1))

    def forward(self, x, voice):
        skipped = 0
        for inner, outer, condition in zip(self.in_layers, self.res_skip_layers, self.cond_layer(voice).split(2 * self.width, 1)):
            value, gate = (inner(x) + condition).split(self.width, 1)
            out = outer(value.tanh() * gate.sigmoid())
            if out.shape[1] > self.width:
                x = x + out[:, : self.width]
            skipped = skipped + out[:, -self.width :]
        return skipped


class Posterior(nn.Module):
    def __init__(self, bins, size, width, layers, voice, norm):
        super().__init__()
        self.pre, self.proj = nn.Conv1d(bins, width, 1), nn.Conv1d(width, 2 * size, 1)
        self.enc = WaveNet(width, layers, voice, norm)

    def forward(self, spectrogram, voice, noise):
        mean, log_deviation = self.proj(self.enc(self.pre(spectrogram), voice)).chunk(2, 1)
        return mean + 0.3 * noise * log_deviation.exp()  # OpenVoice's `tau` in its own interface


class Coupling(nn.Module):
    def __init__(self, size, width, layers, voice, norm):
        super().__init__()
        self.pre, self.post = nn.Conv1d(size // 2, width, 1), nn.Conv1d(width, size // 2, 1)
        self.enc = WaveNet(width, layers, voice, norm)

    def forward(self, x, voice, sign):
        kept, moved = x.chunk(2, 1)
        return torch.cat([kept, moved + sign * self.post(self.enc(self.pre(kept), voice))], 1)


class Flip(nn.Module):
    def forward(self, x, voice, sign):
        return x.flip(1)


class Flow(nn.Module):
    def __init__(self, couplings, *sizes):
        super().__init__()
        self.flows = nn.ModuleList(module for _ in range(couplings) for module in (Coupling(*sizes), Flip()))

    def forward(self, x, voice, sign):
        for module in self.flows if sign == 1 else reversed(self.flows):
            x = module(x, voice, sign)
        return x


class ResidualBlock(nn.Module):
    def __init__(self, width, kernel, dilations, norm):
        super().__init__()

        def convolutions(dilations):
            return nn.ModuleList(norm(nn.Conv1d(width, width, kernel, dilation=d, padding="same")) for d in dilations)

        self.convs1, self.convs2 = convolutions(dilations), convolutions([1] * len(dilations))

    def forward(self, x):
        for first, second in zip(self.convs1, self.convs2):
            x = x + second(F.leaky_relu(first(F.leaky_relu(x, 0.1)), 0.1))
        return x


class Generator(nn.Module):
    def __init__(self, model, norm):
        super().__init__()
        width = model["upsample_initial_channel"]
        self.conv_pre = nn.Conv1d(model["inter_channels"], width, 7, padding=3)
        self.cond = nn.Conv1d(model["gin_channels"], width, 1)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for rate, kernel in zip(model["upsample_rates"], model["upsample_kernel_sizes"]):
            self.ups.append(norm(nn.ConvTranspose1d(width, width // 2, kernel, rate, padding=(kernel - rate) // 2)))
            width //= 2
            for size, dilations in zip(model["resblock_kernel_sizes"], model["resblock_dilation_sizes"]):
                self.resblocks.append(ResidualBlock(width, size, dilations, norm))
        self.conv_post = nn.Conv1d(width, 1, 7, padding=3, bias=False)

    def forward(self, latents, voice):
        x, kinds = self.conv_pre(latents) + self.cond(voice), len(self.resblocks) // len(self.ups)
        for i, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, 0.1))
            x = sum(block(x) for block in self.resblocks[i * kinds : (i + 1) * kinds]) / kinds
        return self.conv_post(F.leaky_relu(x)).tanh()


class Reference(nn.Module):
    def __init__(self, bins, filters, gru, voice, norm):
        super().__init__()
        self.layernorm = nn.LayerNorm(bins)
        self.convs = nn.ModuleList(
            norm(nn.Conv2d(inner, outer, 3, stride=2, padding=1)) for inner, outer in zip([1, *filters], filters)
        )
        for _ in filters:
            bins = (bins - 1) // 2 + 1
        self.gru, self.proj = nn.GRU(filters[-1] * bins, gru, batch_first=True), nn.Linear(gru, voice)

    def forward(self, frames):
        x = self.layernorm(frames)[:, None]
        for conv in self.convs:
            x = conv(x).relu()
        return self.proj(self.gru(x.transpose(1, 2).flatten(2))[0][:, -1])


class Converter(nn.Module):
    def __init__(self, settings, depth, norm):
        super().__init__()
        model, bins = settings["model"], settings["data"]["filter_length"] // 2 + 1
        size, width, voice = model["inter_channels"], model["hidden_channels"], model["gin_channels"]
        self.settings = settings
        self.dec = Generator(model, norm)
        self.enc_q = Posterior(bins, size, width, depth["posterior_layers"], voice, norm)
        self.flow = Flow(depth["couplings"], size, width, depth["coupling_layers"], voice, norm)
        self.ref_enc = Reference(bins, depth["filters"], depth["gru"], voice, norm)

    def spectrogram(self, waveform):
        size, hop = self.settings["data"]["filter_length"], self.settings["data"]["hop_length"]
        edge = (size - hop) // 2
        frames = F.pad(waveform[None, None], (edge, edge), mode="reflect")[0].unfold(-1, size, hop)
        spectrum = torch.fft.rfft(frames * torch.hann_window(size))
        return (spectrum.abs() ** 2 + 1e-6).sqrt().mT

    def voice(self, waveform):
        return self.ref_enc(self.spectrogram(waveform).mT)[..., None]

    def convert(self, waveform, source, target, noise):
        heard = torch.zeros_like(source) if self.settings["model"].get("zero_g") else source
        said = torch.zeros_like(target) if self.settings["model"].get("zero_g") else target
        content = self.flow(self.enc_q(self.spectrogram(waveform), heard, noise), source, 1)
        return self.dec(self.flow(content, target, -1), said)[0, 0]


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """A JSON file with the configuration of a tiny EAGLE that speaks with HiFi-GAN."""
    path = tmp_path_factory.mktemp("preset") / "tiny.json"
    path.write_text(make_config(speech_config=SPEECH).to_json_string())
    return str(path)


def tiny_converter(zero_g, norm=parametrizations.weight_norm):
    """Random weights that matter: lengths of weight norm are not those of its directions, and no layer is near zero."""
    settings = copy.deepcopy(TINY)
    if zero_g is not None:
        settings["model"]["zero_g"] = zero_g
    torch.manual_seed(0)
    converter = Converter(settings, TINY_DEPTH, norm)
    with torch.no_grad():
        for name, parameter in converter.named_parameters():
            if name.endswith((OLD_PAIR[0], NEW_PAIR[0])):
                parameter.mul_(0.8 + 0.4 * torch.rand_like(parameter))
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
        converter.dec.conv_post.weight.mul_(5)
        converter.ref_enc.proj.weight.mul_(20)
    return converter.eval()


def write(folder, converter, **changes):
    """`checkpoint.pth` and `config.json` as OpenVoice's; `changes` replace tensors, or remove them (None)."""
    tensors = {name: tensor for name, tensor in (converter.state_dict() | changes).items() if tensor is not None}
    torch.save({"model": tensors, "iteration": 5, "optimizer": None, "learning_rate": 1e-4}, folder / "checkpoint.pth")
    (folder / "config.json").write_text(json.dumps(converter.settings))
    return folder


def converted(folder, preset, output):
    """Our decoder with random weights in all that the file does not hold."""
    convert(folder, preset, output)
    weights = {name.removeprefix("speech_decoder."): tensor for name, tensor in load_file(output / "model.safetensors").items()}
    torch.manual_seed(1)
    decoder = EagleSpeechDecoder(make_config(speech_config=SPEECH).speech_config).eval()
    missing, unexpected = decoder.load_state_dict(weights, strict=False)
    assert not unexpected and not [name for name in missing if name.split(".")[0] in MODULES]
    return decoder


# --- tests ----------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, parametrizations.weight_norm], ids=["old", "new"])
@pytest.mark.parametrize("zero_g", [None, False, True], ids=["v1", "zero_g-false", "v2"])
@torch.no_grad()
def test_it_sounds_as_the_converter_does(preset, tmp_path, zero_g, norm):
    converter = tiny_converter(zero_g, norm)
    decoder = converted(write(tmp_path, converter), preset, tmp_path / "out")
    generator = torch.Generator().manual_seed(2)
    speech, other = (0.3 * torch.randn(n * 64, generator=generator) for n in (40, 25))
    voices = [converter.voice(x) for x in (speech, other)]
    for ours, theirs in zip((decoder.embed(speech), decoder.embed(other)), voices):
        torch.testing.assert_close(ours, theirs[0, :, 0], atol=1e-4, rtol=0)
    wanted = converter.convert(speech, *voices, frame_noise(0, 0, 40, 20).T)  # the noise that ours draws
    found = decoder.convert(speech, *voices)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    assert wanted.abs().max() > 0.05 and wanted.std() > 0.01, "silence would agree with anything"


@pytest.mark.parametrize("zero_g", [False, True])
@torch.no_grad()
def test_posterior_and_vocoder_hear_the_voice_unless_zero_g(preset, tmp_path, zero_g):
    converter = tiny_converter(zero_g)
    decoder = converted(write(tmp_path, converter), preset, tmp_path / "out")
    spectrogram, latents, ones = torch.rand(1, 129, 9), torch.randn(1, 20, 9), torch.ones(1, 1, 9)
    voices = torch.randn(2, 1, 32, 1)
    means = [decoder.posterior_encoder(spectrogram, ones, voice)[1] for voice in voices]
    waveforms = [decoder.decoder(latents, voice) for voice in voices]
    contents = [decoder.flow(latents, ones, voice) for voice in voices]
    assert torch.equal(*means) == torch.equal(*waveforms) == zero_g
    assert not torch.equal(*contents), "the flow hears it always"
    if zero_g:  # what is left of the voice is the bias, not nothing
        assert decoder.decoder.cond.bias.any() and decoder.posterior_encoder.wavenet.cond_layer.bias.any()


def test_safetensors_are_read_too(preset, tmp_path):
    converter = tiny_converter(True)
    write(tmp_path, converter)
    convert(tmp_path, preset, tmp_path / "of-pth")
    (tmp_path / "checkpoint.pth").unlink()
    save_file(converter.state_dict(), tmp_path / "model.safetensors")
    convert(tmp_path, preset, tmp_path / "of-safetensors")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("of-pth", "of-safetensors"))
    assert one.keys() == two.keys() and all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_assemble_takes_the_folder_as_weights(preset, tmp_path):
    convert(write(tmp_path, tiny_converter(True)), preset, tmp_path / "out")
    shapes = {name: tuple(p.shape) for name, p in empty_model(preset).named_parameters()}
    origin = own_weights(tmp_path / "out", shapes, preset)
    ours = {name for name in shapes if name.startswith(tuple(f"speech_decoder.{module}." for module in MODULES))}
    assert origin.keys() == ours
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["model.safetensors"]
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as opened:
        assert opened.metadata()["license"] == "MIT" and len(opened.metadata()["sha256"]) == 64
        assert {opened.get_slice(name).get_dtype() for name in ours} == {"F32"}


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize("norm, pair", [(nn.utils.weight_norm, OLD_PAIR), (parametrizations.weight_norm, NEW_PAIR)])
def test_full_size_names_and_shapes(norm, pair):
    with torch.device("meta"):
        theirs = {name: tuple(tensor.shape) for name, tensor in Converter(FULL, FULL_DEPTH, norm).state_dict().items()}
    decoder = speech_decoder("eagle-a")
    places = layout(decoder, pair)
    used = [source for sources in places.values() for source in sources.items()]
    assert len(used) == len(dict(used)) and dict(used) == theirs
    ours = {name: p.numel() for name, p in decoder.named_parameters() if name.split(".")[0] in MODULES}
    assert places.keys() == ours.keys()
    assert sum(ours.values()) == sum(BOXES[module] for module in MODULES) == 8_687_232 + 8_823_168 + 14_459_008 + 813_218
    assert {module: count(getattr(decoder, module)) for module in MODULES} == {module: BOXES[module] for module in MODULES}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"flow.flows.2.pre.bias": None}, "missing: flow.flows.2.pre.bias; without a place in the speech decoder: nothing"),
        ({"dec.extra": torch.zeros(1)}, "missing: nothing; without a place in the speech decoder: dec.extra; expected 190 tensors, found 191"),
        ({"flow.flows.1.pre.bias": torch.zeros(1)}, "without a place in the speech decoder: flow.flows.1.pre.bias"),
        ({f"dec.extra.{i}": torch.zeros(1) for i in range(5)}, "dec.extra.0, dec.extra.1, dec.extra.2 and 2 more"),
        ({"dec.ups.0" + NEW_PAIR[0]: None, "dec.ups.0.weight": torch.zeros(32, 16, 16)}, "missing: dec.ups.0.parametrizations.weight.original0; without .*: dec.ups.0.weight;"),
        ({"dec.ups.0.weight_g": torch.zeros(32, 1, 1)}, "without a place in the speech decoder: dec.ups.0.weight_g"),
        ({"enc_q.pre.weight": torch.zeros(32, 100, 1)}, r"enc_q.pre.weight in .* has shape \[32, 100, 1\]; speech_decoder.posterior_encoder.conv_pre.weight needs \[32, 129, 1\]"),
        ({"dec.ups.0" + NEW_PAIR[0]: torch.zeros(16, 1, 1)}, r"original0 in .* has shape \[16, 1, 1\]; speech_decoder.decoder.upsampler.0.weight needs \[32, 1, 1\]"),
        ({"enc_p.emb.weight": torch.zeros(1), "emb_g.weight": torch.zeros(1)}, "base speaker's .enc_p.emb.weight, emb_g.weight.; give the converter's: checkpoints_v2/converter/checkpoint.pth"),
        ({"sdp.pre.weight": torch.zeros(1)}, "base speaker's"),
        ({"dp.conv_1.weight": torch.zeros(1)}, "base speaker's"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit(preset, tmp_path, changes, message):
    write(tmp_path, tiny_converter(True), **changes)
    with pytest.raises(ValueError, match=message):
        convert(tmp_path, preset, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content, message",
    [
        ({"generator.a": torch.zeros(1)}, "looked for names with flow., enc_q., dec., ref_enc.; found: generator.a"),
        (torch.zeros(1, 256, 1), "found: a Tensor without names"),  # a voice, as OpenVoice gives out beside the converter
        ({"model": None}, "found: a NoneType without names"),
        ({"model": EagleSpeechDecoder}, "damaged or no weight file"),  # code, which a weights-only reader refuses
    ],
)
def test_files_that_are_no_converter(preset, tmp_path, content, message):
    write(tmp_path, tiny_converter(True))
    torch.save(content, tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match=message):
        convert(tmp_path, preset, tmp_path / "out")


def test_damaged_and_absent_files(preset, tmp_path):
    file = write(tmp_path, tiny_converter(True)) / "checkpoint.pth"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="checkpoint.pth is damaged or no weight file"):
        convert(tmp_path, preset, tmp_path / "out")
    file.unlink()
    with pytest.raises(FileNotFoundError, match="has none of checkpoint.pth, .*; give the folder of OpenVoice's checkpoints_v2"):
        convert(tmp_path, preset, tmp_path / "out")
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="model.safetensors is damaged or no weight file"):
        convert(tmp_path, preset, tmp_path / "out")
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="config.json is not there; it lies beside OpenVoice's"):
        convert(tmp_path, preset, tmp_path / "out")


@pytest.mark.parametrize(
    "section, key, value, message",
    [
        ("data", "sampling_rate", 16_000, "data.sampling_rate is 16000 in .*, but the preset's speech_config.sampling_rate is 22050"),
        ("data", "filter_length", 512, "data.filter_length is 512 in .*, but the preset's speech_config.fft_size is 256"),
        ("data", "win_length", 128, "data.win_length is 128 in .*, but the preset's speech_config.fft_size is 256"),
        ("data", "hop_length", None, "data.hop_length is None in .*, but the preset's speech_config.hop_length is 64"),
        ("model", "inter_channels", 22, "model.inter_channels is 22 in .*, but the preset's speech_config.flow_size is 20"),
        ("model", "hidden_channels", 8, "speech_config.wavenet_hidden_size is 32"),
        ("model", "gin_channels", 8, "speech_config.speaker_embedding_size is 32"),
        ("model", "upsample_rates", [4, 16], r"model.upsample_rates is \[4, 16\] .* speech_config.upsample_rates is \[8, 8\]"),
        ("model", "upsample_kernel_sizes", [16, 8], r"speech_config.upsample_kernel_sizes is \[16, 16\]"),
        ("model", "upsample_initial_channel", 64, "speech_config.upsample_initial_channel is 32"),
        ("model", "resblock_kernel_sizes", [3], r"speech_config.resblock_kernel_sizes is \[3, 7, 11\]"),
        ("model", "resblock_dilation_sizes", [[1, 3, 9]] * 3, r"is \[\[1, 3, 9\], .*speech_config.resblock_dilation_sizes is \[\[1, 3, 5\]"),
        ("model", "resblock", "2", "model.resblock is '2' in .*; ours are OpenVoice's '1'"),
    ],
)  # fmt: skip
def test_settings_that_differ(preset, tmp_path, section, key, value, message):
    converter = tiny_converter(True)
    converter.settings[section][key] = value
    with pytest.raises(ValueError, match=message):
        convert(write(tmp_path, converter), preset, tmp_path / "out")


@pytest.mark.parametrize("text, message", [("", "config.json is no JSON"), ("[1]", "has no 'data', so it is not OpenVoice's; found: list")])
def test_a_config_that_is_none(preset, tmp_path, text, message):
    write(tmp_path, tiny_converter(True))
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        convert(tmp_path, preset, tmp_path / "out")


def test_another_models_config(preset, tmp_path):
    write(tmp_path, tiny_converter(True))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vits", "hidden_size": 192}))
    with pytest.raises(ValueError, match="has no 'data', so it is not OpenVoice's; found: model_type, hidden_size"):
        convert(tmp_path, preset, tmp_path / "out")


@pytest.mark.parametrize(
    "speech, message",
    [
        (None, "has no speech_config; OpenVoice's weights are for a speech decoder with 'hifigan'"),
        (SPEECH | {"vocoder_type": "istft"}, "has speech_config.vocoder_type 'istft'"),
        (SPEECH | {"leaky_relu_slope": 0.2}, "speech_config.leaky_relu_slope is 0.2; OpenVoice's is 0.1"),
        (SPEECH | {"wavenet_dilation_rate": 2}, "speech_config.wavenet_dilation_rate is 2; OpenVoice's is 1"),
        (SPEECH | {"posterior_encoder_num_wavenet_layers": 3}, r"missing: enc_q.enc.in_layers.2.bias"),
        (SPEECH | {"prior_encoder_num_flows": 3}, r"missing: flow.flows.4.pre.weight"),
    ],
)
def test_presets_that_are_no_place_for_it(tmp_path, speech, message):
    (tmp_path / "preset.json").write_text(make_config(speech_config=speech).to_json_string())
    with pytest.raises(ValueError, match=message):
        convert(write(tmp_path, tiny_converter(True)), str(tmp_path / "preset.json"), tmp_path / "out")


def test_nothing_is_written_over(preset, tmp_path):
    with pytest.raises(ValueError, match="is there already; remove it, or name another folder"):
        convert(write(tmp_path, tiny_converter(True)), preset, tmp_path)


def test_command_line(preset, tmp_path):
    write(tmp_path, tiny_converter(True))
    command = [sys.executable, "-m", "training.convert_openvoice", "--from", tmp_path, "--preset", preset, "--output", tmp_path / "out"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "190 tensors" in done.stdout, done.stderr
    assert (tmp_path / "out" / "model.safetensors").is_file()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 1 and "training.convert_openvoice: " in again.stderr and "Traceback" not in again.stderr
