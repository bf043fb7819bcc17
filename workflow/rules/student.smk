"""Distil labels and all teachers into one student adapter on each fold.

in:  <results>/folds/fold{fold}.parquet, <results>/post_pretrain/student/,
     the teachers' logits and gates
out: <results>/student/fold{fold}/
"""


rule distill_student:
    """Distil on a fold's train side; resumes from its scratch folder."""
    input:
        pairs="<results>/folds/fold{fold}.parquet",
        logits=STUDENTS.logits,
        gates=STUDENTS.gates,
        unseen=STUDENTS.unseen,
        unlabelled=STUDENTS.unlabelled,
        scalings=STUDENTS.unlabelled_scalings,
        pairs_unlabelled=STUDENTS.unlabelled_pairs,
        init=STUDENTS.init,
        config=STUDENTS.init_config,
        base=base_manifest,
    output:
        adapter="<results>/student/fold{fold}/adapter_model.safetensors",
        config="<results>/student/fold{fold}/adapter_config.json",
        average=STUDENTS.average_files,
        curve="<results>/student/fold{fold}/train.jsonl",
        rows="<results>/student/fold{fold}/rows.json",
    log:
        "<logs>/distill_student/fold{fold}.log",
    benchmark:
        "<benchmarks>/distill_student/fold{fold}.tsv"
    conda:
        "../../environment.yml"
    threads: STUDENT.threads
    resources:
        gpu=STUDENT.gpus,
        mem_mb=memory_of(training("training", PAIRS.train + PAIRS.pseudo)),
        runtime=minutes_of(training("training", PAIRS.train + PAIRS.pseudo)),
    params:
        teachers=STUDENTS.teachers,
        precision=model_precision,
        training=STUDENTS.training,
        section=["student", "training"],
        distillation=STUDENTS.distillation,
        text=config["text"],
        code=code_digest("distill_student.py"),
    script:
        "../scripts/distill_student.py"
