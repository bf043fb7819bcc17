"""Run the data stages one after the other on a few pairs."""

from benchmarks.data_stages import STAGES, run_stage


def test_every_stage_runs_on_what_the_one_before_wrote(tmp_path):
    for stage in STAGES:
        seconds, gigabytes = run_stage(stage, 300, tmp_path)
        assert seconds > 0
        assert 0.01 < gigabytes < 4
    assert (tmp_path / "fold2.parquet").exists()
