"""Small tokenizers with the special tokens of a model family, trained on the spot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parent / "templates"

# name of the template file -> (bos, eos, further special tokens). Files that are not ours come with TRL.
FAMILIES: dict[str, tuple[str | None, str, tuple[str, ...]]] = {
    "llama2": ("<s>", "</s>", ()),
    "llama3": ("<|begin_of_text|>", "<|eot_id|>", ("<|start_header_id|>", "<|end_header_id|>")),
    "llama3_1": ("<|begin_of_text|>", "<|eot_id|>", ("<|start_header_id|>", "<|end_header_id|>")),
    "llama3_2": ("<|begin_of_text|>", "<|eot_id|>", ("<|start_header_id|>", "<|end_header_id|>")),
    "qwen2_5": (None, "<|im_end|>", ("<|im_start|>", "<|endoftext|>")),
    "qwen3": (None, "<|im_end|>", ("<|im_start|>", "<|endoftext|>")),
    "qwen3_instruct_2507": (None, "<|im_end|>", ("<|im_start|>", "<|endoftext|>")),
    "smollm2": ("<|im_start|>", "<|im_end|>", ("<|endoftext|>",)),
    "gemma": ("<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>")),
    "gemma2": ("<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>")),
    "gemma3": ("<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>")),
    "mistral_v1": ("<s>", "</s>", ()),
    "mistral_v3": ("<s>", "</s>", ("[INST]", "[/INST]")),
    "mistral_tekken": ("<s>", "</s>", ("[INST]", "[/INST]")),
    "mistral_v7": ("<s>", "</s>", ("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")),
    "phi3": ("<s>", "<|endoftext|>", ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>")),
    "phi3_5": ("<s>", "<|endoftext|>", ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>")),
    "phi4": ("<|endoftext|>", "<|im_end|>", ("<|im_start|>", "<|im_sep|>")),
    "deepseek_v2": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", ()),
    "deepseekv3": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", ("<｜User｜>", "<｜Assistant｜>")),
    "deepseek_r1_distill": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", ("<｜User｜>", "<｜Assistant｜>")),
    "zephyr": ("<s>", "</s>", ()),
    "vicuna": ("<s>", "</s>", ()),
    "openchat": ("<s>", "<|end_of_turn|>", ()),
    "granite3": (None, "<|end_of_text|>", ("<|start_of_role|>", "<|end_of_role|>")),
    "olmo2": ("<|endoftext|>", "<|endoftext|>", ()),
    "cohere": (
        "<BOS_TOKEN>",
        "<|END_OF_TURN_TOKEN|>",
        ("<|START_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>"),
    ),
    "glm4moe": (None, "<|user|>", ("[gMASK]", "<sop>", "<|assistant|>", "<|system|>", "<|observation|>")),
    "lfm2": ("<|startoftext|>", "<|im_end|>", ("<|im_start|>",)),
}

SENTENCEPIECE = {
    "llama2",
    "mistral_v1",
    "mistral_v3",
    "vicuna",
    "zephyr",
    "gemma",
    "gemma2",
    "gemma3",
    "phi3",
    "phi3_5",
}

TEXTS = [
    "What is 2 + 2? It is 4. Answer in one word. Be kind.",
    "A chat between a curious user and an artificial intelligence assistant. USER: Hello ASSISTANT: Hi",
    "Und auf Deutsch, bitte? kurz, höflich, gern geschehen. User: Assistant: [INST] [/INST] system assistant user",
]


def template_text(name: str) -> str:
    """The published chat template of a family: our file, or the one that TRL ships."""
    ours = TEMPLATES / f"{name}.jinja"
    if ours.is_file():
        return ours.read_text(encoding="utf-8").removesuffix("\n")
    import trl

    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def build_tokenizer(bos: str | None, eos: str, special: Sequence[str], template: str, *, sentencepiece: bool) -> Any:
    """A fast tokenizer: byte-level BPE, or BPE over "▁" words with byte fall-back as SentencePiece models have."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokens = list(dict.fromkeys(["<unk>", *([bos] if bos else []), eos, *special]))
    if sentencepiece:
        backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        tokens += [f"<0x{byte:02X}>" for byte in range(256)]
        alphabet: list[str] = []
    else:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=tokens, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXTS * 3, trainer)
    if sentencepiece:  # as in the converted Llama tokenizers: learnt on words, applied to the whole text
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    named = {"bos_token": bos} if bos else {}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=eos, unk_token="<unk>", additional_special_tokens=list(special), **named
    )
    tokenizer.chat_template = template
    return tokenizer


def family_tokenizer(name: str) -> Any:
    """The small tokenizer of a family, with its template."""
    bos, eos, special = FAMILIES[name]
    return build_tokenizer(bos, eos, special, template_text(name), sentencepiece=name in SENTENCEPIECE)
