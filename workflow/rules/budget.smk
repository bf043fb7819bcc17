"""Two views under a budget: the second only where the first is uncertain.

Used in place of predict_view for whole models if predict.second_view_share is below 1.
Select and test are scored in both orders all the same: a judge is calibrated on the
one, and every stage compared on the other.

out: <results>/predictions/{model}/second_view.json
"""

if BUDGETED:

    use rule predict_view as predict_first_view with:
        output:
            expand("<results>/predictions/{{model}}/{view}.parquet", view=VIEWS[:1]),
        log:
            "<logs>/predict_first_view/{model}.log",
        benchmark:
            "<benchmarks>/predict_first_view/{model}.tsv"
        wildcard_constraints:
            model=WHOLE_MODELS,
        params:
            views=VIEWS[:1],
            splits=prediction_splits,
            precision=prediction_precision,
            text=config["text"],
            code=code_digest("predict_view.py"),

    rule choose_second_view:
        """Fit the first view's scaling and the threshold of its entropy on select."""
        input:
            first=f"<results>/predictions/{{model}}/{VIEWS[0]}.parquet",
            fold="<results>/folds/fold0.parquet",
        output:
            "<results>/predictions/{model}/second_view.json",
        log:
            "<logs>/choose_second_view/{model}.log",
        benchmark:
            "<benchmarks>/choose_second_view/{model}.tsv"
        wildcard_constraints:
            model=WHOLE_MODELS,
        conda:
            "../../environment.yml"
        threads: 1
        resources:
            mem_mb=memory_of(handling_tables),
            runtime=minutes_of(handling_tables),
        params:
            view=VIEWS[0],
            share=config["predict"]["second_view_share"],
            method=config["calibration"]["judge"],
            code=code_digest("choose_second_view.py"),
        script:
            "../scripts/choose_second_view.py"

    use rule predict_view as predict_second_view with:
        input:
            tables=prediction_tables,
            weights=prediction_weights,
            base=prediction_base,
            first=expand(
                "<results>/predictions/{{model}}/{view}.parquet", view=VIEWS[:1]
            ),
            budget=["<results>/predictions/{model}/second_view.json"],
        output:
            expand("<results>/predictions/{{model}}/{view}.parquet", view=VIEWS[1:]),
        log:
            "<logs>/predict_second_view/{model}.log",
        benchmark:
            "<benchmarks>/predict_second_view/{model}.tsv"
        wildcard_constraints:
            model=WHOLE_MODELS,
        params:
            views=VIEWS[1:],
            splits=prediction_splits,
            precision=prediction_precision,
            text=config["text"],
            code=code_digest("predict_view.py"),
