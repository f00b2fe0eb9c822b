"""Figures and the pages of the report, drawn from the tidy tables; only the UMAPs read embeddings."""

FIGURE = f"{RESULTS}/figures/{{name}}.png"
PAGES = {"summary": "Scores", "failures": "Jobs without a result", "datasets": "Data sets"}
UMAP_POINTS = 5000

SPLITS = list(dict.fromkeys((job.dataset, job.split) for job in JOBS))
UMAPS = [split for split in SPLITS if drawn(*split) and present([solution(*split)])]
FIGURES = expand(FIGURE, name=["comparison", "ablation", "resources", *(f"umap_{a}_{b}" for a, b in UMAPS)])
TABLES = expand(f"{RESULTS}/tables/{{name}}.tsv", name=["comparison", "ablation", "datasets"])
TABLES += expand(f"{RESULTS}/tables/{{name}}.html", name=PAGES)


rule figures:
    input:
        FIGURES,
        TABLES,


rule comparison:
    input:
        TABLE,
    output:
        png=report(
            FIGURE.format(name="comparison"),
            caption="captions/comparison.rst",
            category="1 Comparison",
            labels={"figure": "Match score and FOSCTTM"},
        ),
        pdf=f"{RESULTS}/figures/comparison.pdf",
        table=f"{RESULTS}/tables/comparison.tsv",
        summary=f"{RESULTS}/tables/summary.tsv",
    log:
        f"{LOGS}/figures/comparison.log",
    benchmark:
        f"{LOGS}/figures/comparison.benchmark.tsv"
    localrule: True
    conda:
        "../envs/python.yaml"
    params:
        code=looks("scripts/figures/comparison.py", "clue/benchmark/plots.py"),
    shell:
        "python -P scripts/figures/comparison.py --metrics {input} --display config/display.yaml"
        " --figure {output.png} --table {output.table} --summary {output.summary} > {log} 2>&1"


rule ablation:
    input:
        metrics=TABLE,
        reference="config/reference/ablation.tsv",
    output:
        png=report(
            FIGURE.format(name="ablation"),
            caption="captions/ablation.rst",
            category="2 Ablation",
            labels={"figure": "Change against the full method"},
        ),
        pdf=f"{RESULTS}/figures/ablation.pdf",
        table=f"{RESULTS}/tables/ablation.tsv",
    log:
        f"{LOGS}/figures/ablation.log",
    benchmark:
        f"{LOGS}/figures/ablation.benchmark.tsv"
    localrule: True
    conda:
        "../envs/python.yaml"
    params:
        code=looks("scripts/figures/ablation.py", "clue/benchmark/plots.py"),
    shell:
        "python -P scripts/figures/ablation.py --metrics {input.metrics} --reference {input.reference}"
        " --display config/display.yaml --figure {output.png} --table {output.table} > {log} 2>&1"


rule resources:
    input:
        f"{RESULTS}/resources.tsv",
    output:
        png=report(
            FIGURE.format(name="resources"),
            caption="captions/resources.rst",
            category="4 Run time and memory",
            labels={"figure": "Run time and peak memory"},
        ),
        pdf=f"{RESULTS}/figures/resources.pdf",
    log:
        f"{LOGS}/figures/resources.log",
    benchmark:
        f"{LOGS}/figures/resources.benchmark.tsv"
    localrule: True
    conda:
        "../envs/python.yaml"
    params:
        code=looks("scripts/figures/resources.py", "clue/benchmark/plots.py"),
    shell:
        "python -P scripts/figures/resources.py --resources {input} --display config/display.yaml"
        " --figure {output.png} > {log} 2>&1"


for dataset, split in UMAPS:

    rule:
        name:
            f"umap_{dataset}_{split}"
        input:
            solution=solution(dataset, split),
            embeddings=drawn(dataset, split),
        output:
            png=report(
                FIGURE.format(name=f"umap_{dataset}_{split}"),
                caption="captions/umap.rst",
                category="3 UMAP of test cells",
                labels={"data set": dataset, "split": split},
            ),
            pdf=f"{RESULTS}/figures/umap_{dataset}_{split}.pdf",
            table=f"{RESULTS}/tables/umap_{dataset}_{split}.tsv.gz",
        log:
            f"{LOGS}/figures/umap_{dataset}_{split}.log",
        benchmark:
            f"{LOGS}/figures/umap_{dataset}_{split}.benchmark.tsv"
        conda:
            "../envs/python.yaml"
        resources:
            mem_mb=memory(4000),
            runtime=minutes(60),
        params:
            points=UMAP_POINTS,
            code=looks("scripts/figures/umaps.py", "clue/benchmark/plots.py", "clue/benchmark/umap.py"),
        shell:
            "python -P scripts/figures/umaps.py --solution {input.solution} --embeddings {input.embeddings}"
            " --points {params.points} --seed 0 --display config/display.yaml --figure {output.png}"
            " --table {output.table} > {log} 2>&1"


rule datasets:
    input:
        datasets=present([f"{RESULTS}/{dataset}/dataset.h5mu" for dataset in BENCHMARK.datasets]),
        solutions=present([solution(*split) for split in SPLITS]),
    output:
        f"{RESULTS}/tables/datasets.tsv",
    log:
        f"{LOGS}/figures/datasets.log",
    benchmark:
        f"{LOGS}/figures/datasets.benchmark.tsv"
    localrule: True
    conda:
        "../envs/python.yaml"
    params:
        code=looks("scripts/figures/datasets.py"),
    shell:
        "python -P scripts/figures/datasets.py --datasets {input.datasets} --solutions {input.solutions}"
        " --config config --table {output} > {log} 2>&1"


for page, title in PAGES.items():

    rule:
        name:
            f"page_{page}"
        input:
            f"{RESULTS}/failures.tsv" if page == "failures" else f"{RESULTS}/tables/{page}.tsv",
        output:
            report(
                f"{RESULTS}/tables/{page}.html",
                caption=f"captions/{page}.rst",
                category={"summary": "1 Comparison"}.get(page, "5 Data and failures"),
                labels={"figure": title},
            ),
        log:
            f"{LOGS}/figures/page_{page}.log",
        benchmark:
            f"{LOGS}/figures/page_{page}.benchmark.tsv"
        localrule: True
        conda:
            "../envs/python.yaml"
        params:
            title=title,
            code=looks("scripts/figures/page.py"),
        shell:
            "python -P scripts/figures/page.py --table {input} --title {params.title:q} --page {output}" " > {log} 2>&1"
