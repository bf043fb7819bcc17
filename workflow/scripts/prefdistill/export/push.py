"""Upload a release folder to the Hub, or only list the files of the upload.

The token comes from the environment variable HF_TOKEN, and from nowhere else. A new
repository is private: make it public on its page, once you have read the licences.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from prefdistill.errors import UserError, one_line
from prefdistill.export.release import CARD_FILE, release_files
from prefdistill.models.manifests import WEIGHTS, tensor_header
from prefdistill.version import __version__


def describe(folder: Path, repository: str) -> str:
    """List the files of an upload, and the card's notes on licences.

    Args:
        folder: The release folder.
        repository: ``owner/name`` on the Hub.

    Raises:
        UserError: If a file of the release is missing, or the weights are damaged.
    """
    files = release_files(folder)
    tensor_header(folder / WEIGHTS)
    total = sum(path.stat().st_size for path in files)
    lines = [f"{folder} -> {repository} (private if it is new)"]
    lines += [f"{path.stat().st_size:>14,}  {path.name}" for path in files]
    lines.append(f"{total:>14,}  bytes in {len(files)} files")
    card = (folder / CARD_FILE).read_text(encoding="utf-8")
    lines += ["", "Licences" + card.partition("## Licences")[2].rstrip()]
    return "\n".join(lines)


def push(folder: Path, repository: str) -> str:
    """Upload the files of a release in one commit, and return the commit's address.

    Args:
        folder: The release folder.
        repository: ``owner/name`` on the Hub; created as private if it is new.

    Raises:
        UserError: If there is no token, or the Hub refuses.
    """
    token = os.environ.get("HF_TOKEN")
    if not token:
        raise UserError("HF_TOKEN: is not set; set it to a token with write access")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    hub = HfApi(token=token)
    try:
        hub.create_repo(repository, private=True, exist_ok=True)
        commit = hub.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=[path.name for path in release_files(folder)],
            commit_message=f"prefdistill {__version__}",
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = one_line(error).replace(token, "...")
        raise UserError(
            f"{repository}: not uploaded ({reason}); check the name, the network and "
            "that the token may write there"
        ) from error
    return commit.commit_url


def main(arguments: Sequence[str], prog: str) -> None:
    """Run ``prefdistill push``.

    Args:
        arguments: The command's arguments.
        prog: Name of the command in its usage.

    Raises:
        UserError: As ``describe`` and ``push``.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Show what an upload of a release folder to the Hub would hold; "
        "upload it with --push.\nThe token comes from the environment variable "
        "HF_TOKEN. A new repository is private.",
        epilog=f"example: {prog} results/release/gptq4bit me/judge --push",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="such as results/release/gptq4bit")
    parser.add_argument("repository", help="such as me/judge")
    parser.add_argument("--push", action="store_true", help="upload, not only show")
    options = parser.parse_args(arguments)
    print(describe(options.folder, options.repository))
    if options.push:
        print(f"\nuploaded: {push(options.folder, options.repository)}")
    else:
        print("\nnothing was uploaded; --push (make: PUSH=1) uploads")
