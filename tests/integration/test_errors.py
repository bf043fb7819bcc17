"""What a user sees of an error: one line, before any job or from a job."""

from running import snakemake


def error_lines(done):
    """The lines of a run's terminal that are errors of ours."""
    text = done.stdout + done.stderr
    assert "Traceback" not in text
    return [line for line in text.splitlines() if line.startswith("error: ")]


def test_an_error_inside_a_job_is_one_line_with_its_log(tmp_path):
    (tmp_path / "bad.csv").write_text("id,prompt\n1,p\n")
    overlay = tmp_path / "mine.yaml"
    overlay.write_text("data: {train: [bad.csv], extra: [], ultra: [], test: null}\n")
    done = snakemake(tmp_path, "results/data/pairs.parquet", overlays=(overlay,))
    assert done.returncode != 0
    (line,) = error_lines(done)
    assert line == (
        "error: bad.csv, header, column response_a: is missing; found 'id', 'prompt'; "
        "a train file needs comma-separated id,prompt,response_a,response_b,"
        "winner_model_a,winner_model_b,winner_tie "
        "(log: logs/import_pairs/import_pairs.log)"
    )
    log = (tmp_path / "logs/import_pairs/import_pairs.log").read_text()
    assert "Traceback" in log
