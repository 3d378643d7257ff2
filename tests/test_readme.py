"""The README: its Python runs and prints what it says, its header is a model card's, and what it names exists."""

import re
from contextlib import redirect_stdout
from io import StringIO

import pytest
from conftest import IN_TRAINING, ROOT
from huggingface_hub import ModelCard

README = (ROOT / "README.md").read_text()


def snippets():
    """The blocks marked ```python, top to bottom."""
    return re.findall(r"^```python\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def printed():
    """(printed, promised) lines of each snippet, run in one namespace as a reader would: `print(...)  # promised`."""
    namespace, lines = {}, []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        for snippet in snippets():
            with redirect_stdout(StringIO()) as output:
                exec(compile(snippet, "README.md", "exec"), namespace)
            promised = re.findall(r"^print\(.*\)  # (.*)$", snippet, flags=re.MULTILINE)
            lines.append((output.getvalue().splitlines(), promised))
    return lines


def test_every_snippet_runs_and_prints_a_line_a_print(printed):
    assert len(printed) >= 5
    for (output, promised), snippet in zip(printed, snippets(), strict=True):
        assert len(output) == len(promised) == snippet.count("print("), snippet


@IN_TRAINING
def test_snippets_print_what_they_promise(printed):
    for output, promised in printed:
        assert output == promised


def test_the_header_is_a_model_cards():
    card = ModelCard(README).data
    assert card.license == "apache-2.0"
    assert card.library_name == "transformers"
    assert card.pipeline_tag == "any-to-any"
    assert card.language == ["en"]
    for example in card.widget:
        assert (ROOT / example["src"]).is_file()


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "assets/README.md", "docs/training.md"])
def test_files_it_names_exist(page):
    text = (ROOT / page).read_text()
    named = re.findall(r"`([\w./-]+(?:\.(?:py|md|json|jinja|html|png|wav|mp4|txt|toml)|/))`", text)
    assert named
    for name in named:
        places = [ROOT / name, (ROOT / page).parent / name]
        assert any(place.exists() for place in places), f"{page} names {name}"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_targets_it_names_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+(?:-[a-z]+)*)", (ROOT / page).read_text()))
    assert {"test"} <= named <= targets
