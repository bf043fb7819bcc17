"""Upload a release folder to the Hub; without --push only say what would go there.

usage: push_release.py FOLDER REPOSITORY [--push]

The token comes from the environment variable HF_TOKEN and from nowhere else. A new
repository is private: make it public on its page, once you have read the licences.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow/scripts"))

from prefdistill.errors import UserError
from prefdistill.export.release import CARD_FILE, release_files
from prefdistill.models.manifests import WEIGHTS, tensor_header
from prefdistill.version import __version__


def describe(folder: Path, repository: str) -> str:
    """What would be uploaded where, and the card's notes on licences.

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
    """Upload the files of a release in one commit; returns the commit's address.

    Raises:
        UserError: If there is no token, or the Hub refuses.
    """
    token = os.environ.get("HF_TOKEN")
    if not token:
        raise UserError("HF_TOKEN: is not set; put a token with write access into it")
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
        reason = " ".join(str(error).split()).replace(token, "...")
        raise UserError(
            f"{repository}: not uploaded ({reason}); check the name, the network and "
            "that the token may write there"
        ) from error
    return commit.commit_url


def main() -> None:
    """Run the command; errors are one line, exit status 1."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("repository", help="such as me/judge")
    parser.add_argument("--push", action="store_true", help="really upload")
    options = parser.parse_args()
    try:
        print(describe(options.folder, options.repository))
        if options.push:
            print(f"\nuploaded: {push(options.folder, options.repository)}")
        else:
            print("\nnothing was uploaded; PUSH=1 (--push) uploads")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
