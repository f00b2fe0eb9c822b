"""Download and prepare each data set: raw files with known checksums, then one file of raw counts.

The raw files depend on which source can be reached, so the output of a download is the manifest that names them.
"""


rule download:
    output:
        f"data/raw/{{dataset}}/{MANIFEST}",
    log:
        "logs/download/{dataset}.log",
    benchmark:
        "logs/download/{dataset}.benchmark.tsv"
    localrule: True
    conda:
        "../envs/python.yaml"
    params:
        folder=subpath(output[0], parent=True),
        # A parameter that depends on the output does not re-run the rule, since another mirror has the same data.
        mirror=lambda wildcards, output: MIRROR,
        sources=lambda wildcards: to_json(sources(BENCHMARK.datasets[wildcards.dataset])),
    shell:
        "python -P $CLUE_CHECKOUT/scripts/download.py --dataset {wildcards.dataset} --folder {params.folder}"
        " --mirror={params.mirror:q} --project $CLUE_CHECKOUT > {log} 2>&1"


rule prepare:
    input:
        lambda wildcards: RAW.get(wildcards.dataset, []),
    output:
        PREPARED,
    log:
        "logs/prepared/{dataset}.log",
    benchmark:
        "logs/prepared/{dataset}.benchmark.tsv"
    conda:
        "../envs/python.yaml"
    resources:
        mem_mb=memory_of_data,
        runtime=minutes_of_data,
    params:
        folder="data/raw/{dataset}",
        spec=lambda wildcards: to_json(
            {
                key: BENCHMARK.datasets[wildcards.dataset].get(key)
                for key in ("source", "sources", "prepare", "modalities", "expect")
            }
        ),
        code=digest("scripts/prepare.py", "clue/benchmark/data/prepare/*.py", "clue/simulate.py"),
    shell:
        "python -P $CLUE_CHECKOUT/scripts/prepare.py --dataset {wildcards.dataset} --raw {params.folder} --output {output}"
        " --project $CLUE_CHECKOUT > {log} 2>&1"
