"""What jobs ask for: cases worked out by hand, and what must grow with what."""

from pathlib import Path

import pytest
from configurations import configured, section

from prefdistill.pipeline.cost_model import (
    Size,
    Work,
    average_work,
    base_work,
    check_work,
    light_work,
    merge_work,
    quantise_work,
    scoring_work,
    training_work,
)
from prefdistill.pipeline.model_sizes import base_parameters
from prefdistill.pipeline.pair_counts import Pairs, count_pairs, scored_pairs
from prefdistill.settings import BaseModelSettings, TrainingSettings

SITE = {"gpu_tflops": 80, "runtime_safety": 2.0, "max_runtime": None}
TRAINING = section(TrainingSettings)
LLAMA_8B = Size(8e9, gpus=1, rank=64)
LLAMA_70B = Size(70e9, gpus=4, rank=64)
GEMMA_9B = Size(9e9, gpus=1, rank=64)
TINY = Size(319_488, gpus=1, rank=8)


def base(**settings):
    return section(BaseModelSettings, **settings)


def asks(work, attempt=1, **site):
    """Memory in MB and time limit in minutes."""
    return work.memory_mb(attempt), work.time_limit(attempt, **SITE | site)


def test_training_of_8_billion_parameters_on_50_000_pairs():
    work = training_work(LLAMA_8B, TRAINING, 50_000, max_length=2048)
    # 80 million tokens at 4 x 8e9 operations take 533.3 minutes at 80 TFLOP/s; 16 GB
    # take 3.2 to load. 4 GB, the weights, 4 x 0.853 GB, half a GB of pairs.
    assert asks(work) == (23_913, 1_089)
    assert asks(work, attempt=2) == (47_827, 2_177)
    assert asks(work, gpu_tflops=800) == (23_913, 129)
    assert asks(work, runtime_safety=1) == (23_913, 552)
    assert asks(work, attempt=3, max_runtime=360) == (71_740, 360)
    assert work.gpu_hours(80) == pytest.approx((80e6 * 32e9 / 80e12 / 60 + 3.2) / 60)
    recomputed = section(TrainingSettings, recompute="full")
    full = training_work(LLAMA_8B, recomputed, 50_000, 2048)
    assert full.tflop == pytest.approx(work.tflop * 6 / 4)
    short = training_work(LLAMA_8B, TRAINING, 50_000, max_length=400)
    assert short.tflop == pytest.approx(work.tflop / 2)


def test_training_of_70_billion_parameters_on_four_gpus():
    work = training_work(LLAMA_70B, TRAINING, 50_000, max_length=2048)
    assert asks(work) == (186_367, 2_405)
    assert work.gpu_hours(80) == pytest.approx(4 * work.hours(80))
    assert LLAMA_70B.threads == 16


def test_scoring_takes_half_of_training():
    training = training_work(LLAMA_8B, TRAINING, 50_000, 2048)
    scoring = scoring_work(LLAMA_8B, 50_000, 2048)
    assert scoring.tflop == pytest.approx(training.tflop / 2)
    assert scoring_work(LLAMA_8B, 50_000, 2048, 1).tflop == scoring.tflop / 2
    assert asks(scoring) == (21_353, 555)


def test_the_student_merged_and_quantised():
    # 4 + 18 + 3 x 0.96 GB; 54 GB read, written and hashed; B A at rank 192.
    assert asks(merge_work(GEMMA_9B, 3)) == (24_880, 38)
    assert asks(average_work(GEMMA_9B, 3)) == (10_720, 17)
    # The weights twice; 3.6 minutes to load and 13.5 of GPTQ.
    assert asks(quantise_work(GEMMA_9B, 128, 2048)) == (40_000, 51)
    assert asks(check_work([LLAMA_8B, GEMMA_9B])) == (22_960, 29)


def test_bases_are_fetched_converted_or_trained():
    hub, package = (base(source=source) for source in ("hub", "package"))
    assert asks(base_work(8e9, hub, 2048)) == (4_000, 47)
    assert asks(base_work(135e6, package, 2048)) == (4_810, 16)
    tiny = base(source="tiny", pretrain_steps=900)
    assert asks(base_work(319_488, tiny, 256)) == (4_000, 20)


def test_what_stays_on_the_disk():
    # Gemma-2-9B: 18.5 GB in 16 bits; GPTQ leaves 1.84 GB of embedding in 16 bits.
    assert merge_work(GEMMA_9B, 3).disk_gb == pytest.approx(18)
    for bits, gigabytes in ((8, 10.3), (4, 6.2)):
        found = quantise_work(GEMMA_9B, 128, 2048, bits).disk_gb
        assert found == pytest.approx(gigabytes, rel=0.12)
    training = training_work(LLAMA_8B, TRAINING, 50_000, 2048)
    # Rank 64 on all seven linear layers of Llama-3.1-8B: 168 million parameters.
    assert training.disk_gb == pytest.approx(4 * 0.168, rel=0.3)
    assert training.scratch_gb == pytest.approx(6 * training.disk_gb)
    assert base_work(8e9, base(source="path"), 2048).disk_gb == 0
    assert base_work(8e9, base(source="hub"), 2048).disk_gb == 16


