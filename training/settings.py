"""What the content of a folder follows from, kept beside it: the same command goes on there, another one is refused."""

import json
from collections.abc import Iterator
from pathlib import Path

from training.parts import sha256
from training.shards import write_beside

SETTINGS = "settings.json"
READ = ("*.safetensors", "tokenizer.json", "chat_template.jinja")  # of a checkpoint that training starts from


def keep(folder: Path, settings: dict) -> None:
    """Writes the settings into the folder, which is made; raises ValueError where others lie there."""
    file = folder / SETTINGS
    settings = json.loads(json.dumps(settings))  # as it is read back
    begun = json.loads(file.read_text()) if file.exists() else settings
    if changed := "; ".join(differences(begun, settings)):
        raise ValueError(f"{folder} was begun with other settings: {changed}. Remove it, or name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_beside(file, settings)


def differences(old: dict, new: dict, within: str = "") -> Iterator[str]:
    for key in dict.fromkeys([*old, *new]):
        before, now = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            yield from differences(before, now, f"{within}{key}.")
        elif before != now:
            yield f"{within}{key} {before!r}, now {now!r}"


def fingerprint(model: str) -> dict[str, str]:
    """SHA-256 of each weight file, the tokenizer and the template in a folder; empty for a model of the Hub, which has a revision."""
    return {file.name: sha256(file) for pattern in READ for file in sorted(Path(model).glob(pattern))}
