"""From sources to the files of a split: download, prepare, split and censor."""
