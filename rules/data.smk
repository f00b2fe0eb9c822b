"""Download and prepare each data set: raw files with known checksums, then one file of raw counts.

Which files there will be depends on the source that can be reached; the output of a download is the manifest that
names them.
"""

for dataset in RAW:
    if PARTIAL:
        continue

    rule:
        name:
            f"download_{dataset}"
        output:
            RAW[dataset],
        log:
            f"logs/download/{dataset}.log",
        benchmark:
            f"logs/download/{dataset}.benchmark.tsv"
        localrule: True
        conda:
            "../envs/python.yaml"
        params:
            dataset=dataset,
            folder=lambda wildcards, dataset=dataset: f"data/raw/{dataset}",
            # A parameter that depends on the output does not re-run the rule: another mirror is no other data.
            mirror=lambda wildcards, output: MIRROR,
            sources=to_json(sources(BENCHMARK.datasets[dataset])),
        shell:
            "python -P scripts/download.py --dataset {params.dataset} --folder {params.folder}"
            " --mirror={params.mirror:q} > {log} 2>&1"


for dataset, spec in BENCHMARK.datasets.items():
    if PARTIAL:
        continue

    rule:
        name:
            f"prepare_{dataset}"
        input:
            RAW.get(dataset, []),
        output:
            f"{RESULTS}/{dataset}/dataset.h5mu",
        log:
            f"{LOGS}/{dataset}/prepare.log",
        benchmark:
            f"{LOGS}/{dataset}/prepare.benchmark.tsv"
        conda:
            "../envs/python.yaml"
        resources:
            mem_mb=memory(int(1000 * spec["resources"]["mem_gb"])),
            runtime=minutes(spec["resources"]["runtime_min"]),
        params:
            dataset=dataset,
            folder=lambda wildcards, dataset=dataset: f"data/raw/{dataset}",
            max_cells=f"--max-cells {BENCHMARK.config['max_cells']}" if BENCHMARK.config["max_cells"] else "",
            spec=to_json({key: spec.get(key) for key in ("source", "sources", "prepare", "modalities", "expect")}),
            code=digest(
                "scripts/prepare.py", "clue/benchmark/prepare*", "clue/benchmark/prepare/*.py", "clue/simulate.py"
            ),
        shell:
            "python -P scripts/prepare.py --dataset {params.dataset} --raw {params.folder} --output {output}"
            " {params.max_cells} > {log} 2>&1"
