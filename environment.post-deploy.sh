#!/usr/bin/env bash
# Completes environment.yml inside the new, active conda environment; see there for why.
set -euo pipefail
python -m pip install --no-deps GPTQModel==7.6.0
