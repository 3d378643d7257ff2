"""Whether a checkpoint of full size runs here: loads it in bfloat16 and has it write to a picture, a sound and text.

    python -m training.full_size --model runs/eagle
    python -m training.full_size --model runs/eagle --tokens 8

Prints the seconds, the tokens and the peak memory (resident set) of each step. A training step is training/sft.py's:
`--max_steps 1` of training/recipes/align/full.yaml.
"""

import argparse
import resource
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoModelForMultimodalLM, AutoProcessor

ASSETS = Path(__file__).parents[1] / "assets"


@contextmanager
def measured(what: str):
    """Prints how long the block took and the peak memory of the process since its start."""
    start = time.perf_counter()
    yield
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{what:<10}{time.perf_counter() - start:8.1f} s   peak memory {peak / 1e9:5.2f} GB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a checkpoint")
    parser.add_argument("--tokens", type=int, default=1, help="tokens to write (default: %(default)s)")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with measured("load"):
        processor = AutoProcessor.from_pretrained(args.model, trust_remote_code=True)
        model = AutoModelForMultimodalLM.from_pretrained(args.model, trust_remote_code=True, dtype=torch.bfloat16).to(device)
    content = [
        {"type": "image", "image": str(ASSETS / "sign.png")},
        {"type": "audio", "audio": str(ASSETS / "spoken_fact.wav")},
        {"type": "text", "text": "what does the sign say?"},
    ]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
    ).to(device)
    prompt = inputs["input_ids"].shape[1]
    with measured("generate"):
        ids = model.eval().generate(**inputs, max_new_tokens=args.tokens, min_new_tokens=args.tokens, do_sample=False)
    print(f"{model.num_parameters():,} parameters in {model.dtype} on {device}, threads: {torch.get_num_threads()}; ", end="")
    print(f"prompt: {prompt} tokens, of which {int((inputs['input_ids'] == processor.image_token_id).sum())} seen and ", end="")
    print(f"{int((inputs['input_ids'] == processor.audio_token_id).sum())} heard; written: {ids[0, prompt:].tolist()}")


if __name__ == "__main__":
    main()
