"""EAGLE as a model of lmms-eval 0.7.3, to cross-check this repository's harness, or to run lmms-eval's own tasks.

    make lmms-eval
    export PYTHONPATH=build/lmms-eval:eval/entry_points
    python -m lmms_eval --model eagle --model_args pretrained=. --tasks my_task --include_path my_tasks --batch_size 8
    python -m lmms_eval --model eagle --model_args pretrained=.,dtype=bfloat16,image_layout=overview --tasks mmmu_val
    python -m lmms_eval --model eagle --model_args pretrained=. --tasks choices --include_path my_tasks --force_simple

lmms-eval finds the model through the entry point that eval/entry_points holds: a folder on PYTHONPATH with the two text
files that an installed package would have, as EAGLE is run from its checkout. `build/lmms-eval` holds lmms-eval itself
and is left out where it is installed otherwise. The answers are those of `eval.models.TorchModel`, greedy whatever the
task's file asks for.

What lmms-eval 0.7.3 does differently, and what follows:

* A task of output type `multiple_choice` is refused for models that take messages: it needs `--force_simple`.
* It takes the choice with the *lowest* value and turns the pair (value, is_greedy) of an answer into a string, on which
  scoring fails. So `loglikelihood` returns negative log-likelihoods, in the wrapper that it leaves alone. A task's own
  `process_results` gets them with this sign too. `acc_mutual_info` stays wrong: it takes the highest there.
* Tasks with audio columns need torchcodec, because it decodes the first row itself. Sound is read by soundfile here.
* `--use_cache` answers from the cache after the weights have changed: leave it out.
* Answers end at "\\n\\n" where a task names no `until`; templates and the description lose a newline at their end.

Not supported: several rounds of questions, and agents.
"""

import functools
import json
import os
from itertools import groupby

import torch
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from tqdm import tqdm

from eval.models import Answer, TorchModel
from eval.task import Request, Rows, medium_part, own_form

MANIFEST = ModelManifest(
    "eagle",
    simple_class_path="eval.lmms_eval_adapter.EagleSimple",
    chat_class_path="eval.lmms_eval_adapter.Eagle",
)


class EagleSimple(lmms):
    """For `--force_simple`: a question is a text and what `doc_to_visual` shows before it.

    pretrained: a folder or a Hub repository. batch_size: questions at once. dtype: "float32", "bfloat16", "float16" or
    "auto"; None: float32 on a CPU, else auto. device: as torch names it; None: this process's GPU, or the CPU.
    image_layout: "grid" or "overview"; None: as the processor has it.
    """

    is_simple = True

    def __init__(self, pretrained, batch_size=1, dtype=None, device=None, image_layout=None):
        super().__init__()
        gpu = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        self.device = torch.device(device or (gpu if torch.cuda.is_available() else "cpu"))
        dtype = dtype or ("float32" if self.device.type == "cpu" else "auto")
        self.batch_size = int(batch_size)
        self.torch_model = TorchModel(str(pretrained), dtype, str(self.device), image_layout)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """An answer each. Batches are of equal settings and of texts of like length, as in lmms-eval's own models."""

        def settings(index: int) -> str:
            return json.dumps(generation_kwargs(requests[index]), sort_keys=True)

        order = sorted(range(len(requests)), key=lambda index: (settings(index), -len(requests[index].args[0])))
        batches = [batch for _, group in groupby(order, settings) for batch in self.batched(list(group))]
        answers = {}
        for batch in self.progress(batches):
            given = self.answer([self.request(requests[index]) for index in batch])
            answers |= dict(zip(batch, given, strict=True))
        return [answers[index].text for index in range(len(requests))]

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """(-log-likelihood, is_greedy) each; a question's choices are asked together and count as one in a batch."""

        def question(request: Instance) -> tuple:
            text, _, _, *place = request.args
            return text, *place

        questions = [list(group) for _, group in groupby(requests, question)]
        values = []
        for batch in self.progress(self.batched(questions)):
            for answer in self.answer([self.choice_request(choices) for choices in batch]):
                values += [GenerationResult((-logprob, is_greedy)) for logprob, is_greedy in answer.logprobs]
        return values

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError("EAGLE's adapter asks one question at a time; run this task without it")

    def answer(self, requests: list[Request]) -> list[Answer]:
        return self.torch_model.answer(requests, self.torch_model.prepare(requests))

    def batched(self, items: list) -> list[list]:
        return [items[start : start + self.batch_size] for start in range(0, len(items), self.batch_size)]

    def progress(self, batches: list) -> tqdm:
        return tqdm(batches, desc="EAGLE answers", unit="batch", disable=self.rank > 0)

    def request(self, instance: Instance) -> Request:
        text, kwargs, doc_to_visual, *place = instance.args
        return Request(self.messages(text, doc_to_visual, *place), generation_kwargs=kwargs)

    def choice_request(self, choices: list[Instance]) -> Request:
        """As `eval.task` asks it: text alone gets no chat template."""
        text, _, doc_to_visual, *place = choices[0].args
        messages = self.messages(text, doc_to_visual, *place)
        has_media = len(messages[0]["content"]) > 1
        return Request(messages if has_media else text, choices=[instance.args[1] for instance in choices])

    def messages(self, text: str, doc_to_visual, *place) -> list[dict]:
        media = [medium_part(medium) for medium in doc_to_visual(self.doc(*place)) or []]
        return [{"role": "user", "content": [*media, {"type": "text", "text": text}]}]

    def doc(self, doc_id: int, task: str, split: str) -> dict:
        return self.rows(task, split)[doc_id]

    @functools.cache  # noqa: B019 (lives as long as the process)
    def rows(self, task: str, split: str) -> Rows:
        return Rows(self.task_dict[task][split])


class Eagle(EagleSimple):
    """A question is the messages of the task's `doc_to_messages`; of a task without, the same as in EagleSimple.

    lmms-eval would make messages for a task without, but takes sound for a video and leaves out the description.
    """

    is_simple = False

    def request(self, instance: Instance) -> Request:
        text, doc_to_messages, kwargs, *place = instance.args
        task = doc_to_messages.__self__
        if not task.config.doc_to_messages:
            return Request(self.messages(text, task.doc_to_visual, *place), generation_kwargs=kwargs)
        asked = doc_to_messages(self.doc(*place))
        asked = asked if isinstance(asked, dict) else {"messages": asked, "tools": None}
        return Request([own_form(message) for message in asked["messages"]], asked["tools"], None, kwargs)


def generation_kwargs(instance: Instance) -> dict:
    """Those of a request of either kind: they stand before or after the function that makes the question."""
    return next(argument for argument in instance.args if isinstance(argument, dict))
