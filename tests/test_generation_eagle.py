"""Generation of text: batches, beams, media, long contexts, stop strings, decoder mode. Speech: tests/test_speaking.py."""

import pytest
import torch
from conftest import DECODER_MODE, ROOT
from requests_eagle import assert_close, batch_of, lively_decoder, mixed_sample, pad_left, sound, window
from transformers import AutoTokenizer, Phi3ForCausalLM

SAMPLES = [(1, (1.0,), (50, 51)), (3, (2.0, 0.5), (60, 61, 62, 63)), (2, (0.3, 0.3, 0.4), (70,))]
GREEDY = {"max_new_tokens": 6, "do_sample": False}


def new_tokens(model, inputs, **options):
    return model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]


@pytest.mark.parametrize("options", [
    {},
    {"use_cache": False},
    {"num_beams": 3},
    {"num_beams": 4, "num_return_sequences": 2},
    {"cache_implementation": "static"},
])  # fmt: skip
def test_generating_in_a_batch_equals_generating_alone(brief_model, options):
    """Several crops and windows a sample: beams and return sequences must repeat them sample by sample."""
    model = brief_model()
    model.generation_config.eos_token_id = None
    model.config.text_config.eos_token_id = None
    samples = [mixed_sample(*sample) for sample in SAMPLES]
    together = new_tokens(model, batch_of(*samples), **GREEDY | options)
    alone = torch.cat([new_tokens(model, sample, **GREEDY | options) for sample in samples])
    assert torch.equal(together, alone)
    assert len({tuple(row) for row in together.tolist()}) > 1, "the samples must not all give the same"


def test_sampling_several_sequences_keeps_each_samples_media(brief_model):
    model = brief_model()
    seen = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    model.generate(**batch_of(*[mixed_sample(*sample) for sample in SAMPLES]), max_new_tokens=1, do_sample=True,
                   num_return_sequences=2)  # fmt: skip
    hook.remove()
    prefill = seen[0]
    assert torch.equal(prefill[0::2], prefill[1::2]) and not torch.equal(prefill[0], prefill[2])


def test_media_are_encoded_once_whatever_the_number_of_beams(brief_model):
    model = brief_model()
    crops = []
    model.model.vision_tower.register_forward_pre_hook(lambda module, args: crops.append(args[0].shape[0]))
    model.generate(**batch_of(*[mixed_sample(*sample) for sample in SAMPLES]), **GREEDY, num_beams=3)
    assert crops == [6]


def test_cached_generation_equals_a_forward_pass(brief_model):
    model, sample = brief_model(), mixed_sample(crops=2)
    outputs = model.generate(**sample, **GREEDY, output_logits=True, return_dict_in_generate=True)
    full = model(
        **sample | {"input_ids": outputs.sequences, "attention_mask": torch.ones_like(outputs.sequences)}
    ).logits
    prompt = sample["input_ids"].shape[1]
    assert_close(torch.stack(outputs.logits, 1), full[:, prompt - 1 : -1], atol=1e-4)


LONGROPE = {
    "max_position_embeddings": 128,
    "original_max_position_embeddings": 32,
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 10000.0, "factor": 4.0,
        "short_factor": [1.0] * 32, "long_factor": [1.0 + index for index in range(32)],
    },
}  # fmt: skip


def phi3_of(model):
    phi3 = Phi3ForCausalLM(model.config.text_config).eval()
    phi3.model.load_state_dict(model.model.language_model.state_dict())
    phi3.lm_head.load_state_dict(model.lm_head.state_dict())
    return phi3


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}])
def test_generation_across_the_longrope_switch_equals_phi3s(brief_model, options):
    model = brief_model(text_config=LONGROPE)
    phi3 = phi3_of(model)
    prompt = torch.randint(50, 160, (2, 24))
    options |= {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "output_logits": True,
                "return_dict_in_generate": True}  # fmt: skip
    ours, theirs = model.generate(prompt, **options), phi3.generate(prompt, **options)
    assert torch.equal(ours.sequences, theirs.sequences)
    assert_close(torch.stack(ours.logits), torch.stack(theirs.logits), atol=1e-4)


