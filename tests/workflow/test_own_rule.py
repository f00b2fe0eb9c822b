"""A method whose rule is written by hand has rows in the table like any other."""

import numpy as np
import pandas as pd


def write_table(project, seed=0, cells=80):
    """Write a random embedding, with its rows in reverse order."""
    names = [f"{modality}_{i:06d}" for modality in ("rna", "atac") for i in range(1, cells + 1)]
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(len(names), 3)), index=names)
    path = project.path(f"embeddings/simulated/random20/seed-{seed}.csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    table.iloc[::-1].to_csv(path)


def test_rows_of_a_precomputed_embedding(unscored):
    """An embedding made elsewhere, with its rows in another order."""
    project = unscored
    project.configure(methods=["precomputed", "random"])
    status, output = project.snakemake("--dry-run")
    assert status == 1 and "embeddings/simulated/random20/seed-0.csv" in output, output
    write_table(project)
    status, output = project.snakemake()
    assert status == 0, output
    table = project.table()
    assert set(table.loc[table["method"] == "precomputed", "status"]) == {"ok"}
    assert set(project.table("resources")["method"]) == {"precomputed", "random"}
    write_table(project, cells=79)
    assert project.planned_rules() == {"precomputed": 1, "score_rna_atac": 1, "collect": 1}
    assert project.snakemake()[0] == 1
    reason = project.table("failures")["reason"].tolist()
    assert reason == ["embeddings/simulated/random20/seed-0.csv: no row for 1 of the rna cells (rna_000080)"]
