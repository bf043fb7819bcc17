# A job sources this file on its node before anything else, in plain sh: for modules,
# conda and node-local settings of your site. The driver's environment is already set
# (sbatch --export=ALL) and jobs use the driver's Python, so most sites need nothing here.
# If the last command fails, the job fails. Examples; remove the # and adapt:

# module purge && module load cuda/12.8
# . "$HOME/miniforge3/etc/profile.d/conda.sh" && conda activate prefdistill
# export TMPDIR="/local/$SLURM_JOB_ID" && mkdir -p "$TMPDIR"
# export TORCHINDUCTOR_CACHE_DIR="$HOME/.cache/torchinductor"   # keep compiled layers
# export HTTPS_PROXY=http://proxy.example.org:3128
:
