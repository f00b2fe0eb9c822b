"""Embeddings made elsewhere, put in place. The rule is written by hand, since each job has one more input file."""


rule precomputed:
    input:
        table=lambda wildcards: params_of("precomputed", wildcards)["table"].format(**wildcards),
        train=f"{TASK}/train.h5mu",
        tests=lambda wildcards: test_files(modalities(wildcards.dataset)),
    output:
        embedding=f"{TASK}/precomputed/{{variant}}/seed-{{seed}}/embedding.h5ad",
        run=f"{TASK}/precomputed/{{variant}}/seed-{{seed}}/run.json",
    log:
        f"{LOGS}/{{dataset}}/{{split}}/precomputed/{{variant}}/seed-{{seed}}.log",
    benchmark:
        f"{LOGS}/{{dataset}}/{{split}}/precomputed/{{variant}}/seed-{{seed}}.benchmark.tsv"
    conda:
        "../../envs/python.yaml"
    resources:
        **resources_of("precomputed"),
    params:
        values=lambda wildcards, input: to_json({"table": input.table}),
        code=digest("scripts/methods/precomputed.py"),
    shell:
        "python -P $CLUE_CHECKOUT/scripts/methods/precomputed.py --train {input.train} --tests {input.tests}"
        " --embedding {output.embedding} --method precomputed --variant {wildcards.variant} --seed {wildcards.seed}"
        " --params {params.values:q} --device cpu --threads 1 > {log} 2>&1"