def test_jobs_without_a_model():
    assert asks(light_work(0)) == (2_000, 15)
    assert asks(light_work(1_000_000)) == (12_000, 135)


def test_tiny_models_ask_for_the_least():
    works = [
        training_work(TINY, configured("demo").student.training, 2467, 256),
        scoring_work(TINY, 4600, 256),
        merge_work(TINY, 3),
        quantise_work(TINY, 64, 256),
    ]
    for memory, minutes in map(asks, works):
        assert 4_000 < memory < 4_100
        assert minutes == 16
    assert TINY.threads == 1


def test_the_cpu_takes_longer_and_holds_32_bits():
    size = Size(135e6, gpus=0, rank=32)
    work = training_work(size, TRAINING, 100, max_length=1024)
    # 160,000 tokens at 4 x 135e6 operations are 86.4 TFLOP, 14.4 minutes.
    assert asks(work) == (4_570, 45)
    assert asks(work, gpu_tflops=1) == (4_570, 45)
    assert work.gpu_hours(80) == 0
    assert size.threads == 4


@pytest.mark.parametrize(
    "make",
    [
        lambda size: training_work(size, TRAINING, 5_000, 1024),
        lambda size: scoring_work(size, 5_000, 1024),
        lambda size: merge_work(size, 3),
        lambda size: average_work(size, 3),
        lambda size: quantise_work(size, 128, 1024),
        lambda size: check_work([size, TINY]),
    ],
)
def test_a_larger_model_asks_for_more(make):
    sizes = [Size(parameters, 1, 64) for parameters in (1e6, 8e9, 70e9)]
    memory, minutes = zip(*[asks(make(size)) for size in sizes], strict=True)
    assert sorted(set(memory)) == list(memory)
    assert sorted(set(minutes)) == list(minutes)


@pytest.mark.parametrize(
    "make",
    [
        lambda n_pairs: training_work(LLAMA_8B, TRAINING, n_pairs, 1024),
        lambda n_pairs: scoring_work(LLAMA_8B, n_pairs, 1024),
        light_work,
    ],
)
def test_more_pairs_and_attempts_ask_for_more(make):
    demands = [
        [asks(make(n_pairs), attempt) for attempt in (1, 2, 3)]
        for n_pairs in (10**4, 10**5, 10**6)
    ]
    for table in (demands, zip(*demands, strict=True)):
        for row in table:
            for column in zip(*row, strict=True):
                assert sorted(set(column)) == list(column)


def test_more_gpus_take_less_time_and_more_memory():
    one, four = (scoring_work(Size(70e9, n, 64), 50_000, 1024) for n in (1, 4))
    assert four.time_limit(1, **SITE) < one.time_limit(1, **SITE)
    assert four.memory_mb(1) == one.memory_mb(1) + 3 * 4_000


def test_the_limit_of_the_partition_caps_every_attempt():
    work = Work(gigabytes=1, minutes=100)
    site = SITE | {"max_runtime": 360}
    assert [work.time_limit(attempt, **site) for attempt in (1, 2, 3)] == [
        215,
        360,
        360,
    ]


def test_the_published_configuration_asks_for_sensible_amounts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    megabytes = {"train": 184, "lmsys-33k-deduplicated": 106, "ultrafeedback": 192}
    for name, size in (megabytes | {"test": 80}).items():
        with open(f"data/{name}.csv", "wb") as handle:
            handle.truncate(size * 10**6)
    settings = configured("config")
    shown = (settings.gpu_tflops, settings.runtime_safety, settings.max_runtime)
    assert shown == tuple(SITE.values())
    pairs = count_pairs(settings.data, settings.folds, settings.simulation)
    assert pairs == Pairs(66_859, 16_866, 6_900, 60_000, 25_000)
    sizes = {
        name: base_parameters(name, each) / 1e9
        for name, each in settings.base_models.items()
    }
    assert sizes == {"llama31_8b": 8, "qwen25_7b": 7, "gemma2_9b_it": 9}
    teacher, student = settings.teachers["llama"], settings.student
    length = settings.text.max_length
    hours = {
        "teacher": training_work(LLAMA_8B, teacher.training, pairs.train, length),
        "logits": scoring_work(
            LLAMA_8B, scored_pairs(teacher.inference, pairs), length
        ),
        "student": training_work(GEMMA_9B, student.training, pairs.train, length),
    }
    limits = {name: work.time_limit(1, **SITE) / 60 for name, work in hours.items()}
    assert limits == pytest.approx(
        {"teacher": 24.1, "logits": 16.5, "student": 53.9}, abs=0.1
    )
