# Bridge integration with Seurat 5 (Hao et al. 2023), in a folder with input.h5 and params.json that
# clue/benchmark/methods/r.py writes: bridge = cells with both modalities, reference = RNA cells, query = cells of the other
# modality. Writes output.h5: in the space "direct" a cell is its bridge dictionary representation; in "integrated" the
# two sides are moved onto one another along anchors as well. Rows are in the order of the input.
suppressPackageStartupMessages({
  library(Seurat)
  library(hdf5r)
})
options(Seurat.object.assay.version = "v5", future.globals.maxSize = Inf, error = function() {
  writeLines(geterrmessage(), "error.txt")
  traceback(3)
  quit(status = 1)
})
QUERY <- "QUERY"

main <- function() {
  params <- jsonlite::read_json("params.json", simplifyVector = TRUE)
  set.seed(params$seed)
  input <- H5File$new("input.h5", "r")
  reference <- prepare_reference(read_counts(input, "reference"), params)
  bridge <- prepare_bridge(read_counts(input, "bridge_rna"), read_counts(input, "bridge_query"), params)
  query <- CreateSeuratObject(normalise(read_counts(input, "query"), params), assay = QUERY)
  input$close_all()

  anchors <- find_anchors(reference, bridge, query, params)
  direct <- anchors@weight.reduction
  k_weight <- min(params$k_weight, n_anchor_cells(anchors))
  integrated <- IntegrateEmbeddings(anchors, reductions = direct, k.weight = k_weight, verbose = FALSE)
  spaces <- list(direct = Embeddings(direct), integrated = Embeddings(integrated, "integrated_dr"))
  write_spaces(spaces, list(reference = colnames(reference), query = colnames(query)))
  write_info(list(
    r = as.character(getRversion()), seurat = as.character(packageVersion("Seurat")), n_bridge = ncol(bridge),
    n_anchors = nrow(anchors@anchors), k_weight = k_weight, width = ncol(spaces$direct)
  ))
}

# ---- the three data sets -------------------------------------------------------------------------

read_counts <- function(file, name) {
  part <- function(key) file[[paste0(name, "/", key)]][]
  shape <- part("shape")
  # The same features have the same names in all data sets; cells of two data sets never do.
  features <- paste0(if (name %in% c("reference", "bridge_rna")) "gene-" else "feature-", seq_len(shape[2]))
  cells <- paste0(sub("_.*", "", name), "-", seq_len(shape[1]))
  new("dgCMatrix", i = part("indices"), p = part("indptr"), x = part("data"), Dim = rev(shape),
      Dimnames = list(features, cells))
}

prepare_reference <- function(counts, params) {
  object <- CreateSeuratObject(counts, assay = "RNA")
  if (params$normalization == "SCT") {
    object <- SCTransform(object, variable.features.n = params$n_genes, seed.use = params$seed, verbose = FALSE)
  } else {
    object <- NormalizeData(object, verbose = FALSE)
    object <- FindVariableFeatures(object, nfeatures = params$n_genes, verbose = FALSE)
    object <- ScaleData(object, verbose = FALSE)
  }
  RunPCA(object, npcs = params$n_pcs, seed.use = params$seed, verbose = FALSE)
}

prepare_bridge <- function(rna, other, params) {
  object <- NormalizeData(CreateSeuratObject(rna, assay = "RNA"), verbose = FALSE)
  object[[QUERY]] <- normalise(other, params)
  VariableFeatures(object[[QUERY]]) <- rownames(other)
  if (params$query == "adt") object <- ScaleData(object, assay = QUERY, verbose = FALSE)
  if (params$supervised) return(object)
  object[["unsupervised"]] <- if (params$query == "adt") {
    # Exactly: for as many components as there may be of a few proteins, the approximation does not converge.
    RunPCA(object[[QUERY]], npcs = params$n_query, approx = FALSE, seed.use = params$seed, reduction.key = "apca_",
           verbose = FALSE)
  } else {
    latent_semantic_indexing(LayerData(object[[QUERY]], "data"), params$n_query)
  }
  object
}

normalise <- function(counts, params) {
  assay <- CreateAssay5Object(counts)
  if (params$query == "adt") return(NormalizeData(assay, normalization.method = "CLR", margin = 2, verbose = FALSE))
  LayerData(assay, "data") <- tf_idf(counts)
  assay
}

# As Signac's RunTFIDF, whose package would pull in a genome's worth of others: log(1 + 10^4 tf idf).
tf_idf <- function(counts) {
  idf <- ncol(counts) / Matrix::rowSums(counts)
  depth <- Matrix::colSums(counts)
  counts@x <- log1p(1e4 * counts@x / rep(depth, diff(counts@p)) * idf[counts@i + 1])
  counts
}

# Left as it comes, with the singular values in misc: lsiproject divides by them.
latent_semantic_indexing <- function(values, n) {
  svd <- irlba::irlba(Matrix::t(values), nv = n)
  rownames(svd$u) <- colnames(values)
  rownames(svd$v) <- rownames(values)
  CreateDimReducObject(svd$u, svd$v, stdev = svd$d / sqrt(ncol(values) - 1), key = "LSI_", assay = QUERY,
                       misc = list(d = svd$d))
}

# ---- the integration -----------------------------------------------------------------------------

find_anchors <- function(reference, bridge, query, params) {
  adt <- params$query == "adt"
  extended <- PrepareBridgeReference(
    reference, bridge, reference.reduction = "pca", reference.dims = seq_len(params$n_pcs),
    normalization.method = params$normalization, reference.assay = DefaultAssay(reference), bridge.ref.assay = "RNA",
    bridge.query.assay = QUERY, supervised.reduction = if (params$supervised) if (adt) "spca" else "slsi",
    bridge.query.reduction = if (!params$supervised) "unsupervised", verbose = FALSE
  )
  # The first component of accessibility is depth.
  FindBridgeIntegrationAnchors(
    extended, query, query.assay = QUERY, dims = (if (adt) 1 else 2):params$n_query, scale = adt,
    reduction = if (adt) "pcaproject" else "lsiproject", integration.reduction = "direct", verbose = FALSE
  )
}

# A cell is moved by its nearest anchor cells: there must be as many on each side.
n_anchor_cells <- function(anchors) {
  table <- anchors@anchors
  min(length(unique(table$cell1[table$dataset1 == 1])), length(unique(table$cell1[table$dataset1 == 2])))
}

# ---- the answer ----------------------------------------------------------------------------------

write_spaces <- function(spaces, cells) {
  output <- H5File$new("output.h5", "w")
  for (space in names(spaces)) {
    for (side in names(cells)) output[[paste0(space, "_", side)]] <- spaces[[space]][cells[[side]], , drop = FALSE]
  }
  output$close_all()
}

write_info <- function(info) {
  jsonlite::write_json(info, "info.json", auto_unbox = TRUE)
}

main()
