"""Define the settings of models and training, and read them from the configuration.

Fields are named after the keys of ``workflow/schemas/config.schema.yaml``, which
describes each key, checks its value and has its default. So nothing is checked again
here, except that a mapping has exactly the keys of its class.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, TypeVar, get_type_hints

Settings = TypeVar("Settings")

# These settings change how a job runs, not its result: editing them reruns nothing.
RUN_TIME_KEYS = frozenset(
    {"token_budget", "recompute", "compile", "checkpoint_steps", "progress_batches"}
)


def read(kind: type[Settings], mapping: Mapping[str, Any]) -> Settings:
    """Build a settings class, and the classes inside it, from a validated mapping.

    Args:
        kind: A class of this module.
        mapping: Keys and values, nested like the classes; lists become tuples.

    Raises:
        ValueError: If a key is unknown or missing.
    """
    types = get_type_hints(kind)
    for problem, keys in (
        ("unknown", mapping.keys() - types.keys()),
        ("missing", types.keys() - mapping.keys()),
    ):
        if keys:
            raise ValueError(f"{kind.__name__}: the key {min(keys)!r} is {problem}")
    return kind(**{key: _value(types[key], mapping[key]) for key in types})


def _value(kind: Any, value: Any) -> Any:
    if is_dataclass(kind):
        return read(kind, value)
    return tuple(value) if isinstance(value, list) else value


def result_settings(settings: Any) -> dict[str, Any]:
    """Return the settings that decide a result, without those that say how a job runs.

    Args:
        settings: A class of this module, or a mapping with the same keys.

    Returns:
        Plain values with sorted keys, for a job's identity.
    """
    values = asdict(settings) if is_dataclass(settings) else settings
    return {key: values[key] for key in sorted(values) if key not in RUN_TIME_KEYS}


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """The template, and the lengths that texts are cut to (``text``)."""

    template: str
    turn: str
    max_length: int
    prompt_share: float
    head_share: float


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """The shape of a low-rank adapter (``lora`` of a model)."""

    r: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]
    lowest_layer: int


@dataclass(frozen=True, kw_only=True)
class OptimisationSettings:
    """The settings that ``training`` and ``post_pretrain`` of a model share."""

    learning_rate: float
    max_steps: int | None
    pairs_per_step: int
    token_budget: int
    warmup_steps: int | None
    warmup_fraction: float
    schedule: str
    min_lr_ratio: float
    weight_decay: float
    max_grad_norm: float
    seed: int
    checkpoint_steps: int
    recompute: str
    compile: str


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(OptimisationSettings):
    """Fine-tuning on a fold (``training`` of a model)."""

    epochs: float
    n_rows: int | None


@dataclass(frozen=True, kw_only=True)
class PostPretrainSettings(OptimisationSettings):
    """Post-pretraining (``post_pretrain`` of a model)."""

    objective: str
    fraction_of_epoch: float
    keep_head: bool


@dataclass(frozen=True, kw_only=True)
class InferenceSettings:
    """Scoring of rows (``inference`` of a model)."""

    token_budget: int
    rows: tuple[int, int] | None
    n_rows: int | None
    weights: str
    progress_batches: int


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weights of the loss terms (``distillation.weights``)."""

    ce: float
    kl: float
    cosine: float


@dataclass(frozen=True, kw_only=True)
class SampleWeightSettings:
    """Weights of rows by information gain (``distillation.sample_weights``)."""

    beta: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class PseudoLabelSettings:
    """Unlabelled pairs to learn from (``distillation.pseudo_labels``)."""

    weight: float


@dataclass(frozen=True, kw_only=True)
class EmaSettings:
    """Running mean of the student's weights (``distillation.ema``)."""

    decay: float
    use: bool


@dataclass(frozen=True, kw_only=True)
class DistillationSettings:
    """The targets that a student learns from, and its loss (``distillation``)."""

    weights: LossWeights
    temperature: float
    labels: str
    logits: str
    teacher_gate: str
    n_labelled_rows: int | None
    sample_weights: SampleWeightSettings
    pseudo_labels: PseudoLabelSettings
    ema: EmaSettings

    @property
    def judges_rows(self) -> bool:
        """Tell whether rows are weighed by teachers that were not trained on them."""
        return self.sample_weights.beta != 0

    def keeps_dev_clean(self, teachers: Collection[str]) -> bool:
        """Tell whether no teacher was trained on the dev rows of its student.

        Args:
            teachers: Names of the student's teachers.
        """
        # Out-of-fold logits come from teachers of other folds, which were trained on
        # this fold's dev rows.
        saw_dev = self.labels == "out_of_fold" or self.judges_rows
        return not (teachers and saw_dev)
