"""One rule per selected method, made from config/methods/<name>.yaml; its name is the method's.

A method without a script has a rule of its own in rules/methods/<name>.smk.
"""

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
            of_checkout(f"envs/{spec['env']}.sif")
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
            predictions=lambda wildcards, output: (
                f"--predictions {output.predictions}" if "predictions" in output.keys() else ""
            ),
        # -P: a method's program must not shadow the library of its name (clue.py, the package clue).
        # No f-string: it would be filled in when a job starts, with the values of the last method.
        shell:
            "python -P $CLUE_CHECKOUT/{params.script} --train {input.train} --tests {input.tests} --embedding {output.embedding} {params.predictions}"
            " --method {params.method} --variant {wildcards.variant} --seed {wildcards.seed}"
            " --params {params.values:q} {params.by_pairs} --device {params.device} --threads {threads} > {log} 2>&1"
