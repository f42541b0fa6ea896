"""Tiny data in the official layout of every task, with a signal that can be learned, and tiny exported encoders.

The label is told by a word ("good", "bad", "dull") in the last text; a score by how many of its words are "good"; the
answer of a question is "mark good", and there is none where these words are missing.
"""

import json
import lzma
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForTokenClassification, ElectraForPreTraining, PreTrainedTokenizerFast

from fast_electra.models.encoder import transformers_config
from fast_electra.settings.config import EncoderConfig

FILLERS = [f"w{number}" for number in range(12)]
RARE = [f"r{number}" for number in range(80)]
SIGNALS = ["bad", "good", "dull"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
NLI = ["entailment", "neutral", "contradiction"]
ENTAILMENT = ["entailment", "not_entailment"]
HEADERS = {
    "SST-2": "sentence\tlabel",
    "MRPC": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "STS-B": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
    "QQP": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
    "MNLI": "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t"
    "sentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
    "QNLI": "index\tquestion\tsentence\tlabel",
    "RTE": "index\tsentence1\tsentence2\tlabel",
    "WNLI": "index\tsentence1\tsentence2\tlabel",
}
TEST_HEADERS = {
    "CoLA": "index\tsentence",
    "SST-2": "index\tsentence",
    "MRPC": "index\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "QQP": "id\tquestion1\tquestion2",
    "QNLI": "index\tquestion\tsentence",
}
NAMES = {"MNLI": NLI, "QNLI": ENTAILMENT, "RTE": ENTAILMENT}


def texts(draw, label):
    """A pair of texts of which the second tells the label, with quotation marks that must not be taken for quoting."""
    words = [draw.choice(FILLERS) for _ in range(draw.randint(3, 8))]
    words.insert(draw.randrange(len(words) + 1), SIGNALS[label])
    return f'"{draw.choice(FILLERS)} {draw.choice(FILLERS)}', " ".join(words)


def line(task, index, label, draw):
    """A line of train.tsv or dev.tsv, and the label or score that it holds."""
    first, second = texts(draw, label)
    name = NAMES.get(task, ["0", "1"])[label]
    if task == "STS-B":
        good = draw.randint(0, 5)
        second = " ".join(["good"] * good + ["bad"] * (5 - good))
        return f"{index}\tg\tf\t2012\t1\tn\tn\t{first}\t{second}\t{good:.3f}"
    return {
        "CoLA": f"gj04\t{name}\t\t{second}",
        "SST-2": f"{second} \t{name}",
        "MRPC": f"{name}\t1\t2\t{first}\t{second}",
        "QQP": f"{index}\t1\t2\t{first}\t{second}\t{name}",
        "MNLI": f"{index}\t1\t2\tg\tp\tp\tp\tp\t{first}\t{second}\t{name}\t{name}",
    }.get(task, f"{index}\t{first}\t{second}\t{name}")


def write_task(folder: Path, task: str, train: int = 128, dev: int = 32, test: int = 0, seed: int = 0) -> Path:
    """One task's official files below `folder`."""
    draw = random.Random(f"{task} {seed}")
    labels = len(NAMES.get(task, "01"))
    place = folder / task
    place.mkdir(parents=True)
    for stem, count in {"train": train, "dev": dev}.items():
        for name in ["dev_matched", "dev_mismatched"] if (task, stem) == ("MNLI", "dev") else [stem]:
            lines = [line(task, index, index % labels, draw) for index in range(count)]
            header = [HEADERS[task]] if task in HEADERS else []
            (place / f"{name}.tsv").write_text("\n".join(header + lines) + "\n", encoding="utf-8")
    for name in ["test_matched", "test_mismatched"] if task == "MNLI" else ["test"]:
        if test:
            header = TEST_HEADERS.get(task, "index\tsentence1\tsentence2")
            pairs = [texts(draw, index % labels) for index in range(test)]
            pairs = [pair[1:] if task in ("CoLA", "SST-2") else pair for pair in pairs]
            ids = ["1", "2"] if task == "MRPC" else []
            rows = ["\t".join([str(index), *ids, *pair]) for index, pair in enumerate(pairs)]
            (place / f"{name}.tsv").write_text("\n".join([header, *rows]) + "\n")
    return folder


def write_hard_rte(folder: Path, train: int, dev: int) -> Path:
    """RTE's files with a label that no one word tells: each of many words pulls one way or the other, the sum decides.

    The few examples leave many words unsure, so that results depend on the seed as they do on real data.
    """
    draw = random.Random(0)
    pull = {word: draw.choice([-1.0, 1.0]) * draw.random() for word in RARE}
    (folder / "RTE").mkdir(parents=True)
    for split, count in {"train": train, "dev": dev}.items():
        lines = [HEADERS["RTE"]]
        for index in range(count):
            words = [draw.choice(RARE) for _ in range(8)]
            label = ENTAILMENT[sum(pull[word] for word in words) > 0]
            lines.append(f"{index}\t{draw.choice(FILLERS)}\t{' '.join(words)}\t{label}")
        (folder / "RTE" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def write_squad(folder: Path, version: str, train: int = 128, dev: int = 32) -> Path:
    """SQuAD's two files; with version 2.0 every third question has no answer."""
    draw = random.Random(version)
    for split, count in {"train": train, "dev": dev}.items():
        paragraphs = []
        for index in range(count):
            words = [draw.choice(FILLERS) for _ in range(draw.randint(6, 14))]
            possible = version == "1.1" or index % 3 > 0
            at = draw.randrange(len(words) - 1)
            if possible:
                words[at : at + 2] = ["mark", "good"]
            answer = {"text": "mark good", "answer_start": len(" ".join(words[:at])) + (at > 0)}
            question = {"id": f"{split}{index}", "question": "where is it", "answers": [answer] if possible else []}
            paragraphs.append({"context": " ".join(words), "qas": [question]})
        content = {"version": version, "data": [{"title": "t", "paragraphs": paragraphs}]}
        with lzma.open(folder / f"{split}-v{version}.json.xz", "wt", preset=0) as file:
            json.dump(content, file)
    return folder


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word."""
    words = [*SPECIAL, '"', *SIGNALS, *FILLERS, *RARE, "mark", "where", "is", "it"]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    roles = dict(zip(("pad", "unk", "cls", "sep", "mask"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **{f"{role}_token": token for role, token in roles.items()},
    )


def export(folder: Path, kind: str = "modernbert", num_layers: int = 2) -> str:
    """A new encoder with a replaced-token head, saved as a run exports it."""
    torch.manual_seed(0)
    words = tokenizer()
    config = transformers_config(EncoderConfig(kind, num_layers, 32, 2, 48, max_positions=64), words)
    model = ElectraForPreTraining(config) if kind == "electra" else AutoModelForTokenClassification.from_config(config)
    with torch.no_grad():  # spread-out embeddings: a post-norm encoder this small learns nothing from close ones
        model.get_input_embeddings().weight.mul_(10)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)