@pytest.mark.parametrize("given", ["ids", "ids and embeddings", "embeddings"])
def test_media_survive_the_longrope_switch(brief_model, given):
    """At the switch the cache is dropped and everything read again: with the pictures and sounds in it."""
    model = brief_model(text_config=LONGROPE)
    model.config.text_config.eos_token_id = None
    sample = mixed_sample(1, (1.0,), (50, 51))
    prompt = sample["input_ids"].shape[1]
    assert prompt < 32
    options = {"max_new_tokens": 40 - prompt, "do_sample": False, "eos_token_id": None, "output_logits": True,
               "return_dict_in_generate": True}  # fmt: skip
    inputs = dict(sample)
    if given != "ids":
        inputs["inputs_embeds"] = model.get_input_embeddings()(sample["input_ids"])
    if given == "embeddings":
        del inputs["input_ids"]
    outputs = model.generate(**inputs, **options)
    if given == "embeddings":  # transformers then returns what was written alone
        outputs.sequences = torch.cat([sample["input_ids"], outputs.sequences], dim=1)
    full = sample | {"input_ids": outputs.sequences, "attention_mask": torch.ones_like(outputs.sequences)}
    for length in (31, 32, 33, 36):  # a forward pass over the first `length` tokens is the truth on both sides
        cut = full | {name: full[name][:, :length] for name in ("input_ids", "attention_mask")}
        assert_close(outputs.logits[length - prompt], model(**cut).logits[:, -1], atol=1e-4)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"do_sample": True, "num_return_sequences": 3, "top_k": 1}])
def test_embeddings_alone_generate_the_same_with_beams(brief_model, options):
    model = brief_model()
    sample = mixed_sample(2, (1.0, 0.5), (50, 51))
    options = options | {"max_new_tokens": 6, "eos_token_id": None}
    by_ids = model.generate(**sample, **options)[:, sample["input_ids"].shape[1] :]
    ids = sample.pop("input_ids")
    assert torch.equal(model.generate(**sample, inputs_embeds=model.get_input_embeddings()(ids), **options), by_ids)


def test_stop_strings_end_the_answer(brief_model):
    tokenizer = AutoTokenizer.from_pretrained(ROOT, trust_remote_code=False)
    model = brief_model()
    prompt = torch.tensor([[50, 51]])
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    free = model.generate(prompt, **options)
    stop = tokenizer.decode(free[0, 2:4])
    stopped = model.generate(prompt, stop_strings=[stop], tokenizer=tokenizer, **options)
    assert stopped.shape[1] < free.shape[1] and stop in tokenizer.decode(stopped[0, 2:])


def test_decoder_mode_generates_from_one_placeholder_a_window(brief_model):
    """What `generate` writes from sound alone equals what it writes with the transcript given and expanded."""
    model = lively_decoder(brief_model(**DECODER_MODE))
    media = sound(2.0, 2.0, 2.0)
    short = pad_left([30, *window(1), 40, *window(1), 31], [30, 41, 42, 43, *window(1), 31])
    ids, transcript = model.generate(**short, **media, max_new_tokens=5, do_sample=False, return_transcript=True)
    assert torch.equal(ids[:, : short["input_ids"].shape[1]], short["input_ids"]), (
        "the prompt comes back as it was given"
    )

    mask = (transcript != 2).long()
    a, b, c = mask.sum(-1).tolist()
    full = pad_left([30, *window(a), 40, *window(b), 31], [30, 41, 42, 43, *window(c), 31])
    known = {"audio_transcript_ids": transcript, "audio_transcript_mask": mask}
    expected = model.generate(**full, **media, **known, max_new_tokens=5, do_sample=False)
    assert torch.equal(ids[:, short["input_ids"].shape[1] :], expected[:, full["input_ids"].shape[1] :])
    again = model.generate(**short, **media, max_new_tokens=5, do_sample=False, return_transcript=True,
                           return_dict_in_generate=True)  # fmt: skip
    assert torch.equal(again.sequences, ids) and torch.equal(again.audio_transcript_ids, transcript)
    loss = model(**full, **media, **known, labels=full["input_ids"]).loss
    loss.backward()
    assert model.model.audio_tower.decoder.layers[0].fc1.weight.grad.abs().sum() > 0


def test_decoder_mode_hears_silence_as_no_tokens(brief_model):
    model = brief_model(**DECODER_MODE)
    embedding = model.model.audio_tower.decoder.embed_tokens.weight.data
    embedding.zero_()
    model.model.audio_tower.decoder.layer_norm.bias.data.fill_(1.0)
    embedding[2] = 1.0  # the end token always wins
    prompt = pad_left([30, *window(1), 31])
    ids, transcript = model.generate(**prompt, **sound(2.0), max_new_tokens=2, do_sample=False, return_transcript=True)
    silent = model.generate(**pad_left([30, *window(0), 31]), max_new_tokens=2, do_sample=False)
    assert transcript.shape == (1, 0) and torch.equal(ids[:, -2:], silent[:, -2:])
