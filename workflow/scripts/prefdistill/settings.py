"""Define the settings as classes, and read them from the validated configuration.

Fields have the names and the order of the keys of
``workflow/schemas/config.schema.yaml``, which describes each key, checks its value and
has its default. Nothing is checked again here, except that a mapping has the keys of
its class.
"""

from collections.abc import Collection, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

Kind = TypeVar("Kind")

# Files below this folder are simulated by the workflow.
SIMULATED_FOLDER = "results/simulated/"

# These settings change how a job runs, not its result: editing them reruns nothing.
RUN_TIME_KEYS = frozenset(
    {"token_budget", "recompute", "compile", "checkpoint_steps", "progress_batches"}
)


def read(kind: type[Kind], mapping: Mapping[str, Any]) -> Kind:
    """Build a settings class, and the classes inside it, from a validated mapping.

    Args:
        kind: A class of this module.
        mapping: Keys and values, nested like the classes; lists become tuples.
            Only keys whose field has a default may be missing.

    Raises:
        ValueError: If a key is unknown, or missing and without a default.
    """
    types = get_type_hints(kind)
    needed = {
        each.name
        for each in fields(kind)
        if each.default is MISSING and each.default_factory is MISSING
    }
    for problem, keys in (
        ("unknown", mapping.keys() - types.keys()),
        ("missing", needed - mapping.keys()),
    ):
        if keys:
            raise ValueError(f"{kind.__name__}: the key {min(keys)!r} is {problem}")
    return kind(**{key: _value(types[key], mapping[key]) for key in mapping})


def _value(kind: Any, value: Any) -> Any:
    """Build the classes that a field's type names, at any depth of its value."""
    inner = get_args(kind)
    if isinstance(value, Mapping):
        if get_origin(kind) is dict:
            return {key: _value(inner[1], each) for key, each in value.items()}
        return read(next(filter(is_dataclass, (kind, *inner))), value)
    if isinstance(value, list):
        return tuple(_value(inner[0], each) for each in value)
    return value


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
class SimulationSettings:
    """Numbers of pairs that the simulator makes (``simulation``)."""

    n_train: int
    n_extra: int
    n_ultra: int
    n_test: int
    dirty_fraction: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class HubData:
    """Data set of the Hub (an entry of ``data``)."""

    hub: str
    revision: str | None = None
    split: str = "train"
    columns: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Sources of the pairs (``data``): paths of files, and Hub data sets."""

    train: tuple[HubData | str, ...]
    extra: tuple[HubData | str, ...]
    ultra: tuple[HubData | str, ...]
    test: HubData | str | None
    unlabelled: tuple[HubData | str, ...]

    @property
    def entries(self) -> dict[str, tuple[HubData | str, ...]]:
        """Return all entries by key, ``test`` as a tuple of one or none."""
        return {
            "train": self.train,
            "extra": self.extra,
            "ultra": self.ultra,
            "test": (self.test,) if self.test else (),
            "unlabelled": self.unlabelled,
        }

    @property
    def files(self) -> list[str]:
        """List the paths of all files, without Hub data sets."""
        return [e for some in self.entries.values() for e in some if isinstance(e, str)]

    @property
    def is_simulated(self) -> bool:
        """Tell whether all labelled pairs are simulated."""
        return all(
            isinstance(entry, str) and entry.startswith(SIMULATED_FOLDER)
            for entry in self.train
        )


@dataclass(frozen=True, kw_only=True)
class CleaningSettings:
    """Treatment of degenerate rows (``cleaning``)."""

    identical: str
    empty: str
    duplicates: str


@dataclass(frozen=True, kw_only=True)
class FoldSettings:
    """Split into folds, select and test (``folds``)."""

    n: int
    select_fraction: float
    test_fraction: float
    test_part: int | None
    seed: int


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """The template, and the lengths that texts are cut to (``text``)."""

    template: str
    turn: str
    max_length: int
    prompt_share: float
    head_share: float


@dataclass(frozen=True, kw_only=True)
class BaseModelSettings:
    """Base model (an entry of ``base_models``); None where a key is not given."""

    source: str
    architecture: str | None = None
    hidden_size: int
    n_layers: int
    n_heads: int
    pretrain_steps: int
    seed: int
    package: str | None = None
    version: str | None = None
    repo: str | None = None
    revision: str | None
    path: str | None = None
    billions: float | None = None


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Shape of a low-rank adapter (``lora`` of a model)."""

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


