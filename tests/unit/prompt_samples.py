"""Pairs, text settings and control tokens that several tests use."""

import pyarrow as pa

TEXT = {
    "template": "<prompt>: {prompt}\n\n<response_a>: {response_a}"
    "\n\n<response_b>: {response_b}\n\n<verdict>:",
    "turn": "\n<turn {n}>: ",
    "max_length": 512,
    "prompt_share": 0.25,
    "head_share": 0.5,
}
FAMILIES = {
    "llama3": (
        *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>"),
        *("<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>"),
        *("<|finetune_right_pad_id|>", "<|reserved_special_token_0|>"),
    ),
    "qwen": (
        *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_pad|>", "<tool_call>"),
        *("</tool_call>", "<|vision_start|>", "<|object_ref_start|>", "<think>"),
    ),
    "gemma": (
        *("<bos>", "<eos>", "<pad>", "<unk>", "<mask>", "<start_of_turn>"),
        *("<end_of_turn>", "<start_of_image>", "[multimodal]", "<unused0>"),
    ),
    "smollm2": (
        *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<reponame>"),
        *("<file_sep>", "<filename>", "<gh_stars>", "<issue_start>", "<empty_output>"),
    ),
    "mistral": (
        *("<s>", "</s>", "<unk>", "[INST]", "[/INST]", "[TOOL_CALLS]"),
        *(
            "[AVAILABLE_TOOLS]",
            "[/AVAILABLE_TOOLS]",
            "[TOOL_RESULTS]",
            "[SYSTEM_PROMPT]",
        ),
    ),
}
CONTROL = sorted({*sum(FAMILIES.values(), ()), "<|end|>"})


def table_of(pairs) -> pa.Table:
    names = ("id", "prompt", "response_a", "response_b")
    return pa.table(dict(zip(names, map(list, zip(*pairs, strict=True)), strict=True)))


def decoded(tokenizer, encoded, row, view="AB"):
    tokens = encoded.tokens(row, view)
    return tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
