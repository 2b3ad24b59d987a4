"""Videos in, numbers one can trust out: one video, pairs that are generated first, two systems side by side, a SyncNet over a data set."""
