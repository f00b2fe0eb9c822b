"""The encoder inputs that methods share, and one rule per selected method, made from config/methods/<name>.yaml.

The rule has the name of its method. A method without a script has its own rule in rules/methods/<name>.smk.
"""


rule features:
    input:
        train=f"{TASK}/train.h5mu",
        tests=lambda wildcards: test_files(modalities(wildcards.dataset)),
    output:
        f"{TASK}/features/{{features}}.npz",
    log:
        f"{LOGS}/{{dataset}}/{{split}}/features/{{features}}.log",
    benchmark:
        f"{LOGS}/{{dataset}}/{{split}}/features/{{features}}.benchmark.tsv"
    conda:
        "../envs/python.yaml"
    resources:
        mem_mb=memory_of_data,
        runtime=minutes_of_data,
    params:
        cells=lambda wildcards: wildcards.features.rpartition("-")[0],
        settings=lambda wildcards: to_json(FEATURES[wildcards.features]),
        code=digest(*imported("scripts/features.py", ROOT)),
    shell:
        "OMP_NUM_THREADS={threads} python -P $CLUE_CHECKOUT/scripts/features.py --train {input.train}"
        " --tests {input.tests} --cells {params.cells} --settings {params.settings:q} --features {output} > {log} 2>&1"


for method, spec in BENCHMARK.methods.items():
    if "script" not in spec:

        include: f"methods/{method}.smk"

        continue

    rule:
        name:
            method
        input:
            train=f"{TASK}/train.h5mu",
            tests=lambda wildcards: test_files(modalities(wildcards.dataset)),
            features=lambda wildcards, method=method: features_of(method, wildcards),
        output:
            **outputs_of(method),
        log:
            f"{LOGS}/{{dataset}}/{{split}}/{method}/{{variant}}/seed-{{seed}}.log",
        benchmark:
            f"{LOGS}/{{dataset}}/{{split}}/{method}/{{variant}}/seed-{{seed}}.benchmark.tsv"
        wildcard_constraints:
            variant="|".join(spec["variants"]),
        conda:
            f"../envs/{spec['env']}.yaml"
        container:
            checkout_path(f"envs/{spec['env']}.sif")
        threads: spec["resources"]["threads"]
        resources:
            **resources_of(method),
        params:
            method=method,
            script=f"scripts/methods/{spec['script']}",
            device="cuda" if BENCHMARK.gpus(method) else "cpu",
            values=lambda wildcards, method=method: params_json(method, wildcards.variant, wildcards.dataset),
            code=method_code(spec),
            by_pairs=lambda wildcards, method=method: (
                "--by-pairs" if BENCHMARK.is_by_pairs(method, modalities(wildcards.dataset)) else ""
            ),
            features=lambda wildcards, input: f"--features {input.features}" if input.features else "",
            predictions=lambda wildcards, output: (
                f"--predictions {output.predictions}" if "predictions" in output.keys() else ""
            ),
        # -P: a method's program must not hide the library of the same name (clue.py, the package clue).
        # No f-string: it would be filled in when a job starts, with the values of the last method.
        shell:
            "python -P $CLUE_CHECKOUT/{params.script} --train {input.train} --tests {input.tests} {params.features}"
            " --embedding {output.embedding} {params.predictions}"
            " --method {params.method} --variant {wildcards.variant} --seed {wildcards.seed}"
            " --params {params.values:q} {params.by_pairs} --device {params.device} --threads {threads} > {log} 2>&1"