@dataclass(frozen=True)
class ScoringSettings:
    """Which rows a model scores, and how.

    Attributes:
        precision: How the weights are stored, or the base under an adapter.
        views: Orders to show, of AB and BA.
        splits: Score only rows of these splits; all if None.
        weights: ``adapter`` keeps an adapter beside its base, ``merged`` adds it to
            the base first.
        rows: Range of train rows to score; all if None.
        n_rows: Number of train rows to sample; all if None.
        seed: Seed of the sample.
        token_budget: Most tokens in a forward pass.
        progress_batches: Batches between two progress lines.
    """

    precision: str
    views: tuple[str, ...] = ("AB", "BA")
    splits: tuple[str, ...] | None = None
    weights: str = "adapter"
    rows: tuple[int, int] | None = None
    n_rows: int | None = None
    seed: int = 0
    token_budget: int = 16896
    progress_batches: int = 5


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Teacher (an entry of ``teachers``) or student (``student``)."""

    base: str
    precision: str
    gpus: int
    lora: LoraSettings
    training: TrainingSettings
    post_pretrain: PostPretrainSettings
    inference: InferenceSettings


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weights of the loss terms (``distillation.weights``).

    ``ce`` weighs the term of the label; every other field weighs a term that each
    teacher has.
    """

    ce: float
    kl: float
    cosine: float

    @property
    def per_teacher(self) -> float:
        """Return the total weight of the terms that every teacher has."""
        terms = (item.name for item in fields(self) if item.name != "ce")
        return sum(getattr(self, name) for name in terms)


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
        """Tell whether rows are weighted by teachers that were not trained on them."""
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


@dataclass(frozen=True, kw_only=True)
class ScalingSettings:
    """How a teacher's logits are scaled (``calibration`` without ``judge``)."""

    method: str
    tied: bool


@dataclass(frozen=True, kw_only=True)
class CalibrationSettings(ScalingSettings):
    """How the teachers' and the judges' logits are scaled (``calibration``)."""

    judge: str


@dataclass(frozen=True, kw_only=True)
class AdvantageSettings:
    """How rewards become weights of the folds (``ensemble.advantage``)."""

    temperature: float
    baseline: str


@dataclass(frozen=True, kw_only=True)
class EnsembleSettings:
    """Averaging of the folds' adapters (``ensemble``)."""

    method: str
    fold_weights: str | tuple[float, ...]
    advantage: AdvantageSettings


@dataclass(frozen=True, kw_only=True)
class GptqSettings:
    """GPTQ of one model to any width (``quantisation`` without ``bits``)."""

    group_size: int
    n_calibration_pairs: int
    desc_act: bool
    damp_percent: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class QuantisationSettings(GptqSettings):
    """GPTQ of the merged student (``quantisation``)."""

    bits: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class PredictSettings:
    """Final model and its predictions (``predict``)."""

    model: str
    base: str
    folds: str | tuple[int, ...]
    views: tuple[str, ...]
    trees_weight: float
    token_budget: int

    @property
    def final(self) -> str:
        """Name the final model, as in ``results/predictions/{name}/``."""
        return f"adapters_{self.base}" if self.model == "adapters" else self.model


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Scores and their intervals (``evaluation``)."""

    n_bootstrap: int
    seed: int
    n_bins: int
    labels_only: bool


@dataclass(frozen=True, kw_only=True)
class AblationSettings:
    """Seeds and few labels of the ablations' arms (``ablation``)."""

    seeds: tuple[int, ...]
    n_few_labels: int


@dataclass(frozen=True, kw_only=True)
class CheckedPair:
    """Pair that ``check_models`` scores (an entry of ``check.pairs``)."""

    prompt: str
    response_a: str
    response_b: str


@dataclass(frozen=True, kw_only=True)
class CheckSettings:
    """Pairs that ``check_models`` shows each model (``check``)."""

    pairs: tuple[CheckedPair, ...]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Hold the whole configuration."""

    scratch: str
    max_runtime: int | None
    gpu_tflops: float
    runtime_safety: float
    simulation: SimulationSettings
    data: DataSettings
    cleaning: CleaningSettings
    folds: FoldSettings
    text: TextSettings
    base_models: dict[str, BaseModelSettings]
    teachers: dict[str, ModelSettings]
    student: ModelSettings
    distillation: DistillationSettings
    calibration: CalibrationSettings
    ensemble: EnsembleSettings
    quantisation: QuantisationSettings
    predict: PredictSettings
    evaluation: EvaluationSettings
    ablation: AblationSettings
    check: CheckSettings

    @property
    def models(self) -> dict[str, ModelSettings]:
        """Return the teachers by name, and the student as ``student``."""
        return {**self.teachers, "student": self.student}
