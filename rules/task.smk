"""Split and censor: what a method may see, and the sealed solution that only metrics and figures read."""

for wanted in MODALITY_SETS:

    rule:
        name:
            f"task_{'_'.join(wanted)}"
        input:
            PREPARED,
        output:
            f"{TASK}/train.h5mu",
            test_files(wanted),
            f"{TASK}/solution.h5ad",
        log:
            f"{LOGS}/{{dataset}}/{{split}}/task.log",
        benchmark:
            f"{LOGS}/{{dataset}}/{{split}}/task.benchmark.tsv"
        wildcard_constraints:
            dataset=datasets_with(wanted),
        conda:
            "../envs/python.yaml"
        resources:
            mem_mb=memory_of_data,
            runtime=minutes_of_data,
        params:
            folder=subpath(output[0], parent=True),
            split=lambda wildcards: to_json(BENCHMARK.datasets[wildcards.dataset]["splits"][wildcards.split]),
            max_cells=f"--max-cells {BENCHMARK.config['max_cells']}" if BENCHMARK.config["max_cells"] else "",
            code=digest("scripts/make_task.py", "clue/benchmark/data/task.py", "clue/benchmark/targets.py"),
        shell:
            "python -P $CLUE_CHECKOUT/scripts/make_task.py --dataset-file {input} --dataset {wildcards.dataset}"
            " --split {wildcards.split} --folder {params.folder} {params.max_cells} --project $CLUE_CHECKOUT > {log} 2>&1"
