"""Benchmark tasks, through EleutherAI's lm-evaluation-harness.

    pip install -e '.[eval]' -c constraints.txt

    nanogpt eval out/shakespeare --tasks lambada_openai,piqa
    nanogpt eval out/gpt2 --tasks core

The model is converted to its transformers class in this process; results equal `lm_eval --model hf`
on its export.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from nanogpt.data.files import first_line
from nanogpt.hub import weights
from nanogpt.hub.export import check_own_class, write_tokenizer
from nanogpt.model import GPT
from nanogpt.run.errors import out_of_memory
from nanogpt.text.generate import default_prompt


class CoreTask(NamedTuple):
    """A task of CORE (Li et al. 2024, DataComp-LM) as lm_eval has it."""

    task: str
    shots: int  # worked examples before each question
    baseline: float  # accuracy of guessing
    metric: str = "acc_norm,none"


# The greedy continuation must equal the answer. lm_eval's own metric for these tasks ignores
# punctuation, which is all of an answer in dyck_languages.
STRIP = [{"function": "remove_whitespace"}, {"function": "take_first"}]
EXACT = {
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    "filter_list": [{"name": "strip", "filter": STRIP}],
}
LANGUAGE = "bigbench_language_identification_multiple_choice"
WRITTEN = "exact_match,strip"  # the metric of these tasks

# 20 of the 22 tasks: lm_eval has neither Jeopardy nor SQuAD 1.1
CORE = {
    "hellaswag_zeroshot": CoreTask("hellaswag", 0, 0.25),
    "bigbench_qa_wikidata": CoreTask("bigbench_qa_wikidata_generate_until", 10, 0, WRITTEN),
    "arc_easy": CoreTask("arc_easy", 10, 0.25),
    "arc_challenge": CoreTask("arc_challenge", 10, 0.25),
    "copa": CoreTask("copa", 0, 0.5, "acc,none"),
    "commonsense_qa": CoreTask("commonsense_qa", 10, 0.2, "acc,none"),
    "piqa": CoreTask("piqa", 10, 0.5),
    "openbook_qa": CoreTask("openbookqa", 0, 0.25),
    "lambada_openai": CoreTask("lambada_openai", 0, 0, "acc,none"),
    "hellaswag": CoreTask("hellaswag", 10, 0.25),
    "winograd": CoreTask("wsc273", 0, 0.5, "acc,none"),
    "winogrande": CoreTask("winogrande", 0, 0.5, "acc,none"),
    "bigbench_dyck_languages": CoreTask("bigbench_dyck_languages_generate_until", 10, 0, WRITTEN),
    "agi_eval_lsat_ar": CoreTask("agieval_lsat_ar", 3, 0.2),
    "bigbench_cs_algorithms": CoreTask("bigbench_cs_algorithms_generate_until", 10, 0, WRITTEN),
    "bigbench_operators": CoreTask("bigbench_operators_generate_until", 10, 0, WRITTEN),
    "bigbench_copy_logic": CoreTask("bigbench_repeat_copy_logic_generate_until", 10, 0, WRITTEN),
    "coqa": CoreTask("coqa", 0, 0, "em,none"),
    "boolq": CoreTask("boolq", 10, 0.62, "acc,none"),
    "bigbench_language": CoreTask(LANGUAGE, 10, 0.091, "acc,none"),
}


def evaluate(
    model: GPT, tokenizer, tasks: list[str], limit: int | None = None, batch_size: int = 8
) -> Iterator[tuple[str, dict]]:
    """Yields (task, results) as soon as they exist, with lm_eval's names.

    The task "core" stands for all of CORE and adds the mean of their centered accuracies. `limit`
    is the number of examples per task, also of CORE. Moves the model to the CPU. Raises ValueError
    for a task that is unknown or fails, or if no transformers class supports the model.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoTokenizer

    # lm_eval generates up to 256 tokens, or an end of text
    if "core" in tasks and (tokenizer.eot_id is None or model.config.block_size <= 256):
        raise ValueError("--tasks core needs an end-of-text token and a context above 256 tokens")
    manager = TaskManager()
    for name in tasks:
        if name not in ("core", *manager.all_tasks):
            raise ValueError(f"unknown task {name!r}: `lm_eval ls tasks` lists all")
    device = model.wte.weight.device
    with tempfile.TemporaryDirectory() as directory:
        write_tokenizer(Path(directory), model, tokenizer)
        hf_tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    check_own_class(model.cpu())
    native = weights.to_transformers(model, tokenizer.eot_id).to(device)
    # precedes a text without context
    prefix = default_prompt(tokenizer)[1][0] if tokenizer.eot_id is None else tokenizer.eot_id
    lm = HFLM(
        pretrained=native,
        tokenizer=hf_tokenizer,
        batch_size=batch_size,
        max_length=model.config.block_size,
        prefix_token_id=prefix,
    )

    def run(name: str, task: str | dict, shots: int | None = None) -> dict:
        options = {"task_manager": manager, "num_fewshot": shots, "limit": limit}
        try:
            return lm_eval.simple_evaluate(lm, tasks=[task], **options)["results"]
        except Exception as error:  # no room for an answer, no end of text, the network
            if out_of_memory(error):
                raise
            why = f"lm_eval cannot evaluate {name} ({first_line(error)})"
            raise ValueError(f"{why}: check the network, or choose other tasks") from error

    for name in tasks:
        if name != "core":
            yield from run(name, name).items()
    if "core" not in tasks:
        return
    # centered is 0 for guessing and 1 for perfect
    centered = []
    for name, task in CORE.items():
        member = {"task": task.task, **(EXACT if task.metric == WRITTEN else {})}
        group = {"group": "core", "task": [member]}
        accuracy = float(run(name, group, task.shots)[task.task][task.metric])
        centered.append((accuracy - task.baseline) / (1 - task.baseline))
        yield f"core/{name}", {task.metric: accuracy, "centered,none": centered[-1]}
    yield "core", {"centered,none": sum(centered) / len(centered)}
